"""The examples of a recipe, read or drawn, and split into those to train on and those held out."""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments._config import Array, Config, Digits, Tfds, Toy, is_conditional
from experiments._keys import named
from sm_jax import data, densities


class Examples(NamedTuple):
    """The data of a run, as stored: what `_problem.Problem.rows` takes."""

    train: np.ndarray
    held_out: np.ndarray
    density: Any = None  # the exact one, for a toy
    train_labels: np.ndarray | None = None  # [N], of a conditional run
    held_out_labels: np.ndarray | None = None
    validation: np.ndarray | None = None  # to choose a checkpoint by; not among those to train on
    label_names: tuple[str, ...] | None = None  # what the labels 0, 1, 2, ... are called

    @property
    def parts(self) -> list[np.ndarray]:
        """All examples there are."""
        return [x for x in (self.train, self.held_out, self.validation) if x is not None]


def load(config: Config) -> Examples:
    """Reads the data of a recipe, split into training and held-out examples.

    Raises:
        ValueError: naming what is wrong with the data, or with the options that choose them.
    """
    examples = _load(config)
    if not is_conditional(config):
        return examples._replace(train_labels=None, held_out_labels=None)
    return _numbered(
        examples,
        _checked_labels(examples.train_labels, examples.train),
        _checked_labels(examples.held_out_labels, examples.held_out),
    )


def _checked_labels(labels: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """Returns labels as strings, integers or booleans; whole floats as integers."""
    if labels is None:
        raise ValueError("--conditional needs labels, and these data have none: leave it out")
    whole = labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels % 1 == 0).all()
    if (labels.dtype.kind not in "biuU" and not whole) or labels.shape != x.shape[:1]:
        raise ValueError(
            f"labels must be one integer or word for each of the {len(x)} examples, got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return labels.astype(np.int64) if whole else labels


def _numbered(examples: Examples, train: np.ndarray, held_out: np.ndarray) -> Examples:
    """Returns the examples with labels 0, 1, 2, ... and their names.

    Raises:
        ValueError: if there are as many labels as examples, or one with none to learn it from.
    """
    values, numbers = np.unique(np.concatenate([train, held_out]), return_inverse=True)
    if len(values) > 0.5 * len(numbers):
        raise ValueError(
            f"{len(values)} labels for {len(numbers)} examples: take labels that several examples "
            "share"
        )
    missing = np.setdiff1d(values, train)
    if len(missing):
        raise ValueError(
            f"label {missing[0]} has no example to learn it from, all are held out: add examples, "
            "leave those of it out, or take another --seed"
        )
    numbers = numbers.astype(np.int32)
    return examples._replace(
        train_labels=numbers[: len(train)],
        held_out_labels=numbers[len(train) :],
        label_names=tuple(str(value) for value in values),
    )


def _load(config: Config) -> Examples:
    match config:
        case Digits():
            return _load_digits()
        case Toy():
            density = densities.TOYS[config.data.density]()
            num, num_train = config.data.num_held_out + config.data.num_train, config.data.num_train
            draw = jax.jit(density.sample, static_argnums=1)
            x = np.asarray(draw(named("toy", config.training.seed), num))
            return Examples(x[:num_train], x[num_train:], density)
        case Array():
            return _load_array(config)
        case Tfds():
            read = functools.partial(
                data.load_tfds, config.data.name, data_dir=config.data.data_dir
            )
            train, train_labels = read(split=config.data.train_split)
            held_out, held_out_labels = read(split=config.data.held_out_split)
            return Examples(train, held_out, None, train_labels, held_out_labels)


def _load_digits() -> Examples:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, held_out, train_labels, held_out_labels = train_test_split(
        digits.images, digits.target, test_size=297, random_state=0
    )
    return Examples(train, held_out, None, train_labels, held_out_labels)


def _load_array(config: Array) -> Examples:
    options = config.data
    try:
        x = data.load(
            options.path,
            array=options.array,
            header={"yes": True, "no": False, "auto": None}[options.header],
            delimiter="\t" if options.delimiter in ("\\t", "tab") else options.delimiter,
        )
        labels = _array_labels(config, x)
    except TypeError as error:  # of the numbers in the file, so the user's to mend
        raise ValueError(str(error)) from error
    order = np.random.default_rng(config.training.seed).permutation(len(x))[: options.max_examples]
    num_held_out = math.ceil(options.held_out * len(order))
    if len(order) - num_held_out < 2:
        raise ValueError(
            f"{str(options.path)!r} leaves {len(order) - num_held_out} of {len(order)} examples "
            "to train on, and at least 2 are needed: add examples"
            + ", or lower --held-out"
            * (len(order) > 2)
        )
    held_out, rest = order[:num_held_out], order[num_held_out:]
    num_validation = min(math.ceil(options.validation * len(rest)), len(rest) - 2)
    validation, train = rest[:num_validation], rest[num_validation:]
    examples = Examples(x[train], x[held_out], validation=x[validation] if num_validation else None)
    if labels is None:
        return examples
    return examples._replace(train_labels=labels[train], held_out_labels=labels[held_out])


def _array_labels(config: Array, x: np.ndarray) -> np.ndarray | None:
    name = config.conditioning.labels
    if name is None:
        return None
    try:
        labels = data.load(config.data.path, array=name)
    except TypeError:  # these are words
        with np.load(config.data.path.expanduser()) as file:
            labels = file[name]
    return _checked_labels(labels, x)
