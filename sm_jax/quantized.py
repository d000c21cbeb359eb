r"""Scores of quantized data: the posterior of their values, predicted by a network.

Dequantized data are uniform within known cells (see sm_jax.data.dequantize). At low noise their
score changes within a fraction of a cell, which a smooth network learns badly. So let the network
predict log-weights ``l_k`` of the cells ``[e_k, e_{k+1}]`` of every number, given all the noised
numbers, and let the score follow exactly. With ``y = x_t / alpha``, ``r = sigma / alpha``,
``a_k = (e_k - y) / r``, and ``phi``, ``Phi`` the standard normal density and distribution function,

    p(x_0) = sum_k softmax(l)_k U(x_0; e_k, e_{k+1})    prior of one number,            (1)
    m_k = Phi(a_{k+1}) - Phi(a_k),    w_k = q_k / sum_j q_j m_j,    q_k = e^{l_k} / (e_{k+1} - e_k),
    E[(x_0 - y) / r | y] = sum_k w_k (phi(a_k) - phi(a_{k+1})) = -eps = sigma s,        (2)

the last being the noise prediction and the score. The prediction of ``x_0``, ``y - r eps``,
lies within the range of the data by construction.

With the moments ``M_n = E[((x_0 - y) / r)^n | y]`` the derivatives are those of a posterior mean:
``d M_1 / d l_k = w_k m_k (mean within the cell - M_1)``, ``dM_1 / dy = (M_2 - M_1^2 - 1) / r``,
``dM_1 / dr = (M_3 - M_1 M_2 - M_1) / r`` and, with ``q`` fixed,
``dM_1 / de_k = (w_{k-1} - w_k) (a_k - M_1) phi(a_k) / r``. They are written out below, for speed
and because no single ``m_k``, which may underflow, is divided by.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.processes import data_mean, marginal_std, noise_ratio
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ProcessLike

__all__ = ["eps_from_logits", "precondition", "uniform_bin_edges"]

# Further than this many standard deviations of the noise outside the range of the data, the
# prediction of x_0 stays what it is there: beyond, the masses of all cells underflow. A sample gets
# there with probability 1e-8 per number.
_FAR = 5.6

# Nodes and weights of Gauss's rule on [-1, 1].
_RULE = [(float(s), float(w)) for s, w in zip(*np.polynomial.legendre.leggauss(5), strict=True)]


def uniform_bin_edges(num_values: int) -> jax.Array:
    """Return the edges of the cells that `sm_jax.data.dequantize` makes of ``0 .. num_values - 1``.

    Args:
        num_values: ``K``, the number of values.

    Returns:
        ``[K + 1]``, from -1 to 1.

    Raises:
        ValueError: ``num_values < 1``.

    Example:
        >>> print(uniform_bin_edges(4))
        [-1.  -0.5  0.   0.5  1. ]
    """
    _checks.check_count("num_values", num_values)
    return jnp.linspace(-1.0, 1.0, num_values + 1)


def eps_from_logits(
    logits: ArrayOrList,
    x: ArrayOrList,
    t: ArrayOrList,
    *,
    process: ProcessLike,
    bin_edges: ArrayOrList,
) -> jax.Array:
    """Return the noise prediction ``eps = E[z | x_t]`` of data with given weights of their values.

    With ``l = logits``, ``e = bin_edges``, ``y = x_t / alpha``, ``r = sigma / alpha``,
    ``a_k = (e_k - y) / r``, and ``phi``, ``Phi`` the standard normal density and distribution
    function, every number has

        eps = -sum_k q_k (phi(a_k) - phi(a_{k+1})) / sum_k q_k (Phi(a_{k+1}) - Phi(a_k)),
        q_k = exp(l_k) / (e_{k+1} - e_k).

    Args:
        logits: log-weights of the cells for every number of ``x``, ``[B, ..., K]``, up to a
            constant.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.
        bin_edges: increasing edges of the cells ``[K + 1]``, in units of the data.

    Returns:
        ``[B, ...]``, of unit scale: the exact ``E[z | x_t]`` if the numbers of ``x_0`` were
        independent with these weights, up to 5.6 ``r`` outside the range of the data. Beyond, the
        prediction of ``x_0``, ``(x_t - sigma eps) / alpha``, is kept constant. Cells more than 13
        ``r`` away (37 in float64) count as impossible, which needs logits 85 apart to matter.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``bin_edges`` are not an increasing vector, or the logits have another shape.

    Example:
        >>> from sm_jax import processes
        >>> eps = eps_from_logits(
        ...     jnp.zeros((1, 1, 2)), jnp.zeros((1, 1)), 1.0, process=processes.VE(),
        ...     bin_edges=uniform_bin_edges(2))
        >>> print(jnp.abs(eps).round(3))
        [[0.]]
    """
    x = _checks.check_data(x)
    t = _checks.check_per_example("t", t, x)
    bin_edges, logits = _check_edges(bin_edges), _arrays.as_floating(logits)
    shape = (*x.shape, bin_edges.shape[0] - 1)
    if logits.shape != shape:
        raise ValueError(
            f"logits must have the shape of x and one number per cell, {shape}, got {logits.shape}."
        )
    y = _arrays.accumulated(x) / _arrays.expand_like(process.alpha(t), x)
    r = jnp.broadcast_to(_arrays.expand_like(noise_ratio(process, t), x), x.shape)
    near = jnp.clip(y, bin_edges[0] - _FAR * r, bin_edges[-1] + _FAR * r)
    logits = _arrays.accumulated(logits) - jnp.log(jnp.diff(bin_edges)).reshape(
        (1,) * x.ndim + (-1,)
    ).astype(y.dtype)
    eps = (y - near) / r - _first_moment(logits, near, r, bin_edges.astype(y.dtype))
    return eps.astype(x.dtype)


def precondition(
    network: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    process: ProcessLike,
    bin_edges: ArrayOrList,
    sigma_data: ArrayLike,
) -> NoiseScoreFn:
    """Return the score function of a network that predicts log-weights of values, for any process.

        s(x_t, t) = -eps / sigma,    eps = eps_from_logits(F(y / (k / alpha), log(r) / 4), x_t, t),
        y = x_t / alpha - m,    r = sigma / alpha,    k = sqrt(alpha^2 d^2 + sigma^2)

    with ``F`` the network, ``d = sigma_data`` and ``m`` the mean of the process. The inputs and the
    noise labels are those of `sm_jax.parameterization.precondition`, in whose place this stands.

    Args:
        network: maps inputs ``[B, ...]`` of unit scale and noise labels ``[B]`` to log-weights
            ``[B, ..., K]``.
        process: any process; its ``mean``, that of the data, is zero if it has none.
        bin_edges: increasing edges of the cells ``[K + 1]``, e.g. `uniform_bin_edges`.
        sigma_data: standard deviation of the data, one number, as there.

    Returns:
        A score function ``(x_t [B, ...], t [B]) -> [B, ...]``.

    Raises:
        TypeError: at a call, if ``x_t`` is not floating.
        ValueError: ``sigma_data`` is not one positive number, ``bin_edges`` are not an increasing
            vector, or (at the first call) the network returns another shape.

    Example:
        >>> from sm_jax import processes
        >>> score_fn = precondition(
        ...     lambda x, c: jnp.zeros((*x.shape, 4)), process=processes.VE(),
        ...     bin_edges=uniform_bin_edges(4), sigma_data=0.5)
        >>> print(jnp.abs(score_fn(jnp.zeros((1, 2)), jnp.array([2.0]))).round(3))
        [[0. 0.]]
    """
    _checks.check_scalar("sigma_data", sigma_data)
    _checks.check_positive("sigma_data", sigma_data)
    _check_edges(bin_edges)

    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        x = _checks.check_data(x)
        t = _checks.check_per_example("t", t, x)
        ratio = noise_ratio(process, t)
        alpha, sigma = (_arrays.expand_like(c(t), x) for c in (process.alpha, process.sigma))
        y = _arrays.accumulated(x) / alpha
        y = y - data_mean(process, x.shape[1:], y.dtype)[None]
        scale = _arrays.expand_like(marginal_std(process, t, sigma_data), x) / alpha
        logits = network((y / scale).astype(x.dtype), 0.25 * jnp.log(ratio))
        eps = eps_from_logits(logits, x, t, process=process, bin_edges=bin_edges)
        return (-eps / sigma).astype(x.dtype)

    return score_fn


def _check_edges(bin_edges: ArrayOrList) -> jax.Array:
    bin_edges = _arrays.as_floating(bin_edges)
    known = _arrays.concrete(bin_edges)
    if bin_edges.ndim != 1 or bin_edges.shape[0] < 2:
        raise ValueError(
            f"bin_edges must be a vector of at least two numbers, got {bin_edges.shape}."
        )
    if known is not None and not np.all(np.diff(known) > 0):
        raise ValueError(f"bin_edges must increase, got {known}: sort them and drop repeated ones.")
    return bin_edges


def _integrals(y, r, bin_edges, highest):
    """Return ``int a^n phi(a) da`` over every cell, ``[..., K]``, for ``n = 0 .. highest``."""
    a = (bin_edges.reshape((1,) * y.ndim + (-1,)) - y[..., None]) / r[..., None]
    half = 0.5 * jnp.diff(bin_edges).reshape((1,) * y.ndim + (-1,)) / r[..., None]
    center = 0.5 * (a[..., :-1] + a[..., 1:])
    phi = _phi(a)

    def between(values):
        return values[..., :-1] - values[..., 1:]

    # At an edge, a = 0, the slopes of `tail` and `mass` are those from the right: abs has slope 0.
    tail = 0.5 * jax.lax.erfc(jnp.where(a < 0, -a, a) / jnp.sqrt(2.0))
    left, right = tail[..., :-1], tail[..., 1:]
    around = (a[..., :-1] < 0) & (a[..., 1:] >= 0)
    wide = [jnp.where(around, 1.0 - left - right, jnp.abs(left - right)), between(phi)]
    wide += [wide[0] + between(a * phi), 2.0 * wide[1] + between(a**2 * phi)]

    # In a narrow cell these differences are of rounding: there, by Gauss's rule.
    info = jnp.finfo(a.dtype)
    reach = np.sqrt(-2.0 * np.log(float(info.tiny)))
    narrow = (half < float(info.eps) ** (1.0 / 7.0)) & (jnp.abs(center) < reach)
    h, c = (jnp.where(narrow, v, 0.0) for v in (half, center))
    nodes = [(c + h * s, w * h * jnp.exp(-h * s * (c + 0.5 * h * s))) for s, w in _RULE]
    return [
        jnp.where(narrow, _phi(c) * sum(w * at**n for at, w in nodes), wide[n])
        for n in range(highest + 1)
    ]


def _phi(a):
    """Return the standard normal density."""
    return jnp.exp(-0.5 * a**2) / jnp.sqrt(2.0 * jnp.pi)


def _shares(logits, mass):
    """Return the weights ``w [..., K]`` of eq. (2)."""
    # Cells out of reach must not set the scale of the others: 0 / 0 where all of these underflow.
    logits = jnp.where(mass > jnp.finfo(mass.dtype).tiny, logits, -jnp.inf)
    q = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return q / jnp.sum(q * mass, axis=-1, keepdims=True)


@jax.custom_jvp
def _first_moment(logits, y, r, bin_edges):
    mass, first = _integrals(y, r, bin_edges, 1)
    return jnp.sum(_shares(logits, mass) * first, axis=-1)


@partial(_first_moment.defjvp, symbolic_zeros=True)
def _first_moment_jvp(primals, tangents):
    logits, y, r, bin_edges = primals
    fixed = isinstance(tangents[3], SymbolicZero)  # the bin_edges mostly are, and cost nothing then
    d_logits, d_y, d_r, d_edges = map(_instantiated, tangents)
    integrals = _integrals(y, r, bin_edges, 3)
    weights = _shares(logits, integrals[0])
    first, second, third = (jnp.sum(weights * i, axis=-1) for i in integrals[1:])
    slope = weights * (integrals[1] - integrals[0] * first[..., None])
    change = jnp.sum(slope * d_logits, axis=-1)
    change += (second - first**2 - 1.0) / r * d_y
    change += (third - first * second - first) / r * d_r
    if not fixed:
        a = (bin_edges.reshape((1,) * y.ndim + (-1,)) - y[..., None]) / r[..., None]
        moved = (a - first[..., None]) * _phi(a) * d_edges.reshape((1,) * y.ndim + (-1,))
        change += jnp.sum(weights * jnp.diff(moved, axis=-1), axis=-1) / r
    return first, change


def _instantiated(tangent):
    """Return a tangent as an array."""
    zero = isinstance(tangent, SymbolicZero)
    return jnp.zeros(tangent.shape, tangent.dtype) if zero else tangent
