"""Second-order denoising: the Jacobian of the score, learned from noised data.

With ``x~ = x + sigma z`` and ``l = sigma s(x~) + z``, the residual of the first-order loss, the
Jacobian of the score of the smoothed density is, by Tweedie's formula of second order,

    sigma^2 grad s(x~) + I = E[l l' | x~]    where s is the true score,                (1)
    sigma^2 tr grad s(x~) + d = E[|l|^2 | x~],                                         (2)

so the Jacobian of a model, ``l`` counting as constant, is fitted by least squares:

    L(s) = E[1/2 |sigma^2 grad s + I - l l'|_F^2]                                      (3)
         = E[1/2 |(sigma^2 grad s + I - l l') v|^2],    E[v v'] = I,                   (4)
    L(s) = E[1/2 (sigma^2 tr grad s + d - |l|^2)^2]                                    (5)
        <= E[1/2 (v' (sigma^2 grad s + I - l l') v)^2].                                (6)

A trace in (5) that is estimated by ``v' (grad s) v`` alone adds its variance to the loss, which
pulls the Jacobian to zero. In (6) every term goes through the same ``v``: the variance added is
that of a matrix whose mean at the true score is zero, where the minimum stays.

These go with the first-order loss, which they do not replace; they tighten the likelihood of the
probability-flow ODE.

References: Meng et al. 2021, https://arxiv.org/abs/2111.04726; Lu et al. 2022,
https://arxiv.org/abs/2206.08265 (eqs. 11 to 15)
"""

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax._probes import draw_probes
from sm_jax.divergence import exact, hutchpp
from sm_jax.losses._denoising import check_above_spacing
from sm_jax.parameterization import EnergyScore
from sm_jax.typing import ArrayOrList, DivergenceFn, RandomFn, ScoreFn


def second_order_denoising(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    sigma: ArrayOrList,
    noise: RandomFn = jax.random.normal,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
) -> jax.Array:
    """Return the second-order denoising loss ``1/2 |(sigma^2 grad s + I - l l') v|^2``.

    ``l = sigma s + z`` is the residual of the first-order loss, held fixed, with ``s`` and its
    Jacobian at ``x + sigma z``, ``z ~ N(0, I)``. It is averaged over ``num_probes`` directions
    ``v``, and then unbiased for ``1/2 |sigma^2 grad s + I - l l'|_F^2``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        sigma: standard deviation of the noise, in units of the data, a scalar or ``[B]``.
        noise: source of the unit normal noise, with the signature of ``jax.random.normal``.
        num_probes: directions ``v`` per example, averaged.
        probe: ``(key, shape [B, ...], dtype) -> v``, with identity covariance.

    Returns:
        ``[B]``: half a squared Frobenius norm, with the factor 1/2, scaled by ``sigma^4``: a pure
        number, not nats.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_probes < 1``, or ``sigma`` is
            not positive, neither a scalar nor ``[B]``, or (where not traced) below half the spacing
            of floating point numbers near ``x``.

    Example:
        >>> x, key = jnp.zeros((1, 1)), jax.random.key(0)
        >>> loss = second_order_denoising(
        ...     lambda x: -x / 8.0, x, key, sigma=2.0, noise=lambda *_: x + 1.0)
        >>> print(loss)  # l = 1/2, so 1/2 (-4/8 + 1 - 1/4)^2
        [0.03125]

    Reference: Lu et al. 2022, https://arxiv.org/abs/2206.08265
    """
    x, sigma, noised, z, key_probe = _noise(x, key, sigma, noise)
    score, push = jax.linearize(_checks.checked(score_fn, x), noised)
    residual = _residual(score, sigma, z)

    def one(v):
        projection = _arrays.expand_like(_arrays.sum_data_axes(residual * v), residual)
        error = sigma**2 * push(v) + v - residual * projection
        return 0.5 * _arrays.sum_data_axes(error**2)

    probes = draw_probes(key_probe, x, num_probes, probe)
    return jnp.mean(jnp.stack([one(v) for v in probes]), axis=0)


