"""No function uses a random key twice: JAX's own checker over everything that takes one."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from sm_jax import (
    densities,
    divergence,
    guidance,
    likelihood,
    losses,
    metrics,
    processes,
    samplers,
)

SIGMAS = [2.0, 1.0]
VP = processes.VPLinear()


def score_fn(x, *_):
    return -x


def energy_fn(x, *_):
    return 0.5 * (x**2).sum(-1)


STANDARD = densities.gaussian(jnp.zeros(2), jnp.eye(2))


# Not likelihood.log_prob, whose probes are the same along the path on purpose.
CALLS = {
    "hutchinson": partial(divergence.hutchinson, score_fn, num_probes=2),
    "hutchinson in a loop": partial(divergence.hutchinson, score_fn, num_probes=5),
    "hutchinson in chunks": partial(divergence.hutchinson, score_fn, num_probes=5, chunk=2),
    "sliced plain": partial(losses.sliced, score_fn, num_probes=5, variance_reduced=False),
    "hutchpp": partial(divergence.hutchpp, score_fn),
    "estimate": partial(divergence.estimate, score_fn, num_repeats=2),
    "rows_are_independent": partial(divergence.rows_are_independent, score_fn),
    "sliced": partial(losses.sliced, score_fn, num_probes=2),
    "finite_difference_sliced": partial(
        losses.finite_difference_sliced, score_fn, epsilon=0.1, num_probes=2
    ),
    "denoising": partial(losses.denoising, score_fn, sigma=0.1, control_variate=True),
    "second_order_denoising": partial(
        losses.second_order_denoising, score_fn, sigma=0.1, num_probes=2
    ),
    "second_order_denoising_trace": partial(
        losses.second_order_denoising_trace, score_fn, sigma=0.1, divergence=divergence.hutchinson
    ),
    "multiscale_denoising": partial(losses.multiscale_denoising, score_fn, sigmas=SIGMAS),
    "noise_conditional": partial(losses.noise_conditional, score_fn, sigmas=SIGMAS),
    "noise_conditional_sliced": partial(losses.noise_conditional_sliced, score_fn, sigmas=SIGMAS),
    "diffusion": partial(losses.diffusion, score_fn, process=VP),
    "diffusion low_discrepancy": partial(
        losses.diffusion,
        score_fn,
        process=VP,
        sample_times=partial(losses.likelihood_times, uniform=losses.low_discrepancy),
    ),
    "perturb": lambda x, key: processes.perturb(VP, x, 0.5, key),
    "langevin": partial(samplers.langevin, score_fn, step_size=0.1, num_steps=2),
    "annealed_langevin": partial(
        samplers.annealed_langevin, score_fn, sigmas=SIGMAS, step_size=0.1, steps_per_level=2
    ),
    "euler_maruyama": partial(samplers.euler_maruyama, score_fn, process=VP, num_steps=2),
    "heun": partial(samplers.heun, score_fn, process=VP, num_steps=2, churn=1.0),
    **{
        name: partial(getattr(samplers, name), score_fn, process=VP, num_steps=2)
        for name in ("ancestral", "dpm_solver_pp_sde", "predictor_corrector", "reverse_diffusion")
    },
    "predictor_corrector with ddim": partial(
        samplers.predictor_corrector,
        score_fn,
        process=VP,
        num_steps=2,
        predictor=partial(samplers.steps.ddim, eta=0.5),
    ),
    "ddim": partial(samplers.ddim, score_fn, process=VP, num_steps=2, eta=0.5),
    "adaptive_sde": partial(samplers.adaptive_sde, score_fn, process=VP, max_steps=2),
    "mala": partial(samplers.mala, score_fn, step_size=0.1, num_steps=2),
    "underdamped": partial(samplers.underdamped, score_fn, step_size=0.1, num_steps=2),
    "consistent_annealed": partial(
        samplers.consistent_annealed, score_fn, sigmas=[2.0, 1.0, 0.5], step_size=0.2
    ),
    "tempered_langevin": partial(
        samplers.tempered_langevin,
        score_fn,
        inverse_temperatures=[0.5, 1.0],
        step_size=0.1,
        steps_per_temperature=2,
    ),
    "adapt_step_size": partial(samplers.adapt_step_size, score_fn, step_size=0.1, num_steps=2),
    "generate's one_sample": lambda x, key: samplers.one_sample(
        samplers.ancestral, score_fn, process=VP, event_shape=(2,), num_steps=2
    )(key),
    "inpaint": lambda x, key: guidance.inpaint(
        score_fn, x, key, known=x, mask=x > 0, process=VP, num_steps=3, num_resamples=2
    ),
    "drop_labels": partial(guidance.drop_labels, rate=0.5, null=jnp.zeros(2)),
    "asymmetry": partial(metrics.curl, score_fn, num_probes=2),
    "sliced_wasserstein": lambda x, key: metrics.sliced_wasserstein(x, x + 1.0, key),
    "contrastive_divergence": partial(
        losses.contrastive_divergence, energy_fn, step_size=0.1, num_steps=2
    ),
    "persistent_contrastive_divergence": lambda x, key: losses.persistent_contrastive_divergence(
        energy_fn, x, key, chains=x, step_size=0.1, num_steps=2
    ),
    "noise_contrastive": partial(
        losses.noise_contrastive, energy_fn, noise_density=STANDARD, num_noise=2
    ),
    "elbo": partial(likelihood.elbo, score_fn, process=VP, num_samples=2, num_estimates=2),
    "annealed_importance": lambda x, key: likelihood.annealed_importance(
        energy_fn,
        key,
        base=STANDARD,
        step_size=0.1,
        num_chains=3,
        num_temperatures=3,
        samples=x,
    ),
    "discrete_log_prob": lambda x, key: likelihood.discrete_log_prob(
        energy_fn,
        x,
        key,
        num_values=2,
        dequantizer=likelihood.logit_normal_dequantizer(lambda x: (x, x)),
        num_samples=2,
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_no_key_is_used_twice(call, getkey):
    with jax.debug_key_reuse(True):
        jax.jit(call)(jnp.ones((3, 2)), getkey())


def test_the_checker_sees_a_key_used_twice(getkey):
    @jax.jit
    def twice(key):
        first, _ = jax.random.split(key)
        return jax.random.normal(first) + jax.random.normal(first)

    with (
        jax.debug_key_reuse(True),
        pytest.raises(jax.errors.KeyReuseError),
    ):
        twice(getkey())
