"""What can be set: one frozen dataclass per recipe, made of the same few pieces.

The text below each field is its help on the command line. Nothing slow is imported here, so that
`--help` answers at once.
"""

import dataclasses
import difflib
import pathlib
import typing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import tyro

from experiments import _limits

# The shared pieces.


@dataclass(frozen=True)
class Model:
    """The network."""

    network: Literal["mlp", "energy", "bins", "unet", "auto"] = "mlp"
    """Residual MLP; one whose score is the gradient of an energy; one with a head that knows the
    levels of integer data; U-Net; auto takes the U-Net for images, [H, W] or [H, W, C], of 8 x 8
    pixels or more, else the MLP."""
    width: int = 256
    """Hidden features of the MLP, or channels of the U-Net at full resolution."""
    depth: int = 4
    """Residual blocks; for the U-Net, in each level of resolution."""
    dropout: float = 0.0
    """Probability of dropping a hidden feature while training."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """U-Net only: channels of each level of resolution, in multiples of the width."""


@dataclass(frozen=True)
class Training:
    """The loss (EDM's weighted denoising) and its optimizer (AdamW)."""

    num_steps: int = 3000
    """Updates of the parameters."""
    batch_size: int = 256
    """Examples per update, over all devices."""
    learning_rate: float = 2e-3
    """The highest learning rate, after the warm-up; it then falls to zero along a cosine."""
    weight_decay: float = 0.01
    """Decoupled weight decay, per step and unit of learning rate."""
    ema_decay: float = 0.999
    """Decay per step of the average of the parameters, which is what samples and evaluates."""
    log_sigma_mean: float = -1.2
    """Mean of the logarithm of the noise levels trained on, in units of the scaled data (of your
    own data: of its standard deviation)."""
    log_sigma_std: float = 1.2
    """Standard deviation of the same."""
    seed: int = 0
    """Seed of everything random: parameters, order of the data, noise, samples."""


@dataclass(frozen=True)
class Conditioning:
    """Labels of the examples, such as which digit it is."""

    conditional: bool = False
    """Tell the network the label of each example, so that samples of a label can be asked for."""
    label_dropout: float = 0.2
    """Share of the examples whose label is withheld while training: from these the same network
    learns the density of all examples, which guidance needs."""


@dataclass(frozen=True)
class Evaluation:
    """Samples and likelihoods."""

    num_samples: int = 100
    """Samples drawn for the pictures."""
    sampling_steps: int = 32
    """Steps of Heun's method per sample; each is two evaluations of the network."""
    # On the digits 32 steps read 0.13 nats above 160, and 48 read 0.06 above.
    likelihood_steps: int = 32
    """Steps of the likelihood's integral; its error falls as their inverse square."""
    likelihood_examples: int = 297
    """Held-out examples, and as many training examples, whose likelihood is computed."""
    divergence: Literal["exact", "hutchinson", "auto"] = "auto"
    """Trace of the score's Jacobian: exact, or estimated; auto is exact up to 128 dimensions."""
    num_estimates: int = 4
    """Independent Hutchinson estimates per example, whose spread gives their standard error."""
    every: int = 500
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


# The recipes.


@dataclass(frozen=True)
class DigitsData:
    """Data: 1,500 digits to train on, 297 held out."""

    shift: int = 1
    """Largest random shift of a training digit along each axis, in pixels."""


@dataclass(frozen=True)
class Digits:
    """Handwritten digits of scikit-learn: 8 x 8 pixels of 17 levels."""

    data: DigitsData = DigitsData()
    conditioning: Conditioning = Conditioning()
    model: Model = Model(network="bins", dropout=0.3)
    training: Training = Training(num_steps=4000)
    evaluation: Evaluation = Evaluation()
    run: Execution = Execution()


@dataclass(frozen=True)
class ToyData:
    """Data: draws of a density in two dimensions that is known exactly."""

    density: tyro.conf.Suppress[str] = "moons"
    num_train: int = 20_000
    """Points to train on."""
    num_held_out: int = 2_000
    """Points held out."""


@dataclass(frozen=True)
class Toy:
    """A density in two dimensions, with its exact score and likelihood beside the model's."""

    data: ToyData = ToyData()
    model: Model = Model(width=128, depth=3)
    training: Training = Training(
        num_steps=4000, batch_size=512, weight_decay=0.0, log_sigma_mean=-1.0, log_sigma_std=1.5
    )
    evaluation: Evaluation = Evaluation(
        num_samples=2000, likelihood_examples=2000, likelihood_steps=64
    )
    run: Execution = Execution()


@dataclass(frozen=True)
class ArrayData:
    """Data: examples along the first axis, of any shape."""

    path: typing.Annotated[pathlib.Path, tyro.conf.arg(name="data")]
    """A .npy, .npz, .csv, .tsv or .txt file, or a folder of images of one size. 8-bit numbers are
    taken as levels of one scale and dequantized, all others standardized feature by feature."""
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
    held_out: float = 0.1
    """Share of the examples held out, between 0 and 1."""
    validation: float = 0.1
    """Share of the others set aside to choose among the checkpoints by, with the variational bound
    on their likelihood; 0 takes the last checkpoint."""
    max_examples: int | None = None
    """Use so many examples, chosen at random."""


@dataclass(frozen=True)
class ArrayConditioning(Conditioning):
    """Labels, where the file holds them beside the examples."""

    labels: str | None = None
    """Name of the array of labels in the .npz file of --data: an integer or a word for each
    example."""


@dataclass(frozen=True)
class Array:
    """Your own data. The noise levels are computed from it."""

    data: ArrayData
    conditioning: ArrayConditioning = ArrayConditioning()
    model: Model = Model(network="auto", width=128, depth=3, dropout=0.3)
    training: Training = Training(num_steps=2000)
    evaluation: Evaluation = Evaluation(every=100)
    run: Execution = Execution()


@dataclass(frozen=True)
class TfdsData:
    """Data: a set of images that TensorFlow Datasets prepared as array_record."""

    data_dir: pathlib.Path
    """Folder of the prepared data sets."""
    name: tyro.conf.Suppress[str] = "mnist"
    train_split: str = "train"
    """Split to train on; a part is written train[:1000]."""
    held_out_split: str = "test"
    """Split held out."""


@dataclass(frozen=True)
class Tfds:
    """Images of TensorFlow Datasets, by a U-Net. TensorFlow is not needed."""

    data: TfdsData
    conditioning: Conditioning = Conditioning()
    model: Model = Model(network="unet", width=64, depth=2, dropout=0.1)
    training: Training = Training(num_steps=50_000, batch_size=128, learning_rate=5e-4)
    evaluation: Evaluation = Evaluation(likelihood_examples=256, every=2500)
    run: Execution = Execution()
    quick: bool = False
    """A small network and few steps, for a CPU: other defaults, which options still override."""


def quickly(config: Tfds) -> Tfds:
    """Returns the defaults of `--quick`."""
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


Config = Digits | Toy | Array | Tfds


class Recipe(NamedTuple):
    """What can be trained by a name: the class of its options, and a line of help."""

    kind: type[Config]
    help: str


TOYS = ("moons", "swiss_roll", "checkerboard", "rings", "pinwheel", "eight_gaussians")

RECIPES = {
    "digits": Recipe(Digits, "scikit-learn's handwritten digits (the default)"),
    **{name: Recipe(Toy, "2-D toy with exact score and likelihood") for name in TOYS},
    "array": Recipe(Array, "your own .npy, .npz, .csv or folder of images: array --data FILE"),
    "tfds:NAME": Recipe(Tfds, "images of TensorFlow Datasets: tfds:mnist --data-dir DIR"),
}


def is_recipe(recipe: str) -> bool:
    """Returns whether there is a recipe of this name, such as "tfds:mnist"."""
    return _entry(recipe) in RECIPES


def _entry(recipe: str) -> str:
    kind, _, name = recipe.partition(":")
    return "tfds:NAME" if kind == "tfds" and name else recipe


def recipe_class(recipe: str) -> type[Config]:
    """Returns the configuration class of a recipe by its name, such as "tfds:mnist".

    Raises:
        ValueError: if there is no such recipe.
    """
    if is_recipe(recipe):
        return RECIPES[_entry(recipe)].kind
    names = [name.replace(":NAME", ":mnist") for name in RECIPES]
    close = difflib.get_close_matches(recipe, names, n=1, cutoff=0.5)
    close = ["tfds:mnist"] if recipe.partition(":")[0] == "tfds" else close
    if pathlib.Path(recipe).exists():
        close = [f"array --data {recipe}"]
    suggestion = f": did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"there is no recipe {recipe!r}{suggestion} The recipes are {', '.join(RECIPES)}"
    )


