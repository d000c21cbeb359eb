"""One order of arguments in every public function: functions, data, key; the rest by keyword.

Functions of a process have the process first. What departs from this is in `EXCEPTIONS`, each with
its reason.
"""

import importlib
import inspect

import pytest

from tests.test_package import PUBLIC

EXCEPTIONS = {
    "data.batch_indices": "draws numbers: (key, ...) as in jax.random",
    "divergence.sphere": "has the signature of jax.random.normal, (key, shape, dtype)",
    "losses.low_discrepancy": "has the signature of jax.random.uniform, (key, shape, dtype)",
    "samplers.generate": "takes no data: (draw, key, num)",
}

# Parameters that hold functions, in signatures that begin with them.
FUNCTIONS = {
    "draw",
    "energy_score",
    "fn",
    "fns",
    "network",
    "other",
    "sampler",
    "statistics",
    "step",
}
# Functions of a process: it is what they are about.
OF_A_PROCESS = ("processes.", "losses.")


def public_functions():
    """Return every public function that is defined in sm_jax, by its name without the package."""
    found = {}
    for name in PUBLIC:
        module = importlib.import_module(name)
        for public in module.__all__:
            value = getattr(module, public)
            if inspect.isfunction(value):
                found[f"{name}.{public}".removeprefix("sm_jax.")] = value
    return found


def kind(parameter):
    """Return the rank of a positional parameter: function, data, key."""
    name = parameter.name
    if name == "key":
        return 2
    return 0 if name in FUNCTIONS or name.endswith(("_fn", "_fns")) else 1


def complaints(name, function):
    """Return what is wrong with the order of a signature."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    names = [p.name for p in positional]
    found = []
    if "process" in names:
        if not (name.startswith(OF_A_PROCESS) and names[0] == "process"):
            found.append("process by position")
        positional = [p for p in positional if p.name != "process"]
    if "process" in keyword and keyword[0] != "process":
        found.append("process is not the first by keyword")
    kinds = [kind(p) for p in positional]
    if "key" in names and name.startswith(OF_A_PROCESS) and names[0] == "process":
        kinds = []  # (process, key, shape) is the order of jax.random
    if kinds != sorted(kinds):
        found.append(f"order {names}")
    if "sigma_min" in names or "sigma_max" in names:
        found.append("an end of the noise levels by position")
    ends = [n for n in keyword if n in ("sigma_min", "sigma_max")]
    if ends != sorted(ends, reverse=True):
        found.append("sigma_max before sigma_min")
    return found


@pytest.mark.parametrize("name", sorted(public_functions()))
def test_functions_data_key_then_keywords(name):
    found = complaints(name, public_functions()[name])
    assert bool(found) == (name in EXCEPTIONS), found
