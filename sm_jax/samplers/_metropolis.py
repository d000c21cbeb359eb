"""The Metropolis-adjusted Langevin algorithm (MALA), for energies and for bare scores.

From ``x`` a Langevin step of size ``h`` proposes ``y ~ N(x + h s(x), 2 h I)``. It is accepted with
probability ``min(1, a)``, else the chain stays where it is, where

    log a = G - (y - x)'(s(x) + s(y)) / 2 - h (|s(y)|^2 - |s(x)|^2) / 4,               (1)
    G = log p(y) - log p(x) = E(x) - E(y).                                             (2)

The exact ``G`` leaves ``p`` invariant for every ``h``, and for any vector field in the place of
``s``. Without an energy, ``G`` is the line integral of the score along the segment,

    G = int_0^1 (y - x)' s(x + u (y - x)) du ~ S_n,                                    (3)

by Simpson's rule ``S_n`` on ``n`` panels of equal length, ``n`` even. A proposal is also rejected
where half as many panels say something else,

    |S_n - S_{n/2}| > 0.3 nats.                                                        (4)

(4) is symmetric in ``x`` and ``y``, so these rejections leave ``p`` invariant. The error of ``S_n``
where the two agree remains. It is zero for scores that are cubic in ``x`` (log-densities of degree
four, Gaussians among them), and otherwise of order ``|y - x|^5 / n^4``. Neither rule sees a feature
of the score that lies between the nodes, which are ``|y - x| / (2 n)`` apart: of the score of
quantized data at small noise, flat but for narrow peaks, both rules may give zero. So the nodes
must be closer than the width of the narrowest feature,

    sqrt(2 h D) / (2 n) < width,    |y - x| ~ sqrt(2 h D).                              (5)

`adapt_step_size` cannot see this either, as an unseen peak counts as acceptance.

References: Roberts & Tweedie 1996, https://doi.org/10.2307/3318418; Roberts & Rosenthal 1998,
https://doi.org/10.1111/1467-9868.00123
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax._scan import wide
from sm_jax.parameterization import EnergyScore
from sm_jax.samplers import steps
from sm_jax.typing import ArrayOrList, EnergyFn, ScoreFn

_LARGEST_DIFFERENCE = 0.3  # in nats, of the two rules for the same line integral


class Chain(NamedTuple):
    """What a sampler with an accept-reject step returns.

    Attributes:
        x: the last points, ``[B, ...]``.
        acceptance_rate: mean over the steps of the probability of acceptance, ``[B]``.
        exact: whether the acceptance test took the energy, a boolean array ``[]``. False for a bare
            score, for which the test integrates the score along each step.
        trajectory: the start and every iterate, ``[num_steps + 1, B, ...]``, or None without
            ``trajectory=True``.
    """

    x: jax.Array
    acceptance_rate: jax.Array
    exact: jax.Array
    trajectory: jax.Array | None


class Point(NamedTuple):
    """A point of a chain, and what was computed there: each entry ``[B]`` or ``[B, ...]``."""

    x: jax.Array
    score: jax.Array
    log_prob: jax.Array | None
    parts: Any = ()


def log_prob_and_score(energy_fn: EnergyFn, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return ``-E(x)`` and its gradient ``-grad E(x)``, from one pass.

    Args:
        energy_fn: ``x [B, ...] -> [B]``, the energy ``E``.
        x: points ``[B, ...]``.

    Returns:
        ``(log_prob [B], score [B, ...])``, the former in nats, up to the normalizer, and in float32
        at least.

    Raises:
        ValueError: the energy is not one number per example.

    Example:
        >>> energy_fn = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
        >>> print(*log_prob_and_score(energy_fn, jnp.ones((1, 2))))
        [-1.] [[-1. -1.]]
    """
    energy, pull_back = jax.vjp(energy_fn, x)
    _checks.check_energy(energy, x)
    return -_arrays.accumulated(energy), pull_back(-jnp.ones_like(energy))[0]


def simpson(values: jax.Array) -> jax.Array:
    """Return the integral over [0, 1] of values at equal distances, ``[2 n + 1, B] -> [B]``."""
    total = values[0] + values[-1] + 4.0 * values[1::2].sum(0) + 2.0 * values[2:-1:2].sum(0)
    return total / (3.0 * (values.shape[0] - 1))


