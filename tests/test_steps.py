"""Steps and the loop around them: closed forms, loops of one's own, the samplers made of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import processes, samplers
from sm_jax.samplers import steps

T, T_NEXT = 0.7, 0.4
VE = processes.VE(sigma_min=0.1, sigma_max=5.0)


def score_fn(x, t):
    return -x / (1.0 + t[:, None])


@pytest.fixture
def constant_noise(monkeypatch):
    """All random numbers are 0.7, so that the noise of a step can be followed by hand."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.full(shape, 0.7, dtype))
    return 0.7


# Closed forms of single steps.


def test_euler_maruyama_by_hand(constant_noise, getkey):
    """VPLinear has f = -beta / 2 and g^2 = beta, with beta = 0.1 + 19.9 t."""
    x, h = np.array([[1.0, -0.5]]), T - T_NEXT
    beta = 0.1 + 19.9 * T
    expected = x - h * (-0.5 * beta * x - beta * (-x / (1.0 + T))) + np.sqrt(beta * h) * 0.7
    out = steps.euler_maruyama(score_fn, x, T, T_NEXT, getkey(), process=processes.VPLinear())
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize("inverse_temperature", [1.0, 4.0])
def test_langevin_by_hand(inverse_temperature, constant_noise, getkey):
    x, h = np.array([[1.0, -0.5]]), 0.3
    out = steps.langevin(
        lambda x: -2.0 * x, x, getkey(), step_size=h, inverse_temperature=inverse_temperature
    )
    expected = x - h * 2.0 * x + np.sqrt(2.0 * h / inverse_temperature) * 0.7
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_the_corrector_is_a_langevin_step_at_the_next_time(constant_noise, getkey):
    process, x = processes.Cosine(), np.array([[1.0, -0.5]])
    h = 2.0 * (0.3 * np.sin(np.pi * T_NEXT / 2)) ** 2
    expected = x - h * x / (1.0 + T_NEXT) + np.sqrt(2.0 * h) * 0.7
    for t in (T, T_NEXT):  # also alone, at one time
        out = steps.corrector(score_fn, x, t, T_NEXT, getkey(), process=process, snr=0.3)
        np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize(("gamma", "t_max"), [(0.0, 0.8), (0.2, 0.8), (3.0, 0.8), (0.2, 0.72)])
