"""Adapter from a Flax NNX module to a pure function and a plain pytree of parameters."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx, traverse_util


def functional(module: nnx.Module) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Split an NNX module into a pure ``apply`` function and its parameters.

    ``apply(params, *args, key=None, **kwargs)`` equals ``module(*args, **kwargs)`` with the
    module's parameters replaced by ``params``. It is pure, so that ``jit``, ``vmap``, ``grad``,
    ``jvp``, ``scan`` and any composition of them work, which they do not on a module that owns
    random state. A ``key`` is turned into ``rngs=nnx.Rngs(dropout=key)`` inside; without one,
    ``rngs`` is not passed at all.

    Args:
        module: any NNX module. What it holds besides ``nnx.Param`` (batch statistics, random state)
            is frozen at its present value: ``apply`` uses it, and drops the updates of it.

    Returns:
        ``(apply, params)``. ``params`` is a nested dict of arrays with string keys, as Optax, Orbax
        and ``jax.tree`` take it. The module itself is neither changed nor needed any longer.

    Raises:
        TypeError: if ``module`` is not an NNX module.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from sm_jax import models
        >>> apply, params = models.functional(models.MLP(2, width=16, depth=1, rngs=nnx.Rngs(0)))
        >>> x, c_noise = jnp.ones((3, 2)), jnp.zeros(3)
        >>> loss = lambda params: ((apply(params, x, c_noise) - x) ** 2).sum()
        >>> print(loss(params), jax.grad(loss)(params)["network"]["outputs"]["bias"])
        6.0 [-6. -6.]

    References:
        The functional API of Flax NNX, https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/graph.html
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"functional takes a flax.nnx.Module, not a {type(module).__name__}; a Linen, Equinox "
            "or Haiku network already has its own apply function"
        )
    graphdef, variables, *rest = nnx.split(module, nnx.Param, ...)
    # Plain arrays, not nnx.Variable: a Variable made outside a transformation is closed to it.
    constants = nnx.as_pure(rest[0])
    flat = dict(nnx.to_flat_state(nnx.as_pure(variables)))
    paths = {tuple(map(str, path)): path for path in flat}
    params = traverse_util.unflatten_dict({name: flat[paths[name]] for name in paths})

    def apply(params, *args, key: jax.Array | None = None, **kwargs):
        arrays = traverse_util.flatten_dict(params)
        state = nnx.from_flat_state({paths[name]: array for name, array in arrays.items()})
        if key is not None:
            kwargs["rngs"] = nnx.Rngs(dropout=key)
        return nnx.merge(graphdef, state, constants)(*args, **kwargs)

    return apply, params
