"""Denoising score matching at one noise level.

With ``x~ = x + sigma z``, ``z ~ N(0, I)``, the score ``s*`` of the smoothed density minimizes

    L(s) = sigma^2 E[1/2 |s(x~) - grad log p(x~ | x)|^2] = E[1/2 |sigma s(x~) + z|^2]  (1)
         = sigma^2 E[1/2 |s(x~) - s*(x~)|^2] + constant,                               (2)

scaled by ``sigma^2`` so that losses at all noise levels are of one size. As ``sigma`` falls, (1)
drowns in ``|z|^2 / 2`` and in ``sigma z' s``: the variance of its gradient, relative to
``sigma^2``, grows as ``1 / sigma^2``. Both have known means; subtracting them, the latter at ``x``,
leaves

    L(s) = E[1/2 |sigma s(x~) + z|^2 - sigma z' s(x) - 1/2 (|z|^2 - d)]
         = E[1/2 sigma^2 |s(x~)|^2 + sigma z' (s(x~) - s(x)) + d / 2],                 (3)

whose gradient relative to ``sigma^2`` has bounded variance, at the price of a second pass. It is
computed in the second form, in which ``|z|^2`` does not cancel.

``x~`` is rounded to the dtype of ``x``. From half the spacing of its numbers on, rounding acts as
noise of its own, and the minimizer is the score to within 2 %. Below, ``x~`` is mostly ``x``, and
the minimizer falls to zero: 0.82 of the score at 0.35 spacings, 0.43 at 0.25, 0.002 at 0.125. So
such ``sigma`` are refused. (With ``(x~ - x) / sigma`` for ``z`` the minimizer would be wrong from
one spacing on: 1.3 times the score at one half.)

References: Vincent 2011, https://doi.org/10.1162/NECO_a_00142; the control variate: Wang et al.
2020, https://arxiv.org/abs/2002.07501
"""

from collections.abc import Callable

import jax
import numpy as np

from sm_jax import _arrays, _checks
from sm_jax.typing import ArrayOrList, RandomFn, ScoreFn


def denoising(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    sigma: ArrayOrList,
    noise: RandomFn = jax.random.normal,
    control_variate: bool = False,
) -> jax.Array:
    """Return the denoising score matching loss ``1/2 |sigma s(x + sigma z) + z|^2``.

    ``z ~ N(0, I)``. With ``control_variate`` it is, with ``d`` numbers in an example and the same
    mean,

        1/2 sigma^2 |s(x + sigma z)|^2 + sigma z' (s(x + sigma z) - s(x)) + d / 2.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        sigma: standard deviation of the noise, in units of the data, a scalar or ``[B]``.
        noise: source of the unit normal noise ``z``, with the signature of ``jax.random.normal``.
        control_variate: far less variance at small ``sigma``, for one more pass of the network.

    Returns:
        ``[B]``, in nats, scaled by ``sigma^2``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or ``sigma`` is not positive,
            neither a scalar nor ``[B]``, or (where neither is traced) below half the spacing of
            floating point numbers near ``x``.

    Example:
        >>> x, key = jax.numpy.zeros((1, 3)), jax.random.key(0)
        >>> print(denoising(lambda x: -x / 8.0, x, key, sigma=2.0, noise=lambda *_: x + 1.0))
        [0.375]

    Reference: Vincent 2011, https://doi.org/10.1162/NECO_a_00142
    """
    x = _checks.check_data(x)
    sigma = _checks.check_per_example("sigma", sigma, x)
    _checks.check_positive("sigma", sigma)
    check_above_spacing("sigma", sigma, x)
    z = _arrays.drawn(noise, key, x)
    return noise_error(score_fn, x, sigma, z, control_variate)


def noise_error(
    score_fn: Callable, center: jax.Array, sigma: jax.Array, z: jax.Array, control_variate: bool
) -> jax.Array:
    """Return eq. (1) or (3) for ``sigma [B]`` and noise ``z`` around ``center``, ``[B, ...]``."""
    sigma, z = _arrays.expand_like(sigma, center), _arrays.accumulated(z)

    def scaled_score(points):
        points = points.astype(center.dtype)
        return sigma * _checks.check_score(score_fn(points), points)

    scaled = scaled_score(center + sigma * z)
    if not control_variate:
        return 0.5 * _arrays.sum_data_axes((scaled + z) ** 2)
    change = scaled - scaled_score(center)
    return _arrays.sum_data_axes(0.5 * scaled**2 + z * change) + 0.5 * _arrays.num_dims(center)


def check_above_spacing(name: str, sigma: ArrayOrList, x: jax.Array) -> None:
    """Raise if the (concrete) ``sigma``, a scalar or ``[B]``, is lost in the rounding of ``x``."""
    if (lost := lost_in_rounding(sigma, x)) is not None:
        raise ValueError(f"{name} {lost}")


def lost_in_rounding(sigma: ArrayOrList, x: jax.Array) -> str | None:
    """Return words on (concrete) noise levels below half the spacing of ``x``, or None."""
    spacing, known = _arrays.spacing(x), _arrays.concrete(sigma)
    if spacing is None or known is None or np.all(known >= 0.5 * spacing):
        return None
    return (
        f"is {known.min():.3g}, below half the spacing of {x.dtype} numbers near x, up to "
        f"{spacing.max():.3g}: rounding swallows such noise, and the score learned would be too "
        "small. Raise it, center x, or pass x in a wider dtype."
    )
