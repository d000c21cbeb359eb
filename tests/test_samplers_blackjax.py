"""The bridge to blackjax: moments and normalizers that are known, diagnostics in closed form."""

import sys
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import metrics, samplers
from sm_jax.samplers import _blackjax
from tests.oracles import COV, MEAN

pytest.importorskip("blackjax")

PRECISION = np.linalg.inv(COV.astype(np.float64)).astype(np.float32)


def gaussian_energy(x):
    away = x - MEAN[None]
    return 0.5 * jnp.sum(away * (away @ PRECISION), axis=-1)


def banana_energy(x):
    """x1 ~ N(0, 1), x2 = x1^2 / 2 + N(0, 1): mean (0, 1/2), E[x2^2] = 3/4 + 1."""
    return 0.5 * x[:, 0] ** 2 + 0.5 * (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2


def assert_moments(samples, mean, second):
    """First and second moments of ``[N, B, D]`` within 4.5 errors, from long stretches."""
    samples = np.asarray(samples, np.float64)
    for power, expected in ((1, mean), (2, second)):
        stretches = (samples**power).reshape(10, -1, *samples.shape[1:]).mean(axis=1)
        stretches = stretches.reshape(-1, samples.shape[-1])
        error = stretches.std(axis=0, ddof=1) / np.sqrt(len(stretches))
        np.testing.assert_array_less(error, 0.1 * (1.0 + np.abs(expected)))
        np.testing.assert_array_less(np.abs(stretches.mean(axis=0) - expected), 4.5 * error)


def test_nuts_finds_the_moments_of_a_banana(getkey):
    x = jnp.array([[0.0, 1.0], [3.0, 3.0], [-1.0, 0.0], [1.0, 4.0]])
    run = jax.jit(
        lambda x, key: samplers.nuts(banana_energy, x, key, num_samples=1_500, num_warmup=300)
    )
    draws = run(x, getkey())
    other = run(jnp.zeros((4, 2)), getkey()).x[-1]
    assert draws.x.shape == (1_500, 4, 2)
    assert_moments(draws.x, np.array([0.0, 0.5]), np.array([1.0, 1.75]))
    assert draws.acceptance_rate.shape == draws.num_divergent.shape == (4,)
    assert np.all((draws.acceptance_rate > 0.6) & (draws.acceptance_rate < 0.99))
    assert np.all((draws.num_divergent >= 0) & (draws.num_divergent < 100))
    # every chain has its own key
    assert np.abs(np.corrcoef(np.asarray(draws.x[..., 0]).T)[0, 1]) < 0.2
    assert len(np.unique(np.asarray(other)[:, 0])) == 4


@pytest.mark.slow
def test_mclmc_finds_the_moments_of_a_gaussian(getkey):
    x = jax.random.normal(getkey(), (4, 3))
    run = jax.jit(
        lambda x, key: samplers.mclmc(gaussian_energy, x, key, num_samples=2_000, num_warmup=900)
    )
    samples = run(x, getkey())
    other = run(jnp.zeros((4, 3)), getkey())[-1]
    assert samples.shape == (2_000, 4, 3)
    assert_moments(samples, MEAN, np.diag(COV) + MEAN**2)
    assert len(np.unique(np.asarray(other)[:, 0])) == 4


class Base:
    """The Gaussian of variance 16 in 2-D."""

    def sample(self, key, n):
        return 4.0 * jax.random.normal(key, (n, 2))

    def log_prob(self, x):
        return -jnp.sum(x**2, axis=-1) / 32.0 - jnp.log(32.0 * jnp.pi)


def modes_energy(x):
    """Two modes of weights 0.8 and 0.2, and a normalizer of exp(-3)."""
    near = jnp.sum((x - 3.0) ** 2, axis=-1) / 0.5
    far = jnp.sum((x + 3.0) ** 2, axis=-1) / 0.5
    return 3.0 - jnp.logaddexp(jnp.log(0.8) - near, jnp.log(0.2) - far) + jnp.log(0.5 * jnp.pi)


def test_smc_finds_the_normalizer_and_the_weights_of_modes(getkey):
    """Several populations, whose spread is the error."""
    run = jax.jit(
        jax.vmap(
            lambda key: samplers.smc(
                modes_energy,
                key,
                base=Base(),
                num_particles=800,
                steps_per_temperature=3,
                step_size=0.2,
            )
        )
    )
    x, log_normalizer, count = run(jax.random.split(getkey(), 6))
    assert x.shape == (6, 800, 2)
    assert np.all((count >= 4) & (count < 30))
    ratio = np.exp(np.asarray(log_normalizer, np.float64) + 3.0)
    error = ratio.std(ddof=1) / np.sqrt(6)
    assert error < 0.08
    assert abs(ratio.mean() - 1.0) < 4.5 * error + 0.01
    share = np.mean(np.asarray(x[..., 0]) > 0, axis=1)
    error = share.std(ddof=1) / np.sqrt(6)
    assert error < 0.04
    assert abs(share.mean() - 0.8) < 4.5 * error + 0.01
    # within the mode, where the steps are short enough for all copies to part
    pooled = np.asarray(x)[np.asarray(x[..., 0]) > 0]
    np.testing.assert_allclose(pooled.var(axis=0), 0.25, rtol=0.15)
    assert len(np.unique(pooled[:, 0])) > 0.99 * len(pooled)
    np.testing.assert_allclose(pooled.mean(axis=0), 3.0, atol=0.05)


def quadrant_energy(x):
    """N(0, I) behind walls, in 4^-1 of the plane; outside its gradient is NaN."""
    energy = 0.5 * jnp.sum(jnp.sqrt(x) ** 4, axis=-1)
    return jnp.where(jnp.all(x > 0.0, axis=-1), energy, jnp.inf)


def test_smc_stays_behind_hard_walls(getkey):
    """In the positive quadrant log Z = log(2 pi / 4), and each number is half-normal."""
    run = jax.jit(jax.vmap(lambda key: samplers.smc(quadrant_energy, key, base=Base())))
    x, log_normalizer, _ = run(jax.random.split(getkey(), 6))
    assert np.all(x > 0.0)
    ratio = np.exp(np.asarray(log_normalizer, np.float64)) / (np.pi / 2)
    error = ratio.std(ddof=1) / np.sqrt(6)
    assert error < 0.05
    assert abs(ratio.mean() - 1.0) < 4.5 * error + 0.01
    x = np.asarray(x).reshape(-1, 2)
    assert len(np.unique(x[:, 0])) > 0.95 * len(x)
    np.testing.assert_allclose(x.mean(axis=0), np.sqrt(2 / np.pi), atol=0.04)
    np.testing.assert_allclose((x**2).mean(axis=0), 1.0, atol=0.08)
    assert np.abs(np.corrcoef(x.T)[0, 1]) < 0.05


def test_smc_without_a_particle_behind_the_walls_is_nan(getkey):
    def outside(x):
        return jnp.where(x[:, 0] > 1e3, 0.0, jnp.inf)

    x, log_normalizer, _ = samplers.smc(outside, getkey(), base=Base(), num_particles=8)
    assert np.all(np.isnan(x))
    assert log_normalizer == -np.inf


class Ellipse:
    """The Gaussian of deviations 4 and 0.1, with draws that are given."""

    deviations = jnp.array([[4.0, 0.1]])

    def __init__(self, z):
        self.points = self.deviations * z

    def sample(self, key, n):
        return self.points[:n]

    def log_prob(self, x):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.0, self.deviations), axis=-1)


