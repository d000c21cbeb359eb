"""Grids of images: pixels enlarged by a whole factor, words around them."""

import math
import pathlib
from typing import Any

import numpy as np

from experiments.recipes.shared.problem import Problem
from experiments.runs.figures import STYLE, plt


def gray(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Bring scaled images ``[..., *event_shape]`` to ``[..., H, W]`` or ``[..., H, W, 3]``, 0 to 1.

    Your own images are shown in their own units, over the range of the training examples: numbers
    that are standardized pixel by pixel, and quantized ones, on [-1, 1] and perhaps of few values.
    """
    if problem.standardizer:
        x = problem.unscaled(x.reshape(-1, *problem.event_shape)).reshape(x.shape)
        low, high = problem.limits or (x.min(), x.max())  # a run of a version without limits
        x = (x - low) / ((high - low) or 1.0)
    else:
        x = (x + 1) / 2
        if problem.limits:  # a value is the cell above it
            low, high = problem.limits
            x = (problem.num_values * x - low) / (high + 1 - low)
    return np.clip(x[..., 0] if problem.event_shape[2:] == (1,) else x, 0, 1)


def tiles(x: np.ndarray, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Arrange images ``[N, H, W, ...]`` in a grid, a nearly square one by default."""
    columns = columns or math.ceil(math.sqrt(len(x)))
    rows = -(-len(x) // columns)
    height, width = x.shape[1] + gap, x.shape[2] + gap
    grid = np.full((rows * height + gap, columns * width + gap, *x.shape[3:]), 0.2)
    for i, image in enumerate(x):
        top, left = gap + i // columns * height, gap + i % columns * width
        grid[top : top + height - gap, left : left + width - gap] = image
    return grid


def enlargement(problem: Problem, num: int) -> int:
    """Return the factor that enlarges the pixels of ``num`` images side by side."""
    return _enlargement(math.ceil(math.sqrt(num)) * problem.event_shape[1])


def _enlargement(pixels: int) -> int:
    return max(1, round(640 / pixels))


def to_pil(grid: np.ndarray, factor: int) -> Any:
    """Return a grid of 0 to 1 as an image, its pixels enlarged."""
    from PIL import Image

    image = Image.fromarray((255 * grid).round().astype(np.uint8))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def labeled(
    path: pathlib.Path,
    images: np.ndarray,
    labels: np.ndarray,
    title: str,
    called: tuple[str, ...],
) -> None:
    """Write a grid with a block of rows for each label, and at its side what it is called."""
    names = [called[label] for label in dict.fromkeys(labels.tolist())]
    groups = images.reshape(len(names), -1, *images.shape[1:])
    # One row each, unless the picture would be wider than high; then as many as are equally long.
    rows = math.ceil(groups.shape[1] / math.ceil(math.sqrt(len(images))))
    columns = math.ceil(groups.shape[1] / rows)
    blocks = [tiles(group, columns) for group in groups]
    centers = len(blocks[0]) * (np.arange(len(names)) + 0.5)
    # A single label is for the title to name.
    left = (centers, names) if len(names) > 1 else ((), ())
    framed(path, np.concatenate(blocks), title, left=left)


def framed(path, grid, title="", *, left=((), ()), top=((), ())):
    """Write a grid, its pixels enlarged by a whole factor, with words beside and above it."""
    dpi, factor = 100, _enlargement(max(grid.shape[:2]))
    image = np.asarray(to_pil(grid, factor))
    height, width = image.shape[:2]
    beside = 20 + 10 * max(map(len, left[1]), default=-1) + 4 * bool(len(left[0]))
    above = 10 + 26 * bool(title) + 24 * bool(len(top[0]))
    total_width, total_height = beside + width + 10, above + height + 10
    with plt.rc_context(STYLE | {"figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=(total_width / dpi, total_height / dpi), dpi=dpi)
        figure.figimage(image, beside, 10, origin="upper", cmap="gray", vmin=0, vmax=255)

        def write(x, y, words, **options):
            figure.text(x / total_width, 1 - y / total_height, words, va="center", **options)

        if title:
            write(total_width / 2, 18, title, ha="center", fontsize=11)
        for center, name in zip(*left, strict=True):
            write(beside - 10, above + factor * center, name, ha="right", fontsize=12)
        for center, name in zip(*top, strict=True):
            write(beside + factor * center, above - 13, name, ha="center", fontsize=10)
        figure.savefig(path, dpi=dpi)
        plt.close(figure)


def rgb(x: np.ndarray) -> np.ndarray:
    """Bring images ``[..., H, W]`` or ``[..., H, W, 3]`` to the latter; H and W exceed 3."""
    return x if x.shape[-1] == 3 else np.repeat(x[..., None], 3, axis=-1)
