"""Error of every sampler against its number of evaluations, on a mixture with a known score.

    python -m experiments.benchmarks.samplers          prints the table
    python -m experiments.benchmarks.samplers --write  and puts it into BENCHMARKS.md, with the plot

The score is exact, so that nothing but the samplers is compared: with each other, and with the
floor, the distance between two sets of exact draws.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.benchmarks import tables
from sm_jax import densities, noise_levels, processes, samplers
from sm_jax.metrics import sliced_wasserstein
from sm_jax.parameterization import change_process

_SCRIPT = "experiments.benchmarks.samplers"
_LEVEL_STEPS = 4  # of annealed_langevin, at each level
PROCESS = processes.VPLinear(t_min=1e-4)
LADDER = processes.VE(sigma_min=0.01, sigma_max=100.0)  # for the Langevin family


@dataclasses.dataclass(frozen=True)
class Compare:
    """Error of every sampler against its number of evaluations, on a mixture with a known score."""

    num: int = 4_000
    """Samples of each sampler."""
    repeats: int = 3
    """Independent sets of samples, over which the distance is averaged."""
    budgets: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    """Evaluations of the score; samplers of several a step take the steps that fit."""
    tolerances: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.003)
    """Relative tolerances of ``adaptive_sde``; ``adaptive_ode`` takes a thirtieth."""
    only: str = ""
    """Run the samplers whose name contains this text."""
    write: bool = False
    """Put the table, which must be of all samplers, into BENCHMARKS.md, and the plot into
    experiments/images."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One curve: what draws the samples with a setting, and the evaluations that it takes."""

    name: str
    stochastic: bool
    draw: Callable  # (setting) -> ((x, key) -> samples or AdaptiveSample)
    per_step: int = 1
    least: int = 1  # of the settings
    adaptive: bool = False
    langevin: bool = False  # starts from the prior of LADDER

    def evaluations(self, setting: int) -> int:
        """Return the evaluations of a setting, that of the denoising at the end among them."""
        return setting * self.per_step + 1


@dataclasses.dataclass(frozen=True)
class Point:
    """A sampler with one setting: mean evaluations, and the distance to exact draws."""

    sampler: Sampler
    evaluations: float
    distance: float


def mixture() -> densities.GaussianMixture:
    """Return six narrow modes of unequal weights on a circle, of unit spread in all."""
    angles = 2 * np.pi * np.arange(6) / 6
    means = 1.35 * np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return densities.gaussian_mixture([6, 1, 4, 2, 3, 5], means, 0.15**2)


def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
    """Return the exact score of the noised mixture; the times of a fixed grid are all the same."""
    return jax.vmap(lambda x, t: mixture().noised(PROCESS, t).score(x[None])[0])(x, t)