def test_smc_moves_particles_in_units_of_their_deviations(getkey):
    """From the model itself: one temperature, an exact normalizer, and the rotation of leapfrog.

    Of a Gaussian each move turns position into velocity by 5 times the angle 2 asin(h / 2), h being
    half a deviation; there are two times num_steps = 1 of them.
    """
    base = Ellipse(jax.random.normal(getkey(), (3_000, 2)))
    particles = samplers.smc(
        lambda x: 0.6 - base.log_prob(x),
        getkey(),
        base=base,
        num_particles=3_000,
        steps_per_temperature=1,
    )
    np.testing.assert_allclose(particles.log_normalizer, -0.6, atol=1e-5)
    assert int(particles.num_temperatures) == 1
    x, start = np.asarray(particles.x), np.asarray(base.points)
    for axis in (0, 1):
        found = np.corrcoef(x[:, axis], start[:, axis])[0, 1]
        rotated = np.cos(5 * 2 * np.arcsin(0.25)) ** 2
        assert rotated - 0.15 < found < rotated + 0.03  # some percent of rejections lower it
        np.testing.assert_allclose(x[:, axis].std(), base.deviations[0, axis], rtol=0.08)


def autoregressive(key, shape, rho):
    """A stationary path ``[N, B, ...]`` of unit variance with autocorrelation ``rho^lag``."""
    key_start, key_path = jax.random.split(key)
    start = jax.random.normal(key_start, shape[1:])
    noise = jax.random.normal(key_path, shape)

    def step(x, z):
        x = rho * x + jnp.sqrt(1 - rho**2) * z
        return x, x

    return jax.lax.scan(step, start, noise)[1]


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_effective_sample_size_of_an_autoregression(rho, getkey):
    """``N (1 - rho) / (1 + rho)`` draws; the estimate is good to some percent."""
    path = autoregressive(getkey(), (5_000, 4, 2, 3), rho)
    result = metrics.chain_diagnostics(path)
    expected = 20_000 * (1 - rho) / (1 + rho)
    assert result.effective_sample_size.shape == result.split_rhat.shape == (2, 3)
    np.testing.assert_allclose(result.effective_sample_size, expected, rtol=0.2)
    np.testing.assert_allclose(result.effective_sample_size.mean(), expected, rtol=0.08)
    np.testing.assert_array_less(result.split_rhat, 1.01)
    np.testing.assert_array_equal(result.acceptance_rate, 1.0)


