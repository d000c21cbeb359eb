"""Users' own data on the command line: integers, labels, few rows, what cannot be written."""

import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest

from experiments import evaluate, sample, train
from experiments.recipes.shared import integers, remarks
from experiments.recipes.shared.examples import Examples, numbered, read_examples
from experiments.recipes.shared.problem import Problem
from experiments.runs import (
    baselines,
    command_line,
    configuration,
    drawn,
    evaluation,
    report,
    saved,
    stops,
)
from experiments.runs.images import gray
from tests.test_experiments import TINY, results_of, run_fails


def prepared(tmp_path, x, *options):
    """Returns examples, problem and what is said, of an array on the command line."""
    np.save(tmp_path / "x.npy", x)
    recipe, config = command_line.parse(["array", "--data", str(tmp_path / "x.npy"), *options])
    examples = read_examples(recipe, config)
    return examples, *recipe.examine(config, examples)


# --- integers -------------------------------------------------------------------------------------


def counts(num=400):
    rng = np.random.default_rng(0)
    n = rng.poisson(3, num)
    return np.stack([n, 100 * rng.normal(size=num), np.full(num, 5.5), rng.integers(0, 2, num)], 1)


def test_integers_are_dequantized_and_return(tmp_path, getkey):
    """Also of a float array; a constant is left out. The way back is exact."""
    examples, problem, said = prepared(tmp_path, counts())
    assert problem.integers.where.tolist() == [True, False, False, True]
    assert "columns 1, 4: integers, dequantized" in said
    assert "column 3: constant, hence left out" in said
    stored = json.loads(json.dumps(problem.to_dict()))
    problem = Problem.from_dict(stored)

    x = np.asarray(problem.scaled(problem.rows(examples.train), getkey()), np.float64)
    assert x.shape == (len(x), 3)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=0.02)
    restored = np.insert(x, 2, 0.0, axis=1)
    units = problem.standardizer.inverse(restored) - examples.train
    rounding = 1e-5 * np.array([1, 100, 1, 1])
    assert (units[:, [0, 3]] > -rounding[0]).all()
    assert (units[:, [0, 3]] < 1 + rounding[0]).all()
    assert np.abs(units[:, 1]).max() < rounding[1] * 10
    means = units[:, [0, 3]].mean(axis=0)
    np.testing.assert_allclose(means, 0.5, atol=4.5 / (12 * len(x)) ** 0.5)
    back = problem.unscaled(x)
    far = np.abs(units - np.round(units)) > 1e-4  # of an edge, where rounding may cross it
    np.testing.assert_array_equal(back[:, 0][far[:, 0]], examples.train[:, 0][far[:, 0]])
    np.testing.assert_array_equal(back[:, 2], 5.5)


Z = np.random.default_rng(2).normal(size=3000)
LATTICES = {
    "temperatures": (np.round(36.8 + 0.5 * Z, 1), 0.1),
    "the same in float32": (np.round(36.8 + 0.5 * Z, 1).astype(np.float32), 0.1),
    "fifths": (np.round(Z / 0.2) * 0.2, 0.2),
    "halves": (np.round(3 * Z) * 0.5, 0.5),
    "quarters far from zero": (4000 + np.round(3 * Z) * 0.25, 0.25),
    "the same in single precision": ((4000 + np.round(3 * Z) * 0.25).astype(np.float32), 0.25),
    "means of three, rounded": (np.round(np.round(9 + 2 * Z) / 3, 2), 0.01),
    "inches": (np.round(70 + 3 * Z) * 2.54, 2.54),
    "pixels": (np.round(128 + 30 * Z) / 255, 1 / 255),
    "decimals beside zero": (np.round(Z, 1) + 0.05, 0.1),
    "gaps of two and three": (np.round(Z).clip(-1, 1) ** 2 * 0.3 + (Z > 0.1) * 0.2, 0.1),
    "two values": (np.where(Z > 0, 7.1, 0.3), 6.8),
    "thousands": (np.round(10 * Z).astype(int) * 1000, 1000),
    "integers": (np.round(10 * Z).astype(int), 1),
    "real numbers": (Z, 0),
    "real numbers of large units": (1e20 * Z, 0),
    "real numbers, repeated": (np.repeat(Z[:700], 4), 0),
    "mostly zero": (np.where(Z > 0.7, Z, 0.0), 0),
    "three values": (np.choose(np.arange(3000) % 3, [0.0, 1.0, np.pi]), 0),
    "decimals, hardly tied": (np.round(Z, 5), 0),
    "logarithms of counts": (np.log1p(np.round(300 + 50 * Z)), 0),
    "roots of counts": (np.sqrt(np.round(300 + 50 * Z)), 0),
    "ratios": (np.round(10 + 3 * Z) / (3 + np.arange(3000) % 7), 0),
}


