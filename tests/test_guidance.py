"""Guidance by labels and classifiers, against Bayes' rule with exact densities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import composition, densities, guidance, processes, samplers
from tests.oracles import A, b

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.0, 0.5], [1.5, -0.5]])
COVS = np.array([[[0.5, 0.1], [0.1, 0.3]], [[0.4, -0.2], [-0.2, 0.6]]])
VP = processes.VPLinear()


def noised(density, method):
    """``(x, t) -> density.noised(t).method(x)`` for one ``t`` per row."""

    def one(x, t):
        return getattr(density.noised(VP, t), method)(x[None])[0]

    return jax.vmap(one)


def cond_fn(x, t):
    return b[None] - x @ A.T + t[:, None]


def uncond_fn(x, t):
    return jnp.sin(x) * t[:, None]


def test_classifier_free_is_the_line_through_both_scores(getkey):
    x, t = jax.random.normal(getkey(), (5, 3)), jnp.linspace(0.1, 2.0, 5)
    cond, uncond = cond_fn(x, t), uncond_fn(x, t)
    guided = partial(guidance.classifier_free, cond_fn, uncond_fn)
    np.testing.assert_allclose(guided(scale=0.0)(x, t), uncond, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(guided(scale=1.0)(x, t), cond, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        guided(scale=2.5)(x, t), 2.5 * cond - 1.5 * uncond, rtol=1e-5, atol=1e-5
    )
    scale = np.arange(5.0)
    by_row = scale[:, None] * cond + (1 - scale)[:, None] * uncond
    np.testing.assert_allclose(guided(scale=scale)(x, t), by_row, rtol=1e-5, atol=1e-5)


def test_classifier_free_guides_within_its_interval_only(getkey):
    """``low < t <= high``, row by row; elsewhere the conditional score."""
    x, t = jax.random.normal(getkey(), (4, 3)), jnp.array([0.5, 0.6, 1.0, 1.1])
    guided = guidance.classifier_free(cond_fn, uncond_fn, scale=3.0, interval=(0.5, 1.0))(x, t)
    everywhere = guidance.classifier_free(cond_fn, uncond_fn, scale=3.0)(x, t)
    np.testing.assert_allclose(guided[1:3], everywhere[1:3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(guided[::3], cond_fn(x, t)[::3], rtol=1e-5, atol=1e-6)


def test_one_time_for_the_whole_batch(getkey):
    x = jax.random.normal(getkey(), (4, 3))

    def double(x, t):
        return 2.0 * x

    guided = guidance.classifier_free(double, lambda x, t: -x, scale=3.0, interval=(0.5, 1.0))
    np.testing.assert_allclose(guided(x, jnp.array(0.7)), 8.0 * x, rtol=1e-6)
    np.testing.assert_allclose(guided(x, 0.4), 2.0 * x, rtol=1e-6)


def test_the_unconditional_score_rests_outside_the_interval(getkey):
    calls = []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return uncond_fn(x, t)

    score_fn = jax.jit(guidance.classifier_free(cond_fn, counted, scale=3.0, interval=(0.5, 1.0)))
    x = jax.random.normal(getkey(), (4, 3))
    score_fn(x, jnp.full(4, 2.0)).block_until_ready()
    jax.effects_barrier()
    assert calls == []
    score_fn(x, jnp.array([2.0, 2.0, 0.7, 2.0])).block_until_ready()
    jax.effects_barrier()
    assert calls == [1]


def test_classifier_free_is_classifier_guidance_by_the_implied_classifier(getkey):
    """With exact densities at every level, log p(c | x_t) = log w_c p_t(x | c) / p_t(x)."""
    joint = densities.gaussian_mixture(WEIGHTS, MEANS, COVS)
    label = densities.gaussian(MEANS[1], COVS[1])
    x, t = 2.0 * jax.random.normal(getkey(), (6, 2)), jnp.linspace(0.05, 0.9, 6)

    def log_likelihood_fn(x, t):
        return np.log(0.7) + noised(label, "log_prob")(x, t) - noised(joint, "log_prob")(x, t)

    scale = np.linspace(0.0, 4.0, 6)
    free = guidance.classifier_free(noised(label, "score"), noised(joint, "score"), scale=scale)
    by_classifier = guidance.classifier(noised(joint, "score"), log_likelihood_fn, scale=scale)
    free, by_classifier = jax.jit(free)(x, t), jax.jit(by_classifier)(x, t)
    np.testing.assert_allclose(by_classifier, free, rtol=2e-4, atol=2e-4)
    bayes = guidance.classifier(noised(joint, "score"), log_likelihood_fn)
    exact = jax.jit(noised(label, "score"))(x, t)
    np.testing.assert_allclose(jax.jit(bayes)(x, t), exact, rtol=2e-4, atol=2e-4)


def test_guided_samples_of_gaussians_move_by_the_scale(getkey):
    """Of N(0, v) and N(m, v) the guided score is that of N(w m, v), so samples move to w m."""
    process, v, mean = processes.VE(), 0.5, np.array([1.0, -2.0])

    def score_of(mean):
        return lambda x, t: (mean[None] - x) / (v + t[:, None] ** 2)

    x = processes.prior_sample(process, getkey(), (4_000, 2))
    guided = guidance.classifier_free(score_of(mean), score_of(0.0 * mean), scale=2.5)
    out = samplers.heun(guided, x, process=process, num_steps=60)
    error = 4.5 * np.sqrt(v / 4_000)
    # the prior is centered at 0, not at w m: what is left of that at t_min is sqrt(v) / 50 of it
    left = 2.5 * mean * np.sqrt(v / (v + 50.0**2))
    assert np.abs(np.mean(out, 0) - (2.5 * mean - left)).max() < error + 0.01
    assert np.abs(np.var(out, 0) / v - 1).max() < 4.5 * np.sqrt(2 / 4_000) + 0.02


def test_labels_are_dropped_together_and_at_the_rate(getkey):
    n, key = 20_000, getkey()
    cond = (jnp.arange(n), {"e": jnp.ones((n, 2, 3)), "f": jnp.ones(n, jnp.bfloat16)})
    null = (-1, {"e": np.arange(6.0).reshape(2, 3), "f": 0.0})
    index, rest = guidance.drop_labels(cond, key, rate=0.2, null=null)
    dropped = np.asarray(index == -1)
    assert abs(dropped.mean() - 0.2) < 4.5 * np.sqrt(0.16 / n)
    np.testing.assert_array_equal(index[~dropped], np.arange(n)[~dropped])
    expected = np.where(dropped[:, None, None], null[1]["e"][None], 1.0)
    np.testing.assert_array_equal(rest["e"], expected)
    np.testing.assert_array_equal(rest["f"], np.where(dropped, 0.0, 1.0))
    assert (index.dtype, rest["f"].dtype) == (cond[0].dtype, jnp.bfloat16)
    assert np.abs(np.corrcoef(dropped[:-1], dropped[1:])[0, 1]) < 4.5 / np.sqrt(n)
    other = guidance.drop_labels(cond[0], getkey(), rate=0.2, null=-1) == -1
    assert 0 < (dropped != other).mean() < 0.5
    np.testing.assert_array_equal(guidance.drop_labels(index, key, rate=0.0, null=-2), index)
    bytes_ = guidance.drop_labels(jnp.arange(3, dtype=jnp.uint8), key, rate=1.0, null=255.0)
    np.testing.assert_array_equal(bytes_, np.full(3, 255, np.uint8), strict=True)


def _score(process, mean):
    """Of a correlated Gaussian, and a term that is not linear."""

    def score_fn(x, t):
        alpha, sigma = (f(t)[:, None] for f in (process.alpha, process.sigma))
        values, basis = np.array([0.4, 1.0, 2.5]), np.linalg.qr(np.asarray(A, np.float64))[0]
        centered = (x - alpha * mean) @ basis
        return -(centered / (alpha**2 * values[None] + sigma**2)) @ basis.T - 0.1 * jnp.tanh(x)

    return score_fn


def _energy(process, mean):
    def energy_fn(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return 0.5 * jnp.sum((x - alpha[:, None] * mean) ** 2, -1) / (alpha**2 + sigma**2)

    return energy_fn


def _observed(transform, names):
    def call(process, p):
        return getattr(guidance, transform)(
            _score(process, 0.2),
            process=process,
            operator=lambda x: x @ np.asarray(A, np.float64)[:, :2],
            observation=p["observation"],
            **{name: p[name] for name in names},
        )

    return call


def _pair(process):
    return [_score(process, 0.2), _score(process, -1.0)]


def _energies(process):
    return [_energy(process, 1.0), _energy(process, -1.0)]


_TRANSFORMS = {
    "dps": _observed("dps", ["noise_std", "scale"]),
    "pigdm": _observed("pigdm", ["noise_std", "sigma_data"]),
    "mmps": _observed("mmps", ["noise_std"]),
    "classifier_free": lambda process, p: guidance.classifier_free(
        *_pair(process), scale=p["scale"], interval=(0.01, 100.0)
    ),
    "classifier": lambda process, p: guidance.classifier(
        _score(process, 0.2), _energy(process, 1.0), scale=p["scale"]
    ),
    "product": lambda process, p: composition.product(
        _pair(process), weights=p["weights"], annealed=True
    ),
    "temper": lambda process, p: composition.temper(
        _score(process, 0.2), inverse_temperature=p["scale"], annealed=True
    ),
    "negate": lambda process, p: composition.divide(
        *_pair(process), strength=p["scale"], annealed=True
    ),
    "mixture": lambda process, p: composition.mixture(
        _energies(process), weights=p["weights"], log_normalizers=p["log_normalizers"]
    ),
    "mixture_score": lambda process, p: composition.mixture_score(
        _pair(process),
        _energies(process),
        weights=p["weights"],
        log_normalizers=p["log_normalizers"],
    ),
}
_PROCESSES = {
    "VE": (processes.VE, (0.1, 5.0)),
    "VPLinear": (processes.VPLinear, (0.1, 8.0)),
    "SubVP": (processes.SubVP, (0.1, 8.0)),
    "GeometricVE": (processes.GeometricVE, (0.1, 5.0)),
}


def assert_derivatives(transform, name, where, changed):
    """Assert that the derivative by every floating argument at once is the central difference."""
    make, hyper = _PROCESSES[name]
    process = make(*hyper)
    start, end = process.t_min, process.t_max
    t = {"start": start, "middle": 0.5 * (start + end), "end": end}[where]
    parameters = {
        "observation": np.array([0.3, -0.5]),
        "noise_std": 0.5,
        "scale": 1.3,
        "sigma_data": 0.9,
        "weights": np.array([0.4, 0.6]),
        "log_normalizers": np.array([0.1, -0.2]),
        **changed,
    }
    x = jax.random.normal(jax.random.key(3), (3, 3))
    at = jax.tree.map(jnp.float64, (hyper, parameters, x, np.full(3, t)))
    leaves, tree = jax.tree.flatten(at)
    inwards = -1.0 if where == "end" else 1.0  # beyond the ends some processes are not defined

    @jax.jit
    def f(*leaves):
        hyper, parameters, x, t = tree.unflatten(leaves)
        return _TRANSFORMS[transform](make(*hyper), parameters)(x, t)

    value = f(*leaves)
    weights = jnp.cos(jnp.arange(value.size)).reshape(value.shape)
    gradient = jax.jit(jax.grad(lambda *v: jnp.vdot(weights, f(*v)), range(len(leaves))))(*leaves)
    for i, (leaf, slope) in enumerate(zip(leaves, gradient, strict=True)):
        along = inwards * (1.0 + jnp.arange(leaf.size).reshape(leaf.shape) % 3)
        # at a zero the ratio of densities, or of noise, sets the scale
        size = min(1.0, float(jnp.abs(leaf).max())) or 0.1
        h = size * (1e-6 if jnp.any(leaf == 0.0) else 1e-5)

        def moved(k, i=i, leaf=leaf, along=along, h=h):
            return f(*leaves[:i], leaf + k * h * along, *leaves[i + 1 :])

        one_sided = 4 * moved(1) - 3 * value - moved(2)  # of second order
        difference = jnp.vdot(weights, one_sided) / (2 * h)
        size = 1.0 + jnp.linalg.norm(slope) + jnp.abs(value).max()
        assert abs(jnp.vdot(slope, along) - difference) < 1e-5 * size, (i, slope, difference)


_EDGES = {
    "no noise": {"noise_std": 0.0},
    "no weight": {"scale": 0.0, "weights": np.array([0.0, 1])},
}


@pytest.mark.parametrize("transform", _TRANSFORMS)
def test_derivatives_by_every_argument(transform):
    with jax.enable_x64(True):
        assert_derivatives(transform, "VE", "middle", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where", "edge"),
    [
        *((name, where, None) for name in _PROCESSES for where in ("start", "end")),
        *(("VE", "middle", edge) for edge in _EDGES),
    ],
)
@pytest.mark.parametrize("transform", _TRANSFORMS)
def test_derivatives_at_the_edges(transform, name, where, edge):
    if (transform, edge) in {("dps", "no noise"), ("negate", "no weight")}:
        pytest.skip("refuses it")
    with jax.enable_x64(True):
        assert_derivatives(transform, name, where, _EDGES.get(edge, {}))


@pytest.mark.parametrize("shape", [(1,), (3, 2, 2, 1)])
def test_any_event_and_dtype(shape):
    def log_likelihood_fn(x, t):
        return jnp.sum(x.reshape(x.shape[0], -1), axis=-1)

    def zero(x, t):
        return 0.0 * x

    for dtype in (jnp.float32, jnp.bfloat16):
        x, t = jnp.ones(shape, dtype), jnp.ones(shape[0])
        for guided in (
            guidance.classifier(zero, log_likelihood_fn, scale=2.0),
            guidance.classifier_free(lambda x, t: 2.0 * x, zero, scale=1.0, interval=(0.5, 2.0)),
        ):
            out = jax.jit(guided)(x, t)
            assert out.dtype == dtype
            np.testing.assert_array_equal(out, 2.0 * x)


def one_row(x, t):
    return x[:1]


def bad(**change):
    options = {"rate": 0.5, "null": -1} | change
    return lambda x, key: guidance.drop_labels(options.pop("cond", x), key, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, key: guidance.classifier_free(
                cond_fn, uncond_fn, scale=1.0, interval=(2.0, 2.0)
            ),
            r"low < high, got \(2.0, 2.0\)",
        ),
        (
            lambda x, key: guidance.classifier_free(cond_fn, one_row, scale=1.0)(x, x[:, 0]),
            r"shape of x, \(2, 3\), got \(1, 3\)",
        ),
        (
            lambda x, key: guidance.classifier_free(one_row, cond_fn, scale=1.0)(x, x[:, 0]),
            r"shape of x, \(2, 3\), got \(1, 3\)",
        ),
        (
            lambda x, key: guidance.classifier_free(cond_fn, cond_fn, scale=[1.0])(x, x[:, 0]),
            r"scale must be a scalar or one number per example, shape \(2,\), got shape \(1,\)",
        ),
        (
            lambda x, key: guidance.classifier(cond_fn, lambda x, t: x)(x, x[:, 0]),
            r"one number per example, shape \(2,\), got \(2, 3\): pick the wanted label",
        ),
        (
            lambda x, key: guidance.classifier(one_row, lambda x, t: t)(x, x[:, 0]),
            r"shape of x, \(2, 3\), got \(1, 3\)",
        ),
        (bad(null=(0, 1)), "null must have the structure of cond"),
        (bad(cond=()), "null must have the structure of cond"),
        (bad(cond=[], null=[]), r"arrays \[B, ...\] of the same B, got shapes \[\]"),
        (bad(cond=[jnp.ones(2), jnp.ones(3)], null=[0, 0]), r"got shapes \[\(2,\), \(3,\)\]"),
        (bad(cond=1.0), r"got shapes \[\(\)\]"),
        (bad(rate=1.5), r"rate must lie in \[0, 1\], got 1.5"),
        (bad(rate=-0.1), r"rate must lie in \[0, 1\], got -0.1"),
        (bad(null=jnp.ones(2)), r"one label of shape \(3,\), got shape \(2,\)"),
        (bad(cond=jnp.arange(2), null=0.5), "dtype of the labels, int32, got 0.5"),
        (bad(cond=jnp.arange(2), null=np.nan), "dtype of the labels, int32, got nan"),
        (bad(cond=np.arange(2), null=2**31), "dtype of the labels, int32, got 2147483648"),
        (bad(cond=jnp.arange(2, dtype=jnp.uint8), null=300), "of the labels, uint8, got 300"),
        (bad(cond=jnp.arange(2, dtype=jnp.uint8), null=-1), "of the labels, uint8, got -1"),
        (bad(cond=jnp.arange(2) > 0, null=2), "dtype of the labels, bool, got 2"),
    ],
)
def test_bad_input(call, message, getkey):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3)), getkey())
