"""Training step of the U-Net against the same network in PyTorch, on as many threads.

    pip install ".[benchmark]"                     brings torch
    python -m experiments.benchmarks.networks      prints the table

For one thread: ``XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python -m ...``.

``TorchUNet`` has the blocks of ``sm_jax.models.UNet`` in the same order, so the same number of
parameters; it is unconditional, without dropout. Its images are ``[B, C, H, W]``, as usual there.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console

from experiments.benchmarks.timing import Row, cores, seconds, show
from sm_jax import models

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise ImportError(
        "experiments.benchmarks.networks compares with PyTorch, which is not installed: "
        "pip install '.[benchmark]'"
    ) from error

from sm_jax.models._embedding import NUM_FREQUENCIES
from sm_jax.models._unet import _HEAD_DIMS, _MAX_GROUPS, _largest_divisor


def _group_norm(channels):
    return nn.GroupNorm(_largest_divisor(channels, min(_MAX_GROUPS, channels // 4)), channels)


class _Embedding(nn.Module):
    def __init__(self, embed_dims):
        super().__init__()
        self.noise = nn.Linear(2 * NUM_FREQUENCIES, embed_dims)
        self.out = nn.Linear(embed_dims, embed_dims)
        self.frequencies = torch.logspace(-1, 5, NUM_FREQUENCIES, base=2.0)

    def forward(self, c_noise):
        angles = c_noise[:, None] * self.frequencies
        features = math.sqrt(2) * torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return functional.silu(self.out(functional.silu(self.noise(features))))


class _Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.num_heads = _largest_divisor(channels, channels // _HEAD_DIMS)
        self.norm = _group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h):
        height, width = h.shape[2:]
        qkv = self.qkv(self.norm(h).flatten(2).transpose(1, 2))
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        return h + self.out(out).transpose(1, 2).unflatten(-1, (height, width))


class _Block(nn.Module):
    def __init__(self, inputs, outputs, embed_dims, attention):
        super().__init__()
        self.norm_in = _group_norm(inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(embed_dims, 2 * outputs)
        self.norm_out = _group_norm(outputs)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = _Attention(outputs) if attention else nn.Identity()

    def forward(self, h, embedding):
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        u = self.conv_in(functional.silu(self.norm_in(h)))
        u = self.conv_out(functional.silu((1 + scale) * self.norm_out(u) + shift))
        return self.attention(self.skip(h) + u)


class TorchUNet(nn.Module):
    """``unet(x [B, C, H, W], c_noise [B]) -> [B, C, H, W]``; the arguments are those of ours."""

    def __init__(self, image_shape, *, channels, multipliers=(1, 2, 2), attention_resolutions=1):
        super().__init__()
        embed_dims = 4 * channels
        widths = [channels * multiplier for multiplier in multipliers]
        attends = [i >= len(widths) - attention_resolutions for i in range(len(widths))]
        self.embedding = _Embedding(embed_dims)
        self.inputs = nn.Conv2d(image_shape[-1], channels, 3, padding=1)
        skips = [channels]
        self.down = nn.ModuleList()
        for i, (width, attention) in enumerate(zip(widths, attends, strict=True)):
            if i > 0:
                self.down.append(nn.Conv2d(skips[-1], skips[-1], 3, stride=2, padding=1))
                skips.append(skips[-1])
            self.down.append(_Block(skips[-1], width, embed_dims, attention))
            skips.append(width)
        current = widths[-1]
        self.middle = nn.ModuleList(
            [_Block(current, current, embed_dims, attention) for attention in (attends[-1], False)]
        )
        self.up = nn.ModuleList()
        for i in reversed(range(len(widths))):
            for _ in range(2):
                inputs = current + skips.pop()
                self.up.append(_Block(inputs, widths[i], embed_dims, attends[i]))
                current = widths[i]
            if i > 0:
                self.up.append(nn.Conv2d(current, current, 3, padding=1))
        self.norm = _group_norm(current)
        self.outputs = nn.Conv2d(current, image_shape[-1], 3, padding=1)

    def forward(self, x, c_noise):
        """Return the network's output, of the shape of ``x``."""
        embedding = self.embedding(c_noise)
        h = self.inputs(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, _Block) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for layer in self.up:
            if isinstance(layer, _Block):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                height, width = skips[-1].shape[2:]
                h = functional.interpolate(h, scale_factor=2, mode="nearest")
                h = layer(h[:, :, :height, :width])
        return self.outputs(functional.silu(self.norm(h)))


def torch_step(x, target, c_noise, *, channels, num_params, num_threads):
    """Return a function that does one AdamW step on the mean square error; images [B, H, W, C]."""
    torch.set_num_threads(num_threads)
    x, target = (torch.from_numpy(a).permute(0, 3, 1, 2).contiguous() for a in (x, target))
    c_noise = torch.from_numpy(c_noise)
    network = TorchUNet((*x.shape[2:], x.shape[1]), channels=channels)
    if (count := sum(p.numel() for p in network.parameters())) != num_params:
        raise ValueError(f"the network in torch has {count} parameters, ours {num_params}.")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        ((network(x, c_noise) - target) ** 2).mean().backward()
        optimizer.step()

    return step


def measure(name: str, channels: int, batch_size: int, rounds: int):
    """Return the row that compares a training step of the U-Net with one of its twin in torch."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(batch_size, 28, 28, 1)).astype(np.float32) for _ in range(2)]
    c_noise = rng.normal(size=batch_size).astype(np.float32)
    apply, params = models.functional(models.UNet((28, 28, 1), channels=channels, rngs=nnx.Rngs(0)))
    optimizer = optax.adamw(1e-4)

    def loss(params, x, target, c_noise):
        return jnp.mean((apply(params, x, c_noise) - target) ** 2)

    def update(params, state, *batch):
        grads = jax.grad(loss)(params, *batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    carry = params, optimizer.init(params)
    batch = jax.tree.map(jnp.asarray, (*images, c_noise))
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*carry, *batch).compile()

    def step():
        nonlocal carry
        carry = compiled(*carry, *batch)
        return carry

    num_params = sum(p.size for p in jax.tree.leaves(params))
    twin = torch_step(
        *images, c_noise, channels=channels, num_params=num_params, num_threads=len(cores())
    )
    times = np.array([[seconds(f) for f in (twin, step)] for _ in range(rounds + 2)])[2:]
    ratio = float(np.median(times[:, 1] / times[:, 0]))
    memory = compiled.memory_analysis().temp_size_in_bytes
    row = Row(name, step, twin, 1.0, 1.3)
    return row, float(np.median(times[:, 1])), ratio, memory, None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Training step of the U-Net against the same network in PyTorch, on as many threads."""

    rounds: int = 40
    """Rounds of timing of each pair of programs."""


def main(config: Benchmark) -> None:
    """Time both sizes of the network and print the table."""
    results = []
    with Console().status("compiling and timing") as status:
        for channels, batch_size in ((16, 64), (64, 16)):
            name = f"U-Net, {channels} channels, batch {batch_size}: training step / torch"
            status.update(name)
            results.append(measure(name, channels, batch_size, config.rounds))
    show(results)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
