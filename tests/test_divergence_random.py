"""Random estimates of the divergence: unbiased, of known variance, exact where they should be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import divergence
from sm_jax._probes import draw_probes
from sm_jax.typing import Divergence
from tests.oracles import A, assert_mean, jacobians, linear_score, nonlinear_score, sign_cube
from tests.test_divergence import SYMMETRIC, truth


def test_hutchinson_over_the_sign_cube_is_exact(getkey):
    """The mean of v v' over all sign vectors is the identity."""
    x = jax.random.normal(getkey(), (4, 3))
    values = [
        divergence.hutchinson(
            nonlinear_score, x, getkey(), probe=lambda *_, v=v: jnp.broadcast_to(v, x.shape)
        ).divergence
        for v in sign_cube(3)
    ]
    np.testing.assert_allclose(np.mean(values, axis=0), truth(nonlinear_score, x), rtol=1e-5)


def test_hutchinson_is_the_quadratic_form(getkey):
    x, v = jax.random.normal(getkey(), (2, 4, 3))
    score, value = divergence.hutchinson(nonlinear_score, x, getkey(), probe=lambda *_: v)
    np.testing.assert_allclose(score, nonlinear_score(x), rtol=1e-6)
    expected = jnp.einsum("bi,bij,bj->b", v, jacobians(nonlinear_score, x), v)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("num_probes", [1, 2, 7])
@pytest.mark.parametrize(
    ("probe", "variance"),
    [
        (jax.random.rademacher, 2 * ((SYMMETRIC**2).sum() - (np.diag(SYMMETRIC) ** 2).sum())),
        (jax.random.normal, 2 * (SYMMETRIC**2).sum()),
        # 2 d / (d + 2) (|A|_F^2 - tr(A)^2 / d) on the sphere of radius sqrt(d)
        (divergence.sphere, 6 / 5 * ((SYMMETRIC**2).sum() - np.trace(A) ** 2 / 3)),
    ],
)
def test_mean_and_variance_of_hutchinson(probe, variance, num_probes, getkey):
    """Mean and variance over 20,000 independent rows; the variance falls as 1 / num_probes."""
    x = jnp.zeros((20_000, 3))
    _, value = divergence.hutchinson(linear_score, x, getkey(), num_probes=num_probes, probe=probe)
    expected = variance / num_probes
    assert abs(float(value.mean()) + np.trace(A)) < 4.5 * np.sqrt(expected / 20_000)
    # the fourth moment of these forms is below 20 squared variances
    assert abs(float(value.var()) / expected - 1) < 4.5 * np.sqrt(19 / 20_000)


def test_probes_are_independent_between_rows_and_probes(getkey):
    probes = draw_probes(getkey(), jnp.zeros((50, 400)), 2, jax.random.normal)
    rows = np.asarray(probes).reshape(100, 400)
    correlations = np.corrcoef(rows)[~np.eye(100, dtype=bool)]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(400)


def test_sphere(getkey):
    v = divergence.sphere(getkey(), (20_000, 2, 2))
    np.testing.assert_allclose(jnp.sum(v**2, axis=(1, 2)), 4.0, rtol=1e-5)
    flat = np.asarray(v).reshape(-1, 4)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(4), atol=5 * np.sqrt(2 / 20_000))


def test_hutchpp_is_exact_where_the_sketch_spans_everything(getkey):
    x = jax.random.normal(getkey(), (4, 3))
    score, value = divergence.hutchpp(nonlinear_score, x, getkey(), num_products=9)
    np.testing.assert_allclose(score, nonlinear_score(x), rtol=1e-6)
    np.testing.assert_allclose(value, truth(nonlinear_score, x), rtol=1e-4)
    u, v = jax.random.normal(getkey(), (2, 6))
    rank_one = divergence.hutchpp(lambda x: (x @ v)[:, None] * u[None], jnp.ones((3, 6)), getkey())
    np.testing.assert_allclose(rank_one.divergence, np.full(3, u @ v), rtol=1e-4)


