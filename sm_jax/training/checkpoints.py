"""Checkpoints of a run: asynchronous, atomic, the last few and the best, with a metadata file.

A run directory holds

    metadata.json            the format's version, the configuration, the layout of the state,
                             the versions of the libraries; written before the first step
    checkpoints/STEP/ema     the parameter average, which is what sampling needs
    checkpoints/STEP/live    parameters, optimizer state, step and key
    checkpoints/STEP/metrics the metric by which the best is kept

Orbax writes a checkpoint under another name and renames it when complete. Restoring goes into the
layout and the shardings of the state in hand, so that what 8 devices saved loads on one, and the
reverse. Nothing is pickled.
"""

import contextlib
import functools
import logging
import math
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from sm_jax.training._compare import differences, layout
from sm_jax.training._files import write_text
from sm_jax.training._metadata import check_metadata, read_metadata, write_metadata
from sm_jax.training._options import check_kept
from sm_jax.training._state import State, ema_dtype

__all__ = [
    "best_step",
    "check_metadata",
    "closing",
    "has_checkpoints",
    "open_manager",
    "prepare_directory",
    "read_metadata",
    "restore",
    "restore_params",
    "save",
    "write_metadata",
    "write_text",
]


def prepare_directory(directory: str | os.PathLike, *, resume: bool = False) -> pathlib.Path:
    """Make a run directory, or raise before any work starts.

    Args:
        directory: where the run is to write; parents are made. It must be empty, but for a
            ``config.json``, which a script may write first.
        resume: whether the directory may hold an earlier run, to be continued.

    Returns:
        The absolute path.

    Raises:
        ValueError: naming the reason: the directory cannot be written, or is not empty and
            ``resume`` is false.

    Example:
        >>> import tempfile
        >>> prepare_directory(tempfile.mkdtemp()).is_absolute()
        True
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    if jax.process_index() != 0:
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        content = sorted(path.name for path in directory.iterdir() if path.name != "config.json")
    except OSError as error:
        raise ValueError(
            f"cannot write to the run directory {directory} ({error.strerror}): "
            "choose another one, or change its permissions"
        ) from error
    if content and not resume:
        raise ValueError(
            f"the run directory {directory} is not empty (it holds {', '.join(content[:3])}): "
            "choose another one, or continue the run in it (resume=True, or --resume in a shell)"
        )
    return directory


def open_manager(
    directory: pathlib.Path,
    *,
    keep: int = 3,
    best_metric: str | None = None,
    best_mode: str = "min",
) -> ocp.CheckpointManager:
    """Open the checkpoints of a run for writing.

    Args:
        directory: the run directory, absolute.
        keep: how many of the newest checkpoints are kept.
        best_metric: a metric; the checkpoint where it is best is kept as well.
        best_mode: "min" or "max", whichever is better.

    Returns:
        An Orbax ``CheckpointManager``; put it under ``closing``, which waits for and reports the
        last save.

    Raises:
        ValueError: if ``keep`` or ``best_mode`` is out of range.
    """
    check_kept(keep, best_mode)
    kept = [checkpoint_managers.LatestN(keep)]
    score = None
    if best_metric is not None:
        score = functools.partial(_score, metric=best_metric, mode=best_mode)
        best = checkpoint_managers.BestN(
            get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
        )
        kept.append(best)
    return ocp.CheckpointManager(
        directory / "checkpoints",
        options=ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            best_fn=score,
            best_mode="max",
            cleanup_tmp_directories=True,
        ),
    )


def save(
    manager: ocp.CheckpointManager, state: State, metrics: Mapping[str, float] | None = None
) -> None:
    """Start to save a state; the state may be donated as soon as this returns.

    Args:
        manager: the manager of ``open_manager``.
        state: the state; its step names the checkpoint.
        metrics: with ``best_metric``, the values at this step; nan counts as the worst.

    Raises:
        OSError: if this checkpoint, or the one before it, which is written in the background,
            cannot be written, as on a full disk.
    """
    items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
    with _writing(manager.directory):
        manager.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics)


@contextlib.contextmanager
def closing(manager: ocp.CheckpointManager) -> Iterator[ocp.CheckpointManager]:
    """Close a manager at the end of a ``with`` block, which waits for its last save.

    Args:
        manager: the manager of ``open_manager``.

    Raises:
        OSError: if that checkpoint cannot be written. An error within the block is not replaced.
    """
    try:
        yield manager
    except Exception:
        with contextlib.suppress(Exception):  # the first error is the one to report
            manager.close()
        raise
    except BaseException:  # an interruption: the last save is still waited for
        with _writing(manager.directory):
            manager.close()
        raise
    with _writing(manager.directory):
        manager.close()


@contextlib.contextmanager
def _writing(checkpoints: os.PathLike) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax has no class of errors for a full disk.
        directory = pathlib.Path(checkpoints).parent
        steps = _steps(directory)
        kept = f"the last complete one, of step {steps[0]}, is kept" if steps else "there is none"
        full = "No space left on device"
        reason = full if full in str(error) else error
        raise OSError(f"a checkpoint in {directory} cannot be written: {reason}; {kept}") from error


def has_checkpoints(directory: pathlib.Path) -> bool:
    """Return whether a run directory holds a complete checkpoint.

    Args:
        directory: a run directory.
    """
    return bool(_steps(directory))


def restore(directory: pathlib.Path, like: State) -> State | None:
    """Restore the newest checkpoint that can be read.

    A damaged one is set aside as ``checkpoints/STEP.damaged``, with a warning.

    Args:
        directory: the run directory, absolute.
        like: a state of the same layout; each array is restored into the sharding of its
            counterpart.

    Returns:
        The state, or None if the run has no checkpoint.

    Raises:
        ValueError: if there are checkpoints and none can be read.
    """
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _items(like)
    )
    steps = _steps(directory)
    for step in steps:
        try:
            items = _read(directory, step, abstract)
        except Exception as error:  # Orbax has no class of errors for damage.
            _set_aside(directory, step, error)
        else:
            _set_aside_unreadable_metrics(directory)
            return State(ema=items["ema"]["params"], **items["live"])
    if steps:
        raise ValueError(
            f"none of the checkpoints {steps} in {directory} can be read (they are set aside as "
            "STEP.damaged): start a run in a new directory"
        )
    return None


def restore_params(directory: str | os.PathLike, like: Any, *, best: bool = False) -> Any:
    """Load the averaged parameters of a run, for sampling and evaluation.

    Nothing is written, so this is safe beside a run in progress.

    Args:
        directory: the run directory.
        like: parameters of the same structure and shapes, arrays or ``jax.ShapeDtypeStruct``s; a
            leaf that has a sharding is restored into it.
        best: whether to load the checkpoint with the best metric, rather than the newest. One
            saved without it is passed over, and one whose metric cannot be read too, with a
            warning; if none is left, the newest is loaded, with another.

    Returns:
        The averaged parameters, in float32 at least.

    Raises:
        ValueError: if the directory holds no run, no checkpoint yet or no readable one, parameters
            of another layout, or, with ``best``, a run without a ``best_metric``.

    Example:
        >>> import jax.numpy as jnp, optax, tempfile
        >>> from sm_jax.training import Checkpoints, fit
        >>> run = tempfile.mkdtemp()
        >>> state = fit(lambda p, x, key: (x - p) ** 2, jnp.zeros(()), jnp.ones(8), seed=0,
        ...             optimizer=optax.sgd(0.1), num_steps=4, batch_size=8, progress=False,
        ...             checkpoints=Checkpoints(run))
        >>> bool(restore_params(run, jnp.zeros(())) == state.ema)
        True
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    metadata = read_metadata(directory)
    device = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, ema_dtype(x.dtype), sharding=getattr(x, "sharding", None) or device
        ),
        like,
    )
    saved = {k: v for k, v in metadata["state"].items() if k.startswith(".ema")}
    changed = differences(saved, {".ema" + k: v for k, v in layout(abstract).items()})
    if changed:
        raise ValueError(
            f"the parameters in {directory} have another layout: {'; '.join(changed[:8])}. "
            "Build the model that was trained"
        )
    steps = _some_steps(directory)
    order = _best_first(directory, steps, metadata["best"]) if best else steps
    if not order:
        warnings.warn(
            f"no checkpoint in {directory} has a metric that can be read, of {steps}: the newest "
            "is taken instead of the best",
            stacklevel=2,
        )
        order = steps
    for step in order:
        try:
            return _read(directory, step, {"ema": {"params": abstract}})["ema"]["params"]
        except Exception as error:  # Orbax has no class of errors for damage.
            warnings.warn(
                f"checkpoint {step} in {directory} is damaged, trying the one "
                f"{'that is next best' if best else 'before'}: {error!r}",
                stacklevel=2,
            )
    raise ValueError(f"no checkpoint in {directory} can be read, of {order}")


