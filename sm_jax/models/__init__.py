"""Flax NNX networks for scores and energies, and the adapter from any of them to a pure function.

    >>> from functools import partial
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from sm_jax import models, parameterization, processes
    >>> apply, params = models.functional(models.MLP(2, width=16, depth=1, rngs=nnx.Rngs(0)))
    >>> process = processes.VE(sigma_min=0.01, sigma_max=10.0)
    >>> network = partial(apply, params)
    >>> score_fn = parameterization.precondition(network, process=process, sigma_data=1.0)
    >>> score_fn(jnp.ones((3, 2)), jnp.full(3, 0.5)).shape
    (3, 2)

Every network is called ``network(x [B, ...], c_noise [B], cond=None, *, rngs=None)`` and its row i
depends on row i of the inputs only. ``c_noise`` is the noise level as the network sees it, a number
of order one such as ``log(sigma) / 4``, which ``sm_jax.parameterization.precondition`` computes;
``cond`` is an optional vector of conditioning features; dropout acts if and only if ``rngs`` is
given. The output layer starts at zero, so that a preconditioned network starts as the score of a
Gaussian.
"""

from sm_jax.models._bins import BinMLP
from sm_jax.models._functional import functional
from sm_jax.models._mlp import MLP, EnergyMLP
from sm_jax.models._unet import UNet

__all__ = [
    "MLP",
    "BinMLP",
    "EnergyMLP",
    "UNet",
    "functional",
]
