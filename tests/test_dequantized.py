"""Bounds on log-probabilities of integer data, against sums and integrals that are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sm_jax import likelihood
from tests.oracles import assert_mean

LEVELS = 4


def gaussian(y):
    """Log-density of N(0.2, 0.5^2) for each of two numbers, ``[B]``."""
    return (-0.5 * ((y - 0.2) / 0.5) ** 2 - jnp.log(0.5 * jnp.sqrt(2 * jnp.pi))).sum(-1)


def cells(x):
    """Log-densities at points all over the cells of the levels ``x [B, 2]``: ``[B, 2, M]``."""
    u = (np.arange(2000) + 0.5) / 2000
    y = 2 * (np.asarray(x)[..., None] + u) / LEVELS - 1
    density = -0.5 * ((y - 0.2) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    return density + np.log(2 / LEVELS)


X = jnp.array([[0.0, 3.0], [2.0, 1.0], [3.0, 3.0]])


def bounds(key, **options):
    value = partial(likelihood.discrete_log_prob, gaussian, X, num_values=LEVELS, **options)
    return jax.jit(jax.vmap(value))(jax.random.split(key, 4000))


def test_uniform_noise_gives_the_mean_of_the_log_density_over_the_cell(getkey):
    expected = cells(X).mean(-1).sum(-1)
    truth = np.log(np.exp(cells(X)).mean(-1)).sum(-1)
    values = bounds(getkey())
    assert_mean(values, expected)
    assert np.all(expected < truth - 0.01)


def test_more_samples_raise_the_bound_to_the_log_probability(getkey):
    truth = np.log(np.exp(cells(X)).mean(-1)).sum(-1)
    one, many = (np.asarray(bounds(getkey(), num_samples=n)).mean(0) for n in (1, 64))
    error = 4.5 * np.asarray(bounds(getkey(), num_samples=64)).std(0) / np.sqrt(4000)
    assert np.all(one < many)
    # the gap of the bound with n samples is var(w) / (2 n) of the relative weights, to first order
    weights = np.exp(cells(X) - np.log(np.exp(cells(X)).mean(-1))[..., None])
    variance = (weights**2).mean(-1).prod(-1) - 1
    np.testing.assert_array_less(np.abs(many - (truth - variance / 128)), error + 2e-3)


@pytest.mark.parametrize("num_values", [256, 65_536])
@pytest.mark.parametrize("level", ["first", "middle", "last"])
def test_bounds_of_many_levels_in_float32(num_values, level, getkey):
    """A density as narrow as a cell, also in those at the ends: below the truth, and then at it."""
    x = {"first": 0, "middle": num_values // 2, "last": num_values - 1}[level]
    width = 2 / num_values
    place, scale = (x + 0.3) * width - 1, 0.5 * width

    def log_prob(y):
        return jnp.sum(jax.scipy.stats.norm.logpdf(y, place, scale), -1)

    def bound(num_samples):
        value = partial(
            likelihood.discrete_log_prob,
            log_prob,
            jnp.full((1, 1), x, jnp.float32),
            num_values=num_values,
            num_samples=num_samples,
        )
        return np.asarray(jax.jit(jax.vmap(value))(jax.random.split(getkey(), 4_000)), np.float64)

    u = (np.arange(10_000) + 0.5) / 10_000
    log_density = stats.norm.logpdf(u, 0.3, 0.5)
    truth = np.log(stats.norm.cdf(1.4) - stats.norm.cdf(-0.6))
    rounding = 0.02 if num_values == 65_536 else 1e-3  # y is rounded to 1/512 of a cell, at most
    one, many = bound(1), bound(64)
    assert abs(one.mean() - log_density.mean()) < 4.5 * one.std() / np.sqrt(4_000) + rounding
    assert one.mean() < truth - 0.02
    gap = np.exp(log_density - truth).var() / 128
    assert abs(many.mean() - (truth - gap)) < 4.5 * many.std() / np.sqrt(4_000) + rounding


def test_noise_in_proportion_to_the_density_makes_the_bound_tight(getkey):
    """A density that is a logit-normal in each cell, and the dequantizer that draws from it."""
    probabilities = jnp.array([0.1, 0.2, 0.3, 0.4])
    location, log_scale = jnp.array([-1.0, 0.5, 2.0, 0.0]), jnp.array([0.3, -0.5, 0.0, 0.7])

    def log_prob(y):
        v = (y + 1) * LEVELS / 2
        level = jnp.clip(jnp.floor(v), 0, 3).astype(int)
        u = v - level
        z = (jnp.log(u / (1 - u)) - location[level]) / jnp.exp(log_scale[level])
        log_q = -0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi) - log_scale[level] - jnp.log(u * (1 - u))
        return (jnp.log(probabilities[level]) + log_q + jnp.log(LEVELS / 2)).sum(-1)

    def parameters(x):
        return location[x.astype(int)], log_scale[x.astype(int)]

    dequantizer = likelihood.logit_normal_dequantizer(parameters)
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(X), jnp.float64)
        value = likelihood.discrete_log_prob(
            log_prob, x, getkey(), num_values=LEVELS, dequantizer=dequantizer, num_samples=3
        )
    expected = np.log(np.asarray(probabilities)[np.asarray(X, int)]).sum(-1)
    np.testing.assert_allclose(value, expected, atol=1e-5)


def test_the_dequantizer_can_be_trained(getkey):
    """The gradient of the bound by its parameters is that of the mean, by finite differences."""
    keys = jax.random.split(getkey(), 64)

    @jax.jit
    def bound(parameters):
        dequantizer = likelihood.logit_normal_dequantizer(
            lambda x: tuple(jnp.full(x.shape, p, x.dtype) for p in parameters)
        )
        value = partial(
            likelihood.discrete_log_prob,
            lambda y: gaussian(3 * y),
            x,
            num_values=LEVELS,
            dequantizer=dequantizer,
        )
        return jax.vmap(value)(keys).mean()

    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(X), jnp.float64)
        at = jnp.array([0.3, -0.2], jnp.float64)
        gradient = jax.grad(bound)(at)
        for i in range(2):
            step = jnp.zeros(2).at[i].set(1e-5)
            slope = (bound(at + step) - bound(at - step)) / 2e-5
            np.testing.assert_allclose(gradient[i], slope, rtol=1e-6)


def test_noise_is_fresh_and_stays_below_the_next_level(getkey):
    """Samples differ, and in float32 a number of a high level never rounds up to the next."""
    x = jnp.full((1, 1), 254.0)
    seen = []

    def log_prob(y):
        jax.debug.callback(lambda y: seen.append(np.asarray(y)), y)
        return jnp.zeros(y.shape[0])

    almost_one = jnp.nextafter(jnp.float32(1.0), jnp.float32(0.0))
    for dequantizer in (
        likelihood.uniform_dequantizer,
        lambda x, key: (jnp.full_like(x, almost_one), jnp.zeros(1)),
    ):
        likelihood.discrete_log_prob(
            log_prob, x, getkey(), num_values=256, dequantizer=dequantizer, num_samples=2
        )
    jax.effects_barrier()
    levels = (np.concatenate(seen) + 1) * 128
    assert len(set(levels[:2, 0].tolist())) == 2
    assert np.all(levels < 255)


def test_levels_in_bfloat16_are_dequantized_in_float32(getkey):
    """Half of the cell of level 200 is within the model, a narrow one about its lower edge."""

    def log_prob(y):
        away = ((y + 1) * 128 - 200.0) / 0.05
        return jnp.sum(-0.5 * away**2 - jnp.log(0.05 * np.sqrt(2 * np.pi)) + jnp.log(128.0), -1)

    x = jnp.full((1, 1), 200.0, jnp.bfloat16)
    value = likelihood.discrete_log_prob(log_prob, x, getkey(), num_values=256, num_samples=20_000)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.log(0.5), atol=0.1)


def test_noise_for_levels_in_bfloat16_is_uniform(getkey):
    """Drawn in bfloat16, uniform numbers have the mean 0.496: they are multiples of 2^-7."""
    x = jnp.zeros((100_000, 10), jnp.bfloat16)
    logistic = likelihood.logit_normal_dequantizer(lambda x: (jnp.zeros_like(x),) * 2)
    for dequantizer in (likelihood.uniform_dequantizer, logistic):
        u, _ = dequantizer(x, getkey())
        assert_mean(u.mean(axis=1), 0.5)
        assert u.dtype == jnp.float32
        assert u.max() < 1


@pytest.mark.parametrize(
    ("log_prob_fn", "dequantizer", "message"),
    [
        (lambda y: y, likelihood.uniform_dequantizer, r"log_prob_fn .*\(3,\), got shape \(3, 1\)"),
        (lambda y: y[:, 0], lambda x, key: (x, x), r"dequantizer .*\(3,\), got shape \(3, 1\)"),
    ],
)
def test_a_log_density_is_one_number_per_example(log_prob_fn, dequantizer, message, getkey):
    """Shapes [B, 1] and [B] would broadcast to [B, B], each example with the noise of another."""
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=message):
        likelihood.discrete_log_prob(
            log_prob_fn, jnp.zeros((3, 1)), getkey(), num_values=4, dequantizer=dequantizer
        )


def test_bad_input(getkey):
    value = partial(likelihood.discrete_log_prob, gaussian, key=getkey())
    with pytest.raises(ValueError, match=r"values 0, 1, ..., num_values - 1 = 3.*to 4"):
        value(jnp.array([[0.0, 4.0]]), num_values=4)
    with pytest.raises(ValueError, match="the values 0, 1"):
        value(jnp.array([[-1.0, 0.0]]), num_values=4)
    with pytest.raises(ValueError, match="the integers themselves, not scaled data"):
        value(jnp.array([[0.0, 0.5, 1.0]]), num_values=256)
    with pytest.raises(TypeError, match="float"):
        value(jnp.array([[0, 1]]), num_values=4)
    with pytest.raises(ValueError, match="num_values"):
        value(jnp.array([[0.0, 0.0]]), num_values=1)
    with pytest.raises(ValueError, match="num_samples"):
        value(jnp.array([[0.0, 0.0]]), num_values=4, num_samples=0)
