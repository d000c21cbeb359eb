"""A noise-conditional energy network, trained. That every loss takes energies: test_losses.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sm_jax import densities, losses, models, processes
from sm_jax.parameterization import EnergyScore, precondition_energy

PROCESS = processes.VE(sigma_min=0.05, sigma_max=10.0)


@pytest.mark.slow
def test_an_energy_network_learns_a_mixture(getkey):
    """The diffusion loss brings it to the noised scores of two modes, and to their energy."""
    density = densities.gaussian_mixture([0.3, 0.7], jnp.array([[-1.0], [1.0]]), 0.09)
    apply, params = models.functional(models.EnergyMLP(1, width=32, depth=2, rngs=nnx.Rngs(0)))

    def energy_of(params):
        return precondition_energy(partial(apply, params), process=PROCESS, sigma_data=1.0)

    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 600))

    def mean(params, key):
        key_data, key_loss = jax.random.split(key)
        score_fn = EnergyScore(energy_of(params))
        weight = partial(losses.edm_weight, sigma_data=1.0)
        x = density.sample(key_data, 256)
        return losses.diffusion(
            score_fn,
            x,
            key_loss,
            process=PROCESS,
            weight=weight,
            sample_times=partial(losses.log_normal_times, mean=-0.7, std=1.2),
        ).mean()

    def step(state, key):
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(mean)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(getkey(), 600)
    (params, _), _ = jax.jit(lambda state: jax.lax.scan(step, state, keys))(
        (params, optimizer.init(params))
    )
    energy_fn = energy_of(params)
    for sigma in (0.1, 0.5, 2.0):
        noised = density.noised(PROCESS, sigma)
        x = noised.sample(getkey(), 2000)
        t = jnp.full(2000, sigma)
        exact = noised.score(x)
        error = losses.explicit(lambda x, t=t: EnergyScore(energy_fn)(x, t), x, exact).mean()
        zero = losses.explicit(jnp.zeros_like, x, exact).mean()
        assert error < 0.03 * zero, sigma
        if sigma >= 0.5:  # the energy, up to its constant; where modes part, their weights are free
            offset = energy_fn(x, t) + noised.log_prob(x)
            assert np.std(offset) < 0.1, sigma
