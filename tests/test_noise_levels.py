"""Ladders and the numbers in them: closed forms, the exact Langevin recursion, published values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from sm_jax import likelihood, noise_levels, processes, samplers
from tests.oracles import assert_mean, gaussian_log_prob

# The ladders of https://github.com/ermongroup/ncsnv2: D, sigma_1, L, T, step size; sigma_L = 0.01.
PUBLISHED = {
    "cifar10": (3 * 32**2, 50, 232, 5, 6.2e-6),
    "celeba": (3 * 64**2, 90, 500, 5, 3.3e-6),
    "ffhq": (3 * 256**2, 348, 2311, 3, 0.9e-6),
}
published = pytest.mark.parametrize("name", PUBLISHED)


@pytest.mark.parametrize("ladder", [noise_levels.geometric, noise_levels.karras])
@pytest.mark.parametrize("num", [2, 3, 40, 1000])
def test_ladders_decrease_between_exact_ends(ladder, num):
    levels = ladder(sigma_min=0.01, sigma_max=50.0, num_levels=num)
    assert levels.shape == (num,)
    assert levels.dtype == jnp.float32
    assert np.all(np.diff(levels) < 0)
    assert (levels[0], levels[-1]) == (jnp.float32(50.0), jnp.float32(0.01))
    with jax.enable_x64(True):
        levels = ladder(sigma_min=0.01, sigma_max=50.0, num_levels=num)
        assert levels.dtype == jnp.float64
        assert (levels[0].item(), levels[-1].item()) == (50.0, 0.01)


def test_geometric_has_equal_ratios():
    with jax.enable_x64(True):
        levels = np.asarray(noise_levels.geometric(sigma_max=80.0, sigma_min=0.002, num_levels=17))
    np.testing.assert_allclose(levels[:-1] / levels[1:], 40_000 ** (1 / 16), rtol=1e-12)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_is_evenly_spaced_in_the_root(rho):
    with jax.enable_x64(True):
        levels = np.asarray(
            noise_levels.karras(sigma_max=80.0, sigma_min=0.002, num_levels=18, rho=rho)
        )
        default = np.asarray(noise_levels.karras(sigma_max=80.0, sigma_min=0.002, num_levels=18))
    steps = -np.diff(levels ** (1 / rho))
    np.testing.assert_allclose(steps, (80 ** (1 / rho) - 0.002 ** (1 / rho)) / 17, rtol=1e-9)
    np.testing.assert_array_equal(levels == default, rho == 7.0 or np.isin(levels, [80.0, 0.002]))


# ---------------------------------------------------------------------------- Technique 1


@pytest.mark.parametrize("shape", [(), (3,), (4, 4, 2)])
def test_largest_and_smallest_level_are_the_distances(getkey, shape, monkeypatch):
    x = np.array(5 + jax.random.normal(getkey(), (60, *shape)))
    flat = x.reshape(60, -1).astype(np.float64)
    distances = scipy.spatial.distance.cdist(flat, flat)
    nearest = np.where(distances > 0, distances, np.inf).min(1)
    for chunk in (2**22, 60 * 7):
        monkeypatch.setattr("sm_jax.noise_levels._distances._CHUNK", chunk)
        value = noise_levels.largest_sigma(jnp.asarray(x), getkey(), max_points=60)
        np.testing.assert_allclose(value, distances.max(), rtol=1e-12)
        value = noise_levels.smallest_sigma(x, getkey())
        truth = np.median(nearest) / 10 / math.sqrt(flat.shape[1])
        np.testing.assert_allclose(value, truth, rtol=1e-9)


@pytest.mark.parametrize("separation", [1e3, 1e7, 1e9])
def test_neighbors_within_clusters_far_apart(separation, getkey):
    """Squares of the distance between clusters are rounded by more than those within them."""
    x = 0.1 * np.random.default_rng(0).normal(size=(200, 2))
    x[100:] += separation
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    right = np.median(distances.min(axis=1)) / 10 / np.sqrt(2)
    np.testing.assert_allclose(noise_levels.smallest_sigma(x, getkey()), right, rtol=1e-6)


def test_duplicates_are_no_neighbors(getkey):
    x = jnp.array([[0.0, 1e4], [0.0, 1e4], [0.3, 1e4 + 0.4], [1.0, 1e4], [9.0, 1e4]])
    value = noise_levels.smallest_sigma(x.astype(jnp.float32), getkey())
    # Nearest distances 0.5, 0.5, 0.5, 0.8, 8 (in exact arithmetic): the median is 0.5.
    np.testing.assert_allclose(value, 0.5 / 10 / math.sqrt(2), rtol=1e-3)


@pytest.mark.parametrize("far", [1e6, 1e7, -1e8])
def test_one_example_far_away_does_not_make_the_others_equal(getkey, far):
    x = np.append(0.5 * np.arange(20), far)[:, None]  # nearest distances 0.5, but for the last
    np.testing.assert_allclose(noise_levels.smallest_sigma(x, getkey()), 0.05, rtol=1e-6)
    np.testing.assert_allclose(noise_levels.largest_sigma(x, getkey()), np.ptp(x), rtol=1e-12)


def test_zeros_of_either_sign_are_equal(getkey):
    x = np.array([[-1.0, 0.0], [0.0, -0.0], [0.0, 0.0], [0.0, 1.0]])
    value = noise_levels.smallest_sigma(x, getkey())
    np.testing.assert_allclose(value, 0.1 / math.sqrt(2), rtol=1e-12)


def test_a_subset_is_drawn_with_the_key(getkey):
    x = jax.random.normal(getkey(), (500, 2))
    whole = noise_levels.largest_sigma(x, getkey())
    keys = [getkey() for _ in range(20)]
    parts = [noise_levels.largest_sigma(x, key, max_points=50) for key in keys]
    assert len(set(parts)) > 10
    assert max(parts) <= whole
    assert parts[0] == noise_levels.largest_sigma(x, keys[0], max_points=50)
    assert min(parts) > 0.5 * whole


# ---------------------------------------------------------------------------- Technique 2


def overlap_of(num_dims, ratio):
    """The share of the radii of level i within three standard deviations of those of i - 1."""
    mean, std = math.sqrt(num_dims) * ratio, ratio / math.sqrt(2)  # level i being 1
    radius = scipy.stats.norm(math.sqrt(num_dims), 1 / math.sqrt(2))
    return radius.cdf(mean + 3 * std) - radius.cdf(mean - 3 * std)


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("num_dims", [5, 10, 64, 784, 3072, 196_608])
def test_sigma_ratio_solves_the_equation(num_dims, overlap):
    ratio = noise_levels.sigma_ratio(num_dims, overlap=overlap)
    np.testing.assert_allclose(overlap_of(num_dims, ratio), overlap, atol=1e-11)
    if overlap == 0.5:
        assert noise_levels.sigma_ratio(num_dims) == ratio


@pytest.mark.parametrize("num_dims", [1, 2, 3, 4])
def test_in_few_dimensions_every_ratio_overlaps(num_dims):
    assert noise_levels.sigma_ratio(num_dims) == math.inf
    assert min(overlap_of(num_dims, r) for r in np.logspace(0, 6, 200)) > 0.99


def test_radii_of_noise_have_the_assumed_law(getkey):
    """Half of the noise of level i falls among that of level i - 1: drawn, not computed."""
    num_dims, num = 784, 4000
    ratio = noise_levels.sigma_ratio(num_dims)
    radius = np.linalg.norm(jax.random.normal(getkey(), (num, num_dims)), axis=1)
    inside = np.abs(radius - ratio * math.sqrt(num_dims)) < 3 * ratio / math.sqrt(2)
    # The normal approximation of the radius is off by 1 / (4 sqrt(D)) in the mean: 0.5 % of mass.
    np.testing.assert_allclose(inside.mean(), 0.5, atol=4 * 0.5 / math.sqrt(num) + 0.01)


@published
def test_published_ladders_have_one_overlap_a_little_above_one_half(name):
    """Approximately one half, in the paper, is 0.5668 in its ladders; it reproduces them."""
    num_dims, sigma_max, num, _, _ = PUBLISHED[name]
    ratio = (sigma_max / 0.01) ** (1 / (num - 1))
    np.testing.assert_allclose(overlap_of(num_dims, ratio), 0.5668, atol=2e-4)
    ours = noise_levels.sigma_ratio(num_dims, overlap=0.5668)
    assert noise_levels.num_levels(sigma_max=sigma_max, sigma_min=0.01, ratio=ours) == num
    coarser = noise_levels.num_levels(
        sigma_max=sigma_max, sigma_min=0.01, ratio=noise_levels.sigma_ratio(num_dims)
    )
    assert coarser == {"cifar10": 220, "celeba": 473, "ffhq": 2182}[name]
    for stated in (0.5668, num, coarser):
        assert str(stated) in noise_levels.sigma_ratio.__doc__


@pytest.mark.parametrize(
    ("ends", "ratio", "truth"),
    [((8, 1), 2, 4), ((8.1, 1), 2, 5), ((7.9, 1), 2, 4), ((1.1, 1), 2, 2)],
)
def test_num_levels_is_the_fewest_within_the_ratio(ends, ratio, truth):
    assert noise_levels.num_levels(sigma_min=ends[1], sigma_max=ends[0], ratio=ratio) == truth


# ---------------------------------------------------------------------------- Technique 4


@pytest.mark.parametrize("num_steps", [1, 3, 10])
@pytest.mark.parametrize("ratio", [1.02, 1.3, 3.0])
@pytest.mark.parametrize("relative_step", [0.01, 0.3, 1.0, 1.6])
def test_langevin_variance_is_the_recursion_of_the_chain(relative_step, ratio, num_steps):
    """x <- x + a s(x) + sqrt(2 a) z on N(0, sigma^2) in its own units, one step at a time."""
    sigma = 0.7
    step = relative_step * sigma**2
    variance = (ratio * sigma) ** 2
    for _ in range(num_steps):
        variance = (1 - step / sigma**2) ** 2 * variance + 2 * step
    value = noise_levels.langevin_variance(relative_step, ratio, num_steps)
    np.testing.assert_allclose(value, variance / sigma**2, rtol=1e-13)


def paper_condition(step, sigma_min, ratio, num_steps):
    """The left side of the paper's condition, as printed."""
    kept = 1 - step / sigma_min**2
    stationary = 2 * step / (sigma_min**2 - sigma_min**2 * kept**2)
    return kept ** (2 * num_steps) * (ratio**2 - stationary) + stationary


