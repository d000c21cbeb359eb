"""Small closed forms that several test files share."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import processes

PROCESSES = {
    "VE": processes.VE(sigma_min=0.01, sigma_max=50.0),
    "EDM": processes.EDM(),
    "GeometricVE": processes.GeometricVE(sigma_min=0.01, sigma_max=50.0),
    "VPLinear": processes.VPLinear(),
    "SubVP": processes.SubVP(),
    "Cosine": processes.Cosine(),
}

# A score s(x) = b - A x that is no gradient: A is not symmetric.
A = np.array([[1.5, 0.4, -0.2], [-0.7, 0.9, 0.3], [0.5, 0.1, 2.0]], np.float32)
b = np.array([0.3, -0.5, 0.2], np.float32)

# A Gaussian N(MEAN, COV).
MEAN = np.array([0.4, -0.3, 0.1], np.float32)
_ROOT = np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]])
COV = (_ROOT @ _ROOT.T).astype(np.float32)


def linear_score(x):
    """``s(x) = b - A x`` for ``x [B, 3]``."""
    return b[None] - x @ A.T


def nonlinear_score(x):
    """A smooth score of ``x [B, 3]`` whose Jacobian depends on the point."""
    score = jnp.tanh(x @ A.T + b[None]) - jnp.roll(x, 1, axis=-1) ** 2 * 0.3 - x
    return score.astype(x.dtype)


def jacobians(score_fn, x):
    """The Jacobian of every row, ``[B, D, D]``, by forward mode on single rows."""
    return jax.vmap(jax.jacfwd(lambda row: score_fn(row[None])[0]))(x)


def sign_cube(dims):
    """All sign vectors of a dimension, ``[2^D, D]``."""
    return np.array(list(itertools.product([-1.0, 1.0], repeat=dims)), np.float32)


def gaussian_score(x, mean, cov):
    """Score of ``N(mean, cov)`` at ``x [B, D]``."""
    precision = np.linalg.inv(np.asarray(cov, np.float64)).astype(x.dtype)
    return -(x - np.asarray(mean, x.dtype)[None]) @ precision


def gaussian_noised_score(process):
    """Score function ``(x, t)`` of ``N(MEAN, COV)`` under a process, for one ``t`` per row.

    In the basis of the eigenvectors of COV: a linear solver in the loop of a sampler is slow.
    """
    values, vectors = np.linalg.eigh(np.asarray(COV, np.float64))

    def score_fn(x, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        basis = jnp.asarray(vectors, x.dtype)
        variances = alpha**2 * jnp.asarray(values, x.dtype)[None] + sigma**2
        centered = (x - alpha * jnp.asarray(MEAN, x.dtype)[None]) @ basis
        return (-(centered / variances) @ basis.T).astype(x.dtype)

    return score_fn


def gaussian_log_prob(x, mean, cov):
    """Log-density of ``N(mean, cov)`` at ``x [B, D]``, in float64."""
    x, mean, cov = (np.asarray(v, np.float64) for v in (x, mean, cov))
    centered = x - mean
    mahalanobis = np.einsum("bi,ij,bj->b", centered, np.linalg.inv(cov), centered)
    return -0.5 * (mahalanobis + np.linalg.slogdet(2 * np.pi * cov)[1])


def assert_mean(samples, expected, sigmas=4.5, axis=0):
    """Assert that a Monte-Carlo mean is within ``sigmas`` standard errors, and those are small."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=axis, ddof=1) / np.sqrt(samples.shape[axis])
    np.testing.assert_array_less(
        np.abs(samples.mean(axis=axis) - expected), sigmas * error + 1e-6, strict=False
    )
