"""The Langevin family: transition laws of Gaussians, contracts, what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import samplers
from sm_jax.parameterization import EnergyScore
from tests.oracles import COV, MEAN, gaussian_score

PRECISION = np.linalg.inv(COV.astype(np.float64))


def assert_normal(samples, mean, cov):
    """Mean and covariance within 4.5 standard errors of those of a normal law."""
    n = len(samples)
    cov = np.atleast_2d(cov)
    np.testing.assert_array_less(
        np.abs(np.mean(samples, 0) - mean), 4.5 * np.sqrt(np.diag(cov) / n) + 1e-6
    )
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    np.testing.assert_array_less(
        np.abs(np.atleast_2d(np.cov(np.asarray(samples).T)) - cov), 4.5 * spread + 1e-6
    )


def test_underdamped_follows_its_transition_law(getkey):
    """Position and velocity of a Gaussian score are Gaussian: the recursion of B, A, O, A, B."""
    h, friction, n = 0.7, 0.8, 5
    x, v = jnp.full((20_000, 3), 1.5), jnp.full((20_000, 3), -0.5)

    def score_fn(x):
        return gaussian_score(x, MEAN, COV)

    options = {"step_size": h, "friction": friction, "num_steps": n}
    x_n, v_n = samplers.underdamped(score_fn, x, getkey(), velocity=v, **options)
    one, zero = np.eye(3), np.zeros((3, 3))
    kick = np.block([[one, zero], [-0.5 * h * PRECISION, one]])
    drift = np.block([[one, 0.5 * h * one], [zero, one]])
    c = np.exp(-friction * h)
    bath = np.block([[one, zero], [zero, c * one]])
    added = np.block([[zero, zero], [zero, (1 - c**2) * one]])
    before, after = drift @ kick, kick @ drift

    def law(mean, cov):
        for _ in range(n):
            mean = after @ bath @ before @ mean
            cov = after @ (bath @ before @ cov @ before.T @ bath.T + added) @ after.T
        return np.concatenate([MEAN, np.zeros(3)]) + mean, cov

    start = np.concatenate([1.5 - MEAN, np.full(3, -0.5)])
    assert_normal(np.concatenate([x_n, v_n], axis=1), *law(start, np.zeros((6, 6))))
    key = getkey()
    default = samplers.underdamped(score_fn, x[:2], key, step_size=h, num_steps=2)
    given = samplers.underdamped(score_fn, x[:2], key, step_size=h, num_steps=2, friction=1.0)
    np.testing.assert_array_equal(default, given)
    # a velocity that is drawn has mean 0 and variance 1
    drawn = samplers.underdamped(score_fn, x, getkey(), **options)
    mean, cov = law(np.append(1.5 - MEAN, np.zeros(3)), np.diag([0.0] * 3 + [1.0] * 3))
    assert_normal(drawn, mean[:3], cov[:3, :3])


def test_underdamped_can_be_resumed(getkey):
    """Without friction nothing is drawn: two runs of 3 and 4 steps are one of 7."""
    score_fn = partial(gaussian_score, mean=MEAN, cov=COV)
    run = partial(samplers.underdamped, score_fn, step_size=0.3, friction=0.0, trajectory=True)
    x, v = jax.random.normal(getkey(), (2, 4, 3))
    x7, v7, path = run(x, getkey(), velocity=v, num_steps=7)
    x3, v3, first = run(x, getkey(), velocity=v, num_steps=3)
    x4, v4, second = run(x3, getkey(), velocity=v3, num_steps=4)
    np.testing.assert_allclose((x4, v4), (x7, v7), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([first, second[1:]]), path, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_array_equal(path[-1], x7)
    # and going back with the velocity reversed leads to the start
    back, _ = samplers.underdamped(
        score_fn, x7, getkey(), velocity=-v7, step_size=0.3, friction=0.0, num_steps=7
    )
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-5)


def test_tempered_langevin_follows_its_transition_law(getkey):
    """A Gaussian at b has variance v / b, and with a step h / b the chain that over 1 - h / 2v."""
    v, h, n = 0.5, 0.2, 3
    start = jnp.full((20_000, 1), 2.0)
    run = partial(
        samplers.tempered_langevin, lambda x: (0.3 - x) / v, step_size=h, steps_per_temperature=n
    )
    schedule = [0.25, 0.5, 1.0]
    out, path = run(start, getkey(), inverse_temperatures=schedule, trajectory=True)
    assert path.shape == (10, 20_000, 1)
    mean, variance = 1.7, 0.0
    for level, b in enumerate(schedule):
        for _ in range(n):
            mean, variance = mean * (1 - h / v), variance * (1 - h / v) ** 2 + 2 * h / b
        assert_normal(path[n * (level + 1)], 0.3 + mean, variance)
    np.testing.assert_array_equal(path[-1], out)
    # a constant
    b = 4.0
    variance = v / b / (1 - h / (2 * v))
    x = 0.3 + np.sqrt(variance) * jax.random.normal(getkey(), (20_000, 1))
    assert_normal(run(x, getkey(), inverse_temperatures=b), 0.3, variance)


def test_gradient_ascent_contracts_to_the_mode():
    x = jnp.array([[2.0, -1.0, 0.5]])
    h, n = 0.2, 6
    score_fn = partial(gaussian_score, mean=MEAN, cov=COV)
    out, path = samplers.gradient_ascent(score_fn, x, step_size=h, num_steps=n, trajectory=True)
    step = np.eye(3) - h * PRECISION
    expected = MEAN + (np.asarray(x) - MEAN) @ np.linalg.matrix_power(step, n).T
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert path.shape == (7, 1, 3)
    np.testing.assert_array_equal(path[0], x)


SIGMAS = np.geomspace(4.0, 0.25, 9)
GAMMA = SIGMAS[1] / SIGMAS[0]


@pytest.mark.parametrize("variance", [0.0, 0.6])
def test_consistent_annealed_follows_its_transition_law(variance, getkey):
    """For a point of data the noise is exactly that of the level; for a Gaussian, a recursion."""
    eta = 0.6
    x = 0.3 + np.sqrt(variance + SIGMAS[0] ** 2) * jax.random.normal(getkey(), (20_000, 1))

    def score_fn(x, sigma):
        return (0.3 - x) / (variance + sigma[:, None] ** 2)

    out, path = samplers.consistent_annealed(
        score_fn,
        x + 1.0,
        getkey(),
        sigmas=SIGMAS,
        step_size=eta * SIGMAS[-1] ** 2,
        trajectory=True,
    )
    assert path.shape == (9, 20_000, 1)
    mean, total = 1.0, variance + SIGMAS[0] ** 2
    for level, sigma in enumerate(SIGMAS):
        assert_normal(path[level], 0.3 + mean, total)
        if variance == 0:
            np.testing.assert_allclose(total, sigma**2)
        kept = 1 - eta * sigma**2 / (variance + sigma**2)
        mean *= kept
        total = kept**2 * total + (1 - (1 - eta) ** 2 / GAMMA**2) * (GAMMA * sigma) ** 2
    last = np.asarray(path[-1])
    gain = variance / (variance + SIGMAS[-1] ** 2)
    np.testing.assert_allclose(out, 0.3 + gain * (last - 0.3), rtol=1e-4, atol=1e-5)


def test_consistent_annealed_without_denoising(getkey):
    key, x = getkey(), jnp.ones((3, 2))
    options = {"sigmas": SIGMAS, "step_size": 0.6 / 16}
    score_fn = lambda x, sigma: -x  # noqa: E731
    raw = samplers.consistent_annealed(score_fn, x, key, denoise=False, **options)
    _, path = samplers.consistent_annealed(score_fn, x, key, trajectory=True, **options)
    np.testing.assert_array_equal(raw, path[-1])


ENERGY = lambda x: 0.5 * jnp.sum(x.astype(jnp.float32) ** 2, axis=tuple(range(1, x.ndim)))  # noqa: E731
CALLS = {
    "mala score": partial(samplers.mala, lambda x: -x, step_size=0.3, num_steps=5),
    "mala energy": partial(samplers.mala, EnergyScore(ENERGY), step_size=0.3, num_steps=5),
    "underdamped": partial(samplers.underdamped, lambda x: -x, step_size=0.3, num_steps=5),
    "tempered": partial(
        samplers.tempered_langevin,
        lambda x: -x,
        inverse_temperatures=[0.5],
        step_size=0.3,
        steps_per_temperature=5,
    ),
    "consistent": partial(
        samplers.consistent_annealed, lambda x, s: -x, sigmas=SIGMAS[:6], step_size=0.6 * 0.5
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_contract(name, getkey):
    """Any event, jit, one trace, the path, keys used once that matter, any dtype."""
    sampler, key = CALLS[name], getkey()
    traces = []

    @jax.jit
    def jitted(x, key):
        traces.append(x)
        out = sampler(x, key, trajectory=True)
        return (out.x, out.trajectory) if isinstance(out, samplers.Chain) else out

    x = jax.random.normal(getkey(), (3, 2, 2, 1))
    with jax.debug_key_reuse(True):
        out, path = jitted(x, key)
        other, _ = jitted(x, getkey())
    assert len(traces) == 1
    assert path.shape == (6, *x.shape)
    np.testing.assert_array_equal(path[0], x)
    assert np.abs(other - out).max() > 1e-3
    alone = sampler(x, key)
    if isinstance(alone, samplers.Chain):
        assert alone.trajectory is None
        assert alone.acceptance_rate.shape == (3,)
        alone = alone.x
    np.testing.assert_allclose(alone, out, rtol=1e-4, atol=1e-5)
    half = sampler(jnp.ones((4,), jnp.bfloat16), key)
    assert (half.x if isinstance(half, samplers.Chain) else half).dtype == jnp.bfloat16


FLAT = {
    "mala": partial(samplers.mala, lambda x: 0 * x, step_size=0.5),
    "underdamped": partial(samplers.underdamped, lambda x: 0 * x, step_size=2.0, friction=50.0),
    "tempered": partial(
        samplers.tempered_langevin, lambda x: 0 * x, inverse_temperatures=0.5, step_size=0.5
    ),
}


@pytest.mark.parametrize("name", FLAT)
def test_noise_is_fresh_at_every_step_and_in_every_row(name, getkey):
    """Increments left by a score of zero do not correlate from step to step or row to row."""
    options = {"velocity": jnp.zeros((2, 4_000))} if name == "underdamped" else {}
    options["steps_per_temperature" if name == "tempered" else "num_steps"] = 9
    out = FLAT[name](jnp.zeros((2, 4_000)), getkey(), trajectory=True, **options)
    increments = np.diff(np.asarray(out[-1]), axis=0)
    if name == "underdamped":  # each is the sum of the velocities before and after
        for n in range(1, 9):
            increments[n] -= increments[n - 1]
    increments = increments.reshape(-1, 4_000)
    correlation = np.corrcoef(increments)[~np.eye(18, dtype=bool)]
    assert np.abs(correlation).max() < 5.5 / np.sqrt(4_000)


def count_evaluations(sampler, *args, energy=False, **options):
    """How often a sampler calls its function, run step by step."""
    calls = []

    def fn(x, *_):
        calls.append(x)
        return 0.5 * jnp.sum(x**2, axis=-1) if energy else -x

    with jax.disable_jit():
        sampler(EnergyScore(fn) if energy else fn, jnp.ones((2, 3)), *args, **options)
    return len(calls)


def test_number_of_evaluations(getkey):
    key, options = getkey(), {"step_size": 0.3, "num_steps": 4}
    assert count_evaluations(samplers.mala, key, **options) == 17
    assert count_evaluations(samplers.mala, key, num_panels=4, **options) == 33
    assert count_evaluations(samplers.mala, key, energy=True, **options) == 5
    assert count_evaluations(samplers.underdamped, key, **options) == 5
    assert count_evaluations(samplers.gradient_ascent, **options) == 4
    schedule = {"inverse_temperatures": [0.5, 1.0], "steps_per_temperature": 4, "step_size": 0.3}
    assert count_evaluations(samplers.tempered_langevin, key, **schedule) == 8
    ladder = {"sigmas": SIGMAS, "step_size": 0.6 / 16}
    assert count_evaluations(samplers.consistent_annealed, key, **ladder) == 9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            partial(samplers.mala, None, energy_fn=ENERGY, step_size=0.1, num_steps=1),
            TypeError,
            r"score_fn must be callable, got None.*EnergyScore\(energy_fn\)",
        ),
        (
            partial(samplers.mala, lambda x: x, step_size=0.0, num_steps=1),
            ValueError,
            "step_size must be positive",
        ),
        (
            partial(samplers.mala, lambda x: x, step_size=0.1, num_steps=0),
            ValueError,
            "num_steps must be at least 1",
        ),
        (
            partial(samplers.mala, EnergyScore(lambda x: x), step_size=0.1, num_steps=1),
            ValueError,
            r"shape \(2,\), got \(2, 3\)",
        ),
        (
            partial(samplers.mala, lambda x: x[:1], step_size=0.1, num_steps=1),
            ValueError,
            r"shape of x, \(2, 3\), got \(1, 3\)",
        ),
        (
            partial(
                samplers.adapt_step_size,
                lambda x: x,
                step_size=0.1,
                num_steps=1,
                target_acceptance=1.0,
            ),
            ValueError,
            "between 0 and 1, got 1.0",
        ),
        (
            partial(samplers.adapt_step_size, lambda x: x, step_size=-0.1, num_steps=1),
            ValueError,
            "step_size must be positive",
        ),
        (
            partial(samplers.adapt_step_size, lambda x: x, step_size=0.1, num_steps=0),
            ValueError,
            "num_steps must be at least 1",
        ),
        (
            partial(samplers.underdamped, lambda x: x, step_size=0.1, num_steps=1, friction=-1.0),
            ValueError,
            "friction must be finite and not negative",
        ),
        (
            partial(
                samplers.underdamped,
                lambda x: x,
                step_size=0.1,
                num_steps=1,
                velocity=jnp.ones((2,)),
            ),
            ValueError,
            r"velocity must have the shape of x, \(2, 3\), got \(2,\)",
        ),
        (
            partial(samplers.underdamped, lambda x: x, step_size=0.0, num_steps=1),
            ValueError,
            "step_size must be positive",
        ),
        (
            partial(
                samplers.tempered_langevin,
                lambda x: x,
                inverse_temperatures=[0.0, 1.0],
                step_size=0.1,
                steps_per_temperature=1,
            ),
            ValueError,
            "inverse_temperatures must be positive",
        ),
        (
            partial(
                samplers.tempered_langevin,
                lambda x: x,
                inverse_temperatures=np.ones((2, 2)),
                step_size=0.1,
                steps_per_temperature=1,
            ),
            ValueError,
            r"scalar or a vector, got shape \(2, 2\)",
        ),
        (
            lambda x, k: samplers.gradient_ascent(lambda x: x, x, step_size=-1.0, num_steps=1),
            ValueError,
            "step_size must be positive",
        ),
        (
            partial(
                samplers.consistent_annealed, lambda x, s: x, sigmas=[4.0, 2.0, 1.5], step_size=1.0
            ),
            ValueError,
            "geometric, got ratios from 0.5 to 0.75",
        ),
        (
            partial(samplers.consistent_annealed, lambda x, s: x, sigmas=[4.0], step_size=1.0),
            ValueError,
            "at least two levels",
        ),
        (
            partial(samplers.underdamped, lambda x: x, step_size=0.1, num_steps=1, friction=[1.0]),
            ValueError,
            r"friction must be one number, got shape \(1,\)",
        ),
        (
            partial(samplers.mala, lambda x: x, step_size=[0.1, 0.2], num_steps=1),
            ValueError,
            r"step_size must be one number, got shape \(2,\)",
        ),
        # gamma = 1/2: eta must lie between 1/2 and 3/2
        (
            partial(samplers.consistent_annealed, lambda x, s: x, sigmas=[4.0, 2.0], step_size=1.0),
            ValueError,
            r"got -1.25 from eta = .* = 0.25 and gamma = 0.5",
        ),
        (
            partial(samplers.consistent_annealed, lambda x, s: x, sigmas=[4.0, 2.0], step_size=6.0),
            ValueError,
            r"got 0 from eta = .* = 1.5 and gamma = 0.5",
        ),
    ],
)
def test_bad_input(call, error, message, getkey):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 3)), getkey())


@pytest.mark.parametrize("sigmas", [[4.0, 2.0], np.array([4.0, 2.0])])
def test_literal_options_are_checked_under_jit(sigmas, getkey):
    @jax.jit
    def draw(x, key):
        return samplers.consistent_annealed(lambda x, s: x, x, key, sigmas=sigmas, step_size=1.0)

    with pytest.raises(ValueError, match=r"got -1\.25"):
        draw(jnp.ones((2, 3)), getkey())


def test_fine_ladders_in_float32_are_geometric(getkey):
    sigmas = jnp.geomspace(50.0, 0.01, 20_000)
    x = jax.eval_shape(
        lambda key: samplers.consistent_annealed(
            lambda x, s: x, jnp.ones((1, 1)), key, sigmas=sigmas, step_size=1e-7
        ),
        getkey(),
    )
    assert x.shape == (1, 1)


def test_legal_consistent_steps(getkey):
    """Next to the limits, where eq. (3) is almost zero: all but the drift is gone."""
    for step_size in (2.0001, 5.9999):
        out = samplers.consistent_annealed(
            lambda x, s: -x,
            jnp.ones((2, 3)),
            getkey(),
            sigmas=[4.0, 2.0],
            step_size=step_size,
            denoise=False,
        )
        beta = np.sqrt(1 - (1 - step_size / 4) ** 2 / 0.5**2)
        assert 0 < beta < 0.02
        np.testing.assert_allclose(out, 1 - step_size / 4 * 16, atol=5 * 2 * beta)
