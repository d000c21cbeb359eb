r"""Linear inverse problems: samples of the data given an observation of them.

The observation is

    y = A x_0 + noise_std n,    n ~ N(0, I),                                           (1)

and with the score ``s``, the denoiser ``D = (x_t + sigma^2 s) / alpha`` and its Jacobian
``J = dD / dx_t``, the score of the noised posterior is, with a Gaussian ``N(D, C)`` in the place of
``p(x_0 | x_t)``,

    grad log p(x_t | y) = s(x_t, t) + grad log p(y | x_t),
    grad log p(y | x_t) ~ J' A' (noise_std^2 I + A C A')^-1 (y - A D).                 (2)

The methods differ in ``C``:

    C = 0                                              `dps` (DPS),                    (3)
    C = sigma^2 d^2 / (alpha^2 d^2 + sigma^2) I        `pigdm` (PiGDM),                (4)
    C = (sigma^2 / alpha) J                            `mmps` (MMPS).                  (5)

(5) is the true covariance for any data (Tweedie's formula of second order), and (4) that of data
from ``N(m, d^2 I)``. So, with the inverse in (2) exact, moment matching is exact for all Gaussian
data, pseudo-inverse guidance for isotropic ones, and DPS for none: it believes that ``D`` is the
data, and trusts the observation too much while there is noise. For data that are not Gaussian all
three are approximations, and the better the more the observation alone determines.

The inverse is applied by Krylov iterations, `conjugate_residuals` or another ``solve``, row by row,
with ``A'`` from automatic differentiation; no matrix is formed. Where the matrix is singular, its
pseudo-inverse stands in (2). An ``A`` that is not linear is linearized at ``D``. Derivatives of
`pigdm` and `mmps` are those of (2) with the exact inverse; where the iterations have not converged,
these are not the derivatives of what is returned.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.guidance._solvers import conjugate_residuals
from sm_jax.parameterization import eps_from_score, x0_from_eps
from sm_jax.processes import marginal_std
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ProcessLike

Operator = Callable[[jax.Array], jax.Array]

# ``(matrix, b [B, ...], *, num_iterations) -> u [B, ...]`` with ``matrix(u) = b``, row by row.
Solver = Callable[..., jax.Array]


def dps(
    score_fn: NoiseScoreFn,
    *,
    process: ProcessLike,
    operator: Operator,
    observation: ArrayOrList,
    noise_std: ArrayLike,
    scale: ArrayLike = 1.0,
) -> NoiseScoreFn:
    """Return the score of diffusion posterior sampling (DPS).

        s(x_t, t) + scale J' A' (y - A D) / noise_std^2,
        D = (x_t + sigma^2 s(x_t, t)) / alpha,    J = dD / dx_t

    What is added is ``-scale / (2 noise_std^2) grad |y - A D(x_t)|^2``. It is biased: for data of
    variance ``v`` observed directly, with ``q = v / noise_std^2``, the probability flow ends with
    variance ``v exp(-q)`` in place of ``v / (1 + q)``. That is right only where the observation
    says little, and where it says much the equations are stiff and need many steps. Prefer `pigdm`;
    this one costs the same, and is here because it is the usual baseline and because ``scale`` can
    be tuned. The paper divides by ``|y - A D|`` rather than ``2 noise_std^2`` and applies the
    result once per step, whatever its length; such a step is not a score and is not offered.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``, row i depending on row i only.
        process: the process that the score was trained for.
        operator: ``A``, ``x_0 [B, ...] -> [B, ...]`` of any event shape, row i depending on row i
            only. It need not be linear.
        observation: ``y``, of the shape of ``operator(x)``, or of one of its rows, for all.
        noise_std: standard deviation of the noise of the observation; positive, a scalar or
            ``[B]``.
        scale: factor of the guidance, a scalar or ``[B]``.

    Returns:
        A score function ``(x_t, t) -> [B, ...]``: one evaluation and its vector-Jacobian product.

    Raises:
        TypeError: at a call, if the score has another dtype than ``x_t``.
        ValueError: ``noise_std`` is not positive; or, at a call, if the observation has not the
            shape of ``operator(x)`` nor of a row, or the score that of ``x_t``.

    Example:
        >>> from sm_jax import processes
        >>> guided = dps(
        ...     lambda x, t: -x / (1.0 + t[:, None] ** 2), process=processes.VE(),
        ...     operator=lambda x: x[:, :1], observation=jnp.array([3.0]), noise_std=0.5)
        >>> print(guided(jnp.zeros((1, 2)), jnp.ones(1)))  # D = x / 2, (3 - 0) / 0.25 / 2
        [[6. 0.]]

    Reference: Chung et al. 2023, https://arxiv.org/abs/2209.14687
    """
    _checks.check_positive("noise_std", noise_std)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        seen = _observe(score_fn, process, operator, observation, x, t)
        weight = seen.per_row("scale", scale) / seen.per_row("noise_std", noise_std) ** 2
        return seen.guided(weight * seen.residual)

    return guided


def pigdm(
    score_fn: NoiseScoreFn,
    *,
    process: ProcessLike,
    operator: Operator,
    observation: ArrayOrList,
    noise_std: ArrayLike = 0.0,
    sigma_data: ArrayLike = 1.0,
    num_iterations: int = 10,
    solve: Solver = conjugate_residuals,
) -> NoiseScoreFn:
    """Return the score of pseudo-inverse guidance (PiGDM).

        s(x_t, t) + J' A' (noise_std^2 I + c A A')^-1 (y - A D),
        c = sigma^2 d^2 / (alpha^2 d^2 + sigma^2),    d = sigma_data,
        D = (x_t + sigma^2 s(x_t, t)) / alpha,    J = dD / dx_t

    Exact for data from ``N(m, d^2 I)``. The first choice for inpainting, superresolution and other
    operators with ``A A'`` near a multiple of the identity. Without noise what is added is
    ``J' A^+ (y - A D) / c``, with the pseudo-inverse ``A^+`` after which the method is called.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``, row i depending on row i only.
        process: the process that the score was trained for.
        operator: ``A``, linear, ``x_0 [B, ...] -> [B, ...]`` of any event shape, row i depending on
            row i only.
        observation: ``y``, of the shape of ``operator(x)``, or of one of its rows, for all.
        noise_std: standard deviation of the noise of the observation, one or ``[B]``. At
            0 the part of ``y`` outside the range of ``A``, which nothing explains, is ignored.
        sigma_data: ``d``, standard deviation of the data, one number. It changes the samples,
            unlike in the solvers, where it sets the steps: pass that of the data, e.g. what the
            network was preconditioned with. The default is that of standardized data.
        num_iterations: iterations of ``solve``, one ``A`` and one ``A'`` each. As many as ``A A'``
            has distinct eigenvalues, zero not counted, are exact: one for a mask or a subsampling.
        solve: solver of the symmetric systems.

    Returns:
        A score function ``(x_t, t) -> [B, ...]``: one evaluation and its vector-Jacobian product.

    Raises:
        TypeError: at a call, if the score has another dtype than ``x_t``.
        ValueError: ``noise_std`` is negative, ``sigma_data`` is not one positive number,
            ``num_iterations < 1``; or, at a call, if the observation has not the shape of
            ``operator(x)`` nor of a row, or the score that of ``x_t``.

    Example:
        >>> from sm_jax import processes
        >>> guided = pigdm(
        ...     lambda x, t: -x / (1.0 + t[:, None] ** 2), process=processes.VE(),
        ...     operator=lambda x: x[:, :1], observation=jnp.array([3.0]))
        >>> print(guided(jnp.zeros((1, 2)), jnp.ones(1)).round(4))  # x_t | y ~ N(3, 1) in the first
        [[3. 0.]]

    Reference: Song et al. 2023, https://openreview.net/forum?id=9_gsMA8MRKQ
    """
    _checks.check_not_negative("noise_std", noise_std)
    _checks.check_scalar("sigma_data", sigma_data)
    _checks.check_positive("sigma_data", sigma_data)
    _checks.check_count("num_iterations", num_iterations)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        seen = _observe(score_fn, process, operator, observation, x, t)
        k = marginal_std(process, t, sigma_data)
        spread = seen.per_row("variance", (process.sigma(t) * sigma_data / k) ** 2)
        variance = seen.per_row("noise_std", noise_std) ** 2

        def covariance(u):
            return variance * u + spread * seen.push(seen.pull(u))

        return seen.guided(seen.solved(solve, covariance, num_iterations))

    return guided


def mmps(
    score_fn: NoiseScoreFn,
    *,
    process: ProcessLike,
    operator: Operator,
    observation: ArrayOrList,
    noise_std: ArrayLike = 0.0,
    num_iterations: int = 10,
    solve: Solver = conjugate_residuals,
) -> NoiseScoreFn:
    """Return the score of moment matching posterior sampling (MMPS).

        s(x_t, t) + J' A' (noise_std^2 I + A C A')^-1 (y - A D),    C = (sigma^2 / alpha) J',
        D = (x_t + sigma^2 s(x_t, t)) / alpha,    J = dD / dx_t

    For a score that is a gradient ``J' = J``, and ``C`` is the covariance of the data given
    ``x_t``. Exact for Gaussian data of any covariance, given enough iterations, and the most
    accurate of the three for others, for the price of one more vector-Jacobian product of the
    network per iteration.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``, row i depending on row i only, and a
            gradient up to small errors: ``C`` is symmetric and not negative only then.
        process: the process that the score was trained for.
        operator: ``A``, linear, ``x_0 [B, ...] -> [B, ...]`` of any event shape, row i depending on
            row i only.
        observation: ``y``, of the shape of ``operator(x)``, or of one of its rows, for all.
        noise_std: standard deviation of the noise of the observation, one or ``[B]``. At
            0 the part of ``y`` outside the range of ``A``, which nothing explains, is ignored.
        num_iterations: iterations of ``solve``. As many as ``A C A'`` has distinct
            eigenvalues, zero not counted, are exact; fewer leave out what it sees least. For smooth
            Gaussian fields of 32 numbers, half of them observed with noise of a tenth of their
            spread, the score errs by 1 to 5 % with 5 iterations and by at most 0.2 % with 10, at
            the noise levels where that is most. Blurred ones, 7 and 1 %, take more.
        solve: solver of the systems. The default takes ``J`` for symmetric; for a network whose
            Jacobian has a large antisymmetric part, pass `gmres`.

    Returns:
        A score function ``(x_t, t) -> [B, ...]``: one evaluation and ``num_iterations + 1`` of its
        vector-Jacobian products.

    Raises:
        TypeError: at a call, if the score has another dtype than ``x_t``.
        ValueError: ``noise_std`` is negative, ``num_iterations < 1``; or, at a call, if the
            observation has not the shape of ``operator(x)`` nor of a row, or the score that of
            ``x_t``.

    Example:
        >>> from sm_jax import processes
        >>> guided = mmps(
        ...     lambda x, t: -x / (4.0 + t[:, None] ** 2), process=processes.VE(),
        ...     operator=lambda x: x[:, :1], observation=jnp.array([3.0]), noise_std=2.0)
        >>> print(guided(jnp.zeros((1, 2)), jnp.ones(1)))  # x_t | y ~ N(1.5, 3) in the first
        [[0.5 0. ]]

    References: Rozet et al. 2024, https://arxiv.org/abs/2405.13712; Boys et al. 2023,
    https://arxiv.org/abs/2310.06721
    """
    _checks.check_not_negative("noise_std", noise_std)
    _checks.check_count("num_iterations", num_iterations)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        seen = _observe(score_fn, process, operator, observation, x, t)
        factor = seen.per_row("sigma^2 / alpha", process.sigma(t) ** 2 / process.alpha(t))
        variance = seen.per_row("noise_std", noise_std) ** 2

        def covariance(u):
            return variance * u + factor * seen.push(seen.pull_denoiser(seen.pull(u)))

        return seen.guided(seen.solved(solve, covariance, num_iterations))

    return guided


class _Observed(NamedTuple):
    """A score with its denoiser and the operator, linearised at some points."""

    score: jax.Array  # s [B, ...]
    residual: jax.Array  # y - A D, in float32 at least
    dtype: jnp.dtype  # of the products with A
    push: Callable[[jax.Array], jax.Array]  # v -> A v
    pull: Callable[[jax.Array], jax.Array]  # u -> A' u
    pull_denoiser: Callable[[jax.Array], jax.Array]  # v -> J' v

    def per_row(self, name: str, value: ArrayOrList) -> jax.Array:
        """Return a scalar or ``[B]`` with the rank of the residual."""
        value = _checks.check_per_example(name, value, self.score)
        return _arrays.expand_like(value, self.residual)

    def solved(self, solve: Solver, matrix: Operator, num_iterations: int) -> jax.Array:
        """Return the residual multiplied by the inverse of ``matrix``."""
        b = self.residual.astype(self.dtype)  # which tells the solver how products are rounded
        return solve(lambda u: matrix(u).astype(u.dtype), b, num_iterations=num_iterations)

    def guided(self, weighted: jax.Array) -> jax.Array:
        """Return the score with the gradient (2) added, given the weighted residual."""
        added = self.pull_denoiser(self.pull(weighted))
        return (self.score + added).astype(self.score.dtype)


def _observe(score_fn, process, operator, observation, x, t) -> _Observed:
    """Return the score, the residual of the observation, and the products that eq. (2) needs."""

    def denoise(x):
        score = _checks.check_score(score_fn(x, t), x)
        return x0_from_eps(
            eps_from_score(score, x, t, process=process), x, t, process=process
        ), score

    clean, pull_denoiser, score = jax.vjp(denoise, x, has_aux=True)
    predicted, push = jax.linearize(operator, clean)
    pull = jax.linear_transpose(push, clean)
    if np.shape(observation) not in (predicted.shape, predicted.shape[1:]):
        raise ValueError(
            f"observation must have the shape of operator(x), {predicted.shape}, or of one of its "
            f"rows, {predicted.shape[1:]}, got {np.shape(observation)}."
        )
    wide = _arrays.accumulator(predicted.dtype)
    observation = jnp.broadcast_to(jnp.asarray(observation), predicted.shape)
    residual = observation.astype(wide) - predicted.astype(wide)
    return _Observed(
        score,
        residual,
        predicted.dtype,
        lambda v: _arrays.accumulated(push(v.astype(x.dtype))),
        lambda u: pull(u.astype(predicted.dtype))[0],
        lambda v: pull_denoiser(v)[0],
    )