def test_split_rhat_sees_drift_and_disagreement(getkey):
    """Of the numbers of an event the first drifts, the second differs between the chains."""
    path = jax.random.normal(getkey(), (5_000, 4, 2, 3))
    path = path.at[..., 0, 0].add(jnp.linspace(-1.0, 1.0, 5_000)[:, None])
    path = path.at[..., 0, 1].add(jnp.arange(4.0)[None])
    rhat = metrics.chain_diagnostics(path).split_rhat
    # The means of the halves are 1 apart: they add 1/4 to a variance of 1 + 1/12 within; of the
    # chains, 5/4 to 1. Ranks make little difference.
    np.testing.assert_allclose(rhat[0, 0], np.sqrt(1 + 0.25 / (1 + 1 / 12)), rtol=0.05)
    np.testing.assert_allclose(rhat[0, 1], np.sqrt(1 + 1.25 * 8 / 7), rtol=0.1)
    np.testing.assert_array_less(rhat[0, 2:], 1.01)
    np.testing.assert_array_less(rhat[1], 1.01)


def test_acceptance_is_the_share_of_moves(getkey):
    """Of the first number of the event, the others standing still or not moving alone."""
    moves = jax.random.bernoulli(getkey(), jnp.array([[0.2, 0.5, 0.9, 1.0]]), (4_999, 4))
    steps = moves[:, :, None] * jnp.array([1.0, 0.0, -1.0, 0.0, 2.0, 0.0])[None, None]
    path = jnp.concatenate([jnp.zeros((1, 4, 6)), jnp.cumsum(steps, axis=0)])
    result = metrics.chain_diagnostics(path.reshape(5_000, 4, 2, 3))
    np.testing.assert_allclose(result.acceptance_rate, moves.mean(axis=0), rtol=1e-5)


