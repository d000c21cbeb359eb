"""Denoising in continuous time, for any process, any weight and any distribution of times.

With ``x_t = alpha x_0 + sigma z`` and ``r = sigma / alpha`` (see sm_jax.processes),

    L(s) = E_t E[w(t) / 2 |sigma s(x_t, t) + z|^2],    t ~ U(t_min, t_max).            (1)

The weight ``w`` multiplies the squared error of the noise prediction:

    w = 1                        every noise level alike (`unit_weight`),
    w = g^2 / sigma^2            maximum likelihood (`likelihood_weight`),
    w = (r^2 + d^2) / d^2        EDM, data of standard deviation d (`edm_weight`).

Other distributions ``q`` of ``t`` come with a factor, the *importance*. It is
``1 / (q(t) (t_max - t_min))`` where the mean of (1) is to be kept, as in `likelihood_times`, and 1
where the distribution is itself a choice of weight, as in `log_normal_times`. Because
``g^2 / sigma^2 = 2 (log r)'`` for every process, times with ``log r`` uniform have density
proportional to the likelihood weight, and the weighted loss then has constant weight.

References: Song et al. 2021, https://arxiv.org/abs/2011.13456 and
https://arxiv.org/abs/2101.09258; Karras et al. 2022, https://arxiv.org/abs/2206.00364; Kingma et
al. 2021 (low-discrepancy times), https://arxiv.org/abs/2107.00630
"""

import math
import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from sm_jax import _arrays, _checks
from sm_jax.losses._denoising import lost_in_rounding, noise_error
from sm_jax.processes import diffusion_squared, noise_ratio
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ProcessLike, RandomFn, TimeSampler, WeightFn


def unit_weight(process: ProcessLike, t: ArrayOrList) -> jax.Array:
    """Return 1: the weight that treats all noise levels alike.

    Args:
        process: any process.
        t: times, any shape.

    Returns:
        Ones of the shape of ``t``.

    Example:
        >>> from sm_jax import processes
        >>> print(unit_weight(processes.VE(), jnp.array([2.0])))
        [1.]
    """
    del process
    return jnp.ones_like(_arrays.as_floating(t))


def likelihood_weight(process: ProcessLike, t: ArrayOrList) -> jax.Array:
    """Return ``g(t)^2 / sigma(t)^2 = 2 (log r)'``: the loss then bounds the log-likelihood.

    Args:
        process: any process.
        t: times, any shape.

    Returns:
        The weight at each time; large at small noise, so take times from `likelihood_times`.
        Multiplied by ``t_max - t_min``, the loss is the part of the negative log-likelihood bound
        that depends on the score, in nats.

    Example:
        >>> from sm_jax import processes
        >>> print(likelihood_weight(processes.VE(), jnp.array([2.0])))
        [1.]

    Reference: Song et al. 2021, https://arxiv.org/abs/2101.09258
    """
    t = _arrays.as_floating(t)
    return diffusion_squared(process, t) / process.sigma(t) ** 2


def edm_weight(process: ProcessLike, t: ArrayOrList, *, sigma_data: ArrayLike) -> jax.Array:
    """Return ``1 + r^2 / d^2``: the error of the preconditioned network has weight one.

    ``r = sigma / alpha`` and ``d = sigma_data``.

    Args:
        process: any process.
        t: times, any shape.
        sigma_data: standard deviation of the data, ``d``. It changes the loss: pass that of
            `sm_jax.parameterization.precondition`. It has no default for that reason.

    Returns:
        The weight at each time; with it, `diffusion` is half of EDM's loss
        ``(r^2 + d^2) / (r d)^2 |D - x_0|^2``.

    Example:
        >>> from sm_jax import processes
        >>> print(edm_weight(processes.VE(), jnp.array([2.0]), sigma_data=1.0))
        [5.]

    Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364
    """
    return 1.0 + (noise_ratio(process, t) / sigma_data) ** 2


