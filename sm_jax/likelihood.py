r"""Log-densities of a trained score, by the change of variables along the probability-flow ODE.

In the variables ``y = x / alpha``, ``r = sigma / alpha`` of any process, the ODE and the
log-density along its solution are

    dy / dr = -r alpha s(x, t),                                                        (1)
    d log p(y) / dr = -div_y(dy / dr) = r alpha^2 tr(grad_x s)(x, t),                  (2)

integrated together from ``t_min``, where the data are, to ``t_max``, where ``x`` has the density
of the prior. With ``d`` dimensions, ``log p(x) = log p(y) - d log alpha``. The result is the
density of the data at noise level ``sigma(t_min)`` under the model. It is exact for the model up
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
    num_steps: int = 64,
    times: ArrayLike | None = None,
) -> LogProb:
    """Return the log-density of ``x`` under the probability flow, by Heun's method on (1) and (2).

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``, row i depending on row i only.
        process: the process that the score was trained for.
        x: data ``[B, ...]``, taken as samples at ``t_min``.
        key: a random key, for a stochastic ``divergence``; its probes stay fixed along the path.
        divergence: how the trace is computed: `sm_jax.divergence.exact`,
            ``functools.partial(hutchinson, num_probes=...)``, ``hutchpp``.
        num_estimates: independent estimates of the integrated divergence, whose spread gives the
            standard error. They share the path of ``x``. Needs a key if above 1.
        num_steps: steps of the grid ``processes.time_grid``.
        times: instead of the grid: strictly decreasing times from ``t_max`` to ``t_min``.

    Returns:
        ``LogProb(value [B], standard_error [B], num_evaluations)``, in nats. The error of the
        solver falls as ``num_steps^-2``: double the steps to see it.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, a count is below 1, several
            estimates are asked for without a key, or the times are not strictly decreasing or leave
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
    _checks.check_count("num_estimates", num_estimates)
    if num_estimates > 1 and key is None:
        raise ValueError(f"num_estimates={num_estimates} needs a random divergence and a key.")
    grid = time_grid(process, num_steps) if times is None else check_times(process, times)
    ratios = noise_ratio(process, grid)[::-1]
    keys = None if key is None else jax.random.split(key, num_estimates)

    def traces(score_at, x):
        if keys is None:
            score, trace = divergence(score_at, x, None)
            return score, trace[None]
        return jax.vmap(lambda k: divergence(score_at, x, k), out_axes=Divergence(None, 0))(keys)

    def slopes(y, r):
        t = process.time(r)
        alpha, t = process.alpha(t), jnp.broadcast_to(t, x.shape[:1])
        score, trace = traces(lambda x: score_fn(x, t), (alpha * y).astype(x.dtype))
        return -r * alpha * score, r * alpha**2 * trace

    def step(state, interval):
        y, change = state
        r, r_next = interval
        width = r_next - r
        flow, growth = slopes(y, r)
        flow_next, growth_next = slopes(y + width * flow, r_next)
        y = y + 0.5 * width * (flow + flow_next)
        return (y, change + 0.5 * width * (growth + growth_next)), None

    dims = _checks.num_dims(x)
    alphas = process.alpha(grid)
    start = (
        _checks.accumulated(x) / alphas[-1],
        jnp.zeros((num_estimates, x.shape[0]), _checks.accumulator(x.dtype)),
    )
    (y, change), _ = jax.lax.scan(step, start, (ratios[:-1], ratios[1:]))
    scale = dims * (jnp.log(alphas[0]) - jnp.log(alphas[-1]))
    values = prior_log_prob(process, alphas[0] * y) + scale - change
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
