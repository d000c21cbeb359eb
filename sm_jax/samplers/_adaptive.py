r"""Samplers that choose their own steps, for each example apart, from an estimate of the error.

In ``y = x / alpha``, ``r = sigma / alpha`` and ``l = -log r``, which grows while the noise falls,
the probability-flow ODE and the reverse SDE of any process are

    dy / dl = c (D(y, l) - y) + noise,    c = 1 and no noise, or c = 2.                   (1)

The ODE is handed to diffrax in the scaled variable ``w = (x - alpha m) / k``, which is
``(y - m) / sqrt(d^2 + r^2)``, with ``k = sqrt(alpha^2 d^2 + sigma^2)``, and ``m`` and ``d`` the
mean and the standard deviation of the data:

    dw / dl = (sigma^2 / k) (s(x, t) + w / k),                                            (2)

which vanishes for data from ``N(m, d^2 I)``, so that only what sets the data apart from a Gaussian
costs steps.

The SDE is stepped by a pair of methods, the exponential Euler method and that of Heun,

    y'  = exp(-2 h) y + (1 - exp(-2 h)) D(y, l) + r' sqrt(1 - exp(-2 h)) z,               (3)
    y'' = y' + (1 - (1 - exp(-2 h)) / (2 h)) (D(y', l + h) - D(y, l)),                    (4)

with normal noise ``z``. Their difference estimates the error. An error in ``y`` is tolerated up to

    atol + rtol r',    r' = sigma / alpha at the end of the step:                         (5)

it is to be small against the noise that is still there, whatever the scale of the data.

References: Song et al. 2021, section 4.3, https://arxiv.org/abs/2011.13456; Jolicoeur-Martineau
et al. 2021, https://arxiv.org/abs/2105.14080
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.parameterization import denoiser_from_score
from sm_jax.processes import (
    data_mean,
    marginal_std,
    noise_ratio,
    solver_grid,
    warn_off_center,
)
from sm_jax.samplers._solve import last_move
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ProcessLike

# Steps of the SDE, in l: a step to no noise at all would find no error, for D = y there.
_FIRST, _LONGEST = 0.1, 0.5


class AdaptiveSample(NamedTuple):
    """Samples and what each of them cost.

    Attributes:
        x: samples ``[B, ...]``; NaN in the rows that did not finish.
        num_evaluations: evaluations of the score for each example, ``[B]``, denoising included.
        finished: whether each example reached the last time within the bound of steps, ``[B]``.
        trajectory: points ``[num_steps + 1, B, ...]`` at the times of the grid, or None.
    """

    x: jax.Array
    num_evaluations: jax.Array
    finished: jax.Array
    trajectory: jax.Array | None = None


def adaptive_ode(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    rtol: float = 1e-3,
    atol: float = 0.0,
    sigma_data: ArrayLike = 1.0,
    solver: Any = None,
    max_steps: int = 1024,
    denoise: bool = True,
    trajectory: bool = False,
) -> AdaptiveSample:
    """Integrate the probability-flow ODE by an adaptive method of diffrax.

    With ``l = -log(sigma / alpha)``, ``d = sigma_data``, ``k = sqrt(alpha^2 d^2 + sigma^2)`` and
    ``m`` the mean of the process,

        dw / dl = (sigma^2 / k) (s(x_t, t) + w / k),    w = (x_t - alpha m) / k.

    A step is accepted where the estimate of its error, with ``r'`` the value of ``sigma / alpha``
    at its end, satisfies

        rms(error of x_t / alpha) < atol + rtol r',

    the root mean square being over an example, and it is at most 1 long in ``l``. The flow then
    amplifies what is left of the errors where paths part between modes.

    The order is that of the solver, 5 by default. Use it to set an error rather than a number of
    steps. Each example has steps of its own, and a batch takes as long as its slowest example. At
    the low accuracy that samples need, `dpm_solver_pp` takes fewer evaluations. A network that is
    not smooth makes the steps tiny, and so does ``rtol`` below 1e-4 in float32 where the noise is
    far below the scale of the data: give ``atol`` then.

    Under ``jax.jit``: ``jax.jit(partial(adaptive_ode, score_fn, process=process))``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``; it is called on single rows, ``B = 1``,
            under ``jax.vmap``.
        x: noise of the prior ``[B, ...]``, from ``processes.prior_sample``.
        key: not used; taken so that all samplers are called alike.
        process: the process that the score was trained for.
        num_steps: intervals of the grid on which the trajectory is kept, 32 or more by default; the
            solver does not stop there.
        times: instead of ``num_steps``: strictly decreasing times ``[num_steps + 1]``, from the
            first to the last of which is integrated.
        rtol: tolerated error of one step, relative to the noise: smaller than that of
            `adaptive_sde`, because errors of a smooth path cost little to avoid, and larger than
            that of `sm_jax.likelihood.adaptive_log_prob`, which shows errors that samples hide.
        atol: tolerated absolute error of one step, in units of the data; more than 0 saves steps
            where the noise is far below what matters.
        sigma_data: standard deviation of the data, ``d``. It sets the steps only: the nearer, the
            fewer; the tolerance does not depend on it.
        solver: an explicit Runge-Kutta method of diffrax with an error estimate;
            ``diffrax.Tsit5()`` by default.
        max_steps: largest number of steps for an example, rejected ones included.
        denoise: end with the denoiser at the last time.
        trajectory: also return the trajectory.

    Returns:
        ``AdaptiveSample(x, num_evaluations, finished, trajectory)``.

    Raises:
        ImportError: diffrax is not installed.
        TypeError: ``x`` is not floating, the score has another dtype, or ``solver`` is not an
            explicit Runge-Kutta method.
        ValueError: ``x`` is empty, the score has another shape, ``rtol``, ``sigma_data`` or a count
            is not positive, ``atol`` is negative, or the times are not strictly decreasing or leave
            the range of the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=10.0)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)
        >>> sample = adaptive_ode(score_fn, x, process=process)
        >>> sample.x.shape, bool(sample.finished.all())
        ((4, 2), True)

    Reference: Kidger 2021, https://arxiv.org/abs/2202.02435
    """
    try:
        import diffrax

        from sm_jax import _flow_steps
    except ImportError as error:
        message = "adaptive_ode needs diffrax: pip install diffrax, or use heun."
        raise ImportError(message) from error

    x = _checks.check_data(x)
    times = solver_grid(process, num_steps, times=times, default=32)
    times = times.astype(_arrays.accumulator(x.dtype))
    _check_tolerances(rtol, atol)
    _checks.check_scalar("sigma_data", sigma_data)
    _checks.check_positive("sigma_data", sigma_data)
    _checks.check_count("max_steps", max_steps)
    solver = _flow_steps.explicit_solver(solver)
    row_score_fn = _checks.checked(score_fn, x[:1])
    mean = data_mean(process, x.shape[1:], _arrays.accumulator(x.dtype))

    def scale(t):
        return marginal_std(process, t, sigma_data)

    def flow(level, w, _):
        t = process.time_at(jnp.exp(-level))
        k = scale(t)
        point = (process.alpha(t) * mean + k * w).astype(x.dtype)
        score = row_score_fn(point[None], t[None])[0]
        return (process.sigma(t) ** 2 / k * (score + w / k)).astype(w.dtype)

    levels = -jnp.log(noise_ratio(process, times)).astype(_arrays.accumulator(x.dtype))

    def measure(error, start, end):
        r = jnp.exp(-end)
        error = jnp.hypot(sigma_data, r) * _flow_steps.root_mean_square(error)
        return (error / (atol + rtol * r)).astype(levels.dtype)

    def solve(w):
        return _flow_steps.solve(
            flow,
            levels[0],
            levels[-1],
            w,
            measure=measure,
            solver=solver,
            max_steps=max_steps,
            saveat=diffrax.SaveAt(ts=levels) if trajectory else None,
        )

    start = (x - process.alpha(times[0]) * mean[None]) / scale(times[0])
    solution = compiled(jax.vmap(solve), start.astype(levels.dtype))
    finished = solution.result == diffrax.RESULTS.successful
    num_evaluations = _flow_steps.evaluations(solution, solver)
    kept = times if trajectory else times[-1:]
    path = jnp.moveaxis(solution.ys, 0, 1)
    alpha, k = (_arrays.expand_like(c(kept), path) for c in (process.alpha, scale))
    path = (alpha * mean[None, None] + k * path).astype(x.dtype)
    sample = _closed(score_fn, process, times[-1], path[-1], num_evaluations, finished, denoise)
    return sample._replace(trajectory=path) if trajectory else sample


def _check_tolerances(rtol, atol) -> None:
    for name, value, check in (
        ("rtol", rtol, _checks.check_positive),
        ("atol", atol, _checks.check_not_negative),
    ):
        _checks.check_scalar(name, value)
        check(name, value)


def _closed(score_fn, process, t, x, num_evaluations, finished, denoise) -> AdaptiveSample:
    """Return the result: the denoiser of the last points, and NaN where they are not the last."""
    score_fn = _checks.checked(score_fn, x)
    finish = last_move(score_fn, process, t, denoise)
    result = x if finish is None else compiled(finish, x)
    result = jnp.where(_arrays.expand_like(finished, x), result, jnp.nan)
    warn_off_center(process, result, "the samples")
    return AdaptiveSample(result, num_evaluations + int(denoise), finished)


def adaptive_sde(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    process: ProcessLike,
    times: ArrayOrList | None = None,
    rtol: ArrayLike = 0.05,
    atol: ArrayLike = 0.0,
    max_steps: int = 1000,
    denoise: bool = True,
) -> AdaptiveSample:
    """Integrate the reverse SDE by a pair of stochastic methods with steps of adapted length.

    In ``y = x_t / alpha`` and ``l = -log r``, ``r = sigma / alpha``, with the denoiser ``D``, a
    step of length ``h`` from ``l``, where ``r' = exp(-h) r``, goes to ``y''``, of weak order 2:

        y'  = exp(-2 h) y + (1 - exp(-2 h)) D(y, l) + r' sqrt(1 - exp(-2 h)) z,    z ~ N(0, I),
        y'' = y' + (1 - (1 - exp(-2 h)) / (2 h)) (D(y', l + h) - D(y, l)).

    With ``e`` the root mean square, over an example, of ``(y'' - y') / (atol + rtol r')``, the next
    step has the length

        h_next = min(c^(-1/3), 2 h, 1/2),    c = (c_before + exp(4 h) e^2 / h^3) / 2,

    and the first 0.1, with ``c = exp(4 h) e^2 / h^3`` after it. So a step grows at most twofold.
    At the length ``c^(-1/3)``, ``e`` is expected to be 1: in noise far above the data the square of
    ``e`` grows like ``h^3 / r^4``. The mean with the steps before evens out what is due to ``z``.

    Every step is accepted: its length is chosen before its noise is drawn. Rejecting
    steps by an error that depends on their noise selects among the noise, which narrows the samples
    and costs the second order. So ``finished`` says that the end was reached, not that ``e`` was at
    most 1 in each step.

    Use it for a stochastic sampler when the number of steps is not known. A batch takes as long as
    its slowest example.

    Under ``jax.jit``: ``jax.jit(partial(adaptive_sde, score_fn, process=process))``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``, from ``processes.prior_sample``.
        key: a random key.
        process: the process that the score was trained for.
        times: strictly decreasing times; only the first and the last are used, as the ends, which
            are ``t_max`` and ``t_min`` by default.
        rtol: target error of one step, relative to the noise. It is larger than that of
            `adaptive_ode`, because the noise of later steps corrects part of the error.
        atol: target absolute error of one step, in units of the data; more than 0 saves steps where
            the noise is far below what matters.
        max_steps: largest number of steps, each two evaluations.
        denoise: end with the denoiser at the last time.

    Returns:
        ``AdaptiveSample(x, num_evaluations, finished)``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``rtol`` or ``max_steps`` is not
            positive, ``atol`` is negative, or the times are not strictly decreasing or leave the
            range of the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=10.0)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)
        >>> sample = adaptive_sde(score_fn, x, jax.random.key(1), process=process)
        >>> sample.x.shape, bool(sample.finished.all())
        ((4, 2), True)

    Reference: Jolicoeur-Martineau et al. 2021, https://arxiv.org/abs/2105.14080, for a pair of
    stochastic methods whose difference sets the steps; they reject steps.
    """
    x = _checks.check_data(x)
    _checks.check_key("adaptive_sde", key)
    times = solver_grid(process, times=times, default=1).astype(_arrays.accumulator(x.dtype))
    _check_tolerances(rtol, atol)
    _checks.check_count("max_steps", max_steps)
    denoiser_fn = denoiser_from_score(_checks.checked(score_fn, x), process=process)
    dtype = _arrays.accumulator(x.dtype)
    start, end = -jnp.log(noise_ratio(process, times[jnp.array([0, -1])])).astype(dtype)
    keys = jax.random.split(key, x.shape[0])

    def wide(value):
        return _arrays.expand_like(value, x)

    def denoised(y, level):
        t = process.time_at(jnp.exp(-level))
        points = (wide(process.alpha(t)) * y).astype(x.dtype)
        return denoiser_fn(points, t).astype(dtype)

    @partial(jax.vmap, in_axes=(0, None))
    def normal(key, count):
        return jax.random.normal(jax.random.fold_in(key, count), x.shape[1:], dtype)

    def step(state):
        count, y, level, h, c, steps = state
        active, remaining = level < end, end - level
        h = jnp.where(active, jnp.minimum(h, remaining), _LONGEST)
        level_next = jnp.where(h < remaining, level + h, end)
        r_next, share = jnp.exp(-level_next), -jnp.expm1(-2.0 * h)

        first = denoised(y, level)
        noise = wide(r_next * jnp.sqrt(share)) * normal(keys, count)
        moved = y + wide(share) * (first - y) + noise
        weight = 1.0 - share / (2.0 * h)
        change = wide(weight) * (denoised(moved, level_next) - first)

        tolerance = atol + rtol * r_next
        squares = _arrays.sum_data_axes((change / wide(tolerance)) ** 2) / _arrays.num_dims(x)
        c_now = jnp.exp(4.0 * h) * squares / h**3
        c = jnp.where(count == 0, c_now, 0.5 * (c + c_now))
        length = jnp.minimum(jnp.minimum(c ** (-1.0 / 3.0), 2.0 * h), _LONGEST)
        y = jnp.where(wide(active), moved + change, y)
        level = jnp.where(active, level_next, level)
        return count + 1, y, level, length.astype(dtype), c.astype(dtype), steps + active

    def unfinished(state):
        return (state[0] < max_steps) & jnp.any(state[2] < end)

    y = (_arrays.accumulated(x) / process.alpha(times[0])).astype(dtype)
    rows = jnp.zeros(x.shape[0], dtype)
    begin = (0, y, rows + start, rows + _FIRST, rows, rows.astype(int))
    _, y, level, _, _, steps = compiled(partial(jax.lax.while_loop, unfinished, step), begin)
    last = (process.alpha(times[-1]) * y).astype(x.dtype)
    return _closed(score_fn, process, times[-1], last, 2 * steps, level == end, denoise)
