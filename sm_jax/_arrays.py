"""Arithmetic that every module shares: dtypes of sums, sums over an event, concrete values."""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sm_jax.typing import ArrayOrList


def as_floating(value: ArrayOrList) -> jax.Array:
    """Return ``value`` as an array, integers in the default floating dtype."""
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)


def concrete(value: ArrayOrList) -> np.ndarray | None:
    """Return ``value`` as a NumPy array, or None where it is traced or no number."""
    if isinstance(value, jax.core.Tracer):
        return None
    try:
        known = np.asarray(value)
    except (TypeError, ValueError):
        return None
    return known if jnp.issubdtype(known.dtype, jnp.number) else None  # bfloat16 is one too


def all_concrete(values: Iterable[ArrayOrList]) -> list[np.ndarray] | None:
    """Return all ``values`` as NumPy arrays, or None where one of them is traced or no number."""
    found = [concrete(value) for value in values]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def shape(value: ArrayOrList) -> tuple[int, ...]:
    """Return the shape of ``value``, traced or not."""
    return np.shape(value)  # type: ignore[arg-type]  # NumPy's stubs name nested lists otherwise


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


def expand_like(value: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``value`` (scalar or ``[B]``) with axes of length 1 added to the rank of ``x``."""
    return jnp.reshape(value, value.shape + (1,) * (x.ndim - value.ndim))


def sum_data_axes(x: jax.Array) -> jax.Array:
    """Return the sum over all axes but the first, ``[B]``, accumulated in float32 at least."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)), dtype=accumulator(x.dtype))


def accumulator(dtype: DTypeLike) -> jnp.dtype:
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
