"""Options to and from ``config.json``, and their limits."""

import contextlib
import dataclasses
import json
import pathlib
import typing
from collections.abc import Iterator
from typing import Any

from experiments import recipes
from experiments.recipes import Recipe
from experiments.recipes.shared import limits
from experiments.recipes.shared.options import is_conditional


def read(directory: pathlib.Path) -> tuple[Recipe, Any, dict]:
    """Return the recipe, the configuration and the facts of the data that a run wrote down.

    Raises:
        ValueError: if the directory holds no run, or one that is damaged or of another version.
    """
    path = directory.expanduser() / "config.json"
    try:
        content = json.loads(path.read_text())
        name, options, problem = content["recipe"], content["options"], content["problem"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(directory)!r} is not the directory of a run: its config.json cannot be read "
            f"({error!r}). Give a directory that experiments.train wrote"
        ) from None
    with rebuilding(directory):
        recipe = recipes.find(name)
        return recipe, from_dict(recipe, options), problem


@contextlib.contextmanager
def rebuilding(directory: pathlib.Path) -> Iterator[None]:
    """Raise a ValueError for the errors of a damaged config.json, or one of another version."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the run in {str(directory)!r} cannot be rebuilt: its config.json is damaged, or of "
            f"another version of sm_jax ({error!r}). Put it back as it was written, or train anew"
        ) from error


def to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration as JSON holds it, less where it runs."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, pathlib.Path) else value

    options = plain(dataclasses.asdict(config))
    del options["run"]
    return options


def from_dict(recipe: Recipe, options: dict[str, Any]) -> Any:
    """Return the configuration that ``to_dict`` wrote.

    Raises:
        ValueError: if an option is missing or unknown, as in the run of another version.
    """
    earlier = {group: values | options[group] for group, values in recipe.EARLIER.items()}
    return _build(recipe.Options, options | earlier)


def check(recipe: Recipe, config: Any) -> None:
    """Raise unless every option is within its limits, and goes with the others.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    limits.check(config)
    recipe.check(config)


def decisive(recipe: Recipe, config: Any) -> dict[str, Any]:
    """Return the options that must not change when a run is resumed, for its metadata.

    Those that say what earlier versions did are left out, so that their runs are resumed too.
    """
    free = {"evaluation"} if is_conditional(config) else {"evaluation", "conditioning"}
    parts = {}
    for name, group in to_dict(config).items():
        if isinstance(group, dict) and name not in free:
            earlier = recipe.EARLIER.get(name, {})
            parts[name] = {k: v for k, v in group.items() if k not in earlier or v != earlier[k]}
    return parts


def _build(kind: type, options: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in options.items():
        hint = hints.get(name)
        if dataclasses.is_dataclass(hint):
            value = _build(hint, value)
        elif isinstance(value, list):
            value = tuple(value)
        elif hint is pathlib.Path:
            value = pathlib.Path(value)
        values[name] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"config.json does not fit this version of its recipe: {error}") from None
