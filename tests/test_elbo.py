"""The variational bound against its closed form for Gaussians, and against the truth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from sm_jax import processes
from sm_jax.likelihood import elbo, log_prob
from tests.oracles import COV, MEAN, gaussian_log_prob, gaussian_noised_score

V = 0.6


def score_fn_of(process):
    """The exact score of N(0, V I)."""

    def score_fn(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return -x / (alpha**2 * V + sigma**2).reshape((-1,) + (1,) * (x.ndim - 1))

    return score_fn


def mean_error(r, square, dims):
    """E|sigma s + z|^2 over z, at noise ratio r, for data of squared norm ``square``."""
    return (V**2 * dims + r**2 * square) / (V + r**2) ** 2


def exact_bound(process, square, dims, num_steps):
    high, low = (float(processes.noise_ratio(process, t)) for t in (process.t_max, process.t_min))
    if num_steps is None:
        steps, _ = integrate.quad(
            lambda u: mean_error(np.exp(u), square, dims), np.log(low), np.log(high), epsabs=1e-9
        )
    else:
        times = processes.time_grid(process, num_steps, rho=20.0)
        r = np.asarray(processes.noise_ratio(process, times), np.float64)
        steps = np.sum(0.5 * (r[:-1] ** 2 / r[1:] ** 2 - 1) * mean_error(r[:-1], square, dims))
    data = 0.5 * mean_error(low, square, dims) + 0.5 * dims * np.log(2 * np.pi * low**2)
    return -(square / (2 * high**2) + steps + data)


@pytest.mark.parametrize(
    ("process", "num_steps", "num_samples"),
    [
        (processes.VE(sigma_min=0.1, sigma_max=3.0), None, None),
        (processes.VE(sigma_min=0.1, sigma_max=3.0), 2, None),
        (processes.VPLinear(beta_max=5.0, t_min=0.02), 30, None),
        (processes.SubVP(beta_max=5.0, t_min=0.1), 50, 20),
    ],
)
def test_closed_form(process, num_steps, num_samples, getkey):
    """Every example is the same point, so that the batch is a sample of the estimator.

    Few noise levels and a point far out, so that every term of the bound counts.
    """
    n, point = 10_000, np.array([3.0, -2.0])
    x = jnp.broadcast_to(jnp.asarray(point, jnp.float32), (n, 2))
    estimate = partial(elbo, score_fn_of(process), process=process)
    result = jax.jit(partial(estimate, num_steps=num_steps, num_samples=num_samples))(x, getkey())
    exact = exact_bound(process, np.sum(point**2), 2, num_steps)
    value = np.asarray(result.value, np.float64)
    assert 4.5 * value.std() / np.sqrt(n) < 0.02 * abs(exact)
    assert abs(value.mean() - exact) < 4.5 * value.std() / np.sqrt(n)
    assert result.num_evaluations == (num_samples or num_steps or 64) + 1


def test_the_bound_tightens_to_the_entropy(getkey):
    """Over data: below E log p, by the stated terms for continuous time, by less for more steps."""
    process = processes.VE(sigma_min=0.3, sigma_max=3.0)
    entropy = 0.5 * np.log(2 * np.pi * np.e * V)
    # the bound is linear in |x|^2, whose mean is V
    gaps = [-entropy - exact_bound(process, V, 1, n) for n in (20, 40, 80, None)]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] > 0
    high, low = V / 9.0, 0.09 / V
    exact = 0.5 * (high - np.log1p(high)) + 0.5 * (np.log1p(low) - low / (1 + low))
    np.testing.assert_allclose(gaps[3], exact, rtol=1e-4)
    np.testing.assert_allclose(gaps[3], 0.25 * (high**2 + low**2), rtol=0.25)
    assert 1.8 < (gaps[0] - gaps[3]) / (gaps[1] - gaps[3]) < 2.2  # first order in the steps
    # and the estimator has this mean over data
    x = np.sqrt(V) * jax.random.normal(getkey(), (40_000, 1))
    value = np.asarray(
        jax.jit(partial(elbo, score_fn_of(process), process=process))(x, getkey()).value
    )
    assert abs(value.mean() + entropy + gaps[3]) < 4.5 * value.std() / np.sqrt(40_000)


def test_it_agrees_with_the_probability_flow(getkey):
    """For the exact score both are the log-density, whatever the covariance."""
    process, n = processes.VE(sigma_min=0.01, sigma_max=50.0), 3_000
    x = jax.random.multivariate_normal(getkey(), MEAN, COV, (n,))
    score_fn = gaussian_noised_score(process)
    bound = jax.jit(partial(elbo, score_fn, process=process))(x, getkey())
    difference = np.asarray(bound.value) - gaussian_log_prob(x, MEAN, COV)
    assert abs(difference.mean()) < 4.5 * difference.std() / np.sqrt(n) + 0.01
    flow = log_prob(score_fn, x[:20], process=process).value
    assert abs(np.mean(flow - gaussian_log_prob(x[:20], MEAN, COV))) < 0.02


def test_standard_error_and_stratification(getkey):
    """Six estimates of the same point: the spread of their means is the error that they state."""
    process, n = processes.VPLinear(), 2_000
    x = jnp.broadcast_to(jnp.array([0.9, -0.4]), (n, 2))
    options = {"num_samples": 16, "num_estimates": 6}
    result = jax.jit(partial(elbo, score_fn_of(process), process=process, **options))(x, getkey())
    value, error = np.asarray(result.value), np.asarray(result.standard_error)
    assert abs(value.std() / np.sqrt(np.mean(error**2)) - 1) < 0.1
    assert result.num_evaluations == 6 * 17
    one = jax.jit(partial(elbo, score_fn_of(process), process=process, num_samples=16))(x, getkey())
    assert abs(np.asarray(one.value).std() / value.std() / np.sqrt(6) - 1) < 0.1
    assert np.all(np.isnan(one.standard_error))
    # every step once, in each estimate: with no noise in the data and none in the score there is
    # no randomness left but that of z, whose mean square is 1 per number
    wide = jnp.zeros((2, 2_000))
    flat = elbo(lambda x, t: 0.0 * x, wide, getkey(), process=process, num_steps=12)
    ratios = np.asarray(processes.noise_ratio(process, processes.time_grid(process, 12, rho=20.0)))
    weights = np.append(0.5 * (ratios[:-1] ** 2 / ratios[1:] ** 2 - 1), 0.5)
    volume = 0.5 * 2_000 * np.log(2 * np.pi * ratios[-1] ** 2)
    spread = np.sqrt(np.sum(weights**2) * 2 * 2_000)
    assert np.all(np.abs(flat.value + weights.sum() * 2_000 + volume) < 4.5 * spread)


def test_contract(getkey):
    """Any event, dtype, jit with traced processes, keys that matter, no key used twice."""
    process, x, key = processes.VPLinear(), jax.random.normal(getkey(), (3, 2, 2, 1)), getkey()

    @jax.jit
    def bound(process, x, key):
        return elbo(score_fn_of(process), x, key, process=process, num_samples=4, num_estimates=2)

    value, error, _ = bound(process, x, key)
    assert value.shape == error.shape == (3,)
    assert np.all(bound(process, x, getkey()).value != value)
    half = elbo(lambda x, t: -x, jnp.ones(2, jnp.bfloat16), key, process=process, num_samples=2)
    assert half.value.dtype == jnp.float32
    with jax.debug_key_reuse(True):
        bound(process, x[:2], getkey())


@pytest.mark.parametrize("option", ["num_steps", "num_samples", "num_estimates"])
def test_bad_input(option, getkey):
    process = processes.VE()
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        elbo(lambda x, t: -x, jnp.ones((2, 3)), getkey(), process=process, **{option: 0})
    with pytest.raises(ValueError, match=r"shape of x, \(2, 3\), got \(1, 3\)"):
        elbo(lambda x, t: x[:1], jnp.ones((2, 3)), getkey(), process=process)
    with pytest.raises(TypeError, match="floating dtype"):
        elbo(lambda x, t: -x, jnp.ones((2, 3), int), getkey(), process=process)
