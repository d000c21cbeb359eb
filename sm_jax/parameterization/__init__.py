"""What a network may predict, and exact conversions to the score.

| function | from | to |
|---|---|---|
| `score_from_noise`, `noise_from_score` | noise prediction | score, and back |
| `noise_from_clean`, `clean_from_noise` | clean data | noise prediction, and back |
| `noise_from_v`, `v_from_noise` | v-prediction | noise prediction, and back |
| `noise_from_velocity`, `velocity_from_noise` | velocity (flow matching) | noise, and back |
| `score_from_denoiser`, `denoiser_from_score` | denoiser function | score function, and back |
| `score_from_energy` | energy function | score function |
| `precondition`, `precondition_energy` | network of unit scale | score function, energy function |
| `change_process` | score function under one process | the same under another |
"""

from sm_jax.parameterization._conversions import (
    clean_from_noise,
    denoiser_from_score,
    noise_from_clean,
    noise_from_score,
    noise_from_v,
    noise_from_velocity,
    score_from_denoiser,
    score_from_noise,
    v_from_noise,
    velocity_from_noise,
)
from sm_jax.parameterization._networks import precondition, precondition_energy, score_from_energy
from sm_jax.parameterization._process import change_process

__all__ = [
    "change_process",
    "clean_from_noise",
    "denoiser_from_score",
    "noise_from_clean",
    "noise_from_score",
    "noise_from_v",
    "noise_from_velocity",
    "precondition",
    "precondition_energy",
    "score_from_denoiser",
    "score_from_energy",
    "score_from_noise",
    "v_from_noise",
    "velocity_from_noise",
]
