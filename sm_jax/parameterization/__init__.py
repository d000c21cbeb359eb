"""Parameterizations of a score: what a network predicts, and exact conversions to the score.

| function | from | to |
|---|---|---|
| `score_from_eps`, `eps_from_score` | noise prediction | score, and back |
| `eps_from_x0`, `x0_from_eps` | clean data `x0` | noise prediction, and back |
| `eps_from_v`, `v_from_eps` | v-prediction | noise prediction, and back |
| `eps_from_velocity`, `velocity_from_eps` | velocity (flow matching) | noise, and back |
| `score_from_denoiser`, `denoiser_from_score` | denoiser function | score function, and back |
| `EnergyScore` | energy function | score function that keeps the energy |
| `at_time` | noise-conditional score function | score function at one noise level |
| `precondition`, `precondition_energy` | network of unit scale | score function, energy function |
| `change_process` | score function under one process | the same under another |
"""

from sm_jax.parameterization._conversions import (
    denoiser_from_score,
    eps_from_score,
    eps_from_v,
    eps_from_velocity,
    eps_from_x0,
    score_from_denoiser,
    score_from_eps,
    v_from_eps,
    velocity_from_eps,
    x0_from_eps,
)
from sm_jax.parameterization._energy import EnergyScore, at_time
from sm_jax.parameterization._networks import precondition, precondition_energy
from sm_jax.parameterization._process import change_process

__all__ = [
    "EnergyScore",
    "at_time",
    "change_process",
    "denoiser_from_score",
    "eps_from_score",
    "eps_from_v",
    "eps_from_velocity",
    "eps_from_x0",
    "precondition",
    "precondition_energy",
    "score_from_denoiser",
    "score_from_eps",
    "v_from_eps",
    "velocity_from_eps",
    "x0_from_eps",
]