def all_samplers() -> list[Sampler]:
    """Return what is compared, each curve with its evaluations per step."""

    def fixed(sampler, **options):
        def draw(num_steps):
            return partial(sampler, score_fn, process=PROCESS, num_steps=num_steps, **options)

        return draw

    def adaptive(sampler, relative):
        def draw(tolerance):
            return partial(sampler, score_fn, process=PROCESS, rtol=relative * tolerance)

        return draw

    flow = adaptive(samplers.adaptive_ode, 1 / 30)

    def churned(num_steps):
        return fixed(samplers.heun, churn=0.3 * num_steps)(num_steps)

    def annealed(num_levels):
        sigmas = noise_levels.geometric(sigma_max=100.0, sigma_min=0.01, num_levels=num_levels)
        step_size = noise_levels.langevin_step_size(sigmas, steps_per_level=_LEVEL_STEPS)
        return partial(
            samplers.annealed_langevin,
            change_process(score_fn, source=PROCESS, target=LADDER),
            sigmas=sigmas,
            step_size=step_size,
            steps_per_level=_LEVEL_STEPS,
        )

    def consistent(num_steps):
        sigmas = noise_levels.geometric(sigma_max=100.0, sigma_min=0.01, num_levels=num_steps + 1)
        # all that the level before has too much of, and a little more
        shrink = 1.0 - float(sigmas[1] / sigmas[0])
        return partial(
            samplers.consistent_annealed,
            change_process(score_fn, source=PROCESS, target=LADDER),
            sigmas=sigmas,
            step_size=1.5 * shrink * 0.01**2,
        )

    return [
        Sampler("ddim", False, fixed(samplers.ddim)),
        Sampler("heun", False, fixed(samplers.heun), per_step=2),
        Sampler("dpm_solver_pp, order 2", False, fixed(samplers.dpm_solver_pp)),
        Sampler("dpm_solver_pp, order 3", False, fixed(samplers.dpm_solver_pp, order=3)),
        Sampler("adaptive_ode", False, flow, adaptive=True),
        Sampler("euler_maruyama", True, fixed(samplers.euler_maruyama)),
        Sampler("reverse_diffusion", True, fixed(samplers.reverse_diffusion)),
        Sampler("predictor_corrector", True, fixed(samplers.predictor_corrector), per_step=2),
        Sampler("ancestral", True, fixed(samplers.ancestral)),
        Sampler("heun, churn", True, churned, per_step=2),
        Sampler("dpm_solver_pp_sde", True, fixed(samplers.dpm_solver_pp_sde)),
        Sampler("adaptive_sde", True, adaptive(samplers.adaptive_sde, 1.0), adaptive=True),
        Sampler("annealed_langevin", True, annealed, per_step=_LEVEL_STEPS, least=2, langevin=True),
        Sampler("consistent_annealed", True, consistent, langevin=True),
    ]


def main(config: Compare) -> None:
    """Run every sampler and print, or write, the table and the plot."""
    start = time.perf_counter()
    if config.write:
        tables.check(_SCRIPT, tables.BENCHMARKS, only=config.only)
    chosen = [sampler for sampler in all_samplers() if config.only in sampler.name]
    if not chosen:
        names = ", ".join(sampler.name for sampler in all_samplers())
        raise ValueError(f"no sampler has {config.only!r} in its name: {names}.")
    tasks = list(settings(chosen, config))
    progress = track(tasks, "sampling", console=Console(stderr=True), transient=True)
    floor, distance = reference(config.num)
    points = [measure(*task, distance, config) for task in progress]
    show(points, floor, config)
    if config.write:
        plot(points, floor, tables.ROOT / "experiments" / "images" / "samplers.png")
        write(points, floor, config, time.perf_counter() - start, tables.BENCHMARKS)


