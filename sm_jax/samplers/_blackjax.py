"""Markov chain Monte Carlo on energies, by blackjax: NUTS, MCLMC and sequential Monte Carlo.

The bridge is `log_density`: it turns an energy over a batch, ``E: [B, ...] -> [B]``, be it learned,
analytic or a sum of others, into the log-density of one point that blackjax wants. The functions
below run its samplers with it: `nuts`, `mclmc` and, for the normalizer, `smc`; any other one takes
``log_density(energy_fn)`` directly. For a score without an energy, see `sm_jax.samplers.mala`.

blackjax is imported when a function is called: ``pip install blackjax``.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.typing import ArrayOrList, DensityLike, EnergyFn


class Draws(NamedTuple):
    """Chains of draws.

    Attributes:
        x: the draws ``[num_samples, B, ...]``, without the warm-up.
        acceptance_rate: mean probability of acceptance along the trajectories, ``[B]``.
        num_divergent: number of draws at which the integrator lost the energy, ``[B]``: above 0, do
            not trust the samples.
    """

    x: jax.Array
    acceptance_rate: jax.Array
    num_divergent: jax.Array


class Particles(NamedTuple):
    """A population that has come from the base to the model.

    Attributes:
        x: equally weighted particles, ``[N, ...]``; they are not independent.
        log_normalizer: estimate of ``log Z`` in nats, a scalar; ``Z`` itself is estimated almost
            without bias, so that this one is low on average.
        num_temperatures: how many were needed.
    """

    x: jax.Array
    log_normalizer: jax.Array
    num_temperatures: jax.Array


def _blackjax():
    try:
        import blackjax
        import blackjax.smc.resampling
    except ImportError as error:
        raise ImportError(
            "samplers.nuts, mclmc and smc need blackjax: pip install blackjax"
        ) from error
    return blackjax


def log_density(energy_fn: EnergyFn) -> Callable[[jax.Array], jax.Array]:
    """Return the unbatched log-density ``x [...] -> -E(x)`` of a batched energy, for blackjax.

    Args:
        energy_fn: ``x [B, ...] -> [B]``.

    Returns:
        A function of one event to a scalar, in nats, up to the normalizer.

    Raises:
        ValueError: at the first call, if the energy is not one number per example.

    Example:
        >>> density_fn = log_density(lambda x: 0.5 * jnp.sum(x**2, axis=-1))
        >>> print(density_fn(jnp.array([1.0, 2.0])))
        -2.5
    """

    def density_fn(x):
        x = jnp.asarray(x)[None]
        return -_checks.check_energy(energy_fn(x), x)[0]

    return density_fn


def _wide(x: jax.Array) -> jax.Array:
    """Return ``x`` in the default floating dtype at least, as blackjax makes numbers of its own."""
    return x.astype(jnp.promote_types(x.dtype, jnp.zeros(()).dtype))


def _wide_log_density(energy_fn: EnergyFn, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return `log_density` from and to that dtype, of an energy that sees the dtype of ``x``."""
    density_fn = log_density(energy_fn)
    return lambda y: _wide(density_fn(y.astype(x.dtype)))


def nuts(
    energy_fn: EnergyFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    num_samples: int,
    num_warmup: int = 500,
    target_acceptance: float = 0.8,
    max_doublings: int = 10,
) -> Draws:
    """Run the no-U-turn sampler of blackjax, each chain with its own window adaptation.

    The first choice for an energy of a few to some thousand dimensions and one mode, or modes that
    are not far apart: step, metric and length are found, the density is invariant. It fails between
    separate modes (`smc`), and costs up to ``2^max_doublings`` gradients for each draw.

    Under ``jax.jit``: ``jax.jit(partial(nuts, energy_fn, num_samples=100))``.

    Args:
        energy_fn: ``x [B, ...] -> [B]``.
        x: starting points of the chains ``[B, ...]``.
        key: a random key.
        num_samples: draws of each chain.
        num_warmup: steps of the adaptation of step size and diagonal metric, which are discarded.
        target_acceptance: wanted acceptance, between 0 and 1; nearer to 1, smaller steps.
        max_doublings: limit of the length of a trajectory, ``2^max_doublings`` steps.

    Returns:
        ``Draws(x [num_samples, B, ...], acceptance_rate [B], num_divergent [B])``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` is empty, the energy is not one number per example, a count is below 1, or
            ``target_acceptance`` is not between 0 and 1.
        ImportError: blackjax is not installed.

    Example:
        >>> energy_fn = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
        >>> draws = nuts(energy_fn, jnp.zeros((2, 3)), jax.random.key(0),
        ...     num_samples=10, num_warmup=50)
        >>> draws.x.shape
        (10, 2, 3)

    Reference: Hoffman & Gelman 2014, https://arxiv.org/abs/1111.4246
    """
    blackjax = _blackjax()
    x = _checks.check_data(x)
    _checks.check_count("num_samples", num_samples)
    _checks.check_count("num_warmup", num_warmup)
    _checks.check_count("max_doublings", max_doublings)
    _checks.check_fraction("target_acceptance", target_acceptance)
    density_fn = _wide_log_density(energy_fn, x)

    def chain(x, key):
        key_warmup, key_run = jax.random.split(key)
        warmup = blackjax.window_adaptation(
            blackjax.nuts,
            density_fn,
            target_acceptance_rate=target_acceptance,
            max_num_doublings=max_doublings,
        )
        (state, parameters), _ = warmup.run(key_warmup, x, num_steps=num_warmup)
        kernel = blackjax.nuts(density_fn, **parameters)

        def step(state, key):
            state, info = kernel.step(key, state)
            return state, (state.position, info.acceptance_rate, info.is_divergent)

        return jax.lax.scan(step, state, jax.random.split(key_run, num_samples))[1]

    keys = jax.random.split(key, x.shape[0])
    samples, accepted, divergent = compiled(jax.vmap(chain, out_axes=1), _wide(x), keys)
    return Draws(samples.astype(x.dtype), accepted.mean(axis=0), divergent.sum(axis=0))


