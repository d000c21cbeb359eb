"""Samplers that undo a noising process: the reverse SDE and the probability-flow ODE.

The process ``dx = f x dt + g dw`` of sm_jax.processes, run backwards from its prior, is

    dx = (f x - g^2 s(x, t)) dt + g dw,    t from t_max down to t_min,                 (1)

and the ordinary differential equation with the same marginal densities is, in the variables
``y = x / alpha`` and ``r = sigma / alpha`` of any process,

    dy / dr = (y - D) / r = -r alpha s(x, t),    D = E[x_0 | x_t].                     (2)

(2) is the ODE of EDM: one solver serves every process, and its last step, from ``t_min`` to no
noise, is the denoiser ``D`` itself.

References: Song et al. 2021, https://arxiv.org/abs/2011.13456; Karras et al. 2022,
https://arxiv.org/abs/2206.00364
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.parameterization import denoiser_from_score
from sm_jax.processes import check_times, diffusion_squared, drift, noise_ratio
from sm_jax.processes._derived import solver_grid
from sm_jax.processes._location import warn_off_center
from sm_jax.samplers._scan import run, wide
from sm_jax.typing import NoiseScoreFn, ProcessLike


def _grid(
    x: jax.Array,
    process: ProcessLike,
    num_steps: int | None,
    times: ArrayLike | None,
    default: int,
    rho: float = 7.0,
) -> jax.Array:
    """Return the decreasing times of a solver, given or from the grid of the process."""
    if times is not None and num_steps is not None:
        raise ValueError(f"give num_steps={num_steps} or times={times}, not both.")
    if times is None:
        times = solver_grid(process, num_steps, default=default, rho=rho)
    else:
        times = check_times(process, times)
    return times.astype(_arrays.accumulator(x.dtype))


def _finish(score_fn: NoiseScoreFn, process: ProcessLike, t: jax.Array, denoise: bool):
    """Return the last move of a diffusion sampler: the denoiser at time ``t``, or nothing."""
    denoiser_fn = denoiser_from_score(score_fn, process=process)
    return (lambda x: denoiser_fn(x, jnp.broadcast_to(t, x.shape[:1]))) if denoise else None


def _located(process: ProcessLike, result):
    """Return the result of a sampler; warn where the prior is far from its samples."""
    warn_off_center(process, result[0] if isinstance(result, tuple) else result, "the samples")
    return result


def euler_maruyama(
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
    """Integrate the reverse SDE, eq. (1), by Euler-Maruyama.

    Weak order 1. Slower than `heun`, and more forgiving of errors of the score, which its fresh
    noise washes out.

    Under ``jax.jit``: ``jax.jit(partial(euler_maruyama, score_fn, process=process))``.

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
        >>> euler_maruyama(score_fn, x, jax.random.key(1), process=process, num_steps=20).shape
        (4, 2)

    Reference: Song et al. 2021, eq. 6, https://arxiv.org/abs/2011.13456
    """
    x = _checks.check_data(x)
    _checks.check_key("euler_maruyama", key)
    times = _grid(x, process, num_steps, times, default=256)
    score_fn = wide(score_fn, x)

    def step(x, given):
        t, t_next, key = given
        variance = diffusion_squared(process, t)
        score = score_fn(x, jnp.broadcast_to(t, x.shape[:1]))
        mean = x + (t_next - t) * (drift(process, x, t) - variance * score)
        z = jax.random.normal(key, x.shape, x.dtype)
        return mean + jnp.sqrt(variance * (t - t_next)) * z

    inputs = (times[:-1], times[1:], jax.random.split(key, times.shape[0] - 1))
    finish = _finish(score_fn, process, times[-1], denoise)
    return _located(process, run(step, x, inputs, finish, trajectory))


def heun(
    score_fn: NoiseScoreFn,
    x: ArrayLike,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayLike | None = None,
    churn: ArrayLike = 0.0,
    churn_interval: tuple[ArrayLike, ArrayLike] | None = None,
    churn_noise: ArrayLike = 1.0,
    denoise: bool = True,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Integrate the probability-flow ODE, eq. (2), by Heun's method, as EDM does.

    Order 2. The first choice for sampling: few evaluations, and without ``churn`` a deterministic,
    invertible map from noise to samples.

    Under ``jax.jit``: ``jax.jit(partial(heun, score_fn, process=process))``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``, from ``processes.prior_sample``.
        key: a random key, for ``churn`` only.
        process: the process that the score was trained for.
        num_steps: number of steps on ``processes.time_grid``, 32 or more by default; each is two
            evaluations, and the denoising one more.
        times: instead of ``num_steps``: strictly decreasing times ``[num_steps + 1]``.
        churn: EDM's ``S_churn``: each step first raises the noise level by a factor
            ``1 + min(churn / num_steps, sqrt(2) - 1)`` with fresh noise, but not above that of
            ``t_max``; 0 is deterministic.
        churn_interval: ``(low, high)``, EDM's ``S_tmin`` and ``S_tmax``: only steps from times
            ``low <= t <= high`` do so. By default all.
        churn_noise: EDM's ``S_noise``: standard deviation of the fresh noise, over what the raised
            level asks for. Slightly above 1 it makes up for a network that removes too much noise;
            any other than 1 is a bias where the score is exact.
        denoise: end with the denoiser at the last time.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, the trajectory before
        the denoising.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_steps < 1``, ``churn`` is
            negative or has no key, ``churn_noise`` is not positive, ``churn_interval`` is empty, or
            the times are not strictly decreasing or leave the range of the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=10.0)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)
        >>> heun(score_fn, x, process=process, num_steps=20).shape
        (4, 2)

    Reference: Karras et al. 2022, algorithms 1 and 2, https://arxiv.org/abs/2206.00364
    """
    x = _checks.check_data(x)
    times = _grid(x, process, num_steps, times, default=32)
    score_fn = wide(score_fn, x)
    _checks.check_scalar("churn", churn)
    _checks.check_not_negative("churn", churn)
    silent = _arrays.concrete(churn) == 0.0  # a traced one may be any
    if key is None and not silent:
        raise ValueError(f"churn={churn} draws noise: pass a key, or churn=0.")
    _checks.check_scalar("churn_noise", churn_noise)
    _checks.check_positive("churn_noise", churn_noise)
    low, high = (None, None) if churn_interval is None else churn_interval
    known = [_arrays.concrete(end) for end in (low, high)]
    if all(end is not None for end in known) and not known[0] < known[1]:
        raise ValueError(
            f"churn_interval must be (low, high) with low < high, got {churn_interval}."
        )

    count = times.shape[0] - 1
    ratios = noise_ratio(process, times)
    raised, t_raised = ratios[:-1], times[:-1]
    if not silent:
        # Never above the largest level, where the score was not trained.
        largest = jnp.asarray(noise_ratio(process, process.t_max), raised.dtype)
        growth = jnp.minimum(churn / count, 2.0**0.5 - 1.0).astype(raised.dtype)
        raised = jnp.minimum(raised * (1.0 + growth), largest)
        if churn_interval is not None:
            inside = (times[:-1] >= low) & (times[:-1] <= high)
            raised = jnp.where(inside, raised, ratios[:-1])
        t_raised = jnp.where(raised > ratios[:-1], process.time_at(raised), t_raised)

    def slope(y, t, r):
        score = score_fn(process.alpha(t) * y, jnp.broadcast_to(t, x.shape[:1]))
        return -r * process.alpha(t) * score

    def step(x, given):
        t, t_next, t_raised, r_raised, r_next, *noise = given
        y = x / process.alpha(t)
        if noise:
            added, key = noise
            y = y + added * jax.random.normal(key, x.shape, x.dtype)
        first = slope(y, t_raised, r_raised)
        second = slope(y + (r_next - r_raised) * first, t_next, r_next)
        y = y + 0.5 * (r_next - r_raised) * (first + second)
        return process.alpha(t_next) * y

    inputs = (times[:-1], times[1:], t_raised, raised, ratios[1:])
    if not silent:
        # The root is guarded twice, as its derivative at zero is infinite.
        gap = (raised - ratios[:-1]) * (raised + ratios[:-1])  # 0, where squares may round apart
        added = jnp.where(gap > 0.0, jnp.sqrt(jnp.where(gap > 0.0, gap, 1.0)), 0.0)
        inputs = (*inputs, churn_noise * added, jax.random.split(key, count))
    finish = _finish(score_fn, process, times[-1], denoise)
    return _located(process, run(step, x, inputs, finish, trajectory))
