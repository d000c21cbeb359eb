"""Divergences against Jacobians, and their variances against closed forms."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import divergence
from sm_jax._probes import draw_probes
from sm_jax.parameterization import EnergyScore
from tests.oracles import A, jacobians, linear_score, nonlinear_score

SYMMETRIC = (A + A.T) / 2


def truth(score_fn, x):
    return jnp.einsum("bii->b", jacobians(score_fn, x))


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 5])
def test_exact_is_the_trace_of_the_jacobian(chunk, getkey):
    x = jax.random.normal(getkey(), (4, 3))
    score, value = divergence.exact(nonlinear_score, x, chunk=chunk)
    np.testing.assert_allclose(score, nonlinear_score(x), rtol=1e-6)
    np.testing.assert_allclose(value, truth(nonlinear_score, x), rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (1, 4), (4, 4), (2, 3, 2, 2)])
def test_exact_for_any_event(shape, getkey):
    """Also scalar events, a single example, B == D, and the loop of more than three dimensions."""
    x = jax.random.normal(getkey(), shape)

    def score_fn(x):
        flat = x.reshape(len(x), -1)
        mixed = flat + jnp.cumsum(flat**2, axis=1) + jnp.roll(flat, 1, axis=1)
        return mixed.reshape(x.shape)

    dims = x[0].size
    # d/dx_i of x_i + sum_{j<=i} x_j^2 is 1 + 2 x_i; the rolled term is diagonal only for d = 1.
    expected = dims + 2 * x.reshape(len(x), -1).sum(1) + (dims == 1)
    np.testing.assert_allclose(divergence.exact(score_fn, x).divergence, expected, rtol=1e-5)


def test_exact_of_an_energy_is_minus_the_laplacian(getkey):
    x = jax.random.normal(getkey(), (3, 4))
    score_fn = EnergyScore(lambda x: jnp.sum(x**4, axis=1) + x[:, 0] * x[:, 1])
    expected = -12 * jnp.sum(x**2, axis=1)
    np.testing.assert_allclose(divergence.exact(score_fn, x).divergence, expected, rtol=1e-5)


QUARTIC = np.random.default_rng(3).normal(size=(5, 5))


def quartic_energy(x):
    """Neither separable nor convex, of events of five numbers in any shape."""
    flat = x.reshape(len(x), -1)
    return jnp.sum(jnp.tanh(flat @ QUARTIC) ** 2, axis=1) + 0.1 * jnp.sum(flat**2, axis=1) ** 2


@pytest.mark.parametrize("shape", [(4, 5), (5, 5), (1, 5), (2, 5, 1)])
@pytest.mark.parametrize("chunk", [None, 2, 7])
def test_laplacian_and_diagonal_are_those_of_the_hessian(shape, chunk, getkey):
    """Of one energy: minus its gradient, minus the diagonal of the Hessian, and the sum of that."""
    energy_score = EnergyScore(quartic_energy)
    with jax.enable_x64(True):
        x = jax.random.normal(getkey(), shape, jnp.float64)
        rows = jax.vmap(jax.hessian(lambda row: quartic_energy(row.reshape(1, *shape[1:]))[0]))
        entries = -jnp.einsum("bii->bi", rows(x.reshape(shape[0], 5)))
        gradient = jax.grad(lambda x: quartic_energy(x).sum())(x)
        for function in (divergence.laplacian, divergence.exact):
            score, trace = function(energy_score, x, chunk=chunk)
            np.testing.assert_allclose(score, -gradient, 1e-10, 1e-10)
            np.testing.assert_allclose(trace, entries.sum(1), 1e-10)
        for score_fn in (energy_score, lambda x: energy_score(x)):
            score, found = divergence.diagonal(score_fn, x, chunk=chunk)
            np.testing.assert_allclose(score, -gradient, 1e-10, 1e-10)
            np.testing.assert_allclose(found, entries.reshape(shape), 1e-10, 1e-10)


def test_diagonal_is_that_of_the_jacobian(getkey):
    """Of a score that is no gradient; of bfloat16 in float32."""
    x = jax.random.normal(getkey(), (4, 3))
    score, entries = jax.jit(partial(divergence.diagonal, nonlinear_score))(x)
    np.testing.assert_allclose(score, nonlinear_score(x), rtol=1e-5)
    expected = jnp.einsum("bii->bi", jacobians(nonlinear_score, x))
    np.testing.assert_allclose(entries, expected, rtol=1e-4, atol=1e-5)
    trace = divergence.exact(nonlinear_score, x).divergence
    np.testing.assert_allclose(entries.sum(1), trace, rtol=1e-5)
    low, entries = divergence.diagonal(nonlinear_score, x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert entries.dtype == jnp.float32
    np.testing.assert_allclose(entries, expected, atol=0.1)


def test_laplacian_keeps_the_dtype_of_the_points():
    """Where the energy is of higher precision."""
    with jax.enable_x64(True):
        energy_score = EnergyScore(lambda x: (x.astype(jnp.float64) ** 4).sum(-1))
        x = jnp.linspace(-1.0, 1.0, 8, dtype=jnp.float32).reshape(2, 4)
        score, trace = divergence.laplacian(energy_score, x)
        assert score.dtype == jnp.float32
        np.testing.assert_allclose(score, -4 * x**3, rtol=1e-6)
        np.testing.assert_allclose(trace, -12 * (x**2).sum(-1), rtol=1e-6)


ENERGY_SCORE = EnergyScore(lambda x: jnp.sum(jnp.cosh(x @ A.T) + x**4, axis=1))


@pytest.mark.parametrize(
    "score_fn",
    [
        linear_score,
        jax.jit(ENERGY_SCORE),
        partial(ENERGY_SCORE),
        lambda x: ENERGY_SCORE(x),
    ],
    ids=["score", "jit", "partial", "lambda"],
)
def test_laplacian_refuses_what_is_no_energy_score(score_fn):
    x = jnp.ones((2, 3))
    with pytest.raises(TypeError, match=r"EnergyScore\(energy_fn\).*or use divergence.exact"):
        divergence.laplacian(score_fn, x)
    divergence.laplacian(ENERGY_SCORE, x)


def test_laplacian_refuses_what_has_no_forward_mode():
    """`exact` takes products with the Hessian there."""
    score_fn = EnergyScore(lambda x: (x**4).sum(-1))
    with pytest.raises(TypeError, match=r"for x of bfloat16.*Use divergence.exact"):
        divergence.laplacian(score_fn, jnp.ones((2, 3), jnp.bfloat16))
    _, trace = divergence.exact(score_fn, jnp.ones((2, 3), jnp.bfloat16))
    np.testing.assert_allclose(trace, -36.0)


@pytest.mark.parametrize("score_fn", [nonlinear_score, ENERGY_SCORE], ids=["score", "energy"])
@pytest.mark.parametrize("num_probes", [5, 8])
def test_chunks_use_the_same_probes(score_fn, num_probes, getkey):
    x, key = jax.random.normal(getkey(), (4, 3)), getkey()
    hutchinson = partial(divergence.hutchinson, probe=jax.random.normal, num_probes=num_probes)
    values = [hutchinson(score_fn, x, key, chunk=chunk) for chunk in (None, 1, 3, 4, 20)]
    forms = jnp.einsum(
        "kbi,bij,kbj->b",
        probes := draw_probes(key, x, num_probes, jax.random.normal),
        jacobians(score_fn, x),
        probes,
    )
    for value in values:
        np.testing.assert_allclose(value.divergence, forms / num_probes, rtol=1e-4)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("bare", [False, True], ids=["energy", "score"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.grad], ids=["value", "gradient"])
def test_memory_does_not_grow_with_the_products(transform, bare, chunk):
    """XLA's own count of temporary bytes: less than all vectors would take, also differentiated."""
    dims, num = 512, 16
    x = jnp.zeros((num, dims))
    vectors = 4 * dims * num * dims  # bytes of the whole basis, or of as many probes

    def run(function, c, x):
        score_fn = EnergyScore(lambda x: (c * x**4).sum(1) + (x**2).sum(1) ** 2)
        return function((lambda x: score_fn(x)) if bare else score_fn, x).divergence.sum()

    for function in (
        partial(divergence.exact, chunk=chunk),
        partial(divergence.hutchinson, key=jax.random.key(0), num_probes=dims, chunk=chunk),
    ):
        program = jax.jit(transform(partial(run, function))).lower(1.0, x).compile()
        assert program.memory_analysis().temp_size_in_bytes < vectors / 4


