"""Train a score model, sample from it, and evaluate it: `python -m experiments.train [RECIPE]`.

Without arguments: scikit-learn's handwritten digits, in under three minutes on two CPU cores.
`--help` lists the recipes and the options.
"""

import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

from experiments import _cli, _config

if TYPE_CHECKING:  # slow to import
    from experiments._examples import Examples
    from experiments._run import Run


def main(args: list[str] | None = None) -> None:
    """Runs the command line, which is `sys.argv` by default."""
    start = time.monotonic()
    with _cli.one_line_errors():
        recipe, config = _cli.parse(sys.argv[1:] if args is None else args)
        if config.run.dry_run:
            _cli.show(config)
            return
        untrained, examples, facts = prepare(recipe, config)
    resume = f"python -m experiments.train --resume --directory {untrained.directory}"
    with _cli.one_line_stops(f"To go on from the last checkpoint: {resume}"):
        run = fit(untrained, examples, facts)
    with _cli.one_line_stops(f"The model is trained and saved; to evaluate it: {resume}"):
        finish(run, examples, start)


def train(recipe: str, config: _config.Config) -> tuple["Run", "Examples"]:
    """Trains, or goes on training; returns the run and its data."""
    untrained, examples, facts = prepare(recipe, config)
    return fit(untrained, examples, facts), examples


def prepare(recipe: str, config: _config.Config) -> tuple["Run", "Examples", dict[str, Any]]:
    """Reads the data, builds the network and makes the run directory.

    Returns:
        The run with its initial parameters, its data, and what must not change when it is resumed.

    Raises:
        ValueError: on data, options or a directory that will not do. No directory is left then.
    """
    import jax  # and all else that is slow to import, now that the options are known to be right

    from experiments import _examples, _model, _problem, _run
    from sm_jax import training

    num_devices = training.data_mesh().size
    if config.training.batch_size % num_devices:
        raise ValueError(
            f"--batch-size {config.training.batch_size} does not divide among {num_devices} "
            f"devices: take a multiple of {num_devices}"
        )
    name = f"{recipe.replace(':', '-').replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = config.run.directory or pathlib.Path("runs", name)
    if directory.expanduser().exists():  # what is wrong with it is to be known before the rest
        training.prepare_directory(directory, resume=config.run.resume)
    examples = _examples.load(config)
    if config.run.resume and (directory.expanduser() / "config.json").exists():
        problem, explanation = _run.load_problem(directory), ""
    else:
        problem, explanation = _problem.examine(config, examples)
    model = _model.build(config, problem)
    facts = {
        "recipe": recipe,
        "checksum": _run.checksum(problem, examples),
        **_config.decisive(config),
    }
    if config.run.resume:
        _run.check_same(directory, facts)
    directory = training.prepare_directory(directory, resume=config.run.resume)
    _run.write_config(directory, recipe, config, problem)
    labeled = f" with {problem.num_labels} labels" if problem.num_labels else ""
    print(
        f"{recipe}: {len(examples.train):,} examples of shape {examples.train.shape[1:]}"
        f"{labeled}; "
        f"run in {directory}"
    )
    if explanation:
        print(explanation)
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    print(f"network {_model.network_kind(config, problem)} of {size:,} parameters")
    return _run.Run(directory, recipe, config, problem, model, model.params), examples, facts


def fit(untrained: "Run", examples: "Examples", facts: dict[str, Any]) -> "Run":
    """Trains what `prepare` returned; returns the run with its trained parameters."""
    from experiments import _evaluation, _run
    from sm_jax import training
    from sm_jax.training import checkpoints

    directory, _, config, problem, model, _ = untrained
    options = config.training
    validate = _evaluation.validation(model, problem, examples, options.seed)
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
            validate, every=config.evaluation.every, noise_level_loss_fn=model.level_loss
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
    params = _run.restore_params(directory, model.params)
    if validate is not None:
        step = checkpoints.best_step(directory)
        num = len(examples.validation)
        some = f"{num} validation example{'s' * (num > 1)}"
        print(f"took the checkpoint of step {step}, the best on {some}")
    return untrained._replace(params=params)


def finish(run: "Run", examples: "Examples", start: float) -> None:
    """Evaluates a trained run, draws its pictures, writes its report, and shows the results."""
    from experiments import _evaluation, _plots, _report
    from experiments._keys import named

    directory, options = run.directory, run.config.evaluation
    seed = run.config.training.seed
    results = _evaluation.evaluate(run, examples, named("evaluation", seed))

    _report.write_json(directory / "results.json", results)

    # What follows is not worth losing a run for.
    with _report.optional("the samples, and their pictures"):
        labels = _evaluation.labels_to_draw(run.problem, options.num_samples)
        num_samples = options.num_samples if labels is None else len(labels)
        x, trajectory, levels = _evaluation.sample(
            run, named("samples", seed), num_samples, options.sampling_steps, labels
        )
        if labels is not None:
            results["recognized"] = _evaluation.recognized(run.problem, examples, x, labels)
        _plots.samples(directory / "samples.png", run.problem, x, examples, labels)
        _plots.gif(directory / "sampling.gif", run.problem, trajectory, levels, labels)
    with _report.optional("the picture of the scores"):
        path = directory / "scores_per_level.png"
        _plots.scores_per_level(path, run, examples, results, named("pictures", seed))
    with _report.optional("the picture of the loss"):
        _plots.loss_curve(directory, run.problem)

    results["wall_seconds"] = time.monotonic() - start
    _report.write_json(directory / "results.json", results)
    _report.write(run, results)
    _report.show(directory, results)


if __name__ == "__main__":
    _cli.run(main)
