"""Ordinary calls of the public functions, as users write them, for a type checker only.

No call here is run: other tests run such calls, and tests/test_typing.py checks the types of these.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from sm_jax import (
    composition,
    data,
    densities,
    divergence,
    exponential_family,
    guidance,
    likelihood,
    losses,
    metrics,
    models,
    noise_levels,
    parameterization,
    processes,
    quantized,
    samplers,
    training,
)
from sm_jax.typing import (
    DensityLike,
    DivergenceFn,
    EnergyFn,
    NoiseEnergyFn,
    NoiseScoreFn,
    ProcessLike,
    ScoreFn,
    StepFn,
)

x = jnp.ones((4, 2))
points = np.ones((4, 2), np.float32)
rows = [[0.5, 1.0], [2.0, -1.0]]
key = jax.random.key(0)
process = processes.VE(sigma_min=0.01, sigma_max=50.0)


def score(x: Array) -> Array:
    return -x


def noised_score(x: Array, t: Array) -> Array:
    return -x / (1.0 + t[:, None] ** 2)


def energy(x: Array) -> Array:
    return 0.5 * jnp.sum(x**2, axis=-1)


def noised_energy(x: Array, t: Array) -> Array:
    return 0.5 * jnp.sum(x**2, axis=-1) / (1.0 + t**2)


def lazy_step(
    score_fn: NoiseScoreFn, x: Array, t: Array, t_next: Array, key: Any, *, process: ProcessLike
) -> Array:
    return x + (t - t_next) * t * score_fn(x, t)


class Flat:
    """A process of a user's own."""

    t_min = 0.1
    t_max = 3.0

    def alpha(self, t: jax.typing.ArrayLike) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: jax.typing.ArrayLike) -> Array:
        return jnp.asarray(t)

    def time_at(self, ratio: jax.typing.ArrayLike) -> Array:
        return jnp.asarray(ratio)


class Circles:
    """A stream of a user's own."""

    def at(self, step: int) -> np.ndarray:
        return np.random.default_rng(step).normal(size=(8, 2))


class Printer:
    """A logger of a user's own."""

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        print(step, values)


def protocols() -> None:
    both = parameterization.EnergyScore(energy)
    _score: ScoreFn = both
    _noise_score: NoiseScoreFn = both
    _fixed: ScoreFn = both.at(2.0)
    _at: ScoreFn = parameterization.at_time(noised_score, 2.0)
    _energy: EnergyFn = energy
    _noise_energy: NoiseEnergyFn = noised_energy
    _process: ProcessLike = Flat()
    _density: DensityLike = densities.gaussian([0.0, 0.0], 1.0)
    _step: StepFn = partial(samplers.steps.heun, gamma=0.1)
    _divergence: DivergenceFn = divergence.laplacian


def the_losses() -> None:
    assert_type(losses.implicit(score, x), Array)
    losses.implicit(lambda x: -x, points).mean()
    losses.implicit(score, x, key, divergence=divergence.hutchinson).mean()
    losses.implicit(score, x, key, divergence=partial(divergence.hutchpp, num_products=3))
    losses.implicit(parameterization.EnergyScore(energy), x, divergence=divergence.laplacian)
    losses.explicit(score, rows, rows)
    losses.sliced(score, x, key, probe=jax.random.normal)
    losses.sliced(score, x, key, probe=divergence.sphere)
    losses.denoising(score, rows, key, sigma=[0.5, 1.0])
    losses.finite_difference_sliced(parameterization.EnergyScore(energy), x, key, epsilon=0.1)
    losses.multiscale_denoising(noised_score, x, key, sigmas=[3.0, 1.0])
    losses.noise_conditional(noised_score, x, key, sigmas=np.geomspace(3.0, 0.1, 8))
    losses.diffusion(noised_score, x, key, process=process)
    losses.diffusion(noised_score, x, key, process=Flat())
    losses.diffusion(lambda x, t: -x, x, key, process=process, weight=losses.likelihood_weight)
    losses.diffusion(
        noised_score,
        x,
        key,
        process=process,
        sample_times=partial(losses.uniform_times, uniform=losses.low_discrepancy),
        weight=partial(losses.edm_weight, sigma_data=0.5),
    )
    noise = densities.gaussian([0.0, 0.0], 1.0)
    losses.noise_contrastive(energy, x, key, noise_density=noise)
    moved = losses.persistent_contrastive_divergence(
        energy, x, key, chains=rows, step_size=0.1, num_steps=2
    )
    assert_type(moved.chains, Array)


