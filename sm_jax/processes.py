r"""Gaussian noising processes: a scale and a noise level as functions of time, and what follows.

A process noises data as

    x_t = alpha(t) x_0 + sigma(t) z,    z ~ N(0, I),                                   (1)

and is the solution of the linear stochastic differential equation

    dx = f(t) x dt + g(t) dw,    f = alpha' / alpha,                                   (2)
    g^2 = 2 sigma^2 (sigma' / sigma - alpha' / alpha) = 2 sigma^2 (log r)',            (3)
    r(t) = sigma(t) / alpha(t)    (noise per unit of signal).                          (4)

So ``alpha``, ``sigma`` and the inverse of ``r`` define a process; drift, diffusion, prior and time
grids are derived from them by functions that serve any process, one of yours included: any object
with ``alpha(t)``, ``sigma(t)``, ``time(ratio)``, ``t_min`` and ``t_max``.

Noise levels near ``t_min`` are small differences of numbers near one; they are computed with
``expm1`` and ``log1p``, which keeps them exact to rounding in float32.

| process       | alpha(t)        | sigma(t)                    | times            |
|---------------|-----------------|-----------------------------|------------------|
| `VE`, `EDM`   | 1               | t                           | [sigma_min, sigma_max] |
| `GeometricVE` | 1               | sigma_min (sigma_max / sigma_min)^t | [0, 1]   |
| `VPLinear`    | exp(-b(t) / 2)  | sqrt(1 - exp(-b(t)))        | [t_min, 1]       |
| `SubVP`       | exp(-b(t) / 2)  | 1 - exp(-b(t))              | [t_min, 1]       |
| `Cosine`      | cos(pi t / 2)   | sin(pi t / 2)               | [t_min, t_max]   |

with ``b(t) = beta_min t + (beta_max - beta_min) t^2 / 2``.

References: Song et al. 2021, https://arxiv.org/abs/2011.13456 (VE, VP, sub-VP); Karras et al. 2022,
https://arxiv.org/abs/2206.00364 (EDM); Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from sm_jax import _checks
from sm_jax.typing import ProcessLike, RandomFn

__all__ = [
    "EDM",
    "VE",
    "Cosine",
    "GeometricVE",
    "SubVP",
    "VPLinear",
    "check_times",
    "diffusion_squared",
    "drift",
    "noise_ratio",
    "perturb",
    "prior_log_prob",
    "prior_sample",
    "time_grid",
]


def _check_increasing(process: ProcessLike, low: str, high: str) -> None:
    for name in (low, high):
        _checks.check_positive(name, getattr(process, name))
    smallest = _checks.concrete(getattr(process, low))
    largest = _checks.concrete(getattr(process, high))
    if smallest is not None and largest is not None and smallest >= largest:
        raise ValueError(
            f"{low} must be below {high}, got {low}={smallest} and {high}={largest}: swap them."
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VE:
    """Variance exploding, its time being the noise level: ``alpha = 1``, ``sigma(t) = t``.

    Args:
        sigma_min: smallest noise level, in units of the data.
        sigma_max: largest noise level; well above the spread of the data.

    Raises:
        ValueError: a level is not positive, or ``sigma_min >= sigma_max``.

    Example:
        >>> process = VE(sigma_min=0.01, sigma_max=50.0)
        >>> float(process.sigma(3.0)), float(diffusion_squared(process, 3.0))
        (3.0, 6.0)
    """

    sigma_min: ArrayLike = 0.01
    sigma_max: ArrayLike = 50.0

    def __post_init__(self):
        _check_increasing(self, "sigma_min", "sigma_max")

    @property
    def t_min(self) -> ArrayLike:
        """The smallest time, ``sigma_min``."""
        return self.sigma_min

    @property
    def t_max(self) -> ArrayLike:
        """The largest time, ``sigma_max``."""
        return self.sigma_max

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Return the scale of the data, 1."""
        return jnp.ones_like(_checks.as_floating(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Return the noise level, ``t`` itself."""
        return _checks.as_floating(t)

    def time(self, ratio: ArrayLike) -> jax.Array:
        """Return the time at which ``sigma / alpha`` equals ``ratio``: ``ratio`` itself."""
        return _checks.as_floating(ratio)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EDM(VE):
    """The process of EDM: ``VE`` between the noise levels that Karras et al. use for images.

    Args:
        sigma_min: smallest noise level, for data of standard deviation near 0.5.
        sigma_max: largest noise level.

    Example:
        >>> print(time_grid(EDM(), num_steps=2).round(2))
        [80.    2.52  0.  ]
    """

    sigma_min: ArrayLike = 0.002
    sigma_max: ArrayLike = 80.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GeometricVE:
    """Variance exploding with noise geometric in time: ``sigma(t) = s_min (s_max / s_min)^t``.

    Args:
        sigma_min: noise level at ``t = 0``.
        sigma_max: noise level at ``t = 1``.

    Example:
        >>> print(GeometricVE(sigma_min=0.01, sigma_max=100.0).sigma(0.5).round(6))
        1.0
    """

    sigma_min: ArrayLike = 0.01
    sigma_max: ArrayLike = 50.0

    def __post_init__(self):
        _check_increasing(self, "sigma_min", "sigma_max")

    @property
    def t_min(self) -> float:
        """The smallest time, 0."""
        return 0.0

    @property
    def t_max(self) -> float:
        """The largest time, 1."""
        return 1.0

    def _log_growth(self) -> jax.Array:
        return jnp.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Return the scale of the data, 1."""
        return jnp.ones_like(_checks.as_floating(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Return the noise level ``sigma_min (sigma_max / sigma_min)^t``."""
        return self.sigma_min * jnp.exp(t * self._log_growth())

    def time(self, ratio: ArrayLike) -> jax.Array:
        """Return the time at which ``sigma / alpha`` equals ``ratio``."""
        return jnp.log(ratio / self.sigma_min) / self._log_growth()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VPLinear:
    """Variance preserving with a linear rate: ``alpha^2 + sigma^2 = 1``, ``g^2 = beta(t)``.

    The rate is ``beta(t) = beta_min + (beta_max - beta_min) t``; its integral is ``b(t)``.

    Args:
        beta_min: rate at ``t = 0``, per unit of time.
        beta_max: rate at ``t = 1``.
        t_min: smallest time; ``t_max`` is 1.

    Example:
        >>> process = VPLinear()
        >>> print((process.alpha(0.3) ** 2 + process.sigma(0.3) ** 2).round(6))
        1.0
    """

    beta_min: ArrayLike = 0.1
    beta_max: ArrayLike = 20.0
    t_min: ArrayLike = 1e-5

    def __post_init__(self):
        _check_increasing(self, "beta_min", "beta_max")
        _check_increasing(self, "t_min", "t_max")

    @property
    def t_max(self) -> float:
        """The largest time, 1."""
        return 1.0

    def _integrated_rate(self, t: ArrayLike) -> jax.Array:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * jnp.asarray(t))

    def _time_of_integrated_rate(self, b: jax.Array) -> jax.Array:
        # The root of (beta_max - beta_min) t^2 / 2 + beta_min t - b that does not cancel.
        slope = self.beta_max - self.beta_min
        return 2.0 * b / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * b))

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Return the scale of the data, ``exp(-b(t) / 2)``."""
        return jnp.exp(-0.5 * self._integrated_rate(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Return the noise level, ``sqrt(1 - exp(-b(t)))``."""
        return jnp.sqrt(-jnp.expm1(-self._integrated_rate(t)))

    def time(self, ratio: ArrayLike) -> jax.Array:
        """Return the time at which ``sigma / alpha = sqrt(exp(b) - 1)`` equals ``ratio``."""
        return self._time_of_integrated_rate(jnp.log1p(jnp.square(ratio)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SubVP(VPLinear):
    """Sub-variance preserving: the scale of `VPLinear` with ``sigma = 1 - exp(-b(t))``.

    Args:
        beta_min: rate at ``t = 0``, per unit of time.
        beta_max: rate at ``t = 1``.
        t_min: smallest time; ``t_max`` is 1.

    Example:
        >>> sub, full = SubVP(), VPLinear()
        >>> bool(jnp.allclose(sub.sigma(0.3), full.sigma(0.3) ** 2))
        True
    """

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Return the noise level, ``1 - exp(-b(t))``."""
        return -jnp.expm1(-self._integrated_rate(t))

    def time(self, ratio: ArrayLike) -> jax.Array:
        """Return the time at which ``sigma / alpha = 2 sinh(b / 2)`` equals ``ratio``."""
        return self._time_of_integrated_rate(2.0 * jnp.arcsinh(0.5 * jnp.asarray(ratio)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cosine:
    """Variance preserving along a quarter of a circle: ``alpha = cos(pi t / 2)``, ``sigma = sin``.

    Args:
        t_min: smallest time, above 0.
        t_max: largest time, below 1, where nothing of the data would be left.

    Example:
        >>> print(noise_ratio(Cosine(), 0.5).round(6))
        1.0
    """

    t_min: ArrayLike = 1e-4
    t_max: ArrayLike = 0.999

    def __post_init__(self):
        _check_increasing(self, "t_min", "t_max")
        largest = _checks.concrete(self.t_max)
        if largest is not None and largest >= 1.0:
            raise ValueError(f"t_max must be below 1, where alpha is zero, got {self.t_max}.")

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Return the scale of the data, ``cos(pi t / 2)``."""
        return jnp.cos(0.5 * jnp.pi * jnp.asarray(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Return the noise level, ``sin(pi t / 2)``."""
        return jnp.sin(0.5 * jnp.pi * jnp.asarray(t))

    def time(self, ratio: ArrayLike) -> jax.Array:
        """Return the time at which ``sigma / alpha = tan(pi t / 2)`` equals ``ratio``."""
        return jnp.arctan(ratio) * (2.0 / jnp.pi)


def noise_ratio(process: ProcessLike, t: ArrayLike) -> jax.Array:
    """Return ``r(t) = sigma(t) / alpha(t)``, eq. (4): the noise per unit of signal.

    Args:
        process: any process.
        t: times, any shape.

    Returns:
        The ratio at each time; ``r^-2`` is the signal-to-noise ratio of the field.

    Example:
        >>> print(noise_ratio(VE(), 2.0))
        2.0
    """
    return process.sigma(t) / process.alpha(t)


def perturb(
    process: ProcessLike,
    x0: ArrayLike,
    t: ArrayLike,
    key: jax.Array,
    *,
    noise: RandomFn = jax.random.normal,
) -> tuple[jax.Array, jax.Array]:
    """Noise clean data to time ``t``, eq. (1).

    Args:
        process: any process.
        x0: clean data ``[B, ...]``.
        t: times, a scalar or ``[B]``.
        key: a random key.
        noise: source of the unit noise, with the signature of ``jax.random.normal``.

    Returns:
        ``(x_t, z)``, both ``[B, ...]``: the noised data and the unit noise that is in them.

    Raises:
        TypeError: ``x0`` is not floating.
        ValueError: ``x0`` is empty, or ``t`` is negative or neither scalar nor ``[B]``.

    Example:
        >>> x_t, z = perturb(VE(), jnp.zeros((4, 2)), 3.0, jax.random.key(0))
        >>> bool(jnp.allclose(x_t, 3.0 * z))
        True
    """
    x0 = _checks.check_data(x0, "x0")
    t = _checks.check_per_example("t", t, x0)
    _checks.check_not_negative("t", t)
    z = noise(key, x0.shape, x0.dtype)
    alpha, sigma = (_checks.expand_like(c, x0) for c in (process.alpha(t), process.sigma(t)))
    return (alpha * x0 + sigma * z).astype(x0.dtype), z


def _log_derivative(function, t: jax.Array) -> jax.Array:
    """Return ``(log function)'(t)`` elementwise."""
    value, slope = jax.jvp(function, (t,), (jnp.ones_like(t),))
    return slope / value


def drift(process: ProcessLike, x: ArrayLike, t: ArrayLike) -> jax.Array:
    """Return the drift ``f(t) x`` of the forward process, eq. (2).

    Args:
        process: any process.
        x: points ``[B, ...]``.
        t: times, a scalar or ``[B]``.

    Returns:
        ``[B, ...]``, per unit of time.

    Example:
        >>> print(drift(VPLinear(), jnp.ones((1, 2)), 0.0))
        [[-0.05 -0.05]]
    """
    x = _checks.check_data(x)
    rate = _log_derivative(process.alpha, _checks.check_per_example("t", t, x))
    return (_checks.expand_like(rate, x) * x).astype(x.dtype)


def diffusion_squared(process: ProcessLike, t: ArrayLike) -> jax.Array:
    """Return ``g(t)^2``, the variance of noise added per unit of time, eq. (3).

    Args:
        process: any process.
        t: times, any shape.

    Returns:
        ``g^2`` at each time.

    Example:
        >>> print(diffusion_squared(VPLinear(beta_min=0.1, beta_max=20.0), 1.0).round(3))
        20.0
    """
    t = _checks.as_floating(t)
    growth = _log_derivative(process.sigma, t) - _log_derivative(process.alpha, t)
    return 2.0 * process.sigma(t) ** 2 * growth


def prior_sample(
    process: ProcessLike, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draw from the prior ``N(0, sigma(t_max)^2 I)``, where sampling starts.

    Args:
        process: any process.
        key: a random key.
        shape: ``(B, ...)``.
        dtype: floating dtype of the draws.

    Returns:
        Draws of the given shape.

    Example:
        >>> prior_sample(VE(), jax.random.key(0), (4, 2)).shape
        (4, 2)
    """
    return process.sigma(process.t_max).astype(dtype) * jax.random.normal(key, shape, dtype)


def prior_log_prob(process: ProcessLike, x: ArrayLike) -> jax.Array:
    """Return the log-density of the prior ``N(0, sigma(t_max)^2 I)``.

    Args:
        process: any process.
        x: points ``[B, ...]`` at time ``t_max``.

    Returns:
        ``[B]``, in nats, summed over the data axes.

    Example:
        >>> print(f"{prior_log_prob(VE(sigma_max=1.0), jnp.zeros((1, 2)))[0]:.4f}")
        -1.8379
    """
    x = _checks.check_data(x)
    sigma = process.sigma(process.t_max)
    normaliser = _checks.num_dims(x) * (jnp.log(sigma) + 0.5 * jnp.log(2.0 * jnp.pi))
    return -0.5 * _checks.sum_data_axes((x / sigma.astype(x.dtype)) ** 2) - normaliser


def time_grid(process: ProcessLike, num_steps: int, *, rho: float = 7.0) -> jax.Array:
    """Return the times of a solver, from ``t_max`` down to ``t_min``, dense where noise is small.

    The noise ratios ``r = sigma / alpha`` are spaced as Karras et al. space their noise levels,
    equally in ``r^(1 / rho)``, and mapped back to times; so it serves every process.

    Args:
        process: any process.
        num_steps: number of steps, at least 1.
        rho: 1 is equal spacing; 7 puts many steps at small noise; towards infinity, geometric.

    Returns:
        ``[num_steps + 1]`` strictly decreasing times.

    Raises:
        ValueError: ``num_steps < 1`` or ``rho`` is not positive.

    Example:
        >>> print(time_grid(VE(sigma_min=1.0, sigma_max=3.0), 2, rho=1.0))
        [3. 2. 1.]

    Reference: Karras et al. 2022, eq. 5, https://arxiv.org/abs/2206.00364
    """
    _checks.check_count("num_steps", num_steps)
    _checks.check_positive("rho", rho)
    high, low = (noise_ratio(process, t) ** (1.0 / rho) for t in (process.t_max, process.t_min))
    inner = jnp.linspace(high, low, num_steps + 1)[1:-1] ** rho
    ends = [jnp.asarray(t, inner.dtype) for t in (process.t_max, process.t_min)]
    return jnp.concatenate([ends[0][None], process.time(inner), ends[1][None]])


def check_times(process: ProcessLike, times: ArrayLike) -> jax.Array:
    """Return solver times as an array, or raise unless they are a decreasing grid of the process.

    Args:
        process: any process.
        times: ``[num_steps + 1]`` strictly decreasing times within ``[t_min, t_max]``.

    Returns:
        The times, in floating point.

    Raises:
        ValueError: there are fewer than two times, or (where they are not traced) they do not
            decrease or leave the range.

    Example:
        >>> print(check_times(VE(sigma_min=1.0, sigma_max=9.0), [9.0, 3.0, 1.0]))
        [9. 3. 1.]
    """
    times = _checks.as_floating(times)
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f"times must be a vector of at least two times, got shape {times.shape}.")
    known = _checks.concrete(times)
    if known is not None and not np.all(np.diff(known) < 0):
        raise ValueError(f"times must strictly decrease, from t_max to t_min, got {known}.")
    low, high = (_checks.concrete(t) for t in (process.t_min, process.t_max))
    if known is None or low is None or high is None:
        return times
    slack = 1e-6 * high
    if known[0] > high + slack or known[-1] < low - slack:
        raise ValueError(
            f"times must lie in the range of the process, [{low}, {high}], got {known[-1]} to "
            f"{known[0]}: the score was not trained outside it."
        )
    return times