def test_a_chain_with_a_nan_has_no_acceptance_rate(getkey):
    path = jax.random.normal(getkey(), (20, 3, 2)).at[5:, 1].set(jnp.nan)
    rate = metrics.chain_diagnostics(path).acceptance_rate
    np.testing.assert_array_equal(rate, [1.0, np.nan, 1.0])


def test_diagnostics_of_scalar_events():
    result = jax.eval_shape(metrics.chain_diagnostics, jnp.ones((20, 3), jnp.bfloat16))
    assert result.effective_sample_size.shape == result.split_rhat.shape == ()
    assert result.acceptance_rate.shape == (3,)


def test_log_density_is_of_one_point():
    density_fn = samplers.log_density(gaussian_energy)
    x = jnp.array([1.0, 2.0, -0.5])
    np.testing.assert_allclose(density_fn(x), -gaussian_energy(x[None])[0], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(density_fn)(x), -(x - MEAN) @ PRECISION, rtol=1e-5)
    with pytest.raises(ValueError, match="one number per example"):
        samplers.log_density(lambda x: x)(x)


class State(NamedTuple):
    """Of a sampler that only shows the random bits that it would use."""

    position: jax.Array
    early: jax.Array


def early_state(keys):
    """What parts that split their keys in three would draw before the sampling."""
    early = jnp.concatenate([jax.vmap(jax.random.bits)(jax.random.split(k, 3)) for k in keys])
    return State(jnp.append(early, jnp.uint32(0)), early)


def show(key, state):
    return State(jnp.append(state.early, jax.random.bits(key)), state.early)


def assert_no_draw_twice(samples):
    """``[3, B, early + 1]``: the early draws, and in the last place those of the sampling."""
    samples = np.asarray(samples)
    draws = np.concatenate([samples[0, :, :-1].ravel(), samples[..., -1].ravel()])
    assert len(np.unique(draws)) == len(draws)


def test_nuts_hands_on_its_options_and_fresh_keys(monkeypatch, getkey):
    seen = {}

    def adapt(algorithm, density_fn, **options):
        seen.update(options)
        return SimpleNamespace(run=warm_up)

    def warm_up(key, x, num_steps):
        seen["num_steps"] = num_steps
        return (early_state([key]), {}), None

    def step(key, state):
        info = SimpleNamespace(acceptance_rate=jnp.float32(0.5), is_divergent=jnp.array(True))
        return show(key, state), info

    fake = SimpleNamespace(window_adaptation=adapt, nuts=lambda _: SimpleNamespace(step=step))
    monkeypatch.setattr(_blackjax, "_blackjax", lambda: fake)
    draws = samplers.nuts(banana_energy, jnp.ones((2, 2)), getkey(), num_samples=3)
    assert seen == {"num_steps": 500, "target_acceptance_rate": 0.8, "max_num_doublings": 10}
    assert_no_draw_twice(draws.x)
    np.testing.assert_array_equal(draws.acceptance_rate, [0.5, 0.5])
    np.testing.assert_array_equal(draws.num_divergent, [3, 3])


def test_mclmc_hands_on_its_options_and_fresh_keys(monkeypatch, getkey):
    seen = {}

    def tune(mclmc_kernel, num_steps, state, rng_key, logdensity_fn, **fractions):
        seen.update(fractions, num_steps=num_steps)
        tuned = SimpleNamespace(inverse_mass_matrix=1, L=2, step_size=3)
        return early_state([state, rng_key]), tuned, None

    def kernel(key, state, density_fn, inverse_mass_matrix, length, step_size):
        assert (inverse_mass_matrix, length, step_size) == (1, 2, 3)
        return show(key, state), None

    mclmc = SimpleNamespace(build_kernel=lambda: kernel, init=lambda x, density_fn, key: key)
    fake = SimpleNamespace(mclmc=mclmc, mclmc_find_L_and_step_size=tune)
    monkeypatch.setattr(_blackjax, "_blackjax", lambda: fake)
    samples = samplers.mclmc(banana_energy, jnp.ones((2, 2)), getkey(), num_samples=3)
    third = {f"frac_tune{i}": 1 / 3 for i in (1, 2, 3)}
    assert seen == {"num_steps": 1000, **third}
    assert_no_draw_twice(samples)


