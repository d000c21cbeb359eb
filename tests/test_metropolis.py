"""MALA and the adaptation of its step: invariance, acceptance, energies and bare scores."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate as scipy_integrate
from scipy import special, stats

from sm_jax import densities, samplers
from sm_jax.parameterization import EnergyScore
from sm_jax.samplers._metropolis import simpson
from tests.oracles import assert_mean

# A quartic density, E = x^4 / 4, on which Simpson's rule is exact; of known draws and CDF.


def quartic_energy(x):
    return jnp.sum(x**4, axis=-1) / 4


def quartic_draws(key, n):
    key_size, key_sign = jax.random.split(key)
    size = (4.0 * jax.random.gamma(key_size, 0.25, (n, 1))) ** 0.25
    return size * jax.random.rademacher(key_sign, (n, 1), size.dtype)


def quartic_cdf(x):
    return 0.5 * (1 + np.sign(x) * special.gammainc(0.25, x**4 / 4))


def logistic_score(x):
    return -jnp.tanh(0.5 * x)


def uniform_pvalue(x, cdf):
    """The p-value of a Kolmogorov-Smirnov test; chains that diverged count as far away."""
    x = np.nan_to_num(np.asarray(x, np.float64)[:, 0], nan=1e6, posinf=1e6, neginf=-1e6)
    return stats.kstest(x, cdf).pvalue


FORMS = {
    "energy": lambda **o: partial(samplers.mala, EnergyScore(quartic_energy), **o),
    "score": lambda **o: partial(samplers.mala, lambda x: -(x**3), **o),
    # any vector field may propose, if the energy decides
    "both": lambda **o: partial(
        samplers.mala, lambda x: 0.3 - 0.5 * x, energy_fn=quartic_energy, **o
    ),
}
QUARTIC_STEP = 0.25


@pytest.mark.parametrize("form", FORMS)
def test_mala_leaves_a_quartic_density_invariant(form, getkey):
    """Exact draws stay exact draws; without the acceptance they do not."""
    x = quartic_draws(getkey(), 40_000)
    assert uniform_pvalue(x, quartic_cdf) > 1e-3
    run = FORMS[form](step_size=QUARTIC_STEP, num_steps=20)
    assert uniform_pvalue(jax.jit(run)(x, getkey()).x, quartic_cdf) > 1e-3
    biased = samplers.langevin(lambda x: -(x**3), x, getkey(), step_size=QUARTIC_STEP, num_steps=20)
    assert uniform_pvalue(biased, quartic_cdf) < 1e-6


def test_mala_for_bare_scores_beyond_the_exactness_of_simpson(getkey):
    """The logistic density, of a bounded score: an error of fifth order does not show."""
    x = jax.random.logistic(getkey(), (40_000, 1))
    options = {"step_size": 1.5, "num_steps": 20}
    out = samplers.mala(logistic_score, x, getkey(), **options).x
    assert uniform_pvalue(out, stats.logistic.cdf) > 1e-3
    biased = samplers.langevin(logistic_score, x, getkey(), **options)
    assert uniform_pvalue(biased, stats.logistic.cdf) < 1e-6


def test_mala_never_leaves_the_support(getkey):
    """A gamma density, whose energy is NaN below zero."""
    x = jax.random.gamma(getkey(), 3.0, (40_000, 1))
    chain = samplers.mala(
        EnergyScore(lambda x: jnp.sum(x - 2.0 * jnp.log(x), axis=-1)),
        x,
        getkey(),
        step_size=2.0,
        num_steps=20,
    )
    assert uniform_pvalue(chain.x, stats.gamma(3.0).cdf) > 1e-3
    # The chains start from the density, so that every step has the same mean acceptance.
    random = np.random.default_rng(0)
    x, h = random.gamma(3.0, size=1_000_000), 2.0
    y = x + h * (2.0 / x - 1.0) + np.sqrt(2.0 * h) * random.normal(size=x.shape)
    inside, other = y > 0.0, np.where(y > 0.0, y, 1.0)
    s_x, s_y = 2.0 / x - 1.0, 2.0 / other - 1.0
    gain = 2.0 * np.log(other / x) - (other - x)
    log_a = gain - (other - x) * (s_x + s_y) / 2.0 - h * (s_y**2 - s_x**2) / 4.0
    accepted = np.where(inside, np.exp(np.minimum(log_a, 0.0)), 0.0)
    rate = np.asarray(chain.acceptance_rate)
    error = np.hypot(rate.std() / np.sqrt(rate.size), accepted.std() / np.sqrt(accepted.size))
    assert abs(rate.mean() - accepted.mean()) < 4.5 * error


def test_mala_counts_what_is_not_a_number_as_rejected(getkey):
    """An energy that exists at the start only."""
    x = jnp.array([[1.0], [2.0]])
    chain = samplers.mala(
        lambda x: 0 * x,
        x,
        getkey(),
        energy_fn=lambda y: jnp.where(y == x, 0.0, jnp.nan)[:, 0],
        step_size=0.5,
        num_steps=3,
    )
    np.testing.assert_array_equal(chain.x, x)
    np.testing.assert_array_equal(chain.acceptance_rate, 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_mala_accepts_as_often_as_quadrature_says(form, getkey):
    """The mean of min(1, a) over the density and the proposal, from the densities themselves."""
    h, nodes = 0.6, np.linspace(-4.0, 4.0, 1201)
    drift = (lambda x: 0.3 - 0.5 * x) if form == "both" else (lambda x: -(x**3))
    x, y = nodes[:, None], nodes[None, :]

    def log_joint(x, y):
        log_p = -(x**4) / 4 - np.log(special.gamma(0.25) / np.sqrt(2))
        return log_p + stats.norm.logpdf(y, x + h * drift(x), np.sqrt(2 * h))

    log_there, log_back = log_joint(x, y), log_joint(y, x)
    width = nodes[1] - nodes[0]
    np.testing.assert_allclose(np.sum(np.exp(log_there)) * width**2, 1.0, atol=2e-3)
    expected = np.sum(np.exp(np.minimum(log_there, log_back))) * width**2
    x = quartic_draws(getkey(), 20_000)
    chain = FORMS[form](step_size=h, num_steps=3)(x, getkey())
    assert_mean(chain.acceptance_rate, expected)
    assert chain.acceptance_rate.shape == (20_000,)
    assert 0.2 < expected < 0.9


def test_an_energy_score_is_taken_for_its_energy(getkey):
    """In one pass at each point; a score besides the energy takes another."""
    x, key, calls = 0.5 * jnp.ones((4, 1)), getkey(), []

    def energy_fn(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(jnp.cos(3.0 * x) + x**2, axis=-1)

    options = {"step_size": 0.5, "num_steps": 8}
    typed = samplers.mala(EnergyScore(energy_fn), x, key, **options)
    jax.effects_barrier()
    assert len(calls) == 9
    given = samplers.mala(
        lambda x: EnergyScore(energy_fn)(x), x, key, energy_fn=energy_fn, **options
    )
    jax.effects_barrier()
    assert len(calls) == 9 + 2 * 9
    np.testing.assert_allclose(typed.acceptance_rate, given.acceptance_rate, rtol=1e-5)
    np.testing.assert_allclose(typed.x, given.x, rtol=1e-5)


WRAPPERS = {
    "jit": jax.jit,
    "lambda": lambda fn: lambda x: fn(x),
    "partial": partial,
    "wraps": lambda fn: functools.wraps(fn)(lambda x: fn(x)),
}


@pytest.mark.parametrize("sampler", [samplers.mala, samplers.adapt_step_size])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_result_says_whether_the_test_was_exact(sampler, transform, getkey):
    """Of an energy it was; around its score, ``jit`` and its like leave a bare score."""
    x, key, score_fn = jnp.ones((4, 1)), getkey(), EnergyScore(quartic_energy)
    options = {"step_size": 0.1, "num_steps": 2}

    def run(score_fn, **given):
        return transform(partial(sampler, score_fn, **given, **options))(x, key)

    assert run(score_fn).exact.dtype == bool
    assert run(score_fn).exact
    assert run(lambda x: -x, energy_fn=quartic_energy).exact
    for wrap in WRAPPERS.values():
        bare = run(wrap(score_fn))
        assert not bare.exact
        # the line integral, of which Simpson's rule knows the value for this density
        np.testing.assert_allclose(bare.x, run(score_fn).x, rtol=1e-5)


def test_energy_and_score_make_the_same_chain(getkey):
    """Where Simpson's rule is exact, for events of any rank."""
    x, key = 0.5 * jax.random.normal(getkey(), (64, 2, 3)), getkey()

    def energy(x):
        return jnp.sum(x**4 / 4 - x**3 / 5 + 0.3 * x, axis=(1, 2))

    options = {"step_size": 0.15, "num_steps": 30, "trajectory": True}
    by_energy = samplers.mala(EnergyScore(energy), x, key, **options)
    by_score = samplers.mala(lambda x: -jax.grad(lambda y: energy(y).sum())(x), x, key, **options)
    assert 0.1 < float(by_energy.acceptance_rate.mean()) < 0.95
    # but for acceptances that rounding decides
    same = np.isclose(by_energy.trajectory[-1], by_score.trajectory[-1], atol=1e-3).all(axis=(1, 2))
    assert same.mean() > 0.95
    np.testing.assert_allclose(
        by_energy.acceptance_rate[same], by_score.acceptance_rate[same], atol=1e-3
    )
    path = by_energy.trajectory
    assert path.shape == (31, 64, 2, 3)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_array_equal(path[-1], by_energy.x)
    # the chains moved as often as they say that they do on average
    moved = np.mean(np.any(np.diff(path, axis=0) != 0, axis=(2, 3)), axis=0)
    assert_mean(moved - np.asarray(by_energy.acceptance_rate), 0.0)


