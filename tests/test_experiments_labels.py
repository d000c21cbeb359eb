"""The experiments with labels, run tiny: training, likelihoods, guided samples, inpainting."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import sample, train
from experiments.recipes.shared.diffusion import NO_LABEL
from experiments.recipes.shared.examples import Examples, read_examples
from experiments.recipes.shared.options import is_conditional
from experiments.recipes.shared.problem import Problem
from experiments.runs import (
    baselines,
    command_line,
    configuration,
    drawn,
    evaluation,
    report,
    sampler_table,
    saved,
)
from sm_jax import data, samplers
from tests.test_experiments import TINY, results_of, run_fails


def problem_of(*args):
    """Returns recipe, configuration, examples and problem of a command line."""
    recipe, config = command_line.parse([str(arg) for arg in args])
    examples = read_examples(recipe, config)
    return recipe, config, examples, recipe.examine(config, examples)[0]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The directory of a tiny run on the digits and their labels."""
    directory = tmp_path_factory.mktemp("runs") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "fit", lambda *_: ({}, {}))  # slow, and tested elsewhere
        train.main(["digits", "--conditional", *TINY, "--directory", str(directory)])
    return directory


@pytest.fixture(scope="module")
def signs(tmp_path_factory):
    """A run on numbers about -3, of label 0, and about 3, of label 1; and its examples."""
    folder = tmp_path_factory.mktemp("signs")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 600)
    np.savez(folder / "x.npz", x=(6.0 * y - 3)[:, None] + rng.normal(size=(600, 1)), y=y)
    options = (
        f"array --data {folder / 'x.npz'} --array x --conditional --labels y --num-steps 600 "
        "--batch-size 128 --width 32 --depth 2 --dropout 0 --weight-decay 0 --every 600 "
        f"--ema-decay 0.99 --learning-rate 0.005 --validation 0 --directory {folder / 'run'}"
    )
    return train.train(*command_line.parse(options.split()))