@pytest.mark.parametrize("probe", [jax.random.rademacher, jax.random.normal])
@pytest.mark.parametrize(("rank", "num_products"), [(1, 3), (1, 6), (2, 6), (0, 6)])
def test_hutchpp_is_exact_up_to_its_rank_for_every_key(rank, num_products, probe, getkey):
    """Random signs are a singular sketch of ones(4, 4) for 37 % of the keys; also dependent ones.

    The error of a sketch of two columns grows with its condition, which exceeds 1e4 in 1e-4 of
    the keys at most; of one column it does not grow.
    """
    factors = jnp.stack([jnp.ones(4), jnp.array([1.0, -1.0, 1.0, -1.0])])[:rank]
    matrix = jnp.einsum("ki,kj->ij", factors, factors)

    def trace(key, matrix):
        x = jnp.zeros((1, 4))
        return divergence.hutchpp(
            lambda x: x @ matrix, x, key, num_products=num_products, probe=probe
        ).divergence[0]

    # The matrix is an argument: of a constant of ones, XLA on CPU gets products in loops wrong.
    traces = jax.jit(jax.vmap(trace, (0, None)))(jax.random.split(getkey(), 2_000), matrix)
    tolerance = 4 * 4 * rank * jnp.finfo(jnp.float32).eps * (1e4 if rank == 2 else 4)
    np.testing.assert_allclose(traces, 4.0 * rank, rtol=0, atol=tolerance)


def test_a_singular_sketch_does_no_harm_to_gradients():
    """Two columns that are multiples of one axis, also where NaNs are looked for."""

    def trace(c):
        axis = jnp.array([[1.0, 0.0, 0.0, 0.0]])
        return divergence.hutchpp(
            lambda x: c * axis * x, jnp.ones((1, 4)), jax.random.key(0)
        ).divergence[0]

    with jax.debug_nans(True):
        np.testing.assert_allclose(jax.grad(trace)(2.0), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "probe",
    [
        jax.random.uniform,
        jax.random.laplace,
        lambda *args: divergence.sphere(*args) / 20.0,
        lambda *args: 2.0 * jax.random.normal(*args),
    ],
)
def test_probes_of_another_scale_are_refused(probe, getkey):
    """Where they are many and not traced; those of a few numbers may be anything by chance."""
    x = jnp.zeros((10, 400))
    with pytest.raises(ValueError, match=r"probes must have identity covariance.*over 4000 num"):
        divergence.hutchinson(lambda x: x, x, getkey(), probe=probe)
    divergence.hutchinson(lambda x: x, x[:, :3], getkey(), probe=probe)


