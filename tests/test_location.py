"""Data that are not centered: everything moves with the mean of the process, or warns."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import likelihood, parameterization, processes, quantized, samplers
from sm_jax.processes._location import warn_off_center

PROCESSES = {
    "VE": processes.VE(sigma_min=0.1, sigma_max=8.0),
    "VPLinear": processes.VPLinear(t_min=1e-3),
}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
MEAN = np.array([100.0, -30.0])


def moved(process):
    """The process of data moved by MEAN."""
    return dataclasses.replace(process, mean=MEAN)


def score_of(process):
    """The exact score of a mixture in two dimensions, moved by the mean of the process."""

    def score_fn(x, t):
        alpha, sigma = (c(t)[:, None] for c in (process.alpha, process.sigma))
        y = x - alpha * processes.data_mean(process, (2,), x.dtype)[None]
        variance = 0.16 * alpha**2 + sigma**2
        center = alpha * jnp.array([0.8, -0.4], x.dtype)[None]
        pull = jnp.tanh(jnp.sum(center * y, axis=-1, keepdims=True) / variance)
        return (pull * center - y) / variance

    return score_fn


def at_start(process, x):
    """The data as samples at ``t_min``, where their mean is ``alpha`` times that of the process."""
    return (
        x + (process.alpha(process.t_min) - 1.0) * processes.data_mean(process, (2,), x.dtype)[None]
    )


def log_prob(process, x):
    x = at_start(process, x)
    return likelihood.log_prob(score_of(process), x, process=process, num_steps=8).value


def adaptive_log_prob(process, x):
    x = at_start(process, x)
    return likelihood.adaptive_log_prob(
        score_of(process), x, process=process, rtol=1e-3, atol=1e-3
    ).value


def elbo(process, x):
    return likelihood.elbo(
        score_of(process), x, jax.random.key(0), process=process, num_samples=4
    ).value


def precondition(process, x):
    score_fn = parameterization.precondition(
        lambda x, c: jnp.sin(x), process=process, sigma_data=0.5
    )
    return score_fn(processes.perturb(process, x, 0.7, jax.random.key(0))[0], jnp.full(5, 0.7))


def precondition_energy(process, x):
    energy_fn = parameterization.precondition_energy(
        lambda x, c: jnp.sin(x).sum(1), process=process, sigma_data=0.5
    )
    return energy_fn(processes.perturb(process, x, 0.7, jax.random.key(0))[0], jnp.full(5, 0.7))


def quantized_precondition(process, x):
    """What the network sees: the edges of the cells are in units of the data."""
    seen = []

    def network(x, c):
        seen.append(x)
        return jnp.zeros((*x.shape, 4))

    x_t, _ = processes.perturb(process, x, 0.7, jax.random.key(0))
    quantized.precondition(
        network, process=process, bin_edges=quantized.uniform_bin_edges(4), sigma_data=0.5
    )(x_t, jnp.full(5, 0.7))
    return seen[0]


def thermodynamic(process, x):
    """Of chains, which are moved from level to level, and of given samples."""
    key_prior, key, key_noise = jax.random.split(jax.random.key(0), 3)
    energy_fn = parameterization.precondition_energy(
        lambda x, c: 0.3 * jnp.sum(x**2, axis=1), process=process, sigma_data=1.0
    )
    start = processes.prior_sample(process, key_prior, (6, 2), x.dtype)
    found = likelihood.thermodynamic_integration(
        energy_fn, start, key, process=process, num_levels=5, steps_per_level=2
    )
    times = processes.time_grid(process, 4, rho=20.0)
    levels = jnp.stack([processes.perturb(process, x, t, key_noise)[0] for t in times])
    given = likelihood.thermodynamic_integration_from_samples(energy_fn, levels, process=process)
    return jnp.concatenate([found.value, given.value])


@each_process
@pytest.mark.parametrize(
    "function",
    [
        log_prob,
        adaptive_log_prob,
        elbo,
        precondition,
        precondition_energy,
        quantized_precondition,
        thermodynamic,
    ],
)
def test_nothing_depends_on_where_the_data_are(function, process, getkey):
    """Values at data moved by the mean are those at the data themselves, up to rounding."""
    with jax.enable_x64(True):
        x = jax.random.normal(getkey(), (5, 2), jnp.float64)
        expected = function(process, x)
        found = function(moved(process), x + MEAN[None])
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@each_process
def test_samples_move_with_the_mean(process, getkey):
    with jax.enable_x64(True):
        key_prior, key = jax.random.split(getkey())

        def drawn(process):
            options = {"process": process, "num_steps": 6}
            x = processes.prior_sample(process, key_prior, (5, 2), jnp.float64)
            score_fn = score_of(process)
            one = samplers.one_sample(
                samplers.heun, score_fn, event_shape=(2,), dtype=jnp.float64, **options
            )
            flow = samplers.adaptive_ode(score_fn, x, process=process, rtol=1e-3, atol=1e-3)
            sde = samplers.adaptive_sde(score_fn, x, key, process=process, max_steps=300)
            assert sde.finished.all()
            return {
                "one_sample": one(key),
                "ancestral": samplers.ancestral(score_fn, x, key, **options),
                "adaptive_ode": flow.x,
                "adaptive_sde": sde.x,
            }

        centered, off_center = drawn(process), drawn(moved(process))
        for name, x in centered.items():
            shift = MEAN if x.ndim == 1 else MEAN[None]
            np.testing.assert_allclose(off_center[name], x + shift, rtol=1e-8, err_msg=name)


def test_a_normal_far_from_zero_in_float32(getkey):
    """N(100, 1), the largest noise from distances: mean, deviation and log-density."""
    process = processes.VE(sigma_min=0.01, sigma_max=8.0, mean=100.0)

    def score_fn(x, t):
        return -(x - 100.0) / (1.0 + t[:, None] ** 2)

    x = processes.prior_sample(process, getkey(), (2000, 2))
    samples = samplers.heun(score_fn, x, process=process, num_steps=100)
    expected = 100.0 + (x - 100.0) / np.sqrt(1.0 + 64.0)  # the flow of a Gaussian is linear
    np.testing.assert_allclose(samples, expected, atol=5e-3)
    found = likelihood.log_prob(score_fn, jnp.array([[100.0, 101.0]]), process=process)
    truth = -0.5 / 1.0001 - np.log(2 * np.pi * 1.0001)
    prior = 0.5 * (2 - 1 / 1.0001) * np.log1p(1 / 64)  # of deviation 8, not sqrt(65)
    assert abs(found.value[0] - truth) < 1e-3 + prior


# The mean of the data against the largest noise: shape, mean, spread, process, and whether it is
# wrong by more than two nats.
CASES = [
    ((64, 2), 100.0, 1.0, processes.VE(0.01, 8.0), True),
    ((64, 2), 100.0, 1.0, processes.VE(0.01, 8.0, mean=jnp.array([100.0, 100.0])), False),
    ((64,), 3e6, 1e6, processes.VE(1e3, 1e6), True),
    ((64, 1), 5.0, 1.0, processes.VPLinear(mean=1e4), True),
    ((4, 2), 100.0, 1.0, processes.VE(0.01, 8.0), True),
    ((3, 2), 100.0, 1.0, processes.VE(0.01, 8.0), False),  # too few to tell
    ((64, 2), 100.0, 1.0, processes.VE(0.01, 1e3), False),
    ((16, 28, 28, 3), 0.3, 0.5, processes.EDM(), False),
    ((4, 256, 256, 3), 0.3, 0.5, processes.EDM(), False),
    ((16, 28, 28, 1), -0.9, 0.3, processes.VE(), False),
    ((16, 64), 3.0, 1.0, processes.VPLinear(), False),
    ((16, 64), 0.0, 1.0, processes.SubVP(), False),
]


@pytest.mark.parametrize(("shape", "mean", "spread", "process", "wrong"), CASES)
def test_data_off_the_center_of_the_prior_warn(shape, mean, spread, process, wrong, getkey):
    x = mean + spread * jax.random.normal(getkey(), shape)
    if not wrong:
        return warn_off_center(process, x, "x")
    with pytest.warns(UserWarning, match="Center the data"):
        warn_off_center(process, x, "x")
    jax.jit(lambda x: warn_off_center(process, x, "x"))(x)  # nothing of what is traced
    jax.vmap(lambda x: warn_off_center(process, x, "x"))(x[None])
    return None


@pytest.mark.parametrize("count", [4, 8, 100])
def test_a_mean_from_few_rows_is_no_alarm(count, getkey):
    """Data of a spread as large as the noise, in one and in a hundred dimensions."""
    process = processes.VE(0.01, 1.0)
    for dims in (1, 100):
        x = jax.random.normal(getkey(), (500, count, dims))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for rows in np.asarray(x):
                warn_off_center(process, rows, "x")
        assert not found


@pytest.mark.slow
def test_likelihoods_and_samplers_warn():
    process = processes.VE(0.1, 8.0)
    x = 100.0 + jnp.arange(6.0)[:, None]

    def score_fn(x, t):
        return -(x - 100.0) / (1.0 + t[:, None] ** 2)

    calls = {
        "log_prob": lambda: likelihood.log_prob(score_fn, x, process=process, num_steps=2),
        "adaptive_log_prob": lambda: likelihood.adaptive_log_prob(score_fn, x, process=process),
        "elbo": lambda: likelihood.elbo(
            score_fn, x, jax.random.key(0), process=process, num_samples=2
        ),
    }
    for call in calls.values():
        with pytest.warns(UserWarning, match=r"mean of x is 102.5 .* data of mean 0, .* 8 in"):
            call()
    jax.jit(calls["log_prob"])()
    start, key = processes.prior_sample(process, jax.random.key(1), (64, 1)), jax.random.key(2)
    for name in SAMPLERS:
        options = {} if name in ("adaptive_sde", "adaptive_ode") else {"num_steps": 40}
        draw = jax.tree_util.Partial(
            getattr(samplers, name), score_fn, start, key, process=process, **options
        )
        with pytest.warns(UserWarning, match="the mean of the samples is"):
            draw()
        jax.jit(draw)()


SAMPLERS = (
    "adaptive_sde",
    "ancestral",
    "ddim",
    "dpm_solver_pp",
    "dpm_solver_pp_sde",
    "heun",
    "predictor_corrector",
    "adaptive_ode",
    "reverse_diffusion",
    "euler_maruyama",
)
