"""The losses of one noise level: closed forms, identities between them, minimizers, contracts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sm_jax import losses
from sm_jax.divergence import hutchinson, hutchpp, sphere
from sm_jax.parameterization import EnergyScore
from tests.oracles import (
    COV,
    MEAN,
    A,
    assert_mean,
    b,
    gaussian_score,
    jacobians,
    linear_score,
    nonlinear_score,
    sign_cube,
)

LOSSES = {
    "implicit": losses.implicit,
    "implicit hutchinson": partial(losses.implicit, divergence=hutchinson),
    "implicit hutch++": partial(losses.implicit, divergence=partial(hutchpp, num_products=3)),
    "sliced": losses.sliced,
    "sliced plain": partial(losses.sliced, variance_reduced=False, num_probes=2),
    "finite differences": partial(losses.finite_difference_sliced, epsilon=0.01),
    "denoising": partial(losses.denoising, sigma=0.3),
    "denoising control variate": partial(losses.denoising, sigma=0.3, control_variate=True),
    "second order": partial(losses.second_order_denoising, sigma=0.3),
    "second order trace": partial(losses.second_order_denoising_trace, sigma=0.3),
}
each_loss = pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES.keys())


def half_square(v):
    return 0.5 * np.sum(np.asarray(v, np.float64) ** 2, axis=-1)


def fixed(value):
    """A source of randomness that always returns one array."""
    return lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(value, dtype), shape)


@pytest.fixture
def x(getkey):
    return jax.random.normal(getkey(), (5, 3))


def test_explicit(x):
    target = -0.5 * x
    expected = half_square(linear_score(x) - target)
    np.testing.assert_allclose(losses.explicit(linear_score, x, target), expected, rtol=1e-5)


def test_implicit(x):
    expected = half_square(linear_score(x)) - np.trace(A)
    np.testing.assert_allclose(losses.implicit(linear_score, x), expected, rtol=1e-5, atol=1e-5)


def test_implicit_is_explicit_up_to_a_constant(getkey):
    """The gradients in the parameters agree in the mean over data, here per example pair."""
    x = jax.random.multivariate_normal(getkey(), jnp.array(MEAN), jnp.array(COV), (40_000,))
    target = gaussian_score(x, MEAN, COV)

    def gradient(loss_fn):  # per example, in the scale of a nonlinear score
        return jax.jvp(lambda c: loss_fn(lambda x: c * jnp.tanh(x @ A.T)), (1.0,), (1.0,))[1]

    implicit = gradient(lambda score_fn: losses.implicit(score_fn, x))
    explicit = gradient(lambda score_fn: losses.explicit(score_fn, x, target))
    assert_mean(implicit - explicit, 0.0)
    assert abs(float(implicit.mean())) > 0.1


@pytest.mark.parametrize("variance_reduced", [True, False])
def test_sliced(x, getkey, variance_reduced):
    v = jax.random.normal(getkey(), x.shape)
    value = losses.sliced(
        nonlinear_score, x, getkey(), probe=lambda *_: v, variance_reduced=variance_reduced
    )
    score = nonlinear_score(x)
    square = half_square(score) if variance_reduced else 0.5 * np.sum(v * score, axis=1) ** 2
    form = jnp.einsum("bi,bij,bj->b", v, jacobians(nonlinear_score, x), v)
    np.testing.assert_allclose(value, form + square, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variance_reduced", [True, False])
@pytest.mark.parametrize(
    "loss_fn", [losses.sliced, partial(losses.finite_difference_sliced, epsilon=1e-2)]
)
def test_sliced_over_the_sign_cube_is_implicit(x, getkey, loss_fn, variance_reduced):
    """Exactly: the mean of v v' over all sign vectors is the identity."""
    values = [
        loss_fn(linear_score, x, getkey(), probe=fixed(v[None]), variance_reduced=variance_reduced)
        for v in sign_cube(3)
    ]
    expected = losses.implicit(linear_score, x)
    np.testing.assert_allclose(np.mean(values, axis=0), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variance_reduced", [True, False])
def test_several_probes_are_averaged(x, getkey, variance_reduced):
    options = dict(probe=jax.random.normal, variance_reduced=variance_reduced)
    key = getkey()
    keys = jax.random.split(key, 5)
    for loss_fn in (losses.sliced, partial(losses.finite_difference_sliced, epsilon=0.1)):
        together = loss_fn(nonlinear_score, x, key, num_probes=5, **options)
        alone = [
            loss_fn(
                nonlinear_score,
                x,
                key,
                probe=lambda *_, k=k: jax.random.normal(k, x.shape),
                variance_reduced=variance_reduced,
            )
            for k in keys
        ]
        np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=1e-3, atol=1e-4)


def test_finite_differences_converge_to_the_sliced_loss_at_second_order(x, getkey):
    with jax.enable_x64(True):
        x, key = jnp.asarray(np.asarray(x), jnp.float64), getkey()
        exact = losses.sliced(nonlinear_score, x, key)
        errors = [
            jnp.abs(
                losses.finite_difference_sliced(nonlinear_score, x, key, epsilon=h) - exact
            ).max()
            for h in (0.04, 0.02)
        ]
        assert 3.8 < errors[0] / errors[1] < 4.2
        assert errors[1] < 1e-2


