"""Adaptive samplers: tolerances kept, evaluations counted, rows apart, bounds reported."""

import sys
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import densities, processes, samplers
from tests.oracles import COV, MEAN, PROCESSES, gaussian_noised_score
from tests.test_samplers import assert_gaussian, prior
from tests.test_samplers_diffusion import mixture_flow, mixture_score

VP, VE = processes.VPLinear(), processes.VE(sigma_max=20.0)
BOTH = [samplers.adaptive_ode, samplers.adaptive_sde]
ANGLES = 2 * np.pi * np.arange(8) / 8
CENTERS, WIDTH = 2.0 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), 0.1  # eight Gaussians


def counted(score_fn, counts):
    """A score function that counts the rows it is called on."""

    def wrapped(x, t):
        jax.debug.callback(lambda t: counts.append(len(t)), t)
        return score_fn(x, t)

    return wrapped


def exact_score(density, process):
    """The score of a density under the noise of each row's time."""
    return jax.vmap(lambda x, t: density.noised(process, t).score(x[None])[0])


# The probability flow.


def eight_gaussians_flow(y, high, low, num=1000):
    """The flow of the eight Gaussians from ratio to ratio, in NumPy: ends and amplifications.

    The second is what an error as large as the noise, anywhere on the path, has become at the end.
    """
    identity, levels = np.eye(2), np.linspace(-np.log(high), -np.log(low), 2 * num + 1)

    def slope_and_jacobian(y, level):
        r2 = np.exp(-2 * level)
        variance = WIDTH**2 + r2
        logits = -0.5 * np.sum((y[:, None] - CENTERS) ** 2, axis=2) / variance
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        center = share @ CENTERS
        spread = np.einsum("bk,ki,kj->bij", share, CENTERS, CENTERS)
        spread -= center[:, :, None] * center[:, None, :]
        slope = r2 / variance * (center - y)
        return slope, r2 / variance * (spread / variance - identity)

    h, path = levels[2] - levels[0], [y]
    for i in range(num):
        start, middle, end = levels[2 * i : 2 * i + 3]
        k1 = slope_and_jacobian(y, start)[0]
        k2 = slope_and_jacobian(y + h / 2 * k1, middle)[0]
        k3 = slope_and_jacobian(y + h / 2 * k2, middle)[0]
        k4 = slope_and_jacobian(y + h * k3, end)[0]
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(y)
    to_end, worst = np.broadcast_to(identity, (len(y), 2, 2)), np.full(len(y), low)
    for y, level in zip(path[-2::-1], levels[-3::-2], strict=True):
        to_end = to_end @ (identity + h * slope_and_jacobian(y, level)[1])
        worst = np.maximum(worst, np.exp(-level) * np.linalg.norm(to_end, ord=2, axis=(1, 2)))
    return path[-1], worst


@pytest.mark.parametrize("sigma_data", [1.0, pytest.param(2.8, marks=pytest.mark.slow)])
def test_every_path_keeps_the_tolerance(sigma_data, getkey):
    """From the prior to eight Gaussians: no step jumps over the noise at which the modes part.

    A path makes a few dozen errors of one tolerance, some of which a step underestimates.
    """
    density = densities.gaussian_mixture(
        jnp.full(8, 0.125), jnp.asarray(CENTERS, jnp.float32), WIDTH**2
    )
    x = processes.prior_sample(VP, getkey(), (400, 2))
    ratios = [float(processes.noise_ratio(VP, t)) for t in (VP.t_max, VP.t_min)]
    start = np.asarray(x, np.float64) / float(VP.alpha(VP.t_max))
    expected, amplification = eight_gaussians_flow(start, *ratios)
    flow = jax.jit(
        lambda x, rtol: samplers.adaptive_ode(
            exact_score(density, VP), x, process=VP, rtol=rtol, sigma_data=sigma_data, denoise=False
        )
    )
    errors, counts = [], []
    for rtol in (1e-2, 1e-3, 1e-4, 1e-5):
        sample = flow(x, rtol)
        assert sample.finished.all()
        y = np.asarray(sample.x) / float(VP.alpha(VP.t_min))
        errors.append(np.linalg.norm(y - expected, axis=1))
        counts.append(float(sample.num_evaluations.mean()))
        assert np.all(errors[-1] < 20 * rtol * amplification)
    assert np.median(errors[-1]) < 1e-5 < 1e-4 < np.median(errors[1])
    assert counts[0] < counts[1] < counts[2] < counts[3] < 200


