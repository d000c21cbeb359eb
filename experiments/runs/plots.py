"""Pictures of samples, of noise becoming samples, and of the loss."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.recipes.shared.examples import Examples
from experiments.recipes.shared.problem import Problem
from experiments.runs import images
from experiments.runs.figures import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    RED,
    drawing,
    frame_axes,
    log_scale,
    rendered,
    square,
)

EXTENT = 2.6  # half the width of the pictures of points, in standard deviations


def loss_curve(directory: pathlib.Path, problem: Problem) -> None:
    """Write loss.png from metrics.jsonl: by step, the loss and the norm of its gradient.

    With a validation set, its bound on the likelihood instead of the latter, in the nats that the
    results are in: of quantized data, those of the scaled data.
    """
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    every = [json.loads(line) for line in lines]
    records = [record for record in every if record.get("loss") is not None]
    validated = [record for record in every if record.get("eval/validation_elbo") is not None]
    with drawing(directory / "loss.png", 6.4, 4.2) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        steps = [record["step"] for record in records]
        top.plot(steps, [record["loss"] for record in records], color=BLUE, marker=".")
        top.set_ylabel("loss (per example)")
        log_scale(top)
        if validated:
            steps = [record["step"] for record in validated]
            unit = problem.log_det if problem.num_values else 0.0
            bounds = [record["eval/validation_elbo"] - unit for record in validated]
            bottom.plot(steps, bounds, color=ORANGE, marker=".")
            bottom.set_ylabel("validation bound\n(nats)")
        else:
            bottom.plot(
                steps, [record["grad_norm"] for record in records], color=ORANGE, marker="."
            )
            bottom.set_ylabel("norm of gradient")
            log_scale(bottom)
        bottom.set_xlabel("step")


def samples(
    path: pathlib.Path,
    problem: Problem,
    x: np.ndarray,
    examples: Examples | None = None,
    labels: np.ndarray | None = None,
    title: str = "",
) -> None:
    """Write the picture of scaled samples, beside data where these are given.

    Images are arranged by their labels ``[N]`` where there are any: these must be in groups of one
    size. The title is of such a picture.
    """
    if problem.is_image and labels is not None:
        images.labeled(path, images.gray(problem, x), labels, title, problem.labels)
    elif problem.is_image:
        grid = images.tiles(images.gray(problem, x))
        images.to_pil(grid, images.enlargement(problem, len(x))).save(path)
    elif problem.event_shape == (2,) and not (
        problem.integers or problem.num_values or problem.kept
    ):
        _plane(path, problem, x, examples)
    else:
        _marginals(path, problem, x, examples)


def gif(
    path: pathlib.Path,
    problem: Problem,
    trajectory: np.ndarray,
    sigmas: np.ndarray,
    labels: np.ndarray | None = None,
) -> None:
    """Write noise becoming samples, from their scaled trajectory ``[steps + 1, N, ...]``."""
    # At each noise level the noised data are brought to one range: the picture emerges.
    spread = np.sqrt(1 + (sigmas / problem.sigma_data) ** 2)
    scaled = problem.mean + (trajectory - problem.mean) / spread.reshape(
        -1, *[1] * (trajectory.ndim - 1)
    )
    if not problem.is_image:  # images alone are shown on their own scale
        scaled = (scaled - problem.mean) / problem.sigma_data
    # Well above the data's spread nothing is to be seen yet: one picture of it will do.
    seen = np.flatnonzero(sigmas < 10 * problem.sigma_data)
    chosen = np.unique([0, *seen[:: max(1, len(seen) // 40)], len(sigmas) - 1])
    if problem.is_image:
        factor = max(1, images.enlargement(problem, trajectory.shape[1]) // 2)  # a smaller file
        columns = None if labels is None else len(labels) // len(np.unique(labels))
        grids = (images.tiles(images.gray(problem, scaled[i]), columns) for i in chosen)
        frames = [images.to_pil(grid, factor) for grid in grids]
    elif problem.event_shape == (2,):
        frames = _scatter_frames(scaled[chosen], sigmas[chosen])
    else:
        features = problem.kept if problem.shortened else range(problem.num_dims)
        frames = _histogram_frames(scaled[chosen], sigmas[chosen], features)
    frames = [frame if frame.mode == "L" else frame.quantize(64, dither=0) for frame in frames]
    durations = [70] * (len(frames) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def completions(
    path: pathlib.Path,
    problem: Problem,
    known: np.ndarray,
    originals: np.ndarray,
    completed: np.ndarray,
    title: str,
) -> None:
    """Write, row by row, a scaled image ``[N, ...]``, what is known of it, and its completions.

    The mask ``known [...]`` is true where the completions ``[N, C, ...]`` have the original pixels.
    """
    color = np.array([0.36, 0.48, 0.62])  # of what is not known: no gray
    originals, completed = (
        images.rgb(images.gray(problem, originals)),
        images.rgb(images.gray(problem, completed)),
    )
    shown = known.reshape(*known.shape[:2], -1)[..., :1]
    parts = {
        "original": originals[:, None],
        "known": np.where(shown, originals, color)[:, None],
        "completions": completed,
    }
    blocks = [images.tiles(x.reshape(-1, *x.shape[2:]), x.shape[1]) for x in parts.values()]
    widths = np.array([block.shape[1] for block in blocks])
    centers = np.cumsum(widths) - widths / 2
    images.framed(path, np.concatenate(blocks, axis=1), title, top=(centers, list(parts)))


# Points in the plane.


def _plane(path: pathlib.Path, problem: Problem, x: np.ndarray, examples: Examples | None) -> None:
    panels = [("samples", _units(problem, x), BLUE)]
    if examples is not None:
        panels.append(("held-out points", examples.held_out[: len(x)], GRAY))
    with drawing(path, 3.6 * len(panels), 3.8) as figure:
        for axes, (title, points, color) in zip(
            np.atleast_1d(figure.subplots(1, len(panels), sharex=True, sharey=True)),
            panels,
            strict=True,
        ):
            axes.scatter(*points.T, s=3, color=color, alpha=0.5, linewidths=0)
            axes.set(title=f"{len(points):,} {title}", xlabel="$x_1$", ylabel="$x_2$")
            axes.locator_params(nbins=5)
            if not problem.standardizer:
                square(axes, EXTENT * problem.sigma_data, problem.mean)


def _scatter_frames(points: np.ndarray, sigmas: np.ndarray) -> list[Any]:
    with frame_axes(4, 4.2) as axes:
        dots = axes.scatter(*points[0].T, s=3, color=BLUE, alpha=0.5, linewidths=0)
        square(axes, EXTENT)
        return [
            rendered(axes, sigma, lambda x=x: dots.set_offsets(x))
            for x, sigma in zip(points, sigmas, strict=True)
        ]


# Vectors of any other shape: one number at a time.


def _marginals(
    path: pathlib.Path, problem: Problem, x: np.ndarray, examples: Examples | None
) -> None:
    flat = _units(problem, x)
    data = None if examples is None else examples.held_out.reshape(len(examples.held_out), -1)
    steps = np.full(flat.shape[1], float(bool(problem.num_values)))  # 0 for real numbers
    if problem.integers:
        steps = np.where(problem.integers.where, problem.integers.step, 0.0).ravel()
    shown = min(flat.shape[1], 12)
    num_bins = int(np.clip(2 * len(flat if data is None else data) ** 0.5, 8, 40))
    columns = min(shown, 4)
    rows = -(-shown // columns)
    with drawing(path, 2.6 * columns + 0.4, 2.1 * rows + 0.6) as figure:
        grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for i, axes in enumerate(grid):
            if i >= shown:
                axes.set_axis_off()
                continue
            both = flat[:, i] if data is None else np.concatenate([flat[:, i], data[:, i]])
            bins = _bins(both.astype(float), num_bins, steps[i])
            if data is not None:
                values = data[:, i].astype(float)
                axes.hist(values, bins, density=True, color="#c9c9c9", label="held-out data")
            axes.hist(
                flat[:, i], bins, density=True, histtype="step", color=BLUE, lw=1.6, label="samples"
            )
            axes.set(xlabel=f"feature {i + 1}", yticks=[])
            axes.xaxis.set_major_locator(MaxNLocator(4))
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)


def _bins(values: np.ndarray, num: int, step: float) -> Any:
    """Return the bins of a histogram of most values: of a lattice, as many of it in each bin."""
    low, high = np.quantile(values, (0.002, 0.998), method="nearest")
    if step and low < high:  # not a constant
        points = round((high - low) / step) + 1
        each = math.ceil(points / num)
        return low + step * (each * np.arange(math.ceil(points / each) + 1) - 0.5)
    bins = np.linspace(low, high, num + 1)
    return bins if np.all(np.diff(bins) > 0) else num


def _units(problem: Problem, x: np.ndarray) -> np.ndarray:
    return problem.unscaled(x).reshape(len(x), -1)


def _histogram_frames(points: np.ndarray, sigmas: np.ndarray, features: Sequence[int]) -> list[Any]:
    flat = points.reshape(*points.shape[:2], -1)[..., :4]
    edges = np.linspace(-4, 4, 41)
    with frame_axes(4.4, 3.2) as axes:
        steps = [
            axes.stairs(np.zeros(40), edges, color=color, label=f"feature {i + 1}")
            for i, color in zip(features, (BLUE, ORANGE, GREEN, RED), strict=False)
        ]
        axes.set(xlabel="scaled value", yticks=[], ylim=(0, 1.2))
        axes.legend(loc="upper right")

        def update(x):
            for i, step in enumerate(steps):
                step.set_data(np.histogram(x[:, i], edges, density=True)[0])

        return [
            rendered(axes, sigma, lambda x=x: update(x))
            for x, sigma in zip(flat, sigmas, strict=True)
        ]
