"""Images of TensorFlow Datasets, by a U-Net. TensorFlow is not needed."""

import dataclasses
import functools
import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from experiments.recipes.shared.options import (
    Conditioning,
    Evaluation,
    Execution,
    Model,
    Training,
)

if TYPE_CHECKING:  # slow to import
    from experiments.recipes.shared.diffusion import ScoreModel
    from experiments.recipes.shared.examples import Examples
    from experiments.recipes.shared.problem import Problem

NAMES = {"tfds:NAME": "images of TensorFlow Datasets: tfds:mnist --data-dir DIR"}


@dataclass(frozen=True)
class Data:
    """Data: a set of images that TensorFlow Datasets prepared as array_record."""

    data_dir: pathlib.Path
    """Folder of the prepared data sets."""
    name: tyro.conf.Suppress[str] = "mnist"
    train_split: str = "train"
    """Split to train on; a part is written train[:1000]."""
    held_out_split: str = "test"
    """Split held out."""


@dataclass(frozen=True)
class Options:
    """Images of TensorFlow Datasets, by a U-Net. TensorFlow is not needed."""

    data: Data
    conditioning: Conditioning = Conditioning()
    model: Model = Model(network="unet", width=64, depth=2, dropout=0.1)
    training: Training = Training(num_steps=50_000, batch_size=128, learning_rate=5e-4)
    evaluation: Evaluation = Evaluation(likelihood_examples=256, every=2500)
    run: Execution = Execution()
    quick: bool = False
    """A small network and few steps, for a CPU: other defaults, which options still override."""


def defaults(name: str) -> Options:
    """Return the options of a data set, such as "tfds:mnist", before any is given."""
    return Options(data=Data(data_dir=tyro.MISSING, name=name.partition(":")[2]))


def quickly(config: Options) -> Options:
    """Return the defaults of ``--quick``."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, train_split="train[:10000]", held_out_split="test[:1000]"
        ),
        model=Model(network="unet", width=16, depth=1, multipliers=(1, 2, 2)),
        training=Training(num_steps=600, batch_size=64, learning_rate=2e-3, ema_decay=0.99),
        evaluation=Evaluation(
            num_samples=36,
            sampling_steps=18,
            likelihood_steps=16,
            likelihood_examples=32,
            num_estimates=2,
            every=200,
        ),
        quick=True,
    )


def load(config: Options) -> "Examples":
    """Return the images of both splits, with their labels."""
    from experiments.recipes.shared.examples import Examples
    from sm_jax import data

    read = functools.partial(data.load_tfds, config.data.name, data_dir=config.data.data_dir)
    train, train_labels = read(split=config.data.train_split)
    held_out, held_out_labels = read(split=config.data.held_out_split)
    return Examples(train, held_out, train_labels=train_labels, held_out_labels=held_out_labels)


def examine(config: Options, examples: "Examples") -> tuple["Problem", str]:
    """Return the problem: 8-bit images scaled to [-1, 1], all others standardized."""
    from experiments.recipes.shared import scaling

    if examples.train.dtype == "uint8":
        return scaling.quantized(examples, scaling.IMAGE_VALUES), ""
    problem, _ = scaling.standardized(examples)
    return problem, ""


def build(config: Options, problem: "Problem") -> "ScoreModel":
    """Return the network, a U-Net by default, with the standard loss."""
    from experiments.recipes.shared import diffusion

    return diffusion.build(config, problem)
