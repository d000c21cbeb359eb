"""The benchmarks, tiny: curves of samplers, rows of programs, the tables and the plot."""

import importlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.benchmarks import losses, samplers, tables
from experiments.benchmarks.losses import Benchmark
from experiments.benchmarks.samplers import Compare, Point, all_samplers

CONFIG = Compare(num=200, repeats=2, budgets=(5, 33), tolerances=(0.3,))


def test_two_samplers_end_to_end(tmp_path):
    chosen = [s for s in all_samplers() if s.name in ("heun", "adaptive_sde")]
    floor, distance = samplers.reference(CONFIG.num)
    assert 0 < floor < 0.2
    tasks = list(samplers.settings(chosen, CONFIG))
    assert [setting for _, setting in tasks] == [2, 16, 0.3]
    points = [samplers.measure(*task, distance, CONFIG) for task in tasks]
    assert [point.evaluations for point in points[:2]] == [5, 33]
    assert points[1].distance < 0.3 < points[0].distance

    path = tmp_path / "BENCHMARKS.md"
    begin, end = (f"<!-- {word}: experiments.benchmarks.samplers -->" for word in ("begin", "end"))
    path.write_text(f"before\n{begin}old{end}\nafter")
    samplers.write(points, floor, CONFIG, 12.0, path)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert "old" not in text
    assert f"| heun | ODE | {points[0].distance:.4f} | {points[1].distance:.4f} |" in text
    samplers.plot(points, floor, tmp_path / "samplers.png")
    with Image.open(tmp_path / "samplers.png") as picture:
        assert min(picture.size) > 400
    path.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        samplers.write(points, floor, CONFIG, 12.0, path)


def test_adaptive_samplers_stand_under_the_budget_that_they_keep():
    adaptive = next(s for s in all_samplers() if s.name == "adaptive_sde")
    points = [Point(adaptive, n, 1.0 / n) for n in (10.0, 17.0, 200.0)]
    config = Compare(budgets=(16, 32, 256))
    row = next(samplers.rows(points, config))
    assert row == ["adaptive_sde", "SDE", f"{1 / 17:.4f} (17)", "", f"{1 / 200:.4f} (200)"]


def test_the_score_is_that_of_the_noised_mixture(getkey):
    x, t = samplers.mixture().sample(getkey(), 4), np.array([0.1, 0.3, 0.3, 0.9])
    score = samplers.score_fn(x, t)
    for i in range(4):
        noised = samplers.mixture().noised(samplers.PROCESS, t[i])
        np.testing.assert_allclose(score[i], noised.score(x[i : i + 1])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "sampler", [s for s in all_samplers() if not s.adaptive], ids=lambda s: s.name
)
def test_the_evaluations_reported_are_those_made(sampler, monkeypatch, getkey):
    exact, calls = samplers.score_fn, []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    monkeypatch.setattr(samplers, "score_fn", counted)
    [sampler] = [s for s in all_samplers() if s.name == sampler.name]
    budgets = (8, 16, 33)
    for _, setting in samplers.settings([sampler], Compare(budgets=budgets)):
        calls.clear()
        draw = sampler.draw(setting)
        jax.block_until_ready(jax.jit(draw)(x=jax.random.normal(getkey(), (2, 2)), key=getkey()))
        jax.effects_barrier()
        assert sampler.evaluations(setting) == len(calls)


def test_evaluations_that_are_not_the_budget_are_shown():
    annealed = next(s for s in all_samplers() if s.name == "annealed_langevin")
    config = Compare(budgets=(8, 16, 33))
    chosen = [setting for _, setting in samplers.settings([annealed], config)]
    points = [Point(annealed, annealed.evaluations(setting), 1.0) for setting in chosen]
    row = next(samplers.rows(points, config))
    assert row[2:] == ["1.0000 (9)", "1.0000 (13)", "1.0000"]


def test_unknown_sampler():
    with pytest.raises(ValueError, match="no sampler has 'nobody' in its name: ddim, heun"):
        samplers.main(Compare(only="nobody"))


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture(params=["losses", "samplers"])
def script(request, monkeypatch):
    """A script that writes a table, its configuration, and a measurement that must not begin."""
    module = {"losses": losses, "samplers": samplers}[request.param]
    config = {"losses": Benchmark, "samplers": Compare}[request.param]

    def measure(*_):
        raise AssertionError("nothing should be measured")

    monkeypatch.setattr(module, "measure", measure)
    return module.main, config


def test_a_part_of_a_table_is_not_written(script):
    main, config = script
    with pytest.raises(ValueError, match="--only 'heun' measures a part"):
        main(config(only="heun", write=True))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "nothing",
        "<!-- end: experiments.benchmarks.{0} --><!-- begin: experiments.benchmarks.{0} -->",
    ],
)
def test_where_to_write_is_checked_first(script, text, tmp_path, monkeypatch):
    main, config = script
    path = tmp_path / "BENCHMARKS.md"
    if text is not None:
        path.write_text(text.format(main.__module__.removeprefix("experiments.benchmarks.")))
    monkeypatch.setattr(tables, "BENCHMARKS", path)
    with pytest.raises(ValueError, match=r"there is no file|to write between"):
        main(config(write=True))


def test_thetables_are_of_this_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("losses", "samplers"):
        tables.check(f"experiments.benchmarks.{name}", tables.BENCHMARKS, only="")


def test_rows_of_the_benchmark_by_name(monkeypatch):
    monkeypatch.setattr(losses, "fit_result", lambda rounds: ("fit",))
    shown = []
    monkeypatch.setattr(losses, "show", lambda results: shown.extend(results))
    monkeypatch.setattr(losses, "measure", lambda row, rounds: (row.name,))
    for only, names in (("bare jitted", ["fit"]), ("Heun", ["Heun sampling, per evaluation"])):
        shown.clear()
        losses.main(Benchmark(only=only))
        assert [result[-1] for result in shown] == names
    with pytest.raises(ValueError, match="no row has 'nobody' in its name: score net"):
        losses.main(Benchmark(only="nobody"))


def test_without_torch_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "experiments.benchmarks.networks", raising=False)
    with pytest.raises(ImportError, match=r"not installed: pip install '\.\[benchmark\]'"):
        importlib.import_module("experiments.benchmarks.networks")
