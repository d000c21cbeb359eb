"""Score-matching losses: pure functions ``(callable, data, key, *, ...) -> [B]``.

Every loss returns one number per example, in nats, summed over the data axes, with the factor 1/2
that its docstring states. Take ``.mean()`` of it, weigh it, mask it. To train an energy, pass
``sm_jax.parameterization.score_from_energy(energy_fn)`` as the score function.
"""

from sm_jax.losses._denoising import denoising as denoising
from sm_jax.losses._diffusion import diffusion as diffusion
from sm_jax.losses._diffusion import edm_weight as edm_weight
from sm_jax.losses._diffusion import likelihood_t as likelihood_t
from sm_jax.losses._diffusion import likelihood_weight as likelihood_weight
from sm_jax.losses._diffusion import log_normal_t as log_normal_t
from sm_jax.losses._diffusion import low_discrepancy as low_discrepancy
from sm_jax.losses._diffusion import uniform_t as uniform_t
from sm_jax.losses._diffusion import unit_weight as unit_weight
from sm_jax.losses._implicit import explicit as explicit
from sm_jax.losses._implicit import implicit as implicit
from sm_jax.losses._noise_conditional import multiscale_denoising as multiscale_denoising
from sm_jax.losses._noise_conditional import noise_conditional as noise_conditional
from sm_jax.losses._noise_conditional import noise_conditional_sliced as noise_conditional_sliced
from sm_jax.losses._second_order import second_order_denoising as second_order_denoising
from sm_jax.losses._second_order import (
    second_order_denoising_trace as second_order_denoising_trace,
)
from sm_jax.losses._sliced import finite_difference_sliced as finite_difference_sliced
from sm_jax.losses._sliced import sliced as sliced
