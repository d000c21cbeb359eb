r"""From a network to a score: the gradient of an energy, and the preconditioning of EDM.

With ``y = x_t / alpha - m``, ``r = sigma / alpha``, ``m`` the mean of the data as the process has
it, and ``d`` their standard deviation, a network ``F`` predicts what the best denoiser for data
from ``N(m, d^2 I)`` leaves,

    D = m + c_skip y + c_out F(c_in y, log(r) / 4),                                    (1)
    c_skip = d^2 / (r^2 + d^2),  c_out = r d / sqrt(r^2 + d^2),  c_in = 1 / sqrt(r^2 + d^2),

so that its inputs and its training targets have unit variance at every noise level. If ``F`` is the
gradient of ``e``, the score is the negative gradient, in ``x_t``, of the energy

    E(x_t, t) = |y|^2 / (2 (r^2 + d^2)) - (d / r) e(c_in y, log(r) / 4).               (2)

Reference: Karras et al. 2022, table 1, https://arxiv.org/abs/2206.00364
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.processes import data_mean, marginal_std, noise_ratio
from sm_jax.typing import EnergyFn, NoiseScoreFn, ProcessLike, ScoreFn


def score_from_energy(energy_fn: EnergyFn) -> ScoreFn | NoiseScoreFn:
    """Return the score function of an energy, ``s = -grad_x E``, where ``p ∝ exp(-E)``.

    Args:
        energy_fn: ``(x [B, ...], *args) -> [B]``, row i depending on row i only.

    Returns:
        A score function ``(x, *args) -> [B, ...]``. It carries the energy as its attribute
        ``energy_fn``, from which `sm_jax.divergence` takes second derivatives at less cost.

    Raises:
        TypeError: at a call, if ``x`` is not floating.
        ValueError: at a call, if ``x`` is empty or the energy is not one number per example.

    Example:
        >>> score_fn = score_from_energy(lambda x: 0.5 * jnp.sum(x**2, axis=-1))
        >>> print(score_fn(jnp.ones((1, 2))))
        [[-1. -1.]]
    """

    @functools.wraps(energy_fn)
    def score_fn(x: jax.Array, *args: jax.Array) -> jax.Array:
        x = _checks.check_data(x)
        energy, pull_back = jax.vjp(lambda y: energy_fn(y, *args), x)
        return pull_back(-jnp.ones_like(_checks.check_energy(energy, x)))[0]

    return _checks.carry_energy(score_fn, energy_fn)


def _centered(x: jax.Array, alpha: jax.Array, process: ProcessLike) -> jax.Array:
    """Return ``y = x / alpha - m``, in float32 at least."""
    return _arrays.accumulated(x) / alpha - data_mean(process, x.shape[1:], alpha.dtype)[None]


def precondition(
    network: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    process: ProcessLike,
    sigma_data: ArrayLike,
) -> NoiseScoreFn:
    """Return the score function of a network ``F``, preconditioned as in EDM, for any process.

    Its denoiser is (1); ``F = 0`` gives the exact score of data distributed as ``N(m, d^2 I)``.

    Args:
        network: ``F``, mapping inputs ``[B, ...]`` of unit scale and noise labels ``[B]`` to
            outputs ``[B, ...]``.
        process: any process; its ``mean``, that of the data, is zero if it has none.
        sigma_data: standard deviation of the data, ``d``, one number: 0.5 in EDM, for
            images from -1 to 1.

    Returns:
        A score function ``(x_t [B, ...], t [B]) -> [B, ...]``.

    Raises:
        TypeError: at a call, if ``x_t`` is not floating.
        ValueError: ``sigma_data`` is not one positive number, or at a call, the mean of the process
            is neither a scalar nor of the shape of one event.

    Example:
        >>> from sm_jax import processes
        >>> score_fn = precondition(lambda x, c: 0.0 * x, process=processes.VE(), sigma_data=1.0)
        >>> print(score_fn(jnp.ones((1, 2)), jnp.array([2.0])).round(3))
        [[-0.2 -0.2]]

    Reference: Karras et al. 2022, table 1, https://arxiv.org/abs/2206.00364
    """
    _checks.check_scalar("sigma_data", sigma_data)
    _checks.check_positive("sigma_data", sigma_data)

    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        x = _checks.check_data(x)
        t = _checks.check_per_example("t", t, x)
        alpha, sigma = (_arrays.expand_like(c(t), x) for c in (process.alpha, process.sigma))
        ratio = noise_ratio(process, t)
        r = _arrays.expand_like(ratio, x)
        total = _arrays.expand_like(marginal_std(process, t, sigma_data), x) / alpha
        inputs = _centered(x, alpha, process) / total
        output = network(inputs.astype(x.dtype), 0.25 * jnp.log(ratio).astype(t.dtype))
        # (alpha D - x) / sigma^2 with the skip and output terms divided out, so nothing cancels.
        return ((sigma_data / total * output - r / total * inputs) / sigma).astype(x.dtype)

    return score_fn


def precondition_energy(
    network: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    process: ProcessLike,
    sigma_data: ArrayLike,
) -> EnergyFn:
    """Return the noise-conditional energy of a scalar network ``e``, preconditioned, eq. (2).

    Its score, by `score_from_energy`, is `precondition` of the gradient of ``e``: it is trained by
    the losses of scores, and it is an energy, up to one constant for each noise level.

    Args:
        network: ``e``, mapping inputs ``[B, ...]`` of unit scale and noise labels ``[B]`` to
            numbers ``[B]``.
        process: any process; its ``mean``, that of the data, is zero if it has none.
        sigma_data: standard deviation of the data, ``d``, one number: 0.5 in EDM, for
            images from -1 to 1.

    Returns:
        An energy ``(x_t [B, ...], t [B]) -> [B]``, in nats, in float32 at least.

    Raises:
        TypeError: at a call, if ``x_t`` is not floating.
        ValueError: ``sigma_data`` is not one positive number, or at the first call, the network
            does not return one number per example, or the mean of the process is neither a scalar
            nor of the shape of one event.

    Example:
        >>> from sm_jax import processes
        >>> energy_fn = precondition_energy(
        ...     lambda x, c: 0.0 * c, process=processes.VE(), sigma_data=1.0)
        >>> print(energy_fn(jnp.ones((1, 2)), jnp.array([2.0])).round(6))
        [0.2]
    """
    _checks.check_scalar("sigma_data", sigma_data)
    _checks.check_positive("sigma_data", sigma_data)

    def energy_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        x = _checks.check_data(x)
        t = _checks.check_per_example("t", t, x)
        r, alpha = noise_ratio(process, t), process.alpha(t)
        total = marginal_std(process, t, sigma_data) / alpha
        y = _centered(x, _arrays.expand_like(alpha, x), process)
        inputs = y / _arrays.expand_like(total, x)
        output = network(inputs.astype(x.dtype), 0.25 * jnp.log(r).astype(t.dtype))
        square = _arrays.sum_data_axes(_arrays.accumulated(inputs) ** 2)
        return 0.5 * square - sigma_data / r * _checks.check_energy(output, x)

    return energy_fn
