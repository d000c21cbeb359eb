"""Langevin dynamics, ``dx = s(x) dt + sqrt(2) dw``, whose stationary density has the score ``s``.

Its Euler-Maruyama step of size ``h`` is

    x <- x + h s(x) + sqrt(2 h) z,    z ~ N(0, I).                                     (1)

At an inverse temperature ``b`` the stationary density is ``p^b``, up to its normalizer, and the
step, of size ``h / b`` so that the drift stays the same,

    x <- x + h s(x) + sqrt(2 h / b) z,                                                 (2)

of which ``b = infinity`` climbs to a mode of the density:

    x <- x + h s(x).                                                                   (3)

Reference: Roberts & Tweedie 1996, https://doi.org/10.2307/3318418
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.samplers._scan import run, wide
from sm_jax.typing import ScoreFn


def langevin_step(
    score: jax.Array,
    x: jax.Array,
    step_size: jax.Array,
    key: jax.Array,
    inverse_temperature: jax.Array | float = 1.0,
):
    """Return one step of eq. (2), which at inverse temperature 1 is eq. (1)."""
    z = jax.random.normal(key, x.shape, x.dtype)
    return x + step_size * score + jnp.sqrt(2.0 * step_size / inverse_temperature) * z


def langevin(
    score_fn: ScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    step_size: ArrayLike,
    num_steps: int,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Run unadjusted Langevin dynamics, eq. (1).

    First order in the step: for a Gaussian of variance ``v`` the chain settles at variance
    ``v / (1 - h / (2 v))``, and diverges for ``h > 2 v``. It mixes slowly between modes: prefer
    `annealed_langevin` or a diffusion sampler where the density has several.

    Under ``jax.jit``: ``jax.jit(partial(langevin, score_fn, step_size=0.1, num_steps=100))``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``.
        x: starting points ``[B, ...]``.
        key: a random key.
        step_size: ``h``, in squared units of the data; well below the smallest variance.
        num_steps: number of steps, each one evaluation of the score.
        trajectory: also return the trajectory.

    Returns:
        The last points ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_steps < 1``, or ``step_size``
            is not positive.

    Example:
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> x = langevin(lambda x: -x, x, key, step_size=0.1, num_steps=50)
        >>> x.shape
        (4, 2)
    """
    x = _checks.check_data(x)
    _checks.check_key("langevin", key)
    _checks.check_scalar("step_size", step_size)
    _checks.check_positive("step_size", step_size)
    _checks.check_count("num_steps", num_steps)
    score_fn = wide(score_fn, x)

    def step(x, key):
        return langevin_step(score_fn(x), x, step_size, key)

    return run(step, x, jax.random.split(key, num_steps), None, trajectory)


def tempered_langevin(
    score_fn: ScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    inverse_temperatures: ArrayLike,
    step_size: ArrayLike,
    steps_per_temperature: int,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Run Langevin dynamics on ``p^b`` along a schedule of inverse temperatures ``b``, eq. (2).

    First order in the step: for a Gaussian of variance ``v`` the chain settles at ``b`` at variance
    ``(v / b) / (1 - h / (2 v))``. From hot (``b < 1``) to 1 it crosses the barriers between modes
    of an energy, without noise-conditional scores; a constant ``b > 1`` sharpens the samples of a
    model. It fails for a score that is only right near the data, which the hot chain leaves; and
    for noised scores ``p_t^b`` is not the noised ``p^b``.

    Under ``jax.jit``: ``jax.jit(partial(tempered_langevin, score_fn, ...))``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, the score of ``p``.
        x: starting points ``[B, ...]``.
        key: a random key.
        inverse_temperatures: ``b``, a scalar or a schedule ``[K]``, e.g.
            ``jnp.linspace(0.1, 1.0, 10)``.
        step_size: ``h``, in squared units of the data; the step at ``b`` is ``h / b``.
        steps_per_temperature: steps at each inverse temperature; in all, ``K
            steps_per_temperature`` evaluations.
        trajectory: also return the trajectory.

    Returns:
        The last points ``[B, ...]``, or ``(x, trajectory [K steps_per_temperature + 1, B, ...])``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``steps_per_temperature < 1``, or
            ``step_size`` or an inverse temperature is not positive.

    Example:
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> x = tempered_langevin(
        ...     lambda x: -x, x, key, inverse_temperatures=[0.1, 1.0], step_size=0.1,
        ...     steps_per_temperature=50)
        >>> x.shape
        (4, 2)

    Reference: Marinari & Parisi 1992, https://arxiv.org/abs/hep-lat/9205018
    """
    x = _checks.check_data(x)
    _checks.check_key("tempered_langevin", key)
    _checks.check_positive("inverse_temperatures", inverse_temperatures)
    _checks.check_scalar("step_size", step_size)
    _checks.check_positive("step_size", step_size)
    _checks.check_count("steps_per_temperature", steps_per_temperature)
    schedule = jnp.atleast_1d(jnp.asarray(inverse_temperatures, _arrays.accumulator(x.dtype)))
    if schedule.ndim != 1 or schedule.size == 0:
        raise ValueError(
            f"inverse_temperatures must be a scalar or a vector, got shape {schedule.shape}."
        )
    score_fn = wide(score_fn, x)

    def step(x, given):
        inverse_temperature, key = given
        return langevin_step(score_fn(x), x, step_size, key, inverse_temperature)

    schedule = jnp.repeat(schedule, steps_per_temperature)
    return run(step, x, (schedule, jax.random.split(key, schedule.shape[0])), None, trajectory)


def gradient_ascent(
    score_fn: ScoreFn,
    x: ArrayLike,
    *,
    step_size: ArrayLike,
    num_steps: int,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Follow the score uphill without noise to a likely ``x``, eq. (3).

    Gradient ascent: for a Gaussian of variance ``v`` the distance to the mean shrinks by
    ``1 - h / v`` at each step, and diverges for ``h > 2 v``. It draws nothing, and finds the mode
    of the basin of attraction of its start: to denoise, to restore, to find the maximum a
    posteriori of a composed score. It does not sample: in high dimensions the mode lies far from
    every sample, and looks unlike them.

    Under ``jax.jit``: ``jax.jit(partial(gradient_ascent, score_fn, step_size=0.1,
    num_steps=100))``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``.
        x: starting points ``[B, ...]``.
        step_size: ``h``, in squared units of the data; below the smallest variance.
        num_steps: number of steps, each one evaluation of the score.
        trajectory: also return the trajectory.

    Returns:
        The last points ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_steps < 1``, or ``step_size``
            is not positive.

    Example:
        >>> print(gradient_ascent(lambda x: 3.0 - x, jnp.zeros((1, 1)), step_size=0.5, num_steps=2))
        [[2.25]]
    """
    x = _checks.check_data(x)
    _checks.check_scalar("step_size", step_size)
    _checks.check_positive("step_size", step_size)
    _checks.check_count("num_steps", num_steps)
    score_fn = wide(score_fn, x)
    steps = jnp.full((num_steps,), step_size, _arrays.accumulator(x.dtype))
    return run(lambda x, h: x + h * score_fn(x), x, steps, None, trajectory)
