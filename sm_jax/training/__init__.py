"""Training: one pure step, the loop around it, and checkpoints that resume bit-exactly.

    state = fit(loss_fn, params, data, optimizer=adamw(1e-3, 10_000), num_steps=10_000,
                batch_size=256, seed=0, directory="runs/first")

`loss_fn(params, batch, key) -> [B]` is any per-example loss. To write another loop, take the parts:
`init` makes a `State`, `make_step` a pure function `step(state, batch) -> (state, metrics)`.
"""

from sm_jax.training import checkpoints
from sm_jax.training._loop import fit
from sm_jax.training._optimizer import adamw
from sm_jax.training._parallel import data_mesh, replicate, shard_batch
from sm_jax.training._state import State, init
from sm_jax.training._step import make_step
from sm_jax.training.checkpoints import prepare_directory, restore_params

__all__ = [
    "State",
    "adamw",
    "checkpoints",
    "data_mesh",
    "fit",
    "init",
    "make_step",
    "prepare_directory",
    "replicate",
    "restore_params",
    "shard_batch",
]
