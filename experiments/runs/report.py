"""The report of a run: a table in the terminal, and report.html, one self-contained page."""

import base64
import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jinja2

from experiments.runs import configuration
from experiments.runs.saved import Run

# The page, next to this module; all that is filled in is escaped.
_TEMPLATE = pathlib.Path(__file__).with_name("report.html")


def table(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table of results: name, nats, bits per dimension, remarks."""
    rows = []
    for name, row in results["log_likelihood"].items():
        remarks = [row["chosen"]] if "chosen" in row else []
        if "standard_error_of_divergence" in row:
            error = row["standard_error_of_divergence"]
            remarks.append(f"{error:.2g} nats of the error are the estimated trace's")
        rows.append(
            (
                name,
                _measured(row["nats"], row["standard_error"]),
                _measured(row["bits_per_dim"], row["bits_per_dim_standard_error"], 3),
                "; ".join(remarks),
            )
        )
    return rows


def _measured(value: float, error: float, digits: int = 2) -> str:
    """Return a number and its standard error, which a single example has not."""
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if math.isfinite(error) else "")


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Print a warning where a part of the report fails, and go on without it."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"warning: {what} left out: {reason}", file=sys.stderr)


def verdict(results: dict[str, Any]) -> list[str]:
    """Return sentences on repeated rows, and on the baselines that the model does not beat."""
    said = []
    if repeated := results.get("num_repeated"):
        said.append(
            f"{repeated} of {results['num_examples']} held-out examples are also among those to "
            "train on: all likelihoods are too high, unless such rows repeat by chance. Leave each "
            "row or image in the data once"
        )
    if unforeseen := results.get("num_unforeseen"):
        said.append(
            f"{unforeseen} of {results['num_examples']} held-out examples have likelihood zero, "
            "minus infinity nats: they differ where all training examples are the same. What is "
            "reported is of the other numbers only. Leave constants out of the data"
        )
    for name, more in results.get("more_than_baselines", {}).items():
        nats, error, num = more["nats"], more["standard_error"], results["num_examples"]
        if nats > 2 * error:
            continue
        difference = f"{_measured(abs(nats), error)} nats {'less' if nats < 0 else 'more'}"
        if not results.get("has_density", True):
            said.append(
                f"The score model has {difference} than the {name}, which says nothing of either, "
                "as some of the data have no density"
            )
        elif nats < -2 * error:
            said.append(f"Use the {name} instead: the score model has {difference}")
        else:
            said.append(
                f"The score model is not shown to be better than the {name}: it has {difference}, "
                f"which {num} held-out example{'s' * (num > 1)} cannot tell from none"
            )
    if results["num_examples"] < 10:
        said.append(f"So few held-out examples ({results['num_examples']}) settle nothing")
    return said + [f"No {name}: {reason}" for name, reason in results.get("left_out", {}).items()]


def gap(results: dict[str, Any]) -> str:
    """Return a sentence on overfitting."""
    return (
        "Overfitting gap, training minus held-out: "
        + _measured(results["overfitting_gap_nats"], results["overfitting_gap_standard_error"])
        + " nats"
    )


def of_labels(results: dict[str, Any]) -> list[str]:
    """Return sentences on the labels, for a conditional run."""
    sentences = []
    if gain := results.get("label_gain"):
        given = results["log_likelihood"]["score model given label"]["nats"]
        sentences.append(
            f"The label of a held-out example adds {gain['nats']:.2f} ± "
            f"{gain['standard_error']:.2f} nats, log p(x | label) - log p(x), and costs "
            f"{gain['entropy_of_labels']:.2f}, -log p(label) by the training examples: the mixture "
            f"over the labels has at least {given - gain['entropy_of_labels']:.2f} nats"
        )
    if seen := results.get("recognized"):
        samples, real = (
            f"{100 * seen[name]['share']:.1f} ± {100 * seen[name]['standard_error']:.1f} %"
            for name in ("samples", "held out")
        )
        sentences.append(
            f"Recognized as their label by the {seen['classifier']}, all labels weighing alike: "
            f"{samples} of {seen['samples']['num']} samples, {real} of "
            f"{seen['held out']['num']} held-out examples"
        )
    return sentences


def sentences(results: dict[str, Any]) -> list[str]:
    """Return all that is said of the results in words."""
    return [*verdict(results), gap(results), *of_labels(results)]


def method(results: dict[str, Any]) -> str:
    """Return a sentence on how the likelihoods were computed."""
    trace = {"exact": "exact trace", "hutchinson": "Hutchinson's estimate of the trace"}
    num = results["num_examples"]
    mean = f"Mean over {num} examples ± standard error" if num > 1 else "Of a single example"
    return (
        f"{mean}; the model's by "
        f"probability flow, {trace[results['divergence']]}, {results['likelihood_steps']} "
        f"steps. {results['units']}"
    )


def show(directory: pathlib.Path, results: dict[str, Any]) -> None:
    """Print the results, and where everything is."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        title="Log-likelihood",
        title_justify="left",
        title_style="bold",
    )
    shown.add_column("")
    shown.add_column("nats", justify="right")
    shown.add_column("bits/dim", justify="right")
    rows = table(results)
    columns = 4 if any(row[3] for row in rows) else 3
    if columns == 4:
        shown.add_column("remarks")
    for row in rows:
        shown.add_row(*row[:columns], style="bold" if row[0] == "score model" else "")
    console = Console(highlight=False)
    console.print()
    console.print(shown)
    for sentence in sentences(results):
        console.print(sentence)
    console.print(method(results), style="dim")
    if "wall_seconds" in results:
        console.print(f"{results['wall_seconds']:.0f} s in all", style="dim")
    console.print()
    for name in ("report.html", "samples.png", "sampling.gif", "results.json"):
        if (directory / name).exists():
            console.print(f"  {directory / name}", soft_wrap=True)


def write_json(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Write the results as JSON, which knows no NaN: null where there is no such number."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(plain(results), indent=2, allow_nan=False) + "\n")


def write(run: Run, results: dict[str, Any]) -> None:
    """Write report.html: pictures, results and configuration, with nothing outside the page."""
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(_TEMPLATE.name)
    options = [
        (group, name, value)
        for group, values in configuration.to_dict(run.config).items()
        if isinstance(values, dict)
        for name, value in values.items()
    ]
    content = page.render(
        recipe=run.recipe.title,
        about=run.recipe.Options.__doc__,
        num_steps=run.config.training.num_steps,
        results=results,
        figures=_figures(run),
        rows=table(results),
        words=f"{'. '.join(sentences(results))}. {method(results)}",
        options=options,
    )
    (run.directory / "report.html").write_text(content, encoding="utf-8")


def _figures(run: Run) -> list[dict[str, Any]]:
    """Return the pictures that there are, with their captions; the wide ones stand below."""
    drawn = f"Samples{' of each label' if run.problem.num_labels else ''}"
    figures = (
        ("samples.png", f"{drawn}, by Heun's method on the probability flow", False),
        (
            "sampling.gif",
            "Noise becoming samples, brought to one range at every noise level",
            False,
        ),
        ("scores_per_level.png", "The score at several noise levels, and its error at each", True),
        ("loss.png", "Training loss, mean over every hundred steps", True),
    )
    return [
        {
            "source": _embedded(run.directory / name),
            "caption": caption,
            "wide": wide,
            "pixels": run.problem.is_image and not wide,
        }
        for name, caption, wide in figures
        if (run.directory / name).exists()
    ]


def _embedded(path: pathlib.Path) -> str:
    kind = path.suffix.removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
