"""The experiments, run tiny: what they write, how runs resume and reload, what users mistype."""

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, recipes, sample, train
from experiments.recipes import digits as digits_recipe
from experiments.recipes import toys
from experiments.recipes.shared.examples import read_examples
from experiments.runs import command_line, configuration, evaluation, saved
from sm_jax import metrics

_TINY = (
    "--num-steps 4 --batch-size 8 --width 8 --depth 1 --every 2 --num-samples 4 "
    "--sampling-steps 3 --likelihood-steps 2 --likelihood-examples 4"
)
TINY = _TINY.split()
PICTURES = ("samples.png", "sampling.gif", "scores_per_level.png", "loss.png")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The directory of a tiny run on the digits."""
    directory = tmp_path_factory.mktemp("runs") / "digits"
    train.main([*TINY, "--directory", str(directory)])
    return directory


def results_of(directory, name="results.json"):
    return json.loads((directory / name).read_text())


def run_fails(main, args, capsys):
    """Returns the line on stderr and the exit code of a command that the user got wrong."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error, stop.value.code


def test_digits_writes_everything(digits):
    results = results_of(digits)
    rows = results["log_likelihood"]
    assert {"score model", "Gaussian mixture", "kernel density"} <= set(rows)
    for row in rows.values():
        # Nats are on [-1, 1], bits of the 17 levels: 64 log(2 / 17) lies between them.
        bits = -(row["nats"] + 64 * np.log(2 / 17)) / (64 * np.log(2))
        np.testing.assert_allclose(row["bits_per_dim"], bits, rtol=1e-5)
        assert row["standard_error"] > 0
    gap = rows["score model (train)"]["nats"] - rows["score model"]["nats"]
    np.testing.assert_allclose(results["overfitting_gap_nats"], gap)

    for name in PICTURES:
        with Image.open(digits / name) as picture:
            assert min(picture.size) > 100
            assert (getattr(picture, "n_frames", 1) > 1) == name.endswith("gif")
    metrics = (digits / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["step"] == 4
    assert json.loads((digits / "config.json").read_text())["options"]["training"]["num_steps"] == 4


def test_the_report_is_one_page(digits):
    page = (digits / "report.html").read_text()
    assert page.count("data:image/") == len(PICTURES)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://|url\(""", page)
    nats = f"{results_of(digits)['log_likelihood']['score model']['nats']:.2f}"
    assert nats in page


def test_evaluate_finds_the_same_likelihood(digits, capsys):
    evaluate.main([str(digits)])
    assert "score model" in capsys.readouterr().out
    again = results_of(digits, "evaluation.json")["log_likelihood"]
    for name, row in results_of(digits)["log_likelihood"].items():
        np.testing.assert_allclose(again[name]["nats"], row["nats"], rtol=1e-5)


@pytest.mark.parametrize("sampler", ["heun", "euler_maruyama", "annealed_langevin"])
def test_sample(digits, tmp_path, sampler):
    output = tmp_path / "x"
    args = f"--num 3 --sampler {sampler} --num-steps 2 --output {output}".split()
    sample.main([str(digits), *args])
    x = np.load(output.with_suffix(".npy"))
    assert x.shape == (3, 8, 8)
    assert x.min() >= 0
    assert x.max() <= 16
    assert len(np.unique(x.reshape(3, -1), axis=0)) == 3
    assert output.with_suffix(".png").exists()


@pytest.mark.slow
def test_resume_continues(digits, tmp_path, capsys):
    directory = tmp_path / "run"
    shutil.copytree(digits, directory)
    shutil.rmtree(directory / "checkpoints" / "4")  # as if it had been interrupted half way
    parsed = command_line.parse(
        ["--resume", "--directory", str(directory)]
    )  # the options it began with
    resumed, _ = train.train(*parsed)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, saved.load(digits).params)

    error, code = run_fails(
        train.main, ["--resume", "--directory", directory, "--learning-rate", 0.1], capsys
    )
    assert code == 2
    assert "learning_rate" in error
    error, code = run_fails(train.main, ["moons", "--resume", "--directory", directory], capsys)
    assert code == 2
    assert "digits" in error


def test_toy_compares_with_the_exact_density(tmp_path):
    sizes = ["--num-train", "64", "--num-held-out", "32", "--likelihood-examples", "32"]
    train.main(["moons", *TINY, *sizes, "--directory", str(tmp_path)])
    results = results_of(tmp_path)
    exact = results["log_likelihood"]["exact density"]["nats"]
    assert -2.5 < exact < 0
    fisher = results["fisher_divergence"]
    assert len(fisher["score model"]) == len(results["sigmas"])
    # At large noise any preconditioned network is nearly right, and zero is not.
    assert fisher["score model"][-1] < 0.01 * fisher["zero score"][-1]


