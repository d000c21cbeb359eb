r"""Curl of a score: how far its Jacobian is from symmetric.

The Jacobian ``J = grad s`` of a score is a Hessian, hence symmetric. A network is not made so, and
what it lacks is its *asymmetry*: with probes ``v`` of identity covariance,

    |J - J'|_F^2 = E[|J v - J' v|^2],                                                  (1)
    |J|_F^2      = E[(|J v|^2 + |J' v|^2) / 2],                                        (2)

and their ratio ``|J - J'|_F^2 / (4 |J|_F^2)`` is the share of the antisymmetric part in the squared
norm of ``J``: 0 for a gradient, 1 for a pure rotation.

Reference: Chao et al. 2023, https://arxiv.org/abs/2209.12753
"""

from functools import partial
from typing import NamedTuple

import jax

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax._probes import draw_probes
from sm_jax.typing import ArrayOrList, RandomFn, ScoreFn


class Curl(NamedTuple):
    """How far the Jacobian of a score is from symmetric.

    Attributes:
        curl: estimates of ``|J - J'|_F^2``, ``[B]``, eq. (1).
        norm: estimates of ``|J|_F^2``, ``[B]``, eq. (2).
        share: ``curl / (4 norm)``, ``[B]``, from 0 to 1; NaN where the Jacobian is zero. A
            ratio of two estimates: it is biased where probes are few.
    """

    curl: jax.Array
    norm: jax.Array
    share: jax.Array


def curl(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    num_probes: int = 1,
    probe: RandomFn = jax.random.rademacher,
) -> Curl:
    """Estimate the squared asymmetry of the Jacobian of a score, eqs. (1) and (2).

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only.
        x: points ``[B, ...]``, best from the (noised) data.
        key: a random key.
        num_probes: probes per row; their estimates are averaged.
        probe: ``(key, shape [B, ...], dtype) -> probes``, with identity covariance.

    Returns:
        ``Curl(curl [B], norm [B], share [B])``: squared Frobenius norms, without a factor
        1/2, the first two unbiased. One pass of the network, and two products per probe.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or ``num_probes < 1``.

    Example:
        >>> x, turn = jax.numpy.ones((1, 2)), jax.numpy.array([[0.0, 1.0], [-1.0, 0.0]])
        >>> result = curl(lambda x: x @ turn - x, x, jax.random.key(0))
        >>> print(result.curl, result.norm, result.share)
        [8.] [4.] [0.5]
    """
    x = _checks.check_data(x)
    probes = draw_probes(key, x, num_probes, probe)
    _, push = jax.linearize(_checks.checked(score_fn, x), x)
    pull = jax.linear_transpose(push, x)

    def one(v):
        forward, backward = map(_arrays.accumulated, (push(v), *pull(v)))
        norm = 0.5 * _arrays.sum_data_axes(forward**2 + backward**2)
        return _arrays.sum_data_axes((forward - backward) ** 2), norm

    curl, norm = (values.mean(axis=0) for values in compiled(partial(jax.lax.map, one), probes))
    return Curl(curl, norm, curl / (4.0 * norm))
