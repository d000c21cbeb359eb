"""Ratio, number and Langevin step of a ladder: Techniques 2 and 4 of NCSNv2.

Equation numbers are those of sm_jax.noise_levels.
"""

import math

import numpy as np
import scipy.optimize
import scipy.stats

from sm_jax import _checks
from sm_jax.noise_levels._ladders import check_ends
from sm_jax.typing import ArrayOrList

LARGEST_RATIO = 1.5


def sigma_ratio(num_dims: int, *, overlap: float = 0.5) -> float:
    """Return the ratio ``g`` of neighboring noise levels at which they overlap by one half.

    It is the root of

        Phi(sqrt(2 D) (g - 1) + 3 g) - Phi(sqrt(2 D) (g - 1) - 3 g) = overlap,

    with ``Phi`` the standard normal distribution function: the share of the noise of one noise
    level whose radius is within three standard deviations of the mean radius at the one above. It
    is close to ``1 + 3 / (sqrt(2 D) - 3)``. In up to four dimensions the overlap is above one half
    whatever the ratio, and the answer is infinity: the ladder is then limited by the Langevin
    steps, not by the overlap.

    The paper takes 1/2 as approximate, and the ladders published with it are finer:
    ``overlap=0.5668`` gives their 232 levels for CIFAR-10, 500 for CelebA and 2311 for FFHQ, where
    0.5 gives 220, 473 and 2182.

    Args:
        num_dims: numbers in one example, ``D``.
        overlap: the share, in (0, 0.99).

    Returns:
        The ratio ``sigma_{i-1} / sigma_i > 1``, or ``math.inf``.

    Raises:
        ValueError: ``num_dims < 1`` or ``overlap`` outside (0, 0.99).

    Example:
        >>> print(round(sigma_ratio(3072), 5), sigma_ratio(2))
        1.0398 inf

    References:
        Song & Ermon 2020, Technique 2, https://arxiv.org/abs/2006.09011.
    """
    _checks.check_count("num_dims", num_dims)
    if not 0 < overlap < 0.99:
        raise ValueError(f"overlap must lie in (0, 0.99), got {overlap}: 0.5 is the paper's.")
    root = math.sqrt(2 * num_dims)
    if root <= 3:
        return math.inf

    def excess(ratio):
        center = root * (ratio - 1)
        inside = scipy.stats.norm.cdf([center - 3 * ratio, center + 3 * ratio])
        return inside[1] - inside[0] - overlap

    no_overlap = (root + 10) / (root - 3)  # here the interval begins ten standard deviations up
    return scipy.optimize.brentq(excess, 1.0, no_overlap, xtol=1e-15, rtol=1e-15)


def num_levels(*, sigma_min: float, sigma_max: float, ratio: float) -> int:
    """Return how many geometric noise levels keep neighbors within ``ratio`` of each other.

        L = 1 + ceil(log(sigma_max / sigma_min) / log(ratio)).

    Args:
        sigma_min: the smallest noise level.
        sigma_max: the largest one.
        ratio: the largest allowed ratio of neighbors, above 1 and finite.

    Returns:
        The number of noise levels, at least 2.

    Raises:
        ValueError: a noise level is not positive, ``sigma_min >= sigma_max``, or ``ratio`` is not
            in (1, inf).

    Example:
        >>> [num_levels(sigma_min=1.0, sigma_max=high, ratio=2.0) for high in (8.0, 8.1)]
        [4, 5]
    """
    check_ends(sigma_max=sigma_max, sigma_min=sigma_min)
    if not 1 < ratio < math.inf:
        raise ValueError(
            f"ratio must be above 1 and finite, got {ratio}: in up to 4 dimensions, where "
            f"sigma_ratio is infinite, {LARGEST_RATIO} is a good one."
        )
    intervals = math.log(sigma_max / sigma_min) / math.log(ratio)
    return 1 + math.ceil(intervals * (1 - 1e-12))  # 8, 4, 2, 1 is four levels, rounding or not


