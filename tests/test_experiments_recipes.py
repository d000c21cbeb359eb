"""Recipes: one of your own from a file, the discovery of others, limits of options, and the cut."""

import ast
import dataclasses
import json
import pathlib
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import experiments
from experiments import evaluate, recipes, sample, train
from experiments.recipes.shared import diffusion, networks, scaling
from experiments.recipes.shared.examples import Examples, read_examples
from experiments.recipes.shared.limits import COUNT, FINITE, Limits, check
from experiments.recipes.shared.options import Training
from experiments.recipes.shared.problem import Problem
from experiments.runs import command_line, configuration, saved
from tests.test_experiments import TINY, results_of, run_fails

HUMPS = '''
"""Two humps on a line, by a network and a loss of their own."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.recipes.shared.diffusion import ScoreModel, reported_sigmas
from experiments.recipes.shared.examples import Examples
from experiments.recipes.shared.keys import named
from experiments.recipes.shared.limits import COUNT, POSITIVE
from experiments.recipes.shared.options import Evaluation, Execution, Training
from experiments.recipes.shared.problem import Problem
from sm_jax import losses, parameterization


@dataclass(frozen=True)
class Humps:
    """The data."""

    distance: Annotated[float, POSITIVE] = 2.0
    """From the middle to each hump, whose standard deviation is 1/2."""
    hidden: Annotated[int, COUNT] = 64
    """Hidden features of the network."""


@dataclass(frozen=True)
class Options:
    """Two humps on a line, <far> apart."""

    humps: Humps = Humps()
    training: Training = Training(num_steps=1000, learning_rate=1e-2, ema_decay=0.98)
    evaluation: Evaluation = Evaluation(num_samples=50, likelihood_examples=300)
    run: Execution = Execution()


def load(config):
    rng = np.random.default_rng(config.training.seed)
    x = config.humps.distance * rng.choice([-1, 1], (2000, 1)) + 0.5 * rng.normal(size=(2000, 1))
    return Examples(x[:1500], x[1500:])


def examine(config, examples):
    return Problem(event_shape=(1,), sigma_data=2.0, sigma_min=0.05, sigma_max=20.0), ""


def build(config, problem):
    keys = jax.random.split(named("parameters", config.training.seed))
    shapes = (3, config.humps.hidden), (config.humps.hidden, 1)
    params = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, shapes)]

    def score(params, labels=None):
        def network(x, c_noise):
            seen = jnp.stack([x[:, 0], c_noise, jnp.ones(len(x))], axis=1)
            return jnp.tanh(seen @ params[0]) @ params[1]

        return parameterization.precondition(network, process=problem.process, sigma_data=2.0)

    def loss(params, batch, key):  # Hyvarinen's, of the noised data, in units of the noise
        level_key, noise_key = jax.random.split(key)
        sigma = jnp.exp(jax.random.normal(level_key, batch.shape[:1]))
        x = batch + sigma[:, None] * jax.random.normal(noise_key, batch.shape)
        return sigma**2 * losses.implicit(lambda x: score(params)(x, sigma), x)

    return ScoreModel("tanh", params, score, loss, reported_sigmas(problem))


def draw(path, problem, x, examples=None, labels=None, title=""):
    counts, _ = np.histogram(x, 20)
    Image.fromarray(np.tile(np.uint8(255 * counts / counts.max()), (20, 1))).save(path)
'''


@pytest.fixture
def humps(tmp_path):
    """The file of that recipe."""
    (tmp_path / "humps.py").write_text(HUMPS)
    return tmp_path / "humps.py"


