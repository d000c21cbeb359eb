"""Training: one pure step, the loop around it, and checkpoints that resume bit by bit.

``loss_fn(params, batch, key) -> [B]`` is any per-example loss, here of a Gaussian's mean:

    >>> import jax.numpy as jnp, tempfile
    >>> from sm_jax import training
    >>> run = training.Checkpoints(tempfile.mkdtemp())  # or "runs/first"
    >>> loss_fn = lambda params, x, key: 0.5 * (x - params) ** 2
    >>> state = training.fit(loss_fn, jnp.zeros(()), jnp.array([1.0, 3.0]), seed=0, batch_size=2,
    ...                      optimizer=training.adamw(0.1, 100), num_steps=100, progress=False,
    ...                      checkpoints=run)
    >>> round(float(training.restore_params(run.directory, state.params)), 1)
    2.0

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