def best_step(directory: str | os.PathLike) -> int:
    """Return the step of the checkpoint with the best metric.

    Args:
        directory: the run directory.

    Returns:
        The step, as ``restore_params(..., best=True)`` takes it unless its checkpoint is damaged. A
        checkpoint saved without the metric is passed over, and one whose metric cannot be read
        too, with a warning.

    Raises:
        ValueError: if the directory holds no run, one without a ``best_metric``, or without a
            checkpoint whose metric can be read.

    Example:
        >>> import jax.numpy as jnp, optax, tempfile
        >>> from sm_jax.training import Checkpoints, Evaluation, fit
        >>> run = tempfile.mkdtemp()
        >>> state = fit(lambda p, x, key: (x - p) ** 2, jnp.zeros(()), jnp.ones(8), seed=0,
        ...             optimizer=optax.sgd(0.1), num_steps=4, batch_size=8, progress=False,
        ...             evaluation=Evaluation(lambda ema, step: {"far": abs(step - 2)}),
        ...             checkpoints=Checkpoints(run, every=2, best_metric="far"))
        >>> best_step(run)
        2
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    best = read_metadata(directory)["best"]
    steps = _some_steps(directory)
    order = _best_first(directory, steps, best)
    if not order:
        raise ValueError(
            f"no checkpoint in {directory} has a metric that can be read, of {steps}: "
            "restore_params takes the newest"
        )
    return order[0]


def _items(state: State) -> dict[str, Any]:
    live = state._asdict()
    return {"ema": {"params": live.pop("ema")}, "live": live}


def _read(directory: pathlib.Path, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
    args = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
    with _silence(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        path = directory / "checkpoints" / str(step)
        return dict(reader.restore(path, args=ocp.args.Composite(**args)))


def _steps(directory: pathlib.Path) -> list[int]:
    """Return the steps of all complete checkpoints, newest first."""
    path = directory / "checkpoints"
    return sorted(ocp.utils.checkpoint_steps(path), reverse=True) if path.is_dir() else []


def _some_steps(directory: pathlib.Path) -> list[int]:
    steps = _steps(directory)
    if not steps:
        raise ValueError(
            f"the run in {directory} has no checkpoint yet: let it train until its first, or "
            "resume it"
        )
    return steps


def _metrics(directory: pathlib.Path, step: int) -> dict[str, float]:
    """Return the metrics of a checkpoint, {} if it was saved without."""
    path = directory / "checkpoints" / str(step) / "metrics"
    if not path.exists():
        return {}
    with _silence(), ocp.Checkpointer(ocp.JsonCheckpointHandler(filename="metrics")) as reader:
        return reader.restore(path)


def _best_first(directory: pathlib.Path, steps: list[int], best: Mapping[str, Any]) -> list[int]:
    """Return the steps with the metric, the best first; warns where it cannot be read."""
    if best["metric"] is None:
        raise ValueError(f"the run in {directory} kept no best checkpoint: it had no best_metric")
    values = {}
    for step in steps:
        try:
            metrics = _metrics(directory, step)
            if best["metric"] in metrics:  # else of an earlier part of the run, without it
                values[step] = _score(metrics, **best)
        except Exception as error:  # As in `restore`.
            warnings.warn(
                f"the metric of checkpoint {step} in {directory} cannot be read, so that it cannot "
                f"be the best: {error!r}",
                stacklevel=3,
            )
    return sorted(values, key=values.__getitem__, reverse=True)


def _score(metrics: Mapping[str, float], metric: str, mode: str) -> float:
    """Return what is larger for a better checkpoint, the least of all where there is no metric."""
    value = metrics.get(metric, math.nan)
    return -math.inf if math.isnan(value) else value if mode == "max" else -value


def _set_aside(directory: pathlib.Path, step: int, error: Exception) -> None:
    warnings.warn(
        f"checkpoint {step} in {directory} is damaged; it is set aside as {step}.damaged, and the "
        f"one before is used: {error!r}",
        stacklevel=3,
    )
    if jax.process_index() == 0:
        path = directory / "checkpoints" / str(step)
        path.rename(path.with_name(f"{step}.damaged"))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("sm_jax: damaged checkpoint set aside")


def _set_aside_unreadable_metrics(directory: pathlib.Path) -> None:
    """Set aside what a manager that tracks the best could not open."""
    if read_metadata(directory)["best"]["metric"] is not None:
        for step in _steps(directory):
            try:
                _metrics(directory, step)
            except Exception as error:  # As above.
                _set_aside(directory, step, error)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Orbax from logging the damage that our caller reports."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
