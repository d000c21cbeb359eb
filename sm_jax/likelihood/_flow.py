r"""Log-densities of a trained score, by the change of variables along the probability-flow ODE.

For any process, with ``r = sigma / alpha``, ``m`` and ``d`` the mean and the standard deviation of
the data, and ``D`` dimensions, let

    k = sqrt(alpha^2 d^2 + sigma^2),    w = (x_t - alpha m) / k,    u = log r,         (1)

so that ``k`` is the standard deviation of the noised data and ``w`` has mean zero and variance one
throughout.
The probability-flow ODE and the log-density along its solution are then

    dw / du = -(sigma^2 / k) (s(x_t, t) + w / k),                                      (2)
    d log p(w) / du = sigma^2 (tr(grad s)(x_t, t) + D / k^2),                          (3)

integrated from ``t_min``, where the data are, to ``t_max``, where ``x_t`` has the density of the
prior; and ``log p(x) = log p(w) - D log k``. Both right-hand sides vanish for data from
``N(m, d^2 I)``: what the solver approximates is only what sets the data apart from a Gaussian.

The divergence is the expensive part, so it is taken only at the times of the grid, for the
trapezoidal rule on (3); between them, (2) takes several cheap steps of Heun's method.

The result is the density of the data at noise level ``sigma(t_min)``. It is exact for the model up
to the error of the solver, even where the model is not a gradient.

Reference: Song et al. 2021, section 4.3 and appendix D.2, https://arxiv.org/abs/2011.13456
"""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.divergence import exact
from sm_jax.likelihood._log_weights import error_of_mean
from sm_jax.parameterization import at_time
from sm_jax.processes import (
    data_mean,
    marginal_std,
    noise_ratio,
    prior_log_prob,
    solver_grid,
    warn_off_center,
)
from sm_jax.typing import ArrayOrList, DivergenceFn, NoiseScoreFn, ProcessLike, ScoreFn

_FACTOR = 10.0  # by which sigma_data may be off
_MANY = 128  # steps that suffice if it is


class LogProb(NamedTuple):
    """A log-density and what it cost.

    Attributes:
        value: log-density of each example, ``[B]``, in nats.
        standard_error: standard error of ``value`` from the random divergence, ``[B]``: zero
            without a key, NaN for a single estimate.
        num_evaluations: evaluations of the score: an integer, or of each example, ``[B]``.
    """

    value: jax.Array
    standard_error: jax.Array
    num_evaluations: int | jax.Array


