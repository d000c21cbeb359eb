r"""DPM-Solver++: multistep solvers that integrate the linear part of the reverse process exactly.

With ``y = x / alpha``, ``r = sigma / alpha`` and ``l = -log r = log(alpha / sigma)``, the
probability-flow ODE (``c = 1``) and the reverse SDE (``c = 2``) of any process are

    dy / dl = c (D(y, l) - y) + noise,                                                    (1)

and over a step from ``l`` to ``l + h`` its solution is

    y' = exp(-c h) y + c int_0^h exp(-c (h - u)) D(u) du + r' sqrt(1 - exp(-2 (c - 1) h)) z. (2)

``D(u)`` is replaced by the polynomial through the denoiser at this and at earlier times, whose
Newton form has the integrals

    I_k = c int_0^h exp(-c (h - u)) u^k du:    I_0 = 1 - exp(-c h),    I_1 = h - I_0 / c,
    I_2 = h^2 - 2 I_1 / c.                                                                (3)

2M takes ``h I_0 / 2`` for ``I_1``, as its paper does: of the same order, and better with few steps.
3M takes (3) as it is; with half of the second difference it would be of order 2.

A multistep method has no past at its start. Its first step is of first order, with the error
``O(h^2)``, which suits order 2. For order 3 the second step also corrects the first: it knows ``D``
at both ends of it, and adds ``I_1 (D_1 - D_0) / h``, which leaves ``O(h^3)`` without one more
evaluation. So the order is the same on any grid.

References: Lu et al. 2022, https://arxiv.org/abs/2211.01095; Gonzalez et al. 2023,
https://arxiv.org/abs/2305.14267; Xue et al. 2023, https://arxiv.org/abs/2309.05019
"""

from functools import partial

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax._scan import sampler, wide
from sm_jax.parameterization import at_time, denoiser_from_score
from sm_jax.processes import noise_ratio, solver_grid, warn_off_center
from sm_jax.samplers._solve import last_move
from sm_jax.typing import ArrayOrList, NoiseScoreFn, NoTrajectory, ProcessLike

_RHO = 100.0  # of the default grid: steps nearly equal in l, which suits multistep methods


def _weights(ratios: jax.Array, rate: float, order: int) -> jax.Array:
    """Return the weights ``[N, order]`` of the denoisers in each step, eq. (3), newest first."""
    h = -jnp.diff(jnp.log(ratios))
    step = jnp.arange(h.shape[0])
    past, before = (jnp.append(jnp.ones(k, h.dtype), h)[: h.shape[0]] for k in (1, 2))
    zeroth = -jnp.expm1(-rate * h)
    if order == 3:  # of the ODE alone, whose rate is 1
        first = h - zeroth
        second = h**2 - 2.0 * first
        bend = jnp.where(step >= 2, (second + past * first) / (past + before), 0.0)
        correction = jnp.exp(-h) * jnp.roll(first, 1)
        slope = bend + jnp.where(step >= 1, first, 0.0) + jnp.where(step == 1, correction, 0.0)
    else:
        slope = jnp.where(step >= 1, 0.5 * h * zeroth, 0.0)
        bend = jnp.zeros_like(h)
    slope, bend = slope / past, bend / before
    return jnp.stack([zeroth + slope, -slope - bend, bend], axis=1)[:, :order]


