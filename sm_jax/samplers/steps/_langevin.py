"""Steps of Langevin dynamics at one noise level, alone and after another step."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sm_jax import _arrays, _checks
from sm_jax.parameterization import at_time
from sm_jax.samplers.steps._common import arguments, normal
from sm_jax.samplers.steps._reverse import reverse_diffusion
from sm_jax.typing import ArrayOrList, NoiseScoreFn, ProcessLike, ScoreFn, StepFn


def langevin(
    score_fn: ScoreFn,
    x: ArrayOrList,
    key: jax.Array,
    *,
    step_size: ArrayLike,
    inverse_temperature: ArrayLike = 1.0,
) -> jax.Array:
    """Take a step of unadjusted Langevin dynamics, with ``h = step_size``.

        x <- x + h s(x) + sqrt(2 h / inverse_temperature) z

    Args:
        score_fn: ``x [B, ...] -> [B, ...]``; at time ``t``, ``lambda x: score_fn(x, t)``.
        x: points ``[B, ...]``.
        key: a random key.
        step_size: ``h``, the factor of the score, in squared units of the data.
        inverse_temperature: ``b``; the stationary density is ``p^b``, up to its normalizer.

    Returns:
        The next points ``[B, ...]``.

    Raises:
        TypeError: ``x`` is not floating, the score has another dtype, or there is no key.
        ValueError: the score has another shape, or ``step_size`` or ``inverse_temperature`` is not
            one positive number.

    Example:
        >>> langevin(lambda x: -x, jnp.ones((1, 2)), jax.random.key(0), step_size=0.1).shape
        (1, 2)

    Reference: Roberts & Tweedie 1996, https://doi.org/10.2307/3318418
    """
    x = _checks.check_data(x)
    _checks.check_key("langevin", key)
    options = {"step_size": step_size, "inverse_temperature": inverse_temperature}
    for name, value in options.items():
        _checks.check_scalar(name, value)
        _checks.check_positive(name, value)
    h, b = (jnp.asarray(value, _arrays.accumulator(x.dtype)) for value in options.values())
    score = _arrays.accumulated(_checks.check_score(score_fn(x), x))
    return (x + h * score + jnp.sqrt(2.0 * h / b) * normal(key, x)).astype(x.dtype)


def corrector(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    t: ArrayLike,
    t_next: ArrayLike,
    key: jax.Array,
    *,
    process: ProcessLike,
    snr: ArrayLike = 0.16,
) -> jax.Array:
    """Take a step of Langevin dynamics at ``t_next``, the corrector of `predictor_corrector`.

        x <- x + h s(x, t_next) + sqrt(2 h) z,    h = 2 (snr sigma')^2

    Points that have the noise of ``t_next`` keep it, and come nearer to the density there. Taken
    alone, it makes `solve` annealed Langevin dynamics.

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: points at time ``t_next``, ``[B, ...]``.
        t: not used; taken so that all steps are called alike.
        t_next: the time of the points, a scalar.
        key: a random key.
        process: the noising process of the score.
        snr: ratio of the step ``h |s|`` to its noise ``sqrt(2 h D)``, for ``D`` numbers and a score
            with ``|s|^2 = D / sigma'^2``.

    Returns:
        Points at time ``t_next``, ``[B, ...]``.

    Raises:
        TypeError: ``x`` is not floating, the score has another dtype, or there is no key.
        ValueError: the score has another shape, or ``snr`` is not one positive number.

    Example:
        >>> from sm_jax import processes
        >>> x, key, process = jnp.ones((1, 2)), jax.random.key(0), processes.VPLinear()
        >>> corrector(lambda x, t: -x, x, 0.5, 0.4, key, process=process).shape
        (1, 2)

    Reference: Song et al. 2021, algorithms 4 and 5, https://arxiv.org/abs/2011.13456
    """
    _checks.check_scalar("snr", snr)
    _checks.check_positive("snr", snr)
    _checks.check_scalar("t_next", t_next)
    h = 2.0 * (snr * process.sigma(t_next)) ** 2
    return langevin(at_time(score_fn, t_next), x, key, step_size=h)


def predictor_corrector(
    score_fn: NoiseScoreFn,
    x: ArrayOrList,
    t: ArrayLike,
    t_next: ArrayLike,
    key: jax.Array,
    *,
    process: ProcessLike,
    predictor: StepFn = reverse_diffusion,
    num_corrector_steps: int = 1,
    snr: ArrayLike = 0.16,
) -> jax.Array:
    """Take a step of another method, then `corrector` steps at the time that it reached.

        x <- predictor(score_fn, x, t, t_next, key, process=process),
        x <- x + h s(x, t_next) + sqrt(2 h) z,    h = 2 (snr sigma')^2,    repeatedly

    Args:
        score_fn: ``(x_t [B, ...], t [B]) -> [B, ...]``.
        x: points at time ``t``, ``[B, ...]``.
        t: the time of the points, a scalar.
        t_next: the time after the step, a scalar below ``t``.
        key: a random key.
        process: the noising process of the score.
        predictor: the step to ``t_next``: `reverse_diffusion`, `ddim`, `heun`, ..., with options
            in ``functools.partial``, or any function ``(score_fn, x, t, t_next, key, *, process)``.
        num_corrector_steps: number of Langevin steps, 0 for none.
        snr: signal-to-noise ratio of a Langevin step, as in `corrector`.

    Returns:
        Points at time ``t_next``, ``[B, ...]``.

    Raises:
        TypeError: ``x`` is not floating, the score has another dtype, or there is no key.
        ValueError: ``t_next`` is not below ``t``, the score has another shape, ``snr`` is not one
            positive number, or ``num_corrector_steps`` is negative.

    Example:
        >>> from sm_jax import processes
        >>> x, key, process = jnp.ones((1, 2)), jax.random.key(0), processes.VPLinear()
        >>> predictor_corrector(lambda x, t: -x, x, 0.5, 0.4, key, process=process).shape
        (1, 2)

    Reference: Song et al. 2021, section 4.2 and appendix G, https://arxiv.org/abs/2011.13456
    """
    _checks.check_key("predictor_corrector", key)
    _checks.check_count("num_corrector_steps", num_corrector_steps, minimum=0)
    x, t, t_next = arguments(x, t, t_next)
    key_predictor, key_corrector = jax.random.split(key)
    x = predictor(score_fn, x, t, t_next, key_predictor, process=process)

    def correct(x, key):
        return corrector(score_fn, x, t, t_next, key, process=process, snr=snr), None

    if not num_corrector_steps:
        return x
    return jax.lax.scan(correct, x, jax.random.split(key_corrector, num_corrector_steps))[0]
