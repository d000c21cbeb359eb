"""The step and the loop against closed forms: one update, the average, the keys, the records."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sm_jax import training
from sm_jax.data import batch_indices
from sm_jax.training import Checkpoints, Evaluation, _batches, _dtypes, _loop

X = np.linspace(-1.0, 2.0, 22, dtype=np.float32).reshape(11, 2)


def quadratic(params, x, key):
    return 0.5 * jnp.sum((x - params[None]) ** 2, axis=-1)


def noisy(params, x, key):
    return 0.5 * jnp.sum((x + jax.random.uniform(key, x.shape) - params[None]) ** 2, axis=-1)


def cheap_indices(key, step, num_examples, batch_size):
    """A stand-in that compiles in no time; one test uses the real batches."""
    return (7 * (step * batch_size + jnp.arange(batch_size))) % num_examples


@pytest.fixture
def cheap(monkeypatch):
    monkeypatch.setattr(_batches, "batch_indices", cheap_indices)


def fit(loss_fn, params, data, **kwargs):
    defaults = {"optimizer": optax.sgd(0.1), "num_steps": 6, "batch_size": 4, "seed": 3}
    return training.fit(loss_fn, params, data, **{"progress": False, **defaults, **kwargs})


class Spiral:
    """Points ``[4, 2]`` on a spiral: a stream, every batch drawn anew from its step."""

    def at(self, step):
        t = np.random.default_rng((7, step)).uniform(size=4)
        return np.stack([t * np.cos(9 * t), t * np.sin(9 * t)], axis=1)


class Recorder(list):
    """A logger: the records by their steps."""

    def record(self, step, values):
        self.append((step, values))


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# The step


def test_one_sgd_step_by_hand(getkey):
    optimizer = optax.sgd(0.1)
    step = training.make_step(quadratic, optimizer, ema_decay=0.75, ema_warmup=False)
    params = jnp.array([1.0, 2.0])
    state = training.init(params, optimizer, getkey())
    x = jnp.array([[4.0, 2.0], [2.0, 2.0]])
    new, metrics = jax.jit(step)(state, x)
    # L = mean(9/2, 1/2), g = theta - mean(x) = (-2, 0), theta' = theta + 0.2 e_1
    np.testing.assert_allclose(metrics["loss"], 2.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(new.params, [1.2, 2.0], rtol=1e-6)
    np.testing.assert_allclose(new.ema, [1.0 + 0.25 * 0.2, 2.0], rtol=1e-6)
    assert int(new.step) == 1
    np.testing.assert_array_equal(jax.random.key_data(new.key), jax.random.key_data(state.key))


@pytest.mark.parametrize(("dtype", "slope"), [(jnp.bfloat16, 1.0), (jnp.float16, 300.0)])
def test_grad_norm_and_clipping_of_low_precision_sum_in_float32(dtype, slope, getkey):
    """In bfloat16 a sum of ones ends at 256; in float16 the square of 300 overflows."""
    optimizer = training.adamw(1.0, num_steps=1, warmup=0.0, clip_norm=slope)
    params = {str(i): jnp.zeros((), dtype) for i in range(400)}
    step = training.make_step(lambda p, x, key: sum(slope * v for v in p.values()) * x, optimizer)
    state, metrics = step(training.init(params, optimizer, getkey()), jnp.ones(2, dtype))
    np.testing.assert_allclose(metrics["grad_norm"], 20.0 * slope, rtol=1e-6)
    mu = optax.tree.get(state.opt_state, "mu")["7"]  # a tenth of slope / 20
    np.testing.assert_allclose(mu, slope / 200.0, rtol=1e-2)


def test_grad_norm_is_taken_before_clipping_and_over_all_leaves(getkey):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))

    def loss_fn(p, x, key):
        return 3.0 * p["a"] * x + 4.0 * p["b"] * x

    step = training.make_step(loss_fn, optimizer)
    state = training.init({"a": jnp.zeros(()), "b": jnp.zeros(())}, optimizer, getkey())
    state, metrics = step(state, jnp.ones(2))
    np.testing.assert_allclose(metrics["grad_norm"], 5.0, rtol=1e-6)
    np.testing.assert_allclose([state.params["a"], state.params["b"]], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 9])
@pytest.mark.parametrize(
    ("decay", "warmup"), [(0.999, True), (0.3, True), (0.9, False), (0.0, True)]
)
def test_ema_after_n_steps(decay, warmup, num_steps, getkey):
    """Theta jumps from 1 to 0 at the first step, so the average is the weight left on the start."""
    optimizer = optax.sgd(1.0)
    step = training.make_step(
        lambda p, x, key: 0.5 * (p - x) ** 2, optimizer, ema_decay=decay, ema_warmup=warmup
    )
    state = training.init(jnp.ones(()), optimizer, getkey())
    state, _ = jax.lax.scan(step, state, jnp.zeros((num_steps, 3)))
    if not warmup:
        expected = decay**num_steps
    elif decay == 0.999:
        expected = 1 / math.comb(num_steps + 9, 9)  # prod (1 + j) / (10 + j) = n! 9! / (n + 9)!
    else:  # (1 + j) / (10 + j) exceeds 0.3 from j = 3 on
        expected = math.prod(min(decay, (1 + j) / (10 + j)) for j in range(num_steps))
    np.testing.assert_allclose(state.ema, expected, rtol=1e-5, atol=1e-12)
    assert float(state.params) == 0.0


def test_ema_of_a_moving_parameter(getkey):
    """theta_n = n, so bar theta_n = n - (d + ... + d^n) = n - d (1 - d^n) / (1 - d)."""
    optimizer = optax.sgd(1.0)
    step = training.make_step(lambda p, x, k: -p * x, optimizer, ema_decay=0.9, ema_warmup=False)
    state = training.init(jnp.zeros(()), optimizer, getkey())
    state, _ = jax.lax.scan(step, state, jnp.ones((7, 2)))
    np.testing.assert_allclose(state.ema, 7 - 0.9 * (1 - 0.9**7) / 0.1, rtol=1e-5)


def test_ema_of_a_constant_is_that_constant(getkey):
    """Exactly: weights that add up to one but for rounding would drift by 1e-4."""
    optimizer = optax.sgd(0.0)
    step = training.make_step(lambda p, x, k: p * x, optimizer, ema_decay=0.9999, ema_warmup=False)
    state = training.init(jnp.array(1 / 3), optimizer, getkey())
    state, _ = jax.lax.scan(step, state, jnp.ones((5000, 1)))
    assert float(state.ema) == float(state.params)


def test_ema_of_bfloat16_is_kept_in_float32(getkey):
    optimizer = optax.sgd(1.0)
    step = training.make_step(lambda p, x, k: -p * x, optimizer, ema_decay=0.999, ema_warmup=False)
    state = training.init(jnp.ones((), jnp.bfloat16), optimizer, getkey())
    new, _ = step(state, jnp.ones(2, jnp.bfloat16))
    assert new.params.dtype == jnp.bfloat16
    assert new.ema.dtype == jnp.float32
    np.testing.assert_allclose(new.ema, 1.001, rtol=1e-6)  # bfloat16 would round to 1


def test_each_step_draws_from_its_own_key(getkey):
    key = getkey()
    optimizer = optax.sgd(0.1)
    step = training.make_step(lambda p, x, k: p + jax.random.normal(k, x.shape), optimizer)
    state = training.init(jnp.zeros(()), optimizer, key)
    state, metrics = jax.lax.scan(step, state, jnp.zeros((6, 5)))
    noise = [jax.random.normal(jax.random.fold_in(key, n), (5,)).mean() for n in range(6)]
    np.testing.assert_allclose(metrics["loss"], np.array(noise) - 0.1 * np.arange(6), atol=1e-6)
    assert len(set(np.round(noise, 4).tolist())) == 6


def test_init_aliases_nothing_and_may_be_donated(getkey):
    optimizer = optax.adam(0.1)
    state = training.init(jnp.zeros(2), optimizer, getkey())
    step = jax.jit(training.make_step(quadratic, optimizer), donate_argnums=0)
    kept = training.init(jnp.zeros(2), optimizer, jax.random.key(0))
    expected, _ = training.make_step(quadratic, optimizer)(kept, X)
    state, _ = step(state, X)
    np.testing.assert_allclose(state.ema, expected.ema, rtol=1e-6)


def test_step_is_traced_once(getkey):
    traces = []

    def loss_fn(params, x, key):
        traces.append(x.shape)
        return quadratic(params, x, key)

    optimizer = optax.adam(0.1)
    step = jax.jit(training.make_step(loss_fn, optimizer))
    state = training.init(jnp.zeros(2), optimizer, getkey())
    state, _ = step(state, jnp.asarray(X))
    step(training.init(jnp.ones(2), optimizer, getkey())._replace(step=jnp.int32(7)), 2 * X)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("loss_fn", "shape"),
    [
        (lambda p, x, k: quadratic(p, x, k).mean(), r"\(\)"),
        (lambda p, x, k: (x - p[None]) ** 2, r"\(11, 2\)"),
        (lambda p, x, k: quadratic(p, x, k)[None], r"\(1, 11\)"),
    ],
)
def test_reduced_or_unsummed_loss_raises(loss_fn, shape, getkey):
    optimizer = optax.sgd(0.1)
    state = training.init(jnp.zeros(2), optimizer, getkey())
    with pytest.raises(ValueError, match=rf"shape \(11,\), got shape {shape}"):
        training.make_step(loss_fn, optimizer)(state, X)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_bad_ema_decay_raises(decay):
    with pytest.raises(ValueError, match="ema_decay must be in"):
        training.make_step(quadratic, optax.sgd(0.1), ema_decay=decay)


# The optimizer


def test_adamw_follows_warmup_and_cosine():
    """Under a constant gradient Adam moves by minus the learning rate: the schedule is visible."""
    optimizer = training.adamw(0.01, 20, warmup=0.2, final=0.1, clip_norm=1.0)
    params = jnp.zeros(())
    state = optimizer.init(params)

    def update(state, grad):
        update, state = optimizer.update(grad, state, params)
        return state, -update

    # The third gradient is a hundred times larger: clipping makes it equal to the others.
    grads = jnp.ones(20).at[2].set(100.0)
    _, rates = jax.lax.scan(update, state, grads)
    n = np.arange(20)
    cosine = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (n - 4) / 16))
    np.testing.assert_allclose(rates, 0.01 * np.where(n < 4, n / 4, cosine), rtol=1e-4, atol=1e-9)


def test_adamw_is_its_equations(getkey):
    """Those of its docstring, step by step in NumPy, where some gradients are clipped."""
    optimizer = training.adamw(0.1, 6, warmup=0.3, weight_decay=0.2, clip_norm=1.5, b1=0.8, b2=0.9)
    grads = np.asarray(jax.random.normal(getkey(), (6, 3)), np.float64)
    norms = np.linalg.norm(grads, axis=1)
    assert (norms < 1.5).any()
    assert (norms > 1.5).any()
    params = jnp.array([1.0, -2.0, 0.5])
    state, expected = optimizer.init(params), np.asarray(params, np.float64)
    m = v = np.zeros(3)
    for n, (g, norm) in enumerate(zip(grads, norms, strict=True)):
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = params + updates
        g = g * min(1, 1.5 / norm)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        m_hat, v_hat = m / (1 - 0.8 ** (n + 1)), v / (1 - 0.9 ** (n + 1))
        rate = 0.1 * (n / 2 if n < 2 else (1 + np.cos(np.pi * (n - 2) / 4)) / 2)
        expected = expected - rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + 0.2 * expected)
        np.testing.assert_allclose(params, expected, rtol=1e-5)


@pytest.mark.parametrize(("warmup", "num_steps", "peak"), [(0.29, 100, 29), (0.99, 10, 9)])
def test_adamw_warms_up_over_the_nearest_number_of_steps(warmup, num_steps, peak):
    optimizer = training.adamw(1.0, num_steps, warmup=warmup)
    params = jnp.zeros(())
    _, rates = jax.lax.scan(
        lambda state, grad: optimizer.update(grad, state, params)[::-1],
        optimizer.init(params),
        jnp.ones(num_steps),
    )
    np.testing.assert_allclose(-rates[: peak + 1], np.arange(peak + 1) / peak, rtol=1e-4)


def test_moments_of_bfloat16_parameters_do_not_stall(getkey):
    """A constant gradient moves by the rate however long; in bfloat16 the moment stops growing."""
    optimizer = training.adamw(1.0, 10_000, warmup=0.0, final=1.0, clip_norm=float("inf"))
    params = jnp.zeros(2, jnp.bfloat16)
    grads = jnp.array([1.0, -0.01], jnp.bfloat16)

    def update(state, _):
        update, state = optimizer.update(grads, state, params)
        return state, update

    _, updates = jax.lax.scan(update, optimizer.init(params), None, length=2_000)
    assert updates.dtype == jnp.bfloat16
    right = np.tile([-1.0, 1.0], (2_000, 1))
    np.testing.assert_allclose(updates.astype(float), right, rtol=2**-8)


def test_adamw_decays_weights_and_starts_at_the_peak_without_warmup():
    optimizer = training.adamw(0.01, 20, warmup=0.0, weight_decay=0.5)
    params = jnp.array(2.0)
    update, _ = optimizer.update(jnp.zeros(()), optimizer.init(params), params)
    np.testing.assert_allclose(update, -0.01 * 0.5 * 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive and finite, got inf"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative, got -1"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite and not negative, got nan"),
        ({"b1": 1.5}, r"b1 is a decay per step in \[0, 1\), got 1.5"),
        ({"b2": float("nan")}, r"b2 is a decay per step in \[0, 1\), got nan"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"warmup": 1.0}, "warmup is a share of the run in"),
        ({"final": 1.5}, "final is a share of the learning rate"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
    ],
)
def test_adamw_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        training.adamw(**{"learning_rate": 0.1, "num_steps": 10, **kwargs})


def test_adamw_counts_whole_steps():
    with pytest.raises(TypeError, match="num_steps must be a Python int"):
        training.adamw(0.1, 2.5)


# The loop


def test_fit_is_the_step_repeated_on_the_documented_batches_and_keys():
    """With the real data order, against a plain loop over the jitted step."""
    optimizer = optax.adam(0.05)
    train_key, data_key, _ = jax.random.split(jax.random.key(3), 3)
    step = jax.jit(training.make_step(noisy, optimizer))
    state = training.init(jnp.zeros(2), optimizer, train_key)
    rows = jax.jit(lambda n: batch_indices(data_key, n, 11, 4))
    for n in range(7):
        state, _ = step(state, X[np.asarray(rows(n))])
    fitted = fit(noisy, jnp.zeros(2), X, optimizer=optimizer, num_steps=7, steps_per_dispatch=3)
    for a, b in zip(jax.tree.leaves(fitted[:4]), jax.tree.leaves(state[:4]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_quadratic_converges_to_the_mean(cheap):
    x = X[:4]
    state = fit(quadratic, jnp.zeros(2), np.tile(x.mean(0), (8, 1)), num_steps=200)
    np.testing.assert_allclose(state.params, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.ema, x.mean(0), rtol=2e-2)


def test_data_on_the_host_gives_the_same_numbers_exactly(cheap):
    """Also: a pytree of arrays, integer pixels, and float64 where JAX is in float32."""
    data = {"x": X.astype(np.float64), "pixels": np.arange(11, dtype=np.uint8)}

    def loss_fn(params, batch, key):
        assert batch["x"].dtype == jnp.float32
        assert batch["pixels"].dtype == jnp.uint8
        return noisy(params, batch["x"], key) + batch["pixels"].astype(float) * params[0]

    device = fit(loss_fn, jnp.zeros(2), data, steps_per_dispatch=4)
    host = fit(loss_fn, jnp.zeros(2), data, steps_per_dispatch=4, device_data_bytes=0)
    np.testing.assert_array_equal(device.params, host.params)
    other = fit(loss_fn, jnp.zeros(2), data, steps_per_dispatch=4, seed=4)
    assert not np.array_equal(device.params, other.params)


@pytest.mark.parametrize("where", [{}, {"device_data_bytes": 0}])
def test_data_of_64_bits_change_with_a_word_only(cheap, where):
    """Integers are not wrapped, floats not cut to infinity, nor rounded to their offset."""

    def loss_fn(params, batch, key):
        return params[0] * batch["n"].astype(float)

    def fit_to(n):
        return fit(loss_fn, jnp.zeros(2), {"n": n}, num_steps=1, **where)

    n = np.arange(11)
    fit_to(n + 2**31 - 11)
    with pytest.raises(ValueError, match=r"data\['n'\] of int64 go from .* to 2147483648, .*int32"):
        fit_to(n + 2**31 - 10)
    with pytest.raises(ValueError, match=r"data\['n'\] of uint64 .* as uint32"):
        fit_to((n + 2**33).astype(np.uint64))
    with pytest.raises(ValueError, match=r"data\['n'\] of float64 .* as float32, up to 3.4.*scale"):
        fit_to(n * 1e38)
    fit_to(n + 1e3)
    with pytest.warns(UserWarning, match=r"data\['n'\] of float64 .*rounded.* Subtract the mean"):
        fit_to(n / 10 + 1e6)


def test_two_rows_that_happen_to_be_close_are_no_reason_to_warn():
    x = np.array([[1.0, 0.3], [1.0 + 1e-6, 0.5]])
    np.testing.assert_array_equal(_dtypes.narrowed(x), x.astype(np.float32))
    with pytest.warns(UserWarning, match="far from zero beside their spread"):
        _dtypes.narrowed(1.0 + 1e-6 * np.arange(4.0))


def test_dispatch_length_changes_nothing_and_one_length_is_compiled(cheap):
    traces = []

    def loss_fn(params, x, key):
        traces.append(x.shape)
        return noisy(params, x, key)

    a = fit(loss_fn, jnp.zeros(2), X, num_steps=24, steps_per_dispatch=8)
    assert len(traces) == 1
    b = fit(loss_fn, jnp.zeros(2), X, num_steps=24, steps_per_dispatch=3)
    np.testing.assert_allclose(a.params, b.params, rtol=1e-6)
    np.testing.assert_allclose(a.ema, b.ema, rtol=1e-6)


@pytest.mark.parametrize(
    ("period", "most", "lengths"), [(50, 50, {50}), (80, 50, {40}), (97, 50, {48, 49})]
)
def test_few_dispatch_lengths(period, most, lengths):
    step, seen = 0, set()
    while step < 3 * period:
        end = _loop._dispatch_end(step, 3 * period, period, most)
        assert step < end
        assert end // period * period in (step // period * period, end)
        seen.add(end - step)
        step = end
    assert step == 3 * period
    assert seen == lengths


@pytest.mark.parametrize("device_data_bytes", [None, 0])
def test_records_evaluations_and_levels(cheap, tmp_path, device_data_bytes):
    """Losses are known: each row's loss is the parameter, which falls by 0.5 per step from 0."""
    emas, levels = {}, []

    def evaluate(ema, step):
        emas[step] = ema
        return {"nll": step / 10, "worst": math.nan}

    def noise_level_loss_fn(ema, batch, key):
        return jnp.stack([ema, jnp.mean(batch), jax.random.uniform(key)])

    state = fit(
        lambda p, x, key: 0.0 * x + p,
        jnp.zeros(()),
        np.arange(11, dtype=np.float32),
        optimizer=optax.sgd(0.5),
        num_steps=10,
        device_data_bytes=device_data_bytes,
        steps_per_dispatch=4,
        checkpoints=Checkpoints(tmp_path / "deep" / "run"),
        log_every=3,
        evaluation=Evaluation(evaluate, every=4, noise_level_loss_fn=noise_level_loss_fn),
        ema_decay=0.0,
    )
    rows = records(tmp_path / "deep" / "run")
    train = [(r["step"], r["loss"], r["grad_norm"]) for r in rows if "loss" in r]
    assert train == [(3, -0.5, 1.0), (6, -2.0, 1.0), (9, -3.5, 1.0), (10, -4.5, 1.0)]
    assert all(r["steps_per_second"] > 0 for r in rows if "loss" in r)
    evals = [r for r in rows if "eval/nll" in r]
    assert [(r["step"], r["eval/nll"], r["eval/worst"]) for r in evals] == [
        (4, 0.4, None),
        (8, 0.8, None),
        (10, 1.0, None),
    ]
    levels = [r["noise_level_loss"] for r in evals]
    means = [float(cheap_indices(None, step, 11, 4).mean()) for step in (4, 8, 10)]
    assert len(set(means)) == 3
    assert [level[:2] for level in levels] == [
        [-p, mean] for p, mean in zip((2, 4, 5), means, strict=True)
    ]
    assert len({level[2] for level in levels}) == 3
    # What evaluate kept is still alive, though the state was donated.
    assert {step: float(ema) for step, ema in emas.items()} == {4: -2.0, 8: -4.0, 10: -5.0}
    assert float(state.params) == -5.0
    (events,) = (tmp_path / "deep" / "run" / "tensorboard").iterdir()
    content = events.read_bytes()
    assert all(
        tag in content for tag in (b"loss", b"grad_norm", b"eval/nll", b"noise_level_loss/2")
    )


