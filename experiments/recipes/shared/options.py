"""Options that recipes share: one frozen dataclass per group, with the limits beside each field.

The text below each field is its help on the command line. Nothing slow is imported here, so that
``--help`` answers at once.
"""

import pathlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from experiments.recipes.shared.limits import COUNT, FINITE, POSITIVE, Limits


@dataclass(frozen=True)
class Model:
    """The network."""

    network: Literal["mlp", "energy", "bins", "unet", "auto"] = "mlp"
    """Residual MLP; one whose score is the gradient of an energy; one with a head that knows the
    values of quantized data; U-Net; auto takes the U-Net for images, [H, W] or [H, W, C], of 8 x 8
    pixels or more, else the MLP."""
    width: Annotated[int, COUNT] = 256
    """Hidden features of the MLP, or channels of the U-Net at full resolution."""
    depth: Annotated[int, Limits(at_least=0)] = 4
    """Residual blocks; for the U-Net, at each resolution."""
    dropout: Annotated[float, Limits(at_least=0, below=1)] = 0.0
    """Probability of dropping a hidden feature while training."""
    multipliers: Annotated[tuple[int, ...], COUNT] = (1, 2, 2)
    """U-Net only: channels at each resolution, in multiples of the width."""


@dataclass(frozen=True)
class Training:
    """The loss (EDM's weighted denoising) and its optimizer (AdamW)."""

    num_steps: Annotated[int, COUNT] = 3000
    """Updates of the parameters."""
    batch_size: Annotated[int, COUNT] = 256
    """Examples per update, over all devices."""
    learning_rate: Annotated[float, POSITIVE] = 2e-3
    """The highest learning rate, after the warm-up; it then falls to zero along a cosine."""
    weight_decay: Annotated[float, Limits(at_least=0)] = 0.01
    """Decoupled weight decay, per step and unit of learning rate."""
    ema_decay: Annotated[float, Limits(at_least=0, below=1)] = 0.999
    """Decay per step of the average of the parameters, which is what samples and evaluates."""
    log_sigma_mean: Annotated[float, FINITE] = -1.2
    """Mean of the logarithm of the noise levels trained on, in units of the scaled data (of your
    own data: of its standard deviation)."""
    log_sigma_std: Annotated[float, POSITIVE] = 1.2
    """Standard deviation of the same."""
    seed: Annotated[int, Limits(at_least=0, at_most=2**32 - 1)] = 0
    """Seed of everything random: parameters, order of the data, noise, samples."""


@dataclass(frozen=True)
class Conditioning:
    """Labels of the examples, such as which digit it is."""

    conditional: bool = False
    """Tell the network the label of each example, so that samples of a label can be drawn."""
    label_dropout: Annotated[float, Limits(above=0, below=1)] = 0.2
    """Share of the examples whose label is withheld while training: from these the same network
    learns the density of all examples, which guidance needs."""


@dataclass(frozen=True)
class Evaluation:
    """Samples and likelihoods."""

    num_samples: Annotated[int, COUNT] = 100
    """Samples drawn for the pictures."""
    sampling_steps: Annotated[int, COUNT] = 32
    """Steps of Heun's method per sample; each is two evaluations of the network."""
    # On the digits 32 steps read 0.13 nats above 160, and 48 read 0.06 above.
    likelihood_steps: Annotated[int, COUNT] = 32
    """Steps of the likelihood's integral; its error falls as their inverse square."""
    likelihood_examples: Annotated[int, COUNT] = 297
    """Held-out examples, and as many training examples, whose likelihood is computed."""
    divergence: Literal["exact", "hutchinson", "auto"] = "auto"
    """Trace of the score's Jacobian: exact, or estimated; auto is exact up to 128 dimensions."""
    num_estimates: Annotated[int, COUNT] = 4
    """Independent Hutchinson estimates per example, whose spread gives their standard error."""
    every: Annotated[int, COUNT] = 500
    """Steps between evaluations of the loss at each noise level, and between checkpoints."""


@dataclass(frozen=True)
class Execution:
    """Where and how to run."""

    directory: pathlib.Path | None = None
    """Run directory, new or empty; runs/RECIPE-TIME by default."""
    resume: bool = False
    """Continue the run in --directory, with the options that it began with."""
    dry_run: bool = False
    """Print the resolved configuration and exit."""


def is_conditional(config: Any) -> bool:
    """Return whether the network is told the labels; some recipes have none."""
    return hasattr(config, "conditioning") and config.conditioning.conditional
