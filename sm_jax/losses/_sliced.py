"""Sliced score matching: the implicit loss projected on random directions ``v``, ``E[v v'] = I``.

    L(s) = E[v' (grad s) v + 1/2 (v' s)^2]        plain,                               (1)
    L(s) = E[v' (grad s) v + 1/2 |s|^2]           variance reduced,                    (2)
    v' (grad s) v = v' (s(x + h v) - s(x - h v)) / (2 h) + O(h^2).                     (3)

Both are unbiased for the implicit loss. With (3) no derivative of the network in ``x`` is taken.

References: Song et al. 2019, https://arxiv.org/abs/1905.07088 (eqs. 7 and 8); Pang et al. 2020,
https://arxiv.org/abs/2007.03317
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax.divergence import draw_probes, mean_quadratic_form
from sm_jax.typing import RandomFn, ScoreFn


def sliced(
    score_fn: ScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
    variance_reduced: bool = True,
) -> jax.Array:
    """Return ``v' (grad s) v + 1/2 |s|^2``, eq. (2), or with ``1/2 (v' s)^2``, eq. (1).

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        num_probes: directions per example, averaged.
        probe: ``(key, shape [B, ...], dtype) -> v``, with identity covariance: Rademacher,
            ``jax.random.normal``, `sm_jax.divergence.sphere`.
        variance_reduced: eq. (2) rather than eq. (1); the latter for comparison only.

    Returns:
        ``[B]``, in nats: an unbiased estimate of the implicit loss, in about ``1 + num_probes``
        passes of the network.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or ``num_probes < 1``.

    Example:
        >>> print(sliced(lambda x: -x, jnp.ones((1, 3)), jax.random.key(0)))
        [-1.5]

    Reference: Song et al. 2019, https://arxiv.org/abs/1905.07088
    """
    x = _checks.check_data(x)
    probes = draw_probes(key, x, num_probes, probe)
    score, form = mean_quadratic_form(score_fn, x, probes)
    return form + _half_square(score, probes, variance_reduced)


def finite_difference_sliced(
    score_fn: ScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    epsilon: ArrayLike,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
    variance_reduced: bool = True,
) -> jax.Array:
    """Return the sliced loss with central differences, eq. (3), instead of derivatives.

    The score at ``x`` is the mean of the two that the difference takes, so each probe costs two
    passes of the network and nothing else.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        epsilon: step ``h`` along the probe, in units of the data. The bias is ``O(h^2)``, rounding
            costs about ``1e-7 |s| |v| / h`` in float32: 1e-2 of the scale of the data is a fair
            choice.
        num_probes: directions per example, averaged.
        probe: as in `sliced`.
        variance_reduced: as in `sliced`.

    Returns:
        ``[B]``, in nats.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_probes < 1``, or ``epsilon``
            is not positive.

    Example:
        >>> x, key = jnp.ones((1, 3)), jax.random.key(0)
        >>> loss = finite_difference_sliced(lambda x: -x, x, key, epsilon=0.5)
        >>> print(loss)
        [-1.5]

    Reference: Pang et al. 2020, https://arxiv.org/abs/2007.03317
    """
    x = _checks.check_data(x)
    _checks.check_positive("epsilon", epsilon)
    probes = draw_probes(key, x, num_probes, probe)
    step = jnp.asarray(epsilon, x.dtype)

    def one(v):
        ahead = _checks.accumulated(_checks.check_score(score_fn(x + step * v), x))
        behind = _checks.accumulated(_checks.check_score(score_fn(x - step * v), x))
        form = _checks.sum_data_axes(v * (ahead - behind)) / (2.0 * step)
        return form + _half_square(0.5 * (ahead + behind), v[None], variance_reduced)

    return jnp.mean(jnp.stack([one(v) for v in probes]), axis=0)


def _half_square(score: jax.Array, probes: jax.Array, variance_reduced: bool) -> jax.Array:
    """Return ``1/2 |s|^2``, or the mean over probes of ``1/2 (v' s)^2``: ``[B]``."""
    score = _checks.accumulated(score)
    if variance_reduced:
        return 0.5 * _checks.sum_data_axes(score**2)
    projections = jax.vmap(lambda v: _checks.sum_data_axes(v * score))(probes)
    return 0.5 * jnp.mean(projections**2, axis=0)
