"""The processes: their scale, their noise level, and the inverse of the ratio of the two."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.typing import ArrayOrList, ProcessLike


def _pytree(process_type: type) -> type:
    """Register a frozen dataclass as a pytree whose leaves, its fields, may be anything.

    JAX puts tangents, stacks and placeholders into pytrees; only the constructor checks values.
    """
    names = tuple(field.name for field in dataclasses.fields(process_type))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def flatten(process):
        return tuple(getattr(process, name) for name in names), None

    def flatten_with_keys(process):
        return tuple(zip(keys, flatten(process)[0], strict=True)), None

    def unflatten(_, leaves):
        process = object.__new__(process_type)
        for name, leaf in zip(names, leaves, strict=True):
            object.__setattr__(process, name, leaf)
        return process

    jax.tree_util.register_pytree_with_keys(process_type, flatten_with_keys, unflatten, flatten)
    return process_type


def _check_mean(mean: ArrayOrList) -> None:
    known = _arrays.concrete(mean)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f"mean must be finite, got {mean}.")


def _check_increasing(process: ProcessLike, low: str, high: str, *, equal: bool = False) -> None:
    for name in (low, high):
        _checks.check_positive(name, getattr(process, name))
    smallest = _arrays.concrete(getattr(process, low))
    largest = _arrays.concrete(getattr(process, high))
    if smallest is None or largest is None or (equal and np.all(smallest == largest)):
        return
    if np.any(smallest >= largest):
        raise ValueError(
            f"{low} must be below {high}, got {low}={smallest} and {high}={largest}: swap them."
        )


@_pytree
@dataclasses.dataclass(frozen=True)
class VE:
    """Variance exploding, with the noise level as its time.

        alpha = 1,    sigma = t,    t from sigma_min to sigma_max.

    Args:
        sigma_min: smallest noise level, in units of the data.
        sigma_max: largest noise level; well above the spread of the data.
        mean: mean of the data, where the prior is centered: a scalar, or of the shape of one event.

    Raises:
        ValueError: a noise level is not positive, ``sigma_min >= sigma_max``, or the mean is not
            finite.

    Example:
        >>> from sm_jax.processes import diffusion_squared
        >>> process = VE(sigma_min=0.01, sigma_max=50.0)
        >>> float(process.sigma(3.0)), float(diffusion_squared(process, 3.0))
        (3.0, 6.0)
    """

    sigma_min: ArrayLike = 0.01
    sigma_max: ArrayLike = 50.0
    mean: ArrayOrList = 0.0

    def __post_init__(self):
        _check_mean(self.mean)
        _check_increasing(self, "sigma_min", "sigma_max")

    @property
    def t_min(self) -> ArrayLike:
        """The smallest time, ``sigma_min``."""
        return self.sigma_min

    @property
    def t_max(self) -> ArrayLike:
        """The largest time, ``sigma_max``."""
        return self.sigma_max

    def alpha(self, t: ArrayOrList) -> jax.Array:
        """Return the scale of the data, 1."""
        return jnp.ones_like(_arrays.as_floating(t))

    def sigma(self, t: ArrayOrList) -> jax.Array:
        """Return the noise level, ``t`` itself."""
        return _arrays.as_floating(t)

    def time_at(self, ratio: ArrayOrList) -> jax.Array:
        """Return the time at which ``sigma / alpha`` equals ``ratio``: ``ratio`` itself."""
        return _arrays.as_floating(ratio)


@_pytree
@dataclasses.dataclass(frozen=True)
class EDM(VE):
    """The process of EDM: ``VE`` between the noise levels that Karras et al. use for images.

        alpha = 1,    sigma = t,    t from sigma_min to sigma_max.

    Args:
        sigma_min: smallest noise level, for data of standard deviation near 0.5.
        sigma_max: largest noise level.
        mean: mean of the data, where the prior is centered: a scalar, or of the shape of one event.

    Example:
        >>> from sm_jax.processes import time_grid
        >>> print(time_grid(EDM(), num_steps=2).round(2))
        [80.    2.52  0.  ]
    """

    sigma_min: ArrayLike = 0.002
    sigma_max: ArrayLike = 80.0


@_pytree
@dataclasses.dataclass(frozen=True)
class GeometricVE:
    """Variance exploding, with the noise level geometric in time.

        alpha = 1,    sigma = sigma_min (sigma_max / sigma_min)^t,    t from 0 to 1.

    Args:
        sigma_min: noise level at ``t = 0``.
        sigma_max: noise level at ``t = 1``.
        mean: mean of the data, where the prior is centered: a scalar, or of the shape of one event.

    Example:
        >>> print(GeometricVE(sigma_min=0.01, sigma_max=100.0).sigma(0.5).round(6))
        1.0
    """

    sigma_min: ArrayLike = 0.01
    sigma_max: ArrayLike = 50.0
    mean: ArrayOrList = 0.0

    def __post_init__(self):
        _check_mean(self.mean)
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

    def alpha(self, t: ArrayOrList) -> jax.Array:
        """Return the scale of the data, 1."""
        return jnp.ones_like(_arrays.as_floating(t))

    def sigma(self, t: ArrayOrList) -> jax.Array:
        """Return the noise level ``sigma_min (sigma_max / sigma_min)^t``."""
        return jnp.exp(_arrays.as_floating(t) * self._log_growth()) * self.sigma_min

    def time_at(self, ratio: ArrayOrList) -> jax.Array:
        """Return the time at which ``sigma / alpha`` equals ``ratio``."""
        return jnp.log(_arrays.as_floating(ratio) / self.sigma_min) / self._log_growth()


@_pytree
@dataclasses.dataclass(frozen=True)
class VPLinear:
    """Variance preserving with a linear rate: ``alpha^2 + sigma^2 = 1``, ``g^2 = beta(t)``.

        alpha = exp(-b(t) / 2),    sigma = sqrt(1 - exp(-b(t))),    t from t_min to 1,
        beta(t) = beta_min + (beta_max - beta_min) t,
        b(t) = beta_min t + (beta_max - beta_min) t^2 / 2,    its integral.

    Args:
        beta_min: rate at ``t = 0``, per unit of time.
        beta_max: rate at ``t = 1``.
        t_min: smallest time; ``t_max`` is 1.
        mean: mean of the data, where the prior is centered: a scalar, or of the shape of one event.

    Example:
        >>> process = VPLinear()
        >>> print((process.alpha(0.3) ** 2 + process.sigma(0.3) ** 2).round(6))
        1.0
    """

    beta_min: ArrayLike = 0.1
    beta_max: ArrayLike = 20.0
    t_min: ArrayLike = 1e-5
    mean: ArrayOrList = 0.0

    def __post_init__(self):
        _check_mean(self.mean)
        _check_increasing(self, "beta_min", "beta_max", equal=True)
        _check_increasing(self, "t_min", "t_max")

    @property
    def t_max(self) -> float:
        """The largest time, 1."""
        return 1.0

    def _integrated_rate(self, t: ArrayOrList) -> jax.Array:
        t = _arrays.as_floating(t)
        slope = jnp.subtract(self.beta_max, self.beta_min)
        return t * (self.beta_min + 0.5 * slope * t)

    def _time_of_integrated_rate(self, b: jax.Array) -> jax.Array:
        # The root of (beta_max - beta_min) t^2 / 2 + beta_min t - b that does not cancel.
        slope = jnp.subtract(self.beta_max, self.beta_min)
        return 2.0 * b / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * b))

    def alpha(self, t: ArrayOrList) -> jax.Array:
        """Return the scale of the data, ``exp(-b(t) / 2)``."""
        return jnp.exp(-0.5 * self._integrated_rate(t))

    def sigma(self, t: ArrayOrList) -> jax.Array:
        """Return the noise level, ``sqrt(1 - exp(-b(t)))``."""
        return jnp.sqrt(-jnp.expm1(-self._integrated_rate(t)))

    def time_at(self, ratio: ArrayOrList) -> jax.Array:
        """Return the time at which ``sigma / alpha = sqrt(exp(b) - 1)`` equals ``ratio``."""
        ratio = _arrays.as_floating(ratio)
        is_small = ratio < 1.0
        # Not by minimum and maximum, which halve the derivative at 1.
        small, large = jnp.where(is_small, ratio, 1.0), jnp.where(is_small, 1.0, ratio)
        of_large = 2.0 * jnp.log(large) + jnp.log1p(1.0 / large**2)  # its square may overflow
        return self._time_of_integrated_rate(
            jnp.where(is_small, jnp.log1p(jnp.square(small)), of_large)
        )


@_pytree
@dataclasses.dataclass(frozen=True)
class SubVP(VPLinear):
    """Sub-variance preserving: the scale of `VPLinear` with a smaller noise level.

        alpha = exp(-b(t) / 2),    sigma = 1 - exp(-b(t)),    t from t_min to 1,
        b(t) = beta_min t + (beta_max - beta_min) t^2 / 2.

    Args:
        beta_min: rate at ``t = 0``, per unit of time.
        beta_max: rate at ``t = 1``.
        t_min: smallest time; ``t_max`` is 1.
        mean: mean of the data, where the prior is centered: a scalar, or of the shape of one event.

    Example:
        >>> sub, full = SubVP(), VPLinear()
        >>> bool(jnp.allclose(sub.sigma(0.3), full.sigma(0.3) ** 2))
        True
    """

    def sigma(self, t: ArrayOrList) -> jax.Array:
        """Return the noise level, ``1 - exp(-b(t))``."""
        return -jnp.expm1(-self._integrated_rate(t))

    def time_at(self, ratio: ArrayOrList) -> jax.Array:
        """Return the time at which ``sigma / alpha = 2 sinh(b / 2)`` equals ``ratio``."""
        return self._time_of_integrated_rate(2.0 * jnp.arcsinh(0.5 * _arrays.as_floating(ratio)))


@_pytree
@dataclasses.dataclass(frozen=True)
class Cosine:
    """Variance preserving along a quarter of a circle.

        alpha = cos(pi t / 2),    sigma = sin(pi t / 2),    t from t_min to t_max < 1.

    This is the cosine schedule of Salimans & Ho 2022. That of Nichol & Dhariwal 2021 has an offset:
    its ``alpha`` is ``cos(pi/2 (t + s) / (1 + s))``, ``s = 0.008``, over its value at ``t = 0``.

    Args:
        t_min: smallest time, above 0.
        t_max: largest time, below 1, where nothing of the data would be left.
        mean: mean of the data, where the prior is centered: a scalar, or of the shape of one event.

    Example:
        >>> from sm_jax.processes import noise_ratio
        >>> print(noise_ratio(Cosine(), 0.5).round(6))
        1.0

    References: Salimans & Ho 2022, section 5, https://arxiv.org/abs/2202.00512; Nichol & Dhariwal
    2021, eq. 17, https://arxiv.org/abs/2102.09672 (with the offset).
    """

    t_min: ArrayLike = 1e-4
    t_max: ArrayLike = 0.999
    mean: ArrayOrList = 0.0

    def __post_init__(self):
        _check_mean(self.mean)
        _check_increasing(self, "t_min", "t_max")
        largest = _arrays.concrete(self.t_max)
        if largest is not None and largest >= 1.0:
            raise ValueError(f"t_max must be below 1, where alpha is zero, got {self.t_max}.")

    def alpha(self, t: ArrayOrList) -> jax.Array:
        """Return the scale of the data, ``cos(pi t / 2)``."""
        t = _arrays.as_floating(t)  # pi t / 2 is rounded too coarsely where its cosine vanishes
        return jnp.where(t < 0.5, jnp.cos(0.5 * jnp.pi * t), jnp.sin(0.5 * jnp.pi * (1.0 - t)))

    def sigma(self, t: ArrayOrList) -> jax.Array:
        """Return the noise level, ``sin(pi t / 2)``."""
        return jnp.sin(0.5 * jnp.pi * _arrays.as_floating(t))

    def time_at(self, ratio: ArrayOrList) -> jax.Array:
        """Return the time at which ``sigma / alpha = tan(pi t / 2)`` equals ``ratio``."""
        return jnp.arctan(_arrays.as_floating(ratio)) * (2.0 / jnp.pi)
