"""Products with the Jacobian of a score: written out, or made one by one and rematerialized."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sm_jax import _checks
from sm_jax._eager import compiled
from sm_jax._laplacian import directional_derivatives
from sm_jax.parameterization import EnergyScore

# Up to this many products are written out rather than looped over. For few the loop costs more than
# the memory that it saves; and on CPU, XLA runs convolutions within loops tens of times slower, so
# events with several axes, as convolutional networks have them, write out more.
_UNROLLED, _UNROLLED_IMAGES = 3, 16


def mapped(function: Callable, inputs: jax.Array, chunk: int | None, num_axes: int) -> jax.Array:
    """Return ``function`` of each input, rematerialized, ``chunk`` at a time.

    ``num_axes`` is the rank of one event.
    """
    if is_unrolled(len(inputs), chunk, num_axes):
        return jnp.stack([function(row) for row in inputs])
    one = jax.checkpoint(function, prevent_cse=False)
    return compiled(partial(jax.lax.map, one, batch_size=chunk), inputs)


def energy_derivatives(
    energy_score: EnergyScore, x: jax.Array, vector: Callable, seeds: jax.Array, chunk: int | None
):
    """Return slopes ``[K, B]`` and summed curvatures ``[B]`` along vectors, or None."""
    # A new function at each call: JAX would remember the trace of an energy that has changed.
    return directional_derivatives(
        lambda x: _checks.check_energy(energy_score.energy_fn(x), x),
        x,
        vector,
        seeds,
        chunk=chunk,
        unroll=is_unrolled(len(seeds), chunk, x.ndim - 1),
    )


def is_unrolled(num: int, chunk: int | None, num_axes: int) -> bool:
    if chunk is not None:
        _checks.check_count("chunk", chunk)
        return False
    return num <= (_UNROLLED_IMAGES if num_axes > 1 else _UNROLLED)
