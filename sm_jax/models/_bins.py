r"""Residual multilayer perceptron for data of integer values, such as pixels.

The ``R`` outputs ``o_dr`` of the network of sm_jax.models._mlp for the number ``d`` of an event
become log-weights of its values ``k``,

    l_dk = bias_dk + sum_r o_dr basis_rk,                                              (1)

with a bias of each number and value, the marginal weights of the values, and a basis that all
numbers share.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sm_jax._checks import check_count
from sm_jax.models import _checks
from sm_jax.models._mlp import _Network


class BinMLP(nnx.Module):
    """Residual multilayer perceptron with one log-weight per integer value of every number.

    For number ``d`` of an event and value ``k``, with the ``rank`` features of ``d``,

        log_weights[d, k] = bias[d, k] + sum_r features[d, r] basis[r, k],

    where the features are the output of the network of ``MLP``. ``sm_jax.quantized.precondition``
    makes a score of it. Before training all values have equal weights.

    Args:
        event_shape: shape of one example; an integer ``n`` means ``(n,)``, and ``()`` scalar
            events.
        num_values: number of values of each number.
        rank: number of features ``R`` from which the log-weights of a number are made.
        width: number of hidden features.
        depth: number of residual blocks, each of two linear layers.
        embed_dims: number of features of the noise embedding.
        cond_dims: number of conditioning features; 0 for an unconditional network.
        dropout: probability of dropping a hidden feature, when called with ``rngs``.
        dtype: dtype of the computation; see ``MLP``.
        rngs: random state that the parameters are drawn from.

    Call:
        ``network(x [B, *event_shape], c_noise [B], cond=None or [B, cond_dims], *, rngs=None)``
        returns ``[B, *event_shape, num_values]`` in the dtype of ``x``.

    Raises:
        ValueError: for sizes below 1, fewer than two values, a dropout rate outside [0, 1), and,
            when called, for arrays of other shapes.
        TypeError: when called on arrays that are not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from sm_jax import models
        >>> network = models.BinMLP((8, 8), 17, width=32, depth=2, rngs=nnx.Rngs(0))
        >>> network(jnp.ones((5, 8, 8)), jnp.zeros(5)).shape
        (5, 8, 8, 17)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_values: int,
        *,
        rank: int = 4,
        width: int = 256,
        depth: int = 4,
        embed_dims: int = 64,
        cond_dims: int = 0,
        dropout: float = 0.0,
        dtype: jax.typing.DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        event_shape = _checks.as_shape("event_shape", event_shape)
        check_count("num_values", num_values, 2)
        check_count("rank", rank)
        num_dims = math.prod(event_shape)
        self.network = _Network(
            event_shape,
            num_dims * rank,
            width=width,
            depth=depth,
            embed_dims=embed_dims,
            cond_dims=cond_dims,
            dropout=dropout,
            activation=nnx.silu,
            dtype=dtype,
            rngs=rngs,
        )
        draw = nnx.initializers.lecun_normal()
        self.basis = nnx.Param(draw(rngs.params(), (rank, num_values)))
        self.bias = nnx.Param(jnp.zeros((num_dims, num_values)))

    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array,
        cond: jax.Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Return the log-weights, ``[B, *event_shape, num_values]``; see the class."""
        num_dims, num_values = self.bias.shape
        features = self.network(x, c_noise, cond, rngs=rngs)
        features = features.reshape(x.shape[0], num_dims, self.basis.shape[0])
        logits = self.bias[...][None] + features @ self.basis[...]
        return logits.reshape(*x.shape, num_values).astype(x.dtype)
