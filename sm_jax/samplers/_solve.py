"""The loop around the steps of a diffusion sampler, from the first time of a grid to the last."""

import jax

from sm_jax import _arrays, _checks
from sm_jax._scan import run, sampler, wide
from sm_jax.parameterization import at_time, denoiser_from_score
from sm_jax.processes import solver_grid, warn_off_center
from sm_jax.typing import ArrayOrList, NoiseScoreFn, NoTrajectory, ProcessLike, StepFn


def last_move(score_fn: NoiseScoreFn, process: ProcessLike, t: jax.Array, denoise: bool):
    """Return the last move of a diffusion sampler: the denoiser at time ``t``, or nothing."""
    return at_time(denoiser_from_score(score_fn, process=process), t) if denoise else None


@sampler
def solve(
    step: StepFn,
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Sample by a step of `sm_jax.samplers.steps` or one of yours, from time to time of a grid.

        x_{i+1} = step(score_fn, x_i, t_i, t_{i+1}, keys_i, process=process),    i < num_steps,
        keys = jax.random.split(key, num_steps)

    and at the end, with ``denoise``, the denoiser ``D = (x + sigma^2 s(x, t)) / alpha`` of the last
    time. This is the loop of the diffusion samplers, whose shared arguments are explained here: one
    compiled ``jax.lax.scan``. Its state is in float32 at least, in which the step computes; the
    score sees it in the dtype of ``x``, and so do the results.

    Under ``jax.jit``: ``jax.jit(partial(solve, step, score_fn, process=process))``.

    Args:
        step: ``(score_fn, x, t, t_next, key, *, process) -> x``, the times traced scalars. Options
            are given by ``functools.partial``.
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``, row i depending on row i only; parameters,
            labels and dropout keys are in its closure.
        x: where the samples start, ``[B, ...]``: noise of the prior at the first time, from
            `processes.prior_sample`.
        key: a random key; None for a step that draws nothing.
        process: the noising process that the score was trained for.
        num_steps: number of steps on `processes.solver_grid`, 256 or more by default.
        times: instead of ``num_steps``: strictly decreasing times ``[num_steps + 1]`` within the
            range of the process.
        denoise: end with the denoiser at the last time, one more evaluation: the mean of the data
            given ``x``, without the noise of ``t_min``.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``; or ``(x, trajectory [num_steps + 1, B, ...])``, the start and every
        iterate, before the denoising.

    Raises:
        TypeError: ``x`` is not floating, the score has another dtype, or the step draws random
            numbers and there is no key.
        ValueError: ``x`` is empty, the score or what the step returns has another shape,
            ``num_steps < 1``, both ``num_steps`` and ``times`` are given, or the times are not
            strictly decreasing or leave the range of the process.

    Example:
        >>> import jax.numpy as jnp
        >>> from sm_jax import processes
        >>> from sm_jax.samplers import steps
        >>> process = processes.VE(sigma_max=10.0)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> score_fn, key = lambda x, t: -x / (1.0 + t[:, None] ** 2), jax.random.key(1)
        >>> solve(steps.ancestral, score_fn, x, key, process=process, num_steps=20).shape
        (4, 2)
        >>> def euler(score_fn, x, t, t_next, key, *, process):  # the flow of VE, dx = -t s dt
        ...     return x - (t_next - t) * t * score_fn(x, jnp.full(len(x), t))
        >>> solve(euler, score_fn, x, process=process, num_steps=20).shape
        (4, 2)
    """
    x = _checks.check_data(x)
    times = solver_grid(process, num_steps, times=times, default=256)
    times = times.astype(_arrays.accumulator(x.dtype))
    score_fn = wide(score_fn, x)

    def advance(x, given):
        t, t_next, key = given
        moved = step(score_fn, x, t, t_next, key, process=process)
        if getattr(moved, "shape", None) != x.shape:
            raise ValueError(f"step must return points of shape {x.shape}, got {moved}.")
        return moved

    keys = None if key is None else jax.random.split(key, times.shape[0] - 1)
    finish = last_move(score_fn, process, times[-1], denoise)
    result = run(advance, x, (times[:-1], times[1:], keys), finish, trajectory)
    warn_off_center(process, result[0] if isinstance(result, tuple) else result, "the samples")
    return result
