r"""The divergence of a score, ``tr(grad s)``, exactly or by random probes, with the score itself.

With the Jacobian ``J = grad s`` of one row, ``d x d``, ``e_i`` the unit vectors, ``v`` a random
probe with ``E[v v'] = I``, ``Q`` an orthonormal basis and ``E`` an energy,

    tr J = sum_i e_i' J e_i                             `exact`, `diagonal`: d products,       (1)
    tr J = E[v' J v]                                    `hutchinson`,                          (2)
    tr J = tr(Q' J Q) + E[v' P J P v],  P = I - Q Q'    `hutchpp`,                             (3)
    tr J = -sum_i d^2 E / d x_i^2,  s = -grad E         `laplacian`, and `exact` of energies.  (4)

`exact`, `hutchinson`, `hutchpp` and `laplacian` are `DivergenceFn`s (sm_jax.typing): each takes
``(score_fn, x, key)`` and returns ``Divergence(score [B, ...], divergence [B])``, and one stands in
for another, options fixed by `functools.partial`. `estimate` repeats one of them for a standard
error, `diagonal` returns the terms of (1), `sphere` draws probes, and `rows_are_independent` tests
what all of them assume.

All products share one pass of the network. Beyond a few they are made one by one (or ``chunk`` at a
time), each with its own vector, and rematerialized when differentiated: memory grows by one number
per row and product, not by one vector. (Hutch++ keeps its basis.) An `EnergyScore`
(sm_jax.parameterization) takes a forward-mode Laplacian instead of products with the Hessian, in
`exact` and, for three probes or more, in `hutchinson`: 0.6 to 0.8 of the time (BENCHMARKS.md).

The variance of (2) per probe is ``2 (|A|_F^2 - sum_i a_ii^2)`` for Rademacher probes and
``2 |A|_F^2`` for normal ones, ``A = (J + J') / 2``. Among probes with independent entries,
Rademacher probes have the least variance.

References: Hutchinson 1990, https://doi.org/10.1080/03610919008812866; Meyer et al. 2021 (Hutch++),
https://arxiv.org/abs/2010.09649
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax._laplacian import directional_derivatives
from sm_jax._probes import draw_probes, probe_source
from sm_jax.parameterization import EnergyScore
from sm_jax.typing import ArrayOrList, Divergence, DivergenceFn, RandomFn, ScoreFn

__all__ = [
    "DivergenceEstimate",
    "diagonal",
    "estimate",
    "exact",
    "hutchinson",
    "hutchpp",
    "laplacian",
    "rows_are_independent",
    "sphere",
]

# Up to this many products are written out rather than looped over. For few the loop costs more than
# the memory that it saves; and on CPU, XLA runs convolutions within loops tens of times slower, so
# events with several axes, as convolutional networks have them, write out more.
_UNROLLED, _UNROLLED_IMAGES = 3, 16


class DivergenceEstimate(NamedTuple):
    """A score, an estimate of its divergence, and the standard error of the estimate.

    Attributes:
        score: ``s(x) [B, ...]``.
        divergence: mean of the estimates of ``tr(grad s)(x)``, ``[B]``.
        standard_error: standard error of that mean, ``[B]``.
    """

    score: jax.Array
    divergence: jax.Array
    standard_error: jax.Array


def exact(
    score_fn: ScoreFn, x: ArrayOrList, key: jax.Array | None = None, *, chunk: int | None = None
) -> Divergence:
    """Return the score and its exact divergence, ``sum_i d s_i / d x_i``.

    It makes one Jacobian product per dimension. An `EnergyScore` takes the forward-mode Laplacian
    of its energy (see `laplacian`) where the energy allows it, and products otherwise.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only: a network that mixes
            rows (batch normalization in training mode) gives wrong values; see
            `rows_are_independent`.
        x: points ``[B, ...]``.
        key: unused; there so that this is a `DivergenceFn`.
        chunk: products made at a time. More is faster on accelerators and takes more memory. By
            default one at a time; up to three dimensions (16 for events with several axes) are
            written out without a loop.

    Returns:
        ``Divergence(score [B, ...], divergence [B])``; costs about ``1 + d`` passes of the network.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or ``chunk < 1``.

    Example:
        >>> score, divergence = exact(lambda x: -2.0 * x, jnp.ones((1, 3)))
        >>> print(divergence)
        [-6.]
    """
    del key
    x = _checks.check_data(x)
    if isinstance(score_fn, EnergyScore):
        result = _forward_laplacian(score_fn, x, chunk)
        if result is not None:
            return result
    score, entries = diagonal(score_fn, x, chunk=chunk)
    return Divergence(score, _arrays.sum_data_axes(entries))


def laplacian(
    energy_score: ScoreFn,
    x: ArrayOrList,
    key: jax.Array | None = None,
    *,
    chunk: int | None = None,
) -> Divergence:
    """Return the score of an energy and its divergence, minus the Laplacian of the energy.

    The divergence of ``s = -grad E`` is ``-sum_i d^2 E / d x_i^2``, here in forward mode (the
    forward Laplacian, or collapsed Taylor mode): one pass of first derivatives for each dimension
    and one of second derivatives for their sum. `exact` does the same for an `EnergyScore`, but
    falls back to Jacobian products where this raises.

    Args:
        energy_score: a `sm_jax.parameterization.EnergyScore`, row i depending on row i only.
        x: points ``[B, ...]``.
        key: unused; there so that this is a `DivergenceFn`.
        chunk: dimensions taken at a time; as in `exact`.

    Returns:
        ``Divergence(score [B, ...], divergence [B])``.

    Raises:
        TypeError: ``x`` is not floating, ``energy_score`` is a bare score, or the energy has no
            second derivatives in forward mode: it goes through a ``jax.custom_vjp``, complex
            numbers, or a dtype below float32.
        ValueError: ``x`` is empty, the energy is not one number per example, or ``chunk < 1``.

    Example:
        >>> from sm_jax.parameterization import EnergyScore
        >>> energy_score = EnergyScore(lambda x: jnp.sum(x**2, axis=-1))
        >>> score, divergence = laplacian(energy_score, jnp.ones((1, 3)))
        >>> print(divergence)
        [-6.]

    References: Li et al. 2023, https://arxiv.org/abs/2307.08214; Dangel et al. 2025,
    https://arxiv.org/abs/2505.13644
    """
    del key
    x = _checks.check_data(x)
    if not isinstance(energy_score, EnergyScore):
        raise TypeError(
            f"laplacian needs the energy itself, got {energy_score!r}: pass "
            "parameterization.EnergyScore(energy_fn), without a jit, lambda or partial around it, "
            "or use divergence.exact, which takes any score."
        )
    result = _forward_laplacian(energy_score, x, chunk)
    if result is None:
        raise TypeError(
            f"the energy {energy_score.energy_fn!r} has no second derivatives in forward mode for "
            f"x of {x.dtype}: it goes through a jax.custom_vjp, complex numbers or a dtype below "
            "float32. Use divergence.exact, which falls back to Jacobian products."
        )
    return result


def diagonal(
    score_fn: ScoreFn, x: ArrayOrList, key: jax.Array | None = None, *, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the score and the diagonal of its Jacobian, ``d s_i / d x_i``.

    It makes one Jacobian product per dimension. The sum over the diagonal is the divergence.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: unused, as in `exact`.
        chunk: products made at a time; as in `exact`.

    Returns:
        ``(score [B, ...], diagonal [B, ...])``, the diagonal in float32 at least; costs about
        ``1 + d`` passes of the network.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or ``chunk < 1``.

    Example:
        >>> score, entries = diagonal(lambda x: -(x**2), jnp.array([[1.0, 2.0]]))
        >>> print(entries)
        [[-2. -4.]]
    """
    del key
    x = _checks.check_data(x)
    # e' J' e = e' J e, and products with J' leave less to remember than products with J.
    score, pull_back = jax.vjp(_checks.checked(score_fn, x), x)

    def entry(i):
        e = _unit_vectors(x, i)
        return _arrays.sum_data_axes(pull_back(e)[0] * e)

    entries = _map(entry, jnp.arange(_arrays.num_dims(x)), chunk, x.ndim - 1)
    return score, entries.T.reshape(x.shape)


