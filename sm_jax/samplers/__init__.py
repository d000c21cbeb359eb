"""Samplers: flat functions ``(score_fn, x, key, *, ...) -> x``, each one compiled loop.

The diffusion samplers are `solve` around a step of `sm_jax.samplers.steps`, which also serve a loop
of your own; `solve` explains the arguments that they share. ``x [B, ...]`` is where the chains
start: any points for `langevin`, noise of the largest level for `annealed_langevin`,
``sm_jax.processes.prior_sample`` for the diffusion samplers. With
``trajectory=True`` a sampler returns ``(x, trajectory)``, the trajectory holding the start and
every iterate. `mala`, which accepts and rejects, returns both in a `Chain`, with its acceptance
rate. `adaptive_ode` and `adaptive_sde`, which choose their steps, return an `AdaptiveSample`.

The default numbers of steps are those of `processes.solver_grid`: for a process whose ``log(sigma /
alpha)`` spans up to 12, and more over a wider span. The number cannot depend on a process that is
itself an argument of ``jax.jit`` or differentiated: give ``num_steps`` there.
`generate` draws any number of samples, which do not depend on batches or devices.

A sampler need not be jitted: the first call compiles its loop, and later ones find it again. The
function is the same if it traces to the same program: the same operations on the same shapes and
dtypes with the same Python and NumPy numbers, whatever lambda, ``partial`` or module it came from.
The JAX arrays that it closes over are arguments of the program, so that new parameters reuse it and
are never stale; those within a ``jax.jit`` of its own, and those of all functions that diffrax or
blackjax run, are part of the program. Each call traces the function, which the user's own
``jax.jit`` saves.
"""

from sm_jax.samplers import steps
from sm_jax.samplers._adaptation import (
    AdaptedStep,
    adapt_step_size,
)
from sm_jax.samplers._adaptive import (
    AdaptiveSample,
    adaptive_ode,
    adaptive_sde,
)
from sm_jax.samplers._annealed import (
    annealed_langevin,
    consistent_annealed,
)
from sm_jax.samplers._blackjax import (
    Draws,
    Particles,
    log_density,
    mclmc,
    nuts,
    smc,
)
from sm_jax.samplers._diffusion import (
    ancestral,
    ddim,
    euler_maruyama,
    heun,
    reverse_diffusion,
)
from sm_jax.samplers._dpm_solver import (
    dpm_solver_pp,
    dpm_solver_pp_sde,
)
from sm_jax.samplers._generate import (
    generate,
    one_sample,
)
from sm_jax.samplers._langevin import (
    gradient_ascent,
    langevin,
    tempered_langevin,
)
from sm_jax.samplers._metropolis import (
    Chain,
    Point,
    log_prob_and_score,
    mala,
    metropolis_step,
)
from sm_jax.samplers._predictor_corrector import (
    predictor_corrector,
)
from sm_jax.samplers._solve import (
    solve,
)
from sm_jax.samplers._underdamped import (
    underdamped,
)

__all__ = [
    "AdaptedStep",
    "AdaptiveSample",
    "Chain",
    "Draws",
    "Particles",
    "Point",
    "adapt_step_size",
    "adaptive_ode",
    "adaptive_sde",
    "ancestral",
    "annealed_langevin",
    "consistent_annealed",
    "ddim",
    "dpm_solver_pp",
    "dpm_solver_pp_sde",
    "euler_maruyama",
    "generate",
    "gradient_ascent",
    "heun",
    "langevin",
    "log_density",
    "log_prob_and_score",
    "mala",
    "mclmc",
    "metropolis_step",
    "nuts",
    "one_sample",
    "predictor_corrector",
    "reverse_diffusion",
    "smc",
    "solve",
    "steps",
    "tempered_langevin",
    "underdamped",
]
