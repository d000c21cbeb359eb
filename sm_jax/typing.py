"""The callables that the library takes and returns, as Protocols with shapes.

Everything is batched: axis 0 counts examples, the rest is one event of any rank, and *row i of an
output depends on row i of the input only*. Parameters, labels and dropout keys live in the closure
of the callable. An unbatched model enters through one ``jax.vmap``.

What callers pass as data or a vector is an ``ArrayOrList``, which functions convert to an array.
The library calls their functions with arrays only.

Symbols used throughout: ``B`` examples, ``D`` numbers in one event, ``t`` a noise level or a time
``[B]`` (or a scalar), ``s = grad_x log p`` the score, ``E`` an energy with ``p ∝ exp(-E)``.
"""

from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    overload,
    runtime_checkable,
)

import jax
from jax.typing import ArrayLike, DTypeLike

__all__ = [
    "ArrayOrList",
    "DensityLike",
    "Divergence",
    "DivergenceFn",
    "EnergyFn",
    "NestedList",
    "NoiseEnergyFn",
    "NoiseScoreFn",
    "ProcessLike",
    "RandomFn",
    "Sampler",
    "ScoreFn",
    "StepFn",
    "TimeSampler",
    "WeightFn",
]


class NestedList(Protocol):
    """Numbers in lists or tuples, nested to any depth."""

    def __len__(self) -> int:
        """Return the length of the first axis."""
        ...

    def __getitem__(self, index: int, /) -> "ArrayLike | NestedList":
        """Return a number, or a list of them."""
        ...

    def __contains__(self, value: object, /) -> bool:
        """Return whether ``value`` is in it: of any type, which sets lists apart from strings."""
        ...


# Vectors and data, which may come as lists; one number is a `jax.typing.ArrayLike`.
ArrayOrList = ArrayLike | NestedList


class ScoreFn(Protocol):
    """A score ``s(x) = grad_x log p(x)``: ``x [B, ...] -> [B, ...]``, rows independent."""

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Return the score at each row of ``x``."""
        ...


class NoiseScoreFn(Protocol):
    """A noise-conditional score: ``x [B, ...], t [B] -> [B, ...]``, rows independent."""

    def __call__(self, x: jax.Array, t: jax.Array, /) -> jax.Array:
        """Return the score of the data noised to level ``t``, at each row of ``x``."""
        ...


class EnergyFn(Protocol):
    """An energy ``E`` with ``p ∝ exp(-E)``: ``x [B, ...] -> [B]``, rows independent."""

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Return the energy of each row of ``x``."""
        ...


class NoiseEnergyFn(Protocol):
    """A noise-conditional energy: ``x [B, ...], t [B] -> [B]``, rows independent."""

    def __call__(self, x: jax.Array, t: jax.Array, /) -> jax.Array:
        """Return the energy of the data noised to ``t``, of each row of ``x``."""
        ...


class DensityLike(Protocol):
    """A normalized density that can be drawn from; see sm_jax.densities."""

    def sample(self, key: jax.Array, n: int, /) -> jax.Array:
        """Return ``n`` independent draws, ``[n, ...]``."""
        ...

    def log_prob(self, x: jax.Array, /) -> jax.Array:
        """Return the log-density in nats, ``[B]``, for ``x [B, ...]``."""
        ...


class RandomFn(Protocol):
    """A source of random numbers with the signature of ``jax.random.normal``."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike, /) -> jax.Array:
        """Return random numbers of the given shape and dtype."""
        ...


class Divergence(NamedTuple):
    """A score and its divergence, from one pass.

    Attributes:
        score: ``s(x) [B, ...]``.
        divergence: ``tr(grad s)(x) [B]``, or an unbiased estimate of it.
    """

    score: jax.Array
    divergence: jax.Array


class DivergenceFn(Protocol):
    """``(score_fn, x, key) -> (score [B, ...], divergence [B])``; see sm_jax.divergence."""

    def __call__(self, score_fn: ScoreFn, x: jax.Array, key: Any, /) -> Divergence:
        """Return the score and its divergence at each row of ``x``.

        ``key`` is a random key, or None, which deterministic ones ignore and random ones refuse.
        """
        ...


@runtime_checkable
class ProcessLike(Protocol):
    """A Gaussian noising process ``x_t = alpha(t) x_0 + sigma(t) z``; see sm_jax.processes.

    It may have an attribute ``mean``, that of the data; without, the data count as centered.
    """

    @property
    def t_min(self) -> ArrayLike:
        """The smallest time used in training, sampling and likelihoods alike."""
        ...

    @property
    def t_max(self) -> ArrayLike:
        """The largest time, at which the prior is taken."""
        ...

    def alpha(self, t: ArrayLike, /) -> jax.Array:
        """Return the scale of the data at time ``t``."""
        ...

    def sigma(self, t: ArrayLike, /) -> jax.Array:
        """Return the standard deviation of the noise at time ``t``."""
        ...

    def time_at(self, ratio: ArrayLike, /) -> jax.Array:
        """Return the time at which ``sigma(t) / alpha(t)`` equals ``ratio``."""
        ...


class TimeSampler(Protocol):
    """``(process, key, shape, dtype) -> (t, importance)``; see sm_jax.losses."""

    def __call__(
        self, process: ProcessLike, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike, /
    ) -> tuple[jax.Array, jax.Array]:
        """Return times and the factors by which their losses are multiplied."""
        ...


class WeightFn(Protocol):
    """``(process, t) -> weight`` of the noise-prediction error at time ``t``; see sm_jax.losses."""

    def __call__(self, process: ProcessLike, t: jax.Array, /) -> jax.Array:
        """Return the weight at each time."""
        ...


class StepFn(Protocol):
    """``(score_fn, x, t, t_next, key, *, process) -> x``; see sm_jax.samplers.steps."""

    def __call__(
        self,
        score_fn: NoiseScoreFn,
        x: jax.Array,
        t: jax.Array,
        t_next: jax.Array,
        key: Any,
        /,
        *,
        process: ProcessLike,
    ) -> jax.Array:
        """Return the points at time ``t_next``, given those at time ``t``."""
        ...


_P = ParamSpec("_P")

# The default of ``trajectory``, whose other value makes a sampler return two arrays.
if TYPE_CHECKING:
    NoTrajectory = Literal[False]
else:
    NoTrajectory = bool


class Sampler(Protocol[_P]):
    """A sampler with the parameters of a function: it returns ``x``, or ``(x, trajectory)``."""

    @overload
    def __call__(self, *args: _P.args, **options: _P.kwargs) -> jax.Array: ...

    @overload
    def __call__(
        self, *args: Any, trajectory: Literal[True], **options: Any
    ) -> tuple[jax.Array, jax.Array]: ...

    @overload
    def __call__(
        self, *args: Any, trajectory: bool, **options: Any
    ) -> jax.Array | tuple[jax.Array, jax.Array]: ...
