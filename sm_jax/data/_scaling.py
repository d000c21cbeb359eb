r"""Scalings of data with their log-determinants: standardization and dequantization.

A scaling ``y = T(x)`` changes densities as

    log p_X(x) = log p_Y(T(x)) + log |det dT/dx|,                                       (1)

and ``log_det`` is everywhere the last term: ADD it to the log-density of the scaled data to get the
log-density of the data, in nats. With a mean ``m_j`` and a scale ``s_j`` per feature

    y_j = (x_j - m_j) / s_j,              log_det = -sum_j log s_j.                     (2)

Data of ``K`` integer values ``0..K-1`` is dequantized with ``u ~ U[0, 1)``:

    y_j = 2 (x_j + u_j) / K - 1 in [-1, 1),   log_det = D log(2 / K).                   (3)

As ``x + u`` has the density ``P(x)`` throughout the unit cell above ``x``, the expectation over
``u`` of the log-density so obtained is a lower bound of ``log P(x)``, the log-probability of the
discrete data (Theis et al. 2016). In bits per dimension (3) adds ``log2(K / 2)``: 7 for 256 values.

References: Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016,
https://arxiv.org/abs/1511.01844.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.data._values import check_numbers
from sm_jax.typing import ArrayOrList, RandomFn

_Array = np.ndarray | jax.Array
_NAMED = 5  # how many constant features a warning names


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Standardizer:
    """Standardize each feature to mean 0 and variance 1, ``y = (x - mean) / scale``; equation (2).

    A pytree; make one with ``fit``, store one with ``to_dict`` (plain JSON) and ``from_dict``.

    Args:
        mean: mean of each feature, shape ``[...]`` of one example, in units of the data.
        scale: standard deviation of each feature, same shape, positive.

    Raises:
        ValueError: the shapes differ, a mean is not finite, or a scale not positive and finite.

    Example:
        >>> x = np.array([[0.0, 10.0], [2.0, 30.0]])
        >>> standardizer = Standardizer.fit(x)
        >>> standardizer(x).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
        >>> round(float(standardizer.log_det), 4)  # -log(1) - log(10)
        -2.3026
    """

    mean: ArrayLike
    scale: ArrayLike

    def __post_init__(self):
        mean, scale = _arrays.concrete(self.mean), _arrays.concrete(self.scale)
        if mean is not None and scale is not None:
            if mean.shape != scale.shape:
                raise ValueError(
                    f"mean and scale must have the shape of one example, got {mean.shape} and "
                    f"{scale.shape}: give one of each per feature."
                )
            if not np.all(np.isfinite(mean)):
                raise ValueError(
                    f"mean must be finite, got {self.mean}: fit to data without NaN or infinity."
                )
            _checks.check_positive("scale", scale)

    @classmethod
    def fit(cls, x: ArrayOrList) -> "Standardizer":
        """Fit the mean and the standard deviation (``1/N``) of every feature, in float64.

        A feature that is constant up to rounding (see ``constant_features``) gets scale 1, hence
        becomes 0 up to rounding, with a warning that names it: its density does not exist (a model
        can make the likelihood there as large as it likes).

        Args:
            x: data ``[N, ...]``, at least two examples of any real dtype, in host memory.

        Returns:
            The standardizer, its arrays NumPy float64.

        Raises:
            ValueError: fewer than two examples, NaN or infinite values, or a spread beyond float32.
            TypeError: ``x`` does not hold real numbers.
        """
        _checks.check_unmasked(x)
        x = np.asarray(x)
        check_numbers(x, "x")
        if len(x) < 2:
            raise ValueError(f"x must hold at least two examples to have a spread, got {len(x)}.")
        constant = constant_features(x)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.where(constant, x[0], np.mean(x, axis=0, dtype=np.float64))
            scale = np.where(constant, 1.0, np.std(x, axis=0, dtype=np.float64))
        limits = np.finfo(np.float32)
        if not np.all((limits.tiny < scale) & (scale < limits.max)):
            raise ValueError(
                f"features of x have standard deviations from {scale.min()} to {scale.max()}, "
                "beyond the range of float32: change their units."
            )
        if np.any(constant):
            _warn_constant(constant)
        return cls(mean, scale)

    def __call__(self, x: ArrayOrList) -> _Array:
        """Return ``(x - mean) / scale``.

        Args:
            x: floating data ``[B, ...]``; lists and NumPy data of any real dtype are scaled in
                float64, which loses nothing of features whose mean is large.

        Returns:
            Standardized data ``[B, ...]``: of the dtype of ``x``, or a float64 NumPy array.

        Raises:
            ValueError: the shape of an example differs from that fitted.
            TypeError: ``x`` is a JAX array of integers.
        """
        x = x if isinstance(x, jax.Array) else np.asarray(x)
        mean, scale = self._like(x)
        if isinstance(x, np.ndarray):
            return (x - mean) / scale
        exact = self.mean if isinstance(self.mean, jax.Array) else np.asarray(self.mean)
        rest = (exact - exact.astype(mean.dtype)) / self.scale  # what the dtype of x cannot hold
        y = (_arrays.accumulated(x) - mean) / scale - rest.astype(mean.dtype)[None]
        return y.astype(x.dtype)

    def inverse(self, y: ArrayOrList) -> _Array:
        """Return ``mean + scale y``, the inverse of the call.

        Args:
            y: standardized data ``[B, ...]``, as for the call.

        Returns:
            Data ``[B, ...]`` in its own units, of the dtype of ``y``, or a float64 NumPy array.

        Raises:
            ValueError: the shape of an example differs from that fitted.
            TypeError: ``y`` is a JAX array of integers.
        """
        y = y if isinstance(y, jax.Array) else np.asarray(y)
        mean, scale = self._like(y)
        x = mean + scale * y
        return x if isinstance(y, np.ndarray) else x.astype(y.dtype)

    @property
    def log_det(self) -> jax.Array:
        """``-sum log scale``, a scalar in nats: add it to the log-density of standardized data."""
        return -jnp.sum(jnp.log(self.scale))

    def to_dict(self) -> dict[str, list | float]:
        """Return the numbers as plain lists, for JSON; exact."""
        return {"mean": np.asarray(self.mean).tolist(), "scale": np.asarray(self.scale).tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, list | float]) -> "Standardizer":
        """Return the standardizer that ``to_dict`` wrote.

        Raises:
            ValueError: the keys are not ``mean`` and ``scale``, or the numbers do not fit.
        """
        if set(values) != {"mean", "scale"}:
            raise ValueError(f"a Standardizer has keys 'mean' and 'scale', got {sorted(values)}.")
        return cls(np.asarray(values["mean"], float), np.asarray(values["scale"], float))

    def _like(self, x: _Array) -> tuple[_Array, _Array]:
        """Mean and scale with a batch axis, in NumPy or JAX as ``x`` is, in float32 at least."""
        if np.shape(x)[1:] != np.shape(self.mean) or np.ndim(x) == 0:
            raise ValueError(
                f"data must have shape [B, {', '.join(map(str, np.shape(self.mean)))}] as fitted, "
                f"got {np.shape(x)}."
            )
        if isinstance(x, np.ndarray):
            values = (self.mean, self.scale)
            mean, scale = (v if isinstance(v, jax.Array) else np.asarray(v) for v in values)
            return mean[None], scale[None]
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x must have a floating dtype, got {x.dtype}: convert it first.")
        wide = _arrays.accumulator(x.dtype)
        return jnp.asarray(self.mean, wide)[None], jnp.asarray(self.scale, wide)[None]


def constant_features(x: ArrayOrList) -> np.ndarray:
    """Return which features have one value, up to its rounding: ``max - min <= 4 eps max |x|``.

    ``eps`` is the relative spacing of the floating dtype of ``x``; features of whole numbers, which
    it may hold exactly, have to be equal.

    Args:
        x: data ``[N, ...]`` of any real dtype, in host memory.

    Returns:
        Booleans in the shape of one example, ``[...]``.

    Raises:
        ValueError: ``x`` is empty or has NaN or infinite values.
        TypeError: ``x`` does not hold real numbers.

    Example:
        >>> constant_features(np.array([[1.0, 2.0], [0.9999999999999999, 3.0]])).tolist()
        [True, False]
    """
    _checks.check_unmasked(x)
    x = np.asarray(x)
    check_numbers(x, "x")
    low, high = (end(x, axis=0) for end in (np.min, np.max))
    if x.dtype.kind in "biu":
        return low == high
    low, high = low.astype(np.float64), high.astype(np.float64)
    eps = np.where((x == np.floor(x)).all(axis=0), 0.0, np.finfo(x.dtype).eps)
    return high - low <= 4 * eps * np.maximum(abs(low), abs(high))


def _warn_constant(constant: np.ndarray) -> None:
    named = ", ".join(map(str, np.argwhere(constant)[:_NAMED].tolist()))
    more = ", ..." if constant.sum() > _NAMED else ""
    warnings.warn(
        f"{constant.sum()} of {constant.size} features are constant: {named}{more}. They get scale "
        "1; as they have no density, leave them out before quoting a likelihood.",
        stacklevel=3,
    )


def dequantize(
    x: ArrayOrList, key: jax.Array, *, num_values: int, noise: RandomFn = jax.random.uniform
) -> jax.Array:
    """Spread integer values uniformly over ``[-1, 1)``: ``2 (x + u) / num_values - 1``.

    Equation (3) of the module, ``u ~ U[0, 1)`` for every number.

    Args:
        x: values ``0..num_values - 1`` of any shape and any real dtype.
        key: key of the noise.
        num_values: number of values: 256 for 8-bit images, 17 for scikit-learn's digits.
        noise: ``u`` as ``noise(key, shape, dtype)``; ``lambda *_: 0.5`` gives the cell centers.

    Returns:
        Numbers from -1 to 1 in the shape of ``x``, in float32 (float64 if ``x`` is).

    Raises:
        ValueError: ``num_values`` is below 2, or ``x``, where it is concrete, has other values.
        TypeError: ``num_values`` is not an integer.

    Example:
        >>> x = jnp.array([0, 1, 2, 3])
        >>> dequantize(x, jax.random.key(0), num_values=4, noise=lambda *_: 0.5).tolist()
        [-0.75, -0.25, 0.25, 0.75]

    References:
        Theis, van den Oord, Bethge 2016, https://arxiv.org/abs/1511.01844
    """
    _checks.check_unmasked(x)
    _checks.check_count("num_values", num_values, minimum=2)
    _check_values(x, num_values)
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (x + noise(key, x.shape, x.dtype)) / num_values * 2 - 1


def quantize(y: ArrayOrList, *, num_values: int) -> jax.Array:
    """Return the integer value of each number, ``floor((y + 1) num_values / 2)``.

    The inverse of ``dequantize``.

    Args:
        y: numbers of any shape; below -1 and above 1 they get the nearest value.
        num_values: number of values, as given to ``dequantize``.

    Returns:
        Values ``0..num_values - 1``, int32, in the shape of ``y``. They equal the dequantized
        ones except where ``y`` was rounded over an edge of its cell, up or down (fewer than one in
        10^5 in float32, 256 values; any share of them for noise that is 0).

    Raises:
        ValueError: ``num_values`` is below 2, or ``y`` holds a NaN and is concrete; under ``jit``
            NaN becomes value 0.
        TypeError: ``num_values`` is not an integer, or ``y`` not floating.

    Example:
        >>> quantize(jnp.array([-1.0, -0.1, 0.1, 1.0]), num_values=4).tolist()
        [0, 1, 2, 3]
    """
    _checks.check_unmasked(y, "y")
    _checks.check_count("num_values", num_values, minimum=2)
    y = jnp.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"y must have a floating dtype, got {y.dtype}: it is not dequantized data.")
    known = _arrays.concrete(y)
    if known is not None and np.isnan(known).any():
        raise ValueError(
            f"y holds {np.isnan(known).sum()} NaN, which has no integer value: leave them out."
        )
    values = jnp.floor((y.astype(jnp.promote_types(y.dtype, jnp.float32)) + 1) / 2 * num_values)
    return jnp.clip(values, 0, num_values - 1).astype(jnp.int32)


def dequantize_log_det(num_values: int, num_dims: int) -> float:
    """Return ``num_dims log(2 / num_values)``, the log-determinant of ``dequantize``.

    Add it to the log-density of dequantized data. The sum is in expectation a lower bound of the
    log-probability of the discrete data, in nats; equation (3) of the module.

    Args:
        num_values: number of values ``K``, as given to ``dequantize``.
        num_dims: numbers per example ``D``.

    Returns:
        The log-determinant of ``dequantize``, in nats.

    Raises:
        ValueError: ``num_values`` is below 2 or ``num_dims`` below 1.
        TypeError: one of them is not an integer.

    Example:
        In bits per dimension, 8-bit data adds 7:

        >>> -dequantize_log_det(256, 3072) / math.log(2) / 3072
        7.0
    """
    _checks.check_count("num_values", num_values, minimum=2)
    _checks.check_count("num_dims", num_dims)
    return num_dims * math.log(2 / num_values)


def _check_values(x: ArrayOrList, num_values: int) -> None:
    known = _arrays.concrete(x)
    if known is None:
        return
    wrong = (known < 0) | (known > num_values - 1) | (known != np.floor(known))
    if wrong.any():
        raise ValueError(
            f"x must hold whole values 0 to {num_values - 1}, got {known[wrong][0]}: check "
            "num_values, and give the values before any scaling."
        )