@pytest.mark.parametrize("name", LATTICES)
def test_steps_of_columns(name, tmp_path, getkey):
    """Cells are as wide as the step, and samples come back to the lattice."""
    x, step = LATTICES[name]
    found = integers.find([x[:2000, None], x[2000:, None]])
    np.testing.assert_allclose(found, [step], rtol=1e-5)
    examples, problem, said = prepared(tmp_path, x[:, None])
    assert problem.real.tolist() == [step == 0]
    tied = step == 0 and len(np.unique(examples.train)) <= len(examples.train) / 2
    assert ("hence without a density" in said) == tied
    if step:
        assert ("integers, dequantized" if step == 1 else f" of {step:.6g}, dequantized") in said
        back = problem.unscaled(problem.scaled(problem.rows(examples.train), getkey()))
        rounding = 1e-5 if x.dtype == np.float32 else 1e-11
        equal = abs(back - examples.train) <= rounding
        assert equal.mean() > 0.999  # the others are at the edges of their cells


@pytest.mark.parametrize(
    ("dtype", "low", "step"),
    [
        *((dtype, 0, 1) for dtype in (bool, np.int64, np.uint16, float)),
        (np.int64, 0, 1000),
        (float, 36.8, 0.1),
        (np.float32, -0.5, 0.25),
    ],
)
@pytest.mark.parametrize("num_constants", [0, 3])
def test_likelihoods_of_integers_are_of_probabilities(
    dtype, low, step, num_constants, tmp_path, getkey
):
    """The density that is uniform on the cells of Bernoulli(.3) has minus its entropy.

    Constant columns beside it change nothing, in bits per dimension neither.
    """
    x = (low + step * (np.random.default_rng(1).random((5000, 1)) < 0.3)).astype(dtype)
    x = np.concatenate([x, np.full((5000, num_constants), low, dtype)], axis=1)
    examples, problem, _ = prepared(tmp_path, x)
    y = np.asarray(problem.scaled(problem.rows(examples.train), getkey()))[:, 0]
    width = step / problem.standardizer.scale[0]  # of a cell, in scaled units
    one = y > (low + step - problem.standardizer.mean[0]) / problem.standardizer.scale[0]
    share = (examples.train[:, 0] > low).mean()
    np.testing.assert_allclose(one.mean(), share)
    log_probs = np.where(one, np.log(share), np.log(1 - share)) - np.log(width)
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    row = evaluation._row(problem, log_probs)
    np.testing.assert_allclose(row["nats"], -entropy, rtol=1e-5)
    np.testing.assert_allclose(row["bits_per_dim"], entropy / np.log(2), rtol=1e-5)


def test_what_counts_as_integers(tmp_path):
    image = np.random.default_rng(0).normal(size=(20, 4, 4))
    image[:, 0, 0] = np.arange(20)
    assert not integers.find([image]).any()  # one pixel makes no integers of an image
    assert (integers.find([image.astype(int)]) == 1).all()
    assert (integers.find([2 * image.astype(int)]) == 2).all()  # of all pixels together
    few = np.random.default_rng(0).integers(0, 9, (20, 4, 4))
    few[:, :, 0] = 0
    np.testing.assert_allclose(integers.find([few / 255]), 1 / 255)
    x = np.arange(40.0).reshape(20, 2)
    assert integers.find([x, x + np.array([0, 0.5])]).tolist() == [2, 0]
    _, problem, _ = prepared(tmp_path, x, "--integers", "real")
    assert problem.integers is None
    with pytest.raises(ValueError, match=r"column 2 .*beyond 2\*\*52.*--integers real"):
        prepared(tmp_path, np.arange(40).reshape(20, 2) + np.array([0, 2**53]))
    with pytest.raises(ValueError, match="all 16 training examples are the same"):
        prepared(tmp_path, np.ones((20, 2)))


