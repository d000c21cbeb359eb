"""Default grids of processes whose log noise ratio spans far more than that of `VPLinear`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from sm_jax import likelihood, processes, samplers
from sm_jax.processes import _derived

WIDE = {
    "VE 1e-4 to 1e4": processes.VE(sigma_min=1e-4, sigma_max=1e4),
    "VPLinear 40": processes.VPLinear(beta_max=40.0),
    "VPLinear 100": processes.VPLinear(beta_max=100.0),
    "VPLinear 200": processes.VPLinear(beta_max=200.0),
}
each_wide = pytest.mark.parametrize("process", WIDE.values(), ids=WIDE.keys())
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.5, 1.0]), np.sqrt([0.3, 0.8])


def mixture_score(x, t, process):
    """The score of the noised mixture, ``x [B, 1]``."""
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    away = x - alpha * MEANS[None].astype(x.dtype)
    variance = alpha**2 * (STDS**2)[None].astype(x.dtype) + sigma**2
    logits = jnp.log(WEIGHTS)[None].astype(x.dtype) - 0.5 * (jnp.log(variance) + away**2 / variance)
    return -jnp.sum(jax.nn.softmax(logits) * away / variance, axis=1, keepdims=True)


def quantiles(num=101):
    """The levels ``(i + 1/2) / num``, and the quantiles of the mixture there, in float64."""
    levels = (np.arange(num) + 0.5) / num
    at = np.linspace(-6.0, 6.0, 100_001)
    return levels, np.interp(levels, norm.cdf(at[:, None], MEANS, STDS) @ WEIGHTS, at)


@each_wide
def test_log_densities(process):
    _, x = quantiles()
    right = logsumexp(norm.logpdf(x[:, None], MEANS, STDS) + np.log(WEIGHTS), axis=1)
    score_fn = partial(mixture_score, process=process)
    data = jnp.asarray(x[:, None], jnp.float32)
    value = likelihood.log_prob(score_fn, data, process=process).value
    np.testing.assert_allclose(value, right, atol=2e-3)
    jitted = jax.jit(partial(likelihood.log_prob, score_fn, process=process))(data)
    np.testing.assert_allclose(jitted.value, value, atol=1e-4)  # as many steps as outside of jit


@each_wide
@pytest.mark.parametrize(
    ("sampler", "error"),
    [
        (samplers.heun, 0.03),
        (samplers.ddim, 0.06),
        (samplers.dpm_solver_pp, 0.03),
        (partial(samplers.dpm_solver_pp, order=3), 0.03),
    ],
    ids=["heun", "ddim", "2M", "3M"],
)
def test_deterministic_samplers_map_quantiles_to_quantiles(process, sampler, error):
    """The flow in one dimension keeps the order of points; the mean error is that of `VPLinear`."""
    levels, right = quantiles()
    x = jnp.asarray(norm.ppf(levels)[:, None], jnp.float32) * process.sigma(process.t_max)
    samples = sampler(partial(mixture_score, process=process), x, process=process)
    assert np.abs(samples[:, 0] - right).mean() < error


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        samplers.euler_maruyama,
        samplers.ancestral,
        samplers.dpm_solver_pp_sde,
        samplers.predictor_corrector,
    ],
    ids=["euler_maruyama", "ancestral", "dpm_solver_pp_sde", "predictor_corrector"],
)
def test_stochastic_samplers_keep_the_weights_of_modes(sampler, getkey):
    process = WIDE["VPLinear 100"]
    x = processes.prior_sample(process, getkey(), (4000, 1))
    samples = sampler(partial(mixture_score, process=process), x, getkey(), process=process)
    share = norm.cdf(-0.6, MEANS, STDS) @ WEIGHTS
    error = np.sqrt(share * (1 - share) / 4000)
    assert abs((samples < -0.6).mean() - share) < 0.01 + 4 * error
    mean = WEIGHTS @ MEANS
    std = np.sqrt(WEIGHTS @ (STDS**2 + MEANS**2) - mean**2)
    np.testing.assert_allclose(samples.mean(), mean, atol=0.02 + 4 * std / np.sqrt(4000))
    np.testing.assert_allclose(samples.std(), std, rtol=0.05)


def test_thermodynamic_integration(getkey):
    """The normalizer of a Gaussian energy, from the prior to the data."""
    process = WIDE["VPLinear 100"]

    def energy_fn(x, t):
        return 0.5 * jnp.sum(x**2, axis=1) / (process.alpha(t) ** 2 * 4.0 + process.sigma(t) ** 2)

    x = processes.prior_sample(process, getkey(), (500, 2))
    result = likelihood.thermodynamic_integration(energy_fn, x, getkey(), process=process)
    assert result.times.shape[0] > 160  # 64 * 31.9 / 12
    error = result.value[-1] - np.log(2 * np.pi * 4.0)
    assert abs(error) < 4 * result.standard_error[-1]


def test_steps_at_the_scale_of_the_data_are_no_longer_than_usual():
    def longest(process):
        """The longest step in ``log r`` within a factor of ten of ``r = 1``."""
        grid = _derived.solver_grid(process, None, default=32)
        levels = np.log(processes.noise_ratio(process, grid))
        near = (levels[:-1] > -2.3) & (levels[1:] < 2.3)
        return -np.diff(levels)[near].min()

    usual = longest(processes.VPLinear())
    for name, process in WIDE.items():
        assert longest(process) < 1.4 * usual, name


@each_wide
def test_a_traced_process_has_the_same_grid(process):
    grid = processes.time_grid(process, 40)
    traced = jax.jit(partial(processes.time_grid, num_steps=40))(process)
    np.testing.assert_allclose(traced, grid, rtol=1e-3)
    solver = partial(_derived.solver_grid, num_steps=None, default=32)
    inside = jax.jit(lambda: solver(process))()
    np.testing.assert_allclose(inside, solver(process), rtol=1e-3)
    assert len(jax.eval_shape(solver, process).shape) == 1


def test_a_process_without_signal_at_its_end_is_refused():
    class Flow:
        t_min, t_max = 1e-3, 1.0

        def alpha(self, t):
            return 1.0 - jnp.asarray(t)

        def sigma(self, t):
            return jnp.asarray(t)

        def time_at(self, ratio):
            return ratio / (1.0 + ratio)

    with pytest.raises(ValueError, match=r"alpha is 0 at t_max=1.0, all noise: lower t_max"):
        processes.time_grid(Flow(), 4)


def test_given_numbers_and_exponents_are_taken_as_given():
    process = WIDE["VPLinear 100"]
    r = processes.noise_ratio(process, processes.time_grid(process, 10, rho=7.0))
    ends = np.asarray(r, np.float64)[[0, -1]] ** (1 / 7)
    np.testing.assert_allclose(r, np.linspace(*ends, 11) ** 7, rtol=2e-3)
    x = jnp.ones((2, 1)) * process.sigma(process.t_max)
    _, path = samplers.heun(
        partial(mixture_score, process=process), x, process=process, num_steps=9, trajectory=True
    )
    assert len(path) == 10
    assert processes.time_grid(process, 9).shape == (10,)
