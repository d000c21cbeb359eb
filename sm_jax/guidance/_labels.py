r"""Guidance by a label ``c``: by a classifier, or by the scores with and without the label.

By Bayes' rule, at every noise level ``t``,

    grad log p(x | c) = grad log p(x) + grad log p(c | x),                             (1)

so a classifier of noised data turns an unconditional score into a conditional one, and two scores
hold a classifier between them. Guidance takes that gradient ``w`` times,

    s_w = grad log p(x) + w grad log p(c | x)                                          (2)
        = s_u + w (s_c - s_u),                                                         (3)

``s_u`` being the score without and ``s_c`` with the label. ``w = 0`` ignores the label and
``w = 1`` is the conditional score. For other ``w``, (2) is the score of ``p_t(x) p_t(c | x)^w``
at each noise level, but these densities are not noised versions of one another: a diffusion sampler
then has a sharper and shifted result, not samples of ``p_0(x) p_0(c | x)^w``.

References: Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233; Ho & Salimans 2022,
https://arxiv.org/abs/2207.12598
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.typing import NoiseScoreFn


def classifier_free(
    cond_score_fn: NoiseScoreFn,
    uncond_score_fn: NoiseScoreFn,
    *,
    scale: ArrayLike,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
) -> NoiseScoreFn:
    """Return the score of classifier-free guidance.

        s_u(x_t, t) + w (s_c(x_t, t) - s_u(x_t, t))    where low < t <= high, else s_c(x_t, t)

    In this convention ``w = 1`` does not guide. In the other, ``(1 + w) s_c - w s_u``, it is one
    less.

    Args:
        cond_score_fn: ``s_c``, ``(x_t [B, ...], t [B]) -> [B, ...]``, the label in its closure.
        uncond_score_fn: ``s_u``, mostly the same network at the null label.
        scale: ``w``, a scalar or ``[B]``: 0 unconditional, 1 conditional, above 1 guided.
        interval: ``(low, high)``: guide only at times ``low < t <= high``; by default at all. At
            others ``uncond_score_fn`` is not evaluated unless some row of the batch needs it. For
            noise ratios, pass ``(process.time_at(low), process.time_at(high))``.

    Returns:
        A score function of the same kind. Two evaluations, or one outside the interval.

    Raises:
        TypeError: at a call, if a score has another dtype than ``x_t``.
        ValueError: ``interval`` is empty; or, at a call, if a score has another shape than ``x_t``
            or ``scale`` or ``t`` is neither a scalar nor ``[B]``.

    Example:
        >>> cond, uncond = lambda x, t: 1.0 - x, lambda x, t: -x
        >>> score_fn = classifier_free(cond, uncond, scale=3.0, interval=(0.1, 2.0))
        >>> print(score_fn(jnp.zeros((2, 1)), jnp.array([1.0, 5.0])))
        [[3.]
         [1.]]

    References: Ho & Salimans 2022, https://arxiv.org/abs/2207.12598; the interval, Kynkäänniemi et
    al. 2024, https://arxiv.org/abs/2404.07724
    """
    if interval is not None:
        _checks.check_interval("interval", interval)

    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        w = _checks.check_per_example("scale", scale, x)
        cond = _checks.check_score(cond_score_fn(x, t), x)

        def guided():
            uncond = _checks.check_score(uncond_score_fn(x, t), x)
            return (uncond + _arrays.expand_like(w, x) * (cond - uncond)).astype(x.dtype)

        if interval is None:
            return guided()
        times = _checks.check_per_example("t", t, x)
        low, high = interval
        inside = jnp.logical_and(low < times, times <= high)
        guide = jax.lax.cond(jnp.any(inside), guided, lambda: cond)
        return jnp.where(_arrays.expand_like(inside, x), guide, cond)

    return score_fn


def classifier(
    score_fn: NoiseScoreFn,
    log_likelihood_fn: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    scale: ArrayLike = 1.0,
) -> NoiseScoreFn:
    """Return the score of classifier guidance.

        s(x_t, t) + w grad log p(c | x_t)

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        log_likelihood_fn: ``(x_t [B, ...], t [B]) -> [B]``, the log-probability of the wanted label
            given the noised data, up to a constant: the classifier must know noised data. Any
            differentiable reward serves.
        scale: ``w``, a scalar or ``[B]``. 1 is Bayes' rule, above it the label is exaggerated.

    Returns:
        A score function of the same kind, each evaluation one of the score and one of the
        classifier with its gradient.

    Raises:
        TypeError: at a call, if the score has another dtype than ``x_t``.
        ValueError: at a call, if the score has another shape than ``x_t``, ``log_likelihood_fn``
            does not return one number per example, or ``scale`` is neither a scalar nor ``[B]``.

    Example:
        >>> score_fn = classifier(
        ...     lambda x, t: -x, lambda x, t: jnp.sum(jax.nn.log_sigmoid(x), axis=-1), scale=2.0)
        >>> print(score_fn(jnp.zeros((1, 2)), jnp.ones(1)))  # the slope of log sigmoid is 1/2
        [[1. 1.]]

    Reference: Dhariwal & Nichol 2021, section 4, https://arxiv.org/abs/2105.05233
    """

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        w = _checks.check_per_example("scale", scale, x)
        score = _checks.check_score(score_fn(x, t), x)
        log_prob, pull_back = jax.vjp(lambda y: log_likelihood_fn(y, t), x)
        if log_prob.shape != x.shape[:1]:
            raise ValueError(
                f"log_likelihood_fn must return one number per example, shape {x.shape[:1]}, got "
                f"{log_prob.shape}: pick the wanted label of each row, e.g. logits[:, label]."
            )
        return (score + pull_back(w.astype(log_prob.dtype))[0]).astype(x.dtype)

    return guided


def drop_labels(cond: Any, key: jax.Array, *, rate: ArrayLike, null: Any) -> Any:
    """Replace the labels of a random share of the examples by the null label.

    Trained so, one network gives both scores of `classifier_free`.

    Args:
        cond: labels, any pytree of arrays ``[B, ...]``: class indices, embeddings, several at once.
        key: a random key.
        rate: share of examples to drop, from 0 to 1; 0.1 to 0.2 is usual. All the labels of an
            example are dropped together.
        null: the label that stands for none: a pytree of the same structure, each leaf of the
            shape of one label ``[...]``, or a scalar.

    Returns:
        Labels of the same structure, shapes and dtypes.

    Raises:
        ValueError: ``cond`` has no arrays or arrays of different ``B``, ``null`` has another
            structure, does not fit the shape, or is not a value of the dtype of the labels (0.5, or
            -1 of unsigned integers); or ``rate`` is outside ``[0, 1]``.

    Example:
        >>> cond = {"digit": jnp.array([3, 7]), "style": jnp.ones((2, 2))}
        >>> null = {"digit": 10, "style": 0.0}
        >>> drop_labels(cond, jax.random.key(0), rate=1.0, null=null)["digit"].tolist()
        [10, 10]

    Reference: Ho & Salimans 2022, algorithm 1, https://arxiv.org/abs/2207.12598
    """
    leaves, tree = jax.tree.flatten(cond)
    if tree != jax.tree.structure(null):  # type: ignore[operator]  # not in the stubs of JAX
        raise ValueError(
            f"null must have the structure of cond, {tree}, got {jax.tree.structure(null)}."
        )
    sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "cond must hold arrays [B, ...] of the same B, got shapes "
            f"{[jnp.shape(leaf) for leaf in leaves]}."
        )
    known = _arrays.concrete(rate)
    if known is not None and not 0 <= known <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {rate}.")
    for leaf, none in zip(leaves, jax.tree.leaves(null), strict=True):
        if jnp.shape(none) not in ((), jnp.shape(leaf)[1:]):
            raise ValueError(
                f"a leaf of null must be a scalar or one label of shape {jnp.shape(leaf)[1:]}, got "
                f"shape {jnp.shape(none)}."
            )
        _check_null(none, jnp.asarray(leaf).dtype)
    dropped = jax.random.bernoulli(key, rate, sizes.pop())

    def drop(leaf, none):
        leaf = jnp.asarray(leaf)
        none = jnp.broadcast_to(jnp.asarray(none, leaf.dtype), leaf.shape)
        return jnp.where(_arrays.expand_like(dropped, leaf), none, leaf)

    return jax.tree.map(drop, cond, null)


def _check_null(null: ArrayLike, dtype: jnp.dtype) -> None:
    """Raise if a (concrete) null label is not a value of the dtype of integer labels."""
    known = _arrays.concrete(null)
    if known is None or jnp.issubdtype(dtype, jnp.floating):
        return
    with np.errstate(invalid="ignore"):
        fits = np.all(known.astype(dtype) == known)
    if not fits:
        raise ValueError(
            f"null must be a value of the dtype of the labels, {dtype}, got {null}: take another, "
            "or convert the labels, e.g. to int32."
        )
