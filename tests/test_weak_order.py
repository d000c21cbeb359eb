"""The weak order of every random sampler, without sampling, on the Gaussian N(0.7, 0.36).

Its score is affine, which makes the result affine in the start and in each noise. So one run with a
unit of noise in one place for each row gives the slopes; their squares add up to the variance.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import processes, samplers
from sm_jax.processes import noise_ratio
from sm_jax.samplers import _adaptive, steps

MEAN, VARIANCE, HIGH, LOW = 0.7, 0.36, 3.0, 0.1


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def respond(monkeypatch):
    """Return what runs a sampler, ``x [B, 1] -> [B, 1]``, from a point: the mean, the slope in the
    start, and the variance that the noise of these keys adds."""

    def respond(sample, start, keys):
        data = jax.random.key_data(keys)

        def unit(key, shape, dtype):
            hit = jnp.all(jax.random.key_data(key)[None] == data, axis=1)
            return jnp.append(jnp.zeros(2), hit.astype(dtype))[:, None]

        monkeypatch.setattr(jax.random, "normal", unit)
        # row 0 is the mean, row 1 starts one unit away, row 2 + i has the noise of key i
        out = np.asarray(sample(jnp.full((len(keys) + 2, 1), start).at[1].add(1.0))[:, 0])
        slopes = out[1:] - out[0]
        return out[0], slopes[0], np.sum(slopes[1:] ** 2)

    return respond


def assert_order(errors, order, exact=()):
    """That the errors fall with this order, and those of the given numbers are none at all."""
    coarse, fine = np.abs(errors(100)), np.abs(errors(200))
    np.testing.assert_allclose(coarse[list(exact)], 0.0, atol=1e-12)
    observed = np.log2(np.delete(coarse, exact) / np.delete(fine, exact))
    np.testing.assert_allclose(observed, order, atol=0.15)


def first_split(key):
    return jax.random.split(key, 1)[0]


# Diffusion samplers, from the noised mean; in units of x / alpha, in which the flow is that of a
# Gaussian whose variance is VARIANCE + r^2.


@pytest.fixture
def respond_to_process(respond):
    def respond_to_process(sampler, num, draws=jax.random.split):
        """The noise ratios of the steps; the mean, the slope and the variance at the end."""
        process = jax.tree.map(jnp.float64, processes.VPLinear())
        times, key = process.time_at(jnp.geomspace(HIGH, LOW, num + 1)), jax.random.key(3)
        alpha, r = process.alpha(times), np.asarray(noise_ratio(process, times))

        def score_fn(x, t):
            alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
            return -(x - MEAN * alpha) / (alpha**2 * VARIANCE + sigma**2)

        def sample(y):
            x = sampler(score_fn, alpha[0] * y, key, process=process, times=times, denoise=False)
            return x / alpha[-1]

        mean, slope, added = respond(sample, MEAN, draws(key, num))
        return r, np.array([mean, slope, slope**2 * (VARIANCE + r[0] ** 2) + added])

    return respond_to_process


@pytest.mark.parametrize(
    ("sampler", "rate", "order", "exact"),
    [
        (samplers.euler_maruyama, 2.0, 1, []),
        (samplers.reverse_diffusion, 2.0, 1, []),
        # The denoiser stays what it is along the mean that these two draw from the posterior.
        (samplers.ancestral, 2.0, 1, [0, 1]),
        (samplers.dpm_solver_pp_sde, 2.0, 2, [0, 1]),
        (partial(samplers.ddim, eta=0.5), 1.25, 1, [0]),
    ],
    ids=["euler_maruyama", "reverse_diffusion", "ancestral", "dpm_solver_pp_sde", "ddim"],
)
def test_diffusion_samplers(sampler, rate, order, exact, respond_to_process):
    """The slope is the ratio of variances to the power rate / 2: 1 for SDEs, 1/2 for the flow."""

    def errors(num):
        r, found = respond_to_process(sampler, num)
        slope = ((VARIANCE + r[-1] ** 2) / (VARIANCE + r[0] ** 2)) ** (0.5 * rate)
        return found - np.array([MEAN, slope, VARIANCE + r[-1] ** 2])

    assert_order(errors, order, exact)


def test_heun_with_churn(respond_to_process):
    """Each step solves the flow from its raised ratio, so that the exact slope is a product."""

    def errors(num):
        r, found = respond_to_process(partial(samplers.heun, churn=2.0), num)
        raised = r[:-1] * (1 + 2.0 / num)
        slope = np.prod(np.sqrt((VARIANCE + r[1:] ** 2) / (VARIANCE + raised**2)))
        return found - np.array([MEAN, slope, VARIANCE + r[-1] ** 2])

    assert_order(errors, 2, exact=[0])


@pytest.mark.parametrize(("predictor", "exact"), [(steps.reverse_diffusion, []), (steps.heun, [0])])
def test_predictor_corrector(predictor, exact, respond_to_process):
    """Order 1 where snr falls as the root of the number of steps, with any predictor."""

    def draws(key, num):
        keys = jax.vmap(jax.random.split)(jax.random.split(key, num))
        return jnp.concatenate([keys[:, 0], jax.vmap(first_split)(keys[:, 1])])

    def errors(num):
        sampler = partial(samplers.predictor_corrector, predictor=predictor, snr=1.6 / num**0.5)
        r, found = respond_to_process(sampler, num, draws)
        return found[[0, 2]] - np.array([MEAN, VARIANCE + r[-1] ** 2])

    assert_order(errors, 1, exact)


def test_the_bias_of_a_corrector(respond_to_process):
    """Langevin steps of size h on a Gaussian of variance V end at the variance V / (1 - h / (2 V)),
    with h = 2 (snr sigma)^2 here."""

    def draws(key, num):
        return jax.random.split(jax.random.split(first_split(key))[1], 500)

    sampler = partial(samplers.predictor_corrector, num_corrector_steps=500, snr=1.0)
    _, found = respond_to_process(sampler, 1, draws)
    variance = VARIANCE + LOW**2
    expected = [MEAN, 0.0, variance / (1 - LOW**2 / variance)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_adaptive_sde_in_steps_of_one_length(monkeypatch):
    """With a tolerance of everything its steps are the longest: of order 2."""
    process, key = processes.VE(LOW, HIGH), jax.random.key(3)

    def errors(num):
        step = np.log(HIGH / LOW) / num
        # row 0 is the mean, row 1 starts one unit away, row 2 + i has the noise of step i
        keys = jax.vmap(jax.random.fold_in)(jax.random.split(key, num + 2)[2:], jnp.arange(num))
        data = jax.random.key_data(keys)

        def unit(key, shape, dtype):
            hit = jnp.any(jnp.all(jax.random.key_data(key)[None] == data, axis=1))
            return jnp.broadcast_to(hit.astype(dtype), shape)

        monkeypatch.setattr(jax.random, "normal", unit)
        monkeypatch.setattr(_adaptive, "_FIRST", step)
        monkeypatch.setattr(_adaptive, "_LONGEST", step)
        sample = samplers.adaptive_sde(
            lambda x, t: (MEAN - x) / (VARIANCE + t[:, None] ** 2),
            jnp.full((num + 2, 1), MEAN).at[1].add(1.0),
            key,
            process=process,
            rtol=1e6,
            denoise=False,
        )
        assert set(sample.num_evaluations.tolist()) <= {2 * num, 2 * num + 2}
        slopes = np.asarray(sample.x[1:, 0] - sample.x[0, 0])
        before, after = VARIANCE + HIGH**2, VARIANCE + LOW**2
        variance = slopes[0] ** 2 * before + np.sum(slopes[1:] ** 2)
        return np.array([sample.x[0, 0] - MEAN, slopes[0] - after / before, variance - after])

    # The mean and its slope are exact, as those of the posterior are.
    assert_order(errors, 2, exact=[0, 1])


def test_consistent_annealed(respond):
    """With eta = k (1 - gamma) on finer and finer ladders: k = 1 is the flow, k = 2 the SDE."""

    def errors(num):
        sigmas, key = jnp.geomspace(HIGH, LOW, num + 1), jax.random.key(3)
        step_size = 1.5 * (1 - sigmas[1] / sigmas[0]) * sigmas[-1] ** 2
        mean, slope, added = respond(
            lambda x: samplers.consistent_annealed(
                lambda x, sigma: (MEAN - x) / (VARIANCE + sigma[:, None] ** 2),
                x,
                key,
                sigmas=sigmas,
                step_size=step_size,
                denoise=False,
            ),
            MEAN,
            jax.random.split(key, num),
        )
        before, after = VARIANCE + HIGH**2, VARIANCE + LOW**2
        return [
            mean - MEAN,
            slope - (after / before) ** (0.5 * 1.5),
            slope**2 * before + added - after,
        ]

    assert_order(errors, 1, exact=[0])


# Langevin samplers, for a fixed time from a fixed point. What the noise adds is what the chain has
# forgotten of the variance: VARIANCE (1 - slope^2), where that is stationary.


def score(x):
    return (MEAN - x) / VARIANCE


def test_langevin(respond):
    key = jax.random.key(3)

    def errors(num):
        sample = partial(samplers.langevin, score, key=key, step_size=0.5 / num, num_steps=num)
        mean, slope, added = respond(sample, 2.0, jax.random.split(key, num))
        exact = np.exp(-0.5 / VARIANCE)
        return [mean - MEAN - 1.3 * exact, slope - exact, added - VARIANCE * (1 - exact**2)]

    assert_order(errors, 1)


def test_tempered_langevin(respond):
    """At b the variance is VARIANCE / b, reached at the rate of b = 1 in steps h / b."""
    key, schedule = jax.random.key(3), [0.5, 2.0]

    def errors(num):
        sample = partial(
            samplers.tempered_langevin,
            score,
            key=key,
            inverse_temperatures=schedule,
            step_size=0.2 / num,
            steps_per_temperature=num,
        )
        mean, slope, added = respond(sample, 2.0, jax.random.split(key, 2 * num))
        kept, variance = np.exp(-0.2 / VARIANCE), 0.0
        for b in schedule:
            variance = kept**2 * variance + VARIANCE / b * (1 - kept**2)
        return [mean - MEAN - 1.3 * kept**2, slope - kept**2, added - variance]

    assert_order(errors, 1)


def test_annealed_langevin(respond):
    key, sigmas = jax.random.key(3), np.array([1.0, 0.5])

    def errors(num):
        mean, slope, added = respond(
            lambda x: samplers.annealed_langevin(
                lambda x, sigma: (MEAN - x) / (VARIANCE + sigma[:, None] ** 2),
                x,
                key,
                sigmas=sigmas,
                step_size=0.2 / num,
                steps_per_level=num,
                denoise=False,
            ),
            2.0,
            jax.random.split(key, 2 * num),
        )
        kept, variance = 1.0, 0.0
        for sigma in sigmas:
            total = VARIANCE + sigma**2
            factor = np.exp(-0.2 * (sigma / sigmas[-1]) ** 2 / total)
            kept, variance = factor * kept, factor**2 * variance + total * (1 - factor**2)
        return [mean - MEAN - 1.3 * kept, slope - kept, added - variance]

    assert_order(errors, 1)


def test_underdamped(respond):
    """The slope solves x'' = -x / VARIANCE - gamma x'; the velocity drawn is a noise as well."""
    key, friction, time = jax.random.key(3), 0.8, 1.0

    def errors(num):
        sample = partial(
            samplers.underdamped,
            score,
            key=key,
            step_size=time / num,
            num_steps=num,
            friction=friction,
        )
        velocity, bath = jax.random.split(key)
        keys = jnp.append(velocity, jax.random.split(bath, num))
        mean, slope, added = respond(sample, 2.0, keys)
        omega = np.sqrt(1 / VARIANCE - friction**2 / 4)
        exact = np.exp(-0.5 * friction * time) * (
            np.cos(omega * time) + 0.5 * friction / omega * np.sin(omega * time)
        )
        return [mean - MEAN - 1.3 * exact, slope - exact, added - VARIANCE * (1 - exact**2)]

    assert_order(errors, 2)
