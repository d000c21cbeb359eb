"""Densities in two dimensions whose score and likelihood are known."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.recipes.shared.limits import COUNT
from experiments.recipes.shared.options import Evaluation, Execution, Model, Training

if TYPE_CHECKING:  # slow to import
    from experiments.recipes.shared.diffusion import ScoreModel
    from experiments.recipes.shared.examples import Examples
    from experiments.recipes.shared.problem import Problem

TOYS = ("moons", "swiss_roll", "checkerboard", "rings", "pinwheel", "eight_gaussians")
NAMES = dict.fromkeys(TOYS, "2-D toy with exact score and likelihood")


@dataclass(frozen=True)
class Data:
    """Data: draws of a density in two dimensions that is known exactly."""

    density: tyro.conf.Suppress[str] = "moons"
    num_train: Annotated[int, COUNT] = 20_000
    """Points to train on."""
    num_held_out: Annotated[int, COUNT] = 2_000
    """Points held out."""


@dataclass(frozen=True)
class Options:
    """A density in two dimensions, with its exact score and likelihood beside the model's."""

    data: Data = Data()
    model: Model = Model(width=128, depth=3)
    training: Training = Training(
        num_steps=4000, batch_size=512, weight_decay=0.0, log_sigma_mean=-1.0, log_sigma_std=1.5
    )
    evaluation: Evaluation = Evaluation(
        num_samples=2000, likelihood_examples=2000, likelihood_steps=64
    )
    run: Execution = Execution()


def defaults(name: str) -> Options:
    """Return the options of a toy before any is given."""
    return Options(data=Data(density=name))


def load(config: Options) -> "Examples":
    """Return draws of the density, and the density itself."""
    import jax
    import numpy as np

    from experiments.recipes.shared.examples import Examples
    from experiments.recipes.shared.keys import named
    from sm_jax import densities

    density = densities.TOYS[config.data.density]()
    num, num_train = config.data.num_held_out + config.data.num_train, config.data.num_train
    draw = jax.jit(density.sample, static_argnums=1)
    x = np.asarray(draw(named("toy", config.training.seed), num))
    return Examples(x[:num_train], x[num_train:], density)


def examine(config: Options, examples: "Examples") -> tuple["Problem", str]:
    """Return the problem: points as they are, of about unit spread."""
    from experiments.recipes.shared.problem import Problem

    return Problem(event_shape=(2,), sigma_data=1.0, sigma_min=0.005, sigma_max=50.0), ""


def build(config: Options, problem: "Problem") -> "ScoreModel":
    """Return the network, a residual MLP by default, with the standard loss."""
    from experiments.recipes.shared import diffusion

    return diffusion.build(config, problem)