@pytest.fixture(scope="module")
def network():
    """A function of the label dropout: a network of random parameters, its loss, and the digits."""
    key = jax.random.key(1)

    @functools.cache
    def build(rate):
        args = f"digits --conditional --width 8 --depth 1 --label-dropout {rate}".split()
        recipe, config, examples, problem = problem_of(*args)
        model = recipe.build(config, problem)
        leaves, tree = jax.tree.flatten(model.params)  # some of the initial ones are zero
        keys = jax.random.split(key, len(leaves))
        drawn = [0.3 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
        params = jax.tree.unflatten(tree, drawn)
        return model.score, params, jax.jit(model.loss), problem, examples

    return build


# --- training -------------------------------------------------------------------------------------


def test_labels_reach_the_network(network):
    score, params, _, _, examples = network(0.5)
    x = jnp.tile(jnp.asarray(examples.train[:1], jnp.float32) / 8 - 1, (11, 1, 1))
    t = jnp.full(11, 0.7)
    labels = jnp.arange(11).at[10].set(NO_LABEL)
    given = jax.jit(lambda labels: score(params, labels)(x, t))(labels)
    distances = np.abs(given[:, None] - given[None]).max(axis=(2, 3))
    assert distances[~np.eye(11, dtype=bool)].min() > 1e-3
    # No label is the same as the label that stands for none: the density of all examples.
    none = jax.jit(lambda: score(params)(x, t))()
    np.testing.assert_allclose(given[10], none[10], rtol=1e-5, atol=1e-6)


def test_the_loss_withholds_labels_and_keeps_them_with_their_rows(network, getkey):
    key, num = getkey(), 256

    def losses(rate, labels):
        _, params, loss, problem, examples = network(rate)
        return np.asarray(loss(params, problem.batch(examples.train[:num], labels), key))

    labels = network(0.5)[-1].train_labels[:num]
    none = np.full(num, NO_LABEL, np.int32)
    given, withheld, half = losses(1e-9, labels), losses(1e-9, none), losses(0.5, labels)
    told = np.abs(given - withheld) > 1e-4 * np.abs(given)
    assert told.mean() > 0.9
    like_given, like_withheld = (np.isclose(half, v, rtol=1e-5) for v in (given, withheld))
    assert (like_given | like_withheld).all()
    # Five standard errors of the share of a fair coin.
    assert abs(like_withheld[told].mean() - 0.5) < 5 * 0.5 / told.sum() ** 0.5

    # The loss of a row depends on the label of that row, and on no other.
    other = labels.copy()
    other[7] = (other[7] + 1) % 10
    changed = np.flatnonzero(~np.isclose(losses(1e-9, other), given, rtol=1e-5))
    assert changed.tolist() == [7]


def test_labels_are_of_their_examples(tmp_path):
    from sklearn.datasets import load_digits

    def same(x, labels, of):
        assert [of(row) for row in x] == labels.tolist()

    bunch = load_digits()
    known = {x.tobytes(): y for x, y in zip(bunch.images, bunch.target, strict=True)}
    np.savez(tmp_path / "x.npz", x=np.arange(50.0)[:, None], y=np.arange(50) % 5)
    array = (
        f"array --data {tmp_path / 'x.npz'} --array x --labels y --max-examples 40 --held-out .3"
    )
    for args, of in (("digits", lambda x: known[x.tobytes()]), (array, lambda x: int(x[0]) % 5)):
        _, _, examples, problem = problem_of(*args.split(), "--conditional")
        same(examples.train, examples.train_labels, of)
        same(examples.held_out, examples.held_out_labels, of)
        assert problem.num_labels == 1 + max(map(of, examples.train))


def test_labels_of_tfds(data_dir):
    args = ["tfds:mnist", "--conditional", "--data-dir", data_dir / "tfds"]
    splits = {"train": "train[:30]", "held_out": "test[:9]"}
    args += ["--train-split", splits["train"], "--held-out-split", splits["held_out"]]
    recipe, config, examples, problem = problem_of(
        *args, "--width", 8, "--depth", 1, "--multipliers", 1
    )
    for name, split in splits.items():
        images, labels = data.load_tfds("mnist", split=split, data_dir=data_dir / "tfds")
        np.testing.assert_array_equal(getattr(examples, name), images)
        names = np.array(examples.label_names)[getattr(examples, f"{name}_labels")]
        np.testing.assert_array_equal(names, labels.astype(str))
    model = recipe.build(config, problem)
    batch = problem.batch(examples.train, examples.train_labels)
    loss = jax.eval_shape(model.loss, model.params, batch, jax.random.key(0))
    assert loss.shape == (30,)


@pytest.mark.parametrize("name", ["digits", "tfds:mnist"])
def test_without_labels_nothing_changes(name):
    """Also for the runs of versions that knew none."""
    required = ["--data-dir", "x"] if "tfds" in name else []
    recipe, config = command_line.parse([name, *required])
    assert not is_conditional(config)
    options = configuration.to_dict(config)
    del options["conditioning"]
    assert configuration.from_dict(recipe, json.loads(json.dumps(options))) == config
    if name == "digits":
        examples = read_examples(recipe, config)
        assert (examples.train_labels, examples.held_out_labels) == (None, None)
        problem, _ = recipe.examine(config, examples)
        facts = problem.to_dict()
        assert facts.pop("num_labels") is None
        assert Problem.from_dict(facts) == problem
        assert isinstance(problem.batch(examples.train, None), np.ndarray)


# --- evaluation -----------------------------------------------------------------------------------


def test_digits_are_evaluated_with_and_without_labels(digits):
    results = results_of(digits)
    rows = results["log_likelihood"]
    gain = rows["score model given label"]["nats"] - rows["score model"]["nats"]
    np.testing.assert_allclose(results["label_gain"]["nats"], gain, rtol=1e-5, atol=1e-6)
    assert "score model given label (train)" in rows
    assert results["recognized"]["held out"]["share"] > 0.95
    assert results["recognized"]["samples"]["num"] == 10  # one of each label
    page = (digits / "report.html").read_text()
    assert "score model given label" in page
    assert "Recognized as their label" in page


@pytest.mark.slow
def test_likelihoods_given_the_label(signs, getkey, monkeypatch):
    """Of two halves far apart, log p(x | label) - log p(x) is log 2."""
    run, examples = signs
    monkeypatch.setattr(evaluation, "_BLOCK_SIZE", 16)  # several blocks, the last filled up
    x, labels = run.problem.rows(examples.held_out[:40]), examples.held_out_labels[:40]
    options, key = run.config.evaluation, getkey()
    log_prob, _ = evaluation.log_likelihood(run, x, key, options)
    given, _ = evaluation.log_likelihood(run, x, key, options, labels)
    wrong, _ = evaluation.log_likelihood(run, x, key, options, 1 - labels)
    assert abs((given - log_prob).mean() - np.log(2)) < 0.2
    assert (wrong < log_prob - 3).mean() > 0.9


def test_what_labels_tell():
    """Labels cost what those of the training examples say, however few are held out."""
    gains, labels, train = np.array([1.0, 2.0, 3.0, 2.0]), np.array([0, 3, 3, 0]), np.arange(8) % 4
    gain = evaluation._label_gain(gains, labels, train)
    np.testing.assert_allclose(gain["nats"], 2.0)
    np.testing.assert_allclose(gain["standard_error"], (2 / 3) ** 0.5 / 2)
    np.testing.assert_allclose(gain["entropy_of_labels"], np.log(4))
    gain = evaluation._label_gain(gains, labels, np.array([0, 3, 3, 3]))
    np.testing.assert_allclose(gain["entropy_of_labels"], -np.log([0.25, 0.75]).mean())


def test_recognized(getkey):
    _, _, examples, problem = problem_of("digits", "--conditional")
    x = problem.scaled(problem.rows(examples.train[:200]), getkey())
    labels = examples.train_labels[:200]
    right = drawn.recognized(problem, examples, x, labels)
    wrong = drawn.recognized(problem, examples, x, (labels + 1) % 10)
    assert right["samples"]["share"] > 0.97
    assert wrong["samples"]["share"] < 0.03
    share = right["held out"]["share"]
    assert share > 0.97
    error = (share * (1 - share) / 297) ** 0.5  # if all labels were as hard
    np.testing.assert_allclose(right["held out"]["standard_error"], error, rtol=0.2)
    assert drawn.labels_to_draw(problem, 15).tolist() == np.repeat(range(10), 2).tolist()


def recognized_of(train, labels, held_out, held_out_labels, x, x_labels):
    """What is said of samples `x`, in the units of the data."""
    recipe, config = command_line.parse(
        ["array", "--data", "x.npz", "--conditional", "--labels", "y"]
    )
    examples = Examples(train, held_out, None, labels, held_out_labels)
    problem, _ = recipe.examine(config, examples)
    return drawn.recognized(problem, examples, problem.rows(x), x_labels)


def test_recognized_in_columns_of_all_scales():
    """Far from zero and narrow beside wide: of separable labels it took half for the other."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 600)
    x = np.stack([1e9 + 4 * y + 0.3 * rng.normal(size=600), 1e3 * rng.normal(size=600)], axis=1)
    seen = recognized_of(x[:400], y[:400], x[400:500], y[400:500], x[500:], y[500:])
    assert seen["held out"] == {"share": 1.0, "standard_error": 0.0, "num": 100}
    assert seen["samples"]["share"] == 1.0


def test_recognized_weighs_labels_alike():
    """Of the rare label a quarter is right: 62.5 %, where the mean over rows is 87 %."""
    places = np.array([[0.0], [10.0]])
    often, rare = np.zeros(19, int), np.ones(4, int)
    train = np.concatenate([np.zeros(95, int), np.ones(5, int)])
    noise = 1e-3 * np.random.default_rng(0).normal(size=(100, 1))
    seen = recognized_of(
        places[train] + noise,
        train,
        places[np.concatenate([often, [1, 0, 0, 0]])] + noise[:23],
        np.concatenate([often, rare]),
        places[[0, 0, 0, 1]] + noise[:4],
        np.array([0, 0, 1, 1]),
    )
    assert seen["held out"]["share"] == 0.625
    error = (0.25 * 0.75 / 4) ** 0.5 / 2
    np.testing.assert_allclose(seen["held out"]["standard_error"], error)
    assert seen["samples"]["share"] == 0.75
    np.testing.assert_allclose(seen["samples"]["standard_error"], (0.5 * 0.5 / 2) ** 0.5 / 2)
    said = report.of_labels({"recognized": seen})[0]
    assert "all labels weighing alike: 75.0 ± 17.7 % of 4 samples, 62.5 ± 10.8 % of 23" in said


def test_recognized_samples_one_of_each_label():
    """Their error is that of their mean."""
    train = np.repeat(np.arange(4), 5)
    x = 10.0 * train[:, None] + 1e-3 * np.random.default_rng(0).normal(size=(20, 1))
    seen = recognized_of(x, train, x[2::5], np.arange(4), x[::5], np.array([0, 1, 3, 2]))
    np.testing.assert_allclose(seen["samples"]["standard_error"], 0.5 / 4**0.5)


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sampler_table.SAMPLERS)
def test_every_sampler_of_the_table(signs, name):
    run, _ = signs
    steps = None if name in ("adaptive_ode", "adaptive_sde") else 3
    sampler, settings = sampler_table.choose(run, name, steps, 0.0)
    draw = samplers.one_sample(
        sampler, run.score_fn, process=run.problem.process, event_shape=(1,), **settings
    )
    x = jax.eval_shape(draw, jax.random.key(0))
    assert (x.shape, x.dtype) == ((1,), jnp.float32)


def test_rows_are_of_the_labels_asked_for(signs, tmp_path):
    run, _ = signs
    args = f"--label 1 --label 0 --num 19 --num-steps 12 --output {tmp_path / 'x'}".split()
    sample.main([str(run.directory), *args])
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (20, 1)
    assert (x[:10] > 0).all()
    assert (x[10:] < 0).all()
    assert len(np.unique(x)) == 20


def test_guidance_is_of_the_two_scores(signs):
    run, _ = signs
    x, t = jnp.linspace(-2.0, 2.0, 6)[:, None], jnp.array([0.5, 0.5, 1.0, 1.0, 2.0, 2.0])
    labels = jnp.array([0, 1, 0, 1, 0, 1])
    without, given = (np.asarray(run.score_given(y)(x, t)) for y in (None, labels))
    assert np.abs(given - without).max() > 0.1

    def score(**options):
        options = sample.Sample(run=run.directory, **options)
        return sample._score_fn(run, options, labels)(x, t)

    np.testing.assert_allclose(score(), without, rtol=1e-6)
    np.testing.assert_allclose(score(label=("all",)), given, rtol=1e-6)
    guided = without + 3.0 * (given - without)
    asked = {"label": ("all",), "guidance": 3.0}
    np.testing.assert_allclose(score(**asked), guided, rtol=1e-5, atol=1e-6)
    inside = np.array([False, False, True, True, False, False])[:, None]
    np.testing.assert_allclose(
        score(guidance_interval=(0.7, 1.5), **asked),
        np.where(inside, guided, given),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_grid_of_labels(digits, tmp_path):
    args = f"--label all --guidance 2 --num 30 --num-steps 2 --output {tmp_path / 'x'}".split()
    sample.main([str(digits), *args])
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (30, 8, 8)
    assert len(np.unique(x.reshape(30, -1), axis=0)) == 30
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.height > 2 * picture.width  # ten rows of three


@pytest.mark.parametrize(
    ("hidden", "rows", "columns"),
    [
        ("left", (0, 4), (0, 2)),
        ("right", (0, 4), (3, 5)),
        ("top", (0, 2), (0, 5)),
        ("bottom", (2, 4), (0, 5)),
        ("center", (1, 3), (1, 4)),
    ],
)
def test_the_hidden_part(hidden, rows, columns):
    expected = np.ones((4, 5, 1), bool)
    expected[slice(*rows), slice(*columns)] = False
    np.testing.assert_array_equal(sample.known_part((4, 5, 1), hidden), expected)


def test_inpainting_keeps_what_is_known(digits, tmp_path):
    args = f"--inpaint left --num 3 --completions 2 --num-steps 2 --output {tmp_path / 'x'}".split()
    sample.main([str(digits), *args])
    x = np.load(tmp_path / "x.npy")
    held_out = problem_of("digits")[2].held_out[:3, None]
    assert x.shape == (3, 2, 8, 8)
    np.testing.assert_array_equal(x[..., 4:], np.broadcast_to(held_out[..., 4:], (3, 2, 8, 4)))
    hidden = x[..., :4]
    assert (hidden != held_out[..., :4]).any(axis=(2, 3)).all()
    assert (hidden[:, 0] != hidden[:, 1]).any(axis=(1, 2)).all()
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_inpainting_of_your_own_images_is_in_their_units(dtype, tmp_path):
    """Known pixels are kept to the last bit, where float32 would lose what 1e6 is far above."""
    x = np.random.default_rng(0).uniform(0, 256, (60, 4, 5))
    x = {np.uint8: x, np.uint16: 255 * x, np.float64: 1e6 + x}[dtype].astype(dtype)
    np.save(tmp_path / "x.npy", x)
    _, _, examples, problem = problem_of("array", "--data", tmp_path / "x.npy")
    run = types.SimpleNamespace(problem=problem, score_fn=lambda x, t: -x / (1 + t[0] ** 2))
    files = tmp_path / "out.npy", tmp_path / "out.png"
    options = sample.Sample(tmp_path, num=4, inpaint="left", completions=3, num_steps=4)
    labels = np.array([NO_LABEL])
    sample.inpaint(options, sample.Prepared(run, labels, examples.held_out, None, *files))
    completed = np.load(files[0])
    assert completed.shape == (4, 3, 4, 5)
    known = np.broadcast_to(examples.held_out[:4, None, :, 2:], (4, 3, 4, 3))
    np.testing.assert_array_equal(completed[..., 2:], known)
    far = abs(completed[..., :2] - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    assert 0.2 < far.mean() < 2


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("{digits} --label 12", "'12': they are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; or all"),
        ("{digits} --label seven", "'seven'"),
        ("{digits} --guidance 2", "add --label"),
        ("{digits} --label 3 --guidance-interval 1 2", "add it"),
        ("{digits} --label 3 --guidance 2 --guidance-interval 2 1", "0 <= LOW < HIGH"),
        ("{digits} --inpaint left --label all", "one --label at most"),
        ("{digits} --inpaint left --sampler ddim", "--sampler"),
        ("{digits} --inpaint left --completions 0", "--completions"),
        ("{digits} --num 0", "--num"),
        ("{digits} --sampler adaptive_sde --num-steps 3", "--num-steps is not of adaptive_sde"),
        ("{digits} --sampler ddim --churn 1", "--churn is of heun"),
        ("{signs} --inpaint left", "is for images"),
        ("{unlabeled} --label 3", "was trained without labels"),
    ],
)
def test_mistakes_of_sampling(args, says, digits, signs, tmp_path, capsys, monkeypatch):
    problem = dataclasses.replace(signs[0].problem, num_labels=None, label_names=None)
    unlabeled = signs[0]._replace(directory=tmp_path, problem=problem)
    load = saved.load
    monkeypatch.setattr(saved, "load", lambda d: unlabeled if d == tmp_path else load(d))
    places = {"digits": digits, "signs": signs[0].directory, "unlabeled": tmp_path}
    error, code = run_fails(sample.main, args.format(**places).split(), capsys)
    assert code == 2
    assert says in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("moons --conditional", "--conditional"),
        ("digits --conditional --label-dropout 0", "--label-dropout"),
        ("digits --conditional --label-dropout 1", "--label-dropout"),
        ("array --array x --conditional", "--labels NAME"),
        ("array --array x --labels y", "--conditional"),
        ("array --array x --conditional --labels z", "'z'"),
        ("array --array x --conditional --labels x", "one integer or word for each"),
        ("array --array x --conditional --labels few", "one integer or word for each"),
        ("array --array x --conditional --labels each", "18 labels for 18 examples"),
    ],
)
def test_mistakes_of_training(args, says, tmp_path, capsys):
    y = np.arange(20) % 4
    arrays = {"y": y, "few": y[:5], "each": np.arange(20)}
    np.savez(tmp_path / "x.npz", x=np.arange(40.0).reshape(20, 2), **arrays)
    args = [*args.split(), "--directory", str(tmp_path / "run")]
    if args[0] == "array":
        args += ["--data", str(tmp_path / "x.npz")]
    error, code = run_fails(train.main, args, capsys)
    assert code == 2
    assert says in error