@pytest.mark.parametrize("name", toys.TOYS)
def test_every_toy_is_there(name, capsys):
    train.main([name, "--dry-run"])
    assert name in capsys.readouterr().out
    recipe, config = command_line.parse([name, "--num-train", "30", "--num-held-out", "9"])
    examples = read_examples(recipe, config)
    assert recipe.name == name
    assert (examples.train.shape, examples.held_out.shape) == ((30, 2), (9, 2))
    assert not np.isin(examples.train, examples.held_out).any()


@pytest.mark.slow
def test_an_energy_network_has_the_score_of_its_energy(tmp_path, getkey):
    args = [*TINY, "--network", "energy", "--num-train", "30", "--num-held-out", "9"]
    directory = tmp_path / "run"
    run, examples = train.train(
        *command_line.parse(["moons", *args, "--directory", str(directory)])
    )
    x, t = examples.held_out, np.full(9, 0.5, np.float32)
    score = run.score_fn(x, t)
    gaussian = -x / (run.problem.sigma_data**2 + 0.25)
    assert np.abs(score - gaussian).max() > 1e-4  # the network has learned something
    energy_fn = run.score_fn.energy_fn
    gradient = jax.grad(lambda x: energy_fn(x, t).sum())(x)
    np.testing.assert_allclose(score, -gradient, rtol=1e-5)
    asymmetry = metrics.curl(lambda x: run.score_fn(x, t), x, getkey())
    np.testing.assert_array_less(asymmetry.share, 1e-6)


def test_array_reports_in_the_units_of_the_data(tmp_path, getkey):
    """Data in other units give the same model, with nats shifted by the logarithm of the scale."""
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1.0, 2.0, 3.0] + 5
    key, rows = getkey(), []
    for scale in (1.0, 1000.0):
        np.savetxt(tmp_path / "x.csv", x * scale, delimiter=",", header="a,b,c", comments="")
        args = [*TINY, "--data", str(tmp_path / "x.csv"), "--directory", str(tmp_path / f"{scale}")]
        trained = train.train(*command_line.parse(["array", *args]))
        rows.append(evaluation.evaluate(*trained, key)["log_likelihood"])
    for name in rows[0]:
        change = rows[0][name]["nats"] - rows[1][name]["nats"]
        np.testing.assert_allclose(change, 3 * np.log(1000), rtol=1e-3)
        bits = -rows[0][name]["nats"] / (3 * np.log(2))
        np.testing.assert_allclose(rows[0][name]["bits_per_dim"], bits, rtol=1e-5)


@pytest.mark.slow
def test_array_takes_the_checkpoint_that_is_best_on_its_validation_set(tmp_path, capsys):
    """With a learning rate that makes things worse, not the last one."""
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    directory = tmp_path / "run"
    options = ["--learning-rate", "3.0", "--ema-decay", "0.1", "--directory", str(directory)]
    recipe, config = command_line.parse(
        ["array", *TINY, *options, "--data", str(tmp_path / "x.npy")]
    )
    run, examples = train.train(recipe, config)

    parts = examples.train, examples.validation, examples.held_out
    assert [len(part) for part in parts] == [48, 6, 6]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts), axis=0), np.sort(x, axis=0))

    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    bounds = {
        line["step"]: line["eval/validation_elbo"] for line in lines if "noise_level_loss" in line
    }
    best = max(bounds, key=bounds.get)
    assert best < max(bounds)
    assert f"step {best}, the best on 6 validation examples" in capsys.readouterr().out
    bound = evaluation.validation(run.model, run.problem, examples, config.training.seed)
    np.testing.assert_allclose(bound(run.params, 0)["validation_elbo"], bounds[best], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, saved.load(directory).params, run.params)


