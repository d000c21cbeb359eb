"""The networks against NumPy, from their equations; the adapter against Flax's own functions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from sm_jax import divergence, models, parameterization, processes
from sm_jax.models import _unet
from sm_jax.models._unet import _Attention, _Block


def random_weights(make, seed=0):
    """(apply, params) of the network that `make` builds, all parameters drawn anew by NumPy.

    Nothing that starts at zero stays there, and no initialization is compiled.
    """
    apply, params = models.functional(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)

    def draw(p):
        return np.float32(rng.normal(size=p.shape) / math.sqrt(max(1, math.prod(p.shape[:-1]))))

    return jax.jit(apply), jax.tree.map(draw, params)


@functools.cache
def mlp(event_shape=(3, 2), cls=models.MLP, **options):
    options = {"width": 8, "depth": 2, "embed_dims": 4, "cond_dims": 3} | options
    return random_weights(lambda: cls(event_shape, **options, rngs=nnx.Rngs(0)))


@functools.cache
def unet(image_shape=(5, 3, 2), **options):
    options = {"channels": 4, "channel_multipliers": (1, 2), "cond_dims": 3} | options
    return random_weights(lambda: models.UNet(image_shape, **options, rngs=nnx.Rngs(0)))


def inputs(shape, batch=3, cond_dims=3, seed=1):
    rng = np.random.default_rng(seed)
    x, c_noise, cond = (rng.normal(size=(batch, *s)) for s in (shape, (), (cond_dims,)))
    return np.float32(x), np.float32(c_noise), np.float32(cond)


NETWORKS = {
    "mlp": (mlp, (3, 2)),
    "energy": (lambda **options: mlp(cls=models.EnergyMLP, **options), (3, 2)),
    "unet": (lambda **options: unet((3, 2, 2), channel_multipliers=(1,), **options), (3, 2, 2)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A function of options to (apply, params), and the shape of an example."""
    return NETWORKS[request.param]


# The equations, in NumPy.


def silu(x):
    return x / (1 + np.exp(-x))


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def embed(p, c_noise, cond):
    angles = c_noise[:, None] * (0.5 * 64.0 ** (np.arange(16) / 15))
    features = np.sqrt(2) * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    hidden = linear(p["noise"], features) + (0 if cond is None else cond @ p["cond"]["kernel"])
    return silu(linear(p["out"], silu(hidden)))


def film(p, embedding, u):
    scale, shift = np.split(linear(p, embedding), 2, axis=-1)
    to = (slice(None),) + (None,) * (u.ndim - 2)
    return (1 + scale[to]) * u + shift[to]


def mlp_reference(p, x, c_noise, cond, activation=silu):
    p = p["network"]
    embedding = embed(p["embedding"], c_noise, cond)
    h = linear(p["inputs"], x.reshape(len(x), -1))
    for d in range(len(p.get("blocks", {}))):
        block = p["blocks"][str(d)]
        u = film(block["film"], embedding, linear(block["hidden"], h))
        h = h + linear(block["out"], activation(u))
    return linear(p["outputs"], h)