def mclmc(
    energy_fn: EnergyFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    num_samples: int,
    num_warmup: int = 1000,
) -> jax.Array:
    """Run microcanonical Langevin Monte Carlo of blackjax, unadjusted, each chain tuned by itself.

    Prefer it in many dimensions, where it needs far fewer gradients than `nuts`: two for each step.
    It rejects nothing, so that a bias remains, which its tuning keeps small. It fails where a small
    bias matters, in one dimension (it needs two), and between separate modes.

    Under ``jax.jit``: ``jax.jit(partial(mclmc, energy_fn, num_samples=100))``.

    Args:
        energy_fn: ``x [B, ...] -> [B]``.
        x: starting points of the chains ``[B, ...]``, of events with at least two numbers.
        key: a random key.
        num_samples: steps of each chain; all are returned.
        num_warmup: steps of the tuning of step size, metric and decoherence length, about a third
            for each, which are discarded.

    Returns:
        Samples ``[num_samples, B, ...]``; NaN in the chains that never moved.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` is empty or of fewer than two numbers per event, the energy is not one
            number per example, ``num_samples < 1`` or ``num_warmup < 10``.
        ImportError: blackjax is not installed.

    Example:
        >>> energy_fn = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
        >>> x, key = jnp.zeros((2, 3)), jax.random.key(0)
        >>> mclmc(energy_fn, x, key, num_samples=10, num_warmup=30).shape
        (10, 2, 3)

    Reference: Robnik et al. 2023, https://arxiv.org/abs/2212.08549
    """
    blackjax = _blackjax()
    x = _checks.check_data(x)
    _checks.check_count("num_samples", num_samples)
    _checks.check_count("num_warmup", num_warmup, minimum=10)
    if _arrays.num_dims(x) < 2:
        raise ValueError(f"mclmc needs events of at least two numbers, got x of shape {x.shape}.")
    density_fn = _wide_log_density(energy_fn, x)
    kernel = blackjax.mclmc.build_kernel()
    share = 1.0 / 3.0

    def chain(x, key):
        key_init, key_tune, key_run = jax.random.split(key, 3)
        state, tuned, _ = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=kernel,
            num_steps=num_warmup,
            state=blackjax.mclmc.init(x, density_fn, key_init),
            rng_key=key_tune,
            logdensity_fn=density_fn,
            frac_tune1=share,
            frac_tune2=share,
            frac_tune3=share,
        )

        def step(state, key):
            state, _ = kernel(
                key, state, density_fn, tuned.inverse_mass_matrix, tuned.L, tuned.step_size
            )
            return state, state.position

        return jax.lax.scan(step, state, jax.random.split(key_run, num_samples))[1]

    keys = jax.random.split(key, x.shape[0])
    samples = compiled(jax.vmap(chain, out_axes=1), _wide(x), keys)
    moved = jnp.any(samples != samples[:1], axis=(0, *range(2, samples.ndim)))
    moved = _arrays.expand_like(moved | (num_samples == 1), samples[0])
    return jnp.where(moved[None], samples, jnp.nan).astype(x.dtype)


