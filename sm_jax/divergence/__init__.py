r"""The divergence of a score, ``tr(grad s)``, exactly or by random probes, with the score itself.

With the Jacobian ``J = grad s`` of one row, ``d x d``, ``e_i`` the unit vectors, ``v`` a random
probe with ``E[v v'] = I``, ``Q`` an orthonormal basis and ``E`` an energy,

    tr J = sum_i e_i' J e_i                             `exact`, `diagonal`: d products,       (1)
    tr J = E[v' J v]                                    `hutchinson`,                          (2)
    tr J = tr(Q' J Q) + E[v' P J P v],  P = I - Q Q'    `hutchpp`,                             (3)
    tr J = -sum_i d^2 E / d x_i^2,  s = -grad E         `laplacian`, and `exact` of energies.  (4)

`exact`, `hutchinson`, `hutchpp` and `laplacian` are `DivergenceFn`s (sm_jax.typing): each takes
``(score_fn, x, key)`` and returns ``Divergence(score [B, ...], divergence [B])``, and one stands in
for another, options fixed by `functools.partial`. `estimate` repeats one of them for a standard
error, `diagonal` returns the terms of (1), `sphere` draws probes, and `rows_are_independent` tests
what all of them assume.

All products share one pass of the network. Beyond a few they are made one by one (or ``chunk`` at a
time), each with its own vector, and rematerialized when differentiated: memory grows by one number
per row and product, not by one vector. (Hutch++ keeps its basis.) An `EnergyScore`
(sm_jax.parameterization) takes a forward-mode Laplacian instead of products with the Hessian, in
`exact` and, for three probes or more, in `hutchinson`: 0.6 to 0.8 of the time (BENCHMARKS.md).

The variance of (2) per probe is ``2 (|A|_F^2 - sum_i a_ii^2)`` for Rademacher probes and
``2 |A|_F^2`` for normal ones, ``A = (J + J') / 2``. Among probes with independent entries,
Rademacher probes have the least variance.

References: Hutchinson 1990, https://doi.org/10.1080/03610919008812866; Meyer et al. 2021 (Hutch++),
https://arxiv.org/abs/2010.09649
"""

from sm_jax.divergence._exact import diagonal, exact, laplacian
from sm_jax.divergence._random import (
    DivergenceEstimate,
    estimate,
    hutchinson,
    hutchpp,
    sphere,
)
from sm_jax.divergence._rows import rows_are_independent

__all__ = [
    "DivergenceEstimate",
    "diagonal",
    "estimate",
    "exact",
    "hutchinson",
    "hutchpp",
    "laplacian",
    "rows_are_independent",
    "sphere",
]
