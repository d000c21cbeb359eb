"""Two programs timed in turn: the ratio of their times, their memory, and the table of both.

Every row compares two compiled programs that are timed in turn, round after round, and reports the
median of the ratios of the rounds: what else the machine does then touches both alike. The floor is
the ratio of the operations that must be done; memory is the peak of temporary buffers that XLA
plans for the compiled program.
"""

import dataclasses
import os
import time
from collections.abc import Callable

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

HEADER = ["program", "ms", "floor", "reach", "ratio", "met", "temporary MB"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: a program, the one it is measured against, and what is to be reached."""

    name: str
    program: Callable
    baseline: Callable
    floor: float
    reach: float
    calls: int = 1  # evaluations in one call of the program, where each counts


def measure(row: Row, rounds: int) -> tuple[float, float, float, float]:
    """Return the median time (s), the ratio to the baseline, and both peaks of memory (bytes)."""
    compiled = [jax.jit(f).lower().compile() for f in (row.baseline, row.program)]
    times = np.array([[seconds(f) for f in compiled] for _ in range(rounds + 2)])[2:]
    times[:, 1] /= row.calls
    ratio = float(np.median(times[:, 1] / times[:, 0]))
    memory = [f.memory_analysis().temp_size_in_bytes for f in compiled]
    return float(np.median(times[:, 1])), ratio, memory[1], memory[0]


def seconds(function: Callable) -> float:
    """Return the time of one call, until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def cells(row: Row, seconds, ratio, memory, base_memory) -> list[str]:
    """Return the cells of a row of the table; unknown memory is left out."""
    share = "" if not memory else f"{memory / 1e6:.1f}"
    share += "" if not base_memory else f" ({memory / base_memory:.1f}x)"
    met = "yes" if ratio <= row.reach else "no"
    return [
        row.name,
        f"{seconds * 1e3:.2f}",
        f"{row.floor:.3g}",
        f"{row.reach:.4g}",
        f"{ratio:.2f}",
        met,
        share,
    ]


def show(results) -> None:
    """Print the table."""
    table = Table(title="ratios to denoising (or as named), medians of one run")
    for column in HEADER:
        table.add_column(column, justify="left" if column == "program" else "right")
    for result in results:
        table.add_row(*cells(*result))
    Console().print(table)


def cores():
    """Return the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