def test_the_callers_arrays_are_left_alone(cheap):
    params, data = jnp.zeros(2), jnp.asarray(X)
    fit(quadratic, params, data)
    assert not params.is_deleted()
    assert not data.is_deleted()
    np.testing.assert_array_equal(params, np.zeros(2))


@pytest.mark.parametrize("steps_per_dispatch", [1, 4, 50])
def test_nan_loss_names_its_step_and_keeps_the_last_good_checkpoint(
    cheap, tmp_path, steps_per_dispatch
):
    """One row is nan, and the first batch to hold it is known from the data order."""
    order = np.array([cheap_indices(None, n, 11, 2) for n in range(6)])
    row, bad = next((row, n + 1) for n in (5, 4, 3) for row in order[n] if row not in order[:n])
    data = X.copy()
    data[row] = np.nan
    with pytest.raises(
        FloatingPointError, match=f"the loss is nan at step {bad};.* step {bad - 2},"
    ):
        fit(
            quadratic,
            jnp.zeros(2),
            data,
            batch_size=2,
            num_steps=99,
            log_every=1,
            steps_per_dispatch=steps_per_dispatch,
            checkpoints=Checkpoints(tmp_path, every=bad - 2),
        )
    ema = training.restore_params(tmp_path, jnp.zeros(2))
    good = fit(quadratic, jnp.zeros(2), data, batch_size=2, num_steps=bad - 2)
    np.testing.assert_allclose(ema, good.ema, rtol=1e-6)
    rows = records(tmp_path)
    assert [r["step"] for r in rows] == list(range(1, bad + 1))
    assert [r["loss"] is None for r in rows] == [False] * (bad - 1) + [True]


