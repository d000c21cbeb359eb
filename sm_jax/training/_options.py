"""Groups of options of ``fit``: where and when it saves, and what it evaluates."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from sm_jax._checks import check_count


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Save a run to a directory, and resume it from there.

    The directory also gets ``metadata.json`` and the records of the run: ``metrics.jsonl`` and
    ``tensorboard/``.

    Args:
        directory: the run directory. It must be new or empty, unless ``resume`` is true.
        every: number of steps between checkpoints; the last step is always saved.
        keep: number of newest checkpoints to keep.
        best_metric: name of a value of ``Evaluation.fn``. The checkpoint where it is best is kept
            as well, and every checkpoint is evaluated.
        best_mode: ``"min"`` or ``"max"``, whichever is better.
        resume: whether to go on from the newest checkpoint in the directory, if there is one.
        config: anything else that must not change when the run is resumed, such as the size of the
            model; numbers, strings, lists and dicts, kept in ``metadata.json``.

    Raises:
        ValueError: ``every`` or ``keep`` is below 1, or ``best_mode`` is neither of the two.
        TypeError: ``every`` or ``keep`` is not an integer.

    Example:
        >>> Checkpoints("runs/first", every=500, resume=True).keep
        3
    """

    directory: str | os.PathLike
    _: dataclasses.KW_ONLY
    every: int = 1000
    keep: int = 3
    best_metric: str | None = None
    best_mode: str = "min"
    resume: bool = False
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_count("every", self.every)
        check_kept(self.keep, self.best_mode)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluate the averaged parameters while a run trains.

    Args:
        fn: ``fn(ema, step) -> dict`` of floats; each is recorded as ``"eval/NAME"``. It may keep
            ``ema``.
        every: number of steps between evaluations; the last step is always evaluated.
        noise_level_loss_fn: ``noise_level_loss_fn(ema, batch, key) -> [L]``, the mean loss at each
            of ``L`` noise levels; recorded as ``"noise_level_loss"``. It is jitted.

    Raises:
        ValueError: there is nothing to evaluate, or ``every`` is below 1.
        TypeError: a function cannot be called, or ``every`` is not an integer.

    Example:
        >>> Evaluation(lambda ema, step: {"norm": float(abs(ema).sum())}, every=500).every
        500
    """

    fn: Callable[[Any, int], Mapping[str, float]] | None = None
    _: dataclasses.KW_ONLY
    every: int = 1000
    noise_level_loss_fn: Callable[[Any, Any, Array], Array] | None = None

    def __post_init__(self):
        check_count("every", self.every)
        functions = {"fn": self.fn, "noise_level_loss_fn": self.noise_level_loss_fn}
        if all(function is None for function in functions.values()):
            raise ValueError("Evaluation has nothing to evaluate: give fn or noise_level_loss_fn")
        for name, function in functions.items():
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function, got {function!r}")


def check_kept(keep: int, best_mode: str) -> None:
    """Raise unless these choose the checkpoints to keep."""
    check_count("keep", keep)
    if best_mode not in ("min", "max"):
        raise ValueError(f'best_mode must be "min" or "max", got {best_mode!r}')
