"""Adaptive samplers: tolerances kept, evaluations counted, rows apart, bounds reported."""

import sys
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import densities, processes, samplers
from sm_jax.samplers import _adaptive
from tests.oracles import COV, MEAN, PROCESSES, gaussian_noised_score
from tests.test_samplers import assert_gaussian, prior
from tests.test_samplers_diffusion import mixture_flow, mixture_score

VP, VE = processes.VPLinear(), processes.VE(sigma_max=20.0)
BOTH = [samplers.probability_flow, samplers.adaptive_sde]


def counted(score_fn, counts):
    """A score function that counts the rows it is called on."""

    def wrapped(x, t):
        jax.debug.callback(lambda t: counts.append(len(t)), t)
        return score_fn(x, t)

    return wrapped


# The probability flow.


@pytest.mark.parametrize("name", ["GeometricVE", "SubVP"])
def test_probability_flow_keeps_its_tolerance(name):
    """Against SciPy on a mixture: the error follows the tolerance of a step down.

    For nine paths of ten, and in the mean: in some, one step is misjudged by its own estimate.
    """
    process, y = PROCESSES[name], np.linspace(-4, 4, 161)
    times = process.time(jnp.array([4.0, 0.1]))
    x = (process.alpha(times[0]) * y.astype(np.float32))[:, None]
    exact = mixture_flow(y, 4.0, 0.1)
    flow = jax.jit(
        lambda x, tolerance: samplers.probability_flow(
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
        assert np.quantile(error, 0.9) < 20 * tolerance
        assert error.mean() < 6 * tolerance
        counts.append(int(sample.num_evaluations.max()))
    assert error.max() > 1e-8
    assert counts[0] < counts[1] < 400


@pytest.mark.parametrize("solver", [None, diffrax.Heun(), diffrax.Dopri8()])
@pytest.mark.parametrize("denoise", [True, False])
def test_probability_flow_counts_its_evaluations(solver, denoise):
    counts = []
    score_fn = counted(lambda x, t: -x / (0.25 + t[:, None] ** 2), counts)
    sample = samplers.probability_flow(
        score_fn, jnp.full((1, 2), 20.0), process=VE, solver=solver, denoise=denoise
    )
    jax.effects_barrier()
    assert sample.num_evaluations == len(counts)


def test_probability_flow_vanishes_for_a_gaussian_of_the_stated_spread():
    """What sigma_data is for: the steps grow without bound, and the result is exact."""
    score_fn = lambda x, t: -x / (0.25 * VP.alpha(t)[:, None] ** 2 + VP.sigma(t)[:, None] ** 2)  # noqa: E731
    x = jnp.array([[1.0], [-0.5]])
    flow = jax.jit(
        lambda x, d: samplers.probability_flow(
            score_fn, x, process=VP, sigma_data=d, rtol=1e-5, atol=1e-5, denoise=False
        )
    )
    few, many = (flow(x, d) for d in (0.5, 5.0))
    assert few.num_evaluations.max() < 40 < many.num_evaluations.min()
    deviations = [np.sqrt(0.25 * VP.alpha(t) ** 2 + VP.sigma(t) ** 2) for t in (VP.t_max, VP.t_min)]
    expected = x * deviations[1] / deviations[0]
    np.testing.assert_allclose(few.x, expected, rtol=1e-4)
    np.testing.assert_allclose(many.x, expected, rtol=1e-3)


def test_path_of_the_probability_flow():
    """Kept at the times of the grid, by interpolation; the steps are the solver's own."""
    times = VE.time(jnp.array([4.0, 2.0, 0.7, 0.1]))
    y = np.linspace(-4, 4, 3)
    call = partial(
        samplers.probability_flow,
        mixture_score(VE),
        jnp.asarray(y, jnp.float32)[:, None],
        process=VE,
        rtol=1e-5,
        atol=1e-5,
    )
    sample = jax.jit(partial(call, times=times, trajectory=True))()
    assert sample.path.shape == (4, 3, 1)
    for low, points in zip((2.0, 0.7, 0.1), sample.path[1:], strict=True):
        np.testing.assert_allclose(points[:, 0], mixture_flow(y, 4.0, low), atol=1e-3)
    t = jnp.full(3, 0.1)
    denoised = sample.path[-1] + 0.01 * mixture_score(VE)(sample.path[-1], t)
    np.testing.assert_allclose(sample.x, denoised, rtol=1e-4, atol=1e-5)
    assert jax.eval_shape(partial(call, num_steps=7, trajectory=True)).path.shape == (8, 3, 1)
    assert jax.eval_shape(partial(call, trajectory=True)).path.shape == (33, 3, 1)
    assert jax.eval_shape(partial(call, times=times)).path is None


# The reverse SDE.


def test_brownian_motion_on_its_clock(getkey):
    """Increments over cells are independent and have the variance of the clock, at any cell."""
    clock = lambda cell: jnp.exp(cell / 2.0**_adaptive._DEPTH * 4.0)  # noqa: E731
    cells = jnp.array([0, 1, 1000, 1001, 4096, 5000, 2**_adaptive._DEPTH])

    @jax.jit
    def paths(keys):
        one = lambda key, cell: _adaptive._brownian(key, cell, clock, jnp.zeros(2))  # noqa: E731
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, cells)

    w = np.asarray(paths(jax.random.split(getkey(), 10_000)), np.float64)
    assert w.shape == (10_000, 7, 2)
    np.testing.assert_array_equal(w[:, 0], 0.0)
    increments = np.diff(w, axis=1).reshape(10_000, 12)
    scaled = increments / np.repeat(np.sqrt(np.diff(np.asarray(clock(cells), np.float64))), 2)
    covariance = scaled.T @ scaled / 10_000
    error = np.sqrt((1 + np.eye(12)) / 10_000)
    # differences of neighbouring cells are rounded where W is hundreds of times as large
    assert np.all(np.abs(covariance - np.eye(12)) < 4.5 * error + 0.01)
    assert np.all(np.abs(scaled.mean(axis=0)) < 4.5 / 100)


def test_adaptive_sde_reaches_the_data(getkey):
    """Mean and covariance of a Gaussian; steps of different lengths, many of them rejected."""
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
    times = [1.0, float(VP.time(2.3))]
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
    """Fresh noise after a rejected step would lose a twentieth of the lighter mode."""
    n, std = 8_000, np.array([0.2, 0.2])

    def score_fn(x, t):
        variance = std[None].astype(np.float32) ** 2 + t[:, None] ** 2
        away = x - jnp.array([[-1.0, 0.8]])
        share = jax.nn.softmax(jnp.log(jnp.array([[0.3, 0.7]])) - 0.5 * away**2 / variance, axis=1)
        return -jnp.sum(share * away / variance, axis=1, keepdims=True)

    heavy = jax.random.bernoulli(getkey(), 0.7, (n, 1))
    x = jnp.where(heavy, 0.8, -1.0) + np.sqrt(400.04) * jax.random.normal(getkey(), (n, 1))
    draw = jax.jit(
        lambda x, key: samplers.adaptive_sde(score_fn, x, key, process=VE, rtol=0.02, atol=0.004)
    )
    sample = draw(x, getkey())
    share = float((sample.x < 0).mean())
    assert abs(share - 0.3) < 4.5 * np.sqrt(0.21 / n) + 0.003
    assert 50 < sample.num_evaluations.mean() < 150


def test_adaptive_sde_converges_along_its_path(getkey):
    """With one key the Brownian path is one: solutions of smaller tolerance approach each other."""
    x, key = 20.0 * jax.random.normal(getkey(), (64, 1)), getkey()
    draw = jax.jit(
        lambda tolerance: samplers.adaptive_sde(
            mixture_score(VE), x, key, process=VE, rtol=tolerance, atol=tolerance, max_steps=20_000
        )
    )
    samples = [draw(tolerance) for tolerance in (0.03, 0.003, 0.0003)]
    # The median, as a few paths fall to the other side of the ridge between the modes.
    errors = [float(jnp.median(jnp.abs(s.x - samples[2].x))) for s in samples[:2]]
    assert errors[1] < 0.05
    assert errors[1] < errors[0] / 3
    counts = [float(s.num_evaluations.mean()) for s in samples]
    assert counts[0] < counts[1] < counts[2]


def test_adaptive_sde_step_by_hand(monkeypatch, getkey):
    """One step over the whole range: eqs. (3) and (4) with W = 0.7 at the end."""
    monkeypatch.setattr(_adaptive, "_brownian", lambda key, cell, clock, like: 0.7 + 0.0 * like)
    monkeypatch.setattr(_adaptive, "_LONGEST", 1.0)
    x, counts = jnp.array([[1.0, -0.5]]), []
    score_fn = counted(lambda x, t: -0.8 * x, counts)
    high, low = 1.5, 1.5 * np.exp(-0.1)
    sample = samplers.adaptive_sde(
        score_fn, x, getkey(), process=VE, times=[high, low], rtol=1e3, denoise=False
    )
    jax.effects_barrier()
    share = 1 - np.exp(-0.2)
    first = (1 - 0.8 * high**2) * np.asarray(x)
    moved = (1 - share) * np.asarray(x) + share * first + low**2 * 0.7
    second = (1 - 0.8 * low**2) * moved
    expected = moved + (1 - share / 0.2) * (second - first)
    np.testing.assert_allclose(sample.x, expected, rtol=2e-4)
    assert sample.num_evaluations == len(counts) == 2


@pytest.mark.parametrize(("rtol", "atol"), [(1e-9, 0.005), (0.02, 1e-9)])
def test_adaptive_sde_step_lengths(rtol, atol, monkeypatch, getkey):
    """Without noise, each attempt followed in NumPy: what is accepted, and the next length.

    The relative tolerance is of the larger of y' and the y' before, which decays here.
    """
    monkeypatch.setattr(_adaptive, "_brownian", lambda key, cell, clock, like: 0.0 * like)
    seen, cells, width = [], 2**_adaptive._DEPTH, np.log(10.0) / 2**_adaptive._DEPTH

    def score_fn(x, t):
        # D = 2 log r: its change over a step is 2 h, the same from anywhere
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return ((2.0 * jnp.log(t))[:, None] - x) / t[:, None] ** 2

    samplers.adaptive_sde(
        score_fn,
        jnp.full((1, 2), 30.0),
        getkey(),
        process=VE,
        times=[3.0, 0.3],
        rtol=rtol,
        atol=atol,
        safety=0.8,
        denoise=False,
    )
    jax.effects_barrier()

    expected, y, before, cell, length, rejected = [], 30.0, 30.0, 0, 0.1 / width, 0
    while cell < cells:
        step = int(np.clip(int(length), 1, cells - cell))
        level, h = -np.log(3.0) + width * cell, width * step
        expected += [level, level + h]
        share = -np.expm1(-2 * h)
        moved = y + share * (-2.0 * level - y)
        change = -(1 - share / (2 * h)) * 2.0 * h
        error = abs(change) / max(atol, rtol * max(abs(moved), abs(before)))
        length = min(step * 0.8 * max(error, 1e-3**0.5) ** (-2 / 3), 1 / width)
        if error <= 1:
            y, before, cell = moved + change, moved, cell + step
        else:
            rejected += 1
    assert len(expected) > 8
    assert rejected or rtol > atol
    # a length may be rounded to the next cell
    np.testing.assert_allclose(-np.log(seen), expected, atol=5 * width)


def test_relative_tolerance_is_of_the_larger_of_two_points(getkey):
    """With the scale of the problem in r, y and D multiplied, rtol alone takes the same steps."""

    def call(scale):
        process = processes.VE(sigma_min=0.01 * scale, sigma_max=20.0 * scale)
        score_fn = lambda x, t: -x / (scale**2 + t[:, None] ** 2)  # noqa: E731
        x = scale * jnp.array([[20.0], [-7.0]])
        return samplers.adaptive_sde(
            score_fn, x, jax.random.key(0), process=process, rtol=0.02, atol=1e-9
        )

    one, ten = call(1.0), call(10.0)
    np.testing.assert_array_equal(one.num_evaluations, ten.num_evaluations)
    np.testing.assert_allclose(10.0 * one.x, ten.x, rtol=1e-3)


# Both.


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
    assert np.isfinite(sample.x[0]).all()
    assert sample.num_evaluations[1] > sample.num_evaluations[0]
    if stochastic:
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
        ({"atol": -1.0}, "atol must be positive"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"times": [1.0, 2.0]}, "strictly decrease"),
    ],
)
def test_bad_input(sampler, options, message, getkey):
    with pytest.raises(ValueError, match=message):
        sampler(lambda x, t: -x, jnp.ones((2, 3)), getkey(), process=VE, **options)


