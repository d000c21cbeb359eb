"""One-step samplers by the transitions between two times of a process, which are exact.

From time ``s`` to a later time ``t`` a process scales the data and adds noise to them,

    x_t = a x_s + b z,    a = alpha_t / alpha_s,    b^2 = sigma_t^2 (1 - q^2),             (1)
    q = r_s / r_t,        r = sigma / alpha,                                              (2)

and the law of ``x_s`` given ``x_t`` and the clean data ``x_0`` is Gaussian too. With the clean data
replaced by the denoiser ``D``, it has

    mean  alpha_s (D + q^2 (x_t / alpha_t - D)) = (x_t + b^2 s) / a,                       (3)
    variance  sigma_s^2 (1 - q^2).                                                        (4)

A part ``eta`` of that standard deviation, and more of the noise that is in ``x_t`` already, leave
the law of ``x_s`` given ``x_0`` as it is:

    x_s = alpha_s (D + q sqrt(1 - c^2) (x_t / alpha_t - D)) + sigma_s c z,
    c = eta sqrt(1 - q^2).                                                                (5)

References: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Song, Meng & Ermon 2021,
https://arxiv.org/abs/2010.02502; Song et al. 2021, https://arxiv.org/abs/2011.13456
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.processes import noise_ratio
from sm_jax.samplers._diffusion import _finish, _grid, _located
from sm_jax.samplers._scan import run, wide
from sm_jax.typing import NoiseScoreFn, ProcessLike


def _transition(process: ProcessLike, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return ``a`` and ``q^2``, eqs. (1) and (2), of each step of the grid."""
    alpha, ratio = process.alpha(times), noise_ratio(process, times)
    return alpha[:-1] / alpha[1:], (ratio[1:] / ratio[:-1]) ** 2


