"""Arrays and array-likes everywhere: nested lists, NumPy and JAX arrays give equal results.

Every public function is in the table `CALLS`, or in `_ELSEWHERE` with the reason why it is not.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import (
    composition,
    data,
    densities,
    divergence,
    exponential_family,
    guidance,
    likelihood,
    losses,
    metrics,
    noise_levels,
    parameterization,
    processes,
    quantized,
    samplers,
)
from sm_jax.training import checkpoints
from tests.test_package import PUBLIC

_rng = np.random.default_rng(2)
X = (_rng.integers(-16, 17, (6, 2)) / 8).astype(np.float32)  # exact as lists, too
Y = X[::-1] + np.float32(0.5)
T = np.float32([0.5, 1.0, 2.0, 4.0, 0.25, 3.0])
COUNTS = np.float32([[0, 3], [1, 2], [2, 2], [3, 0], [1, 1], [0, 0]])
TIMES = np.float32([8.0, 2.0, 0.5, 0.125])
SIGMAS = TIMES
MEANS = np.float32([[0.0, 1.0], [2.0, -1.0]])
WEIGHTS = np.float32([0.25, 0.75])
VARIANCES = np.float32([0.5, 2.0])
OBSERVATION = np.float32([0.5])
KEY = jax.random.key(0)
PROCESS = processes.VE(sigma_min=0.125, sigma_max=8.0)


def score(x):
    return -x / (1.0 + x**2)


def energy(x):
    return 0.5 * jnp.sum(jnp.log1p(x**2), axis=-1)


def noised_score(x, t):
    return -x / (1.0 + t[:, None] ** 2)


def noised_energy(x, t):
    return 0.5 * jnp.sum(x**2, axis=-1) / (1.0 + t**2)


def network(x, c):
    return jnp.tanh(x)


def first(x):
    return x[:, :1]


class Call(NamedTuple):
    """A call; the NumPy arrays in it are what may come as lists or JAX arrays as well.

    Attributes:
        function: what is called, with ``args`` and ``options``.
        shape_only: whether to compare shapes and dtypes, without running what takes long.
    """

    function: Callable
    args: tuple
    options: dict[str, Any]
    shape_only: bool = False

    def given(self, form):
        """The call with its arrays in a form, ready to run."""
        args = [form(value) for value in self.args]
        options = {name: form(value) for name, value in self.options.items()}
        return functools.partial(self.function, *args, **options)


def _call(function, *args, **options):
    return Call(function, args, options)


def _shape(function, *args, **options):
    return Call(function, args, options, shape_only=True)


def _sampler(function, **options):
    return _shape(function, noised_score, X, KEY, process=PROCESS, times=TIMES, **options)


def _made(make, *args, **options):
    """A score function that is made: it takes arrays, as all of them do; its maker, array-likes."""
    x, t = jnp.asarray(X), jnp.asarray(T)
    return _shape(lambda *args, **options: make(*args, **options)(x, t), *args, **options)


def _composed(make, *args, **options):
    """The same without times."""
    x = jnp.asarray(X)
    return _call(lambda *args, **options: make(*args, **options)(x), *args, **options)


def _density(make, *args):
    """Log-density and score of a density after noising."""

    def values(*args, x):
        density = make(*args).noised(PROCESS, 0.5)
        return density.log_prob(x), density.score(x)

    return _shape(values, *args, x=X)


def _standardized(x):
    fitted = data.Standardizer.fit(x)
    return fitted(x), fitted.inverse(x), fitted.log_det


_conversion = {name: Y for name in ("x0_from_eps", "eps_from_x0", "eps_from_score")}
_conversion |= {name: Y for name in ("eps_from_v", "eps_from_velocity", "score_from_eps")}
_conversion |= {name: Y for name in ("v_from_eps", "velocity_from_eps")}

CALLS = {
    "composition.mixture": _composed(
        composition.mixture, [energy, energy], weights=WEIGHTS, log_normalizers=VARIANCES
    ),
    "composition.mixture_score": _composed(
        composition.mixture_score,
        [score, score],
        [energy, energy],
        weights=WEIGHTS,
        log_normalizers=VARIANCES,
    ),
    "composition.divide": _composed(composition.divide, score, score, strength=0.5),
    "composition.product": _composed(composition.product, [score, score], weights=WEIGHTS),
    "composition.temper": _composed(composition.temper, score, inverse_temperature=0.5),
    "data.constant_features": _call(data.constant_features, X),
    "data.dequantize": _call(data.dequantize, COUNTS, KEY, num_values=4),
    "data.quantize": _call(data.quantize, X, num_values=4),
    "data.Standardizer": _call(_standardized, X),
    "densities.empirical": _density(densities.empirical, X),
    "densities.gaussian": _density(densities.gaussian, MEANS[0], np.diag(VARIANCES)),
    "densities.gaussian_mixture": _density(densities.gaussian_mixture, WEIGHTS, MEANS, VARIANCES),
    "metrics.curl": _shape(metrics.curl, score, X, KEY),
    "divergence.diagonal": _call(divergence.diagonal, score, X),
    "divergence.estimate": _shape(divergence.estimate, score, X, KEY),
    "divergence.exact": _call(divergence.exact, score, X),
    "divergence.hutchinson": _call(divergence.hutchinson, score, X, KEY),
    "divergence.hutchpp": _shape(divergence.hutchpp, score, X, KEY, num_products=6),
    "divergence.laplacian": _call(divergence.laplacian, parameterization.EnergyScore(energy), X),
    "divergence.rows_are_independent": _call(divergence.rows_are_independent, score, X, KEY),
    "exponential_family.fit_exponential_family": _shape(
        exponential_family.fit_exponential_family,
        lambda x: jnp.concatenate([x, x**2], axis=-1),
        X,
    ),
    "guidance.classifier": _made(
        guidance.classifier, noised_score, lambda x, t: -noised_energy(x, t)
    ),
    "guidance.classifier_free": _made(
        guidance.classifier_free, noised_score, noised_score, scale=2.0
    ),
    "guidance.conjugate_residuals": _shape(
        guidance.conjugate_residuals, lambda b: 2.0 * b, X, num_iterations=2
    ),
    "guidance.gmres": _shape(guidance.gmres, lambda b: 2.0 * b, X, num_iterations=2),
    "guidance.inpaint": _shape(
        guidance.inpaint,
        noised_score,
        X,
        KEY,
        known=Y,
        mask=np.array([True, False]),
        process=PROCESS,
        times=TIMES,
    ),
    **{
        f"guidance.{name}": _made(
            getattr(guidance, name),
            noised_score,
            process=PROCESS,
            operator=first,
            observation=OBSERVATION,
            **({"noise_std": 0.5} if name == "dps" else {}),
        )
        for name in ("mmps", "dps", "pigdm")
    },
    "likelihood.adaptive_log_prob": _shape(
        likelihood.adaptive_log_prob, noised_score, X, process=PROCESS
    ),
    "likelihood.annealed_importance": _shape(
        likelihood.annealed_importance,
        energy,
        KEY,
        base=densities.gaussian(jnp.zeros(2), 1.0),
        step_size=0.1,
        num_chains=6,
        inverse_temperatures=np.float32([0.0, 0.5, 1.0]),
        samples=X,
    ),
    "likelihood.bits_per_dim": _call(likelihood.bits_per_dim, T, 2, log_det=1.0),
    "likelihood.discrete_log_prob": _call(
        likelihood.discrete_log_prob, lambda y: -energy(y), COUNTS, KEY, num_values=4
    ),
    "likelihood.elbo": _shape(likelihood.elbo, noised_score, X, KEY, process=PROCESS),
    "likelihood.log_prob": _shape(
        likelihood.log_prob, noised_score, X, process=PROCESS, times=TIMES
    ),
    "likelihood.thermodynamic_integration": _shape(
        likelihood.thermodynamic_integration, noised_energy, X, KEY, process=PROCESS, times=TIMES
    ),
    "likelihood.thermodynamic_integration_from_samples": _call(
        likelihood.thermodynamic_integration_from_samples,
        noised_energy,
        np.stack([X] * len(TIMES)),
        process=PROCESS,
        times=TIMES,
    ),
    "likelihood.uniform_dequantizer": _call(likelihood.uniform_dequantizer, X, KEY),
    "losses.contrastive_divergence": _shape(
        losses.contrastive_divergence, energy, X, KEY, step_size=0.1, num_steps=2
    ),
    "losses.denoising": _call(losses.denoising, score, X, KEY, sigma=T),
    "losses.diffusion": _shape(losses.diffusion, noised_score, X, KEY, process=PROCESS),
    "losses.edm_weight": _call(losses.edm_weight, PROCESS, T, sigma_data=0.5),
    "losses.explicit": _call(losses.explicit, score, X, Y),
    "losses.finite_difference_sliced": _shape(
        losses.finite_difference_sliced, score, X, KEY, epsilon=0.125
    ),
    "losses.implicit": _call(losses.implicit, score, X),
    "losses.likelihood_weight": _call(losses.likelihood_weight, PROCESS, T),
    "losses.multiscale_denoising": _shape(
        losses.multiscale_denoising, noised_score, X, KEY, sigmas=SIGMAS
    ),
    "losses.noise_conditional": _shape(
        losses.noise_conditional, noised_score, X, KEY, sigmas=SIGMAS
    ),
    "losses.noise_conditional_sliced": _shape(
        losses.noise_conditional_sliced, noised_score, X, KEY, sigmas=SIGMAS
    ),
    "losses.noise_contrastive": _shape(
        losses.noise_contrastive,
        energy,
        X,
        KEY,
        noise_density=densities.gaussian(jnp.zeros(2), 1.0),
    ),
    "losses.persistent_contrastive_divergence": _shape(
        losses.persistent_contrastive_divergence,
        energy,
        X,
        KEY,
        chains=Y,
        step_size=0.1,
        num_steps=2,
    ),
    "losses.second_order_denoising": _shape(
        losses.second_order_denoising, score, X, KEY, sigma=0.5
    ),
    "losses.second_order_denoising_trace": _shape(
        losses.second_order_denoising_trace, score, X, KEY, sigma=0.5
    ),
    "losses.sliced": _call(losses.sliced, score, X, KEY),
    "losses.unit_weight": _call(losses.unit_weight, PROCESS, T),
    "metrics.chain_diagnostics": _shape(metrics.chain_diagnostics, X.reshape(-1, 1, 2)),
    "samplers.mclmc": _shape(samplers.mclmc, energy, X, KEY, num_samples=2, num_warmup=10),
    "samplers.nuts": _shape(samplers.nuts, energy, X, KEY, num_samples=2, num_warmup=10),
    "metrics.sliced_wasserstein": _shape(metrics.sliced_wasserstein, X, Y, KEY),
    "noise_levels.langevin_step_size": _call(
        noise_levels.langevin_step_size, SIGMAS, steps_per_level=5
    ),
    "noise_levels.largest_sigma": _call(noise_levels.largest_sigma, X, KEY, max_points=4),
    "noise_levels.noise_levels_from_data": _call(
        noise_levels.noise_levels_from_data, X, KEY, max_points=4
    ),
    "noise_levels.smallest_sigma": _call(noise_levels.smallest_sigma, X, KEY, max_points=4),
    "parameterization.change_process": _made(
        parameterization.change_process,
        noised_score,
        source=PROCESS,
        target=PROCESS,
    ),
    **{
        f"parameterization.{name}": _call(
            getattr(parameterization, name), predicted, X, T, process=processes.VPLinear()
        )
        for name, predicted in _conversion.items()
    },
    "parameterization.denoiser_from_score": _made(
        parameterization.denoiser_from_score, noised_score, process=PROCESS
    ),
    "parameterization.precondition": _made(
        parameterization.precondition, network, process=PROCESS, sigma_data=0.5
    ),
    "parameterization.precondition_energy": _made(
        parameterization.precondition_energy,
        lambda x, c: jnp.sum(jnp.tanh(x), axis=1),
        process=PROCESS,
        sigma_data=0.5,
    ),
    "parameterization.score_from_denoiser": _made(
        parameterization.score_from_denoiser, lambda x, t: 0.5 * x, process=PROCESS
    ),
    "parameterization.at_time": _call(
        lambda t: parameterization.at_time(noised_score, jnp.asarray(t))(jnp.asarray(X)), T
    ),
    "parameterization.EnergyScore": _composed(parameterization.EnergyScore, energy),
    "processes.check_times": _call(processes.check_times, PROCESS, TIMES),
    "processes.data_mean": _call(
        lambda mean: processes.data_mean(processes.VE(mean=mean), (2,)), VARIANCES
    ),
    "processes.diffusion_squared": _call(processes.diffusion_squared, processes.VPLinear(), T / 8),
    "processes.drift": _call(processes.drift, processes.VPLinear(), X, T / 8),
    "processes.marginal_std": _call(processes.marginal_std, PROCESS, T, 1.0),
    "processes.noise_ratio": _call(processes.noise_ratio, PROCESS, T),
    "processes.perturb": _call(processes.perturb, PROCESS, X, T, KEY),
    "processes.prior_log_prob": _call(processes.prior_log_prob, PROCESS, X),
    **{
        f"processes.{type(process).__name__}": _call(
            lambda t, process=process: (process.alpha(t), process.sigma(t), process.time_at(t)),
            T / 8,
        )
        for process in (
            processes.VE(),
            processes.EDM(),
            processes.GeometricVE(),
            processes.VPLinear(),
            processes.SubVP(),
            processes.Cosine(),
        )
    },
    "quantized.eps_from_logits": _shape(
        quantized.eps_from_logits,
        np.zeros((6, 2, 4), np.float32),
        X,
        T,
        process=PROCESS,
        bin_edges=np.asarray(quantized.uniform_bin_edges(4)),
    ),
    "quantized.precondition": _made(
        quantized.precondition,
        lambda x, c: jnp.stack([x, -x, x, x], axis=-1),
        process=PROCESS,
        sigma_data=0.5,
        bin_edges=np.asarray(quantized.uniform_bin_edges(4)),
    ),
    "samplers.adapt_step_size": _shape(
        samplers.adapt_step_size, score, X, KEY, step_size=0.1, num_steps=2
    ),
    "samplers.adaptive_sde": _sampler(samplers.adaptive_sde),
    "samplers.ancestral": _sampler(samplers.ancestral),
    "samplers.annealed_langevin": _shape(
        samplers.annealed_langevin,
        noised_score,
        X,
        KEY,
        sigmas=SIGMAS,
        step_size=0.001,
        steps_per_level=2,
    ),
    "samplers.consistent_annealed": _shape(
        samplers.consistent_annealed, noised_score, X, KEY, sigmas=SIGMAS, step_size=0.015
    ),
    "samplers.ddim": _sampler(samplers.ddim),
    "samplers.dpm_solver_pp": _sampler(samplers.dpm_solver_pp),
    "samplers.dpm_solver_pp_sde": _sampler(samplers.dpm_solver_pp_sde),
    "samplers.heun": _sampler(samplers.heun, churn=1.0),
    "samplers.langevin": _shape(samplers.langevin, score, X, KEY, step_size=0.1, num_steps=2),
    "samplers.mala": _shape(samplers.mala, score, X, KEY, step_size=0.1, num_steps=2),
    "samplers.gradient_ascent": _shape(
        samplers.gradient_ascent, score, X, step_size=0.1, num_steps=2
    ),
    "samplers.predictor_corrector": _sampler(samplers.predictor_corrector),
    "samplers.adaptive_ode": _shape(
        samplers.adaptive_ode, noised_score, X, process=PROCESS, times=TIMES
    ),
    "samplers.reverse_diffusion": _sampler(samplers.reverse_diffusion),
    "samplers.euler_maruyama": _sampler(samplers.euler_maruyama),
    "samplers.solve": _shape(
        samplers.solve, samplers.steps.heun, noised_score, X, process=PROCESS, times=TIMES
    ),
    **{
        f"samplers.steps.{name}": _shape(
            getattr(samplers.steps, name), noised_score, X, T[2], T[1], KEY, process=PROCESS
        )
        for name in samplers.steps.__all__
        if name != "langevin"
    },
    "samplers.steps.langevin": _shape(samplers.steps.langevin, score, X, KEY, step_size=0.1),
    "samplers.tempered_langevin": _shape(
        samplers.tempered_langevin,
        score,
        X,
        KEY,
        inverse_temperatures=np.float32([0.5, 1.0]),
        step_size=0.1,
        steps_per_temperature=2,
    ),
    "samplers.underdamped": _shape(
        samplers.underdamped, score, X, KEY, step_size=0.1, num_steps=2, velocity=Y
    ),
}

_NUMBERS = "takes numbers and shapes, no arrays"
_PYTREES = "takes pytrees, of which a list is one: its leaves are the arrays"
_ELSEWHERE = {
    "composition": {},
    "data": {
        "batch_indices": "an integer",
        "dequantize_log_det": _NUMBERS,
        "load": "a path, or arrays of a file",
        "load_tfds": "a name",
    },
    "densities": dict.fromkeys(
        (
            "checkerboard",
            "eight_gaussians",
            "pinwheel",
            "rings",
            "swiss_roll",
            "two_moons",
        ),
        _NUMBERS,
    ),
    "divergence": {"sphere": _NUMBERS},
    "guidance": {"drop_labels": _PYTREES},
    "likelihood": {"logit_normal_dequantizer": "a function"},
    "losses": dict.fromkeys(
        ("likelihood_times", "log_normal_times", "low_discrepancy", "uniform_times"), _NUMBERS
    ),
    "models": {"functional": "a module"},
    "noise_levels": dict.fromkeys(
        ("geometric", "karras", "langevin_variance", "sigma_ratio", "num_levels"), _NUMBERS
    ),
    "processes": {
        "prior_sample": _NUMBERS,
        "solver_grid": _NUMBERS,
        "time_grid": _NUMBERS,
        "warn_off_center": "returns nothing",
    },
    "quantized": {"uniform_bin_edges": _NUMBERS},
    "samplers": {
        "log_density": "minus an energy of the user's own",
        "log_prob_and_score": "points that the caller's own loop made",
        "metropolis_step": "points that the caller's own loop made",
        "smc": "no points of the user's",
        "generate": "a function and numbers",
        "one_sample": "a function and numbers",
    },
    "training.checkpoints": dict.fromkeys(checkpoints.__all__, "states and directories"),
    "training": {"adamw": _NUMBERS, "data_mesh": "devices"}
    | dict.fromkeys(
        (
            "fit",
            "init",
            "make_step",
            "prepare_directory",
            "replicate",
            "restore_params",
            "shard_batch",
        ),
        _PYTREES,
    ),
}


def test_every_public_function_is_in_the_table():
    public = {
        f"{module.removeprefix('sm_jax.')}.{name}"
        for module in PUBLIC
        for name, value in vars(importlib.import_module(module)).items()
        if inspect.isfunction(value) and name in importlib.import_module(module).__all__
    }
    elsewhere = {f"{module}.{name}" for module, names in _ELSEWHERE.items() for name in names}
    assert public - set(CALLS) == elsewhere


def _as_jax(value):
    return jnp.asarray(value) if isinstance(value, np.ndarray) else value


def _as_list(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", CALLS)
def test_lists_and_arrays_give_equal_results(name):
    call = CALLS[name]
    run = jax.eval_shape if call.shape_only else lambda call: call()
    expected = jax.tree.leaves(run(call.given(_as_jax)))
    for form in (_as_list,) if call.shape_only else (_as_list, lambda value: value):
        found = jax.tree.leaves(run(call.given(form)))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert np.shape(one) == np.shape(other)
            if call.shape_only:
                assert one.dtype == other.dtype
            else:
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def _as_masked(value):
    if not (isinstance(value, np.ndarray) and value.ndim and value.dtype.kind == "f"):
        return value
    return np.ma.masked_array(value, np.arange(value.size).reshape(value.shape) == 0)


# Of the modules that take data, the functions that take none.
_NO_DATA = {
    "likelihood.annealed_importance",
    "likelihood.bits_per_dim",
    "losses.edm_weight",
    "losses.likelihood_weight",
    "losses.unit_weight",
    "noise_levels.langevin_step_size",
}
_OF_DATA = ("data", "exponential_family", "likelihood", "losses", "metrics", "noise_levels")


@pytest.mark.parametrize(
    "name", [name for name in CALLS if name.split(".")[0] in _OF_DATA and name not in _NO_DATA]
)
def test_masked_values_are_refused(name):
    """A JAX array has no mask: what is masked, often -9999, would be taken as data."""
    call = CALLS[name]
    run = jax.eval_shape if call.shape_only else lambda call: call()
    with pytest.raises(ValueError, match="masked values"):
        run(call.given(_as_masked))
