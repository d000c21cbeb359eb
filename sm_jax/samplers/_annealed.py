"""Langevin dynamics along a ladder of noise levels ``sigma_1 > ... > sigma_L``.

Annealed Langevin makes several steps at each level, of a size proportional to its variance,

    x <- x + h_i s(x, sigma_i) + sqrt(2 h_i) z,    h_i = h sigma_i^2 / sigma_L^2,      (1)

which adds more noise than the level holds. The consistent variant makes one step for each level of
a geometric ladder, ``sigma_{i+1} = gamma sigma_i``, and adds just what the next level lacks: with
``eta = h / sigma_L^2``,

    x <- x + eta sigma_i^2 s(x, sigma_i) + beta sigma_{i+1} z,                         (2)
    beta^2 = 1 - (1 - eta)^2 / gamma^2,                                                (3)

so that the residual noise has the standard deviation ``sigma_i`` at every level ``i``: the step
leaves ``(1 - eta) sigma_i`` of the old noise.

References: Song & Ermon 2019, https://arxiv.org/abs/1907.05600 and 2020,
https://arxiv.org/abs/2006.09011; the consistent variant, Jolicoeur-Martineau et al. 2020,
https://arxiv.org/abs/2009.05475
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._scan import run, sampler, wide
from sm_jax.parameterization import at_time
from sm_jax.samplers import steps
from sm_jax.typing import ArrayOrList, NoiseScoreFn, NoTrajectory


@sampler
def annealed_langevin(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    sigmas: ArrayOrList,
    step_size: ArrayLike,
    steps_per_level: int,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Run annealed Langevin dynamics (NCSN), with ``h = step_size`` in squared units of the data.

    At each noise level, from the largest to the smallest, ``steps_per_level`` steps

        x <- x + h_i s(x, sigma_i) + sqrt(2 h_i) z,    h_i = h sigma_i^2 / sigma_L^2,

    and at the end, with ``denoise``, ``x <- x + sigma_L^2 s(x, sigma_L)``, the mean without the
    last noise. In all ``L steps_per_level`` evaluations of the score, and one to denoise. Song and
    Ermon write ``h_i / 2`` for the factor of the score: their step is twice this one.
    `sm_jax.noise_levels` computes levels and ``h`` from the data.

    Args:
        score_fn: ``(x [B, ...], sigma [B]) -> [B, ...]``.
        x: starting points ``[B, ...]``, e.g. the mean of the data plus ``sigmas[0]`` times unit
            noise.
        key: a random key.
        sigmas: noise levels ``[L]``, strictly decreasing, in units of the data.
        step_size: ``h``, the factor of the score at the smallest level.
        steps_per_level: steps at each level.
        denoise: end with the denoising step.
        trajectory: also return the trajectory.

    Returns:
        The last points ``[B, ...]``, or ``(x, trajectory [L steps_per_level + 1, B, ...])``, the
        trajectory before the denoising.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``steps_per_level < 1``,
            ``step_size`` is not positive, or the levels are not positive and strictly decreasing.

    Example:
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> score_fn = lambda x, sigma: -x / (1.0 + sigma[:, None] ** 2)
        >>> x = annealed_langevin(
        ...     score_fn, x, key, sigmas=[3.0, 1.0, 0.3], step_size=0.01, steps_per_level=20)
        >>> x.shape
        (4, 2)

    Reference: Song & Ermon 2020, algorithm 1, https://arxiv.org/abs/2006.09011
    """
    x = _checks.check_data(x)
    _checks.check_key("annealed_langevin", key)
    sigmas = _checks.check_levels("sigmas", sigmas).astype(_arrays.accumulator(x.dtype))
    _checks.check_scalar("step_size", step_size)
    _checks.check_positive("step_size", step_size)
    _checks.check_count("steps_per_level", steps_per_level)
    score_fn = wide(score_fn, x)

    def step(x, given):
        sigma, key = given
        h = step_size * (sigma / sigmas[-1]) ** 2
        return steps.langevin(at_time(score_fn, sigma), x, key, step_size=h)

    def finish(x):
        return x + sigmas[-1] ** 2 * at_time(score_fn, sigmas[-1])(x)

    levels = jnp.repeat(sigmas, steps_per_level)
    keys = jax.random.split(key, levels.shape[0])
    return run(step, x, (levels, keys), finish if denoise else None, trajectory)


