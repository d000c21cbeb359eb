"""Diffusion samplers: exact transitions, order on any grid, one law for all processes."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from sm_jax import processes, samplers
from sm_jax.samplers import steps
from tests.oracles import COV, MEAN, PROCESSES, gaussian_noised_score
from tests.test_samplers import assert_gaussian, prior

THREE = {name: PROCESSES[name] for name in ("GeometricVE", "SubVP", "Cosine")}
each_process = pytest.mark.parametrize("process", THREE.values(), ids=THREE.keys())
MIXTURE = {"weights": np.array([0.3, 0.7]), "means": np.array([-1.0, 0.8])}
STDS = np.array([0.5, 0.4])

VE_SHORT = processes.VE(sigma_min=0.1, sigma_max=4.0)

third = partial(samplers.dpm_solver_pp, order=3)
DETERMINISTIC = {
    "ddim": samplers.ddim,
    "heun": samplers.heun,
    "2M": samplers.dpm_solver_pp,
    "3M": third,
}
STOCHASTIC = {
    "reverse_diffusion": samplers.reverse_diffusion,
    "ancestral": samplers.ancestral,
    "ddim half": partial(samplers.ddim, eta=0.5),
    "dpm_solver_pp_sde": samplers.dpm_solver_pp_sde,
    "predictor_corrector": samplers.predictor_corrector,
}


@pytest.fixture
def constant_noise(monkeypatch):
    """All random numbers are 0.7, so that the noise of a step can be followed by hand."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.full(shape, 0.7, dtype))
    return 0.7


def widened(process):
    return jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)


def mixture_score(process):
    """Score of a mixture of two Gaussians in one dimension."""
    log_weights, means = np.log(MIXTURE["weights"]), MIXTURE["means"]

    def score_fn(x, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        away = x - alpha * means[None].astype(x.dtype)
        variance = alpha**2 * (STDS**2)[None].astype(x.dtype) + sigma**2
        logits = log_weights[None].astype(x.dtype) - 0.5 * (jnp.log(variance) + away**2 / variance)
        share = jax.nn.softmax(logits, axis=1)
        return -jnp.sum(share * away / variance, axis=1, keepdims=True).astype(x.dtype)

    return score_fn


def mixture_flow(y, high, low):
    """The probability flow of that mixture from ratio to ratio, by SciPy, in float64."""

    def denoiser(y, r):
        variance = STDS[:, None] ** 2 + r**2
        away = y[None] - MIXTURE["means"][:, None]
        logits = np.log(MIXTURE["weights"] / 1.0)[:, None] - 0.5 * (
            np.log(variance) + away**2 / variance
        )
        share = np.exp(logits - logits.max(0))
        means = y[None] - r**2 * away / variance
        return (share * means).sum(0) / share.sum(0)

    solved = scipy.integrate.solve_ivp(
        lambda level, y: denoiser(y, np.exp(-level)) - y,
        (-np.log(high), -np.log(low)),
        y,
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    return solved.y[:, -1]


def ratios(num, *, high=4.0, low=0.1, wobble=0.0):
    """Noise ratios from high to low; even in their logarithm, or now dense and now sparse."""
    s = np.linspace(0, 1, num + 1)
    s = s + wobble * np.sin(2 * np.pi * s)
    return high ** (1 - s) * low**s


# Order.


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("2M", 2), ("3M", 3)])
def test_order_of_convergence(name, order):
    """From the middle of the noise on, where the first steps count, to a mixture's other shape."""
    with jax.enable_x64(True):
        process, y = widened(processes.VPLinear()), np.linspace(-4, 4, 9)
        exact = mixture_flow(y, 4.0, 0.1)

        @jax.jit
        def solve(times):
            x = (process.alpha(times[0]) * y)[:, None]
            out = DETERMINISTIC[name](
                mixture_score(process), x, process=process, times=times, denoise=False
            )
            return out[:, 0] / process.alpha(times[-1])

        for wobble in (0.0, 0.1):
            errors = [
                np.abs(solve(process.time_at(ratios(n, wobble=wobble))) - exact).max()
                for n in (160, 320)
            ]
            assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15


