r"""Gaussian mixtures, and the mixture of point masses that noise turns into one.

    p(x) = sum_k w_k N(x; m_k, U_k diag(v_k) U_k'),                                         (1)
    score(x) = -sum_k r_k(x) U_k diag(1 / v_k) U_k' (x - m_k),    r_k = w_k N_k(x) / p(x).  (2)

Covariances are kept by their axes ``U_k`` and variances ``v_k``, because noising then is one line,

    m_k -> alpha m_k,    v_k -> alpha^2 v_k + sigma^2,    U_k unchanged,                    (3)

and isotropic components need no axes and a single variance.

In the tails the squared distances in ``log N_k`` grow, and float32 leaves nothing of their
differences, which is all that ``r_k`` depends on. Where components share their covariance these
differences are therefore taken in closed form, with respect to the nearest component ``j``,

    log N_k(x) - log N_j(x) = (m_k - m_j)' ((x - m_k) + (x - m_j)) / (2 v).                 (4)
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

_HIGHEST = jax.lax.Precision.HIGHEST  # accelerators would otherwise multiply in lower precision


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Mixture of ``K`` Gaussians over events of ``D`` numbers, equation (1) of the module.

    Build it with `gaussian` or `gaussian_mixture`.

    Args:
        log_weights: log of the normalized weights, ``[K]``.
        means: ``[K, ...]``, the event shape after the first axis.
        variances: along the axes of each component: ``[K, D]``, ``[K, 1]``, or ``[1, 1]`` where
            all are the same.
        axes: the orthonormal axes as columns, ``[K, D, D]``; None for isotropic components.

    Example:
        >>> density = gaussian_mixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], 1.0)
        >>> print(density.score(jnp.array([[0.5, 1.0], [10.0, 2.0]])).round(3))
        [[ 1.023 -1.   ]
         [-8.    -2.   ]]
    """

    log_weights: jax.Array
    means: jax.Array
    variances: jax.Array
    axes: jax.Array | None = None

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Return ``n`` independent draws, ``[n, ...]``."""
        _checks.check_count("n", n)
        key_component, key_noise = jax.random.split(key)
        num_components, num_dims = self._flat_means.shape
        k = jax.random.choice(key_component, num_components, (n,), p=jnp.exp(self.log_weights))
        z = jax.random.normal(key_noise, (n, num_dims), self.means.dtype)
        z = z * jnp.sqrt(self.variances if len(self.variances) == 1 else self.variances[k])
        if self.axes is not None:
            axes = self.axes if num_components == 1 else self.axes[k]
            z = jnp.matmul(axes, z[:, :, None], precision=_HIGHEST)[:, :, 0]
        return self.means[k] + z.reshape(n, *self.means.shape[1:])

    def log_prob(self, x: ArrayOrList) -> jax.Array:
        """Return ``log p(x)`` in nats, ``[B]``, for ``x [B, ...]``."""
        return self._rows(lambda row: self._log_prob_and_score(row)[0], x)

    def score(self, x: ArrayOrList) -> jax.Array:
        """Return ``grad log p(x)``, equation (2), of the shape and dtype of ``x [B, ...]``."""
        x = _checks.check_data(x)
        score = self._rows(lambda row: self._log_prob_and_score(row)[1], x)
        return score.reshape(x.shape).astype(x.dtype)

    def noised(self, process: ProcessLike, t: ArrayLike) -> "GaussianMixture":
        """Return the density of ``alpha(t) x_0 + sigma(t) z``, equation (3); ``t`` a scalar."""
        dtype = _arrays.accumulator(self.means.dtype)
        alpha, sigma = _common.scale_and_noise(process, t, dtype)
        variances = alpha**2 * self.variances + sigma**2
        return dataclasses.replace(self, means=alpha * self.means, variances=variances)

    @property
    def _flat_means(self) -> jax.Array:
        return self.means.reshape(self.means.shape[0], math.prod(self.means.shape[1:]))

    def _rows(self, fn, x):
        return _common.apply_rows(fn, x, self.means.shape[1:], self.means.dtype, self.means.size)

    def _log_prob_and_score(self, x):
        """Return ``log p(x) []`` and the score ``[D]`` at one flat event ``x [D]``."""
        means, v = self._flat_means, self.variances
        away = x[None] - means
        if self.axes is not None:
            away = jnp.einsum("kd,kde->ke", away, self.axes, precision=_HIGHEST)
        log_volume = jnp.sum(jnp.log(2 * jnp.pi * jnp.broadcast_to(v, (len(v), x.size))), axis=-1)
        log_joint = self.log_weights - (jnp.sum(away**2 / v, axis=-1) + log_volume) / 2

        j = jnp.argmax(log_joint)
        if len(v) == 1 and self.axes is None:  # equation (4)
            shift = (means - means[j][None]) * (away + away[j][None]) / v
            log_ratio = self.log_weights - self.log_weights[j] + jnp.sum(shift, axis=-1) / 2
        else:
            log_ratio = log_joint - log_joint[j]

        pull = jax.nn.softmax(log_ratio)[:, None] * away / v
        if self.axes is not None:
            pull = jnp.einsum("ke,kde->kd", pull, self.axes, precision=_HIGHEST)
        return log_joint[j] + jax.nn.logsumexp(log_ratio), -jnp.sum(pull, axis=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Empirical:
    """Point masses of weight ``1 / N`` at ``points [N, ...]``; build it with `empirical`.

    Before noising there is no density, and `log_prob` and `score` raise ``ValueError``.

    Args:
        points: ``[N, ...]``.

    Example:
        >>> points = jnp.array([[0.0], [1.0]])
        >>> print(empirical(points).sample(jax.random.key(0), 3).shape)
        (3, 1)
    """

    points: jax.Array

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Return ``n`` of the points, ``[n, ...]``, drawn with replacement."""
        _checks.check_count("n", n)
        return self.points[jax.random.randint(key, (n,), 0, len(self.points))]

    def log_prob(self, x: ArrayOrList) -> jax.Array:
        """Raise ``ValueError``: point masses have no density; noise them first."""
        raise ValueError(self._message("log_prob"))

    def score(self, x: ArrayOrList) -> jax.Array:
        """Raise ``ValueError``: point masses have no score; noise them first."""
        raise ValueError(self._message("score"))

    def noised(self, process: ProcessLike, t: ArrayLike) -> GaussianMixture:
        """Return the density of ``alpha(t) x_0 + sigma(t) z``: a mixture of ``N`` Gaussians."""
        dtype = _arrays.accumulator(self.points.dtype)
        alpha, sigma = _common.scale_and_noise(process, t, dtype)
        _checks.check_positive("sigma(t)", sigma)
        num = len(self.points)
        return GaussianMixture(
            log_weights=jnp.full((num,), -math.log(num), dtype),
            means=alpha * self.points,
            variances=jnp.full((1, 1), sigma**2),
        )

    def _message(self, method):
        return (
            f"{method} of {len(self.points)} point masses does not exist: noise them first, "
            f"density.noised(process, t).{method}(x)."
        )


