"""Losses over a ladder of noise levels, for noise-conditional scores ``s(x, sigma)``.

Each is a loss of one noise level, scaled by ``sigma^2``: at the optimum ``|sigma s|`` is of order
``sqrt(d)`` at every noise level, so none dominates.

Reference: Song & Ermon 2019 (NCSN), https://arxiv.org/abs/1907.05600
"""

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax.losses._denoising import check_above_spacing, noise_error
from sm_jax.losses._sliced import sliced
from sm_jax.parameterization import at_time
from sm_jax.typing import ArrayOrList, NoiseScoreFn, RandomFn


def multiscale_denoising(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    sigmas: ArrayOrList,
    noise: RandomFn = jax.random.normal,
    control_variate: bool = False,
) -> jax.Array:
    """Return ``1/2 |sigma s(x + sigma z, sigma) + z|^2`` at every noise level.

    Args:
        score_fn: ``(x [B, ...], sigma [B]) -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        sigmas: noise levels ``[L]``, strictly decreasing, in units of the data.
        noise: source of the unit normal noise, with the signature of ``jax.random.normal``.
        control_variate: as in `denoising`.

    Returns:
        ``[L, B]``, in nats, scaled by ``sigma^2``: the loss of NCSN is its mean over both axes. It
        costs ``L`` passes of the network; `noise_conditional` costs one.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or the noise levels are not
            positive and strictly decreasing, or (where neither is traced) end below half the
            spacing of floating point numbers near ``x``.

    Example:
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> loss = multiscale_denoising(lambda x, sigma: -x, x, key, sigmas=[2.0, 1.0])
        >>> loss.shape
        (2, 4)

    Reference: Song & Ermon 2019, eq. 6, https://arxiv.org/abs/1907.05600
    """
    x = _checks.check_data(x)
    sigmas = _check_sigmas(sigmas, x)

    def level(sigma, key):
        z = _arrays.drawn(noise, key, x)
        sigma = jnp.broadcast_to(sigma, x.shape[:1])
        return noise_error(lambda y: score_fn(y, sigma), x, sigma, z, control_variate)

    return jax.vmap(level)(sigmas, jax.random.split(key, sigmas.shape[0]))


def noise_conditional(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    sigmas: ArrayOrList,
    noise: RandomFn = jax.random.normal,
    control_variate: bool = False,
) -> jax.Array:
    """Return ``1/2 |sigma s(x + sigma z, sigma) + z|^2`` at one random noise level.

    ``sigma`` is drawn uniformly from ``sigmas`` for each example, and ``z ~ N(0, I)``.

    Args:
        score_fn: ``(x [B, ...], sigma [B]) -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        sigmas: noise levels ``[L]``, strictly decreasing, in units of the data.
        noise: source of the unit normal noise, with the signature of ``jax.random.normal``.
        control_variate: as in `denoising`.

    Returns:
        ``[B]``, in nats, scaled by ``sigma^2``: an unbiased estimate of the mean of
        `multiscale_denoising` over noise levels.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or the noise levels are not
            positive and strictly decreasing, or (where neither is traced) end below half the
            spacing of floating point numbers near ``x``.

    Example:
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> loss = noise_conditional(lambda x, sigma: -x, x, key, sigmas=[2.0, 1.0])
        >>> loss.shape
        (4,)

    Reference: Song & Ermon 2019, https://arxiv.org/abs/1907.05600
    """
    x = _checks.check_data(x)
    key_level, key_noise = jax.random.split(key)
    sigma = _random_levels(key_level, x, sigmas)
    z = _arrays.drawn(noise, key_noise, x)
    return noise_error(lambda y: score_fn(y, sigma), x, sigma, z, control_variate)


def noise_conditional_sliced(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    sigmas: ArrayOrList,
    noise: RandomFn = jax.random.normal,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
    variance_reduced: bool = True,
) -> jax.Array:
    """Return the sliced loss of the noised data at one random noise level, times ``sigma^2``.

    At ``y = x + sigma z``, with ``sigma`` drawn uniformly from ``sigmas`` for each example, it is
    the mean over ``num_probes`` probes ``v`` of

        sigma^2 (v' (grad s(y, sigma)) v + 1/2 |s(y, sigma)|^2)        with ``variance_reduced``,
        sigma^2 (v' (grad s(y, sigma)) v + 1/2 (v' s(y, sigma))^2)     without.

    Args:
        score_fn: ``(x [B, ...], sigma [B]) -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        sigmas: noise levels ``[L]``, strictly decreasing, in units of the data.
        noise: source of the noise, which need not be normal here.
        num_probes: as in `sliced`.
        probe: as in `sliced`.
        variance_reduced: as in `sliced`.

    Returns:
        ``[B]``, in nats, scaled by ``sigma^2``. It has the minimizer of `noise_conditional` and
        equals it up to a constant in the mean, for normal noise.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_probes < 1``, or the noise
            levels are not positive and strictly decreasing, or (where neither is traced) end below
            half the spacing of floating point numbers near ``x``.

    Example:
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> loss = noise_conditional_sliced(lambda x, sigma: -x, x, key, sigmas=[2.0, 1.0])
        >>> loss.shape
        (4,)

    Reference: Song & Ermon 2019, https://arxiv.org/abs/1907.05600; Song et al. 2019,
    https://arxiv.org/abs/1905.07088
    """
    x = _checks.check_data(x)
    key_level, key_noise, key_probe = jax.random.split(key, 3)
    sigma = _random_levels(key_level, x, sigmas)
    noised = x + _arrays.expand_like(sigma, x) * _arrays.drawn(noise, key_noise, x)
    loss = sliced(
        at_time(score_fn, sigma),
        noised.astype(x.dtype),
        key_probe,
        num_probes=num_probes,
        probe=probe,
        variance_reduced=variance_reduced,
    )
    return sigma**2 * loss


def _random_levels(key: jax.Array, x: jax.Array, sigmas: ArrayOrList) -> jax.Array:
    """Return one noise level per example, drawn uniformly from the ladder: ``[B]``."""
    return jax.random.choice(key, _check_sigmas(sigmas, x), x.shape[:1])


def _check_sigmas(sigmas: ArrayOrList, x: jax.Array) -> jax.Array:
    """Return the ladder ``[L]``, float32 at least, or raise unless it decreases and stays above."""
    sigmas = _checks.check_levels("sigmas", sigmas).astype(_arrays.accumulator(x.dtype))
    check_above_spacing("the smallest of sigmas", sigmas[-1], x)
    return sigmas
