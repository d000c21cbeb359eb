"""Evaluate a run again: ``python -m experiments.evaluate RUN``."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.recipes.shared import limits
from experiments.recipes.shared.limits import COUNT
from experiments.runs import stops

if TYPE_CHECKING:  # slow to import
    from experiments.recipes.shared.examples import Examples
    from experiments.runs.saved import Run


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Held-out log-likelihood of a trained run, beside the baselines, and the overfitting gap."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Run directory that experiments.train wrote; its data must still be where they were."""
    likelihood_steps: Annotated[int | None, COUNT] = None
    """Steps of its integral; those of the run by default. Double them to see their error."""
    likelihood_examples: Annotated[int | None, COUNT] = None
    """Held-out examples, and as many training examples; those of the run by default."""
    divergence: Literal["exact", "hutchinson", "auto"] | None = None
    """Trace of the score's Jacobian; that of the run by default."""
    output: pathlib.Path | None = None
    """Where to write the results, a .json file; RUN/evaluation.json by default."""


def main(args: list[str] | None = None) -> None:
    """Run the command line, which is ``sys.argv`` by default."""
    with stops.one_line_errors():
        options = tyro.cli(Evaluate, prog="python -m experiments.evaluate", args=args)
        limits.check(options)
        run, examples = prepare(options)
        output = options.output or options.run / "evaluation.json"
        stops.check_writable(output)
    with stops.one_line_stops():
        evaluate(run, examples, output)


def prepare(options: Evaluate) -> tuple["Run", "Examples"]:
    """Read the run, with the options given, and its data.

    Raises:
        ValueError: if there is no run, or its data have changed.
    """
    from experiments.runs import saved

    run = saved.load(options.run)
    names = ("likelihood_steps", "likelihood_examples", "divergence")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    chosen = dataclasses.replace(run.config.evaluation, **asked)
    run = run._replace(config=dataclasses.replace(run.config, evaluation=chosen))
    return run, saved.load_examples(run)


def evaluate(run: "Run", examples: "Examples", output: pathlib.Path) -> None:
    """Compute the results, show them, and write them to ``output``."""
    from experiments.recipes.shared.keys import named
    from experiments.runs import evaluation, report

    results = evaluation.evaluate(run, examples, named("evaluation", run.config.training.seed))
    report.write_json(output, results)
    report.show(run.directory, results)
    print(f"  {output}")


if __name__ == "__main__":
    stops.run(main)
