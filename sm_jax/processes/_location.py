"""Where the data are: the mean of a process."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sm_jax.typing import ProcessLike


def data_mean(
    process: ProcessLike, event_shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Return the mean of the data of a process, around which its prior is centered.

    Args:
        process: any process; the mean is zero if it has no attribute ``mean``.
        event_shape: shape of one event.
        dtype: floating dtype of the result.

    Returns:
        One event, ``[...]``, in units of the data.

    Raises:
        ValueError: the mean of the process is neither a scalar nor of the shape of one event.

    Example:
        >>> from sm_jax.processes import VE
        >>> print(data_mean(VE(mean=3.0), (2,)))
        [3. 3.]
    """
    mean, event_shape = jnp.asarray(getattr(process, "mean", 0.0), dtype), tuple(event_shape)
    if mean.shape not in ((), event_shape):
        raise ValueError(
            f"the mean of the process must be a scalar or have the shape of one event, "
            f"{event_shape}, got shape {mean.shape}."
        )
    return jnp.broadcast_to(mean, event_shape)