def test_a_recipe_of_your_own(humps, tmp_path, monkeypatch, capsys):
    """One file, outside the package: trained, sampled, evaluated and resumed as any other."""
    monkeypatch.chdir(tmp_path)
    train.main(["humps.py", "--directory", "run", "--distance", "3"])
    assert "humps: 1,500 examples of shape (1,)" in capsys.readouterr().out
    results = results_of(tmp_path / "run")
    nats = results["log_likelihood"]["score model"]["nats"]
    right = -np.log(2) - 0.5 * np.log(2 * np.pi * np.e * 0.25)
    assert right - 0.3 < nats < right + 0.1  # a single Gaussian has -2.53, which is 1.1 less
    page = (tmp_path / "run/report.html").read_text()
    assert "<p>Two humps on a line, &lt;far&gt; apart." in page
    assert "<td>humps</td><td>distance</td><td>3.0</td>" in page
    with Image.open(tmp_path / "run/samples.png") as picture:
        assert picture.size == (20, 20)  # of its own drawing

    monkeypatch.chdir(tmp_path.parent)  # the run knows where its recipe is
    sample.main([str(tmp_path / "run"), "--num", "60"])
    x = np.load(tmp_path / "run/samples-heun.npy")
    assert x.shape == (60, 1)
    np.testing.assert_allclose(abs(x).mean(), 3, atol=0.4)
    assert 10 < (x > 0).sum() < 50
    with Image.open(tmp_path / "run/samples-heun.png") as picture:
        assert picture.size == (20, 20)
    evaluate.main([str(tmp_path / "run")])
    again = results_of(tmp_path / "run", "evaluation.json")
    np.testing.assert_allclose(again["log_likelihood"]["score model"]["nats"], nats, rtol=1e-5)

    recipe, config = command_line.parse(["--resume", "--directory", str(tmp_path / "run")])
    assert config.humps.distance == 3
    assert configuration.decisive(recipe, config).keys() == {"humps", "training"}
    error, code = run_fails(
        train.main, [humps, "--resume", "--directory", tmp_path / "run", "--distance", 2], capsys
    )
    assert code == 2
    assert "distance" in error


def test_a_file_in_the_folder_is_a_recipe(humps, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(humps.parent)])
    assert recipes.names()["humps"] == "Two humps on a line, by a network and a loss of their own"
    assert {"digits", "moons", "array", "tfds:NAME"} < set(recipes.names())
    train.main(["humps", "--dry-run", "--distance", "7"])
    assert "7" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train.main([str(humps), "--help"])
    shown = capsys.readouterr().out
    assert "Options of humps: Two humps on a line" in shown
    assert "Hidden features of the network. (default: 64)" in shown
    humps.with_name("said.py").write_text('"""A line of help."""\n')
    assert recipes.names()["said"] == "A line of help"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["{tmp}/nowhere.py"], "there is no recipe '{tmp}/nowhere.py': name a file that exists"),
        (["{tmp}/half.py"], "half.py' has no examine: a recipe holds Options, load, examine and"),
        (["--num-steps", "5", "{tmp}/humps.py"], "the recipe comes first"),
        (["{tmp}/humps.py", "--distance", "0"], "--distance must be finite and above 0, got 0.0"),
        (["{tmp}/humps.py", "--hidden", "0"], "--hidden must be at least 1, got 0"),
        (["{tmp}/humps.py", "--conditional"], "--conditional"),
    ],
)
def test_mistakes_around_a_recipe(args, says, humps, tmp_path, capsys):
    (tmp_path / "half.py").write_text("Options = load = None\n")
    places = {"tmp": tmp_path}
    args = [*(arg.format(**places) for arg in args), "--directory", tmp_path / "run"]
    error, code = run_fails(train.main, args, capsys)
    assert code == 2
    assert says.format(**places) in error


def test_an_error_in_a_recipe_shows_where_it_is(tmp_path):
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    for _ in range(2):  # also the second time
        with pytest.raises(ZeroDivisionError):
            train.main([str(tmp_path / "wrong.py")])


def test_a_run_whose_recipe_is_gone(humps, tmp_path, capsys):
    train.main([str(humps), *TINY[:4], "--directory", str(tmp_path / "run")])
    content = json.loads((tmp_path / "run/config.json").read_text())
    assert content["recipe"] == str(humps)
    assert content["options"]["humps"] == {"distance": 2.0, "hidden": 64}
    assert saved.load(tmp_path / "run").recipe.title == "humps"
    humps.unlink()
    error, code = run_fails(sample.main, [tmp_path / "run"], capsys)
    assert code == 2
    assert "there is no recipe" in error


