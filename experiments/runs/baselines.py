"""Density estimators of scikit-learn to compare a model with, chosen by cross-validation.

Both smooth: a mixture by what it adds to its variances, a kernel density by its bandwidth. How much
is relative to the standard deviation of each column, and is chosen too: a fixed amount would hide
all that is narrower.

Their cost is bounded: at most ``MOST_ROWS`` training examples, for the time of a kernel density
grows with their square. Nothing here may cost a run its results: an estimator that cannot be
fitted, or that the user does not wait for (Ctrl-C), is left out with the reason.
"""

import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

MOST_ROWS = 5000
_FOLDS = 5
# In units of standardized columns.
_REGULARIZATIONS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_BANDWIDTHS = np.geomspace(0.005, 1.0, 20)


class Baseline(NamedTuple):
    """A fitted estimator: its held-out log-densities ``[N]``, and what was chosen, in words."""

    log_probs: np.ndarray
    chosen: str


def subset(x: np.ndarray) -> np.ndarray:
    """Return the rows to fit to: all, or ``MOST_ROWS`` of them at random."""
    if len(x) <= MOST_ROWS:
        return x
    return x[np.random.default_rng(0).choice(len(x), MOST_ROWS, replace=False)]


def fit(train: np.ndarray, held_out: np.ndarray) -> tuple[dict[str, Baseline], dict[str, str]]:
    """Fit a mixture of Gaussians and a kernel density to examples ``[N, ...]``.

    Each column is standardized; the log-densities are of the examples as given. The mixture is
    chosen on a fifth of the training set, the bandwidth by 5-fold cross-validation.

    Returns:
        The baselines by their names, and why others were left out.
    """
    train = np.asarray(train, np.float64).reshape(len(train), -1)
    held_out = np.asarray(held_out, np.float64).reshape(len(held_out), -1)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale == 0] = 1.0
    train, held_out = (train - mean) / scale, (held_out - mean) / scale
    fitted, left_out = {}, {}
    searches = {"Gaussian mixture": _mixture, "kernel density": _kernel_density}
    for name, search in searches.items():
        try:
            log_probs, chosen = search(train, held_out, name)
            fitted[name] = Baseline(log_probs - np.log(scale).sum(), chosen)
        except KeyboardInterrupt:
            late = [other for other in searches if other not in fitted and other not in left_out]
            return fitted, left_out | dict.fromkeys(late, "skipped, by Ctrl-C")
        except Exception as error:  # whatever scikit-learn has against these data
            left_out[name] = f"cannot be fitted: {' '.join(str(error).split())}"
    return fitted, left_out


def _mixture(train: np.ndarray, held_out: np.ndarray, name: str) -> Baseline:
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import ShuffleSplit

    if len(train) < 3:
        raise ValueError(f"it takes 3 examples to choose its components by, not {len(train)}")
    components = [k for k in (1, 5, 10, 50, 100) if k <= len(train) / 10] or [1]
    candidates = [("full", k) for k in components[:3]]
    candidates += [("diag", k) for k in components[1:] or [1]]

    def estimators(covariance, num):
        mixture = GaussianMixture(
            num, covariance_type=covariance, max_iter=50, random_state=0, warm_start=True
        )
        # From the most regularized to the least, each going on from where the one before ended.
        for value in _REGULARIZATIONS:
            yield mixture.set_params(reg_covar=value)
            mixture.lower_bound_ = -np.inf  # the next must not take this one for converged

    # A search over the folds of a cross-validation would take the mixture five times as long.
    split = ShuffleSplit(n_splits=1, test_size=0.2, random_state=0)
    log_probs, (covariance, num), i = _search(estimators, candidates, split, train, held_out, name)
    regularization = _in_words("regularization", _REGULARIZATIONS, i)
    return Baseline(log_probs, f"covariance {covariance}, components {num}, {regularization}")


def _kernel_density(train: np.ndarray, held_out: np.ndarray, name: str) -> Baseline:
    from sklearn.model_selection import KFold
    from sklearn.neighbors import KernelDensity

    if len(train) < _FOLDS:
        raise ValueError(f"it takes {_FOLDS} examples to choose its bandwidth by, not {len(train)}")

    def estimators(i):
        return [KernelDensity(bandwidth=_BANDWIDTHS[i])]

    candidates, folds = [(i,) for i in range(len(_BANDWIDTHS))], KFold(_FOLDS)
    log_probs, (i,), _ = _search(estimators, candidates, folds, train, held_out, name)
    return Baseline(log_probs, _in_words("bandwidth", _BANDWIDTHS, i))


def _in_words(name: str, values: Sequence[float], i: int) -> str:
    """Return what was chosen, in words, also that it is at the edge of what was tried."""
    edges = {np.argmin(values): ", the least tried", np.argmax(values): ", the largest tried"}
    return f"{name} {values[i]:.3g}{edges.get(i, '')}"


def _search(
    estimators: Callable[..., Iterable[Any]],
    candidates: Sequence[tuple],
    folds: Any,
    train: np.ndarray,
    held_out: np.ndarray,
    name: str,
) -> tuple[np.ndarray, tuple, int]:
    """Return held-out log-densities of the best estimator, with a progress bar.

    The estimators of a candidate are tried in their order, until one is worse than that before.

    Returns:
        The log-densities, the best candidate, and which of its estimators it was.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    splits = list(folds.split(train))
    scores = {}
    # These matrices are small: several threads cost more in waiting than they gain.
    one_thread, bar = threadpool_limits(1), progress_bar(len(candidates), name)
    with warnings.catch_warnings(), one_thread, bar:
        warnings.simplefilter("ignore", ConvergenceWarning)  # 50 iterations are enough here
        for candidate in candidates:
            last = -np.inf
            for i, estimator in enumerate(estimators(*candidate)):
                score = np.sum([estimator.fit(train[a]).score(train[b]) for a, b in splits])
                scores[candidate, i] = score
                if score < last:
                    break
                last = score
            bar.update()
        candidate, which = max(scores, key=scores.get)
        for estimator in itertools.islice(estimators(*candidate), which + 1):
            best = estimator.fit(train)
        return best.score_samples(held_out), candidate, which


def progress_bar(total: int, name: str) -> Any:
    """Return a bar on a terminal, and what does nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(total=total, desc=name, leave=False, disable=not sys.stderr.isatty())