@pytest.mark.parametrize("num_steps", [1, 2, 5, 100])
@pytest.mark.parametrize("ratio", [1.001, 1.04, 1.4, 1.5, 5.0])
def test_step_size_is_the_best_of_all_stable_ones(ratio, num_steps):
    sigmas = 0.05 * ratio ** np.arange(3.0)[::-1]
    step = noise_levels.langevin_step_size(sigmas, steps_per_level=num_steps)
    value = paper_condition(step, 0.05, ratio, num_steps)
    steps = np.linspace(0, 2, 20_001)[1:-1] * 0.05**2
    values = paper_condition(steps, 0.05, ratio, num_steps)
    assert value > 1
    assert np.all(values > 1)  # no stable step gives exactly 1
    assert value <= values.min() + 1e-12
    around = paper_condition(step * np.array([1 - 1e-4, 1 + 1e-4]), 0.05, ratio, num_steps)
    np.testing.assert_allclose(np.diff(around) / 2e-4, 0, atol=1e-7 * ratio**2)  # stationary


@published
def test_published_step_sizes(name):
    _, sigma_max, num, num_steps, step_size = PUBLISHED[name]
    levels = noise_levels.geometric(sigma_max=sigma_max, sigma_min=0.01, num_levels=num)
    value = noise_levels.langevin_step_size(levels, steps_per_level=num_steps)
    np.testing.assert_allclose(value, step_size, atol=0.05e-6)  # printed to two digits