def test_runs_of_versions_that_took_integers_for_real_numbers():
    recipe, config = command_line.parse(["array", "--data", "x.npy", "--integers", "real"])
    options = configuration.to_dict(config)
    for name in ("integers", "header", "delimiter"):
        del options["data"][name]
    assert configuration.from_dict(recipe, options) == config
    assert configuration.decisive(recipe, config)["data"] == options["data"]
    _, config = command_line.parse(["array", "--data", "x.npy"])
    assert configuration.decisive(recipe, config)["data"]["integers"] == "dequantize"


def test_constant_columns_are_left_out_and_come_back(tmp_path):
    """By the command line; held-out rows that differ are told of."""
    z = np.random.default_rng(0).normal(size=(60, 4))
    x = np.stack([z[:, 0], np.full(60, 7.25), np.arange(60) % 3, z[:, 3]], axis=1)
    examples, problem, said = prepared(tmp_path, x)
    assert problem.kept == (0, 2, 3)
    assert "column 2: constant, hence left out" in said
    assert "other values there" not in said
    _, order = np.unique(examples.held_out[:, 0], return_index=True)
    x[np.isin(x[:, 0], examples.held_out[order[:2], 0]), 1] = 8.0
    examples, problem, said = prepared(tmp_path, x)
    assert "2 of 12 examples that are not trained on have other values there" in said
    assert remarks.unforeseen(problem, examples.held_out).sum() == 2
    assert not remarks.unforeseen(problem, examples.train).any()

    args = [*TINY, "--data", str(tmp_path / "x.npy"), "--directory", str(tmp_path / "run")]
    train.main(["array", *args, "--likelihood-examples", "6"])
    results = results_of(tmp_path / "run")
    assert results["num_unforeseen"] == 2
    page = (tmp_path / "run/report.html").read_text()
    assert "2 of 6 held-out examples have likelihood zero" in page
    assert "Likelihoods leave out column 2, constant in training." in page
    row = results["log_likelihood"]["score model"]
    np.testing.assert_allclose(row["bits_per_dim"], -row["nats"] / 3 / np.log(2), rtol=1e-5)
    sample.main([str(tmp_path / "run"), "--num", "5"])
    drawn = np.load(tmp_path / "run/samples-heun.npy")
    assert drawn.shape == (5, 4)
    np.testing.assert_array_equal(drawn[:, 1], 7.25)
    assert set(drawn[:, 2]) <= {0, 1, 2}


def test_constant_pixels_stay(tmp_path):
    """The network of an image sees all of it."""
    x = np.random.default_rng(0).normal(size=(40, 4, 4))
    x[:, 0] = 5.5
    _, problem, said = prepared(tmp_path, x)
    assert problem.left_out.sum(axis=1).tolist() == [4, 0, 0, 0]
    assert problem.event_shape == (4, 4)
    assert "4 of 16 numbers: constant, hence noise to the network" in said
    assert "integers" not in said


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_constant_pixels_in_any_unit(unit, tmp_path, getkey):
    """They are noise of density 1 in any unit; held-out images that differ there are told of."""
    x = np.random.default_rng(0).normal(size=(60, 4, 4))
    x[:, 0] = 5.5
    order = prepared(tmp_path, x)[0].held_out[:2, 3, 3]
    x[np.isin(x[:, 3, 3], order), 0, 1] = 5.75
    examples, problem, said = prepared(tmp_path, unit * x)
    problem = Problem.from_dict(json.loads(json.dumps(problem.to_dict())))
    assert "2 of 12 examples that are not trained on have other values there" in said
    assert remarks.unforeseen(problem, examples.held_out).tolist() == [True] * 2 + [False] * 4
    assert not remarks.unforeseen(problem, examples.train).any()
    y = np.asarray(problem.scaled(problem.rows(examples.held_out), getkey()))
    seen = y[:, 0]
    assert abs(seen).max() <= np.sqrt(3) + 1e-6
    np.testing.assert_allclose(seen.mean(), 0, atol=4 / np.sqrt(seen.size))
    np.testing.assert_allclose(seen.var(), 1, atol=4 * np.sqrt(0.8 / seen.size))
    back = problem.unscaled(y)
    np.testing.assert_array_equal(back[:, 0], unit * 5.5)
    np.testing.assert_allclose(back[:, 1:], examples.held_out[:, 1:], rtol=1e-4, atol=1e-5 * unit)
    # Uniform noise of unit variance has the density 1 / sqrt(12), and is to have 1.
    scale = np.std(examples.train[:, 1:].reshape(len(examples.train), -1), axis=0)
    np.testing.assert_allclose(problem.log_det, 4 * np.log(12) / 2 - np.log(scale).sum(), rtol=1e-5)
    run = saved.Run(tmp_path, None, None, problem, None, None)
    assert "Likelihoods leave out 4 of 16 numbers, constant" in evaluation._units(run, examples)
    assert "multiples" not in evaluation._units(run, examples)