@pytest.mark.parametrize("name", ["GeometricVE", "SubVP"])
def test_adaptive_ode_keeps_its_tolerance(name):
    """Against SciPy on a mixture: the error of every path follows the tolerance of a step down."""
    process, y = PROCESSES[name], np.linspace(-4, 4, 161)
    times = process.time_at(jnp.array([4.0, 0.1]))
    x = (process.alpha(times[0]) * y.astype(np.float32))[:, None]
    exact = mixture_flow(y, 4.0, 0.1)
    flow = jax.jit(
        lambda x, tolerance: samplers.adaptive_ode(
            mixture_score(process),
            x,
            process=process,
            times=times,
            rtol=tolerance,
            atol=tolerance,
            denoise=False,
        )
    )
    counts = []
    for tolerance in (1e-2, 1e-5):
        sample = flow(x, tolerance)
        assert sample.finished.all()
        error = np.abs(sample.x[:, 0] / process.alpha(times[-1]) - exact)
        assert error.max() < 20 * tolerance
        counts.append(int(sample.num_evaluations.max()))
    assert error.max() > 1e-8
    assert counts[0] < counts[1] < 400


@pytest.mark.parametrize("solver", [None, diffrax.Heun(), diffrax.Dopri8()])
@pytest.mark.parametrize("denoise", [True, False])
def test_adaptive_ode_counts_its_evaluations(solver, denoise):
    counts = []
    score_fn = counted(lambda x, t: -x / (0.25 + t[:, None] ** 2), counts)
    sample = samplers.adaptive_ode(
        score_fn, jnp.full((1, 2), 20.0), process=VE, solver=solver, denoise=denoise
    )
    jax.effects_barrier()
    assert sample.num_evaluations == len(counts)


def test_adaptive_ode_vanishes_for_a_gaussian_of_the_stated_spread():
    """What sigma_data is for: the steps are as long as they may be, and the result is exact."""
    score_fn = lambda x, t: -x / (0.25 * VP.alpha(t)[:, None] ** 2 + VP.sigma(t)[:, None] ** 2)  # noqa: E731
    x = jnp.array([[1.0], [-0.5]])
    flow = jax.jit(
        lambda x, d: samplers.adaptive_ode(
            score_fn, x, process=VP, sigma_data=d, rtol=1e-5, atol=1e-5, denoise=False
        )
    )
    few, many = (flow(x, d) for d in (0.5, 5.0))
    span = np.log(processes.noise_ratio(VP, VP.t_max) / processes.noise_ratio(VP, VP.t_min))
    assert few.num_evaluations.max() <= 1 + 6 * (span + 3) < many.num_evaluations.min()
    deviations = [np.sqrt(0.25 * VP.alpha(t) ** 2 + VP.sigma(t) ** 2) for t in (VP.t_max, VP.t_min)]
    expected = x * deviations[1] / deviations[0]
    np.testing.assert_allclose(few.x, expected, rtol=1e-4)
    np.testing.assert_allclose(many.x, expected, rtol=1e-3)


def test_path_of_the_probability_flow():
    """Kept at the times of the grid, by interpolation; the steps are the solver's own."""
    times = VE.time_at(jnp.array([4.0, 2.0, 0.7, 0.1]))
    y = np.linspace(-4, 4, 3)
    call = partial(
        samplers.adaptive_ode,
        mixture_score(VE),
        jnp.asarray(y, jnp.float32)[:, None],
        process=VE,
        rtol=1e-5,
        atol=1e-5,
    )
    sample = jax.jit(partial(call, times=times, trajectory=True))()
    assert sample.trajectory.shape == (4, 3, 1)
    for low, points in zip((2.0, 0.7, 0.1), sample.trajectory[1:], strict=True):
        np.testing.assert_allclose(points[:, 0], mixture_flow(y, 4.0, low), atol=1e-3)
    t = jnp.full(3, 0.1)
    denoised = sample.trajectory[-1] + 0.01 * mixture_score(VE)(sample.trajectory[-1], t)
    np.testing.assert_allclose(sample.x, denoised, rtol=1e-4, atol=1e-5)
    assert jax.eval_shape(partial(call, num_steps=7, trajectory=True)).trajectory.shape == (8, 3, 1)
    assert jax.eval_shape(partial(call, trajectory=True)).trajectory.shape == (33, 3, 1)
    assert jax.eval_shape(partial(call, times=times)).trajectory is None