def target(
    score_fn: ScoreFn, energy_fn: EnergyFn | None, x: jax.Array, num_panels: int
) -> tuple[Callable, Callable, jax.Array]:
    """Return ``x -> Point``, the gain ``(old, new) -> G [B]``, and whether that is exact.

    The points are in float32 at least; the score and the energy see them in the dtype of ``x``.
    """
    if not callable(score_fn):
        raise TypeError(
            f"score_fn must be callable, got {score_fn!r}: for an energy pass "
            "parameterization.EnergyScore(energy_fn)."
        )
    _checks.check_count("num_panels", num_panels, minimum=2)
    if num_panels % 2:
        raise ValueError(f"num_panels must be even, got {num_panels}: half as many check them.")
    proposing, one_pass = wide(score_fn, x), False
    if energy_fn is None and isinstance(score_fn, EnergyScore):
        energy_fn, one_pass = score_fn.energy_fn, True

    def evaluate(y):
        if energy_fn is None:
            return Point(y, proposing(y), None)
        if one_pass:
            log_prob, score = log_prob_and_score(energy_fn, y.astype(x.dtype))
            return Point(y, _arrays.accumulated(score), log_prob)
        energy = _checks.check_energy(energy_fn(y.astype(x.dtype)), y)
        return Point(y, proposing(y), -_arrays.accumulated(energy))

    def gain(old, new):
        """Return eq. (2), or where there is no energy eq. (3), ``-inf`` for what (4) rejects."""
        if energy_fn is not None:
            return new.log_prob - old.log_prob
        away = new.x - old.x
        nodes = jnp.arange(1, 2 * num_panels, dtype=away.dtype) / (2 * num_panels)
        inner = jax.lax.map(
            lambda u: _arrays.sum_data_axes(away * proposing(old.x + u * away)), nodes
        )
        ends = (_arrays.sum_data_axes(away * point.score)[None] for point in (old, new))
        slopes = jnp.concatenate([next(ends), inner, next(ends)])
        fine, coarse = simpson(slopes), simpson(slopes[::2])
        return jnp.where(jnp.abs(fine - coarse) <= _LARGEST_DIFFERENCE, fine, -jnp.inf)

    return evaluate, gain, jnp.asarray(energy_fn is not None)


def metropolis_step(
    evaluate: Callable[[jax.Array], Point],
    gain: Callable[[Point, Point], jax.Array],
    point: Point,
    key: jax.Array,
    *,
    step_size: ArrayLike,
) -> tuple[Point, jax.Array]:
    """Take one step of the Metropolis-adjusted Langevin algorithm, for a loop of one's own.

    From ``x`` it proposes ``y = x + h s(x) + sqrt(2 h) z``, ``z ~ N(0, I)``, and accepts it with
    the probability ``min(1, a)``, else it stays where it is:

        log a = G - (y - x)'(s(x) + s(y)) / 2 - h (|s(y)|^2 - |s(x)|^2) / 4,
        G = log p(y) - log p(x).

    Args:
        evaluate: what is to be known at the points of a chain, ``x [B, ...] -> Point``.
        gain: ``(old, new) -> G [B]``, e.g. the difference of their ``log_prob``.
        point: the chains, a `Point`.
        key: a random key.
        step_size: ``h``, in squared units of the data.

    Returns:
        ``(point, probability [B])``: the next point and the probability of acceptance.

    Example:
        >>> energy_fn = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
        >>> def evaluate(x):
        ...     log_prob, score = log_prob_and_score(energy_fn, x)
        ...     return Point(x, score, log_prob)
        >>> gain, key = lambda old, new: new.log_prob - old.log_prob, jax.random.key(0)
        >>> start = evaluate(jnp.zeros((4, 2)))
        >>> point, probability = metropolis_step(evaluate, gain, start, key, step_size=0.5)
        >>> point.x.shape, probability.shape
        ((4, 2), (4,))

    Reference: Roberts & Tweedie 1996, https://doi.org/10.2307/3318418
    """
    key_proposal, key_accept = jax.random.split(key)
    dtype = _arrays.accumulator(point.x.dtype)
    step_size = jnp.asarray(step_size, dtype)
    y = steps.langevin(lambda _: point.score, point.x, key_proposal, step_size=step_size)
    new = evaluate(y)

    away, s_x, s_y = map(_arrays.accumulated, (y, point.score, new.score))
    away = away - point.x
    # Both other terms of (1) at once: |s_y|^2 - |s_x|^2 = (s_y - s_x)'(s_y + s_x).
    imbalance = _arrays.sum_data_axes((s_x + s_y) * (0.5 * away + 0.25 * step_size * (s_y - s_x)))
    log_ratio = (gain(point, new) - imbalance).astype(dtype)

    # A proposal of zero density, or where anything is NaN, is never accepted.
    accept = -jax.random.exponential(key_accept, log_ratio.shape, log_ratio.dtype) < log_ratio
    probability = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    point = jax.tree.map(
        lambda moved, stayed: jnp.where(_arrays.expand_like(accept, moved), moved, stayed),
        new,
        point,
    )
    return point, probability


