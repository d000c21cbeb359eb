"""Composed energies and scores against closed forms; what a sum of noised scores is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sm_jax import composition, densities, processes, samplers
from sm_jax.parameterization import EnergyScore
from tests.oracles import A, b

FIRST = densities.gaussian([0.5, -1.0], [[0.8, 0.2], [0.2, 0.5]])
SECOND = densities.gaussian([-1.0, 0.5], [[1.5, -0.6], [-0.6, 0.9]])


def energy_of(density):
    return lambda x: -density.log_prob(x)


def power_of_gaussians(*pairs):
    """The Gaussian whose density is proportional to ``prod N(m, C)^w``."""
    precision = sum(w * np.linalg.inv(cov) for w, _, cov in pairs)
    pull = sum(w * np.linalg.inv(cov) @ mean for w, mean, cov in pairs)
    cov = np.linalg.inv(precision)
    return densities.gaussian(cov @ pull, cov)


MOMENTS = [
    (np.array([0.5, -1.0]), np.array([[0.8, 0.2], [0.2, 0.5]])),
    (np.array([-1.0, 0.5]), np.array([[1.5, -0.6], [-0.6, 0.9]])),
]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 2.0), (1.0, -0.3)])
def test_product_of_gaussians(weights, getkey):
    """Energies up to a constant, and scores, with powers; a quotient as well."""
    exact = power_of_gaussians(*((w, *m) for w, m in zip(weights, MOMENTS, strict=True)))
    x = 2.0 * jax.random.normal(getkey(), (5, 2))
    given = None if weights == (1.0, 1.0) else weights
    score_fn = composition.product([FIRST.score, SECOND.score], weights=given)
    np.testing.assert_allclose(score_fn(x), exact.score(x), rtol=1e-4, atol=1e-4)
    energy_fn = composition.product([energy_of(FIRST), energy_of(SECOND)], weights=given)
    constant = energy_fn(x) + exact.log_prob(x)
    np.testing.assert_allclose(constant - constant[0], 0.0, atol=1e-4)
    np.testing.assert_allclose(EnergyScore(energy_fn)(x), exact.score(x), rtol=1e-4, atol=1e-4)
    if weights[1] < 0:
        negated = composition.divide(FIRST.score, SECOND.score, strength=0.3)
        np.testing.assert_allclose(negated(x), exact.score(x), rtol=1e-4, atol=1e-4)


def test_tempering_divides_the_covariance(getkey):
    x = jax.random.normal(getkey(), (5, 2))
    exact = densities.gaussian(MOMENTS[0][0], MOMENTS[0][1] / 2.5)
    score_fn = composition.temper(FIRST.score, inverse_temperature=2.5)
    np.testing.assert_allclose(score_fn(x), exact.score(x), rtol=1e-4, atol=1e-4)
    energies = composition.temper(energy_of(FIRST), inverse_temperature=2.5)(x)
    np.testing.assert_allclose(energies, 2.5 * energy_of(FIRST)(x), rtol=1e-6)


def test_product_of_a_mixture_and_a_gaussian(getkey):
    """Of sum w_k N(m_k, v) and N(0, u): again a mixture, its weights times N(m_k; 0, v + u)."""
    weights, means, v, u = np.array([0.3, 0.7]), np.array([[-1.0], [2.0]]), 0.25, 1.5
    factors = densities.gaussian_mixture(weights, means, v), densities.gaussian([0.0], u)
    products = weights * stats.norm.pdf(means[:, 0], scale=np.sqrt(v + u))
    exact = densities.gaussian_mixture(products, means * u / (u + v), u * v / (u + v))
    x = 2.0 * jax.random.normal(getkey(), (7, 1))
    score_fn = composition.product([f.score for f in factors])
    np.testing.assert_allclose(score_fn(x), exact.score(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_mixture_is_normalized_by_the_normalizers_that_it_is_given(getkey):
    """Energies without their constants, and weights that do not sum to one."""
    exact = densities.gaussian_mixture([2.0, 6.0], *map(np.stack, zip(*MOMENTS, strict=True)))
    constants = np.array([0.5 * np.linalg.slogdet(2 * np.pi * cov)[1] for _, cov in MOMENTS])
    energies = [
        lambda x, d=d, c=c: -d.log_prob(x) - c
        for d, c in zip((FIRST, SECOND), constants, strict=True)
    ]
    x = 2.0 * jax.random.normal(getkey(), (6, 2))
    options = {"weights": [2.0, 6.0], "log_normalizers": constants}
    energy_fn = composition.mixture(energies, **options)
    np.testing.assert_allclose(energy_fn(x), -exact.log_prob(x), rtol=1e-5, atol=1e-5)
    score_fn = composition.mixture_score([FIRST.score, SECOND.score], energies, **options)
    np.testing.assert_allclose(score_fn(x), exact.score(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(EnergyScore(energy_fn)(x), score_fn(x), rtol=1e-4, atol=1e-4)
    even = composition.mixture([energy_of(FIRST), energy_of(SECOND)])
    half = 0.5 * np.exp(FIRST.log_prob(x)) + 0.5 * np.exp(SECOND.log_prob(x))
    np.testing.assert_allclose(even(x), -np.log(half), rtol=1e-5, atol=1e-5)


def noised(density, method, process):
    return jax.vmap(lambda x, t: getattr(density.noised(process, t), method)(x[None])[0])


def test_a_mixture_of_noised_scores_is_the_noised_mixture(getkey):
    process = processes.VPLinear()
    exact = densities.gaussian_mixture([0.3, 0.7], *map(np.stack, zip(*MOMENTS, strict=True)))
    log_probs = [noised(d, "log_prob", process) for d in (FIRST, SECOND)]
    score_fn = composition.mixture_score(
        [noised(d, "score", process) for d in (FIRST, SECOND)],
        [lambda x, t, f=f: -f(x, t) for f in log_probs],
        weights=[0.3, 0.7],
    )
    x, t = jax.random.normal(getkey(), (5, 2)), jnp.linspace(0.1, 0.8, 5)
    truth = jax.jit(noised(exact, "score", process))(x, t)
    np.testing.assert_allclose(jax.jit(score_fn)(x, t), truth, rtol=1e-4, atol=1e-4)


VARIANCES = (0.5, 2.0)
MIDDLES = (1.0, -1.0)


def test_a_component_without_density_at_a_point_adds_nothing():
    """Beyond the wall of the second component its energy is infinite, and its score NaN."""

    def walled_energy(x):
        return jnp.where(x > 0.0, x, jnp.inf)

    def walled_score(x):
        return jnp.where(x > 0.0, -1.0, jnp.nan)

    score_fn = composition.mixture_score(
        [lambda x: -x, walled_score], [lambda x: 0.5 * x**2, walled_energy]
    )
    np.testing.assert_allclose(score_fn(jnp.array([-2.0, 1.0])), [2.0, -1.0], rtol=1e-6)
    for derivative in (jax.jacfwd, jax.jacrev):
        gradient = derivative(lambda x: score_fn(x[None])[0])(jnp.float32(-2.0))
        np.testing.assert_allclose(gradient, -1.0, rtol=1e-6)


def gaussian_scores():
    """Noise-conditional scores of N(m_i, v_i) in one dimension; the noise adds sigma^2."""
    return [
        lambda x, sigma, m=m, v=v: (m - x) / (v + sigma[:, None] ** 2)
        for m, v in zip(MIDDLES, VARIANCES, strict=True)
    ]


def gaussian_energies():
    return [
        lambda x, sigma, m=m, v=v: 0.5 * (x[:, 0] - m) ** 2 / (v + sigma**2)
        for m, v in zip(MIDDLES, VARIANCES, strict=True)
    ]


PRODUCT_VARIANCE = 1 / sum(1 / v for v in VARIANCES)
PRODUCT_MEAN = PRODUCT_VARIANCE * sum(m / v for m, v in zip(MIDDLES, VARIANCES, strict=True))


def test_derivatives_by_a_weight_of_zero():
    """``-log p`` changes by ``1 - p_0 / p_1``, and the score by ``(p_0 / p_1) (s_0 - s_1)``.

    Also where the component of weight 0 is 1e300 times the other, of which float32 keeps no ratio.
    """
    x = jnp.array([0.5, -2.0])
    score_fns = [lambda x: -x, lambda x: 1.0 - x]
    energy_fns = [lambda x: 0.5 * x**2, lambda x: 0.5 * (x - 1.0) ** 2]

    def both(weights, gain=0.0):
        fns = [lambda x: energy_fns[0](x) - gain, energy_fns[1]]
        energy_fn = composition.mixture(fns, weights=weights)
        return energy_fn(x), composition.mixture_score(score_fns, fns, weights=weights)(x)

    ratio = np.exp(0.5 - np.asarray(x))
    energy, score = jax.jacrev(both)(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(energy[:, 0], 1 - ratio, rtol=1e-5)
    np.testing.assert_allclose(score[:, 0], -ratio, rtol=1e-5)
    np.testing.assert_allclose(energy[:, 1], 0.0, atol=1e-6)
    value, _ = both(jnp.array([0.0, 1.0]), gain=700.0)
    np.testing.assert_allclose(value, energy_fns[1](x), rtol=1e-6)


def test_the_sum_of_noised_scores_is_not_the_score_of_the_noised_product(getkey):
    """Closed form for both: they agree without noise and differ at every level."""
    summed = composition.product(gaussian_scores(), annealed=True)
    x = jax.random.normal(getkey(), (5, 1))
    for sigma in (0.0, 0.5, 2.0):
        exact = (PRODUCT_MEAN - x) / (PRODUCT_VARIANCE + sigma**2)
        by_hand = sum((m - x) / (v + sigma**2) for m, v in zip(MIDDLES, VARIANCES, strict=True))
        value = summed(x, jnp.full(5, sigma))
        np.testing.assert_allclose(value, by_hand, rtol=1e-5, atol=1e-6)
        if sigma == 0.0:
            np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-6)
        else:
            assert np.abs(value - exact).max() > 0.1
    # the noised power is not the power of the noised, either
    sharp = composition.temper(gaussian_scores()[0], inverse_temperature=4.0, annealed=True)(
        x, jnp.ones(5)
    )
    assert np.abs(sharp - (1.0 - x) / (0.5 / 4.0 + 1.0)).max() > 0.1


@pytest.mark.slow
def test_markov_chains_sample_the_product_and_reverse_diffusions_do_not(getkey):
    """For equal factors: the reverse SDE ends with v / 3, the flow with 0, and v / 2 is right."""
    n, v, process = 8_000, 1.5, processes.VE()

    def energy_fn(x, sigma):
        return 0.5 * (x[:, 0] - 0.8) ** 2 / (v + sigma**2)

    composed = EnergyScore(composition.product([energy_fn, energy_fn], annealed=True))
    x = jax.random.normal(getkey(), (n, 1))
    levels = np.geomspace(3.0, 0.05, 8)
    # steps of 0.1 at the last level, where the chain ends, and less than the variance above it
    out = samplers.annealed_langevin(
        composed,
        3.0 * x,
        getkey(),
        sigmas=levels,
        step_size=2e-5,
        steps_per_level=20,
        denoise=False,
    )
    last = (v + levels[-1] ** 2) / 2
    out = samplers.langevin(
        lambda x: composed(x, jnp.full(n, levels[-1])), out, getkey(), step_size=0.1, num_steps=60
    )
    biased = last / (1 - 0.1 / (2 * last))  # of the unadjusted chain
    error = 4.5 * np.sqrt(2 / n)
    assert abs(out.mean() - 0.8) < 4.5 * np.sqrt(biased / n)
    assert abs(out.var() / biased - 1) < error
    assert abs(out.var() / (v / 2) - 1) < error + 0.08

    x = processes.prior_sample(process, getkey(), (n, 1))
    sde = samplers.euler_maruyama(composed, x, getkey(), process=process, num_steps=400)
    assert abs(sde.var() / (v / 3) - 1) < error + 0.03  # and 0.02 of the finite steps
    flow = samplers.heun(composed, x, process=process, num_steps=60)
    assert flow.var() < 0.01 * v


def test_noised_compositions_must_be_declared(getkey):
    x, t = jnp.ones((2, 1)), jnp.ones(2)
    one, two = gaussian_scores()
    for make in (
        lambda **options: composition.product([one, two], **options),
        lambda **options: composition.product(gaussian_energies(), **options),
        lambda **options: composition.temper(one, inverse_temperature=2.0, **options),
        lambda **options: composition.divide(one, two, strength=0.1, **options),
    ):
        with pytest.raises(ValueError, match=r"not the noised product.*annealed=True"):
            make()(x, t)
        assert make(annealed=True)(x, t).shape in ((2, 1), (2,))
    negated = composition.divide(one, two, strength=0.1, annealed=True)(x, t)
    np.testing.assert_allclose(negated, one(x, t) - 0.1 * two(x, t), rtol=1e-6)


def test_any_event_dtype_and_traced_weights(getkey):
    @jax.jit
    def composed(x, weights):
        score_fn = composition.product([lambda x: -x, lambda x: 1.0 - x], weights=weights)
        negated = composition.divide(score_fn, lambda x: x, strength=weights[0])
        mixed = composition.mixture_score(
            [lambda x: -x, lambda x: -2.0 * x],
            [lambda x: jnp.zeros(x.shape[0]), lambda x: jnp.zeros(x.shape[0])],
            weights=weights,
        )
        return negated(x), mixed(x)

    for shape, dtype in (((3,), jnp.bfloat16), ((2, 2, 2, 1), jnp.float32)):
        x = jnp.ones(shape, dtype)
        negated, mixed = composed(x, jnp.array([1.0, 3.0]))
        assert negated.dtype == mixed.dtype == dtype
        np.testing.assert_array_equal(negated, -2.0 * x)
        np.testing.assert_allclose(mixed, -1.75 * x, rtol=1e-6)


def linear(x):
    return b[None] - x @ A.T


def energy(x):
    return x[:, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: composition.product([]), "fns must be a sequence of at least one function"),
        (lambda x: composition.product(linear), "fns must be a sequence"),
        (
            lambda x: composition.product([linear], weights=[1.0, 2.0]),
            r"each of the 1 factors, got shape \(2,\)",
        ),
        (
            lambda x: composition.product([linear, energy])(x),
            r"one shape, got \[\(2, 3\), \(2,\)\]: compose energies with energies",
        ),
        (
            lambda x: composition.temper(linear, inverse_temperature=[1.0]),
            r"inverse_temperature must be a scalar, got .*\(1,\)",
        ),
        (
            lambda x: composition.divide(linear, linear, strength=[1.0]),
            r"strength must be a scalar, got shape \(1,\)",
        ),
        (
            lambda x: composition.divide(linear, linear, strength=-1.0),
            "strength must be positive",
        ),
        (lambda x: composition.mixture([]), "energy_fns must be a sequence"),
        (lambda x: composition.mixture([linear])(x), r"shape \(2,\), got \(2, 3\)"),
        (lambda x: composition.mixture([energy, linear])(x), "must return one shape"),
        (
            lambda x: composition.mixture([energy], weights=[1.0, 1.0]),
            r"weights must hold one number for each of the 1 components, got shape \(2,\)",
        ),
        (
            lambda x: composition.mixture([energy], log_normalizers=0.0),
            r"log_normalizers must hold one number for each of the 1",
        ),
        (lambda x: composition.mixture([energy], weights=[-1.0]), "weights must be finite and not"),
        (
            lambda x: composition.mixture([energy] * 2, weights=[0.0, 0.0]),
            "weights must not all be",
        ),
        (
            lambda x: composition.mixture([energy] * 2, log_normalizers=[0.0, np.nan]),
            "log_normalizers must be finite",
        ),
        (
            lambda x: composition.product([energy] * 2, weights=[1.0, np.inf]),
            r"weights must be finite, got \[1.0, inf\]",
        ),
        (
            lambda x: composition.temper(energy, inverse_temperature=np.nan),
            "inverse_temperature must be finite, got nan",
        ),
        (lambda x: composition.mixture_score([], []), "score_fns must be a sequence"),
        (
            lambda x: composition.mixture_score([linear], [energy, energy]),
            "got 1 scores and 2 energies",
        ),
        (
            lambda x: composition.mixture_score([energy], [energy])(x),
            r"shape of x, \(2, 3\), got \(2,\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3)))
