"""Closed-form score matching: maximum likelihood for Gaussians, truth at boundaries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sm_jax.exponential_family import fit_exponential_family
from tests.oracles import COV, MEAN

ROWS, COLUMNS = np.triu_indices(3)


def moments(x):
    """``x`` and the products ``x_i x_j``, ``i <= j``."""
    return jnp.concatenate([x, x[:, ROWS] * x[:, COLUMNS]], axis=1)


def powers(x):
    return jnp.stack([x, x**2], axis=1)


def square(x):
    return x**2


def fit64(*args, **options):
    """The fit in float64, as NumPy arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, fit_exponential_family(*args, **options))


def test_for_a_gaussian_it_is_maximum_likelihood(getkey):
    """Exactly: theta = P m and -P, P the inverse of the sample covariance (its diagonal halved)."""
    x = np.random.default_rng(1).normal(size=(17, 3)) @ np.linalg.cholesky(COV).T + MEAN
    fit = fit64(moments, x)
    precision = np.linalg.inv(np.cov(x.T, ddof=0))
    quadratic = -np.where(ROWS == COLUMNS, 0.5, 1.0) * precision[ROWS, COLUMNS]
    expected = np.concatenate([precision @ x.mean(0), quadratic])
    np.testing.assert_allclose(fit.natural_parameters, expected, rtol=1e-10)
    # J = 1/2 E|s|^2 + E[div s], at the optimum E|s|^2 = -E[div s] = tr P
    np.testing.assert_allclose(fit.objective, -0.5 * np.trace(precision), rtol=1e-10)


def test_small_data_by_hand():
    """Both matrices of the quadratic, and the sandwich, written out for T = (x, x^2)."""
    x = np.array([0.3, 0.9, 1.7, 2.2, 0.1])
    cap = 1.2
    for weight, h, slope in (
        (None, np.ones(5), np.zeros(5)),
        (square, x**2, 2 * x),
        (lambda x: jnp.minimum(x, cap), np.minimum(x, cap), 1.0 * (x < cap)),
    ):
        gradient = np.stack([np.ones(5), 2 * x])
        each_k = h * gradient[:, None] * gradient[None]
        each_b = h * np.array([[0.0], [2.0]]) + slope * gradient
        k, b = each_k.mean(-1), each_b.mean(-1)
        theta = -np.linalg.solve(k, b)
        scores = np.einsum("ijn,j->in", each_k, theta) + each_b
        inverse = np.linalg.inv(k)
        cov = inverse @ (scores @ scores.T / 5) @ inverse / 5
        fit = fit64(powers, x, weight=weight)
        np.testing.assert_allclose(fit.natural_parameters, theta, rtol=1e-9)
        np.testing.assert_allclose(fit.covariance, cov, rtol=1e-7)
        np.testing.assert_allclose(fit.standard_errors, np.sqrt(np.diag(cov)), rtol=1e-7)
        np.testing.assert_allclose(fit.objective, 0.5 * theta @ k @ theta + b @ theta, rtol=1e-9)


def cap(x):
    return jnp.minimum(x, 1.0)


N = 20_000
TRUNCATED = stats.truncnorm(-0.5, np.inf, loc=0.5, scale=1.0)  # N(0.5, 1) on x >= 0


@pytest.mark.parametrize(
    ("law", "statistics", "weight", "theta"),
    [
        (stats.expon(scale=0.5), lambda x: x[:, None], square, [-2.0]),
        (stats.expon(scale=0.5), lambda x: x[:, None], cap, [-2.0]),
        (stats.gamma(1.5, scale=0.5), lambda x: jnp.stack([jnp.log(x), x], 1), square, [0.5, -2.0]),
        (TRUNCATED, powers, square, [0.5, -0.5]),
        (TRUNCATED, powers, cap, [0.5, -0.5]),
        (
            stats.truncnorm(-1.0, 1.0, loc=0.0, scale=1.0),  # N(0, 1) on [-1, 1]
            powers,
            lambda x: 1.0 - jnp.abs(x),
            [0.0, -0.5],
        ),
    ],
    ids=[
        *("exponential-square", "exponential-cap", "gamma-square"),
        *("truncated-square", "truncated-cap", "interval"),
    ],
)
def test_known_parameters_at_a_boundary(law, statistics, weight, theta):
    """Within 4.5 standard errors, which are small; plain score matching is far outside."""
    x = law.rvs(N, random_state=np.random.default_rng(3))
    fit, plain = fit64(statistics, x, weight=weight), fit64(statistics, x)
    assert np.all(fit.standard_errors < 0.06)
    assert np.all(np.abs(fit.natural_parameters - np.array(theta)) < 4.5 * fit.standard_errors)
    wrong = np.abs(plain.natural_parameters - np.array(theta))
    assert np.max(wrong / fit.standard_errors) > 10


