"""Data: reading it, scaling it with its log-determinant, batches as a function of (key, step)."""

from sm_jax.data._batching import batch_indices
from sm_jax.data._scaling import (
    Standardizer,
    constant_features,
    dequantize,
    dequantize_log_det,
    quantize,
)
from sm_jax.data._sources import load
from sm_jax.data._tfds import load_tfds

__all__ = [
    "Standardizer",
    "batch_indices",
    "constant_features",
    "dequantize",
    "dequantize_log_det",
    "load",
    "load_tfds",
    "quantize",
]
