"""Steps of the reverse SDE: Euler-Maruyama, and three that use the transitions between times."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.processes import diffusion_squared, drift, noise_ratio
from sm_jax.samplers.steps._common import arguments, normal, score
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ProcessLike


def _transition(process: ProcessLike, t: jax.Array, t_next: jax.Array) -> tuple:
    """Return ``a`` and ``q^2`` of the transition from ``t_next`` to ``t``."""
    q = noise_ratio(process, t_next) / noise_ratio(process, t)
    return process.alpha(t) / process.alpha(t_next), q**2


def euler_maruyama(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    t: ArrayLike,
    t_next: ArrayLike,
    key: jax.Array,
    *,
    process: ProcessLike,
) -> jax.Array:
    """Take an Euler-Maruyama step of the reverse SDE.

    With ``h = t - t_next`` and the drift ``f`` and the diffusion ``g`` of the process at ``t``,

        x <- x - h (f x - g^2 s) + g sqrt(h) z.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: points at time ``t``, ``[B, ...]``.
        t: the time of the points, a scalar.
        t_next: the time after the step, a scalar below ``t``.
        key: a random key.
        process: the noising process of the score.

    Returns:
        Points at time ``t_next``, ``[B, ...]``.

    Raises:
        TypeError: ``x`` is not floating, the score has another dtype, or there is no key.
        ValueError: ``t_next`` is not below ``t``, or the score has another shape.

    Example:
        >>> from sm_jax import processes
        >>> x, key, process = jnp.ones((1, 2)), jax.random.key(0), processes.VPLinear()
        >>> euler_maruyama(lambda x, t: -x, x, 0.5, 0.4, key, process=process).shape
        (1, 2)

    Reference: Song et al. 2021, eq. 6, https://arxiv.org/abs/2011.13456
    """
    x, t, t_next = arguments(x, t, t_next)
    _checks.check_key("euler_maruyama", key)
    h, variance = t - t_next, diffusion_squared(process, t)
    mean = x - h * (drift(process, x, t) - variance * score(score_fn, x, t))
    return (mean + jnp.sqrt(variance * h) * normal(key, x)).astype(x.dtype)


def reverse_diffusion(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    t: ArrayLike,
    t_next: ArrayLike,
    key: jax.Array,
    *,
    process: ProcessLike,
) -> jax.Array:
    """Take a step of the reverse diffusion sampler.

    The transition of the process from ``t_next`` to ``t``, ``x_t = a x + b z``, is reversed as the
    reverse SDE reverses the SDE:

        x <- (2 - a) x + b^2 s + b z,
        a = alpha / alpha',    b^2 = sigma^2 (1 - q^2),    q = r' / r.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: points at time ``t``, ``[B, ...]``.
        t: the time of the points, a scalar.
        t_next: the time after the step, a scalar below ``t``.
        key: a random key.
        process: the noising process of the score.

    Returns:
        Points at time ``t_next``, ``[B, ...]``.

    Raises:
        TypeError: ``x`` is not floating, the score has another dtype, or there is no key.
        ValueError: ``t_next`` is not below ``t``, or the score has another shape.

    Example:
        >>> from sm_jax import processes
        >>> x, key, process = jnp.ones((1, 2)), jax.random.key(0), processes.VPLinear()
        >>> reverse_diffusion(lambda x, t: -x, x, 0.5, 0.4, key, process=process).shape
        (1, 2)

    Reference: Song et al. 2021, appendix E, https://arxiv.org/abs/2011.13456
    """
    x, t, t_next = arguments(x, t, t_next)
    _checks.check_key("reverse_diffusion", key)
    a, q2 = _transition(process, t, t_next)
    variance = process.sigma(t) ** 2 * (1.0 - q2)
    mean = (2.0 - a) * x + variance * score(score_fn, x, t)
    return (mean + jnp.sqrt(variance) * normal(key, x)).astype(x.dtype)


def ancestral(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    t: ArrayLike,
    t_next: ArrayLike,
    key: jax.Array,
    *,
    process: ProcessLike,
) -> jax.Array:
    """Draw from the Gaussian law at ``t_next`` given ``x`` and the data, taken for the denoiser.

        x <- (x + b^2 s) / a + sigma' sqrt(1 - q^2) z,
        a = alpha / alpha',    b^2 = sigma^2 (1 - q^2),    q = r' / r

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: points at time ``t``, ``[B, ...]``.
        t: the time of the points, a scalar.
        t_next: the time after the step, a scalar below ``t``.
        key: a random key.
        process: the noising process of the score.

    Returns:
        Points at time ``t_next``, ``[B, ...]``.

    Raises:
        TypeError: ``x`` is not floating, the score has another dtype, or there is no key.
        ValueError: ``t_next`` is not below ``t``, or the score has another shape.

    Example:
        >>> from sm_jax import processes
        >>> x, key, process = jnp.ones((1, 2)), jax.random.key(0), processes.VPLinear()
        >>> ancestral(lambda x, t: -x, x, 0.5, 0.4, key, process=process).shape
        (1, 2)

    Reference: Ho et al. 2020, algorithm 2, https://arxiv.org/abs/2006.11239
    """
    x, t, t_next = arguments(x, t, t_next)
    _checks.check_key("ancestral", key)
    a, q2 = _transition(process, t, t_next)
    mean = (x + process.sigma(t) ** 2 * (1.0 - q2) * score(score_fn, x, t)) / a
    return (mean + process.sigma(t_next) * jnp.sqrt(1.0 - q2) * normal(key, x)).astype(x.dtype)


def ddim(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    t: ArrayLike,
    t_next: ArrayLike,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    eta: ArrayLike = 0.0,
) -> jax.Array:
    """Take a step of DDIM: deterministic for ``eta = 0``, `ancestral` for ``eta = 1``.

        x <- (x + sigma^2 (1 - k) s) / a + eta sigma' sqrt(1 - q^2) z,
        k = q sqrt(1 - eta^2 (1 - q^2)),    a = alpha / alpha',    q = r' / r

    It keeps the share ``k`` of the noise in ``x / alpha``, and whatever ``eta``, the law of the
    result given the data is that of the process.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: points at time ``t``, ``[B, ...]``.
        t: the time of the points, a scalar.
        t_next: the time after the step, a scalar below ``t``.
        key: a random key, for ``eta > 0`` only.
        process: the noising process of the score.
        eta: share of the ancestral noise, in [0, 1].

    Returns:
        Points at time ``t_next``, ``[B, ...]``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``t_next`` is not below ``t``, the score has another shape, ``eta`` is outside
            [0, 1], or ``eta`` is not zero and there is no key.

    Example:
        >>> from sm_jax import processes
        >>> x, process = jnp.ones((1, 2)), processes.VPLinear()
        >>> ddim(lambda x, t: -x, x, 0.5, 0.4, process=process).shape
        (1, 2)

    Reference: Song, Meng & Ermon 2021, eq. 12 and 16, https://arxiv.org/abs/2010.02502
    """
    x, t, t_next = arguments(x, t, t_next)
    known = _arrays.concrete(eta)
    if known is not None and not (known.ndim == 0 and 0.0 <= known <= 1.0):
        raise ValueError(f"eta must be one number in [0, 1], got {eta}.")
    key = _checks.key_for("eta", eta, key)
    a, q2 = _transition(process, t, t_next)
    kept = jnp.sqrt(q2 * (1.0 - eta**2 * (1.0 - q2)))
    y = (x + process.sigma(t) ** 2 * (1.0 - kept) * score(score_fn, x, t)) / a
    if key is not None:
        y = y + process.sigma(t_next) * eta * jnp.sqrt(1.0 - q2) * normal(key, x)
    return y.astype(x.dtype)
