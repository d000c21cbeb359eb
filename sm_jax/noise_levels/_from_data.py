"""A ladder of noise levels from data, and the reasons for its numbers.

Equation numbers are those of sm_jax.noise_levels.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax.noise_levels._distances import distances, subset
from sm_jax.noise_levels._ladders import geometric
from sm_jax.noise_levels._techniques import (
    LARGEST_RATIO,
    langevin_step_size,
    langevin_variance,
    num_levels,
    sigma_ratio,
)
from sm_jax.typing import ArrayOrList


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
            if limit <= LARGEST_RATIO
            else f"at most {LARGEST_RATIO}, for the Langevin steps to follow (Technique 2 allows "
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
    points = subset(x, key, max_points)
    num_dims = points.shape[1]
    if sigma_max is None or sigma_min is None:
        largest, nearest = distances(points)
    sigma_max = largest if sigma_max is None else float(sigma_max)
    if sigma_min is None:
        sigma_min = float(np.median(nearest)) / 10 / math.sqrt(num_dims)
    sigma_min = float(sigma_min)
    _check_given(given, sigma_max, sigma_min)
    number = num_levels(
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        ratio=min(sigma_ratio(num_dims, overlap=overlap), LARGEST_RATIO),
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
