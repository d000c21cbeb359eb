"""Dtypes of data on the devices: 32 bits, unless JAX is set to 64."""

import warnings
from typing import Any

import jax
import numpy as np

_COARSE = 1e-3  # of a standard deviation
_ROWS = 4  # for a standard deviation; two rows may be close together by chance


def narrowed(x: Any, name: str = "") -> Any:
    """Return data ``[N, ...]`` in the dtype of the devices, or raise or warn if it loses.

    Args:
        x: an array of the host, or of JAX, which is returned as it is.
        name: what it is called among the data, for messages.

    Raises:
        ValueError: if a number is beyond the range of that dtype.
    """
    if not isinstance(x, jax.Array):
        x = x.astype(x.dtype.newbyteorder("="), copy=False)  # JAX has no other
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if isinstance(x, jax.Array) or dtype == x.dtype:
        return x
    x = np.asarray(x)
    check_range(x, dtype, name)
    narrow = x.astype(dtype)
    if x.dtype.kind == "f" and x.ndim and len(x) >= _ROWS:
        with np.errstate(invalid="ignore"):  # of data with nan
            error, spread = np.abs(narrow - x).max(axis=0), x.std(axis=0)
        if np.any((error > _COARSE * spread) & (spread > 0)):
            warnings.warn(
                f"data{name} of {x.dtype} are far from zero beside their spread: as {dtype} they "
                f"are rounded by more than {_COARSE:g} of a standard deviation. Subtract the mean",
                stacklevel=3,
            )
    return narrow


def check_range(x: np.ndarray, dtype: Any, name: str = "") -> None:
    """Raise ValueError if a finite number of ``x`` is beyond the range of a dtype of its kind."""
    limits = jax.numpy.iinfo(dtype) if x.dtype.kind in "iu" else jax.numpy.finfo(dtype)
    finite = x[np.isfinite(x)]
    if finite.size and not limits.min <= finite.min() <= finite.max() <= limits.max:
        raise ValueError(
            f"data{name} of {x.dtype} go from {finite.min()} to {finite.max()}, and JAX holds them "
            f"as {dtype}, up to {limits.max}: shift or scale them, or set jax_enable_x64"
        )
