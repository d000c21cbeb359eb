"""Ladders of noise levels between two given ends."""

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import _checks


def geometric(*, sigma_min: float, sigma_max: float, num_levels: int) -> jax.Array:
    """Return noise levels in geometric progression.

        sigma_i = sigma_max (sigma_min / sigma_max)^(i / (L - 1)),    i = 0 .. L - 1.

    Args:
        sigma_min: the last noise level, in units of the data.
        sigma_max: the first one.
        num_levels: how many, at least 2.

    Returns:
        Strictly decreasing noise levels ``[L]``, with exactly these ends.

    Raises:
        ValueError: noise levels not positive, ``sigma_min >= sigma_max``, fewer than two, or
            more than the default float type can tell apart.

    Example:
        >>> print(geometric(sigma_min=0.1, sigma_max=10.0, num_levels=3))
        [10.   1.   0.1]

    References:
        Song & Ermon 2019, https://arxiv.org/abs/1907.05600.
    """
    check_ends(sigma_min=sigma_min, sigma_max=sigma_max, num_levels=num_levels)
    return _ladder(np.geomspace(sigma_max, sigma_min, num_levels), sigma_max, sigma_min)


def karras(*, sigma_min: float, sigma_max: float, num_levels: int, rho: float = 7.0) -> jax.Array:
    """Return noise levels evenly spaced in ``sigma^(1 / rho)``.

        sigma_i = ((1 - u) sigma_max^(1 / rho) + u sigma_min^(1 / rho))^rho,    u = i / (L - 1).

    With ``rho = 1`` they are evenly spaced, with ``rho -> inf`` geometric.

    Args:
        sigma_min: the last noise level, in units of the data.
        sigma_max: the first one.
        num_levels: how many, at least 2.
        rho: concentration at small noise, positive.

    Returns:
        Strictly decreasing noise levels ``[L]``, with exactly these ends.

    Raises:
        ValueError: as for `geometric`, or ``rho`` not positive.

    Example:
        >>> print(karras(sigma_min=0.002, sigma_max=80.0, num_levels=3).round(2))
        [80.    2.52  0.  ]

    References:
        Karras et al. 2022, equation (5), https://arxiv.org/abs/2206.00364.
    """
    check_ends(sigma_min=sigma_min, sigma_max=sigma_max, num_levels=num_levels)
    _checks.check_positive("rho", rho)
    levels = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_levels) ** rho
    return _ladder(levels, sigma_max, sigma_min)


def check_ends(*, sigma_min, sigma_max, num_levels=2):
    _checks.check_positive("sigma_max", sigma_max)
    _checks.check_positive("sigma_min", sigma_min)
    if sigma_min >= sigma_max:
        raise ValueError(
            f"sigma_min must be below sigma_max, got sigma_min={sigma_min} and "
            f"sigma_max={sigma_max}: swap them."
        )
    _checks.check_count("num_levels", num_levels, minimum=2)


def _ladder(levels, sigma_max, sigma_min):
    """Return ``levels`` in the default float type, with exact ends, checked to decrease still."""
    levels[0], levels[-1] = sigma_max, sigma_min
    return _checks.check_levels("the noise levels, rounded,", jnp.asarray(levels, float))
