"""The types of the public functions: ordinary calls pass a type checker, mistakes do not."""

import re
import subprocess
import sys

import pytest

from tests.test_package import ROOT

# Each is refused; with the other side of the mistake in tests/typing_calls.py.
MISTAKES = {
    "a score that returns a string": 'losses.implicit(lambda x: "score", x)',
    "a score with a level for one without": "losses.implicit(noised_score, x)",
    "a score without a level for one with": "losses.diffusion(score, x, key, process=process)",
    "a score for an energy": "samplers.nuts(noised_score, x, key, num_samples=3)",
    "an energy without a level": (
        "likelihood.thermodynamic_integration(energy, x, key, process=process)"
    ),
    "data before the function": "losses.implicit(x, score)",
    "a process by position": "samplers.heun(noised_score, x, key, process)",
    "a process by position, in a loss": "losses.diffusion(noised_score, x, key, process)",
    "a number for a process": "losses.diffusion(noised_score, x, key, process=3.0)",
    "a key by name, twice": "losses.sliced(score, x, key, key=key)",
    "no step size": "samplers.langevin(score, x, key, num_steps=3)",
    "an option that does not exist": "samplers.heun(noised_score, x, process=process, order=2)",
    "an option that does not exist, of a chain": (
        "samplers.mala(score, x, key, step_size=0.1, num_steps=3, snr=0.1)"
    ),
    "a string for times": 'samplers.heun(noised_score, x, process=process, times="3, 1")',
    "strings for noise levels": (
        'losses.noise_conditional(noised_score, x, key, sigmas=["3.0", "1.0"])'
    ),
    "a string for data": 'losses.implicit(score, "points.csv")',
    "a string for a divergence": 'losses.implicit(score, x, divergence="exact")',
    "a probe for a divergence": "losses.implicit(score, x, key, divergence=divergence.sphere)",
    "a list for a step size": "samplers.langevin(score, x, key, step_size=[0.1], num_steps=3)",
    "a score for a step": "samplers.solve(noised_score, noised_score, x, process=process)",
    "a trajectory that was not returned": (
        "samplers.heun(noised_score, x, process=process)[0].trajectory"
    ),
    "a function for a logger": (
        "training.fit(None, x, x, optimizer=training.adamw(1e-3), num_steps=1, logger=print)"
    ),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """Return the errors of the type checker, as (file, line, message)."""
    mistakes = tmp_path_factory.mktemp("typing") / "mistakes.py"
    mistakes.write_text("\n".join(["from tests.typing_calls import *", *MISTAKES.values()]))
    command = [sys.executable, "-m", "mypy", "sm_jax", "tests/typing_calls.py", str(mistakes)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    found = re.findall(r"^(.*?):(\d+): error: (.*)$", result.stdout, re.MULTILINE)
    return [(file, int(line), message) for file, line, message in found]


def test_the_package_and_ordinary_calls_pass(errors):
    assert [error for error in errors if not error[0].endswith("mistakes.py")] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(errors, name):
    line = 2 + list(MISTAKES).index(name)
    assert any(file.endswith("mistakes.py") and at == line for file, at, _ in errors)