def the_divergences() -> None:
    assert_type(divergence.exact(score, x).divergence, Array)
    divergence.estimate(score, x, key, divergence=divergence.hutchinson).standard_error.max()
    divergence.hutchinson(jax.jit(score), rows, key, num_probes=4, probe=divergence.sphere)


def the_samplers() -> None:
    assert_type(samplers.langevin(score, x, key, step_size=0.1, num_steps=3), Array)
    samplers.langevin(score, rows, key, step_size=0.1, num_steps=3).mean()
    last, trajectory = samplers.langevin(score, x, key, step_size=0.1, num_steps=3, trajectory=True)
    assert_type((last, trajectory), tuple[Array, Array])
    either = bool(x.shape[0])
    result = samplers.heun(noised_score, x, process=process, trajectory=either)
    assert_type(result, Array | tuple[Array, Array])
    assert_type(samplers.heun(noised_score, x, process=process, times=[3.0, 1.0, 0.1]), Array)
    assert_type(samplers.solve(lazy_step, noised_score, x, process=process, num_steps=8), Array)
    samplers.solve(partial(samplers.steps.ddim, eta=0.5), noised_score, x, key, process=process)
    samplers.solve(samplers.steps.heun, noised_score, x, process=process, trajectory=True)[1].std()
    samplers.predictor_corrector(
        noised_score, x, key, process=process, predictor=samplers.steps.euler_maruyama
    )
    samplers.annealed_langevin(
        noised_score, x, key, sigmas=[3.0, 1.0], step_size=1e-3, steps_per_level=5
    )
    samplers.tempered_langevin(
        score, x, key, inverse_temperatures=[0.5, 1.0], step_size=0.1, steps_per_temperature=5
    )
    chain = samplers.mala(score, x, key, step_size=0.1, num_steps=3, energy_fn=energy)
    assert_type(chain, samplers.Chain)
    samplers.mala(parameterization.EnergyScore(energy), x, key, step_size=0.1, num_steps=3).x.std()
    assert_type(samplers.underdamped(score, x, key, step_size=0.1, num_steps=3), Array)
    samplers.underdamped(score, x, key, step_size=0.1, num_steps=3, velocity=rows)[1].std()
    samplers.nuts(energy, x, key, num_samples=3)
    samplers.adaptive_sde(noised_score, x, key, process=process, rtol=0.1).x.mean()
    draw = samplers.one_sample(samplers.heun, noised_score, process=process, event_shape=(2,))
    samplers.generate(draw, key, 100, batch_size=10)


def the_likelihoods() -> None:
    result = likelihood.log_prob(noised_score, rows, process=process, times=[50.0, 1.0, 0.01])
    likelihood.bits_per_dim(result.value, 2, log_det=1.0).mean()
    likelihood.log_prob(
        noised_score, x, key, process=process, divergence=divergence.hutchinson, num_estimates=4
    ).standard_error.max()
    likelihood.elbo(noised_score, x, key, process=process, num_samples=4)
    path = likelihood.thermodynamic_integration(noised_energy, x, key, process=process)
    assert_type(path.value, Array)
    likelihood.annealed_importance(
        energy,
        key,
        base=densities.gaussian([0.0, 0.0], 4.0),
        step_size=0.1,
        inverse_temperatures=[0.0, 0.5, 1.0],
    ).lower.value.item()
    likelihood.discrete_log_prob(lambda y: -energy(y), [[0.0, 3.0]], key, num_values=4)


