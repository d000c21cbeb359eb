"""Functions of a process: noising, drift and diffusion, prior, grids of times.

Equation numbers are those of sm_jax.processes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from sm_jax import _arrays, _checks
from sm_jax.processes._location import data_mean
from sm_jax.typing import ArrayOrList, ProcessLike, RandomFn

_USUAL_SPAN = 12.0  # of log r, for which the default numbers of steps are made


def noise_ratio(process: ProcessLike, t: ArrayOrList) -> jax.Array:
    """Return ``r(t) = sigma(t) / alpha(t)``, the noise per unit of signal.

    Args:
        process: any process.
        t: times, any shape.

    Returns:
        The ratio at each time; ``r^-2`` is the signal-to-noise ratio of the field.

    Example:
        >>> from sm_jax.processes import VE
        >>> print(noise_ratio(VE(), 2.0))
        2.0
    """
    t = _arrays.as_floating(t)
    return process.sigma(t) / process.alpha(t)


def marginal_std(process: ProcessLike, t: ArrayOrList, sigma_data: ArrayLike) -> jax.Array:
    """Return ``sqrt(alpha(t)^2 sigma_data^2 + sigma(t)^2)``, the standard deviation of ``x_t``.

    It is that of the noised data where ``sigma_data`` is that of the data. The squares neither
    overflow nor underflow.

    Args:
        process: any process.
        t: times, any shape.
        sigma_data: standard deviation of the data, one number, or of the shape of ``t``.

    Returns:
        The standard deviation at each time, in units of ``x_t``.

    Example:
        >>> from sm_jax.processes import VE
        >>> print(marginal_std(VE(), 4.0, 3.0))
        5.0
    """
    t = _arrays.as_floating(t)
    signal, sigma = process.alpha(t) * sigma_data, process.sigma(t)
    # Not by jnp.hypot, whose derivatives still divide by a square. A power of two rounds nothing.
    half = 0.5 * jax.lax.stop_gradient(jnp.maximum(signal, sigma))
    info = jnp.finfo(half.dtype)
    unit = jnp.maximum(jax.lax.reduce_precision(half, info.nexp, 0), float(info.tiny))
    return unit * jnp.sqrt((signal / unit) ** 2 + (sigma / unit) ** 2)


def perturb(
    process: ProcessLike,
    x0: ArrayOrList,
    t: ArrayOrList,
    key: jax.Array,
    *,
    noise: RandomFn = jax.random.normal,
) -> tuple[jax.Array, jax.Array]:
    """Noise data to time ``t``: ``x_t = alpha(t) x_0 + sigma(t) z``, ``z ~ N(0, I)``.

    Args:
        process: any process.
        x0: data ``[B, ...]``.
        t: times, a scalar or ``[B]``.
        key: a random key.
        noise: source of the unit noise, with the signature of ``jax.random.normal``.

    Returns:
        ``(x_t, z)``, both ``[B, ...]``: the noised data and the unit noise that is in them.

    Raises:
        TypeError: ``x0`` is not floating.
        ValueError: ``x0`` is empty, or ``t`` is negative or neither scalar nor ``[B]``.

    Example:
        >>> from sm_jax.processes import VE
        >>> x_t, z = perturb(VE(), jnp.zeros((4, 2)), 3.0, jax.random.key(0))
        >>> bool(jnp.allclose(x_t, 3.0 * z))
        True
    """
    x0 = _checks.check_data(x0, "x0")
    t = _checks.check_per_example("t", t, x0)
    _checks.check_not_negative("t", t)
    z = _arrays.drawn(noise, key, x0)
    alpha, sigma = (_arrays.expand_like(c, x0) for c in (process.alpha(t), process.sigma(t)))
    return (alpha * x0 + sigma * z).astype(x0.dtype), z.astype(x0.dtype)


def _log_derivative(function, t: jax.Array) -> jax.Array:
    """Return ``(log function)'(t)`` elementwise."""
    value, slope = jax.jvp(function, (t,), (jnp.ones_like(t),))
    return slope / value


def drift(process: ProcessLike, x: ArrayOrList, t: ArrayOrList) -> jax.Array:
    """Return the drift ``f(t) x``, ``f = alpha' / alpha``, of the forward process.

    Args:
        process: any process.
        x: points ``[B, ...]``.
        t: times, a scalar or ``[B]``.

    Returns:
        ``[B, ...]``, per unit of time.

    Example:
        >>> from sm_jax.processes import VPLinear
        >>> print(drift(VPLinear(), jnp.ones((1, 2)), 0.0))
        [[-0.05 -0.05]]
    """
    x = _checks.check_data(x)
    rate = _log_derivative(process.alpha, _checks.check_per_example("t", t, x))
    return (_arrays.expand_like(rate, x) * x).astype(x.dtype)


