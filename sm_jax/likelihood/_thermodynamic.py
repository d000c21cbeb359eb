"""Thermodynamic integration: the normalizers of a noise-conditional energy along its noise levels.

With ``p_t(x) = exp(-E(x, t)) / Z(t)``, and ``alpha m`` and ``k = sqrt(alpha^2 d^2 + sigma^2)`` the
mean and the standard deviation of the noised data, let the levels be compared in these units: for
``t'`` below ``t``,

    x' = alpha' m + (k' / k) (x - alpha m),    W = E(x', t') - E(x, t) - D log(k' / k).  (1)

The work ``W`` is a constant where the data are Gaussian, and for neighboring levels small. As
``d log Z = -E[dW]`` along the levels, the trapezoidal rule gives

    log Z(t') - log Z(t) = -1/2 (E_{x ~ p_t}[W] + E_{x' ~ p_t'}[W]),                   (2)

with an error of order two in the spacing of the levels. At the largest one the density is close to
the prior ``q`` of the process, and importance sampling gives

    log Z = log E_{x ~ q}[exp(-E(x)) / q(x)] = -log E_{x ~ p}[q(x) / exp(-E(x))].      (3)

An energy network carries an arbitrary offset ``c(t)``, which score matching cannot see. (2) finds
it exactly, however it varies, and ``-E(x, t) - log Z(t)`` is the log-density of the data at ``t``.

References: Gelman & Meng 1998, https://doi.org/10.1214/ss/1028905934; the map between the levels,
Jarzynski 2002, https://arxiv.org/abs/cond-mat/0109461
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.parameterization import EnergyScore
from sm_jax.processes import check_times, data_mean, prior_log_prob, time_grid
from sm_jax.processes._derived import solver_grid
from sm_jax.samplers._metropolis import mala
from sm_jax.typing import EnergyFn, ProcessLike


class NormalizerPath(NamedTuple):
    """The normalizers of a noise-conditional energy.

    Attributes:
        times: the levels, decreasing, ``[L]``.
        value: ``log Z(t)`` at each, in nats, ``[L]``; the last one is that of the data.
        standard_error: of ``value``, from the spread over the chains, ``[L]``; it knows nothing of
            the error of the trapezoidal rule, nor of chains that lag behind the levels.
        acceptance_rate: of the chains at each level, ``[L]``; NaN for given samples.
    """

    times: jax.Array
    value: jax.Array
    standard_error: jax.Array
    acceptance_rate: jax.Array


def thermodynamic_integration(
    energy_fn: EnergyFn,
    x: ArrayLike,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    num_levels: int | None = None,
    times: ArrayLike | None = None,
    step_size: ArrayLike = 0.5,
    steps_per_level: int = 10,
    sigma_data: ArrayLike = 1.0,
    log_normalizer: ArrayLike | None = None,
) -> NormalizerPath:
    """Return ``log Z(t)`` of a noise-conditional energy at every noise level, eq. (2).

    One run serves every level, and the noise levels carry the chains between the modes, which
    tempering a single energy (`annealed_importance`) does not do as well; but it is an estimate, no
    bound. With given samples of the data instead of chains it is exact for the model only if the
    model is. It fails where the energy is wrong at some level in between, and where MALA is too
    slow for the levels to be followed: double ``steps_per_level`` and ``num_levels`` to see it.

    Args:
        energy_fn: ``(x [B, ...], t [B]) -> [B]``.
        x: with a key, draws of the prior ``[B, ...]`` (``processes.prior_sample``), from which MALA
            follows the levels; without, samples at every level ``[L, B, ...]``, e.g. data noised by
            ``processes.perturb``.
        key: a random key, or None for given samples.
        process: the process that the energy was trained for.
        num_levels: number of levels ``L``, by default 65, or more of a process that is not traced
            and whose ``log(sigma / alpha)`` spans more than 12; for given samples, their own
            number, at the times ``processes.time_grid(process, L - 1, rho=20)``.
        times: instead of ``num_levels``: strictly decreasing times ``[L]``, the first of them
            ``process.t_max``, where the prior is. From a lower one ``log_normalizer`` has to be
            known, and the chains have to start from draws of that level.
        step_size: step of MALA over ``sigma(t)^2``, the same at all levels.
        steps_per_level: steps of MALA at each level: in all ``L (steps_per_level + 1)`` evaluations
            of the energy with its gradient, and ``4 L`` of the energy; only these for given
            samples.
        sigma_data: standard deviation of the data, ``d`` in (1); the nearer, the fewer levels are
            needed.
        log_normalizer: ``log Z`` at the first time, if known; by default eq. (3) at ``t_max``.

    Returns:
        ``NormalizerPath(times [L], value [L], standard_error [L], acceptance_rate [L])``, in nats.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` holds fewer than two chains or, without a key, not one set of samples for
            each time; the energy has the wrong shape; a count is too small; ``num_levels`` and
            ``times`` are both given; the step or ``sigma_data`` is not positive; the times are not
            strictly decreasing, leave the range of the process, or begin below ``t_max`` without
            a ``log_normalizer``.

    Example:
        >>> from sm_jax import processes
        >>> process, key = processes.VE(sigma_min=0.1, sigma_max=10.0), jax.random.key(0)
        >>> x = processes.prior_sample(process, jax.random.key(1), (256, 1))
        >>> energy_fn = lambda x, t: 0.5 * x[:, 0] ** 2 / (1.0 + t**2)  # of data from N(0, 1)
        >>> result = thermodynamic_integration(energy_fn, x, key, process=process)
        >>> abs(result.value[-1] - 0.5 * jnp.log(2.0 * jnp.pi * 1.01)) < 0.1
        Array(True, dtype=bool)

    Reference: Gelman & Meng 1998, https://doi.org/10.1214/ss/1028905934
    """
    x = _checks.check_data(x)
    _checks.check_count("steps_per_level", steps_per_level)
    for name, value in (("step_size", step_size), ("sigma_data", sigma_data)):
        _checks.check_scalar(name, value)
        _checks.check_positive(name, value)
    given = key is None
    if times is not None and num_levels is not None:
        raise ValueError(f"give num_levels={num_levels} or times={times}, not both.")
    if times is None:
        num_levels = x.shape[0] if given and num_levels is None else num_levels
        if num_levels is not None:
            _checks.check_count("num_levels", num_levels, minimum=2)
        times = _levels(process, num_levels, given)
    else:
        times = check_times(process, times)
    if given and (x.ndim < 2 or x.shape[0] != times.shape[0]):
        raise ValueError(
            f"without a key x must hold samples at each of the {times.shape[0]} times, "
            f"[L, B, ...], got shape {x.shape}: pass a key to draw them."
        )
    _check_start(process, times, log_normalizer)
    start = x[0] if given else x
    if start.shape[0] < 2:
        raise ValueError(f"at least two chains are needed for an error, got {start.shape[0]}.")
    k = jnp.sqrt((process.alpha(times) * sigma_data) ** 2 + process.sigma(times) ** 2)
    mean = data_mean(process, start.shape[1:], _arrays.accumulator(x.dtype))
    dims = _arrays.num_dims(start)

    def energy_at(x, t):
        energy = energy_fn(x, jnp.broadcast_to(t, x.shape[:1]))
        return _arrays.accumulated(_checks.check_energy(energy, x))

    def move(x, here, there):
        """Return ``x'``, eq. (1)."""
        (t, k), (t_other, k_other) = here, there
        away = x - process.alpha(t) * mean[None]
        return (process.alpha(t_other) * mean[None] + k_other / k * away).astype(x.dtype)

    def work(x, here, there):
        """Return ``W`` of every row of ``x`` from its own level to another, eq. (1)."""
        (t, k), (t_other, k_other) = here, there
        moved = energy_at(move(x, here, there), t_other)
        return moved - energy_at(x, t) - dims * jnp.log(k_other / k)

    def follow(x, inputs):
        """Bring the chains to a level; return what they say of the levels above and below."""
        above, here, below, key = inputs
        t, _ = here
        chain = mala(
            EnergyScore(lambda x: energy_at(x, t)),
            x,
            key,
            step_size=step_size * process.sigma(t) ** 2,
            num_steps=steps_per_level,
        )
        works = work(chain.x, here, above), work(chain.x, here, below)
        return move(chain.x, here, below), (*works, chain.acceptance_rate.mean())

    here = (times, k)
    above, below = (tuple(v[i] for v in here) for i in _neighbors(times.shape[0]))
    if given:

        def both(inputs):
            x, above, here, below = inputs
            return work(x, here, above), work(x, here, below)

        back, forth = compiled(partial(jax.lax.map, both), (x, above, here, below))
        accepted = jnp.full(times.shape, jnp.nan)
    else:
        inputs = (above, here, below, jax.random.split(key, times.shape[0]))
        _, (back, forth, accepted) = compiled(partial(jax.lax.scan, follow), x, inputs)

    # Eq. (2) for every chain by itself: the chains are independent, the levels of one are not.
    increments = -0.5 * (forth[:-1] - back[1:])
    integrals = jnp.concatenate([jnp.zeros_like(forth[:1]), jnp.cumsum(increments, axis=0)])
    if log_normalizer is None:
        log_ratio = -compiled(energy_at, start, times[0]) - prior_log_prob(process, start)
        first, influence = _log_mean_ratio(log_ratio, from_model=given)
    else:
        first, influence = jnp.asarray(log_normalizer), jnp.zeros_like(integrals[0])
    spread = (integrals + influence[None]).std(axis=1, ddof=1)
    error = spread / jnp.sqrt(jnp.asarray(integrals.shape[1], spread.dtype))
    return NormalizerPath(times, first + integrals.mean(axis=1), error, accepted)


def _levels(process: ProcessLike, num_levels: int | None, given: bool) -> jax.Array:
    """Return the times of the levels, on which the samples are drawn, or were."""
    if given:
        return time_grid(process, num_levels - 1, rho=20.0)
    num_steps = None if num_levels is None else num_levels - 1
    return solver_grid(process, num_steps, default=64, rho=20.0)


def _check_start(process: ProcessLike, times: jax.Array, log_normalizer: ArrayLike | None):
    """Raise where eq. (3) would weigh the prior against a level that it is not the prior of."""
    first, last = _arrays.concrete(times), _arrays.concrete(process.t_max)
    if log_normalizer is not None or first is None or last is None:
        return
    if first[0] < (1.0 - 1e-5) * last:
        raise ValueError(
            f"times begin at {first[0]:.6g}, below t_max = {last:.6g}, where the prior is no "
            "estimate of the normalizer: begin at process.t_max, or pass log_normalizer, that of "
            "the first time, and x drawn there."
        )


def _log_mean_ratio(log_ratio: jax.Array, from_model: bool) -> tuple[jax.Array, jax.Array]:
    """Return eq. (3), and how much each draw moves it, ``[B]``."""
    sign = -1.0 if from_model else 1.0
    count = log_ratio.shape[0]
    total = jax.nn.logsumexp(sign * log_ratio)
    share = jnp.exp(sign * log_ratio - total)
    return sign * (total - jnp.log(float(count))), sign * (count * share - 1.0)


def _neighbors(count: int) -> tuple[jax.Array, jax.Array]:
    """Return the indices of the levels above and below each, the ends being their own."""
    index = jnp.arange(count)
    return jnp.maximum(index - 1, 0), jnp.minimum(index + 1, count - 1)
