"""The asymmetry of a Jacobian against its closed form for linear scores."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import metrics
from sm_jax.parameterization import EnergyScore
from tests.oracles import A, assert_mean, jacobians, linear_score, nonlinear_score, sign_cube

CURL = np.sum((A - A.T) ** 2)
NORM = np.sum(A**2)


def test_the_mean_over_all_sign_vectors_is_exact(getkey):
    """E[v v'] = I on the cube, so its eight vertices give the Frobenius norms themselves."""
    x = jax.random.normal(getkey(), (4, 3))
    vertices = sign_cube(3)

    def probe(key, shape, dtype):
        return jnp.broadcast_to(next(rows), shape)

    for score_fn in (linear_score, nonlinear_score):
        totals = np.zeros((2, 4))
        rows = iter(vertices)
        for _ in vertices:
            result = metrics.curl(score_fn, x, getkey(), probe=probe)
            totals += np.stack([result.curl, result.norm]) / 8
        jacobian = jacobians(score_fn, x)
        curl = np.sum((jacobian - jnp.swapaxes(jacobian, 1, 2)) ** 2, axis=(1, 2))
        np.testing.assert_allclose(totals[0], curl, rtol=1e-4)
        np.testing.assert_allclose(totals[1], np.sum(jacobian**2, axis=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(curl.shape, (4,))


@pytest.mark.parametrize("probe", [jax.random.rademacher, jax.random.normal])
def test_it_is_unbiased(probe, getkey):
    x = jax.random.normal(getkey(), (20_000, 3))
    result = jax.jit(partial(metrics.curl, linear_score, probe=probe))(x, getkey())
    assert_mean(result.curl, CURL)
    assert_mean(result.norm, NORM)
    assert np.all((result.share >= 0) & (result.share <= 1 + 1e-6))
    np.testing.assert_allclose(result.share, result.curl / result.norm / 4, rtol=1e-5)
    many = metrics.curl(linear_score, x[:2], getkey(), num_probes=4_000, probe=probe)
    np.testing.assert_allclose(many.curl, CURL, rtol=0.1)
    np.testing.assert_allclose(many.norm, NORM, rtol=0.1)
    np.testing.assert_allclose(many.share, CURL / NORM / 4, rtol=0.1)


def test_gradients_have_none_and_rotations_nothing_else(getkey):
    energy_score = EnergyScore(lambda x: jnp.sum(jnp.cos(x @ A.T) + x**4, axis=-1))
    x = jax.random.normal(getkey(), (5, 3))
    result = metrics.curl(energy_score, x, getkey(), num_probes=3)
    assert np.all(result.curl < 1e-9 * result.norm)
    turn = jnp.asarray(A - A.T)
    result = metrics.curl(lambda x: x @ turn, x, getkey(), num_probes=3)
    np.testing.assert_allclose(result.share, 1.0, rtol=1e-5)


def test_the_network_is_evaluated_once(getkey):
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.tanh(x)

    metrics.curl(counted, jnp.ones((2, 3)), getkey(), num_probes=5)
    jax.effects_barrier()
    assert len(calls) == 1


def test_contract(getkey):
    """Any event, dtype, keys that matter, fresh probes, no key used twice."""
    x, key = jax.random.normal(getkey(), (2, 2, 2, 1)), getkey()

    def mixing(x):
        return jnp.cumsum(x.reshape(2, 4), axis=1).reshape(x.shape)

    result = metrics.curl(mixing, x, key)
    assert result.curl.shape == result.norm.shape == result.share.shape == (2,)
    assert np.any(metrics.curl(mixing, x, getkey()).norm != result.norm)
    assert np.any(metrics.curl(mixing, x, key, num_probes=2).norm != result.norm)
    half = metrics.curl(lambda x: -x, jnp.ones(3, jnp.bfloat16), key)
    assert half.norm.dtype == jnp.float32
    np.testing.assert_array_equal(half.norm, np.ones(3))
    steep = metrics.curl(lambda x: 1e3 * x, jnp.ones((2, 3), jnp.float16), key)
    np.testing.assert_array_equal(steep.norm, np.full(2, 3e6))
    with jax.debug_key_reuse(True):
        jax.jit(partial(metrics.curl, mixing, num_probes=2))(x, getkey())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, k: metrics.curl(lambda x: x[:1], x, k), ValueError, r"got \(1, 3\)"),
        (lambda x, k: metrics.curl(lambda x: x, x.astype(int), k), TypeError, "floating"),
        (
            lambda x, k: metrics.curl(lambda x: x, x, k, num_probes=0),
            ValueError,
            "num_probes must be at least 1, got 0",
        ),
    ],
)
def test_bad_input(call, error, message, getkey):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 3)), getkey())
