"""Flax NNX networks and the adapter that turns any of them into a pure function.

Every network is called ``network(x [B, ...], c_noise [B], cond=None, *, rngs=None)`` and its row i
depends on row i of the inputs only. ``c_noise`` is the noise level as the network sees it, a number
of order one such as ``log(sigma) / 4``, which ``sm_jax.parameterization.precondition`` computes;
``cond`` is an optional vector of conditioning features; dropout acts if and only if ``rngs`` is
given. The output layer starts at zero, so that a preconditioned network starts as the score of a
Gaussian.
"""

from sm_jax.models._bins import (
    BinMLP,
)
from sm_jax.models._functional import (
    functional,
)
from sm_jax.models._mlp import (
    MLP,
    EnergyMLP,
)
from sm_jax.models._unet import (
    UNet,
)

__all__ = [
    "MLP",
    "BinMLP",
    "EnergyMLP",
    "UNet",
    "functional",
]
