"""Annealed importance sampling: brackets on normalizers that are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import densities, samplers
from sm_jax.likelihood import annealed_importance

MIXTURE = densities.gaussian_mixture(
    [0.5, 0.3, 0.2], [[3.0, 0.0], [-2.0, 2.0], [0.0, -3.0]], [0.3, 0.2, 0.5]
)


class Base:
    """The Gaussian of variance 9 in 2-D."""

    def sample(self, key, n):
        return 3.0 * jax.random.normal(key, (n, 2))

    def log_prob(self, x):
        return -jnp.sum(x**2, axis=-1) / 18.0 - jnp.log(18.0 * jnp.pi)


BASE = Base()
OFFSET = 2.5


def mixture_energy(x):
    """An energy of normalizer ``exp(-OFFSET)``."""
    return OFFSET - MIXTURE.log_prob(x)


def test_bracket_contains_the_truth(getkey):
    """Three separate modes, and steps that follow the width of the tempered density."""
    b = np.linspace(0.0, 1.0, 129) ** 2
    steps = 1.0 / ((1 - b[1:-1]) / 9.0 + b[1:-1] / 0.3)
    samples = MIXTURE.sample(getkey(), 1_500)
    options = {"base": BASE, "samples": samples, "num_chains": 1_000}
    run = jax.jit(partial(annealed_importance, mixture_energy, step_size=steps, **options))
    result = run(getkey(), inverse_temperatures=b)
    lower, upper = result
    assert lower.value - 4 * lower.standard_error < -OFFSET
    assert upper.value + 4 * upper.standard_error > -OFFSET
    assert abs(upper.value - lower.value) < 0.15
    for bound, n in ((lower, 1_000), (upper, 1_500)):
        assert 0 < bound.standard_error < 0.03
        assert 0.6 * n < bound.effective_sample_size < n
        # the error of the mean of weights, from the effective sample size
        error = np.sqrt((n / bound.effective_sample_size - 1) / (n - 1))
        np.testing.assert_allclose(bound.standard_error, error, rtol=1e-3)
    # step b_k goes with temperature b_k both on the way up and on the way down
    assert 0.5 < lower.acceptance_rate < 0.9
    assert abs(lower.acceptance_rate - upper.acceptance_rate) < 0.03


def test_bounds_are_biased_to_either_side(getkey):
    """Few chains and temperatures, many times: the means of the weights are Z and 1 / Z."""
    variance, n = 0.5, 6
    base = densities.gaussian(jnp.array([0.3]), 2.0)
    log_z = 0.5 * np.log(2 * np.pi * variance) - 1.2

    def energy(x):
        return 1.2 + jnp.sum((x + 0.4) ** 2, axis=-1) / (2 * variance)

    def one(key):
        key_model, key_run = jax.random.split(key)
        samples = -0.4 + jnp.sqrt(variance) * jax.random.normal(key_model, (n, 1))
        return annealed_importance(
            energy,
            key_run,
            base=base,
            step_size=0.3,
            num_chains=n,
            num_temperatures=4,
            steps_per_temperature=2,
            samples=samples,
        )

    lower, upper = jax.jit(jax.vmap(one))(jax.random.split(getkey(), 3_000))
    for bound, sign in ((lower, 1.0), (upper, -1.0)):
        excess = sign * (np.asarray(bound.value, np.float64) - log_z)
        ratios = np.exp(excess)  # unbiased estimates of 1
        error = ratios.std() / np.sqrt(len(ratios))
        assert abs(ratios.mean() - 1) < 4.5 * error
        assert error < 0.02
        # Jensen: half the squared relative error of the mean
        error = excess.std() / np.sqrt(len(excess))
        assert excess.mean() < -4.5 * error
        assert excess.mean() > -ratios.var()


def test_weights_are_exact_where_the_base_is_the_model(getkey):
    """Every weight is Z, whatever the chains do."""
    run = partial(
        annealed_importance,
        lambda x: 0.7 - BASE.log_prob(x),
        base=BASE,
        step_size=2.0,
        num_chains=8,
        num_temperatures=5,
    )
    result = jax.jit(run)(getkey(), samples=jax.random.normal(getkey(), (6, 2)))
    for bound, n in zip(result, (8, 6), strict=True):
        np.testing.assert_allclose(bound.value, -0.7, atol=1e-5)
        np.testing.assert_allclose(bound.effective_sample_size, n, rtol=1e-5)
        assert bound.standard_error < 1e-3
        assert 0.0 < bound.acceptance_rate < 1.0


def test_transitions_are_those_of_mala(getkey):
    """On the base itself, at every temperature: they are accepted as often."""
    x, h = BASE.sample(getkey(), 2_000), 8.0
    chain = jax.jit(partial(samplers.mala, lambda x: -x / 9.0, step_size=h, num_steps=5))
    expected = chain(x, getkey()).acceptance_rate
    result = annealed_importance(
        lambda x: -BASE.log_prob(x),
        getkey(),
        base=BASE,
        step_size=h,
        num_chains=2_000,
        inverse_temperatures=[0.0, 0.5, 0.8, 1.0],
    )
    assert 0.5 < expected.mean() < 0.95
    error = float(expected.std()) * np.sqrt(2 / 2_000)
    assert abs(float(result.lower.acceptance_rate - expected.mean())) < 5 * error


def test_weights_with_fixed_chains(getkey):
    """Chains that cannot move: the weight is that of importance sampling, at any schedule."""
    key, points = getkey(), jnp.array([[0.5], [-1.0], [2.0]])

    class Fixed:
        def sample(self, key, n):
            return points[:n]

        def log_prob(self, x):
            return -jnp.abs(x[:, 0])

    def energy(x):
        return 0.5 * x[:, 0] ** 2

    result = annealed_importance(
        energy,
        key,
        base=Fixed(),
        step_size=1e-14,
        num_chains=3,
        inverse_temperatures=[0.0, 0.1, 0.7, 1.0],
        samples=points,
    )
    log_w = np.abs(points[:, 0]) - 0.5 * np.asarray(points[:, 0]) ** 2
    np.testing.assert_allclose(result.lower.value, np.log(np.mean(np.exp(log_w))), rtol=1e-4)
    np.testing.assert_allclose(result.upper.value, -np.log(np.mean(np.exp(-log_w))), rtol=1e-4)
    for bound, w in zip(result, (np.exp(log_w), np.exp(-log_w)), strict=True):
        np.testing.assert_allclose(
            bound.effective_sample_size, w.sum() ** 2 / np.sum(w**2), rtol=1e-4
        )
        error = w.std(ddof=1) / np.sqrt(3) / w.mean()
        np.testing.assert_allclose(bound.standard_error, error, rtol=1e-3)


def test_annealed_importance_evaluations_and_keys(getkey):
    calls = []

    def energy(x):
        jax.debug.callback(lambda x: calls.append(x), x[0, 0])
        return jnp.sum(x**2, axis=-1)

    options = {"base": BASE, "step_size": 0.1, "num_chains": 2}
    run = jax.jit(
        partial(annealed_importance, energy, num_temperatures=4, steps_per_temperature=2, **options)
    )
    result = jax.block_until_ready(run(getkey()))
    jax.effects_barrier()
    assert len(calls) == 7
    assert result.upper is None
    samples = jnp.ones((3, 2))
    run = jax.jit(partial(annealed_importance, energy, num_temperatures=3, **options))
    with jax.debug_key_reuse(True):
        first = run(getkey(), samples=samples)
        assert first.lower.value != run(getkey(), samples=samples).lower.value


def test_default_schedule(getkey):
    energy = partial(jnp.linalg.norm, axis=-1)
    options = {"base": BASE, "step_size": 0.5, "num_chains": 4}
    key = getkey()
    default = annealed_importance(energy, key, num_temperatures=3, **options)
    given = annealed_importance(
        energy, key, inverse_temperatures=[0.0, 1 / 9, 4 / 9, 1.0], **options
    )
    np.testing.assert_allclose(default.lower.value, given.lower.value, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_chains": 1}, ValueError, "num_chains must be at least 2"),
        ({"steps_per_temperature": 0}, ValueError, "steps_per_temperature must be at least 1"),
        ({"num_temperatures": 1}, ValueError, "num_temperatures must be at least 2"),
        ({"step_size": -1.0}, ValueError, "step_size must be positive"),
        (
            {"step_size": [0.1, 0.1], "num_temperatures": 4},
            ValueError,
            r"inner temperature, \(3,\), got shape \(2,\)",
        ),
        (
            {"num_temperatures": 2, "inverse_temperatures": [0.0, 0.5, 1.0]},
            ValueError,
            "give num_temperatures=2 or inverse_temperatures=.*, not both",
        ),
        ({"inverse_temperatures": [0.0, 1.0]}, ValueError, r"at least three, got shape \(2,\)"),
        ({"inverse_temperatures": [0.0, 0.5, 0.9]}, ValueError, "increase from 0 to 1"),
        ({"inverse_temperatures": [0.1, 0.5, 1.0]}, ValueError, "increase from 0 to 1"),
        ({"inverse_temperatures": [0.0, 0.5, 0.5, 1.0]}, ValueError, "increase from 0 to 1"),
        ({"samples": jnp.ones((4, 3))}, ValueError, r"events of the base, \(2,\), got \(3,\)"),
        ({"samples": jnp.ones((4, 2), int)}, TypeError, "samples must have a floating dtype"),
        ({"energy_fn": lambda x: x}, ValueError, "one number per example"),
    ],
)
def test_annealed_importance_bad_input(options, error, message, getkey):
    energy_fn = options.get("energy_fn", mixture_energy)
    options = {"base": BASE, "step_size": 0.1, **options}
    options.pop("energy_fn", None)
    with pytest.raises(error, match=message):
        annealed_importance(energy_fn, getkey(), **options)
