r"""Toy densities in two dimensions, each with mean 0 and standard deviation 1 along each axis.

A curve ``c(u)`` traversed with density ``q(u)`` and blurred by noise of standard deviation ``s`` is
a Gaussian mixture with infinitely many components,

    p(x) = int q(u) N(x; c(u), s^2 I) du  ~=  sum_k w_k N(x; c(u_k), s^2 I),                (1)

and with Gauss-Legendre nodes ``u_k`` (equal ones on a closed curve) that are closer together than
``s`` the sum converges faster than any power of their number. The toys *are* these sums: a finite
mixture, from which `sample` draws and whose `log_prob`, `score` and `noised` are exact to rounding.
By default neighboring nodes are at most 0.8 ``s`` apart, and ``log p`` is then that of the blurred
curve to 1e-8 for ``s <= 0.1``, to 2e-6 at ``s = 0.3``, wherever ``p`` is above 1e-8 of its maximum.

Coordinates are scaled per axis, before the noise is added, such that the standard deviation
of the density, noise included, is exactly 1: a process or a network needs no other scale.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from sm_jax import _checks
from sm_jax.densities import _common
from sm_jax.densities._boxes import UniformBoxes
from sm_jax.densities._mixtures import GaussianMixture


def two_moons(*, noise: float = 0.1, num_nodes: int | None = None) -> GaussianMixture:
    """Return two interleaved half circles, blurred; mean 0, standard deviation 1 per axis.

    Before scaling: ``(cos u, sin u)`` and ``(1 - cos u, 1/2 - sin u)``, ``u`` uniform in [0, pi].

    Args:
        noise: standard deviation of the blur, in units of the scaled data, in (0, 1).
        num_nodes: quadrature nodes per moon; by default enough for the noise.

    Raises:
        ValueError: ``noise`` outside (0, 1).

    Example:
        >>> print(round(two_moons().log_prob(jnp.zeros((1, 2))).item(), 1))
        -14.4

    References:
        ``sklearn.datasets.make_moons``.
    """
    u, w = _legendre(0, math.pi, num_nodes or _num_nodes(7.0, noise))
    upper = np.stack([np.cos(u), np.sin(u)], axis=-1)
    return _blurred([upper, np.array([1, 0.5]) - upper], [w, w], noise)


def swiss_roll(*, noise: float = 0.1, num_nodes: int | None = None) -> GaussianMixture:
    """Return a spiral of one and a half turns, blurred; mean 0, standard deviation 1 per axis.

    Before scaling: ``u (cos u, sin u)``, ``u`` uniform in [3 pi / 2, 9 pi / 2].

    Args:
        noise: standard deviation of the blur, in units of the scaled data, in (0, 1).
        num_nodes: quadrature nodes; by default enough for the noise.

    Raises:
        ValueError: ``noise`` outside (0, 1).

    Example:
        >>> print(round(swiss_roll().log_prob(jnp.zeros((1, 2))).item(), 1))
        -19.6

    References:
        ``sklearn.datasets.make_swiss_roll``, its first and third coordinates.
    """
    u, w = _legendre(1.5 * math.pi, 4.5 * math.pi, num_nodes or _num_nodes(23.5, noise))
    return _blurred([u[:, None] * np.stack([np.cos(u), np.sin(u)], axis=-1)], [w], noise)


def rings(*, noise: float = 0.1, num_nodes: int | None = None) -> GaussianMixture:
    """Return three concentric rings of equal mass, blurred; mean 0, standard deviation 1 per axis.

    Before scaling: radii 1, 2 and 3.

    Args:
        noise: standard deviation of the blur, in units of the scaled data, in (0, 1).
        num_nodes: equally spaced nodes on the outer ring, 2/3 and 1/3 of them on the others; by
            default enough for the noise.

    Raises:
        ValueError: ``noise`` outside (0, 1).

    Example:
        >>> print(rings().score(jnp.zeros((1, 2))).round(3) + 0.0)
        [[0. 0.]]
    """
    num_nodes = num_nodes or _num_nodes(12.5, noise)
    points, weights = [], []
    for radius in (1, 2, 3):
        n = math.ceil(num_nodes * radius / 3)
        u = 2 * math.pi * np.arange(n) / n
        points.append(radius * np.stack([np.cos(u), np.sin(u)], axis=-1))
        weights.append(np.full(n, 1 / n))
    return _blurred(points, weights, noise)


def pinwheel(*, noise: float = 0.1, num_nodes: int | None = None) -> GaussianMixture:
    """Return five spiral arms, blurred; mean 0, standard deviation 1 per axis.

    Before scaling, arm ``k`` is ``u (cos a, sin a)`` at the angle ``a = 2 pi k / 5 + exp(u) / 4``,
    with ``u ~ N(1, 0.3^2)`` cut off at four standard deviations.

    Args:
        noise: standard deviation of the blur, in units of the scaled data, in (0, 1).
        num_nodes: quadrature nodes per arm; by default enough for the noise.

    Raises:
        ValueError: ``noise`` outside (0, 1).

    Example:
        >>> print(pinwheel().means.shape)
        (710, 2)

    References:
        Johnson et al. 2016, https://arxiv.org/abs/1603.06277, with isotropic instead of tangential
        noise across the arms.
    """
    u, w = _legendre(-0.2, 2.2, num_nodes or _num_nodes(11.3, noise))
    w = w * np.exp(-0.5 * ((u - 1) / 0.3) ** 2)
    angles = [2 * math.pi * k / 5 + np.exp(u) / 4 for k in range(5)]
    arms = [u[:, None] * np.stack([np.cos(a), np.sin(a)], axis=-1) for a in angles]
    return _blurred(arms, [w] * 5, noise)


def eight_gaussians(*, noise: float = 0.15) -> GaussianMixture:
    """Return eight Gaussians, equally spaced on a circle; mean 0, standard deviation 1 per axis.

    Args:
        noise: standard deviation of each along each axis, in (0, 1).

    Raises:
        ValueError: ``noise`` outside (0, 1).

    Example:
        >>> print(eight_gaussians().means.shape)
        (8, 2)
    """
    u = math.pi * np.arange(8) / 4
    return _blurred([np.stack([np.cos(u), np.sin(u)], axis=-1)], [np.ones(8)], noise)


def checkerboard() -> UniformBoxes:
    """Return the uniform density on 8 of 16 squares; mean 0, standard deviation 1 per axis.

    The board is ``[-sqrt 3, sqrt 3]^2``; its lower left square has mass. Outside, ``log_prob`` is
    ``-inf`` and the score NaN; noised, both are finite everywhere.

    Example:
        >>> print(checkerboard().log_prob(jnp.array([[0.5, 0.5], [-0.5, 0.5]])).round(3))
        [-1.792   -inf]
    """
    side = math.sqrt(3) / 2
    low = jnp.asarray([[i, j] for i in range(4) for j in range(4) if (i + j) % 2 == 0], float)
    low = (low - 2) * side
    return UniformBoxes(jnp.full((8,), -math.log(8), low.dtype), low, low + side)


TOYS: dict[str, Callable[[], GaussianMixture | UniformBoxes]] = {
    "moons": two_moons,
    "swiss_roll": swiss_roll,
    "checkerboard": checkerboard,
    "rings": rings,
    "pinwheel": pinwheel,
    "eight_gaussians": eight_gaussians,
}
"""The two-dimensional toys by the names of the command line."""


def _legendre(start, end, num_nodes):
    """Return Gauss-Legendre nodes on [start, end], and their weights, which sum to 1."""
    _checks.check_count("num_nodes", num_nodes)
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return start + (end - start) * (nodes + 1) / 2, weights / 2


def _num_nodes(constant, noise):
    """Return the number of nodes that keeps neighbors within 0.8 ``noise`` of each other."""
    _checks.check_fraction("noise", noise)
    return math.ceil(constant / (0.8 * noise))


def _blurred(points, weights, noise):
    """Scale nodes ``[K, 2]`` such that with the noise they have mean 0 and variance 1 per axis."""
    _checks.check_fraction("noise", noise)
    points, weights = np.concatenate(points), np.concatenate(weights)
    weights = weights / weights.sum()
    points = points - weights @ points
    points = points * np.sqrt((1 - noise**2) / (weights @ points**2))
    means = jnp.asarray(points, float)
    log_weights = _common.log_normalized(weights, len(weights), means.dtype)
    return GaussianMixture(log_weights, means, jnp.full((1, 1), noise**2, means.dtype))