def test_correlated_gaussian_in_the_positive_quadrant():
    """Two dimensions, drawn by rejection; the weight acts on each coordinate."""
    mean, cov = np.array([0.3, 0.5]), np.array([[1.0, 0.6], [0.6, 0.8]])
    draws = np.random.default_rng(5).multivariate_normal(mean, cov, size=60_000)
    x = draws[(draws > 0).all(1)]
    precision = np.linalg.inv(cov)

    def statistics(x):
        cross = x[:, :1] * x[:, 1:]
        return jnp.concatenate([x, x**2, cross], axis=1)

    theta = np.concatenate([precision @ mean, -0.5 * np.diag(precision), [-precision[0, 1]]])
    fit, plain = fit64(statistics, x, weight=cap), fit64(statistics, x)
    assert np.all(np.abs(fit.natural_parameters - theta) < 4.5 * fit.standard_errors)
    assert np.all(fit.standard_errors < 0.15)
    assert np.max(np.abs(plain.natural_parameters - theta) / plain.standard_errors) > 10


def test_a_weight_may_depend_on_the_whole_row():
    """N(0, I) on the positive quadrant, and the distance to its boundary, min_j x_j."""
    x = np.abs(np.random.default_rng(6).normal(size=(N, 2)))

    def distance(x):
        return jnp.broadcast_to(x.min(axis=1, keepdims=True), x.shape)

    fit = fit64(lambda x: jnp.concatenate([x, x**2], axis=1), x, weight=distance)
    theta = np.array([0.0, 0.0, -0.5, -0.5])
    assert np.all(fit.standard_errors < 0.06)
    assert np.all(np.abs(fit.natural_parameters - theta) < 4.5 * fit.standard_errors)


def test_standard_errors_are_those_of_repetition(getkey):
    """Over 1500 data sets, under vmap: the spread of the estimates is the error that they state."""
    x = 0.5 * jax.random.exponential(getkey(), (1_500, 400))

    @jax.jit
    @jax.vmap
    def fits(x):
        fit = fit_exponential_family(lambda x: x[:, None], x, weight=square)
        return fit.natural_parameters[0], fit.standard_errors[0], fit.covariance[0, 0]

    estimates, errors, variances = map(np.asarray, fits(x))
    np.testing.assert_allclose(errors**2, variances, rtol=1e-5)
    # spread of a standard deviation: 1 / sqrt(2 N), and a tenth more for a kurtosis above 3;
    # the linearization errs by order 1 / n
    tolerance = 4.5 * 1.1 / np.sqrt(2 * 1_500) + 0.02
    assert abs(estimates.std() / np.sqrt(variances.mean()) - 1) < tolerance
    assert abs(estimates.mean() + 2.0) < 4.5 * estimates.std() / np.sqrt(1_500) + 4 / 400


def gaussian_parameters(x):
    """The maximum likelihood of ``T = (x, x^2)``, in float64."""
    x = np.asarray(x, np.float64)
    return np.array([x.mean(), -0.5]) / x.var()


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize(
    ("offset", "dtype"),
    [(0.3, "float32"), (1e3, "float32"), (-3e5, "float32"), (1e9, "float64"), (30, "bfloat16")],
)
def test_data_far_from_zero(offset, dtype, scale):
    """In float32 N(1000, 1) would have a standard deviation of 0.605; ours is that of the data.

    The derivatives of ``T`` are exact. Sums of 1,000 in float64 are rounded by about sqrt(1000)
    eps, which the smallest singular value of the slopes, about ``1 / offset``, magnifies.
    """
    x = scale * (offset + np.random.default_rng(2).normal(size=1000))
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(x, dtype)
        fit = fit_exponential_family(powers, x)
    rounding = 1e-6 + 32 * np.finfo(np.float64).eps * abs(offset)
    np.testing.assert_allclose(fit.natural_parameters, gaussian_parameters(x), rtol=rounding)
    assert fit.covariance.dtype == fit.objective.dtype == jnp.promote_types(dtype, "float32")


def test_data_too_far_from_zero_are_refused_and_nan_under_jit():
    x = (1e6 + np.random.default_rng(2).normal(size=1000)).astype(np.float32)
    with pytest.raises(ValueError, match=r"smallest eigenvalue.*, the least allowed is 2.84e-12"):
        fit_exponential_family(powers, x)
    run = jax.jit(lambda x: fit_exponential_family(powers, x).natural_parameters)
    assert np.all(np.isnan(run(x - 1e6 + 1e3)))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_more_statistics_than_numbers_are_refused(wrap):
    with pytest.raises(
        ValueError, match="2 statistics are linearly dependent over n D = 1 numbers"
    ):
        wrap(lambda x: fit_exponential_family(powers, x))(jnp.array([1.5]))


