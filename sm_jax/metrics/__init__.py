"""Metrics: distances between samples, convergence of chains, and the curl of a score."""

from sm_jax.metrics._chains import (
    ChainDiagnostics,
    chain_diagnostics,
)
from sm_jax.metrics._curl import (
    Curl,
    curl,
)
from sm_jax.metrics._samples import (
    sliced_wasserstein,
)

__all__ = [
    "ChainDiagnostics",
    "Curl",
    "chain_diagnostics",
    "curl",
    "sliced_wasserstein",
]
