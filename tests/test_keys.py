"""No function uses a random key twice: JAX's own checker over everything that takes one."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from sm_jax import divergence, losses, processes, samplers

SIGMAS = [2.0, 1.0]
VP = processes.VPLinear()


def score_fn(x, *_):
    return -x


# Not likelihood.log_prob, whose probes are the same along the path on purpose.
CALLS = {
    "hutchinson": partial(divergence.hutchinson, score_fn, num_probes=2),
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
        sample_t=partial(losses.likelihood_t, uniform=losses.low_discrepancy),
    ),
    "perturb": lambda x, key: processes.perturb(VP, x, 0.5, key),
    "langevin": partial(samplers.langevin, score_fn, step_size=0.1, num_steps=2),
    "annealed_langevin": partial(
        samplers.annealed_langevin, score_fn, sigmas=SIGMAS, step_size=0.1, num_steps=2
    ),
    "reverse_sde": partial(samplers.reverse_sde, score_fn, process=VP, num_steps=2),
    "heun": partial(samplers.heun, score_fn, process=VP, num_steps=2, churn=1.0),
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
