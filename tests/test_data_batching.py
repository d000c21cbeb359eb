"""Batches: exact permutations, exact arithmetic beyond 32 bits, statistics of the shuffling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.data import batch_indices
from sm_jax.data._batching import _epoch_and_offset

indices = jax.jit(batch_indices, static_argnums=(2, 3))
SIZES = [1, 2, 7, 1500, 60000]


def epochs(key, num_examples, num_epochs):
    """Every example in order of its visits, [epochs, N]."""
    stream = np.asarray(indices(key, 0, num_examples, num_epochs * num_examples))
    return stream.reshape(num_epochs, num_examples)


def assert_chi_square(statistic, freedom):
    """Mean `freedom`, variance `2 freedom`: five standard deviations, plus the skewness."""
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 25


@pytest.mark.parametrize("num_examples", SIZES)
def test_each_epoch_is_a_permutation(num_examples, getkey):
    found = epochs(getkey(), num_examples, 3)
    np.testing.assert_array_equal(np.sort(found), np.tile(np.arange(num_examples), (3, 1)))


@pytest.mark.parametrize("batch_size", [3, 25])
def test_batches_concatenate_to_the_stream(batch_size, getkey):
    key = getkey()
    steps = jnp.arange(-(-60 // batch_size))
    batches = jax.jit(jax.vmap(lambda step: batch_indices(key, step, 10, batch_size)))(steps)
    np.testing.assert_array_equal(batches.ravel()[:60], epochs(key, 10, 6).ravel())


@pytest.mark.parametrize(("num_examples", "batch_size"), [(7, 64), (1500, 256)])
def test_large_steps_are_exact(num_examples, batch_size, getkey):
    """Whole epochs, whose offset is zero without arithmetic, are the reference."""
    key = getkey()
    for step in (0, 1, 5, 10**9, 2**31 + 5, 2**32 - 1):
        epoch, offset = divmod(step * batch_size, num_examples)
        needed = range(epoch, epoch + (offset + batch_size - 1) // num_examples + 1)
        whole = [indices(key, np.uint32(e % 2**32), num_examples, num_examples) for e in needed]
        expected = np.concatenate(whole)[offset : offset + batch_size]
        found = indices(key, np.uint32(step), num_examples, batch_size)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_examples", [1, 2, 60000, 2**20 + 1, 2**30 - 1, 2**30])
@pytest.mark.parametrize("batch_size", [1, 256, 2**30])
def test_epoch_and_offset_are_those_of_unbounded_integers(num_examples, batch_size):
    for step in (1, 10**9, 2**32 - 1):
        epoch, offset = _epoch_and_offset(jnp.uint32(step), num_examples, batch_size)
        expected_epoch, expected_offset = divmod(step * batch_size, num_examples)
        assert (int(epoch), int(offset)) == (expected_epoch % 2**32, expected_offset)


def test_the_largest_data_set(getkey):
    found = np.asarray(indices(getkey(), 10**9, 2**30, 4096))
    assert found.min() >= 0
    assert len(set(found.tolist())) == 4096
    assert found.max() > 2**29  # spread over all examples, so no bits are lost


def test_epochs_and_keys_differ(getkey):
    """Two independent permutations agree in a number of places that is Poisson(1)."""
    key = getkey()
    first, second, third = epochs(key, 60000, 3)
    other = epochs(getkey(), 60000, 1)[0]
    for a, b in [(first, second), (second, third), (first, third), (first, other)]:
        assert np.sum(a == b) <= 10  # exceeded with probability 1e-8
    assert np.sum(first == np.arange(60000)) <= 10


@pytest.mark.parametrize("num_examples", [2, 5, 7])
def test_positions_and_values_are_independent(num_examples, getkey):
    """Counts of (position, value) per epoch: covariance P x P / (N - 1), P centring."""
    num_epochs = 20000
    found = epochs(getkey(), num_examples, num_epochs)
    counts = np.stack([np.bincount(column, minlength=num_examples) for column in found.T])
    excess = counts - num_epochs / num_examples
    statistic = np.sum(excess**2) * (num_examples - 1) / num_epochs
    assert_chi_square(statistic, (num_examples - 1) ** 2)


def test_blocks_of_a_large_data_set_are_independent(getkey):
    """As above, summed over blocks of 150 positions and 150 values: P x P times 150^2 / (N - 1)."""
    found = epochs(getkey(), 1500, 400)
    positions = np.tile(np.arange(1500) // 150, (400, 1))
    counts = np.bincount((positions * 10 + found // 150).ravel(), minlength=100)
    statistic = np.sum((counts - 400 * 15.0) ** 2) * 1499 / (400 * 150**2)
    assert_chi_square(statistic, 81)


@pytest.mark.parametrize("num_examples", [5, 7])
def test_neighbors_are_independent(num_examples, getkey):
    """Ordered pairs of one epoch, and first examples of consecutive epochs: both multinomial."""
    found = epochs(getkey(), num_examples, 20000)
    pairs = np.bincount(found[:, 0] * num_examples + found[:, 1], minlength=num_examples**2)
    assert np.all(pairs.reshape(num_examples, num_examples).diagonal() == 0)
    cells = num_examples * (num_examples - 1)
    pairs = pairs[~np.eye(num_examples, dtype=bool).ravel()]
    assert_chi_square(np.sum((pairs - 20000 / cells) ** 2) * cells / 20000, cells - 1)

    cells = num_examples**2
    firsts = np.bincount(found[:-1, 0] * num_examples + found[1:, 0], minlength=cells)
    assert_chi_square(np.sum((firsts - 19999 / cells) ** 2) * cells / 19999, cells - 1)


def test_all_orders_occur_equally_often(getkey):
    found = epochs(getkey(), 5, 20000)
    counts = np.unique(found @ 5 ** np.arange(5), return_counts=True)[1]
    assert len(counts) == 120
    assert_chi_square(np.sum((counts - 20000 / 120) ** 2) * 120 / 20000, 119)


def test_odd_and_even_permutations_occur_equally_often(getkey):
    """Of nine: on a square of odd side every round would be even."""
    found = epochs(getkey(), 9, 2000)
    inversions = np.sum(np.triu(found[:, :, None] > found[:, None, :]), axis=(1, 2))
    assert abs(np.mean(inversions % 2) - 0.5) < 5 * 0.5 / np.sqrt(2000)


def test_one_compilation_serves_every_step(getkey):
    traces = []

    @jax.jit
    def batch(key, step):
        traces.append(step)
        return batch_indices(key, step, 1500, 256)

    key = getkey()
    for step in (0, 3, 10**9):
        found = batch(key, jnp.int32(step))
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, indices(key, step, 1500, 256))
    assert len(traces) == 1


def test_inside_a_scan_with_a_traced_step(getkey):
    key = getkey()
    _, found = jax.lax.scan(lambda s, _: (s + 1, batch_indices(key, s, 7, 3)), 0, length=7)
    np.testing.assert_array_equal(found.ravel(), epochs(key, 7, 3).ravel())


def test_keys_of_both_kinds_and_x64_give_the_same(getkey):
    key = getkey()
    expected = np.asarray(indices(key, 5, 1500, 256))
    np.testing.assert_array_equal(indices(jax.random.key_data(key), 5, 1500, 256), expected)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(indices(key, 5, 1500, 256), expected)


def test_without_jit(getkey):
    key = getkey()
    np.testing.assert_array_equal(batch_indices(key, 9, 7, 3), indices(key, 9, 7, 3))


def test_memory_does_not_grow_with_the_data(getkey):
    compiled = indices.lower(getkey(), 0, 2**30, 16).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10_000


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((0, 0, 4), ValueError, "num_examples must be at least 1, got 0"),
        ((0, 2**30 + 1, 4), ValueError, r"num_examples must be at most 2\*\*30, got 1073741825"),
        ((0, 4, 0), ValueError, "batch_size must be at least 1, got 0"),
        ((0, 4, 2**30 + 1), ValueError, r"batch_size must be at most 2\*\*30"),
        ((0, 4.0, 4), TypeError, "num_examples must be a Python int.*got 4.0"),
        ((1.5, 4, 4), TypeError, "step must be an integer, got 1.5: count whole batches"),
        ((-1, 4, 4), ValueError, r"step must lie in 0 to 2\*\*32 - 1, got -1"),
        ((2**32, 4, 4), ValueError, r"step must lie in 0 to 2\*\*32 - 1, got 4294967296"),
        ((np.arange(2), 4, 4), ValueError, "step must be a scalar.*jax.vmap"),
    ],
)
def test_bad_arguments(arguments, error, match, getkey):
    with pytest.raises(error, match=match):
        batch_indices(getkey(), *arguments)


def test_bad_steps_are_found_while_tracing(getkey):
    batch = jax.jit(functools.partial(batch_indices, num_examples=4, batch_size=2))
    with pytest.raises(TypeError, match="step must be an integer"):
        batch(getkey(), 1.5)
    with pytest.raises(ValueError, match="step must be a scalar"):
        batch(getkey(), jnp.arange(3))
