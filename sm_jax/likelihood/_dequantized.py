r"""Log-probabilities of integer data from a density: dequantization, uniform and variational.

Data of ``K`` values ``x_j in {0, ..., K - 1}`` become real numbers ``v = x + u`` with noise ``u``
in ``[0, 1)^D`` from some ``q(u | x)``, seen by the model as ``y = 2 v / K - 1``. A density ``p(v)``
assigns to ``x`` the probability of its cell,

    P(x) = int p(x + u) du = E_q[p(x + u) / q(u | x)],                                 (1)
    log P(x) >= E log (1/n) sum_i p(x + u_i) / q(u_i | x),    u_i ~ q,                 (2)

which is tight where ``q(u | x)`` is proportional to ``p(x + u)``, and rises with ``n``. For uniform
noise ``q = 1``. A trained ``q`` has its parameters from a network that sees ``x``, and is trained
by (2), like the model.

References: Theis et al. 2016 (uniform), https://arxiv.org/abs/1511.01844; Ho et al. 2019
(variational), https://arxiv.org/abs/1902.00275; Hoogeboom et al. 2020 (several samples),
https://arxiv.org/abs/2001.11235
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.typing import ArrayOrList


class Dequantizer(Protocol):
    """A conditional density of noise: ``(x [B, ...], key) -> (u [B, ...], log q(u | x) [B])``."""

    def __call__(self, x: jax.Array, key: jax.Array, /) -> tuple[jax.Array, jax.Array]:
        """Return noise in the unit cube and its log-density, in nats."""
        ...


def uniform_dequantizer(x: ArrayOrList, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return uniform noise in ``[0, 1)`` and its log-density, 0.

    Args:
        x: values ``[B, ...]``, floating.
        key: a random key.

    Returns:
        ``(u [B, ...], log_q [B])``, in float32 at least.

    Raises:
        TypeError: ``x`` is not floating.

    Example:
        >>> u, log_q = uniform_dequantizer(jnp.zeros((2, 3)), jax.random.key(0))
        >>> print(u.shape, log_q)
        (2, 3) [0. 0.]
    """
    x = _checks.check_data(x)
    u = _arrays.drawn(jax.random.uniform, key, x)
    return u, jnp.zeros(x.shape[0], u.dtype)


def logit_normal_dequantizer(
    parameters_fn: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> Dequantizer:
    """Return the dequantizer ``u = sigmoid(m(x) + exp(l(x)) z)``, ``z ~ N(0, I)``, to be trained.

    The gradient of `discrete_log_prob` flows through ``u`` to the parameters that ``parameters_fn``
    closes over.

    Args:
        parameters_fn: ``x [B, ...] -> (m, l)``, location and log-scale of the logits, each
            ``[B, ...]``; ``x`` are the values as given to `discrete_log_prob`.

    Returns:
        A `Dequantizer`.

    Example:
        >>> dequantizer = logit_normal_dequantizer(lambda x: (0.1 * x, jnp.zeros_like(x)))
        >>> u, log_q = dequantizer(jnp.ones((2, 3)), jax.random.key(0))
        >>> u.shape, log_q.shape
        ((2, 3), (2,))

    Reference: Ho et al. 2019, https://arxiv.org/abs/1902.00275
    """

    def dequantizer(x, key):
        location, log_scale = parameters_fn(x)
        z = _arrays.drawn(jax.random.normal, key, x)
        logits = location + jnp.exp(log_scale) * z
        # du / dlogits = u (1 - u), and log u + log(1 - u) without loss for large logits.
        log_slope = jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits)
        log_normal = -0.5 * (z**2 + jnp.log(2 * jnp.pi)) - log_scale
        return jax.nn.sigmoid(logits), _arrays.sum_data_axes(log_normal - log_slope)

    return dequantizer


def discrete_log_prob(
    log_prob_fn: Callable[[jax.Array], jax.Array],
    x: ArrayOrList,
    key: jax.Array,
    *,
    num_values: int,
    dequantizer: Dequantizer = uniform_dequantizer,
    num_samples: int = 1,
) -> jax.Array:
    """Return a lower bound of the log-probability of integer data, by dequantization.

    With ``n`` draws of noise, ``K`` values and ``p`` the density of ``log_prob_fn``, it is

        log (1/n) sum_i p(y_i) (2 / K)^D / q(u_i | x),    y_i = 2 (x + u_i) / K - 1,    u_i ~ q.

    Args:
        log_prob_fn: the log-density of the model, ``y [B, ...] -> [B]``, in nats, of the data
            scaled as ``y = 2 (x + u) / num_values - 1``; e.g. `log_prob` of a trained score.
        x: values ``0, ..., num_values - 1``, as floating numbers ``[B, ...]``. The model sees them
            scaled in float32 at least.
        key: a random key.
        num_values: ``K``, the number of values.
        dequantizer: source of the noise: `uniform_dequantizer`, or one that
            `logit_normal_dequantizer` makes of a network.
        num_samples: ``n``; each is one evaluation of ``log_prob_fn``, one after the other.

    Returns:
        ``[B]``, in nats, of the integer data: its mean over keys is at most ``log P(x)``, and ``P``
        sums to one over all ``x``. `bits_per_dim` of it, with no offset, counts the bits of a
        lossless code.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` is empty or not within the values, a count is too small, or a log-density
            is not one number per example.

    Example:
        >>> flat = lambda y: jnp.full(y.shape[0], -3 * jnp.log(2.0))  # uniform on [-1, 1]^3
        >>> x, key = jnp.array([[0.0, 3.0, 7.0]]), jax.random.key(0)
        >>> bits = -discrete_log_prob(flat, x, key, num_values=8) / jnp.log(2.0)
        >>> print(bits.round(4))
        [9.]

    Reference: Hoogeboom et al. 2020, https://arxiv.org/abs/2001.11235
    """
    x = _checks.check_data(x)
    _checks.check_count("num_values", num_values, minimum=2)
    _checks.check_count("num_samples", num_samples)
    known = _arrays.concrete(x)
    if known is not None and not (
        known.min() >= 0 and known.max() <= num_values - 1 and np.all(known == np.round(known))
    ):
        raise ValueError(
            f"x must hold the values 0, 1, ..., num_values - 1 = {num_values - 1}, got values from "
            f"{known.min()} to {known.max()}: pass the integers themselves, not scaled data."
        )
    x = _arrays.accumulated(x)  # bfloat16 has nothing between large integers
    log_det = _arrays.num_dims(x) * jnp.log(2.0 / num_values)

    def log_weight(key):
        u, log_q = dequantizer(x, key)
        # A number just below the next value would round up to it.
        v = jnp.minimum(x + u, jnp.nextafter(x + 1, x))
        log_p = log_prob_fn(v * (2.0 / num_values) - 1.0)
        for name, value in (("log_prob_fn", log_p), ("the log-density of dequantizer", log_q)):
            if value.shape != x.shape[:1]:
                raise ValueError(
                    f"{name} must be one number per example, shape {x.shape[:1]}, got shape "
                    f"{value.shape}: sum over the axes of an event."
                )
        return log_p + log_det - log_q

    log_weights = compiled(partial(jax.lax.map, log_weight), jax.random.split(key, num_samples))
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(num_samples)