def settings(chosen: list[Sampler], config: Compare) -> Iterator[tuple[Sampler, float]]:
    """Yield each sampler with each of its settings: steps within a budget, or tolerances."""
    for sampler in chosen:
        if sampler.adaptive:
            yield from ((sampler, tolerance) for tolerance in config.tolerances)
        else:  # one evaluation of every budget is the denoising
            steps = ((n - 1) // sampler.per_step for n in config.budgets)
            yield from ((sampler, max(n, sampler.least)) for n in steps)


def reference(num: int) -> tuple[float, Callable]:
    """Return the mean distance of exact draws from a reference set, and the distance to that.

    The distance of order 1: that of order 2 is mostly the chance of how many draws fell to a mode.
    """
    key_points, key_directions, *keys = jax.random.split(jax.random.key(0), 18)
    points = mixture().sample(key_points, 8 * num)

    @jax.jit
    def distance(x):
        return sliced_wasserstein(x, points, key_directions, num_projections=24, p=1.0)

    return float(np.mean([distance(mixture().sample(key, num)) for key in keys])), distance


def measure(sampler: Sampler, setting: float, distance: Callable, config: Compare) -> Point:
    """Draw sets of samples with one setting and return what they cost and how far they are."""
    draw = sampler.draw(setting)
    drawn = jax.jit(lambda x, key: draw(x=x, key=key))
    process = LADDER if sampler.langevin else PROCESS
    evaluations, distances = None if sampler.adaptive else sampler.evaluations(setting), []
    for key in jax.random.split(jax.random.key(1), config.repeats):
        key_prior, key_noise = jax.random.split(key)
        x = drawn(processes.prior_sample(process, key_prior, (config.num, 2)), key_noise)
        if sampler.adaptive:
            evaluations = float(jnp.mean(x.num_evaluations))
            x = x.x
        distances.append(float(distance(x)))
    return Point(sampler, evaluations, float(np.mean(distances)))


def rows(points: list[Point], config: Compare) -> Iterator[list[str]]:
    """Yield the cells of the table: errors, with the evaluations where these are not the budget."""
    for name in dict.fromkeys(point.sampler.name for point in points):
        own = [point for point in points if point.sampler.name == name]
        if own[0].sampler.adaptive:
            # each budget gets the finest setting within a seventh above it
            cells = []
            for budget in config.budgets:
                within = [p for p in own if budget / 2 < p.evaluations / 1.15 <= budget]
                best = max(within, key=lambda p: p.evaluations, default=None)
                cells.append(f"{best.distance:.4f} ({best.evaluations:.0f})" if best else "")
        else:
            cells = [
                f"{p.distance:.4f}" + f" ({p.evaluations:.0f})" * (p.evaluations != budget)
                for p, budget in zip(own, config.budgets, strict=True)
            ]
        yield [name, "SDE" if own[0].sampler.stochastic else "ODE", *cells]


def show(points: list[Point], floor: float, config: Compare) -> None:
    """Print the table."""
    title = f"sliced W1 by evaluations; exact draws {floor:.4f}"
    table = Table(title=title, padding=(0, 1, 0, 0))
    for column in header(config):
        left = column in ("sampler", "kind")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows(points, config):
        table.add_row(*row)
    Console(width=130).print(table)


def header(config: Compare) -> list[str]:
    """Return the columns of the table."""
    return ["sampler", "kind", *map(str, config.budgets)]


def plot(points: list[Point], floor: float, path: pathlib.Path) -> None:
    """Write the curves: ordinary equations on the left, stochastic ones on the right."""
    from experiments.runs import figures

    colors = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED, "#CC79A7", "#56B4E9")
    colors = (*colors, "#000000", "#b8a000", figures.GRAY)
    with figures.drawing(path, 10, 5.4) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        titles = ("probability-flow ODE", "stochastic")
        for stochastic, (axes, title) in enumerate(zip(panels, titles, strict=True)):
            own = [point for point in points if point.sampler.stochastic == bool(stochastic)]
            for i, name in enumerate(dict.fromkeys(point.sampler.name for point in own)):
                curve = [point for point in own if point.sampler.name == name]
                axes.plot(
                    [point.evaluations for point in curve],
                    [point.distance for point in curve],
                    "s--" if curve[0].sampler.adaptive else "o-",
                    color=colors[i],
                    ms=4,
                    label=name,
                )
            axes.axhspan(1e-9, floor, color="#e3e3e3", lw=0)
            axes.set(xscale="log", title=title, xlabel="evaluations of the score per sample")
            axes.set_yscale("log")
            axes.legend(loc="upper right", fontsize=8.5)
        ticks = sorted({round(2**k) for k in range(3, 9)})
        panels[0].set_xticks(ticks, ticks)
        panels[0].minorticks_off()
        panels[0].set_ylim(0.6 * floor, 1.5)
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].set_ylabel("sliced Wasserstein distance\n(units of the data, of unit spread)")
        panels[0].annotate(
            "mean distance of exact draws",
            (8, floor),
            (0, -4),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color="#555555",
        )


def write(
    points: list[Point],
    floor: float,
    config: Compare,
    seconds: float,
    path: pathlib.Path,
) -> None:
    """Replace the table in BENCHMARKS.md, between its two markers."""
    lines = [
        f"`python -m experiments.benchmarks.samplers --write`, means of {config.repeats} sets of "
        f"{config.num:,} samples, {seconds:.0f} s. Sets of exact draws: {floor:.4f}.",
        "",
        "| " + " | ".join(header(config)) + " |",
        "|---|---|" + "---:|" * len(config.budgets),
        *("| " + " | ".join(row) + " |" for row in rows(points, config)),
    ]
    tables.write(_SCRIPT, lines, path)


if __name__ == "__main__":
    main(tyro.cli(Compare))
