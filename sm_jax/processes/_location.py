"""Where the data are: the mean of a process, and a warning where data have another.

Data of mean ``m`` noised to ``t_max`` and the prior of a process of mean ``m'`` differ by

    KL = |alpha (m - m')|^2 / (2 sigma^2)    at t_max,                                   (1)

besides the effect of the spread of the data. Likelihoods are too small by this number of nats, and
samples start ``sqrt(2 KL)`` standard deviations of the prior away from where they should.
"""

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sm_jax import _arrays
from sm_jax.typing import ProcessLike

_NATS = 2.0  # of eq. (1): 256 x 256 x 3 numbers of mean 0.3 make 1.4 beside a sigma_max of 80
_ERRORS = 4.0  # standard errors of the mean that are allowed for
_FEW = 4  # rows below which nothing is said


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


def warn_off_center(process: ProcessLike, x: jax.Array, name: str) -> None:
    """Warn where the mean of ``x [B, ...]`` makes the prior wrong by over two nats, eq. (1).

    It says nothing about fewer than four rows, about a mean within four standard errors of what is
    right, or about anything traced.

    Args:
        process: any process; its ``mean`` is zero if it has none.
        x: data or samples ``[B, ...]``.
        name: what the warning calls them.

    Example:
        >>> import warnings
        >>> from sm_jax.processes import VE
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_off_center(VE(sigma_max=1.0), jnp.full((10, 1), 50.0), "the data")
        >>> str(caught[0].message)[:31]
        'the mean of the data is 50 (roo'
    """
    end = process.t_max
    prior = data_mean(process, x.shape[1:]), process.alpha(end), process.sigma(end)
    known = _arrays.all_concrete((x, *prior))
    if len(x) < _FEW or known is None:
        return
    rows, center, *ends = known
    rows = rows.astype(np.float64)
    mean, spread = rows.mean(axis=0), np.linalg.norm(rows.std(axis=0, ddof=1))
    away = np.linalg.norm(mean - center) - _ERRORS * spread / np.sqrt(len(rows))
    scale, sigma = map(float, ends)
    nats = 0.5 * (scale * max(away, 0.0) / sigma) ** 2
    if nats > _NATS:
        warnings.warn(
            f"the mean of {name} is {mean.mean():.4g} (root mean square {_rms(mean):.4g}), and the "
            f"prior is centered at data of mean {center.mean():.4g}, with standard deviation "
            f"{sigma / scale:.4g} in units of the data: wrong by {nats:.3g} nats. Center the data, "
            "give the process their mean, e.g. VE(..., mean=...), or raise its largest noise.",
            stacklevel=3,
        )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
