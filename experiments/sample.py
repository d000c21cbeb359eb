"""Draw samples from a run: `python -m experiments.sample RUN --num 64`."""

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments import _cli

if TYPE_CHECKING:  # slow to import
    from jax import Array

    from experiments._run import Run


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw samples from a trained run; writes them as an array and as a picture."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Run directory that experiments.train wrote."""
    num: int = 64
    """Number of samples."""
    sampler: Literal["heun", "reverse_sde", "annealed_langevin"] = "heun"
    """Heun on the probability flow; Euler-Maruyama on the reverse SDE; Langevin, level by level."""
    num_steps: int | None = None
    """Steps of the sampler: 32 for heun, 256 for reverse_sde, 5 at each level for Langevin."""
    churn: float = 0.0
    """Noise added by heun over all steps together (EDM's S_churn); 0 is deterministic."""
    seed: int = 0
    """Seed of the samples."""
    output: pathlib.Path | None = None
    """Where to write, without a suffix; RUN/samples-SAMPLER by default."""


def main(args: list[str] | None = None) -> None:
    """Runs the command line, which is `sys.argv` by default."""
    with _cli.one_line_errors():
        options = tyro.cli(Sample, prog="python -m experiments.sample", args=args)
        output = options.output or options.run / f"samples-{options.sampler}"
        sample(options, output)


def sample(options: Sample, output: pathlib.Path) -> None:
    """Draws the samples and writes OUTPUT.npy, in the units of the data, and OUTPUT.png."""
    import jax
    import numpy as np

    from experiments import _plots, _run
    from sm_jax import noise_levels, samplers
    from sm_jax.processes import prior_sample

    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    if options.churn and options.sampler != "heun":
        raise ValueError(f"--churn is of heun, not of {options.sampler}: leave one of them out")
    run = _run.load(options.run)
    process = run.problem.process
    langevin_steps = options.num_steps or 5
    sigmas = _ladder(run)
    step_size = noise_levels.langevin_step_size(sigmas, langevin_steps)
    prior_key, sample_key = jax.random.split(jax.random.key(options.seed))

    def draw(x, key):
        match options.sampler:
            case "heun":
                return samplers.heun(
                    run.score_fn,
                    x,
                    key,
                    process=process,
                    num_steps=options.num_steps,
                    churn=options.churn,
                )
            case "reverse_sde":
                return samplers.reverse_sde(
                    run.score_fn, x, key, process=process, num_steps=options.num_steps
                )
            case "annealed_langevin":
                return samplers.annealed_langevin(
                    run.score_fn,
                    x,
                    key,
                    sigmas=sigmas,
                    step_size=step_size,
                    num_steps=langevin_steps,
                )

    noise = prior_sample(process, prior_key, (options.num, *run.problem.event_shape))
    x = np.asarray(jax.jit(draw)(noise, sample_key))
    np.save(output.with_suffix(".npy"), run.problem.unscaled(x))
    _plots.samples(output.with_suffix(".png"), run.problem, x)
    print(f"{options.num} samples by {options.sampler}:")
    for suffix in (".npy", ".png"):
        print(f"  {output.with_suffix(suffix)}")


def _ladder(run: "Run") -> "Array":
    """Returns the noise levels of annealed Langevin, as many as the dimension asks for."""
    from sm_jax import noise_levels

    low, high = run.problem.sigma_min, run.problem.sigma_max
    ratio = min(noise_levels.level_ratio(run.problem.num_dims), 1.5)
    return noise_levels.geometric(high, low, noise_levels.num_levels(high, low, ratio))


if __name__ == "__main__":
    main(sys.argv[1:])
