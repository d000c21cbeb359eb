"""Training: one pure step, the loop around it, and checkpoints that resume bit by bit.

``loss_fn(params, batch, key) -> [B]`` is any per-example loss, ``x`` the data:

    optimizer = training.adamw(1e-3, num_steps=10_000)
    state = training.fit(loss_fn, params, x, optimizer=optimizer, num_steps=10_000,
                         batch_size=256, seed=0, checkpoints=training.Checkpoints("runs/first"))
    ema = training.restore_params("runs/first", params)

Batches may come from any object with ``at(step)`` (``Batches``), and records go to any object with
``record(step, values)`` (``Logger``). To write another loop, take the parts: ``init`` makes a
``State``, ``make_step`` a pure function ``step(state, batch) -> (state, metrics)``.
"""

from sm_jax.training import checkpoints
from sm_jax.training._batches import Batches
from sm_jax.training._logging import Logger
from sm_jax.training._loop import fit
from sm_jax.training._optimizer import adamw
from sm_jax.training._options import Checkpoints, Evaluation
from sm_jax.training._parallel import data_mesh, replicate, shard_batch
from sm_jax.training._state import State, init
from sm_jax.training._step import make_step
from sm_jax.training.checkpoints import prepare_directory, restore_params

__all__ = [
    "Batches",
    "Checkpoints",
    "Evaluation",
    "Logger",
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