def group_norm(p, x):
    channels = x.shape[-1]
    groups = max(g for g in range(1, max(1, channels // 4) + 1) if channels % g == 0)
    y = x.reshape(len(x), -1, groups, channels // groups)
    y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-5)
    return y.reshape(x.shape) * p["scale"] + p["bias"]


def conv(p, x, stride=1):
    size = p["kernel"].shape[0]
    outs = [-(-n // stride) for n in x.shape[1:3]]
    pads = [
        max(0, (out - 1) * stride + size - n) for out, n in zip(outs, x.shape[1:3], strict=True)
    ]
    x = np.pad(x, [(0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)])
    y = 0
    for i in range(size):
        for j in range(size):
            shifted = x[:, i : i + stride * outs[0] : stride, j : j + stride * outs[1] : stride]
            y = y + shifted[:, : outs[0], : outs[1]] @ p["kernel"][i, j]
    return y + p["bias"]


def attention(p, x, head_dims):
    batch, height, width, channels = x.shape
    split = (batch, height * width, channels // head_dims, head_dims)
    qkv = np.split(linear(p["qkv"], group_norm(p["norm"], x)), 3, axis=-1)
    q, k, v = (a.reshape(split) for a in qkv)
    weights = np.exp(np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(head_dims))
    weights = weights / weights.sum(-1, keepdims=True)
    return x + linear(p["out"], np.einsum("bhij,bjhd->bihd", weights, v).reshape(x.shape))


def residual_block(p, h, embedding):
    u = conv(p["conv_in"], silu(group_norm(p["norm_in"], h)))
    u = silu(film(p["film"], embedding, group_norm(p["norm_out"], u)))
    h = (conv(p["skip"], h) if "skip" in p else h) + conv(p["conv_out"], u)
    return attention(p["attention"], h, h.shape[-1]) if "attention" in p else h


def unet_reference(p, x, c_noise, cond, multipliers, num_blocks):
    embedding = embed(p["embedding"], c_noise, cond)
    h = conv(p["inputs"], x)
    down, up = ([p[name][str(i)] for i in range(len(p[name]))] for name in ("down", "up"))
    resolutions = [[h]]
    for i in range(len(multipliers)):
        if i > 0:
            h = conv(down.pop(0)["conv"], h, stride=2)
            resolutions.append([h])
        for _ in range(num_blocks):
            h = residual_block(down.pop(0), h, embedding)
            resolutions[-1].append(h)
    for i in range(2):
        h = residual_block(p["middle"][str(i)], h, embedding)
    while resolutions:
        for skip in reversed(resolutions.pop()):
            h = residual_block(up.pop(0), np.concatenate([h, skip], -1), embedding)
        if resolutions:
            height, width = resolutions[-1][0].shape[1:3]
            h = h.repeat(2, axis=1)[:, :height].repeat(2, axis=2)[:, :, :width]
            h = conv(up.pop(0)["conv"], h)
    assert not down
    assert not up
    return conv(p["outputs"], silu(group_norm(p["norm"], h)))


@pytest.mark.parametrize("event_shape", [(), (2,), (3, 2), (2, 2, 1)])
def test_mlp_is_its_equations(event_shape):
    apply, params = mlp(event_shape)
    x, c_noise, cond = inputs(event_shape)
    expected = mlp_reference(params, x, c_noise, cond).reshape(x.shape)
    np.testing.assert_allclose(apply(params, x, c_noise, cond), expected, rtol=1e-4, atol=1e-5)


def test_mlp_takes_an_integer_shape_other_activations_and_no_block():
    apply, params = mlp(5, activation=jnp.tanh, depth=1)
    x, c_noise, cond = inputs((5,))
    expected = mlp_reference(params, x, c_noise, cond, np.tanh)
    np.testing.assert_allclose(apply(params, x, c_noise, cond), expected, rtol=1e-4, atol=1e-5)

    apply, params = mlp(5, depth=0)
    expected = mlp_reference(params, x, c_noise, cond)
    np.testing.assert_allclose(apply(params, x, c_noise, cond), expected, rtol=1e-4, atol=1e-5)


def test_energy_is_its_equations():
    apply, params = mlp(cls=models.EnergyMLP)
    x, c_noise, cond = inputs((3, 2))
    energies = apply(params, x, c_noise, cond)
    expected = mlp_reference(params, x, c_noise, cond)[:, 0]
    np.testing.assert_allclose(energies, expected, rtol=1e-4, atol=1e-5)


def test_score_of_the_energy_is_minus_its_gradient():
    with jax.enable_x64(True):
        apply, params = mlp(cls=models.EnergyMLP, depth=1)
        params = jax.tree.map(lambda p: p.astype(np.float64), params)
        x, c_noise, cond = (a.astype(np.float64) for a in inputs((3, 2)))
        score = parameterization.EnergyScore(lambda x, c_noise: apply(params, x, c_noise, cond))(
            x, c_noise
        )
        assert score.dtype == jnp.float64
        for index in np.ndindex(3, 2):
            step = np.zeros((3, 2))
            step[index] = 1e-5
            ahead, behind = (
                mlp_reference(params, x + s * step, c_noise, cond)[:, 0] for s in (1, -1)
            )
            np.testing.assert_allclose(
                score[(slice(None), *index)], (behind - ahead) / 2e-5, rtol=1e-6, atol=1e-9
            )
        check_grads(lambda x: apply(params, x, c_noise, cond), (x,), order=2, modes=["rev"])


@pytest.mark.parametrize(
    ("image_shape", "options"),
    [
        ((5, 3, 2), {"channel_multipliers": (1, 2), "num_blocks": 2}),
        ((7, 6, 1), {"channel_multipliers": (2, 1, 2), "attention_resolutions": 2, "channels": 2}),
        ((1, 2, 3), {"channel_multipliers": (1, 1), "attention_resolutions": 0}),
    ],
)
def test_unet_is_its_equations(image_shape, options):
    apply, params = unet(image_shape, **options)
    x, c_noise, cond = inputs(image_shape)
    expected = unet_reference(
        params, x, c_noise, cond, options["channel_multipliers"], options.get("num_blocks", 1)
    )
    got = apply(params, x, c_noise, cond)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    with_attention = [
        name for name in ("down", "up") for block in params[name].values() if "attention" in block
    ]
    num_blocks = options.get("num_blocks", 1)
    attends = options.get("attention_resolutions", 1)
    assert len(with_attention) == attends * (2 * num_blocks + 1)
    assert ("attention" in params["middle"]["0"]) == (attends > 0)


def test_attention_has_heads_and_ignores_the_order_of_pixels(monkeypatch):
    monkeypatch.setattr(_unet, "_HEAD_DIMS", 4)
    apply, params = random_weights(lambda: _Attention(12, dtype=None, rngs=nnx.Rngs(0)))
    x, _, _ = inputs((2, 3, 12))
    y = apply(params, x)
    np.testing.assert_allclose(y, attention(params, x, head_dims=4), rtol=1e-4, atol=1e-5)

    order = np.random.default_rng(0).permutation(6)
    mixed = x.reshape(3, 6, 12)[:, order].reshape(x.shape)
    expected = np.asarray(y).reshape(3, 6, 12)[:, order].reshape(x.shape)
    np.testing.assert_allclose(apply(params, mixed), expected, rtol=1e-4, atol=1e-5)


def test_norm_silu_is_flax_group_norm_with_its_derivatives():
    """Values, and tangents of the gradient, as losses take them; in float64 and bfloat16."""
    norm = _unet._group_norm(8, dtype=None, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    norm.scale[...], norm.bias[...] = (jnp.float32(rng.normal(size=8)) for _ in range(2))
    h, v, w = rng.normal(size=(3, 2, 5, 3, 8))
    scale, shift = rng.normal(size=(2, 2, 1, 1, 8))

    def plain(h):
        return nnx.silu((1 + scale) * norm(h) + shift)

    def fused(h):
        return _unet._norm_silu(norm, h, scale, shift)

    def second(f):
        return jax.jvp(jax.grad(lambda h: jnp.vdot(w, f(h))), (h,), (v,))

    with jax.enable_x64(True):
        np.testing.assert_allclose(fused(h), plain(h), rtol=1e-10, atol=1e-12)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-8), second(fused), second(plain)
        )
        half = fused(jnp.bfloat16(h))
    assert half.dtype == jnp.bfloat16
    exact = np.asarray(plain(np.asarray(jnp.bfloat16(h), np.float32)))
    np.testing.assert_allclose(np.float32(half), exact, rtol=2**-8, atol=1e-5)


def test_norm_silu_keeps_its_variance_at_an_offset():
    """Moments of centered values: E[h^2] - E[h]^2 loses a variance of 1 at an offset of 1e4."""
    norm = _unet._group_norm(8, dtype=None, rngs=nnx.Rngs(0))
    h = np.random.default_rng(0).normal(1e4, 1, size=(2, 16, 16, 8)).astype(np.float32)
    expected = silu(group_norm({"scale": 1.0, "bias": 0.0}, h.astype(np.float64)))
    got = _unet._norm_silu(norm, h)
    # h * factor and its offset, about 1e4 each, are rounded: a few units of 1e4 / 2^24
    np.testing.assert_allclose(got, expected, atol=4 * 1.1e4 / 2**23)


def test_attention_keeps_its_variance_at_an_offset():
    """Flax's own group normalization is wrong by 0.7 here: it takes E[h^2] - E[h]^2."""
    apply, params = random_weights(lambda: _Attention(8, dtype=None, rngs=nnx.Rngs(0)))
    h = np.random.default_rng(0).normal(1e3, 1, size=(2, 5, 5, 8)).astype(np.float32)
    wide = jax.tree.map(np.float64, params)
    expected = attention(wide, h.astype(np.float64), head_dims=8) - h
    # rounded as above, and once more where h, of 1e3, is added
    np.testing.assert_allclose(apply(params, h) - h, expected, atol=2e-3)
    assert np.abs(expected).mean() > 0.2


def test_block_sees_each_group_of_channels_up_to_scale_and_shift():
    options = {"attention": False, "dropout": 0.0, "dtype": None}
    apply, params = random_weights(lambda: _Block(8, 8, 4, **options, rngs=nnx.Rngs(0)))
    x, embedding = inputs((4, 4, 8))[0], np.ones((3, 4), np.float32)
    scale, shift = (np.repeat(np.float32(a), 4) for a in ([3.0, 0.7], [-2.0, 1.0]))
    moved = scale[None, None, None] * x + shift[None, None, None]
    branch, moved_branch = (apply(params, h, embedding) - h for h in (x, moved))
    assert np.abs(branch).max() > 0.1
    np.testing.assert_allclose(moved_branch, branch, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("image_shape", [(7, 7, 1), (5, 9, 2), (28, 28, 1), (1, 1, 3), (32, 15, 3)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 2, 2)])
def test_unet_takes_any_size(image_shape, multipliers):
    apply, params = models.functional(
        nnx.eval_shape(
            lambda: models.UNet(
                image_shape, channels=6, channel_multipliers=multipliers, rngs=nnx.Rngs(0)
            )
        )
    )
    x = jax.ShapeDtypeStruct((4, *image_shape), jnp.float32)
    c_noise = jax.ShapeDtypeStruct((4,), jnp.float32)
    out = jax.eval_shape(apply, params, x, c_noise)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)


# What holds for all.


def test_rows_are_independent(network):
    make, shape = network
    apply, params = make()
    x, c_noise, cond = inputs(shape)
    out = apply(params, x, c_noise, cond)

    def score(x):
        if out.ndim == 1:
            return parameterization.EnergyScore(apply_at)(x)
        return apply_at(x)

    def apply_at(x):
        return apply(params, x, c_noise, cond)

    key = jax.random.key(0)
    assert jax.jit(lambda x: divergence.rows_are_independent(score, x, key))(x)

    # Nor does a row depend on the noise level and the conditioning of others.
    others = [np.concatenate([a[:1] - 1, a[1:2], a[2:] + 1]) for a in (x, c_noise, cond)]
    np.testing.assert_allclose(apply(params, *others)[1], out[1], rtol=1e-5, atol=1e-6)
    assert np.abs(apply(params, *others)[0] - out[0]).max() > 1e-2


def test_noise_level_and_conditioning_count(network):
    make, shape = network
    apply, params = make()
    x, c_noise, cond = inputs(shape)
    out = np.asarray(apply(params, x, c_noise, cond))
    assert np.abs(apply(params, x, c_noise + 0.1, cond) - out).max() > 1e-3
    assert np.abs(apply(params, x, c_noise, cond + 0.5) - out).max() > 1e-3
    np.testing.assert_allclose(
        apply(params, x, c_noise), apply(params, x, c_noise, 0 * cond), rtol=1e-6, atol=1e-6
    )


def test_dropout_acts_with_a_key_only(network):
    make, shape = network
    apply, params = make(dropout=0.4)
    plain, _ = make(dropout=0.0)
    x, c_noise, cond = (np.repeat(a[:1], 3, axis=0) for a in inputs(shape))
    first = apply(params, x, c_noise, cond, key=jax.random.key(0))
    without = apply(params, x, c_noise, cond)
    np.testing.assert_array_equal(first, apply(params, x, c_noise, cond, key=jax.random.key(0)))
    assert np.abs(first - apply(params, x, c_noise, cond, key=jax.random.key(1))).max() > 1e-2
    assert np.abs(first - without).max() > 1e-2
    assert np.abs(first[0] - first[1]).max() > 1e-2
    for key in (None, jax.random.key(0)):
        np.testing.assert_allclose(
            plain(params, x, c_noise, cond, key=key), without, rtol=1e-5, atol=1e-6
        )


def test_dropout_has_the_mean_and_variance_of_its_rate():
    """Two equal blocks that do not see x: their masks enter linearly, and must not be the same.

    Var = 2 rate / (1 - rate) sum_i (w_i f_i)^2, and twice that were the masks the same.
    """
    rate, num_draws = 0.3, 4000
    apply, params = mlp((), cls=models.EnergyMLP, depth=2, dropout=rate)
    x, c_noise, _ = inputs((), batch=1)
    p = params["network"]
    block = p["blocks"]["0"]
    block = block | {"hidden": block["hidden"] | {"kernel": 0 * block["hidden"]["kernel"]}}
    params = {"network": p | {"blocks": {"0": block, "1": block}}}
    run = jax.vmap(lambda key: apply(params, x, c_noise, key=key)[0])
    draws = np.asarray(run(jax.random.split(jax.random.key(0), num_draws)))

    embedding = embed(p["embedding"], c_noise, None)
    f = silu(film(block["film"], embedding, block["hidden"]["bias"][None]))[0]
    w = (block["out"]["kernel"] @ p["outputs"]["kernel"])[:, 0]
    variance = 2 * rate / (1 - rate) * np.sum((w * f) ** 2)
    mean = mlp_reference(params, x[:, None], c_noise, None)[0, 0]
    assert abs(draws.mean() - mean) < 4 * math.sqrt(variance / num_draws)
    np.testing.assert_allclose(draws.var(), variance, rtol=0.15)


def test_networks_start_at_zero_and_the_score_at_the_gaussian():
    x, c_noise, _ = inputs((3, 2))
    options = {"width": 8, "depth": 1, "embed_dims": 8, "rngs": nnx.Rngs(0)}
    process, sigma = processes.VE(), np.float32([0.02, 1.0, 30.0])
    for cls in (models.MLP, models.EnergyMLP):
        apply, params = models.functional(cls((3, 2), **options))
        out = jax.jit(apply)(params, x, c_noise)
        np.testing.assert_array_equal(out, np.zeros_like(out))
        network = functools.partial(apply, params)
        if cls is models.EnergyMLP:
            network = parameterization.EnergyScore(network)
        score = jax.jit(parameterization.precondition(network, process=process, sigma_data=0.5))(
            x, sigma
        )
        expected = -x / (sigma**2 + np.float32(0.25))[:, None, None]
        np.testing.assert_allclose(score, expected, rtol=1e-5)
        # Only the layers that end a branch are zero; the gradient enters through the last of all.
        for name, p in params["network"]["blocks"]["0"].items():
            assert (np.abs(p["kernel"]).max() == 0) == (name == "out")
        grad = jax.jit(jax.grad(lambda p: ((apply(p, x, c_noise) - 1) ** 2).sum()))(params)  # noqa: B023
        assert np.abs(grad["network"]["outputs"]["kernel"]).max() > 0.1


def test_unet_starts_at_zero_with_kernels_of_the_right_scale():
    unet = models.UNet(
        (3, 3, 2), channels=8, channel_multipliers=(1,), dropout=0.5, rngs=nnx.Rngs(0)
    )
    x, c_noise, _ = inputs((3, 3, 2))
    out = jax.jit(lambda unet, x, c: unet(x, c))(unet, x, c_noise)
    np.testing.assert_array_equal(out, 0 * x)
    _, params = models.functional(unet)
    block = params["up"]["0"]
    assert np.abs(block["conv_out"]["kernel"]).max() == 0
    assert np.abs(block["attention"]["out"]["kernel"]).max() == 0
    for name, fan_in in (("conv_in", 9 * 16), ("skip", 16)):
        kernel = np.asarray(block[name]["kernel"])
        standard_error = 1 / math.sqrt(2 * kernel.size)
        assert abs(kernel.std() * math.sqrt(fan_in) - 1) < 4 * standard_error, name


def test_number_of_parameters():
    width, depth, embed, cond, dims = 8, 3, 4, 3, 6
    embedding = (32 * embed + embed) + cond * embed + (embed * embed + embed)
    block = 2 * (width * width + width) + (embed * 2 * width + 2 * width)
    trunk = embedding + (dims * width + width) + depth * block
    for cls, outputs in ((models.MLP, dims), (models.EnergyMLP, 1)):
        _, params = mlp((3, 2), cls=cls, width=width, depth=depth)
        expected = trunk + width * outputs + outputs
        assert sum(p.size for p in jax.tree.leaves(params)) == expected

    def conv(i, o, size=3):
        return size * size * i * o + o

    def attend(c):
        return 2 * c + (c * 3 * c + 3 * c) + (c * c + c)

    def block(i, o, attention=False):
        count = 2 * i + conv(i, o) + (16 * 2 * o + 2 * o) + 2 * o + conv(o, o)
        return count + (conv(i, o, 1) if i != o else 0) + (attend(o) if attention else 0)

    embedding = (32 * 16 + 16) + 3 * 16 + (16 * 16 + 16)
    expected = (
        embedding
        + conv(2, 4)
        + (block(4, 4) + conv(4, 4) + block(4, 8, True))
        + (block(8, 8, True) + block(8, 8))
        + (block(8 + 8, 8, True) + block(8 + 4, 8, True) + conv(8, 8))
        + (block(8 + 4, 4) + block(4 + 4, 4))
        + (2 * 4 + conv(4, 2))
    )
    _, params = unet()
    assert sum(p.size for p in jax.tree.leaves(params)) == expected


def test_bfloat16(network):
    make, shape = network
    x, c_noise, cond = inputs(shape)
    apply, params = make()
    low, _ = make(dtype=jnp.bfloat16)
    out = apply(params, x, c_noise, cond)
    half = low(params, x, c_noise, cond)
    assert half.dtype == out.dtype == jnp.float32
    assert 0 < np.abs(half - out).max() < 0.1 * np.abs(out).max()
    x_half = jnp.asarray(x, jnp.bfloat16)
    assert apply(params, x_half, c_noise, cond).dtype == jnp.bfloat16


# The adapter.


def test_functional_is_the_module_and_its_gradient_is_nnx_grad():
    module = nnx.eval_shape(
        lambda: models.MLP(2, width=4, depth=1, embed_dims=4, dropout=0.5, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(0)
    draw = functools.partial(jax.tree.map, lambda p: jnp.float32(rng.normal(size=p.shape)))
    nnx.update(module, draw(nnx.state(module)))
    apply, params = models.functional(module)
    x, c_noise, _ = inputs((2,))
    key = jax.random.key(0)
    expected = module(x, c_noise, rngs=nnx.Rngs(dropout=key))
    np.testing.assert_allclose(apply(params, x, c_noise, key=key), expected, rtol=1e-5)

    leaves = jax.tree.leaves_with_path(params)
    assert all(type(leaf) is type(jnp.zeros(1)) for _, leaf in leaves)
    assert all(isinstance(k, jax.tree_util.DictKey) for path, _ in leaves for k in path)
    assert all(isinstance(k.key, str) for path, _ in leaves for k in path)

    got = jax.jit(jax.grad(lambda p: (apply(p, x, c_noise) ** 2).sum()))(params)
    expected = nnx.jit(nnx.grad(lambda m: (m(x, c_noise) ** 2).sum()))(module)
    assert len(jax.tree.leaves(expected)) == len(leaves)
    for path, leaf in nnx.to_flat_state(nnx.state(expected)):  # a module itself in tree mode
        mine = got
        for name in path:
            mine = mine[str(name)]
        np.testing.assert_allclose(mine, leaf[...], rtol=1e-5, atol=1e-6)


def test_functional_under_transformations():
    apply, params = mlp(2, dropout=0.5, depth=1)
    x, c_noise, cond = inputs((2,))
    key = jax.random.key(3)

    def score(x):
        return apply(params, x, c_noise, cond, key=key)

    jacobian = jax.jit(jax.jacrev(score))(x)
    v = np.random.default_rng(0).normal(size=(4, *x.shape)).astype(np.float32)
    along = jax.jit(jax.vmap(lambda v: jax.jvp(score, (x,), (v,))[1]))(v)
    expected = np.einsum("bdac,kac->kbd", jacobian, v)
    np.testing.assert_allclose(along, expected, rtol=1e-4, atol=1e-5)

    # The gradient of a divergence: a derivative by the parameters of one by x.
    def loss_of(p):
        return jax.jvp(lambda x: apply(p, x, c_noise, key=key), (x,), (v[0],))[1].sum()

    flat, unflatten = ravel_pytree(params)
    loss = jax.jit(lambda flat: loss_of(unflatten(flat)))
    numeric = (loss(flat + 0.01) - loss(flat - 0.01)) / 0.02
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(flat).sum(), numeric, rtol=1e-2)

    def step(x, key):
        x = x + apply(params, x, c_noise, cond, key=key)
        return x, x

    keys = jax.random.split(key, 2)
    _, path = jax.lax.scan(step, x, keys)
    np.testing.assert_allclose(path[1], step(path[0], keys[1])[0], rtol=1e-5, atol=1e-6)

    several = jax.tree.map(lambda p: np.stack([p, 2 * p]), params)
    each = jax.vmap(lambda p: apply(p, x, c_noise, cond))(several)
    double = apply(jax.tree.map(lambda p: 2 * p, params), x, c_noise, cond)
    np.testing.assert_allclose(each[1], double, rtol=1e-4, atol=1e-4)


class Stateful(nnx.Module):
    """A module of someone else: statistics, random state of its own, other arguments."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])  # two digits
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, shift, *, scale=1.0):
        for layer in self.layers:
            x = layer(x)
        return scale * self.dropout(self.norm(x)) + shift


def test_functional_takes_any_module_and_freezes_its_state():
    module = Stateful(nnx.Rngs(0))
    apply, params = models.functional(module)
    x = inputs((2,))[0]
    first = jax.jit(apply)(params, x, 1.0, scale=3.0)
    np.testing.assert_allclose(apply(params, x, 1.0, scale=3.0), first, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(module.norm.mean[...], np.zeros(2))
    check_grads(lambda x: apply(params, x, 0.0), (x,), order=1, modes=["fwd"], atol=0.01, rtol=0.01)
    assert set(params) == {"layers", "norm"}
    # The module moves on, the function does not.
    np.testing.assert_allclose(module(x, 1.0, scale=3.0), first, rtol=1e-5, atol=1e-6)
    assert np.abs(module(x, 1.0, scale=3.0) - first).max() > 0.1
    np.testing.assert_allclose(apply(params, x, 1.0, scale=3.0), first, rtol=1e-5, atol=1e-6)


def test_functional_rejects_what_is_no_module():
    with pytest.raises(TypeError, match=r"takes a flax.nnx.Module, not a function"):
        models.functional(lambda x: x)


# Errors.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"event_shape": 0},
            ValueError,
            r"every number in event_shape = \(0,\).*at least 1, got 0",
        ),
        ({"event_shape": (2, 1.5)}, TypeError, r"event_shape = \(2, 1.5\) must be a Python int"),
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"embed_dims": 0}, ValueError, "embed_dims must be at least 1, got 0"),
        ({"depth": -1}, ValueError, "depth must be at least 0, got -1"),
        ({"cond_dims": -2}, ValueError, "cond_dims must be at least 0, got -2"),
        ({"dropout": 1.0}, ValueError, r"dropout must be .* in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, ValueError, r"dropout must be .* in \[0, 1\), got -0.1"),
    ],
)
@pytest.mark.parametrize("cls", [models.MLP, models.EnergyMLP])
def test_mlp_options_are_checked(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(**({"event_shape": 2} | options), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_shape": (8, 8)}, ValueError, r"\(height, width, channels\), got \(8, 8\)"),
        ({"image_shape": (8, 0, 1)}, ValueError, r"image_shape = \(8, 0, 1\).*at least 1, got 0"),
        ({"channel_multipliers": ()}, ValueError, r"channel_multipliers .*at least one resolution"),
        ({"channel_multipliers": (1, 0)}, ValueError, r"channel_multipliers = \(1, 0\) must be"),
        ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
        ({"num_blocks": 0}, ValueError, "num_blocks must be at least 1, got 0"),
        (
            {"attention_resolutions": -1},
            ValueError,
            "attention_resolutions must be at least 0, got -1",
        ),
        (
            {"attention_resolutions": 4},
            ValueError,
            "attention_resolutions must be at most .* 3 .*; got 4",
        ),
        ({"cond_dims": -2}, ValueError, "cond_dims must be at least 0, got -2"),
        ({"dropout": 1.0}, ValueError, r"dropout must be .* in \[0, 1\), got 1.0"),
    ],
)
def test_unet_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        models.UNet(**({"image_shape": (8, 8, 1)} | options), rngs=nnx.Rngs(0))


def test_inputs_are_checked(network):
    make, shape = network
    apply, params = make()
    plain, plain_params = make(cond_dims=0)
    x, c_noise, cond = inputs(shape)

    def raises(error, message, apply, params, *args):
        with pytest.raises(error, match=message):
            jax.eval_shape(apply, params, *args)

    raises(
        ValueError,
        r"for which this network was built, got shape \(3, 1",
        apply,
        params,
        x[:, None],
        c_noise,
    )
    raises(ValueError, r"for which this network was built, got", apply, params, x[:, :-1], c_noise)
    raises(
        ValueError,
        r"c_noise must be one number per example, shape \(3,\), got shape \(2,\)",
        apply,
        params,
        x,
        c_noise[:2],
    )
    raises(ValueError, "c_noise must be a batch", apply, params, x, np.float32(1.0))
    raises(
        TypeError,
        "x must have a floating dtype, got int32",
        apply,
        params,
        x.astype(np.int32),
        c_noise,
    )
    raises(
        TypeError,
        "c_noise must have a floating dtype, got int32",
        apply,
        params,
        x,
        c_noise.astype(np.int32),
    )
    raises(ValueError, "x is empty", apply, params, x[:0], c_noise[:0])
    raises(
        ValueError,
        r"cond must be \[B, cond_dims\], shape \(3, 3\), got \(3, 2\)",
        apply,
        params,
        x,
        c_noise,
        cond[:, :2],
    )
    raises(
        ValueError,
        r"cond must be \[B, cond_dims\], shape \(3, 3\), got \(2, 3\)",
        apply,
        params,
        x,
        c_noise,
        cond[:2],
    )
    raises(
        TypeError,
        "cond must have a floating dtype",
        apply,
        params,
        x,
        c_noise,
        cond.astype(np.int32),
    )
    raises(
        ValueError,
        r"cond of shape \(3, 3\) was given to an unconditional network.*cond_dims=3",
        plain,
        plain_params,
        x,
        c_noise,
        cond,
    )
