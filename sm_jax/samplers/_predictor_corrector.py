"""Predictor and corrector: a step towards less noise, then Langevin steps at the level reached.

The corrector is Langevin dynamics at a fixed time,

    x <- x + h s(x, t) + sqrt(2 h) z,    h = 2 (snr sigma(t))^2.                           (1)

``snr`` is the ratio of the step, ``h |s|``, to its noise, ``sqrt(2 h D)`` for ``D`` numbers, when
``|s|^2`` has the value ``D / sigma^2``, which it has in the mean over noised data that fill few of
the ``D`` dimensions, and never exceeds in the mean over any.

The Langevin steps are not corrected by a Metropolis test. On a Gaussian of variance ``V`` they end
at the variance

    V / (1 - snr^2 sigma(t)^2 / V)                                                         (2)

instead, which more steps of the predictor do not change.

Reference: Song et al. 2021, section 4.2 and appendix G, https://arxiv.org/abs/2011.13456
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax.samplers._ancestral import reverse_diffusion
from sm_jax.samplers._diffusion import _finish, _grid, _located, heun
from sm_jax.samplers._dpm_solver import dpm_solver_pp, dpm_solver_pp_sde
from sm_jax.samplers._langevin import langevin_step
from sm_jax.samplers._scan import run, wide
from sm_jax.typing import NoiseScoreFn, ProcessLike


def predictor_corrector(
    score_fn: NoiseScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayLike | None = None,
    predictor: Callable = reverse_diffusion,
    num_corrector_steps: int = 1,
    snr: ArrayLike = 0.16,
    denoise: bool = True,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Alternate one step of a sampler with Langevin steps at the time that it reached, eq. (1).

    The corrector lowers the error of a poor predictor or a poor score, at one evaluation a step,
    and adds the bias of eq. (2), little where the last ``sigma`` is small against the data. With a
    ``snr`` that falls as ``1 / sqrt(num_steps)`` the weak order is 1, also with a predictor of
    order 2. Made for images, where a snr between 0.1 and 0.2 is usual. Where the score is good,
    more steps of a better sampler, such as `dpm_solver_pp` alone, are the better use of
    evaluations.

    Song et al. measure ``|s|`` and ``|z|`` in the mean over a batch, which makes a sample depend on
    its batch; measured for each example apart they would make the step depend on the point, and
    that changes the stationary density (in three dimensions the variance, by 30 %). The expected
    norm of eq. (1) does neither. They also shorten the step by the factor ``1 - beta`` of their
    1,000 steps, above 0.98, which is left out.

    Under ``jax.jit``: ``jax.jit(partial(predictor_corrector, score_fn, process=process))``.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``, from ``processes.prior_sample``.
        key: a random key.
        process: the process that the score was trained for.
        num_steps: number of steps on ``processes.time_grid``, 128 or more by default; each costs
            the evaluations of the predictor and ``num_corrector_steps``, and the denoising one
            more.
        times: instead of ``num_steps``: strictly decreasing times ``[num_steps + 1]``.
        predictor: a sampler of this family, of which one step is taken at a time:
            `reverse_diffusion`, `ancestral`, `euler_maruyama`, `ddim`, `heun`, ..., or
            ``functools.partial(ddim, eta=0.5)``. The ``churn`` of ``partial(heun, churn=...)`` is
            that of all steps together, as for `heun`. A multistep sampler would forget its past:
            `dpm_solver_pp` and `dpm_solver_pp_sde` are refused, others go unnoticed.
        num_corrector_steps: Langevin steps after each step of the predictor; 0 for none.
        snr: signal-to-noise ratio of a Langevin step.
        denoise: end with the denoiser at the last time.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, the trajectory before
        the denoising.

    Raises:
        TypeError: ``x`` is not floating, the score has another dtype, or the predictor is adaptive.
        ValueError: ``x`` is empty, the score has another shape, a count is too small, ``snr`` is
            not positive, the predictor is a multistep sampler, or the times are not strictly
            decreasing or leave the range of the process.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=10.0)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)
        >>> predictor_corrector(score_fn, x, jax.random.key(1), process=process, num_steps=9).shape
        (4, 2)
    """
    x = _checks.check_data(x)
    _checks.check_key("predictor_corrector", key)
    times = _grid(x, process, num_steps, times, default=128)
    _checks.check_count("num_corrector_steps", num_corrector_steps, minimum=0)
    _checks.check_scalar("snr", snr)
    _checks.check_positive("snr", snr)
    predictor = _of_one_step(predictor, times.shape[0] - 1)
    score_fn = wide(score_fn, x)

    def correct(t):
        step_size = 2.0 * (snr * process.sigma(t)) ** 2

        def step(x, key):
            score = score_fn(x, jnp.broadcast_to(t, x.shape[:1]))
            return langevin_step(score, x, step_size, key)

        return step

    def step(x, given):
        t, t_next, key = given
        key_predictor, key_corrector = jax.random.split(key)
        x = predictor(
            score_fn,
            x,
            key_predictor,
            process=process,
            times=jnp.stack([t, t_next]),
            denoise=False,
        )
        if not isinstance(x, jax.Array):
            raise TypeError(
                f"predictor must return the points, got {type(x).__name__}: an adaptive sampler "
                "takes steps of its own."
            )
        if num_corrector_steps:
            keys = jax.random.split(key_corrector, num_corrector_steps)
            x = run(correct(t_next), x, keys, None, trajectory=False)
        return x

    inputs = (times[:-1], times[1:], jax.random.split(key, times.shape[0] - 1))
    finish = _finish(score_fn, process, times[-1], denoise)
    return _located(process, run(step, x, inputs, finish, trajectory))


def _of_one_step(predictor: Callable, num_steps: int) -> Callable:
    """Return a predictor that takes one step of ``num_steps`` by itself, or raise."""
    function = predictor.func if isinstance(predictor, partial) else predictor
    if function in (dpm_solver_pp, dpm_solver_pp_sde):
        raise ValueError(
            f"predictor {function.__name__} is a multistep sampler, which of single steps becomes "
            "one of order 1: use heun, ddim or ancestral, or it alone."
        )
    if function is heun and isinstance(predictor, partial) and "churn" in predictor.keywords:
        return partial(predictor, churn=predictor.keywords["churn"] / num_steps)
    return predictor
