"""Samplers on analytic scores: moments, exact transition laws, orders of convergence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sm_jax import processes, samplers
from tests.oracles import COV, MEAN, PROCESSES, gaussian_noised_score, gaussian_score

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def assert_gaussian(x, mean, cov, slack=0.0):
    """Mean and covariance within 4.5 standard errors, plus a known bias of the sampler."""
    n = len(x)
    mean, cov = np.asarray(mean), np.asarray(cov)
    error = 4.5 * np.sqrt(np.diag(cov) / n)
    np.testing.assert_array_less(np.abs(np.mean(x, 0) - mean), error + slack)
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    np.testing.assert_array_less(np.abs(np.cov(np.asarray(x).T) - cov), 4.5 * spread + slack)


def test_langevin_follows_its_transition_law(getkey):
    """x_n of a Gaussian score is Gaussian, with moments of a linear recursion, bias included."""
    step, n = 0.2, 7
    x = jnp.full((20_000, 3), 1.5)
    out = samplers.langevin(
        lambda x: gaussian_score(x, MEAN, COV), x, getkey(), step_size=step, num_steps=n
    )
    contraction = np.eye(3) - step * np.linalg.inv(COV)
    mean, cov = np.full(3, 1.5), np.zeros((3, 3))
    for _ in range(n):
        mean = MEAN + contraction @ (mean - MEAN)
        cov = contraction @ cov @ contraction.T + 2 * step * np.eye(3)
    assert_gaussian(out, mean, cov)


def test_annealed_langevin_follows_its_transition_law(getkey):
    sigmas, step, n = np.array([2.0, 1.0, 0.5]), 0.05, 4
    x = jnp.full((20_000, 1), -1.0)
    out, path = samplers.annealed_langevin(
        lambda x, sigma: -(x - 0.3) / (0.25 + sigma[:, None] ** 2),
        x,
        getkey(),
        sigmas=sigmas,
        step_size=step,
        steps_per_level=n,
        trajectory=True,
    )
    mean, variance = -1.0, 0.0
    for sigma in sigmas:
        h = step * sigma**2 / 0.25
        contraction = 1 - h / (0.25 + sigma**2)
        for _ in range(n):
            mean = 0.3 + contraction * (mean - 0.3)
            variance = contraction**2 * variance + 2 * h
    last = np.asarray(path[-1])
    assert abs(last.mean() - mean) < 4.5 * np.sqrt(variance / 20_000)
    assert abs(last.var() / variance - 1) < 4.5 * np.sqrt(2 / 20_000)
    # the denoising step is the posterior mean at the last level
    np.testing.assert_allclose(out, last - 0.25 * (last - 0.3) / 0.5, rtol=1e-5, atol=1e-6)
    raw = samplers.annealed_langevin(
        lambda x, sigma: -(x - 0.3) / (0.25 + sigma[:, None] ** 2),
        x,
        getkey(),
        sigmas=sigmas,
        step_size=step,
        steps_per_level=n,
        denoise=False,
    )
    assert abs(float(raw.var()) / variance - 1) < 4.5 * np.sqrt(2 / 20_000)


def test_annealed_langevin_gets_the_weights_of_a_mixture(getkey):
    """Far modes of weight 0.8 and 0.2, which plain Langevin from one side would not reach."""
    means, weights, std = np.array([-4.0, 4.0]), np.array([0.8, 0.2]), 0.3

    def score_fn(x, sigma):
        variance = std**2 + sigma[:, None] ** 2
        logits = jnp.log(weights)[None] - 0.5 * (x - means[None]) ** 2 / variance
        return (jax.nn.softmax(logits) @ means[:, None] - x) / variance

    sigmas = np.geomspace(10.0, 0.1, 20)
    x = 10.0 * jax.random.normal(getkey(), (4_000, 1))
    out = samplers.annealed_langevin(
        score_fn, x, getkey(), sigmas=sigmas, step_size=1e-3, steps_per_level=20
    )
    share = float((out < 0).mean())
    assert abs(share - 0.8) < 4.5 * np.sqrt(0.16 / 4_000) + 0.03  # finite steps at each level


def prior(process, key, n=20_000):
    """The exact law of x_T of N(MEAN, COV): so that no error of the prior is left."""
    alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
    cov = alpha**2 * COV + sigma**2 * jnp.eye(3)
    return jax.random.multivariate_normal(key, alpha * MEAN, cov, (n,))


@pytest.mark.slow
@each_process
def test_euler_maruyama_reaches_the_data(process, getkey):
    score_fn = gaussian_noised_score(process)
    x = prior(process, getkey(), 8_000)
    raw = samplers.euler_maruyama(
        score_fn, x, getkey(), process=process, num_steps=300, denoise=False
    )
    assert_gaussian(raw, MEAN, COV, slack=0.03)


@pytest.mark.slow
@each_process
def test_heun_reaches_the_data(process, getkey):
    score_fn = gaussian_noised_score(process)
    out = samplers.heun(score_fn, prior(process, getkey()), process=process, num_steps=120)
    assert_gaussian(out, MEAN, COV, slack=0.01)
    churned = samplers.heun(
        score_fn, prior(process, getkey()), getkey(), process=process, num_steps=120, churn=20.0
    )
    assert_gaussian(churned, MEAN, COV, slack=0.01)


@each_process
def test_heun_follows_the_probability_flow(process, getkey):
    """Its exact solution for a Gaussian along an eigenvector, and the order of convergence."""
    with jax.enable_x64(True):
        process = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)
        variance = 0.36

        def deviation(t):
            return jnp.sqrt(process.alpha(t) ** 2 * variance + process.sigma(t) ** 2)

        def score_fn(x, t):
            return -x / deviation(t)[:, None] ** 2

        start, end = process.t_max, process.t_min
        x = jnp.array([[1.0], [-2.0]]) * deviation(start)
        exact = x * deviation(end) / deviation(start)
        errors = [
            np.abs(
                samplers.heun(score_fn, x, process=process, num_steps=n, denoise=False) - exact
            ).max()
            for n in (40, 80)
        ]
        assert 1.85 < np.log2(errors[0] / errors[1]) < 2.15


@each_process
def test_weak_order_of_the_reverse_sde(process):
    """The variance of Euler-Maruyama on a Gaussian, step by step, against its exact recursion.

    The sampler is run on a linear score with the noise removed by two antithetic chains: its mean
    map is what differs between orders, so the mean alone shows order one.
    """
    with jax.enable_x64(True):
        process = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)
        low = process.time_at(jnp.float64(0.1))
        high = process.time_at(jnp.float64(3.0))
        grids = [
            process.time_at(jnp.geomspace(3.0, 0.1, n + 1)).at[0].set(high).at[-1].set(low)
            for n in (200, 400)
        ]

        def score_fn(x, t):
            v = process.alpha(t) ** 2 * 0.36 + process.sigma(t) ** 2
            return -(x - process.alpha(t)[:, None]) / v[:, None]

        x = jnp.full((1, 1), 5.0)
        key = jax.random.key(0)

        def chain(x, times):
            return samplers.euler_maruyama(
                score_fn, x, key, process=process, times=times, denoise=False
            )

        # the chain is affine in its start: the slope is the mean map
        slopes = [float(chain(x + 1.0, g)[0, 0] - chain(x, g)[0, 0]) for g in grids]
        # the reverse SDE contracts by exp(int f - g^2 s') = (alpha / alpha') v' / v, ' at the start
        v = [process.alpha(t) ** 2 * 0.36 + process.sigma(t) ** 2 for t in (low, high)]
        exact = float(v[0] / v[1] * process.alpha(high) / process.alpha(low))
        errors = [abs(s - exact) for s in slopes]
        assert 0.85 < np.log2(errors[0] / errors[1]) < 1.15


def test_euler_maruyama_adds_the_noise_of_the_process(getkey):
    """One step with a score of zero: mean f, variance g^2 per unit of time."""
    process = processes.VPLinear()
    x = jnp.full((20_000, 1), 2.0)
    out = samplers.euler_maruyama(
        lambda x, t: 0.0 * x, x, getkey(), process=process, times=[0.5, 0.49], denoise=False
    )
    beta = 0.1 + 19.9 * 0.5
    assert abs(float(out.mean()) - (2.0 + 0.01 * 0.5 * beta * 2.0)) < 4.5 * np.sqrt(
        0.01 * beta / 20_000
    )
    assert abs(float(out.var()) / (0.01 * beta) - 1) < 4.5 * np.sqrt(2 / 20_000)


def test_churn_may_be_traced(getkey):
    x, key = jax.random.normal(getkey(), (4, 2)), getkey()

    def drawn(churn):
        process = processes.VE(sigma_max=3.0)
        return samplers.heun(lambda x, t: -x, x, key, process=process, num_steps=3, churn=churn)

    for churn in (0.0, 0.6, 9.0):
        np.testing.assert_allclose(jax.jit(drawn)(churn), drawn(churn), rtol=1e-5)


def test_no_churn_adds_no_noise(getkey):
    """Optimized code, as `.ci/run` tests it, fuses the difference of equal squares: it is not 0."""
    process, x = processes.VE(sigma_max=10.0), 10.0 * jax.random.normal(getkey(), (5, 2))
    call = partial(
        samplers.heun, lambda x, t: -x / (1.0 + t[:, None] ** 2), x, process=process, num_steps=8
    )
    found = jax.jit(lambda churn, key: call(key, churn=churn))(0.0, getkey())
    np.testing.assert_allclose(found, call(), rtol=1e-5, atol=1e-6)


def test_churn_adds_noise_to_the_level_that_it_claims(getkey):
    """With D = y held fixed (score 0) the flow stands still and only the churned noise is left."""
    process, churn = processes.VE(sigma_max=3.2), 0.6
    times = jnp.array([3.0, 2.0, 1.0, 0.5])
    x = jnp.zeros((20_000, 1))
    out = samplers.heun(
        lambda x, t: 0.0 * x, x, getkey(), process=process, times=times, churn=churn, denoise=False
    )
    gamma = churn / 3
    # not above the largest level of the process
    raised = np.minimum(np.array([3.0, 2.0, 1.0]) * (1 + gamma), 3.2)
    variance = np.sum(raised**2 - np.array([3.0, 2.0, 1.0]) ** 2)
    assert abs(float(out.var()) / variance - 1) < 4.5 * np.sqrt(2 / 20_000)
    strong = samplers.heun(
        lambda x, t: 0.0 * x, x, getkey(), process=process, times=times, churn=1e3, denoise=False
    )
    raised = np.minimum(np.array([3.0, 2.0, 1.0]) * 2**0.5, 3.2)
    variance = np.sum(raised**2 - np.array([3.0, 2.0, 1.0]) ** 2)
    assert abs(float(strong.var()) / variance - 1) < 4.5 * np.sqrt(2 / 20_000)
    part = samplers.heun(
        lambda x, t: 0.0 * x,
        x,
        getkey(),
        process=process,
        times=times,
        churn=churn,
        churn_interval=(1.0, 2.0),  # the upper end too, but not the lower
        churn_noise=1.3,
        denoise=False,
    )
    variance = 1.3**2 * 2.0**2 * ((1 + gamma) ** 2 - 1)
    assert abs(float(part.var()) / variance - 1) < 4.5 * np.sqrt(2 / 20_000)


@each_process
@pytest.mark.parametrize("sampler", [samplers.heun, samplers.euler_maruyama])
def test_denoising_is_the_posterior_mean_at_the_last_time(process, sampler, getkey):
    score_fn, key = gaussian_noised_score(process), getkey()
    times = processes.time_grid(process, 12)[:-3]
    x = prior(process, getkey(), 4)
    raw, path = sampler(
        score_fn, x, key, process=process, times=times, denoise=False, trajectory=True
    )
    out = sampler(score_fn, x, key, process=process, times=times)
    np.testing.assert_array_equal(path[-1], raw)
    t = times[-1]
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    noised = alpha**2 * COV + sigma**2 * np.eye(3)
    gain = alpha * COV @ np.linalg.inv(noised)
    expected = MEAN + (np.asarray(raw) - alpha * MEAN) @ gain.T
    np.testing.assert_allclose(out, expected, rtol=5e-3, atol=5e-3)


SAMPLERS = {
    "langevin": lambda x, key, **options: samplers.langevin(
        lambda x: -x, x, key, step_size=0.1, num_steps=5, **options
    ),
    "annealed": lambda x, key, **options: samplers.annealed_langevin(
        lambda x, s: -x, x, key, sigmas=[0.5, 0.3], step_size=0.1, steps_per_level=3, **options
    ),
    "euler_maruyama": lambda x, key, **options: samplers.euler_maruyama(
        lambda x, t: -x, x, key, process=processes.VPLinear(), num_steps=5, **options
    ),
    "heun": lambda x, key, **options: samplers.heun(
        lambda x, t: -x, x, key, process=processes.VPLinear(), num_steps=5, **options
    ),
    "heun churn": lambda x, key, **options: samplers.heun(
        lambda x, t: -x, x, key, process=processes.VPLinear(), num_steps=5, churn=1.0, **options
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name, getkey):
    """Any event, jit, one trace, the path, keys that matter, noise that differs between steps."""
    sampler, key = SAMPLERS[name], getkey()
    traces = []

    @jax.jit
    def jitted(x, key):
        traces.append(x)
        return sampler(x, key, trajectory=True)

    x = jax.random.normal(getkey(), (3, 2, 2, 1))
    out, path = jitted(x, key)
    steps = 6 if name == "annealed" else 5
    assert out.shape == x.shape
    assert path.shape == (steps + 1, *x.shape)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_allclose(sampler(x, key), out, rtol=1e-4, atol=1e-5)
    other, _ = jitted(x, getkey())
    assert len(traces) == 1
    assert (np.abs(other - out).max() > 1e-3) == (name != "heun")
    assert sampler(jnp.ones((4,), jnp.bfloat16), key).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["langevin", "annealed", "euler_maruyama"])
def test_noise_is_fresh_at_every_step_and_in_every_row(name, getkey):
    """Increments left by a score of zero do not correlate from step to step or row to row."""
    zero = {
        "langevin": lambda x, key: samplers.langevin(
            lambda x: 0 * x, x, key, step_size=0.5, num_steps=9, trajectory=True
        ),
        "annealed": lambda x, key: samplers.annealed_langevin(
            lambda x, s: 0 * x,
            x,
            key,
            sigmas=[2.0, 1.0, 0.5],
            step_size=0.1,
            steps_per_level=3,
            trajectory=True,
        ),
        "euler_maruyama": lambda x, key: samplers.euler_maruyama(
            lambda x, t: 0 * x, x, key, process=processes.VE(), num_steps=9, trajectory=True
        ),
    }[name]
    _, path = zero(jnp.zeros((2, 4_000)), getkey())
    increments = np.diff(np.asarray(path), axis=0).reshape(-1, 4_000)
    correlation = np.corrcoef(increments)[~np.eye(18, dtype=bool)]
    assert np.abs(correlation).max() < 5.5 / np.sqrt(4_000)
    normal = increments / increments.std(axis=1, keepdims=True)
    assert stats.kstest(normal.ravel(), stats.norm.cdf).pvalue > 1e-4


ve = processes.VE()
noise_score = partial(lambda x, t: -x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, k: samplers.langevin(lambda x: x, x, k, step_size=0.0, num_steps=1),
            ValueError,
            "step_size must be positive",
        ),
        (
            lambda x, k: samplers.langevin(lambda x: x, x, k, step_size=0.1, num_steps=0),
            ValueError,
            "num_steps must be at least 1, got 0",
        ),
        (
            lambda x, k: samplers.langevin(lambda x: x[:1], x, k, step_size=0.1, num_steps=1),
            ValueError,
            r"shape of x, \(2, 3\), got \(1, 3\)",
        ),
        (
            lambda x, k: samplers.annealed_langevin(
                noise_score, x, k, sigmas=[1.0, 2.0], step_size=0.1, steps_per_level=1
            ),
            ValueError,
            "strictly decreasing",
        ),
        (
            lambda x, k: samplers.heun(noise_score, x, process=ve, num_steps=3, times=[2.0, 1.0]),
            ValueError,
            "not both",
        ),
        (
            lambda x, k: samplers.heun(noise_score, x, process=ve, times=[1.0, 2.0]),
            ValueError,
            "strictly decrease",
        ),
        (
            lambda x, k: samplers.euler_maruyama(noise_score, x, k, process=ve, times=[99.0, 1.0]),
            ValueError,
            "range of the process",
        ),
        (
            lambda x, k: samplers.heun(noise_score, x, process=ve, churn=1.0),
            ValueError,
            "pass a key",
        ),
        (
            lambda x, k: samplers.heun(noise_score, x, process=ve, churn_interval=(2.0, 1.0)),
            ValueError,
            r"churn_interval must be \(low, high\) with low < high, got \(2.0, 1.0\)",
        ),
        (
            lambda x, k: samplers.heun(noise_score, x, process=ve, churn_noise=0.0),
            ValueError,
            "churn_noise must be positive",
        ),
        (
            lambda x, k: samplers.heun(noise_score, x, k, process=ve, churn=-1.0),
            ValueError,
            "churn must be finite and not negative",
        ),
        (
            lambda x, k: samplers.langevin(lambda x: x, x, k, step_size=[0.1, 0.2], num_steps=1),
            ValueError,
            r"step_size must be one number, got shape \(2,\)",
        ),
        (
            lambda x, k: samplers.heun(noise_score, x.astype(int), process=ve),
            TypeError,
            "floating dtype",
        ),
    ],
)
def test_bad_input(call, error, message, getkey):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 3)), getkey())


def test_default_number_of_steps(getkey):
    x = jnp.ones((1, 1))
    _, path = samplers.heun(noise_score, x, process=ve, trajectory=True)
    assert len(path) == 33
    _, path = samplers.euler_maruyama(noise_score, x, getkey(), process=ve, trajectory=True)
    assert len(path) == 257
