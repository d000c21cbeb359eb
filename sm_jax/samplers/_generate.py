"""Samples that do not depend on the batch or the device they were drawn on.

The key of sample ``i`` is ``fold_in(key, i)``, and everything random about the sample comes from
it: its noise of the prior and the noise of its steps. Batches and devices then only decide which
samples are computed together.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from sm_jax import _checks
from sm_jax._eager import found
from sm_jax.processes import prior_sample
from sm_jax.typing import NoiseScoreFn, ProcessLike


def one_sample(
    sampler: Callable,
    score_fn: NoiseScoreFn,
    *,
    process: ProcessLike,
    event_shape: Sequence[int],
    dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> Callable[[jax.Array], Any]:
    """Return the function that draws one sample by a diffusion sampler: ``key -> [...]``.

    It draws noise of the prior and runs the sampler on a batch of one. Under ``jax.vmap`` over keys
    it draws a batch whose rows have nothing in common but the program: what `generate` takes.

    Args:
        sampler: a diffusion sampler: `heun`, `ancestral`, `adaptive_sde`, ...
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``; what else it needs is in its closure.
        process: the process that the score was trained for.
        event_shape: shape of one sample, ``[...]``.
        dtype: floating dtype of the samples.
        **options: of the sampler: ``num_steps=64``, ``churn=10.0``, ...

    Returns:
        A function of a random key. It returns one sample, or what the sampler returns beside the
        samples too, without the axis of the batch (which in a trajectory is the second).

    Example:
        >>> from sm_jax import processes, samplers
        >>> process = processes.VE(sigma_max=10.0)
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)
        >>> draw = one_sample(samplers.heun, score_fn, process=process, event_shape=(2,))
        >>> draw(jax.random.key(0)).shape
        (2,)
    """

    def draw(key: jax.Array) -> Any:
        key_prior, key_sampler = jax.random.split(key)
        x = prior_sample(process, key_prior, (1, *event_shape), dtype)
        drawn = sampler(score_fn, x, key_sampler, process=process, **options)
        # A trajectory has the batch behind its first axis.
        rank = x.ndim
        return jax.tree.map(lambda a: a[:, 0] if a.ndim > rank else a[0], drawn)

    return draw


def generate(
    draw: Callable[[jax.Array], Any],
    key: jax.Array,
    num: int,
    *,
    batch_size: int = 256,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
) -> Any:
    """Draw any number of samples in batches, each from a key of its own.

    The first ``num`` samples are the same for any ``num``, ``batch_size`` and number of devices, up
    to the rounding of sums in another order. One program is compiled, for a full batch; the last
    batch is filled up with samples that are thrown away.

    Args:
        draw: ``key -> sample [...]``, or any pytree of arrays, e.g. from `one_sample`. It runs
            under ``jax.vmap`` and ``jax.jit``.
        key: a random key; sample ``i`` has ``fold_in(key, i)``.
        num: number of samples.
        batch_size: samples drawn at a time, on all devices together; rounded up to a multiple of
            the number of devices, and down to what ``num`` needs.
        devices: the devices to draw on; by default all of this process.
        progress: show a bar; by default if standard error is a terminal and tqdm is installed.

    Returns:
        NumPy arrays ``[num, ...]``, in the pytree of ``draw``.

    Raises:
        ImportError: ``progress=True``, and tqdm is not installed.
        TypeError: ``num`` or ``batch_size`` is not an integer.
        ValueError: ``num`` or ``batch_size`` is below 1.

    Example:
        >>> key = jax.random.key(0)
        >>> normal = lambda key: jax.random.normal(key, (2,))
        >>> a, b = (generate(normal, key, 10, batch_size=n, progress=False) for n in (3, 10))
        >>> a.shape, bool((a == b).all())
        ((10, 2), True)
    """
    _checks.check_count("num", num)
    _checks.check_count("batch_size", batch_size)
    chips = np.asarray(jax.local_devices() if devices is None else devices)
    shares = -(-min(batch_size, num) // chips.size)
    batch_size = shares * chips.size

    mesh = Mesh(chips, ("batch",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("batch"), PartitionSpec()

    def draw_rows(key, indices):
        return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(indices)

    # Each device runs by itself: adaptive samplers need not wait for one another.
    batch = jax.shard_map(
        draw_rows, mesh=mesh, in_specs=(whole, rows), out_specs=rows, check_vma=False
    )
    sharding = NamedSharding(mesh, rows)
    key = jax.device_put(key, NamedSharding(mesh, whole))

    def place(start):
        indices = np.arange(start, start + batch_size, dtype=np.uint32)
        return jax.device_put(indices, sharding)

    batch = found(batch, key, place(0))

    def dispatch(start):
        return batch(key, place(start))

    drawn = []
    with _bar(num, progress) as advance:
        waiting = dispatch(0)
        for start in range(0, num, batch_size):
            # The next batch is under way while this one comes to the host.
            done, end = waiting, start + batch_size
            waiting = dispatch(end) if end < num else None
            drawn.append(jax.tree.map(np.asarray, done))
            advance(min(end, num) - start)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num], *drawn)


@contextlib.contextmanager
def _bar(num: int, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """Give the function that moves the bar on by a number of samples."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        if progress:
            message = "progress=True needs tqdm: pip install tqdm, or progress=False."
            raise ImportError(message) from error
        progress = False
    if progress is None:
        progress = sys.stderr.isatty()
    if not progress:
        yield lambda count: None
        return
    with tqdm(total=num, unit=" samples") as bar:
        yield bar.update