def log_prob(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    divergence: DivergenceFn = exact,
    num_estimates: int = 1,
    sigma_data: ArrayLike = 1.0,
    num_steps: int | None = None,
    num_substeps: int = 3,
    times: ArrayOrList | None = None,
) -> LogProb:
    """Return the log-density of ``x`` under the probability-flow ODE, on a fixed grid.

    With ``r = sigma / alpha``, ``d = sigma_data``, ``k = sqrt(alpha^2 d^2 + sigma^2)``, ``m`` the
    mean of the process and ``D`` the number of numbers in an example, the ODE of
    ``w = (x_t - alpha m) / k``, started at ``x_t = x`` at ``t_min``, is

        dw / dlog r = -(sigma^2 / k) (s(x_t, t) + w / k).

    Its end ``x_1`` at ``t_max`` has the density of the prior ``q``, and the divergence is
    integrated along it:

        log p(x) = log q(x_1) + D log(k(t_max) / k(t_min))
                   - integral of sigma^2 (tr(grad s)(x_t, t) + D / k^2) dlog r.

    The ODE is stepped by Heun's method, and the integral is taken by the trapezoidal rule.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``, taken as samples at ``t_min``.
        key: a random key, for a stochastic ``divergence``; its probes stay fixed along the path.
        process: the process that the score was trained for.
        divergence: how the trace is computed: `sm_jax.divergence.exact`,
            ``functools.partial(hutchinson, num_probes=...)``, ``hutchpp``.
        num_estimates: independent estimates of the integrated divergence, whose spread gives the
            standard error. They share the path of ``x``. Needs a key if above 1.
        sigma_data: standard deviation of the data, ``d``. It sets the steps only: the nearer, the
            fewer are needed; their limit does not depend on it. At the default number of steps,
            a value off by a factor of 100 costs 0.01 to 0.02 nats for each number of ``x``: a call
            with concrete ``x`` and fewer than 128 steps warns beyond a factor of 10.
        num_steps: steps of the grid ``processes.time_grid`` (``rho=20``), by default 32, or, of a
            process that is not traced and whose ``log r`` spans ``L > 12``, ``32 L / 12``, with
            ``rho=20 (L / 12)^2``; the score and its divergence are taken together at its
            ``num_steps + 1`` times.
        num_substeps: steps of Heun's method within each, two evaluations of the score alone, but
            one for the first.
        times: instead of ``num_steps``: strictly decreasing times from ``t_max`` to ``t_min``.

    Returns:
        ``LogProb(value [B], standard_error [B], num_evaluations)``, in nats; ``num_steps + 1`` of
        the evaluations are with the divergence. The error of the solver falls as
        ``num_steps^-2``: double the steps to see it.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``sigma_data`` is not positive, a
            count is below 1, ``num_estimates`` is above 1 without a key, ``num_steps`` and
            ``times`` are both given, or the times do not strictly decrease from ``t_max`` to
            ``t_min``.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=100.0)
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)  # of data from N(0, I)
        >>> result = log_prob(score_fn, jnp.zeros((1, 2)), process=process)
        >>> print(f"{result.value[0]:.2f} nats, {result.num_evaluations} evaluations")
        -1.84 nats, 198 evaluations

    Reference: Song et al. 2021, eq. 39, https://arxiv.org/abs/2011.13456
    """
    x = _checks.check_data(x)
    warn_off_center(process, x, "x")
    _checks.check_scalar("sigma_data", sigma_data)
    _checks.check_positive("sigma_data", sigma_data)
    _checks.check_count("num_estimates", num_estimates)
    _checks.check_count("num_substeps", num_substeps)
    if num_estimates > 1 and key is None:
        raise ValueError(f"num_estimates={num_estimates} needs a random divergence and a key.")
    grid = _grid(process, num_steps, times).astype(_arrays.accumulator(x.dtype))
    ratios = noise_ratio(process, grid)[::-1].astype(grid.dtype)
    _warn_scale(process, x, sigma_data, grid.shape[0] - 1)
    keys = None if key is None else jax.random.split(key, num_estimates)
    dims = _arrays.num_dims(x)
    mean = data_mean(process, x.shape[1:], _arrays.accumulator(x.dtype))[None]

    def scale(t):
        return marginal_std(process, t, sigma_data)

    def at(w, r):
        """Return sigma^2, k, the noised data and the score function of them at noise ratio r."""
        t = process.time_at(r)
        each_t = jnp.broadcast_to(t, x.shape[:1])
        points = (process.alpha(t) * mean + scale(t) * w).astype(x.dtype)
        return process.sigma(t) ** 2, scale(t), points, at_time(score_fn, each_t)

    def flow(w, r):
        """Return (2)."""
        variance, k, points, score_at = at(w, r)
        score = _checks.check_score(score_at(points), points)
        return (-variance / k * (score + w / k)).astype(w.dtype)

    def flow_and_growth(w, r):
        """Return (2) and (3)."""
        variance, k, points, score_at = at(w, r)
        score, traces = score_and_traces(divergence, score_at, points, keys)
        growth = variance * (traces + dims / k**2)
        return (-variance / k * (score + w / k)).astype(w.dtype), growth.astype(w.dtype)

    def heun(w, first, r, r_next):
        width = jnp.log(r_next / r)
        return w + 0.5 * width * (first + flow(w + width * first, r_next))

    def substep(w, interval):
        r, r_next = interval
        return heun(w, flow(w, r), r, r_next), None

    def step(state, given):
        w, change = state
        r, r_next, weight = given
        first, growth = flow_and_growth(w, r)
        inner = r * (r_next / r) ** jnp.linspace(0.0, 1.0, num_substeps + 1, dtype=r.dtype)
        w = heun(w, first, inner[0], inner[1])
        w, _ = jax.lax.scan(substep, w, (inner[1:-1], inner[2:]))
        return (w, change + weight * growth), None

    start, end = scale(grid[-1]), scale(grid[0])
    widths = jnp.diff(jnp.log(ratios))
    weights = 0.5 * (jnp.append(widths, 0.0) + jnp.append(0.0, widths))
    nexts = jnp.append(ratios[1:], ratios[-1])  # the last node only adds its divergence
    no_change = jnp.zeros((num_estimates, x.shape[0]), _arrays.accumulator(x.dtype))
    begin = (((x - process.alpha(grid[-1]) * mean) / start).astype(grid.dtype), no_change)
    (w, change), _ = compiled(partial(jax.lax.scan, step), begin, (ratios, nexts, weights))
    last = process.alpha(grid[0]) * mean + end * w
    values = (prior_log_prob(process, last) + dims * jnp.log(end / start))[None] - change
    num_evaluations = grid.shape[0] * 2 * num_substeps
    return LogProb(values.mean(axis=0), standard_error(values, keys), num_evaluations)


