"""Evaluation of a model: likelihoods, baselines, Fisher divergence, loss at each noise level."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.shared import diffusion, integers, remarks
from experiments.recipes.shared.diffusion import ScoreModel
from experiments.recipes.shared.examples import Examples
from experiments.recipes.shared.keys import named
from experiments.recipes.shared.options import Evaluation
from experiments.recipes.shared.problem import Problem
from experiments.runs import baselines
from experiments.runs.saved import Run
from sm_jax import divergence, likelihood, losses
from sm_jax.processes import perturb

_MOST_EXACT_DIMS = 128
_VALIDATION_ROWS = 256
_BLOCK_SIZE = 2048  # numbers in the examples evaluated together: more leave the cache of a CPU


def validation(
    model: ScoreModel, problem: Problem, examples: Examples, seed: int
) -> Callable[[Any, int], dict[str, float]] | None:
    """Return what ``fit`` chooses a checkpoint by: a bound on the validation set's likelihood.

    The noise is the same at each call, and more is drawn where examples are few. None without a
    validation set.
    """
    if examples.validation is None:
        return None
    scale_key, noise_key = jax.random.split(named("validation", seed))
    rows = examples.validation[:_VALIDATION_ROWS]
    rows = np.repeat(rows, _VALIDATION_ROWS // len(rows), axis=0)
    x = jax.jit(problem.scaled)(problem.rows(rows), scale_key)

    @jax.jit
    def bound(params):
        result = likelihood.elbo(
            model.score(params), x, noise_key, process=problem.process, num_samples=32
        )
        return result.value.mean()

    return lambda params, _: {"validation_elbo": float(bound(params)) + problem.log_det}


def evaluate(run: Run, examples: Examples, key: jax.Array) -> dict[str, Any]:
    """Return the results of a run, as ``results.json`` holds them.

    All likelihoods, of the model and of the baselines, are of the same dequantized examples.
    """
    problem, options = run.problem, run.config.evaluation
    train_key, held_out_key, probe_key, sigma_key, fisher_key = jax.random.split(key, 5)
    num = min(options.likelihood_examples, len(examples.held_out), len(examples.train))
    scaled = jax.jit(problem.scaled)
    held_out = np.asarray(scaled(problem.rows(examples.held_out[:num]), held_out_key))
    train = examples.train
    if examples.validation is not None:  # for the baselines, which validate on folds of their own
        train = np.concatenate([train, examples.validation])
    train = np.asarray(scaled(problem.rows(train), train_key))

    print(f"log-likelihood of {num} held-out and {num} training examples")
    both = np.concatenate([held_out, train[:num]])
    parts = slice(num), slice(num, None)
    log_probs, errors = log_likelihood(run, both, probe_key, options)
    held_out_row, train_row = (_row(problem, log_probs[part], errors[part]) for part in parts)
    rows = {"score model": held_out_row, "score model (train)": train_row}
    results = {
        "num_examples": num,
        "num_repeated": _num_repeated(examples, num),
        "num_unforeseen": int(remarks.unforeseen(problem, examples.held_out[:num]).sum()),
        "num_parameters": sum(x.size for x in jax.tree.leaves(run.params)),
        "divergence": "exact" if _is_exact(problem, options) else "hutchinson",
        "likelihood_steps": options.likelihood_steps,
        "units": " ".join(
            [
                _units(run, examples),
                *(f"{remark[0].upper()}{remark[1:]}." for remark in remarks.of(problem, examples)),
            ]
        ),
        "has_density": not remarks.without_density(problem, examples.train),
        "log_likelihood": rows,
        "overfitting_gap_nats": train_row["nats"] - held_out_row["nats"],
        "overfitting_gap_standard_error": math.hypot(
            train_row["standard_error"], held_out_row["standard_error"]
        ),
        "sigmas": run.model.sigmas.tolist(),
        "loss_per_sigma": loss_per_sigma(run, examples, sigma_key),
    }
    if problem.num_labels:
        print("the same given their labels")
        labels = np.concatenate([examples.held_out_labels[:num], examples.train_labels[:num]])
        given, errors = log_likelihood(run, both, probe_key, options, labels)
        for name, part in zip(("", " (train)"), parts, strict=True):
            rows[f"score model given label{name}"] = _row(problem, given[part], errors[part])
        results["label_gain"] = _label_gain(
            (given - log_probs)[:num], labels[:num], examples.train_labels
        )
    if examples.density is not None:
        rows["exact density"] = _row(
            problem, np.asarray(jax.jit(examples.density.log_prob)(held_out))
        )
        results["fisher_divergence"] = fisher_divergence(
            run, examples.density, held_out, fisher_key
        )
    elif problem.num_dims <= _MOST_EXACT_DIMS:
        results |= _compared(problem, rows, log_probs[:num], train, held_out)
    return results


def _compared(
    problem: Problem,
    rows: dict[str, dict],
    log_probs: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
) -> dict[str, Any]:
    """Add the rows of the baselines; return what the model has more than each, and what failed."""
    fitted_to = baselines.subset(train)
    some = "" if len(fitted_to) == len(train) else f" on {len(fitted_to):,} of {len(train):,} rows"
    print(f"baselines: Gaussian mixture and kernel density{some}; Ctrl-C skips them", flush=True)
    fitted, left_out = baselines.fit(fitted_to, held_out)
    more = {}
    for name, (values, chosen) in fitted.items():
        rows[name] = _row(problem, values) | {"chosen": chosen + some}
        gain = log_probs - values
        more[name] = {"nats": float(gain.mean()), "standard_error": _standard_error(gain)}
    for name, reason in left_out.items():
        print(f"{name}: {reason}")
    return {"more_than_baselines": more, "left_out": left_out}


def _num_repeated(examples: Examples, num: int) -> int:
    """Return how many of the held-out examples that are evaluated are also among the others."""
    train, held_out, *validation = examples.parts
    seen = {row.tobytes() for x in (train, *validation) for row in x}
    return sum(row.tobytes() in seen for row in held_out[:num])


def _units(run: Run, examples: Examples) -> str:
    problem = run.problem
    if problem.num_values:
        return (
            f"Nats are of the dequantized data scaled to [-1, 1], bits of the integer data "
            f"(0 to {problem.num_values - 1}), which they bound."
        )
    words = "Nats and bits are of the data in their own units."
    whole = problem.integers and problem.integers.where & ~problem.left_out
    if problem.integers and whole.any():
        kinds = "; ".join(integers.kinds(problem.integers, whole))
        others = ", times the density of the others in their own units"
        words = (
            f"Nats and bits are of probabilities ({kinds}), which dequantization bounds"
            f"{others if problem.real.any() else ''}."
        )
    elif (
        problem.standardizer and (where := problem.real & (integers.find(examples.parts) > 0)).any()
    ):
        words += (
            f" Integers, or multiples of another step ({integers.names(where)}), are taken as "
            "real numbers: this is a density, with which no entropy or probability compares."
        )
    if problem.kept is not None:
        constant = integers.names(problem.left_out)
        words += f" Likelihoods leave out {constant}, constant in training."
    return words


def _row(problem: Problem, log_probs: np.ndarray, errors: np.ndarray | None = None) -> dict:
    """Return the mean log-density in nats, in the units of the report, and in bits per number."""
    scale = problem.num_dims * math.log(2)
    in_units = log_probs + (0.0 if problem.num_values else problem.log_det)
    row = {
        "nats": float(in_units.mean()),
        "standard_error": _standard_error(in_units),
        "bits_per_dim": float(
            likelihood.bits_per_dim(log_probs, problem.num_dims, log_det=problem.log_det).mean()
        ),
    }
    row["bits_per_dim_standard_error"] = row["standard_error"] / scale
    if errors is not None and np.any(errors > 0):
        row["standard_error_of_divergence"] = float(np.sqrt((errors**2).sum()) / len(errors))
    return row


def _standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean; NaN for a single value, which has no spread."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _label_gain(gain: np.ndarray, labels: np.ndarray, train_labels: np.ndarray) -> dict[str, float]:
    """Return what labels add to log-densities, in nats, and the entropy of the labels.

    The densities given the labels make a mixture, ``log sum_y p(y) p(x | y)``, whose mean is at
    least that of ``log p(x | y) + log p(y)``; gains above the entropy, the mean of ``-log p(y)``,
    are the network's, which then knows the examples of each label better than all together. The
    shares ``p(y)`` are those among the training examples, as few held-out labels would fit
    themselves too well.
    """
    share = np.bincount(train_labels) / len(train_labels)
    return {
        "nats": float(gain.mean()),
        "standard_error": _standard_error(gain),
        "entropy_of_labels": float(-np.log(share[labels]).mean()),
    }


def _is_exact(problem: Problem, options: Evaluation) -> bool:
    automatic = "exact" if problem.num_dims <= _MOST_EXACT_DIMS else "hutchinson"
    return (automatic if options.divergence == "auto" else options.divergence) == "exact"


def log_likelihood(
    run: Run,
    x: np.ndarray,
    key: jax.Array,
    options: Evaluation,
    labels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-density of scaled examples ``[N]``, in nats, and its standard error ``[N]``.

    The density is that of all examples, or with labels ``[N]``, of those of the same label.
    """
    problem = run.problem
    exact = _is_exact(problem, options)

    @jax.jit
    def log_prob(x, labels, key):
        return likelihood.log_prob(
            run.score_given(labels),
            x,
            None if exact else key,
            process=problem.process,
            divergence=divergence.exact if exact else divergence.hutchinson,
            num_estimates=1 if exact else options.num_estimates,
            sigma_data=problem.sigma_data,
            num_steps=options.likelihood_steps,
        )

    num_blocks = -(-len(x) // max(16, _BLOCK_SIZE // problem.num_dims))
    size = -(-len(x) // num_blocks)
    rows = np.arange(num_blocks * size).reshape(num_blocks, size) % len(x)
    keys = jax.random.split(key, num_blocks)
    blocks = []
    with baselines.progress_bar(num_blocks, "likelihood") as bar:
        for chosen, key in zip(rows, keys, strict=True):
            block = log_prob(x[chosen], None if labels is None else labels[chosen], key)
            blocks.append(jax.block_until_ready(block))
            bar.update()
    join = functools.partial(np.concatenate, dtype=np.float64)
    values = join([block.value for block in blocks])[: len(x)]
    return values, join([block.standard_error for block in blocks])[: len(x)]


def loss_per_sigma(run: Run, examples: Examples, key: jax.Array) -> dict[str, list[float]]:
    """Return the mean loss at each noise level of the model, on training and held-out examples."""
    num = min(len(examples.held_out), len(examples.train), 1000)
    per_sigma = jax.jit(diffusion.loss_per_sigma(run.model, run.problem))

    def losses_of(x, labels):
        batch = run.problem.batch(x[:num], None if labels is None else labels[:num])
        return np.asarray(per_sigma(run.params, batch, key))

    return {
        "training": losses_of(examples.train, examples.train_labels).tolist(),
        "held out": losses_of(examples.held_out, examples.held_out_labels).tolist(),
    }


def fisher_divergence(
    run: Run, density: Any, x: np.ndarray, key: jax.Array
) -> dict[str, list[float]]:
    """Return ``E 1/2 |s - s*|^2`` at each noise level, and of the zero score ``E 1/2 |s*|^2``."""
    process = run.problem.process

    @jax.jit
    def at(sigma):
        x_t, _ = perturb(process, x, sigma, key)
        exact = density.noised(process, sigma).score(x_t)
        t = jnp.broadcast_to(sigma, x_t.shape[:1])
        model = losses.explicit(lambda x: run.score_fn(x, t), x_t, exact)
        return model.mean(), losses.explicit(jnp.zeros_like, x_t, exact).mean()

    model, zero = zip(*(at(np.float32(sigma)) for sigma in run.model.sigmas), strict=True)
    return {"score model": [float(v) for v in model], "zero score": [float(v) for v in zero]}
