"""Thermodynamic integration: normalizers that are known, with offsets that a score does not see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import densities, processes
from sm_jax.likelihood import (
    thermodynamic_integration,
    thermodynamic_integration_from_samples,
)

PROCESSES = {
    "VE": processes.VE(sigma_min=0.1, sigma_max=8.0),
    "VPLinear": processes.VPLinear(),
}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def offset(t):
    """Something that no integral over noise levels would resolve."""
    return 3.0 * jnp.sin(40.0 * t) + 0.7 * jnp.log(t)


def gaussian_energy(process, variance):
    """Of data from N(0, variance I), and its log-normalizer for ``dims`` dimensions."""

    def noised(t):
        return process.alpha(t) ** 2 * variance + process.sigma(t) ** 2

    def energy(x, t):
        return offset(t) + 0.5 * jnp.sum(x**2, axis=-1) / noised(t)

    def log_z(t, dims):
        return 0.5 * dims * np.log(2 * np.pi * noised(t)) - offset(t)

    return energy, log_z, noised


@each_process
def test_integration_is_exact_for_gaussian_data(process, getkey):
    """Where ``sigma_data`` is right the work is a constant: for any samples and few levels."""
    energy, log_z, _ = gaussian_energy(process, 0.36)
    times = processes.time_grid(process, 4)
    truth = log_z(times, 3)
    options = {"process": process, "times": times, "sigma_data": 0.6}
    options["log_normalizer"] = truth[0]
    run = partial(thermodynamic_integration_from_samples, energy, **options)
    given = jax.jit(run)(jax.random.normal(getkey(), (5, 6, 3)))
    np.testing.assert_allclose(given.value, truth, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_less(given.standard_error, 1e-4)
    np.testing.assert_array_equal(given.times, times)
    assert given.acceptance_rate is None
    x = jax.random.normal(getkey(), (6, 3))
    run = partial(thermodynamic_integration, energy, **options)
    drawn = jax.jit(partial(run, steps_per_level=2))(x, getkey())
    np.testing.assert_allclose(drawn.value, truth, rtol=1e-4, atol=1e-4)
    assert drawn.acceptance_rate.shape == (5,)


@each_process
def test_integration_is_of_order_two(process):
    """Samples at plus and minus one deviation have the second moment of the Gaussian exactly."""
    with jax.enable_x64(True):
        process = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)
        energy, log_z, noised = gaussian_energy(process, 0.25)
        errors = []
        for num in (17, 33):
            times = processes.time_grid(process, num - 1, rho=20.0)
            x = jnp.sqrt(noised(times))[:, None, None] * jnp.array([1.0, -1.0])[None, :, None]
            truth = log_z(times, 1)
            run = partial(
                thermodynamic_integration_from_samples, energy, process=process, sigma_data=2.0
            )
            found = jax.jit(run)(x, log_normalizer=truth[0])
            np.testing.assert_allclose(found.times, times)
            errors.append(abs(float(found.value[-1] - truth[-1])))
        assert 1.85 < np.log2(errors[0] / errors[1]) < 2.15
        assert errors[1] < 0.05


def test_prior_is_weighed_to_the_model(getkey):
    """A largest level at which prior and model differ, from draws of either."""
    process = processes.VE(sigma_min=1.0, sigma_max=2.0)
    energy, log_z, noised = gaussian_energy(process, 1.0)
    times, n = jnp.array([2.0, 1.0]), 20_000
    prior = processes.prior_sample(process, getkey(), (n, 1))
    x = jnp.sqrt(noised(times))[:, None, None] * jax.random.normal(getkey(), (2, n, 1))
    options = {"process": process, "times": times}
    run = partial(thermodynamic_integration, energy, steps_per_level=1, **options)
    forward = jax.jit(run)(prior, getkey())
    backward = jax.jit(partial(thermodynamic_integration_from_samples, energy, **options))(x)
    # E[r^2] - 1 of the ratio r of N(0, a) to N(0, c), under the latter
    variance = {
        "forward": (lambda a, c: c / np.sqrt(a * (2 * c - a)) - 1)(5.0, 4.0),
        "backward": (lambda a, c: c / np.sqrt(a * (2 * c - a)) - 1)(4.0, 5.0),
    }
    for name, result in (("forward", forward), ("backward", backward)):
        expected = np.sqrt(variance[name] / n)
        np.testing.assert_allclose(result.standard_error[0], expected, rtol=0.15)
        assert abs(float(result.value[0] - log_z(2.0, 1))) < 4.5 * expected
        # sigma_data is 1 here: the rest is exact
        np.testing.assert_allclose(result.value[1] - result.value[0], log_z(1.0, 1) - log_z(2.0, 1))
        np.testing.assert_allclose(result.standard_error[1], result.standard_error[0], rtol=1e-2)


def test_chains_start_at_the_scaled_end_of_the_level_above(getkey):
    """Chains that MALA does not move: the work along scaled points, and its spread, by hand."""
    process, d = processes.VE(sigma_min=0.5, sigma_max=4.0), 0.7
    times = np.array([4.0, 2.0, 1.0, 0.5])
    x = np.array([[3.0, -1.0], [-2.0, 0.5], [1.0, 4.0]])

    def energy(x, t):
        return jnp.sum((x - 1.0) ** 2, axis=-1) / (1.0 + t) + offset(t)

    result = thermodynamic_integration(
        energy,
        jnp.asarray(x, jnp.float32),
        getkey(),
        process=process,
        times=times,
        step_size=1e-13,
        steps_per_level=1,
        sigma_data=d,
        log_normalizer=0.3,
    )
    k = np.sqrt(d**2 + times**2)
    path = x[None] * (k / k[0])[:, None, None]
    energies = [np.asarray(energy(points, t)) for points, t in zip(path, times, strict=True)]
    work = np.diff(energies, axis=0) - 2 * np.diff(np.log(k))[:, None]
    integrals = -np.cumsum(work, axis=0)
    np.testing.assert_allclose(result.value[1:], 0.3 + integrals.mean(axis=1), rtol=1e-4)
    error = integrals.std(axis=1, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(result.standard_error[1:], error, rtol=1e-3)
    np.testing.assert_allclose(result.value[0], 0.3, rtol=1e-6)


def test_steps_grow_with_the_variance_of_the_noise(getkey):
    """For data at one point every level is the same but for its scale."""
    process = processes.VE(sigma_min=0.5, sigma_max=8.0)
    result = thermodynamic_integration(
        lambda x, t: 0.5 * jnp.sum(x**2, axis=-1) / t**2,
        processes.prior_sample(process, getkey(), (2_000, 1)),
        getkey(),
        process=process,
        num_levels=5,
        steps_per_level=2,
        step_size=1.5,
        sigma_data=1e-3,
    )
    assert 0.3 < float(result.acceptance_rate.mean()) < 0.9
    assert float(np.ptp(result.acceptance_rate)) < 0.04


def test_errors_are_those_of_repetitions(getkey):
    """The spread over the chains, of the prior's weight and the work together."""
    process = processes.VE(sigma_min=0.5, sigma_max=2.0)
    energy, _, noised = gaussian_energy(process, 1.0)
    times = processes.time_grid(process, 4)

    def one(key):
        z = jax.random.normal(key, (5, 50, 1))
        x = jnp.sqrt(noised(times))[:, None, None] * z
        return thermodynamic_integration_from_samples(
            energy, x, process=process, times=times, sigma_data=0.1
        )

    many = jax.jit(jax.vmap(one))(jax.random.split(getkey(), 500))
    spread = np.std(many.value, axis=0)
    np.testing.assert_allclose(np.mean(many.standard_error, axis=0), spread, rtol=0.15)
    assert spread[-1] > 1.2 * spread[0]


