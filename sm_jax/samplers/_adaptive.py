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

    y'  = exp(-2 h) y + (1 - exp(-2 h)) D(y, l) + n,                                      (3)
    y'' = y' + (1 - (1 - exp(-2 h)) / (2 h)) (D(y', l + h) - D(y, l)),                    (4)

whose difference is the estimate of the error. The noise is ``n = r'^2 (W(q') - W(q))`` with
``q = 1 / r^2`` and a Brownian motion ``W``, each path of which is fixed by its key: every point is
drawn given the two ends of the smallest of nested intervals, each half of the last, in which it
lies. So a shorter step after a rejected one sees the same noise; fresh noise would favor what is
easy to integrate.

References: Song et al. 2021, section 4.3, https://arxiv.org/abs/2011.13456; Jolicoeur-Martineau
et al. 2021, https://arxiv.org/abs/2105.14080
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax._eager import compiled
from sm_jax.parameterization import denoiser_from_score
from sm_jax.processes import data_mean, noise_ratio
from sm_jax.processes._location import warn_off_center
from sm_jax.samplers._diffusion import _finish, _grid
from sm_jax.typing import NoiseScoreFn, ProcessLike

# The steps of the SDE, in l, end at multiples of the range over 2^_DEPTH, and are at most _LONGEST:
# a step to no noise at all would find no error, for D = y there.
_DEPTH, _LONGEST = 13, 1.0


class AdaptiveSample(NamedTuple):
    """Samples and what each of them cost.

    Attributes:
        x: samples ``[B, ...]``; NaN in the rows that did not finish.
        num_evaluations: evaluations of the score for each example, ``[B]``, denoising included.
        finished: whether each example reached the last time within the bound of steps, and each
            step of `adaptive_sde` kept its tolerance, ``[B]``.
        path: points ``[num_steps + 1, B, ...]`` at the times of the grid, or None.
    """

    x: jax.Array
    num_evaluations: jax.Array
    finished: jax.Array
    path: jax.Array | None = None


def probability_flow(
    score_fn: NoiseScoreFn,
    x: ArrayLike,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayLike | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    sigma_data: ArrayLike = 1.0,
    solver: Any = None,
    max_steps: int = 1024,
    denoise: bool = True,
    trajectory: bool = False,
) -> AdaptiveSample:
    """Integrate the probability-flow ODE, eq. (2), by an adaptive method of diffrax.

    The order is that of the solver, 5 by default. For an error that is asked for, rather than a
    number of steps; each example has steps of its own, and a batch takes as long as its slowest
    example. At the low accuracy that samples need, `dpm_solver_pp` takes fewer evaluations. A
    network that is not smooth makes the steps tiny.

    Under ``jax.jit``: ``jax.jit(partial(probability_flow, score_fn, process=process))``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``; it is called on single rows, ``B = 1``,
            under ``jax.vmap``.
        x: noise of the prior ``[B, ...]``, from ``processes.prior_sample``.
        key: not used; taken so that all samplers are called alike.
        process: the process that the score was trained for.
        num_steps: intervals of the grid on which the path is kept, 32 by default; the solver does
            not stop there.
        times: instead of ``num_steps``: strictly decreasing times ``[num_steps + 1]``, from the
            first to the last of which is integrated.
        rtol: tolerated error of one step, relative to ``w``.
        atol: tolerated absolute error of one step in ``w``, which has unit scale.
        sigma_data: standard deviation of the data, ``d``.
        solver: an explicit Runge-Kutta method of diffrax with an error estimate;
            ``diffrax.Tsit5()`` by default.
        max_steps: largest number of steps for an example, rejected ones included.
        denoise: end with the denoiser at the last time.
        trajectory: also return the path.

    Returns:
        ``AdaptiveSample(x, num_evaluations, finished, path)``.

    Raises:
        ImportError: diffrax is not installed.
        TypeError: ``x`` is not floating, the score has another dtype, or ``solver`` is no explicit
            Runge-Kutta method.
        ValueError: ``x`` is empty, the score has another shape, a tolerance, ``sigma_data`` or a
            count is not positive, or the times are not strictly decreasing or leave the range of
            the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=10.0)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)
        >>> sample = probability_flow(score_fn, x, process=process)
        >>> sample.x.shape, bool(sample.finished.all())
        ((4, 2), True)

    Reference: Kidger 2021, https://arxiv.org/abs/2202.02435
    """
    try:
        import diffrax
    except ImportError as error:
        message = "probability_flow needs diffrax: pip install sm_jax[ode], or use heun."
        raise ImportError(message) from error

    x = _checks.check_data(x)
    times = _grid(x, process, num_steps, times, default=32)
    for name, value in (("rtol", rtol), ("atol", atol), ("sigma_data", sigma_data)):
        _checks.check_scalar(name, value)
        _checks.check_positive(name, value)
    _checks.check_count("max_steps", max_steps)
    solver = diffrax.Tsit5() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractERK):
        raise TypeError(f"solver must be an explicit Runge-Kutta method of diffrax, got {solver}.")
    row_score_fn = _checks.checked(score_fn, x[:1])
    mean = data_mean(process, x.shape[1:], _checks.accumulator(x.dtype))

    def scale(t):
        return jnp.sqrt((process.alpha(t) * sigma_data) ** 2 + process.sigma(t) ** 2)

    def flow(level, w, _):
        t = process.time(jnp.exp(-level))
        k = scale(t)
        point = (process.alpha(t) * mean + k * w).astype(x.dtype)
        score = row_score_fn(point[None], t[None])[0]
        return (process.sigma(t) ** 2 / k * (score + w / k)).astype(w.dtype)

    levels = -jnp.log(noise_ratio(process, times)).astype(_checks.accumulator(x.dtype))

    def solve(w):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(flow),
            solver,
            levels[0],
            levels[-1],
            0.01 * (levels[-1] - levels[0]),
            w,
            saveat=diffrax.SaveAt(ts=levels) if trajectory else diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=max_steps,
            throw=False,
        )

    start = (x - process.alpha(times[0]) * mean[None]) / scale(times[0])
    solution = compiled(jax.vmap(solve), start.astype(levels.dtype))
    finished = solution.result == diffrax.RESULTS.successful
    # Methods that end a step where the next begins evaluate that point once.
    shared = int(solver.tableau.fsal)
    steps = solution.stats["num_steps"]
    num_evaluations = steps * (solver.tableau.num_stages - shared) + shared
    kept = times if trajectory else times[-1:]
    path = jnp.moveaxis(solution.ys, 0, 1)
    alpha, k = (_checks.expand_like(c(kept), path) for c in (process.alpha, scale))
    path = (alpha * mean[None, None] + k * path).astype(x.dtype)
    sample = _closed(score_fn, process, times[-1], path[-1], num_evaluations, finished, denoise)
    return sample._replace(path=path) if trajectory else sample


