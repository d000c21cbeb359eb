"""Samplers that undo a noising process, one step of `sm_jax.samplers.steps` at a time.

The process ``dx = f x dt + g dw`` of sm_jax.processes, run backwards from its prior, is the reverse
SDE, and the probability-flow ODE has the same marginal densities:

    dx = (f x - g^2 s(x, t)) dt + g dw,    t from t_max down to t_min,                 (1)
    dx = (f x - g^2 s(x, t) / 2) dt.                                                   (2)

In the variables ``y = x / alpha`` and ``r = sigma / alpha`` of any process, (2) is the ODE of EDM,

    dy / dr = (y - D) / r = -r alpha s(x, t),    D = E[x_0 | x_t]:                     (3)

one solver serves every process, and its last step, from ``t_min`` to no noise, is the denoiser
``D`` itself.

Each docstring has the step from ``t`` to ``t'``, the times of the grid, with ``s = s(x, t)``,
``z ~ N(0, I)``, and ``alpha, sigma, r`` of the process at ``t``, ``alpha', sigma', r'`` at ``t'``.

References: Song et al. 2021, https://arxiv.org/abs/2011.13456; Karras et al. 2022,
https://arxiv.org/abs/2206.00364
"""

from functools import partial

import jax
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax._scan import sampler
from sm_jax.processes import solver_grid
from sm_jax.samplers import steps
from sm_jax.samplers._solve import solve
from sm_jax.typing import ArrayOrList, NoiseScoreFn, NoTrajectory, ProcessLike


