"""The numbers of a ladder from the data and its dimension.

Equation numbers are those of sm_jax.noise_levels.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats

from sm_jax import _checks
from sm_jax.noise_levels._ladders import check_ends, geometric
from sm_jax.typing import ArrayOrList

_LARGEST_RATIO = 1.5
_CHUNK = 2**22  # distances held at once


def largest_sigma(x: ArrayOrList, key: jax.Array, *, max_points: int = 2000) -> float:
    """Return the largest Euclidean distance between two examples: Technique 1, for ``sigma_1``.

    Exact for up to ``max_points`` examples. Of more, it is that of a random subset, hence a little
    small: of 10,000 images of CIFAR-10 it is 51.6, of 2,000 of them 48.4 to 50.4.

    Args:
        x: data ``[N, ...]``, floating, at least two examples distinct.
        key: for the subset.
        max_points: how many examples to compare at most.

    Returns:
        The distance, in units of the data.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` is empty, not finite, or all examples are equal.

    Example:
        >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
        >>> largest_sigma(x, jax.random.key(0))
        5.0

    References:
        Song & Ermon 2020, Technique 1, https://arxiv.org/abs/2006.09011.
    """
    return _distances(_subset(x, key, max_points))[0]


def smallest_sigma(x: ArrayOrList, key: jax.Array, *, max_points: int = 2000) -> float:
    """Return a tenth of the typical distance to a neighbor per root dimension, for ``sigma_L``.

        sigma_L = 1/10 median_n min_m |x_n - x_m| / sqrt(D),    over x_m != x_n.

    Noise of standard deviation ``sigma`` moves an example by ``sigma sqrt(D)``: here by a tenth of
    the way to its nearest neighbor, so that what remains of the noise at the end of a ladder is
    small beside the difference of two examples. (The last denoising step removes most of it.)
    For 2,000 images of CIFAR-10 in [0, 1] it gives 0.019, and the customary value is 0.01.

    Args:
        x: data ``[N, ...]``, floating, at least two examples distinct.
        key: for the subset.
        max_points: how many examples to compare at most; neighbors in a subset are farther away.

    Returns:
        The noise level, in units of the data.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` is empty, not finite, or all examples are equal.

    Example:
        >>> x = jnp.array([[0.0], [0.0], [1.0], [3.0]])
        >>> print(round(smallest_sigma(x, jax.random.key(0)), 3))
        0.1
    """
    points = _subset(x, key, max_points)
    return float(np.median(_distances(points)[1])) / 10 / math.sqrt(points.shape[1])


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
            f"sigma_ratio is infinite, {_LARGEST_RATIO} is a good one."
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


class NoiseLevels(NamedTuple):
    """A ladder computed from data, and the numbers it came from; ``str()`` explains them.

    Args:
        sigmas: the noise levels ``[L]``, strictly decreasing, in units of the data.
        sigma_max: the first noise level: largest distance between examples, unless it was given.
        sigma_min: the last noise level: a tenth of the distance between neighbors, per root
            dimension, unless it was given.
        ratio: of neighboring noise levels.
        num_levels: ``L``.
        step_size: of annealed Langevin dynamics at the last noise level.
        steps_per_level: Langevin steps at each noise level for which it was computed.
        num_dims: numbers in one example, ``D``.
        mean: mean of all the data, of the shape of one example. Distances do not tell where the
            data are: center the prior there, ``VE(sigma_min, sigma_max, mean=levels.mean)``.
        overlap: of neighboring noise levels, the limit of their ratio.
        given: whether ``sigma_max`` and ``sigma_min`` were given.
    """

    sigmas: jax.Array
    sigma_min: float
    sigma_max: float
    ratio: float
    num_levels: int
    step_size: float
    steps_per_level: int
    num_dims: int
    mean: jax.Array
    overlap: float = 0.5
    given: tuple[bool, bool] = (False, False)

    def __str__(self) -> str:
        """Explain in a few lines how each number was chosen."""
        largest, smallest = (
            "given" if given else reason
            for given, reason in zip(
                self.given,
                (
                    "largest distance between two examples (Technique 1)",
                    f"1/10 of the median distance to the nearest neighbor, / sqrt({self.num_dims})",
                ),
                strict=True,
            )
        )
        low, high = float(self.mean.min()), float(self.mean.max())
        mean = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        limit = sigma_ratio(self.num_dims, overlap=self.overlap)
        share = "one half" if self.overlap == 0.5 else f"{self.overlap:.4g}"
        reason = (
            f"at most {limit:.6g}, where neighboring levels overlap by {share} (Technique 2)"
            if limit <= _LARGEST_RATIO
            else f"at most {_LARGEST_RATIO}, for the Langevin steps to follow (Technique 2 allows "
            f"{limit:.3g})"
        )
        relative = self.step_size / self.sigma_min**2
        variance = langevin_variance(relative, self.ratio, self.steps_per_level)
        return "\n".join(
            [
                f"{self.num_levels} geometric noise levels for examples of {self.num_dims} numbers",
                f"  sigma_max  {self.sigma_max:<10.4g} {largest}",
                f"  sigma_min  {self.sigma_min:<10.4g} {smallest}",
                f"  ratio      {self.ratio:<10.6g} {reason}",
                f"  step_size  {self.step_size:<10.3g} {relative:.3g} sigma_min^2: with "
                f"{self.steps_per_level} Langevin steps per level the variance ends at "
                f"{variance:.4g} of the level's, the closest to 1 (Technique 4)",
                f"  mean       {mean:<10} of the data, where a process needs its prior centered",
            ]
        )


def noise_levels_from_data(
    x: ArrayOrList,
    key: jax.Array,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    steps_per_level: int = 5,
    overlap: float = 0.5,
    max_points: int = 2000,
) -> NoiseLevels:
    """Return a geometric ladder of noise levels for ``x``, with the step size to sample by it.

    The largest is `largest_sigma`, the smallest `smallest_sigma`, the ratio `sigma_ratio` but at
    most 1.5, the number `num_levels` and the step size `langevin_step_size`. The cap matters below
    40 dimensions, where noise levels overlap at almost any ratio: at 1.5 five Langevin steps still
    bring the standard deviation within 10 % of the noise level.

    The noise levels do not depend on where the data are, but a prior does: pass the ``mean`` of the
    result to the process, or center the data.

    Args:
        x: data ``[N, ...]``, floating, at least two examples distinct.
        key: for the subset of a large data set.
        sigma_min: the smallest noise level, in units of the data, instead of `smallest_sigma`.
        sigma_max: the largest noise level, instead of `largest_sigma`.
        steps_per_level: Langevin steps at each noise level.
        overlap: of neighboring noise levels, see `sigma_ratio`.
        max_points: how many examples to compare at most.

    Returns:
        The ladder, the mean of the data, and their explanation.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` is empty, not finite, or all its examples are equal (unless both
            ends are given), a noise level is not positive, or ``sigma_min`` is not below
            ``sigma_max``.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (200, 8, 8))
        >>> levels = noise_levels_from_data(x, jax.random.key(1))
        >>> print(levels.num_levels, levels.num_dims)
        18 64
        >>> noise_levels_from_data(x, jax.random.key(1), sigma_min=0.01).num_levels
        25

    References:
        Song & Ermon 2020, https://arxiv.org/abs/2006.09011.
    """
    given = sigma_max is not None, sigma_min is not None
    points = _subset(x, key, max_points)
    num_dims = points.shape[1]
    if sigma_max is None or sigma_min is None:
        largest, nearest = _distances(points)
    sigma_max = largest if sigma_max is None else float(sigma_max)
    if sigma_min is None:
        sigma_min = float(np.median(nearest)) / 10 / math.sqrt(num_dims)
    sigma_min = float(sigma_min)
    _check_given(given, sigma_max, sigma_min)
    number = num_levels(
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        ratio=min(sigma_ratio(num_dims, overlap=overlap), _LARGEST_RATIO),
    )
    sigmas = geometric(sigma_max=sigma_max, sigma_min=sigma_min, num_levels=number)
    return NoiseLevels(
        sigmas=sigmas,
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        ratio=(sigma_max / sigma_min) ** (1 / (number - 1)),
        num_levels=number,
        step_size=langevin_step_size(sigmas, steps_per_level=steps_per_level),
        steps_per_level=steps_per_level,
        num_dims=num_dims,
        mean=jnp.asarray(np.mean(np.asarray(x), axis=0, dtype=np.float64), float),
        overlap=overlap,
        given=given,
    )


def _check_given(given, sigma_max, sigma_min):
    """Raise where an end given and one from the data are in the wrong order."""
    if given[0] != given[1] and sigma_min >= sigma_max > 0:
        names = "sigma_max", "sigma_min"
        name, other = names if given[0] else reversed(names)
        raise ValueError(
            f"sigma_min must be below sigma_max, got sigma_min={sigma_min:.4g} and "
            f"sigma_max={sigma_max:.4g}: {other} is from the distances between the examples, so "
            f"give both, or another {name}."
        )


def _relative_step(ratio, steps_per_level):
    """Return the ``h`` that minimizes equation (3): the root of its derivative (4)."""

    def derivative(h):
        kept = (1 - h) ** (2 * steps_per_level - 1)
        falling = 2 * steps_per_level * kept * (ratio**2 - 2 / (2 - h))
        return (1 - kept * (1 - h)) * 2 / (2 - h) ** 2 - falling

    # At the upper end the chain forgets its start, or its start is the stationary variance.
    return scipy.optimize.brentq(derivative, 0.0, min(1.0, 2 - 2 / ratio**2), xtol=1e-15)


def _subset(x, key, max_points):
    """Return at most ``max_points`` random examples as float64 rows ``[n, D]`` of median zero."""
    _checks.check_count("max_points", max_points, minimum=2)
    _checks.check_unmasked(x)
    x = np.asarray(x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"x must hold examples [N, ...], got shape {x.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must have a floating dtype, got {x.dtype}: scale integers to [0, 1].")
    if not np.isfinite(x).all():
        raise ValueError(f"x holds {np.sum(~np.isfinite(x))} values that are not finite.")
    if len(x) > max_points:
        x = x[np.sort(jax.random.choice(key, len(x), (max_points,), replace=False))]
    points = x.astype(np.float64).reshape(len(x), -1)
    return points - np.median(points, axis=0)  # where most are, whatever lies far away


def _distances(points):
    """Return the largest distance of two points, and that from each to its nearest distinct one.

    Pairs are ranked by ``|a|^2 - 2 a b + |b|^2`` in blocks of rows, which cancels for near
    neighbors: all within its rounding of the nearest are compared again by their differences, and
    which points are equal is told by their bytes.
    """
    squares = np.sum(points**2, axis=1)
    numbers = {}
    number = np.array([numbers.setdefault((p + 0.0).tobytes(), len(numbers)) for p in points])
    rows = max(1, _CHUNK // len(points))
    largest, nearest = 0.0, []
    for start in range(0, len(points), rows):
        block = points[start : start + rows]
        ranking = squares[start : start + rows, None] + squares - 2 * block @ points.T
        farthest = block - points[np.argmax(ranking, axis=1)]
        largest = max(largest, np.linalg.norm(farthest, axis=1).max())
        ranking[number[start : start + rows, None] == number] = np.inf
        nearest.append(_nearest(points, block, ranking))
    if largest == 0:
        raise ValueError(
            f"x must hold at least two distinct examples, got {len(points)} that are equal: "
            "noise levels come from the distances between examples."
        )
    return float(largest), np.concatenate(nearest)


def _nearest(points, block, ranking):
    """Return the distance from each row of ``block`` to the nearest of ``points``, ``[n]``.

    ``ranking`` holds the squares of the distances, up to rounding, and infinity for the row itself.
    """
    distances = np.linalg.norm(block - points[np.argmin(ranking, axis=1)], axis=1)
    # The nearest point is no longer than this: the ranking of both is rounded by at most half that.
    longest = np.linalg.norm(block, axis=1) + distances
    rounding = 8 * (points.shape[1] + 4) * np.finfo(float).eps * longest**2
    candidates = ranking <= ranking.min(axis=1, keepdims=True) + rounding[:, None]
    for row in np.flatnonzero(candidates.sum(axis=1) > 1):
        away = block[row] - points[candidates[row]]
        distances[row] = np.linalg.norm(away, axis=1).min()
    return distances
