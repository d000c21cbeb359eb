"""What can be trained: each module of this folder is a recipe, and so is a file that you name.

A recipe is a module that holds

    Options                     a frozen dataclass with the groups ``training``, ``evaluation`` and
                                ``run`` of ``shared.options``, and others of its own; its docstring
                                says what is trained
    load(config)                -> ``shared.examples.Examples``, the data
    examine(config, examples)   -> (``shared.problem.Problem``, what there is to say of it)
    build(config, problem)      -> ``shared.diffusion.ScoreModel``, the network, its score and loss

where ``config`` is an ``Options``. It may hold

    NAMES             the names of the recipe, each with its line in ``--help``; by default the name
                      of the file and the first line of its docstring
    defaults(name)    the options before any is given; ``Options()`` by default
    quickly(config)   the defaults of ``--quick``, where ``Options`` has this flag
    check(config)     raises ValueError where options do not go with each other
    draw(path, problem, x, examples=None, labels=None, title="")
                      writes the picture of scaled samples; by default that of ``runs.plots``
    EARLIER           {group: {option: value}}, what runs did that were written without an option

Nothing slow is imported at the top of the modules of this folder, so that ``--help`` answers at
once; in a file of your own it may be.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import pathlib
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe by one of its names, with what stands for the parts that its module leaves out."""

    name: str
    Options: type
    load: Callable
    examine: Callable
    build: Callable
    defaults: Callable
    quickly: Callable | None
    check: Callable
    draw: Callable | None
    EARLIER: dict[str, dict[str, Any]]

    @property
    def title(self) -> str:
        """What the recipe is called, without the folder of its file."""
        return pathlib.Path(self.name).stem if _is_file(self.name) else self.name

    def default_options(self, *, quick: bool = False) -> Any:
        """Return the options before any is given."""
        config = self.defaults(self.name)
        return self.quickly(config) if quick and self.quickly else config


def names() -> dict[str, str]:
    """Return the names of the recipes of this folder, each with its line of help."""
    return {name: line for module in _modules() for name, line in _names(module).items()}


def is_recipe(name: str) -> bool:
    """Return whether there is a recipe of this name, such as "tfds:mnist" or "mine.py"."""
    return _is_file(name) or _entry(name) in names()


def find(name: str) -> Recipe:
    """Return the recipe of a name, such as "tfds:mnist", or of the file "mine.py".

    Raises:
        ValueError: if there is no such recipe, or the file does not hold one.
    """
    if _is_file(name):
        path = pathlib.Path(name).expanduser().resolve()
        if not path.is_file():
            raise ValueError(f"there is no recipe {str(path)!r}: name a file that exists")
        return _recipe(str(path), _imported(path))
    for module in _modules():
        if _entry(name) in _names(module):
            return _recipe(name, module)
    every = names()
    examples = [other.replace(":NAME", ":mnist") for other in every]
    close = difflib.get_close_matches(name, examples, n=1, cutoff=0.5)
    close = ["tfds:mnist"] if name.partition(":")[0] == "tfds" else close
    if pathlib.Path(name).exists():
        close = [f"array --data {name}"]
    suggestion = f": did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"there is no recipe {name!r}{suggestion} The recipes are {', '.join(every)}; or a file "
        "of your own, mine.py"
    )


def _recipe(name: str, module: ModuleType) -> Recipe:
    for part in ("Options", "load", "examine", "build"):
        if not hasattr(module, part):
            raise ValueError(
                f"the recipe {name!r} has no {part}: a recipe holds Options, load, examine and "
                "build; see experiments/recipes/__init__.py"
            )
    return Recipe(
        name,
        module.Options,
        module.load,
        module.examine,
        module.build,
        getattr(module, "defaults", lambda name: module.Options()),
        getattr(module, "quickly", None),
        getattr(module, "check", lambda config: None),
        getattr(module, "draw", None),
        getattr(module, "EARLIER", {}),
    )


def _modules() -> list[ModuleType]:
    """Return the modules of this folder; the packages in it are what recipes share."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return [importlib.import_module(f"{__name__}.{name}") for name in found]


def _names(module: ModuleType) -> dict[str, str]:
    line = (module.__doc__ or "").partition("\n")[0].rstrip(".")
    return getattr(module, "NAMES", {module.__name__.rpartition(".")[2]: line})


def _entry(name: str) -> str:
    kind, _, rest = name.partition(":")
    return f"{kind}:NAME" if rest else name


def _is_file(name: str) -> bool:
    return name.endswith(".py")


def _imported(path: pathlib.Path) -> ModuleType:
    """Return the module of a file, which is run once."""
    name = f"experiments.recipes.<{path}>"  # which no import statement can say
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses look up their annotations
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
