"""Remarks on data that have no density: constants, repeated values, linear relations."""

import math

import numpy as np

from experiments.recipes.shared import integers
from experiments.recipes.shared.examples import Examples
from experiments.recipes.shared.problem import Problem


def constants(problem: Problem, examples: Examples, one_value: np.ndarray) -> list[str]:
    """Return what there is to say of features that are constant in the training examples."""
    if not one_value.any():
        return []
    which = integers.names(one_value)
    if problem.kept is None:
        return [f"{which}: constant, and dequantized: they add at most 0 nats"]
    said = [f"{which}: constant, hence left out; samples have the one value"]
    others = np.concatenate(examples.parts[1:])
    if num := int(unforeseen(problem, others).sum()):
        said.append(
            f"{num} of {len(others)} examples that are not trained on have other values there: "
            "their likelihood is zero. Leave these columns out of the data, or take another --seed"
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

    Those are columns with one value in many rows, or that vary by less than the smallest noise
    level about a linear function of other columns. Networks make their likelihood as large as the
    noise allows.
    """
    if problem.standardizer is None:
        return []
    real = problem.real
    some = np.sort(x[:2000], axis=0)
    most = max(2, len(some) // 10)
    repeated = (some[most:] == some[:-most]).any(axis=0) & real
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
        "linear in other columns": dependent,
    }
    return [
        f"{integers.names(where)}: {reason}, hence without a density: likelihoods rest on the "
        "smallest noise level, and compare with no entropy"
        for reason, where in reasons.items()
        if where.any()
    ]