@pytest.mark.slow
def test_array_of_images_takes_the_unet_and_hutchinson(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    args = ["--data", str(folder), "--directory", str(tmp_path / "run"), "--multipliers", "1"]
    train.main(["array", *TINY, *args, "--num-estimates", "2", "--held-out", "0.4"])
    assert "sigma_max" in capsys.readouterr().out  # the noise levels are explained
    results = results_of(tmp_path / "run")
    assert results["divergence"] == "hutchinson"
    assert results["log_likelihood"]["score model"]["standard_error_of_divergence"] > 0


@pytest.mark.slow  # the longest; see test_labels_of_tfds for TFDS, the test above for the U-Net
def test_tfds_quick(data_dir, tmp_path):
    args = ["--data-dir", str(data_dir / "tfds"), "--directory", str(tmp_path), *TINY]
    splits = ["--train-split", "train[:16]", "--held-out-split", "test[:8]", "--multipliers", "1"]
    train.main(["tfds:mnist", "--quick", *args, *splits])
    assert results_of(tmp_path)["log_likelihood"]["score model"]["bits_per_dim"] > 0
    sample.main([str(tmp_path), "--num", "2", "--num-steps", "2"])
    assert np.load(tmp_path / "samples-heun.npy").shape == (2, 28, 28, 1)


def test_shifted_tells_what_it_did(getkey):
    images = np.arange(1.0, 10.0, dtype=np.float32).reshape(1, 3, 3).repeat(64, axis=0)
    out, told = map(np.asarray, digits_recipe.shifted(images, getkey(), 1))
    assert {tuple(row) for row in told} == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    for image, (down, right) in zip(out, told.astype(int), strict=True):
        expected = np.zeros((5, 5))
        expected[1 + down : 4 + down, 1 + right : 4 + right] = images[0]
        np.testing.assert_array_equal(image, expected[1:4, 1:4])


@pytest.mark.parametrize("recipe", ["digits", "moons"])
def test_configuration_survives_json(recipe):
    recipe, config = command_line.parse([recipe, "--width", "17", "--multipliers", "1", "3"])
    stored = json.loads(json.dumps(configuration.to_dict(config)))
    assert configuration.from_dict(recipe, stored) == config


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["digit"], "did you mean 'digits'"),
        (["mons"], "did you mean 'moons'"),
        (["tfds"], "did you mean 'tfds:mnist'"),
        (["{text}"], "did you mean 'array --data {text}'? The recipes are"),
        (["other"], "there is no recipe 'other'. The recipes are"),
        (["--data", "{text}"], "experiments.train array --data FILE"),
        (["--data={text}"], "experiments.train array --data FILE"),
        (["--num-steps", "5", "moons"], "the recipe comes first"),
        (["--num-steps=5", "tfds:mnist", "--data-dir", "x"], "the recipe comes first"),
        (["--dry-run", "moons"], "the recipe comes first"),
        (["--num-step", "3"], "--num-steps"),
        (["--num-steps", "many"], "--num-steps"),
        (["array"], "--data"),
        (["array", "--data", "nowhere.npy"], "nowhere.npy"),
        (["--num-steps", "0", "--directory", "{empty}"], "--num-steps must be at least 1"),
        (["--resume"], "--directory"),
        (["--resume", "--directory", "{empty}"], "there is no run in"),
        (["moons", "--resume", "--directory={empty}/typo"], "there is no run in"),
        (["--directory", "{full}"], "not empty"),
        (["--directory", "{file}"], "cannot write"),
        (["array", "--data", "{objects}"], "objects"),
        (["array", "--data", "{nan}"], "NaN"),
        (["array", "--data", "{text}"], "real numbers"),
        (["array", "--data", "{two}"], "at least 2 are needed: add examples\n"),
        (["array", "--data", "{three}", "--held-out", "0.5"], "or lower --held-out"),
        (["array", "--data", "{nan}", "--held-out", "2"], "--held-out"),
        (["array", "--data", "{nan}", "--validation", "1"], "--validation"),
        (["tfds:nothing", "--data-dir", "{empty}"], "nothing"),
    ],
)
def test_mistakes_end_in_a_clear_line(args, says, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with open(tmp_path / "objects.npy", "wb") as file:  # of Python objects, by its header alone
        header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
        np.lib.format.write_array_header_1_0(file, header)
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.save(tmp_path / "nan.npy", np.array([[1.0], [np.nan]]))
    np.save(tmp_path / "two.npy", np.eye(2))
    np.save(tmp_path / "three.npy", np.eye(3))
    places = {name: tmp_path / name for name in ("full", "file", "empty")} | {
        name: tmp_path / f"{name}.npy" for name in ("objects", "nan", "text", "two", "three")
    }
    args = [arg.format(**places) for arg in args]
    if "array" in args:
        args += ["--directory", str(tmp_path / "run")]
    error, code = run_fails(train.main, args, capsys)
    assert code == 2
    assert says.format(**places) in error


@pytest.mark.parametrize("main", [sample.main, evaluate.main])
def test_what_is_no_run(main, tmp_path, capsys):
    error, code = run_fails(main, [tmp_path], capsys)
    assert code == 2
    assert "config.json" in error
    assert len(error.splitlines()) == 1


def test_dry_run_writes_nothing(tmp_path, capsys):
    train.main(["--dry-run", "--width", "77", "--directory", str(tmp_path / "run")])
    assert "77" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_help_imports_nothing_slow():
    code = (
        "import sys\nfrom experiments import train\n"
        "try:\n    train.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "slow = {'jax', 'flax', 'tensorflow', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in recipes.names():
        assert name in done.stdout