def test_heun_by_hand(gamma, t_max, constant_noise, getkey):
    """The equations of its docstring, in float64, with both bounds of the churn."""
    process = processes.Cosine(t_max=t_max)
    x = np.array([[1.0, -0.5]])
    alpha, r = (lambda t: np.cos(np.pi * t / 2)), (lambda t: np.tan(np.pi * t / 2))
    raised = min(r(T) * (1.0 + min(gamma, np.sqrt(2.0) - 1.0)), r(t_max))
    assert (t_max == 0.72) == (raised == r(t_max))
    at = 2.0 / np.pi * np.arctan(raised)
    y = x / alpha(T) + 1.3 * np.sqrt(raised**2 - r(T) ** 2) * 0.7

    def slope(y, t):
        return -r(t) * alpha(t) * (-alpha(t) * y / (1.0 + t))

    first = slope(y, at)
    second = slope(y + (r(T_NEXT) - raised) * first, T_NEXT)
    expected = alpha(T_NEXT) * (y + (r(T_NEXT) - raised) * (first + second) / 2.0)
    out = steps.heun(
        score_fn, x, T, T_NEXT, getkey(), process=process, gamma=gamma, churn_noise=1.3
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_churn_intervals_hold_their_upper_end(getkey):
    x, key = jnp.ones((1, 2)), getkey()
    step = partial(steps.heun, score_fn, x, T, T_NEXT, key, process=VE)
    churned, still = step(gamma=0.1), step()
    assert np.abs(churned - still).max() > 1e-2
    for interval, expected in (
        ((0.5, T), churned),
        ((T, 0.9), still),
        ((0.5, 0.9), churned),
        ((0.8, 0.9), still),
    ):
        out = step(gamma=0.1, churn_interval=tuple(np.float32(interval)))
        np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_defaults(getkey):
    x, key, options = jnp.ones((1, 2)), getkey(), {"process": VE}
    given = {
        "ddim": ({}, {"eta": 0.0}),
        "heun": ({"gamma": 0.1}, {"gamma": 0.1, "churn_noise": 1.0}),
        "corrector": ({}, {"snr": 0.16}),
        "predictor_corrector": (
            {},
            {"predictor": steps.reverse_diffusion, "num_corrector_steps": 1, "snr": 0.16},
        ),
    }
    for name, (few, all_of_them) in given.items():
        call = partial(getattr(steps, name), score_fn, x, T, T_NEXT, key, **options)
        np.testing.assert_array_equal(call(**few), call(**all_of_them))


# The samplers are loops of steps.

PAIRS = {
    "euler_maruyama": (steps.euler_maruyama, samplers.euler_maruyama),
    "reverse_diffusion": (steps.reverse_diffusion, samplers.reverse_diffusion),
    "ancestral": (steps.ancestral, samplers.ancestral),
    "ddim": (steps.ddim, samplers.ddim),
    "ddim, eta": (partial(steps.ddim, eta=0.6), partial(samplers.ddim, eta=0.6)),
    "heun": (steps.heun, samplers.heun),
    "heun, churn": (
        partial(steps.heun, gamma=0.2, churn_noise=1.1),
        partial(samplers.heun, churn=1.4, churn_noise=1.1),
    ),
    "predictor_corrector": (
        partial(steps.predictor_corrector, predictor=steps.ancestral, snr=0.2),
        partial(samplers.predictor_corrector, predictor=steps.ancestral, snr=0.2),
    ),
}
each_pair = pytest.mark.parametrize("name", PAIRS)


@each_pair
def test_a_loop_of_ones_own_is_the_sampler(name, getkey):
    """With the keys that it splits, in seven steps, to rounding."""
    step, sampler = PAIRS[name]
    process, key = processes.VPLinear(), getkey()
    start = processes.prior_sample(process, getkey(), (5, 2))
    times, keys = processes.time_grid(process, 7), jax.random.split(key, 7)
    x, path = start, [start]
    for i in range(7):
        x = step(score_fn, x, times[i], times[i + 1], keys[i], process=process)
        path.append(x)
    options = {"process": process, "times": times, "trajectory": True}
    for call in (sampler, partial(samplers.solve, step)):
        out, trajectory = call(score_fn, start, key, **options)
        np.testing.assert_allclose(trajectory, path, rtol=1e-5, atol=1e-5)
        denoised = (x + process.sigma(times[-1]) ** 2 * score_fn(x, times[-1:])) / process.alpha(
            times[-1]
        )
        np.testing.assert_allclose(out, denoised, rtol=1e-5, atol=1e-5)


@each_pair
def test_steps_under_jit_and_vmap_with_traced_times(name, getkey):
    step = partial(PAIRS[name][0], score_fn, process=processes.VPLinear())
    x, keys = jax.random.normal(getkey(), (3, 2)), jax.random.split(getkey(), 2)
    t, t_next = jnp.array([0.7, 0.2]), jnp.array([0.4, 0.1])
    expected = [step(x, float(t[i]), float(t_next[i]), keys[i]) for i in range(2)]
    jitted = jax.jit(step)
    np.testing.assert_allclose(jitted(x, t[0], t_next[0], keys[0]), expected[0], rtol=1e-5)
    out = jax.vmap(step, (None, 0, 0, 0))(x, t, t_next, keys)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2


@pytest.mark.parametrize("name", ["langevin", "annealed_langevin"])
def test_langevin_samplers_are_loops_of_its_step(name, getkey):
    start, key, sigmas = jax.random.normal(getkey(), (3, 2)), getkey(), [2.0, 1.0, 0.5]
    keys, x = jax.random.split(key, 6), start
    if name == "langevin":
        out = samplers.langevin(lambda x: -x, start, key, step_size=0.1, num_steps=6)
        for i in range(6):
            x = steps.langevin(lambda x: -x, x, keys[i], step_size=0.1)
    else:
        options = {"sigmas": sigmas, "step_size": 0.01, "steps_per_level": 2, "denoise": False}
        out = samplers.annealed_langevin(score_fn, start, key, **options)
        for i in range(6):
            sigma = sigmas[i // 2]
            h = 0.01 * (sigma / 0.5) ** 2
            score_at = partial(lambda sigma, x: score_fn(x, jnp.full(3, sigma)), sigma)
            x = steps.langevin(score_at, x, keys[i], step_size=h)
    np.testing.assert_allclose(out, x, rtol=1e-5, atol=1e-6)


def test_consistent_annealed_is_ddim(getkey):
    """Of VE, with the share beta / sqrt(1 - gamma^2) of the ancestral noise, level by level."""
    sigmas, eta = np.geomspace(4.0, 0.5, 7), 0.4
    gamma = sigmas[1] / sigmas[0]
    share = np.sqrt((1.0 - (1.0 - eta) ** 2 / gamma**2) / (1.0 - gamma**2))
    x, key = 4.0 * jax.random.normal(getkey(), (5, 2)), getkey()
    out = samplers.consistent_annealed(
        score_fn, x, key, sigmas=sigmas, step_size=eta * sigmas[-1] ** 2
    )
    ddim = samplers.ddim(score_fn, x, key, process=VE, times=sigmas, eta=share)
    np.testing.assert_allclose(out, ddim, rtol=1e-4, atol=1e-4)


# The loop, around a step of the user's own.


def exact_flow(score_fn, x, t, t_next, key, *, process):
    """The probability flow of VE for data from N(0, 1)."""
    assert key is None
    return x * jnp.sqrt((1.0 + t_next**2) / (1.0 + t**2))


def test_solve_with_a_step_of_ones_own(getkey):
    x = jax.random.normal(getkey(), (4, 2))
    normal_score = lambda x, t: -x / (1.0 + t[:, None] ** 2)  # noqa: E731
    solve = partial(samplers.solve, exact_flow, normal_score, x, process=VE)
    exact = x * np.sqrt((1.0 + 0.1**2) / (1.0 + 5.0**2))
    np.testing.assert_allclose(solve(num_steps=9, denoise=False), exact, rtol=1e-5)
    np.testing.assert_allclose(solve(times=[5.0, 2.0, 0.1]), exact / (1.0 + 0.1**2), rtol=1e-5)
    out, path = solve(num_steps=2, trajectory=True)
    times = np.asarray(processes.time_grid(VE, 2))
    expected = np.asarray(x) * np.sqrt((1.0 + times**2) / (1.0 + 5.0**2))[:, None, None]
    np.testing.assert_allclose(path, expected, rtol=1e-5)
    assert out.shape == x.shape
    _, path = solve(trajectory=True)
    assert len(path) == 257


def test_keys_are_fresh_at_each_step(getkey):
    def step(score_fn, x, t, t_next, key, *, process):
        return jnp.broadcast_to(jax.random.uniform(key), x.shape)

    key = getkey()
    _, path = samplers.solve(
        step, score_fn, jnp.zeros((1, 1)), key, process=VE, num_steps=5, trajectory=True
    )
    expected = [jax.random.uniform(k) for k in jax.random.split(key, 5)]
    np.testing.assert_array_equal(path[1:, 0, 0], expected)
    assert len(set(map(float, expected))) == 5


def test_the_state_is_float32_and_the_score_sees_the_dtype_of_the_data(getkey):
    seen = []

    def low_score(x, t):
        seen.append((x.dtype, t.dtype))
        return -x

    def step(score_fn, x, t, t_next, key, *, process):
        seen.append((x.dtype, score_fn(x, jnp.full(len(x), t)).dtype))
        return x + 2.0**-12  # lost in bfloat16

    x = jnp.ones((2, 1), jnp.bfloat16)
    out = samplers.solve(step, low_score, x, process=VE, num_steps=256, denoise=False)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, 1.0 + 256 * 2.0**-12)
    low, high = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    assert set(seen) == {(low, high), (high, high)}


@each_pair
def test_steps_keep_the_dtype(name, getkey):
    step = partial(PAIRS[name][0], lambda x, t: -x, process=VE)
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
            x = jax.ShapeDtypeStruct((3, 2), dtype)
            out = jax.eval_shape(lambda x: step(x, T, T_NEXT, jax.random.key(0)), x)
            assert out.dtype == dtype


# Multistep solvers.


def test_third_order_by_hand():
    """The equations of the docstring of `dpm_solver_pp`, step by step, in float64."""
    r = np.array([4.0, 2.5, 1.1, 0.7, 0.2])
    level, x = -np.log(r), np.array([[1.0], [-0.5]])
    denoisers, expected = [], [x]
    for i in range(4):
        now = [*denoisers, x + r[i] ** 2 * np.sin(x)]  # VE, with the score sin(x)
        h = np.diff(level)[: i + 1][::-1]  # newest first
        zeroth = 1.0 - np.exp(-h[0])
        first = h[0] - zeroth
        second = h[0] ** 2 - 2.0 * first
        x = np.exp(-h[0]) * x + zeroth * now[-1]
        if i >= 1:
            d_1 = (now[-1] - now[-2]) / h[1]
            x = x + first * d_1
        if i == 1:
            x = x + np.exp(-h[0]) * (h[1] - (1.0 - np.exp(-h[1]))) * d_1
        if i >= 2:
            d_2 = (now[-2] - now[-3]) / h[2]
            x = x + (second + h[1] * first) * (d_1 - d_2) / (h[1] + h[2])
        denoisers = now
        expected.append(x)
    with jax.enable_x64(True):
        _, path = samplers.dpm_solver_pp(
            lambda x, t: jnp.sin(x),
            expected[0],
            process=VE,
            times=r,
            order=3,
            trajectory=True,
        )
    np.testing.assert_allclose(path, expected, rtol=1e-12)


# Bad input.


def step_of(name, key=None, t=T, t_next=T_NEXT, score_fn=score_fn, **options):
    return partial(
        getattr(steps, name), score_fn, jnp.ones((2, 3)), t, t_next, key, process=VE, **options
    )


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (step_of("ddim", t_next=T), ValueError, "t_next must be below t, .* got 0.7 from t=0.7"),
        (step_of("heun", t=[T, T]), ValueError, r"t must be one number, got shape \(2,\)"),
        (step_of("ddim", score_fn=lambda x, t: x[:1]), ValueError, r"shape of x, \(2, 3\)"),
        (step_of("ancestral"), TypeError, "ancestral draws random numbers: pass a key"),
        (step_of("reverse_diffusion"), TypeError, "reverse_diffusion draws random numbers"),
        (step_of("euler_maruyama"), TypeError, "euler_maruyama draws random numbers"),
        (step_of("corrector"), TypeError, "langevin draws random numbers"),
        (step_of("predictor_corrector"), TypeError, "predictor_corrector draws random numbers"),
        (step_of("corrector", KEY, snr=0.0), ValueError, "snr must be positive"),
        (step_of("ddim", eta=0.5), ValueError, "eta=0.5 draws noise: pass a key, or eta=0."),
        (step_of("heun", gamma=0.5), ValueError, "gamma=0.5 draws noise: pass a key, or gamma=0."),
        (step_of("heun", KEY, gamma=-0.5), ValueError, "gamma must be finite and not negative"),
        (
            step_of("heun", KEY, gamma=0.1, churn_interval=(1.0, 1.0)),
            ValueError,
            "low < high, got",
        ),
        (
            step_of("heun", KEY, gamma=0.1, churn_interval=(1.0, 2.0, 3.0)),
            ValueError,
            r"churn_interval must be \(low, high\), got \(1.0, 2.0, 3.0\)",
        ),
        (
            partial(steps.langevin, lambda x: -x, jnp.ones((2, 3)), KEY, step_size=-0.1),
            ValueError,
            "step_size must be positive",
        ),
        (
            partial(steps.langevin, lambda x: -x, jnp.ones((2, 3)), None, step_size=0.1),
            TypeError,
            "langevin draws random numbers",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