@pytest.mark.parametrize("shape", [(1, 1000), (1000,), (1000, 1), (10, 10, 10, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_probes_with_identity_covariance_are_not_refused(shape, dtype, getkey):
    """Also those of one number per row, at its place sqrt(d)."""

    def coordinate(key, shape, dtype):
        dims = int(np.prod(shape[1:]))
        place = jax.random.randint(key, shape[:1], 0, dims)
        return (jax.nn.one_hot(place, dims, dtype=dtype) * dims**0.5).reshape(shape)

    for probe in (jax.random.rademacher, jax.random.normal, divergence.sphere, coordinate):
        for _ in range(5):
            divergence.hutchinson(lambda x: x, jnp.zeros(shape, dtype), getkey(), probe=probe)


def test_hutchpp_is_unbiased_in_value_and_gradient(getkey):
    """On a Jacobian that is not symmetric, against the trace and its derivative in a scale."""
    x = jnp.zeros((20_000, 3))
    key = getkey()

    def value(scale):
        _, trace = divergence.hutchpp(
            lambda x: scale * linear_score(x) + scale**2 * x, x, key, num_products=3
        )
        return trace

    traces, slopes = jax.jvp(value, (2.0,), (1.0,))
    for draws, expected in [(traces, -2 * np.trace(A) + 12), (slopes, -np.trace(A) + 12)]:
        assert 0 < draws.std() < 3
        assert abs(draws.mean() - expected) < 4.5 * draws.std() / np.sqrt(20_000)


def test_hutchpp_beats_hutchinson_on_a_dominant_direction(getkey):
    """At equal cost: what is left of a Jacobian with one large eigenvalue is small."""
    spectrum = jnp.array([100.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    rotation = jnp.linalg.qr(jax.random.normal(getkey(), (6, 6)))[0]
    matrix = rotation @ jnp.diag(spectrum) @ rotation.T
    x = jnp.zeros((2_000, 6))
    plain = divergence.hutchinson(lambda x: x @ matrix, x, getkey(), num_probes=6).divergence
    sketched = divergence.hutchpp(lambda x: x @ matrix, x, getkey(), num_products=6).divergence
    assert abs(float(sketched.mean()) - 105.0) < 4.5 * float(sketched.std()) / np.sqrt(2_000)
    assert sketched.std() < plain.std() / 5


def test_estimate_gives_the_standard_error(getkey):
    """The squared standard error is unbiased for the variance of the mean."""
    x = jnp.zeros((5_000, 3))
    variance = 2 * ((SYMMETRIC**2).sum() - (np.diag(SYMMETRIC) ** 2).sum())
    result = divergence.estimate(linear_score, x, getkey(), num_repeats=5)
    np.testing.assert_allclose(result.score, linear_score(x), rtol=1e-6)
    assert abs(result.divergence.mean() + np.trace(A)) < 4.5 * np.sqrt(variance / 25_000)
    assert np.all(result.standard_error >= 0)
    squared = np.asarray(result.standard_error, np.float64) ** 2
    assert abs(squared.mean() - variance / 5) < 4.5 * squared.std() / np.sqrt(5_000)
    assert abs(result.divergence.var() / (variance / 5) - 1) < 0.1
    doubled = divergence.estimate(
        linear_score, x, getkey(), divergence=partial(divergence.hutchinson, num_probes=2)
    )
    assert abs(doubled.divergence.var() / (variance / 16) - 1) < 0.1

    def bare(score_fn, x, key):
        return tuple(divergence.hutchinson(score_fn, x, key))

    key = getkey()
    plain = divergence.estimate(linear_score, x[:4], key, divergence=bare)
    named = divergence.estimate(linear_score, x[:4], key)
    jax.tree.map(np.testing.assert_array_equal, plain, named)


def test_normal_probes_of_bfloat16_have_unit_variance(getkey):
    """Drawn in bfloat16, the variance of normal numbers is 0.993: none is above 2.9."""
    value = divergence.hutchinson(
        lambda x: -x, jnp.zeros((4000, 1000), jnp.bfloat16), getkey(), probe=jax.random.normal
    ).divergence
    assert_mean(value, -1000)  # the standard error is 0.7


def test_matfree_estimators_can_take_the_place(getkey):
    """matfree estimates the trace of a matrix-vector product: here of one row's Jacobian."""
    from matfree import stochtrace

    x = jax.random.normal(getkey(), (3, 3))

    def matfree_divergence(score_fn, x, key):
        score, push = jax.linearize(score_fn, x)
        sampler = stochtrace.sampler_signs(x[0], num=2_000)
        estimator = stochtrace.estimator_monte_carlo(stochtrace.monte_carlo_trace(), sampler)

        def row(i, key):
            place = jnp.zeros(len(x)).at[i].set(1.0)
            return estimator(lambda v: push(place[:, None] * v[None])[i], key)

        keys = jax.random.split(key, len(x))
        traces = jnp.stack([row(i, k) for i, k in enumerate(keys)])
        return Divergence(score, traces)

    from sm_jax import losses

    value = losses.implicit(linear_score, x, getkey(), divergence=matfree_divergence)
    exact = losses.implicit(linear_score, x)
    variance = 2 * ((SYMMETRIC**2).sum() - (np.diag(SYMMETRIC) ** 2).sum())
    np.testing.assert_allclose(value, exact, atol=4.5 * np.sqrt(variance / 2_000), rtol=0)
    assert not np.allclose(value, exact, atol=1e-6)
