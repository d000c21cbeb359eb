r"""Gaussian noising processes: a scale and a noise level as functions of time, and what follows.

A process noises data as

    x_t = alpha(t) x_0 + sigma(t) z,    z ~ N(0, I),                                   (1)

and is the solution of the linear stochastic differential equation

    dx = f(t) x dt + g(t) dw,    f = alpha' / alpha,                                   (2)
    g^2 = 2 sigma^2 (sigma' / sigma - alpha' / alpha) = 2 sigma^2 (log r)',            (3)
    r(t) = sigma(t) / alpha(t)    (noise per unit of signal).                          (4)

So ``alpha``, ``sigma`` and the inverse of ``r`` define a process; drift, diffusion, prior and time
grids are derived from them by functions that serve any process, one of yours included: any object
with ``alpha(t)``, ``sigma(t)``, ``time_at(ratio)``, ``t_min`` and ``t_max``.

Sampling starts from, and likelihoods end at, the prior

    N(alpha(t_max) m, sigma(t_max)^2 I),                                               (5)

with ``m`` the ``mean`` of the process. The noised data have this mean too if ``m`` is that of the
data. The default, zero, is for data that are centered, or off center by little beside
``r(t_max)``. A process without the attribute has mean zero.

Noise levels near ``t_min`` are small differences of numbers near one; they are computed with
``expm1`` and ``log1p``, which keeps them exact to rounding in float32.

| process       | alpha(t)        | sigma(t)                    | times            |
|---------------|-----------------|-----------------------------|------------------|
| `VE`, `EDM`   | 1               | t                           | [sigma_min, sigma_max] |
| `GeometricVE` | 1               | sigma_min (sigma_max / sigma_min)^t | [0, 1]   |
| `VPLinear`    | exp(-b(t) / 2)  | sqrt(1 - exp(-b(t)))        | [t_min, 1]       |
| `SubVP`       | exp(-b(t) / 2)  | 1 - exp(-b(t))              | [t_min, 1]       |
| `Cosine`      | cos(pi t / 2)   | sin(pi t / 2)               | [t_min, t_max]   |

with ``b(t) = beta_min t + (beta_max - beta_min) t^2 / 2``.

References: Song et al. 2021, https://arxiv.org/abs/2011.13456 (VE, VP, sub-VP); Karras et al. 2022,
https://arxiv.org/abs/2206.00364 (EDM); Salimans & Ho 2022, https://arxiv.org/abs/2202.00512
(cosine).
"""

from sm_jax.processes._derived import (
    check_times,
    diffusion_squared,
    drift,
    marginal_std,
    noise_ratio,
    perturb,
    prior_log_prob,
    prior_sample,
    solver_grid,
    time_grid,
)
from sm_jax.processes._location import data_mean, warn_off_center
from sm_jax.processes._processes import EDM, VE, Cosine, GeometricVE, SubVP, VPLinear

__all__ = [
    "EDM",
    "VE",
    "Cosine",
    "GeometricVE",
    "SubVP",
    "VPLinear",
    "check_times",
    "data_mean",
    "diffusion_squared",
    "drift",
    "marginal_std",
    "noise_ratio",
    "perturb",
    "prior_log_prob",
    "prior_sample",
    "solver_grid",
    "time_grid",
    "warn_off_center",
]
