"""The loop around the step: many steps per dispatch, records, evaluations, checkpoints.

The host never waits for a dispatch that it has just made: it reads the losses of the previous one
while this one runs. It waits only where it evaluates or saves.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sm_jax.data import batch_indices
from sm_jax.training import checkpoints
from sm_jax.training._dtypes import narrowed
from sm_jax.training._logging import RunLog
from sm_jax.training._parallel import AXIS, check_divisible, data_mesh, replicate, replicated
from sm_jax.training._state import State, init
from sm_jax.training._step import LossFn, make_step

_DEFAULT_DATA_BYTES = 2**31


def fit(
    loss_fn: LossFn,
    params: Any,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int,
    seed: int,
    directory: str | os.PathLike | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    ema_decay: float = 0.999,
    ema_warmup: bool = True,
    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None,
    evaluate_every: int = 1000,
    level_loss_fn: Callable[[Any, Any, Array], Array] | None = None,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    keep: int = 3,
    best_metric: str | None = None,
    best_mode: str = "min",
    steps_per_dispatch: int = 50,
    device_data_bytes: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
) -> State:
    """Trains: the step of `make_step`, `num_steps` times, on batches drawn from `data`.

    Update n (from 0) uses the rows `batch_indices(k_d, n, N, B)` of the data and the key
    `fold_in(k_t, n)`, with `k_d, k_t` split from `jax.random.key(seed)`: all is a function of
    (seed, n), so a run that is resumed goes on as if it had never stopped (bit by bit on CPU).
    With several devices the batch is sharded over them and everything else replicated; batch and
    noise are the same as on one.

    Args:
        loss_fn: `loss_fn(params, batch, key)` -> [B], the un-reduced loss of each row.
        params: the parameters to start from, a pytree of floating arrays; left as they are.
        data: a pytree of arrays (NumPy, memory-mapped or JAX) with one leading axis of length N.
            Those of 64 bits become 32, unless JAX is set to 64: integers beyond int32 are refused,
            and floats that lose more than a thousandth of their spread warned of.
        optimizer: an Optax optimizer, such as `training.adamw`.
        num_steps: the number of updates at which to stop, counted from the start of the run, also
            of one that is resumed.
        batch_size: B, rows per update over all devices.
        seed: the seed of the order of the data and of the noise.
        directory: the run directory, for logs and checkpoints; without it nothing is written.
        resume: whether to go on from the newest checkpoint in `directory`, if there is one.
        config: whatever else must not change when the run is resumed (anything that JSON holds: the
            recipe, the size of the model); kept in `metadata.json`.
        ema_decay: see `make_step`.
        ema_warmup: see `make_step`.
        evaluate: `evaluate(ema, step)` -> dict of floats, recorded as "eval/NAME"; it may keep
            `ema`.
        evaluate_every: steps between evaluations; the last step is always evaluated.
        level_loss_fn: `level_loss_fn(ema, batch, key)` -> [L], the loss at each of L noise levels,
            recorded as "level_loss" at each evaluation.
        log_every: steps between records of the loss and the norm of the gradient, each the mean
            over these steps.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep: how many of the newest checkpoints are kept.
        best_metric: a name that `evaluate` returns; the checkpoint where it is best is kept as well
            (and each checkpoint is evaluated).
        best_mode: "min" or "max", whichever is better.
        steps_per_dispatch: the most steps in one dispatch to the device; take 1 to train
            convolutional networks on CPU, which are slow within a loop. Losses are checked, and
            the progress shown, once per dispatch. Where it divides `evaluate_every` and
            `checkpoint_every`, one length of dispatch is compiled, otherwise two.
        device_data_bytes: the data stays on the devices if it has at most so many bytes; otherwise
            each batch is gathered on the host. A quarter of a device's memory by default (2 GiB
            where the device does not tell).
        devices: the devices to use; all of them by default.
        progress: True for a progress bar, False for nothing; by default a bar on a terminal, and a
            plain line now and then elsewhere.

    Returns:
        The `State` after `num_steps` updates, replicated over the devices.

    Raises:
        ValueError: on bad arguments, a directory that cannot be used, or a resume whose
            configuration differs or whose newest checkpoint is beyond `num_steps`, all before work
            starts.
        TypeError: if `evaluate` returns no dict.
        FloatingPointError: naming the step where the loss is not finite; no checkpoint holds such
            a state.
        OSError: if a checkpoint cannot be written, as on a full disk; those before it are kept.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> loss_fn = lambda params, x, key: 0.5 * (x - params) ** 2
        >>> state = fit(loss_fn, jnp.zeros(()), jnp.array([1.0, 3.0]), optimizer=optax.sgd(0.5),
        ...             num_steps=50, batch_size=2, seed=0, progress=False)
        >>> round(float(state.params), 4)
        2.0
    """
    intervals = {
        "num_steps": num_steps,
        "batch_size": batch_size,
        "evaluate_every": evaluate_every,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
        "steps_per_dispatch": steps_per_dispatch,
        "keep": keep,
    }
    for name, value in intervals.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if best_metric is not None and (evaluate is None or directory is None):
        raise ValueError(f"best_metric {best_metric!r} needs evaluate and directory as well")
    if best_mode not in ("min", "max"):
        raise ValueError(f'best_mode must be "min" or "max", got {best_mode!r}')
    if resume and directory is None:
        raise ValueError("resume=True needs the directory of the run to resume")
    num_examples = _num_examples(data)
    mesh = data_mesh(devices)
    check_divisible(batch_size, mesh)

    train_key, data_key, level_key = jax.random.split(jax.random.key(seed), 3)
    # The copies make the state safe to donate: the caller's arrays are left alone.
    params = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
    state = replicate(init(params, optimizer, train_key), mesh)
    if directory is not None:
        directory = checkpoints.prepare_directory(directory, resume=resume)
        config = {
            **(config or {}),
            "fit": {
                "batch_size": batch_size,
                "seed": seed,
                "num_examples": num_examples,
                "ema_decay": ema_decay,
                "ema_warmup": ema_warmup,
            },
        }
        state = _resume_or_start(directory, state, config, num_steps, best_metric, best_mode)
    step = int(state.step)

    dispatch, batch_at = _dispatcher(
        make_step(loss_fn, optimizer, ema_decay=ema_decay, ema_warmup=ema_warmup),
        data,
        lambda n: batch_indices(data_key, n, num_examples, batch_size),
        mesh,
        most=min(steps_per_dispatch, num_steps),
        on_device=_fits(data, mesh, device_data_bytes),
    )
    if level_loss_fn is not None:
        level_loss_fn = jax.jit(level_loss_fn)
    evaluates = evaluate is not None or level_loss_fn is not None
    periods = [evaluate_every] * evaluates + [checkpoint_every] * (directory is not None)
    period = math.gcd(*periods) if periods else steps_per_dispatch

    with contextlib.ExitStack() as stack:
        log = stack.enter_context(
            RunLog(
                directory, step=step, num_steps=num_steps, log_every=log_every, progress=progress
            )
        )
        manager = None
        if directory is not None:
            manager = checkpoints.open_manager(
                directory, keep=keep, best_metric=best_metric, best_mode=best_mode
            )
            stack.enter_context(checkpoints.closing(manager))
        unread = None
        while step < num_steps:
            end = _dispatch_end(step, num_steps, period, steps_per_dispatch)
            state, metrics = dispatch(state, step, end - step)
            if unread is None:
                log.restart_clock()  # compilation, evaluation and saving are not training
            else:
                _read(log, *unread, manager)
            unread = (step, metrics)
            step = end

            saves = manager is not None and _due(step, checkpoint_every, num_steps)
            looks = evaluates and _due(step, evaluate_every, num_steps)
            looks = looks or (saves and best_metric is not None)
            if not (saves or looks):
                continue
            _read(log, *unread, manager)
            unread = None
            evaluation = {}
            if looks:
                ema = jax.tree.map(jnp.copy, state.ema)
                record = {}
                if level_loss_fn is not None:
                    key = jax.random.fold_in(level_key, step)
                    losses = level_loss_fn(ema, batch_at(step), key)
                    record["level_loss"] = np.asarray(losses, float).tolist()
                if evaluate is not None:
                    evaluation = _evaluated(evaluate(ema, step))
                    record |= {f"eval/{name}": value for name, value in evaluation.items()}
                log.record(step, record)
            if saves:
                checkpoints.save(manager, state, _best(evaluation, best_metric))
        if unread is not None:
            _read(log, *unread, manager)
    return state


def _num_examples(data: Any) -> int:
    sizes = {np.shape(x)[:1] for x in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        shapes = [np.shape(x) for x in jax.tree.leaves(data)]
        raise ValueError(
            f"data must be arrays with one leading axis, of the same length >= 1; got {shapes}"
        )
    return sizes.pop()[0]


def _fits(data: Any, mesh: Mesh, limit: int | None) -> bool:
    if limit is None:
        stats = mesh.local_devices[0].memory_stats() or {}
        limit = stats.get("bytes_limit", 4 * _DEFAULT_DATA_BYTES) // 4
    return sum(x.nbytes for x in jax.tree.leaves(data)) <= limit


def _resume_or_start(
    directory: pathlib.Path,
    state: State,
    config: Mapping[str, Any],
    num_steps: int,
    best_metric: str | None,
    best_mode: str,
) -> State:
    """Returns the state of the newest checkpoint, or starts a run with the state given."""
    if checkpoints.has_checkpoints(directory):
        checkpoints.check_metadata(checkpoints.read_metadata(directory), state, config)
        state = checkpoints.restore(directory, state)
        if state.step > num_steps:
            raise ValueError(
                f"the run in {directory} is at step {state.step}, beyond num_steps={num_steps}: "
                f"resume it with num_steps={state.step} or more, or start a run in a new directory"
            )
    checkpoints.write_metadata(
        directory, state, config, best_metric=best_metric, best_mode=best_mode
    )
    return state


def _narrowed(data: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: narrowed(x, jax.tree_util.keystr(path)), data
    )


def _dispatcher(
    step: Callable[[State, Any], tuple[State, dict[str, Array]]],
    data: Any,
    indices: Callable[[Array], Array],
    mesh: Mesh,
    *,
    most: int,
    on_device: bool,
) -> tuple[Callable[[State, int, int], tuple[State, dict[str, Array]]], Callable[[int], Any]]:
    """Returns `dispatch(state, start, length)`, for at most `most` steps, and `batch_at(step)`."""
    by_row = NamedSharding(mesh, PartitionSpec(AXIS))
    by_step_and_row = NamedSharding(mesh, PartitionSpec(None, AXIS))
    whole = replicated(mesh)

    @partial(jax.jit, out_shardings=whole)
    def rows(start):
        return jax.vmap(indices)(start + jnp.arange(most, dtype=jnp.uint32))

    def scan(body, state, xs):
        # A single step is not wrapped in a loop: on CPU, XLA runs convolutions far slower in one.
        if jax.tree.leaves(xs)[0].shape[0] == 1:
            state, metrics = body(state, jax.tree.map(lambda x: x[0], xs))
            metrics = jax.tree.map(lambda m: m[None], metrics)
        else:
            state, metrics = jax.lax.scan(body, state, xs)
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((state.params, state.ema))]
        return state, metrics | {"finite": jnp.stack(finite).all()}

    jit = partial(jax.jit, donate_argnums=0, out_shardings=whole)
    if on_device:
        data = jax.tree.map(lambda x: replicate(x, mesh), _narrowed(data))

        @partial(jax.jit, out_shardings=by_row)
        def select(data, rows):
            return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), data)

        @jit
        def run(state, data, rows):
            return scan(lambda state, rows: step(state, select(data, rows)), state, rows)

        def dispatch(state, start, length):
            return run(state, data, rows(start)[:length])

        def batch_at(start):
            return select(data, rows(start)[0])

    else:

        def gather(start, length):
            chosen = np.asarray(rows(start))[:length]

            def put(path, x):
                def part(index):
                    places = chosen[index[:2]]
                    batch = narrowed(np.asarray(x[places.ravel()]), jax.tree_util.keystr(path))
                    return batch.reshape(*places.shape, *x.shape[1:])

                shape = chosen.shape + x.shape[1:]
                return jax.make_array_from_callback(shape, by_step_and_row, part)

            return jax.tree_util.tree_map_with_path(put, data)

        run = jit(partial(scan, step))

        def dispatch(state, start, length):
            return run(state, gather(start, length))

        def batch_at(start):
            return jax.tree.map(lambda x: x[0], gather(start, 1))

    return dispatch, batch_at


def _dispatch_end(step: int, num_steps: int, period: int, most: int) -> int:
    """Returns where the dispatch that begins at `step` ends: a function of the step alone.

    Each period is cut into the fewest parts of at most `most` steps, equal to within one step, so
    that at most two lengths are compiled (and one more at the end of the run).
    """
    start = step - step % period
    parts = -(-period // most)
    ends = (start + period * (i + 1) // parts for i in range(parts))
    return min(num_steps, next(end for end in ends if end > step))


def _due(step: int, every: int, num_steps: int) -> bool:
    return step % every == 0 or step == num_steps


def _read(
    log: RunLog,
    start: int,
    metrics: Mapping[str, Array],
    manager: ocp.CheckpointManager | None,
) -> None:
    """Waits for a dispatch, logs its steps, and raises if the run is no longer finite."""
    losses, norms = np.asarray(metrics["loss"]), np.asarray(metrics["grad_norm"])
    bad = np.flatnonzero(~np.isfinite(losses))
    if not bad.size:
        log.steps(start, losses, norms)
        if metrics["finite"]:
            return
        end = start + losses.size
        what = f"the parameters are not finite after step {end}, where the loss was {losses[-1]}"
    else:
        good = int(bad[0])
        log.steps(start, losses[: good + 1], norms[: good + 1])
        what = f"the loss is {losses[good]} at step {start + good + 1}"
    bad = np.flatnonzero(~np.isfinite(norms))
    if bad.size:
        what += f"; the gradient was first not finite at step {start + int(bad[0]) + 1}"
    saved = None if manager is None else manager.latest_step()
    kept = "" if saved is None else f"; the last good checkpoint, of step {saved}, is kept"
    raise FloatingPointError(
        f"{what}{kept}. Lower the learning rate, clip the gradient, or look for bad data"
    )


def _evaluated(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise TypeError(
            f"evaluate must return a dict of floats, got {values!r}: return {{}} for none"
        )
    return {name: float(value) for name, value in values.items()}


def _best(evaluation: Mapping[str, float], best_metric: str | None) -> dict[str, float] | None:
    if best_metric is None:
        return None
    if best_metric not in evaluation:
        raise ValueError(
            f"best_metric {best_metric!r} is not among what evaluate returned: {sorted(evaluation)}"
        )
    return {best_metric: evaluation[best_metric]}
