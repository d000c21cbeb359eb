"""The training loop: many steps per dispatch, records, evaluations, checkpoints.

The host never waits for a dispatch that it has just made: it reads the losses of the previous one
while this one runs. It waits only where it evaluates or saves.
"""

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax import Array
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh

from sm_jax.training import checkpoints as files
from sm_jax.training._batches import Batches, Source, batch_like, is_stream, source_of
from sm_jax.training._logging import FileLogger, Logger, RunLog
from sm_jax.training._options import Checkpoints, Evaluation
from sm_jax.training._parallel import check_divisible, data_mesh, replicate, replicated
from sm_jax.training._state import State, init
from sm_jax.training._step import LossFn, make_step

_STEPS_PER_DISPATCH = 50


def fit(
    loss_fn: LossFn,
    params: Any,
    data: Any | Batches,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int | None = None,
    seed: int,
    ema_decay: float = 0.999,
    ema_warmup: bool = True,
    evaluation: Evaluation | None = None,
    checkpoints: Checkpoints | None = None,
    logger: Logger | None = None,
    log_every: int = 100,
    progress: bool | None = None,
    steps_per_dispatch: int | None = None,
    device_data_bytes: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> State:
    """Train: repeat the step of ``make_step`` on batches of data.

    With ``k_t, k_d, k_e = split(jax.random.key(seed), 3)``, update ``n`` (from 0) is

        state_{n+1} = step(state_n, batch_n),    batch_n = data[batch_indices(k_d, n, N, B)],

    or ``batch_n = data.at(n)`` of a stream; the loss gets ``key = fold_in(k_t, n)``. All is a
    function of ``(seed, n)``, so a run that is resumed goes on as if it had never stopped (bit by
    bit on CPU). With several devices the batch is sharded over them and everything else replicated;
    batch and noise are the same as on one.

    Args:
        loss_fn: ``loss_fn(params, batch, key) -> [B]``, the un-reduced loss of each row.
        params: initial parameters, a pytree of floating arrays; left as they are.
        data: a pytree of arrays (NumPy, memory-mapped or JAX) with one leading axis of length
            ``N``, or a stream: an object with ``at(step) -> batch``, see ``Batches``. Arrays of 64
            bits become 32, unless JAX is set to 64: integers beyond int32 are refused, and floats
            that lose more than a thousandth of their spread warned of.
        optimizer: an Optax optimizer, such as ``training.adamw``.
        num_steps: number of updates at which to stop, counted from the start of the run, also of
            one that is resumed.
        batch_size: ``B``, rows per update over all devices; for arrays only, as a stream has its
            own.
        seed: seed of the order of the arrays and of the noise.
        ema_decay: see ``make_step``.
        ema_warmup: see ``make_step``.
        evaluation: what to evaluate, and when; nothing by default.
        checkpoints: where and when to save, and whether to resume; nothing is written by default.
        logger: an object with ``record(step, values)``, see ``Logger``, which gets every record as
            well as the files of the run directory do.
        log_every: number of steps between records of the loss and the norm of the gradient, each
            the mean over these steps.
        progress: True for a progress bar, False for nothing; by default a bar on a terminal, and a
            plain line every ten seconds elsewhere.
        steps_per_dispatch: the most steps in one dispatch to the device; by default 50, and 1 for a
            loss with convolutions on CPU, which XLA runs tens of times slower in a loop. Losses are
            checked, and the progress shown, once per dispatch.
        device_data_bytes: arrays of at most this many bytes stay on the devices; of others, each
            batch is gathered on the host. A quarter of a device's memory by default (2 GiB where
            the device does not tell).
        devices: the devices to use; all of them by default.

    Returns:
        The ``State`` after ``num_steps`` updates, replicated over the devices.

    Raises:
        ValueError: on bad arguments, a directory that cannot be used, or a resume whose
            configuration differs or whose newest checkpoint is beyond ``num_steps``, all before
            work starts; and on a stream whose batches change their shapes.
        TypeError: on arguments of other kinds, or if ``evaluation.fn`` returns no dict.
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
    _check_options(evaluation, checkpoints, logger)
    counts = {"num_steps": num_steps, "batch_size": batch_size, "log_every": log_every}
    counts["steps_per_dispatch"] = steps_per_dispatch
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    like = batch_like(data, batch_size)
    batch_size = len(jax.tree.leaves(like)[0])
    mesh = data_mesh(devices)
    check_divisible(batch_size, mesh)

    train_key, data_key, evaluation_key = jax.random.split(jax.random.key(seed), 3)
    # The copies make the state safe to donate: the caller's arrays are left alone.
    params = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
    state = replicate(init(params, optimizer, train_key), mesh)
    directory = None
    if checkpoints is not None:
        directory = files.prepare_directory(checkpoints.directory, resume=checkpoints.resume)
        config = {
            **checkpoints.config,
            "fit": {
                "batch_size": batch_size,
                "seed": seed,
                "num_examples": None if is_stream(data) else len(jax.tree.leaves(data)[0]),
                "ema_decay": ema_decay,
                "ema_warmup": ema_warmup,
            },
        }
        state = _resume_or_start(directory, state, config, num_steps, checkpoints)
    step = int(state.step)

    if steps_per_dispatch is None:
        slow = _is_cpu(mesh) and _has_convolutions(loss_fn, params, like, train_key)
        steps_per_dispatch = 1 if slow else _STEPS_PER_DISPATCH
    most = min(steps_per_dispatch, num_steps)
    source = source_of(data, like, data_key, mesh=mesh, most=most, limit=device_data_bytes)
    train_step = make_step(loss_fn, optimizer, ema_decay=ema_decay, ema_warmup=ema_warmup)
    dispatch = _dispatcher(train_step, source, mesh)
    evaluate = None if evaluation is None else _evaluator(evaluation, source, evaluation_key)
    periods = [group.every for group in (evaluation, checkpoints) if group is not None]
    period = math.gcd(*periods) if periods else steps_per_dispatch
    best_metric = None if checkpoints is None else checkpoints.best_metric

    with contextlib.ExitStack() as stack:
        loggers = [] if logger is None else [logger]
        manager = None
        if directory is not None and jax.process_index() == 0:
            file_logger = FileLogger(directory, step)
            loggers = [stack.enter_context(contextlib.closing(file_logger)), *loggers]
        log = RunLog(
            loggers if jax.process_index() == 0 else [],
            step=step,
            num_steps=num_steps,
            log_every=log_every,
            progress=progress,
        )
        stack.enter_context(contextlib.closing(log))
        if checkpoints is not None and directory is not None:
            manager = files.open_manager(
                directory,
                keep=checkpoints.keep,
                best_metric=best_metric,
                best_mode=checkpoints.best_mode,
            )
            stack.enter_context(files.closing(manager))
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

            saves = checkpoints is not None and _due(step, checkpoints.every, num_steps)
            looks = evaluation is not None and _due(step, evaluation.every, num_steps)
            looks = looks or (saves and best_metric is not None)
            if not (saves or looks):
                continue
            _read(log, *unread, manager)
            unread = None
            values: dict[str, float] = {}
            if looks and evaluate is not None:
                values, record = evaluate(jax.tree.map(jnp.copy, state.ema), step)
                log.record(step, record)
            if saves:
                files.save(manager, state, _best(values, best_metric))
        if unread is not None:
            _read(log, *unread, manager)
    return state


def _check_options(
    evaluation: Evaluation | None, checkpoints: Checkpoints | None, logger: Logger | None
) -> None:
    for name, group, kind in (
        ("evaluation", evaluation, Evaluation),
        ("checkpoints", checkpoints, Checkpoints),
    ):
        if group is not None and not isinstance(group, kind):
            raise TypeError(
                f"{name} must be a training.{kind.__name__}, got {group!r}: write "
                f"{name}=training.{kind.__name__}({group!r})"
            )
    if logger is not None and not callable(getattr(logger, "record", None)):
        raise TypeError(
            f"logger must have a method record(step, values), got {logger!r}: write a class with "
            "that method"
        )
    best_metric = None if checkpoints is None else checkpoints.best_metric
    if best_metric is not None and (evaluation is None or evaluation.fn is None):
        raise ValueError(
            f"best_metric {best_metric!r} is one of the values that evaluation.fn returns: give "
            "evaluation=training.Evaluation(fn)"
        )


def _is_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _has_convolutions(loss_fn: LossFn, params: Any, batch: Any, key: Array) -> bool:
    """Return whether the program of the loss of a batch has convolutions."""

    def primitives(program) -> Iterator[str]:
        for equation in getattr(program, "jaxpr", program).eqns:
            yield equation.primitive.name
            for inner in jaxprs_in_params(equation.params):
                yield from primitives(inner)

    return "conv_general_dilated" in primitives(jax.make_jaxpr(loss_fn)(params, batch, key))


def _resume_or_start(
    directory: pathlib.Path,
    state: State,
    config: Mapping[str, Any],
    num_steps: int,
    options: Checkpoints,
) -> State:
    """Return the state of the newest checkpoint, or start a run with the state given."""
    if files.has_checkpoints(directory):
        files.check_metadata(files.read_metadata(directory), state, config)
        state = files.restore(directory, state) or state
        if state.step > num_steps:
            raise ValueError(
                f"the run in {directory} is at step {state.step}, beyond num_steps={num_steps}: "
                f"resume it with num_steps={state.step} or more, or start a run in a new directory"
            )
    files.write_metadata(
        directory, state, config, best_metric=options.best_metric, best_mode=options.best_mode
    )
    return state


def _dispatcher(
    step: Callable[[State, Any], tuple[State, dict[str, Array]]], source: Source, mesh: Mesh
) -> Callable[[State, int, int], tuple[State, dict[str, Array]]]:
    """Return ``dispatch(state, start, length)``, which makes ``length`` steps from ``start`` on."""

    @partial(jax.jit, donate_argnums=0, out_shardings=replicated(mesh))
    def run(state, arrays, inputs):
        def body(state, x):
            return step(state, source.batch(arrays, x))

        # A single step is not wrapped in a loop, for the sake of convolutions on CPU.
        if jax.tree.leaves(inputs)[0].shape[0] == 1:
            state, metrics = body(state, jax.tree.map(lambda x: x[0], inputs))
            metrics = jax.tree.map(lambda m: m[None], metrics)
        else:
            state, metrics = jax.lax.scan(body, state, inputs)
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((state.params, state.ema))]
        return state, metrics | {"finite": jnp.stack(finite).all()}

    return lambda state, start, length: run(state, source.arrays, source.inputs(start, length))


def _evaluator(
    evaluation: Evaluation, source: Source, key: Array
) -> Callable[[Any, int], tuple[dict[str, float], dict[str, Any]]]:
    """Return ``evaluate(ema, step)``: the values of ``evaluation.fn``, and all to be recorded."""
    noise_level_loss_fn = evaluation.noise_level_loss_fn
    if noise_level_loss_fn is not None:
        noise_level_loss_fn = jax.jit(noise_level_loss_fn)

    def evaluate(ema, step):
        values, record = {}, {}
        if noise_level_loss_fn is not None:
            losses = noise_level_loss_fn(ema, source.at(step), jax.random.fold_in(key, step))
            record["noise_level_loss"] = np.asarray(losses, float).tolist()
        if evaluation.fn is not None:
            values = _evaluated(evaluation.fn(ema, step))
            record |= {f"eval/{name}": value for name, value in values.items()}
        return values, record

    return evaluate


def _dispatch_end(step: int, num_steps: int, period: int, most: int) -> int:
    """Return where the dispatch that begins at ``step`` ends: a function of the step alone.

    Each period is cut into the fewest parts of at most ``most`` steps, equal to within one step, so
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
    """Wait for a dispatch, log its steps, and raise if the run is no longer finite."""
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
            f"evaluation.fn must return a dict of floats, got {values!r}: return {{}} for none"
        )
    return {name: float(value) for name, value in values.items()}


def _best(values: Mapping[str, float], best_metric: str | None) -> dict[str, float] | None:
    if best_metric is None:
        return None
    if best_metric not in values:
        raise ValueError(
            f"best_metric {best_metric!r} is not among the values of evaluation.fn, "
            f"{sorted(values)}"
        )
    return {best_metric: values[best_metric]}