@pytest.mark.parametrize(
    "function",
    [
        divergence.exact,
        partial(divergence.hutchinson, num_probes=5),
        partial(divergence.hutchinson, num_probes=5, probe=divergence.sphere),
        partial(divergence.hutchpp, num_products=6),
        divergence.estimate,
    ],
)
def test_contract(function, getkey):
    """Pure, jittable, rows independent of their company, dtype kept, keys matter."""
    x, key = jax.random.normal(getkey(), (4, 2, 2)), getkey()

    def score_fn(x):
        return jnp.tanh(x) + jnp.flip(x, 1) ** 2 + x * x[:, :1]

    plain = function(score_fn, x, key)
    jitted = jax.jit(partial(function, score_fn))(x, key)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), plain, jitted)
    assert plain.score.shape == x.shape
    assert plain.divergence.shape == (4,)
    low = function(score_fn, x.astype(jnp.bfloat16), key)
    assert low.score.dtype == jnp.bfloat16
    assert low.divergence.dtype == jnp.float32
    if function is not divergence.exact:
        other = function(score_fn, x, getkey())
        assert np.any(np.abs(other.divergence - plain.divergence) > 1e-4)
    with jax.enable_x64(True):
        wide = function(score_fn, jnp.asarray(np.asarray(x), jnp.float64), key)
        assert wide.divergence.dtype == jnp.float64


