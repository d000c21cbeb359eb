"""The network for data of few levels: its output by formula, and what every network keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sm_jax import models
from sm_jax.divergence import rows_are_independent


@pytest.mark.slow
def test_level_mlp(getkey):
    """Equal weights at first; then bias + features basis, with gradients to all parameters."""
    apply, params = models.functional(
        models.BinMLP((2, 2), 5, rank=3, width=8, depth=1, cond_dims=2, rngs=nnx.Rngs(0))
    )
    x, c = jax.random.normal(getkey(), (3, 2, 2)), jnp.zeros(3)
    np.testing.assert_array_equal(apply(params, x, c), np.zeros((3, 2, 2, 5)))
    kernel = jax.random.normal(getkey(), params["network"]["outputs"]["kernel"].shape)
    bias = jax.random.normal(getkey(), (4, 5))
    params["network"]["outputs"]["kernel"], params["bias"] = kernel, bias
    logits = apply(params, x, c)
    without = apply(params | {"basis": jnp.zeros((3, 5))}, x, c)
    np.testing.assert_allclose(
        without, jnp.broadcast_to(bias.reshape(1, 2, 2, 5), (3, 2, 2, 5)), rtol=1e-6
    )
    features = np.asarray(logits - without).reshape(-1, 5)
    assert np.linalg.matrix_rank(features, tol=1e-4) == 3
    gradient = jax.grad(lambda p: jnp.sum(jnp.tanh(apply(p, x, c, jnp.ones((3, 2))))))(params)
    for part in (gradient["basis"], gradient["bias"], gradient["network"]["outputs"]["kernel"]):
        assert float(jnp.abs(part).max()) > 0


def test_rows_condition_and_dropout(getkey):
    network = models.BinMLP(3, 5, width=8, depth=1, cond_dims=2, dropout=0.5, rngs=nnx.Rngs(0))
    apply, params = models.functional(network)
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(getkey(), p.shape), params)
    x, c_noise, cond = jnp.ones((4, 3)), jnp.full(4, 0.5), jnp.ones((4, 2))
    plain = apply(params, x, c_noise)
    one_level = lambda x: apply(params, x, c_noise)[..., 0]  # noqa: E731
    assert rows_are_independent(one_level, x + cond[:, :1], getkey())
    np.testing.assert_array_equal(plain, apply(params, x, c_noise, 0 * cond))
    assert not np.allclose(plain, apply(params, x, c_noise, cond))
    dropped = apply(params, x, c_noise, key=getkey())
    assert not np.allclose(plain, dropped)
    assert not np.allclose(dropped, apply(params, x, c_noise, key=getkey()))


@pytest.mark.parametrize(
    ("options", "match"),
    [({"num_values": 1}, "num_values"), ({"rank": 0}, "rank"), ({"dropout": 1.0}, "dropout")],
)
def test_bad_sizes(options, match):
    with pytest.raises(ValueError, match=match):
        models.BinMLP(3, **{"num_values": 4, **options}, rngs=nnx.Rngs(0))


def test_bad_inputs():
    network = models.BinMLP(3, 4, width=8, depth=1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="shape"):
        network(jnp.ones((2, 4)), jnp.ones(2))
    with pytest.raises(ValueError, match="c_noise"):
        network(jnp.ones((2, 3)), jnp.ones(3))
