r"""From a network to a score: the preconditioning of EDM, for denoisers and for energies.

With ``y = x_t / alpha - m`` and ``r = sigma / alpha``, ``m`` the mean of the data as the process
has it and ``d`` their standard deviation, a network ``F`` predicts what the best denoiser for data
from ``N(m, d^2 I)`` leaves:

    D = m + c_skip y + c_out F(c_in y, c_noise),                                       (1)
    c_skip = d^2 / (r^2 + d^2),        c_out = r d / sqrt(r^2 + d^2),
    c_in = 1 / sqrt(r^2 + d^2),        c_noise = log(r) / 4,

so that its inputs and its training targets have unit variance at every noise level. The score
follows from ``1 - c_skip = r^2 c_in^2`` and ``c_out = r d c_in``:

    s = (alpha D - x_t) / sigma^2 = (c_out F - (1 - c_skip) y) / (r sigma)
      = (d c_in F - r c_in (c_in y)) / sigma.                                          (2)

The last form is the one computed: no two large terms cancel in it. If ``F`` is the gradient of
``e``, the score (2) is the negative gradient, in ``x_t``, of the energy

    E(x_t, t) = 1/2 |c_in y|^2 - (d / r) e(c_in y, c_noise).                           (3)

Reference: Karras et al. 2022, table 1, https://arxiv.org/abs/2206.00364
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.processes import data_mean, marginal_std, noise_ratio
from sm_jax.typing import NoiseEnergyFn, NoiseScoreFn, ProcessLike


def _centered(x: jax.Array, alpha: jax.Array, process: ProcessLike) -> jax.Array:
    """Return ``y = x / alpha - m``, in float32 at least."""
    return _arrays.accumulated(x) / alpha - data_mean(process, x.shape[1:], alpha.dtype)[None]


def precondition(
    network: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    process: ProcessLike,
    sigma_data: ArrayLike,
) -> NoiseScoreFn:
    """Return the score function of a network ``F`` with the preconditioning of EDM.

    For any process, with ``y = x_t / alpha - m``, ``r = sigma / alpha`` and ``d = sigma_data``, the
    denoiser ``D`` and the score ``s`` are

        D = m + c_skip y + c_out F(c_in y, c_noise),
        c_skip = d^2 / (r^2 + d^2),        c_out = r d / sqrt(r^2 + d^2),
        c_in = 1 / sqrt(r^2 + d^2),        c_noise = log(r) / 4,
        s = (alpha D - x_t) / sigma^2 = (d c_in F - r c_in^2 y) / sigma.

    ``F = 0`` gives the exact score of data distributed as ``N(m, d^2 I)``.

    Args:
        network: ``F``, mapping inputs ``c_in y [B, ...]`` of unit scale and noise labels
            ``c_noise [B]`` to outputs ``[B, ...]``.
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
        total = _arrays.expand_like(marginal_std(process, t, sigma_data), x) / alpha  # 1 / c_in
        inputs = _centered(x, alpha, process) / total
        output = network(inputs.astype(x.dtype), 0.25 * jnp.log(ratio).astype(t.dtype))
        # (alpha D - x) / sigma^2 as in the last form of (2), where nothing cancels.
        return ((output * (sigma_data / total) - r / total * inputs) / sigma).astype(x.dtype)

    return score_fn


def precondition_energy(
    network: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    process: ProcessLike,
    sigma_data: ArrayLike,
) -> NoiseEnergyFn:
    """Return the noise-conditional energy of a scalar network ``e``, preconditioned as in EDM.

    With ``y = x_t / alpha - m``, ``r = sigma / alpha`` and ``d = sigma_data``,

        E(x_t, t) = 1/2 |c_in y|^2 - (d / r) e(c_in y, c_noise),
        c_in = 1 / sqrt(r^2 + d^2),    c_noise = log(r) / 4.

    Its `EnergyScore` is `precondition` of the gradient of ``e``. The losses of scores train it, and
    determine the energy up to one constant for each noise level.

    Args:
        network: ``e``, mapping inputs ``c_in y [B, ...]`` of unit scale and noise labels
            ``c_noise [B]`` to numbers ``[B]``.
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
