"""Train a score model, sample from it, and evaluate it: ``python -m experiments.train [RECIPE]``.

Without arguments: scikit-learn's handwritten digits, in 62 to 91 seconds on two CPU cores. The
options, the data, the network and the loss are those of a recipe, such as ``recipes/digits.py``;
``--help`` lists the recipes and their options.
"""

import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

from experiments.recipes import Recipe
from experiments.runs import command_line, configuration, stops

if TYPE_CHECKING:  # slow to import
    from experiments.recipes.shared.examples import Examples
    from experiments.runs.saved import Run


def main(args: list[str] | None = None) -> None:
    """Run the command line, which is ``sys.argv`` by default."""
    start = time.monotonic()
    with stops.one_line_errors():
        recipe, config = command_line.parse(sys.argv[1:] if args is None else args)
        if config.run.dry_run:
            command_line.show(config)
            return
        untrained, examples, facts = prepare(recipe, config)
    resume = f"python -m experiments.train --resume --directory {untrained.directory}"
    with stops.one_line_stops(f"To go on from the last checkpoint: {resume}"):
        run = fit(untrained, examples, facts)
    with stops.one_line_stops(f"The model is trained and saved; to evaluate it: {resume}"):
        finish(run, examples, start)


def train(recipe: Recipe, config: Any) -> tuple["Run", "Examples"]:
    """Train, or go on training; return the run and its data."""
    untrained, examples, facts = prepare(recipe, config)
    return fit(untrained, examples, facts), examples


def prepare(recipe: Recipe, config: Any) -> tuple["Run", "Examples", dict[str, Any]]:
    """Read the data, build the network and make the run directory.

    Returns:
        The run with its initial parameters, its data, and what must not change when it is resumed.

    Raises:
        ValueError: on data, options or a directory that will not do. No directory is left then.
    """
    import jax  # and all else that is slow to import, now that the options are known to be right

    from experiments.recipes.shared.examples import read_examples
    from experiments.runs import saved
    from sm_jax import training

    num_devices = training.data_mesh().size
    if config.training.batch_size % num_devices:
        raise ValueError(
            f"--batch-size {config.training.batch_size} does not divide among {num_devices} "
            f"devices: take a multiple of {num_devices}"
        )
    name = f"{recipe.title.replace(':', '-').replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = config.run.directory or pathlib.Path("runs", name)
    if directory.expanduser().exists():  # what is wrong with it is to be known before the rest
        training.prepare_directory(directory, resume=config.run.resume)
    examples = read_examples(recipe, config)
    if config.run.resume and (directory.expanduser() / "config.json").exists():
        problem, explanation = saved.load_problem(directory), ""
    else:
        problem, explanation = recipe.examine(config, examples)
    model = recipe.build(config, problem)
    facts = {
        "recipe": recipe.name,
        "checksum": saved.checksum(examples),
        **configuration.decisive(recipe, config),
    }
    if config.run.resume:
        saved.check_same(directory, facts)
    directory = training.prepare_directory(directory, resume=config.run.resume)
    saved.write_config(directory, recipe, config, problem)
    labeled = f" with {problem.num_labels} labels" if problem.num_labels else ""
    print(
        f"{recipe.title}: {len(examples.train):,} examples of shape {examples.train.shape[1:]}"
        f"{labeled}; "
        f"run in {directory}"
    )
    if explanation:
        print(explanation)
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    print(f"network {model.network} of {size:,} parameters")
    return saved.Run(directory, recipe, config, problem, model, model.params), examples, facts


def fit(untrained: "Run", examples: "Examples", facts: dict[str, Any]) -> "Run":
    """Train what ``prepare`` returned; return the run with its trained parameters."""
    from experiments.recipes.shared import diffusion
    from experiments.runs import evaluation, saved
    from sm_jax import training
    from sm_jax.training import checkpoints

    directory, _, config, problem, model, _ = untrained
    options = config.training
    validate = evaluation.validation(model, problem, examples, options.seed)
    training.fit(
        model.loss,
        model.params,
        problem.batch(examples.train, examples.train_labels),
        optimizer=training.adamw(
            options.learning_rate, options.num_steps, weight_decay=options.weight_decay
        ),
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        seed=options.seed,
        ema_decay=options.ema_decay,
        evaluation=training.Evaluation(
            validate,
            every=config.evaluation.every,
            noise_level_loss_fn=diffusion.loss_per_sigma(model, problem),
        ),
        checkpoints=training.Checkpoints(
            directory,
            every=config.evaluation.every,
            best_metric=None if validate is None else "validation_elbo",
            best_mode="min" if validate is None else "max",
            resume=config.run.resume,
            config=facts,
        ),
    )
    params = saved.restore_params(directory, model.params)
    if validate is not None:
        step = checkpoints.best_step(directory)
        num = len(examples.validation)
        some = f"{num} validation example{'s' * (num > 1)}"
        print(f"took the checkpoint of step {step}, the best on {some}")
    return untrained._replace(params=params)


def finish(run: "Run", examples: "Examples", start: float) -> None:
    """Evaluate a trained run, draw its pictures, write its report, and show the results."""
    from experiments.recipes.shared.keys import named
    from experiments.runs import drawn, evaluation, plots, report, scores

    directory, options = run.directory, run.config.evaluation
    seed = run.config.training.seed
    results = evaluation.evaluate(run, examples, named("evaluation", seed))

    report.write_json(directory / "results.json", results)

    # What follows is not worth losing a run for.
    with report.optional("the samples, and their pictures"):
        labels = drawn.labels_to_draw(run.problem, options.num_samples)
        num_samples = options.num_samples if labels is None else len(labels)
        x, trajectory, sigmas = drawn.sample(
            run, named("samples", seed), num_samples, options.sampling_steps, labels
        )
        if labels is not None:
            results["recognized"] = drawn.recognized(run.problem, examples, x, labels)
        draw = run.recipe.draw or plots.samples
        draw(directory / "samples.png", run.problem, x, examples, labels)
        plots.gif(directory / "sampling.gif", run.problem, trajectory, sigmas, labels)
    with report.optional("the picture of the scores"):
        path = directory / "scores_per_level.png"
        scores.scores_per_level(path, run, examples, results, named("pictures", seed))
    with report.optional("the picture of the loss"):
        plots.loss_curve(directory, run.problem)

    results["wall_seconds"] = time.monotonic() - start
    report.write_json(directory / "results.json", results)
    report.write(run, results)
    report.show(directory, results)


if __name__ == "__main__":
    stops.run(main)