@pytest.mark.parametrize("probe", [jax.random.rademacher, jax.random.normal])
def test_finite_differences_of_a_linear_score_are_exact(x, getkey, probe):
    key, step = getkey(), 0.5
    value = losses.finite_difference_sliced(linear_score, x, key, epsilon=step, probe=probe)
    expected = losses.sliced(linear_score, x, key, probe=probe)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probe", [jax.random.rademacher, jax.random.normal, sphere])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize(("mean", "dtype"), [(1e5, "float32"), (-1e3, "float32"), (10, "bfloat16")])
def test_finite_differences_divide_by_the_distance_moved(mean, dtype, epsilon, probe, getkey):
    """At 1e5 float32 has a spacing of 0.008, bfloat16 at 10 one of 0.06: more than most steps."""
    x = (mean + jax.random.normal(getkey(), (64, 40))).astype(dtype)
    v = probe(getkey(), x.shape, x.dtype)

    def score_fn(x):  # of N(mean, 2 I), exact in float32
        return (-0.5 * (x.astype(jnp.float32) - mean)).astype(x.dtype)

    value = losses.finite_difference_sliced(
        score_fn, x, getkey(), epsilon=epsilon, probe=lambda *_: v
    )
    v, x = np.asarray(v, np.float64), np.asarray(x, np.float64)
    trace = value - half_square(0.5 * (x - mean))
    # Scores below 2 are rounded by 2^-8 at most in bfloat16; the points are moved by 2^-4 at least
    # where v = 1. Errors of 40 numbers add as roots.
    rounding = 4 * np.sqrt(40) * 2**-8 / 2**-4 if dtype == "bfloat16" else 1e-3
    np.testing.assert_allclose(trace, -0.5 * (v**2).sum(1), rtol=0, atol=rounding)


def test_finite_differences_at_an_offset_have_the_gradient_of_the_implicit_loss(getkey):
    """In a parameter, in the mean over probes, where off-diagonal terms are there too."""
    mean = 1e5
    x = mean + jax.random.normal(getkey(), (4_000, 3))

    def slopes(loss_fn):
        def value(c):
            return loss_fn(lambda x: -c * (x - mean) @ A.T, x, jax.random.key(7))

        return np.asarray(jax.jvp(value, (1.0,), (1.0,))[1])

    error = slopes(partial(losses.finite_difference_sliced, epsilon=0.01)) - slopes(losses.implicit)
    assert_mean(error, 0.0)
    assert 0.1 < error.std() < 4.0  # the trace is 4.4, and its share would be missed


def in_both_precisions(function, x):
    """The difference of a function in float32 from the same in float64, at the same points."""
    low = function(x)
    with jax.enable_x64(True):
        return np.asarray(low, np.float64) - np.asarray(function(np.asarray(x, np.float64)))


@pytest.mark.parametrize("h", [1e-3, 3e-3])
def test_rounding_of_differences_of_scores_is_as_stated(h, getkey):
    """``eps |s| / (6 h)``, within a factor of 1.5."""
    x = 0.1 * jax.random.normal(getkey(), (2_000, 64))
    v = np.where(np.random.default_rng(0).random(x.shape) < 0.5, -1.0, 1.0)
    center = np.linspace(1.0, 4.0, 64)[None]

    def value(x):
        return losses.finite_difference_sliced(
            lambda x: center.astype(x.dtype) - x,
            x,
            jax.random.key(0),
            epsilon=h,
            probe=lambda *_: v.astype(x.dtype),
        )

    error = in_both_precisions(value, x).std()
    stated = jnp.finfo(jnp.float32).eps * np.linalg.norm(center) / (6 * h)
    assert 1 / 1.5 < error / stated < 1.5


@pytest.mark.parametrize("h", [0.03, 0.1])
def test_rounding_of_differences_of_energies_is_as_stated(h, getkey):
    """``eps |E| / (2 h^2)``, within a factor of 1.5."""
    x = 0.1 * jax.random.normal(getkey(), (2_000, 64))
    v = np.where(np.random.default_rng(0).random(x.shape) < 0.5, -1.0, 1.0)

    def value(x):
        shift = np.linspace(600.0, 1400.0, len(x)).astype(x.dtype)
        return losses.finite_difference_sliced(
            EnergyScore(lambda x: shift + 0.5 * (x**2).sum(-1)),
            x,
            jax.random.key(0),
            epsilon=h,
            probe=lambda *_: v.astype(x.dtype),
            variance_reduced=False,
        )

    error = in_both_precisions(value, x).std()
    stated = jnp.finfo(jnp.float32).eps * 1000.0 / (2 * h**2)
    assert 1 / 1.5 < error / stated < 1.5


def counted(energy_fn, calls):
    def count(x):
        calls.append(x)
        return energy_fn(x)

    return count


