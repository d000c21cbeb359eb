"""Langevin dynamics, ``dx = s(x) dt + sqrt(2) dw``, whose stationary density has the score ``s``.

Its Euler-Maruyama step of size ``h`` is

    x <- x + h s(x) + sqrt(2 h) z,    z ~ N(0, I).                                     (1)

References: Roberts & Tweedie 1996, https://doi.org/10.2307/3318418; annealed, Song & Ermon 2019,
https://arxiv.org/abs/1907.05600 and 2020, https://arxiv.org/abs/2006.09011
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax.samplers._scan import run
from sm_jax.typing import NoiseScoreFn, ScoreFn


def _langevin_step(score: jax.Array, x: jax.Array, step_size: jax.Array, key: jax.Array):
    """Return one step of eq. (1)."""
    z = jax.random.normal(key, x.shape, x.dtype)
    return x + step_size * score + jnp.sqrt(2.0 * step_size) * z


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

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``.
        x: starting points ``[B, ...]``.
        key: a random key.
        step_size: ``h``, in squared units of the data; well below the smallest variance.
        num_steps: number of steps, each one evaluation of the score.
        trajectory: also return the path.

    Returns:
        The last points ``[B, ...]``, or ``(x, path [num_steps + 1, B, ...])``.

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
    _checks.check_positive("step_size", step_size)
    _checks.check_count("num_steps", num_steps)
    score_fn = _checks.checked(score_fn, x)

    def step(x, key):
        return _langevin_step(score_fn(x), x, step_size, key)

    return run(step, x, jax.random.split(key, num_steps), None, trajectory)


def annealed_langevin(
    score_fn: NoiseScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    sigmas: ArrayLike,
    step_size: ArrayLike,
    num_steps: int,
    denoise: bool = True,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Run Langevin dynamics at each noise level in turn, from the largest to the smallest.

    At level ``sigma_i`` of ``L`` the step is ``step_size sigma_i^2 / sigma_L^2``, and ``num_steps``
    steps of eq. (1) are made with the score of that level. `sm_jax.noise_levels` computes levels
    and step from the data.

    Args:
        score_fn: ``(x [B, ...], sigma [B]) -> [B, ...]``.
        x: starting points ``[B, ...]``, e.g. ``sigmas[0]`` times unit noise.
        key: a random key.
        sigmas: noise levels ``[L]``, strictly decreasing, in units of the data.
        step_size: step at the smallest level, in squared units of the data.
        num_steps: steps at each level; in all, ``L num_steps`` evaluations, and one to denoise.
        denoise: end with ``x + sigma_L^2 s(x, sigma_L)``, the mean without the last noise.
        trajectory: also return the path.

    Returns:
        The last points ``[B, ...]``, or ``(x, path [L num_steps + 1, B, ...])``, the path before
        the denoising.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_steps < 1``, ``step_size`` is
            not positive, or the levels are not positive and strictly decreasing.

    Example:
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> score_fn = lambda x, sigma: -x / (1.0 + sigma[:, None] ** 2)
        >>> x = annealed_langevin(
        ...     score_fn, x, key, sigmas=[3.0, 1.0, 0.3], step_size=0.01, num_steps=20)
        >>> x.shape
        (4, 2)

    Reference: Song & Ermon 2020, algorithm 1, https://arxiv.org/abs/2006.09011
    """
    x = _checks.check_data(x)
    sigmas = _checks.check_levels("sigmas", sigmas).astype(_checks.accumulator(x.dtype))
    _checks.check_positive("step_size", step_size)
    _checks.check_count("num_steps", num_steps)
    score_fn = _checks.checked(score_fn, x)

    def score_at(x, sigma):
        return score_fn(x, jnp.broadcast_to(sigma, x.shape[:1]))

    def step(x, given):
        sigma, key = given
        return _langevin_step(score_at(x, sigma), x, step_size * (sigma / sigmas[-1]) ** 2, key)

    def finish(x):
        return x + sigmas[-1] ** 2 * score_at(x, sigmas[-1])

    levels = jnp.repeat(sigmas, num_steps)
    keys = jax.random.split(key, levels.shape[0])
    return run(step, x, (levels, keys), finish if denoise else None, trajectory)
