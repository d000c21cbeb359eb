"""Log-densities by adaptive steps, against closed forms and the fixed grid."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import densities, divergence, likelihood, processes
from tests.oracles import (
    COV,
    MEAN,
    PROCESSES,
    assert_mean,
    gaussian_noised_score,
    gaussian_score,
)
from tests.test_likelihood import flow_log_prob

adaptive = likelihood.adaptive_log_prob


@pytest.fixture
def x(getkey):
    return jax.random.multivariate_normal(getkey(), jnp.array(MEAN), jnp.array(COV), (6,))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_closed_form_in_float32(process, x):
    """To 1e-4 nats per dimension."""
    result = jax.jit(partial(adaptive, gaussian_noised_score(process), process=process))(x)
    np.testing.assert_allclose(result.value, flow_log_prob(process, x), atol=3e-4)
    np.testing.assert_array_equal(result.standard_error, np.zeros(6))


def test_noise_ratios_whose_square_overflows():
    process = processes.VPLinear(beta_max=200.0, t_min=1e-3)  # to a ratio of 5e21

    def variance(t):
        return 0.5 * process.alpha(t) ** 2 + process.sigma(t) ** 2

    x = jnp.array([[0.3, -0.7]])
    result = likelihood.adaptive_log_prob(
        lambda x, t: -x / variance(t)[:, None], x, process=process
    )
    last = float(variance(process.t_min))
    expected = -(0.3**2 + 0.7**2) / (2 * last) - np.log(2 * np.pi * last)
    np.testing.assert_allclose(result.value, [expected], atol=2e-3)


def test_one_pass_of_the_network_for_each_evaluation(x):
    """Score and divergence of an evaluation share one primal pass, counted as it runs."""
    process, rows = PROCESSES["VPLinear"], []
    gaussian = gaussian_noised_score(process)

    def score_fn(x, t):
        jax.debug.callback(lambda _: rows.append(1), x)
        return gaussian(x, t)

    one = partial(adaptive, score_fn, process=process, rtol=1e-3, atol=1e-3)
    result = one(x[:1])
    jax.effects_barrier()
    assert len(rows) == int(result.num_evaluations[0])
    assert len(rows) > 20


def test_each_example_takes_steps_of_its_own_and_tolerance_is_kept(getkey):
    """Far points of a mixture cost more; results do not depend on the batch."""
    process = PROCESSES["VE"]

    def log_density(x, t):
        variance = 0.05 + t**2
        return jax.nn.logsumexp(-0.5 * (x - jnp.array([-1.0, 1.0])) ** 2 / variance)

    row_score = jax.vmap(jax.grad(log_density))
    x = jnp.array([-2.0, -1.0, 0.001, 0.9])
    reference = likelihood.log_prob(row_score, x, process=process, num_steps=2000).value
    loose, tight = (
        jax.jit(partial(adaptive, row_score, process=process, rtol=tolerance, atol=tolerance))
        for tolerance in (1e-3, 1e-6)
    )
    value, _, num = tight(x)
    np.testing.assert_allclose(value, reference, atol=2e-4)
    assert len(set(num.tolist())) > 1
    assert np.all(num > loose(x).num_evaluations)
    assert np.max(np.abs(loose(x).value - reference)) > 2e-4
    np.testing.assert_allclose(tight(x[1:3]).value, value[1:3], atol=1e-5)


@pytest.mark.parametrize("sigma_data", [1.0, pytest.param(2.8, marks=pytest.mark.slow)])
def test_every_row_keeps_the_tolerance(sigma_data, getkey):
    """Of eight Gaussians: no step jumps over the noise at which the modes part."""
    with jax.enable_x64(True):
        # with a prior from which the noised data cannot be told
        process = processes.VPLinear(beta_max=40.0)
        angles = 2.0 * jnp.pi * jnp.arange(8) / 8.0
        centers = 2.0 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
        density = densities.gaussian_mixture(jnp.full(8, 0.125), centers, 0.01)
        score_fn = jax.vmap(lambda x, t: density.noised(process, t).score(x[None])[0])
        x = density.sample(getkey(), 300)
        expected = density.noised(process, process.t_min).log_prob(x)
        run = jax.jit(
            lambda x, tolerance: (
                adaptive(
                    score_fn,
                    x,
                    process=process,
                    rtol=tolerance,
                    atol=tolerance,
                    sigma_data=sigma_data,
                ).value
            )
        )
        for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
            assert np.all(np.abs(run(x, tolerance) - expected) < 40 * tolerance)


def test_random_divergences_and_their_standard_error(x, getkey):
    process = PROCESSES["EDM"]
    score_fn = gaussian_noised_score(process)
    exact = flow_log_prob(process, x)

    @jax.jit
    @jax.vmap
    def estimates(key):
        return adaptive(
            score_fn, x, key, process=process, divergence=divergence.hutchinson, num_estimates=8
        )

    value, error, _ = estimates(jax.random.split(getkey(), 200))
    assert_mean(value, exact + 3e-4 * np.sign(np.mean(value, axis=0) - exact))
    spread = np.var(np.asarray(value), axis=0, ddof=1).mean()
    assert spread > 1e-3
    np.testing.assert_allclose(np.mean(np.asarray(error) ** 2), spread, rtol=0.2)
    assert np.all(error > 0)
    # rows have probes of their own
    same = np.broadcast_to(x[:1], (6, 3))
    normal = partial(divergence.hutchinson, probe=jax.random.normal)
    values = adaptive(score_fn, same, getkey(), process=process, divergence=normal).value
    assert len(set(np.asarray(values).tolist())) == 6


@pytest.mark.slow
def test_differentiable_in_the_data_and_in_the_parameters(x):
    """d log p / dx is the score at t_min; by a parameter, the closed form for N(0, v)."""
    process = PROCESSES["VPLinear"]

    def value(v, x):
        def score_fn(x, t):
            variance = process.alpha(t) ** 2 * v + process.sigma(t) ** 2
            return -x / variance[:, None]

        return adaptive(score_fn, x, process=process).value

    gradient = jax.jit(jax.grad(lambda x: value(0.5, x).sum()))(x)
    np.testing.assert_allclose(gradient, -x / 0.5, rtol=2e-3, atol=2e-3)
    slope = jax.jit(jax.grad(lambda v: value(v, x).sum()))(0.5)
    expected = (0.5 * (x**2).sum(1) / 0.25 - 3 / (2 * 0.5)).sum()
    np.testing.assert_allclose(slope, expected, rtol=2e-3, atol=1e-2)


def test_solver_adjoint_and_bound_are_the_users(x):
    import diffrax

    process = PROCESSES["VPLinear"]
    score_fn = gaussian_noised_score(process)
    exact = flow_log_prob(process, x)
    options = {"solver": diffrax.Dopri5(), "adjoint": diffrax.ForwardMode()}
    value, slope = jax.jit(
        lambda x: jax.jvp(
            lambda x: adaptive(score_fn, x, process=process, **options).value,
            (x,),
            (jnp.ones_like(x),),
        )
    )(x)
    np.testing.assert_allclose(value, exact, atol=3e-4)
    expected = gaussian_score(x, MEAN, COV).sum(-1)
    np.testing.assert_allclose(slope, expected, rtol=5e-3, atol=5e-3)
    assert np.isnan(adaptive(score_fn, x, process=process, max_steps=2).value).all()


def test_bad_input(x, getkey, monkeypatch):
    process = PROCESSES["VE"]
    score_fn = gaussian_noised_score(process)
    for options, match in (
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"atol": -1.0}, "atol must be positive"),
        ({"sigma_data": 0.0}, "sigma_data must be positive"),
        ({"max_steps": 0}, "max_steps"),
        ({"num_estimates": 2}, "needs a random divergence and a key"),
    ):
        with pytest.raises(ValueError, match=match):
            adaptive(score_fn, x, process=process, **options)
    with pytest.raises(TypeError, match="explicit Runge-Kutta"):
        adaptive(score_fn, x, process=process, solver="Tsit5")
    with pytest.raises(ValueError, match="must return the shape of x"):
        adaptive(lambda x, t: x.sum(-1), x, process=process)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"pip install diffrax"):
        adaptive(score_fn, x, process=process)
