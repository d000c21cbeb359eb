"""Log-densities against closed forms, for every process."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import densities, divergence, processes
from sm_jax.likelihood import LogProb, _flow, bits_per_dim, log_prob
from sm_jax.typing import Divergence
from tests.oracles import COV, MEAN, PROCESSES, gaussian_log_prob, gaussian_noised_score

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def flow_log_prob(process, x):
    """The density of the flow for N(MEAN, COV), whose prior is the one of the process.

    The flow maps eigen-coordinate i of x at t_min linearly to t_max, by the ratio of standard
    deviations; the density follows by the change of variables, in float64.
    """
    values, vectors = np.linalg.eigh(np.asarray(COV, np.float64))
    alphas, sigmas = (
        [float(c(t)) for t in (process.t_min, process.t_max)]
        for c in (process.alpha, process.sigma)
    )
    stretch = [np.sqrt(a**2 * values + s**2) for a, s in zip(alphas, sigmas, strict=True)]
    local = (np.asarray(x, np.float64) - alphas[0] * MEAN) @ vectors
    end = alphas[1] * MEAN + (local * stretch[1] / stretch[0]) @ vectors.T
    jacobian = np.log(stretch[1] / stretch[0]).sum()
    prior = -0.5 * (end**2).sum(1) / sigmas[1] ** 2 - 1.5 * np.log(2 * np.pi * sigmas[1] ** 2)
    return prior + jacobian


@pytest.fixture
def x(getkey):
    return jax.random.multivariate_normal(getkey(), jnp.array(MEAN), jnp.array(COV), (8,))


@each_process
def test_closed_form(process, x):
    result = log_prob(gaussian_noised_score(process), x, process=process, num_steps=64)
    assert result.num_evaluations == 65 * 6
    np.testing.assert_allclose(result.value, flow_log_prob(process, x), atol=2e-3)
    np.testing.assert_array_equal(result.standard_error, np.zeros(8))
    # and this is the density of the data, up to the mismatch of the prior
    np.testing.assert_allclose(result.value, gaussian_log_prob(x, MEAN, COV), atol=0.03)


@pytest.mark.slow
@each_process
@pytest.mark.parametrize("sigma_data", [0.7, 1.0])
def test_second_order_in_the_steps(process, x, sigma_data):
    with jax.enable_x64(True):
        process = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)
        x = jnp.asarray(np.asarray(x), jnp.float64)
        score_fn, exact = gaussian_noised_score(process), flow_log_prob(process, x)
        errors = [
            np.sqrt(np.mean((value(score_fn, process, x, n, sigma_data) - exact) ** 2))
            for n in (64, 128)
        ]
        assert 1.7 < np.log2(errors[0] / errors[1]) < 2.2
        assert errors[1] < 1e-4


def value(score_fn, process, x, num_steps, sigma_data):
    return log_prob(score_fn, x, process=process, num_steps=num_steps, sigma_data=sigma_data).value


@each_process
def test_a_gaussian_of_the_stated_scale_is_exact_in_few_steps(process, getkey):
    """The solver approximates only what sets the data apart from N(0, d^2 I): here nothing."""
    d = 0.6
    x = d * jax.random.normal(getkey(), (5, 2, 2))

    def score_fn(x, t):
        variance = (process.alpha(t) * d) ** 2 + process.sigma(t) ** 2
        return -x / variance[:, None, None]

    value = log_prob(score_fn, x, process=process, num_steps=3, sigma_data=d).value
    start, end = (
        float(jnp.sqrt((process.alpha(t) * d) ** 2 + process.sigma(t) ** 2))
        for t in (process.t_min, process.t_max)
    )
    sigma = float(process.sigma(process.t_max))
    w = np.asarray(x, np.float64).reshape(5, 4) / start
    expected = (
        -0.5 * ((end * w) ** 2).sum(1) / sigma**2
        - 2 * np.log(2 * np.pi * sigma**2)
        + 4 * np.log(end / start)
    )
    np.testing.assert_allclose(value, expected, atol=4e-4)


def test_mixture_in_one_dimension():
    """Not linear: two modes, under VE and VP, against the exact density."""
    means, std = jnp.array([-1.0, 0.5]), 0.3
    weights = jnp.array([0.3, 0.7])
    x = jnp.linspace(-2.0, 1.5, 9)

    for process in (PROCESSES["VE"], PROCESSES["VPLinear"]):

        def parts(x, t, process=process):
            alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
            variance = (alpha * std) ** 2 + sigma**2
            centered = x[:, None] - alpha * means[None]
            logits = jnp.log(weights)[None] - 0.5 * centered**2 / variance
            return logits, centered, variance

        def score_fn(x, t, parts=parts):
            logits, centered, variance = parts(x, t)
            return -jnp.sum(jax.nn.softmax(logits) * centered / variance, axis=1)

        t = jnp.full(9, process.t_min)
        logits, _, variance = parts(x, t)
        exact = jax.scipy.special.logsumexp(logits - 0.5 * jnp.log(2 * jnp.pi * variance), axis=1)
        value = log_prob(score_fn, x, process=process, num_steps=96).value
        np.testing.assert_allclose(value, exact, atol=6e-3)


@pytest.mark.slow
def test_stochastic_divergences_and_their_standard_error(x, getkey):
    """Unbiased, with an error bar that covers: over many keys the z-scores have unit spread."""
    process = PROCESSES["VPLinear"]
    score_fn = gaussian_noised_score(process)
    exact = log_prob(score_fn, x, process=process, num_steps=24).value

    @jax.jit
    @jax.vmap
    def estimates(key):
        return log_prob(
            score_fn,
            x,
            key,
            process=process,
            divergence=divergence.hutchinson,
            num_estimates=8,
            num_steps=24,
        )

    result = estimates(jax.random.split(getkey(), 100))
    error = np.asarray(result.value - exact[None])
    spread = error.std()
    assert spread > 0.05  # the estimate is truly random
    assert abs(error.mean()) < 4.5 * spread / np.sqrt(100)  # rows share probes only within a key
    assert np.all(result.standard_error > 0)
    claimed = np.sqrt((np.asarray(result.standard_error, np.float64) ** 2).mean())
    assert abs(claimed / spread - 1) < 0.15
    single = log_prob(
        score_fn, x, getkey(), process=process, divergence=divergence.hutchinson, num_steps=4
    )
    assert np.all(np.isnan(single.standard_error))


def test_the_standard_error_is_that_of_the_estimates(x, getkey):
    """Divergences that are one number each: the value is linear in them, by a known slope."""

    def solve(trace, key=None, **options):
        def given(score_fn, x, key):
            return Divergence(score_fn(x), jnp.broadcast_to(trace(key), x.shape[:1]))

        return log_prob(
            lambda x, t: -x,
            x,
            key,
            process=PROCESSES["VPLinear"],
            divergence=given,
            num_steps=4,
            **options,
        )

    slope = solve(lambda key: 1.0).value - solve(lambda key: 0.0).value
    key = getkey()
    draws = np.array([jax.random.normal(k) for k in jax.random.split(key, 5)])
    result = solve(jax.random.normal, key, num_estimates=5)
    error = np.abs(slope) * draws.std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(result.standard_error, error, rtol=1e-4)


def test_probes_stay_fixed_along_the_path(x, getkey):
    """Every evaluation of one solve draws the same probes; estimates draw their own."""
    drawn = []

    def probe(key, shape, dtype):
        value = jax.random.rademacher(key, shape, dtype)
        jax.debug.callback(lambda v: drawn.append(np.asarray(v)), value)
        return value

    process = PROCESSES["VE"]
    log_prob(
        gaussian_noised_score(process),
        x,
        getkey(),
        process=process,
        divergence=partial(divergence.hutchinson, probe=probe),
        num_estimates=2,
        num_steps=3,
    )
    jax.effects_barrier()
    distinct = {v.tobytes() for v in drawn}
    assert len(drawn) == 2 * 4
    assert len(distinct) == 2


def test_evaluations_are_counted(x):
    """The network runs once for each counted evaluation, the divergence included."""
    process, calls = PROCESSES["VE"], []

    def score_fn(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return -x / (1.0 + t[:, None] ** 2)

    result = log_prob(score_fn, x, process=process, num_steps=5, num_substeps=2)
    jax.effects_barrier()
    assert len(calls) == result.num_evaluations == 6 * 4


@pytest.mark.parametrize("shape", [(4,), (1, 2), (3, 3), (2, 2, 2, 1)])
def test_contract(shape, getkey):
    process = PROCESSES["VPLinear"]
    x, traces = jax.random.normal(getkey(), shape), []

    def score_fn(x, t):
        assert t.shape == x.shape[:1]
        return -x

    @jax.jit
    def jitted(x):
        traces.append(x)
        return log_prob(score_fn, x, process=process, num_steps=4).value

    expected = -0.5 * np.sum(np.asarray(x).reshape(shape[0], -1) ** 2, axis=1)
    expected -= 0.5 * x[0].size * np.log(2 * np.pi)
    np.testing.assert_allclose(jitted(x), expected, atol=1e-3, rtol=1e-3)
    jitted(x + 1.0)
    assert len(traces) == 1
    assert log_prob(score_fn, x.astype(jnp.bfloat16), process=process, num_steps=4).value.dtype == (
        jnp.float32
    )


def test_explicit_times_are_the_grid_that_they_replace(x):
    process = PROCESSES["EDM"]
    score_fn = gaussian_noised_score(process)
    grid = processes.time_grid(process, 10, rho=20.0)
    np.testing.assert_array_equal(
        log_prob(score_fn, x, process=process, times=grid).value,
        log_prob(score_fn, x, process=process, num_steps=10).value,
    )


def test_bits_per_dim():
    """A uniform density on 2^8 cells costs 8 bits per number, in any units."""
    levels, dims = 256, 5
    nats = dims * np.log(1 / 2.0)  # uniform on [-1, 1]^5
    log_det = dims * np.log(2 / levels)
    np.testing.assert_allclose(bits_per_dim(nats, dims, log_det=log_det), 8.0, rtol=1e-6)
    np.testing.assert_allclose(bits_per_dim(jnp.array([nats, 0.0]), dims), [1.0, 0.0], rtol=1e-6)
    result = LogProb(jnp.zeros(2), jnp.zeros(2), jnp.int32(3))
    with pytest.raises(TypeError, match=r"got a LogProb: pass its value"):
        bits_per_dim(result, dims)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_steps=0), "num_steps must be at least 1"),
        (dict(num_substeps=0), "num_substeps must be at least 1"),
        (dict(num_estimates=0), "num_estimates must be at least 1"),
        (dict(num_estimates=2), "num_estimates=2 needs a random divergence and a key"),
        (dict(sigma_data=0.0), "sigma_data must be positive"),
        (dict(times=[1.0, 2.0]), "strictly decrease"),
        (dict(times=[100.0, 1.0]), "range of the process"),
        (dict(times=[40.0, 1.0, 0.01]), "must go from t_max=50.0 to t_min=0.01, .* got 40.0 to"),
        (dict(times=[50.0, 1.0, 0.02]), "must go from t_max=50.0 to t_min=0.01, .* to 0.02"),
        (dict(times=[50.0, 0.01], num_steps=1), "give num_steps=1 or times"),
        (dict(sigma_data=[1.0, 2.0]), r"sigma_data must be one number, got shape \(2,\)"),
    ],
)
def test_bad_input(options, message, x):
    with pytest.raises(ValueError, match=message):
        log_prob(lambda x, t: -x, x, process=PROCESSES["VE"], **options)
    with pytest.raises(TypeError, match="probe draws random numbers: pass a key"):
        log_prob(lambda x, t: -x, x, process=PROCESSES["VE"], divergence=divergence.hutchinson)
    with pytest.raises(ValueError, match="num_dims must be at least 1, got 0"):
        bits_per_dim(1.0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "spread"), [(0.01, 1.0), (100.0, 0.2)])
def test_the_scale_of_the_data(scale, spread, getkey):
    """Another scale is right if sigma_data says so, or with many steps; else there is a warning."""
    process = processes.VE(sigma_min=0.01 * min(1.0, scale), sigma_max=50.0 * max(1.0, scale))
    means = jnp.zeros((1, 16)) if spread == 1.0 else jax.random.normal(getkey(), (3, 16))
    density = densities.gaussian_mixture(
        jnp.ones(len(means)), scale * means, jnp.full(len(means), (spread * scale) ** 2)
    )

    def score_fn(x, t):
        return density.noised(process, t[0]).score(x)  # all t are equal

    x = density.sample(getkey(), 32)
    truth = density.noised(process, process.t_min).log_prob(x)

    def error(**options):
        found = log_prob(score_fn, x, process=process, **options).value
        return np.sqrt(np.mean(np.square(found - truth)))

    with pytest.warns(UserWarning, match=r"Give sigma_data=\S+, or 128 steps"):
        assert error() > 0.1
    assert error(sigma_data=scale) < 0.1
    assert error(num_steps=128) < 0.1


def test_no_alarm_where_the_noise_hides_the_scale(getkey):
    """Data far below the smallest noise, a few rows, equal rows, and rows that are traced."""
    process = processes.VE(sigma_min=0.5, sigma_max=50.0)

    def score_fn(x, t):
        return -x / t[:, None] ** 2

    for x in (1e-4 * jax.random.normal(getkey(), (64, 2)), jnp.ones((3, 2)), jnp.ones((64, 2))):
        _flow._warn_scale(process, x, 1.0, 2)
    x = 100.0 * jax.random.normal(getkey(), (64, 2))
    jax.jit(lambda x: log_prob(score_fn, x, process=process, num_steps=2).value)(x)
    with pytest.warns(UserWarning, match="sigma_data=1"):
        log_prob(score_fn, x, process=process, num_steps=2)
