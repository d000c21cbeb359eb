"""A trained run, rebuilt from its directory: ``config.json`` and the averaged parameters."""

import json
import os
import pathlib
import warnings
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.recipes import Recipe
from experiments.recipes.shared.diffusion import ScoreModel
from experiments.recipes.shared.examples import Examples, read_examples
from experiments.recipes.shared.problem import Problem
from experiments.runs import configuration
from sm_jax import training
from sm_jax.training import checkpoints
from sm_jax.typing import NoiseScoreFn


class Run(NamedTuple):
    """A run of a recipe, with its parameters.

    Attributes:
        directory: where the run is.
        recipe: what was trained.
        config: the options.
        problem: what was decided from the data.
        model: the network.
        params: the averaged parameters of the newest checkpoint, or of the best one where
            validation examples chose it.
    """

    directory: pathlib.Path
    recipe: Recipe
    config: Any
    problem: Problem
    model: ScoreModel
    params: Any

    @property
    def score_fn(self) -> NoiseScoreFn:
        """The trained score function, of all examples together."""
        return self.model.score(self.params)

    def score_given(self, labels: jax.Array | None) -> NoiseScoreFn:
        """Return the score function given a label for each row ``[B]``; of all rows with None."""
        return self.model.score(self.params, labels)


def load(directory: pathlib.Path) -> Run:
    """Load a run, with a warning if its training has not come to its end.

    Raises:
        ValueError: if the directory holds no run, one that is damaged or of another version, or one
            without a readable checkpoint.
    """
    recipe, config, _ = configuration.read(directory)
    problem = load_problem(directory)
    with configuration.rebuilding(directory):
        model = recipe.build(config, problem)
    params = restore_params(directory, model.params)
    steps = [path.name for path in (directory.expanduser() / "checkpoints").iterdir()]
    last, num_steps = max(map(int, filter(str.isdecimal, steps))), config.training.num_steps
    if last < num_steps:
        warnings.warn(
            f"this run stopped at step {last:,} of {num_steps:,}: to finish it, "
            f"python -m experiments.train --resume --directory {directory}",
            stacklevel=2,
        )
    return Run(directory, recipe, config, problem, model, params)


def load_problem(directory: pathlib.Path) -> Problem:
    """Return what a run decided from its data.

    Raises:
        ValueError: if the directory holds no run, or one that is damaged or of another version.
    """
    _, _, facts = configuration.read(directory)
    with configuration.rebuilding(directory):
        return Problem.from_dict(facts)


def load_examples(run: Run) -> Examples:
    """Read the data of a run again, and check that they are those that it was trained on.

    The examples are split by the numbers of their rows: in a file of other rows, or of the same in
    another order, examples that it was trained on would pass as held out. The points of a toy are
    not compared: they are drawn anew, and where they differ none was trained on.

    Raises:
        ValueError: if the data cannot be read, or are not those of the run.
    """
    examples = read_examples(run.recipe, run.config)
    if run.problem.num_labels and run.problem.label_names is None:  # of an earlier version,
        train, held_out = (  # which took labels for their numbers
            np.array(examples.label_names, np.int32)[labels]
            for labels in (examples.train_labels, examples.held_out_labels)
        )
        examples = examples._replace(train_labels=train, held_out_labels=held_out)
    trained_on = checkpoints.read_metadata(run.directory)["config"].get("checksum")
    now = checksum(examples)
    if examples.density is None and now != trained_on:
        raise ValueError(
            f"the data are not those that {str(run.directory)!r} was trained on: the checksum of "
            f"all examples is {now}, and was {trained_on}. Put them back as they were, "
            "with their rows in the same order, or train anew"
        )
    return examples


def check_same(directory: pathlib.Path, facts: dict[str, Any]) -> None:
    """Raise if a run cannot be resumed with these data and options.

    Raises:
        ValueError: naming each that differs, with both values.
    """
    directory = directory.expanduser()
    if checkpoints.has_checkpoints(directory):
        saved = dict(checkpoints.read_metadata(directory)["config"])
        saved.pop("fit", None)  # what ``fit`` adds, all of which is among the options
        checkpoints.check_metadata({"config": saved}, None, facts)


def checksum(examples: Examples) -> int:
    """Return the CRC-32 of all examples as stored, in their order, and of their labels."""
    value = 0
    labels = (examples.train_labels, examples.held_out_labels)
    for array in [*examples.parts, *(some for some in labels if some is not None)]:
        value = zlib.crc32(array.tobytes(), value)
    return value


def restore_params(directory: pathlib.Path, like: Any) -> Any:
    """Return the averaged parameters that a run ends with: the best, or else the newest."""
    best = checkpoints.read_metadata(directory)["best"]["metric"] is not None
    return training.restore_params(directory, like, best=best)


def write_config(directory: pathlib.Path, recipe: Recipe, config: Any, problem: Problem) -> None:
    """Write config.json, atomically; the one of a run that is being resumed is left as it is."""
    path = directory / "config.json"
    if config.run.resume and path.exists():
        return
    content = {
        "recipe": recipe.name,
        "options": configuration.to_dict(config),
        "problem": problem.to_dict(),
    }
    partial = path.with_name("config.json.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)
