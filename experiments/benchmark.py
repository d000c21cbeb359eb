"""Speed and memory of the losses, the sampler and the training loop, as ratios within one run.

    python -m experiments.benchmark            prints the table
    python -m experiments.benchmark --write    and puts it into BENCHMARKS.md

Every row compares two compiled programs that are timed in turn, round after round, and reports the
median of the ratios of the rounds: what else the machine does then touches both alike. The floor is
the ratio of the operations that must be done; memory is the peak of temporary buffers that XLA
plans for the compiled program. The rows of the U-Net compare with PyTorch, on as many threads, and
need `pip install torch`, the extra `benchmark`; for one thread, `taskset -c 0 python -m ...`.
"""

import dataclasses
import importlib.util
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from experiments import _tables
from sm_jax import losses, models, processes, samplers, training
from sm_jax.parameterization import EnergyScore

_SCRIPT = "experiments.benchmark"
_FIT = "fit, per step / bare jitted step"
_UNET = "U-Net, {} channels, batch {}: training step / torch"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Speed and memory of the losses, the sampler and the training loop, as ratios in one run."""

    rounds: int = 40
    """Rounds of timing of each pair of programs."""
    write: bool = False
    """Put the table, which must be of all rows, into BENCHMARKS.md."""
    only: str = ""
    """Run the rows whose name contains this text."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: a program, the one it is measured against, and what is to be reached."""

    name: str
    program: Callable
    baseline: Callable
    floor: float
    reach: float
    calls: int = 1  # evaluations in one call of the program, where each counts


def main(config: Benchmark) -> None:
    """Run every comparison and print, or write, the table."""
    if config.write:
        _tables.check(_SCRIPT, _tables.BENCHMARKS, only=config.only)
    every = [*gradient_rows(), *laplacian_rows(), heun_row()]
    rows = [row for row in every if config.only in row.name]
    unets = {_UNET.format(*sizes): sizes for sizes in ((16, 64), (64, 16))}
    unets = {name: sizes for name, sizes in unets.items() if config.only in name}
    if not rows and not unets and config.only not in _FIT:
        names = "; ".join([*(row.name for row in every), _FIT, _UNET.format(16, 64)])
        raise ValueError(f"no row has {config.only!r} in its name: {names}.")
    results = []
    with Console().status("compiling and timing") as status:
        for row in rows:
            status.update(row.name)
            results.append((row, *measure(row, config.rounds)))
        if config.only in _FIT:
            status.update("fit")
            results.append(fit_result(config.rounds))
        if unets and importlib.util.find_spec("torch") is None:
            print("torch is not installed: the rows of the U-Net are left out.")
            unets = {}
        for name, sizes in unets.items():
            status.update(name)
            results.append(unet_result(name, *sizes, config.rounds))
    show(results)
    if config.write:
        write(results, _tables.BENCHMARKS)


def measure(row: Row, rounds: int) -> tuple[float, float, float, float]:
    """Return the median time (s), the ratio to the baseline, and both peaks of memory (bytes)."""
    compiled = [jax.jit(f).lower().compile() for f in (row.baseline, row.program)]
    times = np.array([[_seconds(f) for f in compiled] for _ in range(rounds + 2)])[2:]
    times[:, 1] /= row.calls
    ratio = float(np.median(times[:, 1] / times[:, 0]))
    memory = [f.memory_analysis().temp_size_in_bytes for f in compiled]
    return float(np.median(times[:, 1])), ratio, memory[1], memory[0]


