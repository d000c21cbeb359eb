"""Likelihoods of a trained score model, and normalizers of a trained energy, in nats.

| function | gives | needs |
|---|---|---|
| `log_prob` | the density of the probability flow, on a fixed grid | a noise-conditional score |
| `adaptive_log_prob` | the same, to a given tolerance | diffrax |
| `elbo` | the variational bound on the density of the data | a noise-conditional score |
| `annealed_importance` | a bracket on the normalizer of an energy | a base density |
| `thermodynamic_integration` | the normalizers at all noise levels | a noise-conditional energy |
| `thermodynamic_integration_from_samples` | the same | samples at every noise level besides |
| `discrete_log_prob` | a bound on the log-probability of integer data | a log-density |
| `bits_per_dim` | a log-density in bits per dimension | a log-density |

A likelihood need not be jitted: the first call compiles its loop, and later ones find it again. The
function is the same if it traces to the same program: the same operations on the same shapes and
dtypes with the same Python and NumPy numbers, whatever lambda, ``partial`` or module it came from.
The JAX arrays that it closes over are arguments of the program, so that new parameters reuse it and
are never stale; those within a ``jax.jit`` of its own, and those of all functions that diffrax or
blackjax run, are part of the program. Each call traces the function, which the user's own
``jax.jit`` saves.
"""

from sm_jax.likelihood._adaptive import adaptive_log_prob
from sm_jax.likelihood._annealed_importance import (
    Bound,
    NormalizerBracket,
    annealed_importance,
)
from sm_jax.likelihood._dequantized import (
    Dequantizer,
    discrete_log_prob,
    logit_normal_dequantizer,
    uniform_dequantizer,
)
from sm_jax.likelihood._elbo import elbo
from sm_jax.likelihood._flow import LogProb, bits_per_dim, log_prob
from sm_jax.likelihood._thermodynamic import (
    NormalizerPath,
    thermodynamic_integration,
    thermodynamic_integration_from_samples,
)

__all__ = [
    "Bound",
    "Dequantizer",
    "LogProb",
    "NormalizerBracket",
    "NormalizerPath",
    "adaptive_log_prob",
    "annealed_importance",
    "bits_per_dim",
    "discrete_log_prob",
    "elbo",
    "log_prob",
    "logit_normal_dequantizer",
    "thermodynamic_integration",
    "thermodynamic_integration_from_samples",
    "uniform_dequantizer",
]
