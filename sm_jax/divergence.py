r"""The divergence of a score, ``tr(grad s)``, exactly or by random probes, with the score itself.

`exact`, `hutchinson` and `hutchpp` are `DivergenceFn`s (sm_jax.typing): each takes
``(score_fn, x, key)`` and returns ``(score [B, ...], divergence [B])`` from one linearisation of
the score, so that they can stand in for one another through `functools.partial`. `estimate` adds a
standard error. With the Jacobian ``J = grad s`` of one row, ``d x d``,

    tr J = sum_i e_i' J e_i                                     exact, d products,     (1)
    tr J = E[v' J v],  E[v v'] = I                              Hutchinson,            (2)
    tr J = tr(Q' J Q) + tr(P J P),  P = I - Q Q'                Hutch++,               (3)

Hutch++ computes the first term of (3) exactly, on the range ``Q`` of a random sketch of ``J``, and
estimates the second by (2). All products share one pass of the network. Beyond a few they are made
one by one (or ``chunk`` at a time), each with its own vector, and rematerialized when
differentiated: memory grows by one number per row and product, not by one vector. (Hutch++ keeps
its basis.) For the score of an energy (`sm_jax.parameterization.score_from_energy`), whose
divergence is minus the Laplacian of the energy, (1) and (2) take a forward-mode Laplacian instead
of products with the Hessian: 0.6 to 0.8 of the time (BENCHMARKS.md).

The variance of (2) per probe is ``2 (|A|_F^2 - sum_i a_ii^2)`` for Rademacher probes and
``2 |A|_F^2`` for normal ones, ``A = (J + J') / 2``; none is unbiased with less variance than
Rademacher among probes with independent entries.

References: Hutchinson 1990, https://doi.org/10.1080/03610919008812866; Meyer et al. 2021 (Hutch++),
https://arxiv.org/abs/2010.09649
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax._laplacian import directional_derivatives
from sm_jax.typing import Divergence, DivergenceFn, RandomFn, ScoreFn

__all__ = [
    "DivergenceEstimate",
    "estimate",
    "exact",
    "hutchinson",
    "hutchpp",
    "rows_are_independent",
    "sphere",
]

# Up to so many products are written out rather than looped over. For few the loop costs more than
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
    score_fn: ScoreFn, x: ArrayLike, key: jax.Array | None = None, *, chunk: int | None = None
) -> Divergence:
    """Return the score and its divergence, eq. (1), by one Jacobian product per dimension.

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
        ``(score [B, ...], divergence [B])``; costs about ``1 + d`` passes of the network.

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
    dims = _arrays.num_dims(x)

    def basis(i):
        e = jax.nn.one_hot(i, dims, dtype=x.dtype).reshape((1, *x.shape[1:]))
        return jnp.broadcast_to(e, x.shape)

    if _checks.carried_energy(score_fn) is not None:
        derivatives = _energy_derivatives(score_fn, x, basis, jnp.arange(dims), chunk)
        if derivatives is not None:
            slopes, curvature = derivatives
            return Divergence(-slopes.T.reshape(x.shape), -curvature)

    # e' J' e = e' J e, and products with J' leave less to remember than products with J.
    score, pull_back = jax.vjp(_checks.checked(score_fn, x), x)

    def entry(i):
        e = basis(i)
        return _arrays.sum_data_axes(pull_back(e)[0] * e)

    entries = _map(entry, jnp.arange(dims), chunk, x.ndim - 1)
    return Divergence(score, entries.sum(axis=0))


def hutchinson(
    score_fn: ScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
    chunk: int | None = None,
) -> Divergence:
    """Return the score and an unbiased estimate of its divergence, eq. (2).

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: a random key.
        num_probes: probes per row; their estimates are averaged.
        probe: ``(key, shape [B, ...], dtype) -> probes``, with identity covariance: Rademacher has
            the least variance, also ``jax.random.normal`` and `sphere`.
        chunk: probes taken at a time; as in `exact`.

    Returns:
        ``(score [B, ...], divergence [B])``; costs about ``1 + num_probes`` passes of the network.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_probes < 1``, ``chunk < 1``.

    Example:
        >>> score, divergence = hutchinson(lambda x: -2.0 * x, jnp.ones((1, 3)), jax.random.key(0))
        >>> print(divergence)
        [-6.]
    """
    x = _checks.check_data(x)
    draw, keys = probe_source(key, x, num_probes, probe)
    return Divergence(*mean_quadratic_form(score_fn, x, draw, keys, chunk=chunk))