@each_process
def test_chains_follow_a_mixture_down_its_levels(process, getkey):
    """A mixture of two, with MALA from the prior; the data level and those in between."""
    data = densities.gaussian_mixture([0.7, 0.3], [[0.6], [-0.9]], [0.2, 0.3])

    def energy(x, t):
        return offset(t) - data.noised(process, t[0]).log_prob(x)

    x = processes.prior_sample(process, getkey(), (4_000, 1))
    run = jax.jit(
        lambda x, key: thermodynamic_integration(
            energy, x, key, process=process, num_levels=33, steps_per_level=8, step_size=1.0
        )
    )
    with jax.debug_key_reuse(True):
        result = run(x, getkey())
    error = np.asarray(result.value + offset(result.times))
    np.testing.assert_array_less(np.abs(error), 4.5 * np.asarray(result.standard_error) + 0.01)
    np.testing.assert_array_less(result.standard_error, 0.03)
    assert 0.5 < float(result.acceptance_rate.min()) < 0.97
    assert len(result.times) == 33


def test_integration_evaluations_and_defaults(getkey):
    """Each step of MALA one evaluation, and four for the work; 65 levels by default."""
    calls = []

    def energy(x, t):
        jax.debug.callback(lambda x: calls.append(x), x[0, 0])
        return jnp.sum(x**2, axis=-1) / t

    process = PROCESSES["VE"]
    options = {"process": process, "log_normalizer": 0.0}
    x, key = jnp.ones((2, 1)), getkey()

    def run(**more):
        return jax.jit(partial(thermodynamic_integration, energy, **more, **options))(x, key)

    jax.block_until_ready(run(times=[5.0, 3.0, 1.0], steps_per_level=2, step_size=0.1))
    jax.effects_barrier()
    assert len(calls) == 3 * (2 + 1 + 4)
    default = run()
    explicit = run(num_levels=65, steps_per_level=10, step_size=0.5, sigma_data=1.0)
    np.testing.assert_array_equal(default.value, explicit.value)
    np.testing.assert_allclose(default.times, processes.time_grid(process, 64, rho=20.0))


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (jnp.ones((4, 2)), {"num_levels": 1}, ValueError, "num_levels must be at least 2"),
        (jnp.ones((4, 2)), {"num_levels": 0}, ValueError, "num_levels must be at least 2, got 0"),
        (
            jnp.ones((4, 2)),
            {"num_levels": 2, "times": [2.0, 1.0]},
            ValueError,
            "give num_levels=2 or times=.*, not both",
        ),
        (
            jnp.ones((4, 2)),
            {"steps_per_level": 0},
            ValueError,
            "steps_per_level must be at least 1",
        ),
        (jnp.ones((4, 2)), {"step_size": 0.0}, ValueError, "step_size must be positive"),
        (jnp.ones((4, 2)), {"sigma_data": -1.0}, ValueError, "sigma_data must be positive"),
        (
            jnp.ones((1, 2)),
            {},
            ValueError,
            "at least two chains, .* are needed for an error, got 1",
        ),
        (jnp.ones((4, 2), int), {}, TypeError, "floating dtype"),
        (jnp.ones((4, 2)), {"times": [1.0, 2.0]}, ValueError, "strictly decrease"),
        (jnp.ones((4, 2)), {"key": None}, TypeError, "draws random numbers: pass a key"),
    ],
)
def test_integration_bad_input(x, options, error, message, getkey):
    options = {"key": getkey(), "process": PROCESSES["VE"], **options}
    with pytest.raises(error, match=message):
        thermodynamic_integration(lambda x, t: jnp.sum(x**2, axis=-1), x, **options)