def gaussian(mean: ArrayOrList, cov: ArrayOrList) -> GaussianMixture:
    """Return the Gaussian ``N(mean, cov)``.

    Args:
        mean: one event of any rank, ``[...]`` with ``D`` numbers.
        cov: covariance ``[D, D]`` of the flattened event, or a scalar variance of each number.

    Returns:
        A density over ``[B, ...]``.

    Raises:
        ValueError: shapes that do not fit, or a covariance that is not symmetric positive definite.

    Example:
        >>> density = gaussian([1.0, 0.0], [[2.0, 0.0], [0.0, 0.5]])
        >>> print(density.score(jnp.array([[3.0, 1.0]])))
        [[-1. -2.]]
    """
    known = _arrays.concrete(cov)
    cov = jnp.asarray(cov) if known is None else known  # not rounded to float32 yet
    return gaussian_mixture([1.0], jnp.asarray(mean)[None], cov if cov.ndim == 0 else cov[None])


def gaussian_mixture(
    weights: ArrayOrList, means: ArrayOrList, covs: ArrayOrList
) -> GaussianMixture:
    """Return the mixture ``sum_k w_k N(m_k, C_k)``.

    Args:
        weights: ``[K]``, not negative; divided by their sum.
        means: ``[K, ...]``, events of any rank with ``D`` numbers.
        covs: full covariances ``[K, D, D]`` of the flattened events, or isotropic variances:
            ``[K]``, or one scalar for all (the cheapest, and the most stable in the far tails).
            Derivatives by a full covariance are those of its eigenvectors, which do not exist where
            two of its eigenvalues coincide: NaN. Those by variances always exist.

    Returns:
        A density over ``[B, ...]``.

    Raises:
        ValueError: shapes that do not fit, a negative weight, or a covariance that is not
            symmetric positive definite.

    Example:
        >>> density = gaussian_mixture([1, 3], [[0.0, 0.0], [4.0, 0.0]], [1.0, 0.25])
        >>> print(density.log_prob(jnp.array([[4.0, 0.0]])).round(3))
        [-0.739]
    """
    means = jnp.asarray(means)
    means = _arrays.accumulated(means.astype(jnp.result_type(means, float)))
    if means.ndim == 0 or means.size == 0:
        raise ValueError(f"means must have shape [K, ...] and not be empty, got {means.shape}.")
    num, num_dims = means.shape[0], math.prod(means.shape[1:])
    log_weights = _common.log_normalized(weights, num, means.dtype)
    shape = _arrays.shape(covs)
    if shape in ((), (num,)):
        _checks.check_positive("covs", covs)
        variances = jnp.asarray(covs, means.dtype).reshape(-1, 1)
        return GaussianMixture(log_weights, means, variances)
    if shape != (num, num_dims, num_dims):
        raise ValueError(
            f"covs must be full covariances {(num, num_dims, num_dims)}, variances {(num,)} or a "
            f"scalar, got shape {shape}."
        )
    variances, axes = _principal_axes(covs)
    return GaussianMixture(
        log_weights, means, jnp.asarray(variances, means.dtype), jnp.asarray(axes, means.dtype)
    )


