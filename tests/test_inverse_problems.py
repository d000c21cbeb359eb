"""Posteriors of linear inverse problems, against the exact ones of Gaussians and mixtures."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from sm_jax import guidance, processes, samplers
from tests.oracles import COV, MEAN, PROCESSES, gaussian_noised_score

OPERATOR = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]])
OBSERVATION = np.array([1.2, -0.4])
NOISE = (0.0, 0.7)
VE = processes.VE()


def posterior(mean, cov, noise_std, operator=OPERATOR, observation=OBSERVATION):
    """Mean and covariance of ``x ~ N(mean, cov)`` given ``operator x + noise = observation``."""
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    gram = operator @ cov @ operator.T + noise_std**2 * np.eye(len(operator))
    gain = cov @ operator.T @ np.linalg.inv(gram)
    return mean + gain @ (observation - operator @ mean), cov - gain @ operator @ cov


def noised_scores(process, x, t, mean, cov):
    """Score of ``N(mean, cov)`` noised to time ``t [B]``, row by row in NumPy."""
    alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
    rows = [
        -np.linalg.solve(a**2 * cov + s**2 * np.eye(len(mean)), row - a * mean)
        for row, a, s in zip(np.asarray(x), alpha, sigma, strict=True)
    ]
    return np.stack(rows)


def observe(x):
    return x @ jnp.asarray(OPERATOR, x.dtype).T


def doubled(process):
    return jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), process)


def points(process, key):
    """Points of the size of the noised data at noise ratios of all scales, in float64.

    Not at the smallest of all, where rounding of the posterior covariance spoils the exact score.
    """
    t = process.time_at(jnp.geomspace(30.0, 0.003, 7))
    scale = jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)
    return scale[:, None] * jax.random.normal(key, (7, 3), jnp.float64), t


@pytest.mark.slow
def test_pigdm_is_exact_for_isotropic_data(getkey):
    """Processes, times, noise; a mean that the method is not told; a full operator."""
    mean, std = np.array([0.4, -0.3, 0.1]), 1.6
    with jax.enable_x64(True):
        for process, noise_std in zip(
            map(doubled, PROCESSES.values()), 3 * (0.0, 0.7), strict=True
        ):
            x, t = points(process, getkey())
            guided = guidance.pigdm(
                lambda x, t, p=process: noised_scores_of(p, x, t, mean, std**2),
                process=process,
                operator=observe,
                observation=OBSERVATION,
                noise_std=noise_std,
                sigma_data=std,
                num_iterations=2,
            )
            exact = noised_scores(process, x, t, *posterior(mean, std**2 * np.eye(3), noise_std))
            np.testing.assert_allclose(jax.jit(guided)(x, t), exact, rtol=1e-8, atol=1e-9)


def noised_scores_of(process, x, t, mean, variance):
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    return -(x - alpha * mean[None]) / (alpha**2 * variance + sigma**2)


@pytest.mark.slow
def test_mmps_is_exact_for_gaussian_data(getkey):
    """Where pseudo-inverse guidance, which knows one variance only, is not."""
    with jax.enable_x64(True):
        for process, noise_std in zip(
            map(doubled, PROCESSES.values()), 3 * (0.0, 0.7), strict=True
        ):
            x, t = points(process, getkey())
            options = {
                "process": process,
                "operator": observe,
                "observation": OBSERVATION,
                "noise_std": noise_std,
            }
            score_fn = gaussian_noised_score(process)
            exact = noised_scores(process, x, t, *posterior(MEAN, COV, noise_std))
            guided = guidance.mmps(score_fn, num_iterations=2, **options)
            np.testing.assert_allclose(jax.jit(guided)(x, t), exact, rtol=1e-8, atol=1e-9)
            rough = jax.jit(guidance.pigdm(score_fn, **options))(x, t)
            assert np.abs(rough / exact - 1).max() > 0.05


@pytest.mark.slow
def test_mmps_is_exact_on_a_field_with_enough_iterations(getkey):
    """32 numbers, half of them observed: 16 iterations are exact, the default nearly, 5 are not."""
    place = np.arange(32)
    cov = np.exp(-np.abs(place[:, None] - place) / 8) + 0.01 * np.eye(32)
    values, vectors = np.linalg.eigh(cov)
    x_0 = np.random.default_rng(7).multivariate_normal(np.zeros(32), cov, size=5)
    observation = x_0[:, :16] + 0.1 * np.random.default_rng(8).normal(size=(5, 16))
    laws = [posterior(np.zeros(32), cov, 0.1, np.eye(32)[:16], y) for y in observation]

    def score_fn(x, t):
        return -((x @ vectors) / (values[None] + t[:, None] ** 2)) @ vectors.T

    def relative_error(x, t, **options):
        guided = guidance.mmps(
            score_fn,
            process=doubled(VE),
            operator=lambda x: x[:, :16],
            observation=observation,
            noise_std=0.1,
            **options,
        )
        rows = zip(np.asarray(x)[:, None], laws, strict=True)
        exact = np.concatenate([noised_scores(VE, row, t[:1], *law) for row, law in rows])
        return np.linalg.norm(jax.jit(guided)(x, t) - exact) / np.linalg.norm(exact)

    with jax.enable_x64(True):
        for level in (30.0, 2.0, 0.3):
            t = jnp.full(5, level, jnp.float64)
            x = x_0 + level * jax.random.normal(getkey(), (5, 32), jnp.float64)
            assert relative_error(x, t, num_iterations=16) < 1e-6
            assert relative_error(x, t) < 1e-3
            if level == 2.0:  # about the scale of the data, where the spectrum is the widest
                assert relative_error(x, t, num_iterations=5) > 0.01


def test_dps_adds_the_gradient_of_the_misfit(getkey):
    """``-scale / (2 s^2) grad |y - A D|^2``, with an operator that is not linear too."""
    process, scale = processes.VPLinear(), np.array([0.5, 1.0, 2.0, 0.0])
    score_fn = gaussian_noised_score(process)
    x, t = jax.random.normal(getkey(), (4, 3)), jnp.array([0.05, 0.3, 0.6, 0.9])
    observation = jax.random.normal(getkey(), (4, 2))
    for operator in (observe, lambda x: jnp.tanh(observe(x))):
        guided = guidance.dps(
            score_fn,
            process=process,
            operator=operator,
            observation=observation,
            noise_std=0.7,
            scale=scale,
        )

        def misfit(x, operator=operator):
            alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
            clean = (x + sigma**2 * score_fn(x, t)) / alpha
            return jnp.sum((observation - operator(clean)) ** 2, axis=1)

        added = -scale[:, None] / (2 * 0.7**2) * jax.grad(lambda x: misfit(x).sum())(x)
        np.testing.assert_allclose(guided(x, t) - score_fn(x, t), added, rtol=1e-4, atol=1e-4)


def test_dps_has_the_bias_that_it_states(getkey):
    """On N(0, v) seen directly, q = v / s^2: variance v exp(-q), and a mean in closed form."""
    v, observed, n = 0.5, 1.3, 8_000
    x = processes.prior_sample(VE, getkey(), (n, 1))
    for q in (0.05, 1.0):
        guided = guidance.dps(
            lambda x, t: -x / (v + t[:, None] ** 2),
            process=VE,
            operator=lambda x: x,
            observation=jnp.array([observed]),
            noise_std=np.sqrt(v / q),
        )
        out = np.asarray(samplers.heun(guided, x, process=VE, num_steps=80), np.float64)
        integral, _ = integrate.quad(lambda u, q=q: u**-0.5 * np.exp(-0.5 * q * (1 - u)), 0, 1)
        mean, variance = 0.5 * q * observed * integral, v * np.exp(-q)
        assert abs(out.mean() - mean) < 4.5 * np.sqrt(variance / n) + 0.003
        assert abs(out.var() / variance - 1) < 4.5 * np.sqrt(2 / n) + 0.01
        # near the posterior where the observation says little; too sure where it says more
        bias = out.var() / (v / (1 + q)) - 1
        assert (abs(bias) < 4.5 * np.sqrt(2 / n) + 0.01) if q < 0.1 else (bias < -0.2)


@pytest.mark.parametrize("sampler", ["heun", "euler_maruyama"])
def test_samples_have_the_exact_posterior(sampler, getkey):
    n, noise_std = 6_000, 0.7
    mean, cov = posterior(MEAN, COV, noise_std)
    guided = guidance.mmps(
        gaussian_noised_score(VE),
        process=VE,
        operator=observe,
        observation=OBSERVATION.astype(np.float32),
        noise_std=noise_std,
        num_iterations=2,
    )
    x = processes.prior_sample(VE, getkey(), (n, 3))
    if sampler == "heun":
        out = samplers.heun(guided, x, process=VE, num_steps=60)
    else:
        out = samplers.euler_maruyama(guided, x, getkey(), process=VE, num_steps=300)
    out = np.asarray(out, np.float64)
    slack = 0.03  # of the prior, N(0, sigma_max^2), and of the steps
    assert np.all(np.abs(out.mean(0) - mean) < 4.5 * np.sqrt(np.diag(cov) / n) + slack)
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert np.all(np.abs(np.cov(out.T) - cov) < 4.5 * spread + slack)


WEIGHTS, MODES = np.array([0.7, 0.3]), np.array([[-1.0, -2.0], [1.0, 2.0]])


def mixture_score(x, t, v):
    """Score of the mixture of N(MODES, v I) with WEIGHTS, noised by ``t``."""
    variance = v + t[:, None] ** 2
    square = jnp.sum((x[:, None] - jnp.asarray(MODES, x.dtype)[None]) ** 2, axis=-1)
    share = jax.nn.softmax(jnp.log(WEIGHTS)[None] - 0.5 * square / variance)
    return (share @ jnp.asarray(MODES, x.dtype) - x) / variance


def posterior_weights(observed, variance):
    """Weights of the modes given the first coordinate, whose variance in a mode is given."""
    joint = WEIGHTS * np.exp(-0.5 * (observed - MODES[:, 0]) ** 2 / variance)
    return joint / joint.sum()


def test_weights_of_the_modes_of_a_mixture(getkey):
    """A coordinate seen through noise: the exact weights change from 0.7 to 0.48."""
    v, observed, noise_std, n = 0.09, 0.5, 1.0, 4_000
    exact = posterior_weights(observed, v + noise_std**2)[0]
    x = processes.prior_sample(VE, getkey(), (n, 2))
    shares = {}
    for name, method in {
        "dps": guidance.dps,
        "pigdm": partial(guidance.pigdm, sigma_data=2.0, num_iterations=1),
        "mmps": partial(guidance.mmps, num_iterations=1),
    }.items():
        guided = method(
            partial(mixture_score, v=v),
            process=VE,
            operator=lambda x: x[:, :1],
            observation=jnp.array([observed]),
            noise_std=noise_std,
        )
        out = samplers.heun(guided, x, process=VE, num_steps=60)
        shares[name] = float((out[:, 1] < 0).mean())
        # within a mode the second coordinate is as in the prior, the first as Bayes has it
        mode = np.asarray(out[out[:, 1] < 0])
        shrunk = v * noise_std**2 / (v + noise_std**2)
        pulled = -1.0 + v / (v + noise_std**2) * (observed + 1.0)
        assert np.abs(mode.mean(0) - np.array([pulled, -2.0])).max() < 0.06
        assert np.abs(mode.var(0) / np.array([shrunk, v]) - 1).max() < 0.2
    error = 4.5 * np.sqrt(exact * (1 - exact) / n)
    assert abs(exact - 0.482) < 1e-3
    assert abs(shares["mmps"] - exact) < error + 0.02
    assert exact + error < shares["pigdm"] < 0.7 - error
    assert shares["dps"] < exact - error


def test_conjugate_gradients_of_each_row_are_their_own(getkey):
    """A row's result depends on no other row, and rows that need no iterations stay put."""
    guided = guidance.pigdm(
        lambda x, t: -x / (1.0 + t[:, None] ** 2),
        process=VE,
        operator=observe,
        observation=OBSERVATION.astype(np.float32),
        noise_std=0.1,
        num_iterations=6,
    )
    x, t = 3.0 * jax.random.normal(getkey(), (4, 3)), jnp.array([0.1, 0.5, 2.0, 10.0])
    together = guided(x, t)
    alone = jnp.concatenate([guided(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    perfect = guidance.pigdm(
        lambda x, t: -x / (1.0 + t[:, None] ** 2),
        process=VE,
        operator=lambda x: x,
        observation=jnp.zeros(3),
        num_iterations=4,
    )
    np.testing.assert_array_equal(perfect(jnp.zeros((1, 3)), jnp.ones(1)), np.zeros((1, 3)))
    jacobian = jax.jacfwd(lambda x: perfect(x, jnp.ones(2)))(jnp.ones((2, 3)))
    # x_t given y = x_0 exactly is N(y, 1): a score of slope -1, also by differentiation
    np.testing.assert_allclose(
        jacobian.reshape(6, 6), -np.eye(6), rtol=1e-5, atol=1e-6, err_msg="slope of the score"
    )


METHODS = {
    "dps": guidance.dps,
    "pigdm": guidance.pigdm,
    "mmps": guidance.mmps,
}


@pytest.mark.parametrize("name", METHODS)
def test_any_event_dtype_and_noise_per_row(name, getkey):
    def zero(x, t):
        return jnp.zeros_like(x)

    def pooled(x):  # an image, halved
        return x.reshape(x.shape[0], 2, 2, 2, 2, 1).mean(axis=(2, 4))

    x, t = jax.random.normal(getkey(), (3, 4, 4, 1)), jnp.array([0.5, 1.0, 2.0])
    observation, noise_std = jax.random.normal(getkey(), (2, 2, 1)), np.array([0.5, 1.0, 2.0])
    guided = METHODS[name](
        zero, process=VE, operator=pooled, observation=observation, noise_std=noise_std
    )
    out = jax.jit(guided)(x, t)
    # D = x and J = 1 for a score of zero; A A' = I / 4
    spread = {
        "dps": 0.0 * t,
        "pigdm": t**2 / (1 + t**2),
        "mmps": t**2,
    }[name]
    weight = 1 / (noise_std**2 + spread / 4)
    residual = weight[:, None, None, None] * (observation[None] - pooled(x))
    expected = 0.25 * residual.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    scalar = METHODS[name](
        zero, process=VE, operator=lambda x: x, observation=jnp.ones(()), noise_std=1.0
    )
    assert scalar(jnp.ones(4, jnp.bfloat16), jnp.ones(4)).dtype == jnp.bfloat16


SHORT = np.array([20.0, 5.0, 1.5, 0.6, 0.2])


def inpainting_law(process, times, num_resamples, jump_length, mean, cov, known, mask, denoise):
    """Mean and covariance of `guidance.inpaint` on a Gaussian, by its linear recursion.

    Written in x_t, with the textbook coefficients of the ancestral step.
    """
    alpha, sigma = (
        np.asarray(f(jnp.asarray(times)), np.float64) for f in (process.alpha, process.sigma)
    )
    eye, keep = np.eye(len(mean)), np.diag(mask.astype(float))
    free = eye - keep
    m, c = np.zeros(len(mean)), sigma[0] ** 2 * eye

    def denoiser(i):
        gain = alpha[i] * cov @ np.linalg.inv(alpha[i] ** 2 * cov + sigma[i] ** 2 * eye)
        return gain, mean - alpha[i] * gain @ mean

    n = len(times) - 1
    for first in range(0, n, jump_length):
        last = min(first + jump_length, n)
        for again in range(num_resamples):
            if again:
                scale = alpha[first] / alpha[last]
                m = scale * m
                c = scale**2 * c + (sigma[first] ** 2 - scale**2 * sigma[last] ** 2) * eye
            for i in range(first, last):
                scale = alpha[i] / alpha[i + 1]
                added = sigma[i] ** 2 - scale**2 * sigma[i + 1] ** 2  # q(x_i | x_i+1)
                gain, offset = denoiser(i)
                on_clean = alpha[i + 1] * added / sigma[i] ** 2
                on_x = scale * sigma[i + 1] ** 2 / sigma[i] ** 2
                linear = on_clean * gain + on_x * eye
                m = linear @ m + on_clean * offset
                c = linear @ c @ linear.T + added * sigma[i + 1] ** 2 / sigma[i] ** 2 * eye
                m = free @ m + alpha[i + 1] * keep @ known
                c = free @ c @ free + sigma[i + 1] ** 2 * keep
    if denoise:
        gain, offset = denoiser(n)
        m = free @ (gain @ m + offset) + keep @ known
        c = free @ gain @ c @ gain.T @ free
    return m, c


MASK = np.array([True, False, True])
KNOWN = np.array([1.5, 0.0, -0.8])


@pytest.mark.parametrize(
    ("name", "num_resamples", "jump_length", "denoise"),
    [("VE", 1, 1, True), ("VE", 3, 2, True), ("VPLinear", 2, 3, False)],
)
def test_inpainting_follows_its_law(name, num_resamples, jump_length, denoise, getkey):
    process, n = PROCESSES[name], 20_000
    times = np.asarray(process.time_at(jnp.asarray(SHORT)))
    x = process.sigma(times[0]) * jax.random.normal(getkey(), (n, 3))
    out, path = jax.jit(
        partial(
            guidance.inpaint,
            gaussian_noised_score(process),
            known=KNOWN.astype(np.float32),
            mask=MASK,
            process=process,
            times=times,
            num_resamples=num_resamples,
            jump_length=jump_length,
            denoise=denoise,
            trajectory=True,
        )
    )(x, getkey())
    assert path.shape == (4 * num_resamples + 1, n, 3)
    mean, cov = inpainting_law(
        process, times, num_resamples, jump_length, MEAN, COV, KNOWN, MASK, denoise
    )
    out = np.asarray(out, np.float64)
    assert np.all(np.abs(out.mean(0) - mean) < 4.5 * np.sqrt(np.diag(cov) / n) + 1e-6)
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert np.all(np.abs(np.cov(out.T) - cov) < 4.5 * spread + 1e-6)
    if denoise:
        np.testing.assert_array_equal(out[:, MASK], np.float32(KNOWN[MASK])[None].repeat(n, 0))


def test_resampling_makes_inpainting_exact():
    """The law of the sampler, to which the test above ties it, tends to the conditional."""
    mean, cov, known = np.array([0.4, -0.3]), np.array([[1.0, 0.8], [0.8, 1.0]]), np.array([2.0, 0])
    exact_mean, exact_variance = -0.3 + 0.8 * 1.6, 0.36

    def errors(num_steps, num_resamples):
        times = processes.time_grid(VE, num_steps)
        mask = np.array([True, False])
        m, c = inpainting_law(VE, times, num_resamples, 1, mean, cov, known, mask, True)
        return abs(m[1] - exact_mean), abs(c[1, 1] / exact_variance - 1)

    # the figures of the docstring, shares of the right move of the mean
    for num_resamples, share in ((1, 0.60), (2, 0.77), (10, 0.95), (100, 0.995)):
        found = 1 - errors(64, num_resamples)[0] / (0.8 * 1.6)
        assert abs(found - share) < 0.006
    assert abs(errors(1_000, 1)[0] / (0.8 * 1.6) - 0.38) < 0.006
    # the variance needs short steps too, and converges with their length to the first order
    coarse, fine = (errors(n, 100)[1] for n in (64, 128))
    assert 0.1 < coarse < 0.2
    assert 1.7 < coarse / fine < 2.3


@pytest.mark.slow
def test_resampling_moves_weights_between_modes(getkey):
    """From near the prior's 0.7 towards the exact 0.33, slowly: modes mix worse than a Gaussian."""
    v, n = 0.64, 2_000
    x = processes.prior_sample(VE, getkey(), (n, 2))

    def share(num_resamples):
        out = jax.jit(
            partial(
                guidance.inpaint,
                partial(mixture_score, v=v),
                known=jnp.array([0.5, 0.0]),
                mask=jnp.array([True, False]),
                process=VE,
                num_resamples=num_resamples,
            )
        )(x, getkey())
        return float((out[:, 1] < 0).mean())

    exact = np.sum(posterior_weights(0.5, v) * stats.norm.cdf(-MODES[:, 1] / np.sqrt(v)))
    error = 4.5 * np.sqrt(0.25 / n)
    assert abs(exact - 0.33) < 0.002
    once, ten, forty = map(share, (1, 10, 40))
    assert exact - error < forty < exact + error + 0.1
    assert forty + 0.05 < ten < once - 0.05
    assert once > 0.55


def test_inpainting_takes_masks_of_rows_events_and_images(getkey):
    @jax.jit
    def run(x, key, known, mask):
        return guidance.inpaint(
            lambda x, t: -x,
            x,
            key,
            known=known,
            mask=mask,
            process=processes.VPLinear(),
            num_steps=4,
            num_resamples=2,
        )

    x, known = jax.random.normal(getkey(), (2, 2, 2, 1)), jax.random.normal(getkey(), (2, 2, 2, 1))
    mask, key = jax.random.bernoulli(getkey(), 0.5, (2, 2, 2, 1)), getkey()
    out = run(x, key, known, mask)
    np.testing.assert_array_equal(out[mask], known[mask])
    assert np.abs(out - known)[~mask].min() > 1e-4
    assert np.abs(run(x, getkey(), known, mask) - out).max() > 1e-3
    repeated = run(x, key, known[:1].repeat(2, 0), mask[:1].repeat(2, 0))
    np.testing.assert_allclose(run(x, key, known[0], mask[0]), repeated, rtol=1e-6)
    half = run(jnp.ones(3, jnp.bfloat16), key, jnp.ones(()), jnp.array(False))
    assert half.dtype == jnp.bfloat16
    path = jax.eval_shape(
        partial(guidance.inpaint, lambda x, t: -x, process=VE, trajectory=True),
        x,
        key,
        known=known,
        mask=mask,
    )[1]
    assert len(path) == 641


def test_inpainting_uses_no_key_twice(getkey):
    with jax.debug_key_reuse(True):
        jax.jit(
            lambda x, key: guidance.inpaint(
                lambda x, t: -x, x, key, known=x, mask=x > 0, process=VE, num_steps=2
            )
        )(jnp.ones((3, 2)), getkey())


def inverse(method="pigdm", **change):
    options = {
        "process": VE,
        "operator": lambda x: x[:, :2],
        "observation": jnp.ones(2),
        "noise_std": 1.0,
    }
    score_fn = change.pop("score_fn", lambda x, t: -x)
    return lambda x, key: METHODS[method](score_fn, **(options | change))(x, x[:, 0])


def inpaint(**change):
    options = {"known": jnp.ones(3), "mask": jnp.ones(3, bool), "process": VE, "num_steps": 2}
    score_fn = change.pop("score_fn", lambda x, t: -x)
    return lambda x, key: guidance.inpaint(score_fn, x, key, **(options | change))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (inverse("dps", noise_std=0.0), ValueError, "noise_std must be positive"),
        (inverse(noise_std=-1.0), ValueError, "noise_std must be finite and not negative"),
        (inverse("mmps", noise_std=-1.0), ValueError, "noise_std must be finite"),
        (inverse(sigma_data=0.0), ValueError, "sigma_data must be positive"),
        (inverse(sigma_data=jnp.ones(2)), ValueError, r"one number, got shape \(2,\)"),
        (inverse(num_iterations=0), ValueError, "num_iterations must be at least 1"),
        (inverse("mmps", num_iterations=0), ValueError, "num_iterations must be at le"),
        (
            inverse(observation=jnp.ones(3)),
            ValueError,
            r"operator\(x\), \(2, 2\), or of one of its rows, \(2,\), got \(3,\)",
        ),
        (inverse(noise_std=jnp.ones(3)), ValueError, "noise_std must be a scalar or one number"),
        (inverse(score_fn=lambda x, t: x[:1]), ValueError, r"\(2, 3\), got \(1, 3\)"),
        (inpaint(score_fn=lambda x, t: x[:1]), ValueError, r"\(2, 3\), got \(1, 3\)"),
        (inpaint(mask=jnp.ones(3)), TypeError, "mask must be boolean, got float32"),
        (inpaint(mask=jnp.ones(2, bool)), ValueError, r"mask must have the shape of x, \(2, 3\)"),
        (inpaint(known=jnp.ones(2)), ValueError, r"or of one event, \(3,\), got \(2,\)"),
        (inpaint(num_resamples=0), ValueError, "num_resamples must be at least 1"),
        (inpaint(jump_length=0), ValueError, "jump_length must be at least 1"),
        (inpaint(times=[2.0, 1.0]), ValueError, "not both"),
        (inpaint(num_steps=None, times=[1.0, 2.0]), ValueError, "strictly decrease"),
    ],
)
def test_bad_input(call, error, message, getkey):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 3)), getkey())


def test_inpainting_is_differentiable_in_the_process(getkey):
    with jax.enable_x64(True):
        key_prior, key = jax.random.split(getkey())
        x = jax.random.normal(key_prior, (4, 2), jnp.float64)

        def drawn(sigma_max):
            process = processes.VE(sigma_min=0.1, sigma_max=sigma_max)
            return guidance.inpaint(
                lambda x, t: -x / (1.0 + t[:, None] ** 2),
                sigma_max * x,
                key,
                known=jnp.array([2.0, 0.0]),
                mask=jnp.array([True, False]),
                process=process,
                num_steps=4,
                num_resamples=2,
            )[:, 1]

        at, h = jnp.float64(5.0), 1e-5
        derivative = jax.jacfwd(drawn)(at)
        difference = (drawn(at + h) - drawn(at - h)) / (2.0 * h)
        np.testing.assert_allclose(derivative, difference, rtol=1e-6, atol=1e-8)
