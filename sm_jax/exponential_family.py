r"""Exponential families fitted in closed form: the objective is quadratic in the parameters.

For ``log p(x) = theta' T(x) - A(theta)`` with statistics ``T``, nothing of score matching needs the
normalizer ``A``, and with weights ``h_j(x)`` the (generalized) objective is

    J(theta) = E[sum_j 1/2 h_j (d_j log p)^2 + h_j d_j^2 log p + h_j' d_j log p]        (1)
             = 1/2 theta' K theta + b' theta,
    K = E[sum_j h_j (d_j T) (d_j T)'],    b = E[sum_j h_j d_j^2 T + h_j' d_j T],        (2)
    theta = -K^-1 b,                                                                    (3)

``d_j`` being the derivative by the j-th number of ``x``, and ``h_j' = d_j h_j``.

``h = 1`` is score matching for densities on the whole space. Where the data end at a boundary, at
which the density does not vanish, it is wrong: integration by parts leaves a term there. A weight
that is zero at the boundary removes the term: ``h_j = x_j^2`` for data that are not negative
(Hyvärinen 2007), ``min(x_j, c)`` with less variance (Yu et al. 2019), ``min(x_j - a, b - x_j)`` for
data cut to ``[a, b]``, the distance to the boundary for data in any other region.

The estimate is asymptotically normal, with the covariance

    K^-1 S K^-1 / n,    S = E[g g'],    g = K(x) theta + b(x)    of single examples.    (4)

References: Hyvärinen 2005, https://www.jmlr.org/papers/v6/hyvarinen05a.html and 2007,
https://doi.org/10.1016/j.csda.2006.09.003; Yu, Drton & Shojaie 2019,
https://www.jmlr.org/papers/v20/18-278.html
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax._eager import compiled

__all__ = ["ExponentialFamilyFit", "fit_exponential_family"]


class ExponentialFamilyFit(NamedTuple):
    """Natural parameters of an exponential family, and how well the data determine them.

    Attributes:
        natural_parameters: ``theta [K]``, eq. (3).
        standard_errors: of each, ``[K]``: the roots of the diagonal of ``covariance``.
        covariance: of ``natural_parameters``, ``[K, K]``, eq. (4).
        objective: the objective (1) at its minimum, ``b' theta / 2``, a scalar.
    """

    natural_parameters: jax.Array
    standard_errors: jax.Array
    covariance: jax.Array
    objective: jax.Array


def fit_exponential_family(
    statistics: Callable[[jax.Array], jax.Array],
    x: ArrayLike,
    *,
    weight: Callable[[jax.Array], jax.Array] | None = None,
) -> ExponentialFamilyFit:
    """Fit the natural parameters of an exponential family by score matching, eq. (3).

    For Gaussian data and ``T = (x, x x')`` this is maximum likelihood. Elsewhere it is consistent,
    needs no normalizer, and loses some efficiency.

    Args:
        statistics: ``T``, ``x [B, ...] -> [B, K]``, row i depending on row i only, twice
            differentiable, without a constant among them.
        x: data ``[n, ...]``. Pass float64 where ``K`` is badly conditioned: statistics of very
            different size are no harm, nearly dependent ones are.
        weight: ``h``, ``x [B, ...] -> [B, ...]``, row i depending on row i only, differentiated;
            zero at the boundaries of the support. By default 1, for data on the whole space.

    Returns:
        ``ExponentialFamilyFit(natural_parameters [K], standard_errors [K], covariance [K, K],
        objective)``. Costs two derivatives of the statistics along each axis; memory ``n D K``.

    Raises:
        TypeError: ``x`` or what ``statistics`` return is not floating.
        ValueError: ``x`` is empty, ``statistics`` do not return ``[n, K]``, ``weight`` changes the
            shape; or (where these are not traced) ``x`` is not finite, ``weight`` is negative, the
            statistics have no finite derivatives at the data, or ``K`` is singular: some
            combination of the statistics does not vary over the data.

    Example:
        >>> x = jnp.array([0.5, 1.0, 3.0])  # exponential of rate -theta, on x >= 0
        >>> fit = fit_exponential_family(lambda x: x[:, None], x, weight=lambda x: x**2)
        >>> print(fit.natural_parameters.round(3))  # -2 sum(x) / sum(x^2)
        [-0.878]

    References: Hyvärinen 2007, https://doi.org/10.1016/j.csda.2006.09.003; Yu, Drton & Shojaie
    2019, https://www.jmlr.org/papers/v20/18-278.html
    """
    x = _checks.accumulated(_checks.check_data(x))
    _check_finite(x)
    given = jax.eval_shape(statistics, x)
    if len(given.shape) != 2 or given.shape[0] != x.shape[0]:
        raise ValueError(
            f"statistics must return [n, K], one row for each of the {x.shape[0]} examples, got "
            f"shape {given.shape}."
        )
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(
            f"statistics must return a floating dtype, got {given.dtype}: they are differentiated."
        )
    weight = jnp.ones_like if weight is None else weight
    _check_weight(weight(x), x)

    def along(j):
        """Return ``d_j T`` and ``d_j^2 T``, ``[n, K]`` each, and ``h_j``, ``h_j'``, ``[n, 1]``."""
        e = jax.nn.one_hot(j, _checks.num_dims(x), dtype=x.dtype).reshape((1, *x.shape[1:]))
        e = jnp.broadcast_to(e, x.shape)

        def slope(x):
            return jax.jvp(statistics, (x,), (e,))[1]

        weights = jax.jvp(weight, (x,), (e,))
        picked = (_checks.sum_data_axes(v * e)[:, None] for v in weights)
        return (*jax.jvp(slope, (x,), (e,)), *picked)

    with jax.default_matmul_precision("highest"):
        return _solve(*compiled(partial(jax.lax.map, along), jnp.arange(_checks.num_dims(x))))


def _solve(slopes, bends, h, h_slope) -> ExponentialFamilyFit:
    """Return the fit given the derivatives of the statistics ``[D, n, K]`` and of the weight."""
    n = slopes.shape[1]
    quadratic = jnp.einsum("dnk,dnl->kl", h * slopes, slopes) / n
    each_linear = jnp.sum(h * bends + h_slope * slopes, axis=0)
    linear = each_linear.mean(axis=0)
    _check_regular(quadratic)
    inverse = jnp.linalg.inv(quadratic)
    theta = -inverse @ linear
    gradients = jnp.einsum("dnk,dnl,l->nk", h * slopes, slopes, theta) + each_linear
    covariance = inverse @ (gradients.T @ gradients) @ inverse / n**2
    errors = jnp.sqrt(jnp.diagonal(covariance))
    return ExponentialFamilyFit(theta, errors, covariance, 0.5 * linear @ theta)


def _check_finite(x: jax.Array) -> None:
    """Raise unless the (concrete) data are finite."""
    known = _checks.concrete(x)
    if known is not None and not np.all(np.isfinite(known)):
        rows = np.flatnonzero(~np.isfinite(known).reshape(len(known), -1).all(axis=1))
        raise ValueError(f"x must be finite, rows {rows[:10].tolist()} are not: leave them out.")


def _check_weight(h: jax.Array, x: jax.Array) -> None:
    """Raise unless the weight has the shape of ``x`` and is not negative."""
    if h.shape != x.shape:
        raise ValueError(
            f"weight must return one number for each of x, shape {x.shape}, got shape {h.shape}."
        )
    _checks.check_not_negative("weight(x)", h)


def _check_regular(quadratic: jax.Array) -> None:
    """Raise if the (concrete) matrix ``K`` is not finite or singular to rounding."""
    known = _checks.concrete(quadratic)
    if known is None:
        return
    if not np.all(np.isfinite(known)):
        wrong = np.flatnonzero(~np.isfinite(np.diagonal(known)))
        raise ValueError(
            f"statistics {wrong.tolist()} have no finite derivatives at some of x: look for "
            "logarithms and roots at 0."
        )
    sizes = np.sqrt(np.diagonal(known))
    dead = np.flatnonzero(~(sizes > 0))
    if dead.size:
        raise ValueError(
            f"statistics {dead.tolist()} do not vary with x where the weight is positive: leave "
            "constants out."
        )
    smallest = np.linalg.eigvalsh(known / np.outer(sizes, sizes))[0]
    if smallest < len(known) * np.finfo(known.dtype).eps:
        raise ValueError(
            f"the statistics are linearly dependent over the data (smallest eigenvalue {smallest} "
            "of their scaled matrix K): leave one out, or pass more data, or float64."
        )