def _principal_axes(covs):
    known = _arrays.concrete(covs)
    if known is None:
        return jnp.linalg.eigh(covs)
    known = known.astype(np.float64)  # the small variances of a float32 decomposition are noise
    if not np.allclose(known, np.swapaxes(known, 1, 2), rtol=1e-5, atol=1e-6 * np.abs(known).max()):
        raise ValueError(f"covariances must be symmetric, got {known}: use (C + C.T) / 2.")
    variances, axes = np.linalg.eigh(known)
    if not variances.min() > 0:
        raise ValueError(
            f"covariances must be positive definite, the smallest eigenvalue is {variances.min()}: "
            "add a small multiple of the identity."
        )
    return variances, axes


def empirical(points: ArrayOrList) -> Empirical:
    """Return the empirical distribution of ``points``: mass ``1 / N`` at each.

    Once noised it is the exact optimum of denoising score matching on a finite set: what a
    model that memorizes its training set would learn. Its score costs ``O(B N D)`` time, and
    memory that does not grow with ``B``.

    Args:
        points: ``[N, ...]``, floating.

    Returns:
        A density whose `noised` is a Gaussian mixture.

    Raises:
        TypeError: ``points`` are not floating.
        ValueError: ``points`` are empty.

    Example:
        >>> from sm_jax.processes import VE
        >>> noisy = empirical(jnp.array([[-1.0], [1.0]])).noised(VE(), 0.5)
        >>> print(noisy.score(jnp.array([[2.0], [3.0]])).round(4))
        [[-4.]
         [-8.]]

    References:
        Vincent 2011, https://doi.org/10.1162/NECO_a_00142; the closed form as equation (57) of
        Karras et al. 2022, https://arxiv.org/abs/2206.00364.
    """
    return Empirical(_checks.check_data(points, "points"))
