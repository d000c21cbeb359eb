r"""Mixtures of uniform densities on boxes, and what Gaussian noise makes of them.

A uniform density on the interval ``[c - a, c + a]`` plus noise of standard deviation ``s`` is

    p(x) = (Phi(u + h) - Phi(u - h)) / (2 h s),    u = (x - c) / s,    h = a / s,           (1)
    d log p / dx = (phi(u + h) - phi(u - h)) / (Phi(u + h) - Phi(u - h)) / s,               (2)

with ``phi`` and ``Phi`` the standard normal density and distribution function. A box is a product
of intervals. Taken literally, (1) and (2) are 0 / 0 in the tails and, where ``alpha -> 0`` shrinks
the interval, for small ``h``. By symmetry let ``u >= 0``; then the mass
``m = Phi(u + h) - Phi(u - h)`` is, without cancellation,

    inside,  u <= h:      m = erf((h - u) / sqrt 2) / 2 + erf((h + u) / sqrt 2) / 2,
    outside, u > h:       m = phi(u - h) (M(u - h) - exp(-2 u h) M(u + h)),
    narrow,  h, u h <= 1: m = 2 h phi(u) mean_s exp(-u h s - h^2 s^2 / 2),

with Mills' ratio ``M(a) = (1 - Phi(a)) / phi(a)`` and the mean over ``s`` uniform in [-1, 1]
by Gauss-Legendre quadrature, exact to rounding there.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.densities import _common
from sm_jax.typing import ArrayOrList, ProcessLike

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_FAR, _TERMS = 5.0, 16  # Mills' ratio beyond 5 by 16 terms of its continued fraction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniformBoxes:
    """Mixture of uniform densities on ``K`` boxes, with Gaussian noise once `noised`.

    Before noising, the lower faces of a box belong to it, and its upper faces only where no box
    reaches further, so that neighbors share no point.

    Args:
        log_weights: log of the normalized weights, ``[K]``.
        low: lower corners, ``[K, D]``.
        high: upper corners, ``[K, D]``, above ``low``.
        std: standard deviation of the noise, a scalar; None before noising.

    Example:
        >>> density = UniformBoxes(jnp.zeros(1), jnp.zeros((1, 2)), jnp.full((1, 2), 2.0))
        >>> print(density.log_prob(jnp.array([[1.0, 1.0], [3.0, 1.0]])).round(3))
        [-1.386   -inf]
    """

    log_weights: jax.Array
    low: jax.Array
    high: jax.Array
    std: jax.Array | None = None

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Return ``n`` independent draws, ``[n, D]``."""
        _checks.check_count("n", n)
        key_box, key_place, key_noise = jax.random.split(key, 3)
        num_boxes, num_dims = self.low.shape
        k = jax.random.choice(key_box, num_boxes, (n,), p=jnp.exp(self.log_weights))
        dtype = _arrays.accumulator(self.low.dtype)
        place = jax.random.uniform(key_place, (n, num_dims), dtype)
        x = self.low[k] + (self.high - self.low)[k] * place
        if self.std is None:
            return x
        return x + self.std * jax.random.normal(key_noise, (n, num_dims), dtype)

    def log_prob(self, x: ArrayOrList) -> jax.Array:
        """Return ``log p(x)`` in nats, ``[B]``; ``-inf`` outside the boxes before noising."""
        return self._rows(lambda row: self._log_prob_and_score(row)[0], x)

    def score(self, x: ArrayOrList) -> jax.Array:
        """Return ``grad log p(x)``, ``[B, D]``; before noising 0 inside, NaN outside the boxes."""
        x = _checks.check_data(x)
        return self._rows(lambda row: self._log_prob_and_score(row)[1], x).astype(x.dtype)

    def noised(self, process: ProcessLike, t: ArrayLike) -> "UniformBoxes":
        """Return the density of ``alpha(t) x_0 + sigma(t) z``; ``t`` a scalar."""
        dtype = _arrays.accumulator(self.low.dtype)
        alpha, sigma = _common.scale_and_noise(process, t, dtype)
        std = sigma if self.std is None else jnp.sqrt((alpha * self.std) ** 2 + sigma**2)
        return dataclasses.replace(self, low=alpha * self.low, high=alpha * self.high, std=std)

    def _rows(self, fn, x):
        return _common.apply_rows(
            fn, x, self.low.shape[1:], self.low.dtype, self.low.size * len(_NODES)
        )

    def _log_prob_and_score(self, x):
        """Return ``log p(x) []`` and the score ``[D]`` at one event ``x [D]``."""
        if self.std is None:
            last = self.high == jnp.max(self.high, axis=0, keepdims=True)
            below = (x[None] < self.high) | (last & (x[None] == self.high))
            inside = jnp.all((self.low <= x[None]) & below, axis=-1)
            log_box = self.log_weights - jnp.sum(jnp.log(self.high - self.low), axis=-1)
            log_prob = jax.nn.logsumexp(jnp.where(inside, log_box, -jnp.inf))
            log_prob = jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, log_prob)
            return log_prob, jnp.where(jnp.any(inside), 0 * x, jnp.nan)
        u = (x[None] - (self.low + self.high) / 2) / self.std
        h = (self.high - self.low) / (2 * self.std)
        log_density, slope = _blurred_interval(u, h)
        # Boxes in one column share the terms of x, which are large in the tails: taken out first,
        # they leave no rounding error in the ratios.
        largest = jnp.max(log_density, axis=0)
        log_ratio = self.log_weights + jnp.sum(log_density - largest[None], axis=-1)
        score = jnp.sum(jax.nn.softmax(log_ratio)[:, None] * slope, axis=0) / self.std
        log_prob = jnp.sum(largest - jnp.log(self.std)) + jax.nn.logsumexp(log_ratio)
        return log_prob, score


