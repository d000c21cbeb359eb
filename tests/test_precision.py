"""Samplers and likelihoods in low precision, and of float32 data where 64 bits are enabled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import guidance, likelihood, processes, samplers

PROCESS = processes.VE(sigma_max=20.0)
SIGMAS = np.geomspace(20.0, 0.05, 300).tolist()
EVERYWHERE = {"known": np.zeros(2, np.float32), "mask": np.zeros(2, bool)}


def noised_score(x, t):
    return (-x / (1.0 + t[:, None] ** 2)).astype(x.dtype)


def score(x):
    return -x


def of_process(sampler, **options):
    return lambda x, key: sampler(noised_score, 20.0 * x, key, process=PROCESS, **options)


LONG = {"step_size": 2e-3, "num_steps": 1000}
SAMPLERS = {
    "langevin": lambda x, key: samplers.langevin(score, x, key, **LONG),
    "tempered": lambda x, key: samplers.tempered_langevin(
        score,
        x,
        key,
        inverse_temperatures=[0.5, 1.0],
        step_size=2e-3,
        steps_per_temperature=1000,
    ),
    "gradient_ascent": lambda x, key: samplers.gradient_ascent(score, x, **LONG),
    "underdamped": lambda x, key: samplers.underdamped(
        score, x, key, step_size=0.005, num_steps=1000
    ),
    "mala": lambda x, key: samplers.mala(score, x, key, **LONG).x,
    "annealed": lambda x, key: samplers.annealed_langevin(
        noised_score, x, key, sigmas=SIGMAS, step_size=2.5e-5, steps_per_level=3
    ),
    "consistent": lambda x, key: samplers.consistent_annealed(
        noised_score, 20.0 * x, key, sigmas=SIGMAS, step_size=0.06 * 0.05**2
    ),
    "euler_maruyama": of_process(samplers.euler_maruyama, num_steps=500),
    "reverse_diffusion": of_process(samplers.reverse_diffusion, num_steps=500),
    "ancestral": of_process(samplers.ancestral, num_steps=500),
    "predictor_corrector": of_process(samplers.predictor_corrector, num_steps=250),
    "ddim": of_process(samplers.ddim, num_steps=500),
    "heun": of_process(samplers.heun, num_steps=500),
    "2M": of_process(samplers.dpm_solver_pp, num_steps=500),
    "3M": of_process(samplers.dpm_solver_pp, num_steps=500, order=3),
    "dpm_solver_pp_sde": of_process(samplers.dpm_solver_pp_sde, num_steps=500),
    "inpaint": of_process(guidance.inpaint, num_steps=100, num_resamples=3, **EVERYWHERE),
    "adaptive_ode": lambda x, key: of_process(samplers.adaptive_ode)(x, key).x,
    "adaptive_sde": lambda x, key: of_process(samplers.adaptive_sde)(x, key).x,
}


@pytest.mark.parametrize("name", [name for name in SAMPLERS if "adaptive" not in name])
def test_bfloat16_follows_float32(name, getkey):
    """Over many small steps, none of which would move a state that is kept in bfloat16."""
    x, key = jax.random.normal(getkey(), (64, 2)).astype(jnp.bfloat16), getkey()
    run = jax.jit(SAMPLERS[name])
    low, high = run(x, key), run(x.astype(jnp.float32), key)
    assert low.dtype == jnp.bfloat16
    assert high.dtype == jnp.float32
    # Where a proposal was accepted in one precision only, chains of MALA part.
    away = np.abs(low.astype(jnp.float32) - high) / (1.0 + np.abs(high))
    assert np.quantile(away, 0.95) < 0.01


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_stays_float32_where_64_bits_are_enabled(name, getkey):
    """A score that depends on the time, which must be float32 too, as it is in training."""
    x, key = jnp.ones((3, 2), jnp.float32), getkey()
    with jax.enable_x64(True):
        assert jax.eval_shape(SAMPLERS[name], x, key).dtype == jnp.float32


def strict_score(x, t):
    assert x.dtype == t.dtype == jnp.float32
    return -x / (1.0 + t[:, None] ** 2)


@pytest.mark.parametrize(
    "value",
    [
        lambda x, key: likelihood.log_prob(strict_score, x, process=PROCESS),
        lambda x, key: likelihood.adaptive_log_prob(strict_score, x, process=PROCESS),
        lambda x, key: likelihood.elbo(strict_score, x, key, process=PROCESS),
        partial(likelihood.elbo, strict_score, process=PROCESS, num_steps=10),
    ],
    ids=["log_prob", "adaptive_log_prob", "elbo", "discrete elbo"],
)
def test_likelihoods_of_float32_where_64_bits_are_enabled(value, getkey):
    x, key = jnp.ones((3, 2), jnp.float32), getkey()
    with jax.enable_x64(True):
        assert jax.eval_shape(value, x, key).value.dtype == jnp.float32


@pytest.mark.parametrize(
    "name",
    [name for name in SAMPLERS if name not in ("gradient_ascent", "ddim", "heun", "2M", "3M")],
)
def test_random_samplers_ask_for_a_key(name):
    if name == "adaptive_ode":
        SAMPLERS[name](jnp.ones((3, 2)), None)
        return
    with pytest.raises(TypeError, match="draws random numbers: pass a key"):
        SAMPLERS[name](jnp.ones((3, 2)), None)


def test_the_bound_asks_for_a_key():
    with pytest.raises(TypeError, match="elbo draws random numbers: pass a key"):
        likelihood.elbo(noised_score, jnp.ones((3, 2)), None, process=PROCESS)
