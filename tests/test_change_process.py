"""A score under one process is that of another, exactly: values, samples, likelihoods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import densities, likelihood, processes, samplers
from sm_jax.parameterization import EnergyScore, change_process

LOW, HIGH = 0.01, 50.0


def alike():
    """Processes whose noise ratios all go from LOW to HIGH."""
    rate = 2 * np.log1p(HIGH**2) - 0.1  # of VP, where r^2 + 1 = exp((beta_min + beta_max) / 2)
    sub_rate = 4 * np.arcsinh(HIGH / 2) - 0.1
    start = float(processes.VPLinear(beta_max=rate).time_at(LOW))
    sub_start = float(processes.SubVP(beta_max=sub_rate).time_at(LOW))
    ends = [float(processes.Cosine().time_at(r)) for r in (LOW, HIGH)]
    return {
        "VE": processes.VE(LOW, HIGH),
        "EDM": processes.EDM(LOW, HIGH),
        "GeometricVE": processes.GeometricVE(LOW, HIGH),
        "VPLinear": processes.VPLinear(beta_max=rate, t_min=start),
        "SubVP": processes.SubVP(beta_max=sub_rate, t_min=sub_start),
        "Cosine": processes.Cosine(*ends),
    }


ALIKE = alike()
DENSITIES = {
    "gaussian": densities.gaussian([0.4, -0.3], [[1.0, 0.3], [0.3, 0.5]]),
    "mixture": densities.gaussian_mixture([0.3, 0.7], [[-1.0, 0.0], [0.8, 0.5]], [0.09, 0.04]),
}


def exact_score(density, process):
    def row(x, t):
        return density.noised(process, t).score(x[None])[0]

    return jax.vmap(row)


@pytest.mark.parametrize("target", ALIKE)
def test_scores_are_equal_for_all_pairs(target, getkey):
    target = ALIKE[target]
    t = target.time_at(jnp.array([LOW * 1.01, 0.3, 2.0, HIGH * 0.99]))
    spread = target.alpha(t) + target.sigma(t)

    @jax.jit
    def errors(x):
        found = {}
        for kind, density in DENSITIES.items():
            expected = exact_score(density, target)(x, t)
            for name, source in ALIKE.items():
                changed = change_process(exact_score(density, source), source=source, target=target)
                found[kind, name] = changed(x, t) / expected - 1
        return found

    x = spread[:, None] * jax.random.normal(getkey(), (4, 2))
    for case, error in errors(x).items():
        np.testing.assert_allclose(error, 0.0, atol=2e-3, err_msg=str(case))


@pytest.mark.parametrize(("source", "target"), [("EDM", "VPLinear"), ("SubVP", "GeometricVE")])
def test_samples_and_likelihoods_are_those_of_the_other_process(source, target, getkey):
    """Heun takes the same steps in y = x / alpha; the density at t_min is that of x / alpha."""
    source, target = ALIKE[source], ALIKE[target]
    score_fn = exact_score(DENSITIES["mixture"], source)
    changed = change_process(score_fn, source=source, target=target)
    y = HIGH * jax.random.normal(getkey(), (5, 2))
    ratios = jnp.geomspace(0.99 * HIGH, 1.01 * LOW, 25)

    @jax.jit
    def drawn(y):
        return [
            samplers.heun(f, p.alpha(p.time_at(ratios[0])) * y, process=p, times=p.time_at(ratios))
            for f, p in ((score_fn, source), (changed, target))
        ]

    np.testing.assert_allclose(*drawn(y), rtol=2e-3, atol=2e-3)

    @jax.jit
    def densities_of(x):
        value = likelihood.log_prob(changed, x, process=target, num_steps=48).value
        return value, DENSITIES["mixture"].noised(target, target.t_min).log_prob(x)

    x = DENSITIES["mixture"].sample(getkey(), 5)
    np.testing.assert_allclose(*densities_of(x), atol=0.02)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("target", ["VE", "GeometricVE"])
def test_the_derivative_by_time_holds_at_both_ends(target, bits):
    """N(0, 1) under VE: d/dt of ``-x / (1 + sigma^2)``, where rounding may leave the range."""
    with jax.enable_x64(bits == 64):
        source, target = ALIKE["VE"], ALIKE[target]
        x = jnp.ones((1, 1))

        def score_fn(x, t):
            return -x / (1.0 + t[:, None] ** 2)

        changed = change_process(score_fn, source=source, target=target)
        for t in (float(target.t_min), 0.3, float(target.t_max)):
            sigma, slope = jax.value_and_grad(target.sigma)(t)
            derivative = jax.grad(lambda t: changed(x, jnp.full((1,), t))[0, 0])(t)
            right = 2 * sigma * slope / (1 + sigma**2) ** 2
            np.testing.assert_allclose(derivative, right, rtol=2e-3)


def test_any_rank_and_dtype(getkey):
    changed = change_process(lambda x, t: -x, source=ALIKE["VE"], target=ALIKE["VPLinear"])
    for shape, dtype in (((3,), jnp.bfloat16), ((3, 2, 2), jnp.float32)):
        x = jax.random.normal(getkey(), shape, dtype)
        score = changed(x, jnp.full(3, 0.5))
        assert (score.shape, score.dtype) == (shape, dtype)


def test_the_source_is_asked_inside_its_range():
    """Where rounding would leave it."""
    seen = []

    def score_fn(x, t):
        seen.append(t)
        return -x

    source, target = ALIKE["VE"], ALIKE["VPLinear"]
    changed = change_process(score_fn, source=source, target=target)
    changed(jnp.ones((2, 1)), jnp.array([target.t_min * 0.999, 1.0001]))
    assert seen[0][0] == np.float32(LOW)
    assert seen[0][1] == np.float32(HIGH)


def test_the_energy_comes_along(getkey):
    """Its gradient is that of the changed score, so that likelihoods stay as cheap."""
    source, target = ALIKE["EDM"], ALIKE["VPLinear"]
    energy_fn = lambda x, t: jnp.sum(x**4, axis=-1) / (1.0 + t) + jnp.sin(x[:, 0])  # noqa: E731
    changed = change_process(EnergyScore(energy_fn), source=source, target=target)
    x, t = jax.random.normal(getkey(), (3, 2)), jnp.array([0.2, 0.5, 0.9])
    assert isinstance(changed, EnergyScore)
    # the noised densities differ in scale alone: s_target(x, t) = c s_source(c x, t')
    source_t = source.time_at(target.sigma(t) / target.alpha(t))
    c = (source.alpha(source_t) / target.alpha(t))[:, None]
    gradient = 4 * (c * x) ** 3 / (1.0 + source_t[:, None])
    gradient = gradient.at[:, 0].add(jnp.cos(c[:, 0] * x[:, 0]))
    np.testing.assert_allclose(changed(x, t), -c * gradient, rtol=1e-4, atol=1e-4)
    bare = change_process(lambda x, t: EnergyScore(energy_fn)(x, t), source=source, target=target)
    np.testing.assert_allclose(changed(x, t), bare(x, t), rtol=1e-5)
    assert not isinstance(bare, EnergyScore)


@pytest.mark.parametrize(
    ("target", "theirs"),
    [
        (processes.VE(LOW, 2 * HIGH), "0.01 to 100"),
        (processes.VE(LOW / 2, HIGH), "0.005 to 50"),
        (processes.Cosine(), "0.0001571 to 636.6"),
    ],
)
def test_a_target_beyond_the_source_is_an_error(target, theirs):
    message = rf"from 0.01 to 50, those of the source, but the target has {theirs}: raise t_min"
    with pytest.raises(ValueError, match=message):
        change_process(lambda x, t: -x, source=ALIKE["EDM"], target=target)
    with pytest.raises(ValueError, match=message):
        jax.jit(
            lambda t: change_process(lambda x, t: -x, source=ALIKE["EDM"], target=target)(
                t[:, None], t
            )
        )(jnp.ones(1))
    # traced values cannot be checked
    jax.eval_shape(
        lambda p: change_process(lambda x, t: -x, source=ALIKE["EDM"], target=p)(
            jnp.ones((1, 1)), p.t_max
        ),
        target,
    )
