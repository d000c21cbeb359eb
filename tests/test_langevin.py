"""The Langevin family: transition laws of Gaussians, invariance of MALA, adaptation, contracts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from sm_jax import samplers
from sm_jax.parameterization import score_from_energy
from tests.oracles import COV, MEAN, assert_mean, gaussian_score

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


# A quartic density, E = x^4 / 4, on which Simpson's rule is exact; of known draws and CDF.


def quartic_energy(x):
    return jnp.sum(x**4, axis=-1) / 4


def quartic_draws(key, n):
    key_size, key_sign = jax.random.split(key)
    size = (4.0 * jax.random.gamma(key_size, 0.25, (n, 1))) ** 0.25
    return size * jax.random.rademacher(key_sign, (n, 1), size.dtype)


def quartic_cdf(x):
    return 0.5 * (1 + np.sign(x) * special.gammainc(0.25, x**4 / 4))


def logistic_score(x):
    return -jnp.tanh(0.5 * x)


def uniform_pvalue(x, cdf):
    """The p-value of a Kolmogorov-Smirnov test; chains that diverged count as far away."""
    x = np.nan_to_num(np.asarray(x, np.float64)[:, 0], nan=1e6, posinf=1e6, neginf=-1e6)
    return stats.kstest(x, cdf).pvalue


FORMS = {
    "energy": lambda **o: partial(samplers.mala, None, energy_fn=quartic_energy, **o),
    "score": lambda **o: partial(samplers.mala, lambda x: -(x**3), **o),
    # any vector field may propose, if the energy decides
    "both": lambda **o: partial(
        samplers.mala, lambda x: 0.3 - 0.5 * x, energy_fn=quartic_energy, **o
    ),
}
QUARTIC_STEP = 0.25


@pytest.mark.parametrize("form", FORMS)
def test_mala_leaves_a_quartic_density_invariant(form, getkey):
    """Exact draws stay exact draws; without the acceptance they do not."""
    x = quartic_draws(getkey(), 40_000)
    assert uniform_pvalue(x, quartic_cdf) > 1e-3
    run = FORMS[form](step_size=QUARTIC_STEP, num_steps=20)
    assert uniform_pvalue(jax.jit(run)(x, getkey()).x, quartic_cdf) > 1e-3
    biased = samplers.langevin(lambda x: -(x**3), x, getkey(), step_size=QUARTIC_STEP, num_steps=20)
    assert uniform_pvalue(biased, quartic_cdf) < 1e-6


def test_mala_for_bare_scores_beyond_the_exactness_of_simpson(getkey):
    """The logistic density, of a bounded score: an error of fifth order does not show."""
    x = jax.random.logistic(getkey(), (40_000, 1))
    options = {"step_size": 1.5, "num_steps": 20}
    out = samplers.mala(logistic_score, x, getkey(), **options).x
    assert uniform_pvalue(out, stats.logistic.cdf) > 1e-3
    biased = samplers.langevin(logistic_score, x, getkey(), **options)
    assert uniform_pvalue(biased, stats.logistic.cdf) < 1e-6


def test_mala_never_leaves_the_support(getkey):
    """A gamma density, whose energy is NaN below zero."""
    x = jax.random.gamma(getkey(), 3.0, (40_000, 1))
    chain = samplers.mala(
        None,
        x,
        getkey(),
        energy_fn=lambda x: jnp.sum(x - 2.0 * jnp.log(x), axis=-1),
        step_size=2.0,
        num_steps=20,
    )
    assert uniform_pvalue(chain.x, stats.gamma(3.0).cdf) > 1e-3
    assert np.isfinite(chain.acceptance_rate).all()


def test_mala_counts_what_is_not_a_number_as_rejected(getkey):
    """An energy that exists at the start only."""
    x = jnp.array([[1.0], [2.0]])
    chain = samplers.mala(
        lambda x: 0 * x,
        x,
        getkey(),
        energy_fn=lambda y: jnp.where(y == x, 0.0, jnp.nan)[:, 0],
        step_size=0.5,
        num_steps=3,
    )
    np.testing.assert_array_equal(chain.x, x)
    np.testing.assert_array_equal(chain.acceptance_rate, 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_mala_accepts_as_often_as_quadrature_says(form, getkey):
    """The mean of min(1, a) over the density and the proposal, from the densities themselves."""
    h, nodes = 0.6, np.linspace(-4.0, 4.0, 1201)
    drift = (lambda x: 0.3 - 0.5 * x) if form == "both" else (lambda x: -(x**3))
    x, y = nodes[:, None], nodes[None, :]

    def log_joint(x, y):
        log_p = -(x**4) / 4 - np.log(special.gamma(0.25) / np.sqrt(2))
        return log_p + stats.norm.logpdf(y, x + h * drift(x), np.sqrt(2 * h))

    log_there, log_back = log_joint(x, y), log_joint(y, x)
    width = nodes[1] - nodes[0]
    np.testing.assert_allclose(np.sum(np.exp(log_there)) * width**2, 1.0, atol=2e-3)
    expected = np.sum(np.exp(np.minimum(log_there, log_back))) * width**2
    x = quartic_draws(getkey(), 20_000)
    chain = FORMS[form](step_size=h, num_steps=3)(x, getkey())
    assert_mean(chain.acceptance_rate, expected)
    assert chain.acceptance_rate.shape == (20_000,)
    assert 0.2 < expected < 0.9


def test_a_score_that_carries_its_energy_is_taken_for_it(getkey):
    x, key, calls = 0.5 * jnp.ones((4, 1)), getkey(), []

    def energy_fn(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(jnp.cos(3.0 * x) + x**2, axis=-1)

    options = {"step_size": 0.5, "num_steps": 8}
    carried = samplers.mala(score_from_energy(energy_fn), x, key, **options)
    jax.effects_barrier()
    assert len(calls) == 9
    given = samplers.mala(None, x, key, energy_fn=energy_fn, **options)
    np.testing.assert_array_equal(carried.acceptance_rate, given.acceptance_rate)
    np.testing.assert_array_equal(carried.x, given.x)


def test_energy_and_score_make_the_same_chain(getkey):
    """Where Simpson's rule is exact, for events of any rank."""
    x, key = 0.5 * jax.random.normal(getkey(), (64, 2, 3)), getkey()

    def energy(x):
        return jnp.sum(x**4 / 4 - x**3 / 5 + 0.3 * x, axis=(1, 2))

    options = {"step_size": 0.15, "num_steps": 30, "trajectory": True}
    by_energy = samplers.mala(None, x, key, energy_fn=energy, **options)
    by_score = samplers.mala(lambda x: -jax.grad(lambda y: energy(y).sum())(x), x, key, **options)
    assert 0.1 < float(by_energy.acceptance_rate.mean()) < 0.95
    # but for acceptances that rounding decides
    same = np.isclose(by_energy.path[-1], by_score.path[-1], atol=1e-3).all(axis=(1, 2))
    assert same.mean() > 0.95
    np.testing.assert_allclose(
        by_energy.acceptance_rate[same], by_score.acceptance_rate[same], atol=1e-3
    )
    path = by_energy.path
    assert path.shape == (31, 64, 2, 3)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_array_equal(path[-1], by_energy.x)
    # the chains moved as often as they say that they do on average
    moved = np.mean(np.any(np.diff(path, axis=0) != 0, axis=(2, 3)), axis=0)
    assert_mean(moved - np.asarray(by_energy.acceptance_rate), 0.0)


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
    run = partial(samplers.tempered_langevin, lambda x: (0.3 - x) / v, step_size=h, num_steps=n)
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


