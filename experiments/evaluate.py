"""Evaluate a run anew: `python -m experiments.evaluate RUN`."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments import _cli, _limits

if TYPE_CHECKING:  # slow to import
    from experiments._examples import Examples
    from experiments._run import Run


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Held-out log-likelihood of a trained run, beside the baselines, and the overfitting gap."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Run directory that experiments.train wrote; its data must still be where they were."""
    likelihood_steps: int | None = None
    """Steps of its integral; those of the run by default. Double them to see their error."""
    likelihood_examples: int | None = None
    """Held-out examples, and as many training examples; those of the run by default."""
    divergence: Literal["exact", "hutchinson", "auto"] | None = None
    """Trace of the score's Jacobian; that of the run by default."""
    output: pathlib.Path | None = None
    """Where to write the results, a .json file; RUN/evaluation.json by default."""


def main(args: list[str] | None = None) -> None:
    """Runs the command line, which is `sys.argv` by default."""
    with _cli.one_line_errors():
        options = tyro.cli(Evaluate, prog="python -m experiments.evaluate", args=args)
        _limits.check(options)
        run, examples = prepare(options)
        output = options.output or options.run / "evaluation.json"
        _cli.check_writable(output)
    with _cli.one_line_stops():
        evaluate(run, examples, output)


def prepare(options: Evaluate) -> tuple["Run", "Examples"]:
    """Reads the run, with the options asked for, and its data.

    Raises:
        ValueError: on a run that is none, or whose data are no longer those that it had.
    """
    from experiments import _run

    run = _run.load(options.run)
    names = ("likelihood_steps", "likelihood_examples", "divergence")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    evaluation = dataclasses.replace(run.config.evaluation, **asked)
    run = run._replace(config=dataclasses.replace(run.config, evaluation=evaluation))
    return run, _run.load_examples(run)


def evaluate(run: "Run", examples: "Examples", output: pathlib.Path) -> None:
    """Computes the results, shows them, and writes them to `output`."""
    from experiments import _evaluation, _report
    from experiments._keys import named

    results = _evaluation.evaluate(run, examples, named("evaluation", run.config.training.seed))
    _report.write_json(output, results)
    _report.show(run.directory, results)
    print(f"  {output}")


if __name__ == "__main__":
    _cli.run(main)
