"""Random keys by the name of their purpose, so that no two uses of randomness share one.

``training.fit`` splits ``jax.random.key(seed)`` itself; what is named here is folded into that key
by a large number, which none of its splits is.
"""

import zlib

import jax


def named(purpose: str, seed: int) -> jax.Array:
    """Return the key of a purpose, another one for each name."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
