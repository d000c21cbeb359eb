"""Steps of diffrax along the probability flow; imported lazily, for diffrax is an extra."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

# In the scaled variable the slope vanishes at both ends of the flow. There steps would grow until
# one jumps over everything between, with all its stages where nothing happens.
LONGEST = 1.0  # in the logarithm of sigma / alpha


class NoiseController(diffrax.AbstractStepSizeController):
    """A PID controller of ``measure(error, start, end)``, which is 1 where a step is just accepted.

    That of diffrax compares the error with the point itself, whose scale is not that of the noise.
    """

    measure: Callable
    inner: diffrax.PIDController = diffrax.PIDController(rtol=0.0, atol=1.0, dtmax=LONGEST)

    def wrap(self, direction):
        return NoiseController(self.measure, self.inner.wrap(direction))

    def init(self, *args):
        return self.inner.init(*args)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, state):
        error, zero = self.measure(y_error, t0, t1), jnp.zeros_like(t1)
        return self.inner.adapt_step_size(t0, t1, zero, zero, args, error, error_order, state)


def solve(
    flow: Callable,
    start: jax.Array,
    end: jax.Array,
    w: Any,
    args: Any = None,
    *,
    measure: Callable,
    solver: diffrax.AbstractERK,
    max_steps: int,
    saveat: diffrax.SaveAt | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> diffrax.Solution:
    """Solve ``dw / du = flow(u, w, args)`` from ``u = start`` to ``end``.

    Its result is not ``diffrax.RESULTS.successful`` where ``max_steps`` were not enough.
    """
    return diffrax.diffeqsolve(
        diffrax.ODETerm(flow),
        solver,
        start,
        end,
        0.01 * (end - start),
        w,
        args=args,
        saveat=diffrax.SaveAt(t1=True) if saveat is None else saveat,
        stepsize_controller=NoiseController(measure),
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps=max_steps,
        throw=False,
    )


def root_mean_square(x: jax.Array) -> jax.Array:
    """Return the root of the mean square of all numbers; steps are not differentiated through."""
    return jnp.sqrt(jnp.mean(jax.lax.stop_gradient(x) ** 2))


def explicit_solver(solver: Any) -> diffrax.AbstractERK:
    """Return the solver, ``Tsit5`` for None, or raise a TypeError."""
    solver = diffrax.Tsit5() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractERK):
        raise TypeError(f"solver must be an explicit Runge-Kutta method of diffrax, got {solver}.")
    return solver


def evaluations(solution: diffrax.Solution, solver: diffrax.AbstractERK) -> jax.Array:
    """Return how often a solve evaluated its right side.

    Methods that end a step where the next begins evaluate that point once.
    """
    tableau: Any = solver.tableau  # a ButcherTableau: those of several parts are not explicit
    shared = int(tableau.fsal)
    steps = solution.stats["num_steps"]
    return steps * (tableau.num_stages - shared) + shared
