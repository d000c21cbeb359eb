"""Contrastive divergence and noise-contrastive estimation: values, gradients and their zeros."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from sm_jax import losses
from tests.oracles import assert_mean


class Noise:
    """The Gaussian of mean 0.5 and variance 4, over events of a shape."""

    def __init__(self, shape=(1,)):
        self.shape = shape

    def sample(self, key, n):
        return 0.5 + 2.0 * jax.random.normal(key, (n, *self.shape))

    def log_prob(self, x):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.5, 2.0), axis=tuple(range(1, x.ndim)))


NOISE = Noise()


def linear_energy(theta):
    """Linear in ``theta``: a quadratic and a quartic term."""
    return lambda x: jnp.sum(theta[0] * x**2 / 2 + theta[1] * x**4 / 4, axis=-1)


def contrast(theta, x, key, **options):
    return losses.contrastive_divergence(linear_energy(theta), x, key, **options)


def persist(theta, x, key, **options):
    return losses.persistent_contrastive_divergence(linear_energy(theta), x, key, **options)


def test_contrastive_divergence_lets_no_gradient_through_the_chain(getkey):
    """For an energy linear in theta the gradient is the difference of statistics, ``x-`` fixed."""
    x, theta = jax.random.normal(getkey(), (64, 2)), jnp.array([0.7, 0.4])
    options = {"step_size": 0.3, "num_steps": 3}
    key = getkey()
    loss, slopes = jax.jit(
        lambda theta: (
            contrast(theta, x, key, **options),
            jax.jacrev(contrast)(theta, x, key, **options),
        )
    )(theta)
    np.testing.assert_allclose(slopes @ theta, loss, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(loss).max()) > 0.1
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda x: contrast(theta, x, key, **options).sum()))(x),
        theta[0] * x + theta[1] * x**3,
        rtol=1e-4,
        atol=1e-5,
    )


def test_contrastive_divergence_is_unbiased_at_the_truth(getkey):
    """One step from exact draws of a quartic density, so large that only MALA keeps it."""
    key_size, key_sign, key = jax.random.split(getkey(), 3)
    size = (4.0 * jax.random.gamma(key_size, 0.25, (40_000, 1))) ** 0.25
    x = size * jax.random.rademacher(key_sign, (40_000, 1), size.dtype)
    jacobian = jax.jit(partial(jax.jacfwd(contrast), step_size=0.4, num_steps=2))
    slopes = jacobian(jnp.array([0.0, 1.0]), x, key)
    assert_mean(slopes, np.zeros(2))


@pytest.mark.slow
def test_long_chains_give_the_gradient_of_the_likelihood(getkey):
    """Data of variance 4 under a model of variance 1 / theta: the precision must come down."""
    theta = jnp.array([1.0, 0.0])
    x = 2.0 * jax.random.normal(getkey(), (20_000, 1))
    options = {"step_size": 0.8, "num_steps": 40}
    slopes = jax.jit(partial(jax.jacfwd(contrast), **options))(theta, x, getkey())
    assert_mean(slopes[:, 0], (4.0 - 1.0) / 2)
    chains = 3.0 + jax.random.normal(getkey(), (10_000, 1))
    slopes, chains = jax.jacfwd(persist, has_aux=True)(theta, x, getkey(), chains=chains, **options)
    error = np.sqrt(0.5 / 10_000 + 8.0 / 20_000)
    assert abs(float(slopes[:, 0].mean()) - 1.5) < 4.5 * error
    assert stats.kstest(np.asarray(chains)[:, 0], stats.norm.cdf).pvalue > 1e-3


def test_persistent_chains_go_on(getkey):
    x, chains = jax.random.normal(getkey(), (5, 2)), jnp.zeros((7, 2))
    theta, options = jnp.array([0.7, 0.4]), {"step_size": 0.3, "num_steps": 3}
    key = getkey()
    run = jax.jit(partial(persist, **options))
    loss, moved = run(theta, x, key, chains=chains)
    energy = linear_energy(theta)
    np.testing.assert_allclose(loss, energy(x) - energy(moved).mean(), rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(moved).max()) > 0.1
    slopes, through = jax.jit(jax.jacrev(run))(theta, x, key, chains=chains)
    np.testing.assert_allclose(slopes @ theta, loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(through, 0.0)


def test_chains_start_where_they_should(getkey):
    """With steps too small to move, the negatives are the data, and the chains stay."""
    energy = lambda x: jnp.sum(jnp.exp(x), axis=-1)  # noqa: E731
    x, chains = jax.random.normal(getkey(), (4, 2)), jax.random.normal(getkey(), (3, 2))
    options = {"step_size": 1e-12, "num_steps": 1}
    loss = losses.contrastive_divergence(energy, x, getkey(), **options)
    np.testing.assert_allclose(loss, 0.0, atol=1e-4)
    loss, moved = losses.persistent_contrastive_divergence(
        energy, x, getkey(), chains=chains, **options
    )
    np.testing.assert_allclose(moved, chains, atol=1e-4)
    np.testing.assert_allclose(loss, energy(x) - energy(chains).mean(), rtol=1e-3)


class Fixed:
    """A density that draws given points, whatever the key."""

    def __init__(self, points):
        self.points = points

    def sample(self, key, n):
        assert n == len(self.points)
        return self.points

    def log_prob(self, x):
        return NOISE.log_prob(x)


class Unsummed(Noise):
    """One number per number of an event."""

    def log_prob(self, x):
        return jax.scipy.stats.norm.logpdf(x, 0.5, 2.0)


def test_noise_contrastive_value(getkey):
    """The classifier's negative log-likelihood, example by example, from its probabilities."""
    theta, log_z, nu = jnp.array([0.7, 0.4]), 0.3, 3
    x = jax.random.normal(getkey(), (4, 1))
    noise = NOISE.sample(getkey(), 12)
    loss = losses.noise_contrastive(
        linear_energy(theta),
        x,
        getkey(),
        noise_density=Fixed(noise),
        num_noise=nu,
        log_normalizer=log_z,
    )

    def densities_at(x):
        x = np.asarray(x, np.float64)[:, 0]
        model = np.exp(-(0.7 * x**2 / 2 + 0.4 * x**4 / 4) - log_z)
        return model, nu * stats.norm(0.5, 2.0).pdf(x)

    model, other = densities_at(x)
    expected = -np.log(model / (model + other))
    model, other = densities_at(noise)
    expected -= np.log(other / (model + other)).reshape(4, 3).sum(axis=1)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_noise_contrastive_defaults(getkey):
    """As many draws as data, and a normalizer of one."""
    x, theta, key = jnp.ones((6, 1)), jnp.array([0.7, 0.4]), getkey()
    options = {"noise_density": NOISE}
    default = losses.noise_contrastive(linear_energy(theta), x, key, **options)
    explicit = losses.noise_contrastive(
        linear_energy(theta), x, key, num_noise=1, log_normalizer=0.0, **options
    )
    np.testing.assert_array_equal(default, explicit)


