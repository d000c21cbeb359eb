"""U-Net for images of any size, conditioned on the noise level.

Every residual block computes, with e the embedding of the noise level and N group normalization,

    u = conv(silu(N(h))),     (a, c) = V e + v                                          (1)
    block(h) = skip(h) + conv_0(dropout(silu((1 + a) N(u) + c)))                        (2)

where skip is the identity, or a 1x1 convolution where the number of channels changes, and every
attention layer, over the pixels i, j of an image and on each head of d channels,

    (q, k, v) = linear(N(h)),     w_ij = softmax_j(q_i . k_j / sqrt(d))                 (3)
    attention(h)_i = h_i + linear_0(sum_j w_ij v_j)                                     (4)

conv_0, linear_0 and the network's last convolution start at zero. Going down, an image of n pixels
across becomes one of ceil(n / 2); going up, it is doubled and cropped to the size it came from, so
any size will do. Every block on the way up sees the output of its counterpart on the way down.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sm_jax._checks import check_count
from sm_jax.models import _checks
from sm_jax.models._embedding import NoiseEmbedding

_ZEROS = nnx.initializers.zeros_init()
_MAX_GROUPS = 32
_HEAD_DIMS = 64


def _lecun_normal(key, shape, dtype=jnp.float32):
    """Flax's default, drawn as a matrix: to compile the draw of a 4-D array takes far longer."""
    matrix = nnx.initializers.lecun_normal()(key, (math.prod(shape[:-1]), shape[-1]), dtype)
    return matrix.reshape(shape)


def _conv(inputs, outputs, size=3, *, strides=1, kernel_init=_lecun_normal, dtype, rngs):
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=strides,
        kernel_init=kernel_init,
        dtype=dtype,
        rngs=rngs,
    )


def _largest_divisor(number: int, at_most: int) -> int:
    return next(d for d in range(max(1, min(number, at_most)), 0, -1) if number % d == 0)


