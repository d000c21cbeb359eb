"""Annealed importance sampling: the normalizer of an energy, bracketed.

Between a normalized base density ``p_0`` and the model ``p = exp(-E) / Z`` lie the densities

    f_b(x) = p_0(x)^(1 - b) exp(-b E(x)),    0 = b_0 < b_1 < ... < b_K = 1.            (1)

A chain ``x_0 ~ p_0, x_k ~ T_k(x_{k-1}, .)``, where ``T_k`` leaves ``f_{b_k}`` invariant, has a
weight whose mean is ``Z``, whatever the mixing of ``T_k``:

    log w = sum_{k=1}^{K} (b_k - b_{k-1}) u(x_{k-1}),    u(x) = -E(x) - log p_0(x).    (2)

By Jensen's inequality ``E[log mean(w)] <= log Z``, and ``log mean(w)`` exceeds ``log Z`` by ``c``
nats with a probability of at most ``exp(-c)``. The same chain run backwards, from exact draws of
the model down to the base, has a weight ``w'``, the sum (2) along its path. The mean of
``1 / w'`` is ``1 / Z``, so ``-log mean(1 / w')`` is an upper bound in the same sense. Here ``T_k``
is MALA (sm_jax.samplers), which is reversible, as the way back needs.

References: Neal 2001, https://arxiv.org/abs/physics/9803008; the way back, Grosse, Ghahramani &
Adams 2015, https://arxiv.org/abs/1511.02543
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.likelihood._log_weights import error_of_mean, log_mean
from sm_jax.samplers import Point, log_prob_and_score, metropolis_step
from sm_jax.typing import ArrayOrList, DensityLike, EnergyFn


class Bound(NamedTuple):
    """A stochastic bound on ``log Z`` from one set of chains.

    Attributes:
        value: the bound, in nats, a scalar.
        standard_error: of ``value``, by the spread of the weights; of use where the effective
            sample size is large.
        effective_sample_size: ``(sum w)^2 / sum w^2``, between 1 and the number of chains.
        acceptance_rate: mean probability of acceptance of the transitions.
    """

    value: jax.Array
    standard_error: jax.Array
    effective_sample_size: jax.Array
    acceptance_rate: jax.Array


class NormalizerBracket(NamedTuple):
    """A bracket on ``log Z``.

    Attributes:
        lower: from the base to the model: at most ``log Z`` in expectation.
        upper: from exact samples of the model to the base: at least ``log Z`` in expectation; None
            without samples.
    """

    lower: Bound
    upper: Bound | None


def annealed_importance(
    energy_fn: EnergyFn,
    key: jax.Array,
    *,
    base: DensityLike,
    step_size: ArrayLike,
    num_chains: int = 1024,
    num_temperatures: int | None = None,
    inverse_temperatures: ArrayOrList | None = None,
    steps_per_temperature: int = 1,
    samples: ArrayOrList | None = None,
) -> NormalizerBracket:
    """Bracket ``log Z = log int exp(-E(x)) dx`` by annealed importance sampling.

    A chain starts at ``x_0 ~ p_0``, the base. For the inverse temperatures ``b_1 < ... < b_{K-1}``
    it takes steps of MALA on ``p_0^(1 - b_k) exp(-b_k E)``, which lead to ``x_k``. Its weight is

        log w = sum_{k=1}^{K} (b_k - b_{k-1}) (-E(x_{k-1}) - log p_0(x_{k-1})),
        lower = log mean(w),    upper = -log mean(1 / w'),

    where ``w'`` is the weight of the chain run backwards, from ``samples`` down to the base. The
    error of a bound is ``std(w / mean(w)) / sqrt(num_chains)``.

    The gap between the bounds closes as the temperatures and steps grow; while it is wide, neither
    standard error is reliable. Prefer it where a bound is needed rather than an estimate. It fails,
    with a wide bracket, where the base misses a mode or MALA does not move: watch
    ``acceptance_rate``.

    Args:
        energy_fn: ``x [B, ...] -> [B]``, the energy ``E``.
        key: a random key.
        base: ``p_0``, wider than the model, with ``sample(key, n)`` and ``log_prob(x)``: e.g.
            ``sm_jax.densities.gaussian(mean, cov)``.
        step_size: of MALA, in squared units of the data: a scalar, or one for each of
            ``b_1 .. b_{K-1}``, ``[K - 1]``: large at the wide base, small at the narrow model.
        num_chains: number of forward chains.
        num_temperatures: ``K``, 256 by default; the schedule is ``b_k = (k / K)^2``.
        inverse_temperatures: instead of ``num_temperatures``: ``b`` from 0 to 1, ``[K + 1]``,
            strictly increasing.
        steps_per_temperature: steps of MALA at each temperature. Evaluations of the energy and its
            gradient for each chain: ``(K - 1) steps_per_temperature + 1``.
        samples: exact samples of the model ``[N, ...]``, the starts of the chains back; from a
            density that is known, or simulated with it (long runs of MCMC come close, but then the
            upper bound holds only as far as they have converged).

    Returns:
        ``NormalizerBracket(lower, upper)``, each a ``Bound(value, standard_error,
        effective_sample_size, acceptance_rate)`` in nats; ``upper`` is None without ``samples``.
        Both are stochastic: ``E[lower.value] <= log Z <= E[upper.value]``.

    Raises:
        TypeError: ``samples`` or the draws of the base are not floating.
        ValueError: a count is below 1 (``num_temperatures`` below 2), ``num_temperatures`` and
            ``inverse_temperatures`` are both given, the energy has the wrong shape, a step size is
            not positive or their number is wrong, the inverse temperatures do not increase from 0
            to 1, or the samples have another shape than the draws of the base.

    Example:
        >>> from sm_jax import densities
        >>> base, key = densities.gaussian(jnp.zeros(1), 4.0), jax.random.key(0)
        >>> energy_fn = lambda x: 0.5 * jnp.sum(x**2, axis=-1)  # log Z = log(2 pi) / 2 = 0.919
        >>> result = annealed_importance(energy_fn, key, base=base, step_size=0.5)
        >>> abs(result.lower.value - 0.919) < 0.02
        Array(True, dtype=bool)

    References: Neal 2001, https://arxiv.org/abs/physics/9803008; Grosse et al. 2015,
    https://arxiv.org/abs/1511.02543
    """
    _checks.check_key("annealed_importance", key)
    _checks.check_count("num_chains", num_chains, minimum=2)
    _checks.check_count("steps_per_temperature", steps_per_temperature)
    _checks.check_positive("step_size", step_size)
    schedule = _schedule(num_temperatures, inverse_temperatures)
    num_inner = schedule.shape[0] - 2
    if np.shape(step_size) not in ((), (num_inner,)):
        raise ValueError(
            f"step_size must be a scalar or one for each inner temperature, ({num_inner},), got "
            f"shape {np.shape(step_size)}."
        )
    steps = jnp.broadcast_to(jnp.asarray(step_size, schedule.dtype), (num_inner,))
    key_base, key_up, key_down = jax.random.split(key, 3)
    x = _checks.check_data(base.sample(key_base, num_chains), "base.sample(key, n)")
    if samples is not None:
        samples = _checks.check_data(samples, "samples").astype(x.dtype)
        if samples.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"samples must be events of the base, {x.shape[1:]}, got {samples.shape[1:]}."
            )

    def anneal(x, key, schedule, steps):
        loop = partial(_anneal, energy_fn, base, steps_per_temperature)
        return compiled(loop, x, key, schedule, steps)

    lower = _bound(*anneal(x, key_up, schedule, steps))
    if samples is None:
        return NormalizerBracket(lower, None)
    # Along the reversed schedule the differences in (2) change sign: this is log(1 / w').
    inverse = _bound(*anneal(samples, key_down, schedule[::-1], steps[::-1]))
    return NormalizerBracket(lower, inverse._replace(value=-inverse.value))


def _schedule(num_temperatures: int | None, inverse_temperatures: ArrayOrList | None) -> jax.Array:
    """Return ``b_0 .. b_K``."""
    if inverse_temperatures is not None and num_temperatures is not None:
        raise ValueError(
            f"give num_temperatures={num_temperatures} or inverse_temperatures="
            f"{inverse_temperatures}, not both."
        )
    if inverse_temperatures is None:
        num_temperatures = 256 if num_temperatures is None else num_temperatures
        _checks.check_count("num_temperatures", num_temperatures, minimum=2)
        return jnp.linspace(0.0, 1.0, num_temperatures + 1) ** 2
    known = _arrays.concrete(inverse_temperatures)
    schedule = _arrays.as_floating(inverse_temperatures)
    if schedule.ndim != 1 or schedule.shape[0] < 3:
        raise ValueError(
            f"inverse_temperatures must be a vector of at least three, got shape {schedule.shape}."
        )
    if known is not None and (known[0] != 0 or known[-1] != 1 or np.any(np.diff(known) <= 0)):
        raise ValueError(f"inverse_temperatures must increase from 0 to 1, got {known}.")
    return schedule


def _anneal(energy_fn, base, steps_per_temperature, x, key, schedule, steps):
    """Return the sum (2) along a schedule, ``[B]``, and the mean rate of acceptance."""

    def measure(x):
        return (
            log_prob_and_score(lambda x: -base.log_prob(x), x),
            log_prob_and_score(energy_fn, x),
        )

    def tempered(x, parts, b):
        """Return the log-density (1) and its score, put together from those of its factors."""
        (log_base, base_score), (log_model, model_score) = parts
        score = ((1.0 - b) * base_score + b * model_score).astype(x.dtype)
        return Point(x, score, (1.0 - b) * log_base + b * log_model, parts)

    def difference(parts):
        (log_base, _), (log_model, _) = parts
        return log_model - log_base

    def anneal(state, given):
        x, parts, log_weight = state
        b, increment, step_size, key = given

        def step(point, key):
            return metropolis_step(
                lambda y: tempered(y, measure(y), b),
                lambda old, new: new.log_prob - old.log_prob,
                point,
                key,
                step_size=step_size,
            )

        keys = jax.random.split(key, steps_per_temperature)
        point, accepted = jax.lax.scan(step, tempered(x, parts, b), keys)
        log_weight = log_weight + increment * difference(point.parts)
        return (point.x, point.parts, log_weight), accepted.mean()

    parts = measure(x)
    increments = jnp.diff(schedule)
    start = (x, parts, increments[0] * difference(parts))
    keys = jax.random.split(key, steps.shape[0])
    inputs = (schedule[1:-1], increments[1:], steps, keys)
    (_, _, log_weights), accepted = jax.lax.scan(anneal, start, inputs)
    return log_weights, accepted.mean()


def _bound(log_weights: jax.Array, acceptance_rate: jax.Array) -> Bound:
    """Return the logarithm of the mean weight, with its error and ``(sum w)^2 / sum w^2``."""
    value, influence = log_mean(log_weights)
    size = log_weights.shape[0] / jnp.mean((1.0 + influence) ** 2)
    return Bound(value, error_of_mean(influence), size, acceptance_rate)
