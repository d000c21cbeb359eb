"""Analytic densities: normalized, differentiated, sampled, noised, against other truths."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from sm_jax import densities, processes
from sm_jax.densities import _common


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled:
    """The process ``a x_0 + s z`` at any time."""

    a: Any
    s: Any

    def alpha(self, t):
        return self.a

    def sigma(self, t):
        return self.s


def full_gaussian():
    return densities.gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.5]])


def full_mixture():
    covs = [[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]], [[0.3, 0.0], [0.0, 0.1]]]
    return densities.gaussian_mixture([1, 2, 5], [[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]], covs)


def isotropic_mixture():
    means = [[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]]
    return densities.gaussian_mixture([0.5, 0.2, 0.3], means, [0.2, 0.5, 0.1])


ALL = densities.TOYS | {
    "full_gaussian": full_gaussian,
    "full_mixture": full_mixture,
    "isotropic_mixture": isotropic_mixture,
}
every_density = pytest.mark.parametrize("name", ALL)
every_toy = pytest.mark.parametrize("name", densities.TOYS)


def maybe_noised(density, noised):
    return density.noised(Scaled(0.8, 0.3), 1.0) if noised else density


# Compiled once for all tests that ask for the same structure and shape.
_log_prob = jax.jit(lambda density, x: density.log_prob(x))
_score = jax.jit(lambda density, x: density.score(x))
_gradient = jax.jit(jax.grad(lambda x, density: density.log_prob(x).sum()))


_sample = jax.jit(lambda density, key, n: density.sample(key, n), static_argnums=2)


def log_prob(density, x):
    return np.asarray(_log_prob(density, jnp.asarray(x)))


def score(density, x):
    return np.asarray(_score(density, jnp.asarray(x)))


def gradient(density, x):
    return np.asarray(_gradient(jnp.asarray(x), density))


def square(half, num):
    """Midpoints of ``num x num`` cells of [-half, half]^2, and the area of a cell."""
    side = (np.arange(num) + 0.5) / num * 2 * half - half
    points = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    return points, (2 * half / num) ** 2


# ---------------------------------------------------------------------------- closed forms


def test_gaussian_is_the_closed_form():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4))
    mean, cov, x = rng.normal(size=4), a @ a.T + 0.1 * np.eye(4), rng.normal(size=(7, 4))
    with jax.enable_x64(True):
        density = densities.gaussian(mean, cov)
        noised = density.noised(Scaled(0.7, 0.4), 1.0)
        noised_cov = 0.49 * cov + 0.16 * np.eye(4)
        for d, m, c in ((density, mean, cov), (noised, 0.7 * mean, noised_cov)):
            truth = scipy.stats.multivariate_normal(m, c).logpdf(x)
            np.testing.assert_allclose(log_prob(d, x), truth, rtol=1e-12)
            np.testing.assert_allclose(score(d, x), -np.linalg.solve(c, (x - m).T).T, rtol=1e-10)


def test_mixture_is_the_weighted_sum_of_scipys_gaussians():
    x = np.random.default_rng(0).normal(size=(9, 2)) * 2
    covs = [[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]], [[0.3, 0.0], [0.0, 0.1]]]
    means = [[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]]
    with jax.enable_x64(True):
        for variances, density in ((covs, full_mixture()), ([0.2, 0.5, 0.1], isotropic_mixture())):
            weights = np.array([1, 2, 5]) / 8 if variances is covs else [0.5, 0.2, 0.3]
            truth = sum(
                w * scipy.stats.multivariate_normal(m, c).pdf(x)
                for w, m, c in zip(weights, means, variances, strict=True)
            )
            np.testing.assert_allclose(log_prob(density, x), np.log(truth), rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1)])
def test_events_of_any_rank(getkey, shape):
    num_dims = math.prod(shape)
    density = densities.gaussian(jnp.ones(shape), 4.0)
    x = jax.random.normal(getkey(), (5, *shape))
    squares = (np.asarray(x).reshape(5, -1) - 1) ** 2
    truth = -squares.sum(1) / 8 - num_dims * math.log(2 * math.pi * 4) / 2
    np.testing.assert_allclose(log_prob(density, x), truth, rtol=1e-6)
    np.testing.assert_allclose(score(density, x), (1 - np.asarray(x)) / 4, rtol=1e-6)
    draws = _sample(density, getkey(), 20_000)
    assert draws.shape == (20_000, *shape)
    np.testing.assert_allclose(draws.mean(0), np.ones(shape), atol=5 * 2 / math.sqrt(20_000))
    np.testing.assert_allclose(draws.var(0), np.full(shape, 4.0), rtol=5 * math.sqrt(2 / 20_000))
    empirical = densities.empirical(x).noised(Scaled(1.0, 0.5), 1.0)
    assert score(empirical, x).shape == x.shape
    full = densities.gaussian(jnp.ones(shape), 4 * jnp.eye(num_dims))
    np.testing.assert_allclose(log_prob(full, x), truth, rtol=1e-6)
    np.testing.assert_allclose(score(full, x), (1 - np.asarray(x)) / 4, rtol=1e-6)
    assert _sample(full, getkey(), 3).shape == (3, *shape)


# ---------------------------------------------------------------------------- every density


@pytest.mark.parametrize("noised", [False, True])
@every_density
def test_integrates_to_one(name, noised):
    density = maybe_noised(ALL[name](), noised)
    if name == "checkerboard" and not noised:  # cells that tile the squares: exact
        points, area = square(2 * math.sqrt(3), 144)
        tolerance = 1e-5
    else:
        points, area = square(6.0, 144)  # midpoints within a standard deviation: spectral
        tolerance = 2e-5
    mass = np.exp(log_prob(density, points).astype(np.float64)).sum() * area
    np.testing.assert_allclose(mass, 1, atol=tolerance)


@pytest.mark.parametrize("noised", [False, True])
@every_density
def test_score_is_the_gradient_in_float64_and_float32(name, noised):
    if name == "checkerboard" and not noised:
        pytest.skip("piecewise constant: see test_densities_toys.py")
    near = np.random.default_rng(1).normal(size=(16, 2))
    far = near * np.array([3.0, 10, 100, 1000]).repeat(4)[:, None]
    x = np.concatenate([near, far]).astype(np.float32)
    with jax.enable_x64(True):
        density = maybe_noised(ALL[name](), noised)
        truth = gradient(density, x.astype(np.float64))
        np.testing.assert_allclose(score(density, x.astype(np.float64)), truth, rtol=1e-9)
        truth_log_prob = log_prob(density, x.astype(np.float64))
    density = maybe_noised(ALL[name](), noised)
    single = score(density, x)
    assert single.dtype == np.float32
    error = np.linalg.norm(single - truth, axis=1) / np.linalg.norm(truth, axis=1)
    assert error.max() < 2e-4, (error.max(), x[error.argmax()])
    np.testing.assert_allclose(log_prob(density, x), truth_log_prob, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("noised", [False, True])
@every_density
def test_samples_fall_into_cells_as_often_as_the_density_says(getkey, name, noised):
    num, cells, fine = 20_000, 16, 9
    density = maybe_noised(ALL[name](), noised)
    x = np.asarray(_sample(density, getkey(), num), np.float64)
    half = 2 * math.sqrt(3)  # the cells tile the squares of the checkerboard
    points, area = square(half, cells * fine)
    mass = np.exp(log_prob(density, points).astype(np.float64)) * area
    expected = num * mass.reshape(cells, fine, cells, fine).sum((1, 3)).ravel()
    counts = np.histogram2d(*x.T, bins=cells, range=[[-half, half]] * 2)[0].ravel()
    full = expected > 5
    observed = np.append(counts[full], num - counts[full].sum())
    predicted = np.append(expected[full], num - expected[full].sum())
    keep = predicted > 0.5
    assert observed[~keep].sum() <= 10
    chi2 = ((observed - predicted)[keep] ** 2 / predicted[keep]).sum()
    assert scipy.stats.chi2(keep.sum() - 1).sf(chi2) > 1e-4, (chi2, keep.sum())


@every_density
def test_noised_is_the_average_of_the_noise_around_samples(getkey, name):
    """p_t(x) = E_{x_0} N(x; alpha x_0, sigma^2 I), within six standard errors at each x."""
    alpha, sigma, num = 0.6, 0.5, 20_000
    density = ALL[name]()
    x0 = np.asarray(_sample(density, getkey(), num), np.float64)
    x = np.random.default_rng(2).normal(size=(32, 2)) * 0.8
    distance2 = ((x[:, None] - alpha * x0[None]) ** 2).sum(-1)
    kernel = np.exp(-distance2 / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    truth, error = kernel.mean(1), kernel.std(1) / math.sqrt(num)
    value = np.exp(log_prob(density.noised(Scaled(alpha, sigma), 0.5), x))
    assert np.all(np.abs(value - truth) < 6 * error), (value - truth) / error


@every_density
def test_noising_twice_composes(name):
    x = np.random.default_rng(3).normal(size=(32, 2)) * 2
    with jax.enable_x64(True):
        density = ALL[name]()
        twice = density.noised(Scaled(0.9, 0.3), 1.0).noised(Scaled(0.5, 0.2), 1.0)
        once = density.noised(Scaled(0.45, math.hypot(0.5 * 0.3, 0.2)), 1.0)
        np.testing.assert_allclose(log_prob(twice, x), log_prob(once, x), rtol=1e-11)
        np.testing.assert_allclose(score(twice, x), score(once, x), rtol=1e-9)
        exploding = processes.VE(0.01, 50.0)
        twice = density.noised(exploding, 0.3).noised(exploding, 0.4)
        once = density.noised(exploding, 0.5)
        np.testing.assert_allclose(log_prob(twice, x), log_prob(once, x), rtol=1e-11)


@pytest.mark.parametrize("alpha", [0.0, 1e-20, 1e-4])
@every_density
def test_without_signal_only_the_noise_remains(name, alpha):
    x = np.random.default_rng(4).normal(size=(32, 2)).astype(np.float32) * 3
    density = ALL[name]().noised(Scaled(alpha, 1.5), 1.0)
    truth = scipy.stats.norm(0, 1.5).logpdf(x.astype(np.float64)).sum(1)
    atol = 1e-6 + 10 * alpha  # |alpha x_0 . x| / sigma^2
    np.testing.assert_allclose(log_prob(density, x), truth, rtol=1e-6, atol=atol)
    np.testing.assert_allclose(score(density, x), -x / 2.25, rtol=1e-6, atol=atol)


@every_density
def test_traced_times_and_vmap(name):
    density, process = ALL[name](), processes.VPLinear()
    x = np.random.default_rng(5).normal(size=(32, 2)).astype(np.float32)
    times = jnp.array([0.1, 0.5, 1.0])
    mapped = jax.jit(jax.vmap(lambda t: density.noised(process, t).score(x)))(times)
    for t, value in zip(times, mapped, strict=True):
        truth = score(density.noised(process, t), x)
        np.testing.assert_allclose(value, truth, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("noised", [False, True])
@every_density
def test_keys(getkey, name, noised):
    density, key = maybe_noised(ALL[name](), noised), getkey()
    x = _sample(density, key, 20_000)[:50]
    assert x.shape == (50, 2)
    assert len(np.unique(x, axis=0)) == 50
    np.testing.assert_array_equal(x, _sample(density, key, 20_000)[:50])
    assert not np.any(np.isin(x, _sample(density, getkey(), 20_000)[:50]))


@pytest.mark.parametrize("name", ["eight_gaussians", "checkerboard"])
def test_no_key_is_used_twice(getkey, name):
    density = maybe_noised(ALL[name](), True)
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: density.sample(key, 3))(getkey())


@every_density
def test_sample_dimensions_are_uncorrelated_with_the_component(getkey, name):
    """The residual x - E[x | noise-free part] has the noise's moments: no key is used twice."""
    process = Scaled(1e-3, 1.0)  # nearly all noise: a standard normal, whatever the component
    x = np.asarray(_sample(ALL[name]().noised(process, 1.0), getkey(), 20_000))
    assert scipy.stats.kstest(x[:, 0], "norm").pvalue > 1e-3
    assert scipy.stats.kstest(x[:, 1], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x.T)[0, 1]) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes(getkey, dtype):
    with jax.enable_x64(True):
        for density in (densities.rings(), densities.checkerboard()):
            assert _sample(density, getkey(), 2).dtype == jnp.float64
            noised = density.noised(Scaled(1.0, 0.5), 1.0)
            x = jnp.ones((2, 2), dtype)
            assert score(noised, x).dtype == dtype
            assert log_prob(noised, x).dtype == jnp.float64
    x = jnp.ones((2, 2), jnp.bfloat16)
    assert score(densities.rings(), x).dtype == jnp.bfloat16
    assert log_prob(densities.rings(), x).dtype == np.float32