# The reverse SDE.


def test_adaptive_sde_reaches_the_data(getkey):
    """Mean and covariance of a Gaussian; steps of lengths of their own."""
    draw = jax.jit(
        lambda x, key: samplers.adaptive_sde(
            gaussian_noised_score(VP), x, key, process=VP, denoise=False
        )
    )
    sample = draw(prior(VP, getkey(), 8_000), getkey())
    assert sample.finished.all()
    assert len(np.unique(sample.num_evaluations)) > 5
    assert_gaussian(sample.x, MEAN, COV, slack=0.02)


def test_adaptive_sde_stops_in_the_middle(getkey):
    """At a time where the scale of the data is 0.4, with the law of the data noised to it."""
    times = [1.0, float(VP.time_at(2.3))]
    draw = jax.jit(
        lambda x, key: samplers.adaptive_sde(
            gaussian_noised_score(VP), x, key, process=VP, times=times, denoise=False
        )
    )
    sample = draw(prior(VP, getkey(), 8_000), getkey())
    alpha, sigma = float(VP.alpha(times[1])), float(VP.sigma(times[1]))
    assert 0.3 < alpha < 0.5
    noised = alpha**2 * COV + sigma**2 * np.eye(3)
    assert_gaussian(sample.x, alpha * MEAN, noised, slack=0.02)


def test_adaptive_sde_gets_the_weights_of_a_mixture(getkey):
    """A step rejected for its noise would lose a twentieth of the lighter mode."""
    n, std = 8_000, np.array([0.2, 0.2])

    def score_fn(x, t):
        variance = std[None].astype(np.float32) ** 2 + t[:, None] ** 2
        away = x - jnp.array([[-1.0, 0.8]])
        share = jax.nn.softmax(jnp.log(jnp.array([[0.3, 0.7]])) - 0.5 * away**2 / variance, axis=1)
        return -jnp.sum(share * away / variance, axis=1, keepdims=True)

    heavy = jax.random.bernoulli(getkey(), 0.7, (n, 1))
    x = jnp.where(heavy, 0.8, -1.0) + np.sqrt(400.04) * jax.random.normal(getkey(), (n, 1))
    draw = jax.jit(lambda x, key: samplers.adaptive_sde(score_fn, x, key, process=VE, rtol=0.04))
    sample = draw(x, getkey())
    share = float((sample.x < 0).mean())
    assert abs(share - 0.3) < 4.5 * np.sqrt(0.21 / n) + 0.003
    assert 50 < sample.num_evaluations.mean() < 150


@pytest.mark.parametrize(("rtol", "bias"), [(0.05, 0.04), (0.01, 0.01)])
def test_adaptive_sde_keeps_the_widths_of_modes(rtol, bias, getkey):
    """The variance about the nearer mode, by default and without a drift as the tolerance falls."""
    process, n = processes.VE(sigma_min=0.01, sigma_max=50.0), 20_000
    variances = np.array([0.05, 0.1])
    density = densities.gaussian_mixture(
        jnp.array([0.5, 0.5]), jnp.array([[-1.0], [1.0]]), jnp.asarray(variances)[:, None, None]
    )
    x = processes.prior_sample(process, getkey(), (n, 1))
    draw = jax.jit(partial(samplers.adaptive_sde, exact_score(density, process), process=process))
    sample = draw(x, getkey(), rtol=rtol)
    assert sample.finished.all()
    assert sample.num_evaluations.mean() < (100 if rtol == 0.05 else 240)

    grid = np.linspace(-5.0, 5.0, 20_001)
    variances = variances[:, None] + 1e-4
    weights = np.exp(-0.5 * (grid - np.array([[-1.0], [1.0]])) ** 2 / variances) / variances**0.5
    expected = np.average((np.abs(grid) - 1.0) ** 2, weights=weights.sum(axis=0))
    squares = np.asarray((jnp.abs(sample.x[:, 0]) - 1.0) ** 2, np.float64)
    error = 4.5 * squares.std() / n**0.5
    assert abs(squares.mean() - expected) < bias * expected + error