def test_gradients_pass_through_every_divergence(getkey):
    """d/dscale of the trace of a scaled nonlinear score is its trace, exactly or in the mean."""
    x = jax.random.normal(getkey(), (4, 4))

    def slope(function):
        return jax.grad(lambda c: function(lambda x: c * jnp.sin(x) + c**2 * x).sum())(1.0)

    expected = jnp.cos(x).sum() + 2 * x.size
    exact = slope(lambda f: divergence.exact(f, x).divergence)
    np.testing.assert_allclose(exact, expected, rtol=1e-5)
    # a diagonal Jacobian: Rademacher probes are exact, one by one or in the loop
    probed = slope(lambda f: divergence.hutchinson(f, x, getkey(), num_probes=4).divergence)
    np.testing.assert_allclose(probed, expected, rtol=1e-5)


def test_rows_are_independent(getkey):
    x = jax.random.normal(getkey(), (4, 3))

    def later_rows_see_the_first(x):
        return x - 1e-3 * x[:1]

    assert divergence.rows_are_independent(nonlinear_score, x, getkey())
    assert not divergence.rows_are_independent(later_rows_see_the_first, x, getkey())
    assert not divergence.rows_are_independent(lambda x: x / x.std(0, keepdims=True), x, getkey())


@pytest.mark.parametrize("num", [2, 5, 8])
def test_every_pair_of_rows_is_told_apart(num, getkey):
    """One row depends on one other, or all on the row that holds the maximum."""
    x = jax.random.normal(getkey(), (num, 3))
    assert divergence.rows_are_independent(nonlinear_score, x, getkey())
    check = jax.jit(
        lambda i, j: divergence.rows_are_independent(
            lambda x: (-x).at[i].add(1e-3 * x[j] ** 2), x, getkey()
        )
    )
    for i, j in itertools.permutations(range(num), 2):
        assert not check(i, j), (i, j)
    for row in range(num):
        y = x.at[row, 1].set(10.0)
        assert not divergence.rows_are_independent(lambda x: -x / jnp.abs(x).max(), y, getkey())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: divergence.exact(lambda x: x[:, :1], jnp.ones((2, 3))), ValueError, r"\(2, 1\)"),
        (lambda k: divergence.exact(lambda x: x, jnp.ones((2, 3), int)), TypeError, "int32"),
        (lambda k: divergence.exact(lambda x: x, jnp.ones((0, 3))), ValueError, r"\(0, 3\)"),
        (lambda k: divergence.exact(lambda x: x, 1.0), ValueError, "got a scalar"),
        (
            lambda k: divergence.exact(lambda x: x.astype(jnp.float16), jnp.ones((2, 3))),
            TypeError,
            "dtype of x, float32, got float16",
        ),
        (lambda k: divergence.exact(lambda x: x, jnp.ones((2, 3)), chunk=0), ValueError, "chunk"),
        (
            lambda k: divergence.hutchinson(lambda x: x, jnp.ones((2, 3)), k, num_probes=0),
            ValueError,
            "num_probes must be at least 1, got 0",
        ),
        (
            lambda k: divergence.hutchpp(lambda x: x, jnp.ones((2, 3)), k, num_products=2),
            ValueError,
            "num_products must be at least 3, got 2",
        ),
        (
            lambda k: divergence.hutchpp(lambda x: x, jnp.ones((2, 3)), k, num_products=12),
            ValueError,
            "at most three times the dimension, 3 x 3, got 12",
        ),
        (
            lambda k: divergence.hutchinson(lambda x: x, jnp.ones((2, 3)), None),
            TypeError,
            "probe draws random numbers: pass a key",
        ),
        (
            lambda k: divergence.hutchpp(lambda x: x, jnp.ones((2, 3)), None, num_products=3),
            TypeError,
            "hutchpp draws random numbers: pass a key",
        ),
        (
            lambda k: divergence.estimate(lambda x: x, jnp.ones((2, 3)), k, num_repeats=1),
            ValueError,
            "num_repeats must be at least 2, got 1",
        ),
        (
            lambda k: divergence.rows_are_independent(lambda x: x, jnp.ones((1, 3)), k),
            ValueError,
            "at least two rows",
        ),
    ],
)
def test_bad_input(call, error, message, getkey):
    with pytest.raises(error, match=message):
        call(getkey())