def test_the_checksum_is_of_all_that_was_read():
    """Also of held-out rows, of constant columns, and of the type."""
    x = np.arange(24.0).reshape(8, 3)
    examples = Examples(x[:4], x[4:6], validation=x[6:]), Examples(x[:4], x[4:6], None, *x[:2, :2])
    for some in examples:
        found = {saved.checksum(some)}
        for name, value in some._asdict().items():
            if value is not None:
                found.add(saved.checksum(some._replace(**{name: value + (value == value.max())})))
        assert len(found) == 1 + sum(value is not None for value in some)
        assert saved.checksum(some._replace(train=some.train.astype(int))) not in found


def test_problems_of_earlier_versions(tmp_path):
    """Which knew integers of step 1 only, constants among them."""
    _, problem, _ = prepared(tmp_path, counts()[:, :2])
    stored = problem.to_dict()
    del stored["kept"], stored["integers"]["step"]
    earlier = Problem.from_dict(json.loads(json.dumps(stored)))
    assert earlier.kept is None
    np.testing.assert_array_equal(earlier.integers.step, [1, 1])
    assert earlier.log_det == problem.log_det
    y = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_array_equal(earlier.unscaled(y), problem.unscaled(y))
    constants = integers.Integers(*np.array([[True], [5.5], [5.5]]), np.ones(1))
    np.testing.assert_array_equal(constants.rounded(np.array([[5.1], [5.9], [6.4]])), 5.5)


CODED = {
    "five of 1e20": (Z[:1000] * 5 + 15, [1e20] * 5),
    "NetCDF's": (Z[:1000] * 5 + 15, [9.96921e36]),
    "one outlier": (Z[:1000] * 5 + 15, [1e12]),
    "integers": (np.round(Z[:1000] * 5), [9999999999]),
    "tenths": (np.round(Z[:1000] * 5, 1), [-9999999999]),
}


@pytest.mark.parametrize("name", CODED)
def test_codes_that_float32_cannot_hold_beside_the_rest(name, tmp_path):
    """The rows would have two values, or lose their cells."""
    x, codes = CODED[name]
    x = np.stack([Z[1000:2000], x], axis=1)
    prepared(tmp_path, x)
    train = np.isin(x[:, 0], prepared(tmp_path, x)[0].train[: len(codes), 0])
    x[train, 1] = codes
    with pytest.raises(ValueError, match=r"column 2 of the data: float32 .*code for missing") as it:
        prepared(tmp_path, x)
    assert f"{codes[0]:.10g}" in str(it.value)
    images = np.tile(x[:, None, :], (1, 4, 2))
    with pytest.raises(ValueError, match="8 of 16 numbers of the data: float32"):
        prepared(tmp_path, images, "--integers", "real")


@pytest.mark.parametrize("codes", [[999999], [-999, 999], [99998, 99999, 99999]])
@pytest.mark.parametrize("whole", [True, False])
def test_codes_are_told_of(codes, whole, tmp_path):
    """Wherever the rows are; not of ordinary tails."""
    x = np.stack([Z[1000:2000], 5 * Z[:1000] + 15], axis=1)
    x = np.round(x) if whole else x
    x[-len(codes) :, 1] = codes
    _, problem, said = prepared(tmp_path, x)
    assert f"column 2: values lie far from all others, such as {max(codes, key=abs)}" in said
    assert problem.real.tolist() == [not whole] * 2
    (found,) = remarks.far_off([np.tile(x[:, None, 1:], (1, 4, 4))])
    assert found.startswith("the data: values lie far")


