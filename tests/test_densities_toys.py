"""The toys: blurred curves and boxes, against their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from sm_jax import densities, processes
from sm_jax.densities import _boxes
from tests.test_densities import Scaled, every_toy, log_prob, score, square


@every_toy
def test_toys_have_mean_zero_and_standard_deviation_one(name):
    with jax.enable_x64(True):
        density = densities.TOYS[name]()
        weights = np.exp(density.log_weights)
        if name == "checkerboard":
            center = (density.low + density.high) / 2
            variance = (density.high - density.low)[0] ** 2 / 12
        else:
            center, variance = density.means, density.variances[0]
        np.testing.assert_allclose(weights @ center, 0, atol=1e-12)
        np.testing.assert_allclose(weights @ center**2 + variance, 1, rtol=1e-12)


def curve(name):
    """Dense points on the curve of a toy, and their weights."""
    u = (np.arange(20_000) + 0.5) / 20_000

    def polar(radius, angle):
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)

    weights = np.ones_like(u)
    match name:
        case "moons":
            upper = polar(1, np.pi * u)
            parts = [upper, [1, 0.5] - upper]
        case "swiss_roll":
            parts = [polar(np.pi * (1.5 + 3 * u), np.pi * (1.5 + 3 * u))]
        case "rings":
            parts = [polar(r, 2 * np.pi * u) for r in (1, 2, 3)]
        case "pinwheel":
            radius = -0.2 + 2.4 * u
            weights = scipy.stats.norm(1, 0.3).pdf(radius)
            parts = [polar(radius, np.exp(radius) / 4 + 2 * np.pi * k / 5) for k in range(5)]
    weights = np.tile(weights, len(parts)) / weights.sum() / len(parts)
    points = np.concatenate(parts)
    points = points - weights @ points
    return points / np.sqrt(weights @ points**2), weights


@pytest.mark.parametrize("name", ["moons", "swiss_roll", "rings", "pinwheel"])
def test_toys_are_the_blurred_curves(name):
    """Against a midpoint sum of many more nodes, before and after noising."""
    points, weights = curve(name)
    x = np.random.default_rng(6).normal(size=(24, 2))
    for alpha, sigma in ((1.0, 0.0), (0.5, 0.2)):
        centers = alpha * math.sqrt(1 - 0.1**2) * points
        variance = alpha**2 * 0.1**2 + sigma**2
        distance2 = ((x[:, None] - centers[None]) ** 2).sum(-1)
        truth = scipy.special.logsumexp(-distance2 / (2 * variance), b=weights, axis=1)
        truth = truth - math.log(2 * math.pi * variance)
        with jax.enable_x64(True):
            density = densities.TOYS[name]().noised(Scaled(alpha, sigma), 1.0)
            value = log_prob(density, x)
        np.testing.assert_allclose(value, truth, atol=5e-4)  # that of the midpoint sum


@pytest.mark.parametrize("noise", [0.1, 0.3])
@pytest.mark.parametrize("name", ["moons", "swiss_roll", "rings", "pinwheel"])
def test_twice_the_nodes_change_nothing(name, noise):
    toy = densities.TOYS[name]
    with jax.enable_x64(True):
        density = toy(noise=noise)
        curves = {"moons": 2, "swiss_roll": 1, "rings": 2, "pinwheel": 5}[name]
        refined = toy(noise=noise, num_nodes=2 * math.ceil(len(density.means) / curves))
        x, _ = square(3.0, 60)
        value, truth = log_prob(density, x), log_prob(refined, x)
        gaps = np.linalg.norm(np.diff(density.means, axis=0), axis=1)
    likely = truth > truth.max() + math.log(1e-8)
    np.testing.assert_allclose(value[likely], truth[likely], atol=1e-8 if noise <= 0.1 else 2e-6)
    within = np.sort(gaps)[: -(3 if name == "rings" else curves)]
    assert within.max() <= 0.83 * noise


def test_checkerboard_before_noising():
    x = jnp.array([[-1.3, -1.3], [0.4, 0.4], [-0.4, 0.4], [5.0, 0.0]])
    for density in (densities.checkerboard(), jax.tree.map(jnp.asarray, densities.checkerboard())):
        inside = -math.log(8 * (math.sqrt(3) / 2) ** 2)
        np.testing.assert_allclose(log_prob(density, x), [inside, inside, -np.inf, -np.inf])
        np.testing.assert_array_equal(score(density, x)[:2], 0)
        assert np.isnan(score(density, x)[2:]).all()


def test_neighboring_boxes_share_no_point():
    boxes = densities.UniformBoxes(
        jnp.log(jnp.array([0.25, 0.75])), jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [3.0]])
    )
    x = jnp.array([[0.0], [0.5], [1.0], [2.0], [3.0], [3.1], [jnp.nan]])
    p = [0.25, 0.25, 0.375, 0.375, 0.375, 0.0, np.nan]
    np.testing.assert_allclose(np.exp(boxes.log_prob(x)), p, rtol=1e-6)
    board = densities.checkerboard()
    inside = board.log_prob(board.low.mean(axis=0)[None] + 1e-3)  # both are in a square
    corner = board.log_prob(jnp.zeros((1, 2)))  # where two squares touch
    np.testing.assert_allclose(corner, inside)


def test_checkerboard_noised_is_the_convolution():
    """Against the integral of the Gaussian kernel over the squares, Gauss-Legendre per square."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    side = math.sqrt(3) / 2
    corners = [(i - 2, j - 2) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    nodes, weights = (nodes + 1) / 2, weights / 2
    points = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    points = np.concatenate([side * (np.array(c) + points) for c in corners])
    weights = np.tile(np.outer(weights, weights).ravel(), 8) / 8
    x = np.random.default_rng(7).normal(size=(24, 2)) * 1.5
    for alpha, sigma in ((1.0, 0.1), (0.5, 0.3), (0.01, 2.0)):
        away = x[:, None] - alpha * points[None]
        terms = -(away**2).sum(-1) / (2 * sigma**2)
        truth = scipy.special.logsumexp(terms, b=weights, axis=1) - math.log(2 * np.pi * sigma**2)
        posterior = weights * np.exp(terms - terms.max(1, keepdims=True))
        posterior = posterior / posterior.sum(1, keepdims=True)
        slope = -(posterior[..., None] * away).sum(1) / sigma**2
        with jax.enable_x64(True):
            density = densities.checkerboard().noised(Scaled(alpha, sigma), 1.0)
            np.testing.assert_allclose(log_prob(density, x), truth, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(score(density, x), slope, rtol=1e-8, atol=1e-8)


def test_blurred_interval_in_all_its_regimes():
    """log and slope over fourteen decades of width and distance: float32 against float64, float64
    against scipy's log_ndtr where that is accurate, the slope against the derivative of the log."""
    u = np.concatenate([[0.0], np.logspace(-3, 5, 81)])
    u = np.concatenate([-u, u])
    h = np.logspace(-7, 5, 61)
    u, h = (a.ravel() for a in np.meshgrid(u, h, indexing="ij"))
    # Float32 inputs, so that both precisions are asked the same question.
    u, h = u.astype(np.float32), h.astype(np.float32)
    with jax.enable_x64(True):
        u64, h64 = jnp.asarray(u, jnp.float64), jnp.asarray(h, jnp.float64)
        log, slope = jax.jit(_boxes._blurred_interval)(u64, h64)
        derivative = jax.jit(jax.grad(lambda u: _boxes._blurred_interval(u, h64)[0].sum()))(u64)
        curvature = jax.jit(jax.grad(lambda u: _boxes._blurred_interval(u, h64)[1].sum()))(u64)
    log, slope, derivative = np.asarray(log), np.asarray(slope), np.asarray(derivative)
    assert np.all(np.isfinite(curvature))
    v, gap = np.abs(u).astype(np.float64), np.abs(u).astype(np.float64) - h
    near = (v < 100) & (h < 100)
    np.testing.assert_allclose(slope[near], derivative[near], rtol=1e-7, atol=1e-12)
    far = (gap > 100) & (v * h > 30)
    truth = -np.sign(u[far]) * (gap[far] + 1 / gap[far])  # to 2 / gap^3: the normal hazard
    np.testing.assert_allclose(slope[far], truth, rtol=1e-7)
    truth = -(1 - 1 / gap[far] ** 2)  # to 6 / gap^4
    np.testing.assert_allclose(curvature[far], truth, rtol=1e-7)

    direct = (h > 0.1) & near
    v, w = v[direct], h[direct].astype(np.float64)
    high, low = scipy.special.log_ndtr(w - v), scipy.special.log_ndtr(-w - v)
    truth = high + np.log(-np.expm1(low - high)) - np.log(2 * w)
    np.testing.assert_allclose(log[direct], truth, rtol=1e-11, atol=1e-11)

    log32, slope32 = jax.jit(_boxes._blurred_interval)(jnp.asarray(u), jnp.asarray(h))
    # u - h is exact, so only its own rounding and that of the special functions remain.
    np.testing.assert_allclose(log32, log, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(slope32, slope, rtol=2e-5, atol=2e-8)


def test_curvature_of_the_checkerboard_at_its_symmetry_points():
    """The Hessian at the center of a square, where |u| would lose it, against differences."""
    with jax.enable_x64(True):
        density = densities.checkerboard().noised(Scaled(1.0, 0.3), 1.0)
        center = (density.low + density.high)[0] / 2
        hessian = jax.jit(jax.jacfwd(lambda x: density.score(x[None])[0]))(center)
        step = 1e-5 * np.eye(2)
        numeric = (score(density, center[None] + step) - score(density, center[None] - step)) / 2e-5
        np.testing.assert_allclose(hessian, numeric, rtol=1e-6, atol=1e-8)


def test_boxes_noised_twice_by_as_much_have_second_derivatives():
    boxes = densities.UniformBoxes(
        jnp.zeros(1), jnp.zeros((1, 1)), jnp.ones((1, 1)), std=jnp.array(0.5)
    )
    second = jax.grad(jax.grad(lambda t: boxes.noised(processes.VE(), t).std))(0.5)
    np.testing.assert_allclose(second, 0.25 / 0.5**1.5, rtol=1e-5)
