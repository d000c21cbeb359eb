"""Conversions against Gaussian closed forms; preconditioning against the table of EDM."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import parameterization as p
from sm_jax import processes
from tests.oracles import COV, MEAN, PROCESSES, gaussian_noised_score

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def targets(process, x, t):
    """All predictions for data from N(MEAN, COV), each from its own definition, in float64."""
    x, t = np.asarray(x, np.float64), np.asarray(t, np.float64)
    out = {name: [] for name in ("score", "x0", "noise", "v", "velocity")}
    with jax.enable_x64(True):
        process = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)
        alphas, sigmas = (np.asarray(c(jnp.array(t))) for c in (process.alpha, process.sigma))
        slopes = [
            np.asarray(jax.jvp(c, (jnp.array(t),), (jnp.ones(t.shape),))[1])
            for c in (process.alpha, process.sigma)
        ]
    for row, alpha, sigma, alpha_slope, sigma_slope in zip(x, alphas, sigmas, *slopes, strict=True):
        noised = alpha**2 * COV + sigma**2 * np.eye(3)
        residual = np.linalg.solve(noised, row - alpha * MEAN)
        x0 = MEAN + alpha * COV @ residual  # E[x0 | x_t] of jointly Gaussian variables
        noise = sigma * residual  # E[z | x_t]
        out["score"].append(-residual)
        out["x0"].append(x0)
        out["noise"].append(noise)
        out["v"].append(alpha * noise - sigma * x0)
        out["velocity"].append(alpha_slope * x0 + sigma_slope * noise)
    return {name: np.array(rows, np.float32) for name, rows in out.items()}


TO_NOISE = {
    "score": p.eps_from_score,
    "x0": p.eps_from_x0,
    "v": p.eps_from_v,
    "velocity": p.eps_from_velocity,
    "noise": lambda eps, x, t, process: eps,
}
FROM_NOISE = {
    "score": p.score_from_eps,
    "x0": p.x0_from_eps,
    "v": p.v_from_eps,
    "velocity": p.velocity_from_eps,
    "noise": lambda eps, x, t, process: eps,
}

CONVERSIONS = [f for table in (TO_NOISE, FROM_NOISE) for k, f in table.items() if k != "noise"]


@each_process
def test_every_conversion_on_gaussian_data(process, getkey):
    """All 25 ordered pairs of predictions, against their independent definitions."""
    t = jnp.linspace(process.t_min, process.t_max, 6)[1:-1]
    x, _ = processes.perturb(process, jax.random.normal(getkey(), (4, 3)), t, getkey())
    known = targets(process, x, t)
    for source, target in itertools.product(TO_NOISE, FROM_NOISE):
        eps = TO_NOISE[source](known[source], x, t, process=process)
        value = FROM_NOISE[target](eps, x, t, process=process)
        scale = np.abs(known[target]).max()
        np.testing.assert_allclose(
            value, known[target], rtol=2e-4, atol=2e-4 * scale, err_msg=f"{source} to {target}"
        )


@each_process
def test_velocity_is_that_of_the_probability_flow(process, getkey):
    t = jnp.linspace(process.t_min, process.t_max, 5)[1:-1]
    x = 2.0 * jax.random.normal(getkey(), (3, 3))
    score = gaussian_noised_score(process)(x, t)
    g2 = processes.diffusion_squared(process, t)[:, None]
    flow = processes.drift(process, x, t) - 0.5 * g2 * score
    eps = p.eps_from_score(score, x, t, process=process)
    velocity = p.velocity_from_eps(eps, x, t, process=process)
    np.testing.assert_allclose(velocity, flow, rtol=1e-3, atol=1e-4)


@each_process
def test_denoiser_and_score_are_inverse(process, getkey):
    t = jnp.linspace(process.t_min, process.t_max, 6)[1:-1]
    x = jax.random.normal(getkey(), (4, 3))
    score_fn = gaussian_noised_score(process)
    denoiser_fn = p.denoiser_from_score(score_fn, process=process)
    np.testing.assert_allclose(
        denoiser_fn(x, t), targets(process, x, t)["x0"], rtol=2e-3, atol=2e-3
    )
    back = p.score_from_denoiser(denoiser_fn, process=process)
    np.testing.assert_allclose(back(x, t), score_fn(x, t), rtol=1e-3, atol=1e-3)


def test_an_energy_score_is_minus_the_gradient(getkey):
    x = jax.random.normal(getkey(), (5, 3))
    precision = jnp.linalg.inv(COV)

    def energy_fn(x):
        return 0.5 * jnp.einsum("bi,ij,bj->b", x - MEAN[None], precision, x - MEAN[None])

    expected = -(x - MEAN[None]) @ precision
    np.testing.assert_allclose(p.EnergyScore(energy_fn)(x), expected, rtol=1e-4, atol=1e-5)


def noised_energy(x, t):
    return 0.5 * jnp.sum(x**2, axis=(1, 2)) / t**2


def test_an_energy_score_passes_the_noise_level(getkey):
    """As an argument, or fixed by ``at`` and `at_time`, where it stays the score of an energy."""
    x, t = jax.random.normal(getkey(), (5, 2, 2)), jnp.arange(1.0, 6.0)
    score_fn, expected = p.EnergyScore(noised_energy), -x / t[:, None, None] ** 2
    np.testing.assert_allclose(score_fn(x, t), expected, rtol=1e-5)
    for fixed in (score_fn.at(t), p.at_time(score_fn, t)):
        assert isinstance(fixed, p.EnergyScore)
        np.testing.assert_allclose(fixed(x), expected, rtol=1e-5)
        np.testing.assert_allclose(fixed.energy_fn(x), noised_energy(x, t), rtol=1e-6)
    bare = p.at_time(lambda x, t: score_fn(x, t), t)
    assert not isinstance(bare, p.EnergyScore)
    np.testing.assert_allclose(bare(x), expected, rtol=1e-5)
    np.testing.assert_allclose(p.at_time(score_fn, 2.0)(x), -x / 4, rtol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [jax.jit, partial, lambda fn: lambda x: fn(x)],
    ids=["jit", "partial", "lambda"],
)
def test_a_wrapped_energy_score_is_the_same_score(wrap, getkey):
    """In value and in the gradient by the parameters, but no longer of the type."""
    x, width = jax.random.normal(getkey(), (5, 3)), jnp.array([0.5, 1.0, 2.0])

    def total(width, wrap):
        score_fn = wrap(p.EnergyScore(lambda x: jnp.sum(x**4 / width[None], axis=-1)))
        assert isinstance(score_fn, p.EnergyScore) == (wrap is bare)
        return jnp.sum(jnp.sin(score_fn(x)))

    def bare(score_fn):
        return score_fn

    expected = jnp.sum(4 * x**3 / width[None] ** 2 * jnp.cos(4 * x**3 / width[None]), axis=0)
    for value in (wrap, bare):
        np.testing.assert_allclose(jax.grad(total)(width, value), expected, rtol=1e-4)
        np.testing.assert_allclose(
            total(width, value), -jnp.sin(4 * x**3 / width[None]).sum(), rtol=1e-4
        )


def test_scores_of_one_energy_are_equal():
    """And so share what ``jit`` has compiled; nothing about them can be changed."""
    energies = [lambda x: jnp.sum(x**2, axis=-1), lambda x: jnp.sum(x**4, axis=-1)]
    first, same, other = (p.EnergyScore(energies[i]) for i in (0, 0, 1))
    assert first == same
    assert hash(first) == hash(same)
    assert first != other
    traces = []

    @partial(jax.jit, static_argnums=0)
    def apply(score_fn, x):
        traces.append(score_fn)
        return score_fn(x)

    x = jnp.full((1, 2), 3.0)
    np.testing.assert_allclose(apply(first, x), -6.0)
    np.testing.assert_allclose(apply(same, x), -6.0)
    assert len(traces) == 1
    np.testing.assert_allclose(apply(other, x), -108.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.energy_fn = energies[1]


def test_an_energy_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"energy_fn must be callable, .*got None"):
        p.EnergyScore(None)


@each_process
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_precondition_is_the_table_of_edm(process, sigma_data, getkey):
    t = jnp.linspace(process.t_min, process.t_max, 6)[1:-1]
    x = jax.random.normal(getkey(), (4, 3))
    seen = {}

    def network(inputs, label):
        seen.update(inputs=inputs, label=label)
        return jnp.sin(3.0 * inputs) + 0.3

    score = p.precondition(network, process=process, sigma_data=sigma_data)(x, t)
    alpha, sigma = (np.asarray(c(t), np.float64)[:, None] for c in (process.alpha, process.sigma))
    r, y, d = sigma / alpha, np.asarray(x) / alpha, sigma_data
    c_skip = d**2 / (r**2 + d**2)
    c_out = r * d / np.sqrt(d**2 + r**2)
    c_in = 1 / np.sqrt(d**2 + r**2)
    denoised = c_skip * y + c_out * (np.sin(3.0 * c_in * y) + 0.3)
    np.testing.assert_allclose(seen["inputs"], c_in * y, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen["label"], np.log(r[:, 0]) / 4, rtol=1e-4, atol=1e-6)
    expected = (alpha * denoised - np.asarray(x)) / sigma**2
    np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@each_process
def test_precondition_of_nothing_is_the_gaussian_score(process, getkey):
    """At all noise levels, also the smallest, in float32."""
    x = jax.random.normal(getkey(), (5, 2))
    t = jnp.geomspace(jnp.maximum(process.t_min, 1e-5), process.t_max, 5)
    score = p.precondition(lambda x, c: 0.0 * x, process=process, sigma_data=0.7)(x, t)
    variance = 0.49 * process.alpha(t) ** 2 + process.sigma(t) ** 2
    np.testing.assert_allclose(score, -x / variance[:, None], rtol=2e-5)


def test_preconditioning_where_the_square_of_the_noise_ratio_overflows():
    """There x_t is noise of unit variance; the ratio is 5e21."""
    x, t, process = jnp.array([[1.0, -2.0]]), jnp.ones(1), processes.VPLinear(beta_max=200.0)
    seen = []

    def network(inputs, label):
        return seen.append(inputs) or 0.0 * inputs

    np.testing.assert_allclose(
        p.precondition(network, process=process, sigma_data=0.5)(x, t), -x, rtol=1e-5
    )
    np.testing.assert_allclose(seen, [x], rtol=1e-5)
    energy_fn = p.precondition_energy(lambda inputs, c: 0.0 * c, process=process, sigma_data=0.5)
    np.testing.assert_allclose(energy_fn(x, t), [2.5], rtol=1e-5)
    np.testing.assert_allclose(p.EnergyScore(energy_fn)(x, t), -x, rtol=1e-5)


@each_process
def test_precondition_energy_has_the_score_of_its_gradient(process, getkey):
    """precondition(grad e) = -grad precondition_energy(e), and the Gaussian energy for e = 0."""
    x = jax.random.normal(getkey(), (5, 2, 3))
    t = jnp.geomspace(jnp.maximum(process.t_min, 1e-4), process.t_max, 5)

    def network(inputs, label):
        return jnp.sin(inputs + label[:, None, None]).sum((1, 2)) * inputs[:, 0, 0]

    def gradient(inputs, label):
        return jax.grad(lambda inputs: network(inputs, label).sum())(inputs)

    energy_fn = p.precondition_energy(network, process=process, sigma_data=0.7)
    expected = p.precondition(gradient, process=process, sigma_data=0.7)(x, t)
    scale = np.max(np.abs(expected), axis=(1, 2), keepdims=True)
    score = p.EnergyScore(energy_fn)(x, t)
    np.testing.assert_allclose(score / scale, expected / scale, atol=2e-5)
    energy = p.precondition_energy(lambda x, c: 0.0 * c, process=process, sigma_data=0.7)(x, t)
    variance = 0.49 * process.alpha(t) ** 2 + process.sigma(t) ** 2
    np.testing.assert_allclose(energy, (x**2).sum((1, 2)) / (2 * variance), rtol=2e-5)


def test_the_data_of_edm_have_deviation_one_half():
    score = p.precondition(lambda x, c: 0.0 * x, process=processes.VE(), sigma_data=0.5)(
        jnp.ones((1, 1)), jnp.ones(1)
    )
    np.testing.assert_allclose(score, [[-1 / 1.25]], rtol=1e-6)


def test_dtypes_are_kept():
    x, t = jnp.ones((2, 3), jnp.bfloat16), jnp.ones(2)
    process = processes.VE()
    assert (
        p.precondition(lambda x, c: x, process=process, sigma_data=0.5)(x, t).dtype == jnp.bfloat16
    )
    assert p.score_from_eps(x, x, t, process=process).dtype == jnp.bfloat16
    energy_fn = p.precondition_energy(lambda x, c: x.sum(-1), process=process, sigma_data=0.5)
    assert energy_fn(x, t).dtype == jnp.float32
    assert p.EnergyScore(energy_fn)(x, t).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "call",
    [
        *(lambda x, t, f=f: f(0.5, x, t, process=processes.VE()) for f in CONVERSIONS),
        lambda x, t: p.score_from_denoiser(lambda x, t: 0.5 * x, process=processes.VE())(x, t),
        lambda x, t: p.denoiser_from_score(lambda x, t: -0.5 * x, process=processes.VE())(x, t),
        lambda x, t: p.precondition(lambda x, c: 0.5 * x, process=processes.VE(), sigma_data=0.5)(
            x, t
        ),
        lambda x, t: p.precondition_energy(lambda x, c: c, process=processes.VE(), sigma_data=0.5)(
            x, t
        ),
        lambda x, t: p.EnergyScore(lambda x, t: 0.5 * x.sum(-1))(x, t),
    ],
)
def test_integers_are_refused(call):
    """The result has the dtype of x: numbers like 0.5 would be cut to 0."""
    with pytest.raises(TypeError, match="x must have a floating dtype, got int32"):
        call(jnp.ones((2, 3), int), jnp.ones(2))


def test_bad_values():
    with pytest.raises(ValueError, match="sigma_data must be positive and finite"):
        p.precondition(lambda x, c: x, process=processes.VE(), sigma_data=0.0)
    with pytest.raises(ValueError, match="sigma_data must be positive and finite"):
        p.precondition_energy(lambda x, c: c, process=processes.VE(), sigma_data=-1.0)
    for function in (p.precondition, p.precondition_energy):
        with pytest.raises(ValueError, match=r"sigma_data must be one number, got shape \(2,\)"):
            function(lambda x, c: c, process=processes.VE(), sigma_data=jnp.ones(2))
    with pytest.raises(ValueError, match=r"one number per example.*\(2, 3\)"):
        p.precondition_energy(lambda x, c: x, process=processes.VE(), sigma_data=0.5)(
            jnp.ones((2, 3)), jnp.ones(2)
        )
    with pytest.raises(ValueError, match=r"energy_fn must return one number per example.*\(2, 1\)"):
        p.EnergyScore(lambda x: x[:, :1])(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="t must be a scalar or one number per example"):
        p.score_from_eps(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3), process=processes.VE())
