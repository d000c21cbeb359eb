"""The samplers that suit a trained run, in one table.

The others of ``sm_jax.samplers`` are for densities that are not noised, or that have an energy.

Nothing slow is imported here: ``--help`` lists the table.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # slow to import
    from jax import Array

    from experiments.runs.saved import Run

SAMPLERS = {
    "heun": "Heun's method on the probability flow",
    "dpm_solver_pp": "DPM-Solver++ on the same, for the fewest evaluations",
    "ddim": "Euler's method on the same",
    "adaptive_ode": "the same by adaptive steps, with diffrax",
    "ancestral": "the reverse SDE in the steps of DDPM and NCSN",
    "dpm_solver_pp_sde": "DPM-Solver++ on the reverse SDE",
    "euler_maruyama": "Euler-Maruyama on the same",
    "reverse_diffusion": "the same, discretized as the forward process is",
    "adaptive_sde": "the same by adaptive steps",
    "predictor_corrector": "reverse_diffusion, with a step of Langevin after each of its own",
    "annealed_langevin": "Langevin, at one noise level after the other",
}
_ADAPTIVE = ("adaptive_ode", "adaptive_sde")


def choose(run: "Run", name: str, num_steps: int | None, churn: float) -> tuple[Callable, dict]:
    """Return a sampler of the table, and its options, as ``samplers.one_sample`` takes them.

    Raises:
        ValueError: if the sampler has no such option.
    """
    from sm_jax import samplers

    if churn and name != "heun":
        raise ValueError(f"--churn is of heun, not of {name}: leave one of them out")
    if name == "annealed_langevin":
        return _annealed_langevin(run, 5 if num_steps is None else num_steps), {}
    options: dict[str, Any] = {"churn": churn} if churn else {}
    if name in _ADAPTIVE:
        if num_steps is not None:
            raise ValueError(f"--num-steps is not of {name}, which chooses its steps: leave it out")
        return _points(getattr(samplers, name)), options
    if num_steps is not None:
        options["num_steps"] = num_steps
    return getattr(samplers, name), options


def _points(sampler: Callable) -> Callable:
    """Return the adaptive sampler without what it tells of its steps."""
    return lambda *args, **options: sampler(*args, **options).x


def _annealed_langevin(run: "Run", num_steps: int) -> Callable:
    from sm_jax import noise_levels, samplers

    sigmas = _ladder(run)
    step_size = noise_levels.langevin_step_size(sigmas, steps_per_level=num_steps)

    def sampler(score_fn, x, key, *, process):
        return samplers.annealed_langevin(
            score_fn, x, key, sigmas=sigmas, step_size=step_size, steps_per_level=num_steps
        )

    return sampler


def _ladder(run: "Run") -> "Array":
    """Return noise levels, geometric, the more the higher the dimension."""
    from sm_jax import noise_levels

    low, high = run.problem.sigma_min, run.problem.sigma_max
    ratio = min(noise_levels.sigma_ratio(run.problem.num_dims), 1.5)
    return noise_levels.geometric(
        sigma_max=high,
        sigma_min=low,
        num_levels=noise_levels.num_levels(sigma_max=high, sigma_min=low, ratio=ratio),
    )
