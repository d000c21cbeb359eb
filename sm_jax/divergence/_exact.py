"""The exact divergence, its terms, and the Laplacian of an energy.

Equation numbers are those of sm_jax.divergence.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax.divergence._products import energy_derivatives, mapped
from sm_jax.parameterization import EnergyScore
from sm_jax.typing import ArrayOrList, Divergence, ScoreFn


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
        result = forward_laplacian(score_fn, x, chunk)
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
    result = forward_laplacian(energy_score, x, chunk)
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
        e = unit_vectors(x, i)
        return _arrays.sum_data_axes(pull_back(e)[0] * e)

    entries = mapped(entry, jnp.arange(_arrays.num_dims(x)), chunk, x.ndim - 1)
    return score, entries.T.reshape(x.shape)


def unit_vectors(x: jax.Array, i: jax.Array) -> jax.Array:
    """Return the i-th unit vector for every row of ``x``, ``[B, ...]``."""
    e = jax.nn.one_hot(i, _arrays.num_dims(x), dtype=x.dtype).reshape((1, *x.shape[1:]))
    return jnp.broadcast_to(e, x.shape)


def forward_laplacian(
    energy_score: EnergyScore, x: jax.Array, chunk: int | None
) -> Divergence | None:
    """Return the score and minus the Laplacian of the energy, or None if forward mode fails."""
    indices = jnp.arange(_arrays.num_dims(x))
    derivatives = energy_derivatives(energy_score, x, partial(unit_vectors, x), indices, chunk)
    if derivatives is None:
        return None
    slopes, curvature = derivatives
    return Divergence(-slopes.T.reshape(x.shape).astype(x.dtype), -curvature)