def diffusion_squared(process: ProcessLike, t: ArrayOrList) -> jax.Array:
    """Return ``g(t)^2``, the variance of the noise that is added per unit of time.

        g^2 = 2 sigma^2 (sigma' / sigma - alpha' / alpha)

    Args:
        process: any process.
        t: times above zero, any shape.

    Returns:
        ``g^2`` at each time; at time zero, where ``sigma`` may have no derivative, NaN.

    Example:
        >>> from sm_jax.processes import VPLinear
        >>> print(diffusion_squared(VPLinear(beta_min=0.1, beta_max=20.0), 1.0).round(3))
        20.0
    """
    t = _arrays.as_floating(t)
    growth = _log_derivative(process.sigma, t) - _log_derivative(process.alpha, t)
    return 2.0 * process.sigma(t) ** 2 * growth


def prior_sample(
    process: ProcessLike, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draw from the prior ``N(alpha(t_max) mean, sigma(t_max)^2 I)``, where sampling starts.

    Args:
        process: any process; its ``mean`` is zero if it has none.
        key: a random key.
        shape: ``(B, ...)``.
        dtype: floating dtype of the draws.

    Returns:
        Draws of the given shape.

    Raises:
        ValueError: the mean of the process is neither a scalar nor of the shape of one event.

    Example:
        >>> from sm_jax.processes import VE
        >>> prior_sample(VE(), jax.random.key(0), (4, 2)).shape
        (4, 2)
        >>> far = VE(sigma_max=1.0, mean=1000.0)
        >>> print(prior_sample(far, jax.random.key(0), (10_000,)).mean().round())
        1000.0
    """
    wide = _arrays.accumulator(dtype)
    center, sigma = _prior(process, tuple(shape[1:]), wide)
    return (center[None] + sigma * jax.random.normal(key, shape, wide)).astype(dtype)


def prior_log_prob(process: ProcessLike, x: ArrayOrList) -> jax.Array:
    """Return the log-density of the prior ``N(alpha(t_max) mean, sigma(t_max)^2 I)``.

        -1/2 |x - alpha mean|^2 / sigma^2 - D log(sigma sqrt(2 pi))    at t_max

    Args:
        process: any process; its ``mean`` is zero if it has none.
        x: points ``[B, ...]`` at time ``t_max``.

    Returns:
        ``[B]``, in nats, summed over the data axes.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` is empty, or the mean of the process is neither a scalar nor of the shape
            of one event.

    Example:
        >>> from sm_jax.processes import VE
        >>> print(f"{prior_log_prob(VE(sigma_max=1.0), jnp.zeros((1, 2)))[0]:.4f}")
        -1.8379
    """
    x = _checks.check_data(x)
    center, sigma = _prior(process, x.shape[1:], _arrays.accumulator(x.dtype))
    normalizer = _arrays.num_dims(x) * (jnp.log(sigma) + 0.5 * jnp.log(2.0 * jnp.pi))
    return -0.5 * _arrays.sum_data_axes(((x - center[None]) / sigma) ** 2) - normalizer


def _prior(process, event_shape, dtype):
    """Return the mean ``[...]`` and the standard deviation of the prior."""
    scale, sigma = (jnp.asarray(c(process.t_max), dtype) for c in (process.alpha, process.sigma))
    return scale * data_mean(process, event_shape, dtype), sigma


def time_grid(process: ProcessLike, num_steps: int, *, rho: ArrayLike | None = None) -> jax.Array:
    """Return the times of a solver, from ``t_max`` down to ``t_min``, dense where noise is small.

    The noise ratios ``r = sigma / alpha`` are spaced as Karras et al. space their noise levels,
    equally in ``r^(1 / rho)``, and mapped back to times, so that any process is served:

        r_i = (r_0^(1 / rho) + i / num_steps (r_N^(1 / rho) - r_0^(1 / rho)))^rho,
        t_i = process.time_at(r_i),    i = 0 .. num_steps,

    with ``r_0`` and ``r_N`` the ratios at ``t_max`` and ``t_min``.

    Args:
        process: any process.
        num_steps: number of steps, at least 1.
        rho: 1 is equal spacing; 7 puts many steps at small noise; towards infinity, geometric. By
            default 7, and of a process whose ``log r`` spans ``L > 12``, ``7 (L / 12)^2``.

    Returns:
        ``[num_steps + 1]`` strictly decreasing times.

    Raises:
        ValueError: ``num_steps < 1``, ``rho`` is not positive, or (where the process is not traced)
            ``alpha`` is 0 at ``t_max``, ``rho`` is so small that ``r^(1 / rho)`` overflows, or
            rounding makes times equal, as it does of many steps near ``alpha = 0``.

    Example:
        >>> from sm_jax.processes import VE
        >>> print(time_grid(VE(sigma_min=1.0, sigma_max=3.0), 2, rho=1.0))
        [3. 2. 1.]

    Reference: Karras et al. 2022, eq. 5, https://arxiv.org/abs/2206.00364
    """
    _checks.check_count("num_steps", num_steps)
    rho = 7.0 * _stretch(process) ** 2 if rho is None else rho
    _checks.check_positive("rho", rho)
    high, low = (noise_ratio(process, t) ** (1.0 / rho) for t in (process.t_max, process.t_min))
    inner = jnp.linspace(high, low, num_steps + 1)[1:-1] ** rho
    ends = [jnp.asarray(t, inner.dtype) for t in (process.t_max, process.t_min)]
    times = jnp.concatenate([ends[0][None], process.time_at(inner), ends[1][None]])
    known = _arrays.concrete(times)
    if known is not None and not np.all(np.isfinite(known)):
        if jnp.isinf(noise_ratio(process, process.t_max)):
            raise ValueError(f"alpha is 0 at t_max={process.t_max}, all noise: lower t_max.")
        raise ValueError(
            f"rho={rho} takes r^(1 / rho) out of the range of {times.dtype}: raise it."
        )
    if known is not None and not np.all(np.diff(known) < 0):
        raise ValueError(
            f"num_steps={num_steps} are more than {times.dtype} tells apart near "
            f"t={known[:-1][np.diff(known) >= 0][0]}: take fewer, 64 bits, or another end there."
        )
    return times


def solver_grid(
    process: ProcessLike,
    num_steps: int | None = None,
    *,
    times: ArrayOrList | None = None,
    default: int = 64,
    rho: float = 7.0,
) -> jax.Array:
    """Return the times of a solver: the given ones, or a `time_grid` for a process of any span.

    Default numbers of steps and ``rho`` are made for a ``log r`` that spans up to 12, as that of
    `VPLinear` does. With them over a wider span ``L`` (``VPLinear(beta_max=100)``: 32) a solver
    would jump over the scale of the data. So the grid has

        num_steps = ceil(default max(1, L / 12)),    rho max(1, L / 12)^2,

    which leaves the steps at the scale of the data as long as they were.

    Args:
        process: any process.
        num_steps: number of steps, instead of the default one.
        times: instead of ``num_steps``: strictly decreasing times ``[num_steps + 1]``, which are
            checked by `check_times`.
        default: number of steps for a span of up to 12. For a traced process, whose span is
            unknown, it is the number of steps for any span.
        rho: exponent of `time_grid` for a span of up to 12.

    Returns:
        ``[num_steps + 1]`` strictly decreasing times.

    Raises:
        ValueError: both ``num_steps`` and ``times`` are given, or one is refused by `time_grid` or
            `check_times`.

    Example:
        >>> from sm_jax.processes import VE, VPLinear
        >>> solver_grid(VPLinear(), default=64).shape, solver_grid(VE(), 10).shape
        ((65,), (11,))
    """
    if times is not None:
        if num_steps is not None:
            raise ValueError(f"give num_steps={num_steps} or times={times}, not both.")
        return check_times(process, times)
    factor = _stretch(process)
    if num_steps is None:
        with jax.ensure_compile_time_eval():  # known under jit too
            known = _arrays.concrete(_stretch(process))
        num_steps = default if known is None else math.ceil(default * float(known))
    return time_grid(process, num_steps, rho=rho * factor**2)


def _stretch(process: ProcessLike) -> jax.Array:
    """Return by what factor ``log r`` spans more than usual, 1 for less."""
    low, high = (jnp.log(noise_ratio(process, t)) for t in (process.t_min, process.t_max))
    factor = jnp.maximum(1.0, (high - low) / _USUAL_SPAN)
    return jnp.where(jnp.isfinite(factor), factor, 1.0)


def check_times(process: ProcessLike, times: ArrayOrList) -> jax.Array:
    """Return solver times as an array, or raise unless they are a decreasing grid of the process.

    Args:
        process: any process.
        times: ``[num_steps + 1]`` strictly decreasing times within ``[t_min, t_max]``.

    Returns:
        The times, in floating point.

    Raises:
        ValueError: there are fewer than two times, or (where they are not traced) they do not
            decrease, in the dtype of the result, or leave the range by more than rounding.

    Example:
        >>> from sm_jax.processes import VE
        >>> print(check_times(VE(sigma_min=1.0, sigma_max=9.0), [9.0, 3.0, 1.0]))
        [9. 3. 1.]
    """
    known = _arrays.concrete(times)
    times = _arrays.as_floating(times)
    known = None if known is None else known.astype(times.dtype)
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f"times must be a vector of at least two times, got shape {times.shape}.")
    if known is not None and not np.all(np.diff(known) < 0):
        raise ValueError(f"times must strictly decrease, from t_max to t_min, got {known}.")
    low, high = (_arrays.concrete(t) for t in (process.t_min, process.t_max))
    if known is None or low is None or high is None:
        return times
    # Relative, for rounding, by float32 at least: a time below zero has no meaning at all.
    slack = max(1e-6, float(jnp.finfo(times.dtype).eps))
    if known[0] > high * (1 + slack) or known[-1] < low * (1 - slack):
        raise ValueError(
            f"times must lie in the range of the process, [{low}, {high}], got {known[-1]} to "
            f"{known[0]}: the score was not trained outside it."
        )
    return times
