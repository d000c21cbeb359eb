"""Distances between sets of samples: closed forms, and exact sums over quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from sm_jax.metrics import sliced_wasserstein


def relative_error(num_projections):
    """4.5 standard errors of the root of a mean of squared cosines."""
    return 4.5 / np.sqrt(2 * num_projections)


def test_translation(getkey):
    """In a direction v it is |v' d|: |d|^2 / D in the mean square, |d| / 2 in the mean if D = 3."""
    x, shift = jax.random.normal(getkey(), (5, 3)), jnp.array([1.0, -2.0, 2.0])
    squared = sliced_wasserstein(x, x + shift[None], getkey(), num_projections=4096)
    np.testing.assert_allclose(squared, 3 / np.sqrt(3), rtol=relative_error(4096))
    first = sliced_wasserstein(x, x + shift[None], getkey(), num_projections=4096, p=1.0)
    np.testing.assert_allclose(first, 3 / 2, rtol=relative_error(4096))


def test_scaling(getkey):
    """W_2(v' x, s v' x) = |s - 1| |v' x| / sqrt(N), and its square is the mean of |x|^2 / D."""
    x = jax.random.normal(getkey(), (50, 4))
    distance = sliced_wasserstein(x, 1.5 * x, getkey(), num_projections=4096)
    expected = 0.5 * np.sqrt(np.mean(np.sum(x**2, axis=1)) / 4)
    np.testing.assert_allclose(distance, expected, rtol=relative_error(4096))


def test_gaussians(getkey):
    """Two isotropic Gaussians are |s - s'| apart in every direction, up to the draws of them."""
    x = jax.random.normal(getkey(), (20_000, 3))
    y = 1.4 * jax.random.normal(getkey(), (15_000, 3))
    # a standard deviation has the standard error s / sqrt(2 N)
    error = 4.5 * np.sqrt(1 / 40_000 + 1.96 / 30_000)
    distance = sliced_wasserstein(x, y, getkey(), num_projections=16)
    np.testing.assert_allclose(distance, 0.4, atol=error)


@pytest.mark.parametrize("sizes", [(7, 7), (6, 4), (5, 8), (1, 9)])
def test_one_dimension_is_exact(sizes, getkey):
    """Against SciPy for p = 1, and for others against every sample repeated to a common size."""
    x, y = (jax.random.normal(getkey(), (n,)) for n in sizes)
    distance = sliced_wasserstein(x, y, getkey(), num_projections=2, p=1.0)
    np.testing.assert_allclose(distance, stats.wasserstein_distance(x, y), rtol=1e-5)
    pairs = np.sort(np.repeat(x, len(y))) - np.sort(np.repeat(y, len(x)))
    for p in (2.0, 3.0):
        distance = sliced_wasserstein(x, y, getkey(), num_projections=1, p=p)
        np.testing.assert_allclose(distance, np.mean(np.abs(pairs) ** p) ** (1 / p), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_high_powers(scale):
    """Of gaps of 1, 2 and 3, of which the largest counts; in value and in slope."""
    x, key = jnp.zeros(3), jax.random.key(0)

    def distance(y, p):
        return sliced_wasserstein(x, y, key, num_projections=1, p=p)

    gaps = np.array([1.0, 2.0, 3.0])
    for p in (2.0, 12.0, 200.0):
        value, slope = jax.value_and_grad(distance)(jnp.asarray(scale * gaps, jnp.float32), p)
        expected = 3.0 * np.mean((gaps / 3.0) ** p) ** (1 / p)
        np.testing.assert_allclose(value, scale * expected, rtol=1e-4)
        np.testing.assert_allclose(slope, (gaps / expected) ** (p - 1) / 3, rtol=1e-2, atol=1e-6)


def test_equal_sets_in_any_order_are_at_distance_zero(getkey):
    x = jax.random.normal(getkey(), (9, 2, 3))
    assert sliced_wasserstein(x, x[::-1], getkey()) == 0.0
    # the measure counts, not the number of samples
    np.testing.assert_array_less(sliced_wasserstein(x, jnp.repeat(x, 2, axis=0), getkey()), 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("first", [True, False])
def test_samples_that_are_not_finite_are_at_no_distance(bad, first, getkey):
    x = jax.random.normal(getkey(), (20, 2))
    both = (x.at[3, 1].set(bad), x + 5.0) if first else (x, (x + 5.0).at[0, 0].set(bad))
    assert np.isnan(sliced_wasserstein(*both, getkey()))


def test_symmetry_rank_dtype_jit(getkey):
    x, y, key = jax.random.normal(getkey(), (9, 2, 2)), jnp.ones((4, 2, 2)), getkey()
    distance = sliced_wasserstein(x, y, key)
    assert distance.shape == ()
    assert distance == sliced_wasserstein(y, x, key)
    assert distance == sliced_wasserstein(x.reshape(9, 4), y.reshape(4, 4), key)
    assert distance != sliced_wasserstein(x, y, getkey())
    np.testing.assert_allclose(jax.jit(sliced_wasserstein)(x, y, key), distance, rtol=1e-6)
    low = sliced_wasserstein(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), key)
    assert low.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = sliced_wasserstein(np.asarray(x, np.float64), np.asarray(y, np.float64), key)
        assert wide.dtype == jnp.float64
        check_grads(lambda x: sliced_wasserstein(x, y, key), (np.asarray(x, np.float64),), order=1)
    np.testing.assert_array_equal(jax.grad(lambda y: sliced_wasserstein(x, y, key))(x), 0.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"y": np.ones((3, 4), np.float32)}, ValueError, r"one shape, got \(2,\) and \(4,\)"),
        ({"y": np.ones((3, 2), int)}, TypeError, "y must have a floating dtype"),
        ({"x": np.ones((0, 2), np.float32)}, ValueError, "x is empty"),
        ({"p": 0.5}, ValueError, "p must be at least 1 and finite, got 0.5"),
        ({"p": np.inf}, ValueError, "p must be at least 1 and finite, got inf"),
        ({"p": np.nan}, ValueError, "p must be at least 1 and finite, got nan"),
        ({"p": np.ones(2)}, ValueError, r"p must be one number, got shape \(2,\)"),
        ({"num_projections": 0}, ValueError, "num_projections must be at least 1, got 0"),
    ],
)
def test_bad_input(arguments, error, message, getkey):
    x = np.ones((3, 2), np.float32)
    with pytest.raises(error, match=message):
        sliced_wasserstein(**({"x": x, "y": x, "key": getkey()} | arguments))
