"""One step, run three ways on 8 simulated devices with the same result.

Run as a script, this file does the work of all the tests once, on the devices it finds, and prints
one JSON object; the tests run it in a subprocess that sees 8 devices.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from sm_jax import training
from sm_jax.training import Checkpoints, _batches

B, D = 16, 3
OPTIMIZER = training.adamw(0.1, 20, warmup=0.0, clip_norm=0.5)
PARAMS = {"w": jnp.array([[0.5, -0.25, 0.1], [1.5, 2.0, -1.0], [0.3, 0.2, 0.1]]), "b": jnp.zeros(D)}
X = np.linspace(-1.0, 2.0, 48 * D, dtype=np.float32).reshape(48, D)


def residual(params, x, noise):
    h = jnp.tanh(x @ params["w"] + params["b"][None])
    return 0.5 * jnp.sum((h - noise) ** 2, axis=-1)


def random_loss(params, x, key):
    """Draws the noise of the whole batch from the key of the step."""
    return residual(params, x, jax.random.normal(key, x.shape))


def row_loss(params, batch, key):
    """Draws the noise of each row from a key that the row carries."""
    x, keys = batch
    return residual(params, x, jax.vmap(lambda k: jax.random.normal(k, (D,)))(keys))


def reveal_noise(params, rows, key):
    """The gradient at params[row] is the noise drawn for that row, over B."""
    return params[rows] * jax.random.normal(key, rows.shape)


def cheap_indices(key, step, num_examples, batch_size):
    return (7 * (step * batch_size + jnp.arange(batch_size))) % num_examples


def numbers(state, metrics=None):
    """All that must agree, on the host."""
    tree = {"params": state.params, "ema": state.ema, "opt_state": jax.tree.leaves(state.opt_state)}
    tree["metrics"] = metrics
    return jax.tree.map(lambda x: np.asarray(x).tolist(), tree)


def run(step, state, batches):
    for batch in batches:
        state, metrics = step(state, batch)
    return numbers(state, metrics)


class Rows:
    """The batches that `fit` takes of X, as a stream."""

    def at(self, step):
        return X[np.asarray(cheap_indices(None, step, len(X), B))]


def fit(
    directory=None, num_steps=6, loss_fn=random_loss, resume=False, data=X, batch_size=B, **kwargs
):
    checkpoints = None if directory is None else Checkpoints(directory, every=3, resume=resume)
    state = training.fit(
        loss_fn,
        PARAMS,
        data,
        optimizer=OPTIMIZER,
        num_steps=num_steps,
        batch_size=batch_size,
        seed=1,
        steps_per_dispatch=3,
        checkpoints=checkpoints,
        progress=False,
        **kwargs,
    )
    return numbers(state)


def main(directory):
    out = {"devices": jax.device_count()}
    n = jax.device_count()
    mesh = training.data_mesh()
    key = jax.random.key(0)

    def init(params=PARAMS, optimizer=OPTIMIZER):
        return training.init(params, optimizer, key)

    # Three ways: one device, a mesh, and pmap; three steps each.
    batches = [
        (jnp.asarray(X[B * i : B * (i + 1)]), jax.random.split(jax.random.key(i), B))
        for i in range(3)
    ]
    one = jax.jit(training.make_step(row_loss, OPTIMIZER))
    out["one"] = run(one, init(), batches)

    mapped_step = training.make_step(row_loss, OPTIMIZER, axis_name="batch")
    mapped = jax.pmap(mapped_step, axis_name="batch", in_axes=(None, 0), out_axes=None)
    split = [jax.tree.map(lambda x: x.reshape(n, B // n, *x.shape[1:]), b) for b in batches]
    out["pmap"] = run(mapped, init(), split)

    specs = {"in_specs": (PartitionSpec(), PartitionSpec("batch")), "out_specs": PartitionSpec()}
    shard_map = jax.jit(jax.shard_map(mapped_step, mesh=mesh, **specs))
    out["shard_map"] = run(shard_map, training.replicate(init(), mesh), batches)

    one = jax.jit(training.make_step(random_loss, OPTIMIZER))
    whole = [x for x, _ in batches]
    sharded = [training.shard_batch(x, mesh) for x in whole]
    out["random one"] = run(one, init(), whole)
    out["random mesh"] = run(one, training.replicate(init(), mesh), sharded)
    out["rows per device"] = sorted({s.data.shape[0] for s in sharded[0].addressable_shards})
    state, _ = one(training.replicate(init(), mesh), sharded[0])
    out["replicated"] = all(p.is_fully_replicated for p in jax.tree.leaves(state))

    # Noise under pmap: each of the B rows has its own, in each of two steps.
    sgd = optax.sgd(B)
    step = training.make_step(reveal_noise, sgd, axis_name="batch")
    step = jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None)
    first, _ = step(init(jnp.zeros(B), sgd), jnp.arange(B).reshape(n, B // n))
    second, _ = step(first, jnp.arange(B).reshape(n, B // n))
    out["noise"] = np.concatenate([first.params, second.params - first.params]).tolist()

    # The loop: over 8 devices by default, over one, and with the data on the host.
    _batches.batch_indices = cheap_indices
    shards = []

    def inspected_loss(params, x, key):
        jax.debug.inspect_array_sharding(
            x, callback=lambda sharding: shards.append(sharding.shard_shape(x.shape))
        )
        return random_loss(params, x, key)

    out["fit mesh"] = fit(directory / "eight", loss_fn=inspected_loss)
    out["shards in fit"] = shards
    out["fit one"] = fit(directory / "one", 3, devices=jax.devices()[:1])
    out["fit host"] = fit(device_data_bytes=0)
    out["fit stream"] = fit(data=Rows(), batch_size=None)
    # Saved on one device, continued on eight.
    out["fit one then mesh"] = fit(directory / "one", resume=True)
    try:
        training.fit(
            random_loss, PARAMS, X, optimizer=OPTIMIZER, num_steps=1, batch_size=12, seed=0
        )
    except ValueError as error:
        out["indivisible"] = str(error)
    print(json.dumps(out))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def results(directory):
    """What py printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, str(directory)],
        env={
            **os.environ,
            "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_close(a, b):
    """Equal up to the rounding of sums in another order."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["pmap", "shard_map"])
def test_mapped_step_equals_one_device(way, results):
    assert results["devices"] == 8
    assert_close(results[way], results["one"])


def test_mesh_equals_one_device_with_random_losses(results):
    assert_close(results["random mesh"], results["random one"])
    assert results["rows per device"] == [2]
    assert results["replicated"]


def test_each_device_and_step_draws_its_own_noise_under_pmap(results):
    noise = np.array(results["noise"])
    assert len(set(noise.round(5))) == 32
    assert abs(noise.mean()) < 4 / np.sqrt(32)
    assert 0.5 < noise.std() < 1.5


def test_fit_on_a_mesh_equals_fit_on_one_device(results, monkeypatch):
    monkeypatch.setattr(_batches, "batch_indices", cheap_indices)
    assert_close(results["fit mesh"], fit())
    assert_close(results["fit host"], results["fit mesh"])
    assert results["fit stream"] == results["fit host"]
    assert results["shards in fit"] == [[2, D]]  # of 16 rows: no device does all the work


def test_checkpoints_cross_between_one_device_and_eight(results, directory, monkeypatch):
    assert_close(results["fit one then mesh"], results["fit mesh"])
    monkeypatch.setattr(_batches, "batch_indices", cheap_indices)
    # Eight devices wrote it: finished there, it restores here unchanged.
    assert jax.device_count() == 1
    assert fit(directory / "eight", resume=True) == results["fit mesh"]
    ema = training.restore_params(directory / "eight", PARAMS)
    assert (
        jax.tree.map(np.ndarray.tolist, jax.tree.map(np.asarray, ema)) == results["fit mesh"]["ema"]
    )


@pytest.mark.parametrize("x", [np.array([2**33 + 1]), np.array([1e300])])
def test_shards_do_not_wrap_numbers_around(x):
    with pytest.raises(ValueError, match=f"data of {x.dtype} go from .* and JAX holds them as"):
        training.shard_batch(x, training.data_mesh(jax.devices()[:1]))


def test_indivisible_batch_is_refused(results):
    assert results["indivisible"] == (
        "batch_size 12 does not divide among 8 devices: take 8 or 16, or fewer devices"
    )


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main(pathlib.Path(sys.argv[1]))
