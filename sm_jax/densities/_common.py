"""What every density does with its input: check it, flatten it, bound the memory, go noisy."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.typing import ArrayOrList, ProcessLike

MAX_ELEMENTS = 2**22  # of a temporary array: 16 MB in float32


def apply_rows(
    fn: Callable, x: ArrayOrList, event_shape: tuple[int, ...], dtype: DTypeLike, row_size: int
):
    """Apply ``fn``, a function of one flat event ``[D]``, to each row of ``x [B, *event_shape]``.

    A row needs ``row_size`` temporary elements; rows are taken together up to ``MAX_ELEMENTS``.
    """
    x = _checks.check_data(x)
    if x.shape[1:] != event_shape:
        raise ValueError(
            f"x must have shape (B, {', '.join(map(str, event_shape))}), the event shape of the "
            f"density, got {x.shape}: add a batch axis to a single event, x[None]."
        )
    flat = x.reshape(x.shape[0], math.prod(event_shape))
    flat = flat.astype(_arrays.accumulator(jnp.promote_types(x.dtype, dtype)))
    rows = max(1, MAX_ELEMENTS // row_size)
    if len(flat) <= rows:
        return jax.vmap(fn)(flat)
    return compiled(partial(jax.lax.map, fn, batch_size=rows), flat)


def scale_and_noise(
    process: ProcessLike, t: ArrayLike, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """Return ``alpha(t), sigma(t)`` as scalars of ``dtype``."""
    if np.ndim(t) != 0:
        raise ValueError(
            f"noised takes one scalar time, got t of shape {np.shape(t)}: use jax.vmap over t."
        )
    alpha, sigma = (jnp.asarray(f(t), dtype) for f in (process.alpha, process.sigma))
    _checks.check_not_negative("sigma(t)", sigma)
    return alpha, sigma


def log_normalized(weights: ArrayOrList, num: int, dtype: DTypeLike) -> jax.Array:
    """Return ``log(weights / sum(weights))``, checked to be ``num`` weights."""
    if _arrays.shape(weights) != (num,):
        raise ValueError(
            f"weights must hold one number for each of the {num} components, got shape "
            f"{_arrays.shape(weights)}."
        )
    _checks.check_not_negative("weights", weights)
    known = _arrays.concrete(weights)
    if known is not None and known.sum() == 0:
        raise ValueError(f"weights must not all be zero, got {weights}.")
    weights = jnp.asarray(weights, dtype)
    return jnp.log(weights) - jnp.log(jnp.sum(weights))
