"""From a configuration and data to what a model has to know of them, and the way back.

The network never sees the data as they are stored: 8-bit levels are dequantized and scaled to
[-1, 1], all else is standardized, after dequantization where it is integers or multiples of another
step. The noise of dequantization is drawn afresh at each use. Constant columns are left out. A
`Problem` holds what was decided from the data; with the configuration it is all that is needed to
rebuild the network, and `config.json` keeps both.
"""

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _integers
from experiments._config import Array, Config, Digits, Toy
from experiments._examples import Examples
from experiments._keys import named
from sm_jax import (
    data,
    noise_levels,
    processes,
)

DIGIT_VALUES, IMAGE_VALUES = 17, 256


@dataclasses.dataclass(frozen=True)
class Problem:
    """What the data decide.

    Attributes:
        event_shape: the shape of one example, as the network sees it.
        num_values: the number of levels of 8-bit data and digits; None for all other numbers.
        standardizer: the scaling of all other numbers; None for levels and for the toys.
        sigma_data: standard deviation of the scaled data, over all numbers.
        sigma_min: the smallest noise level, in units of the scaled data.
        sigma_max: the largest.
        num_labels: the number of labels, 0 to `num_labels - 1`; None for an unconditional run.
        limits: the least and the largest of standardized data and of levels of `array`, in their
            own units, to show images by; None for all other recipes.
        integers: the standardized features that are integers, or multiples of another step; None
            for none, and for levels.
        label_names: what the labels are called by the user; None in runs of earlier versions,
            where they are called by their numbers.
        mean: mean of the scaled data, `[...]` or 0, where the noise of the prior is centered.
        kept: the columns that the network sees, where others are constant; None for all.
    """

    event_shape: tuple[int, ...]
    num_values: int | None
    standardizer: data.Standardizer | None
    sigma_data: float
    sigma_min: float
    sigma_max: float
    num_labels: int | None = None
    limits: tuple[float, float] | None = None
    integers: _integers.Integers | None = None
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
        """Whether an example can be shown as an image, `[H, W]` or `[H, W, 1 or 3]`."""
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
        """Which standardized features `[...]` are real numbers, neither integers nor left out."""
        real = np.ones(np.shape(self.standardizer.mean), bool)
        if self.integers:
            real &= ~self.integers.where
        return real & ~self.left_out

    @property
    def left_out(self) -> np.ndarray:
        """Which standardized features `[...]` the network does not see, as they are constant."""
        left_out = np.zeros(np.shape(self.standardizer.mean), bool)
        if self.kept is not None:
            left_out[:] = True
            left_out[list(self.kept)] = False
        return left_out

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Returns stored examples as `fit` keeps them: levels, or standardized float32."""
        if self.standardizer:
            x = self._kept(self.standardizer(x))
        return np.asarray(x, np.float32)

    def _kept(self, x: np.ndarray) -> np.ndarray:
        return x if self.kept is None else x[..., list(self.kept)]

    def batch(self, x: np.ndarray, labels: np.ndarray | None) -> Any:
        """Returns stored examples and their labels as the loss takes them: see `ScoreModel`."""
        rows = self.rows(x)
        return rows if labels is None else (rows, labels)

    def scaled(self, rows: jax.Array, key: jax.Array) -> jax.Array:
        """Returns rows as the network sees them; integers are dequantized with fresh noise."""
        if self.num_values:
            return data.dequantize(rows, key, num_values=self.num_values)
        if self.integers:
            widths = self._kept(self.integers.widths(self.standardizer.scale))
            widths = jnp.asarray(widths, rows.dtype)[None]
            return rows + widths * jax.random.uniform(key, rows.shape, rows.dtype)
        return rows

    def unscaled(self, x: np.ndarray) -> np.ndarray:
        """Returns scaled numbers, such as samples, in the units of the data."""
        x = np.asarray(x)
        if self.num_values:
            levels = np.asarray(data.quantize(x, num_values=self.num_values))
            return levels.astype(np.min_scalar_type(self.num_values - 1))
        if self.kept is not None:
            seen, x = x, np.zeros((len(x), len(self.left_out)), x.dtype)
            x[:, list(self.kept)] = seen
        x = self.standardizer.inverse(x) if self.standardizer else x
        return self.integers.rounded(x) if self.integers else x

    @property
    def labels(self) -> tuple[str, ...]:
        """What the labels 0, 1, 2, ... are called; empty for an unconditional run."""
        return self.label_names or tuple(map(str, range(self.num_labels or 0)))

    def to_dict(self) -> dict[str, Any]:
        """Returns the problem as JSON holds it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("standardizer", "integers"):
            if values[name] is not None:
                values[name] = values[name].to_dict()
        mean = np.asarray(self.mean).tolist()
        return values | {"event_shape": list(self.event_shape), "mean": mean}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Problem":
        """Returns the problem that `to_dict` wrote."""
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
                "integers": None if integers is None else _integers.Integers.from_dict(integers),
                "label_names": None if names is None else tuple(names),
                "mean": np.asarray(values.get("mean", 0.0), np.float32),
                "kept": None if kept is None else tuple(kept),
            }
        )


