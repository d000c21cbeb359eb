"""A second eager call compiles nothing, keeps nothing, and is never stale.

Compilations are counted by JAX's own events. Every function is called with new lambdas and new
arrays in their closures, which is what would compile again if programs were found by identity.
"""

import gc
import weakref
from functools import partial

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import (
    data,
    densities,
    divergence,
    exponential_family,
    guidance,
    likelihood,
    losses,
    metrics,
    parameterization,
    processes,
    samplers,
)
from sm_jax._eager import compiled

PROCESS = processes.VE(sigma_min=0.1, sigma_max=5.0)
X = jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)
KEY = jax.random.key(3)
BASE = densities.gaussian(jnp.zeros(2), 4.0)
EVENT = "/jax/core/compile/backend_compile_duration"


class Count:
    compiled = 0

    def __call__(self, event, duration, **_):
        self.compiled += event == EVENT


@pytest.fixture(scope="module")
def count():
    counter = Count()
    jax.monitoring.register_event_duration_secs_listener(counter)
    yield counter
    jax.monitoring.unregister_event_duration_listener(counter)


def score(width):
    """A score ``s(x)`` or ``s(x, t)`` with arrays in its closure."""
    width = width * jnp.ones((1, 2))
    return lambda x, *t: -x / (width + sum(v[:, None] ** 2 for v in t))


def jitted(width):
    return jax.jit(score(width))


def energy(width):
    width = width * jnp.ones((1, 2))
    return lambda x, *t: 0.5 * jnp.sum(x**2 / (width + sum(v[:, None] ** 2 for v in t)), axis=-1)


def log_density(energy_fn, x):
    return -energy_fn(x)


def energy_score(width):
    return parameterization.EnergyScore(energy(width))


def of_score(function, make=score, **options):
    return lambda w: function(make(w), X, KEY, **options)


def of_energy(function, *args, make=energy, **options):
    return lambda w: function(make(w), *args, KEY, **options)


def of_noise(function, make=score, **options):
    return of_score(function, make, process=PROCESS, **options)


def likelihood_of(function, make=score, **options):
    return lambda w: function(make(w), X, KEY, process=PROCESS, **options)[:2]