@pytest.mark.parametrize("offset", [0.0, 30.0, -300.0])
@pytest.mark.parametrize("num", [400, 40_000])
def test_under_jit_in_float32_data_may_lie_300_deviations_from_zero(num, offset):
    x = (offset + np.random.default_rng(3).normal(size=num)).astype(np.float32)
    fit = jax.jit(lambda x: fit_exponential_family(powers, x))(x)
    np.testing.assert_allclose(fit.natural_parameters, gaussian_parameters(x), rtol=1e-4, atol=1e-6)
    exact = fit_exponential_family(powers, x)
    np.testing.assert_allclose(fit.standard_errors, exact.standard_errors, rtol=0.02)
    np.testing.assert_allclose(fit.objective, exact.objective, rtol=1e-4)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e3, 1e-6), (-1e4, 1e6)])
def test_standard_errors_cover_the_truth_as_often_as_they_state(offset, scale, getkey):
    """95 % within 1.96 of them, for 2,000 sets of float32 data; and the errors have unit variance.

    The errors are asymptotic: with n = 1,000 their bias is of order 1 / sqrt(n).
    """
    x = scale * (offset + jax.random.normal(getkey(), (2_000, 1_000)))
    theta = np.array([offset / scale, -0.5 / scale**2])
    with jax.enable_x64(True):
        run = jax.jit(jax.vmap(lambda x: fit_exponential_family(powers, x)))
        fit = jax.tree.map(np.asarray, run(x))
    errors = (fit.natural_parameters - theta) / fit.standard_errors
    covered = np.mean(np.abs(errors) < 1.96, axis=0)
    np.testing.assert_allclose(covered, 0.95, atol=4.5 * np.sqrt(0.05 * 0.95 / 2_000) + 0.01)
    np.testing.assert_allclose(errors.std(axis=0), 1.0, atol=4.5 / np.sqrt(2 * 2_000) + 0.02)
    whitened = errors[:, 0] * errors[:, 1]
    stated = fit.covariance[:, 0, 1] / np.prod(fit.standard_errors, axis=1)
    np.testing.assert_allclose(whitened.mean(), stated.mean(), atol=4.5 * 1.5 / np.sqrt(2_000))


def test_events_of_any_shape_and_sizes_of_statistics(getkey):
    """Images; statistics scaled by 1e8 scale the parameters, in float32."""
    x = jax.random.normal(getkey(), (500, 2, 2, 1))

    def statistics(x):
        return jnp.stack([x.sum((1, 2, 3)), (x**2).sum((1, 2, 3))], axis=1)

    def scaled(x):
        return statistics(x) * jnp.array([[1e4, 1e-4]])

    fit = fit_exponential_family(statistics, x)
    mean = float(x.mean())
    variance = float(((x - mean) ** 2).mean())
    np.testing.assert_allclose(
        fit.natural_parameters, [mean / variance, -0.5 / variance], rtol=1e-4, atol=1e-5
    )
    other = fit_exponential_family(scaled, x).natural_parameters * jnp.array([1e4, 1e-4])
    np.testing.assert_allclose(other, fit.natural_parameters, rtol=1e-3, atol=1e-5)
    half = fit_exponential_family(statistics, x.astype(jnp.bfloat16))
    assert half.natural_parameters.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: fit_exponential_family(lambda x: x[:, 0], x),
            ValueError,
            r"\[n, K\], one row for each of the 4 examples, got shape \(4,\)",
        ),
        (
            lambda x: fit_exponential_family(lambda x: x[:1], x),
            ValueError,
            r"each of the 4 examples, got shape \(1, 2\)",
        ),
        (
            lambda x: fit_exponential_family(lambda x: jnp.concatenate([x, 0 * x + 1.0], 1), x),
            ValueError,
            r"statistics \[2, 3\] do not vary with x",
        ),
        (
            lambda x: fit_exponential_family(lambda x: jnp.concatenate([x, 2.0 * x], 1), x),
            ValueError,
            "linearly dependent over the data",
        ),
        (
            lambda x: fit_exponential_family(lambda x: x, x, weight=lambda x: x[:1]),
            ValueError,
            r"one number for each of x, shape \(4, 2\), got shape \(1, 2\)",
        ),
        (
            lambda x: fit_exponential_family(lambda x: x, x, weight=lambda x: -x),
            ValueError,
            r"weight\(x\) must be finite and not negative",
        ),
        (
            lambda x: fit_exponential_family(lambda x: x, x.astype(int)),
            TypeError,
            "floating dtype",
        ),
        (
            lambda x: fit_exponential_family(lambda x: x, x.at[2, 1].set(jnp.nan)),
            ValueError,
            r"x must be finite, rows \[2\] are not",
        ),
        (
            lambda x: fit_exponential_family(lambda x: x, x.at[1].set(jnp.inf)),
            ValueError,
            r"x must be finite, rows \[1\] are not",
        ),
        (
            lambda x: fit_exponential_family(lambda x: jnp.log(x), x - 1.0),
            ValueError,
            r"statistics \[0\] have no finite derivatives",
        ),
        (
            lambda x: fit_exponential_family(lambda x: (x > 2.0).astype(int), x),
            TypeError,
            "statistics must return a floating dtype, got int32",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.arange(1.0, 9.0).reshape(4, 2))