def test_missing_blackjax_is_named(monkeypatch, getkey):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(ImportError, match=r"pip install blackjax"):
        metrics.chain_diagnostics(jnp.ones((5, 2)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: metrics.chain_diagnostics(jnp.ones((5,))), ValueError, r"got shape \(5,\)"),
        (lambda k: metrics.chain_diagnostics(jnp.ones((3, 2))), ValueError, r"got shape \(3, 2\)"),
        (
            lambda k: metrics.chain_diagnostics(jnp.ones((5, 2), int)),
            TypeError,
            "trajectory must have a floating",
        ),
        (
            lambda k: samplers.nuts(gaussian_energy, jnp.ones((2, 3)), k, num_samples=0),
            ValueError,
            "num_samples must be at least 1",
        ),
        (
            lambda k: samplers.nuts(
                gaussian_energy, jnp.ones((2, 3)), k, num_samples=1, num_warmup=0
            ),
            ValueError,
            "num_warmup must be at least 1",
        ),
        (
            lambda k: samplers.nuts(
                gaussian_energy, jnp.ones((2, 3)), k, num_samples=1, target_acceptance=1.0
            ),
            ValueError,
            "target_acceptance must be between 0 and 1, got 1.0",
        ),
        (
            lambda k: samplers.nuts(
                gaussian_energy, jnp.ones((2, 3)), k, num_samples=1, max_doublings=0
            ),
            ValueError,
            "max_doublings must be at least 1, got 0",
        ),
        (
            lambda k: samplers.mclmc(gaussian_energy, jnp.ones((2, 1)), k, num_samples=1),
            ValueError,
            r"at least two numbers, got x of shape \(2, 1\)",
        ),
        (
            lambda k: samplers.mclmc(gaussian_energy, jnp.ones((2, 3)), k, num_samples=0),
            ValueError,
            "num_samples must be at least 1",
        ),
        (
            lambda k: samplers.mclmc(
                gaussian_energy, jnp.ones((2, 3)), k, num_samples=1, num_warmup=9
            ),
            ValueError,
            "num_warmup must be at least 10",
        ),
        (
            lambda k: samplers.smc(gaussian_energy, k, base=Base(), num_particles=1),
            ValueError,
            "num_particles must be at least 2",
        ),
        (
            lambda k: samplers.smc(gaussian_energy, k, base=Base(), steps_per_temperature=0),
            ValueError,
            "steps_per_temperature must be at least 1",
        ),
        (
            lambda k: samplers.smc(gaussian_energy, k, base=Base(), num_integration_steps=0),
            ValueError,
            "num_integration_steps must be at least 1",
        ),
        (
            lambda k: samplers.smc(gaussian_energy, k, base=Base(), step_size=0.0),
            ValueError,
            "step_size must be positive",
        ),
        (
            lambda k: samplers.smc(gaussian_energy, k, base=Base(), target_ess=1.0),
            ValueError,
            "between 0 and 1, got 1.0",
        ),
    ],
)
def test_bad_input(call, error, message, getkey):
    with pytest.raises(error, match=message):
        call(getkey())


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e16, 1e30])
def test_diagnostics_do_not_depend_on_the_units(scale, getkey):
    path = autoregressive(getkey(), (400, 3, 2), 0.5)
    plain, scaled = metrics.chain_diagnostics(path), metrics.chain_diagnostics(path * scale)
    for before, after in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3)


