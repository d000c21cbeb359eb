"""Sliced score matching: the implicit loss projected on random directions ``v``, ``E[v v'] = I``.

For each example, over ``K`` probes ``v_k``,

    L = 1/K sum_k v_k' (grad s) v_k + 1/2 |s|^2                 variance reduced,      (1)
    L = 1/K sum_k [v_k' (grad s) v_k + 1/2 (v_k' s)^2]          plain.                 (2)

Both are unbiased for the implicit loss. Central differences with a step ``d = h v`` take the place
of the derivatives, of the score or of an energy ``E`` with ``s = -grad E``:

    v' (grad s) v = sum_i v_i^2 (s_i(x + d) - s_i(x - d)) / (2 d_i) + O(h^2),          (3)
    v' (grad s) v = -(E(x + d) - 2 E(x) + E(x - d)) / h^2 + O(h^2),                    (4)
    v' s = -(E(x + d) - E(x - d)) / (2 h) + O(h^2).                                    (5)

``d`` is rounded so that ``x + d`` and ``x - d`` are numbers of the dtype of ``x``: at an offset
that is not small against ``h``, the numbers that a point can move to are far apart, and ``2 h v``
is not the distance that it moved. In (3) each number of the score is divided by its own distance;
``v_i v_j``, ``i != j``, becomes ``v_i^2 d_j / d_i``, which is zero in the mean too where the signs
of a probe are independent.

References: Song et al. 2019, https://arxiv.org/abs/1905.07088 (eqs. 7 and 8); Pang et al. 2020,
https://arxiv.org/abs/2007.03317
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._probes import draw_probes, probe_source
from sm_jax.divergence import hutchinson
from sm_jax.parameterization import EnergyScore
from sm_jax.typing import ArrayOrList, EnergyFn, RandomFn, ScoreFn


def sliced(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
    variance_reduced: bool = True,
) -> jax.Array:
    """Return the sliced score matching loss of each example, variance reduced or plain.

    Over ``K = num_probes`` probes ``v_k``, with the score ``s`` and its Jacobian at ``x``:

        1/K sum_k v_k' (grad s) v_k + 1/2 |s|^2                 with ``variance_reduced``,
        1/K sum_k [v_k' (grad s) v_k + 1/2 (v_k' s)^2]          without.

    The first is `implicit` with the divergence by `sm_jax.divergence.hutchinson`.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        num_probes: directions per example, averaged.
        probe: ``(key, shape [B, ...], dtype) -> v``, with identity covariance: Rademacher,
            ``jax.random.normal``, `sm_jax.divergence.sphere`.
        variance_reduced: take ``1/2 |s|^2`` in place of its estimate ``1/2 (v' s)^2``, which serves
            for comparison only.

    Returns:
        ``[B]``, in nats: an unbiased estimate of the implicit loss, in about ``1 + num_probes``
        passes of the network.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or ``num_probes < 1``.

    Example:
        >>> print(sliced(lambda x: -x, jnp.ones((1, 3)), jax.random.key(0)))
        [-1.5]

    Reference: Song et al. 2019, https://arxiv.org/abs/1905.07088
    """
    x = _checks.check_data(x)
    if variance_reduced:
        score, form = hutchinson(score_fn, x, key, num_probes=num_probes, probe=probe)
        return form + 0.5 * _arrays.sum_data_axes(_arrays.accumulated(score) ** 2)
    score, push = jax.linearize(_checks.checked(score_fn, x), x)

    def along(v):
        form, projection = (
            _arrays.sum_data_axes(v * _arrays.accumulated(field)) for field in (push(v), score)
        )
        return form + 0.5 * projection**2

    return jnp.mean(jax.vmap(along)(draw_probes(key, x, num_probes, probe)), axis=0)


def finite_difference_sliced(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    epsilon: ArrayLike,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
    variance_reduced: bool = True,
) -> jax.Array:
    """Return the sliced score matching loss with central differences in place of derivatives.

    With the step ``d = epsilon v`` along a probe ``v``, rounded so that ``x + d`` and ``x - d`` are
    numbers of the dtype of ``x``, and the scores ``s+`` and ``s-`` there, the loss is the mean over
    ``num_probes`` probes of

        sum_i v_i^2 (s+_i - s-_i) / (2 d_i) + 1/2 |(s+ + s-) / 2|^2     with ``variance_reduced``,
        sum_i v_i^2 (s+_i - s-_i) / (2 d_i) + 1/2 (v' (s+ + s-) / 2)^2  without.

    Each probe costs two passes of the network and nothing else. Where the step is smaller than the
    spacing of floating point numbers at ``x``, the point moves by that spacing.

    Without ``variance_reduced``, a `sm_jax.parameterization.EnergyScore` in float32 at least costs
    energies alone, one for each example and two for each probe. With ``E+`` and ``E-`` the energies
    at ``x + d`` and ``x - d``, and ``h = |d| / |v|`` the step as rounded, the loss is the mean of

        (2 E - E+ - E-) / h^2 + 1/2 ((E+ - E-) / (2 h))^2.

    This is the form of Pang et al. It saves the gradients (BENCHMARKS.md) and needs a larger step.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        epsilon: step ``h`` along the probe, in units of the data. The bias is ``O(h^2)``. Rounding
            of the scores costs about ``eps |s| / (6 h)`` for each probe, rounding of the energies
            ``eps |E| / (2 h^2)``, where ``eps`` is that of the dtype, 1.2e-7 for float32, if only
            the result of the network is rounded (in truth its inner results are, too). A fair
            choice is 1e-2 of the scale of the data for scores, 1e-1 for energies.
        num_probes: directions per example, averaged.
        probe: as in `sliced`; the signs of its numbers independent.
        variance_reduced: as in `sliced`.

    Returns:
        ``[B]``, in nats.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, ``num_probes < 1``, ``epsilon``
            is not one positive number, or energies are taken at points (where they are not traced)
            whose spacing is more than a 64th of ``epsilon``.

    Example:
        >>> x, key = jnp.ones((1, 3)), jax.random.key(0)
        >>> loss = finite_difference_sliced(lambda x: -x, x, key, epsilon=0.5)
        >>> print(loss)
        [-1.5]

    Reference: Pang et al. 2020, https://arxiv.org/abs/2007.03317
    """
    x = _checks.check_data(x)
    _checks.check_scalar("epsilon", epsilon)
    _checks.check_positive("epsilon", epsilon)
    draw, keys = probe_source(key, x, num_probes, probe)
    wide = x.dtype == _arrays.accumulator(x.dtype)
    if isinstance(score_fn, EnergyScore) and wide and not variance_reduced:
        _check_step(epsilon, x)
        energy_fn = score_fn.energy_fn
        one = partial(_from_energies, energy_fn, x, _energy(energy_fn, x), epsilon)
    else:
        one = partial(_from_scores, score_fn, x, epsilon, variance_reduced)
    return jnp.mean(jnp.stack([one(draw(key)) for key in keys]), axis=0)


def _from_scores(
    score_fn: ScoreFn, x: jax.Array, epsilon: ArrayLike, variance_reduced: bool, v: jax.Array
) -> jax.Array:
    """Return the loss along ``v`` by eq. (3), ``[B]``."""
    d = _exact_step(x, v, epsilon)
    ahead, behind = (_checks.check_score(score_fn(y), x) for y in _moved(x, d))
    ahead, behind, v = map(_arrays.accumulated, (ahead, behind, v))
    form = _arrays.sum_data_axes(v**2 * (ahead - behind) / jnp.where(v == 0, 1, 2 * d))
    score = 0.5 * (ahead + behind)
    if variance_reduced:
        return form + 0.5 * _arrays.sum_data_axes(score**2)
    return form + 0.5 * _arrays.sum_data_axes(v * score) ** 2


def _from_energies(
    energy_fn: EnergyFn, x: jax.Array, energy: jax.Array, epsilon: ArrayLike, v: jax.Array
) -> jax.Array:
    """Return the loss along ``v`` by eqs. (4) and (5), ``h`` the length moved: ``[B]``."""
    d = _exact_step(x, v, epsilon)
    ahead, behind = (_energy(energy_fn, y) for y in _moved(x, d))
    h_squared = _arrays.sum_data_axes(d**2) / _arrays.sum_data_axes(v**2)
    form = (2 * energy - ahead - behind) / h_squared
    return form + (ahead - behind) ** 2 / (8 * h_squared)


def _exact_step(x: jax.Array, v: jax.Array, epsilon: ArrayLike) -> jax.Array:
    """Return ``d`` near ``h v``, with ``x + d`` and ``x - d`` exact in the dtype of ``x``.

    It moves every number away from zero, where the spacing is the wider, and by one spacing at
    least. XLA may leave out conversions to a narrow dtype, but not ``reduce_precision``.
    """
    info = jnp.finfo(x.dtype)
    size, length = (jnp.abs(_arrays.accumulated(value)) for value in (x, v))
    step = jnp.maximum(jnp.asarray(epsilon, size.dtype) * length, float(info.eps) * size)
    away = jax.lax.reduce_precision(size + step, info.nexp, info.nmant)
    return jnp.sign(v) * (away - size)


def _moved(x: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return ``x + d`` and ``x - d`` in the dtype of ``x``."""
    center = _arrays.accumulated(x)
    return (center + d).astype(x.dtype), (center - d).astype(x.dtype)


def _energy(energy_fn: EnergyFn, x: jax.Array) -> jax.Array:
    return _arrays.accumulated(_checks.check_energy(energy_fn(x), x))


def _check_step(epsilon: ArrayLike, x: jax.Array) -> None:
    """Raise where the (concrete) points have a spacing that is not small against the step."""
    spacing, step = _arrays.spacing(x), _arrays.concrete(epsilon)
    if spacing is not None and step is not None and np.any(spacing.max() > step / 64):
        raise ValueError(
            f"epsilon, {epsilon}, must be at least 64 times the spacing of the {x.dtype} numbers "
            f"near x, {spacing.max():.3g}: raise it, center x, or pass variance_reduced=True."
        )