def test_step_size_of_unequal_ratios_minimises_the_worst():
    sigmas = np.array([3.0, 2.0, 1.6, 1.2])
    step = noise_levels.langevin_step_size(sigmas, steps_per_level=4)

    def worst(h):
        return max(noise_levels.langevin_variance(h, r, 4) for r in sigmas[:-1] / sigmas[1:])

    h = np.linspace(0.001, 1.5, 3000)
    np.testing.assert_allclose(step / 1.2**2, h[np.argmin([worst(v) for v in h])], atol=1e-3)


# ---------------------------------------------------------------------------- from data


@pytest.mark.parametrize("shape", [(2,), (8, 8)])
def test_record_is_consistent_and_explains_itself(getkey, shape):
    x = jax.random.normal(getkey(), (300, *shape))
    key = getkey()
    levels = noise_levels.noise_levels_from_data(x, key, steps_per_level=3)
    num_dims = math.prod(shape)
    assert levels.sigma_max == noise_levels.largest_sigma(x, key)
    np.testing.assert_allclose(levels.sigma_min, noise_levels.smallest_sigma(x, key), rtol=1e-12)
    truth = noise_levels.geometric(
        sigma_max=levels.sigma_max, sigma_min=levels.sigma_min, num_levels=levels.num_levels
    )
    np.testing.assert_array_equal(levels.sigmas, truth)
    assert levels.step_size == noise_levels.langevin_step_size(levels.sigmas, steps_per_level=3)
    np.testing.assert_allclose(levels.sigmas[0] / levels.sigmas[1], levels.ratio, rtol=1e-5)
    limit = min(noise_levels.sigma_ratio(num_dims), 1.5)
    range_ = levels.sigma_max / levels.sigma_min
    assert levels.ratio <= limit < range_ ** (1 / (levels.num_levels - 2))  # no level too many
    assert (levels.num_dims, levels.steps_per_level) == (num_dims, 3)
    text = str(levels)
    assert text.startswith(f"{levels.num_levels} geometric noise levels")
    assert f"examples of {num_dims} numbers" in text
    for number in (f"{levels.sigma_max:.4g}", f"{levels.sigma_min:.4g}", f"{levels.ratio:.6g}"):
        assert number in text
    assert "Technique 1" in text
    assert "3 Langevin steps" in text
    assert ("for the Langevin steps to follow" in text) == (num_dims == 2)


