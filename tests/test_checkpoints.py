"""Checkpoints: exact resumption, what is kept, damage, and every refusal."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sm_jax import training
from sm_jax.training import Checkpoints, Evaluation, _batches, checkpoints

X = np.linspace(-1.0, 2.0, 22, dtype=np.float32).reshape(11, 2)
X_SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])
PARAMS = {"w": jnp.array([[0.5, -0.25], [1.5, 2.0]]), "layers": [(jnp.zeros(2),), jnp.ones(2)]}


def loss_fn(params, x, key):
    h = jnp.tanh(x @ params["w"] + params["layers"][0][0][None]) * params["layers"][1][None]
    return 0.5 * jnp.sum((h - x - jax.random.uniform(key, x.shape)) ** 2, axis=-1)


def cheap_indices(key, step, num_examples, batch_size):
    return (7 * (step * batch_size + jnp.arange(batch_size))) % num_examples


@pytest.fixture(autouse=True, scope="module")
def cheap():
    """Batches that compile in no time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_batches, "batch_indices", cheap_indices)
        yield


def fit(directory, num_steps, **kwargs):
    defaults = {
        "optimizer": training.adamw(0.05, 20, weight_decay=0.1),
        "batch_size": 4,
        "seed": 5,
        "steps_per_dispatch": 5,
        "log_every": 5,
        "ema_decay": 0.8,
        "progress": False,
    }
    names = ("keep", "best_metric", "best_mode", "resume", "config")
    options = {name: kwargs.pop(name) for name in names if name in kwargs}
    if directory is not None:
        defaults["checkpoints"] = Checkpoints(directory, every=5, **options)
    if "evaluate" in kwargs:
        defaults["evaluation"] = Evaluation(kwargs.pop("evaluate"))
    return training.fit(loss_fn, PARAMS, X, num_steps=num_steps, **{**defaults, **kwargs})


def assert_equal(a, b):
    """The states are equal bit by bit, keys included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def steps(directory):
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())


def losses(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def run(cheap, tmp_path_factory):
    """A run of 20 steps with four checkpoints, and its state."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    return directory, fit(directory, 20, keep=9, config={"recipe": "test", "sizes": (2, 2)})


@pytest.fixture
def copy(run, tmp_path):
    """The directory of that run, to be changed."""
    shutil.copytree(run[0], tmp_path / "copy")
    return tmp_path / "copy"


CONFIG = {"recipe": "test", "sizes": (2, 2)}


def resume(directory, num_steps=20, **kwargs):
    return fit(directory, num_steps, **{"resume": True, "keep": 9, "config": CONFIG, **kwargs})


# Resumption


@pytest.mark.parametrize("first", [10, 7])
def test_resume_is_exact(first, run, tmp_path):
    """20 = first + resume + the rest, also where `first` cuts a dispatch."""
    directory = tmp_path / "run"
    assert int(fit(directory, first, config=CONFIG).step) == first
    assert steps(directory)[-1] == first
    assert_equal(resume(directory), run[1])
    if first == 10:
        assert losses(directory) == losses(run[0])


def test_a_checkpoint_is_the_state_at_its_step(run, tmp_path):
    """Though the state was donated to the next dispatch as soon as the save had begun."""
    assert steps(run[0]) == [5, 10, 15, 20]
    ten = fit(None, 10)
    ema = checkpoints._read(run[0], 10, checkpoints._items(ten))["ema"]["params"]
    assert_equal(ema, ten.ema)


def test_large_arrays_are_saved_before_they_are_donated(tmp_path):
    def save_each(ema, step):
        seen[step] = float(ema.sum())
        return {}

    seen = {}
    training.fit(
        lambda p, x, key: -p.sum() * x[:, 0],
        jnp.zeros(500_000),
        np.ones((4, 1), np.float32),
        optimizer=optax.sgd(1.0),
        num_steps=6,
        batch_size=4,
        seed=0,
        ema_decay=0.0,
        evaluation=Evaluation(save_each, every=1),
        checkpoints=Checkpoints(tmp_path, every=1, keep=9),
        progress=False,
    )
    like = {"params": jax.ShapeDtypeStruct((500_000,), jnp.float32, sharding=X_SHARDING)}
    for step in range(1, 7):
        ema = checkpoints._read(tmp_path, step, {"ema": like})["ema"]["params"]
        np.testing.assert_array_equal(ema, np.full(500_000, step, np.float32))
    assert seen == {step: 500_000.0 * step for step in range(1, 7)}