CALLS = {
    "langevin": of_score(samplers.langevin, step_size=0.1, num_steps=3),
    "langevin path": of_score(samplers.langevin, step_size=0.1, num_steps=3, trajectory=True),
    "tempered_langevin": of_score(
        samplers.tempered_langevin,
        inverse_temperatures=[0.5, 1.0],
        step_size=0.1,
        steps_per_temperature=3,
    ),
    "gradient_ascent": lambda w: samplers.gradient_ascent(score(w), X, step_size=0.1, num_steps=3),
    "underdamped": of_score(samplers.underdamped, step_size=0.1, num_steps=3),
    "mala": of_score(samplers.mala, step_size=0.1, num_steps=3),
    "mala of energies": of_score(samplers.mala, energy_score, step_size=0.1, num_steps=3),
    "adapt_step_size": of_score(samplers.adapt_step_size, step_size=0.1, num_steps=3),
    "annealed_langevin": of_score(
        samplers.annealed_langevin, sigmas=[1.0, 0.5], step_size=0.1, steps_per_level=3
    ),
    "consistent_annealed": of_score(
        samplers.consistent_annealed, sigmas=[1.0, 0.9, 0.81], step_size=0.6
    ),
    "euler_maruyama": of_noise(samplers.euler_maruyama, num_steps=3),
    "reverse_diffusion": of_noise(samplers.reverse_diffusion, num_steps=3),
    "ancestral": of_noise(samplers.ancestral, num_steps=3),
    "ddim": of_noise(samplers.ddim, num_steps=3, eta=0.5),
    "heun": of_noise(samplers.heun, num_steps=3, churn=1.0),
    "heun of a jit": of_noise(samplers.heun, jitted, num_steps=3, churn=1.0),
    "dpm_solver_pp": of_noise(samplers.dpm_solver_pp, num_steps=3, order=3),
    "dpm_solver_pp_sde": of_noise(samplers.dpm_solver_pp_sde, num_steps=3),
    "predictor_corrector": of_noise(samplers.predictor_corrector, num_steps=3),
    "adaptive_ode": of_noise(samplers.adaptive_ode),
    "adaptive_ode of a jit": of_noise(samplers.adaptive_ode, jitted),
    "adaptive_sde": of_noise(samplers.adaptive_sde),
    "generate": lambda w: samplers.generate(
        samplers.one_sample(
            samplers.heun, score(w), process=PROCESS, num_steps=3, event_shape=(2,)
        ),
        KEY,
        6,
        batch_size=4,
        progress=False,
    ),
    "inpaint": of_noise(
        guidance.inpaint, known=X[0], mask=jnp.array([True, False]), num_steps=3, num_resamples=2
    ),
    "nuts": of_energy(samplers.nuts, X, num_samples=3, num_warmup=20),
    "nuts of a jit": of_energy(
        samplers.nuts, X, make=lambda w: jax.jit(energy(w)), num_samples=3, num_warmup=20
    ),
    "mclmc": of_energy(samplers.mclmc, X, num_samples=3, num_warmup=30),
    "smc": of_energy(samplers.smc, base=BASE, num_particles=16, steps_per_temperature=1),
    "log_prob": likelihood_of(likelihood.log_prob, num_steps=3),
    "log_prob of a jit": likelihood_of(likelihood.log_prob, jitted, num_steps=3),
    "log_prob of energies": likelihood_of(likelihood.log_prob, energy_score, num_steps=3),
    "log_prob, hutchinson": likelihood_of(
        likelihood.log_prob, num_steps=3, divergence=divergence.hutchinson, num_estimates=2
    ),
    "adaptive_log_prob": likelihood_of(likelihood.adaptive_log_prob, rtol=1e-3, atol=1e-3),
    "elbo": likelihood_of(likelihood.elbo, num_samples=3),
    "annealed_importance": of_energy(
        likelihood.annealed_importance, base=BASE, step_size=0.1, num_chains=8, num_temperatures=3
    ),
    "thermodynamic_integration": of_energy(
        likelihood.thermodynamic_integration, X, process=PROCESS, num_levels=3, steps_per_level=2
    ),
    "thermodynamic_integration of samples": lambda w: (
        likelihood.thermodynamic_integration_from_samples(
            energy(w), jnp.stack([2.0 * X, X]), process=PROCESS
        )
    ),
    "discrete_log_prob": lambda w: likelihood.discrete_log_prob(
        partial(log_density, energy(w)), jnp.round(2.0 + X), KEY, num_values=8, num_samples=2
    ),
    "exact": lambda w: divergence.exact(score(w), X, chunk=1),
    "exact of energies": lambda w: divergence.exact(energy_score(w), X, chunk=1),
    "diagonal": lambda w: divergence.diagonal(score(w), X, chunk=1),
    "laplacian": lambda w: divergence.laplacian(energy_score(w), X, chunk=1),
    "hutchinson": of_score(divergence.hutchinson, num_probes=5),
    "hutchpp": of_score(divergence.hutchpp, num_products=6),
    "rows_are_independent": of_score(divergence.rows_are_independent),
    "asymmetry": of_score(metrics.curl),
    "fit_exponential_family": lambda w: exponential_family.fit_exponential_family(
        partial(jnp.multiply, w * X**0), X, weight=lambda x: x**2
    ),
    "contrastive_divergence": of_energy(
        losses.contrastive_divergence, X, step_size=0.1, num_steps=3
    ),
    "batch_indices": lambda w: data.batch_indices(jax.random.key(int(10 * w)), 7, 10, 4),
}