@sampler
def euler_maruyama(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Integrate the reverse SDE by the Euler-Maruyama method.

    With ``h = t - t'``, and the drift ``f`` and the diffusion ``g`` of the process at ``t``,

        x <- x - h (f x - g^2 s) + g sqrt(h) z.

    Weak order 1, one evaluation of the score a step. Slower than `heun`, and more forgiving of
    errors of the score, which its fresh noise washes out.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``.
        key: a random key.
        process: the noising process of the score.
        num_steps: number of steps, 256 or more by default.
        times: the times of the steps, instead of ``num_steps``.
        denoise: end with the denoiser, one more evaluation.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, as `solve`.

    Raises:
        TypeError, ValueError: as `solve`.

    Example:
        >>> from sm_jax import processes
        >>> process, key = processes.VPLinear(), jax.random.key(1)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> euler_maruyama(lambda x, t: -x, x, key, process=process, num_steps=20).shape
        (4, 2)

    Reference: Song et al. 2021, eq. 6, https://arxiv.org/abs/2011.13456
    """
    times = solver_grid(process, num_steps, times=times, default=256)
    return solve(
        steps.euler_maruyama,
        score_fn,
        x,
        key,
        process=process,
        times=times,
        denoise=denoise,
        trajectory=trajectory,
    )


@sampler
def reverse_diffusion(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Integrate the reverse SDE by reverse diffusion, the predictor of Song et al.

        x <- (2 - a) x + b^2 s + b z,
        a = alpha / alpha',    b^2 = sigma^2 (1 - q^2),    q = r' / r

    Weak order 1, one evaluation of the score a step. The SDE is discretized as the forward process
    is, so that a step adds as much noise as the process did: more than `ancestral` adds, and
    therefore the variance is too large where steps are few. Prefer `ancestral`.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``.
        key: a random key.
        process: the noising process of the score.
        num_steps: number of steps, 256 or more by default.
        times: the times of the steps, instead of ``num_steps``.
        denoise: end with the denoiser, one more evaluation.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, as `solve`.

    Raises:
        TypeError, ValueError: as `solve`.

    Example:
        >>> from sm_jax import processes
        >>> process, key = processes.VPLinear(), jax.random.key(1)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> reverse_diffusion(lambda x, t: -x, x, key, process=process, num_steps=20).shape
        (4, 2)

    Reference: Song et al. 2021, appendix E, https://arxiv.org/abs/2011.13456
    """
    times = solver_grid(process, num_steps, times=times, default=256)
    return solve(
        steps.reverse_diffusion,
        score_fn,
        x,
        key,
        process=process,
        times=times,
        denoise=denoise,
        trajectory=trajectory,
    )


@sampler
def ancestral(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Sample by ancestral sampling: each time from its Gaussian law given the time before.

        x <- (x + b^2 s) / a + sigma' sqrt(1 - q^2) z,
        a = alpha / alpha',    b^2 = sigma^2 (1 - q^2),    q = r' / r

    The sampler of DDPM for `VPLinear` and `Cosine`, and that of NCSN for `VE`. Weak order 1, one
    evaluation of the score a step, and exact in a single step for data of one point. Good with many
    steps, whose fresh noise washes out errors of the score; for few, prefer `dpm_solver_pp_sde`.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``.
        key: a random key.
        process: the noising process of the score.
        num_steps: number of steps, 256 or more by default.
        times: the times of the steps, instead of ``num_steps``.
        denoise: end with the denoiser, one more evaluation.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, as `solve`.

    Raises:
        TypeError, ValueError: as `solve`.

    Example:
        >>> from sm_jax import processes
        >>> process, key = processes.VPLinear(), jax.random.key(1)
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> ancestral(lambda x, t: -x, x, key, process=process, num_steps=20).shape
        (4, 2)

    Reference: Ho et al. 2020, algorithm 2, https://arxiv.org/abs/2006.11239
    """
    times = solver_grid(process, num_steps, times=times, default=256)
    return solve(
        steps.ancestral,
        score_fn,
        x,
        key,
        process=process,
        times=times,
        denoise=denoise,
        trajectory=trajectory,
    )


@sampler
def ddim(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    eta: ArrayLike = 0.0,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Sample by DDIM: deterministic for ``eta = 0``, `ancestral` for ``eta = 1``.

        x <- (x + sigma^2 (1 - k) s) / a + eta sigma' sqrt(1 - q^2) z,
        k = q sqrt(1 - eta^2 (1 - q^2)),    a = alpha / alpha',    q = r' / r

    Order 1, weak where ``eta > 0``, one evaluation of the score a step. With ``eta = 0`` this is
    Euler's method for the probability flow (3), hence also the exponential Euler method in
    ``log r``, and exact in a single step for data of one point. `heun` and `dpm_solver_pp` need
    fewer evaluations for the same error.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``.
        key: a random key, for ``eta > 0`` only.
        process: the noising process of the score.
        num_steps: number of steps, 64 or more by default.
        times: the times of the steps, instead of ``num_steps``.
        eta: share of the ancestral noise, in [0, 1].
        denoise: end with the denoiser, one more evaluation.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, as `solve`.

    Raises:
        TypeError: as `solve`.
        ValueError: as `solve`; or ``eta`` is outside [0, 1] or, without a key, not zero.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VPLinear()
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> ddim(lambda x, t: -x, x, process=process, num_steps=20).shape
        (4, 2)

    Reference: Song, Meng & Ermon 2021, eq. 12 and 16, https://arxiv.org/abs/2010.02502
    """
    times = solver_grid(process, num_steps, times=times, default=64)
    return solve(
        partial(steps.ddim, eta=eta),
        score_fn,
        x,
        key,
        process=process,
        times=times,
        denoise=denoise,
        trajectory=trajectory,
    )


@sampler
def heun(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    churn: ArrayLike = 0.0,
    churn_interval: tuple[ArrayLike, ArrayLike] | None = None,
    churn_noise: ArrayLike = 1.0,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Integrate the probability flow (3) by Heun's method, with the churn of EDM.

    In ``y = x / alpha``, whose noise has the standard deviation ``r``, the churn raises it to
    ``r_c``, that of the time ``t_c``, and the flow takes it down to ``r'``:

        r_c = min(r (1 + min(churn / num_steps, sqrt(2) - 1)), r(t_max)),
        y <- y + churn_noise sqrt(r_c^2 - r^2) z,
        d = -r_c alpha(t_c) s(alpha(t_c) y, t_c),    y_e = y + (r' - r_c) d,
        d' = -r' alpha' s(alpha' y_e, t'),           y <- y + (r' - r_c) (d + d') / 2.

    Order 2, two evaluations of the score a step. The first choice for sampling: few evaluations,
    and without ``churn``, where ``r_c = r`` and ``t_c = t``, a deterministic, invertible map from
    noise to samples.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``.
        key: a random key, for ``churn > 0`` only.
        process: the noising process of the score.
        num_steps: number of steps, 32 or more by default.
        times: the times of the steps, instead of ``num_steps``.
        churn: EDM's ``S_churn``, the growth of the noise in all steps together; 0 is deterministic.
        churn_interval: ``(low, high)``, EDM's ``S_tmin`` and ``S_tmax``: churn only in the steps
            from times ``low < t <= high``. By default in all.
        churn_noise: EDM's ``S_noise``, a factor of the noise that the churn adds. Slightly above 1
            it makes up for a network that removes too much noise; any other than 1 is a bias where
            the score is exact.
        denoise: end with the denoiser, one more evaluation.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, as `solve`.

    Raises:
        TypeError: as `solve`.
        ValueError: as `solve`; or ``churn`` is negative or has no key, ``churn_noise`` is not
            positive, or ``churn_interval`` is empty.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VPLinear()
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> heun(lambda x, t: -x, x, process=process, num_steps=20).shape
        (4, 2)

    Reference: Karras et al. 2022, algorithms 1 and 2, https://arxiv.org/abs/2206.00364
    """
    times = solver_grid(process, num_steps, times=times, default=32)
    _checks.check_scalar("churn", churn)
    _checks.check_not_negative("churn", churn)
    key = _checks.key_for("churn", churn, key)
    step = partial(
        steps.heun,
        gamma=churn / (times.shape[0] - 1) if key is not None else 0.0,
        churn_interval=churn_interval,
        churn_noise=churn_noise,
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
