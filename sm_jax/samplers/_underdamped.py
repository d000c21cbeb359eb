"""Underdamped Langevin dynamics, a particle of unit mass in a heat bath.

With friction ``gamma``,

    dx = v dt,    dv = (s(x) - gamma v) dt + sqrt(2 gamma) dw,                         (1)

whose stationary density is ``p(x) N(v; 0, I)``. One BAOAB step of size ``h``, with
``c = exp(-gamma h)``, splits it into a kick (B), a drift (A) and the exact heat bath (O):

    B  v <- v + h/2 s(x),    A  x <- x + h/2 v,    O  v <- c v + sqrt(1 - c^2) z,      (2)

then A and B again. The score of the last kick is that of the next step's first.

Reference: Leimkuhler & Matthews 2013, https://doi.org/10.1093/amrx/abs010
"""

from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax._scan import wide
from sm_jax.typing import ArrayOrList, ScoreFn


@overload
def underdamped(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    step_size: ArrayLike,
    num_steps: int,
    friction: ArrayLike = 1.0,
    velocity: None = None,
    trajectory: Literal[False] = False,
) -> jax.Array: ...


@overload
def underdamped(*args: Any, **options: Any) -> tuple[jax.Array, ...]: ...


def underdamped(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    step_size: ArrayLike,
    num_steps: int,
    friction: ArrayLike = 1.0,
    velocity: ArrayOrList | None = None,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, ...]:
    """Run underdamped Langevin dynamics by the BAOAB splitting, with ``h = step_size``, a time.

    From the velocity ``v``, of unit mass, each step is, with ``c = exp(-friction h)``,

        v <- v + h/2 s(x),    x <- x + h/2 v,    v <- c v + sqrt(1 - c^2) z,
        x <- x + h/2 v,       v <- v + h/2 s(x).

    Order 2 in ``h``, one evaluation of the score a step, and one to start. For a Gaussian of
    standard deviation ``d`` the positions have no bias at all below the limit ``h < 2 d``, beyond
    which the chain diverges. Its velocity persists, so it crosses a wide density in fewer
    evaluations than `langevin`: prefer it for badly scaled or high-dimensional densities and smooth
    scores. It fails between separate modes, and where the score has errors that a rejection would
    catch, such as that of `mala`.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``.
        x: starting points ``[B, ...]``.
        key: a random key.
        step_size: ``h``, in units of the data, not squared; below twice the smallest standard
            deviation.
        num_steps: number of steps.
        friction: in inverse units of the data: about one over the largest standard
            deviation mixes best; 0 is Hamiltonian dynamics; for large ones `langevin` with step
            ``h^2 / 2``.
        velocity: starting velocities ``[B, ...]``, by default drawn from ``N(0, I)``. If given, the
            last ones are returned too, so that a run can be resumed.
        trajectory: also return the trajectory.

    Returns:
        The last points ``x [B, ...]``; given a velocity, ``(x, velocity)``; with ``trajectory`` the
        trajectory of positions ``[num_steps + 1, B, ...]`` is appended: ``(x, trajectory)`` or
        ``(x, velocity, trajectory)``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score or the velocity has another shape, ``num_steps < 1``,
            ``step_size`` is not one positive number, or ``friction`` is negative.

    Example:
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> underdamped(lambda x: -x, x, key, step_size=0.5, num_steps=50).shape
        (4, 2)

    Reference: Leimkuhler & Matthews 2013, https://doi.org/10.1093/amrx/abs010
    """
    x = _checks.check_data(x)
    _checks.check_key("underdamped", key)
    for name, value in (("step_size", step_size), ("friction", friction)):
        _checks.check_scalar(name, value)
    _checks.check_positive("step_size", step_size)
    _checks.check_count("num_steps", num_steps)
    _checks.check_not_negative("friction", friction)
    score_fn = wide(score_fn, x)
    if velocity is not None and (shape := _arrays.shape(velocity)) != x.shape:
        raise ValueError(f"velocity must have the shape of x, {x.shape}, got {shape}.")
    key_velocity, key_bath = jax.random.split(key)
    place = _arrays.accumulated(x)
    if velocity is None:
        start = jax.random.normal(key_velocity, x.shape, place.dtype)
    else:
        start = jnp.asarray(velocity, place.dtype)
    decay = jnp.asarray(friction * step_size)
    kept, spread = jnp.exp(-decay), jnp.sqrt(-jnp.expm1(-2.0 * decay))

    def body(state, key):
        y, v, score = state
        v = v + 0.5 * step_size * score
        middle = y + 0.5 * step_size * v
        v = kept * v + spread * jax.random.normal(key, x.shape, place.dtype)
        y = (middle + 0.5 * step_size * v).astype(place.dtype)
        score = score_fn(y)
        v = (v + 0.5 * step_size * score).astype(place.dtype)
        return (y, v, score), y.astype(x.dtype) if trajectory else None

    keys = jax.random.split(key_bath, num_steps)
    begin = (place, start, compiled(score_fn, place))
    (last, v, _), iterates = compiled(partial(jax.lax.scan, body), begin, keys)
    last = last.astype(x.dtype)
    result = (last,) if velocity is None else (last, v.astype(x.dtype))
    if trajectory:
        result = (*result, jnp.concatenate([x[None], iterates]))
    return result if len(result) > 1 else last
