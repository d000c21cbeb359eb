r"""Ladders of noise levels, and the numbers in them computed from the data instead of guessed.

A ladder is ``sigma_1 > sigma_2 > ... > sigma_L > 0``, largest noise first. Song & Ermon 2020
("NCSNv2", https://arxiv.org/abs/2006.09011) choose its numbers from the data and its dimension:

1. ``sigma_1``: the largest distance between two examples, so that the chain can go from any example
   to any other (Technique 1).
2. The ratio ``g = sigma_{i-1} / sigma_i``: noise of level ``i`` in ``D`` dimensions has a radius
   close to ``N(sqrt(D) sigma_i, sigma_i^2 / 2)``. Of it, the share that falls within three standard
   deviations of the mean radius of level ``i - 1`` is one half (Technique 2),

       Phi(sqrt(2 D) (g - 1) + 3 g) - Phi(sqrt(2 D) (g - 1) - 3 g) = 1/2.                   (1)

3. The step size of annealed Langevin dynamics (Technique 4). At level ``i`` it takes ``T`` steps

       x <- x + a_i s(x) + sqrt(2 a_i) z,    a_i = e sigma_i^2 / sigma_L^2.                 (2)

   For data at one point, ``s(x) = -x / sigma_i^2``; with ``h = e / sigma_L^2`` one step takes a
   variance ``v sigma_i^2`` to ``((1 - h)^2 v + 2 h) sigma_i^2``. It enters as that of level
   ``i - 1``, ``v = g^2``, and leaves after ``T`` steps as

       v_T = (1 - h)^(2 T) (g^2 - 2 / (2 - h)) + 2 / (2 - h),                               (3)

   which should be 1. (The paper's ``2 e / (sigma_L^2 - sigma_L^2 (1 - e / sigma_L^2)^2)`` is
   ``2 / (2 - h)``.) In a stable chain, ``0 < h < 2``, it never is: (3) is an average of ``g^2`` and
   ``2 / (2 - h)``, both above 1. The step closest to it minimizes ``v_T``. As long as
   ``2 / (2 - h) < g^2`` and ``h < 1``, ``v_T`` is strictly convex in ``h`` with a falling start and
   a rising end, and beyond, it is larger; so the minimum is one, and the root of the derivative

       v_T' = (1 - (1 - h)^(2 T)) 2 / (2 - h)^2 - 2 T (1 - h)^(2 T - 1) (g^2 - 2 / (2 - h)).  (4)

4. ``sigma_L`` is not chosen by the paper beyond "small enough": 0.01 for images in [0, 1]. Here it
   is a tenth of the distance to a neighbor: see `smallest_sigma`.

These are functions for setting up, of concrete numbers: they run in float64 NumPy, outside ``jit``.
"""

from sm_jax.noise_levels._distances import largest_sigma, smallest_sigma
from sm_jax.noise_levels._from_data import NoiseLevels, noise_levels_from_data
from sm_jax.noise_levels._ladders import geometric, karras
from sm_jax.noise_levels._techniques import (
    langevin_step_size,
    langevin_variance,
    num_levels,
    sigma_ratio,
)

__all__ = [
    "NoiseLevels",
    "geometric",
    "karras",
    "langevin_step_size",
    "langevin_variance",
    "largest_sigma",
    "noise_levels_from_data",
    "num_levels",
    "sigma_ratio",
    "smallest_sigma",
]