@pytest.mark.slow
def test_densities_of_bfloat16_numbers_are_in_float32(getkey):
    """These points are numbers of bfloat16: whatever differs is computed in bfloat16."""
    points = jnp.linspace(-2.0, 2.0, 33)[:, None]
    x = jnp.linspace(-5.0, 5.0, 20)[:, None]
    makers = (
        lambda points: densities.empirical(points).noised(Scaled(0.8, 0.3), 1.0),
        lambda points: densities.gaussian_mixture(np.ones(33), points, 0.3).noised(
            Scaled(0.8, 0.3), 1.0
        ),
        lambda points: densities.UniformBoxes(jnp.zeros(1), points[:1], points[-1:]).noised(
            Scaled(0.8, 0.3), 1.0
        ),
    )
    for make in makers:
        low, wide = make(points.astype(jnp.bfloat16)), make(points)
        np.testing.assert_array_equal(low.log_prob(x), wide.log_prob(x))
        np.testing.assert_array_equal(low.score(x), wide.score(x))
        key = getkey()
        np.testing.assert_array_equal(low.sample(key, 100), wide.sample(key, 100))


def test_large_batches_in_pieces_give_the_same_numbers(getkey, monkeypatch):
    x = jax.random.normal(getkey(), (37, 2))
    for density in (densities.two_moons(), densities.eight_gaussians()):
        with monkeypatch.context() as patch:
            patch.setattr(_common, "MAX_ELEMENTS", 10 * density.means.size)
            pieces = jax.jit(lambda x, d=density: (d.log_prob(x), d.score(x)))(x)
        np.testing.assert_allclose(pieces[0], log_prob(density, x), rtol=1e-5)
        np.testing.assert_allclose(pieces[1], score(density, x), rtol=1e-4, atol=1e-4)


