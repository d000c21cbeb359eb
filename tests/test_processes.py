"""Processes against their defining equations, in float64 where rounding is the question."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sm_jax import processes
from tests.oracles import PROCESSES, assert_mean

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def times(process, count=9):
    return jnp.linspace(process.t_min, process.t_max, count)


def test_definitions():
    t = np.array([0.1, 0.5, 0.9])
    b = 0.1 * t + 0.5 * 19.9 * t**2
    expected = {
        "VE": (1.0, t),
        "EDM": (1.0, t),
        "GeometricVE": (1.0, 0.01 * 5000.0**t),
        "VPLinear": (np.exp(-b / 2), np.sqrt(1 - np.exp(-b))),
        "SubVP": (np.exp(-b / 2), 1 - np.exp(-b)),
        "Cosine": (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)),
    }
    for name, (alpha, sigma) in expected.items():
        process = PROCESSES[name]
        np.testing.assert_allclose(process.alpha(jnp.array(t)), alpha * np.ones(3), rtol=2e-6)
        np.testing.assert_allclose(process.sigma(jnp.array(t)), sigma, rtol=2e-6)


def test_ranges():
    ranges = {name: (float(p.t_min), float(p.t_max)) for name, p in PROCESSES.items()}
    assert ranges == {
        "VE": (0.01, 50.0),
        "EDM": (0.002, 80.0),
        "GeometricVE": (0.0, 1.0),
        "VPLinear": (1e-5, 1.0),
        "SubVP": (1e-5, 1.0),
        "Cosine": (1e-4, 0.999),
    }


def test_defaults():
    assert processes.VE() == processes.VE(sigma_min=0.01, sigma_max=50.0)
    assert processes.GeometricVE() == processes.GeometricVE(sigma_min=0.01, sigma_max=50.0)


@each_process
def test_marginals_solve_the_differential_equation(process):
    """d alpha / dt = f alpha and d sigma^2 / dt = 2 f sigma^2 + g^2, by central differences."""
    with jax.enable_x64(True):
        process = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)
        t = times(process)[1:-1]
        h = 1e-6 * t

        def slope(c):
            return (c(t + h) - c(t - h)) / (2 * h)

        f = processes.drift(process, jnp.ones((t.size, 1)), t)[:, 0]
        np.testing.assert_allclose(slope(process.alpha), f * process.alpha(t), rtol=1e-6, atol=1e-9)
        g2 = slope(lambda t: process.sigma(t) ** 2) - 2 * f * process.sigma(t) ** 2
        np.testing.assert_allclose(processes.diffusion_squared(process, t), g2, rtol=1e-6)


def test_textbook_coefficients():
    t = jnp.array([0.2, 0.7])
    beta = 0.1 + 19.9 * t
    x = jnp.ones((2, 3))
    for name in ("VPLinear", "SubVP"):
        np.testing.assert_allclose(
            processes.drift(PROCESSES[name], x, t), -0.5 * beta[:, None] * x, rtol=1e-5
        )
    b = 0.1 * t + 0.5 * 19.9 * t**2
    g2 = {name: processes.diffusion_squared(PROCESSES[name], t) for name in PROCESSES}
    np.testing.assert_allclose(g2["VPLinear"], beta, rtol=1e-5)
    np.testing.assert_allclose(g2["SubVP"], beta * (1 - jnp.exp(-2 * b)), rtol=1e-5)
    np.testing.assert_allclose(g2["VE"], 2 * t, rtol=1e-6)
    sigma = 0.01 * 5000.0**t
    np.testing.assert_allclose(g2["GeometricVE"], 2 * sigma**2 * np.log(5000.0), rtol=1e-5)


@each_process
def test_time_inverts_the_noise_ratio(process):
    t = times(process)[1:]
    # float32 keeps 1 - t only so well where alpha vanishes.
    rtol = 1e-4 if isinstance(process, processes.Cosine) else 5e-6
    np.testing.assert_allclose(process.time_at(processes.noise_ratio(process, t)), t, rtol=rtol)


@each_process
def test_float32_is_exact_at_the_smallest_time(process):
    """Relative error of sigma under 1e-6 where the textbook form is 2.4 % off."""
    t32 = jnp.maximum(jnp.float32(1e-5), process.t_min)
    with jax.enable_x64(True):
        exact = float(process.sigma(jnp.asarray(t32, jnp.float64)))
    assert abs(float(process.sigma(t32)) / exact - 1) < 1e-6
    if isinstance(process, processes.VPLinear) and not isinstance(process, processes.SubVP):
        textbook = jnp.sqrt(1.0 - process.alpha(t32) ** 2)
        assert abs(float(textbook) / exact - 1) > 0.01


@each_process
def test_perturb_is_alpha_x_plus_sigma_z(process, getkey):
    x = jax.random.normal(getkey(), (5, 2, 3))
    t = times(process, 7)[1:-1]
    x_t, z = processes.perturb(process, x, t, getkey())
    alpha, sigma = (np.asarray(c(t)).reshape(5, 1, 1) for c in (process.alpha, process.sigma))
    np.testing.assert_allclose(x_t, alpha * x + sigma * z, rtol=1e-5, atol=1e-6)
    scalar, _ = processes.perturb(process, x, t[2], getkey(), noise=lambda *_: jnp.zeros_like(x))
    np.testing.assert_allclose(scalar, float(process.alpha(t[2])) * x, rtol=1e-6)


def test_perturb_noise_is_normal_and_follows_the_key(getkey):
    x = jnp.zeros((40_000, 1))
    key = getkey()
    _, z = processes.perturb(PROCESSES["VE"], x, 1.0, key)
    assert abs(float(z.mean())) < 5 / 200
    assert abs(float(z.var()) - 1) < 5 * np.sqrt(2) / 200
    _, again = processes.perturb(PROCESSES["VE"], x, 1.0, key)
    _, other = processes.perturb(PROCESSES["VE"], x, 1.0, getkey())
    np.testing.assert_array_equal(z, again)
    assert abs(float((z * other).mean())) < 5 / 200


def test_perturb_keeps_low_precision_data_and_float32_times(getkey):
    x = jnp.ones((4, 2), jnp.bfloat16)
    x_t, z = processes.perturb(PROCESSES["VPLinear"], x, 0.3, getkey())
    assert x_t.dtype == z.dtype == jnp.bfloat16


def test_noise_of_low_precision_data_is_drawn_in_float32(getkey):
    """The normal numbers that jax.random draws in bfloat16 have the variance 0.993."""
    zeros = jnp.zeros((1_000_000,), jnp.bfloat16)
    _, z = processes.perturb(processes.VE(), zeros, 1.0, getkey())
    start = processes.prior_sample(
        processes.VE(sigma_max=2.0), getkey(), zeros.shape, dtype=jnp.bfloat16
    )
    for draws in (np.float64(z), np.float64(start) / 2.0):
        assert abs(draws.mean()) < 4.5 / 1e3
        assert abs((draws**2).mean() - 1.0) < 4.5 * np.sqrt(2.0) / 1e3


@pytest.mark.parametrize("process", [processes.VPLinear(beta_max=200.0), processes.VPLinear()])
def test_time_of_any_noise_ratio(process):
    """Also of one whose square overflows; to the rounding of the integrated rate."""
    t = np.array([1e-5, 1e-3, 0.02, 0.1, 0.3, 0.8, 1.0])
    rate = process.beta_min * t + 0.5 * (process.beta_max - process.beta_min) * t**2
    ratio = np.sqrt(np.expm1(rate)).astype(np.float32)
    np.testing.assert_allclose(process.time_at(ratio), t, rtol=2e-6)


@each_process
def test_slope_of_the_time_of_a_noise_ratio(process):
    """Also where formulas meet, at 1: ``r dt / dr`` is one over the slope of ``log r``."""
    for ratio in (0.5, 1.0, 2.0):
        t = process.time_at(ratio)
        log_ratio = lambda t: jnp.log(processes.noise_ratio(process, t))  # noqa: E731
        slope = ratio * jax.grad(process.time_at)(ratio)
        np.testing.assert_allclose(slope, 1.0 / jax.grad(log_ratio)(t), rtol=1e-4)


@each_process
def test_marginal_std(process, getkey):
    """The closed form, and the spread of data of that spread once they are noised."""
    t = times(process)[1:]
    expected = np.sqrt((0.7 * process.alpha(t)) ** 2 + process.sigma(t) ** 2)
    found = processes.marginal_std(process, t, 0.7)
    assert found.shape == t.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    x = 0.7 * jax.random.normal(getkey(), (200_000,))
    x_t, _ = processes.perturb(process, x, t[3], getkey())
    np.testing.assert_allclose(x_t.std(), found[3], rtol=4.5 / np.sqrt(2 * 200_000))


@each_process
def test_marginal_std_rounds_as_the_plain_formula(process):
    """The scale that keeps the squares within range is a power of two, which rounds nothing."""
    t = jnp.asarray(times(process, 200)[1:], jnp.float32)
    signal, sigma = jnp.float32(0.7) * process.alpha(t), process.sigma(t)
    found = processes.marginal_std(process, t, jnp.float32(0.7))
    np.testing.assert_array_equal(found, jnp.sqrt(signal**2 + sigma**2))


def test_marginal_std_where_squares_leave_float32():
    std = jax.jit(processes.marginal_std)
    process = processes.VE(sigma_min=1e-32, sigma_max=1e32)
    for unit in (1e-30, 1e30):
        np.testing.assert_allclose(std(process, 4.0 * unit, 3.0 * unit), 5.0 * unit, rtol=1e-6)
    np.testing.assert_allclose(std(process, 1e30, 1.0), 1e30)
    np.testing.assert_allclose(std(process, 3e38, 1.0), 3e38, rtol=1e-6)
    np.testing.assert_array_equal(std(process, 0.0, 0.0), 0.0)
    np.testing.assert_allclose(std(process, 1e-30, 1.0), 1.0)
    slope = jax.grad(processes.marginal_std, argnums=(1, 2))
    for t, d in ((4.0, 3.0), (3.0, 3.0), (4e30, 3e30), (0.0, 2.0)):
        np.testing.assert_allclose(slope(process, t, d), (t / np.hypot(t, d), d / np.hypot(t, d)))


@each_process
def test_prior(process, getkey):
    sigma = float(process.sigma(process.t_max))
    draws = processes.prior_sample(process, getkey(), (20_000, 2))
    assert abs(float((draws**2).mean()) / sigma**2 - 1) < 5 * np.sqrt(2 / 40_000)
    x = np.array([[0.3, -1.0], [2.0, 0.5]])
    expected = -0.5 * (x**2).sum(1) / sigma**2 - np.log(2 * np.pi * sigma**2)
    np.testing.assert_allclose(processes.prior_log_prob(process, jnp.array(x)), expected, rtol=1e-5)


@each_process
@pytest.mark.parametrize("event_shape", [(), (1,), (2, 3)])
def test_the_prior_is_centered_at_the_scaled_mean(process, event_shape, getkey):
    """And equals the noised data in law, to the sampling error, where their spread is nothing."""
    mean = 40.0 + np.arange(np.prod(event_shape)).reshape(event_shape)
    process = dataclasses.replace(process, mean=mean)
    alpha, sigma = (float(c(process.t_max)) for c in (process.alpha, process.sigma))
    draws = processes.prior_sample(process, getkey(), (4096, *event_shape))
    assert_mean(draws, alpha * mean)
    np.testing.assert_allclose(draws.std(), sigma, rtol=5 / np.sqrt(2 * draws.size))
    x = np.asarray(draws[:5], np.float64)
    expected = scipy.stats.norm.logpdf(x, alpha * mean, sigma).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(processes.prior_log_prob(process, draws[:5]), expected, rtol=1e-5)
    scalar = dataclasses.replace(process, mean=jnp.float32(40.0))
    whole = dataclasses.replace(process, mean=jnp.full(event_shape, 40.0))
    found = (jax.jit(processes.prior_log_prob)(p, draws[:5]) for p in (scalar, whole))
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_process_without_a_mean_counts_as_centered(getkey):
    class Bare:
        t_min, t_max = 0.01, 2.0
        alpha = staticmethod(jnp.ones_like)
        sigma = time = staticmethod(jnp.asarray)

    x = jax.random.normal(getkey(), (4, 3))
    expected = processes.prior_log_prob(processes.VE(0.01, 2.0), x)
    np.testing.assert_array_equal(processes.prior_log_prob(Bare(), x), expected)
    np.testing.assert_array_equal(processes.data_mean(Bare(), (3,)), np.zeros(3))


@each_process
def test_gradients_by_every_parameter_in_float64(process, getkey):
    """Of all that a process defines, by central differences."""
    with jax.enable_x64(True):
        process = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)
        process = dataclasses.replace(process, mean=jnp.array([0.7, -0.4]))
        t = times(process)[1:-1]
        ratios = processes.noise_ratio(process, t)
        x = jax.random.normal(getkey(), (3, 2), jnp.float64)

        def values(process):
            return {
                "alpha": process.alpha(t),
                "sigma": process.sigma(t),
                "time": process.time_at(ratios),
                "diffusion": processes.diffusion_squared(process, t),
                "prior": processes.prior_log_prob(process, x),
                "draws": processes.prior_sample(process, jax.random.key(1), (3, 2), jnp.float64),
            }

        leaves, treedef = jax.tree.flatten(process)
        found = jax.jacrev(values)(process)
        for i, leaf in enumerate(leaves):
            for j in np.ndindex(leaf.shape):
                h = 1e-5 * leaf[j]

                def at(sign, i=i, j=j, h=h):
                    moved = [*leaves[:i], leaves[i].at[j].add(sign * h), *leaves[i + 1 :]]
                    return values(jax.tree.unflatten(treedef, moved))

                there, back = at(1), at(-1)
                for name in there:
                    gradient = jax.tree.leaves(found[name])[i][(..., *j)]
                    slope = (there[name] - back[name]) / (2 * h)
                    rounding = 20 * np.finfo(float).eps * np.abs(there[name]).max() / abs(h)
                    np.testing.assert_allclose(
                        gradient, slope, rtol=1e-7, atol=rounding, err_msg=f"{name}, leaf {i}"
                    )


@each_process
def test_time_grid(process):
    rho, n = 7.0, 6
    grid = processes.time_grid(process, n, rho=rho)
    assert grid.shape == (n + 1,)
    np.testing.assert_allclose(grid[jnp.array([0, -1])], [process.t_max, process.t_min], rtol=1e-6)
    r = np.asarray(processes.noise_ratio(process, grid), np.float64)
    spread = np.linspace(r[0] ** (1 / rho), r[-1] ** (1 / rho), n + 1) ** rho
    np.testing.assert_allclose(r, spread, rtol=2e-3)
    np.testing.assert_array_less(np.diff(grid), 0)
    coarse = processes.time_grid(process, n, rho=3.0)
    assert not np.allclose(grid[1:-1], coarse[1:-1], rtol=0.05)


def test_times_are_checked_up_to_rounding_and_where_they_are_known():
    process = processes.VE()
    times = [50.0 * (1 + 4e-7), 1.0, 0.01 * (1 - 4e-7)]
    np.testing.assert_allclose(processes.check_times(process, times), times, rtol=1e-6)
    check = jax.jit(processes.check_times)
    np.testing.assert_array_equal(check(process, jnp.array([60.0, 1.0])), [60.0, 1.0])
    known = jax.jit(lambda process: processes.check_times(process, [60.0, 1.0]))
    np.testing.assert_array_equal(known(process), [60.0, 1.0])
    with pytest.raises(ValueError, match="range of the process"):  # neither is traced
        jax.jit(lambda: processes.check_times(process, [60.0, 1.0]))()


@each_process
def test_times_below_the_range_are_refused(process):
    """Of what the process has below its smallest time only rounding is let through."""
    low, high = float(process.t_min), float(process.t_max)
    processes.check_times(process, [high, np.float32(low)])
    for time in (-1e-7 * high, -1e-9 * high, 0.99 * low - 1e-12):
        with pytest.raises(ValueError, match="range of the process"):
            processes.check_times(process, [high, time])


def test_a_small_t_min_is_no_license_for_negative_times():
    process = processes.VE(sigma_min=1e-9, sigma_max=50.0)
    processes.check_times(process, [50.0, 1e-9])
    for time in (-1e-5, -1e-12, 0.0, 0.9e-9):
        with pytest.raises(ValueError, match="range of the process"):
            processes.check_times(process, [50.0, time])


def test_times_that_coincide_in_their_dtype_are_refused():
    with pytest.raises(ValueError, match="must strictly decrease"):
        processes.check_times(processes.VE(), np.array([2.0, 1.0 + 1e-12, 1.0]))
    with jax.enable_x64(True):
        processes.check_times(processes.VE(), np.array([2.0, 1.0 + 1e-12, 1.0]))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_grids_strictly_decrease_for_many_steps(process):
    for rho in (1.0, 7.0, 20.0):
        grid = np.asarray(processes.time_grid(process, 4096, rho=rho))
        assert np.all(np.diff(grid) < 0)
        np.testing.assert_array_equal(grid[[0, -1]], np.float32([process.t_max, process.t_min]))


def test_times_that_a_low_precision_has_rounded_are_taken():
    process = processes.VE(sigma_min=0.7, sigma_max=50.0)
    times = jnp.array([process.t_max, 1.0, process.t_min], jnp.bfloat16)
    assert float(times[-1]) < 0.7 * (1.0 - 1e-3)
    np.testing.assert_array_equal(processes.check_times(process, times), times)


def test_cosine_keeps_its_digits_where_alpha_vanishes():
    t = np.float32([0.1, 0.49, 0.5, 0.51, 0.9, 0.999, 0.99999, 0.9999999])
    exact = np.sin(0.5 * np.pi * (1.0 - t.astype(np.float64)))
    np.testing.assert_allclose(processes.Cosine().alpha(t), exact, rtol=3e-7)


@pytest.mark.parametrize(
    "process", [processes.Cosine(t_max=0.999999), processes.VE(sigma_min=1.0, sigma_max=1.0001)]
)
def test_a_grid_with_equal_times_is_refused(process):
    """Near alpha = 0, or in a short range, float32 has fewer numbers than there are steps."""
    with pytest.raises(ValueError, match=r"num_steps=4096 are more than float32 tells apart near"):
        processes.time_grid(process, 4096)
    assert np.all(np.diff(processes.time_grid(process, 30)) < 0)
    with jax.enable_x64(True):
        assert np.all(np.diff(processes.time_grid(process, 4096)) < 0)


@each_process
def test_processes_are_pytrees(process, getkey):
    """A process may be traced: its parameters are leaves, and nothing retraces on new values."""
    leaves, treedef = jax.tree.flatten(process)
    assert len(leaves) == len(dataclasses.fields(process))
    traces = []

    @jax.jit
    def sigma(process, t):
        traces.append(t)
        return process.sigma(t)

    t = 0.5 * (process.t_min + process.t_max)
    np.testing.assert_allclose(sigma(process, t), process.sigma(t), rtol=1e-6)
    other = jax.tree.unflatten(treedef, [1.01 * leaf for leaf in leaves[:1]] + leaves[1:])
    np.testing.assert_allclose(sigma(other, t), other.sigma(t), rtol=1e-6)
    assert len(traces) == 1


@each_process
def test_the_leaves_of_a_process_may_be_anything(process):
    """Only the constructor checks: pytrees hold tangents, stacks and placeholders."""
    t = 0.5 * (process.t_min + process.t_max)
    gradient = jax.grad(lambda process: process.sigma(t) / process.alpha(t))(process)
    assert type(gradient) is type(process)
    for field in dataclasses.fields(process):
        value = getattr(process, field.name)
        step = 1e-3 * (value or 1.0)
        there, back = (
            dataclasses.replace(process, **{field.name: value + sign * step}) for sign in (1, -1)
        )
        slope = (there.sigma(t) / there.alpha(t) - back.sigma(t) / back.alpha(t)) / (2 * step)
        np.testing.assert_allclose(getattr(gradient, field.name), slope, rtol=0.02, atol=1e-4)
    zeros = jax.tree.map(jnp.zeros_like, process)
    assert type(zeros) is type(process)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), process, process)
    np.testing.assert_allclose(jax.vmap(lambda p: p.sigma(t))(stack), process.sigma(t), rtol=1e-6)
    many = jax.vmap(lambda high: processes.VE(0.01 * high, high))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(many.t_min, [0.01, 0.02])


def test_a_constant_rate_is_the_ornstein_uhlenbeck_process():
    process = processes.VPLinear(beta_min=2.0, beta_max=2.0)
    np.testing.assert_allclose(process.alpha(0.7), np.exp(-0.7), rtol=1e-6)
    np.testing.assert_allclose(process.time_at(process.sigma(0.7) / process.alpha(0.7)), 0.7, 1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: processes.VE(sigma_min=2.0, sigma_max=1.0), "sigma_min must be below sigma_max"),
        (lambda: processes.VE(sigma_min=1.0, sigma_max=1.0), "sigma_min=1.0 and sigma_max=1.0"),
        (lambda: processes.VE(sigma_min=-1.0), "sigma_min must be positive and finite, got -1.0"),
        (lambda: processes.EDM(sigma_max=float("inf")), "sigma_max must be positive and finite"),
        (lambda: processes.GeometricVE(sigma_min=3.0, sigma_max=1.0), "must be below"),
        (lambda: processes.VPLinear(beta_min=20.0, beta_max=0.1), "beta_min must be below"),
        (lambda: processes.VPLinear(t_min=1.5), "t_min must be below t_max"),
        (lambda: processes.Cosine(t_max=1.0), "t_max must be below 1"),
        (lambda: processes.VPLinear(mean=[0.0, np.nan]), "mean must be finite"),
        (
            lambda: processes.prior_log_prob(processes.VE(mean=jnp.ones(3)), jnp.ones((3, 2))),
            r"scalar or have the shape of one event, \(2,\), got shape \(3,\)",
        ),
        (
            lambda: processes.prior_sample(processes.EDM(mean=[1.0]), jax.random.key(0), (3, 2)),
            r"scalar or have the shape of one event, \(2,\), got shape \(1,\)",
        ),
        (lambda: processes.time_grid(processes.VE(), 0), "num_steps must be at least 1, got 0"),
        (lambda: processes.time_grid(processes.VE(), 3, rho=0.0), "rho must be positive"),
        (
            lambda: processes.time_grid(processes.VE(), 3, rho=0.01),
            r"rho=0.01 takes r\^\(1 / rho\) out of the range of float32: raise it",
        ),
        (lambda: processes.check_times(processes.VE(), [1.0]), "at least two times"),
        (lambda: processes.check_times(processes.VE(), [1.0, 2.0]), "must strictly decrease"),
        (lambda: processes.check_times(processes.VE(), [60.0, 1.0]), r"range of the process"),
        (lambda: processes.check_times(processes.VE(), [50.0, 1e-3]), r"range of the process"),
        (
            lambda: processes.perturb(
                processes.VE(), jnp.ones((3, 2)), jnp.ones(2), jax.random.key(0)
            ),
            r"t must be a scalar or one number per example, shape \(3,\), got shape \(2,\)",
        ),
        (
            lambda: processes.perturb(processes.VE(), jnp.ones((3, 2)), -1.0, jax.random.key(0)),
            "t must be finite and not negative",
        ),
    ],
)
def test_bad_values(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_counts_must_be_integers():
    with pytest.raises(TypeError, match="num_steps must be a Python int"):
        processes.time_grid(processes.VE(), 3.0)