def low_discrepancy(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Return uniform numbers in [0, 1) that are evenly spread: one random shift of a grid.

    A drop-in for ``jax.random.uniform`` in the time samplers: each number is uniform, together they
    cover all noise levels in every batch, so the loss has less variance.

    Args:
        key: a random key.
        shape: shape of the numbers.
        dtype: floating dtype of the numbers.

    Returns:
        ``(u + i / n) mod 1`` for ``i = 0 .. n - 1``, of the given shape.

    Example:
        >>> u = low_discrepancy(jax.random.key(0), (4,), jnp.float32)
        >>> print(jnp.sort(u)[1:] - jnp.sort(u)[:-1])
        [0.25 0.25 0.25]

    Reference: Kingma et al. 2021, appendix I.1, https://arxiv.org/abs/2107.00630
    """
    count = math.prod(shape)
    start = jax.random.uniform(key, (), dtype)
    return ((start + jnp.arange(count, dtype=dtype) / max(count, 1)) % 1.0).reshape(shape)


def uniform_times(
    process: ProcessLike,
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    *,
    uniform: RandomFn = jax.random.uniform,
) -> tuple[jax.Array, jax.Array]:
    """Draw times uniformly from ``[t_min, t_max]``: ``t = t_min + (t_max - t_min) u``.

    Args:
        process: any process.
        key: a random key.
        shape: shape of the times.
        dtype: floating dtype of the times.
        uniform: source of uniform numbers: ``jax.random.uniform`` or `low_discrepancy`.

    Returns:
        ``(t, importance)``; the importance is 1.

    Example:
        >>> from sm_jax import processes
        >>> process, key = processes.VPLinear(), jax.random.key(0)
        >>> t, importance = uniform_times(process, key, (4,), jnp.float32)
        >>> print(importance)
        [1. 1. 1. 1.]
    """
    u = uniform(key, shape, dtype)
    t = jnp.subtract(process.t_max, process.t_min) * u + process.t_min
    return t.astype(dtype), jnp.ones(shape, dtype)


def log_normal_times(
    process: ProcessLike,
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    *,
    mean: ArrayLike = -1.2,
    std: ArrayLike = 1.2,
    uniform: RandomFn = jax.random.uniform,
) -> tuple[jax.Array, jax.Array]:
    """Draw times with a log-normal noise ratio, ``log(sigma / alpha) ~ N(mean, std^2)``.

    ``sigma / alpha = exp(mean + std Phi^-1(u))``, ``u`` uniform, ``Phi`` the normal distribution.

    Args:
        process: any process.
        key: a random key.
        shape: shape of the times.
        dtype: floating dtype of the times.
        mean: mean of the logarithm of the noise ratio.
        std: standard deviation of the same.
        uniform: source of uniform numbers: ``jax.random.uniform`` or `low_discrepancy`.

    Returns:
        ``(t, importance)``, the times clipped to ``[t_min, t_max]``; the importance is 1, for this
        distribution is part of the objective of EDM.

    Example:
        >>> from sm_jax import processes
        >>> t, importance = log_normal_times(processes.EDM(), jax.random.key(0), (4,), jnp.float32)
        >>> print(importance)
        [1. 1. 1. 1.]

    Reference: Karras et al. 2022, table 1, https://arxiv.org/abs/2206.00364
    """
    u = jnp.maximum(uniform(key, shape, dtype), 0.5 * float(jnp.finfo(dtype).eps))  # 0 is -inf
    normal = jax.scipy.special.ndtri(u)
    t = process.time_at(jnp.exp(mean + std * normal))
    return jnp.clip(t, process.t_min, process.t_max).astype(dtype), jnp.ones(shape, dtype)


def likelihood_times(
    process: ProcessLike,
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    *,
    uniform: RandomFn = jax.random.uniform,
) -> tuple[jax.Array, jax.Array]:
    """Draw times with density proportional to the likelihood weight ``g^2 / sigma^2``.

    That is, with ``log r = log(sigma / alpha)`` uniform, for every process:

        log r = log r_min + u log(r_max / r_min),
        importance = 2 log(r_max / r_min) / ((t_max - t_min) g^2 / sigma^2).

    Args:
        process: any process.
        key: a random key.
        shape: shape of the times.
        dtype: floating dtype of the times.
        uniform: source of uniform numbers: ``jax.random.uniform`` or `low_discrepancy`.

    Returns:
        ``(t, importance)``, the importance being ``1 / (q(t) (t_max - t_min))``: losses keep the
        mean that they have under `uniform_times`, and with `likelihood_weight` lose the variance of
        the weight.

    Example:
        >>> from sm_jax import processes
        >>> process = processes.VPLinear()
        >>> t, importance = likelihood_times(process, jax.random.key(0), (3,), jnp.float32)
        >>> total = likelihood_weight(process, t) * importance
        >>> bool(jnp.allclose(total, total[0]))
        True

    Reference: Song et al. 2021, section 5, https://arxiv.org/abs/2101.09258
    """
    low, high = (jnp.log(noise_ratio(process, t)) for t in (process.t_min, process.t_max))
    t = process.time_at(jnp.exp(low + (high - low) * uniform(key, shape, dtype)))
    t = jnp.clip(t, process.t_min, process.t_max).astype(dtype)
    density = 0.5 * likelihood_weight(process, t) / (high - low)
    return t, (1.0 / (density * jnp.subtract(process.t_max, process.t_min))).astype(dtype)


def diffusion(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    process: ProcessLike,
    sample_times: TimeSampler = uniform_times,
    weight: WeightFn = unit_weight,
    noise: RandomFn = jax.random.normal,
    control_variate: bool = False,
) -> jax.Array:
    """Return the diffusion loss of each example at one random time.

        importance(t) w(t) / 2 |sigma(t) s(x_t, t) + z|^2,    x_t = alpha(t) x + sigma(t) z,

    with ``z ~ N(0, I)``, ``(t, importance)`` from ``sample_times`` and ``w`` from ``weight``: 1,
    ``g^2 / sigma^2`` or ``1 + (sigma / (alpha sigma_data))^2`` of the ready ones.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``, row i depending on row i only.
        x: data ``[B, ...]``.
        key: a random key.
        process: any process.
        sample_times: `uniform_times`, `log_normal_times`, `likelihood_times`, with options set by
            ``functools.partial``.
        weight: `unit_weight`, `likelihood_weight`, ``partial(edm_weight, sigma_data=0.5)``, or any
            ``(process, t) -> [B]``.
        noise: source of the unit normal noise, with the signature of ``jax.random.normal``.
        control_variate: as in `denoising`, for the smallest noise levels.

    Returns:
        ``[B]``, in nats under the likelihood weight: an unbiased estimate of the mean over time.

    Raises:
        TypeError: ``x`` is not floating, or the score has another dtype.
        ValueError: ``x`` is empty, or the score, the times or the weights have another shape.

    Warns:
        UserWarning: the noise at ``t_min`` is (where nothing is traced) below half the spacing of
            floating point numbers near ``x``, so that at the smallest times the loss teaches too
            small a score; see `denoising`.

    Example:
        >>> from sm_jax import processes
        >>> x, key = jnp.zeros((4, 2)), jax.random.key(0)
        >>> loss = diffusion(lambda x, t: -x, x, key, process=processes.VPLinear())
        >>> loss.shape
        (4,)

    Reference: Song et al. 2021, eq. 7, https://arxiv.org/abs/2011.13456
    """
    x = _checks.check_data(x)
    key_t, key_noise = jax.random.split(key)
    _warn_of_rounding(process, x)
    t, importance = sample_times(process, key_t, x.shape[:1], _arrays.accumulator(x.dtype))
    t = _checks.check_per_example("t", t, x)
    importance = _checks.check_per_example("importance", importance, x)
    z = _arrays.drawn(noise, key_noise, x)
    alpha, sigma = (c(t).astype(t.dtype) for c in (process.alpha, process.sigma))
    center = (_arrays.expand_like(alpha, x) * x).astype(x.dtype)
    loss = noise_error(lambda y: score_fn(y, t), center, sigma, z, control_variate)
    return importance * _checks.check_per_example("weight", weight(process, t), x) * loss


def _warn_of_rounding(process: ProcessLike, x: jax.Array) -> None:
    """Warn where the smallest noise of a process is lost in the rounding of the (concrete) data."""
    if lost := lost_in_rounding(process.sigma(process.t_min), x):
        warnings.warn(f"sigma(t_min) of the process {lost}", stacklevel=3)