def test_more_bad_input(getkey, monkeypatch):
    flow = partial(samplers.probability_flow, lambda x, t: -x, jnp.ones((2, 3)), process=VE)
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        flow(sigma_data=0.0)
    with pytest.raises(TypeError, match="explicit Runge-Kutta method of diffrax"):
        flow(solver=diffrax.Kvaerno3())
    with pytest.raises(ValueError, match=r"shape of x, \(1, 3\), got \(1, 2\)"):
        samplers.probability_flow(lambda x, t: x[:, :2], jnp.ones((2, 3)), process=VE)
    with pytest.raises(ValueError, match="safety must be positive"):
        samplers.adaptive_sde(lambda x, t: -x, jnp.ones((2, 3)), getkey(), process=VE, safety=0.0)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"pip install sm_jax\[ode\], or use heun"):
        flow()


def test_a_tolerance_that_the_shortest_step_does_not_keep_is_not_finished(getkey):
    """Steps end at multiples of 2^-13 of the range: their noise is too rough for this tolerance."""
    process = processes.VE(sigma_min=0.01, sigma_max=50.0)
    density = densities.gaussian_mixture(
        jnp.array([0.5, 0.5]), jnp.array([[-1.0], [1.0]]), jnp.array([[[0.05]], [[0.1]]])
    )

    def score_fn(x, t):
        return jax.vmap(lambda x, t: density.noised(process, t).score(x[None])[0])(x, t)

    key_prior, key = jax.random.split(getkey())
    x = processes.prior_sample(process, key_prior, (8, 1))
    run = partial(samplers.adaptive_sde, score_fn, x, key, process=process, max_steps=20_000)
    rough, fine = run(rtol=0.02, atol=0.01), run(rtol=1e-9, atol=1e-9)
    assert rough.finished.all()
    assert not fine.finished.any()
    assert np.isnan(fine.x).all()
