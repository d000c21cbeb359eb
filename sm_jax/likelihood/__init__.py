"""What score matching gives up, and its ways back: log-densities of a trained score, in nats.

| function | gives | needs |
|---|---|---|
| `log_prob` | the density of the probability flow, on a fixed grid | a noise-conditional score |
| `bits_per_dim` | the same number in the unit of compression | a log-density |
"""

from sm_jax.likelihood._flow import LogProb, bits_per_dim, log_prob

__all__ = ["LogProb", "bits_per_dim", "log_prob"]
