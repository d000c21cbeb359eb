"""A step of the probability flow: Heun's method, with the churn of EDM."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax.processes import noise_ratio
from sm_jax.samplers.steps._common import arguments, normal, score
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ProcessLike


def heun(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    t: ArrayLike,
    t_next: ArrayLike,
    key: jax.Array | None = None,
    *,
    process: ProcessLike,
    gamma: ArrayLike = 0.0,
    churn_interval: tuple[ArrayLike, ArrayLike] | None = None,
    churn_noise: ArrayLike = 1.0,
) -> jax.Array:
    """Take a step of EDM: churn, then Heun's method for the probability-flow ODE.

    In ``y = x / alpha``, whose noise has the standard deviation ``r``, the churn raises it to
    ``r_c``, that of the time ``t_c``, and the flow ``dy / dr = -r alpha s`` takes it to ``r'``:

        r_c = min(r (1 + min(gamma, sqrt(2) - 1)), r(t_max)),
        y <- y + churn_noise sqrt(r_c^2 - r^2) z,
        d = -r_c alpha(t_c) s(alpha(t_c) y, t_c),    y_e = y + (r' - r_c) d,
        d' = -r' alpha' s(alpha' y_e, t_next),       y <- y + (r' - r_c) (d + d') / 2.

    Two evaluations of the score. Without churn ``r_c = r``, ``t_c = t``, and nothing is drawn.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: points at time ``t``, ``[B, ...]``.
        t: the time of the points, a scalar.
        t_next: the time after the step, a scalar below ``t``.
        key: a random key, for ``gamma > 0`` only.
        process: the noising process of the score.
        gamma: growth of the noise by the churn of this step, EDM's ``S_churn / num_steps``.
        churn_interval: ``(low, high)``: churn only where ``low < t <= high``; by default always.
        churn_noise: EDM's ``S_noise``, a factor of the noise that the churn adds.

    Returns:
        Points at time ``t_next``, ``[B, ...]``.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``t_next`` is not below ``t``, the score has another shape, ``gamma`` is
            negative or has no key, ``churn_noise`` is not positive, or ``churn_interval`` is empty.

    Example:
        >>> from sm_jax import processes
        >>> x, process = jnp.ones((1, 2)), processes.VPLinear()
        >>> heun(lambda x, t: -x, x, 0.5, 0.4, process=process).shape
        (1, 2)

    Reference: Karras et al. 2022, algorithm 2, https://arxiv.org/abs/2206.00364
    """
    x, t, t_next = arguments(x, t, t_next)
    for name, value in (("gamma", gamma), ("churn_noise", churn_noise)):
        _checks.check_scalar(name, value)
    _checks.check_not_negative("gamma", gamma)
    _checks.check_positive("churn_noise", churn_noise)
    if churn_interval is not None:
        _checks.check_interval("churn_interval", churn_interval)

    y, r, r_next = x / process.alpha(t), noise_ratio(process, t), noise_ratio(process, t_next)
    key = _checks.key_for("gamma", gamma, key)
    if key is not None:
        # Never above the largest noise, where the score was not trained.
        largest = jnp.asarray(noise_ratio(process, process.t_max), r.dtype)
        growth = jnp.minimum(gamma, 2.0**0.5 - 1.0).astype(r.dtype)
        raised = jnp.minimum(r * (1.0 + growth), largest)
        if churn_interval is not None:
            low, high = churn_interval
            raised = jnp.where((low < t) & (t <= high), raised, r)
        # The root is guarded twice, as its derivative at zero is infinite.
        gap = (raised - r) * (raised + r)  # 0, where squares may round apart
        added = jnp.where(gap > 0.0, jnp.sqrt(jnp.where(gap > 0.0, gap, 1.0)), 0.0)
        y = y + churn_noise * added * normal(key, x)
        t, r = jnp.where(raised > r, process.time_at(raised), t), raised

    def slope(y, t, r):
        return -r * process.alpha(t) * score(score_fn, (process.alpha(t) * y).astype(x.dtype), t)

    first = slope(y, t, r)
    second = slope(y + (r_next - r) * first, t_next, r_next)
    y = y + 0.5 * (r_next - r) * (first + second)
    return (process.alpha(t_next) * y).astype(x.dtype)
