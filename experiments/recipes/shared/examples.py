"""The examples of a recipe: those to train on, those held out, and their labels."""

from typing import Any, NamedTuple

import numpy as np

from experiments.recipes.shared.options import is_conditional


class Examples(NamedTuple):
    """The data of a run, as stored: what ``Problem.rows`` takes."""

    train: np.ndarray
    held_out: np.ndarray
    density: Any = None  # the exact one of the scaled data, where it is known
    train_labels: np.ndarray | None = None  # [N], of a conditional run
    held_out_labels: np.ndarray | None = None
    validation: np.ndarray | None = None  # to choose a checkpoint by; not among those to train on
    label_names: tuple[str, ...] | None = None  # what the labels 0, 1, 2, ... are called

    @property
    def num_labels(self) -> int | None:
        """The number of labels; None for an unconditional run."""
        return None if self.label_names is None else len(self.label_names)

    @property
    def parts(self) -> list[np.ndarray]:
        """All examples there are."""
        return [x for x in (self.train, self.held_out, self.validation) if x is not None]


def read_examples(recipe: Any, config: Any) -> Examples:
    """Read the data of a recipe; number the labels of a conditional run, and drop those of others.

    Raises:
        ValueError: naming what is wrong with the data, or with the options that choose them.
    """
    examples = recipe.load(config)
    if not is_conditional(config):
        return examples._replace(train_labels=None, held_out_labels=None)
    return numbered(
        examples,
        checked_labels(examples.train_labels, examples.train),
        checked_labels(examples.held_out_labels, examples.held_out),
    )


def checked_labels(labels: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """Return labels as strings, integers or booleans; whole floats as integers."""
    if labels is None:
        raise ValueError("--conditional needs labels, and these data have none: leave it out")
    whole = labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels % 1 == 0).all()
    if (labels.dtype.kind not in "biuU" and not whole) or labels.shape != x.shape[:1]:
        raise ValueError(
            f"labels must be one integer or word for each of the {len(x)} examples, got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return labels.astype(np.int64) if whole else labels


def numbered(examples: Examples, train: np.ndarray, held_out: np.ndarray) -> Examples:
    """Return the examples with labels 0, 1, 2, ... and their names.

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
