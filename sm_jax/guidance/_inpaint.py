r"""Inpainting by replacement, with resampling (RePaint).

Some numbers of the data are known, a mask ``m`` says which. In the variables ``y = x_t / alpha``
and ``r = sigma / alpha`` of any process, with the denoiser ``D``, each step from ratio ``r`` down
to ``q`` moves by the ancestral rule, and replaces what is known by the known, freshly noised:

    y <- D + (q / r)^2 (y - D) + q sqrt(1 - (q / r)^2) z,                              (1)
    y <- m (known + q z') + (1 - m) y.                                                 (2)

The known part is drawn without regard to the rest, which one pass cannot mend. Therefore blocks of
steps are repeated: noise is added to go back up from ``q`` to ``r``,

    y <- y + sqrt(r^2 - q^2) z'',                                                      (3)

and the steps down are made again, so that the unknown part comes to terms with the known one at
each noise level before the noise falls.

Reference: Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865
"""

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import _arrays, _checks
from sm_jax._scan import run, sampler, wide
from sm_jax.parameterization import at_time, denoiser_from_score
from sm_jax.processes import noise_ratio, perturb, solver_grid
from sm_jax.samplers import steps
from sm_jax.typing import ArrayOrList, NoiseScoreFn, NoTrajectory, ProcessLike


@sampler
def inpaint(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    process: ProcessLike,
    known: ArrayOrList,
    mask: ArrayOrList,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    num_resamples: int = 10,
    jump_length: int = 1,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Sample the unknown part of the data given the known part, by RePaint.

    In ``y = x / alpha`` with the noise ratio ``r``, a step to the ratio ``r'`` of the next time is
    `samplers.ancestral`'s, with the denoiser ``D``, and replaces what is known by the known, noised
    afresh. Before each repetition of a block of steps, noise takes ``y`` back up from ``r'`` at the
    end of the block to ``r`` at its start:

        y <- D + (r' / r)^2 (y - D) + r' sqrt(1 - (r' / r)^2) z,
        y <- known + r' z_known    where mask,
        y <- y + sqrt(r^2 - r'^2) z_up.

    It needs no derivative of the score, and so takes less memory than `pigdm` and `mmps`, which are
    more accurate for the same number of evaluations and allow noise in what is known. With one
    pass, ``num_resamples=1``, the unknown part depends too little on the known one: for two numbers
    of correlation 0.8 its mean is moved by 60 % of what is right (51 % at 0.5, 74 % at 0.95; VE
    from 50 to 0.01, 64 steps), and by 62 % in 1,000 steps. Passes cure it, the rest falling as one
    over their number: 77 % with 2, 95 % with the default 10, 99.5 % with 100. What then remains is
    a variance too small by a share of order ``1 / num_steps``, 12 % here with 10 passes, 17 % with
    100. The weights of modes that are far apart take many more.

    The arguments that are not explained here are those of `samplers.solve`.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``.
        key: a random key.
        process: the noising process of the score.
        known: data whose known numbers are used, ``[B, ...]``, or one event ``[...]`` for all; the
            other numbers do not matter, but must be finite.
        mask: boolean, true where known, ``[B, ...]`` or ``[...]``.
        num_steps: number of steps, 64 or more by default; each costs ``num_resamples`` evaluations.
        times: the times of the steps, instead of ``num_steps``.
        num_resamples: how often each block of steps is made; 1 is plain replacement.
        jump_length: steps in a block. Longer blocks renew more of the unknown part at a time.
        denoise: end with the denoiser, one more evaluation, and with the known numbers as given.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_resamples num_steps + 1, B, ...])``, the
        start and the points after each replacement, before the denoising.

    Raises:
        TypeError: as `samplers.solve`; or the mask is not boolean.
        ValueError: as `samplers.solve`; or ``known`` or ``mask`` has neither the shape of ``x`` nor
            that of a row, or a count is below 1.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=10.0)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> score_fn, key = lambda x, t: -x / (1.0 + t[:, None] ** 2), jax.random.key(1)
        >>> x = inpaint(
        ...     score_fn, x, key, process=process,
        ...     known=jnp.array([2.0, 0.0]), mask=jnp.array([True, False]),
        ...     num_steps=20, num_resamples=2)
        >>> x[:, 0].tolist()
        [2.0, 2.0, 2.0, 2.0]

    Reference: Lugmayr et al. 2022, algorithm 1, https://arxiv.org/abs/2201.09865
    """
    x = _checks.check_data(x)
    _checks.check_key("inpaint", key)
    known, mask = _event("known", known, x).astype(x.dtype), _event("mask", mask, x)
    if mask.dtype != bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}: compare, e.g. mask > 0.5.")
    _checks.check_count("num_resamples", num_resamples)
    _checks.check_count("jump_length", jump_length)
    times = solver_grid(process, num_steps, times=times, default=64)
    times = times.astype(_arrays.accumulator(x.dtype))
    score_fn, known = wide(score_fn, x), _arrays.accumulated(known)
    denoiser_fn = denoiser_from_score(score_fn, process=process)

    def step(x, given):
        before, above, below, key = given
        key_up, key_down, key_known = jax.random.split(key, 3)
        last, high = noise_ratio(process, before), noise_ratio(process, above)
        # 0 in most steps, where the root has no derivative; as a product, exactly so when fused.
        gap = (high - last) * (high + last)
        lift = jnp.where(gap > 0.0, jnp.sqrt(jnp.where(gap > 0.0, gap, 1.0)), 0.0)
        y = x / process.alpha(before) + lift * jax.random.normal(key_up, x.shape, x.dtype)
        x = process.alpha(above) * y
        x = steps.ancestral(score_fn, x, above, below, key_down, process=process)
        noised, _ = perturb(process, known, below, key_known)
        return jnp.where(mask, noised, x)

    def finish(x):
        return jnp.where(mask, known, at_time(denoiser_fn, times[-1])(x))

    visits = _visits(times.shape[0] - 1, num_resamples, jump_length)
    inputs = (*(times[v] for v in visits), jax.random.split(key, visits.shape[1]))
    return run(step, x, inputs, finish if denoise else None, trajectory)


def _event(name: str, value: ArrayOrList, x: jax.Array) -> jax.Array:
    """Return ``value`` in the shape of ``x``, or raise unless it has that of ``x`` or a row."""
    value = jnp.asarray(value)
    if value.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"{name} must have the shape of x, {x.shape}, or of one event, {x.shape[1:]}, got "
            f"{value.shape}."
        )
    return jnp.broadcast_to(value, x.shape)


def _visits(num_steps: int, num_resamples: int, jump_length: int) -> np.ndarray:
    """Return ``[3, N]``, indices of times: where a step comes from, where (3) lifts it, its end."""
    visits = []
    for first in range(0, num_steps, jump_length):
        last = min(first + jump_length, num_steps)
        for again in range(num_resamples):
            for i in range(first, last):
                visits.append((last if again and i == first else i, i, i + 1))
    return np.array(visits).T
