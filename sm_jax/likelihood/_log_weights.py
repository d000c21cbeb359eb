"""Logarithms of means of weights, with their errors by the delta method.

For weights ``w_i``, ``i = 1 .. n``, the estimate and how much each draw moves it are

    log mean(w),    w_i / mean(w) - 1,                                                 (1)

and the standard deviation of the latter over ``sqrt(n)`` is the standard error of the former.
"""

import jax
import jax.numpy as jnp


def log_mean(log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return ``log mean(w)`` and the influence ``w / mean(w) - 1`` of each draw, ``[n]``."""
    value = jax.nn.logsumexp(log_weights) - jnp.log(float(log_weights.shape[0]))
    return value, jnp.exp(log_weights - value) - 1.0


def error_of_mean(draws: jax.Array, axis: int = 0) -> jax.Array:
    """Return the standard error of the mean of independent draws along an axis."""
    n = jnp.asarray(draws.shape[axis], draws.dtype)
    return draws.std(axis=axis, ddof=1) / jnp.sqrt(n)
