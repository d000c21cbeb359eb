"""The solvers of inverse problems against dense pseudo-inverses in NumPy, in every regime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import guidance, processes

VE = processes.VE()
SOLVERS = {"conjugate_residuals": guidance.conjugate_residuals, "gmres": guidance.gmres}


def low_pass(x):
    """Four of the nine frequencies of 16 numbers; of the eight rows one is zero."""
    waves = jnp.fft.rfft(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=1)[:, :4]
    return jnp.concatenate([waves.real, waves.imag], axis=1).astype(x.dtype)


GRADED = np.geomspace(1.0, 0.03, 8)[:, None] * np.eye(16)[3:11]  # A A' from 1 to 1e-3
TILES = np.kron(np.eye(4), np.ones((1, 4)) / 4)

# Operators of 16 numbers, the rank of each, and how far (2) amplifies rounding, |A| |A^+|.
OPERATORS = {
    "low pass": (low_pass, 7, 1.5),
    "rows twice": (lambda x: jnp.concatenate([x[:, :5], x[:, 2:7], x[:, :5]], axis=1), 7, 2),
    "zero": (lambda x: 0.0 * x[:, :3], 0, 1),
    "mean four times": (lambda x: x.mean(axis=1, keepdims=True).repeat(4, axis=1), 1, 1),
    "mask": (lambda x: x * jnp.asarray(np.arange(16) % 3 > 0, x.dtype)[None], 10, 1),
    "ill-conditioned": (lambda x: x @ jnp.asarray(GRADED.T, x.dtype), 8, 33),
    "difference": (lambda x: x - jnp.roll(x, 1, axis=1), 15, 6),
    "event": (lambda x: x[:, None, :, None] * jnp.ones((1, 2, 1, 3), x.dtype), 16, 1),
}


def dense(operator, size=16):
    """The matrix ``A [M, size]`` of an operator, in float64."""
    with jax.enable_x64(True):
        images = operator(jnp.eye(size, dtype=jnp.float64))
        return np.asarray(images).reshape(size, -1).T


def guided_score(x, t, matrix, y, noise_std, jacobian, cov):
    """Eq. (2) by a dense pseudo-inverse in float64, with ``D = J x`` and ``C``, VE."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rows = []
    for row, observed in zip(x, y, strict=True):
        gram = noise_std**2 * np.eye(len(matrix)) + matrix @ cov @ matrix.T
        weighted = np.linalg.pinv(gram, rcond=1e-10) @ (observed - matrix @ jacobian @ row)
        rows.append((jacobian @ row - row) / t**2 + jacobian.T @ matrix.T @ weighted)
    return np.stack(rows)


def check_scores(operator, rank, condition, method, solver, size, getkey):
    """The guided score of N(0, scale^2 I) for scales, noise, and ``y`` outside the range of A."""
    matrix = dense(operator)
    assert np.linalg.matrix_rank(matrix) == rank
    shape = jax.eval_shape(operator, jnp.zeros((1, 16))).shape[1:]

    @jax.jit
    def guided(x, t, y, noise_std, scale):
        options = {"sigma_data": scale} if method == "pseudo_inverse" else {}
        return getattr(guidance, method)(
            lambda x, t: -x / (scale**2 + t[:, None] ** 2),
            process=VE,
            operator=operator,
            observation=y,
            noise_std=noise_std,
            num_iterations=20,  # more than enough
            solve=solver,
            **options,
        )(x, t)

    for scale, noise, outside in (
        (1.0, 0.0, 0.0),
        (1.0, 0.0, 1.0),
        (1e-4, 0.0, 0.0),
        (1e4, 0.3, 1.0),
        (1e-8, 0.1, 0.0),
        (1e8, 0.0, 1.0),
    ):
        clean = scale * np.asarray(jax.random.normal(getkey(), (size, 16)), np.float64)
        y = clean @ matrix.T + scale * outside * jax.random.normal(getkey(), (size, len(matrix)))
        level = np.float64(np.float32(0.7 * scale))
        x = jnp.asarray(clean + level * jax.random.normal(getkey(), (size, 16)), jnp.float32)
        y = np.asarray(y, np.float32)
        shrunk = scale**2 / (scale**2 + level**2) * np.eye(16)
        out = guided(x, jnp.full(size, level), y.reshape(size, *shape), noise * scale, scale)
        exact = guided_score(x, level, matrix, y, noise * scale, shrunk, level**2 * shrunk)
        # Rounding of y, of D and of the products, amplified by each of the two A^+ in (2). The size
        # is that of the largest number, as a product with A mixes all of them.
        rounding = 32 * np.finfo(np.float32).eps * condition**2
        worst = np.abs(out - exact).max() / np.abs(exact).max()
        assert worst < rounding, f"scale {scale}, noise {noise}, outside {outside}: {worst:.1e}"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", OPERATORS)
def test_score_by_any_operator(name, solver, getkey):
    check_scores(*OPERATORS[name], "pseudo_inverse", SOLVERS[solver], 3, getkey)


@pytest.mark.parametrize("solver", SOLVERS)
def test_moments_of_dependent_rows_and_one_example(solver, getkey):
    check_scores(*OPERATORS["low pass"], "moment_matching", SOLVERS[solver], 1, getkey)
