"""Langevin dynamics, ``dx = s(x) dt + sqrt(2) dw``, whose stationary density has the score ``s``.

Its Euler-Maruyama step of size ``h`` is

    x <- x + h s(x) + sqrt(2 h) z,    z ~ N(0, I).                                     (1)

At an inverse temperature ``b`` the stationary density is ``p^b``, up to its normalizer, and the
step, of size ``h / b`` so that the drift stays the same,

    x <- x + h s(x) + sqrt(2 h / b) z,                                                 (2)

which for ``b = infinity`` climbs to a mode of the density:

    x <- x + h s(x).                                                                   (3)

Reference: Roberts & Tweedie 1996, https://doi.org/10.2307/3318418
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._scan import run, sampler, wide
from sm_jax.samplers import steps
from sm_jax.typing import ArrayOrList, NoTrajectory, ScoreFn


@sampler
def langevin(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    step_size: ArrayLike,
    num_steps: int,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Run unadjusted Langevin dynamics, with ``h = step_size`` in squared units of the data.

        x <- x + h s(x) + sqrt(2 h) z,    z ~ N(0, I)

    First order in ``h``, one evaluation of the score a step: for a Gaussian of variance ``v`` the
    chain settles at variance ``v / (1 - h / (2 v))``, and diverges for ``h > 2 v``. It mixes slowly
    between modes: prefer `annealed_langevin` or a diffusion sampler where the density has several.

    Under ``jax.jit``: ``jax.jit(partial(langevin, score_fn, step_size=0.1, num_steps=100))``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``.
        x: starting points ``[B, ...]``.
        key: a random key.
        step_size: ``h``, the factor of the score; well below the smallest variance of the data.
        num_steps: number of steps.
        trajectory: also return the trajectory.

    Returns:
        The last points ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, the start and
        every iterate.

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
        return steps.langevin(score_fn, x, key, step_size=step_size)

    return run(step, x, jax.random.split(key, num_steps), trajectory=trajectory)


@sampler
def tempered_langevin(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    inverse_temperatures: ArrayOrList,
    step_size: ArrayLike,
    steps_per_temperature: int,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Run Langevin dynamics on ``p^b`` along a schedule of inverse temperatures ``b``.

    With ``h = step_size`` in squared units of the data, ``steps_per_temperature`` steps at each
    ``b`` of

        x <- x + h s(x) + sqrt(2 h / b) z,    z ~ N(0, I).

    First order in ``h``: for a Gaussian of variance ``v`` the chain settles at ``b`` at variance
    ``(v / b) / (1 - h / (2 v))``. From hot (``b < 1``) to 1 it crosses the barriers between modes
    of an energy, without noise-conditional scores; a constant ``b > 1`` sharpens the samples of a
    model. It fails for a score that is only right near the data, which the hot chain leaves; and
    for noised scores ``p_t^b`` is not the noised ``p^b``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, the score of ``p``.
        x: starting points ``[B, ...]``.
        key: a random key.
        inverse_temperatures: ``b``, a scalar or a schedule ``[K]``, e.g.
            ``jnp.linspace(0.1, 1.0, 10)``.
        step_size: ``h``, the factor of the score; the step of ``p^b`` is ``h / b``.
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
        b, key = given
        return steps.langevin(score_fn, x, key, step_size=step_size, inverse_temperature=b)

    schedule = jnp.repeat(schedule, steps_per_temperature)
    keys = jax.random.split(key, schedule.shape[0])
    return run(step, x, (schedule, keys), trajectory=trajectory)


@sampler
def gradient_ascent(
    score_fn: ScoreFn,
    x: ArrayOrList,
    *,
    step_size: ArrayLike,
    num_steps: int,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Climb to a mode by gradient ascent, with ``h = step_size`` in squared units of the data.

        x <- x + h s(x)

    One evaluation of the score a step, which draws nothing. For a Gaussian of variance ``v`` the
    distance to the mean shrinks by ``1 - h / v`` at each step, and diverges for ``h > 2 v``. The
    mode is that of the basin of attraction of the start: to denoise, to restore, to find the
    maximum a posteriori of a composed score. It does not sample: in high dimensions the mode lies
    far from every sample, and looks unlike them.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``.
        x: starting points ``[B, ...]``.
        step_size: ``h``, the factor of the score; below the smallest variance.
        num_steps: number of steps.
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
    sizes = jnp.full((num_steps,), step_size, _arrays.accumulator(x.dtype))
    return run(lambda x, h: x + h * score_fn(x), x, sizes, trajectory=trajectory)