def same(left, right, rtol):
    """Compare pytrees of arrays, NaNs included."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=rtol
        ),
        left,
        right,
    )


# Seconds to compile. Arrays in their inner programs are also those of `adaptive_ode`.
LONG = {"mclmc", "smc", "nuts", "nuts of a jit", "adaptive_log_prob", "adaptive_ode of a jit"}
# The others are compiled as a whole in the long tests.
UNDER_JIT = {"langevin", "mala", "heun", "heun of a jit", "log_prob", "exact"}


def marked(names, long):
    return [pytest.param(n, marks=pytest.mark.slow) if n in long else n for n in names]


@pytest.mark.parametrize("name", marked(CALLS, LONG))
def test_a_second_call_compiles_nothing_and_sees_the_new_arrays(name, count):
    call = CALLS[name]
    first = jax.block_until_ready(call(1.0))
    before = count.compiled
    other = call(1.5)
    again = call(1.0)
    assert count.compiled == before
    same(again, first, rtol=0.0)
    if name != "rows_are_independent":
        with pytest.raises(AssertionError):
            same(again, other, rtol=2e-4)


@pytest.mark.parametrize(
    "name", marked(sorted(CALLS.keys() - {"generate"}), CALLS.keys() - UNDER_JIT)
)
def test_new_arrays_give_what_they_give_under_jit(name):
    CALLS[name](1.0)
    # Compiled as a whole the rounding may differ, and no more.
    same(CALLS[name](1.5), jax.jit(lambda: CALLS[name](1.5))(), rtol=2e-4)


def run(function, *args):
    return compiled(function, *args)


def test_equal_programs_share(count):
    def outcome(c):
        weights = c * jnp.ones(2)
        return run(lambda x: jax.nn.silu(x) @ weights + jnp.where(x > 0, x, 2.0).sum(), X[0])

    first = outcome(1.0)
    before = count.compiled
    second = outcome(2.0)
    assert count.compiled == before
    assert float(first) != float(second)


def with_jvp(function):
    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(lambda x, change: (function(*x), change[0]))
    return wrapped


def with_vjp(function):
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda x: (function(x), None), lambda _, change: (change,))
    return wrapped


# Where a jitted function of arrays can be: `f` is an affine map, `g` a condition.
WITHIN = {
    "a call": lambda f, g, x: f(x),
    "a jit": lambda f, g, x: jax.jit(lambda x: f(f(x)))(x),
    "a gradient": lambda f, g, x: jax.grad(lambda x: f(x**2).sum())(x),
    "a scan": lambda f, g, x: jax.lax.scan(
        lambda c, y: (f(c), (c.sum(), f(y))), x, jnp.arange(6.0).reshape(3, 2), reverse=True
    ),
    "a scan with sums": lambda f, g, x: jax.lax.scan(lambda c, _: (f(c), None), x, length=3)[0],
    "scans of scans": lambda f, g, x: jax.lax.fori_loop(
        0, 2, lambda _, x: jax.lax.map(f, jnp.stack([x, 2.0 * x])).sum(axis=0), x
    ),
    "a loop": lambda f, g, x: jax.lax.while_loop(g, f, x),
    "a loop that counts": lambda f, g, x: jax.lax.while_loop(
        lambda c: c[1] < 3, lambda c: (f(c[0]), c[1] + 1), (x, 0)
    ),
    "a batch of loops": lambda f, g, x: jax.vmap(
        lambda x: jax.lax.while_loop(lambda c: g(c[0]), lambda c: (f(c[0]), c[1] + 1), (x, 0))
    )(jnp.stack([x, 9.0 * x, 3.0 * x])),
    "a batch of batches": lambda f, g, x: jax.vmap(
        jax.vmap(lambda a: jax.lax.while_loop(g, f, a * x))
    )(jnp.array([[1.0, 2.0, 9.0], [6.0, 1.0, 1.0]])),
    "branches": lambda f, g, x: jax.lax.cond(g(x), f, lambda x: 2.0 * x, x),
    "one of many": lambda f, g, x: jax.lax.map(
        lambda i: jax.lax.switch(i, [f, lambda x: x, lambda x: f(2.0 * x)], x), jnp.arange(3)
    ),
    "a forward rule": lambda f, g, x: with_jvp(f)(x),
    "a backward rule": lambda f, g, x: with_vjp(f)(x),
}


def affine(w):
    """Jitted functions of arrays of JAX and NumPy, and one without axes."""
    slope, shift, also = jnp.array([1.0, w]), jnp.asarray(w), np.array([w, 0.5], np.float32)

    @jax.jit
    def f(x):
        return slope * x + shift * also + 1.0

    return f, jax.jit(lambda x: (jnp.abs(x) * slope).sum() < 9.0 * shift)


@pytest.mark.parametrize("name", WITHIN)
def test_arrays_within_are_arguments(name, count):
    x = jnp.array([0.5, -0.7])
    seen = []
    for w in (1.0, 2.0, 1.0):
        function = partial(WITHIN[name], *affine(w))
        want = jax.block_until_ready(function(x))
        before = count.compiled
        got = run(lambda x, f=function: f(x), x)
        assert count.compiled == before or w == 1.0
        same(got, want, rtol=1e-6)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), got) == jax.tree.map(
            lambda a: (a.shape, a.dtype), want
        )
        seen.append(got)
    same(seen[2], seen[0], rtol=0.0)
    with pytest.raises(AssertionError):
        same(seen[1], seen[0], rtol=1e-2)


@jax.custom_jvp
def doubled(x):
    return 2.0 * x


doubled.defjvp(lambda primals, tangents: (2.0 * primals[0], 2.0 * tangents[0]))


@jax.custom_jvp
def tripled(x):
    return 3.0 * x


tripled.defjvp(lambda primals, tangents: (3.0 * primals[0], 3.0 * tangents[0]))
near = np.nextafter(np.float32(1.5), np.float32(2.0))


def jitted_of(function, *args, **options):
    return jax.jit(lambda x: function(*args, x), **options)


ONE, TWO = jnp.array([1.0, -1.5]), jnp.array([2.0, 0.5])
DISTINCT = {
    "the last bit of a scalar": [lambda x: x * np.float32(1.5), lambda x: x * near],
    "the sign of zero": [lambda x: x * 0.0, lambda x: x * -0.0],
    "integers and floats": [lambda x: x**2, lambda x: x**2.0 + 1.0],
    "arrays within a jit": [
        jax.jit(partial(jnp.multiply, np.array([1.0, v], np.float32))) for v in (1.5, near)
    ],
    "closures within a jit": [
        (lambda c: jax.jit(lambda x: x * c))(jnp.array([1.0, v])) for v in (1.5, near, 2.0)
    ],
    "scalars within a jit": [jitted_of(jnp.multiply, c) for c in (1, 1.0, 2.0, np.float32(2.5))],
    "dtypes and shapes within a jit": [
        jitted_of(lambda c, x: (x + c.sum()) // c[0], jnp.array(c))
        for c in ([2, 1], [2.5, 1.0], [2.5])
    ],
    "which arrays of several jits are one": [
        lambda x, arrays=arrays: jnp.stack([jitted_of(jnp.multiply, a)(x) for a in arrays])
        for arrays in ((ONE, ONE, TWO), (ONE, TWO, TWO), (TWO, ONE, TWO), (ONE, ONE, ONE))
    ],
    "arrays within a checkpoint": [
        jax.grad(jax.checkpoint(jitted_of(lambda c, x: (x**2 * c).sum(), c))) for c in (ONE, TWO)
    ],
    "arrays within a jit with a sharding": [
        jitted_of(jnp.multiply, c, out_shardings=ONE.sharding) for c in (ONE, TWO)
    ],
    "branches": [
        lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.lax.cond(x[0] > 0, jnp.cos, jnp.sin, x),
    ],
    "the order of variables": [lambda x: jnp.array([1.0, 3.0]) - x, lambda x: x - np.ones(2)],
    "lengths of loops": [
        lambda x, n=n: jax.lax.fori_loop(0, n, lambda i, x: 1.1 * x, x) for n in (2, 3)
    ],
    "what a custom rule wraps": [
        doubled,
        tripled,
    ],
    "callbacks": [
        lambda x, f=f: jax.pure_callback(f, x, x) for f in (np.sin, np.cos, lambda x: 3 * x)
    ],
    "axes": [lambda x: x[None].sum(0), lambda x: x[None].sum(1).repeat(2)],
    "seeds": [lambda x, s=s: jax.random.normal(jax.random.key(s), (2,)) for s in (0, 1)],
    "keys within a jit": [
        jitted_of(lambda key, x: jax.random.normal(key, (2,)), jax.random.key(s)) for s in (0, 1)
    ],
    "keys in a closure": [
        (lambda key: lambda x: jax.random.normal(key, (2,)))(jax.random.key(s)) for s in (0, 1)
    ],
}


@pytest.mark.parametrize("name", DISTINCT)
def test_different_programs_never_share(name):
    x = jnp.array([-0.7, 1.3])
    for _ in range(2):
        for function in DISTINCT[name]:
            got, want = run(lambda x, f=function: f(x), x), function(x)
            np.testing.assert_allclose(got, want, rtol=1e-7, atol=0.0)
            assert np.array_equal(np.signbit(got), np.signbit(want))


def test_what_changes_in_place_is_never_stale(count):
    class Model:
        scale, power = jnp.ones((1, 2)), 1

        def __call__(self, x):
            return -self.scale * x**self.power

    model = Model()
    sample = partial(samplers.langevin, model, X, KEY, step_size=0.1, num_steps=2)
    first = sample()
    model.scale = model.scale + np.ones((1, 2), np.float32)
    before = count.compiled
    second = sample()
    assert count.compiled == before
    assert not np.allclose(second, first)
    same(sample(), samplers.langevin(lambda x: -2.0 * x, X, KEY, step_size=0.1, num_steps=2), 1e-6)
    model.power = 3  # another program
    same(
        sample(), samplers.langevin(lambda x: -2.0 * x**3, X, KEY, step_size=0.1, num_steps=2), 1e-6
    )


def test_a_module_of_nnx_that_changes_in_place(count):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    sample = partial(samplers.langevin, model, X, KEY, step_size=0.1, num_steps=2)
    sample()
    model.kernel[...] = -3.0 * jnp.eye(2)
    before = count.compiled
    got = sample()
    assert count.compiled == before
    same(got, samplers.langevin(lambda x: -3.0 * x, X, KEY, step_size=0.1, num_steps=2), 1e-5)


def test_transformations_see_the_plain_function():
    def end(width, x):
        return samplers.langevin(lambda x: -x / width, x, KEY, step_size=0.1, num_steps=3).sum()

    grads = jax.grad(end, (0, 1))(2.0, X)
    same(grads, jax.jit(jax.grad(end, (0, 1)))(2.0, X), 1e-5)
    step = 1e-2
    same(grads[0], (end(2.0 + step, X) - end(2.0 - step, X)) / (2 * step), 1e-2)
    same(jax.vmap(end, (0, None))(jnp.array([1.0, 2.0]), X)[1], end(2.0, X), 1e-5)
    closed_over = jax.grad(lambda w: end(w, X))(2.0)
    same(closed_over, grads[0], 1e-6)
    with jax.disable_jit():
        same(end(2.0, X), jax.jit(end)(2.0, X), 1e-5)


def test_loops_within_loops_are_traced_a_fixed_number_of_times():
    calls = []

    def nested(depth, x):
        if depth == 0:
            calls.append(0)
            return x + 1.0
        return compiled(lambda x: nested(depth - 1, x), x)

    nested(6, X)
    assert len(calls) == 1
    calls.clear()
    jax.grad(lambda w: compiled(lambda x: nested(6, w * x), X).sum())(2.0)
    assert len(calls) == 2


def test_effects_take_place_at_every_call(capfd):
    def seen(x):
        jax.debug.print("seen {}", x[0, 0])
        return -x

    for _ in range(3):
        samplers.langevin(seen, X, KEY, step_size=0.1, num_steps=1)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("seen") == 3


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_many_calls_keep_nothing(wrap):
    def live():
        gc.collect()
        kinds = jax.extend.core.Jaxpr, jax.extend.core.JaxprEqn, jax.Array
        return sum(isinstance(item, kinds) for item in gc.get_objects()), len(jax.live_arrays())

    def sample(i):
        weights = jnp.full((64, 64), float(i))
        score_fn = wrap(lambda x: -(x @ weights[:2]) @ weights[:, :2])
        samplers.langevin(score_fn, X, KEY, step_size=0.1, num_steps=2)
        return weakref.ref(weights)

    arrays = [sample(0)]
    before = live()
    arrays += [sample(i) for i in range(50)]
    after = live()
    assert after[0] <= before[0] + 5, (before, after)
    assert after[1] <= before[1] + 2, (before, after)
    assert all(array() is None for array in arrays)
