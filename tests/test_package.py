"""The package as a whole: what importing it does, what is documented, what it requires."""

import configparser
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sm_jax

ROOT = pathlib.Path(__file__).parents[1]
PUBLIC = [
    "sm_jax",
    "sm_jax.composition",
    "sm_jax.data",
    "sm_jax.densities",
    "sm_jax.divergence",
    "sm_jax.exponential_family",
    "sm_jax.guidance",
    "sm_jax.likelihood",
    "sm_jax.losses",
    "sm_jax.metrics",
    "sm_jax.models",
    "sm_jax.noise_levels",
    "sm_jax.parameterization",
    "sm_jax.processes",
    "sm_jax.quantized",
    "sm_jax.samplers",
    "sm_jax.samplers.steps",
    "sm_jax.training",
    "sm_jax.training.checkpoints",
    "sm_jax.typing",
]


def test_import_is_light_and_changes_nothing():
    """No Flax, TensorFlow or matplotlib, no JAX configuration, and no device is taken.

    The number of devices can only be set as long as JAX has not been started.
    """
    script = """
import sys, jax
names = ["enable_x64", "numpy_rank_promotion", "numpy_dtype_promotion", "debug_nans", "platforms",
         "default_matmul_precision", "default_prng_impl", "disable_jit", "threefry_partitionable",
         "log_compiles", "compilation_cache_dir"]
def settings():
    return {name: getattr(jax.config, "jax_" + name) for name in names}
before = settings()
import sm_jax, sm_jax.typing
heavy = {"flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "matplotlib", "sklearn",
         "rich", "tqdm", "tyro", "PIL", "pandas", "diffrax", "blackjax", "equinox"}
print(sorted(heavy & set(sys.modules)), settings() == before)
jax.config.update("jax_num_cpu_devices", 3)
print(jax.device_count("cpu"))
"""
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.split("\n")[:2] == ["[] True", "3"]


def test_the_list_of_public_modules_is_complete():
    found = {"sm_jax"} | {
        module.name
        for module in pkgutil.walk_packages(sm_jax.__path__, "sm_jax.")
        if not any(part.startswith("_") for part in module.name.split("."))
    }
    assert found == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    """A docstring for each name in __all__, an example for functions, Args for parameters."""
    module = importlib.import_module(name)
    assert module.__doc__
    assert list(module.__all__) == sorted(module.__all__, key=_isort_key)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.ismodule(value) or not (inspect.isclass(value) or callable(value)):
            continue
        if typing.get_args(value):  # an alias of types has no docstring of its own
            assert f"``{public}``" in module.__doc__
            continue
        assert inspect.getdoc(value), f"{name}.{public} has no docstring"
        if inspect.isfunction(value):
            doc = inspect.getdoc(value)
            parameters = [p for p in inspect.signature(value).parameters if not p.startswith("_")]
            for parameter in parameters:
                assert f"{parameter}:" in doc, f"{name}.{public} leaves out {parameter}"
        for member, method in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(method) and not member.startswith("_"):
                assert inspect.getdoc(method), f"{name}.{public}.{member} has no docstring"


def _isort_key(name):
    """The order that ruff gives __all__: constants, classes, the rest."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize(
    "name", ["losses", "divergence", "processes", "samplers", "likelihood", "parameterization"]
)
def test_every_public_function_of_the_core_has_an_example(name):
    module = importlib.import_module(f"sm_jax.{name}")
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isfunction(value):
            assert ">>> " in inspect.getdoc(value), f"sm_jax.{name}.{public} has no example"


def _lines(text):
    return {line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"}


def test_requirements_and_extras_agree():
    """requirements.txt is the union of what the package and its extras require, bounds included.

    Not of the extra that compares with PyTorch, which is large and needed by nothing else.
    """
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = _lines(config["options"]["install_requires"])
    extras = {"train", "experiments", "ode", "mcmc", "tfds", "test", "dev"}
    assert set(config["options.extras_require"]) == extras | {"benchmark"}
    for extra in extras:
        declared |= _lines(config["options.extras_require"][extra])
    assert _lines((ROOT / "requirements.txt").read_text()) == declared
    assert all(">=" in line for line in declared)


def test_versions_agree():
    assert sm_jax.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_no_compilation_for_new_values():
    """Processes, levels and keys are traced: one compilation serves all their values."""
    from sm_jax import losses, processes

    traces = []

    @jax.jit
    def loss(process, x, key):
        traces.append(process)
        return losses.diffusion(lambda x, t: -x, x, key, process=process).mean()

    x = jax.numpy.ones((4, 2))
    values = {
        float(loss(processes.VE(low, high), x * low, jax.random.key(seed)))
        for seed, (low, high) in enumerate([(0.1, 3.0), (0.2, 5.0)])
    }
    assert len(traces) == 1
    assert len(values) == 2


def test_the_installed_jax_sums_products_under_vmap_and_jit():
    """JAX 0.10.2 does not on CPU (jax#39103): its likelihoods of many rows are wrong by nats."""
    x = jnp.arange(3 * 32_769, dtype=jnp.float32).reshape(-1, 3) / 1e4

    def norms(x):
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)

    np.testing.assert_allclose(jax.jit(norms)(x), (np.asarray(x) ** 2).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(("version", "warns"), [("0.10.2", True), ("0.10.1", False)])
def test_a_jax_that_computes_wrong_numbers_is_warned_of(version, warns):
    script = f"import jaxlib; jaxlib.__version__ = {version!r}; import sm_jax"
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ("jaxlib 0.10.2 computes wrong numbers" in out.stderr) == warns