def test_record_scales_with_the_data(getkey):
    x, key = jax.random.normal(getkey(), (100, 5)), getkey()
    one = noise_levels.noise_levels_from_data(x, key)
    ten = noise_levels.noise_levels_from_data(8 * x + 3, key)
    assert one.num_levels == ten.num_levels
    np.testing.assert_allclose(ten.sigmas, 8 * one.sigmas, rtol=1e-5)
    np.testing.assert_allclose(ten.step_size, 64 * one.step_size, rtol=1e-5)


@pytest.mark.parametrize(
    "given", [{"sigma_min": 0.02}, {"sigma_max": 30.0}, {"sigma_min": 0.02, "sigma_max": 30.0}]
)
def test_given_ends_replace_those_of_the_data(getkey, given):
    x, key = jax.random.normal(getkey(), (100, 5)), getkey()
    free = noise_levels.noise_levels_from_data(x, key)
    levels = noise_levels.noise_levels_from_data(x, key, **given)
    ends = {"sigma_min": free.sigma_min, "sigma_max": free.sigma_max} | given
    assert (levels.sigma_min, levels.sigma_max) == (ends["sigma_min"], ends["sigma_max"])
    np.testing.assert_allclose(
        np.asarray(levels.sigmas)[[0, -1]], [ends["sigma_max"], ends["sigma_min"]]
    )
    number = noise_levels.num_levels(
        sigma_max=ends["sigma_max"], sigma_min=ends["sigma_min"], ratio=1.5
    )
    assert levels.num_levels == number != free.num_levels
    assert levels.step_size == noise_levels.langevin_step_size(levels.sigmas, steps_per_level=5)
    lines = str(levels).split("\n")
    assert lines[1].endswith("given") == ("sigma_max" in given)
    assert lines[2].endswith("given") == ("sigma_min" in given)


def test_both_ends_given_need_no_distances(getkey):
    levels = noise_levels.noise_levels_from_data(
        jnp.ones((3, 2)), getkey(), sigma_min=0.1, sigma_max=1.0
    )
    assert levels.num_levels == noise_levels.num_levels(sigma_max=1.0, sigma_min=0.1, ratio=1.5)


def test_bad_given_ends(getkey):
    x = jnp.array([[0.0], [1.0], [3.0]])  # from the data: 3 and 0.1
    for name in ("sigma_min", "sigma_max"):
        for value in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match=f"{name} must be positive.*{value}"):
                noise_levels.noise_levels_from_data(x, getkey(), **{name: value})
    with pytest.raises(ValueError, match=r"sigma_min=0.1 and sigma_max=0.05: sigma_min is from"):
        noise_levels.noise_levels_from_data(x, getkey(), sigma_max=0.05)
    with pytest.raises(ValueError, match=r"sigma_min=3 and sigma_max=3: sigma_max is from"):
        noise_levels.noise_levels_from_data(x, getkey(), sigma_min=3.0)
    with pytest.raises(ValueError, match=r"sigma_min=2.0 and sigma_max=1.0: swap them"):
        noise_levels.noise_levels_from_data(x, getkey(), sigma_min=2.0, sigma_max=1.0)


