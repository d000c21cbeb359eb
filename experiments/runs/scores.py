"""Pictures of the score at several noise levels, and of its error at each.

Maps of colors are perceptually uniform.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from experiments.recipes.shared.examples import Examples
from experiments.recipes.shared.problem import Problem
from experiments.runs import images
from experiments.runs.figures import BLUE, GRAY, RED, drawing, log_scale, square
from experiments.runs.plots import EXTENT
from experiments.runs.saved import Run
from sm_jax.parameterization import denoiser_from_score


def scores_per_level(
    path: pathlib.Path, run: Run, examples: Examples, results: dict[str, Any], key: jax.Array
) -> None:
    """Write the score at several noise levels over a curve of its error at each."""
    problem = run.problem
    if problem.is_image:
        _scores_of_images(path, run, examples, results, key)
    elif examples.density is not None and problem.event_shape == (2,):
        _scores_of_toy(path, run, examples, results)
    else:
        with drawing(path, 6.4, 3.6) as figure:
            _loss_per_sigma(figure.subplots(), problem, results)


def _scores_of_images(path, run, examples, results, key):
    problem = run.problem
    sigmas = np.geomspace(0.05, 5.0, 7, dtype=np.float32) * 2 * problem.sigma_data

    @jax.jit
    def draw(row, sigmas, key):
        scale_key, noise_key = jax.random.split(key)
        sigma = sigmas.reshape(-1, *[1] * len(problem.event_shape))
        x0 = problem.scaled(row, scale_key)
        noised = x0 + sigma * jax.random.normal(noise_key, x0.shape)
        denoised = denoiser_from_score(run.score_fn, process=problem.process)(noised, sigmas)
        spread = jnp.sqrt(1 + (sigma / problem.sigma_data) ** 2)  # brings all to one range
        mean = jnp.broadcast_to(jnp.asarray(problem.mean), problem.event_shape)[None]
        return mean + (noised - mean) / spread, sigma * run.score_fn(noised, sigmas), denoised

    pictures = draw(problem.rows(examples.held_out[:1]), sigmas, key)
    titles = (r"noised, $x_t$", r"score, $\sigma\, s(x_t)$", r"denoised, $D(x_t)$")

    with drawing(path, 8, 6.4) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=(5, 4))
        grid = upper.subplots(3, len(sigmas))
        for i, (title, shown) in enumerate(zip(titles, pictures, strict=True)):
            grid[i, 0].set_ylabel(title)
            for axes, image, sigma in zip(grid[i], np.asarray(shown), sigmas, strict=True):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if i == 0:
                    axes.set_title(rf"$\sigma$ = {sigma:.2g}")
                if i == 1:  # signed: a diverging map, symmetric about zero
                    image = image.mean(axis=-1) if image.ndim == 3 else image
                    axes.imshow(image, cmap="PuOr", vmin=-2.5, vmax=2.5)
                else:
                    axes.imshow(images.gray(problem, image[None])[0], cmap="gray", vmin=0, vmax=1)
        _loss_per_sigma(lower.subplots(), problem, results)


def _loss_per_sigma(axes: Axes, problem: Problem, results: dict[str, Any]) -> None:
    curves = zip(("training", "held out"), (BLUE, RED), ("-", "--"), strict=True)
    for name, color, line in curves:
        values = np.asarray(results["loss_per_sigma"][name]) / problem.num_dims
        axes.plot(results["sigmas"], values, line, color=color, label=name, marker="o", ms=3)
    axes.set(
        xscale="log",
        xlabel=r"noise level $\sigma$ (units of the scaled data)",
        ylabel="weighted denoising loss\nper dimension",
    )
    log_scale(axes)
    axes.legend()


def _scores_of_toy(path, run, examples, results):
    sigmas = (0.05, 0.2, 0.5, 1.5)
    fine, coarse = _mesh(160), _mesh(19)

    @jax.jit
    def fields(sigma):
        noised = examples.density.noised(run.problem.process, sigma)
        score = run.score_fn(jnp.asarray(coarse), jnp.full(len(coarse), sigma))
        return jnp.exp(noised.log_prob(jnp.asarray(fine))), score

    with drawing(path, 10, 6.2) as figure:
        figure.suptitle("Score of the model, arrows, over the exact noised density", fontsize=10)
        upper, lower = figure.subfigures(2, 1)
        for axes, sigma in zip(upper.subplots(1, len(sigmas), sharey=True), sigmas, strict=True):
            density, score = map(np.asarray, fields(np.float32(sigma)))
            axes.imshow(
                density.reshape(160, 160),
                origin="lower",
                extent=(-EXTENT, EXTENT, -EXTENT, EXTENT),
                cmap="cividis",
            )
            # Long arrows are shortened: their length grows as the logarithm of the score's.
            length = np.linalg.norm(score, axis=-1, keepdims=True)
            arrows = score / length * np.log1p(sigma * length)
            axes.quiver(*coarse.T, *arrows.T, color="white", angles="xy", width=0.005, headwidth=4)
            axes.set(title=rf"$\sigma$ = {sigma:g}", xlabel="$x_1$")
            axes.grid(False)
            square(axes, EXTENT)
        upper.axes[0].set_ylabel("$x_2$")

        left, right = lower.subplots(1, 2)
        fisher, reported = results["fisher_divergence"], results["sigmas"]
        left.plot(reported, fisher["zero score"], ":", color=GRAY, label="zero score")
        left.plot(reported, fisher["score model"], "o-", ms=3, color=BLUE, label="score model")
        left.set(
            xscale="log",
            xlabel=r"noise level $\sigma$ (units of the data)",
            ylabel=r"Fisher divergence $\mathrm{E}\,|s - s^*|^2 / 2$",
        )
        log_scale(left)
        left.legend()
        _loss_per_sigma(right, run.problem, results)


def _mesh(num: int) -> np.ndarray:
    ticks = np.linspace(-EXTENT, EXTENT, num, dtype=np.float32)
    return np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
