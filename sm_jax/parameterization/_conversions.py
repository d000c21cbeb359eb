r"""Exact conversions between the score and what a network may predict.

With ``x_t = alpha x_0 + sigma z`` (see sm_jax.processes), the best predictions given ``x_t`` of
the clean data ``D = E[x_0 | x_t]`` (the argument ``x0``), of the noise ``eps = E[z | x_t]`` and of
the other targets below are linear functions of one another and of the score ``s``:

    s   = -eps / sigma = (alpha D - x_t) / sigma^2,                                    (1)
    eps = (x_t - alpha D) / sigma,                                                     (2)
    v   = alpha eps - sigma D,                                                         (3)
    u   = alpha' D + sigma' eps.                                                       (4)

``v`` is the target of Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, here for any process
(there ``alpha^2 + sigma^2 = 1``). ``u = E[dx_t / dt | x_t]`` is the velocity of the
probability-flow ODE, the target of flow matching, per unit of the time of the process.

Every conversion is to or from the noise ``eps``, which stays of order one at every noise level;
any other pair is a composition of two. All keep the dtype of ``x_t``, and raise a ``TypeError`` if
that is not floating.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ProcessLike


def _coefficients(
    process: ProcessLike, x: jax.Array, t: ArrayOrList
) -> tuple[jax.Array, jax.Array]:
    _checks.check_data(x)  # integers would cut the result, which has the dtype of x
    t = _checks.check_per_example("t", t, x)
    return _arrays.expand_like(process.alpha(t), x), _arrays.expand_like(process.sigma(t), x)


def _slopes(process: ProcessLike, x: jax.Array, t: ArrayOrList) -> tuple[jax.Array, jax.Array]:
    t = _checks.check_per_example("t", t, x)
    _, alpha = jax.jvp(process.alpha, (t,), (jnp.ones_like(t),))
    _, sigma = jax.jvp(process.sigma, (t,), (jnp.ones_like(t),))
    return _arrays.expand_like(alpha, x), _arrays.expand_like(sigma, x)


def eps_from_score(
    score: ArrayOrList, x: ArrayOrList, t: ArrayOrList, *, process: ProcessLike
) -> jax.Array:
    """Return the noise prediction of a score, ``eps = -sigma s``.

    Args:
        score: score at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, of unit scale.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(eps_from_score(-x, x, 3.0, process=processes.VE()))
        [[3. 3.]]
    """
    score, x = _arrays.as_floating(score), _checks.check_data(x)
    _, sigma = _coefficients(process, x, t)
    return (-sigma * score).astype(x.dtype)


def score_from_eps(
    eps: ArrayOrList, x: ArrayOrList, t: ArrayOrList, *, process: ProcessLike
) -> jax.Array:
    """Return the score of a noise prediction, ``s = -eps / sigma``.

    Args:
        eps: noise prediction at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, in units of one over the data.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(score_from_eps(6.0 * x, x, 3.0, process=processes.VE()))
        [[-2. -2.]]
    """
    eps, x = _arrays.as_floating(eps), _checks.check_data(x)
    _, sigma = _coefficients(process, x, t)
    return (-eps / sigma).astype(x.dtype)


def eps_from_x0(
    x0: ArrayOrList, x: ArrayOrList, t: ArrayOrList, *, process: ProcessLike
) -> jax.Array:
    """Return the noise prediction of predicted clean data, ``eps = (x_t - alpha x0) / sigma``.

    Args:
        x0: prediction ``D`` of the clean data at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, of unit scale.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(eps_from_x0(0.0 * x, x, 2.0, process=processes.VE()))
        [[0.5 0.5]]
    """
    x0, x = _arrays.as_floating(x0), _checks.check_data(x)
    alpha, sigma = _coefficients(process, x, t)
    return ((x - alpha * x0) / sigma).astype(x.dtype)


def x0_from_eps(
    eps: ArrayOrList, x: ArrayOrList, t: ArrayOrList, *, process: ProcessLike
) -> jax.Array:
    """Return the predicted clean data, ``x0 = (x_t - sigma eps) / alpha``.

    Args:
        eps: noise prediction at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, in units of the data.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(x0_from_eps(0.5 * x, x, 2.0, process=processes.VE()))
        [[0. 0.]]
    """
    eps, x = _arrays.as_floating(eps), _checks.check_data(x)
    alpha, sigma = _coefficients(process, x, t)
    return ((x - sigma * eps) / alpha).astype(x.dtype)


def eps_from_v(
    v: ArrayOrList, x: ArrayOrList, t: ArrayOrList, *, process: ProcessLike
) -> jax.Array:
    """Return the noise prediction of ``v``, ``eps = (alpha v + sigma x_t) / (alpha^2 + sigma^2)``.

    Args:
        v: prediction ``alpha eps - sigma x0`` at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, of unit scale.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(eps_from_v(0.0 * x, x, 1.0, process=processes.VE()))
        [[0.5 0.5]]
    """
    v, x = _arrays.as_floating(v), _checks.check_data(x)
    alpha, sigma = _coefficients(process, x, t)
    return ((alpha * v + sigma * x) / (alpha**2 + sigma**2)).astype(x.dtype)


def v_from_eps(
    eps: ArrayOrList, x: ArrayOrList, t: ArrayOrList, *, process: ProcessLike
) -> jax.Array:
    """Return the v-prediction, ``v = alpha eps - sigma x0``, ``x0 = (x_t - sigma eps) / alpha``.

    Args:
        eps: noise prediction at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(v_from_eps(0.5 * x, x, 2.0, process=processes.VE()))
        [[0.5 0.5]]
    """
    eps, x = _arrays.as_floating(eps), _checks.check_data(x)
    alpha, sigma = _coefficients(process, x, t)
    return (alpha * eps - sigma * (x - sigma * eps) / alpha).astype(x.dtype)


def eps_from_velocity(
    velocity: ArrayOrList, x: ArrayOrList, t: ArrayOrList, *, process: ProcessLike
) -> jax.Array:
    """Return the noise prediction of a velocity ``u``.

    It is ``eps = (u - f x_t) / (sigma' - f sigma)`` with ``f = alpha' / alpha``.

    Args:
        velocity: prediction of ``dx_t / dt`` at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, of unit scale.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(eps_from_velocity(x, x, 2.0, process=processes.VE()))
        [[1. 1.]]
    """
    velocity, x = _arrays.as_floating(velocity), _checks.check_data(x)
    alpha, sigma = _coefficients(process, x, t)
    alpha_slope, sigma_slope = _slopes(process, x, t)
    rate = alpha_slope / alpha
    return ((velocity - rate * x) / (sigma_slope - sigma * rate)).astype(x.dtype)


def velocity_from_eps(
    eps: ArrayOrList, x: ArrayOrList, t: ArrayOrList, *, process: ProcessLike
) -> jax.Array:
    """Return the velocity of the probability flow, ``u = alpha' x0 + sigma' eps``.

    Here ``x0 = (x_t - sigma eps) / alpha``, and primes are derivatives by the time.

    Args:
        eps: noise prediction at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, in units of the data per unit of time; equal to ``f x - g^2 s / 2``.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(velocity_from_eps(0.5 * x, x, 2.0, process=processes.VE()))
        [[0.5 0.5]]
    """
    eps, x = _arrays.as_floating(eps), _checks.check_data(x)
    alpha, sigma = _coefficients(process, x, t)
    alpha_slope, sigma_slope = _slopes(process, x, t)
    return (alpha_slope * (x - sigma * eps) / alpha + sigma_slope * eps).astype(x.dtype)


def score_from_denoiser(
    denoiser_fn: Callable[[jax.Array, jax.Array], jax.Array], *, process: ProcessLike
) -> NoiseScoreFn:
    """Return the score function of a denoiser ``D``, ``s = (alpha D - x_t) / sigma^2``.

    Args:
        denoiser_fn: ``(x_t [B, ...], t [B]) -> E[x_0 | x_t] [B, ...]``.
        process: any process.

    Returns:
        A score function ``(x_t, t) -> [B, ...]``.

    Example:
        >>> from sm_jax import processes
        >>> score_fn = score_from_denoiser(lambda x, t: 0.0 * x, process=processes.VE())
        >>> print(score_fn(jnp.ones((1, 2)), jnp.array([2.0])))
        [[-0.25 -0.25]]
    """

    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = _coefficients(process, x, t)
        return ((alpha * denoiser_fn(x, t) - x) / sigma**2).astype(x.dtype)

    return score_fn


def denoiser_from_score(
    score_fn: NoiseScoreFn, *, process: ProcessLike
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return the denoiser of a score function, ``D = (x_t + sigma^2 s) / alpha``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        process: any process.

    Returns:
        A function ``(x_t, t) -> E[x_0 | x_t] [B, ...]``.

    Example:
        >>> from sm_jax import processes
        >>> denoiser_fn = denoiser_from_score(lambda x, t: -x / 8.0, process=processes.VE())
        >>> print(denoiser_fn(jnp.ones((1, 2)), jnp.array([2.0])))
        [[0.5 0.5]]
    """

    def denoiser_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = _coefficients(process, x, t)
        return ((x + sigma**2 * score_fn(x, t)) / alpha).astype(x.dtype)

    return denoiser_fn
