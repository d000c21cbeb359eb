"""Features that are integers: which they are, their noise, and the way back.

An integer `n` is dequantized, `n + u` with `u ~ U[0, 1)`, whose density is `P(n)` throughout the
unit cell above `n`: the mean log-density is then at most the mean log-probability of the integers,
which is minus the entropy. A feature that is constant has no density either. It is taken as an
integer, so that its one value has the probability 1 and adds nothing.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LARGEST = 2.0**52  # above it float64 has no room for fractions


@dataclasses.dataclass(frozen=True, eq=False)
class Integers:
    """The integer features, among those of one example.

    Attributes:
        where: true for each feature that is an integer, `[...]`.
        low: the least value of each feature in the training examples, `[...]`.
        high: the largest.
    """

    where: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def dequantized(self, rows: jax.Array, key: jax.Array, scale: np.ndarray) -> jax.Array:
        """Spreads standardized rows over their cells, of width `1 / scale`, with fresh noise."""
        width = jnp.asarray(np.where(self.where, 1 / scale, 0.0), rows.dtype)
        return rows + width[None] * jax.random.uniform(key, rows.shape, rows.dtype)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """Returns numbers in the units of the data; integers are the cells' that they lie in.

        Beyond the values of the training examples they get the nearest of these.
        """
        return np.where(self.where, np.clip(np.floor(x), self.low, self.high), x)

    def to_dict(self) -> dict[str, Any]:
        """Returns the features as JSON holds them."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Integers":
        """Returns the features that `to_dict` wrote."""
        where, low, high = (np.asarray(values[name]) for name in ("where", "low", "high"))
        return cls(where, low, high)


def find(parts: list[np.ndarray]) -> np.ndarray:
    """Returns which features `[...]` hold whole numbers only, in all parts of the data `[N, ...]`.

    Of examples of several axes, such as images, these are all numbers or none: a pixel that is
    always 0 does not make integers of an image of real numbers.
    """
    whole = np.logical_and.reduce([_whole(x) for x in parts])
    return whole if whole.ndim < 2 else np.full(whole.shape, whole.all())


def _whole(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "biu":
        return np.ones(x.shape[1:], bool)
    return (x == np.floor(x)).all(axis=0)


def constant(x: np.ndarray) -> np.ndarray:
    """Returns which features `[...]` of `[N, ...]` have one value, but for rounded fractions."""
    low, high = np.min(x, axis=0).astype(float), np.max(x, axis=0).astype(float)
    spacing = np.where(_whole(x), 0.0, np.finfo(x.dtype).eps if x.dtype.kind == "f" else 0.0)
    return high - low <= 4 * spacing * np.maximum(abs(low), abs(high))


def of(x: np.ndarray, where: np.ndarray) -> Integers | None:
    """Returns the integer features of training examples, given which they are; None for none.

    Raises:
        ValueError: if numbers are so large that a unit is lost in their rounding.
    """
    if not where.any():
        return None
    low, high = np.min(x, axis=0).astype(float), np.max(x, axis=0).astype(float)
    too_large = where & (np.maximum(abs(low), abs(high)) > _LARGEST)
    if too_large.any():
        raise ValueError(
            f"{names(too_large)} of the data: integers beyond 2**52 cannot be dequantized. "
            "Subtract the least, leave out what is only a name, or say --integers real"
        )
    return Integers(where, low, high)


def names(where: np.ndarray) -> str:
    """Returns words for some features of a vector, counted from 1, or of any other shape."""
    if where.ndim != 1:
        return f"{where.sum()} of {where.size} numbers"
    if where.all() and len(where) > 1:
        return f"all {len(where)} columns"
    numbers = (np.flatnonzero(where) + 1).tolist()
    more = ", ..." if len(numbers) > 8 else ""
    return f"column{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:8]))}{more}"
