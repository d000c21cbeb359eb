"""Data: files into arrays, scalings with their log-determinants, and shuffled batches.

Everything here ends in one array ``[N, ...]`` and its scaling:

    >>> import jax, numpy as np
    >>> from sm_jax import data
    >>> x = np.array([[0.0, 10.0], [2.0, 30.0], [4.0, 20.0]])  # or data.load("points.csv")
    >>> standardizer = data.Standardizer.fit(x)
    >>> y = standardizer(x)  # of mean 0 and variance 1
    >>> data.batch_indices(jax.random.key(0), step=7, num_examples=len(y), batch_size=2).shape
    (2,)

A density of ``y`` becomes one of ``x`` by adding ``standardizer.log_det``. Data of integer values,
such as pixels, takes ``dequantize`` in place of ``Standardizer``.
"""

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
