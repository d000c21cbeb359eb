"""Training step: one pure function for one device, a mesh of devices, and ``jax.pmap``.

Symbols: theta_n the parameters after n updates, bar theta_n their average, l_i the loss of row i of
a batch of B rows, k the key of the run.

    (1)  L_n = 1/B sum_i l_i(theta_n, fold_in(k, n))         g_n = grad L_n
    (2)  theta_{n+1} = theta_n + update(g_n)                                (Optax)
    (3)  bar theta_{n+1} = bar theta_n + a_n (theta_{n+1} - bar theta_n),   bar theta_0 = theta_0
         a_n = max(1 - decay, 9 / (10 + n)) with warm-up, else 1 - decay

The warm-up of (3) is the decay min(decay, (1 + n) / (10 + n)): early on it averages over the last
tenth or so of the run, so that the random initial parameters are forgotten at once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sm_jax.training._state import State, widened

LossFn = Callable[[Any, Any, Array], Array]
Metrics = dict[str, Array]


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.999,
    ema_warmup: bool = True,
    axis_name: str | None = None,
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """Make the pure function that does one update of the parameters and of their average.

        key = fold_in(state.key, state.step)
        loss = 1/B sum_i loss_fn(params, batch, key)_i
        params' = params + update(grad loss)                              (the optimizer's update)
        ema' = ema + rate (params' - ema)
        rate = max(1 - ema_decay, 9 / (10 + step)) with warm-up, else 1 - ema_decay

    The step is not jitted. On one device, ``jax.jit(step)``. On many, the same ``jax.jit(step)``
    with the batch sharded and the state replicated (``shard_batch``, ``replicate``): the numbers
    are those of one device, random losses included, for ``jax.random`` does not depend on the
    sharding. Under ``jax.pmap``, name the axis, and give the batch as
    ``[devices, B / devices, ...]``:

        step = make_step(loss_fn, optimizer, axis_name="batch")
        step = jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None)

    The gradient and the loss are then averaged over the axis. Each device draws noise of its own
    (its index is folded into the key), so a loss that draws its noise from ``key`` gets other
    numbers of the same distribution than on one device; a loss that is a function of the row alone
    (deterministic, or with a key carried in each row of the batch) gets the same numbers, up to the
    rounding of a sum in another order.

    Args:
        loss_fn: ``loss_fn(params, batch, key) -> [B]``, the un-reduced loss of each row.
        optimizer: an Optax optimizer; it clips, schedules and scales.
        ema_decay: the decay of the parameter average per step, in [0, 1); 0 turns it off.
        ema_warmup: whether the decay of step n rises as ``min(ema_decay, (1 + n) / (10 + n))``, so
            that the initial parameters are soon forgotten.
        axis_name: the mapped axis to average over, under ``jax.pmap`` or ``jax.shard_map``.

    Returns:
        ``step(state, batch) -> (state, metrics)``; the batch is a pytree of arrays ``[B, ...]``;
        metrics are ``loss`` (the mean over the batch, in the units of ``loss_fn``) and
        ``grad_norm`` (the global l2 norm of its gradient, before any clipping), both scalars, taken
        at the parameters before the update.

    Raises:
        ValueError: if ``ema_decay`` is not in [0, 1), or, when traced, if ``loss_fn`` does not
            return ``[B]``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from sm_jax.training import init
        >>> loss_fn = lambda params, x, key: 0.5 * jnp.sum((x - params) ** 2, axis=-1)
        >>> state = init(jnp.zeros(2), optax.sgd(0.5), jax.random.key(0))
        >>> step = jax.jit(make_step(loss_fn, optax.sgd(0.5)))
        >>> state, metrics = step(state, jnp.array([[1.0, 0.0], [3.0, 0.0]]))
        >>> [float(p) for p in state.params], float(metrics["loss"]), float(metrics["grad_norm"])
        ([1.0, 0.0], 2.5, 2.0)
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")

    def mean(value):
        return value if axis_name is None else jax.lax.pmean(value, axis_name)

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

        def mean_loss(params):
            losses = loss_fn(params, batch, key)
            _check_losses(losses, batch)
            return mean(jnp.mean(losses))

        # Averaging the loss as well as the gradient is right whether or not the transformation
        # (shard_map with replication checks) has summed the gradient over the axis already.
        loss, grads = jax.value_and_grad(mean_loss)(state.params)
        grads = mean(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate: Array | float = 1 - ema_decay
        if ema_warmup:
            rate = jnp.maximum(rate, 9 / (10 + state.step))
        state = State(
            params=params,
            # Not (1 - rate) ema + rate params, as in optax.incremental_update: in float32 these
            # weights do not add up to one, which scales the average by up to 6e-8 / rate.
            ema=jax.tree.map(lambda e, p: e + rate * (p - e), state.ema, params),
            opt_state=opt_state,
            step=state.step + 1,
            key=state.key,
        )
        return state, {"loss": loss, "grad_norm": optax.tree.norm(widened(grads))}

    return step


def _check_losses(losses: Array, batch: Any) -> None:
    rows = jax.tree.leaves(batch)[0].shape[0]
    if jnp.shape(losses) != (rows,):
        raise ValueError(
            f"loss_fn must return one loss for each row of the batch, shape ({rows},), got shape "
            f"{jnp.shape(losses)}: leave the mean over the batch to the step, and sum or average "
            "over all other axes"
        )