@pytest.mark.parametrize("nu", [1, 4])
def test_noise_contrastive_gradient(nu, getkey):
    """Against quadrature of the loss of the population: zero at the truth, and elsewhere not."""
    truth = np.array([1.0, 0.0, 0.5 * np.log(2 * np.pi)])
    nodes = np.linspace(-12.0, 13.0, 20_001)
    p, q = stats.norm.pdf(nodes), stats.norm.pdf(nodes, 0.5, 2.0)

    def population(parameters):
        energy = parameters[0] * nodes**2 / 2 + parameters[1] * nodes**4 / 4
        odds = -energy - parameters[2] - np.log(q) - np.log(nu)
        loss = p * -special.log_expit(odds) + nu * q * -special.log_expit(-odds)
        return np.sum(loss) * (nodes[1] - nodes[0])

    def slope(parameters):
        steps = 1e-5 * np.eye(3)
        return np.array([population(parameters + h) - population(parameters - h) for h in steps])

    def loss(parameters, x, key):
        return losses.noise_contrastive(
            linear_energy(parameters[:2]),
            x,
            key,
            noise_density=NOISE,
            num_noise=nu,
            log_normalizer=parameters[2],
        )

    x = jax.random.normal(getkey(), (40_000, 1))
    jacobian = jax.jit(jax.jacfwd(loss))
    np.testing.assert_allclose(slope(truth) / 2e-5, 0.0, atol=1e-6)
    for parameters in (truth, np.array([0.6, 0.05, 0.4])):
        slopes = jacobian(jnp.asarray(parameters, jnp.float32), x, getkey())
        assert_mean(slopes, slope(parameters) / 2e-5)
    assert np.abs(slope(parameters) / 2e-5).min() > 0.02


@pytest.mark.parametrize("size", [-1e30, -1e4, -100.0, 100.0, 1e4, 1e30])
def test_noise_contrastive_of_large_energies(size, getkey):
    """``softplus(a)`` is ``max(a, 0)`` there, its slope a step: 1 by the data or -nu by the noise.

    ``-log q`` is 1.6 to 20 here, which float32 loses beside 1e30.
    """
    x, noise, nu = jax.random.normal(getkey(), (4, 1)), NOISE.sample(getkey(), 8), 2

    def loss(offset):
        return losses.noise_contrastive(
            lambda x: offset + jnp.sum(x**2, axis=-1) / 2,
            x,
            jax.random.key(0),
            noise_density=Fixed(noise),
            num_noise=nu,
        )

    def odds(x):
        x = np.asarray(x, np.float64)[:, 0]
        return -size - x**2 / 2 - stats.norm(0.5, 2.0).logpdf(x) - np.log(nu)

    expected = np.logaddexp(0, -odds(x)) + np.logaddexp(0, odds(noise)).reshape(4, nu).sum(1)
    value, slope = jax.jvp(loss, (jnp.float32(size),), (jnp.float32(1.0),))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, 1.0 if size > 0 else -nu, rtol=1e-6)