def examine(config: Config, examples: Examples) -> tuple[Problem, str]:
    """Decides scaling and noise levels from the training examples.

    Returns:
        The problem, and an explanation of its scaling and noise levels (empty where a recipe fixes
        them).
    """
    x = examples.train
    explanation = []
    if isinstance(config, Array):
        _check_channels(x.shape[1:])
    problem = Problem(
        event_shape=x.shape[1:],
        num_values=DIGIT_VALUES if isinstance(config, Digits) else _num_values(x),
        standardizer=None,
        sigma_data=1.0,
        sigma_min=0.002,
        sigma_max=80.0,
        num_labels=None if examples.label_names is None else len(examples.label_names),
        label_names=examples.label_names,
    )
    if isinstance(config, Toy):
        return dataclasses.replace(problem, sigma_min=0.005, sigma_max=50.0), ""
    if problem.num_values:
        # Dequantization adds the mean and the variance of a uniform cell of width 2 / levels.
        width, mean = 2 / problem.num_values, 0.0
        variance = np.var(x, dtype=np.float64)
        if isinstance(config, Array):  # of each number, as their common mean may be far off
            variance = np.var(x, axis=0, dtype=np.float64).mean()
            mean = np.float32((np.mean(x, axis=0, dtype=np.float64) + 0.5) * width - 1)
            problem = dataclasses.replace(problem, limits=(float(x.min()), float(x.max())))
        spread = math.sqrt(variance + 1 / 12) * width
        problem = dataclasses.replace(problem, sigma_data=spread, mean=mean)
    else:
        problem, explanation = _standardized(config, problem, examples)
    if not isinstance(config, Array):
        return problem, ""
    seed = config.training.seed
    scaled = jax.jit(problem.scaled)(problem.rows(x), named("dequantization", seed))
    levels = noise_levels.noise_levels_from_data(scaled, named("noise levels", seed))
    sigma_max, sigma_min = float(levels.sigmas[0]), float(levels.sigmas[-1])
    problem = dataclasses.replace(problem, sigma_min=sigma_min, sigma_max=sigma_max)
    return problem, "\n".join([*explanation, *without_density(problem, x), str(levels)])


def _check_channels(shape: tuple[int, ...]) -> None:
    """Warns of images that seem to have their channels first."""
    if len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) >= 8:
        warnings.warn(
            f"the examples of --data have shape {shape}, as images with their channels first: they "
            "are not taken as images. If they are, save x.transpose(0, 2, 3, 1) instead",
            stacklevel=3,
        )