def test_ordinary_tails_are_no_codes():
    rng = np.random.default_rng(0)
    for num in (20, 100, 1000, 10000):
        for _ in range(20):
            clusters = rng.normal(size=num) + 20 * rng.integers(0, 3, num)
            laws = rng.normal(size=num), rng.random(num), rng.poisson(50, num), clusters
            assert not remarks.far_off([np.stack(laws, axis=1)])
    assert not remarks.far_off([np.ones((20, 1)), np.zeros((1, 1))])


def test_8_bit_tables_are_those_of_integers(tmp_path):
    """Steps, constants and likelihoods do not depend on the type."""
    x = np.stack([10 * np.round(10 + 2 * Z), np.round(9 + 2 * Z), np.full(3000, 7)], axis=1)
    problems = [
        prepared(tmp_path, x.astype(dtype), *more)[1].to_dict()
        for dtype in (np.uint8, np.int64)
        for more in ((), ("--integers", "real"))
    ]
    assert problems[0] == problems[2]
    assert problems[1] == problems[3]
    assert problems[0]["integers"]["step"][:2] == [10, 1]
    assert problems[1]["integers"] is None
    _, problem, _ = prepared(tmp_path, x.astype(np.uint8), "--network", "bins")
    assert problem.num_values == 256


@pytest.mark.parametrize("step", [255, 17, 1])
def test_8_bit_images_have_the_step_of_their_values(step, tmp_path, getkey):
    """Of fair masks of 0 and 255 the truth is 1 bit, with cells of width 255."""
    x = np.random.default_rng(0).integers(0, 1 + 255 // step, (200, 5, 6)).astype(np.uint8) * step
    x[:, 0] = 0  # constant, but no less on the lattice
    examples, problem, _ = prepared(tmp_path, x)
    y = np.asarray(problem.scaled(problem.rows(examples.train), getkey()))
    np.testing.assert_array_equal(problem.unscaled(y), examples.train)
    if step == 1:
        assert problem.num_values == 256
        return
    # The density that is uniform on the cells: of one value in a row, of all in the others.
    values = 1 + 255 // step
    width = step / problem.standardizer.scale  # of the cell of each pixel, as the network sees it
    log_probs = np.full(len(y), -np.log(width).sum() - 24 * np.log(values))
    row = evaluation._row(problem, log_probs)
    np.testing.assert_allclose(row["bits_per_dim"], 24 / 30 * np.log2(values), rtol=1e-5)
    _, problem, _ = prepared(tmp_path, x, "--integers", "real")
    assert problem.num_values is None
    assert problem.real[1:].all()


def test_8_bit_counts_far_from_the_middle(tmp_path):
    """Poisson(3) among 256 levels: entropy 2.79 bits, where the prior at 127.5 had 54.8."""
    x = np.random.default_rng(0).poisson(3, (3000, 1, 1)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    options = "--num-steps 300 --batch-size 256 --width 32 --depth 2 --every 300 --dropout 0"
    args = f"array --data {tmp_path / 'x.npy'} --directory {tmp_path / 'run'} --validation 0"
    config = command_line.parse([*args.split(), *options.split(), "--ema-decay", "0.98"])
    run, examples = train.train(*config)
    key = jax.random.key(3)
    y = np.asarray(run.problem.scaled(run.problem.rows(examples.held_out[:200]), key))
    log_probs, _ = evaluation.log_likelihood(run, y, key, run.config.evaluation)
    row = evaluation._row(run.problem, log_probs)
    p = np.bincount(x.ravel()) / len(x)
    bits = -np.log2(p[examples.held_out[:200].ravel()]).mean()  # of the right probabilities
    assert -0.05 < row["bits_per_dim"] - bits < 0.3
    samples, _, _ = drawn.sample(run, key, 500, 16)
    samples = run.problem.unscaled(samples)
    assert samples.dtype == np.uint8
    np.testing.assert_allclose(samples.mean(), 3, atol=0.5)
    assert samples.max() < 20


@pytest.mark.slow
def test_columns_without_a_density_are_told_of(tmp_path):
    """Zeros among real numbers, and linear functions of other columns, also of integers."""
    rng = np.random.default_rng(0)
    z, n = rng.normal(size=(3, 300)), rng.poisson(3, 300)
    zeros = np.where(rng.random(300) < 0.3, 0.0, z[1])
    x = np.stack([z[0], zeros, n, 1e3 - 2e-6 * z[0], n + z[0] + 1e-9 * z[2]], axis=1)
    _, _, said = prepared(tmp_path, x)
    assert "column 2: one value is in more than a tenth of the rows" in said
    assert "columns 4, 5: linear in other columns, hence without a density" in said
    for fine in (x[:, :1], z.T.round(1) + 0.05, z[:, :6], np.stack([n, n, z[0]], axis=1)):
        assert "without a density" not in prepared(tmp_path, fine)[2]

    args = [*TINY, "--data", str(tmp_path / "x.npy"), "--directory", str(tmp_path / "run")]
    np.save(tmp_path / "x.npy", x[:, [0, 3]])
    train.main(["array", *args])
    assert "Column 2: linear in other columns" in (tmp_path / "run/report.html").read_text()
    assert not results_of(tmp_path / "run")["has_density"]


def test_units_name_what_is_taken_as_real_numbers(tmp_path):
    """Constants are not."""
    x = np.stack([Z[:300], np.round(Z[300:600]), np.full(300, 7.5)], axis=1)
    for columns, options, named in (
        ([0, 2], [], None),
        ([0, 1, 2], [], None),
        ([0, 1, 2], ["--integers", "real"], "column 2"),
    ):
        examples, problem, _ = prepared(tmp_path, x[:, columns], *options)
        run = saved.Run(tmp_path, None, None, problem, None, None)
        said = evaluation._units(run, examples)
        assert ("taken as real numbers" in said) == (named is not None)
        assert named is None or f"({named}), are taken" in said
        assert f"Likelihoods leave out column {len(columns)}, constant" in said


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["cat", "dog", "emu"], [1, 5, 7], [-1.0, 0.0, 2.0]])
def test_labels_keep_their_names(names, tmp_path):
    y = np.arange(60) % 3
    np.savez(
        tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(60, 2)), y=np.array(names)[y]
    )
    args = f"array --data {tmp_path / 'x.npz'} --array x --conditional --labels y".split()
    recipe, config = command_line.parse(args)
    examples = read_examples(recipe, config)
    called = tuple(str(int(n)) if isinstance(n, float) else str(n) for n in names)
    assert examples.label_names == called
    assert set(examples.train_labels) == {0, 1, 2}
    problem, _ = recipe.examine(config, examples)
    assert problem.labels == called
    run = saved.Run(tmp_path, recipe, config, problem, None, None)
    asked = sample.Sample(run=tmp_path, label=(called[2], called[0]))
    assert sample._labels(run, asked).tolist() == [2, 0]
    with pytest.raises(ValueError, match=f"no label 'x': they are {called[0]}, "):
        sample._labels(run, sample.Sample(run=tmp_path, label=("x",)))


