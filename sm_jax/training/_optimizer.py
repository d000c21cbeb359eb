"""Optimizer: AdamW with clipping, linear warm-up and cosine decay."""

import jax
import optax

from sm_jax._checks import check_count, check_not_negative, check_positive
from sm_jax.training._state import widened


def adamw(
    learning_rate: float,
    num_steps: int,
    *,
    warmup: float = 0.02,
    final: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """Make the AdamW optimizer, with clipping by the global norm, warm-up and cosine decay.

    With the gradient ``g`` of step ``n`` (from 0), all operations elementwise,

        g <- g min(1, clip_norm / |g|)
        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
        params <- params - rate_n (m_hat / (sqrt(v_hat) + 1e-8) + weight_decay params)

    where ``m_hat = m / (1 - b1^(n + 1))`` and ``v_hat = v / (1 - b2^(n + 1))``, and with
    ``W = warmup num_steps``, rounded and below ``num_steps``,

        rate_n = learning_rate n / W                                                    n < W
        rate_n = learning_rate (final + (1 - final) (1 + cos(pi u)) / 2)                n >= W
        u = min(1, (n - W) / (num_steps - W))

    Args:
        learning_rate: the highest rate.
        num_steps: the length of the run in steps.
        warmup: the share of the run, in [0, 1), over which the rate rises from zero.
        final: the share of ``learning_rate`` that is left at step ``num_steps``, in [0, 1].
        weight_decay: decoupled weight decay per step and unit of learning rate.
        clip_norm: the largest global norm of the gradient; ``float("inf")`` never clips.
        b1: decay of the first moment.
        b2: decay of the second moment.

    Returns:
        An Optax gradient transformation; its moments are in float32 at least.

    Raises:
        ValueError: on a number out of its range.
        TypeError: if ``num_steps`` is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = adamw(1e-3, num_steps=1000, warmup=0.1)
        >>> opt_state = optimizer.init({"w": jnp.ones(3)})

    References:
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101
    """
    check_positive("learning_rate", learning_rate)
    check_count("num_steps", num_steps)
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the run in [0, 1), got {warmup}")
    if not 0 <= final <= 1:
        raise ValueError(f"final is a share of the learning rate in [0, 1], got {final}")
    if not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, got {clip_norm}; inf never clips")
    check_not_negative("weight_decay", weight_decay)
    for name, decay in (("b1", b1), ("b2", b2)):
        if not 0 <= decay < 1:
            raise ValueError(f"{name} is a decay per step in [0, 1), got {decay}")
    warmup_steps = min(round(warmup * num_steps), num_steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else learning_rate,
        peak_value=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=num_steps,
        end_value=final * learning_rate,
    )
    return _in_float32(
        optax.chain(
            optax.clip_by_global_norm(clip_norm),
            optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay),
        )
    )


def _in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer whose norms and moments are in float32 at least, as the average is.

    In bfloat16 a sum of squares stalls, and so does a moment: the share (1 - b2) of a square that
    is added to it is below its spacing.
    """

    def init(params):
        return optimizer.init(widened(params))

    def update(updates, state, params=None):
        params = None if params is None else widened(params)
        wide, state = optimizer.update(widened(updates), state, params)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), wide, updates), state

    return optax.GradientTransformation(init, update)
