"""Data parallelism: the batch split over a mesh of devices, everything else replicated."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sm_jax.training._dtypes import check_range

AXIS = "batch"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a one-dimensional mesh, with the axis "batch", over the devices of all processes.

    Args:
        devices: the devices to use; all of them by default.

    Returns:
        A ``jax.sharding.Mesh`` of shape {"batch": number of devices}.

    Example:
        >>> data_mesh().axis_names
        ('batch',)
    """
    array = np.asarray(jax.devices() if devices is None else devices)
    return Mesh(array, (AXIS,), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Place a pytree of arrays whole on each device of the mesh.

    Args:
        tree: any pytree of arrays, with the same values in each process.
        mesh: the mesh of ``data_mesh``.

    Returns:
        The pytree, replicated over the mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> replicate({"w": jnp.ones(3)}, data_mesh())["w"].is_fully_replicated
        True
    """
    sharding = replicated(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(x: Any) -> Array:  # device_put does not reach the devices of other processes
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        x = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Split the rows of a batch over the devices of the mesh.

    Args:
        batch: a pytree of arrays [B / processes, ...], the rows that this process contributes; with
            one process, the batch [B, ...].
        mesh: the mesh of ``data_mesh``.

    Returns:
        A pytree of global arrays [B, ...], sharded along the first axis.

    Raises:
        ValueError: if the rows cannot be split evenly over the devices, or a number of 64 bits is
            beyond the range of the 32 in which JAX holds it.

    Example:
        >>> import jax.numpy as jnp
        >>> shard_batch(jnp.ones((8, 3)), data_mesh()).shape
        (8, 3)
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def put(x: Any) -> Array:
        x = np.asarray(x)
        check_divisible(x.shape[0] * jax.process_count(), mesh)
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        if dtype != x.dtype and x.dtype.kind in "iuf":
            check_range(x, dtype)
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps an array whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(batch_size: int, mesh: Mesh) -> None:
    """Raise ValueError unless the devices of the mesh get equal shares of the batch."""
    if batch_size % mesh.size:
        lower = batch_size - batch_size % mesh.size
        remedy = f"{lower} or {lower + mesh.size}" if lower else f"{mesh.size}"
        raise ValueError(
            f"batch_size {batch_size} does not divide among {mesh.size} devices: "
            f"take {remedy}, or fewer devices"
        )
