"""What every test runs under: strict rank promotion, warnings as errors (setup.cfg), fresh keys."""

import itertools
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile much and compute little: a third less time. `.ci/run` also runs them optimized.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest


@pytest.fixture(autouse=True)
def _no_silent_broadcasting():
    """Arrays of different rank must not meet by accident."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Compiled programs of one file are of no use to the next, and are gigabytes in all."""
    yield
    jax.clear_caches()


@pytest.fixture
def getkey():
    """A function that returns a new key at each call, the same sequence in every run."""
    counter = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(20050), next(counter))


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real data sets; the tests that need it skip where it is absent."""
    default = pathlib.Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = pathlib.Path(os.environ.get("SM_JAX_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder} (set SM_JAX_DATA)")
    return folder
