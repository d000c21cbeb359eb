"""Convergence of Markov chains: effective sample size, split R-hat and acceptance.

For chains of ``n`` steps with autocorrelation ``rho_k`` at lag ``k``, ``B`` of them,

    ESS = B n / (1 + 2 sum_k rho_k),                                                   (1)
    R-hat = sqrt(((n - 1) / n W + V) / W),                                             (2)

``W`` the mean of the variances within the chains and ``V`` the variance of their means, both of
the ranks of the draws, mapped to normal quantiles, with every chain cut in half. The sum in (1) is
cut where pairs of autocorrelations turn negative.

blackjax computes both: ``pip install blackjax``.

Reference: Vehtari et al. 2021, https://arxiv.org/abs/1903.08008
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.typing import ArrayOrList


def _blackjax():
    try:
        import blackjax
    except ImportError as error:
        raise ImportError(
            "metrics.chain_diagnostics needs blackjax: pip install blackjax"
        ) from error
    return blackjax


class ChainDiagnostics(NamedTuple):
    """What a trajectory says of its own convergence.

    Attributes:
        effective_sample_size: of the mean of each number of the event, all chains together, each
            split in halves as for R-hat, ``[...]``: independent draws of the same standard error.
            It does not depend on the units. 0 where no chain moves, NaN where there is a NaN.
        split_rhat: rank-normalized split R-hat of each, ``[...]``: 1 for chains that have
            converged and agree; above 1.01 they have not, or one of them drifts.
        acceptance_rate: share of the steps of each chain that moved, ``[B]``; NaN where there is
            a NaN.
    """

    effective_sample_size: jax.Array
    split_rhat: jax.Array
    acceptance_rate: jax.Array


def chain_diagnostics(trajectory: ArrayOrList) -> ChainDiagnostics:
    """Return effective sample size, split R-hat and acceptance of chains, by blackjax.

    Args:
        trajectory: ``[num_steps, B, ...]``, as samplers return it with ``trajectory=True``, without
            the steps of the warm-up: ``trajectory[1000:]``.

    Returns:
        ``ChainDiagnostics(effective_sample_size [...], split_rhat [...], acceptance_rate [B])``.

    Raises:
        TypeError: ``trajectory`` is not floating.
        ValueError: ``trajectory`` has no chain axis, or fewer than four steps.
        ImportError: blackjax is not installed.

    Example:
        >>> trajectory = jax.random.normal(jax.random.key(0), (1000, 4, 2))
        >>> result = chain_diagnostics(trajectory)
        >>> bool((result.split_rhat < 1.01).all()), result.acceptance_rate.shape
        (True, (4,))

    Reference: Vehtari et al. 2021, https://arxiv.org/abs/1903.08008
    """
    blackjax = _blackjax()
    trajectory = _checks.check_data(trajectory, "trajectory")
    if trajectory.ndim < 2 or trajectory.shape[0] < 4:
        raise ValueError(
            f"trajectory must be [num_steps, B, ...] with at least 4 steps, got shape "
            f"{trajectory.shape}."
        )
    return compiled(partial(_chain_diagnostics, blackjax), trajectory)


def _chain_diagnostics(blackjax, trajectory: jax.Array) -> ChainDiagnostics:
    """Return the diagnostics of checked chains."""
    flat = _arrays.accumulated(trajectory).reshape(*trajectory.shape[:2], -1)

    def of_each_number(statistic, flat):
        values = jax.vmap(lambda flat: statistic(flat, chain_axis=1, sample_axis=0), -1)(flat)
        return values.reshape(trajectory.shape[2:])

    # In units of the largest distance, as its squares would underflow or overflow; half by half.
    away = flat - flat[:1, :1]
    largest = jnp.abs(away).max(axis=(0, 1), keepdims=True)
    away = away / jnp.where(largest > 0.0, largest, 1.0)
    half = trajectory.shape[0] // 2
    halves = jnp.concatenate([away[:half], away[half : 2 * half]], axis=1)
    size, rhat = of_each_number(blackjax.ess, halves), of_each_number(blackjax.rhat, flat)
    moved = jnp.any(flat[1:] != flat[:-1], axis=-1).mean(axis=0)
    moved = jnp.where(jnp.isnan(flat).any(axis=(0, 2)), jnp.nan, moved)
    return ChainDiagnostics(size, rhat, moved)
