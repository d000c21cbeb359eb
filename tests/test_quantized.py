"""The denoiser of quantised data against quadrature, an analytic density, and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import integrate, special

from sm_jax import data, processes, quantized
from sm_jax.densities import UniformBoxes
from tests.oracles import PROCESSES

EDGES = np.array([-1.0, -0.4, 0.1, 1.0])
LOGITS = np.array([0.3, -1.0, 0.7])


def posterior(y, r, power):
    """``E[((x_0 - y) / r)^n | y]`` by adaptive quadrature over the cells."""
    density = np.exp(LOGITS) / np.diff(EDGES)

    def integral(n):
        total = 0.0
        for k in range(3):

            def term(x):
                z = (x - y) / r
                return z**n * np.exp(-0.5 * z**2)

            inside = [p for p in (y,) if EDGES[k] < p < EDGES[k + 1]]
            total += (
                density[k]
                * integrate.quad(term, EDGES[k], EDGES[k + 1], points=inside or None, limit=200)[0]
            )
        return total

    return integral(power) / integral(0)


@pytest.mark.parametrize("name", ["VE", "VPLinear"])
@pytest.mark.parametrize("ratio", [0.05, 0.4, 3.0])
def test_noise_prediction_against_quadrature(name, ratio):
    process = PROCESSES[name]
    t = process.time_at(jnp.float32(ratio))
    y = np.array([-1.1, -0.8, -0.4, 0.0, 0.3, 0.95])
    x = float(process.alpha(t)) * jnp.array(y, jnp.float32)[:, None]
    logits = jnp.broadcast_to(jnp.array(LOGITS, jnp.float32), (6, 1, 3))
    eps = quantized.eps_from_logits(logits, x, t, process=process, bin_edges=EDGES)
    expected = [-posterior(v, ratio, 1) for v in y]
    np.testing.assert_allclose(eps[:, 0], expected, rtol=2e-4, atol=2e-5)


def test_score_is_that_of_the_noised_density(getkey):
    """Levels that are independent between numbers: the exact score of a noised box mixture."""
    process = processes.VE()
    density = UniformBoxes(
        jax.nn.log_softmax(jnp.array(LOGITS, jnp.float32)),
        jnp.array(EDGES[:-1, None], jnp.float32),
        jnp.array(EDGES[1:, None], jnp.float32),
    )
    score_fn = quantized.precondition(
        lambda x, c: jnp.broadcast_to(jnp.array(LOGITS, jnp.float32), (*x.shape, 3)),
        process=process,
        bin_edges=EDGES,
        sigma_data=0.5,
    )
    for t in (0.02, 0.3, 2.0, 30.0):
        x = density.sample(getkey(), 50)
        x, _ = processes.perturb(process, x, t, getkey())
        expected = density.noised(process, t).score(x)
        np.testing.assert_allclose(score_fn(x, t), expected, rtol=2e-3, atol=2e-3 / t)


def test_clean_prediction_stays_in_the_range_of_the_data(getkey):
    """Also where all the masses underflow."""
    y = jnp.array([-3.0, -1.001, 0.5, 1.02, 40.0])
    for ratio in (1e-3, 0.1, 5.0):
        logits = 5.0 * jax.random.normal(getkey(), (5, 17))
        eps = quantized.eps_from_logits(
            logits,
            y,
            ratio,
            process=processes.VE(sigma_min=1e-4),
            bin_edges=quantized.uniform_bin_edges(17),
        )
        clean = y - ratio * eps
        assert float(jnp.abs(clean).max()) <= 1 + 1e-4
        if ratio == 1e-3:  # far outside, the nearest edge is predicted, whatever the weights
            np.testing.assert_allclose(clean[jnp.array([0, 4])], [-1.0, 1.0], atol=ratio)


def log_space(logits, y, r, edges):
    """``E[(x_0 - y) / r | y]`` and its slopes in the logits and in ``y``, in NumPy, by logarithms.

    The cells, of one width, are cut to 20,000 parts each.
    """
    points = np.linspace(edges[:-1], edges[1:], 20_001, axis=-1)
    z = (0.5 * (points[:, 1:] + points[:, :-1]) - y) / r
    within = special.softmax(-0.5 * z**2, axis=1)
    means, squares = (within * z).sum(axis=1), (within * z**2).sum(axis=1)
    share = special.softmax(logits + special.logsumexp(-0.5 * z**2, axis=1))
    first, second = share @ means, share @ squares
    return first, share * (means - first), (second - first**2 - 1) / r


@pytest.mark.parametrize(
    ("logits", "y"),
    [
        ([0.0, 0.0, 0.0, 100.0], -0.75),  # all within reach alike, one favored far away
        ([-100.0, 0.0, 0.0, 300.0], -0.75),
        ([100.0, -100.0, 50.0, 0.0], 0.1),
        ([-60.0, 0.0, 60.0, -60.0], -0.08),  # eight noise levels away, and yet the most likely
        ([500.0, 0.0, 0.0, 0.0], 1.04),  # outside the range of the data
    ],
)
def test_spread_logits(logits, y):
    """Value and slopes against sums of logarithms, where the favored cell underflows or nearly."""
    edges = quantized.uniform_bin_edges(4)
    logits = np.array(logits)

    def eps(logits, y):
        x = y[None, None]
        return quantized.eps_from_logits(
            logits[None, None], x, 0.01, process=processes.VE(), bin_edges=edges
        )[0, 0]

    value, slopes = jax.value_and_grad(eps, (0, 1))(
        jnp.array(logits, jnp.float32), jnp.array(y, jnp.float32)
    )
    first, in_logits, in_y = log_space(logits, np.float64(np.float32(y)), 0.01, np.asarray(edges))
    np.testing.assert_allclose(value, -first, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slopes[0], -in_logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(slopes[1], -in_y, rtol=1e-3, atol=0.1)


def test_derivatives(getkey):
    """In the logits, the point and the noise level, against differences in float64."""
    with jax.enable_x64(True):
        logits = jax.random.normal(getkey(), (2, 2, 3), jnp.float64)
        x = jnp.array([[-0.9, -0.3], [0.2, 0.7]], jnp.float64)
        edges = jnp.array(EDGES)
        single = jnp.broadcast_to(jnp.array(LOGITS), (1, 1, 3))

        def eps(logits, x, t):
            return quantized.eps_from_logits(logits, x, t, process=processes.VE(), bin_edges=edges)

        for ratio in (0.3, 2.0):
            t = jnp.full(2, ratio, jnp.float64)
            check_grads(eps, (logits, x, t), order=1, modes=["fwd", "rev"], rtol=1e-6)
            # the derivative in y is that of a posterior mean: Var[x_0 | y] / r^2 - 1, over r
            slope = jax.grad(lambda v, t: eps(single, v[None, None], t).sum())(x[1, 1], t[:1])
            moments = [posterior(0.7, ratio, n) for n in (1, 2)]
            variance = moments[1] - moments[0] ** 2
            np.testing.assert_allclose(slope, -(variance - 1) / ratio, rtol=1e-6)


@pytest.mark.parametrize(
    "ratio", [0.5, pytest.param(0.01, id="cells far wider"), pytest.param(300.0, id="far narrower")]
)
def test_derivatives_by_the_edges(ratio, getkey):
    with jax.enable_x64(True):
        x = jnp.array([[0.35, -0.41, 0.99]])
        logits = jax.random.normal(getkey(), (1, 3, 3))

        def eps(logits, edges):
            return quantized.eps_from_logits(
                logits, x, ratio, process=processes.VE(1e-3, 1e3), bin_edges=edges
            )

        check_grads(eps, (logits, jnp.asarray(EDGES)), order=1, eps=1e-5 * ratio**0.5)


@pytest.mark.parametrize("edge", [-0.5, 0.0, 0.5])
def test_the_second_derivative_on_an_edge(edge):
    """It is continuous: exactly on the edge of two cells it is that right beside it."""
    with jax.enable_x64(True):
        logits, edges = (
            jnp.array([[[0.3, -0.8, 1.1, 0.2]]]),
            jnp.asarray(quantized.uniform_bin_edges(4)),
        )

        def eps(y):
            return quantized.eps_from_logits(
                logits, y[None, None], jnp.array([0.2]), process=PROCESSES["VE"], bin_edges=edges
            )[0, 0]

        second = jax.grad(jax.grad(eps))
        beside = 0.5 * (second(jnp.asarray(edge - 1e-6)) + second(jnp.asarray(edge + 1e-6)))
        np.testing.assert_allclose(second(jnp.asarray(edge)), beside, rtol=1e-6)


@pytest.mark.parametrize("num_values", [256, 65_536])
@pytest.mark.parametrize("ratio", [1.0, 50.0, 350.0])
def test_narrow_cells_in_float32(num_values, ratio):
    """A known cell of half width h at c, in noise levels: ``eps = -c (1 - h^2 / 3) + O(h^4)``.

    Differences of distribution functions would err by 0.004 at 256 levels, by 0.7 at 65,536.
    """
    rng = np.random.default_rng(0)
    cell = np.concatenate([[0, num_values - 1], rng.integers(0, num_values, size=30)])
    logits = 30.0 * (np.arange(num_values)[None] == cell[:, None])
    middle, half = 2 * (cell + 0.5) / num_values - 1, 1 / num_values
    x = jnp.asarray(middle + ratio * rng.normal(size=32), jnp.float32)

    def eps(x):
        return quantized.eps_from_logits(
            jnp.asarray(logits, jnp.float32),
            x,
            ratio,
            process=processes.VE(1e-3, 1e3),
            bin_edges=quantized.uniform_bin_edges(num_values),
        )

    value, slope = jax.jvp(eps, (x,), (jnp.ones_like(x),))
    factor = 1 - (half / ratio) ** 2 / 3
    np.testing.assert_allclose(value, (x - middle) / ratio * factor, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(slope, factor / ratio, rtol=1e-5)


def test_weights_are_probabilities_whatever_the_width_of_a_cell():
    """Far above the spread of the data, E[x_0 | y] is its mean, sum_k p_k center_k."""
    x = jnp.zeros((1, 1))
    logits = jnp.array(LOGITS, jnp.float32)[None, None]
    process = processes.VE(sigma_max=1e3)
    eps = quantized.eps_from_logits(logits, x, 20.0, process=process, bin_edges=EDGES)
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()
    mean = p @ (EDGES[1:] + EDGES[:-1]) / 2
    np.testing.assert_allclose(-20.0 * eps[0, 0], mean, atol=2e-3)
    shifted = quantized.eps_from_logits(logits + 100.0, x, 20.0, process=process, bin_edges=EDGES)
    np.testing.assert_allclose(shifted, eps, atol=1e-5)


def test_edges_are_those_of_dequantize(getkey):
    levels = jnp.arange(17.0)
    edges = quantized.uniform_bin_edges(17)
    lower = data.dequantize(levels, getkey(), num_values=17, noise=lambda k, s, d: jnp.zeros(s, d))
    np.testing.assert_allclose(edges[:-1], lower, atol=1e-6)
    assert edges[-1] == 1.0


def test_network_receives_what_edm_gives_it(getkey):
    seen = {}

    def network(x, c):
        seen.update(x=x, c=c)
        return jnp.zeros((*x.shape, 3))

    process = PROCESSES["VPLinear"]
    x, t = jax.random.normal(getkey(), (4, 2, 2)), jnp.array([0.1, 0.3, 0.6, 0.9])
    quantized.precondition(network, process=process, bin_edges=EDGES, sigma_data=0.7)(x, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    scale = jnp.sqrt(0.49 + (sigma / alpha) ** 2)
    np.testing.assert_allclose(seen["x"], x / (alpha * scale)[:, None, None], rtol=1e-5)
    np.testing.assert_allclose(seen["c"], jnp.log(sigma / alpha) / 4, rtol=1e-5)
    process, t = processes.VPLinear(beta_max=200.0), jnp.ones(4)  # a ratio of 5e21 at unit variance
    quantized.precondition(network, process=process, bin_edges=EDGES, sigma_data=0.7)(x, t)
    np.testing.assert_allclose(seen["x"], x, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantized.uniform_bin_edges(0), "num_values must be at least 1, got 0"),
        (
            lambda: quantized.precondition(
                None, process=processes.VE(), bin_edges=[0.0, 0.0], sigma_data=0.5
            ),
            "edges must increase",
        ),
        (
            lambda: quantized.precondition(
                None, process=processes.VE(), bin_edges=[0.0], sigma_data=0.5
            ),
            "at least two numbers",
        ),
        (
            lambda: quantized.precondition(
                None, process=processes.VE(), bin_edges=EDGES, sigma_data=-1.0
            ),
            "sigma_data must be positive",
        ),
        (
            lambda: quantized.precondition(
                None, process=processes.VE(), bin_edges=EDGES, sigma_data=[0.5]
            ),
            r"sigma_data must be one number, got shape \(1,\)",
        ),
        (
            lambda: quantized.precondition(
                lambda x, c: x, process=processes.VE(), bin_edges=EDGES, sigma_data=0.5
            )(jnp.ones((2, 2)), 1.0),
            r"one number per cell, \(2, 2, 3\), got \(2, 2\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integers_are_refused():
    x, logits = jnp.ones((2, 2), int), jnp.zeros((2, 2, 3))
    for call in (
        lambda: quantized.eps_from_logits(logits, x, 1.0, process=processes.VE(), bin_edges=EDGES),
        lambda: quantized.precondition(
            lambda x, c: logits, process=processes.VE(), bin_edges=EDGES, sigma_data=0.5
        )(x, 1.0),
    ):
        with pytest.raises(TypeError, match="x must have a floating dtype, got int32"):
            call()