def hutchpp(
    score_fn: ScoreFn,
    x: ArrayLike,
    key: jax.Array,
    *,
    num_products: int = 6,
    probe: RandomFn = jax.random.rademacher,
) -> Divergence:
    """Return the score and the Hutch++ estimate of its divergence, eq. (3).

    It beats `hutchinson` at equal cost where a few directions carry most of the Jacobian, and is
    exact, up to rounding, if its rank is at most ``num_products // 3``: the sketch takes normal
    vectors, which span the range with probability one (random signs do not).

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: a random key.
        num_products: products ``J v`` per row, a third each for the sketch, for the exact part and
            for the residual; at least 3, at most three times the dimension.
        probe: probes of the residual, as in `hutchinson`.

    Returns:
        ``(score [B, ...], divergence [B])``. Unbiased, and so is its gradient, in which the sketch
        counts as a constant.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or ``num_products`` is out of
            range.

    Example:
        >>> x, key = jnp.ones((1, 3)), jax.random.key(0)
        >>> score, divergence = hutchpp(lambda x: -2.0 * x, x, key, num_products=9)
        >>> print(jnp.round(divergence))
        [-6.]
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
    x: ArrayLike,
    key: jax.Array,
    *,
    divergence: DivergenceFn = hutchinson,
    num_repeats: int = 8,
) -> DivergenceEstimate:
    """Return the score and the mean and standard error of independent divergence estimates.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``.
        key: a random key.
        divergence: any stochastic `DivergenceFn`.
        num_repeats: number of independent estimates, at least 2.

    Returns:
        ``(score [B, ...], divergence [B], standard_error [B])``.

    Raises:
        ValueError: ``num_repeats < 2``, or as ``divergence`` raises.

    Example:
        >>> result = estimate(lambda x: -2.0 * x, jnp.ones((1, 3)), jax.random.key(0))
        >>> print(result.divergence, result.standard_error)
        [-6.] [0.]
    """
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


def rows_are_independent(score_fn: ScoreFn, x: ArrayLike, key: jax.Array) -> jax.Array:
    """Return whether rows of the score depend on their own rows of ``x`` only.

    The losses and divergences rest on this. It moves half of the rows along random directions and
    looks for any first-order change of the others, for one half after another until every two rows
    have been told apart both ways. Not seen is what has no derivative at ``x``: what passes through
    ``stop_gradient`` or rounding, or sets in elsewhere.

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


def probe_source(key: jax.Array, x: jax.Array, num_probes: int, probe: RandomFn):
    """Return ``(draw, keys [K])``; ``draw(keys[k])`` is one probe for every row, ``[B, ...]``.

    With these a loop makes each probe where it is used.
    """
    _checks.check_count("num_probes", num_probes)
    _checks.check_key("probe", key)

    def draw(key):
        v = _arrays.drawn(probe, key, x).astype(x.dtype)
        _check_unit_variance(v)
        return v

    return draw, jax.random.split(key, num_probes)


def draw_probes(key: jax.Array, x: jax.Array, num_probes: int, probe: RandomFn) -> jax.Array:
    """Return ``num_probes`` independent probes for every row of ``x``: ``[K, B, ...]``."""
    draw, keys = probe_source(key, x, num_probes, probe)
    return jax.vmap(draw)(keys)


def _check_unit_variance(v: jax.Array) -> None:
    """Raise if many (concrete) probes have another mean square than 1, by more than chance.

    Of 1,000 numbers of a normal distribution the mean square has a standard deviation of 0.045.
    """
    known = _arrays.concrete(v) if v.size >= 1000 else None
    if known is None:
        return
    mean_square = np.mean(known.astype(np.float64) ** 2)
    if not 0.7 < mean_square < 1.4:
        raise ValueError(
            f"probes must have identity covariance, E[v v'] = I, but the mean of v_i^2 is "
            f"{mean_square:.3g} over {v.size} numbers: scale them, or pass jax.random.rademacher, "
            "jax.random.normal or sm_jax.divergence.sphere."
        )


def mean_quadratic_form(
    score_fn: ScoreFn,
    x: jax.Array,
    draw: Callable[[jax.Array], jax.Array],
    keys: jax.Array,
    *,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the score and the mean of ``v' (grad s) v`` over ``v = draw(keys[k])``: ``[B]``."""
    # For fewer vectors the score itself costs more.
    if len(keys) > 2 and _checks.carried_energy(score_fn) is not None:
        derivatives = _energy_derivatives(score_fn, x, draw, keys, chunk)
        if derivatives is not None:
            score = _checks.check_score(score_fn(x), x)
            return score, -derivatives[1] / len(keys)
    score, push = jax.linearize(_checks.checked(score_fn, x), x)

    def form(key):
        v = draw(key)
        return _arrays.sum_data_axes(_arrays.accumulated(push(v)) * v)

    return score, _map(form, keys, chunk, x.ndim - 1).mean(axis=0)


def _energy_derivatives(
    score_fn: ScoreFn, x: jax.Array, vector: Callable, seeds: jax.Array, chunk: int | None
):
    """Return slopes ``[K, B]`` and summed curvatures ``[B]`` of the energy of a score, or None."""
    unroll = _is_unrolled(len(seeds), chunk, x.ndim - 1)
    return directional_derivatives(
        lambda x: _checks.check_energy(score_fn.energy_fn(x), x),
        x,
        vector,
        seeds,
        chunk=chunk,
        unroll=unroll,
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