@pytest.mark.parametrize(
    ("samples", "options", "error", "message"),
    [
        (
            jnp.ones((3, 4, 2)),
            {"times": [2.0, 1.0]},
            ValueError,
            r"each of the 2 times, \[L, B, ...\], got shape \(3, 4, 2\)",
        ),
        (jnp.ones((1, 4, 2)), {}, ValueError, "at each of two or more times"),
        (jnp.ones(4), {}, ValueError, "at each of two or more times"),
        (jnp.ones((3, 1, 2)), {}, ValueError, "at least two chains, or samples at each time"),
        (jnp.ones((3, 4, 2), int), {}, TypeError, "samples must have a floating dtype"),
        (jnp.ones((3, 4, 2)), {"sigma_data": 0.0}, ValueError, "sigma_data must be positive"),
        (jnp.ones((3, 4, 2)), {"times": [1.0, 2.0, 3.0]}, ValueError, "strictly decrease"),
    ],
)
def test_integration_from_samples_bad_input(samples, options, error, message):
    options = {"process": PROCESSES["VE"], **options}
    with pytest.raises(error, match=message):
        thermodynamic_integration_from_samples(
            lambda x, t: jnp.sum(x**2, axis=-1), samples, **options
        )


def test_integration_wants_one_energy_per_example(getkey):
    x, options = jnp.ones((3, 4, 2)), {"process": PROCESSES["VE"]}
    message = r"one number per example, shape \(4,\), got \(4, 2\)"
    with pytest.raises(ValueError, match=message):
        thermodynamic_integration_from_samples(lambda x, t: x, x, **options)
    with pytest.raises(ValueError, match=message):
        thermodynamic_integration(lambda x, t: x, x[0], getkey(), **options)