@sampler
def consistent_annealed(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    sigmas: ArrayOrList,
    step_size: ArrayLike,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Run consistent annealed sampling, one step for each level of a geometric ladder.

    With ``h = step_size`` in squared units of the data, ``eta = h / sigma_L^2`` and the ratio
    ``gamma = sigma_{i+1} / sigma_i``,

        x <- x + eta sigma_i^2 s(x, sigma_i) + beta sigma_{i+1} z,
        beta^2 = 1 - (1 - eta)^2 / gamma^2,

    and at the end, with ``denoise``, ``x <- x + sigma_L^2 s(x, sigma_L)``, the mean without the
    last noise: ``L - 1`` evaluations of the score, and one to denoise. It is `ddim` for
    ``processes.VE`` with the share ``beta / sqrt(1 - gamma^2)`` of the ancestral noise.

    After every step the noise left in ``x`` is that of the level, as the network was trained,
    which `annealed_langevin` exceeds. Hence it needs no second step count, and the ladder can
    be as fine as one likes. First order in the logarithm of the ratio of levels. Prefer it for
    networks trained on a ladder; with a process, the diffusion samplers get further on the same
    budget. It fails on coarse ladders, where the score of one level serves too long a step.

    Args:
        score_fn: ``(x [B, ...], sigma [B]) -> [B, ...]``.
        x: starting points ``[B, ...]``: the mean of the data plus noise of the largest level.
        key: a random key.
        sigmas: noise levels ``[L]``, geometric and decreasing, ``L >= 2``, in units of the data,
            e.g. ``noise_levels.geometric``.
        step_size: ``h``, the factor of the score at the smallest level, within
            ``1 - gamma < h / sigma_L^2 < 1 + gamma``; `annealed_langevin` has no such limit.
        denoise: end with the denoising step.
        trajectory: also return the trajectory.

    Returns:
        The last points ``[B, ...]``, or ``(x, trajectory [L, B, ...])``, the trajectory before the
        denoising, its entry ``i`` at level ``i``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, the levels are not positive,
            strictly decreasing and geometric, or ``beta^2`` is not positive.

    Example:
        >>> x, key = 3.0 * jnp.ones((4, 2)), jax.random.key(0)
        >>> score_fn = lambda x, sigma: -x / (1.0 + sigma[:, None] ** 2)
        >>> sigmas = jnp.geomspace(3.0, 0.1, 40)
        >>> consistent_annealed(score_fn, x, key, sigmas=sigmas, step_size=0.002).shape
        (4, 2)

    Reference: Jolicoeur-Martineau et al. 2020, algorithm 2, https://arxiv.org/abs/2009.05475
    """
    x = _checks.check_data(x)
    _checks.check_key("consistent_annealed", key)
    _checks.check_scalar("step_size", step_size)
    _checks.check_positive("step_size", step_size)
    levels = _checks.check_levels("sigmas", sigmas)
    _check_consistent(sigmas, step_size)
    sigmas = levels.astype(_arrays.accumulator(x.dtype))
    score_fn = wide(score_fn, x)
    eta = step_size / sigmas[-1] ** 2

    def step(x, given):
        sigma, sigma_next, key = given
        beta = jnp.sqrt(1.0 - ((1.0 - eta) * sigma / sigma_next) ** 2)
        z = jax.random.normal(key, x.shape, x.dtype)
        return x + eta * sigma**2 * at_time(score_fn, sigma)(x) + beta * sigma_next * z

    def finish(x):
        return x + sigmas[-1] ** 2 * at_time(score_fn, sigmas[-1])(x)

    inputs = (sigmas[:-1], sigmas[1:], jax.random.split(key, sigmas.shape[0] - 1))
    return run(step, x, inputs, finish if denoise else None, trajectory)


def _check_consistent(sigmas: ArrayOrList, step_size: ArrayLike) -> None:
    """Raise unless the levels are geometric and ``beta^2`` is positive, where they are concrete."""
    if _arrays.shape(sigmas)[0] < 2:
        raise ValueError(f"sigmas must hold at least two levels, got {sigmas}.")
    known, step = _arrays.concrete(sigmas), _arrays.concrete(step_size)
    if known is None:
        return
    rounding = float(jnp.finfo(jnp.promote_types(known.dtype, jnp.bfloat16)).eps)
    ratios = known[1:] / known[:-1]
    if np.ptp(ratios) > max(1e-3 * (1.0 - ratios.max()), 16.0 * rounding):
        raise ValueError(
            f"sigmas must be geometric, got ratios from {ratios.min()} to {ratios.max()}: use "
            "noise_levels.geometric or jnp.geomspace."
        )
    if step is None:
        return
    gamma, eta = ratios.min(), step / known[-1] ** 2
    if not 1.0 - gamma < eta < 1.0 + gamma:
        raise ValueError(
            f"beta^2 = 1 - (1 - eta)^2 / gamma^2 must be positive, got "
            f"{1.0 - ((1.0 - eta) / gamma) ** 2:.4g} from eta = step_size / sigma_L^2 = {eta:.4g} "
            f"and gamma = {gamma:.4g}: take eta between 1 - gamma and 1 + gamma, or more levels."
        )
