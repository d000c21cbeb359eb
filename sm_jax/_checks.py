"""Checks of arguments, at trace time.

Shapes and dtypes are checked always; values only where they are concrete, because a traced value
has none. Every message names the offending value.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays
from sm_jax.typing import ArrayOrList


def check_data(x: ArrayOrList, name: str = "x") -> jax.Array:
    """Return ``x`` as an array, or raise unless it is a non-empty floating batch ``[B, ...]``."""
    check_unmasked(x, name)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} must have a floating dtype, got {x.dtype}: convert it, e.g. "
            f"{name}.astype(jnp.float32)."
        )
    if x.ndim == 0:
        raise ValueError(f"{name} must be a batch [B, ...], got a scalar: add a leading axis.")
    if x.size == 0:
        raise ValueError(f"{name} is empty, shape {x.shape}: pass at least one example.")
    return x


def check_unmasked(x: ArrayOrList, name: str = "x") -> None:
    """Raise where ``x`` is an array of `numpy.ma` with masked values, which would lose its mask."""
    if np.ma.is_masked(x):
        raise ValueError(
            f"{name} has {np.ma.count_masked(x)} masked values, and JAX arrays have no masks: "
            "leave their rows out, e.g. np.ma.compress_rows(x), or fill them, x.filled(value)."
        )


def check_score(score: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``score``, or raise unless it has the shape and dtype of ``x``."""
    if not hasattr(score, "shape") or score.shape != x.shape:
        raise ValueError(
            f"score_fn must return the shape of x, {x.shape}, got "
            f"{getattr(score, 'shape', type(score).__name__)}: it maps [B, ...] to [B, ...] "
            "(wrap an unbatched model in jax.vmap)."
        )
    if score.dtype != x.dtype:
        raise TypeError(
            f"score_fn must return the dtype of x, {x.dtype}, got {score.dtype}: "
            "cast its output, or x."
        )
    return score


def check_energy(energy: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``energy``, or raise unless it is one number per row of ``x``."""
    if energy.shape != x.shape[:1]:
        raise ValueError(
            f"energy_fn must return one number per example, shape {x.shape[:1]}, got "
            f"{energy.shape}: drop trailing axes, e.g. energy[..., 0]."
        )
    return energy


def checked(score_fn: Callable, x: jax.Array) -> Callable:
    """Return ``score_fn`` with its output checked against ``x`` at every call."""
    return lambda y, *args: check_score(score_fn(y, *args), x)


def check_key(name: str, key: jax.Array | None) -> None:
    """Raise if there is no key for something that draws random numbers."""
    if key is None:
        raise TypeError(f"{name} draws random numbers: pass a key, e.g. of jax.random.key(seed).")


def check_scalar(name: str, value: ArrayOrList) -> None:
    """Raise unless ``value`` is one number."""
    if _arrays.shape(value) != ():
        raise ValueError(f"{name} must be one number, got shape {_arrays.shape(value)}.")


def check_positive(name: str, value: ArrayOrList) -> None:
    """Raise unless every (concrete) entry of ``value`` is finite and above zero."""
    known = _arrays.concrete(value)
    if known is not None and not (np.all(known > 0) and np.all(np.isfinite(known))):
        raise ValueError(f"{name} must be positive and finite, got {value}.")


def check_not_negative(name: str, value: ArrayOrList) -> None:
    """Raise unless every (concrete) entry of ``value`` is finite and at least zero."""
    known = _arrays.concrete(value)
    if known is not None and not (np.all(known >= 0) and np.all(np.isfinite(known))):
        raise ValueError(f"{name} must be finite and not negative, got {value}.")


def check_fraction(name: str, value: ArrayOrList) -> None:
    """Raise unless ``value`` is one (if concrete) number strictly between 0 and 1."""
    check_scalar(name, value)
    known = _arrays.concrete(value)
    if known is not None and not 0.0 < known < 1.0:
        raise ValueError(f"{name} must be between 0 and 1, got {value}.")


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Raise unless ``value`` is a Python integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"{name} must be a Python int (it sets a shape or a loop length), got {value!r}."
        )
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")


def check_per_example(name: str, value: ArrayOrList, x: jax.Array) -> jax.Array:
    """Return ``value`` as ``[B]``, float32 at least, or raise unless it is a scalar or ``[B]``."""
    value = jnp.asarray(value, _arrays.accumulator(x.dtype))
    if value.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} must be a scalar or one number per example, shape {x.shape[:1]}, "
            f"got shape {value.shape}."
        )
    return jnp.broadcast_to(value, x.shape[:1])


def check_interval(name: str, interval: tuple[ArrayLike, ArrayLike]) -> None:
    """Raise unless ``interval`` is (if concrete) two numbers ``low < high``."""
    if len(interval) != 2:
        raise ValueError(f"{name} must be (low, high), got {interval}.")
    known = _arrays.all_concrete(interval)
    if known is not None and not known[0] < known[1]:
        raise ValueError(f"{name} must be (low, high) with low < high, got {interval}.")


def key_for(name: str, value: ArrayOrList, key: jax.Array | None) -> jax.Array | None:
    """Return the key if noise of size ``value`` is drawn, None if that is 0; raise without one."""
    if _arrays.concrete(value) == 0.0:  # a traced value may be any
        return None
    if key is None:
        raise ValueError(f"{name}={value} draws noise: pass a key, or {name}=0.")
    return key


def check_levels(name: str, levels: ArrayOrList) -> jax.Array:
    """Return noise levels ``[L]``, or raise unless (if concrete) positive, strictly decreasing."""
    shape = _arrays.shape(levels)
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"{name} must be a non-empty vector of noise levels, got shape {shape}.")
    check_positive(name, levels)
    known, levels = _arrays.concrete(levels), jnp.asarray(levels)
    if known is not None and np.any(np.diff(known.astype(levels.dtype)) >= 0):
        raise ValueError(
            f"{name} must be strictly decreasing, the largest noise first, got {known}: sort it, "
            "e.g. sigmas[::-1]."
        )
    return levels
