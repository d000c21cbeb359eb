"""Networks by the options ``Model``, and their scores as functions of the parameters."""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from experiments.recipes.shared.keys import named
from experiments.recipes.shared.options import Model
from experiments.recipes.shared.problem import Problem
from sm_jax import models, parameterization, quantized
from sm_jax.typing import NoiseScoreFn


def score(
    model: Model, problem: Problem, *, cond_dims: int, seed: int
) -> tuple[Callable[..., NoiseScoreFn], Any]:
    """Return the score of a network as a function of its parameters, and the initial parameters.

    Args:
        model: the options of the network.
        problem: what was decided from the data.
        cond_dims: numbers per example that the network takes as its condition.
        seed: seed of the initial parameters.

    Returns:
        ``score(params, cond=None, key=None)`` -> the score function
        ``(x [B, ...], t [B]) -> [B, ...]``, conditional on ``cond [B, cond_dims]`` (zeros by
        default), with dropout by the key; and the parameters.
    """
    apply, params = models.functional(build(model, problem, cond_dims=cond_dims, seed=seed))
    precondition = _precondition(kind(model, problem), problem)

    def score_given(params: Any, cond: Any = None, key: Any = None) -> NoiseScoreFn:
        def network(x, c_noise):
            return apply(params, x, c_noise, cond, key=key)

        return precondition(network, process=problem.process, sigma_data=problem.sigma_data)

    return score_given, params


def build(model: Model, problem: Problem, *, cond_dims: int, seed: int) -> nnx.Module:
    """Return the network, with the arguments of ``score``.

    Raises:
        ValueError: if the data do not suit the network.
    """
    shape = problem.event_shape
    rngs = nnx.Rngs(params=named("parameters", seed))
    sizes = {"dropout": model.dropout, "cond_dims": cond_dims, "rngs": rngs}
    name = kind(model, problem)
    if name == "unet":
        if len(shape) not in (2, 3):
            raise ValueError(
                f"--network unet is for images [H, W] or [H, W, C], and the examples have shape "
                f"{shape}: take mlp"
            )
        return (models.UNet if len(shape) == 3 else GrayUNet)(
            shape,
            channels=model.width,
            channel_multipliers=model.multipliers,
            num_blocks=model.depth,
            **sizes,
        )
    sizes |= {"width": model.width, "depth": model.depth}
    if name == "mlp":
        return models.MLP(shape, **sizes)
    if name == "energy":
        return models.EnergyMLP(shape, **sizes)
    if problem.num_values is None:
        raise ValueError(
            "--network bins is for the digits and for 8-bit values that are dequantized: take mlp"
        )
    return models.BinMLP(shape, problem.num_values, **sizes)


def kind(model: Model, problem: Problem) -> str:
    """Return the kind of network: that of the option, or what "auto" stands for."""
    if model.network != "auto":
        return model.network
    shape = problem.event_shape
    return "unet" if len(shape) in (2, 3) and min(shape[:2]) >= 8 else "mlp"


class GrayUNet(nnx.Module):
    """A ``models.UNet`` for images without an axis of channels, ``[B, H, W]``."""

    def __init__(self, image_shape: tuple[int, int], **options: Any):
        self.unet = models.UNet((*image_shape, 1), **options)

    def __call__(self, x, c_noise, cond=None, *, rngs=None):
        """Return the network's output, an array of the shape of ``x``."""
        return self.unet(x[..., None], c_noise, cond, rngs=rngs)[..., 0]


def _precondition(name: str, problem: Problem) -> Callable[..., NoiseScoreFn]:
    if name == "bins":
        edges = quantized.uniform_bin_edges(problem.num_values)
        return functools.partial(quantized.precondition, bin_edges=edges)
    if name == "energy":
        return _precondition_energy
    return parameterization.precondition


def _precondition_energy(network, process, *, sigma_data):
    energy_fn = parameterization.precondition_energy(
        network, process=process, sigma_data=sigma_data
    )
    return parameterization.EnergyScore(energy_fn)