def mala(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    step_size: ArrayLike,
    num_steps: int,
    energy_fn: EnergyFn | None = None,
    num_panels: int = 2,
    trajectory: bool = False,
) -> Chain:
    """Run the Metropolis-adjusted Langevin algorithm (MALA) on every row of ``x``.

    A step proposes ``y = x + h s(x) + sqrt(2 h) z``, ``z ~ N(0, I)``, ``h = step_size``, and
    accepts it with probability ``min(1, a)``; else the chain stays where it is:

        log a = G - (y - x)'(s(x) + s(y)) / 2 - h (|s(y)|^2 - |s(x)|^2) / 4,
        G = E(x) - E(y)                                     of an energy,
        G = int_0^1 (y - x)' s(x + u (y - x)) du            of a bare score.

    For an energy (an `EnergyScore`, or ``energy_fn``) the test is exact: the density is invariant,
    whatever the step. For a bare score the integral is Simpson's rule ``S_n`` on ``n = num_panels``
    panels, and a proposal with ``|S_n - S_{n/2}| > 0.3`` nats is rejected; the density is invariant
    up to the error of the rule where the two agree. Its nodes are about ``sqrt(2 h D) / (2 n)``
    apart and miss what is narrower: choose ``h`` or ``n`` so that the score varies little between
    them. (Of eight cells with edges of width 0.01 the total variation is 0.24 where the nodes are
    0.034 apart.) For two modes of deviations .55 and .89, 2.5 apart, the total variation from the
    density is 0.001 at the step of `adapt_step_size` (without the check 0.03, with one panel 0.09),
    and less for smaller steps and more panels. ``Chain.exact`` says which test was used.

    Prefer MALA where the density itself matters: long runs, estimates, energies. It fails where
    Langevin dynamics fails, between separate modes; where the step is so large that nothing is
    accepted (`adapt_step_size`); and for a bare score that is far from a gradient, which has no
    density to keep.

    Under ``jax.jit``: ``jax.jit(partial(mala, score_fn, step_size=0.1, num_steps=100))``.

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``, row i depending on row i only. For an energy,
            ``parameterization.EnergyScore(energy_fn)``; a ``jit``, ``lambda`` or ``partial`` around
            that is a bare score.
        x: starting points ``[B, ...]``.
        key: a random key.
        step_size: ``h``, in squared units of the data. In high dimensions the best acceptance
            rate is 0.574; see `adapt_step_size`.
        num_steps: number of steps. Evaluations: ``num_steps + 1`` of an `EnergyScore` (or of
            ``score_fn`` and ``energy_fn`` each); of a bare score, ``2 num_panels num_steps + 1``.
        energy_fn: ``x [B, ...] -> [B]``, an energy for the test, in which case ``score_fn``, any
            vector field, only proposes. Its differences are rounded as its values are: an energy of
            1e6 nats in float32 is known to 0.06.
        num_panels: ``n``, even; of no effect on an energy.
        trajectory: also return the trajectory.

    Returns:
        ``Chain(x [B, ...], acceptance_rate [B], exact [], trajectory)``; the trajectory is
        ``[num_steps + 1, B, ...]``, or None without ``trajectory``.

    Raises:
        TypeError: ``score_fn`` is not callable, ``x`` is not floating, or the score has another
            dtype.
        ValueError: ``x`` is empty, the score or the energy has the wrong shape, ``num_steps < 1``,
            ``num_panels`` is not even and positive, or ``step_size`` is not positive.

    Example:
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> chain = mala(lambda x: -x, x, key, step_size=0.5, num_steps=50)
        >>> chain.x.shape, chain.acceptance_rate.shape, bool(chain.exact)
        ((4, 2), (4,), False)
        >>> from sm_jax.parameterization import EnergyScore
        >>> score_fn = EnergyScore(lambda x: 0.5 * jnp.sum(x**2, axis=-1))
        >>> bool(mala(score_fn, x, key, step_size=0.5, num_steps=50).exact)
        True

    Reference: Roberts & Tweedie 1996, https://doi.org/10.2307/3318418
    """
    x = _checks.check_data(x)
    _checks.check_key("mala", key)
    _checks.check_scalar("step_size", step_size)
    _checks.check_positive("step_size", step_size)
    _checks.check_count("num_steps", num_steps)
    evaluate, gain, exact = target(score_fn, energy_fn, x, num_panels)

    def body(state, key):
        point, total = state
        point, probability = metropolis_step(evaluate, gain, point, key, step_size=step_size)
        return (point, total + probability), point.x.astype(x.dtype) if trajectory else None

    start = (
        compiled(evaluate, _arrays.accumulated(x)),
        jnp.zeros(x.shape[:1], _arrays.accumulator(x.dtype)),
    )
    (point, total), iterates = compiled(
        partial(jax.lax.scan, body), start, jax.random.split(key, num_steps)
    )
    states = jnp.concatenate([x[None], iterates]) if trajectory else None
    return Chain(point.x.astype(x.dtype), total / num_steps, exact, states)
