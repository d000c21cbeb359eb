"""Thermodynamic integration: the normalizers of a noise-conditional energy along its noise levels.

With ``p_t(x) = exp(-E(x, t)) / Z(t)``, and ``alpha m`` and ``k = sqrt(alpha^2 d^2 + sigma^2)`` the
mean and the standard deviation of the noised data, let the noise levels be compared in these units:
for ``t'`` below ``t``,

    x' = alpha' m + (k' / k) (x - alpha m),    W = E(x', t') - E(x, t) - D log(k' / k).  (1)

The work ``W`` is a constant where the data are Gaussian, and small for neighboring noise levels. As
``d log Z = -E[dW]`` along them, the trapezoidal rule gives

    log Z(t') - log Z(t) = -1/2 (E_{x ~ p_t}[W] + E_{x' ~ p_t'}[W]),                   (2)

with an error of order two in their spacing. At the largest noise the density is close to the prior
``q`` of the process, and importance sampling gives

    log Z = log E_{x ~ q}[exp(-E(x)) / q(x)]         from draws of the prior,          (3)
          = -log E_{x ~ p}[q(x) / exp(-E(x))]        from samples of the model.        (4)

An energy network carries an arbitrary offset ``c(t)``, which score matching cannot see. (2) finds
it exactly, however it varies, and ``-E(x, t) - log Z(t)`` is the log-density of the data at ``t``.

References: Gelman & Meng 1998, https://doi.org/10.1214/ss/1028905934; the map between the noise
levels, Jarzynski 2002, https://arxiv.org/abs/cond-mat/0109461
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.likelihood._log_weights import error_of_mean, log_mean
from sm_jax.parameterization import EnergyScore
from sm_jax.processes import (
    check_times,
    data_mean,
    marginal_std,
    prior_log_prob,
    solver_grid,
    time_grid,
)
from sm_jax.samplers import mala
from sm_jax.typing import ArrayOrList, NoiseEnergyFn, ProcessLike


class NormalizerPath(NamedTuple):
    """The normalizers of a noise-conditional energy.

    Attributes:
        times: the times of the noise levels, decreasing, ``[L]``.
        value: ``log Z(t)`` at each, in nats, ``[L]``; the last one is that of the data.
        standard_error: of ``value``, from the spread over the chains, ``[L]``. It does not include
            the error of the trapezoidal rule, nor that of chains that lag behind the noise levels.
        acceptance_rate: of the chains at each noise level, ``[L]``; None for given samples.
    """

    times: jax.Array
    value: jax.Array
    standard_error: jax.Array
    acceptance_rate: jax.Array | None


def thermodynamic_integration(
    energy_fn: NoiseEnergyFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    process: ProcessLike,
    num_levels: int | None = None,
    times: ArrayOrList | None = None,
    step_size: ArrayLike = 0.5,
    steps_per_level: int = 10,
    sigma_data: ArrayLike = 1.0,
    log_normalizer: ArrayLike | None = None,
) -> NormalizerPath:
    """Return ``log Z(t)`` of a noise-conditional energy at every noise level, by chains of MALA.

    From a noise level ``t`` to the next lower one, ``t'``, the chains take the estimate

        log Z(t') = log Z(t) - 1/2 (E_{x ~ p_t}[W] + E_{x' ~ p_t'}[W]),
        x' = alpha' m + (k' / k) (x - alpha m),    W = E(x', t') - E(x, t) - D log(k' / k),
        k = sqrt(alpha^2 d^2 + sigma^2),           d = sigma_data,

    with ``m`` the mean of the process. It starts at ``t_max`` from

        log Z = log mean(exp(-E(x)) / q(x)),    x ~ q, the prior.

    One run serves all noise levels, and these carry the chains between the modes, which tempering a
    single energy (`annealed_importance`) does not do as well; but it is an estimate, not a bound.
    It fails where the energy is wrong at some noise level in between, and where MALA is too slow
    for the chains to follow: double ``steps_per_level`` and ``num_levels`` to see it.

    Args:
        energy_fn: ``(x [B, ...], t [B]) -> [B]``.
        x: draws of the prior ``[B, ...]`` (``processes.prior_sample``), where the chains start.
        key: a random key.
        process: the process that the energy was trained for.
        num_levels: number of noise levels ``L``, by default 65, or more of a process that is not
            traced and whose ``log(sigma / alpha)`` spans more than 12.
        times: instead of ``num_levels``: strictly decreasing times ``[L]``, the first of them
            ``process.t_max``, where the prior is. From a lower one ``log_normalizer`` has to be
            known, and the chains have to start from draws of that noise level.
        step_size: step of MALA over ``sigma(t)^2``, the same at all noise levels.
        steps_per_level: steps of MALA at each noise level: in all ``L (steps_per_level + 1)``
            evaluations of the energy with its gradient, and ``4 L`` of the energy.
        sigma_data: standard deviation of the data, ``d``; the nearer, the fewer noise levels are
            needed.
        log_normalizer: ``log Z`` at the first time, if known.

    Returns:
        ``NormalizerPath(times [L], value [L], standard_error [L], acceptance_rate [L])``, in nats.

    Raises:
        TypeError: ``x`` is not floating, or there is no key.
        ValueError: ``x`` holds fewer than two chains, the energy has the wrong shape, a count is
            too small, ``num_levels`` and ``times`` are both given, the step or ``sigma_data`` is
            not positive, or the times are not strictly decreasing, leave the range of the process,
            or begin below ``t_max`` without a ``log_normalizer``.

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
    _checks.check_key("thermodynamic_integration", key)
    _checks.check_count("steps_per_level", steps_per_level)
    _checks.check_scalar("step_size", step_size)
    _checks.check_positive("step_size", step_size)
    if num_levels is not None:
        _checks.check_count("num_levels", num_levels, minimum=2)
        if times is not None:
            raise ValueError(f"give num_levels={num_levels} or times={times}, not both.")
    num_steps = None if num_levels is None else num_levels - 1
    times = solver_grid(process, num_steps, times=times, default=64, rho=20.0)
    energy_at, move, work = _work(energy_fn, x, process, times, sigma_data, log_normalizer)

    def follow(x, inputs):
        """Bring the chains to a noise level; return their work to those above and below."""
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

    inputs = (*_levels(process, times, sigma_data), jax.random.split(key, times.shape[0]))
    _, (back, forth, accepted) = compiled(partial(jax.lax.scan, follow), x, inputs)
    if log_normalizer is None:  # eq. (3)
        first = log_mean(-compiled(energy_at, x, times[0]) - prior_log_prob(process, x))
    else:
        first = jnp.asarray(log_normalizer), jnp.asarray(0.0)
    return NormalizerPath(times, *_integrated(*first, back, forth), accepted)


def thermodynamic_integration_from_samples(
    energy_fn: NoiseEnergyFn,
    samples: ArrayOrList,
    *,
    process: ProcessLike,
    times: ArrayOrList | None = None,
    sigma_data: ArrayLike = 1.0,
    log_normalizer: ArrayLike | None = None,
) -> NormalizerPath:
    """Return ``log Z(t)`` of a noise-conditional energy from samples at every noise level.

    The estimate is that of `thermodynamic_integration`, from a noise level ``t`` to the next lower
    one, ``t'``,

        log Z(t') = log Z(t) - 1/2 (mean_{x at t}[W] + mean_{x' at t'}[W]),
        x' = alpha' m + (k' / k) (x - alpha m),    W = E(x', t') - E(x, t) - D log(k' / k),
        k = sqrt(alpha^2 d^2 + sigma^2),           d = sigma_data,

    with the given samples in the place of its chains. It starts at ``t_max`` from

        log Z = -log mean(q(x) exp(E(x))),    x at t_max, q the prior.

    With noised data as the samples it costs no chains, and it is right as far as the model is: the
    samples should be those of ``exp(-E(x, t))``.

    Args:
        energy_fn: ``(x [B, ...], t [B]) -> [B]``.
        samples: samples at every noise level ``[L, B, ...]``, e.g. data noised by
            ``processes.perturb``. The error assumes that the ``B`` columns are independent; the
            rows of one column need not be.
        process: the process that the energy was trained for.
        times: the times of the samples ``[L]``, strictly decreasing, by default
            ``processes.time_grid(process, L - 1, rho=20)``. The first is ``process.t_max``, where
            the prior is, unless ``log_normalizer`` is given.
        sigma_data: standard deviation of the data, ``d``; the nearer, the fewer noise levels are
            needed.
        log_normalizer: ``log Z`` at the first time, if known.

    Returns:
        ``NormalizerPath(times [L], value [L], standard_error [L], None)``, in nats, after ``4 L``
        evaluations of the energy.

    Raises:
        TypeError: ``samples`` are not floating.
        ValueError: ``samples`` are not two or more for each of two or more times, the energy has
            the wrong shape, ``sigma_data`` is not positive, or the times are not strictly
            decreasing, leave the range of the process, or begin below ``t_max`` without a
            ``log_normalizer``.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_min=0.1, sigma_max=10.0)
        >>> times = processes.time_grid(process, 32, rho=20.0)
        >>> z = jax.random.normal(jax.random.key(0), (33, 256, 1))
        >>> samples = jnp.sqrt(1.0 + times**2)[:, None, None] * z  # of data from N(0, 1)
        >>> energy_fn = lambda x, t: 0.5 * x[:, 0] ** 2 / (1.0 + t**2)
        >>> result = thermodynamic_integration_from_samples(energy_fn, samples, process=process)
        >>> abs(result.value[-1] - 0.5 * jnp.log(2.0 * jnp.pi * 1.01)) < 0.1
        Array(True, dtype=bool)

    Reference: Gelman & Meng 1998, https://doi.org/10.1214/ss/1028905934
    """
    samples = _checks.check_data(samples, "samples")
    if samples.ndim < 2 or samples.shape[0] < 2:
        raise ValueError(
            "samples must hold samples at each of two or more times, [L, B, ...], got shape "
            f"{samples.shape}."
        )
    if times is None:
        times = time_grid(process, samples.shape[0] - 1, rho=20.0)
    else:
        times = check_times(process, times)
    if samples.shape[0] != times.shape[0]:
        raise ValueError(
            f"samples must hold samples at each of the {times.shape[0]} times, [L, B, ...], got "
            f"shape {samples.shape}."
        )
    start = samples[0]
    energy_at, _, work = _work(energy_fn, start, process, times, sigma_data, log_normalizer)

    def both(inputs):
        x, above, here, below = inputs
        return work(x, here, above), work(x, here, below)

    inputs = (samples, *_levels(process, times, sigma_data))
    back, forth = compiled(partial(jax.lax.map, both), inputs)
    if log_normalizer is None:  # eq. (4)
        log_ratio = compiled(energy_at, start, times[0]) + prior_log_prob(process, start)
        value, influence = log_mean(log_ratio)
        first = -value, -influence
    else:
        first = jnp.asarray(log_normalizer), jnp.asarray(0.0)
    return NormalizerPath(times, *_integrated(*first, back, forth), None)


def _work(energy_fn, x, process, times, sigma_data, log_normalizer):
    """Return ``E(x, t)``, ``x'`` and ``W`` of eq. (1) as functions, after checks of all arguments.

    The last two are of points and two noise levels, each a pair ``(t, k)``.
    """
    _checks.check_scalar("sigma_data", sigma_data)
    _checks.check_positive("sigma_data", sigma_data)
    _check_start(process, times, log_normalizer)
    if x.shape[0] < 2:
        raise ValueError(
            f"at least two chains, or samples at each time, are needed for an error, got "
            f"{x.shape[0]}."
        )
    mean = data_mean(process, x.shape[1:], _arrays.accumulator(x.dtype))
    dims = _arrays.num_dims(x)

    def energy_at(x, t):
        energy = energy_fn(x, jnp.broadcast_to(t, x.shape[:1]))
        return _arrays.accumulated(_checks.check_energy(energy, x))

    def move(x, here, there):
        (t, k), (t_other, k_other) = here, there
        away = x - process.alpha(t) * mean[None]
        return (process.alpha(t_other) * mean[None] + k_other / k * away).astype(x.dtype)

    def work(x, here, there):
        (t, k), (t_other, k_other) = here, there
        moved = energy_at(move(x, here, there), t_other)
        return moved - energy_at(x, t) - dims * jnp.log(k_other / k)

    return energy_at, move, work


def _levels(process: ProcessLike, times: jax.Array, sigma_data: ArrayLike):
    """Return ``(t, k)`` of the noise levels above, at and below each; the ends are their own."""
    here = (times, marginal_std(process, times, sigma_data))
    index = jnp.arange(times.shape[0])
    above, below = jnp.maximum(index - 1, 0), jnp.minimum(index + 1, times.shape[0] - 1)
    return tuple(v[above] for v in here), here, tuple(v[below] for v in here)


def _integrated(
    first: jax.Array, influence: ArrayLike, back: jax.Array, forth: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return ``log Z`` and its standard error by eq. (2), from the work of every chain, ``[L, B]``.

    It is summed for each chain by itself: the chains are independent, the noise levels of one are
    not. The ``influence`` of each chain on the ``first`` value adds to its deviation.
    """
    increments = -0.5 * (forth[:-1] - back[1:])
    integrals = jnp.concatenate([jnp.zeros_like(forth[:1]), jnp.cumsum(increments, axis=0)])
    deviations = integrals + jnp.broadcast_to(influence, integrals.shape[1:])[None]
    # Chains differ little beside what they share, whose sum over many would be rounded.
    shared = integrals[:, :1]
    mean = shared[:, 0] + (integrals - shared).mean(axis=1)
    return first + mean, error_of_mean(deviations, axis=1)


def _check_start(process: ProcessLike, times: jax.Array, log_normalizer: ArrayLike | None):
    """Raise where eq. (3) would weigh the prior against a density that is not close to it."""
    first, last = _arrays.concrete(times), _arrays.concrete(process.t_max)
    if log_normalizer is not None or first is None or last is None:
        return
    if first[0] < (1.0 - 1e-5) * last:
        raise ValueError(
            f"times begin at {first[0]:.6g}, below t_max = {last:.6g}, where the prior is no "
            "estimate of the normalizer: begin at process.t_max, or pass log_normalizer, that of "
            "the first time, and x drawn there."
        )
