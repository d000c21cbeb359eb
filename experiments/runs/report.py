"""What a run leaves to read: a table in the terminal, and report.html, one self-contained page."""

import base64
import contextlib
import html
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from experiments import _config
from experiments._run import Run

_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #60646c; --line: #e2e4e8;
        --page: #fbfbfc; --card: #ffffff; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --soft: #9aa0a8; --line: #33373d; --page: #16181b; --card: #1e2125;
          --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.25rem 4rem; background: var(--page);
       color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 2.6rem 0 .8rem; }
p { color: var(--soft); margin: .6rem 0 1rem; }
.figures { display: grid; gap: 1.2rem;
           grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 10px;
         padding: .9rem; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; width: 100%; height: auto; }
figure img.pixels { image-rendering: pixelated; }
figcaption { color: #60646c; font-size: .875rem; margin-top: .6rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
          border-radius: 10px; padding: .3rem 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: .875rem; }
th, td { padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
tr.model td { font-weight: 650; color: var(--accent); }
pre { margin: 0; padding: .6rem 0; font: .84rem/1.5 ui-monospace, monospace; }
"""


def table(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns the rows of the table of results: name, nats, bits per dimension, remarks."""
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
    """Returns a number and its standard error, which a single example has not."""
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if math.isfinite(error) else "")


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Says so where a part of the report fails, and lets the rest be."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"warning: {what} left out: {reason}", file=sys.stderr)


def verdict(results: dict[str, Any]) -> list[str]:
    """Returns sentences on repeated rows, and on the baselines that the model does not beat."""
    said = []
    if repeated := results.get("num_repeated"):
        said.append(
            f"{repeated} of {results['num_examples']} held-out examples are also among those to "
            "train on: all likelihoods are too high, unless examples of few possible values repeat "
            "by chance. Leave each row or image in the data once"
        )
    if unforeseen := results.get("num_unforeseen"):
        said.append(
            f"{unforeseen} of {results['num_examples']} held-out examples have likelihood zero, "
            "minus infinity nats: they differ where all training examples are the same. What is "
            "reported is of the other columns only. Leave constant columns out of the data"
        )
    for name, more in results.get("more_than_baselines", {}).items():
        nats, error, num = more["nats"], more["standard_error"], results["num_examples"]
        if nats > 2 * error:
            continue
        difference = f"{_measured(abs(nats), error)} nats {'less' if nats < 0 else 'more'}"
        if nats < -2 * error:
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
    """Returns a sentence on overfitting."""
    return (
        "Overfitting gap, training minus held-out: "
        + _measured(results["overfitting_gap_nats"], results["overfitting_gap_standard_error"])
        + " nats"
    )


def of_labels(results: dict[str, Any]) -> list[str]:
    """Returns sentences on the labels, for a conditional run."""
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
    """Returns all that is said of the results in words."""
    return [*verdict(results), gap(results), *of_labels(results)]


def method(results: dict[str, Any]) -> str:
    """Returns a sentence on how the likelihoods were computed."""
    trace = {"exact": "exact trace", "hutchinson": "Hutchinson's estimate of the trace"}
    num = results["num_examples"]
    mean = f"Mean over {num} examples ± standard error" if num > 1 else "Of a single example"
    return (
        f"{mean}; the model's by "
        f"probability flow, {trace[results['divergence']]}, {results['likelihood_steps']} "
        f"steps. {results['units']}"
    )


def show(directory: pathlib.Path, results: dict[str, Any]) -> None:
    """Prints the results, and where everything is."""
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
    """Writes the results as JSON, which knows no NaN: null where there is no such number."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(plain(results), indent=2, allow_nan=False) + "\n")


def write(run: Run, results: dict[str, Any]) -> None:
    """Writes report.html: pictures, results and configuration, with nothing outside the page."""
    directory, recipe, config = run.directory, run.recipe, run.config
    figures = (
        (
            "samples.png",
            f"Samples{' of each label' if run.problem.num_labels else ''}, by Heun's method on "
            "the probability flow",
            "",
        ),
        ("sampling.gif", "Noise becoming samples, brought to one range at every level", ""),
        (
            "scores_per_level.png",
            "The score at several noise levels, and its error at each",
            "wide",
        ),
        ("loss.png", "Training loss, mean over every hundred steps", "wide"),
    )
    first, second = (
        "".join(
            f'<figure class="{layout}"><img src="{_embedded(directory / name)}" alt="{caption}"'
            f' class="{"pixels" if run.problem.is_image and not layout else ""}">'
            f"<figcaption>{caption}</figcaption></figure>"
            for name, caption, layout in part
            if (directory / name).exists()
        )
        for part in (figures[:2], figures[2:])
    )
    rows = "".join(
        f'<tr class="{"model" if name == "score model" else ""}"><td>{html.escape(name)}</td>'
        f'<td class="number">{nats}</td><td class="number">{bits}</td>'
        f"<td>{html.escape(remarks)}</td></tr>"
        for name, nats, bits, remarks in table(results)
    )
    groups = "".join(
        f"<tr><td>{html.escape(group)}</td><td>{html.escape(name)}</td>"
        f"<td>{html.escape(str(value))}</td></tr>"
        for group, options in _config.to_dict(config).items()
        if isinstance(options, dict)
        for name, value in options.items()
    )
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(recipe)} · sm_jax</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(recipe)}</h1>
<p>{html.escape(type(config).__doc__)} A score model of {results["num_parameters"]:,} parameters,
{config.training.num_steps:,} steps, {results.get("wall_seconds", 0):.0f} s in all.</p>
<div class="figures">{first}</div>
<h2>Log-likelihood</h2>
<div class="scroll"><table><tr><th></th><th class="number">nats</th>
<th class="number">bits/dim</th><th></th></tr>{rows}</table></div>
<p>{html.escape(". ".join(sentences(results)))}. {html.escape(method(results))}</p>
<h2>Scores and training</h2>
<div class="figures">{second}</div>
<h2>Configuration</h2>
<div class="scroll"><table>{groups}</table></div>
</body></html>
"""
    (directory / "report.html").write_text(page, encoding="utf-8")


def _embedded(path: pathlib.Path) -> str:
    kind = path.suffix.removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
