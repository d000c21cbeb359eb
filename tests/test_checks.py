"""The checks that every module shares: what passes, and what is refused by which words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import _arrays, _checks


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, np.float64, int])
def test_values_of_any_dtype_are_looked_at(dtype):
    value = jnp.asarray([1, -1], dtype) if dtype == jnp.bfloat16 else np.array([1, -1], dtype)
    np.testing.assert_array_equal(_arrays.concrete(value), [1, -1])
    with pytest.raises(ValueError, match="step must be positive and finite"):
        _checks.check_positive("step", value)
    with pytest.raises(ValueError, match="step must be finite and not negative"):
        _checks.check_not_negative("step", value)
    with pytest.raises(ValueError, match="levels must be strictly decreasing"):
        _checks.check_levels("levels", abs(value))


def test_traced_values_are_not():
    @jax.jit
    def run(value):
        assert _arrays.concrete(value) is None
        _checks.check_positive("step", value)
        return value

    assert run(-1.0) == -1.0
    assert _arrays.concrete("one") is None


def test_one_number():
    for value in (1.0, 2, np.float32(3), jnp.ones(())):
        _checks.check_scalar("step", value)
    with pytest.raises(ValueError, match=r"step must be one number, got shape \(2,\)"):
        _checks.check_scalar("step", [0.1, 0.2])


def test_fractions():
    for value in (0.01, np.float32(0.5), jnp.asarray(0.99)):
        _checks.check_fraction("share", value)
    for value in (0.0, 1.0, -0.5, np.nan):
        with pytest.raises(ValueError, match=f"share must be between 0 and 1, got {value}"):
            _checks.check_fraction("share", value)
    with pytest.raises(ValueError, match=r"share must be one number, got shape \(2,\)"):
        _checks.check_fraction("share", [0.1, 0.2])


def test_no_key():
    with pytest.raises(TypeError, match="langevin draws random numbers: pass a key"):
        _checks.check_key("langevin", None)


def test_levels_that_coincide_in_their_dtype_are_refused():
    levels = np.array([1.0 + 1e-12, 1.0])
    with pytest.raises(ValueError, match="levels must be strictly decreasing"):
        _checks.check_levels("levels", levels)
    with jax.enable_x64(True):
        _checks.check_levels("levels", levels)
