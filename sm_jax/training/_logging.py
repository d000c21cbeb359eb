"""Records of a run: ``metrics.jsonl``, TensorBoard, other loggers, and its progress."""

import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from sm_jax.training._files import write_text

_LINE_SECONDS = 10.0
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Logger(Protocol):
    """Where the records of a run go, besides the files of its directory.

    ``fit`` calls it on the first process only. A run that is resumed records anew what came after
    its last checkpoint.

    Example:
        >>> class Printer:
        ...     def record(self, step, values):
        ...         print(step, values)
        >>> Printer().record(100, {"loss": 0.5})
        100 {'loss': 0.5}
    """

    def record(self, step: int, values: Mapping[str, Any], /) -> None:
        """Take the values of one step.

        Args:
            step: the number of updates made.
            values: floats by their names, nan included, and lists of floats for what has one value
                per noise level.
        """
        ...


class FileLogger:
    """Record to ``metrics.jsonl`` and to TensorBoard.

    ``metrics.jsonl`` holds one object per line: ``"step"`` and the values; null stands for a value
    that is not finite. TensorBoard gets the same scalars.
    """

    def __init__(self, directory: pathlib.Path, step: int):
        """Open the files at a step; drop the records of later steps, from an interrupted run."""
        from tensorboardX import SummaryWriter  # slow to import

        path = directory / "metrics.jsonl"
        _drop_after(path, step)
        self._file = path.open("a")
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the values of one step."""
        values = {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            scalars = (
                {f"{name}/{i}": v for i, v in enumerate(value)}
                if isinstance(value, list)
                else {name: value}
            )
            for tag, scalar in scalars.items():
                if scalar is not None:
                    self._writer.add_scalar(tag, scalar, step)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        self._writer.close()


class RunLog:
    """Average the losses of a run for its loggers, and show its progress."""

    def __init__(
        self,
        loggers: Sequence[Logger],
        *,
        step: int,
        num_steps: int,
        log_every: int,
        progress: bool | None,
    ):
        """Start at a step."""
        first = jax.process_index() == 0
        self._loggers, self._bar = loggers, None
        self._num_steps, self._log_every = num_steps, log_every
        self._window: list[tuple[float, float]] = []
        self._clock = self._last_line = time.monotonic()
        if progress is None:
            progress = sys.stderr.isatty()
            self._lines = first and not progress
        else:
            self._lines = False
        if progress and first:
            from tqdm import tqdm

            self._bar = tqdm(total=num_steps, initial=step, unit=" steps", bar_format=_BAR)

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """Hand the values of one step to every logger."""
        for logger in self._loggers:
            logger.record(step, values)

    def steps(self, start: int, losses: np.ndarray, norms: np.ndarray) -> None:
        """Take the losses and gradient norms of the steps after ``start``; show the progress."""
        now = time.monotonic()
        rate = losses.size / max(now - self._clock, 1e-9)
        self._clock = now
        for step, pair in enumerate(zip(losses.tolist(), norms.tolist(), strict=True), start + 1):
            self._window.append(pair)
            if step % self._log_every == 0 or step == self._num_steps:
                loss, norm = np.mean(self._window, axis=0).tolist()
                self.record(step, {"loss": loss, "grad_norm": norm, "steps_per_second": rate})
                self._window = []
        self._show(start + losses.size, float(losses[-1]), rate)

    def restart_clock(self) -> None:
        """Leave the time until now out of the steps per second."""
        self._clock = time.monotonic()

    def close(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, step: int, loss: float, rate: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._lines:
            now = time.monotonic()
            if now - self._last_line > _LINE_SECONDS or step == self._num_steps:
                self._last_line = now
                left = (self._num_steps - step) / rate
                print(
                    f"step {step}/{self._num_steps}  loss {loss:.4g}  {rate:.4g} steps/s  "
                    f"{int(left) // 60}:{int(left) % 60:02d} left",
                    file=sys.stderr,
                    flush=True,
                )


def _drop_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            keep = json.loads(line)["step"] <= step
        except ValueError:  # cut short when the run was killed
            keep = False
        if keep:
            kept.append(line)
    write_text(path, "".join(kept))


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value if math.isfinite(value) else None
