"""Samples for the pictures of a run, and how many of them are recognized as their label."""

import math
from typing import Any

import jax
import numpy as np

from experiments.recipes.shared.examples import Examples
from experiments.recipes.shared.problem import Problem
from experiments.runs.saved import Run
from sm_jax import data, samplers
from sm_jax.processes import prior_sample, time_grid


def labels_to_draw(problem: Problem, num: int) -> np.ndarray | None:
    """Return labels in order, each equally often, ``num`` in all or a few more, or None."""
    if problem.num_labels is None:
        return None
    return np.repeat(np.arange(problem.num_labels), -(-num // problem.num_labels))


def sample(
    run: Run, key: jax.Array, num: int, num_steps: int, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw scaled samples by Heun's method, of labels ``[N]`` if these are given.

    Returns:
        The samples ``[N, ...]``, the trajectory ``[steps + 1, N, ...]``, and its noise levels.
    """
    process = run.problem.process

    @jax.jit
    def draw(key):
        x = prior_sample(process, key, (num, *run.problem.event_shape))
        x, trajectory = samplers.heun(
            run.score_given(labels), x, process=process, num_steps=num_steps, trajectory=True
        )
        return x, trajectory, time_grid(process, num_steps)

    return tuple(map(np.asarray, draw(key)))


def recognized(
    problem: Problem, examples: Examples, x: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Return how often a classifier takes scaled samples, and held-out examples, for their label.

    It is fitted to the training examples, and what it sees is in the units of the data: columns
    standardized, images as they are. The shares are means over the labels, each with the same
    weight, as samples are of each label equally often and held-out examples may not be.
    """
    from sklearn.neighbors import KNeighborsClassifier

    neighbors = min(3, len(examples.train))
    classifier = KNeighborsClassifier(neighbors, algorithm="brute")
    num = min(len(examples.held_out), 1000)
    mean = examples.train.mean(axis=0, dtype=np.float64)
    scale = np.ones(mean.shape)
    if mean.ndim == 1:
        spread = examples.train.std(axis=0, dtype=np.float64)
        scale = np.where(data.constant_features(examples.train), 1.0, spread)

    def flat(x):
        return ((np.asarray(x, np.float64) - mean) / scale).reshape(len(x), -1)

    def share(x, labels):
        hits = classifier.predict(flat(x)) == labels
        each = [hits[labels == label] for label in np.unique(labels)]
        # A label's only example has no spread of its own: that of all stands in for it.
        spreads = [(these if len(these) > 1 else hits).var() / len(these) for these in each]
        return {
            "share": float(np.mean([these.mean() for these in each])),
            "standard_error": math.sqrt(sum(spreads)) / len(each),
            "num": len(hits),
        }

    classifier.fit(flat(examples.train), examples.train_labels)
    return {
        "classifier": f"{neighbors} nearest training examples",
        "samples": share(problem.unscaled(x), labels),
        "held out": share(examples.held_out[:num], examples.held_out_labels[:num]),
    }
