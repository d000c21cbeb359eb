r"""Log-densities along the probability flow with steps of controlled error, through diffrax.

The equations are those of `sm_jax.likelihood.log_prob`: with ``alpha m`` and ``k`` the mean and the
standard deviation of the noised data, ``w = (x_t - alpha m) / k`` and ``u = log(sigma / alpha)``,

    dw / du = -(sigma^2 / k) (s(x_t, t) + w / k),                                      (1)
    d log p(w) / du = sigma^2 (tr(grad s)(x_t, t) + D / k^2).                          (2)

Score and divergence are taken together, once for each evaluation of (1) and (2). A step is accepted
where the estimates of its errors, of the point in ``y = x_t / alpha`` and of the log-density, keep

    hypot(rms(error of y) / (rtol sigma / alpha), error of log p / (atol sqrt(D))) < 1:    (3)

structure in the noised data is no finer than the noise, so that an error of the point that is small
against it changes the log-density little, whatever the scale of the data.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.divergence import exact
from sm_jax.likelihood._flow import LogProb, score_and_traces, standard_error
from sm_jax.parameterization import at_time
from sm_jax.processes import (
    data_mean,
    marginal_std,
    noise_ratio,
    prior_log_prob,
    warn_off_center,
)
from sm_jax.typing import ArrayOrList, DivergenceFn, NoiseScoreFn, ProcessLike


def adaptive_log_prob(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    divergence: DivergenceFn = exact,
    num_estimates: int = 1,
    sigma_data: ArrayLike = 1.0,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    solver: Any = None,
    adjoint: Any = None,
    max_steps: int = 1024,
) -> LogProb:
    """Return the log-density of ``x`` under the probability-flow ODE, with adaptive steps.

    With ``u = log(sigma / alpha)``, ``d = sigma_data``, ``k = sqrt(alpha^2 d^2 + sigma^2)``, ``m``
    the mean of the process and ``D`` the number of numbers in an example, diffrax integrates, from
    ``x`` at ``t_min`` to ``x_1`` at ``t_max``, where the prior ``q`` is,

        dw / du = -(sigma^2 / k) (s(x_t, t) + w / k),    w = (x_t - alpha m) / k,
        log p(x) = log q(x_1) + D log(k(t_max) / k(t_min))
                   - integral of sigma^2 (tr(grad s)(x_t, t) + D / k^2) du.

    A step is accepted where the estimates of its errors, of the point in ``x_t / alpha`` and of the
    log-density, satisfy

        hypot(rms(error of x_t / alpha) / (rtol sigma / alpha),
              rms(error of log p) / (atol sqrt(D))) < 1.

    Each example takes steps of its own, of at most 1 in ``u``. Differentiable in ``x`` and in what
    the score closes over. `log_prob` is cheaper where the divergence costs much more than the
    score, because here every evaluation takes both.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``; it is called on single rows, ``B = 1``,
            under ``jax.vmap``, so it must not close over one array entry per example.
        x: data ``[B, ...]``, taken as samples at ``t_min``.
        key: a random key, for a stochastic ``divergence``. Each example has its own probes, which
            stay fixed along the path.
        process: the process that the score was trained for.
        divergence: how the trace is computed: `sm_jax.divergence.exact`,
            ``functools.partial(hutchinson, num_probes=...)``, ``hutchpp``.
        num_estimates: independent estimates of the integrated divergence along one path, whose
            spread gives the standard error. Needs a key if above 1.
        sigma_data: standard deviation of the data, ``d``. It sets the steps only: the nearer, the
            fewer; the result does not depend on it beyond the tolerance.
        rtol: tolerated error of one step in the points, relative to the noise there. It is a tenth
            of that of `samplers.adaptive_ode`: a log-density shows errors that samples hide.
        atol: tolerated error of one step in the log-density, in units of ``sqrt(D)`` nats. It is
            not 0, as it is in the samplers, where it is an error of the points.
        solver: an explicit Runge-Kutta method of diffrax with an error estimate;
            ``diffrax.Tsit5()`` by default.
        adjoint: how diffrax differentiates, ``diffrax.RecursiveCheckpointAdjoint()`` by default;
            ``diffrax.ForwardMode()`` for ``jax.jvp``.
        max_steps: largest number of steps for an example, rejected ones included.

    Returns:
        ``LogProb(value [B], standard_error [B], num_evaluations [B])``, in nats; the value is NaN
        where ``max_steps`` were not enough.

    Raises:
        ImportError: diffrax is not installed.
        TypeError: ``x`` is not floating, the score has another dtype, or ``solver`` is not an
            explicit Runge-Kutta method.
        ValueError: ``x`` is empty, the score has another shape, ``sigma_data`` or a tolerance is
            not positive, a count is below 1, or ``num_estimates`` is above 1 without a key.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=100.0)
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)  # of data from N(0, I)
        >>> result = adaptive_log_prob(score_fn, jnp.zeros((1, 2)), process=process)
        >>> print(f"{result.value[0]:.2f} nats")
        -1.84 nats

    Reference: Song et al. 2021, section 4.3, https://arxiv.org/abs/2011.13456; Kidger 2021,
    https://arxiv.org/abs/2202.02435
    """
    try:
        import diffrax

        from sm_jax import _flow_steps
    except ImportError as error:
        message = "adaptive_log_prob needs diffrax: pip install diffrax, or use log_prob."
        raise ImportError(message) from error

    x = _checks.check_data(x)
    warn_off_center(process, x, "x")
    for name, value in (("sigma_data", sigma_data), ("rtol", rtol), ("atol", atol)):
        _checks.check_scalar(name, value)
        _checks.check_positive(name, value)
    for name, count in (("num_estimates", num_estimates), ("max_steps", max_steps)):
        _checks.check_count(name, count)
    if num_estimates > 1 and key is None:
        raise ValueError(f"num_estimates={num_estimates} needs a random divergence and a key.")
    solver = _flow_steps.explicit_solver(solver)

    dims, dtype = _arrays.num_dims(x), _arrays.accumulator(x.dtype)
    mean = data_mean(process, x.shape[1:], dtype)
    start, end = (
        jnp.log(noise_ratio(process, t)).astype(dtype) for t in (process.t_min, process.t_max)
    )

    def scale(t):
        return marginal_std(process, t, sigma_data)

    def flow(u, state, keys):
        w, _ = state
        t = process.time_at(jnp.exp(u))
        k, variance = scale(t), process.sigma(t) ** 2
        points = (process.alpha(t) * mean + k * w).astype(x.dtype)[None]
        score_at = at_time(score_fn, t[None])
        score, traces = score_and_traces(divergence, score_at, points, keys)
        slope = -variance / k * (score[0] + w / k)
        return slope.astype(dtype), (variance * (traces[:, 0] + dims / k**2)).astype(dtype)

    def measure(error, start, end):
        r = jnp.exp(start)
        shift, change = (_flow_steps.root_mean_square(leaf) for leaf in error)
        shift = jnp.hypot(sigma_data, r) * shift / (rtol * r)
        return jnp.hypot(shift, change / (atol * dims**0.5)).astype(dtype)

    def solve(w, keys):
        return _flow_steps.solve(
            flow,
            start,
            end,
            (w, jnp.zeros(num_estimates, dtype)),
            keys,
            measure=measure,
            solver=solver,
            max_steps=max_steps,
            adjoint=adjoint,
        )

    first, last = scale(process.t_min), scale(process.t_max)
    keys = None if key is None else jax.random.split(key, (x.shape[0], num_estimates))
    centered = (x - process.alpha(process.t_min) * mean[None]) / first
    solution = compiled(jax.vmap(solve), centered.astype(dtype), keys)
    w, change = (leaf[:, 0] for leaf in solution.ys)
    ends = process.alpha(process.t_max) * mean[None] + last * w
    values = prior_log_prob(process, ends) + dims * jnp.log(last / first)
    values = values[None] - change.T
    finished = solution.result == diffrax.RESULTS.successful
    values = jnp.where(finished[None], values, jnp.nan)
    num_evaluations = _flow_steps.evaluations(solution, solver)
    return LogProb(values.mean(axis=0), standard_error(values, keys), num_evaluations)