def test_resume_after_a_crash_drops_the_records_past_the_checkpoint(run, copy):
    shutil.rmtree(copy / "checkpoints" / "20")
    shutil.rmtree(copy / "checkpoints" / "15")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    assert_equal(resume(copy), run[1])
    assert losses(copy) == losses(run[0])
    assert steps(copy) == [5, 10, 15, 20]


def test_resume_of_a_finished_run_returns_its_state(run, copy):
    assert_equal(resume(copy), run[1])
    assert losses(copy) == losses(run[0])


def test_resume_beyond_the_last_step_raises(copy):
    """The state after 7 updates is not kept, and the run is left as it is."""
    metadata = (copy / "metadata.json").read_text()
    with pytest.raises(ValueError, match=r"at step 20, beyond num_steps=7: .*num_steps=20 or more"):
        resume(copy, num_steps=7, best_metric="m", evaluate=lambda ema, step: {"m": 0.0})
    assert (copy / "metadata.json").read_text() == metadata


def test_resume_without_a_checkpoint_starts(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert_equal(resume(tmp_path / "run"), run[1])


# What is kept


@pytest.mark.parametrize(("mode", "kept"), [("min", [10, 15, 20]), ("max", [5, 15, 20])])
def test_the_last_and_the_best_are_kept(mode, kept, tmp_path):
    values, emas = {5: 9.0, 10: 1.0, 15: np.nan, 20: 4.0}, {}

    def evaluate(ema, step):
        emas[step] = ema
        return {"nll": values[step], "other": 0.0}

    kwargs = {"evaluate": evaluate, "best_metric": "nll", "best_mode": mode, "keep": 2}
    fit(tmp_path, 15, **kwargs)
    assert steps(tmp_path) == sorted({kept[0], 10, 15})
    fit(tmp_path, 20, resume=True, **kwargs)
    assert steps(tmp_path) == kept
    assert set(emas) == {5, 10, 15, 20}  # Evaluation.every is 1000: at each checkpoint all the same
    assert_equal(training.restore_params(tmp_path, PARAMS, best=True), emas[kept[0]])
    assert_equal(training.restore_params(tmp_path, PARAMS), emas[20])


@pytest.mark.parametrize("earlier", [{}, {"best_metric": "other"}])
def test_checkpoints_without_the_metric_are_no_candidates(earlier, tmp_path):
    """Those of a run that had no, or another, best metric: they are sound, and not the best."""

    def evaluate(ema, step):
        return {"nll": float(step), "other": float(step)}

    fit(tmp_path, 10, keep=2, evaluate=evaluate, **earlier)
    assert steps(tmp_path) == [5, 10]
    kwargs = {"evaluate": evaluate, "best_metric": "nll", "resume": True}
    fit(tmp_path, 15, keep=9, **kwargs)
    state = fit(tmp_path, 25, keep=9, **kwargs)
    assert steps(tmp_path) == [5, 10, 15, 20, 25]
    assert checkpoints.best_step(tmp_path) == 15
    training.restore_params(tmp_path, PARAMS, best=True)
    assert_equal(fit(tmp_path, 25, keep=1, **kwargs), state)
    fit(tmp_path, 30, keep=1, **kwargs)
    assert steps(tmp_path) == [15, 30]


def test_unknown_best_metric_raises(tmp_path):
    with pytest.raises(ValueError, match=r"best_metric 'nll' is not among the values .*\['loss'\]"):
        fit(tmp_path, 5, evaluate=lambda ema, step: {"loss": 1.0}, best_metric="nll")


# Damage


def damage(directory, how):
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        if how == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif how == "zeroed":
            path.write_bytes(bytes(path.stat().st_size))
        elif how == "no arrays" and path.name not in ("_CHECKPOINT_METADATA", "_METADATA"):
            path.unlink()
    if how == "no item":
        shutil.rmtree(directory / "live")


@pytest.mark.parametrize("how", ["truncated", "zeroed", "no arrays", "no item"])
def test_damaged_newest_checkpoint_falls_back(how, run, copy):
    damage(copy / "checkpoints" / "20", how)
    with pytest.warns(UserWarning, match=r"checkpoint 20 in .* is damaged; it is set aside"):
        state = resume(copy)
    assert_equal(state, run[1])
    assert steps(copy) == [5, 10, 15, 20]
    assert (copy / "checkpoints" / "20.damaged").is_dir()


def test_damaged_newest_checkpoint_falls_back_for_sampling(run, copy):
    damage(copy / "checkpoints" / "20", "truncated")
    with pytest.warns(UserWarning, match="checkpoint 20 in .* is damaged, trying the one before"):
        ema = training.restore_params(copy, PARAMS)
    assert_equal(ema, fit(None, 15).ema)
    assert steps(copy) == [5, 10, 15, 20]  # nothing was written


def test_damaged_metrics_fall_back(tmp_path):
    kwargs = {"evaluate": lambda ema, step: {"nll": float(step)}, "best_metric": "nll"}
    state = fit(tmp_path, 10, **kwargs)
    damage(tmp_path / "checkpoints" / "5" / "metrics", "zeroed")
    with pytest.warns(UserWarning, match="checkpoint 5 in .* is damaged"):
        assert_equal(fit(tmp_path, 10, resume=True, **kwargs), state)


def test_unreadable_metrics_are_told_of_when_the_best_is_chosen(tmp_path):
    kwargs = {"evaluate": lambda ema, step: {"nll": 9.0 * (step != 5)}, "best_metric": "nll"}
    fit(tmp_path, 15, **kwargs)
    assert checkpoints.best_step(tmp_path) == 5
    damage(tmp_path / "checkpoints" / "5" / "metrics", "zeroed")
    warned = pytest.warns(UserWarning, match=r"metric of checkpoint \d+ in .* cannot be read")
    with warned:
        assert checkpoints.best_step(tmp_path) in (10, 15)
    with warned:
        training.restore_params(tmp_path, PARAMS, best=True)

    for step in (10, 15):
        damage(tmp_path / "checkpoints" / str(step) / "metrics", "zeroed")
    with warned, pytest.raises(ValueError, match=r"can be read, of \[15, 10, 5\]"):
        checkpoints.best_step(tmp_path)
    with warned, pytest.warns(UserWarning, match="the newest is taken instead of the best"):
        ema = training.restore_params(tmp_path, PARAMS, best=True)
    assert_equal(ema, training.restore_params(tmp_path, PARAMS))


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    kwargs = {"evaluate": lambda ema, step: {"nll": 1.0}, "best_metric": "nll"}
    fit(tmp_path, 5, **kwargs)
    shutil.rmtree(tmp_path / "checkpoints")
    for best in (False, True):
        with pytest.raises(ValueError, match="has no checkpoint yet"):
            training.restore_params(tmp_path, PARAMS, best=best)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        checkpoints.best_step(tmp_path)


def test_nothing_left_to_restore_raises(copy):
    for step in steps(copy):
        damage(copy / "checkpoints" / str(step), "truncated")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(
            ValueError, match=r"none of the checkpoints \[20, 15, 10, 5\] .* can be read"
        ),
    ):
        resume(copy)


