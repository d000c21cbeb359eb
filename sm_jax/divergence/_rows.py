"""Whether the rows of a score are independent, as divergences and losses assume."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.typing import ArrayOrList, ScoreFn


def rows_are_independent(score_fn: ScoreFn, x: ArrayOrList, key: jax.Array) -> jax.Array:
    """Return whether each row of the score depends on its own row of ``x`` only.

    The losses and divergences assume this: ``d s_i / d x_j = 0`` for rows ``i != j``. The test
    moves half of the rows along random directions and looks for any first-order change of the other
    rows, for one half after another until every pair of rows has been separated both ways. It
    cannot see a dependence without a derivative at ``x``: one through ``stop_gradient`` or
    rounding, or one that sets in elsewhere.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``.
        x: points ``[B, ...]``, at least two.
        key: a random key.

    Returns:
        A scalar boolean array. Costs ``2 log2(B)`` products with the Jacobian, made one by one.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` has fewer than two rows, or the score another shape.

    Example:
        >>> x = jnp.arange(6.0).reshape(3, 2)
        >>> print(rows_are_independent(lambda x: -x, x, jax.random.key(0)))
        True
        >>> print(rows_are_independent(lambda x: x.mean(0) - x, x, jax.random.key(0)))
        False
    """
    x = _checks.check_data(x)
    if x.shape[0] < 2:
        raise ValueError(f"x must have at least two rows to compare, got shape {x.shape}.")
    direction = jax.random.normal(key, x.shape, x.dtype)
    _, push = jax.linearize(_checks.checked(score_fn, x), x)
    # The places of two rows differ in some bit.
    bits = np.arange(x.shape[0]) >> np.arange((x.shape[0] - 1).bit_length())[:, None] & 1 > 0

    def others_stay(moved):
        moved = _arrays.expand_like(moved, x)
        return jnp.all((push(jnp.where(moved, direction, 0.0)) == 0.0) | moved)

    return jnp.all(compiled(partial(jax.lax.map, others_stay), jnp.concatenate([bits, ~bits])))