def _solve(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array | None,
    process: ProcessLike,
    num_steps: int | None,
    times: ArrayOrList | None,
    default: int,
    order: int,
    denoise: bool,
    trajectory: bool,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Integrate eq. (2): the SDE with a key, the ODE without.

    A scan of its own, since a step needs the denoisers of earlier steps, which `solve` forgets.
    """
    x = _checks.check_data(x)
    times = solver_grid(process, num_steps, times=times, default=default, rho=_RHO)
    times = times.astype(_arrays.accumulator(x.dtype))
    score_fn, start = wide(score_fn, x), _arrays.accumulated(x)
    denoiser_fn = denoiser_from_score(score_fn, process=process)
    alpha, ratios = process.alpha(times), noise_ratio(process, times)
    kept = ratios[1:] / ratios[:-1]  # exp(-h)
    rate = 1.0 if key is None else 2.0
    scale = alpha[1:] / alpha[:-1] * kept**rate
    weights = alpha[1:, None] * _weights(ratios, rate, order)
    noise = None
    if key is not None:
        spread = process.sigma(times[1:]) * jnp.sqrt(1.0 - kept**2)
        noise = spread, jax.random.split(key, times.shape[0] - 1)

    def step(state, given):
        y, past = state
        t, scale, weights, noise = given
        newest = at_time(denoiser_fn, t)(y)
        known = (newest, *past)
        y = scale * y + sum(weights[i] * known[i] for i in range(order))
        if noise is not None:
            spread, key = noise
            y = y + spread * jax.random.normal(key, x.shape, start.dtype)
        y = y.astype(start.dtype)
        return (y, known[:-1]), y.astype(x.dtype) if trajectory else None

    past = (jnp.zeros_like(start),) * (order - 1)
    inputs = times[:-1], scale, weights, noise
    (last, _), iterates = compiled(partial(jax.lax.scan, step), (start, past), inputs)
    finish = last_move(score_fn, process, times[-1], denoise)
    result = (last if finish is None else compiled(finish, last)).astype(x.dtype)
    warn_off_center(process, result, "the samples")
    return (result, jnp.concatenate([x[None], iterates])) if trajectory else result


@sampler
def dpm_solver_pp(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    times: ArrayOrList | None = None,
    order: int = 2,
    denoise: bool = True,
    trajectory: NoTrajectory = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Integrate the probability-flow ODE by the multistep solver DPM-Solver++, 2M or 3M.

    With ``l = log(alpha / sigma)``, ``h`` the step in ``l``, ``h_1`` and ``h_2`` those before it,
    ``D`` the denoiser at ``t``, ``D_1`` and ``D_2`` the earlier ones, and the divided differences
    ``d_1 = (D - D_1) / h_1``, ``d_2 = (D_1 - D_2) / h_2`` and ``dd = (d_1 - d_2) / (h_1 + h_2)``,
    the step to ``t'`` is

        2M:  x <- alpha' (exp(-h) x / alpha + I_0 (D + h d_1 / 2)),
        3M:  x <- alpha' (exp(-h) x / alpha + I_0 D + I_1 d_1 + (I_2 + h_1 I_1) dd),
        I_0 = 1 - exp(-h),    I_1 = h - I_0,    I_2 = h^2 - 2 I_1.

    The first step knows no earlier denoiser: ``d_1 = dd = 0``. The second one has ``dd = 0``, and
    for 3M it also adds what the first step lacked, with ``I_1(h_1)`` of that step:

        3M, second step:  x <- alpha' (exp(-h) x / alpha + I_0 D + (I_1 + exp(-h) I_1(h_1)) d_1).

    Order 2 or 3, on any grid, at one evaluation of the score a step: the deterministic sampler for
    the fewest evaluations. Order 3 pays from some 12 steps on; with fewer, or on a grid whose steps
    grow fast, it extrapolates too far, and order 2 is safer.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``.
        key: not used; taken so that all samplers are called alike.
        process: the noising process of the score.
        num_steps: number of steps, 24 or more by default, on a grid with ``rho`` 100 or more.
        times: the times of the steps, instead of ``num_steps``.
        order: 2 (2M) or 3 (3M); 1 would be `ddim`.
        denoise: end with the denoiser, one more evaluation.
        trajectory: also return the trajectory.

    Returns:
        Samples ``[B, ...]``, or ``(x, trajectory [num_steps + 1, B, ...])``, as `solve`.

    Raises:
        TypeError: as `solve`.
        ValueError: as `solve`; or ``order`` is not 2 or 3.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VPLinear()
        >>> x = processes.prior_sample(process, jax.random.key(0), (4, 2))
        >>> dpm_solver_pp(lambda x, t: -x, x, process=process, num_steps=20, order=3).shape
        (4, 2)

    Reference: Lu et al. 2022, algorithm 2, https://arxiv.org/abs/2211.01095
    """
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order}: order 1 is ddim.")
    return _solve(score_fn, x, None, process, num_steps, times, 24, order, denoise, trajectory)


@sampler
def dpm_solver_pp_sde(
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
    """Integrate the reverse SDE by the multistep solver SDE-DPM-Solver++ 2M.

    With ``l = log(alpha / sigma)``, ``h`` the step in ``l`` and ``h_1`` the one before it, ``D``
    the denoiser at ``t`` and ``D_1`` that before, the step to ``t'`` is

        x <- alpha' (exp(-2 h) x / alpha + (1 - exp(-2 h)) (D + h (D - D_1) / (2 h_1)))
             + sigma' sqrt(1 - exp(-2 h)) z,

    and the first one, without ``D_1``, that of `ancestral`. Weak order 2 on Gaussian data, where it
    can be computed, at one evaluation of the score a step. The stochastic sampler for few
    evaluations.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: noise of the prior ``[B, ...]``.
        key: a random key.
        process: the noising process of the score.
        num_steps: number of steps, 64 or more by default, on a grid with ``rho`` 100 or more.
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
        >>> dpm_solver_pp_sde(lambda x, t: -x, x, key, process=process, num_steps=20).shape
        (4, 2)

    Reference: Lu et al. 2022, section 5, https://arxiv.org/abs/2211.01095
    """
    _checks.check_key("dpm_solver_pp_sde", key)
    return _solve(score_fn, x, key, process, num_steps, times, 64, 2, denoise, trajectory)
