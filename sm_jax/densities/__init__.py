"""Analytic densities with exact log-density and score, before and after noising.

Every density is a frozen pytree, so that it can be closed over, passed through ``jax.jit`` and
mapped over times. Its methods are these; `empirical`, which has no density before it is noised,
raises in ``log_prob`` and ``score``:

    sample(key, n)      -> [n, ...]    independent draws
    log_prob(x)         -> [B]         log p(x), nats
    score(x)            -> [B, ...]    grad_x log p(x)
    noised(process, t)  -> density     the law of x_t = alpha(t) x_0 + sigma(t) z,  z ~ N(0, I)

``noised`` is exact and of the same family, so it can be applied again; of the process it uses
``alpha(t)`` and ``sigma(t)`` only, and ``t`` is a scalar, possibly traced. The score of the noised
density is what a noise-conditional model should learn:

    score_fn = lambda x, t: density.noised(process, t).score(x)        (one time for all rows)

| constructor | density | components |
|---|---|---|
| `gaussian(mean, cov)` | one Gaussian | 1 |
| `gaussian_mixture(weights, means, covs)` | mixture, full or isotropic covariances | K |
| `empirical(points)` | point masses; once noised, the optimum of denoising on a finite set | N |
| `two_moons`, `swiss_roll`, `rings`, `pinwheel` | a curve plus Gaussian noise | nodes |
| `eight_gaussians` | eight Gaussians on a circle | 8 |
| `checkerboard` | uniform on eight squares | 8 |

`TOYS` names the 2-D ones; all have mean 0 and standard deviation 1 along each axis.
"""

from sm_jax.densities._boxes import UniformBoxes
from sm_jax.densities._mixtures import (
    Empirical,
    GaussianMixture,
    empirical,
    gaussian,
    gaussian_mixture,
)
from sm_jax.densities._toys import (
    TOYS,
    checkerboard,
    eight_gaussians,
    pinwheel,
    rings,
    swiss_roll,
    two_moons,
)

__all__ = [
    "TOYS",
    "Empirical",
    "GaussianMixture",
    "UniformBoxes",
    "checkerboard",
    "eight_gaussians",
    "empirical",
    "gaussian",
    "gaussian_mixture",
    "pinwheel",
    "rings",
    "swiss_roll",
    "two_moons",
]
