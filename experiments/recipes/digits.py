"""scikit-learn's handwritten digits (the default).

Images of 8 x 8 pixels with values 0 to 16, 1,500 to train on and 297 held out. The network predicts
weights of the 17 values of each pixel (``models.BinMLP``), from which ``sm_jax.quantized`` computes
the score. Digits are shifted at random while training, and the network is told by how much, so that
it learns from shifted digits without drawing any.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from experiments.recipes.shared.limits import Limits
from experiments.recipes.shared.options import (
    Conditioning,
    Evaluation,
    Execution,
    Model,
    Training,
)

if TYPE_CHECKING:  # slow to import, hence within the functions: ``--help`` is to answer at once
    import jax

    from experiments.recipes.shared.diffusion import ScoreModel
    from experiments.recipes.shared.examples import Examples
    from experiments.recipes.shared.problem import Problem

NUM_VALUES = 17  # of a pixel


@dataclass(frozen=True)
class Data:
    """Data: 1,500 digits to train on, 297 held out."""

    shift: Annotated[int, Limits(at_least=0, at_most=7)] = 1
    """Largest random shift of a training digit along each axis, in pixels."""


@dataclass(frozen=True)
class Options:
    """Handwritten digits of scikit-learn: 8 x 8 pixels of 17 values."""

    data: Data = Data()
    conditioning: Conditioning = Conditioning()
    model: Model = Model(network="bins", dropout=0.3)
    training: Training = Training(num_steps=4000)
    evaluation: Evaluation = Evaluation()
    run: Execution = Execution()


def load(config: Options) -> "Examples":
    """Return the digits and which they are, 297 of them held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from experiments.recipes.shared.examples import Examples

    digits = load_digits()
    train, held_out, train_labels, held_out_labels = train_test_split(
        digits.images, digits.target, test_size=297, random_state=0
    )
    return Examples(train, held_out, train_labels=train_labels, held_out_labels=held_out_labels)


def examine(config: Options, examples: "Examples") -> tuple["Problem", str]:
    """Return the problem: 17 values, dequantized and scaled to [-1, 1]."""
    from experiments.recipes.shared import scaling

    return scaling.quantized(examples, NUM_VALUES), ""


def build(config: Options, problem: "Problem") -> "ScoreModel":
    """Return the network with its score, and the loss of digits that are shifted at random."""
    import jax
    import jax.numpy as jnp

    from experiments.recipes.shared import diffusion, networks

    most = config.data.shift
    score_given, params = networks.score(
        config.model,
        problem,
        cond_dims=(problem.num_labels or 0) + 2 * (most > 0),
        seed=config.training.seed,
    )
    edm = diffusion.edm_loss(config.training, problem)

    def score(params, labels=None, shifts=None, key=None):
        # The network is told labels and shifts, zeros where there are none.
        cond = diffusion.one_hot(labels, problem)
        if cond is None:
            cond = shifts
        elif most:
            shifts = jnp.zeros((len(labels), 2)) if shifts is None else shifts
            cond = jnp.concatenate([cond, shifts], axis=-1)
        return score_given(params, cond, key)

    def loss(params, batch, key):
        rows, labels = diffusion.rows_and_labels(batch)
        shift_key, scale_key, loss_key, dropout_key, label_key = jax.random.split(key, 5)
        if labels is not None:
            labels = diffusion.withheld(labels, label_key, config.conditioning.label_dropout)
        rows, shifts = shifted(rows, shift_key, most) if most else (rows, None)
        x = problem.scaled(rows, scale_key)
        return edm(score(params, labels, shifts, dropout_key), x, loss_key)

    network = networks.kind(config.model, problem)
    return diffusion.ScoreModel(network, params, score, loss, diffusion.reported_sigmas(problem))


def shifted(images: "jax.Array", key: "jax.Array", most: int) -> tuple["jax.Array", "jax.Array"]:
    """Shift images ``[B, H, W]`` by up to ``most`` pixels along each axis; what enters is 0.

    Returns:
        The images, and their shifts ``[B, 2]`` in units of ``most``, down and to the right, which
        the network is told.
    """
    import jax
    import jax.numpy as jnp

    batch, height, width = images.shape
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most)))
    shift = jax.random.randint(key, (batch, 2), -most, most + 1)
    cut = jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, start, (height, width)))
    return cut(padded, most - shift), shift / most