@pytest.mark.parametrize("step", [5, 10])
def test_a_failure_in_the_background_is_raised(step, tmp_path, monkeypatch):
    """Both of a save that another one follows and of the last one."""
    rename = os.rename

    def fail(source, target, **kwargs):
        if pathlib.Path(target).name == str(step):
            raise OSError("no space left")
        rename(source, target, **kwargs)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(Exception, match="no space left"):
        fit(tmp_path, 10)
    assert step not in steps(tmp_path)


def test_saving_and_restoring_say_nothing(tmp_path, capfd, caplog):
    fit(tmp_path, 10)
    fit(tmp_path, 15, resume=True)
    training.restore_params(tmp_path, PARAMS)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# Refusals


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"batch_size": 2}, r"another config: fit\.batch_size: 4 then, 2 now"),
        ({"seed": 6}, r"another config: fit\.seed: 5 then, 6 now"),
        ({"ema_decay": 0.9}, r"fit\.ema_decay: 0\.8 then, 0\.9 now"),
        (
            {"config": {"recipe": "other", "sizes": [2, 3], "new": 1}},
            r"recipe: 'test' then, 'other' now; sizes: \[2, 2\] then, \[2, 3\] now; "
            "new: absent then, 1 now",
        ),
        (
            {"optimizer": optax.sgd(0.1)},
            r"another state: \.opt_state.*: 'int32\[\]' then, absent now",
        ),
    ],
)
def test_resume_with_another_configuration_raises(kwargs, match, copy):
    before = (copy / "metadata.json").read_text()
    with pytest.raises(ValueError, match=match):
        resume(copy, **kwargs)
    assert steps(copy) == [5, 10, 15, 20]
    assert (copy / "metadata.json").read_text() == before


