"""Checks of the arguments of networks, at trace time."""

from collections.abc import Sequence

import jax

from sm_jax._checks import check_count, check_data


def check_rate(rate: float) -> None:
    """Raise unless ``rate`` is a probability of dropping, below 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout must be the probability of dropping, in [0, 1), got {rate}.")


def as_shape(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple of positive integers; an integer ``n`` means ``(n,)``."""
    shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    for size in shape:
        check_count(f"every number in {name} = {shape}", size)
    return tuple(int(size) for size in shape)


def check_inputs(
    x: jax.Array,
    c_noise: jax.Array,
    cond: jax.Array | None,
    *,
    event_shape: tuple[int, ...],
    cond_dims: int,
) -> None:
    """Raise unless x is ``[B, *event_shape]``, c_noise ``[B]``, cond ``[B, cond_dims]`` or None."""
    x, c_noise = check_data(x), check_data(c_noise, "c_noise")
    if x.shape[1:] != event_shape:
        raise ValueError(
            f"x must be [B, ...] with events of shape {event_shape}, for which this network was "
            f"built, got shape {x.shape}."
        )
    if c_noise.shape != x.shape[:1]:
        raise ValueError(
            f"c_noise must be one number per example, shape {x.shape[:1]}, got shape "
            f"{c_noise.shape}."
        )
    if cond is None:
        return
    cond = check_data(cond, "cond")
    if cond_dims == 0:
        raise ValueError(
            f"cond of shape {cond.shape} was given to an unconditional network: build it with "
            f"cond_dims={cond.shape[-1]}."
        )
    if cond.shape != (x.shape[0], cond_dims):
        raise ValueError(
            f"cond must be [B, cond_dims], shape {(x.shape[0], cond_dims)}, got {cond.shape}."
        )
