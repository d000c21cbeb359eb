"""What the steps share: their arguments, the score at one time, the noise."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.parameterization import at_time
from sm_jax.typing import ArrayOrList, NoiseScoreFn


def arguments(
    x: ArrayOrList, t: ArrayLike, t_next: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return points and times as arrays, or raise unless ``t_next`` is (if concrete) below."""
    x = _checks.check_data(x)
    for name, time in (("t", t), ("t_next", t_next)):
        _checks.check_scalar(name, time)
    start, end = _arrays.concrete(t), _arrays.concrete(t_next)
    if start is not None and end is not None and not end < start:
        raise ValueError(f"t_next must be below t, towards less noise, got {t_next} from t={t}.")
    dtype = _arrays.accumulator(x.dtype)
    return x, jnp.asarray(t, dtype), jnp.asarray(t_next, dtype)


def score(score_fn: NoiseScoreFn, x: jax.Array, t: ArrayLike) -> jax.Array:
    """Return the score at one time of all rows, checked, in float32 at least."""
    return _arrays.accumulated(_checks.check_score(at_time(score_fn, t)(x), x))


def normal(key: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``z``, in float32 at least."""
    return _arrays.drawn(jax.random.normal, key, x)