# --- limits ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Limited:
    """Options with all kinds of limits."""

    count: Annotated[int | None, COUNT] = 1
    counts: Annotated[tuple[int, ...], COUNT] = (1, 2)
    real: Annotated[float, FINITE] = 0.0
    share: Annotated[float, Limits(above=0, at_most=1)] = 1.0
    rest: Annotated[float, Limits(at_least=0, below=1)] = 0.0
    free: int = -1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"count": None}, None),
        ({"count": 0}, "--count must be at least 1, got 0"),
        ({"counts": (2, -1)}, "--counts must be at least 1, got -1"),
        ({"counts": ()}, "--counts must hold at least one number, got none"),
        ({"real": -1e9}, None),
        ({"real": float("inf")}, "--real must be finite, got inf"),
        ({"share": 1e-9}, None),
        ({"share": 0.0}, "--share must be above 0 and at most 1, got 0.0"),
        ({"share": 1.1}, "--share must be"),
        ({"share": float("nan")}, "--share must be above 0 and at most 1, got nan"),
        ({"rest": 1.0}, "--rest must be at least 0 and below 1, got 1.0"),
        ({"rest": -0.1}, "--rest must be"),
    ],
)
def test_limits(values, says):
    options = Limited(**values)
    if says is None:
        check(options)
        return
    with pytest.raises(ValueError, match=says):
        check(options)


# --- the cut --------------------------------------------------------------------------------------