def test_adaptation_is_dual_averaging(getkey):
    """Where everything is accepted: the recursion of Hoffman & Gelman with their constants."""
    n, first, wanted = 6, 0.02, 0.7
    error, log_mean = 0.0, None
    for m in range(1, n + 1):
        error += (wanted - 1.0 - error) / (m + 10)
        log_step = np.log(10 * first) - np.sqrt(m) / 0.05 * error
        log_mean = log_step if m == 1 else log_mean + m**-0.75 * (log_step - log_mean)
    adapted = samplers.adapt_step_size(
        lambda x: 0.0 * x,
        jnp.zeros((5, 2)),
        getkey(),
        step_size=first,
        num_steps=n,
        target_acceptance=wanted,
    )
    np.testing.assert_allclose(adapted.step_size, np.exp(log_mean), rtol=1e-5)
    # the flat density lets the chains walk freely, with steps that grow
    assert adapted.x.shape == (5, 2)
    assert float(jnp.abs(adapted.x).max()) > 0.1


@pytest.mark.parametrize(("form", "wanted"), [("energy", 0.8), ("score", 0.574)])
def test_adapted_steps_are_accepted_as_often_as_wanted(form, wanted, getkey):
    """From a step that is far too small, on the quartic density."""
    score_fn = {"energy": EnergyScore(quartic_energy), "score": lambda x: -(x**3)}[form]
    options = {} if wanted == 0.574 else {"target_acceptance": wanted}
    found = samplers.adapt_step_size(
        score_fn,
        quartic_draws(getkey(), 2_000),
        getkey(),
        step_size=1e-3,
        num_steps=2_000,
        **options,
    )
    chain = FORMS[form](step_size=found.step_size, num_steps=20)(found.x, getkey())
    assert abs(float(chain.acceptance_rate.mean()) - wanted) < 0.01


