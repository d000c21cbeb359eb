"""Contrastive divergence and noise-contrastive estimation: other losses for energies.

The gradient of the log-likelihood of ``p = exp(-E) / Z`` needs samples ``x-`` of the model:

    -grad log p(x) = grad E(x) - E_{x- ~ p}[grad E(x-)].                               (1)

Contrastive divergence takes for ``x-`` the end of a short chain of MALA that starts at the data, or
persistently at the end of the last one, and minimizes ``E(x) - E(x-)`` with ``x-`` held fixed. Only
the gradient has a meaning: the value does not estimate a likelihood, and decreases without bound
where the chain mixes poorly.

Noise-contrastive estimation makes ``log Z`` a parameter, and learns to tell data from ``nu`` times
as many draws of a known density ``q``, by logistic regression with the log-odds

    G(x) = -E(x) - log Z - log q(x) - log nu.                                          (2)

References: Hinton 2002, https://doi.org/10.1162/089976602760128018; Tieleman 2008,
https://doi.org/10.1145/1390156.1390290; Gutmann & Hyvarinen 2012,
https://jmlr.org/papers/v13/gutmann12a.html
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.parameterization import EnergyScore
from sm_jax.samplers import mala
from sm_jax.typing import ArrayOrList, DensityLike, EnergyFn


def _energies(energy_fn: EnergyFn, x: jax.Array) -> jax.Array:
    """Return the energies ``[B]`` in float32 at least, checked to be one for each example."""
    return _arrays.accumulated(_checks.check_energy(energy_fn(x), x))


def _negatives(energy_fn: EnergyFn, x, key, step_size, num_steps) -> jax.Array:
    """Return the end of chains of MALA from ``x``, through which no gradient flows."""
    chain = mala(EnergyScore(energy_fn), x, key, step_size=step_size, num_steps=num_steps)
    return jax.lax.stop_gradient(chain.x)


def contrastive_divergence(
    energy_fn: EnergyFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    step_size: ArrayLike,
    num_steps: int,
) -> jax.Array:
    """Return the contrastive divergence loss ``E(x) - E(x-)`` of each example.

    ``x-`` is the end of a chain of ``num_steps`` steps of MALA from ``x``, held fixed. The gradient
    in the parameters of ``E`` is ``grad E(x) - grad E(x-)``: a sample of ``-grad log p(x)`` once
    the chain has reached the model.

    At the true energy the gradient vanishes in expectation, as MALA leaves its density invariant;
    elsewhere a short chain from the data biases it: modes that the data lack are never visited.

    Args:
        energy_fn: ``x [B, ...] -> [B]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        step_size: of the chain, in squared units of the data; see `sm_jax.samplers.mala`.
        num_steps: length of the chain, ``k`` of CD-k.

    Returns:
        ``[B]``, in nats. No gradient flows through ``x-``, and the value itself measures nothing.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` is empty, the energy is not one number per example, ``num_steps < 1``, or
            ``step_size`` is not positive.

    Example:
        >>> energy_fn = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
        >>> x, key = jnp.full((1000, 1), 2.0), jax.random.key(0)
        >>> loss = contrastive_divergence(energy_fn, x, key, step_size=0.5, num_steps=20)
        >>> 1.0 < loss.mean() < 2.0  # 2^2 / 2 of the data, against 1/2 of the model
        Array(True, dtype=bool)

    Reference: Hinton 2002, https://doi.org/10.1162/089976602760128018
    """
    x = _checks.check_data(x)
    negatives = _negatives(energy_fn, x, key, step_size, num_steps)
    return _energies(energy_fn, x) - _energies(energy_fn, negatives)


class PersistentContrastiveDivergence(NamedTuple):
    """A loss and the chains for the next call.

    Attributes:
        loss: of each example, ``[B]``, in nats.
        chains: where the chains stand now, ``[C, ...]``.
    """

    loss: jax.Array
    chains: jax.Array


def persistent_contrastive_divergence(
    energy_fn: EnergyFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    chains: ArrayOrList,
    step_size: ArrayLike,
    num_steps: int,
) -> PersistentContrastiveDivergence:
    """Return the persistent contrastive divergence loss, eq. (1), and the moved chains.

    The loss is ``E(x) - 1/C sum_c E(x-_c)``, with ``x-_c`` the ``C`` chains after ``num_steps``
    steps of MALA, held fixed. The chains start where the last call left them, so they follow a
    model that changes slowly: then the gradient is that of the negative log-likelihood.

    Args:
        energy_fn: ``x [B, ...] -> [B]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        chains: where the chains stand, ``[C, ...]``: at first data or noise, then what the last
            call returned. Their number is free.
        step_size: of the chains, in squared units of the data; see `sm_jax.samplers.mala`.
        num_steps: steps of each chain in this call.

    Returns:
        ``PersistentContrastiveDivergence(loss [B], chains [C, ...])``, the loss in nats; no
        gradient flows through the chains, and the value itself measures nothing. For ``jax.grad``
        use ``has_aux=True``.

    Raises:
        TypeError: ``x`` or ``chains`` are not floating.
        ValueError: they are empty, or of events of other shapes; the energy is not one number per
            example, ``num_steps < 1``, or ``step_size`` is not positive.

    Example:
        >>> energy_fn = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
        >>> x, key = jnp.full((8, 1), 2.0), jax.random.key(0)
        >>> loss, chains = persistent_contrastive_divergence(
        ...     energy_fn, x, key, chains=jnp.zeros((100, 1)), step_size=0.5, num_steps=5)
        >>> loss.shape, chains.shape
        ((8,), (100, 1))

    Reference: Tieleman 2008, https://doi.org/10.1145/1390156.1390290
    """
    x, chains = _checks.check_data(x), _checks.check_data(chains, "chains")
    if chains.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"chains must hold events of the shape of those of x, {x.shape[1:]}, got "
            f"{chains.shape[1:]}."
        )
    chains = _negatives(energy_fn, chains, key, step_size, num_steps)
    loss = _energies(energy_fn, x) - _energies(energy_fn, chains).mean()
    return PersistentContrastiveDivergence(loss, chains)


def noise_contrastive(
    energy_fn: EnergyFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    noise_density: DensityLike,
    num_noise: int = 1,
    log_normalizer: ArrayLike = 0.0,
) -> jax.Array:
    """Return the noise-contrastive loss of an energy against ``nu`` draws ``y_j ~ q``.

    It is the logistic loss of telling the data from the draws,

        softplus(-G(x)) + sum_{j=1}^{nu} softplus(G(y_j)),
        G(x) = -E(x) - log Z - log q(x) - log nu.

    Its minimum is at the true energy and the true ``log Z`` together, for any ``q`` that covers the
    data; the nearer ``q`` is to them, the more there is to learn.

    Args:
        energy_fn: ``x [B, ...] -> [B]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key, for the noise.
        noise_density: ``q``, with ``sample(key, n)`` and ``log_prob(x)``: e.g.
            ``sm_jax.densities.gaussian`` with the mean and covariance of the data.
        num_noise: ``nu``, draws of the noise for each example.
        log_normalizer: ``log Z``, a scalar, to be learned with the energy; or 0, for an energy that
            learns to be normalized.

    Returns:
        ``[B]``, in nats: the negative log-likelihood of the classifier for one example and its
        ``nu`` draws. For ``E`` and ``q`` alike it is ``log(1 + nu) + nu log(1 + 1 / nu)``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` is empty, the energy or the log-density of the noise is not one number per
            example, ``num_noise < 1``, ``log_normalizer`` is not a scalar, or the draws of the
            noise are of other shapes than the data.

    Example:
        >>> from sm_jax import densities
        >>> noise, key = densities.gaussian(jnp.zeros(2), 1.0), jax.random.key(0)
        >>> energy_fn = lambda x: -noise.log_prob(x)
        >>> loss = noise_contrastive(energy_fn, jnp.ones((1, 2)), key, noise_density=noise)
        >>> print(loss.round(4))  # 2 log 2
        [1.3863]

    Reference: Gutmann & Hyvarinen 2012, https://jmlr.org/papers/v13/gutmann12a.html
    """
    x = _checks.check_data(x)
    _checks.check_count("num_noise", num_noise)
    _checks.check_scalar("log_normalizer", log_normalizer)
    noise = noise_density.sample(key, x.shape[0] * num_noise).astype(x.dtype)
    if noise.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"noise_density must draw events of the shape of those of x, {x.shape[1:]}, got "
            f"{noise.shape[1:]}."
        )

    def log_odds(x):
        log_density = noise_density.log_prob(x)
        if log_density.shape != x.shape[:1]:
            raise ValueError(
                f"noise_density.log_prob must return one number per example, shape {x.shape[:1]}, "
                f"got {log_density.shape}: sum over the axes of an event."
            )
        # E and log Z may share an offset, which is to cancel before anything small is added.
        log_model = -(_energies(energy_fn, x) + log_normalizer)
        return log_model - log_density - jnp.log(float(num_noise))

    of_noise = jax.nn.softplus(log_odds(noise)).reshape(x.shape[0], num_noise)
    return jax.nn.softplus(-log_odds(x)) + of_noise.sum(axis=1)