def test_noise_contrastive_cancels_an_offset_of_energy_and_normalizer(getkey):
    """In float32: points on a grid, for which ``E + 2^14`` is exact; only what follows is not."""
    x = jnp.round(4.0 * jax.random.normal(getkey(), (64, 1))) / 4.0

    def loss(offset):
        return losses.noise_contrastive(
            lambda x: offset + jnp.sum(x**2, axis=-1) / 2,
            x,
            jax.random.key(0),
            noise_density=Fixed(2.0 * x),
            log_normalizer=-offset,
        )

    np.testing.assert_allclose(loss(2.0**14), loss(0.0), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_contrastive_divergence_of_steep_energies(scale, getkey):
    """Every proposal is refused: the chain stays, and nothing is infinite or NaN."""
    x = jax.random.normal(getkey(), (6, 2))
    chains = jnp.array([[2.0, 1.0], [0.5, -1.0]])

    def loss(scale):
        energy = lambda x: scale * jnp.sum(x**4 / 4, axis=-1)  # noqa: E731
        options = {"step_size": 0.5, "num_steps": 5}
        cd = losses.contrastive_divergence(energy, x, jax.random.key(0), **options)
        pcd, _ = losses.persistent_contrastive_divergence(
            energy, x, jax.random.key(0), chains=chains, **options
        )
        return cd, pcd

    (_, pcd), (by_cd, by_pcd) = jax.jvp(loss, (jnp.float32(scale),), (jnp.float32(1.0),))
    np.testing.assert_array_equal(by_cd, 0.0)
    statistics = [np.sum(np.asarray(v, np.float64) ** 4, axis=1) / 4 for v in (x, chains)]
    expected = statistics[0] - statistics[1].mean()
    np.testing.assert_allclose(by_pcd, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pcd, scale * expected, rtol=1e-5, atol=1e-5 * scale)


def test_contract(getkey):
    """Any event, keys used once and that matter, low precision summed in float32."""
    x = jax.random.normal(getkey(), (3, 2, 2))
    energy = lambda x: 0.5 * jnp.sum(x**2, axis=(1, 2))  # noqa: E731
    noise = Noise((2, 2))
    calls = {
        "cd": lambda x, key: losses.contrastive_divergence(
            energy, x, key, step_size=0.3, num_steps=2
        ),
        "pcd": lambda x, key: losses.persistent_contrastive_divergence(
            energy, x, key, chains=x[:2], step_size=0.3, num_steps=2
        )[0],
        "nce": lambda x, key: losses.noise_contrastive(
            energy, x, key, noise_density=noise, num_noise=2
        ),
    }
    for call in calls.values():
        run = jax.jit(call)
        with jax.debug_key_reuse(True):
            loss = run(x, getkey())
            assert np.abs(loss - run(x, getkey())).max() > 1e-3
        assert loss.shape == (3,)
        assert jax.eval_shape(call, x.astype(jnp.bfloat16), getkey()).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, k: losses.contrastive_divergence(
                lambda x: x, x, k, step_size=0.1, num_steps=1
            ),
            ValueError,
            "one number per example",
        ),
        (
            lambda x, k: losses.contrastive_divergence(
                lambda x: x[:, 0], x, k, step_size=0.1, num_steps=0
            ),
            ValueError,
            "num_steps must be at least 1",
        ),
        (
            lambda x, k: losses.contrastive_divergence(
                lambda x: x[:, 0], x.astype(int), k, step_size=0.1, num_steps=1
            ),
            TypeError,
            "floating",
        ),
        (
            lambda x, k: losses.persistent_contrastive_divergence(
                lambda x: x[:, 0], x, k, chains=x[:, :2], step_size=0.1, num_steps=1
            ),
            ValueError,
            r"of those of x, \(3,\), got \(2,\)",
        ),
        (
            lambda x, k: losses.noise_contrastive(lambda x: x[:, 0], x, k, noise_density=NOISE),
            ValueError,
            r"of those of x, \(3,\), got \(1,\)",
        ),
        (
            lambda x, k: losses.noise_contrastive(
                lambda x: x[:, 0], x, k, noise_density=NOISE, num_noise=0
            ),
            ValueError,
            "num_noise must be at least 1",
        ),
        (
            lambda x, k: losses.noise_contrastive(lambda x: x, x[:, :1], k, noise_density=NOISE),
            ValueError,
            "one number per example",
        ),
        (
            lambda x, k: losses.noise_contrastive(
                lambda x: x[:, 0], x[:, :1], k, noise_density=Unsummed()
            ),
            ValueError,
            r"log_prob must return one number per example, shape \(2,\), got \(2, 1\)",
        ),
        (
            lambda x, k: losses.noise_contrastive(
                lambda x: x[:, 0], x[:, :1], k, noise_density=NOISE, log_normalizer=jnp.zeros(2)
            ),
            ValueError,
            r"log_normalizer must be one number, got shape \(2,\)",
        ),
    ],
)
def test_bad_input(call, error, message, getkey):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 3)), getkey())
