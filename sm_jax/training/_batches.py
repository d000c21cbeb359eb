"""Batches as a function of the step: of arrays on the devices or on the host, or of a stream.

Batch ``n`` is ``batch(arrays, inputs_n)``. The loop over the steps of one dispatch goes over their
``inputs [steps, ...]``: the numbers of the rows, for arrays on the devices; the batches themselves
for all else.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sm_jax._checks import check_unmasked
from sm_jax.data import batch_indices
from sm_jax.training._compare import differences, layout
from sm_jax.training._dtypes import narrowed
from sm_jax.training._parallel import AXIS, replicate, replicated

_DEFAULT_DATA_BYTES = 2**31


class Batches(Protocol):
    """A stream of batches, as ``fit`` takes it in place of arrays.

    Batch ``n`` must be a function of ``n`` alone, which is why a run that is resumed goes on bit by
    bit with no state of an iterator to save. Derive what is random from the step, with
    ``numpy.random.default_rng((seed, step))`` or ``jax.random.fold_in(key, step)``.

    Example:
        >>> class Circles:
        ...     def at(self, step):
        ...         angle = np.random.default_rng((0, step)).uniform(0, 2 * np.pi, 64)
        ...         return np.stack([np.cos(angle), np.sin(angle)], axis=1)
        >>> Circles().at(3).shape
        (64, 2)
    """

    def at(self, step: int, /) -> Any:
        """Return batch number ``step``, counted from 0.

        Args:
            step: a Python integer, from 0 to the ``num_steps`` of the run inclusive (the batch
                after the last update serves the last evaluation).

        Returns:
            A pytree of arrays ``[B, ...]``, of the same shapes and dtypes at every step; with
            several processes, the whole batch in each.
        """
        ...


class Source(NamedTuple):
    """Batches as the loop takes them; see the module.

    Attributes:
        arrays: a pytree of arrays on the devices.
        inputs: ``inputs(start, length)`` gives those of the steps from ``start`` on.
        batch: ``batch(arrays, inputs_n)`` gives batch ``n``; traced.
    """

    arrays: Any
    inputs: Callable[[int, int], Any]
    batch: Callable[[Any, Any], Any]

    def at(self, step: int) -> Any:
        """Return batch number ``step``, on the devices."""
        return self.batch(self.arrays, jax.tree.map(lambda x: x[0], self.inputs(step, 1)))


def is_stream(data: Any) -> bool:
    """Return whether the data has a method ``at(step)``, rather than being arrays."""
    return callable(getattr(data, "at", None))  # `at` of a jax.Array is a property


def batch_like(data: Any, batch_size: int | None) -> Any:
    """Return the shapes and dtypes of a batch ``[B, ...]`` on the devices.

    Args:
        data: arrays or a stream, as ``fit`` takes them.
        batch_size: ``B`` for arrays; None for a stream.

    Raises:
        ValueError: the arrays are of several lengths or empty, or ``batch_size`` does not go with
            the data.
        TypeError: the data is neither arrays nor a stream.
    """
    if isinstance(data, type) or hasattr(data, "__next__"):
        kind = "a class" if isinstance(data, type) else "an iterator, which cannot be resumed"
        raise TypeError(
            f"data must be arrays [N, ...] or an object with a method at(step), got {data!r}, "
            f"{kind}: give an object whose at(step) returns the batch of that step"
        )
    if not is_stream(data):
        _check_rows(data, "data")
        for path, x in jax.tree_util.tree_leaves_with_path(data):
            check_unmasked(x, f"data{jax.tree_util.keystr(path)}")
        if batch_size is None:
            raise ValueError("data is arrays: give batch_size, the number of rows per update")
        return _like(data, batch_size)
    if batch_size is not None:
        raise ValueError(
            f"batch_size {batch_size} is for arrays, and data is a stream, {data!r}, whose batches "
            "have a size of their own: leave batch_size out"
        )
    batch = data.at(0)
    _check_rows(batch, "data.at(0)")
    return _like(batch)


def source_of(
    data: Any | Batches, like: Any, key: Array, *, mesh: Mesh, most: int, limit: int | None
) -> Source:
    """Return the batches of arrays or of a stream.

    Args:
        data: arrays, which are shuffled, or a stream.
        like: the result of ``batch_like``.
        key: the key of the order of the arrays.
        mesh: the devices to split the rows over.
        most: the most steps for which inputs are requested at a time.
        limit: arrays of at most this many bytes stay on the devices; None means a quarter of a
            device's memory.
    """
    if is_stream(data):
        return Source((), partial(_stacked, data, like, mesh), lambda _, batch: batch)
    num_examples = len(jax.tree.leaves(data)[0])
    batch_size = len(jax.tree.leaves(like)[0])

    @partial(jax.jit, out_shardings=replicated(mesh))
    def rows(start):
        steps = start + jnp.arange(most, dtype=jnp.uint32)
        return jax.vmap(lambda n: batch_indices(key, n, num_examples, batch_size))(steps)

    if not _fits(data, mesh, limit):
        return Source((), partial(_gathered, data, rows, mesh), lambda _, batch: batch)

    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec(AXIS)))
    def select(arrays, rows):
        return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), arrays)

    narrow = jax.tree_util.tree_map_with_path(_narrowed, data)
    arrays = jax.tree.map(lambda x: replicate(x, mesh), narrow)
    return Source(arrays, lambda start, length: rows(start)[:length], select)


def _gathered(data: Any, rows: Callable[[int], Array], mesh: Mesh, start: int, length: int) -> Any:
    """Return batches ``[steps, B, ...]`` of arrays on the host."""
    chosen = np.asarray(rows(start))[:length]

    def put(path, x):
        def part(index):  # only what the devices of this process hold is read
            places = chosen[index[:2]]
            batch = _narrowed(path, np.asarray(x[places.ravel()]))
            return batch.reshape(*places.shape, *x.shape[1:])

        return _put(chosen.shape + x.shape[1:], mesh, part)

    return jax.tree_util.tree_map_with_path(put, data)


def _stacked(stream: Batches, like: Any, mesh: Mesh, start: int, length: int) -> Any:
    """Return batches ``[steps, B, ...]`` of a stream."""

    def at(step):
        batch = jax.tree.map(np.asarray, stream.at(step))
        changed = differences(layout(like), layout(_like(batch)))
        if changed:
            raise ValueError(
                f"data.at({step}) has another layout than data.at(0): {'; '.join(changed)}. Return "
                "batches of the same shapes and dtypes at every step"
            )
        return batch

    def put(path, *batches):
        rows = _narrowed(path, np.concatenate(batches))
        x = rows.reshape(length, -1, *rows.shape[1:])
        return _put(x.shape, mesh, lambda index: x[index])

    batches = [at(step) for step in range(start, start + length)]
    return jax.tree_util.tree_map_with_path(put, *batches)


def _like(batch: Any, batch_size: int | None = None) -> Any:
    def like(x):
        rows = x.shape[0] if batch_size is None else batch_size
        dtype = jax.dtypes.canonicalize_dtype(x.dtype.newbyteorder("="))
        return jax.ShapeDtypeStruct((rows, *x.shape[1:]), dtype)

    return jax.tree.map(like, batch)


def _check_rows(tree: Any, name: str) -> None:
    shapes = [np.shape(x) for x in jax.tree.leaves(tree)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"{name} must be arrays with one leading axis, of the same length >= 1; got {shapes}"
        )


def _put(shape: tuple[int, ...], mesh: Mesh, part: Callable[[Any], np.ndarray]) -> Array:
    """Return the array ``[steps, B, ...]`` with its rows split over the devices."""
    sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))
    return jax.make_array_from_callback(shape, sharding, part)


def _narrowed(path: tuple, x: Any) -> Any:
    return narrowed(x, jax.tree_util.keystr(path))


def _fits(data: Any, mesh: Mesh, limit: int | None) -> bool:
    if limit is None:
        stats = mesh.local_devices[0].memory_stats() or {}
        limit = stats.get("bytes_limit", 4 * _DEFAULT_DATA_BYTES) // 4
    return sum(x.nbytes for x in jax.tree.leaves(data)) <= limit
