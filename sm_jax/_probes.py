"""Random probe vectors ``v`` with ``E[v v'] = I``, drawn for every row of a batch."""

import jax
import numpy as np

from sm_jax import _arrays, _checks
from sm_jax.typing import RandomFn


def probe_source(key: jax.Array, x: jax.Array, num_probes: int, probe: RandomFn):
    """Return ``(draw, keys [K])``; ``draw(keys[k])`` is one probe for every row, ``[B, ...]``.

    With these a loop makes each probe where it is used.
    """
    _checks.check_count("num_probes", num_probes)
    _checks.check_key("probe", key)

    def draw(key):
        v = _arrays.drawn(probe, key, x).astype(x.dtype)
        _check_unit_variance(v)
        return v

    return draw, jax.random.split(key, num_probes)


def draw_probes(key: jax.Array, x: jax.Array, num_probes: int, probe: RandomFn) -> jax.Array:
    """Return the ``num_probes`` probes of `probe_source`, ``[K, B, ...]``."""
    draw, keys = probe_source(key, x, num_probes, probe)
    return jax.vmap(draw)(keys)


def _check_unit_variance(v: jax.Array) -> None:
    """Raise if many (concrete) probes have another mean square than 1, by more than chance.

    Of 1,000 numbers of a normal distribution the mean square has a standard deviation of 0.045.
    """
    known = _arrays.concrete(v) if v.size >= 1000 else None
    if known is None:
        return
    mean_square = np.mean(known.astype(np.float64) ** 2)
    if not 0.7 < mean_square < 1.4:
        raise ValueError(
            f"probes must have identity covariance, E[v v'] = I, but the mean of v_i^2 is "
            f"{mean_square:.3g} over {v.size} numbers: scale them, or pass jax.random.rademacher, "
            "jax.random.normal or sm_jax.divergence.sphere."
        )