def test_mode_seeking_contracts_to_the_mode():
    x = jnp.array([[2.0, -1.0, 0.5]])
    h, n = 0.2, 6
    score_fn = partial(gaussian_score, mean=MEAN, cov=COV)
    out, path = samplers.mode_seeking(score_fn, x, step_size=h, num_steps=n, trajectory=True)
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


def test_adaptation_is_dual_averaging(getkey):
    """Where everything is accepted: the recursion of Hoffman & Gelman with their constants."""
    n, first, wanted = 6, 0.02, 0.7
    error, log_mean = 0.0, None
    for m in range(1, n + 1):
        error += (wanted - 1.0 - error) / (m + 10)
        log_step = np.log(10 * first) - np.sqrt(m) / 0.05 * error
        log_mean = log_step if m == 1 else log_mean + m**-0.75 * (log_step - log_mean)
    adapted = samplers.adapt_step_size(
        lambda x: 0.0 * x,
        jnp.zeros((5, 2)),
        getkey(),
        step_size=first,
        num_steps=n,
        target_acceptance=wanted,
    )
    np.testing.assert_allclose(adapted.step_size, np.exp(log_mean), rtol=1e-5)
    # the flat density lets the chains walk freely, with steps that grow
    assert adapted.x.shape == (5, 2)
    assert float(jnp.abs(adapted.x).max()) > 0.1


