"""Your own data. The noise levels are computed from it."""

import math
import pathlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.recipes.shared.limits import COUNT, Limits
from experiments.recipes.shared.options import (
    Conditioning,
    Evaluation,
    Execution,
    Model,
    Training,
)

if TYPE_CHECKING:  # slow to import
    import numpy as np

    from experiments.recipes.shared.diffusion import ScoreModel
    from experiments.recipes.shared.examples import Examples
    from experiments.recipes.shared.problem import Problem

NAMES = {"array": "your own .npy, .npz, .csv or folder of images: array --data FILE"}

# What runs of versions without these options did.
EARLIER = {"data": {"header": "auto", "delimiter": None, "integers": "real"}}


@dataclass(frozen=True)
class Data:
    """Data: examples along the first axis, of any shape."""

    path: Annotated[pathlib.Path, tyro.conf.arg(name="data")]
    """A .npy, .npz, .csv, .tsv or .txt file, or a folder of images of one size. The pixels of 8-bit
    images are taken as values of one scale and dequantized, all other numbers standardized feature
    by feature."""
    array: str | None = None
    """Name of the array, in an .npz file that holds several."""
    header: Literal["yes", "no", "auto"] = "auto"
    """Whether the first line of a table names its columns; auto finds out, or asks."""
    delimiter: str | None = None
    """What separates the columns of a table; found out by default."""
    integers: Literal["dequantize", "real"] = "dequantize"
    """Columns of whole numbers, and of others that are mostly tied and multiples of a step, such as
    0.1: dequantize adds uniform noise of their cells, so that likelihoods are those of
    probabilities; real takes them as rounded real numbers. Of examples of several axes the step
    must be one of all numbers, or none is dequantized."""
    held_out: Annotated[float, Limits(above=0, below=1)] = 0.1
    """Share of the examples held out, between 0 and 1."""
    validation: Annotated[float, Limits(at_least=0, below=1)] = 0.1
    """Share of the others set aside to choose among the checkpoints by, with the variational bound
    on their likelihood; 0 takes the last checkpoint."""
    max_examples: Annotated[int | None, COUNT] = None
    """Use this number of examples, chosen at random."""


@dataclass(frozen=True)
class LabelsOfFile(Conditioning):
    """Labels, where the file holds them beside the examples."""

    labels: str | None = None
    """Name of the array of labels in the .npz file of --data: an integer or a word for each
    example."""


@dataclass(frozen=True)
class Options:
    """Your own data. The noise levels are computed from it."""

    data: Data
    conditioning: LabelsOfFile = LabelsOfFile()
    model: Model = Model(network="auto", width=128, depth=3, dropout=0.3)
    training: Training = Training(num_steps=2000)
    evaluation: Evaluation = Evaluation(every=100)
    run: Execution = Execution()


def defaults(name: str) -> Options:
    """Return the options before any is given; the file must be."""
    return Options(data=Data(path=tyro.MISSING))


def check(config: Options) -> None:
    """Raise unless the options go with each other.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    path, array, labels = config.data.path, config.data.array, config.conditioning.labels
    if path.suffix.lower() != ".npz":
        for option, name in (("--array", array), ("--labels", labels)):
            if name is not None:
                raise ValueError(
                    f"{option} {name} names an array of an .npz file, and {str(path)!r} is none: "
                    f"leave {option} out"
                )
    if config.conditioning.conditional and labels is None:
        raise ValueError("--conditional needs labels: name their array by --labels NAME")
    if labels is not None and not config.conditioning.conditional:
        raise ValueError(f"--labels {labels} is for --conditional: add it, or leave both out")


def load(config: Options) -> "Examples":
    """Return the data of the file, split at random into those to train on and others.

    Raises:
        ValueError: naming what is wrong with the file.
    """
    import numpy as np

    from experiments.recipes.shared.examples import Examples
    from sm_jax import data

    options = config.data
    try:
        x = data.load(
            options.path,
            array=options.array,
            header={"yes": True, "no": False, "auto": None}[options.header],
            delimiter="\t" if options.delimiter in ("\\t", "tab") else options.delimiter,
        )
        labels = _labels(config, x)
    except TypeError as error:  # of the numbers in the file, so the user's to mend
        raise ValueError(str(error)) from error
    order = np.random.default_rng(config.training.seed).permutation(len(x))[: options.max_examples]
    num_held_out = math.ceil(options.held_out * len(order))
    if len(order) - num_held_out < 2:
        raise ValueError(
            f"{str(options.path)!r} leaves {len(order) - num_held_out} of {len(order)} examples "
            "to train on, and at least 2 are needed: add examples"
            + ", or lower --held-out"
            * (len(order) > 2)
        )
    held_out, rest = order[:num_held_out], order[num_held_out:]
    num_validation = min(math.ceil(options.validation * len(rest)), len(rest) - 2)
    validation, train = rest[:num_validation], rest[num_validation:]
    examples = Examples(x[train], x[held_out], validation=x[validation] if num_validation else None)
    if labels is None:
        return examples
    return examples._replace(train_labels=labels[train], held_out_labels=labels[held_out])


def _labels(config: Options, x: "np.ndarray") -> "np.ndarray | None":
    """Return the labels that the options name."""
    import numpy as np

    from experiments.recipes.shared.examples import checked_labels
    from sm_jax import data

    name = config.conditioning.labels
    if name is None:
        return None
    try:
        labels = data.load(config.data.path, array=name)
    except TypeError:  # these are words
        with np.load(config.data.path.expanduser()) as file:
            labels = file[name]
    return checked_labels(labels, x)


def examine(config: Options, examples: "Examples") -> tuple["Problem", str]:
    """Return the problem, its noise levels computed from the data, and the reasons in words.

    Images of 8 bits are quantized, and what ``--network bins`` is to take; all others, also images
    of multiples of a larger step, such as masks of 0 and 255, are standardized feature by feature.
    """
    from experiments.recipes.shared import integers, remarks, scaling

    x, explanation = examples.train, []
    _check_channels(x.shape[1:])
    dequantize = config.data.integers == "dequantize"
    if (
        dequantize
        and x.dtype == "uint8"
        and (
            config.model.network == "bins"
            or (x.ndim > 2 and (integers.find(examples.parts) == 1).all())
        )
    ):
        problem = scaling.quantized(examples, scaling.IMAGE_VALUES, per_number=True)
    else:
        problem, explanation = scaling.standardized(examples, dequantize=dequantize)
    problem, reasons = scaling.noise_levels_from_data(problem, x, config.training.seed)
    return problem, "\n".join([*explanation, *remarks.of(problem, examples), reasons])


def build(config: Options, problem: "Problem") -> "ScoreModel":
    """Return the network with the standard loss, its noise in units of the data's spread."""
    from experiments.recipes.shared import diffusion

    return diffusion.build(config, problem, unit=problem.sigma_data)


def _check_channels(shape: tuple[int, ...]) -> None:
    """Warn of images that seem to have their channels first."""
    if len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) >= 8:
        warnings.warn(
            f"the examples of --data have shape {shape}, as images with their channels first: they "
            "are not taken as images. If they are, save x.transpose(0, 2, 3, 1) instead",
            stacklevel=3,
        )
