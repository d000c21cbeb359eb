"""From a configuration and a `Problem` to a network, its score and its loss."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments._config import Array, Config, Digits
from experiments._keys import named
from experiments._problem import Problem
from sm_jax import guidance, losses, models, parameterization, quantized
from sm_jax.typing import NoiseScoreFn

NO_LABEL = -1  # what takes the place of a label that is withheld


class ScoreModel(NamedTuple):
    """A network as pure functions of its parameters.

    Attributes:
        params: the initial parameters.
        score: `score(params, labels=None)` -> the score function `(x [B, ...], t [B]) -> [B, ...]`
            of the density given labels `[B]`, or of all examples.
        loss: `loss(params, batch, key)` -> [B], as `fit` takes it. A batch is rows `[B, ...]`, or
            `(rows, labels [B])` of a conditional run.
        level_loss: `level_loss(params, batch, key)` -> [L], the mean loss at each of `levels`,
            given the labels if there are any.
        levels: noise levels [L] at which the loss is reported, in units of the scaled data.
    """

    params: Any
    score: Callable[..., NoiseScoreFn]
    loss: Callable[[Any, Any, jax.Array], jax.Array]
    level_loss: Callable[[Any, Any, jax.Array], jax.Array]
    levels: np.ndarray


def build(config: Config, problem: Problem) -> ScoreModel:
    """Builds the network of a configuration, with its score and its loss."""
    options, process = config.training, problem.process
    apply, params = models.functional(_network(config, problem))

    if config.model.network == "bins":
        edges = quantized.uniform_bin_edges(problem.num_values)
        precondition = functools.partial(quantized.precondition, bin_edges=edges)
    elif config.model.network == "energy":
        precondition = _precondition_energy
    else:
        precondition = parameterization.precondition

    def features(labels, shifts):
        if labels is None:  # nothing told is the same as zeros
            return shifts
        told = jax.nn.one_hot(labels, problem.num_labels)  # zeros for NO_LABEL
        if not _augmented(config):
            return told
        shifts = jnp.zeros((len(labels), 2)) if shifts is None else shifts
        return jnp.concatenate([told, shifts], axis=-1)

    def score(params, labels=None, shifts=None, key=None):
        def network(x, c_noise):
            return apply(params, x, c_noise, features(labels, shifts), key=key)

        return precondition(network, process=process, sigma_data=problem.sigma_data)

    loss_at = functools.partial(
        losses.diffusion,
        process=process,
        weight=functools.partial(losses.edm_weight, sigma_data=problem.sigma_data),
    )
    # The user's own data may be of any scale; that of the other recipes is known.
    unit = problem.sigma_data if isinstance(config, Array) else 1.0
    sample_times = functools.partial(
        losses.log_normal_times,
        mean=options.log_sigma_mean + math.log(unit),
        std=options.log_sigma_std,
        uniform=losses.low_discrepancy,
    )
    shift = config.data.shift if _augmented(config) else 0

    def loss(params, batch, key):
        rows, labels = _rows_and_labels(batch)
        shift_key, scale_key, loss_key, dropout_key, *label_key = jax.random.split(
            key, 4 + (labels is not None)
        )
        if labels is not None:
            rate = config.conditioning.label_dropout
            labels = guidance.drop_labels(labels, *label_key, rate=rate, null=NO_LABEL)
        shifts = None
        if shift:
            rows, shifts = shifted(rows, shift_key, shift)
        x = problem.scaled(rows, scale_key)
        score_fn = score(params, labels, shifts, dropout_key)
        return loss_at(score_fn, x, loss_key, sample_times=sample_times)

    levels = np.geomspace(
        max(problem.sigma_min, 0.01 * unit), min(problem.sigma_max, 20.0 * unit), 12
    )

    def level_loss(params, batch, key):
        rows, labels = _rows_and_labels(batch)
        scale_key, loss_key = jax.random.split(key)
        x = problem.scaled(rows, scale_key)

        def at(sigma):
            def fixed(process, key, shape, dtype):
                return jnp.full(shape, sigma, dtype), jnp.ones(shape, dtype)

            return loss_at(score(params, labels), x, loss_key, sample_times=fixed).mean()

        return jax.lax.map(at, jnp.asarray(levels, jnp.float32))

    return ScoreModel(params, score, loss, level_loss, levels)


def _rows_and_labels(batch: Any) -> tuple[jax.Array, jax.Array | None]:
    return batch if isinstance(batch, tuple) else (batch, None)


def network_kind(config: Config, problem: Problem) -> str:
    """Returns the network of a configuration, what "auto" stands for."""
    kind, shape = config.model.network, problem.event_shape
    if kind == "auto":
        kind = "unet" if len(shape) in (2, 3) and min(shape[:2]) >= 8 else "mlp"
    return kind


class GreyUNet(nnx.Module):
    """A `models.UNet` for images without an axis of channels, `[B, H, W]`."""

    def __init__(self, image_shape: tuple[int, int], **options: Any):
        self.unet = models.UNet((*image_shape, 1), **options)

    def __call__(self, x, c_noise, cond=None, *, rngs=None):
        """The network's output, an array of the shape of `x`."""
        return self.unet(x[..., None], c_noise, cond, rngs=rngs)[..., 0]


def _network(config: Config, problem: Problem) -> nnx.Module:
    model, shape = config.model, problem.event_shape
    rngs = nnx.Rngs(params=named("parameters", config.training.seed))
    kind = network_kind(config, problem)
    cond_dims = (problem.num_labels or 0) + 2 * _augmented(config)
    sizes = {"dropout": model.dropout, "cond_dims": cond_dims, "rngs": rngs}
    if kind == "unet":
        if len(shape) not in (2, 3):
            raise ValueError(
                f"--network unet is for images [H, W] or [H, W, C], and the examples have shape "
                f"{shape}: take mlp"
            )
        return (models.UNet if len(shape) == 3 else GreyUNet)(
            shape,
            channels=model.width,
            channel_multipliers=model.multipliers,
            num_blocks=model.depth,
            **sizes,
        )
    sizes |= {"width": model.width, "depth": model.depth}
    if kind in ("mlp", "energy"):
        return {"mlp": models.MLP, "energy": models.EnergyMLP}[kind](shape, **sizes)
    if problem.num_values is None:
        raise ValueError("--network bins is for integer data only: take mlp")
    return models.BinMLP(shape, problem.num_values, **sizes)


def _precondition_energy(network, process, *, sigma_data):
    energy_fn = parameterization.precondition_energy(
        network, process=process, sigma_data=sigma_data
    )
    return parameterization.score_from_energy(energy_fn)


def _augmented(config: Config) -> bool:
    return isinstance(config, Digits) and config.data.shift > 0


def shifted(images: jax.Array, key: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """Shifts images `[B, H, W]` by up to `most` pixels along each axis; what enters is 0.

    Returns:
        The images, and what the network is told `[B, 2]`: the shifts in units of `most`. So it
        learns from shifted digits without drawing any: without being told, nothing is shifted.
    """
    batch, height, width = images.shape
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most)))
    shift = jax.random.randint(key, (batch, 2), -most, most + 1)
    cut = jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, start, (height, width)))
    return cut(padded, most - shift), shift / most