def imports(path, root):
    """Returns the modules of the package that a file imports, also within its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("experiments"):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if (root / f"{name.replace('.', '/')}.py").exists()}


def test_modules_import_each_other_without_cycles():
    """And recipes know nothing of runs."""
    package = pathlib.Path(experiments.__file__).parent
    root = package.parent
    graph = {
        str(path.relative_to(root).with_suffix("")).replace("/", "."): imports(path, root)
        for part in ("*.py", "recipes/**/*.py", "runs/**/*.py", "benchmarks/**/*.py")
        for path in package.glob(part)
    }
    for name, others in graph.items():
        if name.startswith("experiments.recipes"):
            assert not any(other.startswith("experiments.runs") for other in others), name
    while graph:
        free = {name for name, others in graph.items() if not others & graph.keys()}
        assert free, f"a cycle among {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in free}


# --- what recipes are made of ---------------------------------------------------------------------

UNIT_PROBLEM = Problem(event_shape=(3,), sigma_data=0.5, sigma_min=0.01, sigma_max=30.0)


def zero_model(problem, unit=1.0):
    """A model without parameters whose score is zero."""
    sigmas = diffusion.reported_sigmas(problem, unit=unit)
    return diffusion.ScoreModel("zero", (), lambda *_: lambda x, t: jnp.zeros_like(x), None, sigmas)


def test_the_standard_loss_of_the_zero_score(getkey):
    """Is ``1/2 (sigma^2 + sigma_data^2) / sigma_data^2 |z|^2``, with three numbers in ``z``."""
    loss = jax.jit(diffusion.loss_per_sigma(zero_model(UNIT_PROBLEM), UNIT_PROBLEM))
    x = np.ones((20_000, 3), np.float32)
    sigmas = diffusion.reported_sigmas(UNIT_PROBLEM)
    assert (len(sigmas), sigmas[0], sigmas[-1]) == (12, pytest.approx(0.01), pytest.approx(20))
    expected = 0.5 * (1 + (sigmas / 0.5) ** 2) * 3
    error = 5 * (2 / 3 / len(x)) ** 0.5  # five standard errors of the mean of |z|^2 / 3
    np.testing.assert_allclose(loss((), x, getkey()), expected, rtol=error)
    narrow = diffusion.reported_sigmas(UNIT_PROBLEM, unit=0.5)
    np.testing.assert_allclose([narrow[0], narrow[-1]], [0.01, 10.0])


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_the_law_of_the_noise(unit, getkey):
    seen = []

    def score_fn(x, t):
        seen.append(t)
        return jnp.zeros_like(x)

    training = Training(log_sigma_mean=-1.0, log_sigma_std=0.5)
    problem = dataclasses.replace(UNIT_PROBLEM, sigma_min=1e-4, sigma_max=1e5)
    diffusion.edm_loss(training, problem, unit=unit)(score_fn, jnp.zeros((4096, 3)), getkey())
    log_sigma = np.log(seen[0] / unit)
    np.testing.assert_allclose(log_sigma.mean(), -1.0, atol=0.01)  # of an evenly spread sample
    np.testing.assert_allclose(log_sigma.std(), 0.5, atol=0.01)


@pytest.mark.parametrize("per_number", [False, True])
def test_quantized_data_have_the_spread_that_is_said(per_number, getkey):
    rng = np.random.default_rng(0)
    x = rng.integers([0, 10], [3, 16], (50_000, 2))
    problem = scaling.quantized(Examples(x, x[:0]), 17, per_number=per_number)
    scaled = np.asarray(problem.scaled(problem.rows(x), getkey()))
    means = scaled.mean(axis=0)
    assert np.shape(problem.mean) == ((2,) if per_number else ())
    if per_number:
        np.testing.assert_allclose(problem.mean, means, atol=0.005)
        assert problem.limits == (0, 15)
        spread = ((scaled - means) ** 2).mean() ** 0.5
    else:
        assert (problem.mean, problem.limits) == (0.0, None)
        spread = scaled.std()
    np.testing.assert_allclose(problem.sigma_data, spread, rtol=0.01)


@pytest.fixture
def digits_of(monkeypatch):
    """A function of arguments: the loss of the digits, its batch, and what its network is given."""

    def build(*args):
        recipe, config = command_line.parse(["digits", *args])
        examples = read_examples(recipe, config)
        problem, _ = recipe.examine(config, examples)
        seen = []

        def score(model, problem, *, cond_dims, seed):
            def score_given(params, cond=None, key=None):
                seen.append((cond_dims, cond, key))
                return lambda x, t: seen.append(x) or jnp.zeros_like(x)

            return score_given, ()

        monkeypatch.setattr(networks, "score", score)
        labels = None if examples.train_labels is None else examples.train_labels[:64]
        return recipe.build(config, problem).loss, problem.batch(examples.train[:64], labels), seen

    return build


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
def test_the_network_of_the_digits_is_told_their_shifts_and_labels(
    shift, conditional, digits_of, getkey
):
    args = ["--shift", str(shift), *["--conditional"] * conditional, "--label-dropout", "0.5"]
    loss, batch, seen = digits_of(*args)
    assert loss((), batch, getkey()).shape == (64,)
    (cond_dims, cond, _), x_t = seen
    assert x_t.shape == (64, 8, 8)
    assert cond_dims == 2 * shift + 10 * conditional
    if cond_dims == 0:
        assert cond is None
        return
    assert cond.shape == (64, cond_dims)
    if conditional:
        told = np.eye(10)[batch[1]] == cond[:, :10]
        known = told.all(axis=1)
        np.testing.assert_array_equal(cond[~known][:, :10], 0.0)
        assert 12 < known.sum() < 52  # of 64 fair coins
    if shift:
        assert {tuple(row) for row in cond[:, -2:].tolist()} == {
            (i, j) for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0)
        }


def test_losses_of_recipes_use_each_key_once(digits_of, getkey):
    loss, batch, _ = digits_of("--conditional")
    problem = dataclasses.replace(UNIT_PROBLEM, num_labels=2)
    with jax.debug_key_reuse(True):
        jax.jit(loss)((), batch, jax.random.key(0))
        _, config = command_line.parse(
            ["array", "--data", "x.npz", "--conditional", "--labels", "y"]
        )
        standard = diffusion.build(config, problem).loss
        batch = np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])
        jax.jit(standard)((), batch, jax.random.key(1))