def _closed(score_fn, process, t, x, num_evaluations, finished, denoise) -> AdaptiveSample:
    """Return the result: the denoiser of the last points, and NaN where they are not the last."""
    score_fn = _checks.checked(score_fn, x)
    finish = _finish(score_fn, process, t, denoise)
    result = x if finish is None else compiled(finish, x)
    result = jnp.where(_checks.expand_like(finished, x), result, jnp.nan)
    warn_off_center(process, result, "the samples")
    return AdaptiveSample(result, num_evaluations + int(denoise), finished)


def adaptive_sde(
    score_fn: NoiseScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    process: ProcessLike,
    times: ArrayLike | None = None,
    rtol: ArrayLike = 0.02,
    atol: ArrayLike = 0.01,
    safety: ArrayLike = 0.9,
    max_steps: int = 1000,
    denoise: bool = True,
) -> AdaptiveSample:
    """Integrate the reverse SDE by a pair of stochastic methods with steps of controlled error.

    The steps are of eq. (4), of weak order 2 were they of fixed length. With ``e`` the root mean
    square, over an example, of ``(y' - y'') / max(atol, rtol max(|y' - m|, |y'_before - m|))``, a
    step is accepted if ``e <= 1``, and the next has the length ``safety h e^(-2/3)``.
    Jolicoeur-Martineau et al. do so with the pair of Euler-Maruyama and stochastic Heun in the time
    of the process; here the linear part of the SDE is exact, and one formula serves every process.

    For samples of a stochastic sampler when the number of steps is not known. A batch takes as long
    as its slowest example.

    Under ``jax.jit``: ``jax.jit(partial(adaptive_sde, score_fn, process=process))``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``, from ``processes.prior_sample``.
        key: a random key.
        process: the process that the score was trained for.
        times: strictly decreasing, of which the first and the last are the ends; ``t_max`` and
            ``t_min`` by default.
        rtol: tolerated error of one step, relative to ``x / alpha - m``.
        atol: tolerated absolute error of one step, in units of the data.
        safety: factor of the step length, below 1.
        max_steps: largest number of attempted steps, each two evaluations.
        denoise: end with the denoiser at the last time.

    Returns:
        ``AdaptiveSample(x, num_evaluations, finished)``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, a tolerance, ``safety`` or
            ``max_steps`` is not positive, or the times are not strictly decreasing or leave the
            range of the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=10.0)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)
        >>> sample = adaptive_sde(score_fn, x, jax.random.key(1), process=process)
        >>> sample.x.shape, bool(sample.finished.all())
        ((4, 2), True)

    Reference: Jolicoeur-Martineau et al. 2021, algorithm 1, https://arxiv.org/abs/2105.14080
    """
    x = _checks.check_data(x)
    _checks.check_key("adaptive_sde", key)
    times = _grid(x, process, None, times, default=1)
    for name, value in (("rtol", rtol), ("atol", atol), ("safety", safety)):
        _checks.check_scalar(name, value)
        _checks.check_positive(name, value)
    _checks.check_count("max_steps", max_steps)
    denoiser_fn = denoiser_from_score(_checks.checked(score_fn, x), process)
    dtype, num_rows = _checks.accumulator(x.dtype), x.shape[0]
    mean = data_mean(process, x.shape[1:], dtype)
    start, end = -jnp.log(noise_ratio(process, times[jnp.array([0, -1])])).astype(dtype)
    cells = 2**_DEPTH
    width = (end - start) / cells
    keys = jax.random.split(key, num_rows)

    def wide(value):
        return _checks.expand_like(value, x)

    def denoised(y, cell):
        t = process.time(jnp.exp(-(start + width * cell)))
        points = (wide(process.alpha(t)) * y).astype(x.dtype)
        return denoiser_fn(points, t).astype(dtype)

    @jax.vmap
    def brownian(key, cell):
        return _brownian(key, cell, lambda cell: jnp.exp(2.0 * (start + width * cell)), y[0])

    def attempt(state):
        count, y, y_before, w, cell, length, attempts, kept = state
        active = cell < cells
        step = jnp.clip(length.astype(int), 1, cells - cell)
        cell_next = cell + jnp.where(active, step, 0)
        w_next = brownian(keys, cell_next)

        h = width * step
        share = -jnp.expm1(-2.0 * h)
        first = denoised(y, cell)
        noise = wide(jnp.exp(-2.0 * (start + width * cell_next))) * (w_next - w)
        moved = y + wide(share) * (first - y) + noise
        change = wide(1.0 - share / (2.0 * h)) * (denoised(moved, cell_next) - first)

        sizes = (jnp.abs(point - mean[None]) for point in (moved, y_before))
        tolerance = jnp.maximum(atol, rtol * jnp.maximum(*sizes)).astype(dtype)
        squares = _checks.sum_data_axes((change / tolerance) ** 2) / _checks.num_dims(x)
        growth = safety * jnp.maximum(squares, 1e-3) ** (-1.0 / 3.0)
        # A step cannot be shorter than one cell: a tolerance that this does not meet is not kept.
        accepted = active & ((squares <= 1.0) | (step == 1))
        kept &= ~accepted | (squares <= 1.0)
        y, y_before, w = (
            jnp.where(wide(accepted), new, old)
            for new, old in ((moved + change, y), (moved, y_before), (w_next, w))
        )
        cell = jnp.where(accepted, cell_next, cell)
        length = jnp.minimum(step * growth, _LONGEST / width).astype(dtype)
        return count + 1, y, y_before, w, cell, length, attempts + active, kept

    def unfinished(state):
        return (state[0] < max_steps) & jnp.any(state[4] < cells)

    y = (_checks.accumulated(x) / process.alpha(times[0])).astype(dtype)
    none = jnp.zeros(num_rows, int)
    lengths, kept = jnp.full(num_rows, 0.1 / width, dtype), jnp.ones(num_rows, bool)
    begin = (0, y, y, jnp.zeros_like(y), none, lengths, none, kept)
    _, y, _, _, cell, _, attempts, kept = compiled(
        partial(jax.lax.while_loop, unfinished, attempt), begin
    )
    last, finished = (process.alpha(times[-1]) * y).astype(x.dtype), (cell == cells) & kept
    return _closed(score_fn, process, times[-1], last, 2 * attempts, finished, denoise)