def test_a_label_without_examples_is_refused():
    examples = Examples(np.zeros((4, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="label 9 has no example to learn it from"):
        numbered(examples, np.array([1, 1, 2, 2]), np.array([1, 9]))
    with pytest.raises(ValueError, match="6 labels for 6 examples"):
        numbered(examples, np.arange(4), np.arange(4, 6))


# --- baselines ------------------------------------------------------------------------------------


def test_baselines_are_bounded_skipped_and_left_out(monkeypatch):
    x = np.random.default_rng(0).normal(size=(baselines.MOST_ROWS + 1, 1))
    assert len(np.unique(baselines.subset(x), axis=0)) == baselines.MOST_ROWS
    np.testing.assert_array_equal(baselines.subset(x[1:]), x[1:])

    fitted, left_out = baselines.fit(x[:2], x[:3])
    assert not fitted
    assert "it takes 5 examples" in left_out["kernel density"]
    fitted, _ = baselines.fit(x[:300], x[300:600])
    for values, _ in fitted.values():  # near minus the entropy of a standard normal
        np.testing.assert_allclose(values.mean(), -0.5 * np.log(2 * np.pi * np.e), atol=0.2)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(baselines, "_mixture", interrupt)
    fitted, left_out = baselines.fit(x[:300], x[:3])
    assert not fitted
    assert left_out == dict.fromkeys(["Gaussian mixture", "kernel density"], "skipped, by Ctrl-C")


def nearly_equal_columns(rng, num):
    """Of correlation 1 - 5e-5, with their log-density."""
    a, b = rng.normal(size=(2, num))
    x = np.stack([a, a + 0.01 * b], axis=1)
    return x, -(a**2 + b**2) / 2 - np.log(2 * np.pi * 0.01)


def narrow_columns_far_apart(rng, num):
    """8-bit numbers around 10 and 240, of standard deviation 2, scaled to [-1, 1]."""
    z = rng.normal(size=(num, 2))
    n = np.round(np.array([10, 240]) + 2 * z) + rng.random((num, 2))
    return 2 * n / 256 - 1, -(z**2).sum(axis=1) / 2 - np.log(8 * np.pi / 128**2)


def bits_beside_a_wide_column(rng, num):
    """Three numbers of 0 and 1, dequantized, beside one of 0 to 199."""
    n = np.column_stack([rng.integers(0, 200, num), rng.integers(0, 2, (num, 3))])
    return n + rng.random((num, 4)), np.full(num, -np.log(200 * 2**3))


@pytest.mark.parametrize(
    ("draw", "mixture", "kernel"),
    [
        (nearly_equal_columns, 0.05, np.inf),
        (narrow_columns_far_apart, 0.1, 0.3),
        (bits_beside_a_wide_column, 0.8, 0.8),
    ],
)
def test_baselines_see_what_is_narrow(draw, mixture, kernel):
    """One floor for all columns cost 1.1, 0.7 and 2 nats of the mixture: it lost to the model."""
    x, log_probs = draw(np.random.default_rng(0), 1300)
    fitted, left_out = baselines.fit(x[:1000], x[1000:])
    assert not left_out
    for name, within in (("Gaussian mixture", mixture), ("kernel density", kernel)):
        missing = (log_probs[1000:] - fitted[name].log_probs).mean()
        assert -0.1 < missing < within


def test_baselines_have_the_units_of_their_data():
    x = np.random.default_rng(0).normal(size=(120, 2))
    scale = np.array([1e-3, 1e4])
    fitted, _ = baselines.fit(x[:90], x[90:])
    scaled, _ = baselines.fit(scale * x[:90] - 7, scale * x[90:] - 7)
    for name, (log_probs, chosen) in fitted.items():
        expected = log_probs - np.log(scale).sum()
        np.testing.assert_allclose(scaled[name].log_probs, expected, rtol=1e-6)
        assert scaled[name].chosen == chosen


def test_a_choice_at_the_edge_is_told():
    """Data of one value have no best bandwidth, the narrower the better."""
    x = np.repeat(np.arange(3.0), 30)[:, None]
    fitted, _ = baselines.fit(x, x)
    assert fitted["kernel density"].chosen == "bandwidth 0.005, the least tried"
    assert fitted["Gaussian mixture"].chosen.endswith("regularization 1e-06, the least tried")
    assert baselines._in_words("bandwidth", [0.1, 0.2, 0.3], 1) == "bandwidth 0.2"
    assert baselines._in_words("bandwidth", [0.1, 0.3], 1) == "bandwidth 0.3, the largest tried"


def test_words_where_the_model_is_not_better():
    def said(nats, error, num=100, **others):
        more = {"baseline": {"nats": nats, "standard_error": error}}
        results = {"more_than_baselines": more, "num_examples": num, "left_out": {}}
        return report.verdict(results | others)

    assert said(3.0, 1.0) == []
    assert said(-3.0, 1.0) == [
        "Use the baseline instead: the score model has 3.00 ± 1.00 nats less"
    ]
    (sentence,) = said(-3.0, 1.0, has_density=False)
    assert "3.00 ± 1.00 nats less than the baseline, which says nothing" in sentence
    assert "not shown to be better" in said(1.0, 1.0)[0]
    assert "So few held-out examples (3) settle nothing" in said(-69.0, 72.0, 3)
    assert "59.00 nats less, which 1 held-out example" in said(-59.0, np.nan, 1)[0]


def test_held_out_rows_that_are_trained_on_are_told_of(tmp_path):
    """Also of integers, which may be alike by chance."""
    z = np.random.default_rng(0).normal(size=(30, 2))
    n = np.arange(30)[:, None]
    for rows, expected in ((np.repeat(z, 2, axis=0), 6), (z, 0), (np.tile(n, (2, 1)), 6)):
        examples, _, _ = prepared(tmp_path, rows)
        train = {tuple(row) for row in np.concatenate([examples.train, examples.validation])}
        found = sum(tuple(row) in train for row in examples.held_out)
        assert evaluation._num_repeated(examples, 6) == found == expected
    said = report.verdict({"num_examples": 40, "num_repeated": 5})
    assert said[0].startswith("5 of 40 held-out examples are also among those to train on")
    assert "unless such rows repeat by chance" in said[0]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (100, 110), (0, 255)])