def _linear(
    coefficients: Callable,
    score_fn: NoiseScoreFn,
    x: jax.Array,
    key: jax.Array | None,
    process: ProcessLike,
    times: jax.Array,
    denoise: bool,
    trajectory: bool,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Take steps ``x <- scale x + gain s + spread z``; without a key, no noise.

    ``coefficients(sigma_t, sigma_s, a, q^2)`` returns ``(scale, gain, spread)``.
    """
    score_fn = wide(score_fn, x)
    sigma = process.sigma(times)
    inputs = (times[:-1], *coefficients(sigma[:-1], sigma[1:], *_transition(process, times)))
    if key is not None:
        inputs = (*inputs, jax.random.split(key, times.shape[0] - 1))

    def step(x, given):
        t, scale, gain, spread, *keys = given
        mean = scale * x + gain * score_fn(x, jnp.broadcast_to(t, x.shape[:1]))
        return mean + spread * jax.random.normal(keys[0], x.shape, x.dtype) if keys else mean

    finish = _finish(score_fn, process, times[-1], denoise)
    return _located(process, run(step, x, inputs, finish, trajectory))


def reverse_diffusion(
    score_fn: NoiseScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayLike | None = None,
    denoise: bool = True,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Reverse the discrete transitions, eq. (1): ``x_s = (2 - a) x_t + b^2 s + b z``.

    Weak order 1. The predictor of Song et al.: the reverse SDE discretised as the forward process
    is, so that a step adds as much noise as the process did. It adds more than `ancestral`, and
    therefore leaves a variance too large where steps are few: prefer `ancestral`.

    Under ``jax.jit``: ``jax.jit(partial(reverse_diffusion, score_fn, process=process))``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``, from ``processes.prior_sample``.
        key: a random key.
        process: the process that the score was trained for.
        num_steps: number of steps on ``processes.time_grid``, 256 or more by default; each is one
            evaluation, and the denoising one more.
        times: instead of ``num_steps``: strictly decreasing times ``[num_steps + 1]``.
        denoise: end with the denoiser at the last time.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, the trajectory before
        the denoising.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_steps < 1``, or the times are
            not strictly decreasing or leave the range of the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=10.0)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)
        >>> reverse_diffusion(score_fn, x, jax.random.key(1), process=process, num_steps=20).shape
        (4, 2)

    Reference: Song et al. 2021, appendix E, https://arxiv.org/abs/2011.13456
    """

    def coefficients(sigma, sigma_next, a, q2):
        variance = sigma**2 * (1.0 - q2)
        return 2.0 - a, variance, jnp.sqrt(variance)

    x = _checks.check_data(x)
    _checks.check_key("reverse_diffusion", key)
    times = _grid(x, process, num_steps, times, default=256)
    return _linear(coefficients, score_fn, x, key, process, times, denoise, trajectory)


def ancestral(
    score_fn: NoiseScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayLike | None = None,
    denoise: bool = True,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Draw each time from its Gaussian law given the time before, eqs. (3) and (4).

    The sampler of DDPM for `VPLinear` and `Cosine`, and that of NCSN for `VE`. Weak order 1, exact
    in a single step for data of one point. Good with many steps, whose fresh noise washes out
    errors of the score; for few, prefer `dpm_solver_pp_sde`.

    Under ``jax.jit``: ``jax.jit(partial(ancestral, score_fn, process=process))``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``, from ``processes.prior_sample``.
        key: a random key.
        process: the process that the score was trained for.
        num_steps: number of steps on ``processes.time_grid``, 256 or more by default; each is one
            evaluation, and the denoising one more.
        times: instead of ``num_steps``: strictly decreasing times ``[num_steps + 1]``.
        denoise: end with the denoiser at the last time.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, the trajectory before
        the denoising.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_steps < 1``, or the times are
            not strictly decreasing or leave the range of the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VPLinear()
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> ancestral(lambda x, t: -x, x, jax.random.key(1), process=process, num_steps=20).shape
        (4, 2)

    Reference: Ho et al. 2020, algorithm 2, https://arxiv.org/abs/2006.11239
    """

    def coefficients(sigma, sigma_next, a, q2):
        return 1.0 / a, sigma**2 * (1.0 - q2) / a, sigma_next * jnp.sqrt(1.0 - q2)

    x = _checks.check_data(x)
    _checks.check_key("ancestral", key)
    times = _grid(x, process, num_steps, times, default=256)
    return _linear(coefficients, score_fn, x, key, process, times, denoise, trajectory)


def ddim(
    score_fn: NoiseScoreFn,
    x: ArrayLike,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayLike | None = None,
    eta: ArrayLike = 0.0,
    denoise: bool = True,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Take the steps of DDIM, eq. (5): deterministic for ``eta = 0``, `ancestral` for ``eta = 1``.

    Order 1, weak where ``eta > 0``. With ``eta = 0`` this is Euler's method for the
    probability-flow ODE in ``y = x / alpha`` and ``r``, hence also the exponential Euler method in
    ``log r``, and exact in a single step for data of one point. `heun` and `dpm_solver_pp` need
    fewer evaluations for the same error.

    Under ``jax.jit``: ``jax.jit(partial(ddim, score_fn, process=process))``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``, from ``processes.prior_sample``.
        key: a random key, for ``eta > 0`` only.
        process: the process that the score was trained for.
        num_steps: number of steps on ``processes.time_grid``, 64 or more by default; each is one
            evaluation, and the denoising one more.
        times: instead of ``num_steps``: strictly decreasing times ``[num_steps + 1]``.
        eta: share of the ancestral noise, in [0, 1].
        denoise: end with the denoiser at the last time.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, the trajectory before
        the denoising.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_steps < 1``, ``eta`` is
            outside [0, 1] or, without a key, not zero, or the times are not strictly decreasing or
            leave the range of the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VPLinear()
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> ddim(lambda x, t: -x, x, process=process, num_steps=20).shape
        (4, 2)

    Reference: Song, Meng & Ermon 2021, eq. 12 and 16, https://arxiv.org/abs/2010.02502
    """
    known = _arrays.concrete(eta)
    if known is not None and not (known.ndim == 0 and 0.0 <= known <= 1.0):
        raise ValueError(f"eta must be one number in [0, 1], got {eta}.")
    silent = known is not None and known == 0.0
    if key is None and not silent:
        raise ValueError(f"eta={eta} draws noise: pass a key, or eta=0.")

    def coefficients(sigma, sigma_next, a, q2):
        kept = jnp.sqrt(q2 * (1.0 - eta**2 * (1.0 - q2)))
        return 1.0 / a, sigma**2 * (1.0 - kept) / a, sigma_next * eta * jnp.sqrt(1.0 - q2)

    x = _checks.check_data(x)
    times = _grid(x, process, num_steps, times, default=64)
    key = None if silent else key
    return _linear(coefficients, score_fn, x, key, process, times, denoise, trajectory)
