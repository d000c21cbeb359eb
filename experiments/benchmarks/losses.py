"""Speed and memory of the losses, the sampler and the training loop, as ratios within one run.

    python -m experiments.benchmarks.losses            prints the table
    python -m experiments.benchmarks.losses --write    and puts it into BENCHMARKS.md

``experiments.benchmarks.networks`` compares the U-Net with PyTorch.
"""

import dataclasses
import pathlib
import platform
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console

from experiments.benchmarks import tables
from experiments.benchmarks.timing import HEADER, Row, cells, cores, measure, seconds, show
from sm_jax import losses, processes, samplers, training
from sm_jax.parameterization import EnergyScore

_SCRIPT = "experiments.benchmarks.losses"
_FIT = "fit, per step / bare jitted step"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Speed and memory of the losses, the sampler and the training loop, as ratios in one run."""

    rounds: int = 40
    """Rounds of timing of each pair of programs."""
    write: bool = False
    """Put the table, which must be of all rows, into BENCHMARKS.md."""
    only: str = ""
    """Run the rows whose name contains this text."""


def main(config: Benchmark) -> None:
    """Run every comparison and print, or write, the table."""
    if config.write:
        tables.check(_SCRIPT, tables.BENCHMARKS, only=config.only)
    every = [*gradient_rows(), *laplacian_rows(), heun_row()]
    rows = [row for row in every if config.only in row.name]
    if not rows and config.only not in _FIT:
        names = "; ".join([*(row.name for row in every), _FIT])
        raise ValueError(f"no row has {config.only!r} in its name: {names}.")
    results = []
    with Console().status("compiling and timing") as status:
        for row in rows:
            status.update(row.name)
            results.append((row, *measure(row, config.rounds)))
        if config.only in _FIT:
            status.update("fit")
            results.append(fit_result(config.rounds))
    show(results)
    if config.write:
        write(results, tables.BENCHMARKS)


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
    """Return the row that compares a step of ``training.fit`` with the bare jitted step."""
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
        bare.append(seconds(bare_chunk) / chunk)
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


def write(results, path: pathlib.Path) -> None:
    """Replace the table in BENCHMARKS.md, between its two markers."""
    device = jax.devices()[0]
    lines = [
        f"`python -m experiments.benchmarks.losses --write`, jax {jax.__version__}, Python "
        f"{platform.python_version()}, {device.device_kind} ({jax.device_count()} device, "
        f"{len(cores())} cores).",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
        *("| " + " | ".join(cells(*result)) + " |" for result in results),
    ]
    tables.write(_SCRIPT, lines, path)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