def test_nan_parameters_under_a_finite_loss_are_not_saved(cheap, tmp_path):
    """d/dp sqrt(|p|) at 0 is not finite, though the loss is: p reaches 0 after two steps."""

    def loss_fn(p, x, key):
        return jnp.where(p > 0.5, p, jnp.sqrt(jnp.abs(p))) + 0.0 * x

    with pytest.raises(
        FloatingPointError, match=r"parameters are not finite after step 3.* step 2,"
    ):
        fit(
            loss_fn,
            jnp.array(2.0),
            np.ones(11, np.float32),
            optimizer=optax.sgd(1.0),
            checkpoints=Checkpoints(tmp_path, every=1),
        )


def test_progress(cheap, capfd):
    for progress in (True, None, False):
        fit(quadratic, jnp.zeros(2), X, num_steps=3, progress=progress)
        out, err = capfd.readouterr()
        assert out == ""
        if progress:
            assert all(s in err for s in ("3/3", "loss ", " steps/s", "<"))
        elif progress is None:
            assert err.count("\n") == 1
            assert all(s in err for s in ("step 3/3  loss ", " steps/s", "0:00 left"))
        else:
            assert err == ""


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"steps_per_dispatch": 0}, "steps_per_dispatch must be at least 1, got 0"),
        ({"batch_size": None}, "data is arrays: give batch_size"),
        (
            {"checkpoints": Checkpoints("absent", best_metric="nll")},
            r"best_metric 'nll' is one of the values.*evaluation=training.Evaluation\(fn\)",
        ),
        ({"data": Spiral()}, "batch_size 4 is for arrays, and data is a stream.*leave batch_size"),
        ({"data": np.zeros((0, 2))}, r"one leading axis.* got \[\(0, 2\)\]"),
        ({"data": {}}, r"one leading axis.* got \[\]"),
        ({"data": (X, X[:3])}, r"one leading axis.* got \[\(11, 2\), \(3, 2\)\]"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        fit(quadratic, jnp.zeros(2), kwargs.pop("data", X), **kwargs)


def test_an_evaluation_that_returns_nothing_raises(cheap):
    with pytest.raises(TypeError, match=r"evaluation\.fn must return a dict of floats, got None"):
        fit(quadratic, jnp.zeros(2), X, evaluation=Evaluation(lambda ema, step: None))


def test_steps_one_by_one_are_the_steps_of_the_loop():
    """One step per dispatch runs without a loop; the numbers are the same."""
    data = jnp.linspace(-1.0, 2.0, 12)

    def loss_fn(params, x, key):
        return 0.5 * (x - params + jax.random.normal(key, x.shape)) ** 2

    def run(steps_per_dispatch):
        return training.fit(
            loss_fn,
            jnp.zeros(()),
            data,
            optimizer=optax.adam(0.1),
            num_steps=6,
            batch_size=4,
            seed=3,
            steps_per_dispatch=steps_per_dispatch,
            progress=False,
        )

    single, looped = run(1), run(3)
    assert single.step == looped.step == 6
    for one, other in zip(jax.tree.leaves(single[:3]), jax.tree.leaves(looped[:3]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert abs(float(single.params)) > 0.05


# Streams, loggers and groups of options


def test_a_stream_is_the_step_repeated_on_its_batches():
    optimizer = optax.adam(0.05)
    train_key, *_ = jax.random.split(jax.random.key(3), 3)
    step = jax.jit(training.make_step(noisy, optimizer))
    state = training.init(jnp.zeros(2), optimizer, train_key)
    for n in range(7):
        state, _ = step(state, Spiral().at(n).astype(np.float32))
    options = {"optimizer": optimizer, "num_steps": 7, "batch_size": None}
    fitted = fit(noisy, jnp.zeros(2), Spiral(), steps_per_dispatch=3, **options)
    for a, b in zip(jax.tree.leaves(fitted[:4]), jax.tree.leaves(state[:4]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_run_on_a_stream_resumes_bit_by_bit_and_records_to_a_logger(tmp_path):
    """7 steps, which cut a dispatch, and the rest; the logger gets what the files get."""
    options = {"optimizer": optax.adam(0.05), "batch_size": None, "log_every": 1}
    options["evaluation"] = Evaluation(lambda ema, step: {"norm": abs(ema).sum()}, every=5)

    def run(directory, num_steps, resume=False):
        logger = Recorder()
        checkpoints = Checkpoints(directory, every=5, resume=resume)
        options.update(checkpoints=checkpoints, logger=logger)
        return fit(noisy, jnp.zeros(2), Spiral(), num_steps=num_steps, **options), logger

    whole, logger = run(tmp_path / "whole", 12)
    _, before = run(tmp_path / "parts", 7)
    resumed, after = run(tmp_path / "parts", 12, resume=True)
    for a, b in zip(jax.tree.leaves(whole[:4]), jax.tree.leaves(resumed[:4]), strict=True):
        np.testing.assert_array_equal(a, b)

    def losses(records):
        return [(step, values["loss"]) for step, values in records if "loss" in values]

    assert [step for step, _ in losses(logger)] == list(range(1, 13))
    assert losses(before) + losses(after) == losses(logger)
    assert [step for step, values in logger if "eval/norm" in values] == [5, 10, 12]
    written = [(row.pop("step"), row) for row in records(tmp_path / "whole")]
    assert written == logger


def test_a_logger_needs_no_directory_and_gets_values_that_are_not_finite(cheap):
    logger = Recorder()
    evaluation = Evaluation(
        lambda ema, step: {"nll": math.nan},
        noise_level_loss_fn=lambda ema, batch, key: jnp.array([1.0, math.inf]),
    )
    fit(quadratic, jnp.zeros(2), X, logger=logger, evaluation=evaluation)
    (evaluated,) = [values for _, values in logger if "eval/nll" in values]
    assert math.isnan(evaluated["eval/nll"])
    assert evaluated["noise_level_loss"] == [1.0, math.inf]


def test_a_stream_must_not_change_its_layout():
    class Growing:
        def at(self, step):
            return {"x": np.zeros((4, 2 + step // 2), np.float32)}

    def loss_fn(params, batch, key):
        return params * batch["x"].sum(1)

    with pytest.raises(
        ValueError, match=r"data\.at\(2\) .*'x'.*float32\[4, 2\].*float32\[4, 3\].*same shapes"
    ):
        fit(loss_fn, jnp.zeros(()), Growing(), batch_size=None)


class Empty:
    def at(self, step):
        return np.zeros((0, 2))


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"data": iter([X])}, TypeError, r"an iterator, which cannot be resumed: .*at\(step\)"),
        ({"data": Spiral}, TypeError, r"a class: give an object whose at\(step\)"),
        ({"data": Empty(), "batch_size": None}, ValueError, r"data\.at\(0\) must be .*\(0, 2\)"),
        ({"logger": print}, TypeError, r"logger must have a method record\(step, values\), got"),
        ({"checkpoints": "runs/first"}, TypeError, r"training\.Checkpoints\('runs/first'\)"),
        ({"evaluation": math.cos}, TypeError, r"evaluation=training\.Evaluation\(<built-in"),
    ],
)
def test_wrong_objects(kwargs, error, match):
    with pytest.raises(error, match=match):
        fit(quadratic, jnp.zeros(2), kwargs.pop("data", X), **kwargs)


@pytest.mark.parametrize(
    ("group", "error", "match"),
    [
        (lambda: Checkpoints("a", every=0), ValueError, "every must be at least 1, got 0"),
        (lambda: Checkpoints("a", keep=0), ValueError, "keep must be at least 1, got 0"),
        (lambda: Checkpoints("a", best_mode="least"), ValueError, "best_mode .* got 'least'"),
        (lambda: Evaluation(print, every=0), ValueError, "every must be at least 1, got 0"),
        (lambda: Evaluation(), ValueError, "give fn or noise_level_loss_fn"),
        (lambda: Evaluation({}), TypeError, r"fn must be a function, got \{\}"),
    ],
)
def test_bad_groups_of_options(group, error, match):
    with pytest.raises(error, match=match):
        group()


@pytest.mark.parametrize(("convolves", "lengths"), [(True, {1}), (False, {6})])
def test_a_loss_with_convolutions_takes_one_step_per_dispatch_on_cpu(
    convolves, lengths, cheap, monkeypatch
):
    """The convolution is within a jitted function within a scan; a kernel of rank 4 is none."""
    images = np.ones((11, 4, 4, 1), np.float32)

    @jax.jit
    def layer(kernel, x):
        if convolves:
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x * kernel[0, 0].sum()

    def loss_fn(kernel, x, key):
        h, _ = jax.lax.scan(lambda h, _: (layer(kernel, h), None), x, length=2)
        return jnp.mean(h**2, axis=(1, 2, 3))

    seen = set()
    dispatcher = _loop._dispatcher

    def spy(*args):
        dispatch = dispatcher(*args)
        return lambda state, start, length: seen.add(length) or dispatch(state, start, length)

    monkeypatch.setattr(_loop, "_dispatcher", spy)
    fit(loss_fn, jnp.full((3, 3, 1, 1), 0.1), images)
    assert seen == lengths


@pytest.mark.parametrize("limit", [None, 0])
def test_masked_values_are_refused_and_foreign_bytes_read(limit):
    def fit(data):
        return training.fit(
            lambda params, x, key: 0.5 * (x["x"] - params) ** 2,
            jnp.zeros(()),
            {"x": data},
            optimizer=optax.sgd(1.0),
            num_steps=1,
            batch_size=4,
            seed=0,
            device_data_bytes=limit,
            progress=False,
        ).params

    rows = np.array([1.0, 2.0, 3.0, 999.0], ">f4")
    np.testing.assert_allclose(fit(rows), 251.25)
    with pytest.raises(ValueError, match=r"data\['x'\] has 1 masked values.*compress_rows"):
        fit(np.ma.masked_equal(rows, 999.0))