def second_order_denoising_trace(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    sigma: ArrayOrList,
    noise: RandomFn = jax.random.normal,
    divergence: DivergenceFn = exact,
) -> jax.Array:
    """Return the second-order denoising loss of the trace of the Jacobian.

        1/2 (sigma^2 tr grad s + d - |l|^2)^2                 by `exact`,
        1/2 (mean_v v' (sigma^2 grad s + I - l l') v)^2       by `hutchinson`, with probes ``v``,

    with ``l = sigma s + z`` held fixed, and ``s`` and its Jacobian at ``x + sigma z``. The second
    is at least as large in the mean, with its minimum at the same score. The divergence is taken of
    ``y -> sigma^2 s(y) + y - l l' y``, so that all terms go through the same probe.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        sigma: standard deviation of the noise, in units of the data, a scalar or ``[B]``.
        noise: source of the unit normal noise, with the signature of ``jax.random.normal``.
        divergence: how the trace is computed: `sm_jax.divergence.exact`, or `hutchinson`, whose
            probes do not depend on the score. Those of `hutchpp` do, and move the minimum.

    Returns:
        ``[B]``, with the factor 1/2, scaled by ``sigma^4``: a pure number, not nats.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``sigma`` is not positive, neither
            a scalar nor ``[B]``, or (where not traced) below half the spacing of floating point
            numbers near ``x``, or ``divergence`` is `hutchpp`.

    Example:
        >>> x, key = jnp.zeros((1, 1)), jax.random.key(0)
        >>> loss = second_order_denoising_trace(
        ...     lambda x: -x / 8.0, x, key, sigma=2.0, noise=lambda *_: x + 1.0)
        >>> print(loss)
        [0.03125]

    Reference: Lu et al. 2022, https://arxiv.org/abs/2206.08265
    """
    if getattr(divergence, "func", divergence) is hutchpp:
        raise ValueError("hutchpp chooses its probes by the score: pass exact or hutchinson.")
    x, sigma, noised, z, key_divergence = _noise(x, key, sigma, noise)
    residual = _residual(_checks.check_score(score_fn(noised), x), sigma, z)

    def projection(y):
        return _arrays.sum_data_axes(residual * (y - noised))

    def matrix_fn(y):
        outer = residual * _arrays.expand_like(projection(y), y)
        return (sigma**2 * score_fn(y) + (y - noised) - outer).astype(y.dtype)

    def matrix_energy(y):
        square = _arrays.sum_data_axes((y - noised) ** 2)
        variance = sigma.reshape(sigma.shape[:1]) ** 2
        return variance * score_fn.energy_fn(y) - 0.5 * square + 0.5 * projection(y) ** 2

    field = EnergyScore(matrix_energy) if isinstance(score_fn, EnergyScore) else matrix_fn
    return 0.5 * divergence(field, noised, key_divergence)[1] ** 2


def _noise(
    x: ArrayOrList, key: jax.Array, sigma: ArrayOrList, noise: RandomFn
) -> tuple[jax.Array, ...]:
    """Return the data, ``sigma [B, 1, ...]``, the noised data, the noise, and a key for probes."""
    x = _checks.check_data(x)
    sigma = _checks.check_per_example("sigma", sigma, x)
    _checks.check_positive("sigma", sigma)
    check_above_spacing("sigma", sigma, x)
    key_noise, key_probe = jax.random.split(key)
    z = _arrays.drawn(noise, key_noise, x)
    sigma = _arrays.expand_like(sigma, x)
    return x, sigma, (x + sigma * z).astype(x.dtype), z, key_probe


def _residual(score: jax.Array, sigma: jax.Array, z: jax.Array) -> jax.Array:
    """Return ``l = sigma s + z``, a constant under differentiation."""
    return jax.lax.stop_gradient(sigma * score + z)
