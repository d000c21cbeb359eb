"""Every standard error of the public interface: 95 % of repetitions are within its interval.

The estimators' own files show that they are unbiased; those of `fit_exponential_family` are covered
in `test_exponential_family.py`. Where an error comes from K estimates the interval is Student's, of
K - 1 degrees of freedom, and the estimates are sums of many terms, hence nearly normal.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sm_jax import densities, divergence, likelihood, metrics, processes
from tests.test_samplers_blackjax import autoregressive
from tests.test_thermodynamic import gaussian_energy

pytestmark = pytest.mark.slow

NUM_DIMS = 12
_rng = np.random.default_rng(0)
_BASIS = np.linalg.qr(_rng.normal(size=(NUM_DIMS, NUM_DIMS)))[0].astype(np.float32)
_VARIANCES = np.linspace(0.2, 3.0, NUM_DIMS, dtype=np.float32)
X = np.broadcast_to(np.float32(0.5), (2_000, NUM_DIMS))
PROCESS = processes.VE(sigma_min=0.1, sigma_max=10.0)


def score_fn(x, t):
    """Of correlated Gaussian data: its divergence is not the sum of what probes see."""
    centered = x @ _BASIS / (_VARIANCES[None] + t[:, None] ** 2)
    return -centered @ _BASIS.T


def assert_covers(estimates, errors, truth, *, bias=0.0, num_estimates=None):
    """Assert that 95 % of the intervals hold the truth, within 4.5 binomial standard errors."""
    scores = (np.asarray(estimates, np.float64) - truth) / np.asarray(errors, np.float64)
    width = 1.96 if num_estimates is None else stats.t.ppf(0.975, num_estimates - 1)
    share = np.mean(np.abs(scores) < width)
    assert abs(share - 0.95) < 4.5 * np.sqrt(0.05 * 0.95 / len(scores)) + bias, share
    below = np.mean(scores < 0.0)  # to either side alike, or an error would hide a bias
    assert abs(below - 0.5) < 4.5 * 0.5 / np.sqrt(len(scores)) + bias, below


@pytest.mark.parametrize("method", [divergence.hutchinson, divergence.hutchpp])
def test_divergence_estimate(method, getkey):
    at_one = lambda x: score_fn(x, jnp.ones(len(x)))  # noqa: E731
    result = divergence.estimate(at_one, X, getkey(), divergence=method, num_repeats=8)
    truth = -np.sum(1.0 / (_VARIANCES + 1.0))
    assert_covers(result.divergence, result.standard_error, truth, num_estimates=8, bias=0.01)


@pytest.mark.parametrize("name", ["log_prob", "adaptive_log_prob"])
def test_log_prob(name, getkey):
    x = X[:1_000]
    options = {"num_steps": 8} if name == "log_prob" else {}
    log_prob = partial(getattr(likelihood, name), score_fn, process=PROCESS, **options)
    truth = log_prob(x[:1]).value[0]
    result = log_prob(x, getkey(), divergence=divergence.hutchinson, num_estimates=8)
    assert_covers(result.value, result.standard_error, truth, num_estimates=8, bias=0.01)


@pytest.mark.parametrize("options", [{}, {"num_steps": 24}])
def test_elbo(options, getkey):
    elbo = partial(likelihood.elbo, score_fn, X, process=PROCESS, num_samples=24, **options)
    result = elbo(getkey(), num_estimates=8)
    truth = np.asarray(elbo(getkey(), num_estimates=32).value, np.float64).mean()
    assert_covers(result.value, result.standard_error, truth, num_estimates=8, bias=0.015)


@pytest.mark.parametrize("chains", [False, True])
def test_thermodynamic_integration(chains, getkey):
    """Of samples of each level and of chains; the error of the rule is that of the mean."""
    process = processes.VE(sigma_min=0.5, sigma_max=2.0)
    energy, _, noised = gaussian_energy(process, 1.0)
    times = processes.time_grid(process, 4)

    def one(key):
        key, key_chains = jax.random.split(key)
        options = {"process": process, "times": times, "sigma_data": 0.1}
        if chains:
            x = processes.prior_sample(process, key, (100, 1))
            return likelihood.thermodynamic_integration(
                energy, x, key_chains, steps_per_level=3, **options
            )
        x = jnp.sqrt(noised(times))[:, None, None] * jax.random.normal(key, (5, 100, 1))
        return likelihood.thermodynamic_integration_from_samples(energy, x, **options)

    many = jax.jit(jax.vmap(one))(jax.random.split(getkey(), 1_000))
    for i in (0, 4):
        value, error = np.asarray(many.value[:, i], np.float64), many.standard_error[:, i]
        assert_covers(value, error, value.mean(), bias=0.02)


def test_annealed_importance(getkey):
    """Both bounds, and their means on either side of the truth."""
    base, model = densities.gaussian(jnp.zeros(1), 2.0), densities.gaussian(jnp.full(1, 0.5), 1.0)

    def one(key):
        key, key_samples = jax.random.split(key)
        return likelihood.annealed_importance(
            lambda x: 3.0 - model.log_prob(x),
            key,
            base=base,
            step_size=0.5,
            num_chains=256,
            num_temperatures=16,
            samples=model.sample(key_samples, 256),
        )

    bracket = jax.jit(jax.vmap(one))(jax.random.split(getkey(), 1_000))
    for bound, side in ((bracket.lower, 1.0), (bracket.upper, -1.0)):
        value = np.asarray(bound.value, np.float64)
        assert bound.effective_sample_size.min() > 64
        assert_covers(value, bound.standard_error, -3.0, bias=0.03)
        # to second order the bias is half the variance, towards the side of the bound
        variance = value.var(ddof=1)
        assert abs(side * (-3.0 - value.mean()) - variance / 2) < 4.5 * np.sqrt(variance / 1_000)


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_effective_sample_size_of_a_mean(rho, getkey):
    """The standard error of the mean of chains, from their size; rho is that of neighbors."""

    def one(key):
        path = autoregressive(key, (300, 4), rho)
        return path.mean(), path.std() / jnp.sqrt(
            metrics.chain_diagnostics(path).effective_sample_size
        )

    means, errors = jax.jit(jax.vmap(one))(jax.random.split(getkey(), 1_000))
    assert_covers(means, errors, 0.0, bias=0.015)


def test_directions_of_the_sliced_wasserstein_distance(getkey):
    """A shift in many dimensions: ``SW_2^2`` is the mean square of one number of a direction."""
    x = jnp.zeros((1, 64))
    distance = partial(metrics.sliced_wasserstein, x, x + 1.0, num_projections=64)
    found = np.asarray(jax.jit(jax.vmap(distance))(jax.random.split(getkey(), 1_000)))
    stated = 1.0 / np.sqrt(2 * 64)  # relative
    assert_covers(found, stated * np.ones(1_000), 1.0, bias=0.02 + stated / 4)
