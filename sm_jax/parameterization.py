r"""What a network may predict, and exact conversions to the score.

With ``x_t = alpha x_0 + sigma z`` (see sm_jax.processes), the best predictions given ``x_t`` of
the clean data ``D = E[x_0 | x_t]``, of the noise ``eps = E[z | x_t]`` and of the other targets
below are linear functions of one another and of the score ``s``:

    s   = -eps / sigma = (alpha D - x_t) / sigma^2,                                    (1)
    eps = (x_t - alpha D) / sigma,                                                     (2)
    v   = alpha eps - sigma D,                                                         (3)
    u   = alpha' D + sigma' eps.                                                       (4)

``v`` is the target of Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, here for any process
(there ``alpha^2 + sigma^2 = 1``). ``u = E[dx_t / dt | x_t]`` is the velocity of the
probability-flow ODE, the target of flow matching, per unit of the time of the process.

Every conversion is to or from the noise ``eps``, which stays of order one at every noise level;
any other pair is a composition of two.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax.processes import noise_ratio
from sm_jax.typing import EnergyFn, NoiseScoreFn, ProcessLike, ScoreFn

__all__ = [
    "change_process",
    "clean_from_noise",
    "denoiser_from_score",
    "noise_from_clean",
    "noise_from_score",
    "noise_from_v",
    "noise_from_velocity",
    "precondition",
    "score_from_denoiser",
    "score_from_energy",
    "score_from_noise",
    "v_from_noise",
    "velocity_from_noise",
]


def _coefficients(process: ProcessLike, x: jax.Array, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
    t = _checks.check_per_example("t", t, x)
    return tuple(_checks.expand_like(c(t), x) for c in (process.alpha, process.sigma))


def _slopes(process: ProcessLike, x: jax.Array, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
    t = _checks.check_per_example("t", t, x)
    slopes = (jax.jvp(c, (t,), (jnp.ones_like(t),))[1] for c in (process.alpha, process.sigma))
    return tuple(_checks.expand_like(slope, x) for slope in slopes)


def noise_from_score(
    score: jax.Array, x: jax.Array, t: ArrayLike, *, process: ProcessLike
) -> jax.Array:
    """Return the noise prediction ``eps = -sigma s``, eq. (1).

    Args:
        score: score at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, of unit scale.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(noise_from_score(-x, x, 3.0, process=processes.VE()))
        [[3. 3.]]
    """
    _, sigma = _coefficients(process, x, t)
    return (-sigma * score).astype(x.dtype)


def score_from_noise(
    eps: jax.Array, x: jax.Array, t: ArrayLike, *, process: ProcessLike
) -> jax.Array:
    """Return the score ``s = -eps / sigma``, eq. (1).

    Args:
        eps: noise prediction at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, in units of one over the data.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(score_from_noise(6.0 * x, x, 3.0, process=processes.VE()))
        [[-2. -2.]]
    """
    _, sigma = _coefficients(process, x, t)
    return (-eps / sigma).astype(x.dtype)


def noise_from_clean(
    clean: jax.Array, x: jax.Array, t: ArrayLike, *, process: ProcessLike
) -> jax.Array:
    """Return the noise prediction ``eps = (x_t - alpha D) / sigma``, eq. (2).

    Args:
        clean: prediction ``D`` of the clean data at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, of unit scale.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(noise_from_clean(0.0 * x, x, 2.0, process=processes.VE()))
        [[0.5 0.5]]
    """
    alpha, sigma = _coefficients(process, x, t)
    return ((x - alpha * clean) / sigma).astype(x.dtype)


def clean_from_noise(
    eps: jax.Array, x: jax.Array, t: ArrayLike, *, process: ProcessLike
) -> jax.Array:
    """Return the prediction of the clean data ``D = (x_t - sigma eps) / alpha``, eq. (2).

    Args:
        eps: noise prediction at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, in units of the data.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(clean_from_noise(0.5 * x, x, 2.0, process=processes.VE()))
        [[0. 0.]]
    """
    alpha, sigma = _coefficients(process, x, t)
    return ((x - sigma * eps) / alpha).astype(x.dtype)


def noise_from_v(v: jax.Array, x: jax.Array, t: ArrayLike, *, process: ProcessLike) -> jax.Array:
    """Return the noise prediction from ``v``: ``(alpha v + sigma x_t) / (alpha^2 + sigma^2)``.

    Args:
        v: prediction ``alpha eps - sigma D`` at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, of unit scale.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(noise_from_v(0.0 * x, x, 1.0, process=processes.VE()))
        [[0.5 0.5]]
    """
    alpha, sigma = _coefficients(process, x, t)
    return ((alpha * v + sigma * x) / (alpha**2 + sigma**2)).astype(x.dtype)


def v_from_noise(eps: jax.Array, x: jax.Array, t: ArrayLike, *, process: ProcessLike) -> jax.Array:
    """Return ``v = alpha eps - sigma D``, eq. (3).

    Args:
        eps: noise prediction at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(v_from_noise(0.5 * x, x, 2.0, process=processes.VE()))
        [[0.5 0.5]]
    """
    alpha, sigma = _coefficients(process, x, t)
    return (alpha * eps - sigma * (x - sigma * eps) / alpha).astype(x.dtype)


def noise_from_velocity(
    velocity: jax.Array, x: jax.Array, t: ArrayLike, *, process: ProcessLike
) -> jax.Array:
    """Return the noise prediction from the velocity ``u``, eq. (4).

    Args:
        velocity: prediction of ``dx_t / dt`` at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, of unit scale: ``(u - f x_t) / (sigma' - f sigma)``, ``f = alpha' / alpha``.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(noise_from_velocity(x, x, 2.0, process=processes.VE()))
        [[1. 1.]]
    """
    alpha, sigma = _coefficients(process, x, t)
    alpha_slope, sigma_slope = _slopes(process, x, t)
    rate = alpha_slope / alpha
    return ((velocity - rate * x) / (sigma_slope - sigma * rate)).astype(x.dtype)


def velocity_from_noise(
    eps: jax.Array, x: jax.Array, t: ArrayLike, *, process: ProcessLike
) -> jax.Array:
    """Return the velocity ``u = alpha' D + sigma' eps`` of the probability flow, eq. (4).

    Args:
        eps: noise prediction at ``x_t``, ``[B, ...]``.
        x: noised data ``x_t [B, ...]``.
        t: times, a scalar or ``[B]``.
        process: any process.

    Returns:
        ``[B, ...]``, in units of the data per unit of time; equal to ``f x - g^2 s / 2``.

    Example:
        >>> from sm_jax import processes
        >>> x = jnp.ones((1, 2))
        >>> print(velocity_from_noise(0.5 * x, x, 2.0, process=processes.VE()))
        [[0.5 0.5]]
    """
    alpha, sigma = _coefficients(process, x, t)
    alpha_slope, sigma_slope = _slopes(process, x, t)
    return (alpha_slope * (x - sigma * eps) / alpha + sigma_slope * eps).astype(x.dtype)


def score_from_denoiser(
    denoiser_fn: Callable[[jax.Array, jax.Array], jax.Array], process: ProcessLike
) -> NoiseScoreFn:
    """Return the score function of a denoiser, ``s = (alpha D - x_t) / sigma^2``, eq. (1).

    Args:
        denoiser_fn: ``(x_t [B, ...], t [B]) -> E[x_0 | x_t] [B, ...]``.
        process: any process.

    Returns:
        A score function ``(x_t, t) -> [B, ...]``.

    Example:
        >>> from sm_jax import processes
        >>> score_fn = score_from_denoiser(lambda x, t: 0.0 * x, processes.VE())
        >>> print(score_fn(jnp.ones((1, 2)), jnp.array([2.0])))
        [[-0.25 -0.25]]
    """

    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = _coefficients(process, x, t)
        return ((alpha * denoiser_fn(x, t) - x) / sigma**2).astype(x.dtype)

    return score_fn


def denoiser_from_score(
    score_fn: NoiseScoreFn, process: ProcessLike
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return the denoiser of a score function, ``D = (x_t + sigma^2 s) / alpha``, eq. (1).

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        process: any process.

    Returns:
        A function ``(x_t, t) -> E[x_0 | x_t] [B, ...]``.

    Example:
        >>> from sm_jax import processes
        >>> denoiser_fn = denoiser_from_score(lambda x, t: -x / 8.0, processes.VE())
        >>> print(denoiser_fn(jnp.ones((1, 2)), jnp.array([2.0])))
        [[0.5 0.5]]
    """

    def denoiser_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = _coefficients(process, x, t)
        return ((x + sigma**2 * score_fn(x, t)) / alpha).astype(x.dtype)

    return denoiser_fn


def score_from_energy(energy_fn: EnergyFn) -> ScoreFn | NoiseScoreFn:
    """Return the score function of an energy, ``s = -grad_x E``, where ``p ∝ exp(-E)``.

    Args:
        energy_fn: ``(x [B, ...], *args) -> [B]``, row i depending on row i only.

    Returns:
        A score function ``(x, *args) -> [B, ...]``. It carries the energy as its attribute
        ``energy_fn``, from which `sm_jax.divergence` takes second derivatives at less cost.

    Raises:
        ValueError: at the first call, if the energy is not one number per example.

    Example:
        >>> score_fn = score_from_energy(lambda x: 0.5 * jnp.sum(x**2, axis=-1))
        >>> print(score_fn(jnp.ones((1, 2))))
        [[-1. -1.]]
    """

    @functools.wraps(energy_fn)
    def score_fn(x: jax.Array, *args: jax.Array) -> jax.Array:
        energy, pull_back = jax.vjp(lambda y: energy_fn(y, *args), x)
        return pull_back(-jnp.ones_like(_checks.check_energy(energy, x)))[0]

    score_fn.energy_fn = energy_fn  # a cheaper way to the divergence: see sm_jax.divergence
    return score_fn


def change_process(
    score_fn: NoiseScoreFn, source: ProcessLike, target: ProcessLike
) -> NoiseScoreFn:
    """Return the score function under another process than the one a network was trained for.

    The noised data of two processes differ only in scale where their ratios ``r = sigma / alpha``
    agree. So the change is exact: with ``c = alpha_source(t') / alpha_target(t)``,

        s_target(x, t) = c s_source(c x, t'),    r_source(t') = r_target(t).               (5)

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]`` under ``source``.
        source: the process that the score was trained for.
        target: the process to sample or evaluate likelihoods with. Its ratios must lie within
            those of ``source``, outside of which the network knows nothing.

    Returns:
        A score function ``(x_t [B, ...], t [B]) -> [B, ...]`` under ``target``.

    Raises:
        ValueError: the ratios of ``target`` (where they are not traced) leave those of ``source``.

    Example:
        >>> from sm_jax import processes
        >>> vp = processes.VPLinear(t_min=0.01)
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)  # of N(0, I) under VE
        >>> changed = change_process(score_fn, processes.VE(sigma_max=200.0), vp)
        >>> # N(0, I) stays as it is under VP.
        >>> print(changed(jnp.ones((1, 2)), jnp.array([0.5])).round(5))
        [[-1. -1.]]

    Reference: Karras et al. 2022, appendix B.1, https://arxiv.org/abs/2206.00364
    """
    inner, outer = (
        [_checks.concrete(noise_ratio(p, t)) for t in (p.t_min, p.t_max)] for p in (source, target)
    )
    slack = 1e-3  # of the ratio; rounding alone moves small ones by this much
    if not any(ratio is None for ratio in (*inner, *outer)) and (
        outer[0] < inner[0] * (1.0 - slack) or outer[1] > inner[1] * (1.0 + slack)
    ):
        raise ValueError(
            f"the score knows noise ratios sigma / alpha from {inner[0]:.4g} to {inner[1]:.4g}, "
            f"those of the source, but the target has {outer[0]:.4g} to {outer[1]:.4g}: raise "
            "t_min or sigma_min of the target, or lower its t_max, sigma_max or beta_max."
        )

    def changed(x: jax.Array, t: jax.Array) -> jax.Array:
        t = _checks.check_per_example("t", t, x)
        source_t = source.time(noise_ratio(target, t))
        source_t = jnp.clip(source_t, source.t_min, source.t_max)  # rounding may leave the range
        scale = _checks.expand_like(source.alpha(source_t) / target.alpha(t), x)
        return (scale * score_fn((scale * x).astype(x.dtype), source_t)).astype(x.dtype)

    return changed


def precondition(
    network: Callable[[jax.Array, jax.Array], jax.Array],
    process: ProcessLike,
    *,
    sigma_data: ArrayLike = 0.5,
) -> NoiseScoreFn:
    """Return the score function of a network ``F``, preconditioned as in EDM, for any process.

    With ``y = x_t / alpha`` and ``r = sigma / alpha``, the denoiser is

        D = c_skip y + c_out F(c_in y, log(r) / 4),
        c_skip = d^2 / (r^2 + d^2),  c_out = r d / sqrt(r^2 + d^2),  c_in = 1 / sqrt(r^2 + d^2),

    ``d`` being ``sigma_data``: inputs and training targets of ``F`` have unit variance at every
    noise level, and ``F = 0`` is the exact score of data distributed as ``N(0, d^2 I)``.

    Args:
        network: ``F``, mapping inputs ``[B, ...]`` of unit scale and noise labels ``[B]`` to
            outputs ``[B, ...]``.
        process: any process.
        sigma_data: standard deviation of the data, ``d``.

    Returns:
        A score function ``(x_t [B, ...], t [B]) -> [B, ...]``.

    Raises:
        ValueError: ``sigma_data`` is not positive.

    Example:
        >>> from sm_jax import processes
        >>> score_fn = precondition(lambda x, c: 0.0 * x, processes.VE(), sigma_data=1.0)
        >>> print(score_fn(jnp.ones((1, 2)), jnp.array([2.0])))
        [[-0.2 -0.2]]

    Reference: Karras et al. 2022, table 1, https://arxiv.org/abs/2206.00364
    """
    _checks.check_positive("sigma_data", sigma_data)

    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        t = _checks.check_per_example("t", t, x)
        alpha, sigma = _coefficients(process, x, t)
        ratio = noise_ratio(process, t)
        r = _checks.expand_like(ratio, x)
        total = jnp.sqrt(r**2 + sigma_data**2)
        y = x / alpha
        output = network((y / total).astype(x.dtype), 0.25 * jnp.log(ratio))
        # (alpha D - x) / sigma^2 with the skip and output terms divided out, so nothing cancels.
        return ((sigma_data * output / total - r * y / total**2) / sigma).astype(x.dtype)

    return score_fn