@pytest.mark.parametrize(("form", "wanted"), [("energy", 0.8), ("score", 0.574)])
def test_adapted_steps_are_accepted_as_often_as_wanted(form, wanted, getkey):
    """From a step that is far too small, on the quartic density."""
    given = {"energy": (None, quartic_energy), "score": (lambda x: -(x**3), None)}[form]
    options = {} if wanted == 0.574 else {"target_acceptance": wanted}
    found = samplers.adapt_step_size(
        given[0],
        quartic_draws(getkey(), 2_000),
        getkey(),
        energy_fn=given[1],
        step_size=1e-3,
        num_steps=2_000,
        **options,
    )
    chain = FORMS[form](step_size=found.step_size, num_steps=20)(found.x, getkey())
    assert abs(float(chain.acceptance_rate.mean()) - wanted) < 0.01


ENERGY = lambda x: 0.5 * jnp.sum(x.astype(jnp.float32) ** 2, axis=tuple(range(1, x.ndim)))  # noqa: E731
CALLS = {
    "mala score": partial(samplers.mala, lambda x: -x, step_size=0.3, num_steps=5),
    "mala energy": partial(samplers.mala, None, energy_fn=ENERGY, step_size=0.3, num_steps=5),
    "underdamped": partial(samplers.underdamped, lambda x: -x, step_size=0.3, num_steps=5),
    "tempered": partial(
        samplers.tempered_langevin,
        lambda x: -x,
        inverse_temperatures=[0.5],
        step_size=0.3,
        num_steps=5,
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
        return (out.x, out.path) if isinstance(out, samplers.Chain) else out

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
        assert alone.path is None
        assert alone.acceptance_rate.shape == (3,)
        alone = alone.x
    np.testing.assert_allclose(alone, out, rtol=1e-4, atol=1e-5)
    half = sampler(jnp.ones((4,), jnp.bfloat16), key)
    assert (half.x if isinstance(half, samplers.Chain) else half).dtype == jnp.bfloat16


def test_mala_keeps_the_dtype_of_the_points(getkey):
    """With a step and an energy of higher precision."""
    with jax.enable_x64(True):
        for form in ("energy", "score"):
            x = jnp.ones((4, 1), jnp.float32)
            chain = jax.eval_shape(
                FORMS[form](step_size=jnp.float64(0.1), num_steps=2), x, getkey()
            )
            assert chain.x.dtype == chain.acceptance_rate.dtype == jnp.float32
        found = jax.eval_shape(
            lambda x, key: samplers.adapt_step_size(
                None,
                x,
                key,
                energy_fn=lambda x: quartic_energy(x.astype(jnp.float64)),
                step_size=jnp.float64(0.1),
                num_steps=2,
            ),
            x,
            getkey(),
        )
        assert found.x.dtype == found.step_size.dtype == jnp.float32


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
    out = FLAT[name](jnp.zeros((2, 4_000)), getkey(), num_steps=9, trajectory=True, **options)
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

    given = {"energy_fn": fn} if energy else {}
    with jax.disable_jit():
        sampler(None if energy else fn, jnp.ones((2, 3)), *args, **options, **given)
    return len(calls)


def test_number_of_evaluations(getkey):
    key, options = getkey(), {"step_size": 0.3, "num_steps": 4}
    assert count_evaluations(samplers.mala, key, **options) == 9
    assert count_evaluations(samplers.mala, key, energy=True, **options) == 5
    assert count_evaluations(samplers.underdamped, key, **options) == 5
    assert count_evaluations(samplers.mode_seeking, **options) == 4
    schedule = {"inverse_temperatures": [0.5, 1.0]}
    assert count_evaluations(samplers.tempered_langevin, key, **options, **schedule) == 8
    ladder = {"sigmas": SIGMAS, "step_size": 0.6 / 16}
    assert count_evaluations(samplers.consistent_annealed, key, **ladder) == 9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (partial(samplers.mala, None, step_size=0.1, num_steps=1), ValueError, "got neither"),
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
            partial(samplers.mala, None, energy_fn=lambda x: x, step_size=0.1, num_steps=1),
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
                num_steps=1,
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
                num_steps=1,
            ),
            ValueError,
            r"scalar or a vector, got shape \(2, 2\)",
        ),
        (
            lambda x, k: samplers.mode_seeking(lambda x: x, x, step_size=-1.0, num_steps=1),
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
