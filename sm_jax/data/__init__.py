"""Data: reading it, scaling it with its log-determinant, batches as a function of (key, step)."""

from sm_jax.data._batching import batch_indices

__all__ = ["batch_indices"]
