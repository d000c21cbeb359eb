"""Score matching proper (Hyvarinen 2005): the Fisher divergence, explicitly and implicitly.

For data from ``p`` and a model score ``s``, the Fisher divergence and its form without ``p`` are

    F(s) = E_p[1/2 |s(x) - grad log p(x)|^2]                                           (1)
         = E_p[1/2 |s(x)|^2 + tr grad s(x)] + E_p[1/2 |grad log p(x)|^2],              (2)

where (2) follows by partial integration and its last term does not depend on the model.

Reference: Hyvarinen 2005, https://www.jmlr.org/papers/v6/hyvarinen05a.html
"""

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax.divergence import exact
from sm_jax.typing import ArrayOrList, DivergenceFn, ScoreFn


def explicit(score_fn: ScoreFn, x: ArrayOrList, target_score: ArrayOrList) -> jax.Array:
    """Return ``1/2 |s(x) - s*(x)|^2``, the loss of eq. (1), where the true score is known.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        target_score: the score ``s*`` of the data at ``x``, ``[B, ...]``.

    Returns:
        ``[B]``, in nats; its mean over data is the Fisher divergence, with the factor 1/2.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, or the score or the target has another shape.

    Example:
        >>> print(explicit(lambda x: -2.0 * x, jnp.ones((1, 3)), -jnp.ones((1, 3))))
        [1.5]

    Reference: Hyvarinen 2005, eq. 2, https://www.jmlr.org/papers/v6/hyvarinen05a.html
    """
    x = _checks.check_data(x)
    target_score = jnp.asarray(target_score)
    if target_score.shape != x.shape:
        raise ValueError(
            f"target_score must have the shape of x, {x.shape}, got {target_score.shape}."
        )
    error = _checks.check_score(score_fn(x), x) - target_score
    return 0.5 * _arrays.sum_data_axes(_arrays.accumulated(error) ** 2)


def implicit(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array | None = None,
    *,
    divergence: DivergenceFn = exact,
) -> jax.Array:
    """Return ``1/2 |s(x)|^2 + tr grad s(x)``, the loss of eq. (2).

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key, for a stochastic ``divergence``.
        divergence: how the trace is computed: `sm_jax.divergence.exact` (``1 + d`` passes of the
            network), ``functools.partial(hutchinson, num_probes=...)``, ``hutchpp``.

    Returns:
        ``[B]``, in nats; its mean is the Fisher divergence up to a constant of the data.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, or the score has another shape.

    Example:
        >>> print(implicit(lambda x: -x, jnp.ones((1, 3))))
        [-1.5]

    Reference: Hyvarinen 2005, eq. 4, https://www.jmlr.org/papers/v6/hyvarinen05a.html
    """
    x = _checks.check_data(x)
    score, trace = divergence(score_fn, x, key)
    return 0.5 * _arrays.sum_data_axes(_arrays.accumulated(score) ** 2) + trace
