"""Draw samples from a run: ``python -m experiments.sample RUN --num 64``.

``--label`` and ``--guidance`` choose what is drawn from a run with labels; ``--inpaint`` completes
held-out images.
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from experiments.recipes.shared import limits
from experiments.recipes.shared.limits import COUNT, FINITE, Limits
from experiments.runs import stops
from experiments.runs.sampler_table import SAMPLERS

if TYPE_CHECKING:  # slow to import
    from collections.abc import Callable

    import jax
    import numpy as np

    from experiments.runs.saved import Run
    from sm_jax.typing import NoiseScoreFn

_MOST_TOGETHER = 256  # samples drawn at a time
_SAMPLER_HELP = "; ".join(f"{name}: {text}" for name, text in SAMPLERS.items()) + "."


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw samples from a trained run, and write them as an array and as a picture."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Run directory that experiments.train wrote."""
    num: Annotated[int | None, COUNT] = None
    """Number of samples, 64 by default, shared out among the labels and rounded up; with --inpaint,
    number of held-out images, 8 by default."""
    label: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Draw samples of this label, of a run trained with --conditional; may be given several times,
    or as "all"."""
    guidance: Annotated[float | None, FINITE] = None
    """Exaggerate the label: 1 leaves its density as it is, 2 is usual, more is less varied."""
    guidance_interval: tuple[float, float] | None = None
    """Noise levels LOW HIGH within which to guide, in units of the scaled data; all by default."""
    inpaint: Literal["left", "right", "top", "bottom", "center"] | None = None
    """Complete held-out images, this part of them hidden, instead of drawing new ones."""
    completions: Annotated[int | None, COUNT] = None
    """Completions of each image, with --inpaint; 6 by default."""
    sampler: Annotated[Literal[tuple(SAMPLERS)], tyro.conf.arg(help=_SAMPLER_HELP)] = "heun"
    num_steps: Annotated[int | None, COUNT] = None
    """Steps of the sampler, by default as many as it takes for good samples; for annealed_langevin,
    at each noise level."""
    churn: Annotated[float, Limits(at_least=0)] = 0.0
    """Noise added by heun over all steps together (EDM's S_churn); 0 is deterministic."""
    seed: Annotated[int, Limits(at_least=0, at_most=2**32 - 1)] = 0
    """Seed of the samples."""
    output: pathlib.Path | None = None
    """Where to write, without .npy or .png; by default RUN/samples-SAMPLER or RUN/inpaint-PART,
    followed by the labels and the guidance where there are any."""


class Prepared(NamedTuple):
    """All that is read before anything is drawn.

    Attributes:
        run: the trained run.
        labels: the labels of ``--label``, or what stands for none.
        held_out: the held-out examples, to be completed.
        sampler: the sampler and its options, where new samples are drawn.
        array: the file to write the samples to.
        picture: the file to write their picture to.
    """

    run: "Run"
    labels: "np.ndarray"
    held_out: "np.ndarray | None"
    sampler: "tuple[Callable, dict] | None"
    array: pathlib.Path
    picture: pathlib.Path


def main(args: list[str] | None = None) -> None:
    """Run the command line, which is ``sys.argv`` by default."""
    with stops.one_line_errors():
        options = tyro.cli(Sample, prog="python -m experiments.sample", args=args)
        check(options)
        prepared = prepare(options)
    with stops.one_line_stops():
        (inpaint if options.inpaint else sample)(options, prepared)


def check(options: Sample) -> None:
    """Raise unless every option is within its limits, and goes with the others.

    Raises:
        ValueError: naming the option and the remedy.
    """
    limits.check(options)
    if options.inpaint and (options.sampler != "heun" or options.churn):
        raise ValueError("--inpaint has a sampler of its own: leave --sampler and --churn out")
    if options.completions is not None and not options.inpaint:
        raise ValueError("--completions is for --inpaint: add it, or say --num for samples")
    if options.guidance is not None and not options.label:
        raise ValueError("--guidance needs a label to guide to: add --label")
    if options.guidance_interval is not None:
        low, high = options.guidance_interval
        if options.guidance is None:
            raise ValueError("--guidance-interval needs --guidance: add it")
        if not 0 <= low < high:
            raise ValueError(
                f"--guidance-interval is LOW HIGH with 0 <= LOW < HIGH, got {low} {high}"
            )


def default_name(options: Sample) -> str:
    """Return what the files are called: another name for other options."""
    words = ["inpaint", options.inpaint] if options.inpaint else ["samples", options.sampler]
    if options.label:
        words += ["label", *dict.fromkeys(options.label)]
    if options.guidance is not None:
        words += ["guidance", f"{options.guidance:g}"]
    if options.guidance_interval is not None:
        words += ["within", *(f"{sigma:g}" for sigma in options.guidance_interval)]
    return "-".join(words).replace("/", "-")


def files(output: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the files of the array and of the picture; their folder is made where it is missing.

    Raises:
        ValueError: if they cannot be written.
    """
    if output.suffix in (".npy", ".png"):
        output = output.with_suffix("")
    array, picture = output.with_name(output.name + ".npy"), output.with_name(output.name + ".png")
    for file in (output, array, picture):
        stops.check_writable(file)
    return array, picture


def prepare(options: Sample) -> Prepared:
    """Read what the options name, and make the folder of the output.

    Raises:
        ValueError: if there is no run, or it has not what the options name.
    """
    from experiments.runs import sampler_table, saved

    run = saved.load(options.run)
    labels = _labels(run, options)
    held_out = sampler = None
    if options.inpaint:
        if not run.problem.is_image:
            raise ValueError(
                f"--inpaint is for images, and the examples of this run have shape "
                f"{run.problem.event_shape}: leave it out"
            )
        if len(labels) > 1:
            raise ValueError(f"--inpaint takes one --label at most, got {len(labels)}")
        held_out = saved.load_examples(run).held_out
    else:
        sampler = sampler_table.choose(run, options.sampler, options.num_steps, options.churn)
    array, picture = files(options.output or options.run / default_name(options))
    return Prepared(run, labels, held_out, sampler, array, picture)


def sample(options: Sample, prepared: Prepared) -> None:
    """Draw the samples and write them, in the units of the data, and their picture."""
    import jax
    import numpy as np

    from experiments.recipes.shared.keys import named
    from experiments.runs import plots
    from sm_jax import samplers

    num = 64 if options.num is None else options.num
    run, labels, _, (sampler, settings), array, picture = prepared

    def one(key, label):
        draw = samplers.one_sample(
            sampler,
            _score_fn(run, options, label[None]),
            process=run.problem.process,
            event_shape=run.problem.event_shape,
            **settings,
        )
        return draw(key)

    # Drawn at once: a sample, or one of each label.
    def draw(key):
        return jax.vmap(one)(jax.random.split(key, len(labels)), labels)

    each = -(-num // len(labels))
    x = samplers.generate(
        draw,
        named("drawn samples", options.seed),
        each,
        batch_size=max(1, _MOST_TOGETHER // len(labels)),
    )
    x = np.swapaxes(x, 0, 1).reshape(-1, *run.problem.event_shape)
    if not np.all(np.isfinite(x)):
        raise FloatingPointError(
            f"{options.sampler} did not come to its end: choose another --sampler"
        )
    np.save(array, run.problem.unscaled(x))
    shown = np.repeat(labels, each) if options.label else None
    (run.recipe.draw or plots.samples)(picture, run.problem, x, labels=shown, title=_title(options))
    print(f"{len(x)} samples by {options.sampler}:\n  {array}\n  {picture}")


def inpaint(options: Sample, prepared: Prepared) -> None:
    """Complete held-out images; write the array ``[N, completions, ...]`` and the picture."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments.recipes.shared.keys import named
    from experiments.runs import plots
    from sm_jax import guidance, samplers
    from sm_jax.processes import prior_sample

    num = 8 if options.num is None else options.num
    num_completions = 6 if options.completions is None else options.completions
    run, labels, held_out, _, array, picture = prepared
    problem = run.problem
    rows = problem.rows(held_out[:num])
    data_key, key = jax.random.split(named("inpainting", options.seed))
    originals = jax.jit(problem.scaled)(rows, data_key)
    known = known_part(problem.event_shape, options.inpaint)
    score_fn = _score_fn(run, options, jnp.repeat(jnp.asarray(labels), len(rows)))

    # Drawn at once: a completion of each image.
    def draw(key):
        noise_key, sample_key = jax.random.split(key)
        return guidance.inpaint(
            score_fn,
            prior_sample(problem.process, noise_key, originals.shape),
            sample_key,
            known=originals,
            mask=known,
            process=problem.process,
            num_steps=options.num_steps,
        )

    together = max(1, _MOST_TOGETHER // len(rows))
    x = samplers.generate(draw, key, num_completions, batch_size=together).swapaxes(0, 1)
    completed = problem.unscaled(x.reshape(-1, *problem.event_shape)).reshape(x.shape).copy()
    completed[..., known] = held_out[: len(rows), None][..., known]  # to the last bit
    np.save(array, completed)
    place = "center" if options.inpaint == "center" else f"{options.inpaint} half"
    title = ", ".join(filter(None, [f"{place} hidden", _title(options)]))
    plots.completions(picture, problem, known, np.asarray(originals), x, title)
    each = f"{num_completions} completions of each of {len(rows)} held-out images"
    print(f"{each}:\n  {array}\n  {picture}")


def known_part(event_shape: tuple[int, ...], hidden: str) -> "np.ndarray":
    """Return the mask of an image, true where it is known, by the name of the hidden part."""
    import numpy as np

    height, width = event_shape[:2]
    known = np.ones(event_shape, bool)
    part = {
        "left": np.s_[:, : width // 2],
        "right": np.s_[:, width - width // 2 :],
        "top": np.s_[: height // 2],
        "bottom": np.s_[height - height // 2 :],
        "center": np.s_[height // 4 : height - height // 4, width // 4 : width - width // 4],
    }
    known[part[hidden]] = False
    return known


def _labels(run: "Run", options: Sample) -> "np.ndarray":
    """Return the labels of ``--label``, or what stands for none."""
    import numpy as np

    from experiments.recipes.shared.diffusion import NO_LABEL

    if not options.label:
        return np.array([NO_LABEL])
    names = run.problem.labels
    if not names:
        raise ValueError(
            f"{str(options.run)!r} was trained without labels: leave --label out, or train with "
            "--conditional"
        )
    if "all" in options.label and "all" not in names:
        return np.arange(len(names))
    for label in options.label:
        if label not in names:
            few = f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
            raise ValueError(f"there is no label {label!r}: they are {few}; or all")
    return np.array([names.index(label) for label in dict.fromkeys(options.label)])


def _score_fn(run: "Run", options: Sample, labels: "jax.Array") -> "NoiseScoreFn":
    """Return the score given labels ``[B]``, guided by the options; of all examples without any."""
    from sm_jax import guidance

    if not options.label:
        return run.score_fn
    score_fn = run.score_given(labels)
    if options.guidance is None:
        return score_fn
    interval = options.guidance_interval
    if interval is not None:
        interval = tuple(run.problem.process.time_at(sigma) for sigma in interval)
    return guidance.classifier_free(
        score_fn, run.score_fn, scale=options.guidance, interval=interval
    )


def _title(options: Sample) -> str:
    names = list(dict.fromkeys(options.label))
    words = [f"label {names[0]}"] if len(names) == 1 and names != ["all"] else []
    if options.guidance is not None:
        words.append(f"guidance {options.guidance:g}")
    if options.guidance_interval is not None:
        low, high = options.guidance_interval
        words[-1] += rf" within $\sigma$ = {low:g} to {high:g}"
    return ", ".join(words)


if __name__ == "__main__":
    stops.run(main)
