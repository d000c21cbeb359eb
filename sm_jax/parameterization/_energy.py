"""The score of an energy, as a type that keeps the energy in sight.

An energy ``E`` stands for the density ``p(x) ∝ exp(-E(x))``, with the score

    s(x) = -grad_x E(x).                                                               (1)

Some functions do better with the energy than with its gradient alone: the acceptance test of
`sm_jax.samplers.mala` is exact, `sm_jax.divergence.laplacian` takes one pass per dimension, and
`sm_jax.losses.finite_difference_sliced` needs no gradient. They recognize an `EnergyScore` by its
type. Wrapped in a ``jax.jit``, a ``lambda`` or a ``functools.partial`` it is a bare score.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _checks
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ScoreFn


@dataclass(frozen=True)
class EnergyScore:
    """The score function of an energy, ``s(x, *args) = -grad_x E(x, *args)``, ``p ∝ exp(-E)``.

    A call takes ``x [B, ...]`` (and the noise level ``t [B]`` of a noise-conditional energy) and
    returns the score ``[B, ...]``, in one forward and one backward pass of the energy. It raises a
    ``TypeError`` if ``x`` is not floating, and a ``ValueError`` if ``x`` is empty or the energy is
    not one number per example.

    `sm_jax.samplers.mala`, `sm_jax.divergence` and `sm_jax.losses.finite_difference_sliced`
    recognize this type and use the energy itself. A ``jax.jit``, ``lambda`` or ``partial`` around
    it is a bare score to them.

    Args:
        energy_fn: ``E``, ``(x [B, ...], *args) -> [B]`` in nats, row i depending on row i only.

    Attributes:
        energy_fn: the energy. Two scores of the same energy are equal and have the same hash.

    Raises:
        TypeError: ``energy_fn`` is not callable.

    Example:
        >>> score_fn = EnergyScore(lambda x: 0.5 * jnp.sum(x**2, axis=-1))
        >>> print(score_fn(jnp.ones((1, 2))))
        [[-1. -1.]]
    """

    energy_fn: Callable[..., jax.Array]

    def __post_init__(self):
        """Raise unless the energy is callable."""
        if not callable(self.energy_fn):
            raise TypeError(
                f"energy_fn must be callable, x [B, ...] -> [B], got {self.energy_fn!r}."
            )

    def __call__(self, x: ArrayOrList, *args: ArrayLike) -> jax.Array:
        """Return ``-grad_x E(x, *args)``, ``[B, ...]``."""
        x = _checks.check_data(x)
        energy, pull_back = jax.vjp(lambda y: self.energy_fn(y, *args), x)
        return pull_back(-jnp.ones_like(_checks.check_energy(energy, x)))[0]

    def at(self, t: ArrayLike) -> "EnergyScore":
        """Return the score of the energy ``x -> E(x, t)`` at a fixed noise level ``t``.

        Args:
            t: the noise level, ``[B]`` or a scalar, which the energy sees as ``[B]``.

        Returns:
            An `EnergyScore` without further arguments.

        Example:
            >>> score_fn = EnergyScore(lambda x, t: 0.5 * jnp.sum(x**2, axis=-1) / t**2)
            >>> print(score_fn.at(2.0)(jnp.ones((1, 2))))
            [[-0.25 -0.25]]
        """
        return EnergyScore(lambda x: self.energy_fn(x, _checks.check_per_example("t", t, x)))


def at_time(score_fn: NoiseScoreFn, t: ArrayLike) -> ScoreFn:
    """Return the score function ``x -> s(x, t)`` of a noise-conditional score at a fixed time.

    Args:
        score_fn: ``(x [B, ...], t [B]) -> [B, ...]``.
        t: the time or noise level, ``[B]`` or a scalar, which the score sees as ``[B]``, in
            float32 at least.

    Returns:
        A score function ``x [B, ...] -> [B, ...]``: an `EnergyScore` for an `EnergyScore`.

    Example:
        >>> print(at_time(lambda x, t: -x / t[:, None] ** 2, 2.0)(jnp.ones((1, 2))))
        [[-0.25 -0.25]]
    """
    if isinstance(score_fn, EnergyScore):
        return score_fn.at(t)
    return lambda x: score_fn(x, _checks.check_per_example("t", t, x))
