"""The checks that every module shares: what passes, and what is refused by which words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import _checks


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, np.float64, int])
def test_values_of_any_dtype_are_looked_at(dtype):
    value = jnp.asarray([1, -1], dtype) if dtype == jnp.bfloat16 else np.array([1, -1], dtype)
    np.testing.assert_array_equal(_checks.concrete(value), [1, -1])
    with pytest.raises(ValueError, match="step must be positive and finite"):
        _checks.check_positive("step", value)
    with pytest.raises(ValueError, match="step must be finite and not negative"):
        _checks.check_not_negative("step", value)
    with pytest.raises(ValueError, match="levels must be strictly decreasing"):
        _checks.check_levels("levels", abs(value))


def test_traced_values_are_not():
    @jax.jit
    def run(value):
        assert _checks.concrete(value) is None
        _checks.check_positive("step", value)
        return value

    assert run(-1.0) == -1.0
    assert _checks.concrete("one") is None


def test_one_number():
    for value in (1.0, 2, np.float32(3), jnp.ones(())):
        _checks.check_scalar("step", value)
    with pytest.raises(ValueError, match=r"step must be one number, got shape \(2,\)"):
        _checks.check_scalar("step", [0.1, 0.2])


def test_no_key():
    with pytest.raises(TypeError, match="langevin draws random numbers: pass a key"):
        _checks.check_key("langevin", None)


def test_levels_that_coincide_in_their_dtype_are_refused():
    levels = np.array([1.0 + 1e-12, 1.0])
    with pytest.raises(ValueError, match="levels must be strictly decreasing"):
        _checks.check_levels("levels", levels)
    with jax.enable_x64(True):
        _checks.check_levels("levels", levels)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_strictly_decreasing_moves_by_single_roundings(dtype):
    with jax.enable_x64(True):
        one = jnp.finfo(dtype).epsneg  # the spacing below 1
        steps = jnp.array([2, 0, 0, 1, -3, -3, -9], dtype)
        found = _checks.strictly_decreasing("num", 1 + one * steps * jnp.array(0.5, dtype) * 2)
        expected = [2, 0, -1, -2, -3, -4, -9]
        np.testing.assert_array_equal((found - 1) / one, np.array(expected, np.float64))
        around = jnp.array([1.0, 0.0, 0.0, -0.0, -1.0], dtype)
        found = _checks.strictly_decreasing("num", around)
        tiny = jnp.finfo(dtype).tiny
        following = tiny * (1 + jnp.finfo(dtype).eps)
        np.testing.assert_array_equal(found, jnp.array([1.0, 0.0, -tiny, -following, -1.0], dtype))
        assert np.all(np.diff(np.float64(found)) < 0)
        kept = jnp.array([3.0, 1.0, 0.5, 0.0], dtype)
        np.testing.assert_array_equal(_checks.strictly_decreasing("num", kept), kept)