def test_adaptive_sde_by_hand(monkeypatch, getkey):
    """All steps of eqs. (3) and (4), and their lengths, in NumPy, with all noise 0.7."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.full(shape, 0.7, dtype))
    seen, high, low = [], 3.0, 0.02

    def score_fn(x, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return (jnp.sin(x) - 0.5 * jnp.log(t)[:, None] - x) / t[:, None] ** 2

    for rtol, atol in ((0.1, 0.0), (1e-6, 0.05)):
        seen.clear()
        x = jnp.array([[4.0, -2.0]])
        options = {"process": VE, "times": [high, low], "denoise": False}
        sample = samplers.adaptive_sde(score_fn, x, getkey(), rtol=rtol, atol=atol, **options)
        jax.effects_barrier()

        denoiser = lambda y, r: np.sin(y) - 0.5 * np.log(r)  # noqa: E731
        y, r, h, c, expected, lengths = np.array([4.0, -2.0]), high, 0.1, None, [], []
        while r > low:
            r_next = max(r * np.exp(-h), low)
            h = np.log(r / r_next)
            lengths.append(h)
            expected += [r, r_next]
            share, first = 1 - np.exp(-2 * h), denoiser(y, r)
            moved = (1 - share) * y + share * first + r_next * share**0.5 * 0.7
            change = (1 - share / (2 * h)) * (denoiser(moved, r_next) - first)
            squares = np.mean((change / (atol + rtol * r_next)) ** 2)
            now = np.exp(4 * h) * squares / h**3
            c = now if c is None else (c + now) / 2
            y, r, h = moved + change, r_next, min(c ** (-1 / 3), 2 * h, 0.5)
        assert len(lengths) > 10
        assert len(set(np.round(lengths, 5))) > 8  # not the bounds alone
        np.testing.assert_allclose(seen, expected, rtol=1e-3)
        np.testing.assert_allclose(sample.x[0], y, rtol=1e-3, atol=1e-3)
        assert sample.num_evaluations == len(seen)


def test_adaptive_sde_has_noise_of_its_own_in_each_row_and_step(getkey):
    """With D = 0 a step to r' adds r' sqrt(1 - exp(-2 h)) z; here y / r'^2 is a random walk."""
    n, counts = 4_000, []
    score_fn = counted(lambda x, t: -x / t[:, None] ** 2, counts)
    draw = partial(samplers.adaptive_sde, score_fn, process=VE, denoise=False)
    keys = getkey(), getkey()
    ends = [np.asarray(draw(jnp.zeros((n, 2)), key, times=[1.0, 0.2]).x) for key in keys]
    variance = 0.2**2 - 0.2**4
    points = np.concatenate(ends, axis=1)
    covariance = points.T @ points / n / variance
    error = np.sqrt((1 + np.eye(4)) / n)
    assert np.all(np.abs(covariance - np.eye(4)) < 4.5 * error)
    neighbors = np.mean(points[1:] * points[:-1], axis=0) / variance
    assert np.all(np.abs(neighbors) < 4.5 / np.sqrt(n))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", BOTH)
