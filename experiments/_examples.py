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


def load(config: Config) -> Examples:
    """Reads the data of a recipe, split into training and held-out examples.

    Raises:
        ValueError: naming what is wrong with the data, or with the options that choose them.
    """
    examples = _load(config)
    if not is_conditional(config):
        return examples._replace(train_labels=None, held_out_labels=None)
    return examples._replace(
        train_labels=_checked_labels(examples.train_labels, examples.train),
        held_out_labels=_checked_labels(examples.held_out_labels, examples.held_out),
    )


def _checked_labels(labels: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    if labels is None:
        raise ValueError("--conditional needs labels, and these data have none: leave it out")
    if labels.dtype.kind not in "iu" or labels.shape != x.shape[:1]:
        raise ValueError(
            f"labels must be one integer for each of the {len(x)} examples, got {labels.dtype} of "
            f"shape {labels.shape}"
        )
    if labels.min() < 0:
        raise ValueError(f"labels must be 0, 1, 2, ..., got {labels.min()}: number them so")
    return labels.astype(np.int32)


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
        x = data.load(options.path, array=options.array)
        labels = _array_labels(config, x)
    except TypeError as error:  # of the numbers in the file, so the user's to mend
        raise ValueError(str(error)) from error
    order = np.random.default_rng(config.training.seed).permutation(len(x))[: options.max_examples]
    num_held_out = math.ceil(options.held_out * len(order))
    if len(order) - num_held_out < 2:
        raise ValueError(
            f"{str(options.path)!r} leaves {len(order) - num_held_out} of {len(order)} examples "
            "to train on, and at least 2 are needed: add examples, or lower --held-out"
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
    labels = data.load(config.data.path, array=name)
    return _checked_labels(labels, x)