def hutchinson(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
    chunk: int | None = None,
) -> Divergence:
    """Return the score and Hutchinson's estimate of its divergence.

    It is ``1/K sum_k v_k' (grad s) v_k`` over ``K = num_probes`` probes with identity covariance,
    ``E[v v'] = I``, and so unbiased. For three probes or more an `EnergyScore` takes the curvatures
    ``-v_k' (grad^2 E) v_k`` of its energy in forward mode, where the energy allows it.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: a random key.
        num_probes: probes per row; their estimates are averaged.
        probe: ``(key, shape [B, ...], dtype) -> probes``, with identity covariance: Rademacher has
            the least variance, also ``jax.random.normal`` and `sphere`.
        chunk: probes taken at a time; as in `exact`.

    Returns:
        ``Divergence(score [B, ...], divergence [B])``; costs about ``1 + num_probes`` passes of the
        network.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_probes < 1``, ``chunk < 1``.

    Example:
        >>> score, divergence = hutchinson(lambda x: -2.0 * x, jnp.ones((1, 3)), jax.random.key(0))
        >>> print(divergence)
        [-6.]

    Reference: Hutchinson 1990, https://doi.org/10.1080/03610919008812866
    """
    x = _checks.check_data(x)
    draw, keys = probe_source(key, x, num_probes, probe)
    # For fewer vectors the score itself costs more.
    if num_probes > 2 and isinstance(score_fn, EnergyScore):
        derivatives = _energy_derivatives(score_fn, x, draw, keys, chunk)
        if derivatives is not None:
            score = _checks.check_score(score_fn(x), x)
            return Divergence(score, -derivatives[1] / num_probes)
    score, push = jax.linearize(_checks.checked(score_fn, x), x)

    def form(key):
        v = draw(key)
        return _arrays.sum_data_axes(_arrays.accumulated(push(v)) * v)

    return Divergence(score, _map(form, keys, chunk, x.ndim - 1).mean(axis=0))


