"""What goes wrong around a run: other data, damaged files, options that cannot be."""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure

from experiments import evaluate, recipes, sample, train
from experiments.recipes import array
from experiments.recipes.shared import networks
from experiments.recipes.shared.examples import read_examples
from experiments.recipes.shared.keys import named
from experiments.recipes.shared.problem import Problem
from experiments.runs import command_line, configuration, evaluation, plots, report, saved
from experiments.runs.images import gray
from sm_jax import models, samplers, training
from tests.test_experiments import TINY, run_fails


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run of two steps on 4 x 4 images, of which some are held out; and the file of its data."""
    folder = tmp_path_factory.mktemp("images")
    levels = np.random.default_rng(0).integers(0, 256, (30, 4, 4), np.uint8)
    np.save(folder / "x.npy", levels)
    options = ["--data", folder / "x.npy", "--directory", folder / "run", "--num-steps", 2]
    args = [*TINY, "--validation", 0, *options]
    run, _ = train.train(*command_line.parse(["array", *map(str, args)]))
    return run, folder / "x.npy"


@pytest.fixture
def copy(images, tmp_path):
    """The directory of that run, to be changed."""
    shutil.copytree(images[0].directory, tmp_path / "copy")
    return tmp_path / "copy"


# --- other data -----------------------------------------------------------------------------------


def held_out_changed(x):
    """Returns the images, one number of a held-out one changed."""
    order = np.random.default_rng(0).permutation(len(x))
    changed = x.copy()
    changed[order[0], 0, 0] ^= 1
    return changed


@pytest.mark.parametrize(
    "change",
    [np.flip, lambda x: np.concatenate([x, x[:1]]), lambda x: x ^ 1, held_out_changed],
)
def test_other_data_than_those_of_the_run_are_refused(images, change, tmp_path, capsys):
    """The rows in another order would make held-out ones of those that were trained on."""
    run, file = images
    assert len(saved.load_examples(run).train) == 27
    x = np.load(file)
    np.save(file, change(x))
    try:
        for main, args in ((evaluate.main, []), (sample.main, ["--inpaint", "left"])):
            error, code = run_fails(main, [run.directory, *args], capsys)
            assert code == 2
            assert "not those that" in error
    finally:
        np.save(file, x)
    assert len(saved.load_examples(run).train) == 27


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("new/folder/g1.5", ["g1.5.npy", "g1.5.png"]),
        ("x.png", ["x.npy", "x.png"]),
        ("x.npy", ["x.npy", "x.png"]),
        ("v0.1.tar", ["v0.1.tar.npy", "v0.1.tar.png"]),
    ],
)
def test_files_of_samples(output, names, tmp_path):
    array, picture = sample.files(tmp_path / output)
    assert [array.name, picture.name] == names
    assert array.parent == picture.parent == (tmp_path / output).parent
    assert array.parent.is_dir()


def test_samples_of_other_options_have_other_names(tmp_path):
    options = [
        {},
        {"sampler": "ddim"},
        {"label": ("3",)},
        {"label": ("7",)},
        {"label": ("3", "7")},
        {"label": ("3",), "guidance": 1.5},
        {"label": ("3",), "guidance": 1.25},
        {"label": ("3",), "guidance": 1.5, "guidance_interval": (0.5, 2.0)},
        {"inpaint": "left"},
        {"inpaint": "left", "label": ("3",)},
    ]
    names = [sample.default_name(sample.Sample(run=tmp_path, **some)) for some in options]
    assert names[0] == "samples-heun"
    assert names[5] == "samples-heun-label-3-guidance-1.5"
    assert names[8] == "inpaint-left"
    assert len(set(names)) == len(names)


def test_evaluation_makes_the_folder_of_its_output(images, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: {"a": 1})
    monkeypatch.setattr(report, "show", lambda *_: None)
    evaluate.main([str(images[0].directory), "--output", str(tmp_path / "new" / "e.json")])
    assert json.loads((tmp_path / "new" / "e.json").read_text()) == {"a": 1}


# --- pictures -------------------------------------------------------------------------------------


def test_images_of_real_numbers_are_shown_in_their_own_units(tmp_path):
    """Bright pixels stay bright, though each pixel is standardized by itself."""
    x = np.random.default_rng(0).normal(size=(50, 5, 6, 1)) * 0.1 + np.arange(6.0)[:, None]
    np.save(tmp_path / "x.npy", x)
    recipe, config = command_line.parse(["array", "--data", str(tmp_path / "x.npy")])
    examples = read_examples(recipe, config)
    problem, _ = recipe.examine(config, examples)
    shown = gray(problem, problem.rows(examples.train[:7]))
    low, high = examples.train.min(), examples.train.max()
    expected = (examples.train[:7, ..., 0] - low) / (high - low)
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    several = problem.rows(examples.train[:6]).reshape(2, 3, 5, 6, 1)
    np.testing.assert_allclose(gray(problem, several).reshape(6, 5, 6), shown[:6])

    stored = json.loads(json.dumps(problem.to_dict()))
    assert Problem.from_dict(stored).limits == (low, high)
    del stored["limits"]  # as of an earlier version
    shown = gray(Problem.from_dict(stored), problem.rows(examples.train))
    assert (shown.min(), shown.max()) == (0.0, 1.0)


def test_levels_are_shown_as_they_were(images):
    shown = gray(images[0].problem, np.array([-1.0, -0.5, 1.0, 2.0]).reshape(1, 2, 2))
    np.testing.assert_array_equal(shown.ravel(), [0.0, 0.25, 1.0, 1.0])


@pytest.fixture
def drawn(monkeypatch):
    """Lists the figures that are drawn, instead of writing them."""
    figures = []

    @contextlib.contextmanager
    def drawing(path, width, height):
        figures.append(Figure(figsize=(width, height)))
        yield figures[-1]

    monkeypatch.setattr(plots, "drawing", drawing)
    return figures


def pictured(tmp_path, x):
    """Draws the picture of samples of an array, which are its training examples themselves."""
    np.save(tmp_path / "x.npy", x)
    recipe, config = command_line.parse(
        ["array", "--data", str(tmp_path / "x.npy"), "--validation", "0"]
    )
    examples = read_examples(recipe, config)
    problem, _ = recipe.examine(config, examples)
    scaled = jax.jit(problem.scaled)(problem.rows(examples.train), jax.random.key(0))
    plots.samples(tmp_path / "x.png", problem, scaled, examples)
    return examples


def test_points_are_shown_in_their_own_units(drawn, tmp_path):
    """The samples and the held-out points are all within the axes."""
    x = np.random.default_rng(0).normal(size=(60, 2)) * [5.0, 0.01] + [1000.0, -3.0]
    examples = pictured(tmp_path, x)
    shown = examples.train, examples.held_out
    for axes, points in zip(drawn[0].axes, shown, strict=True):
        np.testing.assert_allclose(axes.collections[0].get_offsets(), points, rtol=1e-6)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert ([left, bottom] < points.min(axis=0)).all()
        assert (points.max(axis=0) < [right, top]).all()
        assert right - left < 60  # the axes are filled
        assert top - bottom < 0.12


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, float])
def test_bars_of_integers_hold_equally_many_of_them(dtype, drawn, tmp_path):
    """Each value has a bar as high as its share, without a comb or a warning."""
    x = np.random.default_rng(0).poisson([2.0, 30.0], (200, 2)) % 28
    x = x.astype(dtype)
    examples = pictured(tmp_path, x)
    for i, axes in enumerate(drawn[0].axes):
        held_out, samples = axes.containers[0], axes.patches[-1].get_xy()
        for bar in held_out:
            within = (examples.held_out[:, i] > bar.get_x()) & (
                examples.held_out[:, i] < bar.get_x() + bar.get_width()
            )
            assert bar.get_width() % 1 == 0
            np.testing.assert_allclose(bar.get_height() * bar.get_width(), within.mean())
        assert samples[:, 0].min() == held_out[0].get_x()
        assert held_out[0].get_x() % 1 == 0.5


def test_the_loss_is_shown_from_its_first_record_on(drawn, tmp_path):
    """With one record there is a mark; the bound is in the nats that the results are in."""
    records = [{"step": 3, "loss": 2.0}, {"step": 3, "eval/validation_elbo": -70.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    levels = problem_of_shape(4, 4)
    for problem, bound in (
        (levels, -70 + 16 * math.log(128)),
        (dataclasses.replace(levels, num_values=None), -70),
    ):
        plots.loss_curve(tmp_path, problem)
        loss, bounds = (axes.lines[0] for axes in drawn[-1].axes)
        assert (loss.get_marker(), bounds.get_marker()) == (".", ".")
        np.testing.assert_allclose(loss.get_ydata(), [2.0])
        np.testing.assert_allclose(bounds.get_ydata(), [bound])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_channels_first_are_told_of(dtype, channels, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (20, channels, 8, 9)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    recipe, config = command_line.parse(["array", "--data", str(tmp_path / "x.npy")])
    with pytest.warns(UserWarning, match=rf"shape \({channels}, 8, 9\).*transpose\(0, 2, 3, 1\)"):
        problem, _ = recipe.examine(config, read_examples(recipe, config))
    assert networks.kind(config.model, problem) == "mlp"
    np.save(tmp_path / "x.npy", x.transpose(0, 2, 3, 1))  # the remedy, and no warning
    problem, _ = recipe.examine(config, read_examples(recipe, config))
    assert networks.kind(config.model, problem) == "unet"


# --- networks -------------------------------------------------------------------------------------


def problem_of_shape(*shape):
    return Problem(shape, 0.5, 0.01, 10.0, num_values=256)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((8, 9), "unet"), ((8, 9, 5), "unet"), ((7, 9), "mlp"), ((99,), "mlp"), ((), "mlp")],
)
def test_auto_is_what_its_help_says(shape, kind):
    _, config = command_line.parse(["array", "--data", "x.npy"])
    assert networks.kind(config.model, problem_of_shape(*shape)) == kind


def test_a_unet_of_images_without_channels_is_that_of_one_channel(getkey, monkeypatch):
    """By a network in its place that is quick to build."""

    class OneNumber(nnx.Module):
        def __init__(self, image_shape, *, channels, rngs, **_):
            self.image_shape, self.scale = image_shape, nnx.Param(jnp.array(float(channels)))

        def __call__(self, x, c_noise, cond=None, *, rngs=None):
            assert x.shape[1:] == self.image_shape
            return self.scale[...] * x * c_noise[:, None, None, None] + cond[:, :1, None, None]

    monkeypatch.setattr(models, "UNet", OneNumber)
    _, config = command_line.parse(
        ["array", "--data", "x.npy", "--network", "unet", "--width", "3"]
    )
    x, c_noise = jax.random.normal(getkey(), (2, 8, 9)), jnp.array([0.1, 0.5])
    cond = jnp.array([[1.0], [2.0]])
    outputs = [
        networks.build(config.model, problem_of_shape(*shape), cond_dims=0, seed=0)(
            x.reshape(2, *shape), c_noise, cond
        )
        for shape in ((8, 9), (8, 9, 1))
    ]
    assert [output.shape for output in outputs] == [(2, 8, 9), (2, 8, 9, 1)]
    expected = 3.0 * x * c_noise[:, None, None] + cond[..., None]
    for output in outputs:
        np.testing.assert_allclose(output.reshape(2, 8, 9), expected, rtol=1e-6)


def test_a_unet_of_vectors_is_refused():
    recipe, config = command_line.parse(["moons", "--network", "unet"])
    with pytest.raises(ValueError, match=r"examples have shape \(2,\): take mlp"):
        recipe.build(config, problem_of_shape(2))


# --- keys -----------------------------------------------------------------------------------------


def test_no_two_purposes_share_a_key():
    """Also none with `fit`, whose keys are the first numbers folded into that of the seed."""
    root = pathlib.Path(train.__file__).parent
    parts = "*.py", "recipes/**/*.py", "runs/**/*.py"
    sources = {file: file.read_text() for part in parts for file in root.glob(part)}
    assert len(sources) > 25
    names = {name for text in sources.values() for name in re.findall(r'named\("([^"]+)"', text)}
    assert {"toy", "parameters", "evaluation", "drawn samples"} <= names
    of_fit = [jax.random.key(0), *jax.random.split(jax.random.key(0), 8)]
    keys = [*of_fit, *(named(name, 0) for name in names)]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == len(keys)
    makers = [file.stem for file, text in sources.items() if "random.key(" in text]
    assert makers == ["keys"]


# --- options --------------------------------------------------------------------------------------


def test_a_value_may_be_the_name_of_a_recipe():
    _, config = command_line.parse(["moons", "--directory", "digits", "--dry-run"])
    assert str(config.run.directory) == "digits"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--sampling-steps 0", "--sampling-steps must be at least 1, got 0"),
        ("--likelihood-steps 0", "--likelihood-steps must be at least 1"),
        ("--likelihood-examples 0", "--likelihood-examples must be at least 1"),
        ("--num-samples 0", "--num-samples must be at least 1"),
        ("--num-estimates 0", "--num-estimates must be at least 1"),
        ("--batch-size -3", "--batch-size must be at least 1, got -3"),
        ("--every 0", "--every must be at least 1"),
        ("--multipliers 1 0", "--multipliers must be at least 1, got 0"),
        ("--log-sigma-mean nan", "--log-sigma-mean must be finite, got nan"),
        ("--log-sigma-std 0", "--log-sigma-std must be finite and above 0"),
        ("--weight-decay nan", "--weight-decay must be finite and at least 0, got nan"),
        ("--weight-decay -1", "--weight-decay must be finite and at least 0, got -1"),
        ("--learning-rate inf", "--learning-rate must be finite and above 0"),
        ("--ema-decay 1", "--ema-decay must be at least 0 and below 1, got 1"),
        ("--dropout 1", "--dropout must be at least 0 and below 1"),
        ("--seed -1", "--seed must be at least 0 and at most 4294967295"),
        ("--shift 100", "--shift must be at least 0 and at most 7, got 100"),
        ("--shift -1", "--shift must be"),
        ("moons --num-train -5", "--num-train must be at least 1"),
        ("moons --num-held-out 0", "--num-held-out must be at least 1"),
        ("array --data x.npz --max-examples -3", "--max-examples must be at least 1"),
        ("array --data x.npy --array name", "--array name names an array of an .npz file"),
        ("array --data x.npy --conditional --labels y", "--labels y names an array"),
    ],
)
def test_options_out_of_their_limits_are_told_of_by_a_dry_run(args, says, capsys):
    error, code = run_fails(train.main, [*args.split(), "--dry-run"], capsys)
    assert code == 2
    assert says in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("main", "args", "says"),
    [
        (sample.main, "--num 0", "--num must be at least 1"),
        (sample.main, "--num-steps 0", "--num-steps must be at least 1"),
        (sample.main, "--completions 3", "--completions is for --inpaint"),
        (sample.main, "--churn nan", "--churn must be finite and at least 0"),
        (sample.main, "--label 1 --guidance inf", "--guidance must be finite, got inf"),
        (evaluate.main, "--likelihood-steps 0", "--likelihood-steps must be at least 1"),
        (evaluate.main, "--likelihood-examples 0", "--likelihood-examples must be at least 1"),
    ],
)
def test_options_out_of_their_limits_are_told_of_before_a_run_is_read(main, args, says, capsys):
    error, code = run_fails(main, ["nowhere", *args.split()], capsys)
    assert code == 2
    assert says in error


@pytest.mark.parametrize("name", recipes.names())
def test_the_limits_allow_the_defaults(name):
    recipe = recipes.find(name)
    for quick in (False, True):
        config = recipe.default_options(quick=quick)
        if name == "array":
            config = dataclasses.replace(config, data=array.Data(path=pathlib.Path("x")))
        configuration.check(recipe, config)


def test_a_single_example_has_no_standard_error(images, tmp_path):
    row = evaluation._row(images[0].problem, np.array([1.0]))
    assert np.isnan(row["standard_error"])
    assert row["nats"] == 1.0
    report.write_json(tmp_path / "x.json", {"a": {"b": [row["standard_error"], 2]}, "c": "d"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": {"b": [None, 2]}, "c": "d"}


# --- damaged runs ---------------------------------------------------------------------------------


def change(content, path, value):
    """Sets, or with the value ... deletes, what is at a path "a.b.c" of nested dicts."""
    *parents, last = path.split(".")
    for name in parents:
        content = content[name]
    if value is ...:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("config.json", "recipe", "arrays"),
        ("config.json", "recipe", 3),
        ("config.json", "options", None),
        ("config.json", "options.model", None),
        ("config.json", "options.model.width", "16"),
        ("config.json", "options.model.new", 1),
        ("config.json", "options.new", 1),
        ("config.json", "options.data.path", 7),
        ("config.json", "problem", None),
        ("config.json", "problem", ...),
        ("config.json", "problem.standardizer", ...),
        ("config.json", "problem.sigma_max", "many"),
        ("config.json", "problem.new", 1),
        ("metadata.json", "best", ...),
        ("metadata.json", "state", ...),
    ],
)
def test_damaged_runs_end_in_a_clear_line(file, path, value, copy, capsys):
    content = json.loads((copy / file).read_text())
    change(content, path, value)
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json|metadata\.json|no recipe"):
        saved.load(copy)
    for main in (sample.main, evaluate.main):
        error, code = run_fails(main, [copy], capsys)
        assert code == 2
        assert len(error.splitlines()) == 1


def test_a_run_that_was_interrupted_is_told_of(copy):
    """Its numbers are those of a network that is not yet trained."""
    config = copy / "config.json"
    config.write_text(re.sub('"num_steps": 2', '"num_steps": 3000', config.read_text()))
    with pytest.warns(UserWarning, match=f"stopped at step 2 of 3,000.*--directory {copy}"):
        saved.load(copy)


def test_a_damaged_run_is_not_resumed(copy, capsys):
    content = json.loads((copy / "config.json").read_text())
    content["options"]["model"]["width"] = "16"
    (copy / "config.json").write_text(json.dumps(content))
    error, code = run_fails(train.main, ["--resume", "--directory", copy], capsys)
    assert code == 2
    assert "config.json" in error


# --- errors of the program ------------------------------------------------------------------------


def test_an_error_of_the_program_shows_where_it_is(images, monkeypatch, tmp_path, capsys):
    """It is not taken for a mistake of the user, as those before the training are."""
    run, file = images

    def wrong(*_, **__):
        raise ValueError("from a fork")

    monkeypatch.setattr(training, "fit", wrong)
    args = ["array", "--data", str(file), *TINY]
    with pytest.raises(ValueError, match="from a fork"):
        train.main([*args, "--directory", str(tmp_path / "run")])
    monkeypatch.setattr(samplers, "generate", wrong)
    monkeypatch.setattr(evaluation, "evaluate", wrong)
    for main in (sample.main, evaluate.main):
        with pytest.raises(ValueError, match="from a fork"):
            main([str(run.directory)])

    def diverge(*_, **__):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(training, "fit", diverge)
    error, code = run_fails(train.main, [*args, "--directory", tmp_path / "other"], capsys)
    assert (error, code) == ("error: the loss is nan\n", 1)


@pytest.mark.parametrize("args", ["array --data nowhere.npy", "array --data {x} --network bins"])
def test_a_mistake_leaves_no_directory(args, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 2)))
    args = args.format(x=tmp_path / "x.npy").split()
    _, code = run_fails(train.main, [*args, "--directory", tmp_path / "run"], capsys)
    assert code == 2
    assert not (tmp_path / "run").exists()


def test_a_directory_that_will_not_do_is_told_of_before_the_data_are_read(tmp_path, capsys):
    (tmp_path / "x").touch()
    args = ["array", "--data", "nowhere.npy", "--directory", tmp_path]
    error, code = run_fails(train.main, args, capsys)
    assert code == 2
    assert "is not empty (it holds x)" in error


def test_a_batch_that_does_not_divide_is_told_of_before_training(monkeypatch, capsys):
    monkeypatch.setattr(training, "data_mesh", lambda: types.SimpleNamespace(size=3))
    error, code = run_fails(train.main, ["--batch-size", "256"], capsys)
    assert code == 2
    assert "--batch-size 256 does not divide among 3 devices: take a multiple of 3" in error