def test_the_relative_tolerance_is_of_the_noise(sampler):
    """With the scale of the problem in r, y and D multiplied, rtol alone takes the same steps."""

    def call(scale):
        process = processes.VE(sigma_min=0.01 * scale, sigma_max=20.0 * scale)
        score_fn = lambda x, t: -x / (scale**2 + t[:, None] ** 2)  # noqa: E731
        x, options = scale * jnp.array([[20.0], [-7.0]]), {}
        if sampler is samplers.adaptive_ode:
            options = {"sigma_data": 2.0 * scale}
        return sampler(score_fn, x, jax.random.key(0), process=process, **options)

    one, thousand = call(1.0), call(1024.0)
    np.testing.assert_array_equal(one.num_evaluations, thousand.num_evaluations)
    np.testing.assert_allclose(1024.0 * one.x, thousand.x, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", BOTH)
def test_the_absolute_tolerance_is_in_units_of_the_data(sampler):
    """In noise far above the data atol = 0.1 changes nothing; far below it saves nearly all."""
    process = processes.VE(sigma_min=1e-4, sigma_max=0.1)
    score_fn = lambda x, t: (jnp.sin(30.0 * x) - x) / t[:, None] ** 2  # noqa: E731
    call = partial(sampler, score_fn, jnp.array([[0.1, -0.3]]), jax.random.key(0), process=process)
    none, some, more = (int(call(atol=a).num_evaluations[0]) for a in (0.0, 1e-3, 1e-1))
    assert more < some < none
    same = [int(call(rtol=1e-3, atol=a).num_evaluations[0]) for a in (0.0, 1e-12)]
    assert same[0] == same[1]


# Both.


@pytest.mark.slow
@pytest.mark.parametrize("sampler", BOTH)
def test_a_bound_that_is_hit_is_reported(sampler, getkey):
    """The row that needs more steps is NaN and not finished; the other is as it would be alone."""
    stochastic = sampler is samplers.adaptive_sde

    def score_fn(x, t):
        # a denoiser that goes up and down, for the second row: there, or where x is large
        hard = jnp.arange(len(x))[:, None] == 1 if stochastic else jnp.abs(x) > 30.0
        wave = 30.0 * jnp.sin(20.0 * jnp.log(t))[:, None]
        return (jnp.where(hard, 80.0 + wave, 0.0) - x) / t[:, None] ** 2

    x = jnp.array([[1.0], [90.0]])
    call = partial(sampler, score_fn, key=getkey(), process=VE, max_steps=60 if stochastic else 30)
    sample = call(x)
    assert sample.finished.tolist() == [True, False]
    assert np.isnan(sample.x[1]).all()
    assert sample.num_evaluations[1] > sample.num_evaluations[0]
    if stochastic:
        # The score is that of a point at 0, where the denoiser ends.
        np.testing.assert_allclose(sample.x[0], 0.0, atol=1e-5)
        assert sample.num_evaluations[1] == 121  # the denoiser too
    else:
        np.testing.assert_allclose(call(x[:1]).x, sample.x[:1], rtol=1e-5)


@pytest.mark.parametrize("sampler", BOTH)
def test_contract(sampler, getkey):
    """Any event, jit, one trace, vmap, the denoiser, dtypes, rows apart."""
    key, traces = getkey(), []
    call = partial(sampler, lambda x, t: -x, process=VP)

    @jax.jit
    def jitted(x, key):
        traces.append(x)
        return call(x, key), call(x, key, denoise=False)

    x = jax.random.normal(getkey(), (3, 2, 2, 1))
    sample, raw = jitted(x, key)
    assert sample.x.shape == x.shape
    assert sample.num_evaluations.shape == sample.finished.shape == (3,)
    np.testing.assert_array_equal(sample.num_evaluations, raw.num_evaluations + 1)
    t = np.float32(VP.t_min)
    np.testing.assert_allclose(
        sample.x, (1 - VP.sigma(t) ** 2) / VP.alpha(t) * raw.x, rtol=1e-5, atol=1e-6
    )
    changed, _ = jitted(x.at[1].add(1.0), getkey() if sampler is BOTH[0] else key)
    assert len(traces) == 1
    np.testing.assert_array_equal(changed.x[0], sample.x[0])
    assert np.all(changed.x[1] != sample.x[1])
    if sampler is samplers.adaptive_sde:
        other, _ = jitted(x, getkey())
        assert np.all(other.x != sample.x)
    rows = jax.eval_shape(jax.vmap(call), x, jax.random.split(key, 3))
    assert rows.x.shape == x.shape
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
            shape = jax.ShapeDtypeStruct((4,), dtype)
            assert jax.eval_shape(call, shape, key).x.dtype == dtype


def test_keys_are_used_once(getkey):
    call = partial(samplers.adaptive_sde, lambda x, t: -x, process=VP)
    with jax.debug_key_reuse(True):
        jax.jit(call)(jnp.ones((3, 2)), getkey())


@pytest.mark.parametrize("sampler", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"atol": -1.0}, "atol must be finite and not negative"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"times": [1.0, 2.0]}, "strictly decrease"),
    ],
)
def test_bad_input(sampler, options, message, getkey):
    with pytest.raises(ValueError, match=message):
        sampler(lambda x, t: -x, jnp.ones((2, 3)), getkey(), process=VE, **options)


def test_more_bad_input(getkey, monkeypatch):
    flow = partial(samplers.adaptive_ode, lambda x, t: -x, jnp.ones((2, 3)), process=VE)
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        flow(sigma_data=0.0)
    with pytest.raises(TypeError, match="explicit Runge-Kutta method of diffrax"):
        flow(solver=diffrax.Kvaerno3())
    with pytest.raises(ValueError, match=r"shape of x, \(1, 3\), got \(1, 2\)"):
        samplers.adaptive_ode(lambda x, t: x[:, :2], jnp.ones((2, 3)), process=VE)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"pip install diffrax, or use heun"):
        flow()
