"""Score-matching losses: pure functions ``(callable, data, key, *, ...) -> [B]``.

A loss returns one number per example, summed over the data axes, with the factor 1/2 that its
docstring states. Take ``.mean()`` of it, weigh it, mask it. `multiscale_denoising` returns one per
noise level and example, ``[L, B]``, and `persistent_contrastive_divergence` its chains besides.
Losses are in nats but for the second-order ones, which have no units. To train an energy, pass
``sm_jax.parameterization.EnergyScore(energy_fn)`` as the score function.
"""

from sm_jax.losses._contrastive import (
    PersistentContrastiveDivergence,
    contrastive_divergence,
    noise_contrastive,
    persistent_contrastive_divergence,
)
from sm_jax.losses._denoising import (
    denoising,
)
from sm_jax.losses._diffusion import (
    diffusion,
    edm_weight,
    likelihood_times,
    likelihood_weight,
    log_normal_times,
    low_discrepancy,
    uniform_times,
    unit_weight,
)
from sm_jax.losses._implicit import (
    explicit,
    implicit,
)
from sm_jax.losses._noise_conditional import (
    multiscale_denoising,
    noise_conditional,
    noise_conditional_sliced,
)
from sm_jax.losses._second_order import (
    second_order_denoising,
    second_order_denoising_trace,
)
from sm_jax.losses._sliced import (
    finite_difference_sliced,
    sliced,
)

__all__ = [
    "PersistentContrastiveDivergence",
    "contrastive_divergence",
    "denoising",
    "diffusion",
    "edm_weight",
    "explicit",
    "finite_difference_sliced",
    "implicit",
    "likelihood_times",
    "likelihood_weight",
    "log_normal_times",
    "low_discrepancy",
    "multiscale_denoising",
    "noise_conditional",
    "noise_conditional_sliced",
    "noise_contrastive",
    "persistent_contrastive_divergence",
    "second_order_denoising",
    "second_order_denoising_trace",
    "sliced",
    "uniform_times",
    "unit_weight",
]
