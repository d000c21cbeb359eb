"""Embedding of the noise level and of conditioning features, common to all networks.

With frequencies w_1 < ... < w_K, geometric from 1/2 to 32 radians per unit of c,

    features(c) = sqrt(2) (cos w_1 c, ..., cos w_K c, sin w_1 c, ..., sin w_K c)        (1)
    embedding(c, y) = silu(W_2 silu(W_1 features(c) + b_1 + W_y y) + b_2)               (2)

For c = log(sigma) / 4 the finest feature turns once in a factor 2.2 of sigma, the coarsest never
over the range in use. (2) has no bias on the conditioning features y, so y = 0 is the same as no
condition.
"""

import jax
import jax.numpy as jnp
from flax import nnx

NUM_FREQUENCIES = 16


def sinusoidal_features(c_noise: jax.Array) -> jax.Array:
    """Return the features (1), ``[B, 2 K]``, of unit mean square, of ``c_noise [B]``."""
    c_noise = c_noise.astype(jnp.promote_types(c_noise.dtype, jnp.float32))
    frequencies = jnp.geomspace(0.5, 32.0, NUM_FREQUENCIES, dtype=c_noise.dtype)
    angles = c_noise[:, None] * frequencies[None, :]
    return jnp.sqrt(2.0).astype(angles.dtype) * jnp.concatenate(
        [jnp.cos(angles), jnp.sin(angles)], axis=-1
    )


class NoiseEmbedding(nnx.Module):
    """Equation (2): ``(c_noise [B], cond [B, cond_dims] or None) -> [B, embed_dims]``."""

    def __init__(self, embed_dims: int, *, cond_dims: int, dtype=None, rngs: nnx.Rngs):
        self.noise = nnx.Linear(2 * NUM_FREQUENCIES, embed_dims, dtype=dtype, rngs=rngs)
        if cond_dims:
            self.cond = nnx.Linear(cond_dims, embed_dims, use_bias=False, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(embed_dims, embed_dims, dtype=dtype, rngs=rngs)

    def __call__(self, c_noise: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """Return the embedding; ``cond=None`` is the same as zeros."""
        hidden = self.noise(sinusoidal_features(c_noise))
        if cond is not None:
            hidden = hidden + self.cond(cond)
        return nnx.silu(self.out(nnx.silu(hidden)))