def defaults(recipe: str, *, quick: bool = False) -> Config:
    """Returns the configuration of a recipe before any option is given.

    Raises:
        ValueError: if there is no such recipe.
    """
    kind = recipe_class(recipe)
    if kind is Toy:
        return Toy(data=ToyData(density=recipe))
    if kind is Array:
        return Array(data=ArrayData(path=tyro.MISSING))
    if kind is Tfds:
        name = recipe.partition(":")[2]
        config = Tfds(data=TfdsData(data_dir=tyro.MISSING, name=name))
        return quickly(config) if quick else config
    return kind()


def check(config: Config) -> None:
    """Raises unless every option is within its limits, and goes with the others.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    _limits.check(config)
    if not config.model.multipliers:
        raise ValueError("--multipliers must name at least one level of resolution, got none")
    if not isinstance(config, Array):
        return
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


def is_conditional(config: Config) -> bool:
    """Returns whether the network is told the labels; the toys have none."""
    return not isinstance(config, Toy) and config.conditioning.conditional


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the configuration as JSON holds it, less where it runs."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, pathlib.Path) else value

    options = plain(dataclasses.asdict(config))
    del options["run"]
    return options


def from_dict(recipe: str, options: dict[str, Any]) -> Config:
    """Returns the configuration that `to_dict` wrote.

    Raises:
        ValueError: if an option is missing or unknown, as in the run of another version.
    """
    kind = recipe_class(recipe)
    if kind is Array:
        options = options | {"data": _EARLIER | options["data"]}
    return _build(kind, options)


# What runs of versions without these options did.
_EARLIER = {"header": "auto", "delimiter": None, "integers": "real"}


def decisive(config: Config) -> dict[str, Any]:
    """Returns the options that must not change when a run is resumed, for its metadata.

    Those that say what earlier versions did are left out, so that their runs are resumed too.
    """
    options = to_dict(config)
    names = ["data", "model", "training"] + ["conditioning"] * is_conditional(config)
    parts = {name: options[name] for name in names}
    if isinstance(config, Array):
        later = {name: parts["data"].pop(name) for name in _EARLIER}
        parts["data"] |= {k: v for k, v in later.items() if v != _EARLIER[k]}
    return parts


def _build(kind: type, options: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in options.items():
        hint = hints.get(name)
        if dataclasses.is_dataclass(hint):
            value = _build(hint, value)
        elif isinstance(value, list):
            value = tuple(value)
        elif hint is pathlib.Path:
            value = pathlib.Path(value)
        values[name] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(
            f"config.json does not fit this version of {kind.__name__}: {error}"
        ) from None
