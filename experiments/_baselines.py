"""Density estimators of scikit-learn to compare a model with, chosen by cross-validation.

Their cost is bounded: at most `MOST_ROWS` training examples, for the time of a kernel density grows
with their square. Nothing here may cost a run its results: an estimator that cannot be fitted, or
that the user does not wait for (Ctrl-C), is left out with the reason.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

MOST_ROWS = 5000
_FOLDS = 5


class Baseline(NamedTuple):
    """A fitted estimator: its held-out log-densities `[N]`, and what was chosen, in words."""

    log_probs: np.ndarray
    chosen: str


def subset(x: np.ndarray) -> np.ndarray:
    """Returns the rows to fit to: all, or of more than `MOST_ROWS` so many at random."""
    if len(x) <= MOST_ROWS:
        return x
    return x[np.random.default_rng(0).choice(len(x), MOST_ROWS, replace=False)]


def fit(train: np.ndarray, held_out: np.ndarray) -> tuple[dict[str, Baseline], dict[str, str]]:
    """Fits a mixture of Gaussians and a kernel density to examples `[N, ...]`.

    The mixture is chosen on a fifth of the training set, the bandwidth by 5-fold cross-validation.

    Returns:
        The baselines by their names, and why others were left out.
    """
    train = np.asarray(train, np.float64).reshape(len(train), -1)
    held_out = np.asarray(held_out, np.float64).reshape(len(held_out), -1)
    fitted, left_out = {}, {}
    searches = {"Gaussian mixture": _mixture, "kernel density": _kernel_density}
    for name, search in searches.items():
        try:
            fitted[name] = search(train, held_out, name)
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

    def estimator(covariance, num):
        return GaussianMixture(
            num,
            covariance_type=covariance,
            reg_covar=1e-3 * float(train.std()) ** 2,
            max_iter=50,
            random_state=0,
        )

    # A search over the folds of a cross-validation would take the mixture five times as long.
    split = ShuffleSplit(n_splits=1, test_size=0.2, random_state=0)
    log_probs, (covariance, num) = _search(estimator, candidates, split, train, held_out, name)
    return Baseline(log_probs, f"covariance {covariance}, components {num}")


def _kernel_density(train: np.ndarray, held_out: np.ndarray, name: str) -> Baseline:
    from sklearn.model_selection import KFold
    from sklearn.neighbors import KernelDensity

    if len(train) < _FOLDS:
        raise ValueError(f"it takes {_FOLDS} examples to choose its bandwidth by, not {len(train)}")
    candidates = [(width,) for width in float(train.std()) * np.geomspace(0.05, 1.0, 16)]
    folds = KFold(_FOLDS)
    log_probs, (width,) = _search(
        lambda width: KernelDensity(bandwidth=width), candidates, folds, train, held_out, name
    )
    return Baseline(log_probs, f"bandwidth {width:.3g}")


def _search(
    estimator: Callable[..., Any],
    candidates: Sequence[tuple],
    folds: Any,
    train: np.ndarray,
    held_out: np.ndarray,
    name: str,
) -> tuple[np.ndarray, tuple]:
    """Returns held-out log-densities of the best candidate, and this one, with a progress bar."""
    from sklearn.exceptions import ConvergenceWarning

    splits = list(folds.split(train))
    scores = np.zeros(len(candidates))
    with warnings.catch_warnings(), progress_bar(len(scores) * len(splits), name) as bar:
        warnings.simplefilter("ignore", ConvergenceWarning)  # 50 iterations are enough here
        for i, candidate in enumerate(candidates):
            for rows, others in splits:
                scores[i] += estimator(*candidate).fit(train[rows]).score(train[others])
                bar.update()
        best = candidates[int(np.argmax(scores))]
        return estimator(*best).fit(train).score_samples(held_out), best


def progress_bar(total: int, name: str) -> Any:
    """Returns a bar on a terminal, and what does nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(total=total, desc=name, leave=False, disable=not sys.stderr.isatty())
