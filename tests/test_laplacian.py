"""The forward-mode Laplacian of energies, against Hessians from JAX's own transformations."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import divergence, likelihood, losses, processes
from sm_jax._laplacian import directional_derivatives
from sm_jax.parameterization import EnergyScore

W = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32) * 0.7
SHIFT = np.linspace(-1.0, 1.0, 6, dtype=np.float32)


def mlp(activation):
    return lambda x: activation(activation(x @ W + SHIFT[None]) @ W.T).sum(-1)


def layer_norm(x):
    h = x @ W
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 0.1)
    return (h * SHIFT[None] * h).sum(-1)


def attention(x):
    tokens = jnp.tanh(x[:, :, None] * W[None])
    weights = jax.nn.softmax(jnp.einsum("bif,bjf->bij", tokens, tokens), axis=-1)
    return jnp.einsum("bij,bjf->b", weights, tokens**2)


def mixture(x):
    distances = ((x[:, None] - W.T[None]) ** 2).sum(-1)
    return -jax.nn.logsumexp(-0.5 * distances, axis=-1)


def convolution(x):
    kernel = jnp.asarray(W[:, None, :], x.dtype)
    h = jax.lax.conv_general_dilated(
        x[..., None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return jax.nn.silu(h).max(axis=-1).sum(-1)


def loop(x):
    layers = jnp.stack([W @ W.T, 0.5 * W @ W.T]).astype(x.dtype)
    h, skips = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w) + h, jnp.sin(h)), x, layers)
    return (h**2).sum(-1) + (skips**3).sum((0, -1))


def gated(x):
    """Split after it is curved, and used again as a whole."""
    h = jnp.tanh(x @ W)
    gate, value = jnp.split(h, 2, axis=-1)
    return (jax.nn.sigmoid(gate) * value**2).sum(-1) + (h**3).sum(-1)


def widened(x):
    """Acts on each number alone, but returns more of them."""

    @jax.custom_jvp
    def repeat(x):
        return jnp.exp(jax.lax.broadcast_in_dim(x, (3, *x.shape), (1, 2)))

    repeat.defjvp(lambda given, slopes: (repeat(*given), repeat(*given) * slopes[0][None]))
    return (repeat(x) * W[:, None, :3]).sum((0, -1))


def branches(x):
    h = jax.lax.cond(SHIFT[0] < 0, jnp.sin, jnp.cos, x)
    return jnp.where(h > 0, h**3, h).sum(-1) + jnp.prod(x, axis=-1)


def sorted_power(x):
    return (jnp.sort(x, axis=-1) ** jnp.arange(1.0, 4.0)[None]).sum(-1) / (1 + x[:, 0] ** 2)


@jax.checkpoint
def remat(x):
    return jnp.exp(jnp.sin(x @ W)).sum(-1)


ENERGIES = {
    "quadratic": lambda x: 0.5 * jnp.einsum("bi,ij,bj->b", x, W @ W.T, x),
    "softplus": mlp(jax.nn.softplus),
    "gelu": mlp(jax.nn.gelu),
    "silu": jax.jit(mlp(jax.nn.silu)),
    "layer norm": layer_norm,
    "attention": attention,
    "mixture": mixture,
    "convolution": convolution,
    "loop": loop,
    "gated": gated,
    "widened": widened,
    "branches": branches,
    "sort": sorted_power,
    "remat": remat,
    "linear": lambda x: x @ W[:, 0],
    "constant": lambda x: jnp.ones(x.shape[0]),
}
X = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def takes_forward_mode(energy_fn, dtype=jnp.float32):
    x = X.astype(dtype)
    result = directional_derivatives(energy_fn, x, lambda v: v, x[None], chunk=None, unroll=True)
    return result is not None


def hessians(energy_fn, x):
    return jax.vmap(jax.hessian(lambda row: energy_fn(row[None])[0]))(x)


@pytest.mark.parametrize("name", ENERGIES)
def test_slopes_and_curvatures_are_those_of_the_gradient_and_the_hessian(name):
    energy_fn = ENERGIES[name]
    vectors = np.random.default_rng(2).normal(size=(4, *X.shape))

    @jax.jit
    def compare(x, vectors):
        gradient = jax.grad(lambda x: energy_fn(x).sum())(x)
        slopes = jnp.einsum("kbi,bi->kb", vectors, gradient)
        curvature = jnp.einsum("kbi,bij,kbj->b", vectors, hessians(energy_fn, x), vectors)
        ours = [
            directional_derivatives(energy_fn, x, lambda v: v, vectors, chunk=chunk, unroll=unroll)
            for chunk, unroll in ((None, True), (None, False), (3, False))
        ]
        return (slopes, curvature), ours

    with jax.enable_x64(True):
        expected, ours = compare(X.astype(np.float64), vectors)
    for slopes, curvature in ours:
        np.testing.assert_allclose(slopes, expected[0], 1e-10, 1e-10)
        np.testing.assert_allclose(curvature, expected[1], 1e-10, 1e-10)


def perceptron(params, x):
    h = jax.nn.softplus(x @ params["in"])
    h = jax.nn.gelu(h @ params["middle"]) + h
    return (h @ params["out"])[:, 0] + 0.5 * (x**2).sum(-1)


PARAMS = {"in": W, "middle": np.outer(SHIFT, SHIFT), "out": SHIFT[:, None]}


LOSSES = {
    "implicit": losses.implicit,
    "implicit, in chunks": partial(losses.implicit, divergence=partial(divergence.exact, chunk=2)),
    "sliced": partial(losses.sliced, num_probes=5),
}


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 5])  # written out, and in a loop
def test_losses_and_gradients_agree_with_those_of_the_bare_score(dims, getkey):
    """The bare score takes products with its Jacobian."""

    def mean(params, loss_fn, x, key, bare):
        score_fn = EnergyScore(partial(perceptron, params))
        return loss_fn((lambda x: score_fn(x)) if bare else score_fn, x, key).mean()

    @jax.jit
    def compare(params, x, key):
        value = jax.value_and_grad(mean)
        return {
            name: [value(params, loss_fn, x, key, bare) for bare in (False, True)]
            for name, loss_fn in LOSSES.items()
        }

    with jax.enable_x64(True):
        x = jax.random.normal(getkey(), (4, dims), jnp.float64)
        params = PARAMS | {"in": jax.random.normal(getkey(), (dims, 6), jnp.float64)}
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        for ours, generic in compare(params, x, getkey()).values():
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), ours, generic)


def test_noise_conditional_losses_and_likelihoods_agree_too(getkey):
    process = processes.VE(sigma_max=20.0)

    def energy_fn(x, t):
        return (x**2).sum(-1) / (2 * (1 + t**2)) + jnp.log1p(jnp.cos(x).sum(-1) ** 2) / (1 + t) ** 4

    score_fn = EnergyScore(energy_fn)
    carried = losses.noise_conditional_sliced(
        score_fn, X, key := getkey(), sigmas=[2.0, 1.0], num_probes=4
    )
    bare = losses.noise_conditional_sliced(
        lambda x, t: score_fn(x, t), X, key, sigmas=[2.0, 1.0], num_probes=4
    )
    np.testing.assert_allclose(carried, bare, 1e-5, 1e-5)
    values = [
        jax.jit(partial(likelihood.log_prob, fn, process=process, num_steps=4))(X).value
        for fn in (score_fn, lambda x, t: score_fn(x, t))
    ]
    np.testing.assert_allclose(*values, 1e-4, 1e-4)


def test_dtypes_and_event_shapes_are_kept():
    def energy_fn(x):
        return (x**4).reshape(x.shape[0], -1).sum(-1)

    score_fn = EnergyScore(energy_fn)
    for shape in ((3,), (3, 2, 2), (3, 5, 4, 1)):
        x = jnp.linspace(-1.0, 1.0, np.prod(shape)).reshape(shape)
        laplacian = 12 * (x**2).reshape(3, -1).sum(-1)
        for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.05)):
            score, trace = divergence.exact(score_fn, x.astype(dtype))
            assert score.dtype == dtype
            assert score.shape == shape
            assert trace.dtype == jnp.float32
            np.testing.assert_allclose(trace, -laplacian, tolerance)
            np.testing.assert_allclose(score.astype(jnp.float32), -4 * x**3, tolerance, tolerance)
    with jax.enable_x64(True):
        x = jnp.linspace(-1.0, 1.0, 6, dtype=jnp.float64).reshape(2, 3)
        _, trace = divergence.exact(score_fn, x)
        assert trace.dtype == jnp.float64
        np.testing.assert_allclose(trace, -12 * (x**2).sum(-1), 1e-14)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_totals_in_low_precision_round_each_term_not_the_sum(dtype):
    """1,024 terms of up to 12: their sum has a spacing of 32 in bfloat16, of 4 in float16.

    Each term carries a few roundings of its own, of one sign or the other.
    """
    x = jnp.linspace(-1.0, 1.0, 4 * 1024).reshape(1024, 4).T.astype(dtype)
    score_fn = EnergyScore(lambda x: (x**4).sum(-1))
    terms = -12 * np.asarray(x, np.float64) ** 2
    tolerance = 4 * float(jnp.finfo(dtype).eps) * np.sqrt((terms**2).sum(-1)).max()
    assert tolerance < float(jnp.finfo(dtype).eps) * 1024  # a quarter of the total, rounded
    _, trace = divergence.exact(score_fn, x)
    np.testing.assert_allclose(trace, terms.sum(-1), rtol=0, atol=tolerance)
    _, trace = divergence.hutchinson(
        score_fn, x, jax.random.key(0), num_probes=4
    )  # diagonal: exact
    np.testing.assert_allclose(trace, terms.sum(-1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_energies_in_low_precision_take_the_generic_way(dtype):
    """Also where only some part of them is narrow."""
    assert not takes_forward_mode(lambda x: (x**4).sum(-1), dtype)
    assert not takes_forward_mode(lambda x: (x.astype(jnp.float32) ** 4).sum(-1), dtype)
    assert not takes_forward_mode(lambda x: jnp.tanh(x.astype(dtype)).astype(x.dtype).sum(-1))
    assert not takes_forward_mode(jax.jit(lambda x: (x.astype(dtype) ** 2).sum(-1)))
    assert takes_forward_mode(lambda x: (x**4).sum(-1))


def test_labels_in_the_closure_belong_to_their_rows():
    labels = jnp.arange(1.0, 5.0)
    score_fn = EnergyScore(lambda x: labels * jnp.cosh(x).sum(-1))
    _, trace = divergence.exact(score_fn, X)
    np.testing.assert_allclose(trace, -labels * np.cosh(X).sum(-1), 1e-5)


def test_an_energy_with_its_own_backward_rule_takes_the_generic_way():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))
    energy_fn = jax.jit(lambda x: cube(x).sum(-1))
    assert not takes_forward_mode(energy_fn)
    _, trace = divergence.exact(EnergyScore(energy_fn), X)
    np.testing.assert_allclose(trace, -6 * X.sum(-1), 1e-4, 1e-4)
    _, trace = divergence.hutchinson(EnergyScore(energy_fn), X, jax.random.key(0), num_probes=4)
    np.testing.assert_allclose(trace, -6 * X.sum(-1), 1e-4, 1e-4)  # a diagonal Hessian


def test_an_energy_through_complex_numbers_takes_the_generic_way():
    """By Parseval it is ``3 / 8 |x|^2``; also where the complex numbers are hidden in a call."""
    inner = jax.jit(lambda x: jnp.abs(jnp.fft.fft(x)) ** 2)
    for energy_fn in (
        lambda x: 0.125 * (jnp.abs(jnp.fft.fft(x)) ** 2).sum(-1),
        lambda x: 0.125 * inner(x).sum(-1),
        jax.checkpoint(lambda x: 0.125 * inner(x).sum(-1)),
    ):
        assert not takes_forward_mode(energy_fn)
        score, trace = divergence.exact(EnergyScore(energy_fn), X)
        np.testing.assert_allclose(score, -0.75 * X, 1e-5, 1e-6)
        np.testing.assert_allclose(trace, np.full(4, -2.25), 1e-5)


def test_scores_of_energies_take_the_cheaper_way(monkeypatch, getkey):
    """The exact trace and three probes or more do, also at a noise level; two probes do not."""
    calls = []

    def recorded(*args, **options):
        calls.append(args)
        return directional_derivatives(*args, **options)

    monkeypatch.setattr(divergence._products, "directional_derivatives", recorded)
    score_fn = EnergyScore(lambda x, *_: (x**4).sum(-1))
    divergence.exact(score_fn, X)
    divergence.hutchinson(score_fn, X, getkey(), num_probes=3)
    losses.noise_conditional_sliced(score_fn, X, getkey(), sigmas=[2.0, 1.0], num_probes=3)
    assert len(calls) == 3
    divergence.hutchinson(score_fn, X, getkey(), num_probes=2)
    assert len(calls) == 3


def test_a_wrapped_score_is_not_taken_for_that_of_the_energy():
    """``functools.wraps`` copies the energy to a score that is no longer its gradient."""
    score_fn = EnergyScore(lambda x: 0.5 * (x**2).sum(-1))

    @functools.wraps(score_fn)
    def doubled(x):
        return 2.0 * score_fn(x)

    assert doubled.energy_fn is score_fn.energy_fn
    score, trace = divergence.exact(doubled, X)
    np.testing.assert_allclose(score, -2.0 * X, 1e-6)
    np.testing.assert_allclose(trace, np.full(4, -6.0), 1e-6)
    _, trace = divergence.hutchinson(doubled, X, jax.random.key(0), num_probes=4)
    np.testing.assert_allclose(trace, np.full(4, -6.0), 1e-6)


def test_an_energy_that_changes_is_traced_anew():
    """Such as a module between two steps of its training, the same object with other numbers."""

    class Quadratic:
        scale = 1.0

        def __call__(self, x):
            return self.scale * (x**2).sum(-1)

    energy_fn = Quadratic()
    for scale in (1.0, 3.0):
        energy_fn.scale = scale
        score_fn = EnergyScore(energy_fn)
        for function in (
            divergence.exact,
            divergence.laplacian,
            partial(divergence.hutchinson, num_probes=4),
        ):
            _, trace = function(score_fn, X, jax.random.key(0))
            np.testing.assert_allclose(trace, np.full(4, -6.0 * scale), 1e-5)


def test_a_wrong_energy_shape_is_refused():
    score_fn = EnergyScore(lambda x: (x**2).sum(-1, keepdims=True))
    with pytest.raises(ValueError, match=r"one number per example.*\(4,\).*\(4, 1\)"):
        divergence.exact(score_fn, X)