def _standardized(
    config: Config, problem: Problem, examples: Examples
) -> tuple[Problem, list[str]]:
    """Returns the problem with a scaling of each feature, and what there is to say of it."""
    x = examples.train
    one_value = data.constant_features(x)
    if one_value.all():
        raise ValueError(
            f"all {len(x)} training examples are the same: there is no density to learn"
        )
    explanation, step = [], np.zeros(x.shape[1:])
    if isinstance(config, Array) and config.data.integers == "dequantize":
        step = _integers.find(examples.parts)
    kept = None
    if one_value.any() and one_value.ndim == 1:
        kept = tuple(np.flatnonzero(~one_value).tolist())
        step = np.where(one_value, 0.0, step)
    elif one_value.any():  # of images the network sees all numbers
        step = np.where(one_value & (step == 0), 1.0, step)
    integers = _integers.of(x, step)
    whole = (step > 0) & ~one_value
    if whole.any():
        explanation += [f"{kind}, dequantized" for kind in _integers.kinds(integers, whole)]
        explanation.append(
            "what is dequantized, by uniform noise of its cells, has likelihoods of probabilities "
            "(--integers real takes it as real numbers)"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of constant features, as just told
        standardizer = data.Standardizer.fit(x)
    if integers:  # of what is added, in units of the step, the mean is 1/2 and the variance 1/12
        variance = np.var(x, axis=0, dtype=np.float64) + integers.step**2 / 12
        standardizer = data.Standardizer(
            standardizer.mean + np.where(integers.where, integers.step / 2, 0.0),
            np.where(integers.where, np.sqrt(variance), standardizer.scale),
        )
    limits = float(x.min()), float(x.max())
    problem = dataclasses.replace(
        problem,
        event_shape=x.shape[1:] if kept is None else (len(kept),),
        standardizer=standardizer,
        limits=limits,
        integers=integers,
        kept=kept,
    )
    return problem, explanation + _constants(problem, examples, one_value)


def _constants(problem: Problem, examples: Examples, one_value: np.ndarray) -> list[str]:
    """Returns what there is to say of features that are constant in the training examples."""
    if not one_value.any():
        return []
    which = _integers.names(one_value)
    if problem.kept is None:
        return [f"{which}: constant, and dequantized: they add at most 0 nats"]
    said = [f"{which}: constant, hence left out; samples have the one value"]
    others = np.concatenate(examples.parts[1:])
    if num := int(unforeseen(problem, others).sum()):
        said.append(
            f"{num} of {len(others)} examples that are not trained on have other values there: "
            "their likelihood is zero. Leave these columns out of the data, or take another --seed"
        )
    return said


def unforeseen(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Returns which examples `[N]` differ from the training examples where these are constant."""
    if problem.kept is None:
        return np.zeros(len(x), bool)
    left_out = problem.left_out
    values = np.asarray(problem.standardizer.mean)[left_out]
    x = x[:, left_out]
    eps = np.finfo(x.dtype).eps if x.dtype.kind == "f" else 0.0
    return (abs(x.astype(np.float64) - values) > 4 * eps * abs(values)).any(axis=1)


def without_density(problem: Problem, x: np.ndarray) -> list[str]:
    """Returns sentences on real numbers of the training examples that have no density.

    Those are columns with one value in many rows, or that vary by less than the smallest noise
    level about a linear function of other columns. Networks make their likelihood as large as the
    noise allows.
    """
    if problem.standardizer is None:
        return []
    real = problem.real
    some = np.sort(x[:2000], axis=0)
    most = max(2, len(some) // 10)
    repeated = (some[most:] == some[:-most]).any(axis=0) & real
    dependent = np.zeros_like(real)
    if real.ndim == 1 and len(x) > 2 * len(real):
        order = np.argsort(real, kind="stable")  # integers first: what is a function of these
        rows = np.asarray(problem.standardizer(x), np.float32)[:, order]
        columns = np.column_stack([np.ones(len(x)), rows])
        left_over = abs(np.diag(np.linalg.qr(columns, mode="r")))[1:]  # of each by those before
        dependent[order] = left_over < problem.sigma_min * math.sqrt(len(x))
        dependent &= real
    reasons = {
        "one value is in more than a tenth of the rows": repeated,
        "linear in other columns": dependent,
    }
    return [
        f"{_integers.names(where)}: {reason}, hence without a density: likelihoods rest on the "
        "smallest noise level, and compare with no entropy"
        for reason, where in reasons.items()
        if where.any()
    ]


def _num_values(x: np.ndarray) -> int | None:
    return IMAGE_VALUES if x.dtype == np.uint8 else None
