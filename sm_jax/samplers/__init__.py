"""Samplers: flat functions ``(score_fn, x, key, *, ...) -> x``, each one compiled loop.

``x [B, ...]`` is where the chains start: any points for `langevin`, noise of the largest level for
`annealed_langevin`, ``sm_jax.processes.prior_sample`` for the diffusion samplers. With
``trajectory=True`` a sampler returns ``(x, path)``, the path holding the start and every iterate.
"""

from sm_jax.samplers._diffusion import (
    heun,
    reverse_sde,
)
from sm_jax.samplers._langevin import (
    annealed_langevin,
    langevin,
)

__all__ = [
    "annealed_langevin",
    "heun",
    "langevin",
    "reverse_sde",
]
