"""Training state: parameters, their average, the optimizer, step and key, as a pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class State(NamedTuple):
    """Everything that a training step reads and writes.

    Attributes:
        params: the parameters theta, any pytree of floating arrays.
        ema: their exponential moving average, of the same structure, in float32 at least.
        opt_state: the state of the Optax optimizer.
        step: the number of updates made so far, an int32 scalar.
        key: the key of the run. It never changes: step n draws from ``fold_in(key, n)``.
    """

    params: Any
    ema: Any
    opt_state: Any
    step: Array
    key: Array


def init(params: Any, optimizer: optax.GradientTransformation, key: Array) -> State:
    """Return the state before the first step, ``ema = params``.

    The average is kept in float32 at least: with a decay of 0.999 every update of a bfloat16
    average would be rounded away.

    Args:
        params: any pytree of floating arrays.
        optimizer: an Optax optimizer.
        key: the key of the run.

    Returns:
        A ``State`` at step 0, which shares no buffer with itself (so that it may be donated); its
        ``params`` are the arrays passed in.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> state = init({"w": jnp.ones(3)}, optax.sgd(0.1), jax.random.key(0))
        >>> int(state.step)
        0
    """
    params = jax.tree.map(jnp.asarray, params)
    return State(
        params=params,
        ema=jax.tree.map(lambda p: jnp.array(p, ema_dtype(p.dtype), copy=True), params),
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        key=key,
    )


def widened(tree: Any) -> Any:
    """Return a pytree of floating arrays in float32 at least, for sums over it."""
    return jax.tree.map(lambda x: x.astype(ema_dtype(x.dtype)), tree)


def ema_dtype(dtype: Any) -> Any:
    """Return the dtype in which parameters of the given dtype are averaged."""
    return jnp.promote_types(dtype, jnp.float32)
