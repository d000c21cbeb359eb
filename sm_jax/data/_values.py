"""The check that every array of data passes before it is used."""

from collections.abc import Callable

import numpy as np


def check_numbers(
    x: np.ndarray, source: str, locate: Callable[[tuple[int, ...]], str] = "index {}".format
) -> None:
    """Raise unless ``x [N, ...]`` is a non-empty array of finite real numbers.

    Args:
        x: the data.
        source: what the data is, for messages: a path or the name of an argument.
        locate: words for the place of an index in the source.
    """
    if not any(np.issubdtype(x.dtype, kind) for kind in (np.bool_, np.integer, np.floating)):
        remedy = "stack its real and imaginary parts" if x.dtype.kind == "c" else "encode it so"
        raise TypeError(f"{source} must hold real numbers, got dtype {x.dtype}: {remedy}.")
    if x.ndim == 0:
        raise ValueError(f"{source} must be examples [N, ...], got one number: add a first axis.")
    if x.size == 0:
        raise ValueError(f"{source} is empty, shape {x.shape}: at least one example is needed.")
    bad = ~np.isfinite(x)
    if bad.any():
        first = tuple(int(i) for i in np.unravel_index(np.argmax(bad), x.shape))
        raise ValueError(
            f"{source} has {bad.sum()} NaN or infinite values among {x.size}, the first one "
            f"({x[first]}) at {locate(first)}: drop those examples or fill the values in."
        )
