"""Adaptation of the step size of MALA to an acceptance rate, by dual averaging.

After step ``m = 1, 2, ...``, with ``a_m`` the mean probability of acceptance of all chains and
``a`` the target,

    e <- (1 - w) e + w (a - a_m),    w = 1 / (m + 10),                                 (1)
    log h = log(10 h_0) - 20 sqrt(m) e,                                                (2)
    log h_mean <- m^-0.75 log h + (1 - m^-0.75) log h_mean,                            (3)

so that ``h`` explores in long moves and its weighted mean converges.

Reference: Hoffman & Gelman 2014, section 3.2, https://arxiv.org/abs/1111.4246
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.samplers._metropolis import metropolis_step, target
from sm_jax.typing import ArrayOrList, EnergyFn, ScoreFn


class AdaptedStep(NamedTuple):
    """A step size for `mala`, and the chains that found it.

    Attributes:
        x: the last points, ``[B, ...]``: a start for the run proper.
        step_size: the averaged step size, a scalar.
        exact: whether the acceptance test took an energy, a boolean array ``[]``; see `Chain`.
    """

    x: jax.Array
    step_size: jax.Array
    exact: jax.Array


def adapt_step_size(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    step_size: ArrayLike,
    num_steps: int,
    energy_fn: EnergyFn | None = None,
    target_acceptance: float = 0.574,
    num_panels: int = 2,
) -> AdaptedStep:
    """Run `mala` while adapting its step size to an acceptance rate, by dual averaging.

    All chains share one step size ``h``, which starts at ``h_0 = step_size``. After step
    ``m = 1, 2, ...``, with ``a_m`` the mean probability of acceptance of all chains and ``a`` the
    target,

        e <- (1 - w) e + w (a - a_m),    w = 1 / (m + 10),
        log h = log(10 h_0) - 20 sqrt(m) e,
        log h_mean <- m^-0.75 log h + (1 - m^-0.75) log h_mean.

    The chain that adapts has no invariant density: discard it, and run `mala` from its end with the
    step size ``h_mean`` kept fixed. A few hundred steps suffice. It fails where the start is stuck
    and its acceptance misleads: start near the mass of the density.

    Under ``jax.jit``:
    ``jax.jit(partial(adapt_step_size, score_fn, step_size=0.1, num_steps=100))``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``; for an energy ``parameterization.EnergyScore``, as for
            `mala`.
        x: starting points ``[B, ...]``.
        key: a random key.
        step_size: the first step size, ``h_0``, in squared units of the data.
        num_steps: number of steps, with as many evaluations as those of `mala`.
        energy_fn: ``x [B, ...] -> [B]``, as for `mala`.
        target_acceptance: ``a``, the wanted mean probability of acceptance, between 0 and 1. The
            default is the best one in high dimensions; in a few, 0.6 to 0.8.
        num_panels: as for `mala`, which is to run with the same.

    Returns:
        ``AdaptedStep(x [B, ...], step_size [], exact [])``, the step size being ``h_mean``.

    Raises:
        TypeError: ``score_fn`` is not callable, ``x`` is not floating, or the score has another
            dtype.
        ValueError: ``x`` is empty, the score or the energy has the wrong shape, ``num_steps < 1``,
            ``num_panels`` is not even and positive, ``step_size`` is not positive, or
            ``target_acceptance`` is not between 0 and 1.

    Example:
        >>> x, key = jnp.zeros((64, 2)), jax.random.key(0)
        >>> found = adapt_step_size(lambda x: -x, x, key, step_size=0.01, num_steps=300)
        >>> 1.0 < found.step_size < 3.0
        Array(True, dtype=bool)

    Reference: Hoffman & Gelman 2014, https://arxiv.org/abs/1111.4246; the default target, Roberts &
    Rosenthal 1998, https://doi.org/10.1111/1467-9868.00123
    """
    x = _checks.check_data(x)
    _checks.check_key("adapt_step_size", key)
    _checks.check_scalar("step_size", step_size)
    _checks.check_positive("step_size", step_size)
    _checks.check_count("num_steps", num_steps)
    _checks.check_fraction("target_acceptance", target_acceptance)
    evaluate, gain, exact = target(score_fn, energy_fn, x, num_panels)
    first = jnp.log(jnp.asarray(step_size, _arrays.accumulator(x.dtype)))

    def body(state, given):
        point, log_step, log_mean, error = state
        m, key = given
        point, probability = metropolis_step(
            evaluate, gain, point, key, step_size=jnp.exp(log_step)
        )
        weight = 1.0 / (m + 10.0)
        error = (1.0 - weight) * error + weight * (target_acceptance - probability.mean())
        log_step = first + jnp.log(10.0) - 20.0 * jnp.sqrt(m) * error
        weight = m**-0.75
        log_mean = weight * log_step + (1.0 - weight) * log_mean
        return (point, log_step, log_mean, error), None

    start = (compiled(evaluate, _arrays.accumulated(x)), first, first, jnp.zeros_like(first))
    counts = jnp.arange(1, num_steps + 1, dtype=first.dtype)
    inputs = (counts, jax.random.split(key, num_steps))
    (point, _, log_mean, _), _ = compiled(partial(jax.lax.scan, body), start, inputs)
    return AdaptedStep(point.x.astype(x.dtype), jnp.exp(log_mean), exact)
