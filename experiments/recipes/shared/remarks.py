"""Remarks on data that have no density, or lose it by scaling: constants, ties, codes."""

import math

import numpy as np

from experiments.recipes.shared import integers
from experiments.recipes.shared.examples import Examples
from experiments.recipes.shared.problem import Problem

_MOST_SORTED = 10_000_000  # numbers, at once


def of(problem: Problem, examples: Examples) -> list[str]:
    """Return sentences on the data of a problem: see the functions below."""
    if problem.standardizer is None:
        return []
    return without_density(problem, examples.train) + far_off(examples.parts)


def check_resolved(problem: Problem, x: np.ndarray) -> None:
    """Raise unless float32, in which rows are kept, tells the training examples apart.

    It does not where one value, such as a code for missing ones, makes the spread so large that
    all others round to a few numbers, or that the cells of a lattice are lost in their rounding.

    Raises:
        ValueError: naming the features, and the largest value of the first one.
    """
    some = _some(x)
    rows = (problem.standardizer(some)).astype(np.float32)
    num, num_seen = _num_distinct(some), _num_distinct(rows)
    lost = num_seen < 0.9 * num
    if problem.integers:  # the cells of few values hold most of their density
        cell = problem.integers.widths(problem.standardizer.scale)
        coarse = (np.spacing(abs(rows)) > cell / 2).mean(axis=0) > 0.1
        lost |= problem.integers.where & coarse & (num <= len(some) / 2)
    lost &= ~problem.left_out
    if lost.any():
        column = x[:, lost][:, 0]
        extreme = column[np.argmax(abs(column.astype(np.float64) - np.median(column)))]
        raise ValueError(
            f"{integers.names(lost)} of the data: float32 cannot tell the values apart, as one is "
            f"{extreme:.10g}. Is it a code for missing values? Leave these rows out, or fill in. "
            "Otherwise take logarithms, or leave the columns out"
        )


def far_off(parts: list[np.ndarray]) -> list[str]:
    """Return a sentence on values that may be codes, such as 999999 for missing ones.

    Those are the extremes of a feature, or of all numbers of images, which are more than three
    times the range of most of its numbers beyond them, 20 standard deviations of 1,000 Gaussian
    ones. Most are what the three widest gaps leave together, at least three quarters of all.
    """
    found, example = [], None
    for column in integers.columns(parts):
        some = column[:: 1 + len(column) // _MOST_SORTED]
        column = np.concatenate([some, [column.min(), column.max()]])
        values, counts = np.unique(column, return_counts=True)
        values = values.astype(np.float64)
        cuts = np.sort(np.argsort(np.diff(values))[-3:]) + 1
        pieces = zip(np.split(values, cuts), np.split(counts, cuts), strict=True)
        most, count = max(pieces, key=lambda piece: piece[1].sum())
        low, high = most[0] - 3 * np.ptp(most), most[-1] + 3 * np.ptp(most)
        codes = values[(values < low) | (values > high)]
        found.append(len(most) > 1 and count.sum() >= 0.75 * len(column) and len(codes) > 0)
        if found[-1] and example is None:
            example = codes[np.argmax(abs(codes))]
    if example is None:
        return []
    which = integers.names(np.array(found)) if parts[0].ndim == 2 else "the data"
    return [
        f"{which}: values lie far from all others, such as {example:.10g}. Is it a code for "
        "missing values? Leave these rows out, or fill in. Otherwise take logarithms: the others "
        "are hardly resolved beside it"
    ]


def constants(problem: Problem, examples: Examples) -> list[str]:
    """Return what there is to say of features that are constant in the training examples."""
    if problem.kept is None:
        return []
    which = integers.names(problem.left_out)
    hence = "left out" if problem.shortened else "noise to the network: they add at most 0 nats"
    said = [f"{which}: constant, hence {hence}; samples have the one value"]
    others = np.concatenate(examples.parts[1:])
    if num := int(unforeseen(problem, others).sum()):
        said.append(
            f"{num} of {len(others)} examples that are not trained on have other values there: "
            "their likelihood is zero. Leave these out of the data, or take another --seed"
        )
    return said


def unforeseen(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Return which examples ``[N]`` differ from the training examples where these are constant."""
    if problem.kept is None:
        return np.zeros(len(x), bool)
    left_out = problem.left_out
    values = np.asarray(problem.standardizer.mean)[left_out]
    x = x[:, left_out]
    eps = np.finfo(x.dtype).eps if x.dtype.kind == "f" else 0.0
    return (abs(x.astype(np.float64) - values) > 4 * eps * abs(values)).any(axis=1)


def without_density(problem: Problem, x: np.ndarray) -> list[str]:
    """Return sentences on real numbers of the training examples that have no density.

    Those are columns with one value in many rows, or of which at most half of the values are
    distinct, or that vary by less than the smallest noise level about a linear function of other
    columns, where there are more than twice as many rows as columns. Networks make their likelihood
    as large as the noise allows.
    """
    if problem.standardizer is None:
        return []
    real = problem.real
    some = np.sort(_some(x), axis=0)
    most = max(2, len(some) // 10)
    repeated = (some[most:] == some[:-most]).any(axis=0) & real
    tied = (_num_distinct(some) <= len(some) / 2) & real & ~repeated
    dependent = np.zeros_like(real)
    if real.ndim == 1 and len(x) > 2 * len(real):
        order = np.argsort(real, kind="stable")  # integers first: what is a function of these
        rows = np.asarray(problem.standardizer(x), np.float32)[:, order]
        columns = np.column_stack([np.ones(len(x)), rows])
        left_over = abs(np.diag(np.linalg.qr(columns, mode="r")))[1:]  # of each by those before
        dependent[order] = left_over < problem.sigma_min * math.sqrt(len(x))
        dependent &= real
    reasons = {
        "one value is in more than a tenth of the rows": repeated,
        "at most half of the values are distinct": tied,
        "linear in other columns": dependent,
    }
    return [
        f"{integers.names(where)}: {reason}, hence without a density: likelihoods rest on the "
        "smallest noise level, and compare with no entropy"
        for reason, where in reasons.items()
        if where.any()
    ]


def _some(x: np.ndarray) -> np.ndarray:
    """Return so many examples that they are soon sorted."""
    return x[: max(2000, _MOST_SORTED // max(1, x[0].size))]


def _num_distinct(x: np.ndarray) -> np.ndarray:
    """Return how many values each feature ``[...]`` has in examples ``[N, ...]``."""
    x = np.sort(x, axis=0)
    return 1 + (x[1:] != x[:-1]).sum(axis=0)