def test_the_explanation_names_the_overlap_it_was_made_with(getkey):
    x = jax.random.normal(getkey(), (20, 64))
    levels = noise_levels.noise_levels_from_data(x, getkey(), overlap=0.7)
    limit = noise_levels.sigma_ratio(64, overlap=0.7)
    assert f"at most {limit:.6g}, where neighboring levels overlap by 0.7 " in str(levels)


@pytest.mark.parametrize("shape", [(), (3,), (4, 4, 2)])
def test_the_mean_is_that_of_all_the_data(getkey, shape):
    x = np.asarray(1000.0 + jax.random.normal(getkey(), (300, *shape)), np.float32)
    levels = noise_levels.noise_levels_from_data(x, getkey(), max_points=20)
    assert levels.mean.shape == shape
    np.testing.assert_allclose(levels.mean, x.astype(np.float64).mean(0), rtol=1e-7)
    processes.VE(levels.sigma_min, levels.sigma_max, mean=levels.mean)
    low, high = float(levels.mean.min()), float(levels.mean.max())
    assert f"mean       {low:.4g}" in str(levels)
    assert f"{low:.4g} to {high:.4g}" in str(levels) or low == high


def test_the_recipe_for_data_far_from_zero(getkey):
    """N(100, 1) in two dimensions with its exact score, by the recipe of the README."""
    x = 100.0 + jax.random.normal(getkey(), (4000, 2))
    levels = noise_levels.noise_levels_from_data(x, getkey())
    process = processes.VE(levels.sigma_min, levels.sigma_max, mean=levels.mean)

    def score_fn(x, t):
        return -(x - 100.0) / (1.0 + t[:, None] ** 2)

    start = processes.prior_sample(process, getkey(), x.shape)
    samples = samplers.heun(score_fn, start, process=process, num_steps=100)
    assert_mean(samples, 100.0)
    # The prior has the variance of the largest level, a little less than that of the noised data.
    shrunk = 1.0 / np.sqrt(1.0 + levels.sigma_max**-2)
    np.testing.assert_allclose(samples.std(axis=0), shrunk, rtol=4.5 / np.sqrt(2 * 4000))
    found = likelihood.log_prob(score_fn, x[:200], process=process).value
    truth = gaussian_log_prob(x[:200], [100.0, 100.0], np.eye(2))
    away = np.asarray(x[:200], np.float64) - 100.0
    # The density at t_max that the prior replaces: of variance 1 + s^2 for s^2, and another mean.
    end = away * np.sqrt(1.0 + levels.sigma_max**2)
    prior = gaussian_log_prob(
        end, np.asarray(levels.mean, np.float64) - 100.0, levels.sigma_max**2 * np.eye(2)
    ) - gaussian_log_prob(end, [0.0, 0.0], (1.0 + levels.sigma_max**2) * np.eye(2))
    np.testing.assert_allclose(found, truth + prior, atol=5e-3)
    assert abs(float(found.mean()) - truth.mean()) < 0.05


def test_a_subset_serves_both_ends(getkey):
    x, key = jax.random.normal(getkey(), (100, 5)), getkey()
    levels = noise_levels.noise_levels_from_data(x, key, max_points=20, overlap=0.7)
    assert levels.sigma_max == noise_levels.largest_sigma(x, key, max_points=20)


