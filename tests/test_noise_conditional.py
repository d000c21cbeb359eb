"""Losses over noise levels and in continuous time, and the distributions of times."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import integrate, stats

from sm_jax import losses, processes
from sm_jax.parameterization import precondition
from tests.oracles import (
    COV,
    MEAN,
    PROCESSES,
    A,
    assert_mean,
    gaussian_noised_score,
    linear_score,
)

SIGMAS = np.array([3.0, 1.0, 0.3], np.float32)

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def conditional_score(x, sigma):
    """A score that depends on the level: ``b - A x / (1 + sigma)``, per row."""
    flat = linear_score(x) / (1.0 + sigma[:, None])
    return flat.astype(x.dtype)


def half_square(v):
    return 0.5 * np.sum(np.asarray(v, np.float64) ** 2, axis=-1)


@pytest.fixture
def x(getkey):
    return jax.random.normal(getkey(), (6, 3))


@pytest.mark.parametrize("control_variate", [False, True])
def test_multiscale_denoising(x, getkey, control_variate):
    z = jax.random.normal(getkey(), x.shape)
    value = losses.multiscale_denoising(
        conditional_score,
        x,
        getkey(),
        sigmas=SIGMAS,
        noise=lambda *_: z,
        control_variate=control_variate,
    )
    assert value.shape == (3, 6)
    for sigma, row in zip(SIGMAS, value, strict=True):
        each = jnp.full(6, sigma)
        expected = half_square(sigma * conditional_score(x + sigma * z, each) + z)
        if control_variate:
            expected -= np.sum(z * sigma * conditional_score(x, each), 1) + half_square(z) - 1.5
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_multiscale_noise_is_independent_between_levels(getkey):
    """With a score of zero the loss is |z|^2 / 2, of variance d / 2."""
    value = losses.multiscale_denoising(
        lambda x, sigma: 0.0 * x, jnp.zeros((20_000, 3)), getkey(), sigmas=SIGMAS
    )
    correlation = np.corrcoef(np.asarray(value))[~np.eye(3, dtype=bool)]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(20_000)
    assert_mean(value.ravel(), 1.5)


def test_noise_conditional_draws_every_level_alike(getkey):
    """The score receives the level that the data were noised to, and each has one third."""
    seen = []

    def score_fn(x, sigma):
        seen.append((x, sigma))
        return 0.0 * x

    x = jnp.zeros((30_000, 1))
    z = jax.random.normal(getkey(), x.shape)
    losses.noise_conditional(score_fn, x, getkey(), sigmas=SIGMAS, noise=lambda *_: z)
    noised, sigma = seen[0]
    np.testing.assert_allclose(noised, sigma[:, None] * z, rtol=1e-6)
    counts = [int((sigma == s).sum()) for s in SIGMAS]
    assert sum(counts) == 30_000
    assert stats.chisquare(counts).pvalue > 1e-5
    losses.noise_conditional(score_fn, x, getkey(), sigmas=SIGMAS)
    assert np.abs(np.corrcoef(seen[1][1], sigma)[0, 1]) < 4.5 / np.sqrt(30_000)
    z = seen[1][0][:, 0] / seen[1][1]
    assert np.abs(np.corrcoef(z**2, seen[1][1])[0, 1]) < 4.5 / np.sqrt(30_000)


@pytest.mark.parametrize("control_variate", [False, True])
def test_noise_conditional_is_the_mean_of_multiscale(getkey, control_variate):
    x = jax.random.normal(getkey(), (60_000, 3))
    options = dict(sigmas=SIGMAS, control_variate=control_variate)
    levels = losses.multiscale_denoising(conditional_score, x, getkey(), **options)
    single = losses.noise_conditional(conditional_score, x, getkey(), **options)
    error = np.hypot(levels.mean(0).std() / np.sqrt(60_000), float(single.std()) / np.sqrt(60_000))
    assert abs(float(levels.mean() - single.mean())) < 4.5 * error


def test_noise_conditional_sliced(x, getkey):
    """sigma^2 (v' grad s v + |s|^2 / 2) of the noised data, level by level."""
    z, v = jax.random.normal(getkey(), (2, *x.shape))
    for sigma in SIGMAS:
        for variance_reduced in (True, False):
            value = losses.noise_conditional_sliced(
                conditional_score,
                x,
                getkey(),
                sigmas=[sigma],
                noise=lambda *_: z,
                probe=lambda *_: v,
                variance_reduced=variance_reduced,
            )
            score = conditional_score(x + sigma * z, jnp.full(6, sigma))
            form = -jnp.einsum("bi,ij,bj->b", v, A, v) / (1 + sigma)
            square = half_square(score) if variance_reduced else 0.5 * jnp.sum(v * score, 1) ** 2
            expected = sigma**2 * (form + square)
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


def test_sliced_and_denoising_agree_up_to_a_constant_over_levels(getkey):
    """The same noised density: gradients in a parameter have one mean."""
    x = jax.random.normal(getkey(), (60_000, 3))

    def slope(loss_fn, key):
        def value(c):
            def score_fn(x, sigma):
                return -c * jnp.tanh(x) / (1.0 + sigma[:, None])

            return loss_fn(score_fn, x, key, sigmas=SIGMAS)

        return np.asarray(jax.jvp(value, (1.0,), (1.0,))[1])

    first = slope(losses.noise_conditional, getkey())
    second = slope(losses.noise_conditional_sliced, getkey())
    error = np.hypot(first.std(), second.std()) / np.sqrt(60_000)
    assert abs(first.mean() - second.mean()) < 4.5 * error
    assert abs(first.mean()) > 20 * error


def fixed_t(t):
    return lambda process, key, shape, dtype: (jnp.asarray(t, dtype), jnp.ones(shape, dtype))


@each_process
@pytest.mark.parametrize("control_variate", [False, True])
def test_diffusion_at_given_times(process, control_variate, x, getkey):
    t = jnp.linspace(process.t_min, process.t_max, 8)[1:-1]
    z = jax.random.normal(getkey(), x.shape)
    weight = jnp.arange(1.0, 7.0)

    def score_fn(x, t):
        return linear_score(x) / (1.0 + t[:, None])

    value = losses.diffusion(
        score_fn,
        x,
        getkey(),
        process=process,
        sample_times=fixed_t(t),
        weight=lambda process, t: weight,
        noise=lambda *_: z,
        control_variate=control_variate,
    )
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    expected = half_square(sigma * score_fn(alpha * x + sigma * z, t) + z)
    if control_variate:
        expected -= np.sum(z * sigma * score_fn(alpha * x, t), 1) + half_square(z) - 1.5
    np.testing.assert_allclose(value, weight * expected, rtol=1e-3, atol=1e-3)


@each_process
def test_diffusion_is_stationary_at_the_true_score(process, getkey):
    """The gradient in a perturbation of the score of Gaussian data is zero in the mean."""
    x = jax.random.multivariate_normal(getkey(), jnp.array(MEAN), jnp.array(COV), (20_000,))
    score_fn, key = gaussian_noised_score(process), getkey()

    @partial(jax.jit, static_argnums=0)
    def slope(factor):
        def value(c):
            def perturbed(x, t):
                sigma = process.sigma(t)[:, None]
                return factor * score_fn(x, t) + c * jnp.tanh(x) / sigma

            return losses.diffusion(perturbed, x, key, process=process)

        return jax.jvp(value, (0.0,), (1.0,))[1]

    assert_mean(slope(1.0), 0.0)
    wrong = np.asarray(slope(1.3))
    assert abs(wrong.mean()) > 6 * wrong.std() / np.sqrt(len(wrong))


def test_weights():
    t = np.array([0.2, 0.7])
    edm, vp = PROCESSES["EDM"], PROCESSES["VPLinear"]
    np.testing.assert_allclose(losses.unit_weight(vp, jnp.array(t)), [1.0, 1.0])
    beta = 0.1 + 19.9 * t
    b = 0.1 * t + 0.5 * 19.9 * t**2
    np.testing.assert_allclose(
        losses.likelihood_weight(vp, jnp.array(t)), beta / (1 - np.exp(-b)), rtol=1e-5
    )
    np.testing.assert_allclose(losses.likelihood_weight(edm, jnp.array(t)), 2 / t, rtol=1e-5)
    np.testing.assert_allclose(
        losses.edm_weight(edm, jnp.array(t), sigma_data=0.7), (t**2 + 0.49) / 0.49, rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.edm_weight(edm, jnp.array([0.5]), sigma_data=0.5), [2.0], rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.edm_weight(vp, jnp.array(t), sigma_data=0.5), 1 + (np.exp(b) - 1) / 0.25, rtol=1e-5
    )


@each_process
def test_edm_weighting_is_half_the_loss_of_edm(process, x, getkey):
    """1/2 (r^2 + d^2) / (r d)^2 |D - x_0|^2, with D from the score."""
    from sm_jax.parameterization import denoiser_from_score

    d = 0.8
    t = jnp.linspace(process.t_min, process.t_max, 8)[1:-1]
    z = jax.random.normal(getkey(), x.shape)
    score_fn = gaussian_noised_score(process)
    value = losses.diffusion(
        score_fn,
        x,
        getkey(),
        process=process,
        sample_times=fixed_t(t),
        weight=partial(losses.edm_weight, sigma_data=d),
        noise=lambda *_: z,
    )
    x_t = process.alpha(t)[:, None] * x + process.sigma(t)[:, None] * z
    error = np.asarray(denoiser_from_score(score_fn, process=process)(x_t, t) - x, np.float64)
    r = np.asarray(processes.noise_ratio(process, t), np.float64)
    expected = 0.5 * (r**2 + d**2) / (r * d) ** 2 * np.sum(error**2, axis=1)
    np.testing.assert_allclose(value, expected, rtol=2e-2)


@each_process
@pytest.mark.parametrize("uniform", [jax.random.uniform, losses.low_discrepancy])
def test_distributions_of_times(process, uniform, getkey):
    """Kolmogorov-Smirnov against the distribution that each sampler claims."""
    n, low, high = 4_000, float(process.t_min), float(process.t_max)
    shape = ((n,), jnp.float32)
    t, importance = losses.uniform_times(process, getkey(), *shape, uniform=uniform)
    assert stats.kstest(t, stats.uniform(low, high - low).cdf).pvalue > 1e-4
    np.testing.assert_array_equal(importance, np.ones(n))

    t, importance = losses.log_normal_times(
        process, getkey(), *shape, mean=-0.5, std=0.7, uniform=uniform
    )
    r = processes.noise_ratio(process, t)
    assert stats.kstest(np.log(r), stats.norm(-0.5, 0.7).cdf).pvalue > 1e-4
    np.testing.assert_array_equal(importance, np.ones(n))

    t, importance = losses.likelihood_times(process, getkey(), *shape, uniform=uniform)
    ends = np.log([float(processes.noise_ratio(process, v)) for v in (low, high)])
    log_r = np.log(processes.noise_ratio(process, t))
    assert stats.kstest(log_r, stats.uniform(ends[0], ends[1] - ends[0]).cdf).pvalue > 1e-4
    assert float(t.min()) >= low
    assert float(t.max()) <= high


def test_defaults_of_the_log_normal_are_those_of_edm(getkey):
    t, _ = losses.log_normal_times(PROCESSES["EDM"], getkey(), (20_000,), jnp.float32)
    assert stats.kstest(np.log(t), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-4


@pytest.mark.slow
@each_process
def test_likelihood_times_have_density_of_the_likelihood_weight(process, getkey):
    """Histogram against g^2 / sigma^2 by quadrature; weight times importance is its integral."""
    with jax.enable_x64(True):
        process = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)
        n, low, high = 20_000, float(process.t_min), float(process.t_max)
        t, importance = losses.likelihood_times(process, getkey(), (n,), jnp.float64)
        edges = np.quantile(np.asarray(t), [0.1, 0.3, 0.6, 0.9])
        weight = jax.jit(partial(losses.likelihood_weight, process))

        def mass(a, b):  # in log t, in which no process is peaked
            return integrate.quad(
                lambda u: float(weight(np.exp(u)) * np.exp(u)), np.log(a), np.log(b), limit=200
            )[0]

        grid = [max(low, 1e-9), *edges, high]
        masses = np.array([mass(a, b) for a, b in itertools.pairwise(grid)])
        if low == 0.0:  # the geometric process starts at t = 0 with a constant weight
            masses[0] += 1e-9 * float(weight(1e-9))
        counts = np.histogram(t, [low, *edges, high])[0]
        assert stats.chisquare(counts, n * masses / masses.sum()).pvalue > 1e-4
        constant = weight(t) * importance
        np.testing.assert_allclose(constant, masses.sum() / (high - low), rtol=1e-5)


def test_importance_sampling_keeps_the_mean(getkey):
    """E[w/2 |z|^2] over uniform times, by quadrature, for a score of zero."""
    process = processes.VPLinear(t_min=1e-2)
    value = losses.diffusion(
        lambda x, t: 0.0 * x,
        jnp.zeros((40_000, 2)),
        getkey(),
        process=process,
        sample_times=losses.likelihood_times,
        weight=losses.likelihood_weight,
    )

    def weight(t):
        b = 0.1 * t + 0.5 * 19.9 * t**2
        return (0.1 + 19.9 * t) / -np.expm1(-b)

    expected = integrate.quad(weight, 1e-2, 1.0)[0] / 0.99  # E |z|^2 / 2 = 1
    assert_mean(value, expected)
    plain = losses.diffusion(
        lambda x, t: 0.0 * x,
        jnp.zeros((40_000, 2)),
        getkey(),
        process=process,
        weight=losses.likelihood_weight,
    )
    assert_mean(plain, expected)
    assert value.std() < plain.std()


PARTIAL = {  # as functions of two parameters, with values of these
    "VE": (processes.VE, 0.5, 3.0),
    "GeometricVE": (processes.GeometricVE, 0.2, 5.0),
    "VPLinear": (partial(processes.VPLinear, t_min=0.3), 0.1, 20.0),
    "SubVP": (partial(processes.SubVP, t_min=0.2), 0.3, 5.0),
    "Cosine": (processes.Cosine, 0.1, 0.6),
}
each_partial = pytest.mark.parametrize("case", PARTIAL.values(), ids=PARTIAL.keys())


@each_partial
def test_importance_keeps_the_mean_over_part_of_the_times(case, getkey):
    """Of a function of time, by quadrature."""
    process = case[0](*case[1:])
    t, importance = losses.likelihood_times(process, getkey(), (50_000,), jnp.float32)
    low, high = float(process.t_min), float(process.t_max)
    expected = integrate.quad(lambda t: np.sqrt(t) * np.cos(t / high), low, high)[0] / (high - low)
    assert_mean(np.sqrt(t) * np.cos(t / high) * importance, expected)


@pytest.mark.slow
@each_partial
@pytest.mark.parametrize(
    "sample_times", [losses.uniform_times, losses.likelihood_times, losses.log_normal_times]
)
def test_gradients_in_the_parameters_of_a_process(case, sample_times, getkey):
    """Against differences in float64, through times, importance, weight and noised data."""
    with jax.enable_x64(True):
        x, key = jax.random.normal(getkey(), (16, 2), jnp.float64), getkey()

        @jax.jit
        def value(parameters):
            return losses.diffusion(
                lambda x, t: jnp.sin(x) * t[:, None] - x / (1 + t[:, None]),
                x,
                key,
                process=case[0](*parameters),
                sample_times=sample_times,
                weight=losses.likelihood_weight,
            ).mean()

        check_grads(value, (jnp.array(case[1:]),), order=1, modes=["rev"], rtol=1e-5)


def test_the_least_uniform_number_gives_a_finite_time_and_gradient():
    """``jax.random.uniform`` gives 0 once in 2^23 draws, the logarithm of a noise ratio of zero."""

    def time(mean, process):
        t, _ = losses.log_normal_times(
            process, None, (1,), jnp.float32, mean=mean, uniform=lambda *_: jnp.zeros(1)
        )
        return t[0]

    for process in PROCESSES.values():
        value, slope = jax.value_and_grad(time)(-1.2, process)
        assert process.t_min <= value <= process.t_max
        difference = (time(-1.15, process) - time(-1.25, process)) / 0.1
        np.testing.assert_allclose(slope, difference, rtol=0.02, atol=1e-7)


@pytest.mark.parametrize(
    "sample_times", [losses.uniform_times, losses.likelihood_times, losses.log_normal_times]
)
def test_float32_data_stay_so_with_parameters_in_float64(sample_times, getkey):
    """Where 64 bits are enabled: times, importance and the loss."""
    with jax.enable_x64(True):
        process = processes.VPLinear(*(np.float64(v) for v in (0.1, 20.0, 1e-3)))
        for part in sample_times(process, getkey(), (5,), jnp.float32):
            assert part.dtype == jnp.float32
        value = losses.diffusion(
            precondition(same_dtypes, process=process, sigma_data=0.5),
            jnp.ones((5, 2), jnp.float32),
            getkey(),
            process=process,
            sample_times=sample_times,
            weight=losses.likelihood_weight,
        )
        assert value.dtype == jnp.float32


def same_dtypes(x, label):
    assert x.dtype == label.dtype == jnp.float32
    return x * label[:, None]


def test_low_discrepancy(getkey):
    key = getkey()
    u = losses.low_discrepancy(key, (2, 8), jnp.float32)
    np.testing.assert_allclose(np.diff(np.asarray(u).ravel()) % 1.0, 1 / 16, rtol=1e-4)
    assert 0 <= float(u.min()) < float(u.max()) < 1
    starts = [losses.low_discrepancy(getkey(), (4,), jnp.float32).min() for _ in range(200)]
    assert stats.kstest(np.array(starts) * 4, stats.uniform.cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    "loss_fn",
    [
        partial(losses.multiscale_denoising, sigmas=SIGMAS),
        partial(losses.noise_conditional, sigmas=SIGMAS),
        partial(losses.noise_conditional_sliced, sigmas=SIGMAS),
        partial(losses.diffusion, process=processes.VPLinear()),
        partial(
            losses.diffusion,
            process=processes.EDM(),
            sample_times=losses.log_normal_times,
            weight=partial(losses.edm_weight, sigma_data=0.5),
        ),
    ],
)
@pytest.mark.parametrize("shape", [(5,), (1, 3), (4, 4), (3, 2, 2, 1)])
def test_contract(loss_fn, shape, getkey):
    x, key = jax.random.normal(getkey(), shape), getkey()
    traces = []

    def score_fn(x, t):
        assert t.shape == x.shape[:1]
        assert t.dtype == jnp.float32
        return (-x / (1.0 + t.reshape(-1, *[1] * (x.ndim - 1)))).astype(x.dtype)

    @jax.jit
    def jitted(x, key):
        traces.append(x)
        return loss_fn(score_fn, x, key)

    value = jitted(x, key)
    assert value.shape[-1:] == shape[:1]
    np.testing.assert_allclose(value, loss_fn(score_fn, x, key), rtol=1e-3, atol=1e-5)
    assert np.any(np.abs(jitted(x, getkey()) - value) > 1e-4)
    assert len(traces) == 1
    if shape == (4, 4):
        low = jax.jit(partial(loss_fn, score_fn))(x.astype(jnp.bfloat16), key)
        assert low.dtype == jnp.float32


@pytest.mark.parametrize(
    ("loss_fn", "scale", "expected"),
    [
        (partial(losses.multiscale_denoising, sigmas=[1.0]), 0, 0.5),  # E[z^2] / 2
        (partial(losses.noise_conditional, sigmas=[1.0]), 0, 0.5),
        (partial(losses.noise_conditional_sliced, sigmas=[1.0]), -1, -0.5),  # E[z^2] / 2 - 1
        (partial(losses.diffusion, process=processes.VE()), 0, 0.5),
    ],
)
def test_noise_of_bfloat16_has_unit_variance(loss_fn, scale, expected, getkey):
    """Drawn in bfloat16, normal numbers have the variance 0.993, and none is above 2.9."""
    x = jnp.zeros((4_000_000, 1), jnp.bfloat16)
    assert_mean(loss_fn(lambda x, t: scale * x, x, getkey()).ravel(), expected)


def test_levels_below_the_spacing_of_the_data_are_refused(getkey):
    """Spacing 0.0078 of float32 at 1e5; a process warns, for its smallest times are few."""
    x, key = jnp.full((4, 3), 1e5), getkey()
    for loss_fn in (
        losses.multiscale_denoising,
        losses.noise_conditional,
        losses.noise_conditional_sliced,
    ):
        with pytest.raises(ValueError, match=r"smallest of sigmas is 0.003, below.*up to 0.00781"):
            loss_fn(conditional_score, x, key, sigmas=[1.0, 0.003])
        loss_fn(conditional_score, x, key, sigmas=[1.0, 0.004])

    def run(x, process):
        return losses.diffusion(lambda x, t: -x, x, key, process=process)

    with pytest.warns(UserWarning, match=r"sigma\(t_min\) of the process is 0.003, below.*0.00781"):
        run(x, processes.VE(sigma_min=0.003))
    run(x, processes.VE(sigma_min=0.004))
    jax.jit(run)(x, processes.VE(sigma_min=0.003))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(losses.noise_conditional, sigmas=[1.0, 2.0]), "must be strictly decreasing"),
        (partial(losses.multiscale_denoising, sigmas=[1.0, 1.0]), "must be strictly decreasing"),
        (partial(losses.noise_conditional_sliced, sigmas=[1.0, 0.0]), "sigmas must be positive"),
        (partial(losses.noise_conditional, sigmas=[[1.0]]), r"got shape \(1, 1\)"),
        (partial(losses.noise_conditional, sigmas=[]), r"got shape \(0,\)"),
        (
            partial(losses.diffusion, process=processes.VE(), weight=lambda p, t: t[:2]),
            r"weight must be a scalar or one number per example, shape \(6,\), got shape \(2,\)",
        ),
        (
            partial(losses.diffusion, process=processes.VE(), sample_times=fixed_t([1.0, 2.0])),
            r"t must be a scalar or one number per example",
        ),
    ],
)
def test_bad_input(call, message, x, getkey):
    with pytest.raises(ValueError, match=message):
        call(conditional_score, x, getkey())