def test_non_empty_directory_raises(copy, tmp_path):
    with pytest.raises(ValueError, match=r"is not empty \(it holds checkpoints, .*resume=True"):
        fit(copy, 20)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"is not empty \(it holds thesis.tex\)"):
        fit(tmp_path / "other", 20)


def test_unwritable_directory_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"cannot write to the run directory .*file/run \(Not a dir"
    ):
        fit(tmp_path / "file" / "run", 20)
    with pytest.raises(ValueError, match="cannot write to the run directory"):
        fit(tmp_path / "file", 20, resume=True)


def test_config_that_json_cannot_hold_raises(tmp_path):
    with pytest.raises(TypeError, match="config must hold numbers, strings"):
        fit(tmp_path, 20, config={"x": jnp.ones(2)})


def test_metadata(run, copy, tmp_path):
    metadata = checkpoints.read_metadata(run[0])
    assert metadata["format_version"] == 1
    assert metadata["config"]["recipe"] == "test"
    assert metadata["config"]["fit"]["seed"] == 5
    assert metadata["state"][".params['w']"] == "float32[2, 2]"
    assert metadata["libraries"]["jax"] == jax.__version__
    metadata["format_version"] = 2
    (copy / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="has format version 2, and this sm_jax reads 1"):
        resume(copy)
    (copy / "metadata.json").write_text("{")
    for call in (resume, lambda directory: training.restore_params(directory, PARAMS)):
        with pytest.raises(ValueError, match="is not a run directory"):
            call(copy)
    with pytest.raises(ValueError, match="is not a run directory"):
        training.restore_params(tmp_path / "absent", PARAMS)


@pytest.mark.parametrize("name", ["config", "best", "state", "best.mode"])
def test_metadata_without_an_entry_is_damaged(name, copy):
    metadata = checkpoints.read_metadata(copy)
    if name == "best.mode":
        del metadata["best"]["mode"]
    else:
        del metadata[name]
    (copy / "metadata.json").write_text(json.dumps(metadata))
    for call in (resume, lambda directory: training.restore_params(directory, PARAMS)):
        with pytest.raises(ValueError, match=r"metadata\.json is damaged"):
            call(copy)


def test_restore_params_refuses_another_model(run):
    with pytest.raises(
        ValueError, match=r"\.ema\['w'\]: 'float32\[2, 2\]' then, 'float32\[3, 2\]' now"
    ):
        training.restore_params(run[0], {**PARAMS, "w": jnp.zeros((3, 2))})
    with pytest.raises(ValueError, match="kept no best checkpoint"):
        training.restore_params(run[0], PARAMS, best=True)


def test_restore_params_needs_shapes_only(run):
    like = jax.eval_shape(lambda: PARAMS)
    assert_equal(training.restore_params(str(run[0]), like), run[1].ema)
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    assert_equal(training.restore_params(run[0], low), run[1].ema)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [({"keep": 0}, "keep must be at least 1, got 0"), ({"best_mode": "low"}, "got 'low'")],
)
def test_open_manager_bad_arguments(kwargs, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        checkpoints.open_manager(tmp_path, **kwargs)


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    checkpoints.write_text(path, "old")
    checkpoints.write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]

    def fail(path, text):
        path.write_bytes(text[:1].encode())
        raise OSError("no space left")

    monkeypatch.setattr(pathlib.Path, "write_text", fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.write_text(path, "newer")
    assert path.read_text() == "new"