def test_mala_keeps_the_dtype_of_the_points(getkey):
    """With a step and an energy of higher precision."""
    with jax.enable_x64(True):
        for form in ("energy", "score"):
            x = jnp.ones((4, 1), jnp.float32)
            chain = jax.eval_shape(
                FORMS[form](step_size=jnp.float64(0.1), num_steps=2), x, getkey()
            )
            assert chain.x.dtype == chain.acceptance_rate.dtype == jnp.float32
        found = jax.eval_shape(
            lambda x, key: samplers.adapt_step_size(
                EnergyScore(lambda x: quartic_energy(x.astype(jnp.float64))),
                x,
                key,
                step_size=jnp.float64(0.1),
                num_steps=2,
            ),
            x,
            getkey(),
        )
        assert found.x.dtype == found.step_size.dtype == jnp.float32


MIXTURE = densities.gaussian_mixture([0.3, 0.7], [[-1.5], [1.0]], [0.3, 0.8])
LEFT = 0.3 * stats.norm.cdf(0.9 / 0.3**0.5) + 0.7 * stats.norm.cdf(-1.6 / 0.8**0.5)


def share_left(score_fn, x, key, **options):
    """Which chains end left of -0.6, at the step that the adaptation finds, and its acceptance."""
    key_adapt, key_run = jax.random.split(key)
    found = samplers.adapt_step_size(
        score_fn, x[:500], key_adapt, step_size=0.1, num_steps=400, **options
    )
    chain = samplers.mala(score_fn, x, key_run, step_size=found.step_size, num_steps=60, **options)
    return chain.x[:, 0] < -0.6, chain.acceptance_rate.mean()


