"""Samples that depend on their keys alone: any batch, any devices, any number.

Run as a script, this file draws the same samples in several ways on the devices that it finds, and
prints them as JSON; a test runs it in a subprocess that sees 8 devices.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import processes, samplers
from sm_jax.processes import prior_sample
from sm_jax.samplers import generate, one_sample

PROCESS = processes.VE(sigma_min=0.05, sigma_max=5.0)
NUM = 20


def network(x, t):
    """A score with a hidden layer and a condition in its closure."""
    weights = jnp.linspace(-1.0, 1.0, 24).reshape(3, 8)
    condition = jnp.array([0.3, -0.2, 0.1])
    hidden = jnp.tanh((x + condition[None]) @ weights)
    return 0.2 * hidden @ weights.T - x / (1.0 + t[:, None] ** 2)


def draws():
    options = {"process": PROCESS, "event_shape": (3,)}
    return {
        "ancestral": one_sample(samplers.ancestral, network, num_steps=6, **options),
        "adaptive_sde": one_sample(samplers.adaptive_sde, network, **options),
    }


def main():
    key, out = jax.random.key(0), {"devices": jax.device_count()}
    for name, draw in draws().items():
        for batch_size, count in ((7, 1), (64, 8)) if name == "ancestral" else ((7, 8),):
            drawn = generate(
                draw, key, NUM, batch_size=batch_size, devices=jax.devices()[:count], progress=False
            )
            samples = drawn.x if name == "adaptive_sde" else drawn
            out[f"{name} {batch_size} {count}"] = samples.tolist()
    print(json.dumps(out))


def test_samples_do_not_depend_on_batch_or_devices():
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__],
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
    results = json.loads(done.stdout)
    assert results.pop("devices") == 8
    assert len(results) == 3
    for name, draw in draws().items():
        here = generate(draw, jax.random.key(0), NUM, batch_size=64, progress=False)
        here = here.x if name == "adaptive_sde" else here
        for case, samples in results.items():
            if case.startswith(name):
                np.testing.assert_allclose(samples, here, rtol=1e-4, atol=1e-5, err_msg=case)


def test_sample_i_has_the_key_i(getkey):
    """It is what `draw` gives for the folded key, in batches and on its own, and no other's."""
    key, traces = getkey(), []

    def draw(key):
        traces.append(key)
        return {"x": jax.random.normal(key, (2,)), "n": jax.random.randint(key, (), 0, 1000)}

    drawn = generate(draw, key, 10, batch_size=4, progress=False)
    assert len(traces) == 1
    for i in range(10):
        alone = draw(jax.random.fold_in(key, i))
        np.testing.assert_array_equal(drawn["x"][i], alone["x"])
        assert drawn["n"][i] == alone["n"]
    assert drawn["x"].shape == (10, 2)
    assert isinstance(drawn["x"], np.ndarray)
    assert len(np.unique(drawn["x"])) == 20
    for num, batch_size in ((1, 4), (8, 4), (3, 100)):
        fewer = generate(draw, key, num, batch_size=batch_size, progress=False)
        np.testing.assert_array_equal(fewer["x"], drawn["x"][:num])
    assert np.all(generate(draw, getkey(), 10, progress=False)["x"] != drawn["x"])


def test_one_sample_is_the_sampler_on_noise_of_the_prior(getkey):
    key = getkey()
    key_prior, key_sampler = jax.random.split(key)
    x = prior_sample(PROCESS, key_prior, (1, 3))
    out, path = samplers.ancestral(
        network, x, key_sampler, process=PROCESS, num_steps=4, trajectory=True
    )
    options = {"process": PROCESS, "event_shape": (3,), "num_steps": 4}
    drawn, drawn_path = one_sample(samplers.ancestral, network, trajectory=True, **options)(key)
    np.testing.assert_allclose(drawn, out[0], rtol=1e-5)
    np.testing.assert_allclose(drawn_path, path[:, 0], rtol=1e-5)
    # scalar events, and the fields of an adaptive sampler
    draw = one_sample(
        samplers.adaptive_sde, lambda x, t: -x, process=PROCESS, event_shape=(), dtype=jnp.bfloat16
    )
    shapes = jax.eval_shape(draw, key)
    assert shapes.x.shape == shapes.num_evaluations.shape == shapes.finished.shape == ()
    assert shapes.x.dtype == jnp.bfloat16


def test_progress(getkey, capfd, monkeypatch):
    """A bar on request, none into a file, and none without tqdm."""

    def draw(key):
        return jax.random.normal(key, (2,))

    generate(draw, getkey(), 5, batch_size=2, progress=True)
    assert "5/5" in capfd.readouterr().err
    for progress in (None, False):
        generate(draw, getkey(), 5, batch_size=2, progress=progress)
        assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    generate(draw, getkey(), 5, batch_size=2)
    assert "5/5" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert generate(draw, getkey(), 5).shape == (5, 2)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ImportError, match=r"pip install tqdm, or progress=False"):
        generate(draw, getkey(), 5, progress=True)


@pytest.mark.parametrize(
    ("num", "options", "error", "message"),
    [
        (0, {}, ValueError, "num must be at least 1, got 0"),
        (2.5, {}, TypeError, "num must be a Python int"),
        (2, {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_input(num, options, error, message, getkey):
    with pytest.raises(error, match=message):
        generate(lambda key: jax.random.normal(key), getkey(), num, **options)


if __name__ == "__main__":
    main()
