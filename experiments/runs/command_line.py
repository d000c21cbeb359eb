"""The command line: a recipe and its options, and errors that end in one line."""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence

import tyro

from experiments import _config
from experiments._config import Config

_INTERRUPTED = 130  # the exit code, as that of shells
_FLAGS = ("--resume", "--dry-run", "--conditional", "--quick")  # options that take no value


def parse(args: Sequence[str]) -> tuple[str, Config]:
    """Returns the recipe and the configuration that a command line asks for.

    Raises:
        ValueError: on an unknown recipe, a run to resume that is not there, or an option that is
            out of its limits.
        SystemExit: from tyro, on a bad option (2) and after printing help (0).
    """
    args = list(args)
    recipe = args.pop(0) if args and not args[0].startswith("-") else None
    _check_order(args)
    resumed = _resumed(args)
    if resumed is not None:
        recipe, default = _same_recipe(recipe, *resumed)
    else:
        if recipe is None and any(arg.partition("=")[0] == "--data" for arg in args):
            raise ValueError("--data is for the recipe array: experiments.train array --data FILE")
        recipe = recipe or "digits"
        default = _config.defaults(recipe, quick="--quick" in args)
    config = tyro.cli(
        tyro.conf.OmitArgPrefixes[type(default)],
        prog=f"python -m experiments.train {recipe}",
        description=_description(recipe, type(default)),
        args=args,
        default=default,
    )
    _config.check(config)
    return recipe, config


def _check_order(args: list[str]) -> None:
    """Raises if a recipe comes after an option, and is not its value."""
    for before, arg in itertools.pairwise(args):
        value = before.startswith("-") and "=" not in before and before not in _FLAGS
        if _config.is_recipe(arg) and not value:
            raise ValueError(
                f"the recipe comes first, before all options: python -m experiments.train {arg} ..."
            )


def _resumed(args: list[str]) -> tuple[str, Config] | None:
    """Returns recipe and options of the run to resume, where the arguments name one."""
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
    recipe, config, _ = read_config(path)
    with rebuilding(path):
        _config.check(config)
    return recipe, config


def _same_recipe(asked: str | None, recipe: str, config: Config) -> tuple[str, Config]:
    if asked not in (None, recipe):
        raise ValueError(f"the run to resume is of recipe {recipe!r}, not {asked!r}")
    return recipe, config


def read_config(directory: pathlib.Path) -> tuple[str, Config, dict]:
    """Returns the recipe, the configuration and the facts of the data that a run wrote down.

    Raises:
        ValueError: if the directory holds no run, or one that is damaged or of another version.
    """
    path = directory.expanduser() / "config.json"
    try:
        content = json.loads(path.read_text())
        recipe, options, problem = content["recipe"], content["options"], content["problem"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(directory)!r} is not the directory of a run: its config.json cannot be read "
            f"({error!r}). Give a directory that experiments.train wrote"
        ) from None
    with rebuilding(directory):
        return recipe, _config.from_dict(recipe, options), problem


@contextlib.contextmanager
def rebuilding(directory: pathlib.Path) -> Iterator[None]:
    """Turns what a damaged config.json, or one of another version, leads to into a ValueError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the run in {str(directory)!r} cannot be rebuilt: its config.json is damaged, or of "
            f"another version of sm_jax ({error!r}). Put it back as it was written, or train anew"
        ) from error


def _description(recipe: str, kind: type[Config]) -> str:
    width = max(map(len, _config.RECIPES))
    recipes = "\n".join(
        f"  {name:{width}}  {entry.help}" for name, entry in _config.RECIPES.items()
    )
    return (
        f"Train a score model, sample from it, evaluate it.\n\n"
        f"usage: python -m experiments.train [RECIPE] [options]\n\n{recipes}\n\n"
        f"Options of {recipe}: {kind.__doc__}"
    )


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a program with its command line, and leaves at once where the user interrupted it.

    XLA may still be computing then, in threads that crash when Python is taken down around them.
    """
    try:
        main(sys.argv[1:])
    except SystemExit as stop:
        if stop.code != _INTERRUPTED:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_INTERRUPTED)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line on stderr: exit code 2 for what the user can mend.

    This is for what options, data and files can be wrong about. What comes after them goes under
    `one_line_stops`, so that an error in the program shows where it is.
    """
    with one_line_stops(), _one_line_warnings():
        try:
            yield
        except (ValueError, ImportError, OSError) as error:
            sys.exit(_fail(error, 2))


@contextlib.contextmanager
def one_line_stops(next_step: str = "") -> Iterator[None]:
    """Ends the program with one line where it cannot go on.

    That is where numbers are no longer finite, a file cannot be written, or the user interrupts.

    Args:
        next_step: what the user can do in the last two cases.
    """
    # Here Orbax logs, with tracebacks, what it raises later.
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "concurrent.futures")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except FloatingPointError as error:
        sys.exit(_fail(error, 1))
    except OSError as error:
        sys.exit(_fail(f"{error}. {next_step}", 1))
    except KeyboardInterrupt:
        sys.exit(_fail(f"interrupted. {next_step}" if next_step else "interrupted", _INTERRUPTED))
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Prints what the user is warned of without the line of the program that does it."""

    def show(message, *_, **__):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def check_writable(output: pathlib.Path) -> None:
    """Makes the folder of an output file; raises if the file cannot be written.

    Raises:
        ValueError: saying why, before anything is computed.
    """
    if output.is_dir():
        raise ValueError(
            f"--output {output} is a directory: name a file in it, such as {output / 'results'}"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to {str(output.parent)!r} ({error.strerror}): name another place by "
            "--output"
        ) from error


def _fail(error: object, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def show(config: Config) -> None:
    """Prints a configuration, one option per line."""
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