def test_work_from_samples_by_hand():
    """The trapezoidal rule over work that no samples share, with its errors, in numpy."""
    process, d = processes.VE(sigma_min=0.5, sigma_max=4.0), 0.7
    times = np.array([4.0, 2.0, 0.5])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 2))

    def energy(x, t):
        return np.float32(0.3) * (x**4).sum(axis=-1) / (1.0 + t)

    result = thermodynamic_integration_from_samples(
        energy,
        jnp.asarray(x, jnp.float32),
        process=process,
        times=times,
        sigma_data=d,
        log_normalizer=-0.2,
    )
    k = np.sqrt(d**2 + times**2)

    def work(i, to):
        """Of samples at one time, moved to another."""
        change = energy(k[to] / k[i] * x[i], times[to]) - energy(x[i], times[i])
        return change - 2 * np.log(k[to] / k[i])

    steps = np.stack([-0.5 * (work(i, i + 1) - work(i + 1, i)) for i in (0, 1)])
    integrals = np.cumsum(steps, axis=0)
    expected = np.append(-0.2, -0.2 + integrals.mean(axis=1))
    np.testing.assert_allclose(result.value, expected, rtol=1e-4)
    errors = np.append(0.0, integrals.std(axis=1, ddof=1) / 2.0)
    np.testing.assert_allclose(result.standard_error, errors, rtol=1e-4)


def test_levels_that_begin_below_the_prior_are_refused(getkey):
    """Weighed against the prior of 50, the level at 5 came out 29 nats too high."""
    process = processes.VE(sigma_min=0.01, sigma_max=50.0)
    energy, log_z, noised = gaussian_energy(process, 1.0)
    times = jnp.array([5.0, 2.0, 1.0, 0.5])
    x = processes.prior_sample(process, getkey(), (8, 2))
    options = {"process": process, "times": times}
    with pytest.raises(ValueError, match=r"begin at 5, below t_max = 50.*pass log_normalizer"):
        thermodynamic_integration(energy, x, getkey(), **options)
    given = jnp.sqrt(noised(times))[:, None, None] * jax.random.normal(getkey(), (4, 8, 2))
    run = partial(thermodynamic_integration_from_samples, energy, given, **options)
    with pytest.raises(ValueError, match="below t_max"):
        run()
    found = run(log_normalizer=log_z(5.0, 2))
    np.testing.assert_allclose(found.value, log_z(times, 2), atol=1e-3)
