r"""The evidence lower bound (ELBO) of a diffusion model, a hierarchy of latent variables.

Let ``r = sigma / alpha``, let ``r_0 > r_1 > ... > r_T`` be its values at the times of a grid, from
``t_max`` to ``t_min``, and ``m`` the mean of the process. The model draws ``x_{t_0}`` from the
prior, ``N(alpha m, sigma^2 I)`` at ``t_max``, goes down the grid by the posterior
``q(x_s | x_t, x_0 = D(x_t))`` of the process at the denoised point, and ends with
``p(x_0 | x_{t_T}) = N(D, r_T^2 I)``. Of data noised by ``z``, with the score ``s`` and
``x_0 - D = -r (sigma s + z)``, its bound is a sum of Kullback-Leibler divergences in closed form,

    -log p(x_0) <= |x_0 - m|^2 / (2 r_0^2)                                the prior,
        + sum_i 1/2 (r_{i-1}^2 / r_i^2 - 1) E|sigma s + z|^2(t_{i-1})     steps,         (1)
        + 1/2 E|sigma s + z|^2(t_T) + D/2 log(2 pi r_T^2)                 the data.      (2)

Finer grids are tighter, to the first order, and in the limit the steps sum to

    integral of E|sigma s + z|^2 d log r    from r_T to r_0,                             (3)

which is the likelihood-weighted loss. Both are estimated at random steps or times, stratified in
their order: (3) with ``log r`` uniform, so that the weight is constant.

For the exact score of Gaussian data of variance ``v``, the mean of (3) misses the entropy by
``v^2 / (4 r_0^4) + r_T^4 / (4 v^2)`` per dimension, to leading order.

References: Kingma et al. 2021, https://arxiv.org/abs/2107.00630; Ho et al. 2020,
https://arxiv.org/abs/2006.11239
"""

from functools import partial

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax._eager import compiled
from sm_jax.likelihood._flow import LogProb, standard_error
from sm_jax.processes import data_mean, noise_ratio, perturb, time_grid, warn_off_center
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ProcessLike


def elbo(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    process: ProcessLike,
    num_steps: int | None = None,
    num_samples: int | None = None,
    num_estimates: int = 1,
) -> LogProb:
    """Return an unbiased estimate of the variational lower bound (ELBO) on ``log p(x)``.

    With ``r = sigma / alpha`` from ``r_0`` at ``t_max`` to ``r_T`` at ``t_min``, ``m`` the mean of
    the process and ``D`` the number of numbers in an example,

        ELBO = -|x - m|^2 / (2 r_0^2)                                            prior
               - steps
               - 1/2 E|sigma s + z|^2(t_min) - D/2 log(2 pi r_T^2)               data
        steps = integral of E|sigma s + z|^2 dlog r from r_T to r_0              by default,
        steps = sum_i 1/2 (r_{i-1}^2 / r_i^2 - 1) E|sigma s + z|^2(t_{i-1})      with ``num_steps``,

    where ``s`` is the score at ``x_t = alpha x + sigma z``, ``z ~ N(0, I)``. The prior term is the
    Kullback-Leibler divergence of ``x_t`` given ``x`` from the prior, at ``t_max``. The
    expectations are estimated with one draw each, at ``num_samples`` stratified times.

    It is cheaper and rougher than `log_prob`: it needs no divergence, and it bounds the density of
    the data themselves, not of the data at ``t_min``. It bounds the model that is sampled by the
    reverse process, where `log_prob` is the density of the probability flow. The two agree for the
    exact score only.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: data ``[B, ...]``.
        key: a random key.
        process: the process that the score was trained for.
        num_steps: steps of the hierarchy, on ``processes.time_grid`` (``rho=20``). By default
            infinitely many: continuous time, the integral.
        num_samples: steps, or times in continuous time, at which each estimate evaluates the score,
            stratified. By default all the steps, or 64 times, with ``log r`` uniform.
        num_estimates: independent estimates, whose mean is returned, and whose spread gives the
            standard error.

    Returns:
        ``LogProb(value [B], standard_error [B], num_evaluations)``, in nats. The value is below
        ``log p(x)`` in expectation, not in every draw; the standard error is NaN for one estimate.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, the score has another shape, or a count is below 1.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VE(sigma_max=100.0)
        >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)  # of data from N(0, I)
        >>> x, key = jnp.ones((1000, 2)), jax.random.key(0)
        >>> result = elbo(score_fn, x, key, process=process)  # log p = -1 - log(2 pi) = -2.84
        >>> print(f"{result.value.mean():.0f} nats, {result.num_evaluations} evaluations")
        -3 nats, 65 evaluations

    Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630
    """
    x = _checks.check_data(x)
    warn_off_center(process, x, "x")
    _checks.check_key("elbo", key)
    for name, count in (("num_steps", num_steps), ("num_samples", num_samples)):
        if count is not None:
            _checks.check_count(name, count)
    _checks.check_count("num_estimates", num_estimates)
    num_samples = num_samples or num_steps or 64
    score_fn = _checks.checked(score_fn, x)
    high, low = noise_ratio(process, process.t_max), noise_ratio(process, process.t_min)

    def error(t, key):
        """Return ``|sigma s + z|^2 [B]`` at times ``t [B]``."""
        x_t, z = perturb(process, x, t, key)
        sigma = _arrays.expand_like(process.sigma(t), x)
        return _arrays.sum_data_axes((sigma * score_fn(x_t, t) + z) ** 2)

    if num_steps is not None:
        times = time_grid(process, num_steps, rho=20.0).astype(_arrays.accumulator(x.dtype))
        ratios = noise_ratio(process, times)
        weights = 0.5 * num_steps * ((ratios[:-1] / ratios[1:]) ** 2 - 1.0)

    def at(u):
        """Return the times and the weights of the errors at places ``u [B]`` in ``[0, 1)``."""
        if num_steps is None:
            return process.time_at(high * (low / high) ** u), jnp.log(high / low)
        step = (u * num_steps).astype(int)
        return times[step], weights[step]

    def sample(total, given):
        k, key = given
        key_place, key_noise = jax.random.split(key)
        t, weight = at((k + jax.random.uniform(key_place, x.shape[:1], total.dtype)) / num_samples)
        term = weight * error(t, key_noise) / num_samples
        return total + term.astype(total.dtype), None

    def estimate(key):
        key_steps, key_data = jax.random.split(key)
        keys = jax.random.split(key_steps, num_samples)
        start = jnp.zeros(x.shape[0], _arrays.accumulator(x.dtype))
        steps, _ = jax.lax.scan(sample, start, (jnp.arange(num_samples), keys))
        last = jnp.broadcast_to(jnp.asarray(process.t_min, start.dtype), x.shape[:1])
        return steps + 0.5 * error(last, key_data)

    keys = jax.random.split(key, num_estimates)
    mean = data_mean(process, x.shape[1:], _arrays.accumulator(x.dtype))
    prior = 0.5 * _arrays.sum_data_axes((x - mean[None]) ** 2) / high**2
    volume = 0.5 * _arrays.num_dims(x) * jnp.log(2.0 * jnp.pi * low**2)
    values = -compiled(partial(jax.lax.map, estimate), keys) - (prior + volume)[None]
    num_evaluations = num_estimates * (num_samples + 1)
    return LogProb(values.mean(axis=0), standard_error(values, keys), num_evaluations)