def test_pictures_of_few_levels_are_not_black(low, high, tmp_path):
    """Masks of 0 and 1 in 8 bits are shown over their range, as all other numbers are."""
    x = np.random.default_rng(0).integers(low, high + 1, (60, 4, 5)).astype(np.uint8)
    x[:2] = np.array([low, high])[:, None, None]
    _, problem, _ = prepared(tmp_path, np.repeat(x, 3, axis=0))
    problem = Problem.from_dict(json.loads(json.dumps(problem.to_dict())))
    y = 2 * (x + 0.5) / 256 - 1
    shown = gray(problem, y.reshape(12, 5, 4, 5)).reshape(x.shape)
    np.testing.assert_allclose(shown, (x - low + 0.5) / (high - low + 1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_repeated_images_are_said(dtype, tmp_path):
    """Of noise of 8 bits, ten copies of each image read as 3.2 bits, without a word."""
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 4)).astype(dtype)
    examples, _, _ = prepared(tmp_path, np.repeat(x, 10, axis=0))
    assert evaluation._num_repeated(examples, 6) == 6
    examples, _, _ = prepared(tmp_path, x)
    assert evaluation._num_repeated(examples, 6) == 0


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A run on four rows, trained by the command line."""
    folder = tmp_path_factory.mktemp("four")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(4, 2)))
    args = [*TINY, "--data", str(folder / "x.npy"), "--directory", str(folder / "run")]
    train.main(["array", *args])
    return folder / "run"


def test_a_run_goes_on_with_what_it_decided(four, tmp_path):
    """Also where this version would decide otherwise from the same data."""
    shutil.copytree(four, tmp_path / "run")
    path = tmp_path / "run/config.json"
    content = json.loads(path.read_text())
    content["problem"]["sigma_max"] *= 2
    path.write_text(json.dumps(content))
    parsed = command_line.parse(["--resume", "--directory", str(tmp_path / "run")])
    run, _, _ = train.prepare(*parsed)
    assert run.problem.sigma_max == content["problem"]["sigma_max"]


def test_four_rows_have_a_report(four):
    results = results_of(four)
    assert "it takes 5 examples" in results["left_out"]["kernel density"]
    assert "No kernel density: cannot be fitted" in (four / "report.html").read_text()


def test_a_picture_that_fails_costs_nothing_else(capsys):
    with report.optional("a picture"):
        raise ValueError("no\nink")
    assert capsys.readouterr().err == "warning: a picture left out: ValueError: no ink\n"


# --- what stops a run -----------------------------------------------------------------------------


@pytest.mark.parametrize("main", [evaluate.main, sample.main])
def test_an_output_that_cannot_be_written(main, four, tmp_path, monkeypatch, capsys):
    error, code = run_fails(main, [four, "--output", tmp_path], capsys)
    assert code == 2
    assert "is a directory: name a file in it" in error

    def read_only(**_):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(stops.tempfile, "TemporaryFile", read_only)
    error, code = run_fails(main, [four], capsys)
    assert code == 2
    assert "cannot write to" in error
    assert "--output" in error
    assert len(error.splitlines()) == 1


def test_an_interrupted_program_leaves_at_once(monkeypatch):
    """Without taking Python down around the threads of XLA; other codes leave as ever."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sys, "argv", ["program", "--option"])

    def main(args):
        assert args == ["--option"]
        with stops.one_line_stops():
            raise KeyboardInterrupt

    stops.run(main)
    assert codes == [130]
    with pytest.raises(SystemExit) as stop:
        stops.run(lambda args: sys.exit(2))
    assert stop.value.code == 2
    assert codes == [130]


def test_interruptions_and_full_disks_end_in_one_line(four, monkeypatch, capsys):
    for error, code in ((KeyboardInterrupt(), 130), (OSError(28, "No space left"), 1)):

        def stop(*_, error=error):
            raise error

        monkeypatch.setattr(evaluation, "evaluate", stop)
        said, found = run_fails(train.main, ["--resume", "--directory", four], capsys)
        assert found == code
        assert said.splitlines()[-1].startswith("error: ")
        assert f"experiments.train --resume --directory {four}" in said
