r"""Score matching of exponential families in closed form: a quadratic objective.

For ``log p(x) = theta' T(x) - A(theta)`` with statistics ``T``, score matching does not need the
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

(3) is solved with the statistics scaled to unit size, ``K_kk = 1``. Nearly dependent statistics,
such as ``x`` and ``x^2`` of data far from zero, make ``K`` badly conditioned: rounding errors of
(2) are multiplied by one over its smallest eigenvalue, errors of the derivatives, squared, too.

The estimate is asymptotically normal, with the covariance

    K^-1 S K^-1 / n,    S = E[g g'],    g = K(x) theta + b(x)    of single examples.    (4)

References: Hyvärinen 2005, https://www.jmlr.org/papers/v6/hyvarinen05a.html and 2007,
https://doi.org/10.1016/j.csda.2006.09.003; Yu, Drton & Shojaie 2019,
https://www.jmlr.org/papers/v20/18-278.html
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.typing import ArrayOrList

__all__ = ["ExponentialFamilyFit", "fit_exponential_family"]


class ExponentialFamilyFit(NamedTuple):
    """Natural parameters of an exponential family, and how well the data determine them.

    Attributes:
        natural_parameters: ``theta = -K^-1 b``, ``[K]``.
        standard_errors: of each, ``[K]``: the roots of the diagonal of ``covariance``.
        covariance: of ``natural_parameters``, ``K^-1 S K^-1 / n [K, K]``.
        objective: the objective at its minimum, ``b' theta / 2``, a scalar.
    """

    natural_parameters: jax.Array
    standard_errors: jax.Array
    covariance: jax.Array
    objective: jax.Array


def fit_exponential_family(
    statistics: Callable[[jax.Array], jax.Array],
    x: ArrayOrList,
    *,
    weight: Callable[[jax.Array], jax.Array] | None = None,
) -> ExponentialFamilyFit:
    """Fit the natural parameters of an exponential family by score matching, in closed form.

    For ``log p(x) = theta' T(x) - A(theta)`` and weights ``h_j``, ``d_j`` the derivative by the
    j-th number of ``x`` and ``E`` the mean over the data, the minimizer of the generalized score
    matching objective is

        theta = -K^-1 b,
        K = E[sum_j h_j (d_j T) (d_j T)'],    b = E[sum_j h_j d_j^2 T + (d_j h_j) d_j T],

    with the covariance ``K^-1 S K^-1 / n``, ``S`` the mean of ``g g'``, ``g = K(x) theta + b(x)``
    of single examples. For Gaussian data and ``T = (x, x x')`` this is maximum likelihood. For
    others it is consistent, needs no normalizer, and loses some efficiency.

    Args:
        statistics: ``T``, ``x [B, ...] -> [B, K]``, row i depending on row i only, twice
            differentiable, without a constant among them.
        x: data ``[n, ...]``. Statistics may differ much in size, but must not be nearly dependent.
            Where ``x`` is not traced, the derivatives are taken in its dtype and the rest in
            float64: ``x`` and ``x^2`` of float32 data may lie 3e5 standard deviations from zero,
            of float64 data 1e10. Under ``jit`` all is done in the default floating dtype: 300 in
            float32. Center and scale data that lie further out.
        weight: ``h``, ``x [B, ...] -> [B, ...]``, row i depending on row i only, differentiated;
            zero at the boundaries of the support. By default 1, for data on the whole space.

    Returns:
        ``ExponentialFamilyFit(natural_parameters [K], standard_errors [K], covariance [K, K],
        objective)``. Costs two derivatives of the statistics along each axis; memory ``n D K``.

    Raises:
        TypeError: ``x`` or what ``statistics`` return is not floating.
        ValueError: ``x`` is empty, ``statistics`` do not return ``[n, K]``, ``weight`` changes the
            shape; or (where these are not traced) ``x`` is not finite, ``weight`` is negative, the
            statistics have no finite derivatives at the data, or ``K`` is singular to rounding:
            some combination of the statistics does not vary over the data, or hardly. Under
            ``jit`` such a fit is NaN. Also if there are more statistics than numbers in ``x``.

    Example:
        >>> x = jnp.array([0.5, 1.0, 3.0])  # exponential of rate -theta, on x >= 0
        >>> fit = fit_exponential_family(lambda x: x[:, None], x, weight=lambda x: x**2)
        >>> print(fit.natural_parameters.round(3))  # -2 sum(x) / sum(x^2)
        [-0.878]

    References: Hyvärinen 2007, https://doi.org/10.1016/j.csda.2006.09.003; Yu, Drton & Shojaie
    2019, https://www.jmlr.org/papers/v20/18-278.html
    """
    x = _arrays.accumulated(_checks.check_data(x))
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
        e = jax.nn.one_hot(j, _arrays.num_dims(x), dtype=x.dtype).reshape((1, *x.shape[1:]))
        e = jnp.broadcast_to(e, x.shape)

        def slope(x):
            return jax.jvp(statistics, (x,), (e,))[1]

        weights = jax.jvp(weight, (x,), (e,))
        picked = (_arrays.sum_data_axes(v * e)[:, None] for v in weights)
        return (*jax.jvp(slope, (x,), (e,)), *picked)

    tables = compiled(partial(jax.lax.map, along), jnp.arange(_arrays.num_dims(x)))
    known = _arrays.all_concrete(tables)
    xp: ModuleType = jnp if known is None else np
    tables = [table.astype(float) for table in (tables if known is None else known)]
    with jax.default_matmul_precision("highest"):
        fit = _solve(xp, *tables, precision=float(jnp.finfo(x.dtype).eps))
    return ExponentialFamilyFit(*(jnp.asarray(value, x.dtype) for value in fit))


def _solve(xp, slopes, bends, h, h_slope, *, precision: float):
    """Return the four results given the derivatives of the statistics ``[D, n, K]`` and of ``h``.

    ``xp`` is NumPy or `jax.numpy`, ``precision`` the relative rounding error of the derivatives.
    """
    n, num = slopes.shape[1:]
    if xp is np:
        _check_finite_derivatives(slopes, bends)
    flat = (xp.sqrt(h) * slopes).reshape(-1, num)
    if len(flat) < num:
        raise ValueError(
            f"{num} statistics are linearly dependent over n D = {len(flat)} numbers: pass more "
            "data."
        )
    sizes = xp.sqrt((flat**2).mean(axis=0) * (len(flat) / n))
    if xp is np:
        _check_constants(sizes)
    # K = S R' R S with S = diag(sizes): forming K itself would square the condition of the rows.
    triangle = xp.linalg.qr(flat / (sizes * n**0.5)[None], mode="r")
    smallest = xp.linalg.svd(triangle, compute_uv=False)[-1] ** 2
    limit = 100 * num * max(precision, 1e3 * float(xp.finfo(slopes.dtype).eps)) ** 2
    if xp is np:
        _check_regular(smallest, limit)
    else:
        sizes = xp.where(smallest > limit, sizes, xp.nan)

    root = xp.linalg.inv(triangle) / sizes[:, None]  # K^-1 = root root'
    each_linear = xp.sum(h * bends + h_slope * slopes, axis=0)
    linear = each_linear.mean(axis=0)
    theta = -root @ (root.T @ linear)
    gradients = xp.sum(h * slopes * (slopes @ theta)[..., None], axis=0) + each_linear
    influences = (gradients @ root) @ root.T
    covariance = influences.T @ influences / n**2
    return theta, xp.sqrt(xp.diagonal(covariance)), covariance, 0.5 * linear @ theta


def _check_finite(x: jax.Array) -> None:
    """Raise unless the (concrete) data are finite."""
    known = _arrays.concrete(x)
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


def _check_finite_derivatives(slopes: np.ndarray, bends: np.ndarray) -> None:
    """Raise unless the derivatives of all statistics, ``[D, n, K]``, are finite."""
    finite = (np.isfinite(slopes) & np.isfinite(bends)).all(axis=(0, 1))
    if not finite.all():
        raise ValueError(
            f"statistics {np.flatnonzero(~finite).tolist()} have no finite derivatives at some of "
            "x: look for logarithms and roots at 0."
        )


def _check_constants(sizes: np.ndarray) -> None:
    """Raise if a statistic has no derivative where the weight is positive."""
    dead = np.flatnonzero(~(sizes > 0))
    if dead.size:
        raise ValueError(
            f"statistics {dead.tolist()} do not vary with x where the weight is positive: leave "
            "constants out."
        )


def _check_regular(smallest: float, limit: float) -> None:
    """Raise if the scaled matrix ``K`` is singular to rounding."""
    if smallest < limit:
        raise ValueError(
            "the statistics are linearly dependent over the data, up to rounding: the smallest "
            f"eigenvalue of their scaled matrix K is {smallest:.3g}, the least allowed is "
            f"{limit:.3g}. Center and scale x, leave a statistic out, or pass more data or float64."
        )
