"""Metadata of a run: the configuration and the layout that a continuation must have."""

import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from sm_jax import __version__
from sm_jax.training._compare import differences, json_config, layout
from sm_jax.training._files import write_text
from sm_jax.training._state import State

FORMAT_VERSION = 1


def write_metadata(
    directory: pathlib.Path,
    state: State,
    config: Mapping[str, Any],
    *,
    best_metric: str | None = None,
    best_mode: str = "min",
) -> None:
    """Write ``metadata.json``, atomically, from the first process.

    Args:
        directory: the run directory.
        state: the state whose layout (names, shapes, dtypes) is recorded.
        config: whatever must not change between a run and its continuation; anything that JSON
            holds.
        best_metric: the metric by which the best checkpoint is kept.
        best_mode: "min" or "max".

    Raises:
        TypeError: if JSON cannot hold ``config``.
    """
    libraries = ("jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")
    metadata = {
        "format_version": FORMAT_VERSION,
        "config": json_config(config),
        "best": {"metric": best_metric, "mode": best_mode},
        "state": layout(state),
        "libraries": {"sm_jax": __version__}
        | {name: importlib.metadata.version(name) for name in libraries},
    }
    if jax.process_index() == 0:
        write_text(directory / "metadata.json", json.dumps(metadata, indent=2) + "\n")


def read_metadata(directory: str | os.PathLike) -> dict[str, Any]:
    """Read the metadata of a run.

    Args:
        directory: the run directory.

    Returns:
        The content of ``metadata.json``: "format_version", "config", "best", "state", "libraries".

    Raises:
        ValueError: if there is none, it is not JSON, lacks an entry, or its format is not the one
            read here.
    """
    path = pathlib.Path(directory) / "metadata.json"
    try:
        metadata = json.loads(path.read_text())
        version = metadata["format_version"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{directory} is not a run directory: its metadata.json cannot be read ({error!r})"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, and this sm_jax reads {FORMAT_VERSION}: "
            "use the sm_jax that wrote it, see the entry libraries"
        )
    best = metadata.get("best")
    whole = all(isinstance(metadata.get(name), dict) for name in ("config", "best", "state"))
    if not whole or not {"metric", "mode"} <= best.keys():
        raise ValueError(
            f"{path} is damaged: it must have the entries config, state and best (of metric and "
            f"mode), and has {sorted(metadata)}, with best={best!r}. Put it back as it was written"
        )
    return metadata


def check_metadata(
    metadata: Mapping[str, Any], state: State | None, config: Mapping[str, Any]
) -> None:
    """Raise if a run cannot be continued by this state and configuration.

    Args:
        metadata: what ``read_metadata`` returned.
        state: the state to be restored into; None compares the configurations only.
        config: the configuration of the continuation, as it was given to ``write_metadata``.

    Raises:
        ValueError: naming each entry that differs, with both values.
    """
    compared = {"config": json_config(config)}
    if state is not None:
        compared["state"] = layout(state)
    for kind, new in compared.items():
        changed = differences(metadata[kind], new)
        if changed:
            shown = "; ".join(changed[:8]) + ("; ..." if len(changed) > 8 else "")
            raise ValueError(
                f"the run to resume has another {kind}: {shown}. "
                "Resume with the same one, or start a run in a new directory"
            )