@pytest.mark.parametrize("probe", [jax.random.rademacher, jax.random.normal])
def test_three_energies_are_the_plain_sliced_loss(probe, getkey):
    """Value and gradient: exact for a quadratic energy, and of second order in the step else."""
    with jax.enable_x64(True):
        x, key = jax.random.normal(getkey(), (5, 3), jnp.float64), getkey()

        def energy_of(theta, quartic):
            return lambda x: jnp.einsum("bi,ij,bj->b", x, theta, x) + quartic * (x**4).sum(-1)

        def value(loss_fn, theta, quartic=0.0):
            score_fn = EnergyScore(energy_of(theta, quartic))
            return loss_fn(score_fn, x, key, probe=probe, num_probes=2, variance_reduced=False)

        def both(loss_fn, quartic=0.0):
            mean = lambda theta: value(loss_fn, theta, quartic).sum()  # noqa: E731
            return jax.value_and_grad(mean)(jnp.asarray(A, jnp.float64))

        def differences(h):
            return partial(losses.finite_difference_sliced, epsilon=h)

        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-9),
            both(differences(0.1)),
            both(losses.sliced),
        )
        errors = [
            jax.tree.map(jnp.subtract, both(differences(h), 0.3), both(losses.sliced, 0.3))
            for h in (0.02, 0.01)
        ]
        for coarse, fine in zip(*errors, strict=True):
            np.testing.assert_allclose(coarse, 4 * fine, rtol=0.02)


def test_energies_are_evaluated_as_often_as_stated(getkey):
    """One for the examples and two for each probe, and no gradient; else two scores for each."""
    x, calls = jax.random.normal(getkey(), (5, 3)), []
    score_fn = EnergyScore(counted(lambda x: (x**4).sum(-1), calls))
    options = dict(epsilon=0.1, num_probes=3)
    losses.finite_difference_sliced(score_fn, x, getkey(), variance_reduced=False, **options)
    assert len(calls) == 1 + 2 * 3
    assert not any(isinstance(y, jax.core.Tracer) for y in calls)
    losses.finite_difference_sliced(score_fn, x, getkey(), **options)
    assert len(calls) == 7 + 2 * 3
    calls.clear()
    losses.finite_difference_sliced(
        score_fn, x.astype(jnp.bfloat16), getkey(), variance_reduced=False, **options
    )
    assert len(calls) == 2 * 3


def test_energies_whose_points_hardly_move_are_refused(getkey):
    score_fn = EnergyScore(lambda x: 0.5 * (x**2).sum(-1))
    loss_fn = partial(losses.finite_difference_sliced, score_fn, key=getkey(), epsilon=0.01)
    with pytest.raises(
        ValueError, match=r"epsilon, 0.01, must be at least 64 times.*near x, 0.0078"
    ):
        loss_fn(x=jnp.full((2, 3), 1e5), variance_reduced=False)
    loss_fn(x=jnp.full((2, 3), 1e5))
    loss_fn(x=jnp.full((2, 3), 1e3), variance_reduced=False)


def test_energies_at_the_smallest_step_that_is_taken(getkey):
    """The distance moved along an axis is within 1/128 of the step: its square within 1.6 %."""
    precision, mean = jnp.array([10.0, 0.1, 0.1]), jnp.array([78643.2, 0.0, 0.0])
    score_fn = EnergyScore(
        lambda x: 0.5 * jnp.sum(precision[None] * (x - mean[None]) ** 2, axis=-1)
    )
    x, key = (
        mean[None] + jax.random.normal(getkey(), (2_000, 3)) / jnp.sqrt(precision)[None],
        getkey(),
    )
    options = {"num_probes": 4, "variance_reduced": False}
    value = losses.finite_difference_sliced(score_fn, x, key, epsilon=0.5, **options)
    exact = losses.sliced(score_fn, x, key, **options)
    # The loss is -10.2 + 1/2 E (v's)^2 = -5.1; each of the two terms is off by at most 1.6 %.
    assert abs((value - exact).mean()) < 0.016 * (10.2 + 5.1)


