"""The network for data of few levels: its head against the exact score of boxes, once noised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sm_jax import densities, models, processes
from sm_jax.divergence import rows_are_independent
from sm_jax.models import _levels

NUM_LEVELS, NUM_DIMS, RANK = 5, 3, 2


def head_inputs(key, batch=4):
    keys = jax.random.split(key, 4)
    out = jax.random.normal(keys[0], (batch, RANK, NUM_DIMS))
    basis = jax.random.normal(keys[1], (RANK, NUM_LEVELS))
    bias = jax.random.normal(keys[2], (NUM_LEVELS, NUM_DIMS))
    return out, basis, bias, 1.2 * jax.random.normal(keys[3], (batch, NUM_DIMS))


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.7, 10.0])
def test_the_head_is_the_score_of_noised_boxes(getkey, sigma):
    out, basis, bias, y = head_inputs(getkey())
    edges = jnp.linspace(-1.0, 1.0, NUM_LEVELS + 1)

    @jax.jit
    @jax.vmap
    def exact(logits, y):
        box = densities.UniformBoxes(jax.nn.log_softmax(logits), edges[:-1, None], edges[1:, None])
        return box.noised(processes.VE(), sigma).score(y[None, None])[0, 0]

    logits = bias[None] + jnp.einsum("brd,rk->bkd", out, basis)
    logits = jnp.moveaxis(logits, 1, -1).reshape(-1, NUM_LEVELS)
    expected = sigma * exact(logits, y.ravel()).reshape(y.shape)
    scaled = _levels._scaled_score(out, basis, bias, y, jnp.full(4, sigma))
    near = jnp.abs(y) < 1 + 8 * sigma
    np.testing.assert_allclose(scaled[near], expected[near], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(scaled, expected, rtol=5e-3, atol=2e-4)


def test_the_tangent_is_the_derivative():
    with jax.enable_x64(True):
        key = jax.random.key(1)
        inputs = head_inputs(key)
        tangents = head_inputs(jax.random.fold_in(key, 1))
        sigma = jnp.array([0.05, 0.2, 1.0, 20.0])

        def head(*inputs):
            return _levels._scaled_score(*inputs, sigma)

        _, tangent = jax.jvp(head, inputs, tangents)
        step = 1e-6
        ends = (
            head(*(x + s * step * v for x, v in zip(inputs, tangents, strict=True)))
            for s in (1, -1)
        )
        difference = (next(ends) - next(ends)) / (2 * step)
        np.testing.assert_allclose(tangent, difference, rtol=1e-6, atol=1e-7)


def test_before_training_it_is_the_score_of_the_cube(getkey):
    network = models.LevelMLP((2, 2), NUM_LEVELS, width=8, depth=1, rngs=nnx.Rngs(0))
    x = jax.random.normal(getkey(), (5, 2, 2))
    cube = densities.UniformBoxes(jnp.zeros(1), -jnp.ones((1, 4)), jnp.ones((1, 4)))
    exact = cube.noised(processes.VE(), 0.4).score(x.reshape(5, 4)).reshape(5, 2, 2)
    np.testing.assert_allclose(network(x, jnp.full(5, 0.4)), exact, rtol=1e-4, atol=1e-4)


def test_rows_condition_and_dropout(getkey):
    network = models.LevelMLP(
        NUM_DIMS, NUM_LEVELS, width=8, depth=1, cond_dims=2, dropout=0.5, rngs=nnx.Rngs(0)
    )
    apply, params = models.functional(network)
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(getkey(), p.shape), params)
    x, sigma, cond = jnp.ones((4, NUM_DIMS)), jnp.full(4, 0.5), jnp.ones((4, 2))
    plain = apply(params, x, sigma)
    assert plain.shape == x.shape
    assert rows_are_independent(lambda x: apply(params, x, sigma), x, getkey())
    np.testing.assert_array_equal(plain, apply(params, x, sigma, 0 * cond))
    assert not np.allclose(plain, apply(params, x, sigma, cond))
    dropped = apply(params, x, sigma, key=getkey())
    assert not np.allclose(plain, dropped)
    assert not np.allclose(dropped, apply(params, x, sigma, key=getkey()))


@pytest.mark.parametrize(
    ("options", "match"),
    [({"num_levels": 1}, "num_levels"), ({"rank": 0}, "rank"), ({"dropout": 1.0}, "dropout")],
)
def test_bad_sizes(options, match):
    with pytest.raises(ValueError, match=match):
        models.LevelMLP(3, **{"num_levels": 4, **options}, rngs=nnx.Rngs(0))


def test_bad_inputs():
    network = models.LevelMLP(3, 4, width=8, depth=1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="shape"):
        network(jnp.ones((2, 4)), jnp.ones(2))
    with pytest.raises(ValueError, match="c_noise"):
        network(jnp.ones((2, 3)), jnp.ones(3))