def test_memory_is_bounded():
    points = jnp.zeros((2000, 50))
    density = densities.empirical(points).noised(Scaled(1.0, 0.5), 1.0)
    compiled = jax.jit(density.score).lower(jnp.zeros((4000, 50))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 200e6  # 1.6e9 for all differences


# ---------------------------------------------------------------------------- toys


# ---------------------------------------------------------------------------- empirical


def test_empirical_has_no_density_before_noising(getkey):
    points = jax.random.normal(getkey(), (5, 3))
    density = densities.empirical(points)
    for method in (density.log_prob, density.score):
        with pytest.raises(ValueError, match=r"5 point masses .* noise them first, density.noised"):
            method(points)
    with pytest.raises(ValueError, match=r"sigma\(t\) must be positive"):
        density.noised(Scaled(1.0, 0.0), 1.0)
    draws = density.sample(getkey(), 4000)
    nearest = np.argmin(((draws[:, None] - points[None]) ** 2).sum(-1), axis=1)
    np.testing.assert_array_equal(draws, points[nearest])
    assert scipy.stats.chisquare(np.bincount(nearest, minlength=5)).pvalue > 1e-4


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_noised_empirical_posterior_mean_is_the_softmax_weighted_mean(sigma):
    """D = (x + sigma^2 s) / alpha; with images, in float32, at small and large noise."""
    rng = np.random.default_rng(8)
    alpha = 0.9
    points = rng.normal(size=(20, 4, 4, 1)).astype(np.float32)
    noise = rng.normal(size=points.shape)
    x = (alpha * points + sigma * noise).astype(np.float32)
    flat_x, flat = x.reshape(20, -1).astype(np.float64), points.reshape(20, -1).astype(np.float64)
    terms = -((flat_x[:, None] - alpha * flat[None]) ** 2).sum(-1) / (2 * sigma**2)
    posterior = scipy.special.softmax(terms, axis=1)
    density = densities.empirical(points).noised(Scaled(alpha, sigma), 1.0)
    truth = (alpha * posterior @ flat - flat_x) / sigma**2
    value = score(density, x).reshape(20, -1)
    np.testing.assert_allclose(value, truth, rtol=1e-4, atol=1e-4 / sigma)
    log_mean = scipy.special.logsumexp(terms, axis=1) - math.log(20)
    truth = log_mean - 8 * math.log(2 * math.pi * sigma**2)
    np.testing.assert_allclose(log_prob(density, x), truth, rtol=1e-5, atol=1e-4)


def test_far_tails_of_shared_covariances_in_float32():
    """Where x is 1e5 standard deviations away, the ratios of the components must survive."""
    points = np.array([[0.0, 0.0], [0.0, 1e-3], [-1.0, 0.5]], np.float32)
    x = np.array([[1000.0, 5e-4], [1000.0, 4e-4], [0.3, 1000.0]], np.float32)
    density = densities.empirical(points).noised(Scaled(1.0, 0.01), 1.0)
    with jax.enable_x64(True):
        wide = densities.empirical(points.astype(np.float64)).noised(Scaled(1.0, 0.01), 1.0)
        truth = gradient(wide, x.astype(np.float64))
    np.testing.assert_allclose(score(density, x), truth, rtol=1e-4, atol=1e-4)


def test_float32_covariance_of_high_condition():
    rotation = np.linalg.qr(np.random.default_rng(9).normal(size=(2, 2)))[0]
    cov = rotation @ np.diag([1.0, 1e-5]) @ rotation.T
    density = densities.gaussian(np.zeros(2, np.float32), cov)
    np.testing.assert_allclose(np.sort(density.variances[0]), [1e-5, 1.0], rtol=1e-6)


# ---------------------------------------------------------------------------- bad input


def test_bad_input():
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\).*got \(3, 4\)"):
        densities.rings().log_prob(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="add a batch axis"):
        densities.checkerboard().score(jnp.zeros((2,)))
    with pytest.raises(TypeError, match="floating dtype, got int32"):
        densities.rings().score(jnp.zeros((3, 2), int))
    with pytest.raises(TypeError, match="n must be a Python int"):
        densities.rings().sample(jax.random.key(0), 2.0)
    with pytest.raises(ValueError, match=r"t of shape \(3,\): use jax.vmap"):
        densities.rings().noised(processes.VE(), jnp.ones(3))
    with pytest.raises(ValueError, match=r"sigma\(t\) must be finite and not negative, got -1"):
        densities.rings().noised(Scaled(1.0, -1.0), 0.0)
    for noise in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"noise must be between 0 and 1, got {noise}"):
            densities.two_moons(noise=noise)
    with pytest.raises(ValueError, match="num_nodes must be at least 1, got -3"):
        densities.two_moons(num_nodes=-3)
    with pytest.raises(ValueError, match="weights must be finite and not negative"):
        densities.gaussian_mixture([-1.0, 2.0], jnp.zeros((2, 2)), 1.0)
    with pytest.raises(ValueError, match="must not all be zero"):
        densities.gaussian_mixture([0.0, 0.0], jnp.zeros((2, 2)), 1.0)
    with pytest.raises(ValueError, match=r"each of the 2 components, got shape \(3,\)"):
        densities.gaussian_mixture([1.0, 1.0, 1.0], jnp.zeros((2, 2)), 1.0)
    with pytest.raises(ValueError, match=r"covs must be full covariances \(2, 3, 3\)"):
        densities.gaussian_mixture([1.0, 1.0], jnp.zeros((2, 3)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="covs must be positive"):
        densities.gaussian_mixture([1.0, 1.0], jnp.zeros((2, 3)), [1.0, 0.0])
    with pytest.raises(ValueError, match="must be symmetric"):
        densities.gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match="positive definite, the smallest eigenvalue is -1"):
        densities.gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="means must have shape"):
        densities.gaussian_mixture([], jnp.zeros((0, 2)), 1.0)
    with pytest.raises(ValueError, match="points is empty"):
        densities.empirical(jnp.zeros((0, 2)))
    with pytest.raises(TypeError, match="points must have a floating dtype"):
        densities.empirical(jnp.zeros((3, 2), int))