def test_effective_sample_size_is_of_split_chains(getkey):
    """Against ArviZ's definition: a chain that jumps halfway counts as two that disagree."""
    path = jax.random.normal(getkey(), (2_000, 1, 1)).at[1_000:].add(10.0)
    halves = jnp.concatenate([path[:1_000], path[1_000:]], axis=1)
    found, split = metrics.chain_diagnostics(path), metrics.chain_diagnostics(halves)
    assert float(found.effective_sample_size[0]) < 10
    assert float(found.split_rhat[0]) > 1.5
    assert float(split.effective_sample_size[0]) < 10
    stuck = metrics.chain_diagnostics(jnp.broadcast_to(jnp.arange(3.0)[None, :, None], (50, 3, 1)))
    assert float(stuck.effective_sample_size[0]) == 0.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("bits", [False, True])
def test_blackjax_keeps_the_dtype_of_the_points(dtype, bits, getkey):
    """Also of float32 and of less among 64 bits; the energy sees the dtype of the points."""
    if dtype == jnp.float64 and not bits:
        pytest.skip("no float64 without 64 bits")

    def energy_fn(x):
        assert x.dtype == dtype
        return 0.5 * jnp.sum(x**2, axis=-1)

    with jax.enable_x64(bits):
        x = jnp.ones((2, 3), dtype)
        nuts = partial(samplers.nuts, energy_fn, num_samples=3, num_warmup=20)
        mclmc = partial(samplers.mclmc, energy_fn, num_samples=3, num_warmup=30)
        assert jax.eval_shape(nuts, x, getkey()).x.dtype == dtype
        assert jax.eval_shape(mclmc, x, getkey()).dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "bits"), [("bfloat16", False), ("float32", True), ("float64", True)]
)
def test_smc_keeps_the_dtype_of_the_base(dtype, bits, getkey):
    """And the evidence of N(1, I), with the spread of eight populations for its error."""

    class Typed(Base):
        def sample(self, key, n):
            return super().sample(key, n).astype(dtype)

        def log_prob(self, x):
            assert x.dtype == dtype
            return super().log_prob(x.astype(jnp.promote_types(dtype, jnp.float32)))

    def energy_fn(x):
        assert x.dtype == dtype
        return 0.5 * jnp.sum((x - jnp.ones((1, 2), x.dtype)).astype(float) ** 2, axis=-1)

    with jax.enable_x64(bits):
        run = partial(
            samplers.smc, energy_fn, base=Typed(), num_particles=256, steps_per_temperature=2
        )
        x, log_normalizer, _ = jax.jit(jax.vmap(run))(jax.random.split(getkey(), 8))
        ratio = np.exp(np.asarray(log_normalizer, np.float64)) / (2 * np.pi)
    assert x.dtype == dtype
    assert log_normalizer.dtype == jnp.promote_types(dtype, jnp.float32)
    error = ratio.std(ddof=1) / np.sqrt(8)
    assert error < 0.04
    assert abs(ratio.mean() - 1.0) < 4.5 * error + 0.01
    np.testing.assert_allclose(np.asarray(x, np.float64).mean((0, 1)), 1.0, atol=0.1)


def test_mclmc_returns_nan_for_chains_that_never_moved(getkey):
    """Behind walls, one chain starts inside and one where the gradient is NaN."""

    def energy_fn(x):
        inside = jnp.all(x > -5.0, axis=-1)
        return jnp.where(inside, 0.5 * jnp.sum(x**2, axis=-1), jnp.nan)

    x = jnp.array([[0.5, 0.5], [-9.0, -9.0]])
    samples = np.asarray(samplers.mclmc(energy_fn, x, getkey(), num_samples=50, num_warmup=300))
    assert np.isnan(samples[:, 1]).all()
    assert (samples[:, 0] > -5.0).all()
    assert len(np.unique(samples[:, 0, 0])) > 1
