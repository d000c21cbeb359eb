"""What is decided from the data: the scaling by which they enter the network, and the way back.

The network never sees the data as they are stored: 8-bit values are dequantized and scaled to
[-1, 1], all else is standardized, after dequantization where it is integers or multiples of another
step. The noise of dequantization is drawn afresh at each use. Constant columns are left out. A
``Problem`` holds what was decided from the data; with the configuration it is all that is needed to
rebuild the network, and ``config.json`` keeps both.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.shared.integers import Integers
from sm_jax import data, processes


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is decided from the data.

    Attributes:
        event_shape: the shape of one example, as the network sees it.
        sigma_data: standard deviation of the scaled data, over all numbers.
        sigma_min: the smallest noise level, in units of the scaled data.
        sigma_max: the largest.
        num_values: the number of values of quantized data, such as 8-bit ones; they are scaled to
            [-1, 1]. None for all other numbers.
        standardizer: the scaling of all other numbers; None where they are taken as they are.
        num_labels: the number of labels, 0 to ``num_labels - 1``; None for an unconditional run.
        limits: the least and the largest of the data, in their own units, to show images by; None
            where they fill the range of their values.
        integers: the standardized features that are integers, or multiples of another step; None
            for none, and for quantized data.
        label_names: what the labels are called by the user; None in runs of earlier versions,
            where they are called by their numbers.
        mean: mean of the scaled data, ``[...]`` or 0, where the noise of the prior is centered.
        kept: the features that vary, counted in one vector, where others are real numbers that are
            constant; None for all. Constant columns the network does not see; constant pixels it
            sees as noise of unit variance, whatever they are.
    """

    event_shape: tuple[int, ...]
    sigma_data: float
    sigma_min: float
    sigma_max: float
    num_values: int | None = None
    standardizer: data.Standardizer | None = None
    num_labels: int | None = None
    limits: tuple[float, float] | None = None
    integers: Integers | None = None
    label_names: tuple[str, ...] | None = None
    mean: float | np.ndarray = 0.0
    kept: tuple[int, ...] | None = None

    @property
    def num_dims(self) -> int:
        """The number of numbers in one example."""
        return math.prod(self.event_shape)

    @property
    def process(self) -> processes.VE:
        """The noising process of training, sampling and likelihood."""
        return processes.VE(self.sigma_min, self.sigma_max, mean=self.mean)

    @property
    def is_image(self) -> bool:
        """Whether an example can be shown as an image, ``[H, W]`` or ``[H, W, 1 or 3]``."""
        shape = self.event_shape
        return len(shape) in (2, 3) and min(shape[:2]) >= 4 and shape[2:] in ((), (1,), (3,))

    @property
    def log_det(self) -> float:
        """What to add to a log-density of scaled data for one in the units of the data, in nats.

        The unit of an integer is its cell, so that its log-density bounds a log-probability.
        """
        if self.num_values:
            return data.dequantize_log_det(self.num_values, self.num_dims)
        cells = self.integers.log_det if self.integers else 0.0
        return cells + (float(self.standardizer.log_det) if self.standardizer else 0.0)

    @property
    def real(self) -> np.ndarray:
        """Which standardized features ``[...]`` are real numbers, neither integers nor left out."""
        real = np.ones(np.shape(self.standardizer.mean), bool)
        if self.integers:
            real &= ~self.integers.where
        return real & ~self.left_out

    @property
    def left_out(self) -> np.ndarray:
        """Which standardized features ``[...]`` are constant, and no part of the density."""
        left_out = np.full(np.shape(self.standardizer.mean), self.kept is not None)
        if self.kept is not None:
            left_out.flat[list(self.kept)] = False
        return left_out

    @property
    def shortened(self) -> bool:
        """Whether the network sees fewer numbers than there are in one example."""
        return self.kept is not None and np.ndim(self.standardizer.mean) == 1

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Return stored examples as ``fit`` keeps them: quantized, or standardized float32."""
        if self.standardizer:
            x = self._kept(self.standardizer(x))
            if self.kept is not None and not self.shortened:
                x = np.where(self.left_out, -math.sqrt(3), x)  # as ``scaled`` adds U[0, sqrt(12))
        return np.asarray(x, np.float32)

    def _kept(self, x: np.ndarray) -> np.ndarray:
        return x[..., list(self.kept)] if self.shortened else x

    def batch(self, x: np.ndarray, labels: np.ndarray | None) -> Any:
        """Return stored examples and their labels as the loss takes them: see ``ScoreModel``."""
        rows = self.rows(x)
        return rows if labels is None else (rows, labels)

    def scaled(self, rows: jax.Array, key: jax.Array) -> jax.Array:
        """Return rows as the network sees them; integers are dequantized with fresh noise."""
        if self.num_values:
            return data.dequantize(rows, key, num_values=self.num_values)
        if self.integers:
            widths = self._kept(self.integers.widths(self.standardizer.scale))
            widths = jnp.asarray(widths, rows.dtype)[None]
            return rows + widths * jax.random.uniform(key, rows.shape, rows.dtype)
        return rows

    def unscaled(self, x: np.ndarray) -> np.ndarray:
        """Return scaled numbers, such as samples, in the units of the data."""
        x = np.asarray(x)
        if self.num_values:
            values = np.asarray(data.quantize(x, num_values=self.num_values))
            return values.astype(np.min_scalar_type(self.num_values - 1))
        if self.shortened:
            seen, x = x, np.zeros((len(x), len(self.left_out)), x.dtype)
            x[:, list(self.kept)] = seen
        x = self.standardizer.inverse(x) if self.standardizer else x
        return self.integers.rounded(x) if self.integers else x

    @property
    def labels(self) -> tuple[str, ...]:
        """What the labels 0, 1, 2, ... are called; empty for an unconditional run."""
        return self.label_names or tuple(map(str, range(self.num_labels or 0)))

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as JSON holds it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("standardizer", "integers"):
            if values[name] is not None:
                values[name] = values[name].to_dict()
        mean = np.asarray(self.mean).tolist()
        return values | {"event_shape": list(self.event_shape), "mean": mean}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Problem":
        """Return the problem that ``to_dict`` wrote."""
        standardizer = values["standardizer"]
        if standardizer is not None:
            standardizer = data.Standardizer.from_dict(standardizer)
        # Runs of earlier versions have none of these.
        limits, integers, names, kept = map(
            values.get, ("limits", "integers", "label_names", "kept")
        )
        return cls(
            **values
            | {
                "event_shape": tuple(values["event_shape"]),
                "standardizer": standardizer,
                "limits": None if limits is None else tuple(limits),
                "integers": None if integers is None else Integers.from_dict(integers),
                "label_names": None if names is None else tuple(names),
                "mean": np.asarray(values.get("mean", 0.0), np.float32),
                "kept": None if kept is None else tuple(kept),
            }
        )
