"""Scaling of the data: quantized ones to [-1, 1], others standardized; and their noise levels.

Each function decides from the training examples and returns a ``Problem``, which ``config.json``
keeps.
"""

import dataclasses
import math
import warnings

import jax
import numpy as np

from experiments.recipes.shared import integers, remarks
from experiments.recipes.shared.examples import Examples
from experiments.recipes.shared.keys import named
from experiments.recipes.shared.problem import Problem
from sm_jax import data, noise_levels

IMAGE_VALUES = 256
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # EDM's, of data of about unit spread


def quantized(examples: Examples, num_values: int, *, per_number: bool = False) -> Problem:
    """Return the problem of integers ``0 ... num_values - 1``, dequantized and scaled to [-1, 1].

    With cells of width ``w = 2 / num_values`` the scaled data have the spread
    ``sigma_data = w sqrt(Var n + 1/12)``, as dequantization adds the variance of a uniform cell.

    Args:
        examples: what to decide from.
        num_values: the number of values.
        per_number: take mean and variance of each number of an example, whose common mean may be
            far off, and show images over the range of the examples.
    """
    x = examples.train
    width, mean, limits = 2 / num_values, 0.0, None
    variance = np.var(x, dtype=np.float64)
    if per_number:
        variance = np.var(x, axis=0, dtype=np.float64).mean()
        mean = np.float32((np.mean(x, axis=0, dtype=np.float64) + 0.5) * width - 1)
        limits = float(x.min()), float(x.max())
    return Problem(
        event_shape=x.shape[1:],
        sigma_data=math.sqrt(variance + 1 / 12) * width,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        num_values=num_values,
        num_labels=examples.num_labels,
        limits=limits,
        label_names=examples.label_names,
        mean=mean,
    )


def standardized(examples: Examples, *, dequantize: bool = False) -> tuple[Problem, list[str]]:
    """Return the problem of data whose features are standardized, and what there is to say of it.

    Args:
        examples: what to decide from.
        dequantize: add uniform noise to features that are integers or multiples of another step.

    Raises:
        ValueError: if all training examples are the same, or float32 cannot tell them apart.
    """
    x = examples.train
    one_value = data.constant_features(x)
    if one_value.all():
        raise ValueError(
            f"all {len(x)} training examples are the same: there is no density to learn"
        )
    explanation, step = [], np.zeros(x.shape[1:])
    if dequantize:
        step = integers.find(examples.parts)
    constant = one_value & (step == 0)
    if one_value.ndim == 1:
        constant, step = one_value, np.where(one_value, 0.0, step)
    kept = tuple(np.flatnonzero(~constant).tolist()) if constant.any() else None
    if one_value.ndim > 1:  # of images the network sees all numbers, these as noise
        step = np.where(constant, 1.0, step)
    lattice = integers.of(x, step)
    whole = (step > 0) & ~constant
    if whole.any():
        explanation += [f"{kind}, dequantized" for kind in integers.kinds(lattice, whole)]
        explanation.append(
            "what is dequantized, by uniform noise of its cells, has likelihoods of probabilities "
            "(--integers real takes it as real numbers)"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of constant features, as just told
        standardizer = data.Standardizer.fit(x)
    if lattice:  # of what is added, in units of the step, the mean is 1/2 and the variance 1/12
        variance = np.where(constant, 0.0, np.var(x, axis=0, dtype=np.float64))
        variance += lattice.step**2 / 12
        standardizer = data.Standardizer(
            standardizer.mean + np.where(whole, lattice.step / 2, 0.0),
            np.where(lattice.where, np.sqrt(variance), standardizer.scale),
        )
    problem = Problem(
        event_shape=(len(kept),) if kept and one_value.ndim == 1 else x.shape[1:],
        sigma_data=1.0,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        standardizer=standardizer,
        num_labels=examples.num_labels,
        limits=(float(x.min()), float(x.max())),
        integers=lattice,
        label_names=examples.label_names,
        kept=kept,
    )
    remarks.check_resolved(problem, x)
    return problem, explanation + remarks.constants(problem, examples)


def noise_levels_from_data(problem: Problem, x: np.ndarray, seed: int) -> tuple[Problem, str]:
    """Return the problem with noise levels computed from training examples, and the reasons.

    See ``sm_jax.noise_levels.noise_levels_from_data``.
    """
    scaled = jax.jit(problem.scaled)(problem.rows(x), named("dequantization", seed))
    found = noise_levels.noise_levels_from_data(scaled, named("noise levels", seed))
    sigma_max, sigma_min = float(found.sigmas[0]), float(found.sigmas[-1])
    return dataclasses.replace(problem, sigma_min=sigma_min, sigma_max=sigma_max), str(found)