def hutchpp(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    num_products: int = 6,
    probe: RandomFn = jax.random.rademacher,
) -> Divergence:
    """Return the score and the Hutch++ estimate of its divergence.

    With ``J = grad s`` of one row and ``m = num_products // 3``, a sketch ``J g_1, ..., J g_m`` of
    normal vectors ``g`` has the orthonormal basis ``q_1, ..., q_m``. The estimate takes the trace
    exactly on its span and by probes ``v_k`` on the rest, the residual:

        sum_j q_j' J q_j + 1/m sum_k r_k' J r_k,    r_k = v_k - sum_j q_j (q_j' v_k).

    It makes ``3 m`` products, so ``num_products`` is rounded down to a multiple of three. It has
    less variance than `hutchinson` at equal cost where a few directions carry most of the Jacobian,
    and is exact, up to rounding, if the rank of ``J`` is at most ``m``: normal vectors span the
    range with probability one (random signs do not).

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: a random key.
        num_products: products ``J v`` per row, ``num_products // 3`` each for the sketch, for the
            exact part and for the residual; from 3 to ``3 d + 2``.
        probe: probes of the residual, as in `hutchinson`.

    Returns:
        ``Divergence(score [B, ...], divergence [B])``. Unbiased, and so is its gradient, in which
        the sketch counts as a constant.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or ``num_products`` is out of
            range.

    Example:
        >>> x, key = jnp.ones((1, 3)), jax.random.key(0)
        >>> score, divergence = hutchpp(lambda x: -2.0 * x, x, key, num_products=9)
        >>> print(jnp.round(divergence))
        [-6.]

    Reference: Meyer et al. 2021, https://arxiv.org/abs/2010.09649
    """
    x = _checks.check_data(x)
    _checks.check_count("num_products", num_products, minimum=3)
    _checks.check_key("hutchpp", key)
    num, dims = num_products // 3, _arrays.num_dims(x)
    if num > dims:
        raise ValueError(
            f"num_products must be at most three times the dimension, 3 x {dims}, got "
            f"{num_products}: use exact, which needs {dims} products."
        )
    key_sketch, key_residual = jax.random.split(key)
    score, push = jax.linearize(_checks.checked(score_fn, x), x)

    draw, keys = probe_source(key_sketch, x, num, jax.random.normal)
    sketch = jax.lax.stop_gradient(_map(lambda k: push(draw(k)), keys, None, x.ndim - 1))
    columns = jnp.moveaxis(sketch.reshape(num, x.shape[0], dims), 0, -1)
    basis, _ = jnp.linalg.qr(_arrays.accumulated(columns))  # [B, d, num]; (3) holds for any basis

    residual = draw_probes(key_residual, x, num, probe).reshape(num, x.shape[0], dims)
    residual = residual - jnp.einsum("bdk,bek,nbe->nbd", basis, basis, residual)
    vectors = jnp.concatenate([jnp.moveaxis(basis, -1, 0), residual])
    vectors = vectors.reshape(2 * num, *x.shape).astype(x.dtype)
    forms = _map(lambda v: _arrays.sum_data_axes(push(v) * v), vectors, None, x.ndim - 1)
    return Divergence(score, forms[:num].sum(axis=0) + forms[num:].mean(axis=0))