def _blurred_interval(u, h):
    """Return ``log((Phi(u + h) - Phi(u - h)) / 2h)`` and its derivative in ``u``, elementwise.

    Each of the three forms is evaluated on arguments clipped to where it holds, so that the
    derivatives of those not selected stay finite.
    """
    sign = jnp.where(u < 0, -1, 1).astype(u.dtype)
    v = sign * u  # not abs, whose derivative at 0 is 0
    inside, narrow = v <= h, (h <= 1) & (v * h <= 1)

    s = jnp.asarray(_NODES, u.dtype).reshape((-1,) + (1,) * u.ndim)
    w = jnp.asarray(_WEIGHTS / 2, u.dtype).reshape(s.shape)
    product, width = jnp.where(narrow, v * h, 0)[None], jnp.where(narrow, h, 0)[None]
    terms = w * jnp.exp(-product * s - (width * s) ** 2 / 2)
    mean = jnp.sum(terms, axis=0)
    narrow_log = jnp.log(mean) - v**2 / 2
    narrow_slope = -v - width[0] * jnp.sum(s * terms, axis=0) / mean

    wide = jnp.where(narrow, 1, h)
    lost = -jnp.expm1(-2 * jnp.where(narrow, 1, v * h))  # 1 - phi(v + h) / phi(v - h)

    gap = jnp.where(inside, 0, v - h)
    mills = _mills(gap) - (1 - lost) * _mills(v + h)
    mills = jnp.where(inside, 1, mills)
    outside_log = jnp.log(mills / (2 * wide)) - gap**2 / 2
    outside_slope = -lost / mills

    depth = jnp.where(inside, h - v, 0)
    mass = (jax.lax.erf(depth / math.sqrt(2)) + jax.lax.erf((wide + v) / math.sqrt(2))) / 2
    phi = jnp.exp(-(depth**2) / 2) / math.sqrt(2 * math.pi)
    inside_log = jnp.log(mass / (2 * wide)) + math.log(2 * math.pi) / 2
    inside_slope = -phi * lost / mass

    log = jnp.where(inside, inside_log, outside_log)
    slope = jnp.where(inside, inside_slope, outside_slope)
    log = jnp.where(narrow, narrow_log, log) - math.log(2 * math.pi) / 2
    return log, sign * jnp.where(narrow, narrow_slope, slope)


def _mills(a):
    """Mills' ratio ``(1 - Phi(a)) / phi(a)`` for ``a >= 0``: erfc, then a continued fraction."""
    near = jnp.minimum(a, _FAR)
    near = math.sqrt(math.pi / 2) * jnp.exp(near**2 / 2) * jax.lax.erfc(near / math.sqrt(2))
    far = jnp.maximum(a, _FAR)
    rest = far
    for n in range(_TERMS, 0, -1):  # a + 1 / (a + 2 / (a + 3 / ...))
        rest = far + n / rest
    return jnp.where(a < _FAR, near, 1 / rest)
