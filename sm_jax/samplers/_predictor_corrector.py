"""The predictor-corrector sampler: a step towards less noise, then Langevin steps at that noise.

Reference: Song et al. 2021, section 4.2 and appendix G, https://arxiv.org/abs/2011.13456
"""

from functools import partial

import jax
from jax.typing import ArrayLike

from sm_jax._scan import sampler
from sm_jax.processes import solver_grid
from sm_jax.samplers import steps
from sm_jax.samplers._solve import solve
from sm_jax.typing import ArrayOrList, NoiseScoreFn, NoTrajectory, ProcessLike, StepFn


@sampler
def predictor_corrector(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    predictor: StepFn = steps.reverse_diffusion,
    num_corrector_steps: int = 1,
    snr: ArrayLike = 0.16,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Alternate a step of another method with Langevin steps at the time that it reached.

        x <- predictor(score_fn, x, t, t', key, process=process),
        x <- x + h s(x, t') + sqrt(2 h) z,    h = 2 (snr sigma')^2,    num_corrector_steps times

    The corrector lowers the error of a poor predictor or a poor score, and adds a bias: on a
    Gaussian of variance ``V`` the Langevin steps, which no Metropolis test corrects, end at

        V / (1 - snr^2 sigma'^2 / V),

    little where the last ``sigma'`` is small against the data. With a ``snr`` that falls as
    ``1 / sqrt(num_steps)`` the weak order is 1, also with a predictor of order 2. A step costs the
    evaluations of the predictor and ``num_corrector_steps``. Made for images, where a snr between
    0.1 and 0.2 is usual. Where the score is good, more steps of a better sampler, such as
    `dpm_solver_pp` alone, are the better use of evaluations.

    ``snr`` is the ratio of ``h |s|`` to ``sqrt(2 h D)``, the norm of the noise in ``D`` numbers,
    for ``|s|^2 = D / sigma'^2``, the mean over noised data that fill few of the dimensions, and a
    bound of the mean over any. Song et al. measure ``|s|`` and ``|z|`` in the mean over a batch,
    which makes a sample depend on its batch; measured for each example, the step would depend on
    the point, which changes the stationary density (in three dimensions the variance, by 30 %).
    They also shorten the step by ``1 - beta`` of their 1,000 steps, above 0.98, which is left out.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``.
        key: a random key.
        process: the noising process of the score.
        num_steps: number of steps, 128 or more by default.
        times: the times of the steps, instead of ``num_steps``.
        predictor: a step of `sm_jax.samplers.steps`, with options in ``functools.partial``, e.g.
            ``partial(steps.ddim, eta=0.5)``, or one of your own.
        num_corrector_steps: Langevin steps after each step of the predictor; 0 for none.
        snr: signal-to-noise ratio of a Langevin step.
        denoise: end with the denoiser, one more evaluation.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, as `solve`.

    Raises:
        TypeError: as `solve`.
        ValueError: as `solve`; or ``num_corrector_steps`` is negative, or ``snr`` is not one
            positive number.

    Example:
        >>> from sm_jax import processes
        >>> process, key = processes.VPLinear(), jax.random.key(1)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> predictor_corrector(lambda x, t: -x, x, key, process=process, num_steps=20).shape
        (4, 2)

    Reference: Song et al. 2021, section 4.2 and appendix G, https://arxiv.org/abs/2011.13456
    """
    times = solver_grid(process, num_steps, times=times, default=128)
    step = partial(
        steps.predictor_corrector,
        predictor=predictor,
        num_corrector_steps=num_corrector_steps,
        snr=snr,
    )
    return solve(
        step,
        score_fn,
        x,
        key,
        process=process,
        times=times,
        denoise=denoise,
        trajectory=trajectory,
    )
