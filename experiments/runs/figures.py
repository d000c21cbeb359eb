"""Figures: the colors of Okabe and Ito's palette, the style, and what draws and writes them."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7f7f7f"
STYLE = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@contextlib.contextmanager
def drawing(path: pathlib.Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure, its size in inches, and write it to the path at the end."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        yield figure
        figure.savefig(path)
        plt.close(figure)


def log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers on it also where it spans no decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    if high > 3 * low:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


@contextlib.contextmanager
def frame_axes(width: float, height: float) -> Iterator[Axes]:
    """Yield the axes of a figure, its size in inches, that is drawn anew for each frame."""
    style = STYLE | {"figure.dpi": 100, "figure.constrained_layout.use": False}
    with plt.rc_context(style):
        figure = plt.figure(figsize=(width, height))
        yield figure.add_axes((0.13, 0.16, 0.83, 0.74))
        plt.close(figure)


def rendered(axes: Axes, sigma: float, update: Callable[[], Any]) -> Any:
    """Return the axes as an image, after ``update``, with the noise level as their title."""
    from PIL import Image

    update()
    axes.set_title(rf"$\sigma$ = {sigma:.3g}")
    axes.figure.canvas.draw()
    return Image.fromarray(np.asarray(axes.figure.canvas.buffer_rgba())).convert("RGB")


def square(axes: Axes, half: float, center: np.ndarray | float = 0.0) -> None:
    """Show the square of the plane around a center, from ``-half`` to ``half`` along both axes."""
    (x, y) = np.broadcast_to(np.asarray(center, float), 2)
    axes.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal")
