"""Trace-time checks and the two reductions that every module shares.

Shapes and dtypes are checked always; values only where they are concrete, because a traced value
has none. Every message names the offending value and the remedy.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def check_data(x: ArrayLike, name: str = "x") -> jax.Array:
    """Return ``x`` as an array, or raise unless it is a non-empty floating batch ``[B, ...]``."""
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


def as_floating(value: ArrayLike) -> jax.Array:
    """Return ``value`` as an array, integers in the default floating dtype."""
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)


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


def carry_energy(score_fn: Callable, energy_fn: Callable) -> Callable:
    """Return ``score_fn``, the negative gradient of ``energy_fn``, with that as an attribute."""
    score_fn.energy_fn, score_fn.energy_of = energy_fn, score_fn
    return score_fn


def carried_energy(score_fn: Callable) -> Callable | None:
    """Return the energy that ``score_fn`` was given by `carry_energy`, or None.

    ``functools.wraps`` copies attributes to functions with scores of their own: those carry none.
    """
    return score_fn.energy_fn if getattr(score_fn, "energy_of", None) is score_fn else None


def at_noise(score_fn: Callable, t: jax.Array) -> Callable:
    """Return the score function ``x -> score_fn(x, t)``, with the energy that it may carry."""

    def score_at(x):
        return score_fn(x, t)

    energy_fn = carried_energy(score_fn)
    return score_at if energy_fn is None else carry_energy(score_at, lambda x: energy_fn(x, t))


def concrete(value: ArrayLike) -> np.ndarray | None:
    """Return ``value`` as a NumPy array, or None where it is traced or no number."""
    if isinstance(value, jax.core.Tracer):
        return None
    try:
        known = np.asarray(value)
    except (TypeError, ValueError):
        return None
    return known if jnp.issubdtype(known.dtype, jnp.number) else None  # bfloat16 is one too


def spacing(x: jax.Array) -> np.ndarray | None:
    """Return the spacing of floating point numbers at the largest of each row, or None if traced.

    The result is ``[B]``, in float64: the distance of neighbors of ``max_i |x_i|`` in the dtype of
    ``x [B, ...]``.
    """
    known = concrete(x)
    if known is None:
        return None
    largest = np.abs(known.astype(np.float64)).reshape(len(known), -1).max(axis=1)
    info = jnp.finfo(x.dtype)
    spacing = np.ldexp(float(info.eps), np.frexp(largest)[1] - 1)
    return np.maximum(spacing, float(info.smallest_subnormal))


def check_key(name: str, key: jax.Array | None) -> None:
    """Raise if there is no key for something that draws random numbers."""
    if key is None:
        raise TypeError(f"{name} draws random numbers: pass a key, e.g. of jax.random.key(seed).")


def check_scalar(name: str, value: ArrayLike) -> None:
    """Raise unless ``value`` is one number."""
    if np.shape(value) != ():
        raise ValueError(f"{name} must be one number, got shape {np.shape(value)}.")


def check_positive(name: str, value: ArrayLike) -> None:
    """Raise unless every (concrete) entry of ``value`` is finite and above zero."""
    known = concrete(value)
    if known is not None and not (np.all(known > 0) and np.all(np.isfinite(known))):
        raise ValueError(f"{name} must be positive and finite, got {value}.")


def check_not_negative(name: str, value: ArrayLike) -> None:
    """Raise unless every (concrete) entry of ``value`` is finite and at least zero."""
    known = concrete(value)
    if known is not None and not (np.all(known >= 0) and np.all(np.isfinite(known))):
        raise ValueError(f"{name} must be finite and not negative, got {value}.")


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Raise unless ``value`` is a Python integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"{name} must be a Python int (it sets a shape or a loop length), got {value!r}."
        )
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")


def check_per_example(name: str, value: ArrayLike, x: jax.Array) -> jax.Array:
    """Return ``value`` as ``[B]``, float32 at least, or raise unless it is a scalar or ``[B]``."""
    value = jnp.asarray(value, accumulator(x.dtype))
    if value.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} must be a scalar or one number per example, shape {x.shape[:1]}, "
            f"got shape {value.shape}."
        )
    return jnp.broadcast_to(value, x.shape[:1])


def check_levels(name: str, levels: ArrayLike) -> jax.Array:
    """Return noise levels ``[L]``, or raise unless (if concrete) positive, strictly decreasing."""
    shape = np.shape(levels)
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"{name} must be a non-empty vector of noise levels, got shape {shape}.")
    check_positive(name, levels)
    known, levels = concrete(levels), jnp.asarray(levels)
    if known is not None and np.any(np.diff(known.astype(levels.dtype)) >= 0):
        raise ValueError(
            f"{name} must be strictly decreasing, the largest noise first, got {known}: sort it, "
            "e.g. sigmas[::-1]."
        )
    return levels


def expand_like(value: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``value`` (scalar or ``[B]``) with axes of length 1 added to the rank of ``x``."""
    return jnp.reshape(value, value.shape + (1,) * (x.ndim - value.ndim))


def sum_data_axes(x: jax.Array) -> jax.Array:
    """Return the sum over all axes but the first, ``[B]``, accumulated in float32 at least."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)), dtype=accumulator(x.dtype))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype in which sums of ``dtype`` are kept: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def accumulated(x: jax.Array) -> jax.Array:
    """Return ``x`` in the dtype in which its sums are kept."""
    return x.astype(accumulator(x.dtype))


def drawn(source: Callable, key: jax.Array, x: jax.Array) -> jax.Array:
    """Return random numbers of the shape of ``x``, in float32 at least.

    Those that `jax.random` draws in bfloat16 have 128 values: normal ones have the variance 0.993
    and end at 2.9, uniform ones have the mean 0.496.
    """
    return source(key, x.shape, accumulator(x.dtype))


def num_dims(x: jax.Array) -> int:
    """Return the number of numbers in one example of ``x [B, ...]``."""
    return math.prod(x.shape[1:])