def scores_and_energies() -> None:
    network = models.MLP(2, width=16, depth=1, rngs=nnx.Rngs(0))
    model = parameterization.precondition(network, process=process, sigma_data=0.5)
    assert_type(model(x, jnp.ones(4)), Array)
    apply, params = models.functional(network)
    parameterization.precondition(partial(apply, params), process=process, sigma_data=0.5)
    scalar = models.EnergyMLP([2], rngs=nnx.Rngs(0))
    energy_fn = parameterization.precondition_energy(scalar, process=process, sigma_data=0.5)
    likelihood.thermodynamic_integration(energy_fn, x, key, process=process)
    losses.diffusion(parameterization.EnergyScore(energy_fn), x, key, process=process)
    target = processes.VPLinear(t_min=0.01)
    parameterization.change_process(noised_score, source=process, target=target)
    parameterization.x0_from_eps(rows, rows, [0.5, 1.0], process=target).mean()
    composition.product([score, score], weights=[0.3, 0.7])(x).mean()
    mixed = composition.mixture([energy, energy], weights=[0.3, 0.7], log_normalizers=[0.0, 1.0])
    losses.implicit(parameterization.EnergyScore(mixed), x)


def the_guidance() -> None:
    guided = guidance.classifier_free(noised_score, noised_score, scale=2.0, interval=(0.1, 3.0))
    assert_type(samplers.heun(guided, x, process=process), Array)
    conditional = guidance.pigdm(
        noised_score, process=process, operator=lambda x: x[:, :1], observation=[0.5]
    )
    samplers.heun(conditional, x, process=process).mean()
    assert_type(
        guidance.inpaint(
            noised_score, x, key, process=process, known=rows, mask=[True, False], num_steps=8
        ),
        Array,
    )


def densities_and_data() -> None:
    density = densities.gaussian([1.0, 0.0], [[2.0, 0.0], [0.0, 0.5]])
    assert_type(density.log_prob(rows), Array)
    mixture = densities.gaussian_mixture([1, 3], [[0.0, 0.0], [4.0, 0.0]], [1.0, 0.25])
    losses.explicit(mixture.score, x, mixture.score(x))
    noised = densities.empirical(rows).noised(processes.VE(mean=[1.0, 2.0]), 0.5)
    metrics.sliced_wasserstein(noised.sample(key, 10), rows, key).item()
    levels = noise_levels.noise_levels_from_data(points, key)
    losses.noise_conditional(noised_score, x, key, sigmas=levels.sigmas)
    noise_levels.langevin_step_size([3.0, 1.0], steps_per_level=5)
    processes.perturb(process, rows, [1.0, 2.0], key)
    exponential_family.fit_exponential_family(lambda x: x[:, None], [0.5, 1.0, 3.0])
    quantized.eps_from_logits(
        jnp.zeros((2, 2, 2)), rows, [1.0, 2.0], process=process, bin_edges=[-1.0, 0.0, 1.0]
    )
    standardizer = data.Standardizer.fit([[0.0, 10.0], [2.0, 30.0]])
    losses.implicit(score, standardizer(points))


def the_training() -> None:
    apply, params = models.functional(models.MLP(2, width=16, depth=1, rngs=nnx.Rngs(0)))

    def loss_fn(params: Any, batch: Array, key: Array) -> Array:
        network = partial(apply, params)
        score_fn = parameterization.precondition(network, process=process, sigma_data=0.5)
        return losses.diffusion(score_fn, batch, key, process=process)

    optimizer = training.adamw(1e-3, num_steps=100)
    state = training.fit(
        loss_fn, params, Circles(), optimizer=optimizer, num_steps=100, seed=0, logger=Printer()
    )
    assert_type(state, training.State)
    training.fit(
        loss_fn,
        params,
        points,
        optimizer=optimizer,
        num_steps=100,
        batch_size=2,
        seed=0,
        evaluation=training.Evaluation(lambda ema, step: {"norm": 1.0}, every=50),
        checkpoints=training.Checkpoints("runs/first", best_metric="norm"),
    )
    step = jax.jit(training.make_step(loss_fn, optimizer))
    step(state, x)
