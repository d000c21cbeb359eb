"""The comparison of samplers, tiny: its curves, its table and its plot."""

import numpy as np
import pytest
from PIL import Image

from experiments import compare_samplers
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
    path.write_text(
        "before\n" + compare_samplers._BEGIN + "old" + compare_samplers._END + "\nafter"
    )
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


def test_unknown_sampler():
    with pytest.raises(ValueError, match="no sampler has 'nobody' in its name: ddim, heun"):
        compare_samplers.main(Compare(only="nobody"))