def _group_norm(channels, *, dtype, rngs):
    """Return a normalization over at most 32 groups of at least 4 channels (Karras et al.)."""
    num_groups = _largest_divisor(channels, min(_MAX_GROUPS, channels // 4))
    return nnx.GroupNorm(channels, num_groups, epsilon=1e-5, dtype=dtype, rngs=rngs)


def _norm_affine(norm, h, scale=0.0, shift=0.0):
    """Return ``(a, b) [B, 1, 1, C]`` with ``a h + b = (1 + scale) norm(h) + shift``.

    From float32 moments of centered values: E[h^2] - E[h]^2 loses the variance at an offset.
    """
    batch, _, _, channels = h.shape

    def over_groups(values):
        means = values.mean((1, 2)).reshape(batch, norm.num_groups, -1).mean(-1)
        return jnp.repeat(means, channels // norm.num_groups, axis=1)[:, None, None]

    wide = h.astype(jnp.promote_types(h.dtype, jnp.float32))
    mean = over_groups(wide)
    var = over_groups(jnp.square(wide - mean))
    gamma, beta = (p[...][None, None, None] for p in (norm.scale, norm.bias))
    factor = (1 + scale) * gamma * jax.lax.rsqrt(var + norm.epsilon)
    return factor, (1 + scale) * beta + shift - mean * factor


def _norm_silu(norm, h, scale=0.0, shift=0.0):
    """Return ``silu((1 + scale) norm(h) + shift)``, ``[B, H, W, C]``.

    Normalization and modulation are one scale and one shift per channel, so one pass over ``h`` is
    left, which the gradient makes again rather than keep what is between.
    """
    return _affine_silu(h, *_norm_affine(norm, h, scale, shift))


@jax.checkpoint
def _affine_silu(h, factor, offset):
    return nnx.silu(h * factor + offset).astype(h.dtype)


class _Attention(nnx.Module):
    """Equations (3) and (4): ``[B, H, W, C] -> [B, H, W, C]``."""

    def __init__(self, channels, *, dtype, rngs):
        self.num_heads = _largest_divisor(channels, channels // _HEAD_DIMS)
        self.norm = _group_norm(channels, dtype=dtype, rngs=rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=_ZEROS, dtype=dtype, rngs=rngs)

    def __call__(self, h):
        batch, height, width, channels = h.shape
        pixels = (batch, height * width, self.num_heads, channels // self.num_heads)
        factor, offset = _norm_affine(self.norm, h)
        u = (h * factor + offset).astype(h.dtype)
        q, k, v = (a.reshape(pixels) for a in jnp.split(self.qkv(u), 3, axis=-1))
        return h + self.out(jax.nn.dot_product_attention(q, k, v).reshape(h.shape))


class _Block(nnx.Module):
    """Equations (1) and (2), optional attention: ``[B, H, W, C_in] -> [B, H, W, C_out]``."""

    def __init__(self, inputs, outputs, embed_dims, *, attention, dropout, dtype, rngs):
        self.dropout = nnx.Dropout(dropout)
        self.norm_in = _group_norm(inputs, dtype=dtype, rngs=rngs)
        self.conv_in = _conv(inputs, outputs, dtype=dtype, rngs=rngs)
        self.film = nnx.Linear(embed_dims, 2 * outputs, dtype=dtype, rngs=rngs)
        self.norm_out = _group_norm(outputs, dtype=dtype, rngs=rngs)
        self.conv_out = _conv(outputs, outputs, kernel_init=_ZEROS, dtype=dtype, rngs=rngs)
        if inputs != outputs:
            self.skip = _conv(inputs, outputs, 1, dtype=dtype, rngs=rngs)
        if attention:
            self.attention = _Attention(outputs, dtype=dtype, rngs=rngs)

    def __call__(self, h, embedding, rngs=None):
        scale, shift = _halves(self.film, embedding)
        u = self.conv_in(_norm_silu(self.norm_in, h))
        u = _norm_silu(self.norm_out, u, scale, shift)
        u = self.conv_out(self.dropout(u, deterministic=rngs is None, rngs=rngs))
        h = (self.skip(h) if hasattr(self, "skip") else h) + u
        return self.attention(h) if hasattr(self, "attention") else h


def _halves(linear, embedding):
    """Return the two halves of ``linear(embedding)``, ``[B, 1, 1, C]``, as one product each.

    XLA on CPU does not vectorize an activation that reads slices of one product: that one then
    takes 5.2 ms rather than 0.9 ms for 64 images of 28 x 28 x 16.
    """
    kernels = jnp.split(linear.kernel[...].astype(embedding.dtype), 2, axis=1)
    biases = jnp.split(linear.bias[...].astype(embedding.dtype), 2)
    return [
        (embedding @ kernel + bias[None])[:, None, None]
        for kernel, bias in zip(kernels, biases, strict=True)
    ]


class _Down(nnx.Module):
    """Strided convolution: ``[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]``."""

    def __init__(self, channels, *, dtype, rngs):
        self.conv = _conv(channels, channels, strides=2, dtype=dtype, rngs=rngs)

    def __call__(self, h, embedding, rngs=None):
        return self.conv(h)


class _Up(nnx.Module):
    """Repetition, cropped to ``size``, and convolution: ``[B, h, w, C] -> [B, *size, C]``."""

    def __init__(self, channels, *, dtype, rngs):
        self.conv = _conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, h, size):
        h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
        return self.conv(h[:, : size[0], : size[1]])


class UNet(nnx.Module):
    """U-Net, conditioned on the noise level, for images of any size and number of channels.

    With ``embedding`` that of the noise level and of ``cond``, every residual block computes

        u = conv_in(silu(norm_in(h))),    (scale, shift) = film(embedding),
        h <- skip(h) + conv_out(dropout(silu((1 + scale) norm_out(u) + shift))),

    ``num_blocks`` times per resolution on the way down, twice at the lowest resolution and
    ``num_blocks + 1`` times per resolution on the way up, where the input is ``h`` beside the
    output of the counterpart on the way down. ``norm_in`` and ``norm_out`` are group
    normalizations, ``skip`` is the identity or, for another number of channels, a 1x1 convolution.
    Self-attention, on each head of ``d`` channels and over the pixels ``i, j``, computes

        (q, k, v) = qkv(norm(h)),    h_i <- h_i + out(sum_j softmax_j(q_i . k_j / sqrt(d)) v_j).

    ``conv_out``, ``out`` and the last convolution start at zero, and so does the network.

    Args:
        image_shape: ``(H, W, C)`` of one image; odd sizes are fine.
        channels: number of channels at full resolution.
        channel_multipliers: the channels at each resolution as multiples of ``channels``; each one
            after the first halves the resolution.
        num_blocks: residual blocks per resolution.
        attention_resolutions: the number of resolutions, counted from the lowest resolution, with
            self-attention after each block; its time and memory grow as (H W)^2 of the resolution.
        cond_dims: number of conditioning features; 0 for an unconditional network.
        dropout: probability of dropping a hidden feature, when called with ``rngs``.
        dtype: dtype of the computation, e.g. ``jnp.bfloat16``; by default that of input and
            parameters. Parameters are float32 and the output has the dtype of ``x`` in any case.
        rngs: random state that the parameters are drawn from.

    Call:
        ``unet(x [B, H, W, C], c_noise [B], cond=None or [B, cond_dims], *, rngs=None)`` returns an
        array of the shape and dtype of ``x``. ``cond=None`` is the same as zeros: no condition.

    Raises:
        ValueError: for sizes below 1, a dropout rate outside [0, 1), more resolutions with
            attention than resolutions, and, when called, for arrays of other shapes, or
            conditioning features given to an unconditional network.
        TypeError: when called on arrays that are not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from sm_jax import models
        >>> unet = models.UNet((5, 7, 3), channels=8, channel_multipliers=(1, 2), rngs=nnx.Rngs(0))
        >>> unet(jnp.ones((2, 5, 7, 3)), jnp.zeros(2)).shape
        (2, 5, 7, 3)

    References:
        Ho et al., 2020, https://arxiv.org/abs/2006.11239; Dhariwal & Nichol, 2021,
        https://arxiv.org/abs/2105.05233, for the block; Karras et al., 2022,
        https://arxiv.org/abs/2206.00364, for the groups.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        channels: int = 32,
        channel_multipliers: Sequence[int] = (1, 2, 2),
        num_blocks: int = 1,
        attention_resolutions: int = 1,
        cond_dims: int = 0,
        dropout: float = 0.0,
        dtype: jax.typing.DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.image_shape = _checks.as_shape("image_shape", image_shape)
        multipliers = _checks.as_shape("channel_multipliers", channel_multipliers)
        if len(self.image_shape) != 3:
            raise ValueError(
                f"image_shape must be (height, width, channels), got {self.image_shape}; give "
                "images without a channel axis one of size 1"
            )
        if not multipliers:
            raise ValueError("channel_multipliers must name at least one resolution, got ().")
        check_count("channels", channels)
        check_count("num_blocks", num_blocks)
        check_count("attention_resolutions", attention_resolutions, 0)
        check_count("cond_dims", cond_dims, 0)
        _checks.check_rate(dropout)
        if attention_resolutions > len(multipliers):
            raise ValueError(
                "attention_resolutions must be at most the number of resolutions, "
                f"{len(multipliers)} by channel_multipliers={multipliers}; got "
                f"{attention_resolutions}"
            )
        self.cond_dims = cond_dims
        embed_dims = 4 * channels
        widths = [channels * multiplier for multiplier in multipliers]
        attends = [i >= len(widths) - attention_resolutions for i in range(len(widths))]
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}

        def block(inputs, outputs, attention):
            return _Block(
                inputs, outputs, embed_dims, attention=attention, dropout=dropout, **common
            )

        self.embedding = NoiseEmbedding(embed_dims, cond_dims=cond_dims, **common)
        self.inputs = _conv(self.image_shape[-1], channels, **common)
        skips = [channels]
        down = []
        for i, (width, attention) in enumerate(zip(widths, attends, strict=True)):
            if i > 0:
                down.append(_Down(skips[-1], **common))
                skips.append(skips[-1])
            for _ in range(num_blocks):
                down.append(block(skips[-1], width, attention))
                skips.append(width)
        self.down = nnx.List(down)

        width = widths[-1]
        self.middle = nnx.List([block(width, width, attends[-1]), block(width, width, False)])

        up = []
        current = widths[-1]
        for i in reversed(range(len(widths))):
            for _ in range(num_blocks + 1):
                up.append(block(current + skips.pop(), widths[i], attends[i]))
                current = widths[i]
            if i > 0:
                up.append(_Up(current, **common))
        self.up = nnx.List(up)
        self.norm = _group_norm(current, **common)
        self.outputs = _conv(current, self.image_shape[-1], kernel_init=_ZEROS, **common)

    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array,
        cond: jax.Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Return an array of the shape and dtype of ``x``; see the class."""
        _checks.check_inputs(
            x, c_noise, cond, event_shape=self.image_shape, cond_dims=self.cond_dims
        )
        embedding = self.embedding(c_noise, cond)
        h = self.inputs(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding, rngs)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding, rngs)
        for layer in self.up:
            if isinstance(layer, _Up):
                h = layer(h, size=skips[-1].shape[1:3])
            else:
                h = layer(jnp.concatenate([h, skips.pop()], axis=-1), embedding, rngs)
        return self.outputs(_norm_silu(self.norm, h)).astype(x.dtype)
