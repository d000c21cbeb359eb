"""A table: likelihood of held-out rows in the units of the data, beside a Gaussian mixture.

    python -m experiments.examples.tabular

The 569 rows of 30 real numbers are those of scikit-learn's breast cancer data. Each column is
standardized, the noise levels are computed from the training rows, and a perceptron with dropout is
trained by `losses.diffusion`, to the checkpoint with the least loss on rows set aside. The exact
`likelihood.log_prob` gives nats of the standardized rows, and the log-determinant of the
standardizer makes them nats of the data. The Gaussian mixture is chosen on the rows set aside.

EXPECTED: held out 38.6 ± 2.1 nats, mixture of 3 Gaussians 28.4 ± 4.3; in the median 43.4 and 38.7.
41 s of CPU time on 2 CPU cores.
"""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import optax
from flax import nnx
from sklearn.datasets import load_breast_cancer
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split

from sm_jax import (
    data,
    likelihood,
    losses,
    models,
    noise_levels,
    parameterization,
    processes,
    samplers,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTH, DEPTH, DROPOUT = 128, 3, 0.2
BATCH_SIZE = 256
NUM_STEPS = 3000
STEPS_PER_CHECK = 100  # between two looks at the rows set aside
LEARNING_RATE = 2e-3
EMA_DECAY = 0.99
NUM_ODE_STEPS = 32
SEED = 0
PICTURE = pathlib.Path("runs/examples/tabular.png")


def train(x, valid, process, key, *, num_steps):
    """Return the score function of the checkpoint with the least validation loss."""
    sizes = {"width": WIDTH, "depth": DEPTH, "dropout": DROPOUT}
    apply, params = models.functional(models.MLP(x.shape[1], **sizes, rngs=nnx.Rngs(SEED)))
    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))

    def score(params, key=None):  # with a key: with dropout
        network = partial(apply, params, key=key)
        return parameterization.precondition(network, process=process, sigma_data=1.0)

    loss_fn = partial(
        losses.diffusion,
        process=process,
        sample_times=partial(losses.log_normal_times, mean=-1.0, std=1.5),
        weight=partial(losses.edm_weight, sigma_data=1.0),
    )

    def step(carry, key):
        params, ema, opt_state = carry
        key_rows, key_loss, key_dropout = jax.random.split(key, 3)
        rows = x[jax.random.randint(key_rows, (BATCH_SIZE,), 0, len(x))]
        grads = jax.grad(lambda p: loss_fn(score(p, key_dropout), rows, key_loss).mean())(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = optax.incremental_update(params, ema, 1 - EMA_DECAY)
        return (params, ema, opt_state), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    key_steps, key_check = jax.random.split(key)  # the same noise at every check
    many = jnp.tile(valid, (50, 1))
    check = jax.jit(lambda params: loss_fn(score(params), many, key_check).mean())
    keys = jax.random.split(key_steps, num_steps)
    carry, checks = (params, params, optimizer.init(params)), []
    for start in range(0, num_steps, STEPS_PER_CHECK):
        carry = run(carry, keys[start : start + STEPS_PER_CHECK])
        checks.append((float(check(carry[1])), start, carry[1]))
    least, start, params = min(checks, key=lambda entry: entry[0])
    print(f"validation loss {least:.2f} at its least, near step {start}")
    return score(params)


def main(num_steps=NUM_STEPS, num_ode_steps=NUM_ODE_STEPS, num_held_out=114, picture=PICTURE):
    """Train, evaluate and return the held-out nats of score model and mixture with their errors."""
    table = load_breast_cancer()
    rest, held_out = train_test_split(table.data, test_size=num_held_out, random_state=0)
    train_rows, validation = train_test_split(rest, test_size=0.2, random_state=0)
    scale = data.Standardizer.fit(train_rows)
    x, valid, test = (jnp.float32(scale(rows)) for rows in (train_rows, validation, held_out))

    key_levels, key_train, key_prior = jax.random.split(jax.random.key(SEED), 3)
    levels = noise_levels.noise_levels_from_data(x, key_levels)
    print(levels)
    process = processes.VE(sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)
    score_fn = train(x, valid, process, key_train, num_steps=num_steps)

    result = likelihood.log_prob(score_fn, test, process=process, num_steps=num_ode_steps)
    sizes = [(k, reg) for k in (1, 2, 3, 5) for reg in (1e-4, 1e-3, 1e-2, 1e-1)]
    mixtures = [GaussianMixture(k, reg_covar=reg, random_state=0).fit(x) for k, reg in sizes]
    best = max(mixtures, key=lambda mixture: mixture.score(valid))
    values = {
        "score model": result.value + scale.log_det,
        f"{best.n_components} Gaussians": best.score_samples(test) + scale.log_det,
    }
    print(f"held-out nats per row of {test.shape[1]} numbers, in the units of the data:")
    results = {}
    for name, nats in values.items():
        spread = nats.std() / len(nats) ** 0.5
        results[name.split()[-1]] = (float(nats.mean()), float(spread))
        print(f"  {name:12} {nats.mean():7.2f} ± {spread:.2f}; median {jnp.median(nats):.2f}")

    if picture:
        start = processes.prior_sample(process, key_prior, (300, x.shape[1]))
        samples = scale.inverse(samplers.heun(score_fn, start, process=process))
        draw(picture, held_out, samples, table.feature_names, values)
    return results


def draw(path, held_out, samples, names, values):
    """Draw two pairs of columns, held out and sampled, and the likelihoods of each row."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for axis, (i, j) in zip(axes, [(0, 1), (7, 4)], strict=False):
        axis.plot(samples[:, i], samples[:, j], ".", ms=4, alpha=0.6, label="samples")
        axis.plot(held_out[:, i], held_out[:, j], ".", ms=4, color="black", label="held out")
        axis.set(title="two of the 30 columns", xlabel=names[i], ylabel=names[j])
        axis.legend()
    (model, nats), (mixture, others) = values.items()
    axes[2].plot(others, nats, ".", ms=4)
    axes[2].axline((float(nats.mean()),) * 2, slope=1, color="black", lw=0.8)
    limits = (min(nats.min(), others.min()) - 10, max(nats.max(), others.max()) + 10)
    axes[2].set(title="nats of held-out rows", xlabel=mixture, ylabel=model)
    axes[2].set(xlim=limits, ylim=limits, aspect="equal")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