def _seconds(function: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


# Networks in plain JAX, so that nothing but the losses is measured.


def mlp(sizes: list[int], key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Return the parameters of a multi-layer perceptron."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (a, b)) / a**0.5, jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def apply_mlp(params, x: jax.Array) -> jax.Array:
    """Return the output of the perceptron, softplus between its layers."""
    for weights, shift in params[:-1]:
        x = jax.nn.softplus(x @ weights + shift)
    weights, shift = params[-1]
    return x @ weights + shift


def conv_net(channels: list[int], key: jax.Array) -> list[jax.Array]:
    """Return the 3 x 3 kernels of a convolutional network."""
    keys = jax.random.split(key, len(channels) - 1)
    return [
        jax.random.normal(k, (3, 3, a, b)) / (3 * a**0.5)
        for k, a, b in zip(keys, channels[:-1], channels[1:], strict=True)
    ]


def apply_conv_net(params, x: jax.Array) -> jax.Array:
    """Return the output of the convolutional network, softplus between its layers."""
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    for kernel in params[:-1]:
        x = jax.nn.softplus(convolve(x, kernel))
    return convolve(x, params[-1])


def problems():
    """Yield name, ``parameters -> score_fn``, parameters and data of each network measured."""
    key = jax.random.key(0)
    for dims in (2, 10):
        x = jax.random.normal(key, (1024, dims))
        hidden = [dims, 128, 128, 128]
        yield f"score net, d={dims}", partial(partial, apply_mlp), mlp([*hidden, dims], key), x

        def energy_score(params):
            return EnergyScore(lambda y: apply_mlp(params, y)[:, 0])

        yield f"energy net, d={dims}", energy_score, mlp([*hidden, 1], key), x
    x = jax.random.normal(key, (64, 28, 28, 1))
    params = conv_net([1, 32, 32, 32, 32, 1], key)
    yield "conv net, 28x28x1", partial(partial, apply_conv_net), params, x


def gradient_rows():
    """Yield the comparisons of one gradient of each loss with one of denoising."""
    for name, network, params, x in problems():

        def gradient(loss_fn, network=network, params=params, x=x):
            def value(params):
                return loss_fn(network(params), x, jax.random.key(1)).mean()

            # the network and the data are arguments, or XLA would fold them into the program
            return partial(_call, jax.grad(value), params)

        baseline = gradient(partial(losses.denoising, sigma=0.1))
        compared = [
            ("sliced, 1 probe", losses.sliced, 2.0, 2.1),
            ("sliced, 8 probes", partial(losses.sliced, num_probes=8), 9.0, 1.15 * 9),
            (
                "finite-difference sliced",
                partial(losses.finite_difference_sliced, epsilon=0.1),
                2.0,
                3.1,
            ),
        ]
        if x.ndim == 2:
            floor = 1.0 + x.shape[1]
            reach = floor if x.shape[1] == 2 else 1.25 * floor
            compared.append(("implicit, exact", losses.implicit, floor, reach))
        for loss_name, loss_fn, floor, reach in compared:
            yield Row(f"{name}: {loss_name}", gradient(loss_fn), baseline, floor, reach)


def laplacian_rows():
    """Yield the comparisons of the forward-mode Laplacian of an energy with the generic trace."""
    for name, network, params, x in problems():
        if not name.startswith("energy net"):
            continue

        def value(params, bare, network=network, x=x):
            score_fn = network(params)
            return losses.implicit((lambda x: score_fn(x)) if bare else score_fn, x).mean()

        floor = (x.shape[1] + 2) / (2 * x.shape[1] + 2)
        for kind, transform in (("implicit", lambda f: f), ("its gradient", jax.grad)):
            program, baseline = (
                partial(_call, transform(partial(value, bare=bare)), params)
                for bare in (False, True)
            )
            yield Row(f"{name}: {kind}, forward / generic", program, baseline, floor, 1.0)


def _call(function, params):
    return function(jax.lax.optimization_barrier(params))


def heun_row() -> Row:
    """Return the comparison of one evaluation within Heun's sampler with one forward pass."""
    params = mlp([11, 128, 128, 128, 10], jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1024, 10))

    def score_fn(x, t):
        return apply_mlp(params, jnp.concatenate([x, jnp.log(t)[:, None]], axis=1))

    def sample():
        return samplers.heun(score_fn, x, process=processes.EDM(), num_steps=16)

    def forward():
        t = jnp.full(x.shape[:1], 1.0)
        return score_fn(*jax.lax.optimization_barrier((x, t)))

    return Row("Heun sampling, per evaluation", sample, forward, 1.0, 1.08, calls=33)


def fit_result(rounds: int):
    """Return the row that compares a step of `training.fit` with the bare jitted step."""
    dims, batch_size, chunk = 10, 1024, 200
    params = mlp([dims, 128, 128, 128, dims], jax.random.key(0))
    data = jax.random.normal(jax.random.key(1), (20_000, dims))
    optimizer = optax.adam(1e-3)

    def loss_fn(params, batch, key):
        return losses.denoising(partial(apply_mlp, params), batch, key, sigma=0.1)

    step = jax.jit(training.make_step(loss_fn, optimizer))
    bare, looped = [], []

    def bare_chunk():
        state = training.init(params, optimizer, jax.random.key(2))
        for _ in range(chunk):
            state, _ = step(state, data[:batch_size])
        return state

    def evaluate(_, done):
        # between two evaluations lies a chunk of the loop; the bare steps are timed in turn with it
        now = time.perf_counter()
        if done > chunk:
            looped.append((now - evaluate.last) / chunk)
        bare.append(_seconds(bare_chunk) / chunk)
        evaluate.last = time.perf_counter()
        return {"loss": 0.0}

    bare_chunk()
    training.fit(
        loss_fn,
        params,
        data,
        optimizer=optimizer,
        num_steps=chunk * max(4, rounds // 4),
        batch_size=batch_size,
        seed=0,
        evaluation=training.Evaluation(evaluate, every=chunk),
        progress=False,
    )
    ratio = statistics.median(a / b for a, b in zip(looped, bare, strict=False))
    row = Row(_FIT, fit_result, fit_result, 1.0, 1.04)
    return row, statistics.median(looped), ratio, None, None


def unet_result(name: str, channels: int, batch_size: int, rounds: int):
    """Return the row that compares a training step of the U-Net with one of its twin in torch."""
    from experiments import _torch_unet

    rng = np.random.default_rng(0)
    images = [rng.normal(size=(batch_size, 28, 28, 1)).astype(np.float32) for _ in range(2)]
    levels = rng.normal(size=batch_size).astype(np.float32)
    apply, params = models.functional(models.UNet((28, 28, 1), channels=channels, rngs=nnx.Rngs(0)))
    optimizer = optax.adamw(1e-4)

    def loss(params, x, target, c_noise):
        return jnp.mean((apply(params, x, c_noise) - target) ** 2)

    def update(params, state, *batch):
        grads = jax.grad(loss)(params, *batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    carry = params, optimizer.init(params)
    batch = jax.tree.map(jnp.asarray, (*images, levels))
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*carry, *batch).compile()

    def step():
        nonlocal carry
        carry = compiled(*carry, *batch)
        return carry

    num_params = sum(p.size for p in jax.tree.leaves(params))
    torch_step = _torch_unet.training_step(
        *images, levels, channels=channels, num_params=num_params, num_threads=len(_cores())
    )
    times = np.array([[_seconds(f) for f in (torch_step, step)] for _ in range(rounds + 2)])[2:]
    ratio = float(np.median(times[:, 1] / times[:, 0]))
    memory = compiled.memory_analysis().temp_size_in_bytes
    row = Row(name, step, torch_step, 1.0, 1.3)
    return row, float(np.median(times[:, 1])), ratio, memory, None


def _cells(row: Row, seconds, ratio, memory, base_memory) -> list[str]:
    share = "" if not memory else f"{memory / 1e6:.1f}"
    share += "" if not base_memory else f" ({memory / base_memory:.1f}x)"
    met = "yes" if ratio <= row.reach else "no"
    return [
        row.name,
        f"{seconds * 1e3:.2f}",
        f"{row.floor:.3g}",
        f"{row.reach:.4g}",
        f"{ratio:.2f}",
        met,
        share,
    ]


_HEADER = ["program", "ms", "floor", "reach", "ratio", "met", "temporary MB"]


def show(results) -> None:
    """Print the table."""
    table = Table(title="ratios to denoising (or as named), medians of one run")
    for column in _HEADER:
        table.add_column(column, justify="left" if column == "program" else "right")
    for result in results:
        table.add_row(*_cells(*result))
    Console().print(table)


def write(results, path: pathlib.Path) -> None:
    """Replace the table in BENCHMARKS.md, between its two markers."""
    device = jax.devices()[0]
    lines = [
        f"`python -m experiments.benchmark --write`, jax {jax.__version__}, Python "
        f"{platform.python_version()}, {device.device_kind} ({jax.device_count()} device, "
        f"{len(_cores())} cores).",
        "",
        "| " + " | ".join(_HEADER) + " |",
        "|" + "---|" * len(_HEADER),
        *("| " + " | ".join(_cells(*result)) + " |" for result in results),
    ]
    _tables.write(_SCRIPT, lines, path)


def _cores():
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