def _grid(process: ProcessLike, num_steps: int | None, times: ArrayOrList | None) -> jax.Array:
    """Return the times of the solver, from ``t_max`` to ``t_min``."""
    grid = solver_grid(process, num_steps, times=times, default=32, rho=20.0)
    known = None if times is None else _arrays.all_concrete((times, process.t_max, process.t_min))
    if known is None:
        return grid
    given, *ends = known
    if not np.allclose(given[[0, -1]], ends, rtol=1e-5, atol=0.0):
        raise ValueError(
            f"times must go from t_max={ends[0]} to t_min={ends[1]}, where the prior and the data "
            f"are, got {given[0]} to {given[-1]}."
        )
    return grid


def _warn_scale(process: ProcessLike, x: jax.Array, sigma_data: ArrayLike, num_steps: int) -> None:
    """Warn where ``sigma_data`` is not the scale of ``x`` and the steps are few.

    Only what lies between the smallest and the largest noise ratio matters. Says nothing of fewer
    than four rows, or equal ones, and of anything traced.
    """
    ratios = (noise_ratio(process, t) for t in (process.t_min, process.t_max))
    known = _arrays.all_concrete((*ratios, sigma_data, x))
    if num_steps >= _MANY or len(x) < 4 or known is None:
        return
    low, high, given, rows = known
    spread = np.sqrt(np.var(rows.astype(np.float64), axis=0, ddof=1).mean())
    off = np.log(np.clip(spread, low, high) / np.clip(given, low, high))
    if spread > 0 and abs(off) > np.log(_FACTOR):
        warnings.warn(
            f"x has the standard deviation {spread:.3g}, and sigma_data={given:.3g}: {num_steps} "
            f"steps may be too few for that. Give sigma_data={spread:.3g}, or {_MANY} steps.",
            stacklevel=3,
        )


def score_and_traces(
    divergence: DivergenceFn, score_at: ScoreFn, x: jax.Array, keys: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Return the score ``[B, ...]`` and its divergence with every key, ``[K, B]``."""
    if keys is None:
        score, trace = divergence(score_at, x, None)
        return score, trace[None]
    # The score is the same for every key, and is computed once.
    once = jax.vmap(lambda key: tuple(divergence(score_at, x, key)), out_axes=(None, 0))
    score, traces = once(keys)
    return score, traces


def standard_error(values: jax.Array, keys: jax.Array | None) -> jax.Array:
    """Return the standard error of the mean of ``values [K, B]``, 0 where nothing was drawn."""
    if keys is None:
        return jnp.zeros_like(values[0])
    if len(values) == 1:
        return jnp.full_like(values[0], jnp.nan)
    return error_of_mean(values)


def bits_per_dim(log_prob: ArrayOrList, num_dims: int, *, log_det: ArrayLike = 0.0) -> jax.Array:
    """Return the negative log-density in bits per dimension, ``-(log p + log_det) / (d log 2)``.

    Args:
        log_prob: log-densities in nats, any shape, of the numbers that the model sees.
        num_dims: ``d``, the number of numbers in one example.
        log_det: logarithm of the determinant of the map from the units in which bits are counted to
            those of the model, summed over an example; 0 if they are the same. For standardized
            data ``-sum(log scale)``. For pixels of ``K`` values seen as ``(x + u) / K * 2 - 1``,
            ``d log(2 / K)``, and the result then bounds the bits of a lossless code.

    Returns:
        Bits per dimension, of the shape of ``log_prob``.

    Raises:
        TypeError: ``log_prob`` is a `LogProb`.
        ValueError: ``num_dims < 1``.

    Example:
        >>> print(bits_per_dim(-jnp.log(2.0) * 6.0, 3))
        2.0
    """
    _checks.check_count("num_dims", num_dims)
    if isinstance(log_prob, LogProb):
        raise TypeError("log_prob must be an array, got a LogProb: pass its value, log_prob.value.")
    return -(jnp.asarray(log_prob) + log_det) / (num_dims * jnp.log(2.0))