@pytest.mark.slow
@pytest.mark.parametrize("num_panels", [2, 4])
def test_a_bare_score_keeps_the_weights_of_modes_at_the_adapted_step(num_panels, getkey):
    """One panel and no check made 0.219 of 0.310, two without the check 0.338."""
    x = MIXTURE.sample(getkey(), 40_000)
    run = jax.jit(partial(share_left, lambda x: MIXTURE.score(x), num_panels=num_panels))
    left, accepted = run(x, getkey())
    assert abs(float(accepted) - 0.574) < 0.04
    assert abs(float(left.mean()) - LEFT) < 4.5 * np.sqrt(0.21 / 40_000) + 0.001


@pytest.mark.slow
def test_a_bare_score_keeps_the_weights_of_modes_in_ten_dimensions(getkey):
    """The same modes along the first of ten numbers, the others normal."""

    def score_fn(x):
        return jnp.concatenate([MIXTURE.score(x[:, :1]), -x[:, 1:]], axis=1)

    rest = jax.random.normal(getkey(), (20_000, 9))
    x = jnp.concatenate([MIXTURE.sample(getkey(), 20_000), rest], axis=1)
    left, accepted = jax.jit(partial(share_left, score_fn))(x, getkey())
    assert abs(float(accepted) - 0.574) < 0.04
    assert abs(float(left.mean()) - LEFT) < 4.5 * np.sqrt(0.21 / 20_000) + 0.001


@pytest.mark.slow
@pytest.mark.parametrize("num_panels", [2, 4])
def test_two_rules_that_disagree_reject(num_panels, getkey):
    """A score with a spike in the middle of every segment that only the finer rule can see."""
    values = jax.random.normal(getkey(), (2 * num_panels + 1, 3)).astype(jnp.float32)
    rule = scipy_integrate.simpson(np.asarray(values), dx=0.5 / num_panels, axis=0)
    np.testing.assert_allclose(simpson(values), rule, rtol=1e-5, atol=1e-6)
    wild = samplers.mala(
        lambda x: 50.0 * jnp.sin(40.0 * x), jnp.zeros((4, 1)), getkey(), step_size=1.0, num_steps=20
    )
    assert float(wild.acceptance_rate.max()) < 0.2


@pytest.mark.parametrize("num_panels", [1, 3])
def test_the_number_of_panels_is_even(num_panels, getkey):
    for sampler in (samplers.mala, samplers.adapt_step_size):
        with pytest.raises(ValueError, match="num_panels must be"):
            sampler(
                logistic_score,
                jnp.ones((2, 1)),
                getkey(),
                step_size=0.1,
                num_steps=1,
                num_panels=num_panels,
            )


@pytest.mark.slow
def test_bare_scores_with_narrow_peaks_need_close_nodes(getkey):
    """Eight cells whose score is flat but at their edges: closer nodes keep their weights.

    The chains start from the density. At the step of 0.009 the nodes are farther apart than the
    edges are wide, and the weights become more equal, without a word from the check.
    """
    edges = jnp.linspace(-1.0, 1.0, 9)[:, None]
    weights = np.array([0.05, 0.3, 0.05, 0.2, 0.02, 0.2, 0.08, 0.1])
    density = densities.UniformBoxes(jnp.log(weights), edges[:-1], edges[1:], jnp.float32(0.01))
    x = density.sample(getkey(), 2_000)

    def distance(**options):
        run = jax.jit(partial(samplers.mala, density.score, num_steps=100, **options))
        points = np.clip(np.asarray(run(x, getkey()).x), -0.999, 0.999)
        counts, _ = np.histogram(points, np.asarray(edges)[:, 0])
        return 0.5 * np.abs(counts / 2_000 - weights).sum()

    noise = 0.5 * np.sqrt(2 / np.pi * weights * (1 - weights) / 2_000).sum()  # its mean
    assert distance(step_size=0.009, num_panels=16) < 3 * noise  # 0.0042 apart
    assert distance(step_size=0.009, num_panels=2) > 6 * noise  # 0.034 apart