def _brownian(key: jax.Array, cell: jax.Array, clock: Callable, like: jax.Array) -> jax.Array:
    """Return a path of Brownian motion at ``clock(cell)``, from 0 at cell 0, of one example."""

    def normal(node):
        return jax.random.normal(jax.random.fold_in(key, node), like.shape, like.dtype)

    def halve(depth, state):
        left, before, increment = state  # the path at the left end, and over the interval
        middle, right = left + (half := 2 ** (_DEPTH - 1 - depth)), left + 2 * half
        start, inner, end = clock(left), clock(middle), clock(right)
        share = (inner - start) / (end - start)
        # The nodes of a binary tree have the numbers 1, 2 and 3, 4 to 7, ...
        z = normal(2**depth + left // (2 * half))
        first = share * increment + jnp.sqrt(share * (end - inner)) * z
        later = cell >= middle
        return (
            jnp.where(later, middle, left),
            jnp.where(later, before + first, before),
            jnp.where(later, increment - first, first),
        )

    whole = jnp.sqrt(clock(2**_DEPTH) - clock(0)) * normal(0)
    begin = (jnp.zeros_like(cell), jnp.zeros_like(like), whole)
    left, value, increment = jax.lax.fori_loop(0, _DEPTH, halve, begin)
    return value + (cell - left) * increment  # the last cell of all has its right end here
