"""The score of one noising process from that of another."""

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax.parameterization._energy import EnergyScore
from sm_jax.processes import noise_ratio
from sm_jax.typing import NoiseScoreFn, ProcessLike


def change_process(
    score_fn: NoiseScoreFn, *, source: ProcessLike, target: ProcessLike
) -> NoiseScoreFn:
    """Return the score function under another process than the one a network was trained for.

    The noised data of two processes differ only in scale where their ratios ``r = sigma / alpha``
    agree. So the change is exact: with ``c = alpha_source(t') / alpha_target(t)``,

        s_target(x, t) = c s_source(c x, t'),    r_source(t') = r_target(t).

    The score does not depend on the ``mean`` of either process. That of ``target`` has to be that
    of the data for the prior to be where the noised data are.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]`` under ``source``.
        source: the process that the score was trained for.
        target: the process to sample or evaluate likelihoods with. Its ratios must lie within
            those of ``source``: outside, the network was not trained.

    Returns:
        A score function ``(x_t [B, ...], t [B]) -> [B, ...]`` under ``target``: for an
        `EnergyScore` that of the energy ``E_target(x, t) = E_source(c x, t')``, itself one.

    Raises:
        ValueError: the ratios of ``target`` (where they are not traced) leave those of ``source``.

    Example:
        >>> from sm_jax import processes
        >>> vp = processes.VPLinear(t_min=0.01)
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)  # of N(0, I) under VE
        >>> changed = change_process(
        ...     score_fn, source=processes.VE(sigma_max=200.0), target=vp)
        >>> # N(0, I) stays as it is under VP.
        >>> print(changed(jnp.ones((1, 2)), jnp.array([0.5])).round(5))
        [[-1. -1.]]

    Reference: Karras et al. 2022, appendix B.1, https://arxiv.org/abs/2206.00364
    """
    with jax.ensure_compile_time_eval():  # the ratios are known under jit too
        known = _arrays.all_concrete(
            noise_ratio(p, t) for p in (source, target) for t in (p.t_min, p.t_max)
        )
    slack = 1e-3  # of the ratio; rounding alone moves small ones by this much
    if known is not None:
        least, most, low, high = known
        if low < least * (1.0 - slack) or high > most * (1.0 + slack):
            raise ValueError(
                f"the score knows noise ratios sigma / alpha from {least:.4g} to {most:.4g}, those "
                f"of the source, but the target has {low:.4g} to {high:.4g}: raise t_min or "
                "sigma_min of the target, or lower its t_max, sigma_max or beta_max."
            )

    def at_source(x, t):
        """Return ``c``, the point ``c x`` and ``t'``."""
        t = _checks.check_per_example("t", t, x)
        source_t = source.time_at(noise_ratio(target, t))
        # Rounding may leave the range: the value is clipped, the slope is that of the map.
        clipped = jnp.clip(source_t, source.t_min, source.t_max)
        source_t = source_t + jax.lax.stop_gradient(clipped - source_t)
        scale = _arrays.expand_like(source.alpha(source_t) / target.alpha(t), x)
        return scale, (scale * x).astype(x.dtype), source_t

    if isinstance(score_fn, EnergyScore):
        energy_fn = score_fn.energy_fn
        return EnergyScore(lambda x, t: energy_fn(*at_source(x, t)[1:]))

    def changed(x: jax.Array, t: jax.Array) -> jax.Array:
        scale, moved, source_t = at_source(x, t)
        return (scale * score_fn(moved, source_t)).astype(x.dtype)

    return changed