def test_cifar10(data_dir, getkey):
    """The paper has 50 and 0.01 for 50,000 images in [0, 1]; here are 600 of them."""
    path = data_dir / "cifar10_10k" / "cifar10_10k.npz"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    with np.load(path) as archive:
        x = archive["x_train"][:600].astype(np.float32) / 255
    levels = noise_levels.noise_levels_from_data(x, getkey(), overlap=0.5668)
    assert 40 < levels.sigma_max < 52
    assert 0.01 < levels.sigma_min < 0.025
    assert levels.num_dims == 3072
    np.testing.assert_allclose(levels.ratio, 1.0376, rtol=3e-4)
    np.testing.assert_allclose(levels.step_size / levels.sigma_min**2, 0.062, atol=1e-3)


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("ladder", [noise_levels.geometric, noise_levels.karras])
def test_bad_ladders(ladder):
    with pytest.raises(ValueError, match=r"sigma_min=2.0 and sigma_max=1.0: swap them"):
        ladder(sigma_max=1.0, sigma_min=2.0, num_levels=5)
    with pytest.raises(ValueError, match="sigma_min must be below sigma_max"):
        ladder(sigma_max=1.0, sigma_min=1.0, num_levels=5)
    with pytest.raises(ValueError, match=r"sigma_min must be positive and finite, got 0.0"):
        ladder(sigma_max=1.0, sigma_min=0.0, num_levels=5)
    with pytest.raises(ValueError, match=r"sigma_max must be positive and finite, got inf"):
        ladder(sigma_max=math.inf, sigma_min=0.1, num_levels=5)
    with pytest.raises(ValueError, match="num_levels must be at least 2, got 1"):
        ladder(sigma_max=1.0, sigma_min=0.1, num_levels=1)
    with pytest.raises(TypeError, match="num_levels must be a Python int"):
        ladder(sigma_max=1.0, sigma_min=0.1, num_levels=5.0)
    with pytest.raises(ValueError, match="strictly decreasing"):
        ladder(sigma_max=1.0000001, sigma_min=1.0, num_levels=50)
    with pytest.raises(ValueError, match=r"rho must be positive and finite, got -1"):
        noise_levels.karras(sigma_max=1.0, sigma_min=0.1, num_levels=5, rho=-1)


def test_bad_numbers():
    with pytest.raises(ValueError, match="num_dims must be at least 1, got 0"):
        noise_levels.sigma_ratio(0)
    for overlap in (0.0, 0.995, math.nan):
        with pytest.raises(ValueError, match=rf"overlap must lie in \(0, 0.99\), got {overlap}"):
            noise_levels.sigma_ratio(10, overlap=overlap)
    for ratio in (1.0, math.inf):
        with pytest.raises(ValueError, match=rf"ratio must be above 1 and finite, got {ratio}"):
            noise_levels.num_levels(sigma_max=1.0, sigma_min=0.1, ratio=ratio)
    with pytest.raises(ValueError, match="sigma_min must be below sigma_max"):
        noise_levels.num_levels(sigma_max=0.1, sigma_min=1.0, ratio=2.0)
    with pytest.raises(ValueError, match=r"strictly decreasing.*got \[0.1 1. \]: sort it"):
        noise_levels.langevin_step_size([0.1, 1.0], steps_per_level=5)
    with pytest.raises(ValueError, match="sigmas must be positive"):
        noise_levels.langevin_step_size([1.0, 0.0], steps_per_level=5)
    with pytest.raises(ValueError, match="at least two noise levels"):
        noise_levels.langevin_step_size([1.0], steps_per_level=5)
    with pytest.raises(ValueError, match="steps_per_level must be at least 1, got 0"):
        noise_levels.langevin_step_size([1.0, 0.5], steps_per_level=0)


@pytest.mark.parametrize(
    "function",
    [
        noise_levels.largest_sigma,
        noise_levels.smallest_sigma,
        noise_levels.noise_levels_from_data,
    ],
)
def test_bad_data(getkey, function):
    with pytest.raises(TypeError, match="floating dtype, got uint8: scale integers"):
        function(np.ones((4, 3), np.uint8), getkey())
    with pytest.raises(ValueError, match=r"x must hold examples \[N, ...\], got shape \(0, 3\)"):
        function(jnp.zeros((0, 3)), getkey())
    with pytest.raises(ValueError, match="1 values that are not finite"):
        function(jnp.array([[1.0, jnp.nan], [1.0, 0.0]]), getkey())
    rows = np.arange(20.0, dtype=np.float32)[:, None]
    rows[7] = np.inf  # also in a row that is not compared
    for _ in range(5):
        with pytest.raises(ValueError, match="1 values that are not finite"):
            function(rows, getkey(), max_points=2)
    for num in (1, 5):
        with pytest.raises(ValueError, match=rf"two distinct examples, got {num} that are equal"):
            function(jnp.full((num, 3), 0.1), getkey())
    with pytest.raises(ValueError, match="max_points must be at least 2, got 1"):
        function(jnp.ones((4, 3)), getkey(), max_points=1)
