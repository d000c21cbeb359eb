r"""A score network for data of few levels, such as pixels, that knows that they are quantized.

Dequantized data of ``K`` levels lie in cells of equal width on [-1, 1], with edges ``b_0 .. b_K``.
The network predicts how probable each cell is for each number ``y`` of ``x_t = x_0 + sigma z``, and
the rest is exact: with ``a_k = (b_k - y) / sigma`` and logits ``l_k`` of the cells' densities,

    p(y) ∝ sum_k exp(l_k) (Phi(a_k) - Phi(a_{k-1})),                                      (1)
    sigma s(y) = m = sum_k w_k (phi(a_{k-1}) - phi(a_k)),                                  (2)
    w_k = exp(l_k) / sum_j exp(l_j) (Phi(a_j) - Phi(a_{j-1})),                             (3)

is the score, times sigma, of the density with constant ``exp(l_k)`` in cell k, once noised. So the
sharp edges of the cells, which carry most of the likelihood of such data, need not be learned.

The logits of the numbers ``d`` are ``l_kd = bias_kd + sum_r out_rd(x_t, sigma) basis_rk`` with few
``r``, ``out`` being a residual MLP. The tangent of (2), used to train it and for its divergence, is

    dm = sum_k g_k dl_k + (v - 1) dy / sigma,    g_k = w_k (phi(a_{k-1}) - phi(a_k) - P_k m),  (4)
    v = 1 + sum_k w_k (a_{k-1} phi(a_{k-1}) - a_k phi(a_k)) - m^2 = Var[x_0 | y] / sigma^2,    (5)

with ``P_k`` the mass of cell k in (1). Written out it takes half the time of automatic derivatives,
for ``basis`` meets ``g`` once, not each of the D tangents of an exact divergence.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sm_jax._checks import check_count
from sm_jax.models import _checks
from sm_jax.models._mlp import _Network


def _cells(out, basis, bias, y, sigma):
    """Terms of (1) to (5): out [B, R, D], basis [R, K], bias [K, D], y [B, D], sigma [B]."""
    edges = jnp.linspace(-1.0, 1.0, bias.shape[0] + 1, dtype=y.dtype)
    logits = bias[None] + jnp.einsum("brd,rk->bkd", out, basis)
    a = (edges[None, :, None] - y[:, None]) / sigma[:, None, None]
    phi = jnp.exp(-0.5 * a**2) / math.sqrt(2 * math.pi)
    tail = 0.5 * jax.lax.erfc(jnp.abs(a) / math.sqrt(2.0))  # no cancellation far from a cell
    lower, upper = tail[:, :-1], tail[:, 1:]
    inside = (a[:, :-1] < 0) & (a[:, 1:] > 0)
    mass = jnp.where(inside, 1 - lower - upper, jnp.abs(upper - lower))
    weight = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    weight = weight / ((weight * mass).sum(axis=1, keepdims=True) + 1e-30)
    step = phi[:, :-1] - phi[:, 1:]
    return a, phi, mass, weight, step, (weight * step).sum(axis=1)


@jax.custom_jvp
def _moment(out, basis, bias, y, sigma):
    """Equation (2), `[B, D]`. It is not differentiated in `sigma`."""
    return _cells(out, basis, bias, y, sigma)[-1]


@_moment.defjvp
def _moment_jvp(primals, tangents):
    _, basis, _, _, sigma = primals
    d_out, d_basis, d_bias, d_y, _ = tangents
    a, phi, mass, weight, step, m = _cells(*primals)
    g = weight * (step - mass * m[:, None])
    a_phi = a * phi
    variance = 1 + (weight * (a_phi[:, :-1] - a_phi[:, 1:])).sum(axis=1) - m**2
    by_out = (jnp.einsum("bkd,rk->brd", g, basis) * d_out).sum(axis=1)
    d_logits = d_bias[None] + jnp.einsum("brd,rk->bkd", primals[0], d_basis)
    return m, by_out + (g * d_logits).sum(axis=1) + (variance - 1) * d_y / sigma[:, None]


def _scaled_score(out, basis, bias, y, sigma):
    """Equation (2); far outside [-1, 1], where all masses underflow, the tail of a Gaussian."""
    far = 1 + 8 * sigma[:, None]
    near = jnp.clip(y, -far, far)
    return _moment(out, basis, bias, near, sigma) - (y - near) / sigma[:, None]


class LevelMLP(nnx.Module):
    """Score network for dequantized data of few levels: equations (1) to (3) of this module.

    Unlike the other networks, it returns a score, of `processes.VE`, and needs no preconditioning.

    Args:
      event_shape: shape of one example; an integer `n` means `(n,)`.
      num_levels: the number of levels `K`; the data are `sm_jax.data.dequantize`d ones in [-1, 1].
      rank: the number of features per number from which the logits of its levels are combined.
      width: number of hidden features.
      depth: number of residual blocks, each of two linear layers.
      embed_dims: number of features of the noise embedding.
      cond_dims: number of conditioning features; 0 for an unconditional network.
      dropout: probability of dropping a hidden feature, when called with `rngs`.
      sigma_data: standard deviation of the data; it scales the input.
      rngs: random state that the parameters are drawn from.

    Call:
      `network(x [B, *event_shape], sigma [B], cond=None or [B, cond_dims], *, rngs=None)` returns
      the score at noise level `sigma`, of the shape and dtype of `x`. Before training every level
      is equally likely: it is that of data uniform in [-1, 1].

    Raises:
      ValueError: for sizes below 1, fewer than two levels, a dropout rate outside [0, 1), and, when
        called, for arrays of other shapes.
      TypeError: when called on arrays that are not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sm_jax import models
      >>> network = models.LevelMLP((8, 8), 17, width=32, depth=2, rngs=nnx.Rngs(0))
      >>> network(jnp.ones((5, 8, 8)), jnp.ones(5)).shape
      (5, 8, 8)

    References:
      Salimans et al., 2017, https://arxiv.org/abs/1701.05517, for mass on cells of pixels; Kingma
      et al., 2021, https://arxiv.org/abs/2107.00630, section 3.3, for its use in diffusion.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_levels: int,
        *,
        rank: int = 4,
        width: int = 256,
        depth: int = 4,
        embed_dims: int = 64,
        cond_dims: int = 0,
        dropout: float = 0.0,
        sigma_data: float = 0.5,
        rngs: nnx.Rngs,
    ):
        event_shape = _checks.as_shape("event_shape", event_shape)
        check_count("num_levels", num_levels, 2)
        check_count("rank", rank)
        num_dims = math.prod(event_shape)
        self.event_shape, self.rank, self.sigma_data = event_shape, rank, float(sigma_data)
        self.network = _Network(
            event_shape,
            rank * num_dims,
            width=width,
            depth=depth,
            embed_dims=embed_dims,
            cond_dims=cond_dims,
            dropout=dropout,
            activation=nnx.silu,
            dtype=None,
            rngs=rngs,
        )
        draw = nnx.initializers.lecun_normal()
        self.basis = nnx.Param(draw(rngs.params(), (rank, num_levels)))
        self.bias = nnx.Param(jnp.zeros((num_levels, num_dims)))

    def __call__(
        self,
        x: jax.Array,
        sigma: jax.Array,
        cond: jax.Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """The score, an array of the shape and dtype of `x`; see the class."""
        _checks.check_inputs(
            x, sigma, cond, event_shape=self.event_shape, cond_dims=self.network.cond_dims
        )
        batch = x.shape[0]
        scale = jax.lax.rsqrt(sigma**2 + self.sigma_data**2).reshape(-1, *[1] * (x.ndim - 1))
        out = self.network((x * scale).astype(x.dtype), 0.25 * jnp.log(sigma), cond, rngs=rngs)
        y = x.reshape(batch, -1)
        m = _scaled_score(
            out.reshape(batch, self.rank, y.shape[1]), self.basis[...], self.bias[...], y, sigma
        )
        return (m / sigma[:, None]).reshape(x.shape).astype(x.dtype)
