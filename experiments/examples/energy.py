"""An energy fitted by implicit score matching, its samples by MALA, and its normalizer.

    python -m experiments.examples.energy

The energy ``E(x) = |x|^2 / (2 PRIOR_STD^2) + network(x)`` of ``p ∝ exp(-E)`` is trained by
`losses.implicit` on samples of eight overlapping Gaussians. MALA draws from it, and annealed
importance sampling brackets ``log Z = log int exp(-E(x)) dx``. In two dimensions a sum over a fine
grid gives ``log Z`` as well, and this is the truth for the bracket. The normalized model is then
compared with the density of the data: ``KL = E log p_data(x) - E log p_model(x)``.

EXPECTED: log Z between 1.998 ± 0.010 and 2.014 ± 0.014, truth 1.995; KL 0.001 ± 0.001 nats; sliced
Wasserstein distance 0.025, of data to data 0.029. 52 s of CPU time on 2 CPU cores.
"""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import optax
from flax import nnx

from sm_jax import densities, likelihood, losses, metrics, models, parameterization, samplers

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NOISE = 0.35  # standard deviation of each Gaussian; neighbors are 1.0 apart
PRIOR_STD = 2.0
WIDTH, DEPTH = 64, 2
BATCH_SIZE = 512
NUM_STEPS = 3000
LEARNING_RATE = 3e-3
NUM_CHAINS = 2000
NUM_MALA_STEPS = 500
SEED = 0
PICTURE = pathlib.Path("runs/examples/energy.png")


def main(
    num_steps=NUM_STEPS, num_chains=NUM_CHAINS, num_mala_steps=NUM_MALA_STEPS, picture=PICTURE
):
    """Train, sample and normalize; return the printed numbers by name."""
    names = ["train", "start", "adapt", "mala", "normalizer", "data", "project"]
    keys = dict(zip(names, jax.random.split(jax.random.key(SEED), len(names)), strict=True))
    density = densities.eight_gaussians(noise=NOISE)
    network = models.EnergyMLP(2, width=WIDTH, depth=DEPTH, rngs=nnx.Rngs(SEED))
    apply, params = models.functional(network)

    def energy_fn(params, x):
        quadratic = jnp.sum(x**2, axis=-1) / (2 * PRIOR_STD**2)  # makes exp(-E) integrable
        return quadratic + apply(params, x, jnp.zeros(len(x)))  # no noise level: zeros

    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))

    def step(carry, key):
        params, opt_state = carry
        x = density.sample(key, BATCH_SIZE)

        def loss(params):
            score_fn = parameterization.EnergyScore(partial(energy_fn, params))
            return losses.implicit(score_fn, x).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    carry = (params, optimizer.init(params))
    step_keys = jax.random.split(keys["train"], num_steps)
    (params, _), history = jax.jit(lambda *args: jax.lax.scan(step, *args))(carry, step_keys)
    print(f"loss {history[0]:.3f} at first, {history[-100:].mean():.3f} at last")

    energy = partial(energy_fn, params)
    score_fn = parameterization.EnergyScore(energy)
    start = PRIOR_STD * jax.random.normal(keys["start"], (num_chains, 2))
    adapted = samplers.adapt_step_size(
        score_fn, start, keys["adapt"], step_size=0.1, num_steps=num_mala_steps
    )
    chain = samplers.mala(
        score_fn, adapted.x, keys["mala"], step_size=adapted.step_size, num_steps=num_mala_steps
    )
    data, more = jnp.split(density.sample(keys["data"], 2 * num_chains), 2)
    # Both distances are of the same projections.
    distance = metrics.sliced_wasserstein(chain.x, data, keys["project"])
    least = metrics.sliced_wasserstein(more, data, keys["project"])
    print(f"MALA: step {adapted.step_size:.3f}, acceptance {chain.acceptance_rate.mean():.2f}")
    print(f"sliced Wasserstein distance to data {distance:.3f}; of data to data {least:.3f}")

    base = densities.gaussian(jnp.zeros(2), PRIOR_STD**2)
    bracket = likelihood.annealed_importance(
        energy, keys["normalizer"], base=base, step_size=0.1, num_chains=num_chains,
        samples=chain.x,
    )  # fmt: skip
    line = jnp.linspace(-6.0, 6.0, 401)
    grid = jnp.stack(jnp.meshgrid(line, line), axis=-1)
    energies = jax.jit(energy)(grid.reshape(-1, 2))
    truth = jax.nn.logsumexp(-energies) + 2 * jnp.log(line[1] - line[0])
    for name, bound in bracket._asdict().items():
        print(f"log Z, {name} bound: {bound.value:.4f} ± {bound.standard_error:.4f}")
    print(f"log Z, truth:       {truth:.4f}")
    gap = density.log_prob(data) + energy(data) + truth
    kl, spread = gap.mean(), gap.std() / len(gap) ** 0.5
    print(f"KL from the data to the model: {kl:.4f} ± {spread:.4f} nats")

    if picture:
        log_probs = (-energies - truth).reshape(401, 401)
        draw(picture, line, density, log_probs, chain.x)
    lower, upper = bracket.lower, bracket.upper
    return {
        "log_z": float(truth),
        "lower": (float(lower.value), float(lower.standard_error)),
        "upper": (float(upper.value), float(upper.standard_error)),
        "kl": (float(kl), float(spread)),
        "distance": (float(distance), float(least)),
    }


def draw(path, line, density, log_probs, samples):
    """Draw the density of the data, that of the model, and the samples of MALA over it."""
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 5), layout="constrained", sharex=True, sharey=True
    )
    grid = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)
    true, model = jnp.exp(density.log_prob(grid)).reshape(log_probs.shape), jnp.exp(log_probs)
    levels = jnp.linspace(0, float(jnp.maximum(true.max(), model.max())), 20)
    titles = ["density of the data", "exp(-E) / Z", "samples of the energy by MALA"]
    for axis, title, values in zip(axes, titles, [true, model, model], strict=True):
        axis.contourf(line, line, values, levels=levels, cmap="Blues")
        axis.set(title=title, aspect="equal", xlabel="$x_1$", xlim=(-3, 3), ylim=(-3, 3))
    axes[0].set_ylabel("$x_2$")
    axes[2].plot(*samples.T, ".", ms=2, color="black", alpha=0.5)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
