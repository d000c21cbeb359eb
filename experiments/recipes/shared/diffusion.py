"""The standard loss of a recipe: EDM's weighted denoising at all noise levels, with labels or not.

With ``x`` the scaled data, ``z ~ N(0, I)`` and ``D = x + sigma^2 s`` the denoiser of the score,

    loss = 1/2 (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 |D(x + sigma z) - x|^2          (1)
    log sigma ~ N(log_sigma_mean + log unit, log_sigma_std^2).                                (2)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.shared import networks
from experiments.recipes.shared.options import Training
from experiments.recipes.shared.problem import Problem
from sm_jax import guidance, losses
from sm_jax.typing import NoiseScoreFn

NO_LABEL = -1  # what takes the place of a label that is withheld


class ScoreModel(NamedTuple):
    """A network as pure functions of its parameters, which a recipe builds.

    Attributes:
        network: what kind of network it is, in a word.
        params: the initial parameters.
        score: ``score(params, labels=None)`` -> the score function
            ``(x [B, ...], t [B]) -> [B, ...]`` of the density given labels ``[B]``, or of all
            examples.
        loss: ``loss(params, batch, key)`` -> [B], as ``training.fit`` takes it. A batch is rows
            ``[B, ...]`` as ``Problem.rows`` gives them, or ``(rows, labels [B])`` of a conditional
            run.
        sigmas: noise levels [L] at which the loss is reported, in units of the scaled data.
    """

    network: str
    params: Any
    score: Callable[..., NoiseScoreFn]
    loss: Callable[[Any, Any, jax.Array], jax.Array]
    sigmas: np.ndarray


def build(config: Any, problem: Problem, *, unit: float = 1.0) -> ScoreModel:
    """Return the network of ``config.model``, with its score and the loss (1).

    Args:
        config: the options of a recipe, with groups ``model`` and ``training``, and
            ``conditioning`` if its data may have labels.
        problem: what was decided from the data.
        unit: the scale of the noise levels, in units of the scaled data.
    """
    score_given, params = networks.score(
        config.model, problem, cond_dims=problem.num_labels or 0, seed=config.training.seed
    )
    edm = edm_loss(config.training, problem, unit=unit)

    def score(params, labels=None, key=None):
        return score_given(params, one_hot(labels, problem), key)

    def loss(params, batch, key):
        rows, labels = rows_and_labels(batch)
        # The first key is for the augmentation of recipes that have one.
        _, scale_key, loss_key, dropout_key, label_key = jax.random.split(key, 5)
        if labels is not None:
            labels = withheld(labels, label_key, config.conditioning.label_dropout)
        x = problem.scaled(rows, scale_key)
        return edm(score(params, labels, dropout_key), x, loss_key)

    network = networks.kind(config.model, problem)
    return ScoreModel(network, params, score, loss, reported_sigmas(problem, unit=unit))


def edm_loss(
    training: Training, problem: Problem, *, unit: float = 1.0
) -> Callable[[NoiseScoreFn, jax.Array, jax.Array], jax.Array]:
    """Return ``loss(score_fn, x, key)`` -> [B], equation (1) at noise levels of the law (2)."""
    sample_times = functools.partial(
        losses.log_normal_times,
        mean=training.log_sigma_mean + math.log(unit),
        std=training.log_sigma_std,
        uniform=losses.low_discrepancy,
    )
    return functools.partial(_weighted(problem), sample_times=sample_times)


def _weighted(problem: Problem) -> Callable[..., jax.Array]:
    """Return the loss (1), for any law of noise levels."""
    return functools.partial(
        losses.diffusion,
        process=problem.process,
        weight=functools.partial(losses.edm_weight, sigma_data=problem.sigma_data),
    )


def reported_sigmas(problem: Problem, *, unit: float = 1.0) -> np.ndarray:
    """Return the noise levels at which the loss is reported, 12 of them."""
    return np.geomspace(
        max(problem.sigma_min, 0.01 * unit), min(problem.sigma_max, 20.0 * unit), 12
    )


def loss_per_sigma(
    model: ScoreModel, problem: Problem
) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """Return ``loss(params, batch, key)`` -> [L]: the mean of (1) at each of ``model.sigmas``.

    Given the labels if there are any, and with the same noise ``z`` at every noise level.
    """
    weighted = _weighted(problem)

    def loss(params, batch, key):
        rows, labels = rows_and_labels(batch)
        scale_key, loss_key = jax.random.split(key)
        x = problem.scaled(rows, scale_key)

        def at(sigma):
            def fixed(process, key, shape, dtype):
                return jnp.full(shape, sigma, dtype), jnp.ones(shape, dtype)

            return weighted(model.score(params, labels), x, loss_key, sample_times=fixed).mean()

        return jax.lax.map(at, jnp.asarray(model.sigmas, jnp.float32))

    return loss


def rows_and_labels(batch: Any) -> tuple[jax.Array, jax.Array | None]:
    """Return the rows of a batch and their labels, None where it has none."""
    return batch if isinstance(batch, tuple) else (batch, None)


def one_hot(labels: jax.Array | None, problem: Problem) -> jax.Array | None:
    """Return labels ``[B]`` as the network takes them, ``[B, num_labels]``; zeros for NO_LABEL."""
    return None if labels is None else jax.nn.one_hot(labels, problem.num_labels)


def withheld(labels: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """Return the labels, each withheld with the probability ``rate``."""
    return guidance.drop_labels(labels, key, rate=rate, null=NO_LABEL)
