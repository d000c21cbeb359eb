"""The loop that every sampler runs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def run(
    step: Callable, x: jax.Array, inputs, finish: Callable | None, trajectory: bool
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Scan ``x = step(x, input)`` over ``inputs``, apply ``finish``; return ``x`` or ``(x, path)``.

    The path ``[num_steps + 1, B, ...]`` holds the start and every iterate, before ``finish``.
    """

    def body(state, given):
        state = step(state, given).astype(x.dtype)
        return state, state if trajectory else None

    last, iterates = jax.lax.scan(body, x, inputs)
    result = last if finish is None else finish(last).astype(x.dtype)
    return (result, jnp.concatenate([x[None], iterates])) if trajectory else result