def langevin_variance(relative_step: float, ratio: float, steps_per_level: int) -> float:
    """Return the variance after the Langevin steps at one noise level, in units of its square.

        v_T = (1 - h)^(2 T) (g^2 - 2 / (2 - h)) + 2 / (2 - h).

    It is 1 where the chain has equilibrated, for data at one point.

    Args:
        relative_step: ``h = e / sigma_L^2 = a_i / sigma_i^2``, in (0, 2).
        ratio: of neighboring noise levels, ``g``.
        steps_per_level: Langevin steps at each noise level, ``T``.

    Returns:
        The variance in units of ``sigma_i^2``, when started at ``g^2``.

    Example:
        >>> print(round(langevin_variance(0.062, 1.03756, 5), 4))
        1.0555
    """
    stationary = 2 / (2 - relative_step)
    return (1 - relative_step) ** (2 * steps_per_level) * (ratio**2 - stationary) + stationary


def langevin_step_size(sigmas: ArrayOrList, *, steps_per_level: int) -> float:
    """Return the step size of annealed Langevin dynamics by Technique 4 of NCSNv2.

    It is ``e = h sigma_L^2`` for the update ``x <- x + a_i s(x) + sqrt(2 a_i) z`` at noise level
    ``i``, ``a_i = e sigma_i^2 / sigma_L^2``. (Halve or double it for other conventions.) ``h`` is
    the minimum of the variance after ``T`` steps (`langevin_variance`), with ``g`` the ratio of
    neighboring noise levels,

        v_T(h) = (1 - h)^(2 T) (g^2 - 2 / (2 - h)) + 2 / (2 - h),

    hence the root, between 0 and ``min(1, 2 - 2 / g^2)``, of its derivative

        v_T'(h) = (1 - (1 - h)^(2 T)) 2 / (2 - h)^2
                  - 2 T (1 - h)^(2 T - 1) (g^2 - 2 / (2 - h)).

    The minimum over all stable steps is unique. ``v_T`` grows with ``g``; where the ratios differ,
    ``g`` is the largest, so that the largest ``v_T`` of the ladder is minimized.

    Args:
        sigmas: strictly decreasing noise levels ``[L]``, at least 2.
        steps_per_level: Langevin steps at each noise level, ``T``.

    Returns:
        The step size at the last noise level, ``e``, in squared units of the data. For the ladder
        of CIFAR-10 (50 to 0.01 in 232 noise levels, 5 steps) it is 6.2e-6, as published.

    Raises:
        TypeError: ``steps_per_level`` is not an integer.
        ValueError: noise levels not positive and strictly decreasing or fewer than two, or
            ``steps_per_level < 1``.

    Example:
        >>> from sm_jax.noise_levels import geometric
        >>> sigmas = geometric(sigma_min=0.01, sigma_max=50.0, num_levels=232)
        >>> print(f"{langevin_step_size(sigmas, steps_per_level=5):.1e}")
        6.2e-06

    References:
        Song & Ermon 2020, Technique 4, https://arxiv.org/abs/2006.09011.
    """
    _checks.check_levels("sigmas", sigmas)
    _checks.check_count("steps_per_level", steps_per_level)
    levels = np.asarray(sigmas, np.float64)
    if len(levels) < 2:
        raise ValueError(f"sigmas must hold at least two noise levels, got {levels}.")
    ratio = float(np.max(levels[:-1] / levels[1:]))
    return _relative_step(ratio, steps_per_level) * float(levels[-1]) ** 2


def _relative_step(ratio, steps_per_level):
    """Return the ``h`` that minimizes equation (3): the root of its derivative (4)."""

    def derivative(h):
        kept = (1 - h) ** (2 * steps_per_level - 1)
        falling = 2 * steps_per_level * kept * (ratio**2 - 2 / (2 - h))
        return (1 - kept * (1 - h)) * 2 / (2 - h) ** 2 - falling

    # At the upper end the chain forgets its start, or its start is the stationary variance.
    return scipy.optimize.brentq(derivative, 0.0, min(1.0, 2 - 2 / ratio**2), xtol=1e-15)