def estimate(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    divergence: DivergenceFn = hutchinson,
    num_repeats: int = 8,
) -> DivergenceEstimate:
    """Return the score and the mean and standard error of independent divergence estimates.

    Of ``R = num_repeats`` estimates ``T_r`` of the divergence, each with a key of its own, these
    are ``mean(T)`` and ``sqrt(sum_r (T_r - mean(T))^2 / (R (R - 1)))``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: a random key.
        divergence: any stochastic `DivergenceFn`.
        num_repeats: number of independent estimates, at least 2.

    Returns:
        ``DivergenceEstimate(score [B, ...], divergence [B], standard_error [B])``.

    Raises:
        ValueError: ``num_repeats < 2``, or as ``divergence`` raises.

    Example:
        >>> result = estimate(lambda x: -2.0 * x, jnp.ones((1, 3)), jax.random.key(0))
        >>> print(result.divergence, result.standard_error)
        [-6.] [0.]
    """
    x = _checks.check_data(x)
    _checks.check_count("num_repeats", num_repeats, minimum=2)
    keys = jax.random.split(key, num_repeats)
    once = jax.vmap(lambda k: tuple(divergence(score_fn, x, k)), out_axes=(None, 0))
    score, estimates = once(keys)
    error = estimates.std(axis=0, ddof=1) / jnp.sqrt(jnp.asarray(num_repeats, estimates.dtype))
    return DivergenceEstimate(score, estimates.mean(axis=0), error)


