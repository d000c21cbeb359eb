"""Comparison of a run with its continuation: layouts and configurations."""

import json
from collections.abc import Mapping
from typing import Any

import jax


def layout(tree: Any) -> dict[str, str]:
    """Return the dtype and shape of each leaf, by its path, as JSON holds them."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def json_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as it is read back from JSON."""
    try:
        return json.loads(json.dumps(config))
    except TypeError as error:
        raise TypeError(
            f"config must hold numbers, strings, lists and dicts only ({error}): got {config!r}"
        ) from error


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return one line "name: old -> new" for each entry of two nested dicts that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(old) + [key for key in new if key not in old]
        join = f"{name}." if name else ""
        return [
            line
            for key in names
            for line in differences(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{join}{key}")
        ]
    return [] if old == new else [f"{name}: {old!r} then, {new!r} now"]


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()
