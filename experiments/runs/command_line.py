"""The command line of ``experiments.train``: a recipe and its options."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import tyro

from experiments import recipes
from experiments.recipes import Recipe
from experiments.runs import configuration

_FLAGS = ("--resume", "--dry-run", "--conditional", "--quick")  # options that take no value


def parse(args: Sequence[str]) -> tuple[Recipe, Any]:
    """Return the recipe and the configuration that a command line gives.

    Raises:
        ValueError: on an unknown recipe, a run to resume that is not there, or an option that is
            out of its limits.
        SystemExit: from tyro, on a bad option (2) and after printing help (0).
    """
    args = list(args)
    name = args.pop(0) if args and not args[0].startswith("-") else None
    _check_order(args)
    resumed = _resumed(args)
    if resumed is not None:
        recipe, default = resumed
        if name is not None and recipes.find(name).name != recipe.name:
            raise ValueError(f"the run to resume is of recipe {recipe.name!r}, not {name!r}")
    else:
        if name is None and any(arg.partition("=")[0] == "--data" for arg in args):
            raise ValueError("--data is for the recipe array: experiments.train array --data FILE")
        recipe = recipes.find(name or "digits")
        default = recipe.default_options(quick="--quick" in args)
    config = tyro.cli(
        tyro.conf.OmitArgPrefixes[recipe.Options],
        prog=f"python -m experiments.train {name or recipe.name}",
        description=_description(recipe),
        args=args,
        default=default,
    )
    configuration.check(recipe, config)
    return recipe, config


def _check_order(args: list[str]) -> None:
    """Raise if a recipe comes after an option, and is not its value."""
    for before, arg in itertools.pairwise(args):
        value = before.startswith("-") and "=" not in before and before not in _FLAGS
        if recipes.is_recipe(arg) and not value:
            raise ValueError(
                f"the recipe comes first, before all options: python -m experiments.train {arg} ..."
            )


def _resumed(args: list[str]) -> tuple[Recipe, Any] | None:
    """Return recipe and options of the run to resume, where the arguments name one."""
    if "--resume" not in args:
        return None
    joined = [arg.partition("=")[2] for arg in args if arg.startswith("--directory=")]
    if "--directory" in args[:-1]:
        joined.append(args[args.index("--directory") + 1])
    if not joined:
        raise ValueError("--resume needs the run to continue: add --directory DIR")
    path = pathlib.Path(joined[-1]).expanduser()
    if not (path / "config.json").exists():
        raise ValueError(
            f"there is no run in {joined[-1]!r} to resume: check --directory, or leave --resume "
            "out to start one there"
        )
    recipe, config, _ = configuration.read(path)
    with configuration.rebuilding(path):
        configuration.check(recipe, config)
    return recipe, config


def _description(recipe: Recipe) -> str:
    lines = recipes.names()
    width = max(map(len, lines))
    table = "\n".join(f"  {name:{width}}  {line}" for name, line in lines.items())
    return (
        f"Train a score model, sample from it, evaluate it.\n\n"
        f"usage: python -m experiments.train [RECIPE] [options]\n\n{table}\n"
        f"  {'mine.py':{width}}  a recipe of your own, see experiments/README.md\n\n"
        f"Options of {recipe.title}: {recipe.Options.__doc__}"
    )


def show(config: Any) -> None:
    """Print a configuration, one option per line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for group in dataclasses.fields(config):
        value = getattr(config, group.name)
        if not dataclasses.is_dataclass(value):
            table.add_row(group.name, "", str(value))
            continue
        for option in dataclasses.fields(value):
            table.add_row(f"[dim]{group.name}[/]", option.name, str(getattr(value, option.name)))
    Console().print(table)
