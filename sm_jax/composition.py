r"""New densities from trained ones: products, powers, quotients and mixtures of energies or scores.

With ``p_i ∝ exp(-E_i)`` and ``s_i = -grad E_i``,

    prod_i p_i^w_i           E = sum_i w_i E_i,    s = sum_i w_i s_i,                  (1)
    sum_i w_i p_i / Z_i      E = -log sum_i exp(log w_i - log Z_i - E_i),              (2)
                             s = sum_i r_i s_i,    r = softmax(log w - log Z - E).     (3)

`product` is (1), for energies and for scores alike; `temper` and `divide` are two cases of it.
`mixture` is (2), and `mixture_score` (3), for which scores alone do not suffice.

At a noise level, where densities are noised and functions take ``(x, t)``:

* A mixture of noised densities is the noised mixture. (2) and (3) are exact at every noise level.
* A product of noised densities is *not* the noised product. (1) then is a sequence of densities
  that starts at nearly noise and ends at the product, and has to be sampled as such: by Markov
  chains at each noise level, as in annealed Langevin dynamics. A reverse diffusion with the summed
  score has another result. For two factors ``N(0, v)``, whose product has the variance ``v / 2``,
  the variance exploding reverse SDE ends with ``v / 3``, and the probability flow with 0.

So what `product`, `temper` and `divide` return refuses to be called with a noise level unless it
was made with ``annealed=True``.

References: Hinton 2002, https://doi.org/10.1162/089976602760128018; Du et al. 2020,
https://arxiv.org/abs/2004.06030 and 2023, https://arxiv.org/abs/2302.11552
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.typing import ArrayOrList, EnergyFn, NoiseScoreFn, ScoreFn

__all__ = ["divide", "mixture", "mixture_score", "product", "temper"]

# An energy or a score, of one density or noise-conditional.
_Fn = Callable[..., jax.Array]


def product(
    fns: Sequence[_Fn], *, weights: ArrayOrList | None = None, annealed: bool = False
) -> _Fn:
    """Return the energy, or the score, of the product ``prod_i p_i^w_i`` of densities.

    It is the weighted sum of its factors: of energies ``E = sum_i w_i E_i``, of scores
    ``s = sum_i w_i s_i``. For an `sm_jax.parameterization.EnergyScore` of the product, compose the
    energies: ``EnergyScore(product(energy_fns))``.

    Args:
        fns: ``K`` energies ``x [B, ...] -> [B]``, or ``K`` scores ``x [B, ...] -> [B, ...]``; also
            with a noise level, ``(x, t)``.
        weights: ``w [K]``, the powers; all 1 by default. They may be negative, but then the result
            need not be the energy of a density.
        annealed: declare that the result serves for Markov chains at each noise level
            (`sm_jax.samplers.annealed_langevin` and the like), in which case it may be called with
            a noise level. It is not the score that a diffusion sampler needs.

    Returns:
        A function of the kind of ``fns``, each call one of every factor.

    Raises:
        ValueError: ``fns`` is empty or ``weights`` is not one finite number for each; or, at a
            call, if the factors return different shapes, or a noise level is given without
            ``annealed``.

    Example:
        >>> energy_fn = product([lambda x: x**2, lambda x: (x - 1.0) ** 2])
        >>> print(energy_fn(jnp.array([0.0, 3.0])))
        [ 1. 13.]

    Reference: Hinton 2002, https://doi.org/10.1162/089976602760128018
    """
    fns = _several("fns", fns)
    weights = [1.0] * len(fns) if weights is None else weights
    powers = jnp.asarray(weights)
    if powers.shape != (len(fns),):
        raise ValueError(
            f"weights must hold one number for each of the {len(fns)} factors, got shape "
            f"{powers.shape}."
        )
    _check_finite("weights", weights)

    def composed(x: jax.Array, *args: jax.Array) -> jax.Array:
        if args and not annealed:
            raise ValueError(
                "the product of noised densities is not the noised product, so this sum, called "
                "with a noise level, is not the score that a diffusion sampler needs: compose the "
                "energies or scores with annealed=True and sample them by Markov chains at each "
                "noise level, e.g. samplers.annealed_langevin."
            )
        terms = _same_shape([fn(x, *args) for fn in fns])
        powered = [w * _arrays.accumulated(term) for w, term in zip(powers, terms, strict=True)]
        return sum(powered[1:], powered[0]).astype(terms[0].dtype)

    return composed


def temper(fn: _Fn, *, inverse_temperature: ArrayLike, annealed: bool = False) -> _Fn:
    """Return the energy ``b E``, or the score ``b s``, of the power ``p^b`` of a density.

    Args:
        fn: an energy or a score, also with a noise level.
        inverse_temperature: ``b``: above 1 sharpens the density, below 1 flattens it.
        annealed: as in `product`: a power of noised densities is not the noised power.

    Returns:
        A function of the kind of ``fn``: ``inverse_temperature`` times its value.

    Raises:
        ValueError: ``inverse_temperature`` is not one finite number; or, at a call, a noise level
            is given without ``annealed``.

    Example:
        >>> print(temper(lambda x: -x, inverse_temperature=2.0)(jnp.array([3.0])))
        [-6.]
    """
    if np.shape(inverse_temperature) != ():
        raise ValueError(
            f"inverse_temperature must be a scalar, got shape {np.shape(inverse_temperature)}."
        )
    _check_finite("inverse_temperature", inverse_temperature)
    return product([fn], weights=jnp.asarray(inverse_temperature)[None], annealed=annealed)


def divide(fn: _Fn, other: _Fn, *, strength: ArrayLike, annealed: bool = False) -> _Fn:
    """Return the energy, or the score, of the quotient ``p / q^strength`` of densities.

    It is the difference ``E_p - strength E_q``, or ``s_p - strength s_q``, which favors what ``p``
    has and ``q`` has not. It is a density only where ``p`` falls off faster than ``q^strength``:
    for Gaussians, where ``1 / v_p > strength / v_q``.

    Args:
        fn: energy or score of ``p``, also with a noise level.
        other: energy or score of ``q``.
        strength: the power of ``q``, positive.
        annealed: as in `product`: a quotient of noised densities is not the noised quotient. For
            the approximation that takes it as such see `sm_jax.guidance.classifier_free`.

    Returns:
        A function of the kind of ``fn``.

    Raises:
        ValueError: ``strength`` is not a positive scalar; or, at a call, if the two return
            different shapes, or a noise level is given without ``annealed``.

    Example:
        >>> print(divide(lambda x: -x, lambda x: 1.0 - x, strength=0.5)(jnp.array([2.0])))
        [-1.5]

    Reference: Du et al. 2020, https://arxiv.org/abs/2004.06030
    """
    if np.shape(strength) != ():
        raise ValueError(f"strength must be a scalar, got shape {np.shape(strength)}.")
    _checks.check_positive("strength", strength)
    weights = jnp.stack([jnp.ones_like(strength), -jnp.asarray(strength)])
    return product([fn, other], weights=weights, annealed=annealed)


def mixture(
    energy_fns: Sequence[EnergyFn],
    *,
    weights: ArrayOrList | None = None,
    log_normalizers: ArrayOrList | None = None,
) -> EnergyFn:
    """Return the energy of the mixture ``sum_i w_i p_i`` of densities ``p_i = exp(-E_i) / Z_i``.

    With ``w`` divided by its sum, ``E = -log sum_i exp(log w_i - log Z_i - E_i)``. It is exact with
    a noise level too, if the energies are those of noised densities and their normalizers do not
    change with the noise level.

    Args:
        energy_fns: ``K`` energies ``(x [B, ...], *args) -> [B]``.
        weights: ``w [K]``, not negative; divided by their sum. All alike by default.
        log_normalizers: ``log Z [K]``, ``Z_i = integral exp(-E_i)``: without them a mixture is not
            determined. By default 0: the energies are ``-log p_i`` themselves.

    Returns:
        An energy ``(x, *args) -> [B]``, ``-log p`` of the mixture, in nats.

    Raises:
        ValueError: ``energy_fns`` is empty, ``weights`` or ``log_normalizers`` is not one finite
            number for each, a weight is negative or all are 0; or, at a call, if the energies
            differ in shape.

    Example:
        >>> energy_fn = mixture(
        ...     [lambda x: 0.5 * x**2, lambda x: 0.5 * (x - 4.0) ** 2],
        ...     weights=[0.3, 0.7], log_normalizers=jnp.full(2, 0.5 * jnp.log(2.0 * jnp.pi)))
        >>> print(f"{energy_fn(jnp.zeros(1))[0]:.4f}")  # -log(0.3 / sqrt(2 pi)), nearly
        2.1221
    """
    energy_fns = _several("energy_fns", energy_fns)
    shares, log_normalizers = _components(len(energy_fns), weights, log_normalizers)

    def energy_fn(x: jax.Array, *args: jax.Array) -> jax.Array:
        energies = _stacked_energies(energy_fns, x, args)
        largest, densities = _densities(energies, shares, log_normalizers)
        return -(largest + jnp.log(densities.sum(axis=0)))

    return energy_fn


def mixture_score(
    score_fns: Sequence[ScoreFn | NoiseScoreFn],
    energy_fns: Sequence[EnergyFn],
    *,
    weights: ArrayOrList | None = None,
    log_normalizers: ArrayOrList | None = None,
) -> ScoreFn | NoiseScoreFn:
    """Return the score of the mixture ``sum_i w_i p_i`` of densities ``p_i = exp(-E_i) / Z_i``.

    It is ``s = sum_i r_i s_i`` with ``r = softmax(log w - log Z - E)``, the probabilities of the
    components at a point. The scores alone do not determine these, so the energies are needed too.
    With energies only, ``EnergyScore(mixture(energy_fns))`` is the same score.

    Args:
        score_fns: ``K`` scores ``(x [B, ...], *args) -> [B, ...]``.
        energy_fns: the energy of each, ``(x [B, ...], *args) -> [B]``, e.g. minus a log-density.
        weights: as in `mixture`.
        log_normalizers: as in `mixture`.

    Returns:
        A score function of the kind of ``score_fns``; exact with a noise level as well.

    Raises:
        TypeError: at a call, if a score has another dtype than ``x``.
        ValueError: there are no scores or not as many energies, ``weights`` or ``log_normalizers``
            is not one finite number for each, a weight is negative or all are 0; or, at a call, if
            a score has another shape than ``x``, or the energies differ in shape.

    Example:
        >>> score_fn = mixture_score(
        ...     [lambda x: -x, lambda x: 4.0 - x],
        ...     [lambda x: 0.5 * x**2, lambda x: 0.5 * (x - 4.0) ** 2])
        >>> print(score_fn(jnp.array([2.0])))  # half way
        [0.]
    """
    score_fns = _several("score_fns", score_fns)
    energy_fns = _several("energy_fns", energy_fns)
    if len(score_fns) != len(energy_fns):
        raise ValueError(
            f"each score needs its energy, got {len(score_fns)} scores and {len(energy_fns)} "
            "energies."
        )
    shares, log_normalizers = _components(len(score_fns), weights, log_normalizers)

    def score_fn(x: jax.Array, *args: jax.Array) -> jax.Array:
        scores = [_checks.check_score(fn(x, *args), x) for fn in score_fns]
        energies = _stacked_energies(energy_fns, x, args)
        _, densities = _densities(energies, shares, log_normalizers)
        # A component without density at a point may have no score there: 0 times NaN, which reverse
        # mode would meet in the derivative by r too, were the product in the where.
        total = jnp.zeros(x.shape, densities.dtype)
        for share, s in zip(densities / densities.sum(axis=0, keepdims=True), scores, strict=True):
            r = _arrays.expand_like(share, x)
            total = total + r * jnp.where((r > 0.0) | jnp.isfinite(s), s, 0.0)
        return total.astype(x.dtype)

    return score_fn


def _check_finite(name: str, value: ArrayOrList) -> None:
    """Raise unless every (concrete) entry of ``value`` is finite."""
    known = _arrays.concrete(value)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f"{name} must be finite, got {value}.")


def _several(name: str, fns: Sequence[_Fn]) -> list[_Fn]:
    """Return ``fns`` as a list, or raise unless it holds at least one function."""
    fns = [] if callable(fns) else list(fns)
    if not fns:
        raise ValueError(f"{name} must be a sequence of at least one function, [f, g, ...].")
    return fns


def _same_shape(terms: list[jax.Array]) -> list[jax.Array]:
    """Return ``terms``, or raise unless all have one shape."""
    shapes = [np.shape(term) for term in terms]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"the functions of a composition must return one shape, got {shapes}: compose energies "
            "with energies, scores with scores."
        )
    return terms


def _stacked_energies(energy_fns: list[EnergyFn], x: jax.Array, args: tuple) -> jax.Array:
    """Return the energies ``[K, B]``, in float32 at least."""
    energies = jnp.stack(_same_shape([fn(x, *args) for fn in energy_fns]))
    if energies.shape[1:] != x.shape[:1]:
        raise ValueError(
            f"an energy must be one number per example, shape {x.shape[:1]}, got "
            f"{energies.shape[1:]}."
        )
    return _arrays.accumulated(energies)


def _densities(energies, shares, log_normalizers):
    """Return ``w_i p_i / Z_i [K, B]`` over the exponential of ``largest [B]``, and that.

    The weights are factors, as ``log w`` has no derivative where a weight is 0, which these have.
    """
    logs = -log_normalizers[:, None] - energies
    logs, shares = jnp.broadcast_arrays(logs, shares[:, None].astype(logs.dtype))
    fixed = jax.lax.stop_gradient(jnp.max(logs + jnp.log(shares), axis=0))
    largest = jnp.where(jnp.isfinite(fixed), fixed, 0.0)
    # A component of weight 0 may be larger than any exponential.
    bound = float(np.log(float(jnp.finfo(logs.dtype).max))) - 1.0
    return largest, shares * jnp.exp(jnp.minimum(logs - largest[None], bound))


def _components(
    num: int, weights: ArrayOrList | None, log_normalizers: ArrayOrList | None
) -> tuple[jax.Array, jax.Array]:
    """Return the weights divided by their sum and ``log Z``, ``[K]`` each."""
    weights = jnp.ones(num) if weights is None else jnp.asarray(weights, float)
    log_normalizers = jnp.zeros(num) if log_normalizers is None else jnp.asarray(log_normalizers)
    for name, value in (("weights", weights), ("log_normalizers", log_normalizers)):
        if value.shape != (num,):
            raise ValueError(
                f"{name} must hold one number for each of the {num} components, got shape "
                f"{value.shape}."
            )
    _checks.check_not_negative("weights", weights)
    _check_finite("log_normalizers", log_normalizers)
    known = _arrays.concrete(weights)
    if known is not None and not np.any(known > 0):
        raise ValueError(f"weights must not all be 0, got {weights}.")
    return weights / jnp.sum(weights), log_normalizers
