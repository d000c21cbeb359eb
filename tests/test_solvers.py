"""The solvers of inverse problems against dense pseudo-inverses in NumPy, in every regime."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sm_jax import guidance, processes, samplers

VE = processes.VE()
SOLVERS = {"conjugate_residuals": guidance.conjugate_residuals, "gmres": guidance.gmres}


def low_pass(x):
    """Four of the nine frequencies of 16 numbers; of the eight rows one is zero."""
    waves = jnp.fft.rfft(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=1)[:, :4]
    return jnp.concatenate([waves.real, waves.imag], axis=1).astype(x.dtype)


GRADED = np.geomspace(1.0, 0.03, 8)[:, None] * np.eye(16)[3:11]  # A A' from 1 to 1e-3

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
        options = {"sigma_data": scale} if method == "pigdm" else {}
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
        # is that of the largest number, as a product with A mixes all of them. Where a part of y is
        # outside the range, the solvers stop at the root of four units in the last place.
        eps = np.finfo(np.float32).eps
        stop = np.sqrt(4 * eps) if outside and not noise and rank < len(matrix) else 0.0
        rounding = max(32 * eps, stop) * condition**2
        worst = np.abs(out - exact).max() / np.abs(exact).max()
        assert worst < rounding, f"scale {scale}, noise {noise}, outside {outside}: {worst:.1e}"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", OPERATORS)
def test_score_by_any_operator(name, solver, getkey):
    check_scores(*OPERATORS[name], "pigdm", SOLVERS[solver], 3, getkey)


@pytest.mark.parametrize("solver", SOLVERS)
def test_moments_of_dependent_rows_and_one_example(solver, getkey):
    check_scores(*OPERATORS["low pass"], "mmps", SOLVERS[solver], 1, getkey)


def test_low_pass_without_noise_as_it_was_found(getkey):
    """Four frequencies of 16 numbers, the defaults: scores of N(0, I), and samples of that."""
    matrix, y = dense(low_pass), low_pass(jax.random.normal(getkey(), (64, 16)))
    x, t = 1.4 * jax.random.normal(getkey(), (64, 16)), jnp.ones(64)
    for method in (guidance.pigdm, guidance.mmps):
        guided = jax.jit(
            method(
                lambda x, t: -x / (1.0 + t[:, None] ** 2),
                process=VE,
                operator=low_pass,
                observation=y,
            )
        )
        exact = guided_score(x, 1.0, matrix, y, 0.0, 0.5 * np.eye(16), 0.5 * np.eye(16))
        np.testing.assert_allclose(guided(x, t), exact, atol=1e-5)
        start = processes.prior_sample(VE, getkey(), (64, 16))
        out = samplers.heun(guided, start, process=VE, num_steps=32)
        # what is left is of the size of the last level, 0.01
        assert np.abs(low_pass(out) - y).max() < 4 * 0.01
        rest = np.asarray(out) @ np.linalg.svd(matrix)[2][7:].T  # what the filter does not see
        assert abs(rest.var() - 1) < 4.5 * np.sqrt(2 / rest.size) + 0.01


def conjugate_gradients(matrix, b, num_iterations):
    """The textbook recurrence in NumPy, for one system."""
    u, r, p = np.zeros_like(b), b, b
    for _ in range(num_iterations):
        image = matrix @ p
        length = r @ r / (p @ image)
        u, before, r = u + length * p, r @ r, r - length * image
        p = r + r @ r / before * p
    return u


def test_jacobian_that_is_not_symmetric(getkey):
    """``J = S + K`` with ``|K| = 4 |S|``: conjugate directions are none, GMRES is exact."""
    rng = np.random.default_rng(3)
    root, turn = rng.normal(size=(2, 8, 8))
    symmetric, turn = root @ root.T, turn - turn.T
    jacobian = 0.3 * np.eye(8) + 0.1 * symmetric / np.linalg.norm(symmetric, 2)
    jacobian += 4 * np.linalg.norm(jacobian, 2) * turn / np.linalg.norm(turn, 2)
    matrix = rng.normal(size=(6, 8))
    with jax.enable_x64(True):
        x, y = jax.random.normal(getkey(), (3, 8), jnp.float64), rng.normal(size=(3, 6))
        exact = guided_score(x, 1.0, matrix, y, 0.1, jacobian, jacobian.T)

        def error(solver, num_iterations):
            guided = guidance.mmps(
                lambda x, t: x @ jacobian.T - x,
                process=jax.tree.map(jnp.float64, VE),
                operator=lambda x: x @ matrix.T,
                observation=y,
                noise_std=0.1,
                num_iterations=num_iterations,
                solve=solver,
            )
            return np.abs(jax.jit(guided)(x, jnp.ones(3)) / exact - 1).max()

        assert error(guidance.gmres, 6) < 1e-9
        assert error(guidance.gmres, 5) > 1e-3
        assert error(guidance.conjugate_residuals, 6) > 0.1
    gram = 0.01 * np.eye(6) + matrix @ jacobian.T @ matrix.T
    b = y[0] - matrix @ jacobian @ np.asarray(x[0])
    misfits = [np.linalg.norm(gram @ conjugate_gradients(gram, b, n) - b) for n in (6, 20)]
    assert misfits[1] > misfits[0] > np.linalg.norm(b)  # worse than no solution, and growing


def test_a_turn_where_the_first_step_gains_nothing():
    """``M`` antisymmetric: ``b' M b = 0``, so the first step must not be the last."""
    turn = np.array([[0.0, 2.0, 0.0, 0.3], [-2.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.7], [0.0] * 4])
    turn[3] = -turn[:, 3]
    b = np.array([[1.0, -2.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    solve = partial(guidance.gmres, lambda u: u @ jnp.asarray(turn.T, u.dtype), jnp.asarray(b))
    exact = np.linalg.solve(turn, b.T).T
    np.testing.assert_allclose(solve(num_iterations=1), 0.0, atol=1e-6)
    np.testing.assert_allclose(solve(num_iterations=4), exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(solve(num_iterations=9), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_are_their_own_and_bfloat16_stops_in_time(name, getkey):
    """Also under ``vmap``; a zero row stays zero; products in bfloat16 give their digits."""
    matrix = dense(OPERATORS["rows twice"][0])
    gram = matrix @ matrix.T
    b = np.array(jax.random.normal(getkey(), (5, 16))) @ matrix.T
    b[3] = 0.0
    exact = b @ np.linalg.pinv(gram) @ matrix

    def answer(b, dtype=jnp.float32):
        def product(u):
            return (u.astype(dtype) @ jnp.asarray(gram, dtype)).astype(u.dtype)

        u = SOLVERS[name](product, b.astype(dtype), num_iterations=12)
        return u @ jnp.asarray(matrix, jnp.float32)

    b = jnp.asarray(b, jnp.float32)
    together = answer(b)
    np.testing.assert_allclose(together, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(together[3], np.zeros(16))
    alone = jax.vmap(lambda row: answer(row[None])[0])(b)
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)
    error = np.abs(answer(b, jnp.bfloat16) - exact).max() / np.abs(exact).max()
    assert error < 8 * float(jnp.finfo(jnp.bfloat16).eps)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_derivatives_are_those_of_the_solution(name, getkey):
    """By b and by M, also at b = 0 and where one product is enough, both orders."""
    with jax.enable_x64(True):
        root = jax.random.normal(getkey(), (4, 4), jnp.float64)
        special = jnp.linalg.eigh(root @ root.T)[1][:, :1].T
        if name == "gmres":
            root = root @ root.T + jnp.eye(4) + 3.0 * (jnp.triu(root) - jnp.triu(root).T)

        def solved(root, b):
            matrix = root if name == "gmres" else root @ root.T + jnp.eye(4)
            return SOLVERS[name](lambda u: u @ matrix.T, b, num_iterations=6)

        for b in (jnp.ones((1, 4)), special, jnp.zeros((1, 4))):
            check_grads(solved, (root, b), order=2, modes=["fwd", "rev"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pigdm", "mmps"])
def test_guided_scores_have_right_derivatives(method, getkey):
    """By x, t, y, the noise, the spread of the data and the process, at y = A D too; float64."""
    with jax.enable_x64(True):
        matrix = dense(low_pass)
        x = jax.random.normal(getkey(), (2, 16), jnp.float64)
        y = jax.random.normal(getkey(), (2, 8), jnp.float64) @ (matrix @ matrix.T)
        t = jnp.array([0.4, 0.7])

        def guided(x, t, y, noise_std, spread, beta_min):
            process = processes.VPLinear(beta_min=beta_min)
            options = {"sigma_data": spread} if method == "pigdm" else {}

            def score_fn(x, t):
                alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
                return -x / (alpha**2 * spread**2 + sigma**2)

            return getattr(guidance, method)(
                score_fn,
                process=process,
                operator=low_pass,
                observation=y,
                noise_std=noise_std,
                **options,
            )(x, t)

        options = {"order": 1, "modes": ["fwd", "rev"], "rtol": 1e-6, "atol": 1e-6}
        check_grads(guided, (x, t, y, 0.3, 1.3, 0.1), **options)
        for point, seen in ((x, y), (0.0 * x, 0.0 * y)):  # without noise y stays in the range

            def exact(x, t, spread, beta_min, seen=seen):
                return guided(x, t, seen, 0.0, spread, beta_min)

            check_grads(exact, (point, t, 1.3, 0.1), **options)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_are_seen_in_their_row(solver, bad):
    scale = jnp.array([[1.0, 4.0], [bad, 1.0], [2.0, 2.0]])
    u = solver(lambda u: scale * u, jnp.ones((3, 2)), num_iterations=2)
    assert np.all(np.isnan(u[1]))
    np.testing.assert_allclose(u[::2], [[1.0, 0.25], [0.5, 0.5]], rtol=1e-5)


def test_a_count_below_one_is_refused():
    for solver in SOLVERS.values():
        with pytest.raises(ValueError, match="num_iterations must be at least 1, got 0"):
            solver(lambda u: u, jnp.ones((1, 2)), num_iterations=0)


@pytest.mark.parametrize("turn", [0.0, 1.0], ids=["symmetric", "turning"])
def test_gmres_never_runs_away_outside_the_range(turn):
    """Singular matrices, half of ``b`` outside their range: an error is something left out."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(400, 12, 12)))[0][:, :, :7]
    inner = np.exp(rng.uniform(-np.log(30.0), 0.0, size=(400, 7)))[:, :, None] * np.eye(7)
    skew = rng.normal(size=(400, 7, 7))
    inner = inner + turn * (skew - skew.transpose(0, 2, 1))
    matrix = basis @ inner @ basis.transpose(0, 2, 1)
    b = rng.normal(size=(400, 12))
    inside = np.einsum("bir,bi->br", basis, b)
    expected = np.linalg.solve(inner, inside[..., None])[..., 0]

    product = partial(
        jnp.einsum, "bij,bj->bi", jnp.asarray(matrix, jnp.float32), precision="highest"
    )
    u = guidance.gmres(product, jnp.asarray(b, jnp.float32), num_iterations=12)
    found = np.einsum("bir,bi->br", basis, np.asarray(u, np.float64))
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < 1.0
    assert np.median(errors) < 1e-3