def smc(
    energy_fn: EnergyFn,
    key: jax.Array,
    *,
    base: DensityLike,
    num_particles: int = 1024,
    steps_per_temperature: int = 5,
    step_size: ArrayLike = 0.5,
    num_integration_steps: int = 5,
    target_ess: float = 0.7,
) -> Particles:
    """Run adaptive tempered sequential Monte Carlo of blackjax from a base density to the model.

    Particles from the base are weighed, resampled and moved by Hamiltonian Monte Carlo, through
    ``base^(1 - b) exp(-b E)``, each ``b`` as far from the last as the effective sample size allows.
    Prefer it for several modes, and for ``log Z``; `sm_jax.likelihood.annealed_importance` gives a
    bracket of it. It fails where the base does not cover the model, or the particles are too few
    to hold every mode.

    The energy may be infinite, for data behind walls: the base is then cut to what is inside, by
    its own draws. Where none of these is inside, the particles are NaN and ``log Z`` is ``-inf``.

    Under ``jax.jit``: ``jax.jit(partial(smc, energy_fn, base=base))``.

    Args:
        energy_fn: ``x [B, ...] -> [B]``, ``+inf`` where the density is zero.
        key: a random key.
        base: a normalized density wider than the model, with ``sample(key, n)`` and
            ``log_prob(x)``: e.g. ``sm_jax.densities.gaussian``.
        num_particles: size of the population.
        steps_per_temperature: moves of each particle at each temperature.
        step_size: of the leapfrog integrator, in standard deviations of the particles, to which the
            metric is adapted.
        num_integration_steps: leapfrog steps of each move: evaluations of the gradient.
        target_ess: effective sample size over the number of particles that the next temperature is
            chosen for; nearer to 1, more temperatures.

    Returns:
        ``Particles(x [num_particles, ...], log_normalizer [], num_temperatures [])``.

    Raises:
        ValueError: the energy is not one number per example, a count is below 1, ``step_size`` is
            not positive, or ``target_ess`` is not between 0 and 1.
        ImportError: blackjax is not installed.

    Example:
        >>> from sm_jax import densities
        >>> base, key = densities.gaussian(jnp.zeros(2), 9.0), jax.random.key(0)
        >>> energy_fn = lambda x: 0.5 * jnp.sum(x**2, axis=-1)  # log Z = log(2 pi) = 1.84
        >>> particles = smc(energy_fn, key, base=base)
        >>> abs(particles.log_normalizer - 1.84) < 0.2
        Array(True, dtype=bool)

    Reference: Del Moral, Doucet & Jasra 2006, https://doi.org/10.1111/j.1467-9868.2006.00553.x
    """
    blackjax = _blackjax()
    _checks.check_count("num_particles", num_particles, minimum=2)
    _checks.check_count("steps_per_temperature", steps_per_temperature)
    _checks.check_count("num_integration_steps", num_integration_steps)
    _checks.check_positive("step_size", step_size)
    _checks.check_fraction("target_ess", target_ess)
    key_base, key_inside, key_loop = jax.random.split(key, 3)
    drawn = _checks.check_data(base.sample(key_base, num_particles), "base.sample(key, n)")
    density_fn = _wide_log_density(energy_fn, drawn)
    base_density_fn = _wide_log_density(lambda x: -base.log_prob(x), drawn)
    x = _wide(drawn)

    # Walls are of the base, cut to what is inside them, as b times infinity has no limit at b = 0.
    inside = compiled(jax.vmap(density_fn), x) != -jnp.inf
    share = jnp.mean(inside, dtype=x.dtype)
    weights = inside / (share * num_particles)
    resample = partial(blackjax.smc.resampling.systematic, num_samples=num_particles)
    picked = compiled(resample, key_inside, weights)
    x = jnp.where(share > 0.0, x[picked], jnp.nan)

    def base_fn(x):
        wall = density_fn(x) == -jnp.inf
        return jnp.where(wall, -jnp.inf, base_density_fn(x))

    def ratio_fn(x):
        log_p = density_fn(x)
        return jnp.where(log_p == -jnp.inf, 0.0, log_p - base_density_fn(x))

    def advance(key, state):
        """Move on to the next temperature, with the metric of the weighted particles."""
        weights = _arrays.expand_like(state.weights, state.particles)
        mean = jnp.sum(weights * state.particles, axis=0, keepdims=True)
        variance = jnp.sum(weights * (state.particles - mean) ** 2, axis=0)
        parameters = {
            "step_size": jnp.asarray(step_size, variance.dtype)[None],
            "inverse_mass_matrix": variance.reshape(1, -1),
            "num_integration_steps": jnp.array([num_integration_steps]),
        }
        return blackjax.adaptive_tempered_smc(
            base_fn,
            ratio_fn,
            blackjax.hmc.build_kernel(),
            blackjax.hmc.init,
            parameters,
            blackjax.smc.resampling.systematic,
            target_ess,
            num_mcmc_steps=steps_per_temperature,
        ).step(key, state)

    def body(carry):
        state, _, log_normalizer, count, key = carry
        key, key_step = jax.random.split(key)
        new, info = advance(key_step, state)
        log_normalizer = log_normalizer + info.log_likelihood_increment
        return new, state.tempering_param, log_normalizer, count + 1, key

    zero = jnp.zeros((), x.dtype)
    state = blackjax.smc.tempered.init(x)._replace(tempering_param=zero)
    # Once more at the last temperature: the weights become equal, and copies part.
    loop = partial(jax.lax.while_loop, lambda carry: carry[1] < 1.0, body)
    begin = (state, zero, jnp.log(share), 0, key_loop)
    state, _, log_normalizer, count, _ = compiled(loop, begin)
    log_normalizer = log_normalizer.astype(_arrays.accumulator(drawn.dtype))
    return Particles(state.particles.astype(drawn.dtype), log_normalizer, count - 1)
