r"""Log-densities of a trained score, by the change of variables along the probability-flow ODE.

For any process, with ``r = sigma / alpha``, ``d`` the standard deviation of the data, and ``D``
dimensions, let

    k = sqrt(alpha^2 d^2 + sigma^2),    w = x_t / k,    a = asinh(r / d),              (1)

so that ``k`` is the standard deviation of the noised data and ``w`` has variance one throughout.
The probability-flow ODE and the log-density along its solution are then

    dw / da = -sigma s(x_t, t) - (sigma / k) w,                                        (2)
    d log p(w) / da = sigma k tr(grad s)(x_t, t) + (sigma / k) D,                      (3)

integrated together from ``t_min``, where the data are, to ``t_max``, where ``x_t`` has the density
of the prior; and ``log p(x) = log p(w) - D log k``. Both right-hand sides vanish for data from
``N(0, d^2 I)``: what the solver approximates is only what sets the data apart from a Gaussian.

The result is the density of the data at noise level ``sigma(t_min)``. It is exact for the model up
to the error of the solver, even where the model is no gradient.

Reference: Song et al. 2021, section 4.3 and appendix D.2, https://arxiv.org/abs/2011.13456
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax.divergence import exact
from sm_jax.processes import check_times, noise_ratio, prior_log_prob, time_grid
from sm_jax.typing import Divergence, DivergenceFn, NoiseScoreFn, ProcessLike

__all__ = ["LogProb", "bits_per_dim", "log_prob"]


class LogProb(NamedTuple):
    """A log-density and what it cost.

    Attributes:
        value: log-density of each example, ``[B]``, in nats.
        standard_error: standard error of ``value`` from the random divergence, ``[B]``: zero for an
            exact divergence, NaN for a single estimate.
        num_evaluations: evaluations of the score with its divergence.
    """

    value: jax.Array
    standard_error: jax.Array
    num_evaluations: int


def log_prob(
    score_fn: NoiseScoreFn,
    process: ProcessLike,
    x: ArrayLike,
    key: jax.Array | None = None,
    *,
    divergence: DivergenceFn = exact,
    num_estimates: int = 1,
    sigma_data: ArrayLike = 1.0,
    num_steps: int = 64,
    times: ArrayLike | None = None,
) -> LogProb:
    """Return the log-density of ``x`` under the probability flow, by Heun's method on (2) and (3).

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``, row i depending on row i only.
        process: the process that the score was trained for.
        x: data ``[B, ...]``, taken as samples at ``t_min``.
        key: a random key, for a stochastic ``divergence``; its probes stay fixed along the path.
        divergence: how the trace is computed: `sm_jax.divergence.exact`,
            ``functools.partial(hutchinson, num_probes=...)``, ``hutchpp``.
        num_estimates: independent estimates of the integrated divergence, whose spread gives the
            standard error. They share the path of ``x``. Needs a key if above 1.
        sigma_data: standard deviation of the data, ``d`` in (1). The nearer, the fewer steps are
            needed; the limit of many steps does not depend on it.
        num_steps: steps of the grid ``processes.time_grid``, two evaluations each.
        times: instead of the grid: strictly decreasing times from ``t_max`` to ``t_min``.

    Returns:
        ``LogProb(value [B], standard_error [B], num_evaluations)``, in nats. The error of the
        solver falls as ``num_steps^-2``: double the steps to see it.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``sigma_data`` is not positive, a
            count is below 1, several estimates are asked for without a key, or the times are not strictly decreasing or leave
            the range of the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=100.0)
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)  # of data from N(0, I)
        >>> result = log_prob(score_fn, process, jnp.zeros((1, 2)))
        >>> print(f"{result.value[0]:.2f} nats, {result.num_evaluations} evaluations")
        -1.84 nats, 128 evaluations

    Reference: Song et al. 2021, eq. 39, https://arxiv.org/abs/2011.13456
    """
    x = _checks.check_data(x)
    _checks.check_positive("sigma_data", sigma_data)
    _checks.check_count("num_estimates", num_estimates)
    if num_estimates > 1 and key is None:
        raise ValueError(f"num_estimates={num_estimates} needs a random divergence and a key.")
    grid = time_grid(process, num_steps) if times is None else check_times(process, times)
    ratios = noise_ratio(process, grid)[::-1]
    keys = None if key is None else jax.random.split(key, num_estimates)
    dims = _checks.num_dims(x)

    def scale(t):
        return jnp.sqrt((process.alpha(t) * sigma_data) ** 2 + process.sigma(t) ** 2)

    def traces(score_at, x):
        if keys is None:
            score, trace = divergence(score_at, x, None)
            return score, trace[None]
        return jax.vmap(lambda k: divergence(score_at, x, k), out_axes=Divergence(None, 0))(keys)

    def slopes(w, r):
        t = process.time(r)
        sigma, k = process.sigma(t), scale(t)
        each_t = jnp.broadcast_to(t, x.shape[:1])
        score, trace = traces(lambda x: score_fn(x, each_t), (k * w).astype(x.dtype))
        return -sigma * score - sigma / k * w, sigma * k * trace + sigma / k * dims

    def step(state, interval):
        w, change = state
        r, r_next = interval
        width = jnp.arcsinh(r_next / sigma_data) - jnp.arcsinh(r / sigma_data)
        flow, growth = slopes(w, r)
        flow_next, growth_next = slopes(w + width * flow, r_next)
        w = w + 0.5 * width * (flow + flow_next)
        return (w, change + 0.5 * width * (growth + growth_next)), None

    start, end = scale(grid[-1]), scale(grid[0])
    no_change = jnp.zeros((num_estimates, x.shape[0]), _checks.accumulator(x.dtype))
    (w, change), _ = jax.lax.scan(
        step, (_checks.accumulated(x) / start, no_change), (ratios[:-1], ratios[1:])
    )
    values = prior_log_prob(process, end * w) + dims * jnp.log(end / start) - change
    return LogProb(values.mean(axis=0), _standard_error(values, keys), 2 * (grid.shape[0] - 1))


def _standard_error(values: jax.Array, keys: jax.Array | None) -> jax.Array:
    """Return the standard error of the mean of ``values [K, B]``, 0 where nothing was drawn."""
    if keys is None:
        return jnp.zeros_like(values[0])
    if len(values) == 1:
        return jnp.full_like(values[0], jnp.nan)
    return values.std(axis=0, ddof=1) / jnp.sqrt(jnp.asarray(len(values), values.dtype))


def bits_per_dim(log_prob: ArrayLike, num_dims: int, *, log_det: ArrayLike = 0.0) -> jax.Array:
    """Return the negative log-density in bits per dimension, ``-(log p + log_det) / (d log 2)``.

    Args:
        log_prob: log-densities in nats, any shape, of the numbers that the model sees.
        num_dims: ``d``, the number of numbers in one example.
        log_det: logarithm of the determinant of the map from the units in which bits are counted to
            those of the model, summed over an example; it has no default other than none. For
            standardised data ``-sum(log scale)``. For pixels of ``L`` levels seen as
            ``(x + u) / L * 2 - 1``, ``d log(2 / L)``, and the result then bounds the bits of a
            lossless code.

    Returns:
        Bits per dimension, of the shape of ``log_prob``.

    Raises:
        ValueError: ``num_dims < 1``.

    Example:
        >>> print(bits_per_dim(-jnp.log(2.0) * 6.0, 3))
        2.0
    """
    _checks.check_count("num_dims", num_dims)
    return -(jnp.asarray(log_prob) + log_det) / (num_dims * jnp.log(2.0))
