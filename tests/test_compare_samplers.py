"""The comparison of samplers, tiny: its curves, its table and its plot."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import _tables, benchmark, compare_samplers
from experiments.benchmark import Benchmark
from experiments.compare_samplers import Compare, Point, all_samplers

CONFIG = Compare(num=200, repeats=2, budgets=(5, 33), tolerances=(0.3,))


def test_two_samplers_end_to_end(tmp_path):
    chosen = [s for s in all_samplers() if s.name in ("heun", "adaptive_sde")]
    floor, distance = compare_samplers.reference(CONFIG.num)
    assert 0 < floor < 0.2
    tasks = list(compare_samplers.settings(chosen, CONFIG))
    assert [setting for _, setting in tasks] == [2, 16, 0.3]
    points = [compare_samplers.measure(*task, distance, CONFIG) for task in tasks]
    assert [point.evaluations for point in points[:2]] == [5, 33]
    assert points[1].distance < 0.3 < points[0].distance

    path = tmp_path / "BENCHMARKS.md"
    begin, end = (f"<!-- {word}: experiments.compare_samplers -->" for word in ("begin", "end"))
    path.write_text(f"before\n{begin}old{end}\nafter")
    compare_samplers.write(points, floor, CONFIG, 12.0, path)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert "old" not in text
    assert f"| heun | ODE | {points[0].distance:.4f} | {points[1].distance:.4f} |" in text
    compare_samplers.plot(points, floor, tmp_path / "samplers.png")
    with Image.open(tmp_path / "samplers.png") as picture:
        assert min(picture.size) > 400
    path.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        compare_samplers.write(points, floor, CONFIG, 12.0, path)


def test_adaptive_samplers_stand_under_the_budget_that_they_keep():
    adaptive = next(s for s in all_samplers() if s.name == "adaptive_sde")
    points = [Point(adaptive, n, 1.0 / n) for n in (10.0, 17.0, 200.0)]
    config = Compare(budgets=(16, 32, 256))
    row = next(compare_samplers.rows(points, config))
    assert row == ["adaptive_sde", "SDE", f"{1 / 17:.4f} (17)", "", f"{1 / 200:.4f} (200)"]


def test_the_score_is_that_of_the_noised_mixture(getkey):
    x, t = compare_samplers.mixture().sample(getkey(), 4), np.array([0.1, 0.3, 0.3, 0.9])
    score = compare_samplers.score_fn(x, t)
    for i in range(4):
        noised = compare_samplers.mixture().noised(compare_samplers.PROCESS, t[i])
        np.testing.assert_allclose(score[i], noised.score(x[i : i + 1])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "sampler", [s for s in all_samplers() if not s.adaptive], ids=lambda s: s.name
)
def test_the_evaluations_reported_are_those_made(sampler, monkeypatch, getkey):
    exact, calls = compare_samplers.score_fn, []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    monkeypatch.setattr(compare_samplers, "score_fn", counted)
    [sampler] = [s for s in all_samplers() if s.name == sampler.name]
    budgets = (8, 16, 33)
    for _, setting in compare_samplers.settings([sampler], Compare(budgets=budgets)):
        calls.clear()
        draw = sampler.draw(setting)
        jax.block_until_ready(jax.jit(draw)(x=jax.random.normal(getkey(), (2, 2)), key=getkey()))
        jax.effects_barrier()
        assert sampler.evaluations(setting) == len(calls)


def test_evaluations_that_are_not_the_budget_are_shown():
    annealed = next(s for s in all_samplers() if s.name == "annealed_langevin")
    config = Compare(budgets=(8, 16, 33))
    chosen = [setting for _, setting in compare_samplers.settings([annealed], config)]
    points = [Point(annealed, annealed.evaluations(setting), 1.0) for setting in chosen]
    row = next(compare_samplers.rows(points, config))
    assert row[2:] == ["1.0000 (9)", "1.0000 (13)", "1.0000"]


def test_unknown_sampler():
    with pytest.raises(ValueError, match="no sampler has 'nobody' in its name: ddim, heun"):
        compare_samplers.main(Compare(only="nobody"))


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture(params=["benchmark", "compare_samplers"])
def script(request, monkeypatch):
    """A script that writes a table, its configuration, and a measurement that must not begin."""
    module = {"benchmark": benchmark, "compare_samplers": compare_samplers}[request.param]
    config = {"benchmark": Benchmark, "compare_samplers": Compare}[request.param]

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
    [None, "nothing", "<!-- end: experiments.{0} --><!-- begin: experiments.{0} -->"],
)
def test_where_to_write_is_checked_first(script, text, tmp_path, monkeypatch):
    main, config = script
    path = tmp_path / "BENCHMARKS.md"
    if text is not None:
        path.write_text(text.format(main.__module__.removeprefix("experiments.")))
    monkeypatch.setattr(_tables, "BENCHMARKS", path)
    with pytest.raises(ValueError, match=r"there is no file|to write between"):
        main(config(write=True))


def test_the_tables_are_of_this_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("benchmark", "compare_samplers"):
        _tables.check(f"experiments.{name}", _tables.BENCHMARKS, only="")


def test_rows_of_the_benchmark_by_name(monkeypatch):
    monkeypatch.setattr(benchmark, "fit_result", lambda rounds: ("fit",))
    shown = []
    monkeypatch.setattr(benchmark, "show", lambda results: shown.extend(results))
    monkeypatch.setattr(benchmark, "measure", lambda row, rounds: (row.name,))
    for only, names in (("bare jitted", ["fit"]), ("Heun", ["Heun sampling, per evaluation"])):
        shown.clear()
        benchmark.main(Benchmark(only=only))
        assert [result[-1] for result in shown] == names
    with pytest.raises(ValueError, match="no row has 'nobody' in its name: score net"):
        benchmark.main(Benchmark(only="nobody"))
