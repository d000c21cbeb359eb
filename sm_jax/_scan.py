"""What all samplers share: their type, the score as they see it, and the loop.

The state is kept in float32 at least: in bfloat16 a step of Langevin dynamics is often less than
half a unit in the last place of ``x``, which would not move. The score sees the state in the dtype
of the data, and so do the results.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, cast

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.typing import Sampler

_P = ParamSpec("_P")


def sampler(
    function: Callable[_P, jax.Array | tuple[jax.Array, jax.Array]],
) -> Sampler[_P]:
    """Return ``function`` itself; a type checker knows from ``trajectory`` what it returns."""
    return cast(Sampler[_P], function)


def wide(score_fn: Callable, x: jax.Array) -> Callable:
    """Return ``score_fn`` from and to float32 at least, checked against ``x`` at every call."""
    checked = _checks.checked(score_fn, x)
    return lambda y, *t: _arrays.accumulated(checked(y.astype(x.dtype), *t))


def run(
    step: Callable,
    x: jax.Array,
    inputs: Any,
    finish: Callable | None = None,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Scan ``x = step(x, input)`` over ``inputs``, then apply ``finish``.

    The trajectory ``[num_steps + 1, B, ...]`` holds the start and every iterate, before ``finish``.
    The steps are in float32 at least, ``x`` and the results in the dtype of ``x``.
    """
    start = _arrays.accumulated(x)

    def body(state, given):
        state = step(state, given).astype(start.dtype)
        return state, state.astype(x.dtype) if trajectory else None

    def loop(x, start, inputs):
        last, iterates = jax.lax.scan(body, start, inputs)
        result = (last if finish is None else finish(last)).astype(x.dtype)
        return (result, jnp.concatenate([x[None], iterates])) if trajectory else result

    return compiled(loop, x, start, inputs)
