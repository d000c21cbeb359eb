"""Features that are integers, or multiples of another step: their noise, and the way back.

An integer ``n`` is dequantized, ``n + u`` with ``u ~ U[0, 1)``, whose density is ``P(n)``
throughout the unit cell above ``n``: the mean log-density is then at most the mean log-probability
of the integers, which is minus the entropy. The same holds of numbers on any lattice,
``low + n q``, such as rounded ones, with cells of width ``q`` and the density ``P(n) / q`` (1). The
step ``q`` of integers is the largest common one: with cells of width 1 among multiples of 1000, a
density that is as wide as 1000 of them has the same likelihood as the probability of one.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

_LARGEST = 2.0**52  # above it float64 has no room for fractions
_MOST_STEPS = 10  # of the lattice, in the least distance of two of its points in the data
_MOST_DIGITS = 9  # after the decimal point


@dataclasses.dataclass(frozen=True, eq=False)
class Integers:
    """The features on a lattice, among those of one example.

    Attributes:
        where: true for each feature that is an integer, or a multiple of another step, ``[...]``.
        low: the least value of each feature in the training examples, ``[...]``.
        high: the largest.
        step: the distance of neighbors, ``[...]``.
    """

    where: np.ndarray
    low: np.ndarray
    high: np.ndarray
    step: np.ndarray

    @property
    def log_det(self) -> float:
        """What equation (1) adds to a log-density to bound a log-probability, ``sum log q``."""
        return float(np.log(self.step[self.where]).sum())

    def widths(self, scale: np.ndarray) -> np.ndarray:
        """Return the widths of the cells ``[...]`` after a division by ``scale``; 0 for none."""
        return np.where(self.where, self.step / scale, 0.0)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """Return numbers in the units of the data; those on a lattice are the cells' they lie in.

        Beyond the values of the training examples they get the nearest of these.
        """
        points = self.low + self.step * np.floor((x - self.low) / self.step)
        fine = 10.0 ** (9 - np.floor(np.log10(self.step)))  # 36.8, not 36.800000000000004
        points = np.where(self.step % 1, np.rint(points * fine) / fine, points)
        return np.where(self.where, np.clip(points, self.low, self.high), x)

    def to_dict(self) -> dict[str, Any]:
        """Return the features as JSON holds them."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Integers":
        """Return the features that ``to_dict`` wrote; those of earlier versions have the step 1."""
        where, low, high = (np.asarray(values[name]) for name in ("where", "low", "high"))
        return cls(where, low, high, np.asarray(values.get("step", np.ones(where.shape))))


def find(parts: list[np.ndarray]) -> np.ndarray:
    """Return the step ``[...]`` of each feature in all parts of the data ``[N, ...]``; 0 for none.

    Integers have one, and real numbers most of which are tied and all of which are multiples of it,
    from the least. Of examples of several axes, such as images, the step is that of all numbers:
    a pixel that is always 0 does not make integers of an image of real numbers.
    """
    shape = parts[0].shape[1:]
    steps = np.array([_step(column) for column in columns(parts)])
    return np.broadcast_to(steps if len(shape) == 1 else steps.reshape(()), shape)


def columns(parts: list[np.ndarray]) -> np.ndarray:
    """Return the features of vectors in all parts ``[features, N]``, or all numbers of images."""
    x = np.concatenate(parts)
    return x.reshape(-1, 1 if x.ndim > 2 else math.prod(x.shape[1:])).T


def _step(x: np.ndarray) -> float:
    """Return the largest step that all numbers are multiples of, from the least; 0 for none."""
    if len(x) > 1e6 and x.dtype.kind == "f" and not _step(x[:100_000]):
        return 0.0  # and it is not worth sorting them all
    values = np.unique(x)
    whole = x.dtype.kind in "biu" or (
        (values == np.floor(values)).all()
        and max(-values[0], values[-1]) <= _LARGEST  # beyond it all floats are whole
    )
    if whole:
        return float(math.gcd(*(int(value) - int(values[0]) for value in values)) or 1)
    return 0.0 if len(values) > len(x) / 2 else _step_of_reals(values)


def _step_of_reals(values: np.ndarray) -> float:
    """Return the step of increasing numbers, up to their rounding; 0 for none."""
    values = values.astype(np.float64)
    heights = values - values[0]
    with np.errstate(over="ignore"):
        single = (values.astype(np.float32) == values).all()
    for dtype in (np.float64, np.float32)[: 1 + single]:  # halves are exact in either
        rounding = 2.0 * np.finfo(dtype).eps * float(abs(values).max())
        for step in _candidates(heights):
            if step > 1000 * rounding:
                off = abs(heights - step * np.round(heights / step))
                if (off <= rounding).all():
                    return step
    return 0.0


def _candidates(heights: np.ndarray) -> Iterator[float]:
    """Yield steps to try: the least distance and its parts, and the last digit of decimals."""
    distances = np.diff(heights)
    if len(distances) == 0:
        return
    for parts in range(1, _MOST_STEPS + 1):
        exact = float(heights[-1] / np.round(distances * parts / distances.min()).sum())
        yield from (float(f"{exact:.3g}"), float(f"{exact:.6g}"), exact)  # 0.1, not 0.0999999
    yield from (10.0**-digits for digits in range(1, _MOST_DIGITS + 1))


def of(x: np.ndarray, step: np.ndarray) -> Integers | None:
    """Return the features of training examples on lattices, given their steps; None for none.

    Raises:
        ValueError: if numbers are so large that a unit is lost in their rounding.
    """
    where = step > 0
    if not where.any():
        return None
    low, high = np.min(x, axis=0).astype(float), np.max(x, axis=0).astype(float)
    too_large = where & (low < high) & (np.maximum(abs(low), abs(high)) > _LARGEST)
    if too_large.any():
        raise ValueError(
            f"{names(too_large)} of the data: integers beyond 2**52 cannot be dequantized. "
            "Subtract the least, leave out what is only a name, or say --integers real"
        )
    return Integers(where, low, high, np.where(where, step, 1.0))


def kinds(integers: Integers, where: np.ndarray) -> list[str]:
    """Return words for what some features are, such as "columns 1, 4: multiples of 0.1"."""
    said = []
    for step in np.unique(integers.step[where]):
        these = where & (integers.step == step)
        quotients = integers.low[these] / step
        aligned = np.allclose(quotients, np.round(quotients), rtol=1e-9, atol=1e-6)
        kind = f"{'multiples' if aligned else 'steps'} of {step:.6g}"
        said.append(f"{names(these)}: {'integers' if aligned and step == 1 else kind}")
    return said


def names(where: np.ndarray) -> str:
    """Return words for some features of a vector, counted from 1, or of any other shape."""
    if where.ndim != 1:
        return f"{where.sum()} of {where.size} numbers"
    if where.all() and len(where) > 1:
        return f"all {len(where)} columns"
    numbers = (np.flatnonzero(where) + 1).tolist()
    more = ", ..." if len(numbers) > 8 else ""
    return f"column{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:8]))}{more}"
