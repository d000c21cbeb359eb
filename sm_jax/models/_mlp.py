"""Residual multilayer perceptrons, conditioned on the noise level.

With e the embedding of the noise level, d = 1, ..., depth, and an activation f,

    h_0 = W_in x + b_in                                                                 (1)
    u_d = (1 + a_d) (W_d h_{d-1} + b_d) + c_d,     (a_d, c_d) = V_d e + v_d             (2)
    h_d = h_{d-1} + W'_d dropout(f(u_d)) + b'_d                                         (3)
    output = W_out h_depth + b_out                                                      (4)

(2) is the adaptive scale and shift of FiLM. W'_d and W_out start at zero: every block starts as the
identity and the network as zero. This takes the place of normalization layers, which cost
time and, on data of few dimensions, discard the length of x.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sm_jax._checks import check_count
from sm_jax.models import _checks
from sm_jax.models._embedding import NoiseEmbedding


class _Block(nnx.Module):
    """Equations (2) and (3): ``(h [B, width], embedding [B, embed_dims]) -> [B, width]``."""

    def __init__(self, width, embed_dims, *, activation, dropout, dtype, rngs):
        self.activation = activation
        self.dropout = nnx.Dropout(dropout)
        self.hidden = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.film = nnx.Linear(embed_dims, 2 * width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(
            width, width, kernel_init=nnx.initializers.zeros_init(), dtype=dtype, rngs=rngs
        )

    def __call__(self, h, embedding, rngs=None):
        scale, shift = jnp.split(self.film(embedding), 2, axis=-1)
        u = self.activation((1 + scale) * self.hidden(h) + shift)
        return h + self.out(self.dropout(u, deterministic=rngs is None, rngs=rngs))


class _Network(nnx.Module):
    """Equations (1) to (4): ``(x [B, *event_shape], c_noise [B], cond) -> [B, num_outputs]``."""

    def __init__(
        self,
        event_shape,
        num_outputs,
        *,
        width,
        depth,
        embed_dims,
        cond_dims,
        dropout,
        activation,
        dtype,
        rngs,
    ):
        check_count("width", width)
        check_count("embed_dims", embed_dims)
        check_count("depth", depth, 0)
        check_count("cond_dims", cond_dims, 0)
        _checks.check_rate(dropout)
        self.event_shape, self.cond_dims = event_shape, cond_dims
        self.embedding = NoiseEmbedding(embed_dims, cond_dims=cond_dims, dtype=dtype, rngs=rngs)
        self.inputs = nnx.Linear(math.prod(event_shape), width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            _Block(
                width, embed_dims, activation=activation, dropout=dropout, dtype=dtype, rngs=rngs
            )
            for _ in range(depth)
        )
        self.outputs = nnx.Linear(
            width, num_outputs, kernel_init=nnx.initializers.zeros_init(), dtype=dtype, rngs=rngs
        )

    def __call__(self, x, c_noise, cond=None, *, rngs=None):
        _checks.check_inputs(
            x, c_noise, cond, event_shape=self.event_shape, cond_dims=self.cond_dims
        )
        embedding = self.embedding(c_noise, cond)
        h = self.inputs(x.reshape(x.shape[0], math.prod(self.event_shape)))
        for block in self.blocks:
            h = block(h, embedding, rngs)
        return self.outputs(h).astype(x.dtype)


class MLP(nnx.Module):
    """Residual multilayer perceptron, conditioned on the noise level, for events of any shape.

    On the flattened event, with ``embedding`` that of the noise level and of ``cond``,

        h = inputs(x),
        u = activation((1 + scale) hidden(h) + shift),    (scale, shift) = film(embedding),
        h <- h + out(dropout(u)),                         ``depth`` times, each with its own layers,
        mlp(x, c_noise, cond) = outputs(h),

    where ``inputs``, ``hidden``, ``film``, ``out`` and ``outputs`` are linear layers with bias;
    ``out`` and ``outputs`` start at zero, and so does the network.

    Args:
        event_shape: shape of one example; an integer ``n`` means ``(n,)``, and ``()`` scalar
            events.
        width: number of hidden features.
        depth: number of residual blocks, each of two linear layers.
        embed_dims: number of features of the noise embedding.
        cond_dims: number of conditioning features; 0 for an unconditional network.
        dropout: probability of dropping a hidden feature, when called with ``rngs``.
        activation: elementwise function; a smooth one if the network's derivative is trained.
        dtype: dtype of the computation, e.g. ``jnp.bfloat16``; by default that of input and
            parameters. Parameters are float32 and the output has the dtype of ``x`` in any case.
        rngs: random state that the parameters are drawn from.

    Call:
        ``mlp(x [B, *event_shape], c_noise [B], cond=None or [B, cond_dims], *, rngs=None)`` returns
        an array of the shape and dtype of ``x``. ``cond=None`` is the same as zeros: no condition.

    Raises:
        ValueError: for sizes below 1, a dropout rate outside [0, 1), and, when called, for arrays
            of other shapes, or conditioning features given to an unconditional network.
        TypeError: when called on arrays that are not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from sm_jax import models
        >>> mlp = models.MLP((8, 8), width=32, depth=2, rngs=nnx.Rngs(0))
        >>> mlp(jnp.ones((5, 8, 8)), jnp.zeros(5)).shape
        (5, 8, 8)

    References:
        Perez et al., 2018, "FiLM", https://arxiv.org/abs/1709.07871;
        De & Smith, 2020, "Batch normalization biases residual blocks towards the identity
        function", https://arxiv.org/abs/2002.10444, on blocks that start as the identity.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        width: int = 256,
        depth: int = 4,
        embed_dims: int = 64,
        cond_dims: int = 0,
        dropout: float = 0.0,
        activation: Callable[[jax.Array], jax.Array] = nnx.silu,
        dtype: jax.typing.DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        event_shape = _checks.as_shape("event_shape", event_shape)
        self.network = _Network(
            event_shape,
            math.prod(event_shape),
            width=width,
            depth=depth,
            embed_dims=embed_dims,
            cond_dims=cond_dims,
            dropout=dropout,
            activation=activation,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array,
        cond: jax.Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Return an array of the shape and dtype of ``x``; see the class."""
        return self.network(x, c_noise, cond, rngs=rngs).reshape(x.shape)


class EnergyMLP(nnx.Module):
    """Residual multilayer perceptron with one output: the energy of a density p, p ∝ exp(-E).

    The network of ``MLP`` with one output, ``E(x) = outputs(h)``. Its score,
    ``sm_jax.parameterization.EnergyScore(energy)``, is ``-grad_x E(x)``: a gradient field,
    which the output of an ``MLP`` need not be. The energy, and with it the score, is zero until the
    first update. Nothing makes ``exp(-E)`` integrable by itself;
    ``sm_jax.parameterization.precondition_energy`` adds the energy of a Gaussian.

    Args:
        event_shape: shape of one example; an integer ``n`` means ``(n,)``, and ``()`` scalar
            events.
        width: number of hidden features.
        depth: number of residual blocks, each of two linear layers.
        embed_dims: number of features of the noise embedding.
        cond_dims: number of conditioning features; 0 for an unconditional network.
        dropout: probability of dropping a hidden feature, when called with ``rngs``.
        activation: elementwise function, twice differentiable, as training takes second
            derivatives.
        dtype: dtype of the computation; by default that of input and parameters. Parameters are
            float32 and the output has the dtype of ``x`` in any case.
        rngs: random state that the parameters are drawn from.

    Call:
        ``energy(x [B, *event_shape], c_noise [B], cond=None or [B, cond_dims], *, rngs=None)``
        returns energies ``[B]`` in nats, with the dtype of ``x``. ``cond=None`` is the same as
        zeros: no condition.

    Raises:
        ValueError: for sizes below 1, a dropout rate outside [0, 1), and, when called, for arrays
            of other shapes, or conditioning features given to an unconditional network.
        TypeError: when called on arrays that are not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from sm_jax import models, parameterization
        >>> energy = models.EnergyMLP(2, width=32, depth=2, rngs=nnx.Rngs(0))
        >>> energy(jnp.ones((5, 2)), jnp.zeros(5)).shape
        (5,)
        >>> parameterization.EnergyScore(energy)(jnp.ones((5, 2)), jnp.zeros(5)).shape
        (5, 2)

    References:
        Song & Ermon, 2019, https://arxiv.org/abs/1907.05600; Salimans & Ho, 2021, "Should EBMs
        model the energy or the score?", https://openreview.net/forum?id=9AS-TF2jRNb
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        width: int = 256,
        depth: int = 4,
        embed_dims: int = 64,
        cond_dims: int = 0,
        dropout: float = 0.0,
        activation: Callable[[jax.Array], jax.Array] = nnx.silu,
        dtype: jax.typing.DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.network = _Network(
            _checks.as_shape("event_shape", event_shape),
            1,
            width=width,
            depth=depth,
            embed_dims=embed_dims,
            cond_dims=cond_dims,
            dropout=dropout,
            activation=activation,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array,
        cond: jax.Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Return the energies ``[B]`` in nats, with the dtype of ``x``; see the class."""
        return self.network(x, c_noise, cond, rngs=rngs).reshape(x.shape[:1])
