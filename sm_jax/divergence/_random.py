"""Estimates of the divergence by random probes: Hutchinson, Hutch++, and a standard error.

Equation numbers are those of sm_jax.divergence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax._probes import draw_probes, probe_source
from sm_jax.divergence._products import energy_derivatives, mapped
from sm_jax.parameterization import EnergyScore
from sm_jax.typing import ArrayOrList, Divergence, DivergenceFn, RandomFn, ScoreFn


class DivergenceEstimate(NamedTuple):
    """A score, an estimate of its divergence, and the standard error of the estimate.

    Attributes:
        score: ``s(x) [B, ...]``.
        divergence: mean of the estimates of ``tr(grad s)(x)``, ``[B]``.
        standard_error: standard error of that mean, ``[B]``.
    """

    score: jax.Array
    divergence: jax.Array
    standard_error: jax.Array


def hutchinson(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
    chunk: int | None = None,
) -> Divergence:
    """Return the score and Hutchinson's estimate of its divergence.

    It is ``1/K sum_k v_k' (grad s) v_k`` over ``K = num_probes`` probes with identity covariance,
    ``E[v v'] = I``, and so unbiased. For three probes or more an `EnergyScore` takes the curvatures
    ``-v_k' (grad^2 E) v_k`` of its energy in forward mode, where the energy allows it.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: a random key.
        num_probes: probes per row; their estimates are averaged.
        probe: ``(key, shape [B, ...], dtype) -> probes``, with identity covariance: Rademacher has
            the least variance, also ``jax.random.normal`` and `sphere`.
        chunk: probes taken at a time; as in `exact`.

    Returns:
        ``Divergence(score [B, ...], divergence [B])``; costs about ``1 + num_probes`` passes of the
        network.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_probes < 1``, ``chunk < 1``.

    Example:
        >>> score, divergence = hutchinson(lambda x: -2.0 * x, jnp.ones((1, 3)), jax.random.key(0))
        >>> print(divergence)
        [-6.]

    Reference: Hutchinson 1990, https://doi.org/10.1080/03610919008812866
    """
    x = _checks.check_data(x)
    draw, keys = probe_source(key, x, num_probes, probe)
    # For fewer vectors the score itself costs more.
    if num_probes > 2 and isinstance(score_fn, EnergyScore):
        derivatives = energy_derivatives(score_fn, x, draw, keys, chunk)
        if derivatives is not None:
            score = _checks.check_score(score_fn(x), x)
            return Divergence(score, -derivatives[1] / num_probes)
    score, push = jax.linearize(_checks.checked(score_fn, x), x)

    def form(key):
        v = draw(key)
        return _arrays.sum_data_axes(_arrays.accumulated(push(v)) * v)

    return Divergence(score, mapped(form, keys, chunk, x.ndim - 1).mean(axis=0))


def hutchpp(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    num_products: int = 6,
    probe: RandomFn = jax.random.rademacher,
) -> Divergence:
    """Return the score and the Hutch++ estimate of its divergence.

    With ``J = grad s`` of one row and ``m = num_products // 3``, a sketch ``J g_1, ..., J g_m`` of
    normal vectors ``g`` has the orthonormal basis ``q_1, ..., q_m``. The estimate takes the trace
    exactly on its span and by probes ``v_k`` on the rest, the residual:

        sum_j q_j' J q_j + 1/m sum_k r_k' J r_k,    r_k = v_k - sum_j q_j (q_j' v_k).

    It makes ``3 m`` products, so ``num_products`` is rounded down to a multiple of three. It has
    less variance than `hutchinson` at equal cost where a few directions carry most of the Jacobian,
    and is exact, up to rounding, if the rank of ``J`` is at most ``m``: normal vectors span the
    range with probability one (random signs do not).

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: a random key.
        num_products: products ``J v`` per row, ``num_products // 3`` each for the sketch, for the
            exact part and for the residual; from 3 to ``3 d + 2``.
        probe: probes of the residual, as in `hutchinson`.

    Returns:
        ``Divergence(score [B, ...], divergence [B])``. Unbiased, and so is its gradient, in which
        the sketch counts as a constant.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or ``num_products`` is out of
            range.

    Example:
        >>> x, key = jnp.ones((1, 3)), jax.random.key(0)
        >>> score, divergence = hutchpp(lambda x: -2.0 * x, x, key, num_products=9)
        >>> print(jnp.round(divergence))
        [-6.]

    Reference: Meyer et al. 2021, https://arxiv.org/abs/2010.09649
    """
    x = _checks.check_data(x)
    _checks.check_count("num_products", num_products, minimum=3)
    _checks.check_key("hutchpp", key)
    num, dims = num_products // 3, _arrays.num_dims(x)
    if num > dims:
        raise ValueError(
            f"num_products must be at most three times the dimension, 3 x {dims}, got "
            f"{num_products}: use exact, which needs {dims} products."
        )
    key_sketch, key_residual = jax.random.split(key)
    score, push = jax.linearize(_checks.checked(score_fn, x), x)

    draw, keys = probe_source(key_sketch, x, num, jax.random.normal)
    sketch = jax.lax.stop_gradient(mapped(lambda k: push(draw(k)), keys, None, x.ndim - 1))
    columns = jnp.moveaxis(sketch.reshape(num, x.shape[0], dims), 0, -1)
    basis, _ = jnp.linalg.qr(_arrays.accumulated(columns))  # [B, d, num]; (3) holds for any basis

    residual = draw_probes(key_residual, x, num, probe).reshape(num, x.shape[0], dims)
    residual = residual - jnp.einsum("bdk,bek,nbe->nbd", basis, basis, residual)
    vectors = jnp.concatenate([jnp.moveaxis(basis, -1, 0), residual])
    vectors = vectors.reshape(2 * num, *x.shape).astype(x.dtype)
    forms = mapped(lambda v: _arrays.sum_data_axes(push(v) * v), vectors, None, x.ndim - 1)
    return Divergence(score, forms[:num].sum(axis=0) + forms[num:].mean(axis=0))


def estimate(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    divergence: DivergenceFn = hutchinson,
    num_repeats: int = 8,
) -> DivergenceEstimate:
    """Return the score and the mean and standard error of independent divergence estimates.

    Of ``R = num_repeats`` estimates ``T_r`` of the divergence, each with a key of its own, these
    are ``mean(T)`` and ``sqrt(sum_r (T_r - mean(T))^2 / (R (R - 1)))``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: a random key.
        divergence: any stochastic `DivergenceFn`.
        num_repeats: number of independent estimates, at least 2.

    Returns:
        ``DivergenceEstimate(score [B, ...], divergence [B], standard_error [B])``.

    Raises:
        ValueError: ``num_repeats < 2``, or as ``divergence`` raises.

    Example:
        >>> result = estimate(lambda x: -2.0 * x, jnp.ones((1, 3)), jax.random.key(0))
        >>> print(result.divergence, result.standard_error)
        [-6.] [0.]
    """
    x = _checks.check_data(x)
    _checks.check_count("num_repeats", num_repeats, minimum=2)
    keys = jax.random.split(key, num_repeats)
    once = jax.vmap(lambda k: tuple(divergence(score_fn, x, k)), out_axes=(None, 0))
    score, estimates = once(keys)
    error = estimates.std(axis=0, ddof=1) / jnp.sqrt(jnp.asarray(num_repeats, estimates.dtype))
    return DivergenceEstimate(score, estimates.mean(axis=0), error)


def sphere(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Return probes uniform on the sphere of radius ``sqrt(d)``, one per row of ``[B, ...]``.

    Args:
        key: a random key.
        shape: ``(B, ...)``; ``d`` is the product of all but the first.
        dtype: floating dtype of the probes.

    Returns:
        Probes of the given shape: ``|v|^2 = d``, ``E[v v'] = I``.

    Example:
        >>> print((sphere(jax.random.key(0), (2, 9)) ** 2).sum(axis=1).round(3))
        [9. 9.]
    """
    v = jax.random.normal(key, shape, dtype)
    mean_square = _arrays.sum_data_axes(v**2) / _arrays.num_dims(v)
    return v * _arrays.expand_like(jax.lax.rsqrt(mean_square), v).astype(dtype)
