r"""Solvers of the linear systems of inverse problems, a batch of them at a time, without matrices.

Both minimize the norm of the residual over the Krylov space of ``n`` products with ``M``,

    u_n = argmin |b - M u|,    u in span(b, M b, ..., M^(n - 1) b),                    (1)

by directions ``p`` whose images ``q = M p`` are orthonormal: with a new direction ``p``,

    q = M p,    q <- q - sum_j (q_j'q) q_j,    p <- p - sum_j (q_j'q) p_j,             (2)
    p, q <- p / |q|, q / |q|,    u <- u + (q'r) p,    r <- r - (q'r) q.                (3)

`conjugate_residuals` takes ``p = r`` in (2) and subtracts the last direction only, which is enough
where ``M`` is symmetric and not negative. `gmres` subtracts all, and takes ``p = q`` after a step
(3) that has hardly reduced ``r``, so that ``M`` need not be symmetric.

``M`` may be singular: without noise, that of an operator with dependent rows is. The part of ``b``
outside the range of ``M`` is then rounding, or an observation that nothing explains. No product
with ``M`` sees it, and (3) is made of these products only. (The steps of conjugate gradients,
``|r|^2 / r'M r``, grow without bound where that part is all that is left of ``r``.) A row stops
where what is left is rounding, ``e`` being four units in the last place and ``|M|`` the largest
``|M p| / |p|`` so far:

    of b:    |r| < e |b|,                                                              (4)
    of M p:  |q| < sqrt(e) |M| |p|, unless p came from r and r'q > e |M| |p| |r|.      (5)

So a part of ``b`` outside the range that is as large as the rest costs an error of the size of
``sqrt(e) |M| |M^+|``, where ``M^+`` is the pseudo-inverse.

The derivatives are those of the exact solution, ``M du = db - dM u``, solved in the same way.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sm_jax import _arrays, _checks
from sm_jax.typing import ArrayOrList

Matrix = Callable[[jax.Array], jax.Array]

# Units in the last place that count as rounding, in (4) and (5).
_NOISE = 4.0

# GMRES goes on from r where a step (3) has reduced it to less than this share of what it was.
_PROGRESS = 0.9


def conjugate_residuals(matrix: Matrix, b: ArrayOrList, *, num_iterations: int) -> jax.Array:
    """Solve ``M u = b`` for a symmetric, positive semidefinite ``M`` by conjugate residuals.

        u = argmin |b - M u|,    u in span(b, M b, ..., M^(n - 1) b),    n = num_iterations,

    from ``r = b``, ``u = 0`` by the steps, with ``p_0, q_0`` the direction before and its image,

        p = r,    q = M p,    p <- p - (q_0'q) p_0,    q <- q - (q_0'q) q_0,
        p, q <- p / |q|, q / |q|,    u <- u + (q'r) p,    r <- r - (q'r) q.

    Every row is a system of its own. It keeps four vectors of the size of ``b``, whatever
    ``num_iterations``. Where ``M`` is not symmetric its directions are not conjugate, and it may
    stop far from the solution: take `gmres` there.

    Args:
        matrix: ``u [B, ...] -> M u [B, ...]``, linear, row i depending on row i only, from and to
            float32 at least.
        b: ``[B, ...]``, in the dtype to which the products with ``M`` are rounded.
        num_iterations: number of products with ``M``. As many as ``M`` has distinct eigenvalues
            other than zero are exact.

    Returns:
        ``u [B, ...]``, in float32 at least. Where ``M`` is singular, ``u`` minimizes
        ``|b - M u|``, and its part outside the range of ``M`` is arbitrary.

    Raises:
        TypeError: ``b`` is not floating.
        ValueError: ``num_iterations < 1``, or ``b`` is empty.

    Example:
        >>> scale = jnp.array([[1.0, 4.0, 0.0]])
        >>> u = conjugate_residuals(lambda u: scale * u, jnp.ones((1, 3)), num_iterations=2)
        >>> print(u[:, :2].round(4))
        [[1.   0.25]]

    Reference: Stiefel 1955, https://doi.org/10.1007/BF02564277
    """
    return _minimal_residuals(matrix, b, num_iterations, symmetric=True)


def gmres(matrix: Matrix, b: ArrayOrList, *, num_iterations: int) -> jax.Array:
    """Solve ``M u = b`` for any square ``M`` by generalized minimal residuals (GMRES).

        u = argmin |b - M u|,    u in span(b, M b, ..., M^(n - 1) b),    n = num_iterations,

    from ``r = b``, ``u = 0`` by the steps, with all earlier directions ``p_j`` and images ``q_j``,

        q = M p,    q <- q - sum_j (q_j'q) q_j,    p <- p - sum_j (q_j'q) p_j,
        p, q <- p / |q|, q / |q|,    u <- u + (q'r) p,    r <- r - (q'r) q,

    where ``p = r`` at first and after a step that has reduced ``|r|`` by more than a tenth, and
    the last ``q`` otherwise.

    Every row is a system of its own. Take it where ``M`` is not symmetric, as that of
    `mmps` is for a network whose Jacobian has a large antisymmetric part. It keeps
    ``2 num_iterations`` vectors of the size of ``b``.

    Args:
        matrix: ``u [B, ...] -> M u [B, ...]``, linear, row i depending on row i only, from and to
            float32 at least.
        b: ``[B, ...]``, in the dtype to which the products with ``M`` are rounded.
        num_iterations: number of products with ``M``. As many as ``M`` has distinct eigenvalues
            other than zero are exact, if it has a basis of eigenvectors.

    Returns:
        ``u [B, ...]``, in float32 at least. Where ``M`` is singular and its null space is that of
        its transpose, ``u`` minimizes ``|b - M u|``, and its part in the null space is arbitrary.

    Raises:
        TypeError: ``b`` is not floating.
        ValueError: ``num_iterations < 1``, or ``b`` is empty.

    Example:
        >>> turn = lambda u: jnp.stack([-u[:, 1], u[:, 0]], axis=1)
        >>> print(gmres(turn, jnp.array([[1.0, 2.0]]), num_iterations=2).round(4))
        [[ 2. -1.]]

    References: Saad & Schultz 1986, https://doi.org/10.1137/0907058; in the form of Jiranek &
    Rozloznik 2010, https://doi.org/10.1007/s11075-009-9311-8
    """
    return _minimal_residuals(matrix, b, num_iterations, symmetric=False)


def _minimal_residuals(matrix, b, num_iterations, *, symmetric):
    """Iterate (2) and (3), with one earlier direction or all."""
    _checks.check_count("num_iterations", num_iterations)
    b = _checks.check_data(b, "b")
    noise = _NOISE * float(jnp.finfo(b.dtype).eps)
    kept = 1 if symmetric else num_iterations

    def solve(matrix, b):
        def step(i, state):
            solution, residual, last, fresh, directions, images, largest, alive = state
            direction = jnp.where(fresh, _ratio(residual, _norm(residual)), last)
            image = matrix(direction)
            largest = jnp.maximum(largest, _norm(image))
            for _ in range(2):  # twice is enough to be orthogonal to rounding
                shares = jax.vmap(_dot, (0, None))(images, image)
                image = image - jnp.sum(shares * images, axis=0)
                direction = direction - jnp.sum(shares * directions, axis=0)
            norm, before = _norm(image), _norm(residual)
            image, direction = _ratio(image, norm), _ratio(direction, norm)
            length, seen = _dot(image, residual), _ratio(norm, largest)
            gain = seen * jnp.abs(_ratio(length, before))
            reach = largest * _norm(direction)
            alive &= (before > noise) & ((fresh & (gain > noise)) | (reach < noise**-0.5))
            direction, image, length = (
                jnp.where(alive, v, 0.0) for v in (direction, image, length)
            )
            solution, residual = solution + length * direction, residual - length * image
            directions = directions.at[i % kept].set(direction)
            images = images.at[i % kept].set(image)
            fresh = symmetric | (_norm(residual) < _PROGRESS * before)
            return solution, residual, image, fresh, directions, images, largest, alive

        size = _norm(b)
        b = _ratio(b, size)
        zeros = jnp.zeros((kept, *b.shape), b.dtype)
        start = (0.0 * b, b, b, size > 0, zeros, zeros, 0.0 * size, size > 0)
        solution, *_, largest, _ = jax.lax.fori_loop(0, num_iterations, step, start)
        # Comparisons with NaN are false: a product that is not finite would leave u at zero.
        return size * jnp.where(jnp.isfinite(largest), solution, jnp.nan)

    return jax.lax.custom_linear_solve(
        matrix, _arrays.accumulated(b), solve, transpose_solve=solve, symmetric=symmetric
    )


def _dot(u: jax.Array, v: jax.Array) -> jax.Array:
    """Return the inner product of each row, ``[B, 1, ...]``."""
    return _arrays.expand_like(_arrays.sum_data_axes(u * v), u)


def _norm(u: jax.Array) -> jax.Array:
    """Return the norm of each row, ``[B, 1, ...]``, whatever its scale."""
    largest = jnp.max(jnp.abs(u), axis=tuple(range(1, u.ndim)), keepdims=True)
    return largest * jnp.sqrt(_dot(_ratio(u, largest), _ratio(u, largest)))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ``a / b``, or 0 where ``b`` is 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
