"""Scalings against closed forms: densities carried through them, exact inverses, guards."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sm_jax.data import (
    Standardizer,
    constant_features,
    dequantize,
    dequantize_log_det,
    quantize,
)

MEAN, SCALE = np.array([1.0, -20.0, 300.0]), np.array([2.0, 0.5, 40.0])


def two_points(mean, scale):
    """Two points with exactly this mean and standard deviation (1/N)."""
    return np.stack([mean - scale, mean + scale])


def test_fit_finds_mean_and_standard_deviation():
    standardizer = Standardizer.fit(two_points(MEAN, SCALE))
    np.testing.assert_allclose(standardizer.mean, MEAN, rtol=1e-14)
    np.testing.assert_allclose(standardizer.scale, SCALE, rtol=1e-14)
    assert standardizer.mean.dtype == standardizer.scale.dtype == np.float64


@pytest.mark.parametrize("event_shape", [(), (3,), (4, 5), (2, 3, 1)])
def test_standardized_data_has_mean_0_and_variance_1(event_shape):
    x = np.random.default_rng(0).gamma(2.0, 5.0, (50, *event_shape))
    standardizer = Standardizer.fit(x)
    y = standardizer(jnp.asarray(x, jnp.float32))
    assert y.dtype == jnp.float32
    assert y.shape == x.shape
    np.testing.assert_allclose(np.mean(y, axis=0), np.zeros(event_shape), atol=1e-6)
    np.testing.assert_allclose(np.var(y, axis=0), np.ones(event_shape), rtol=1e-5)
    np.testing.assert_allclose(standardizer.inverse(y), x, rtol=1e-5, atol=1e-5)


def test_log_det_carries_a_gaussian_density_through():
    """log N(x; m, s^2) = log N((x - m) / s; 0, 1) + log_det."""
    standardizer = Standardizer.fit(two_points(MEAN, SCALE))
    x = MEAN + SCALE * np.random.default_rng(0).standard_normal((10, 3))
    expected = scipy.stats.norm.logpdf(x, MEAN, SCALE).sum(axis=1)
    standard = scipy.stats.norm.logpdf(standardizer(x)).sum(axis=1)
    np.testing.assert_allclose(standard + float(standardizer.log_det), expected, rtol=1e-6)


def test_log_det_is_that_of_the_jacobian():
    standardizer = Standardizer.fit(two_points(MEAN, SCALE))
    jacobian = jax.jacfwd(lambda x: standardizer(x[None])[0])(jnp.array([1.0, 2.0, 3.0]))
    _, log_det = jnp.linalg.slogdet(jacobian)
    np.testing.assert_allclose(standardizer.log_det, log_det, rtol=1e-6)


def test_numpy_data_is_scaled_in_float64():
    """Integers whose spread is lost in float32."""
    x = np.array([1_600_000_001, 1_600_000_003])
    y = Standardizer.fit(x)(x)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, [-1.0, 1.0])
    np.testing.assert_array_equal(Standardizer.fit(x).inverse(y), x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_jax_data_keeps_its_dtype(dtype):
    with jax.enable_x64(True):
        x = jnp.asarray(two_points(MEAN, SCALE), dtype)
        standardizer = Standardizer.fit(two_points(MEAN, SCALE))
        assert standardizer(x).dtype == standardizer.inverse(x).dtype == dtype
        np.testing.assert_allclose(standardizer(x).astype(float), [[-1] * 3, [1] * 3], rtol=2e-2)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize(
    ("dtype", "mean", "x"),
    [(jnp.bfloat16, 100.3, 101.0), (jnp.float16, 1000.3, 1001.0), (jnp.float32, 1e6 + 0.53, 1e6)],
)
def test_jax_data_are_centered_at_a_mean_that_their_dtype_cannot_hold(dtype, mean, x, wrap):
    standardizer = Standardizer(np.array([mean]), np.array([0.9]))
    scaled = wrap(standardizer)(jnp.array([[x]], dtype))
    assert scaled.dtype == dtype
    rtol = 2 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(scaled.astype(float), [[(x - mean) / 0.9]], rtol=rtol)


def test_the_standardizer_is_a_pytree():
    standardizer = Standardizer.fit(two_points(MEAN, SCALE))
    x = jnp.asarray(two_points(MEAN, SCALE) + 1, jnp.float32)
    y, log_det = jax.jit(lambda s, x: (s(x), s.log_det))(standardizer, x)
    np.testing.assert_allclose(y, standardizer(x), rtol=1e-6)
    np.testing.assert_allclose(log_det, -np.log(SCALE).sum(), rtol=1e-6)
    assert len(jax.tree.leaves(standardizer)) == 2


@pytest.mark.parametrize("event_shape", [(), (3,), (2, 2)])
def test_json_keeps_every_bit(event_shape):
    x = np.random.default_rng(0).standard_normal((9, *event_shape)) / 3
    standardizer = Standardizer.fit(x)
    restored = Standardizer.from_dict(json.loads(json.dumps(standardizer.to_dict())))
    np.testing.assert_array_equal(restored.mean, standardizer.mean, strict=True)
    np.testing.assert_array_equal(restored.scale, standardizer.scale, strict=True)


def test_constant_features_are_named_and_left_alone():
    x = np.zeros((4, 2, 4))
    x[..., 0] = 0.1  # whose computed mean need not be 0.1
    x[1, 1] = 7.0
    x[:, 1, 0] = 0.1
    with pytest.warns(
        UserWarning, match=r"5 of 8 features are constant: \[0, 0\], \[0, 1\].*\[1, 0\]\."
    ):
        standardizer = Standardizer.fit(x)
    y = standardizer(x)
    np.testing.assert_array_equal(y[:, 0], 0.0)
    np.testing.assert_array_equal(y[:, 1, 0], 0.0)
    np.testing.assert_allclose(y[:, 1, 1:].std(axis=0), 1.0)
    np.testing.assert_allclose(standardizer.log_det, -3 * math.log(7 * math.sqrt(3) / 4), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [1.0, 0.1, -1e6, 1e-30])
def test_features_that_are_constant_up_to_rounding(dtype, value):
    value = dtype(value)
    below = np.nextafter(value, dtype(0))
    sums = np.cumsum([value / 7] * 7, dtype=dtype)[-1]  # a value that was computed
    x = np.array([[value, 1.0], [below, 3.0], [sums, 5.0]], dtype)
    assert constant_features(x).tolist() == [True, False]
    with pytest.warns(UserWarning, match=r"1 of 2 features are constant: \[0\]\."):
        standardizer = Standardizer.fit(x)
    np.testing.assert_allclose(standardizer.log_det, -math.log(math.sqrt(8 / 3)), rtol=1e-6)
    y = standardizer(x)
    assert np.max(np.abs(y[:, 0])) <= 4 * np.finfo(dtype).eps * abs(value)
    np.testing.assert_allclose(y[:, 1].std(), 1.0)
    back = standardizer.inverse(y)
    np.testing.assert_array_equal(back[:, 0], x[:, 0])
    np.testing.assert_allclose(back, x, rtol=1e-14)


def test_a_small_spread_that_is_no_rounding_is_kept():
    x = np.array([[1e6, 1e6, 5.0], [1e6 + 1e-6, 1e6 + 1.0, 6.0], [1e6 - 1e-6, 1e6, 7.0]])
    assert not constant_features(x).any()
    np.testing.assert_allclose(Standardizer.fit(x).scale[0], 1e-6 * math.sqrt(2 / 3), rtol=1e-3)
    assert constant_features(x.astype(np.float32)).tolist() == [True, False, False]
    assert not constant_features(np.array([[2**60], [2**60 + 1]])).any()  # integers are exact
    assert constant_features([[0.0, 1], [0.0, 2]]).tolist() == [True, False]
    years = np.arange(2015, 2023, dtype=np.float16)[:, None]  # which that dtype holds exactly
    assert not constant_features(years).any()


def test_a_long_list_of_constant_features_is_cut():
    with pytest.warns(UserWarning, match=r"7 of 7 .*: \[0\], \[1\], \[2\], \[3\], \[4\], \.\.\.\."):
        Standardizer.fit(np.ones((3, 7)))


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.ones((1, 3)), ValueError, "at least two examples.*got 1"),
        (np.ones((0, 3)), ValueError, r"x is empty, shape \(0, 3\)"),
        (np.float64(1.0), ValueError, "add a first axis"),
        (np.array([[1.0, 2.0], [np.inf, np.nan]]), ValueError, r"2 NaN.*4.*\(inf\) at.*\(1, 0\)"),
        (np.array([["a"], ["b"]]), TypeError, "real numbers, got dtype <U1"),
        (np.array([[1j], [2j]]), TypeError, "complex128: stack its real and imaginary parts"),
        (np.array([[0.0], [1e-60]]), ValueError, "beyond the range of float32"),
        (np.array([[0.0], [1e300]]), ValueError, "beyond the range of float32"),
    ],
)
def test_data_that_cannot_be_standardized(x, error, match):
    with pytest.raises(error, match=match):
        Standardizer.fit(x)


def test_data_of_another_shape_or_dtype():
    standardizer = Standardizer.fit(two_points(MEAN, SCALE))
    for transform in (standardizer, standardizer.inverse):
        for shape in [(3,), (5, 2), (5, 3, 1), ()]:
            with pytest.raises(ValueError, match=r"shape \[B, 3\] as fitted, got"):
                transform(np.ones(shape))
        with pytest.raises(TypeError, match="floating dtype, got int32: convert it"):
            transform(jnp.ones((2, 3), jnp.int32))


@pytest.mark.parametrize("array", [float, np.asarray, jnp.asarray])
def test_plain_numbers_as_mean_and_scale(array):
    standardizer = Standardizer(array(1.0), array(2.0))
    for x in (np.array([1.0, 5.0]), jnp.array([1.0, 5.0])):
        assert standardizer(x).tolist() == [0.0, 2.0]
        assert standardizer.inverse(standardizer(x)).tolist() == [1.0, 5.0]
    np.testing.assert_allclose(standardizer.log_det, -np.log(2.0), rtol=1e-6)


def test_broken_standardizers():
    for mean in (np.nan, np.inf):
        with pytest.raises(ValueError, match="mean must be finite"):
            Standardizer(np.array([0.0, mean]), np.ones(2))
    with pytest.raises(ValueError, match="scale must be positive"):
        Standardizer(np.zeros(2), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"shape of one example, got \(2,\) and \(3,\)"):
        Standardizer(np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match=r"keys 'mean' and 'scale', got \['mean'\]"):
        Standardizer.from_dict({"mean": [0.0]})


def test_dequantize_is_the_formula_of_the_digits():
    """(x + u) / 17 * 2 - 1, with the noise drawn from the key given."""
    key = jax.random.key(3)
    x = np.arange(17, dtype=np.float64)[:, None] * np.ones(5)
    u = jax.random.uniform(key, x.shape, jnp.float32)
    found = dequantize(x, key, num_values=17)
    np.testing.assert_allclose(found, (x + np.asarray(u)) / 17 * 2 - 1, atol=2e-7)
    assert found.dtype == jnp.float32


def test_dequantize_covers_the_interval_uniformly(getkey):
    """All levels equally often give U[-1, 1): mean 0, variance 1/3, within 5 standard errors."""
    x = jnp.tile(jnp.arange(16), 5000)
    y = np.asarray(dequantize(x, getkey(), num_values=16), np.float64)
    assert -1 <= y.min() < -0.999
    assert 0.999 < y.max() <= 1
    assert abs(y.mean()) < 5 * math.sqrt(1 / 3 / y.size)
    assert abs((y**2).mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / y.size)
    assert np.any(y != np.asarray(dequantize(x, getkey(), num_values=16)))


@pytest.mark.parametrize("num_values", [2, 17, 256])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_quantize_undoes_dequantize(num_values, dtype, getkey):
    x = np.tile(np.arange(num_values).astype(dtype), (40, 1))
    y = dequantize(x, getkey(), num_values=num_values)
    found = quantize(y, num_values=num_values)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, x)


def test_quantize_at_the_edges():
    y = jnp.array([-3.0, -1.0, -0.5001, -0.5, 0.4999, 0.5, 1.0, 3.0])
    assert quantize(y, num_values=4).tolist() == [0, 0, 0, 1, 2, 3, 3, 3]


def test_nan_is_no_level():
    with pytest.raises(ValueError, match="y holds 2 NaN, which has no integer value"):
        quantize(jnp.array([0.1, jnp.nan, jnp.inf, jnp.nan]), num_values=256)
    assert quantize(jnp.array([-jnp.inf, jnp.inf]), num_values=256).tolist() == [0, 255]


def test_dequantize_noise_and_precision():
    x = np.array([[0, 255]], np.uint8)
    calls = []

    def noise(key, shape, dtype):
        calls.append((key, shape, dtype))
        return jnp.full(shape, 0.5, dtype)

    key = jax.random.key(0)
    found = dequantize(x, key, num_values=256, noise=noise)
    np.testing.assert_allclose(found, [[1 / 256 - 1, 1 - 1 / 256]], rtol=1e-6)
    assert calls == [(key, (1, 2), jnp.float32)]
    bfloat = dequantize(jnp.asarray(x, jnp.bfloat16), key, num_values=256, noise=noise)
    np.testing.assert_array_equal(bfloat, found, strict=True)
    with jax.enable_x64(True):
        assert dequantize(x.astype(float), key, num_values=256).dtype == jnp.float64


def test_dequantize_under_jit_and_vmap(getkey):
    keys = jax.random.split(getkey(), 3)
    x = jnp.arange(12).reshape(3, 4)
    transform = lambda x, key: dequantize(x, key, num_values=12)  # noqa: E731
    found = jax.jit(jax.vmap(transform))(x, keys)
    for row, values, key in zip(found, x, keys, strict=True):
        np.testing.assert_allclose(row, transform(values, key), atol=2e-7)


def test_dequantize_log_det_is_that_of_the_jacobian():
    key = jax.random.key(0)
    noise = lambda *_: jnp.array([0.1, 0.2, 0.7])  # noqa: E731
    jacobian = jax.jacfwd(lambda x: dequantize(x, key, num_values=17, noise=noise))
    _, log_det = jnp.linalg.slogdet(jacobian(jnp.array([1.0, 2.0, 3.0])))
    np.testing.assert_allclose(dequantize_log_det(17, 3), log_det, rtol=1e-6)


def test_a_uniform_model_costs_log2_of_the_levels():
    """The density 1/2 per dimension on [-1, 1) gives every level the probability 1/K."""
    log_prob = 5 * math.log(1 / 2) + dequantize_log_det(num_values=32, num_dims=5)
    np.testing.assert_allclose(-log_prob / math.log(2) / 5, 5.0, rtol=1e-14)


def test_bad_values(getkey):
    for x, value in [([0, 17], 17), ([-1, 3], -1), ([0.25, 1.0], 0.25), ([np.nan, 1.0], "nan")]:
        with pytest.raises(ValueError, match=f"whole values 0 to 16, got {value}.*num_values"):
            dequantize(np.array(x), getkey(), num_values=17)
    with pytest.raises(ValueError, match="num_values must be at least 2, got 1"):
        dequantize(np.array([0]), getkey(), num_values=1)
    with pytest.raises(TypeError, match=r"num_values must be a Python int.*got 17\.0"):
        quantize(jnp.zeros(2), num_values=17.0)
    with pytest.raises(ValueError, match="num_values must be at least 2, got 1"):
        quantize(jnp.zeros(2), num_values=1)
    with pytest.raises(TypeError, match="floating dtype, got int32: it is not dequantized"):
        quantize(jnp.zeros(2, jnp.int32), num_values=4)
    with pytest.raises(ValueError, match="num_values must be at least 2, got 0"):
        dequantize_log_det(0, 3)
    with pytest.raises(ValueError, match="num_dims must be at least 1, got 0"):
        dequantize_log_det(17, 0)
