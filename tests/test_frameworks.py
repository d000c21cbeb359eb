"""The same weights in five frameworks: every loss and its gradient are the same numbers."""

import functools
import itertools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sm_jax import losses, models, processes

SIZES = (3, 8, 8, 2)  # of a network of (x [B, 2], t [B]): tanh, softplus, linear


def plain(weights):
    def apply(params, x, t):
        h = jnp.concatenate([x, t[:, None]], axis=-1)
        (w1, b1), (w2, b2), (w3, b3) = params
        h = jnp.tanh(h @ w1 + b1[None])
        return jax.nn.softplus(h @ w2 + b2[None]) @ w3 + b3[None]

    return apply, weights, lambda gradient: gradient


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List(nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(SIZES))

    def __call__(self, x, t):
        first, second, third = self.layers
        h = nnx.tanh(first(jnp.concatenate([x, t[:, None]], axis=-1)))
        return third(nnx.softplus(second(h)))


def nnx_layers(params):
    return [(params["layers"][i]["kernel"], params["layers"][i]["bias"]) for i in "012"]


def flax_nnx(weights):
    """Through the adapter of the library."""
    apply, params = models.functional(NnxNetwork(nnx.Rngs(0)))
    layers = {str(i): {"kernel": w, "bias": b} for i, (w, b) in enumerate(weights)}
    assert jax.tree.structure(params) == jax.tree.structure({"layers": layers})
    return apply, {"layers": layers}, nnx_layers


def flax_nnx_module(weights):
    """The module itself, as Flax NNX has it: split and merged by hand."""
    graphdef, state = nnx.split(NnxNetwork(nnx.Rngs(0)))
    layers = {i: {"kernel": w, "bias": b} for i, (w, b) in enumerate(weights)}
    nnx.replace_by_pure_dict(state, {"layers": layers})

    def to_weights(gradient):
        gradient = nnx.to_pure_dict(gradient)["layers"]
        return [(gradient[i]["kernel"], gradient[i]["bias"]) for i in range(3)]

    return lambda state, x, t: nnx.merge(graphdef, state)(x, t), state, to_weights


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        h = nn.tanh(nn.Dense(SIZES[1])(jnp.concatenate([x, t[:, None]], axis=-1)))
        h = nn.softplus(nn.Dense(SIZES[2])(h))
        return nn.Dense(SIZES[3])(h)


def flax_linen(weights):
    variables = {
        "params": {f"Dense_{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(weights)}
    }

    def to_weights(gradient):
        layers = [gradient["params"][f"Dense_{i}"] for i in range(3)]
        return [(layer["kernel"], layer["bias"]) for layer in layers]

    return LinenNetwork().apply, variables, to_weights


class EquinoxNetwork(eqx.Module):
    """For one example, as is the custom there: the score function is one vmap away."""

    layers: list[eqx.nn.Linear]

    def __init__(self, key):
        sizes = itertools.pairwise(SIZES)
        self.layers = [eqx.nn.Linear(i, o, key=key) for i, o in sizes]

    def __call__(self, x, t):
        h = jnp.tanh(self.layers[0](jnp.concatenate([x, t[None]])))
        return self.layers[2](jax.nn.softplus(self.layers[1](h)))


def equinox(weights):
    network = eqx.tree_at(
        lambda network: [leaf for layer in network.layers for leaf in (layer.weight, layer.bias)],
        EquinoxNetwork(jax.random.key(0)),
        [leaf for w, b in weights for leaf in (w.T, b)],
    )

    def to_weights(gradient):
        return [(layer.weight.T, layer.bias) for layer in gradient.layers]

    return lambda network, x, t: jax.vmap(network)(x, t), network, to_weights


def haiku(weights):
    @hk.without_apply_rng
    @hk.transform
    def network(x, t):
        h = jnp.tanh(hk.Linear(SIZES[1], name="first")(jnp.concatenate([x, t[:, None]], axis=-1)))
        h = jax.nn.softplus(hk.Linear(SIZES[2], name="second")(h))
        return hk.Linear(SIZES[3], name="third")(h)

    names = ("first", "second", "third")
    params = {name: {"w": w, "b": b} for name, (w, b) in zip(names, weights, strict=True)}

    def to_weights(gradient):
        return [(gradient[name]["w"], gradient[name]["b"]) for name in names]

    return network.apply, params, to_weights


def at_one_level(loss):
    """The loss of the score at one noise level, as a function of a noise-conditional score."""

    def conditional(score_fn, x, key):
        t = jnp.full(x.shape[:1], 0.4)
        return loss(lambda x: score_fn(x, t), x, key)

    return conditional


LOSSES = {
    "implicit": at_one_level(losses.implicit),
    "sliced": at_one_level(losses.sliced),
    "denoising": at_one_level(functools.partial(losses.denoising, sigma=0.4)),
    "diffusion": functools.partial(losses.diffusion, process=processes.VPLinear()),
}


def values_and_gradient(framework, loss):
    rng = np.random.default_rng(0)
    weights = [
        (np.float32(rng.normal(size=(i, o)) / np.sqrt(i)), np.float32(rng.normal(size=o)))
        for i, o in itertools.pairwise(SIZES)
    ]
    x = np.float32(rng.normal(size=(5, 2)))
    apply, params, to_weights = framework(weights)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params):
        values = loss(functools.partial(apply, params), x, jax.random.key(7))
        return values.mean(), values

    gradient, values = run(params)
    return values, to_weights(gradient)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    "framework", [flax_nnx, flax_nnx_module, flax_linen, equinox, haiku], ids=lambda f: f.__name__
)
def test_same_numbers_as_plain_jax(framework, loss, reference):
    values, gradient = values_and_gradient(framework, loss)
    expected_values, expected_gradient = reference(loss)
    assert values.shape == (5,)
    np.testing.assert_allclose(values, expected_values, rtol=2e-5, atol=1e-5)
    assert np.abs(expected_gradient[0][0]).max() > 1e-2
    for got, expected in zip(gradient, expected_gradient, strict=True):
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=1e-5)


@pytest.fixture(scope="module")
def reference():
    """The same in plain JAX, computed once for each loss."""
    return functools.cache(functools.partial(values_and_gradient, plain))