def sphere(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Return probes uniform on the sphere of radius ``sqrt(d)``, one per row of ``[B, ...]``.

    Args:
        key: a random key.
        shape: ``(B, ...)``; ``d`` is the product of all but the first.
        dtype: floating dtype of the probes.

    Returns:
        Probes of the given shape: ``|v|^2 = d``, ``E[v v'] = I``.

    Example:
        >>> print((sphere(jax.random.key(0), (2, 9)) ** 2).sum(axis=1).round(3))
        [9. 9.]
    """
    v = jax.random.normal(key, shape, dtype)
    mean_square = _arrays.sum_data_axes(v**2) / _arrays.num_dims(v)
    return v * _arrays.expand_like(jax.lax.rsqrt(mean_square), v).astype(dtype)


def rows_are_independent(score_fn: ScoreFn, x: ArrayOrList, key: jax.Array) -> jax.Array:
    """Return whether each row of the score depends on its own row of ``x`` only.

    The losses and divergences assume this: ``d s_i / d x_j = 0`` for rows ``i != j``. The test
    moves half of the rows along random directions and looks for any first-order change of the other
    rows, for one half after another until every pair of rows has been separated both ways. It
    cannot see a dependence without a derivative at ``x``: one through ``stop_gradient`` or
    rounding, or one that sets in elsewhere.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``.
        x: points ``[B, ...]``, at least two.
        key: a random key.

    Returns:
        A scalar boolean array. Costs ``2 log2(B)`` products with the Jacobian, made one by one.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` has fewer than two rows, or the score another shape.

    Example:
        >>> x = jnp.arange(6.0).reshape(3, 2)
        >>> print(rows_are_independent(lambda x: -x, x, jax.random.key(0)))
        True
        >>> print(rows_are_independent(lambda x: x.mean(0) - x, x, jax.random.key(0)))
        False
    """
    x = _checks.check_data(x)
    if x.shape[0] < 2:
        raise ValueError(f"x must have at least two rows to compare, got shape {x.shape}.")
    direction = jax.random.normal(key, x.shape, x.dtype)
    _, push = jax.linearize(_checks.checked(score_fn, x), x)
    # The places of two rows differ in some bit.
    bits = np.arange(x.shape[0]) >> np.arange((x.shape[0] - 1).bit_length())[:, None] & 1 > 0

    def others_stay(moved):
        moved = _arrays.expand_like(moved, x)
        return jnp.all((push(jnp.where(moved, direction, 0.0)) == 0.0) | moved)

    return jnp.all(compiled(partial(jax.lax.map, others_stay), jnp.concatenate([bits, ~bits])))


def _unit_vectors(x: jax.Array, i: jax.Array) -> jax.Array:
    """Return the i-th unit vector for every row of ``x``, ``[B, ...]``."""
    e = jax.nn.one_hot(i, _arrays.num_dims(x), dtype=x.dtype).reshape((1, *x.shape[1:]))
    return jnp.broadcast_to(e, x.shape)


def _forward_laplacian(
    energy_score: EnergyScore, x: jax.Array, chunk: int | None
) -> Divergence | None:
    """Return the score and minus the Laplacian of the energy, or None if forward mode fails."""
    indices = jnp.arange(_arrays.num_dims(x))
    derivatives = _energy_derivatives(energy_score, x, partial(_unit_vectors, x), indices, chunk)
    if derivatives is None:
        return None
    slopes, curvature = derivatives
    return Divergence(-slopes.T.reshape(x.shape).astype(x.dtype), -curvature)


def _energy_derivatives(
    energy_score: EnergyScore, x: jax.Array, vector: Callable, seeds: jax.Array, chunk: int | None
):
    """Return slopes ``[K, B]`` and summed curvatures ``[B]`` along vectors, or None."""
    # A new function at each call: JAX would remember the trace of an energy that has changed.
    return directional_derivatives(
        lambda x: _checks.check_energy(energy_score.energy_fn(x), x),
        x,
        vector,
        seeds,
        chunk=chunk,
        unroll=_is_unrolled(len(seeds), chunk, x.ndim - 1),
    )


def _map(function: Callable, inputs: jax.Array, chunk: int | None, num_axes: int) -> jax.Array:
    """Return ``function`` of each input, rematerialized, ``chunk`` at a time.

    ``num_axes`` is the rank of one event.
    """
    if _is_unrolled(len(inputs), chunk, num_axes):
        return jnp.stack([function(row) for row in inputs])
    one = jax.checkpoint(function, prevent_cse=False)
    return compiled(partial(jax.lax.map, one, batch_size=chunk), inputs)


def _is_unrolled(num: int, chunk: int | None, num_axes: int) -> bool:
    if chunk is not None:
        _checks.check_count("chunk", chunk)
        return False
    return num <= (_UNROLLED_IMAGES if num_axes > 1 else _UNROLLED)