@pytest.mark.slow
def test_gradients_in_the_options(getkey):
    """Also where a noise is none: eta = 0, and a level that churn cannot raise."""
    process, x, key = VE_SHORT, jnp.array([[3.0]]), getkey()
    score_fn = mixture_score(process)
    times = jnp.array([4.0, 2.0, 1.0, 0.5])

    def ddim(eta):
        return samplers.ddim(score_fn, x, key, process=process, times=times, eta=eta).sum()

    step = 1e-2
    slope = (ddim(step) - ddim(0.0)) / step
    np.testing.assert_allclose(jax.grad(ddim)(0.0), slope, rtol=0.1)

    def heun(middle):
        grid = times.at[1].set(middle)
        return samplers.heun(score_fn, x, key, process=process, times=grid, churn=2.0).sum()

    slope = (heun(2.0 + step) - heun(2.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(heun)(2.0), slope, rtol=0.05)


# Exact steps.


def one_step(sampler, score_fn, process, x, key=None, r=(1.5, 0.6)):
    times = process.time_at(jnp.array(r))
    return sampler(score_fn, x, key, process=process, times=times, denoise=False)


def coefficients(process, r=(1.5, 0.6)):
    """``alpha_t, sigma_t, alpha_s, sigma_s`` of that step, in float64."""
    t, s = np.asarray(process.time_at(jnp.array(r)), np.float64)
    return [float(c) for t in (t, s) for c in (process.alpha(t), process.sigma(t))]


@each_process
def test_ancestral_draws_from_the_posterior(process, constant_noise, getkey):
    """Bayes for x_s given x_0 = D: prior N(alpha_s D, sigma_s^2), likelihood of x_t given x_s."""
    alpha_t, sigma_t, alpha_s, sigma_s = coefficients(process)
    clean, x = 0.4, jnp.array([[1.0], [-0.5]])
    a = alpha_t / alpha_s
    added = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / added
    mean = (alpha_s * clean / sigma_s**2 + a * np.asarray(x) / added) / precision
    score_fn = lambda x, t: (alpha_t * clean - x) / sigma_t**2  # noqa: E731
    out = one_step(samplers.ancestral, score_fn, process, x, getkey())
    expected = mean + constant_noise / np.sqrt(precision)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@each_process
def test_reverse_diffusion_reverses_the_transition(process, constant_noise, getkey):
    alpha_t, sigma_t, alpha_s, sigma_s = coefficients(process)
    x, a = np.array([[1.0], [-0.5]], np.float32), alpha_t / alpha_s
    variance = sigma_t**2 - a**2 * sigma_s**2
    out = one_step(samplers.reverse_diffusion, lambda x, t: 0.3 * x, process, x, getkey())
    expected = (2 - a) * x + variance * 0.3 * x + np.sqrt(variance) * constant_noise
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@each_process
def test_ddim_with_all_the_noise_is_ancestral(process, getkey):
    x, key, score_fn = prior(process, getkey(), 3), getkey(), gaussian_noised_score(process)
    call = partial(samplers.ancestral, score_fn, x, key, process=process, num_steps=9)
    ddim = partial(samplers.ddim, score_fn, x, key, process=process, num_steps=9, eta=1.0)
    np.testing.assert_allclose(ddim(), call(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_keeps_the_law_given_the_data(eta, constant_noise, getkey):
    """From N(alpha_t D, sigma_t^2) to N(alpha_s D, sigma_s^2), if the data are D, in one step."""
    process, clean = processes.SubVP(), 0.4
    alpha_t, sigma_t, alpha_s, sigma_s = coefficients(process)
    score_fn = lambda x, t: (alpha_t * clean - x) / sigma_t**2  # noqa: E731
    sampler = partial(samplers.ddim, eta=eta)
    # at the mean, and one standard deviation away
    x = jnp.array([[alpha_t * clean], [alpha_t * clean + sigma_t]])
    out = np.asarray(one_step(sampler, score_fn, process, x, getkey()), np.float64)[:, 0]
    noise = (out[0] - alpha_s * clean) / constant_noise
    slope = out[1] - out[0]
    np.testing.assert_allclose(noise**2 + slope**2, sigma_s**2, rtol=1e-4)
    r = sigma_t / alpha_t, sigma_s / alpha_s
    expected = eta * sigma_s * np.sqrt(1 - (r[1] / r[0]) ** 2)
    np.testing.assert_allclose(noise, expected, rtol=1e-4, atol=1e-6)
    traced = jax.jit(
        lambda eta: one_step(
            partial(samplers.ddim, eta=eta), score_fn, process, x, jax.random.key(0)
        )
    )(eta)
    np.testing.assert_allclose(traced[:, 0], out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "2M", "3M"])
def test_one_point_is_reached_in_any_number_of_steps(name):
    """The denoiser of a point mass is constant: y - D shrinks as the noise does."""
    process, point = processes.VPLinear(), 0.4

    def score_fn(x, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        return (alpha * point - x) / sigma**2

    for num in (1, 5):
        times = process.time_at(ratios(num, wobble=0.1))
        x = process.alpha(times[0]) * jnp.array([[3.0], [-2.0]])
        out = DETERMINISTIC[name](score_fn, x, process=process, times=times, denoise=False)
        expected = point + 0.1 / 4.0 * (np.array([[3.0], [-2.0]]) - point)
        np.testing.assert_allclose(out / process.alpha(times[-1]), expected, rtol=1e-4)


@pytest.mark.parametrize(("num", "wobble"), [(2, 0.0), (7, 0.1)])
def test_third_order_is_exact_for_a_denoiser_linear_in_time(num, wobble):
    """D = p + q l, from the second step on: dy/dl = D - y has the solution D - q + C exp(-l)."""
    with jax.enable_x64(True):
        process = widened(processes.VPLinear())

        def denoiser(r):
            return 0.4 - 0.3 * np.log(r)

        def score_fn(x, t):
            alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
            return (alpha * (0.4 - 0.3 * jnp.log(sigma / alpha)) - x) / sigma**2

        r = ratios(num, wobble=wobble)
        times = process.time_at(r)
        out = third(
            score_fn,
            process.alpha(times[:1])[None] * 2.0,
            process=process,
            times=times,
            denoise=False,
        )
        decay = (2.0 - (denoiser(4.0) - 0.3)) * 0.1 / 4.0
        expected = denoiser(0.1) - 0.3 + decay
        np.testing.assert_allclose(out / process.alpha(times[-1]), expected, rtol=1e-10)


@pytest.mark.parametrize("sampler", [samplers.dpm_solver_pp, third, samplers.dpm_solver_pp_sde])
def test_the_first_step_of_a_multistep_method(sampler, getkey):
    """It knows no past: DDIM, deterministic or with all the noise."""
    process, x, key = processes.Cosine(), jnp.array([[1.0], [-0.5]]), getkey()
    eta = 1.0 if sampler is samplers.dpm_solver_pp_sde else 0.0
    out = one_step(sampler, lambda x, t: -0.8 * x, process, x, key)
    ddim = one_step(partial(samplers.ddim, eta=eta), lambda x, t: -0.8 * x, process, x, key)
    np.testing.assert_allclose(out, ddim, rtol=1e-5)


def test_the_second_step_extrapolates_the_denoiser(constant_noise, getkey):
    """2M as published: D + (h / h_before) (D - D_before) / 2 in the place of D."""
    process, x, r = processes.VE(), jnp.array([[1.0], [-0.5]]), [1.5, 0.6, 0.4]
    for sampler, rate in ((samplers.dpm_solver_pp, 1), (samplers.dpm_solver_pp_sde, 2)):
        out, path = sampler(
            lambda x, t: -0.8 * x,
            x,
            getkey(),
            process=process,
            times=r,
            denoise=False,
            trajectory=True,
        )
        before, now = ((1 - 0.8 * r[i] ** 2) * np.asarray(path[i]) for i in (0, 1))
        ahead = np.log(0.6 / 0.4) / np.log(1.5 / 0.6)
        target = now + 0.5 * ahead * (now - before)
        kept = (0.4 / 0.6) ** rate
        noise = 0.4 * np.sqrt(1 - kept) * constant_noise * (rate - 1)
        expected = kept * np.asarray(path[1]) + (1 - kept) * target + noise
        np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["heun", "3M", "ddim half", "dpm_solver_pp_sde"])
def test_processes_differ_in_scale_only(name, getkey):
    """On the same ratios, and with the same noise, x / alpha is the same for every process."""
    key, y = getkey(), 4.0 * jax.random.normal(getkey(), (3, 1))
    found = []
    for process in THREE.values():
        times = process.time_at(ratios(6))
        out = (DETERMINISTIC | STOCHASTIC)[name](
            mixture_score(process), process.alpha(times[0]) * y, key, process=process, times=times
        )
        found.append(out)
    for out in found[1:]:
        np.testing.assert_allclose(out, found[0], rtol=2e-4, atol=2e-4)


# Predictor and corrector.


def stay(score_fn, x, t, t_next, key, *, process):
    return x


def correct(score_fn, x, key, **options):
    process, times = processes.VPLinear(), processes.VPLinear().time_at(jnp.array([1.5, 0.6]))
    return samplers.predictor_corrector(
        score_fn, x, key, process=process, times=times, predictor=stay, denoise=False, **options
    )


def test_the_corrector_is_a_langevin_step_of_the_asked_ratio(constant_noise, getkey):
    """At the time that was reached, and of one length for all points."""
    _, _, _, sigma = coefficients(processes.VPLinear())
    x = np.array([[3.0, -4.0], [0.5, 1.0], [0.0, 0.0]], np.float32)
    out = correct(lambda x, t: -2.0 * x * t[:, None], x, getkey(), snr=0.3)
    score = -2.0 * x * float(processes.VPLinear().time_at(0.6))
    step = 2 * (0.3 * sigma) ** 2
    expected = x + step * score + np.sqrt(2 * step) * constant_noise
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    # the ratio of the step to its noise, if the score is that of noise alone
    np.testing.assert_allclose(step / sigma / np.sqrt(2 * step), 0.3, rtol=1e-6)


def test_corrector_steps_follow_one_another(constant_noise, getkey):
    x, score_fn = np.array([[3.0, -4.0]], np.float32), lambda x, t: -x
    twice = correct(score_fn, correct(score_fn, x, getkey()), getkey())
    out = correct(score_fn, x, getkey(), num_corrector_steps=2)
    np.testing.assert_allclose(out, twice, rtol=1e-5)


def test_no_corrector_is_the_predictor(getkey):
    process, x = processes.VPLinear(), jax.random.normal(getkey(), (3, 2))
    call = partial(samplers.predictor_corrector, lambda x, t: -1.3 * x, x, getkey())
    for name in ("ddim", "heun"):
        predictor, sampler = getattr(steps, name), getattr(samplers, name)
        out = call(process=process, num_steps=5, predictor=predictor, num_corrector_steps=0)
        expected = sampler(lambda x, t: -1.3 * x, x, process=process, num_steps=5)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)


def test_a_predictor_keeps_its_options(getkey):
    """The churn of each step is that of the step, and its key is half of the step's."""
    x, key = jnp.ones((3, 1)), getkey()
    options = {"process": VE_SHORT, "num_steps": 1, "denoise": False}
    out = samplers.predictor_corrector(
        lambda x, t: -x,
        x,
        key,
        predictor=partial(steps.heun, gamma=0.3),
        num_corrector_steps=0,
        **options,
    )
    key_predictor, _ = jax.random.split(jax.random.split(key, 1)[0])
    t, t_next = processes.time_grid(VE_SHORT, 1)
    expected = steps.heun(lambda x, t: -x, x, t, t_next, key_predictor, process=VE_SHORT, gamma=0.3)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    times = jnp.array([2.0, 1.0])  # not from the largest level
    still = samplers.heun(lambda x, t: 0 * x, x, key, process=VE_SHORT, times=times, churn=1.0)
    assert np.all(np.abs(still - x) > 1e-3)


# Samples.


@pytest.mark.parametrize("name", ["dpm_solver_pp_sde", "predictor_corrector"])
def test_mean_and_covariance(name, getkey):
    process = processes.VPLinear()
    call = partial(STOCHASTIC[name], gaussian_noised_score(process), process=process, num_steps=150)
    x = jax.jit(call)(prior(process, getkey(), 10_000), getkey())
    assert_gaussian(x, MEAN, COV, slack=0.03)


@pytest.mark.parametrize("name", ["3M", "ancestral", "dpm_solver_pp_sde", "predictor_corrector"])
def test_weights_of_the_modes(name, getkey):
    process, n = processes.VE(sigma_max=20.0), 10_000
    k = jax.random.bernoulli(getkey(), MIXTURE["weights"][1], (n, 1)).astype(int)
    std = np.sqrt(STDS**2 + 400.0)
    x = jnp.asarray(MIXTURE["means"])[k] + jnp.asarray(std)[k] * jax.random.normal(getkey(), (n, 1))
    sampler = (DETERMINISTIC | STOCHASTIC)[name]
    call = partial(sampler, mixture_score(process), process=process, num_steps=100)
    x = np.asarray(jax.jit(call)(x, getkey()), np.float64)
    draws = np.random.default_rng(0)
    which = draws.random(400_000) < 0.7
    true = np.where(which, 0.8, -1.0) + np.where(which, 0.4, 0.5) * draws.normal(size=400_000)
    # what is left is the error of the solver at 100 steps
    for cut in (-1.0, -0.2, 0.8):
        share = np.mean(true < cut)
        assert abs(np.mean(x < cut) - share) < 4.5 * np.sqrt(share * (1 - share) / n) + 0.012


# Contract.


CALLS = (
    DETERMINISTIC
    | STOCHASTIC
    | {"pc ddim": partial(samplers.predictor_corrector, predictor=partial(steps.ddim, eta=0.5))}
)


@pytest.mark.parametrize("name", CALLS)
def test_contract(name, getkey):
    """Any event, jit, vmap, one trace, the path, the denoiser, keys that matter, dtypes."""
    process, key, traces = processes.VPLinear(), getkey(), []
    sampler = partial(CALLS[name], lambda x, t: -1.2 * x, process=process)

    @jax.jit
    def jitted(x, key):
        traces.append(x)
        return sampler(x, key, num_steps=5, trajectory=True)

    x = jax.random.normal(getkey(), (3, 2, 2, 1))
    out, path = jitted(x, key)
    assert out.shape == x.shape
    assert path.shape == (6, *x.shape)
    np.testing.assert_array_equal(path[0], x)
    t = np.float32(process.t_min)
    denoised = (1 - 1.2 * process.sigma(t) ** 2) / process.alpha(t) * path[-1]
    np.testing.assert_allclose(out, denoised, rtol=1e-5, atol=1e-7)
    other, _ = jitted(x, getkey())
    assert len(traces) == 1
    assert (np.abs(other - out).max() > 1e-3) == (name not in DETERMINISTIC)
    # rows do not see one another
    changed, _ = jitted(x.at[1].add(1.0), key)
    np.testing.assert_array_equal(changed[0], out[0])
    rows = jax.eval_shape(jax.vmap(partial(sampler, num_steps=2)), x, jax.random.split(key, 3))
    assert rows.shape == x.shape
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
            x = jax.ShapeDtypeStruct((4,), dtype)
            assert jax.eval_shape(partial(sampler, num_steps=2), x, key).dtype == dtype


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_is_fresh_in_every_step_and_row(name, getkey):
    """A score of zero leaves nothing but noise under VE, uncorrelated between steps and rows."""
    call = partial(STOCHASTIC[name], lambda x, t: 0 * x, process=processes.VE(), num_steps=9)
    _, path = call(jnp.zeros((2, 4_000)), getkey(), trajectory=True)
    increments = np.asarray(path[1:]).copy()
    increments[1:] -= path[1:-1]
    if name == "dpm_solver_pp_sde":  # D = x there: what a step adds to its extrapolation
        increments = increments[:1]
    correlation = np.corrcoef(increments.reshape(-1, 4_000))
    correlation = correlation[~np.eye(len(correlation), dtype=bool)]
    assert np.abs(correlation).max() < 5.5 / np.sqrt(4_000)


@pytest.mark.parametrize(
    ("sampler", "num"),
    [
        (samplers.reverse_diffusion, 256),
        (samplers.ancestral, 256),
        (samplers.ddim, 64),
        (samplers.predictor_corrector, 128),
        (samplers.dpm_solver_pp, 24),
        (samplers.dpm_solver_pp_sde, 64),
    ],
)
def test_default_number_of_steps(sampler, num, getkey):
    call = partial(sampler, lambda x, t: -x, process=processes.VE(), trajectory=True)
    _, path = jax.eval_shape(call, jnp.ones((1, 1)), getkey())
    assert len(path) == num + 1
    assert f"{num} or more by default" in inspect.getdoc(sampler)


def test_the_default_grid_of_multistep_methods_is_nearly_even():
    """Even in log r, so that the ratio of two steps stays near one; from end to end."""
    seen = []

    def score_fn(x, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return -x

    process = processes.VE()
    samplers.dpm_solver_pp(score_fn, jnp.ones((1, 1)), process=process, num_steps=10)
    jax.effects_barrier()
    steps = -np.diff(np.log(seen))
    assert len(seen) == 11  # one a step, and the denoising
    np.testing.assert_allclose([seen[0], seen[-1]], [50.0, 0.01], rtol=1e-5)
    assert steps.max() / steps.min() < 1.15


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (partial(samplers.ddim, eta=0.5), ValueError, "eta=0.5 draws noise: pass a key"),
        (partial(samplers.ddim, eta=1.5), ValueError, r"in \[0, 1\], got 1.5"),
        (partial(samplers.ddim, eta=-0.1), ValueError, r"in \[0, 1\], got -0.1"),
        (partial(samplers.ddim, eta=[0.1, 0.2]), ValueError, "eta must be one number"),
        (partial(samplers.dpm_solver_pp, order=1), ValueError, "order must be 2 or 3, got 1"),
        (partial(samplers.dpm_solver_pp, order=4), ValueError, "order must be 2 or 3, got 4"),
        (partial(samplers.dpm_solver_pp, num_steps=0), ValueError, "num_steps must be at least 1"),
        (partial(samplers.ddim, num_steps=2, times=[2.0, 1.0]), ValueError, "not both"),
        (partial(samplers.ddim, times=[1.0, 2.0]), ValueError, "decrease"),
        (partial(samplers.dpm_solver_pp, times=[99.0, 1.0]), ValueError, "range of the process"),
        (
            partial(samplers.predictor_corrector, key=KEY, num_corrector_steps=-1),
            ValueError,
            "num_corrector_steps must be at least 0, got -1",
        ),
        (
            partial(samplers.predictor_corrector, key=KEY, snr=0.0),
            ValueError,
            "snr must be positive",
        ),
        (
            partial(samplers.predictor_corrector, key=KEY, snr=[0.1, 0.2]),
            ValueError,
            r"snr must be one number, got shape \(2,\)",
        ),
        (
            partial(
                samplers.predictor_corrector,
                key=KEY,
                num_corrector_steps=0,
                predictor=lambda score_fn, x, t, t_next, key, process: (x, x),
            ),
            ValueError,
            r"step must return points of shape \(2, 3\), got \(",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(lambda x, t: -x, jnp.ones((2, 3)), process=processes.VE())


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.dpm_solver_pp])
def test_bad_score(sampler):
    with pytest.raises(ValueError, match=r"shape of x, \(2, 3\), got \(1, 3\)"):
        sampler(lambda x, t: x[:1], jnp.ones((2, 3)), process=processes.VE())
    with pytest.raises(TypeError, match="x must have a floating dtype"):
        sampler(lambda x, t: x, jnp.ones((2, 3), int), process=processes.VE())


@pytest.mark.parametrize("options", [{}, {"churn": 1.0, "churn_interval": (2.0, 3.0)}])
def test_heun_is_at_the_times_of_its_grid(options, getkey):
    """Not at the times of their ratios, which differ by rounding near alpha = 0."""
    process, seen = processes.Cosine(t_max=0.99999), []

    def score_fn(x, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return -x

    grid = np.asarray(processes.time_grid(process, 20))
    options = {"process": process, "num_steps": 20, "denoise": False, **options}
    samplers.heun(score_fn, jnp.ones((1, 2)), getkey(), **options)
    jax.effects_barrier()
    np.testing.assert_array_equal(seen, np.stack([grid[:-1], grid[1:]], axis=1).ravel())
