"""Every numerical function far from the unit scale: other units, an offset, dtypes, event shapes.

A *world* holds the problem of `_UNIT`, a Gaussian with three variances, in other units and at
another place: ``x' = a x + c``. What a function returns there follows from what it returns here:
scores are divided by ``a``, points are mapped like the data, log-densities lose ``D log a``. With
``a`` a power of two and ``x`` on a grid that the offset leaves exact, both sides are the same
numbers up to the rounding of a few operations.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from sm_jax import (
    composition,
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
    samplers,
)

_VARIANCES = np.array([0.5, 1.0, 2.0], np.float32)


class World(NamedTuple):
    """The Gaussian N(c, a^2 diag(_VARIANCES)), its scores and energies, and what is in its units.

    Attributes:
        a: the unit of length.
        c: the place of the mean.
    """

    a: Any
    c: Any

    def points(self, u):
        """The points ``u`` of the unit world here."""
        return (self.a * u + self.c).astype(u.dtype)

    def unit(self, x):
        """The points ``x`` of this world in the unit world."""
        return (x - self.c) / self.a

    def variances(self, x):
        """The variances of the unit world, one for each number of an event."""
        return jnp.asarray(_VARIANCES, x.dtype)[: int(np.prod(x.shape[1:]))].reshape(
            1, *x.shape[1:]
        )

    def noise(self, x, t):
        """A noise level in the unit world, with the axes of ``x``."""
        return jnp.reshape(t, (-1,) + (1,) * (x.ndim - 1)).astype(x.dtype) / self.a

    def score(self, x):
        """A score with a curved field: that of the Gaussian, and a bounded pull to its mean."""
        u = self.unit(x)
        return ((-u / self.variances(x) - 0.3 * jnp.tanh(u)) / self.a).astype(x.dtype)

    def noised_score(self, x, t):
        """The score of the Gaussian noised by ``VE``."""
        variances = self.variances(x) + self.noise(x, t) ** 2
        return (-self.unit(x) / variances / self.a).astype(x.dtype)

    def energy(self, x):
        """The energy whose negative gradient `score` is."""
        u = self.unit(x)
        terms = 0.5 * u**2 / self.variances(x) + 0.3 * jnp.log(jnp.cosh(u))
        return terms.sum(axis=tuple(range(1, x.ndim)))

    def noised_energy(self, x, t):
        """The energy whose negative gradient `noised_score` is."""
        terms = 0.5 * self.unit(x) ** 2 / (self.variances(x) + self.noise(x, t) ** 2)
        return terms.sum(axis=tuple(range(1, x.ndim)))

    @property
    def process(self):
        """The noising process in these units."""
        return processes.VE(self.a * 2.0**-5, self.a * 2.0**5, mean=self.c)

    @property
    def sigmas(self):
        """A ladder of noise levels in these units."""
        return self.a * jnp.array([4.0, 2.0, 1.0, 0.5])


_UNIT = World(1.0, 0.0)


def _same(value, world):
    return value


def _per_square(value, world):
    return value / world.a**2


def _score_like(value, world):
    return value / world.a


def _points_like(value, world):
    return world.points(value)


def _lengths(value, world):
    return world.a * value


def _log_densities(value, world):
    return value - _NUM_DIMS * np.log(world.a)


def _log_normalizers(value, world):
    return value + _NUM_DIMS * np.log(world.a)


_NUM_DIMS = 3


class Case(NamedTuple):
    """A function, and how its value changes with the units.

    Attributes:
        call: ``(world, x, key) -> value``.
        there: ``(value of the unit world, world) -> value`` in another world.
        noised: whether it moves ``x``, and so rounds it at the spacing of numbers near the offset.
    """

    call: Callable
    there: Callable = _same
    noised: bool = False


def _start(world, x, key):
    """Noise of the prior of a world: the same for all of them."""
    return world.points(2.0**5 * jax.random.normal(key, x.shape, x.dtype))


def _sampler(sampler, **options):
    def call(world, x, key):
        start, draw = jax.random.split(key)
        return sampler(
            world.noised_score, _start(world, x, start), draw, process=world.process, **options
        )

    return Case(call, _points_like, noised=True)


CASES = {
    "losses.explicit": Case(
        lambda w, x, key: losses.explicit(w.score, x, 0.5 * w.score(x)), _per_square
    ),
    "losses.implicit": Case(lambda w, x, key: losses.implicit(w.score, x), _per_square),
    "losses.implicit, of an energy": Case(
        lambda w, x, key: losses.implicit(parameterization.EnergyScore(w.energy), x),
        _per_square,
    ),
    "losses.sliced": Case(lambda w, x, key: losses.sliced(w.score, x, key), _per_square),
    "losses.finite_difference_sliced": Case(
        lambda w, x, key: losses.finite_difference_sliced(w.score, x, key, epsilon=w.a * 2.0**-3),
        _per_square,
        noised=True,
    ),
    "losses.denoising": Case(
        lambda w, x, key: losses.denoising(w.score, x, key, sigma=0.5 * w.a), noised=True
    ),
    "losses.denoising, control variate": Case(
        lambda w, x, key: losses.denoising(w.score, x, key, sigma=0.5 * w.a, control_variate=True),
        noised=True,
    ),
    "losses.multiscale_denoising": Case(
        lambda w, x, key: losses.multiscale_denoising(w.noised_score, x, key, sigmas=w.sigmas),
        noised=True,
    ),
    "losses.noise_conditional": Case(
        lambda w, x, key: losses.noise_conditional(w.noised_score, x, key, sigmas=w.sigmas),
        noised=True,
    ),
    "losses.noise_conditional_sliced": Case(
        lambda w, x, key: losses.noise_conditional_sliced(w.noised_score, x, key, sigmas=w.sigmas),
        noised=True,
    ),
    "losses.diffusion": Case(
        lambda w, x, key: losses.diffusion(w.noised_score, x, key, process=w.process),
        noised=True,
    ),
    "losses.diffusion, likelihood": Case(
        lambda w, x, key: losses.diffusion(
            w.noised_score,
            x,
            key,
            process=w.process,
            sample_times=losses.likelihood_times,
            weight=losses.likelihood_weight,
        ),
        _score_like,
        noised=True,
    ),
    "losses.second_order_denoising": Case(
        lambda w, x, key: losses.second_order_denoising(w.score, x, key, sigma=0.5 * w.a),
        noised=True,
    ),
    "losses.second_order_denoising_trace": Case(
        lambda w, x, key: losses.second_order_denoising_trace(w.score, x, key, sigma=0.5 * w.a),
        noised=True,
    ),
    "losses.contrastive_divergence": Case(
        lambda w, x, key: losses.contrastive_divergence(
            w.energy, x, key, step_size=0.25 * w.a**2, num_steps=3
        ),
        noised=True,
    ),
    "losses.persistent_contrastive_divergence": Case(
        lambda w, x, key: losses.persistent_contrastive_divergence(
            w.energy, x, key, chains=x, step_size=0.25 * w.a**2, num_steps=3
        )[0],
        noised=True,
    ),
    "divergence.exact": Case(
        lambda w, x, key: divergence.exact(w.score, x).divergence, _per_square
    ),
    "divergence.hutchinson": Case(
        lambda w, x, key: divergence.hutchinson(w.score, x, key).divergence, _per_square
    ),
    "divergence.hutchpp": Case(
        lambda w, x, key: divergence.hutchpp(w.score, x, key, num_products=9).divergence,
        _per_square,
    ),
    "divergence.diagonal": Case(lambda w, x, key: divergence.diagonal(w.score, x)[1], _per_square),
    "divergence.estimate": Case(
        lambda w, x, key: divergence.estimate(w.score, x, key).divergence, _per_square
    ),
    "metrics.curl": Case(
        lambda w, x, key: metrics.curl(w.score, x, key).norm, lambda v, w: v / w.a**4
    ),
    "samplers.langevin": Case(
        lambda w, x, key: samplers.langevin(w.score, x, key, step_size=0.25 * w.a**2, num_steps=8),
        _points_like,
        noised=True,
    ),
    "samplers.tempered_langevin": Case(
        lambda w, x, key: samplers.tempered_langevin(
            w.score,
            x,
            key,
            inverse_temperatures=[0.5, 1.0],
            step_size=0.25 * w.a**2,
            steps_per_temperature=4,
        ),
        _points_like,
        noised=True,
    ),
    "samplers.gradient_ascent": Case(
        lambda w, x, key: samplers.gradient_ascent(
            w.score, x, step_size=0.25 * w.a**2, num_steps=8
        ),
        _points_like,
        noised=True,
    ),
    "samplers.underdamped": Case(
        lambda w, x, key: samplers.underdamped(
            w.score, x, key, step_size=0.25 * w.a, num_steps=8, friction=1.0 / w.a
        ),
        _points_like,
        noised=True,
    ),
    "samplers.mala": Case(
        lambda w, x, key: (
            samplers.mala(w.score, x, key, step_size=0.25 * w.a**2, num_steps=8).acceptance_rate
        ),
        noised=True,
    ),
    "samplers.mala, of an energy": Case(
        lambda w, x, key: (
            samplers.mala(
                parameterization.EnergyScore(w.energy), x, key, step_size=0.25 * w.a**2, num_steps=8
            ).acceptance_rate
        ),
        noised=True,
    ),
    "samplers.adapt_step_size": Case(
        lambda w, x, key: (
            samplers.adapt_step_size(
                parameterization.EnergyScore(w.energy), x, key, step_size=0.25 * w.a**2, num_steps=8
            ).step_size
            / w.a**2
        ),
        noised=True,
    ),
    "samplers.annealed_langevin": Case(
        lambda w, x, key: samplers.annealed_langevin(
            w.noised_score, x, key, sigmas=w.sigmas, step_size=0.02 * w.a**2, steps_per_level=2
        ),
        _points_like,
        noised=True,
    ),
    "samplers.consistent_annealed": Case(
        lambda w, x, key: samplers.consistent_annealed(
            w.noised_score, x, key, sigmas=w.sigmas, step_size=0.2 * w.a**2
        ),
        _points_like,
        noised=True,
    ),
    "samplers.solve": _sampler(functools.partial(samplers.solve, samplers.steps.heun), num_steps=8),
    "samplers.euler_maruyama": _sampler(samplers.euler_maruyama, num_steps=8),
    "samplers.reverse_diffusion": _sampler(samplers.reverse_diffusion, num_steps=8),
    "samplers.predictor_corrector": _sampler(samplers.predictor_corrector, num_steps=8),
    "samplers.ancestral": _sampler(samplers.ancestral, num_steps=8),
    "samplers.ddim": _sampler(samplers.ddim, num_steps=8),
    "samplers.heun": _sampler(samplers.heun, num_steps=8),
    "samplers.heun, churn": _sampler(samplers.heun, num_steps=8, churn=2.0),
    "samplers.dpm_solver_pp": _sampler(samplers.dpm_solver_pp, num_steps=8),
    "samplers.dpm_solver_pp, order 3": _sampler(samplers.dpm_solver_pp, num_steps=8, order=3),
    "samplers.dpm_solver_pp_sde": _sampler(samplers.dpm_solver_pp_sde, num_steps=8),
    "guidance.inpaint": Case(
        lambda w, x, key: guidance.inpaint(
            w.noised_score,
            _start(w, x, key),
            jax.random.fold_in(key, 1),
            known=x,
            mask=jnp.array([True, False, False]),
            process=w.process,
            num_steps=8,
            num_resamples=2,
        ),
        _points_like,
        noised=True,
    ),
    "samplers.adaptive_ode": Case(
        lambda w, x, key: (
            samplers.adaptive_ode(
                w.noised_score,
                _start(w, x, key),
                process=w.process,
                sigma_data=w.a,
                rtol=1e-5,
            ).x
        ),
        _points_like,
        noised=True,
    ),
    "samplers.adaptive_sde": Case(
        lambda w, x, key: (
            samplers.adaptive_sde(
                w.noised_score, _start(w, x, key), jax.random.fold_in(key, 1), process=w.process
            ).x
        ),
        _points_like,
        noised=True,
    ),
    "likelihood.log_prob": Case(
        lambda w, x, key: (
            likelihood.log_prob(
                w.noised_score, x, process=w.process, sigma_data=w.a, num_steps=16
            ).value
        ),
        _log_densities,
        noised=True,
    ),
    "likelihood.adaptive_log_prob": Case(
        lambda w, x, key: (
            likelihood.adaptive_log_prob(w.noised_score, x, process=w.process, sigma_data=w.a).value
        ),
        _log_densities,
        noised=True,
    ),
    "likelihood.elbo": Case(
        lambda w, x, key: likelihood.elbo(w.noised_score, x, key, process=w.process).value,
        _log_densities,
        noised=True,
    ),
    "likelihood.thermodynamic_integration": Case(
        lambda w, x, key: (
            likelihood.thermodynamic_integration(
                w.noised_energy,
                _start(w, x, key),
                jax.random.fold_in(key, 1),
                process=w.process,
                num_levels=17,
                sigma_data=w.a,
            ).value
        ),
        _log_normalizers,
        noised=True,
    ),
    "likelihood.thermodynamic_integration_from_samples": Case(
        lambda w, x, key: (
            likelihood.thermodynamic_integration_from_samples(
                w.noised_energy,
                jnp.stack([_start(w, x, key), _start(w, x / 2**5, key), x]),
                process=w.process,
                sigma_data=w.a,
            ).value
        ),
        _log_normalizers,
        noised=True,
    ),
    "likelihood.annealed_importance": Case(
        lambda w, x, key: (
            likelihood.annealed_importance(
                w.energy,
                key,
                base=densities.gaussian(jnp.full(_NUM_DIMS, w.c), w.a**2),
                step_size=0.25 * w.a**2,
                num_chains=16,
                num_temperatures=4,
            ).lower.value
        ),
        _log_normalizers,
        noised=True,
    ),
    "noise_levels.largest_sigma": Case(
        lambda w, x, key: noise_levels.largest_sigma(x, key), _lengths
    ),
    "noise_levels.smallest_sigma": Case(
        lambda w, x, key: noise_levels.smallest_sigma(x, key), _lengths
    ),
    "noise_levels.noise_levels_from_data": Case(
        lambda w, x, key: noise_levels.noise_levels_from_data(x, key).sigmas, _lengths
    ),
    "metrics.sliced_wasserstein": Case(
        lambda w, x, key: metrics.sliced_wasserstein(
            x, w.points(2.0 * w.unit(x).astype(x.dtype)), key
        ),
        _lengths,
    ),
    "metrics.chain_diagnostics": Case(
        lambda w, x, key: (
            metrics.chain_diagnostics(x.reshape(-1, 4, _NUM_DIMS)).effective_sample_size
        )
    ),
    "exponential_family": Case(
        lambda w, x, key: _fitted_gaussian(x),
        lambda v, w: np.array([w.points(v[0]), w.a * v[1]]),
        noised=True,  # refuses the larger offset
    ),
    "densities.gaussian": Case(
        lambda w, x, key: densities.gaussian(
            jnp.full(_NUM_DIMS, w.c), w.a**2 * np.diag(_VARIANCES)
        ).log_prob(x),
        _log_densities,
    ),
    "densities.gaussian_mixture": Case(
        lambda w, x, key: densities.gaussian_mixture(
            jnp.array([0.3, 0.7]),
            w.points(jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, -1.0]])),
            w.a**2 * np.stack([np.diag(_VARIANCES), np.diag(_VARIANCES[::-1])]),
        ).score(x),
        _score_like,
    ),
    "guidance.classifier_free": Case(
        lambda w, x, key: guidance.classifier_free(
            w.noised_score, lambda x, t: 0.5 * w.noised_score(x, t), scale=2.0
        )(x, jnp.full(len(x), 0.5 * w.a)),
        _score_like,
    ),
    "guidance.pigdm": Case(
        lambda w, x, key: guidance.pigdm(
            w.noised_score,
            process=w.process,
            operator=lambda x: w.unit(x)[:, :2],
            observation=jnp.array([1.0, -1.0]),
            sigma_data=w.a,
        )(x, jnp.full(len(x), 0.5 * w.a)),
        _score_like,
        noised=True,
    ),
    "guidance.mmps": Case(
        lambda w, x, key: guidance.mmps(
            w.noised_score,
            process=w.process,
            operator=lambda x: w.unit(x)[:, :2],
            observation=jnp.array([1.0, -1.0]),
        )(x, jnp.full(len(x), 0.5 * w.a)),
        _score_like,
        noised=True,
    ),
    "guidance.dps": Case(
        lambda w, x, key: guidance.dps(
            w.noised_score,
            process=w.process,
            operator=lambda x: w.unit(x)[:, :2],
            observation=jnp.array([1.0, -1.0]),
            noise_std=0.5,
        )(x, jnp.full(len(x), 0.5 * w.a)),
        _score_like,
        noised=True,
    ),
    "parameterization.precondition": Case(
        lambda w, x, key: parameterization.precondition(
            lambda x, c: jnp.tanh(x), process=w.process, sigma_data=w.a
        )(x, jnp.full(len(x), 0.5 * w.a)),
        _score_like,
    ),
    "parameterization.denoiser_from_score": Case(
        lambda w, x, key: parameterization.denoiser_from_score(w.noised_score, process=w.process)(
            x, jnp.full(len(x), 0.5 * w.a)
        ),
        _points_like,
        noised=True,
    ),
    "composition.mixture_score": Case(
        lambda w, x, key: composition.mixture_score(
            [w.score, lambda x: 0.5 * w.score(x)], [w.energy, lambda x: 0.5 * w.energy(x)]
        )(x),
        _score_like,
    ),
    "processes.prior_log_prob": Case(
        lambda w, x, key: processes.prior_log_prob(w.process, x), _log_densities
    ),
    "processes.perturb": Case(
        lambda w, x, key: processes.perturb(w.process, x, w.a, key)[0], _points_like, noised=True
    ),
}


def _fitted_gaussian(x):
    """Mean and standard deviation of the first number of an event, by score matching."""
    fit = exponential_family.fit_exponential_family(
        lambda x: jnp.stack([x, x**2], axis=-1), x[:, 0]
    )
    linear, quadratic = np.asarray(fit.natural_parameters, np.float64)
    return np.array([-linear / (2.0 * quadratic), np.sqrt(-0.5 / quadratic)])


# What takes points, and is not in the table for a reason.
_ELSEWHERE = {
    "guidance.conjugate_residuals": "see test_solvers.py",
    "guidance.gmres": "see test_solvers.py",
    "composition.mixture": "its score is that of mixture_score",
    "composition.divide": "two terms of composition.product",
    "composition.product": "a weighted sum of functions",
    "composition.temper": "one term of composition.product",
    "guidance.classifier": "a sum of a score and a gradient",
    "guidance.drop_labels": "labels have no units",
    "likelihood.bits_per_dim": "arithmetic on a log-density",
    "likelihood.discrete_log_prob": "integers have no units",
    "likelihood.logit_normal_dequantizer": "integers have no units",
    "likelihood.uniform_dequantizer": "integers have no units",
    "losses.noise_contrastive": "a density of the user's own is compared with the energy",
    "samplers.log_density": "minus an energy",
    "samplers.log_prob_and_score": "minus an energy and its gradient",
    "samplers.mclmc": "adapts its step over a thousand steps, in which rounding is amplified",
    "samplers.nuts": "adapts its step over hundreds of steps, in which rounding is amplified",
    "samplers.smc": "resamples by comparisons, which rounding decides",
    "noise_levels.langevin_step_size": "of noise levels, not of points",
    "parameterization.change_process": "see test_change_process.py",
    "parameterization.precondition_energy": "precondition is its gradient",
    "parameterization.EnergyScore": "in the table as losses.implicit of an energy",
    "parameterization.score_from_denoiser": "the inverse of denoiser_from_score",
    "divergence.laplacian": "in the table as losses.implicit of an energy; refuses bfloat16",
    "divergence.rows_are_independent": "returns a boolean; its zero is exact",
}
_MODULES = (
    composition,
    divergence,
    guidance,
    likelihood,
    losses,
    metrics,
    samplers,
)


def _takes_points(function):
    parameters = list(inspect.signature(function).parameters)
    return any(name in parameters[:3] for name in ("x", "path", "score_fn", "energy_fn"))


def test_every_function_of_points_is_in_the_table():
    tested = {name.split(",")[0] for name in CASES} | {"exponential_family.fit_exponential_family"}
    public = {
        f"{module.__name__.removeprefix('sm_jax.')}.{name}"
        for module in _MODULES
        for name in module.__all__
        if inspect.isfunction(getattr(module, name)) and _takes_points(getattr(module, name))
    }
    assert public - tested - set(_ELSEWHERE) == {"samplers.one_sample"}  # `generate`'s tests
    assert not set(_ELSEWHERE) & tested


def _grid_points(num=64):
    """Points of the unit world on a grid of width 1/8."""
    u = np.random.default_rng(5).integers(-16, 17, size=(num, _NUM_DIMS))
    return jnp.asarray(u / 8.0, jnp.float32)


def _value(name, world, x):
    """The value of a case as float64, its hyper-parameters given as arrays of the dtype of x."""
    world = World(jnp.asarray(world.a, x.dtype), jnp.asarray(world.c, x.dtype))
    return np.asarray(CASES[name].call(world, x, jax.random.key(3)), np.float64)


@functools.cache
def _in_the_unit_world(name):
    return _value(name, _UNIT, _grid_points())


def _assert_follows(name, world, tolerance):
    """Assert that the value in a world follows from that in the unit world, to rounding."""
    unit = _in_the_unit_world(name)

    def there(value):
        return CASES[name].there(value, world)

    x = jnp.float32(world.a) * _grid_points() + jnp.float32(world.c)
    error = np.abs(_value(name, world, x) - there(unit))
    one = np.abs(there(np.ones_like(unit)) - there(np.zeros_like(unit)))
    assert np.all(error <= tolerance * one * (1.0 + np.abs(unit))), np.max(error / one)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("exponent", [-26, pytest.param(26, marks=pytest.mark.slow)])
def test_other_units(name, exponent):
    _assert_follows(name, World(2.0**exponent, 0.0), tolerance=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_an_offset(name):
    # Where x is moved it is rounded to multiples of 2^-13, else nothing is rounded at all.
    noised = CASES[name].noised
    offset = 2.0**10 if noised else 2.0**20
    _assert_follows(name, World(1.0, offset), tolerance=0.02 if noised else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(exponent=strategies.integers(-24, 24), offset=strategies.integers(-1000, 1000))
def test_any_units_and_offset(name, exponent, offset):
    a = 2.0**exponent
    tolerance = 0.02 if CASES[name].noised else 1e-4
    _assert_follows(name, World(a, a * offset), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_float32_data_under_x64(name):
    if name.startswith("noise_levels"):
        pytest.skip("noise levels are computed in float64 in any case")

    def call(key):
        return CASES[name].call(World(np.float64(1.0), np.float64(0.0)), _grid_points(), key)

    with jax.enable_x64(True):
        value = call(jax.random.key(3))
    right = _in_the_unit_world(name)
    assert np.shape(value) == right.shape
    if CASES[name].noised and CASES[name].there is _points_like:
        assert value.dtype == np.float32  # other numbers may be drawn; the points stay as they were
    elif name in _DRAWS_OTHERS:
        keys = jax.random.split(jax.random.key(3), 12)
        narrow = np.array([np.mean(call(key)) for key in keys])
        with jax.enable_x64(True):
            wide = np.array([np.mean(call(key)) for key in keys])
        error = np.sqrt((narrow.var(ddof=1) + wide.var(ddof=1)) / len(keys))
        assert abs(narrow.mean() - wide.mean()) < 4.5 * error
    else:
        np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-4)


# Some of their numbers are drawn in 64 bits, and so are others: their means are compared.
_DRAWS_OTHERS = {
    "losses.noise_conditional",
    "losses.noise_conditional_sliced",
    "losses.second_order_denoising",
    "likelihood.annealed_importance",
}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.noised])
def test_bfloat16(name):
    """The points are exact in bfloat16; what is computed of them is to some roundings."""
    unit = _in_the_unit_world(name)
    value = _value(name, _UNIT, _grid_points().astype(jnp.bfloat16))
    np.testing.assert_allclose(value, unit, rtol=0.03, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_example(name):
    if name in _MANY_EXAMPLES:
        pytest.skip("needs several examples")
    if name in _OF_ALL_ROWS:
        pytest.skip("its value is of all rows, so that one row has another")
    value = _value(name, _UNIT, _grid_points()[:1])
    many = _in_the_unit_world(name)
    # The draws of a row do not depend on how many rows follow.
    first = (
        many[:, :1] if name == "losses.multiscale_denoising" else many[:1] if many.ndim else many
    )
    np.testing.assert_allclose(value, first, rtol=1e-5, atol=1e-5)


_MANY_EXAMPLES = {
    "likelihood.thermodynamic_integration",
    "likelihood.thermodynamic_integration_from_samples",
    "noise_levels.largest_sigma",
    "noise_levels.smallest_sigma",
    "noise_levels.noise_levels_from_data",
    "metrics.chain_diagnostics",
    "exponential_family",
}

_OF_ALL_ROWS = {
    "losses.persistent_contrastive_divergence",  # the mean over the chains
    "metrics.sliced_wasserstein",
    "samplers.adapt_step_size",  # one step for all chains
}

# Derivatives with respect to the units: of every hyper-parameter at once.


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_derivatives_by_the_hyper_parameters(name):
    if name in _NO_DERIVATIVE:
        pytest.skip(_NO_DERIVATIVE[name])
    with jax.enable_x64(True):
        x = jnp.asarray(_grid_points(16), jnp.float64)

        def value(a, c):
            return jnp.asarray(CASES[name].call(World(a, c), x, jax.random.key(3)))

        at, h = (jnp.float64(1.25), jnp.float64(0.25)), 1e-5
        along = tuple(map(jnp.float64, (1.0, -0.5)))
        if name in _REVERSE_ONLY:
            weights = jnp.cos(jnp.arange(np.size(value(*at)))).reshape(np.shape(value(*at)))
            gradient = jax.grad(lambda *p: jnp.sum(weights * value(*p)), argnums=(0, 1))(*at)
            derivative = sum(g * d for g, d in zip(gradient, along, strict=True))
        else:
            weights = 1.0
            derivative = jax.jvp(value, at, along)[1]
        up, down = (
            value(*(p + s * h * d for p, d in zip(at, along, strict=True))) for s in (1.0, -1.0)
        )
        difference = weights * (up - down) / (2.0 * h)
        difference = difference.sum() if name in _REVERSE_ONLY else difference
        np.testing.assert_allclose(derivative, difference, rtol=1e-4, atol=1e-4)


# Loops of diffrax are differentiated backwards.
_REVERSE_ONLY = {"samplers.adaptive_ode", "likelihood.adaptive_log_prob"}
_NO_DERIVATIVE = {
    "noise_levels.largest_sigma": "returns a float",
    "noise_levels.smallest_sigma": "returns a float",
    "noise_levels.noise_levels_from_data": "returns floats",
    "metrics.chain_diagnostics": "has no hyper-parameters",
    "exponential_family": "has no hyper-parameters",
    "losses.second_order_denoising": "the score in its target counts as a constant",
    "losses.second_order_denoising_trace": "the score in its target counts as a constant",
    "losses.contrastive_divergence": "the ends of its chains count as constants",
    "losses.persistent_contrastive_divergence": "the ends of its chains count as constants",
    "divergence.hutchpp": "its sketch counts as a constant",
}