def test_denoising(x, getkey):
    z = jax.random.normal(getkey(), x.shape)
    sigma = jnp.array([0.1, 0.5, 1.0, 2.0, 5.0])
    value = losses.denoising(nonlinear_score, x, getkey(), sigma=sigma, noise=lambda *_: z)
    residual = sigma[:, None] * nonlinear_score(x + sigma[:, None] * z) + z
    np.testing.assert_allclose(value, half_square(residual), rtol=1e-5)
    controlled = losses.denoising(
        nonlinear_score, x, getkey(), sigma=sigma, noise=lambda *_: z, control_variate=True
    )
    correction = np.sum(z * sigma[:, None] * nonlinear_score(x), axis=1) + half_square(z) - 1.5
    np.testing.assert_allclose(controlled, half_square(residual) - correction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("control_variate", [False, True])
def test_denoising_is_explicit_on_the_smoothed_density(getkey, control_variate):
    """Value: sigma^2 times the Fisher divergence to N(m, C + sigma^2 I), plus a known constant."""
    sigma, n = 0.7, 100_000
    x = jax.random.multivariate_normal(getkey(), jnp.array(MEAN), jnp.array(COV), (n,))
    smooth = COV + sigma**2 * np.eye(3, dtype=np.float32)
    value = losses.denoising(
        linear_score, x, getkey(), sigma=sigma, control_variate=control_variate
    )
    # E 1/2 |s - s*|^2 for s = b - A y, s* = -P (y - m), y ~ N(m, smooth)
    precision = np.linalg.inv(smooth)
    shift = b - A @ MEAN
    fisher = 0.5 * (shift @ shift + np.trace((precision - A) @ smooth @ (precision - A).T))
    # E 1/2 |z|^2 - sigma^2 E 1/2 |s*|^2
    constant = 0.5 * 3 - 0.5 * sigma**2 * np.trace(precision)
    assert_mean(value, sigma**2 * fisher + constant)


def test_the_control_variate_bounds_the_variance_of_the_gradient(getkey):
    """Without it the variance relative to sigma^2 grows as 1 / sigma^2; with it, it does not."""
    x = jax.random.multivariate_normal(getkey(), jnp.array(MEAN), jnp.array(COV), (20_000,))
    key = getkey()

    def deviation(sigma, control_variate):
        def loss_fn(c):
            return losses.denoising(
                lambda x: c * jnp.tanh(x @ A.T),
                x,
                key,
                sigma=sigma,
                control_variate=control_variate,
            )

        slope = jax.jvp(loss_fn, (1.0,), (1.0,))[1] / sigma**2
        return float(slope.std())

    assert deviation(1e-3, False) > 8 * deviation(1e-2, False)
    assert deviation(1e-3, True) < 1.2 * deviation(1e-2, True)
    assert deviation(1e-3, True) < deviation(1e-3, False) / 50


def test_the_control_variate_does_not_cancel_in_float32(getkey):
    """Its value, of order sigma^2 around d / 2, has the rounding of that number alone."""
    sigma, d = 1e-3, 200
    x, z = jax.random.normal(getkey(), (2, 50, d))

    def value(x, z):
        return losses.denoising(
            lambda x: -x, x, getkey(), sigma=sigma, noise=lambda *_: z, control_variate=True
        )

    low = value(x, z)
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
    exact = 0.5 * sigma**2 * ((x + sigma * z) ** 2).sum(1) - sigma**2 * (z**2).sum(1) + 0.5 * d
    np.testing.assert_allclose(low, exact, rtol=0, atol=1.01 * np.spacing(np.float32(100.0)))


NARROW = {jnp.bfloat16: 0.0625, jnp.float16: 0.0078125, jnp.float32: 2**-20}  # spacings at 12
DENOISING = [
    losses.denoising,
    partial(losses.denoising, control_variate=True),
    losses.second_order_denoising,
    losses.second_order_denoising_trace,
]


@pytest.mark.parametrize("dtype", NARROW)
def test_noise_below_the_spacing_of_the_data_is_refused(dtype, getkey):
    x = jnp.full((2, 3), 12.0, dtype).at[1].set(0.1)
    spacing, key = NARROW[dtype], getkey()
    assert float(x[0, 0] + jnp.asarray(spacing, dtype)) == 12.0 + spacing
    for loss_fn in DENOISING:
        message = rf"sigma is {0.49 * spacing:.3g}, below half the spacing.*up to {spacing:.3g}"
        with pytest.raises(ValueError, match=message):
            loss_fn(lambda x: -x, x, key, sigma=0.49 * spacing)
    run = partial(losses.denoising, lambda x: -x)
    run(x, key, sigma=0.51 * spacing)
    run(x, key, sigma=jnp.array([0.51, 0.01]) * spacing)  # row by row
    jax.jit(lambda x: run(x, key, sigma=1e-3 * spacing))(x)  # not seen where x is traced


@pytest.mark.parametrize(("part", "expected"), [(1.0, 1.0), (0.5, 0.986), (0.25, 0.432)])
def test_the_score_learned_from_noise_of_half_a_spacing(part, expected, getkey):
    """The best multiple of the score of bfloat16 data: that of the docstring, in closed form.

    Rounding is written out, because XLA may keep what is to be rounded in float32.
    """
    n, sigma = 100_000, part * 0.0625
    z = jax.random.normal(getkey(), (n, 1))

    def rounded(x):
        return jax.lax.reduce_precision(x, 8, 7)

    x = rounded(12.0 + jax.random.normal(getkey(), (n, 1)))

    def loss(c):
        return losses.denoising(
            lambda y: -c * (rounded(y) - 12.0),
            x,
            getkey(),
            sigma=sigma,
            noise=lambda *_: z,
            control_variate=True,
        ).mean()

    best = -jax.grad(loss)(0.0) / jax.hessian(loss)(0.0)
    steps = np.arange(1, 200) - 0.5  # E[z round(sigma z)] in spacings, by parts: a sum of densities
    assert (
        abs(2 * np.exp(-0.5 * (steps / part) ** 2).sum() / np.sqrt(2 * np.pi) / part - expected)
        < 1e-3
    )
    assert abs(best - expected) < 0.003 + 4.5 * np.sqrt(2 / n) / np.sqrt(part)


def linear_minimizer(loss_fn, num_parameters=12):
    """The minimizer of a loss that is quadratic in the parameters (A, b) of a linear score."""

    def mean_loss(theta):
        matrix, shift = theta[:9].reshape(3, 3), theta[9:]
        return loss_fn(lambda x: shift[None] - x @ matrix.T).mean()

    start = jnp.zeros(num_parameters)
    gradient, hessian = jax.grad(mean_loss)(start), jax.hessian(mean_loss)(start)
    theta = jnp.linalg.solve(hessian, -gradient)
    return theta[:9].reshape(3, 3), theta[9:]


@pytest.mark.parametrize("name", ["implicit", "sliced", "sliced plain", "finite differences"])
def test_the_best_linear_score_is_the_precision_of_the_data(name, getkey):
    """Exactly, on a finite sample: the loss in expectation over probes has that minimizer."""
    x = jax.random.multivariate_normal(getkey(), jnp.array(MEAN), jnp.array(COV), (400,))
    mean, cov = np.mean(x, axis=0), np.cov(np.asarray(x).T, bias=True)
    loss_fn = {
        "implicit": losses.implicit,
        "sliced": losses.sliced,
        "sliced plain": partial(losses.sliced, variance_reduced=False),
        "finite differences": partial(losses.finite_difference_sliced, epsilon=0.3),
    }[name]
    key = getkey()

    def over_cube(score_fn):
        if name == "implicit":
            return loss_fn(score_fn, x)
        cube = sign_cube(3)[:4]  # v and -v agree
        return jnp.stack([loss_fn(score_fn, x, key, probe=fixed(v[None])) for v in cube]).mean(0)

    matrix, shift = linear_minimizer(over_cube)
    np.testing.assert_allclose(matrix, np.linalg.inv(cov), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(shift, np.linalg.inv(cov) @ mean, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("control_variate", [False, True])
def test_the_best_linear_denoiser_is_the_precision_of_the_smoothed_data(getkey, control_variate):
    sigma, n = 0.5, 200_000
    x = jax.random.multivariate_normal(getkey(), jnp.array(MEAN), jnp.array(COV), (n,))
    matrix, shift = linear_minimizer(
        partial(
            losses.denoising,
            x=x,
            key=getkey(),
            sigma=sigma,
            control_variate=control_variate,
        )
    )
    precision = np.linalg.inv(COV + sigma**2 * np.eye(3))
    # errors of a regression on n points: noise / (sigma sqrt(n)), times a few
    tolerance = 6 * np.sqrt(np.linalg.norm(precision) / n) / sigma
    np.testing.assert_allclose(matrix, precision, atol=tolerance)
    np.testing.assert_allclose(shift, precision @ MEAN, atol=tolerance)


def test_second_order_denoising(x, getkey):
    z, v = jax.random.normal(getkey(), (2, *x.shape))
    sigma = jnp.array([0.1, 0.5, 1.0, 2.0, 0.7])
    noised = x + sigma[:, None] * z
    residual = sigma[:, None] * nonlinear_score(noised) + z
    scaled = sigma[:, None, None] ** 2 * jacobians(nonlinear_score, noised)
    matrix = scaled + jnp.eye(3)[None] - residual[:, :, None] * residual[:, None, :]
    value = losses.second_order_denoising(
        nonlinear_score, x, getkey(), sigma=sigma, noise=lambda *_: z, probe=lambda *_: v
    )
    expected = half_square(jnp.einsum("bij,bj->bi", matrix, v))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    whole = losses.second_order_denoising_trace(
        nonlinear_score, x, getkey(), sigma=sigma, noise=lambda *_: z
    )
    np.testing.assert_allclose(whole, 0.5 * jnp.einsum("bii->b", matrix) ** 2, rtol=1e-4)
    cube = [
        losses.second_order_denoising(
            nonlinear_score, x, getkey(), sigma=sigma, noise=lambda *_: z, probe=fixed(v[None])
        )
        for v in sign_cube(3)
    ]
    frobenius = 0.5 * jnp.sum(matrix**2, axis=(1, 2))
    np.testing.assert_allclose(np.mean(cube, axis=0), frobenius, rtol=1e-4)


@pytest.mark.parametrize("carried", [False, True])
def test_every_term_of_the_second_order_trace_goes_through_the_probe(x, getkey, carried):
    """``1/2 (v' M v)^2``, also for the score of an energy, and in several probes."""
    z, v = jax.random.normal(getkey(), (2, *x.shape))
    score_fn = EnergyScore(lambda x: jnp.cosh(x @ A).sum(-1)) if carried else nonlinear_score
    noised = x + 0.5 * z
    residual = 0.5 * score_fn(noised) + z
    outer = residual[:, :, None] * residual[:, None, :]
    matrix = 0.25 * jacobians(score_fn, noised) + jnp.eye(3)[None] - outer
    for num in (1, 4):
        value = losses.second_order_denoising_trace(
            score_fn,
            x,
            getkey(),
            sigma=0.5,
            noise=lambda *_: z,
            divergence=partial(hutchinson, probe=lambda *_: v, num_probes=num),
        )
        form = jnp.einsum("bi,bij,bj->b", v, matrix, v)
        np.testing.assert_allclose(value, 0.5 * form**2, rtol=1e-3, atol=1e-3)
    whole = losses.second_order_denoising_trace(
        score_fn, x, getkey(), sigma=0.5, noise=lambda *_: z
    )
    expected = 0.5 * jnp.einsum("bii->b", matrix) ** 2
    np.testing.assert_allclose(whole, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "loss_fn",
    [
        losses.second_order_denoising,
        partial(losses.second_order_denoising_trace, divergence=hutchinson),
        partial(
            losses.second_order_denoising_trace,
            divergence=partial(hutchinson, num_probes=2, probe=jax.random.normal),
        ),
    ],
)
def test_the_best_jacobian_of_second_order_denoising_is_that_of_the_smoothed_data(loss_fn, getkey):
    """Of a Gaussian of correlation 0.8 under noise of 1: (.595, -.238), not (.498, -.001)."""
    n, cov = 100_000, jnp.array([[1.0, 0.8], [0.8, 1.0]])
    x = jax.random.multivariate_normal(getkey(), jnp.zeros(2), cov, (n,))
    precision, key = np.linalg.inv(np.asarray(cov) + np.eye(2)), getkey()

    def loss(theta):  # the score is the true one, its Jacobian that of theta
        matrix = jnp.array([[theta[0], theta[1]], [theta[1], theta[0]]])

        def score_fn(y):
            return jax.lax.stop_gradient(y @ (matrix - precision)) - y @ matrix

        return loss_fn(score_fn, x, key, sigma=1.0)

    start = jnp.zeros(2)
    hessian = jax.hessian(lambda theta: loss(theta).mean())(start)
    slopes = jax.jacfwd(loss)(jnp.array(precision[0]))
    error = np.linalg.solve(np.asarray(hessian, np.float64), np.asarray(slopes, np.float64).T)
    assert_mean(error.T, 0.0)  # the distance of the minimum from the truth
    assert error.std(axis=1).max() / np.sqrt(n) < 0.01


def test_hutchpp_is_refused_where_it_moves_the_minimum(x, getkey):
    for divergence in (hutchpp, partial(hutchpp, num_products=3)):
        with pytest.raises(ValueError, match="chooses its probes by the score"):
            losses.second_order_denoising_trace(
                linear_score, x, getkey(), sigma=1.0, divergence=divergence
            )


def test_several_probes_of_second_order_denoising_are_averaged(x, getkey):
    """Three probes that are the same give the loss of one; that they differ, test_keys shows."""
    options = dict(sigma=0.7, noise=lambda *_: 0.5 * x, probe=lambda *_: 2.0 * x)
    one, three = (
        losses.second_order_denoising(nonlinear_score, x, getkey(), num_probes=n, **options)
        for n in (1, 3)
    )
    np.testing.assert_allclose(three, one, rtol=1e-5)


@pytest.mark.parametrize(
    "loss_fn", [losses.second_order_denoising, losses.second_order_denoising_trace]
)
def test_second_order_denoising_is_stationary_at_the_true_score(getkey, loss_fn):
    """Its gradient in a perturbation of the Jacobian is zero there, and not elsewhere."""
    sigma = 0.6
    x = jax.random.multivariate_normal(getkey(), jnp.array(MEAN), jnp.array(COV), (50_000,))
    smooth = COV + sigma**2 * np.eye(3, dtype=np.float32)
    key = getkey()

    def slope(size):
        def value(c):
            return loss_fn(
                lambda y: size * gaussian_score(y, MEAN, smooth) + c * jnp.sin(y),
                x,
                key,
                sigma=sigma,
            )

        return np.asarray(jax.jvp(value, (0.0,), (1.0,))[1])

    assert_mean(slope(1.0), 0.0)
    wrong = slope(2.0)
    assert abs(wrong.mean()) > 20 * wrong.std() / np.sqrt(len(wrong))


def test_second_order_residual_is_a_constant(x, getkey):
    """A shift of the score moves the residual, but no gradient flows through it."""

    def value(c):
        return losses.second_order_denoising(
            lambda y: -y + c, x, getkey(), sigma=0.5, noise=fixed(0.3)
        ).sum()

    assert jax.grad(value)(0.1) == 0.0


@pytest.mark.parametrize(
    # the others hold a part of the loss constant under differentiation, on purpose
    "name",
    [n for n in LOSSES if not n.startswith(("second order", "implicit hutch++"))],
)
def test_gradients_against_differences(name, getkey):
    with jax.enable_x64(True):
        x = jax.random.normal(getkey(), (3, 2), jnp.float64)
        w = jax.random.normal(getkey(), (2, 2), jnp.float64)
        key = getkey()

        @jax.jit
        def value(w):
            return LOSSES[name](lambda x: jnp.tanh(x @ w) - x @ w, x, key).sum()

        check_grads(value, (w,), order=1, modes=["rev"], rtol=1e-5)


EQUIVARIANT = {  # name: (loss of a step or noise in units of the data, power of 1 / scale)
    "implicit": (lambda unit: losses.implicit, 2),
    "implicit hutchinson": (lambda unit: partial(losses.implicit, divergence=hutchinson), 2),
    "sliced": (lambda unit: partial(losses.sliced, num_probes=5), 2),
    "differences": (
        lambda unit: partial(losses.finite_difference_sliced, epsilon=unit / 8, num_probes=2),
        2,
    ),
    "differences of energies": (
        lambda unit: partial(
            losses.finite_difference_sliced, epsilon=unit / 8, variance_reduced=False
        ),
        2,
    ),
    "denoising": (lambda unit: partial(losses.denoising, sigma=unit / 4), 0),
    "control variate": (
        lambda unit: partial(losses.denoising, sigma=unit / 4, control_variate=True),
        0,
    ),
    "second order": (lambda unit: partial(losses.second_order_denoising, sigma=unit / 4), 0),
    "second order trace": (
        lambda unit: partial(losses.second_order_denoising_trace, sigma=unit / 4),
        0,
    ),
}


@pytest.mark.parametrize("shape", [(1,), (2, 2, 2, 1)])
@pytest.mark.parametrize("name", EQUIVARIANT)
def test_losses_and_gradients_are_scale_free(name, shape, getkey):
    """Data of scale 1e-8 and 1e8 have those of scale 1, up to the powers of the units."""
    make, power = EQUIVARIANT[name]
    x, key = jax.random.normal(getkey(), shape), getkey()

    @partial(jax.jit, static_argnums=1)
    def both(x, scale):
        def value(c):
            def energy_fn(y):
                u = (y / scale).reshape(len(y), -1)
                return c * (u**4 / 4 + u**2 / 2).sum(-1) + (u * jnp.roll(u, 1, 1)).sum(-1)

            return make(scale)(EnergyScore(energy_fn), x, key)

        return jax.jvp(value, (1.5,), (1.0,))

    value, slope = both(x, 1.0)
    for scale in (2.0**-27, 2.0**27):
        other, other_slope = both(scale * x, scale)
        np.testing.assert_allclose(other * scale**power, value, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(other_slope * scale**power, slope, rtol=1e-5, atol=1e-5)
    assert np.all(np.isfinite(value))


@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize(
    "name", [name for name in EQUIVARIANT if name != "differences of energies"]
)
def test_losses_and_gradients_at_an_offset(name, offset, getkey):
    """Against float64 at the same points: off by the rounding of the points moved to, if any.

    That is half a spacing, times the slope of the loss, whose numbers are of order 1 here.
    """
    make, _ = EQUIVARIANT[name]
    spacing = float(np.spacing(np.float32(offset)))
    unit = 16 * spacing if offset > 1e5 else 1.0
    x = offset + unit * jax.random.normal(getkey(), (6, 3))
    z = np.asarray(jax.random.normal(getkey(), x.shape))
    sources = {"noise": lambda *_: z, "probe": lambda *_: np.sign(z)}
    loss_fn = make(unit)
    names = getattr(loss_fn, "func", loss_fn).__kwdefaults__
    loss_fn = partial(loss_fn, **{k: v for k, v in sources.items() if k in names})
    if name == "implicit hutchinson":
        loss_fn = partial(losses.implicit, divergence=partial(hutchinson, probe=sources["probe"]))

    def both(x):
        def value(c):
            return loss_fn(lambda y: (-c * jnp.tanh((y - offset) / unit)).astype(y.dtype) / unit, x)

        return jax.jvp(lambda c: value(c) * unit ** EQUIVARIANT[name][1], (1.5,), (1.0,))

    loss_fn = partial(loss_fn, key=getkey())
    low = both(x)
    with jax.enable_x64(True):
        z = z.astype(np.float64)
        exact = both(jnp.asarray(np.asarray(x, np.float64)))
    moved = "implicit" not in name and name != "sliced"
    tolerance = 1e-5 + (4 * np.sqrt(3) * spacing / unit if moved else 0.0)
    for ours, theirs in zip(low, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def _event_score(x):
    """A score of events of any rank that mixes the numbers of an event."""
    flat = x.reshape(len(x), -1)
    mixed = jnp.tanh(flat + 0.5 * jnp.roll(flat, 1, axis=1)) - flat
    return mixed.reshape(x.shape)


@each_loss
@pytest.mark.parametrize("shape", [(4,), (1, 3), (3, 3), (2, 2, 2, 1)])
def test_contract_on_shapes(loss_fn, shape, getkey):
    """[B] for any event; an image is its flattened vector; rows do not mix, also for B == D."""
    if shape == (4,) and "hutchpp" in repr(loss_fn):
        pytest.skip("one dimension has no use for a sketch and a residual: exact is one product")
    x, z = jax.random.normal(getkey(), (2, *shape))
    sources = {"noise": lambda *_: z, "probe": lambda *_: jnp.sign(z)}
    names = getattr(loss_fn, "func", loss_fn).__kwdefaults__
    loss_fn = partial(loss_fn, **{k: v for k, v in sources.items() if k in names})
    value = loss_fn(_event_score, x, getkey())
    assert value.shape == shape[:1]

    if "divergence" in names:
        return
    flat = partial(
        loss_fn,
        **{k: (lambda *_, v=v: v().reshape(len(x), -1)) for k, v in sources.items() if k in names},
    )
    np.testing.assert_allclose(
        flat(_event_score, x.reshape(len(x), -1), getkey()), value, rtol=1e-4, atol=1e-5
    )


@each_loss
def test_contract_on_compilation_dtypes_and_keys(loss_fn, getkey):
    x, key = jax.random.normal(getkey(), (6, 3)), getkey()
    traces = []

    @jax.jit
    def jitted(x, key):
        traces.append(x)
        return loss_fn(nonlinear_score, x, key)

    plain = loss_fn(nonlinear_score, x, key)
    np.testing.assert_allclose(jitted(x, key), plain, rtol=1e-3, atol=1e-4)
    other = jitted(x, getkey())
    jitted(x + 1.0, key)
    assert len(traces) == 1
    if loss_fn is not losses.implicit:
        assert np.any(np.abs(other - plain) > 1e-3)
    batched = jax.vmap(lambda k: loss_fn(nonlinear_score, x, k))(key[None])
    np.testing.assert_allclose(batched[0], plain, rtol=1e-3, atol=1e-4)
    low = loss_fn(nonlinear_score, x.astype(jnp.bfloat16), key)
    assert low.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = loss_fn(nonlinear_score, jnp.asarray(np.asarray(x), jnp.float64), key)
        assert wide.dtype == jnp.float64


@pytest.mark.parametrize(
    ("loss_fn", "expected"),
    [
        (losses.denoising, 0.5),  # E[z^2] / 2
        (losses.second_order_denoising, 1.0),  # E[(1 - z^2)^2] / 2
        (losses.second_order_denoising_trace, 1.0),
    ],
)
def test_noise_of_bfloat16_has_the_moments_of_normal_noise(loss_fn, expected, getkey):
    """Drawn in bfloat16, normal numbers have the variance 0.993, and none is above 2.9."""
    x = jnp.zeros((4_000_000, 1), jnp.bfloat16)
    assert_mean(loss_fn(lambda x: 0 * x, x, getkey(), sigma=1.0), expected)


def test_sums_of_low_precision_accumulate_in_float32():
    """256 + 1 is 256 in bfloat16: a sum kept there would lose the small terms."""
    x = jnp.concatenate([jnp.full((1, 1), 16.0), jnp.ones((1, 64))], axis=1).astype(jnp.bfloat16)
    assert losses.explicit(lambda x: x, x, jnp.zeros_like(x))[0] == 0.5 * (256 + 64)


def test_energies_and_scores_agree(x, getkey):
    """The same Gaussian as an energy and as a score gives the same losses."""
    precision = jnp.linalg.inv(COV)

    def energy_fn(x):
        centered = x - MEAN[None]
        return 0.5 * jnp.einsum("bi,ij,bj->b", centered, precision, centered)

    key = getkey()
    for loss_fn in LOSSES.values():
        np.testing.assert_allclose(
            loss_fn(EnergyScore(energy_fn), x, key),
            loss_fn(lambda x: gaussian_score(x, MEAN, COV), x, key),
            rtol=1e-2,
            atol=1e-3,
        )


def test_the_sphere_is_a_probe_of_sliced_losses(getkey):
    x = jnp.zeros((20_000, 3))
    value = losses.sliced(linear_score, x, getkey(), probe=sphere)
    assert_mean(value, half_square(b) - np.trace(A))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, k: losses.implicit(linear_score, x.astype(int)), TypeError, "int32"),
        (lambda x, k: losses.implicit(linear_score, x[:0]), ValueError, r"empty, shape \(0, 3\)"),
        (lambda x, k: losses.implicit(lambda x: x.sum(1), x), ValueError, r"\(5, 3\), got \(5,\)"),
        (
            lambda x, k: losses.denoising(lambda x: x.astype(jnp.float16), x, k, sigma=1.0),
            TypeError,
            "got float16",
        ),
        (
            lambda x, k: losses.explicit(linear_score, x, x[:2]),
            ValueError,
            r"target_score must have the shape of x, \(5, 3\), got \(2, 3\)",
        ),
        (
            lambda x, k: losses.denoising(linear_score, x, k, sigma=0.0),
            ValueError,
            "sigma must be positive",
        ),
        (
            lambda x, k: losses.denoising(linear_score, x, k, sigma=jnp.ones(3)),
            ValueError,
            r"shape \(5,\), got shape \(3,\)",
        ),
        (
            lambda x, k: losses.second_order_denoising(linear_score, x, k, sigma=-1.0),
            ValueError,
            "sigma must be positive",
        ),
        (
            lambda x, k: losses.sliced(linear_score, x, k, num_probes=0),
            ValueError,
            "num_probes must be at least 1, got 0",
        ),
        (
            lambda x, k: losses.finite_difference_sliced(linear_score, x, k, epsilon=0.0),
            ValueError,
            "epsilon must be positive",
        ),
        (
            lambda x, k: losses.finite_difference_sliced(
                EnergyScore(lambda x: jnp.sum(x**2, axis=1)),
                x,
                k,
                epsilon=jnp.array([[0.1, 1.0, 0.1]]),  # h would differ from number to number
                variance_reduced=False,
            ),
            ValueError,
            r"epsilon must be one number, got shape \(1, 3\)",
        ),
    ],
)
def test_bad_input(call, error, message, x, getkey):
    with pytest.raises(error, match=message):
        call(x, getkey())
