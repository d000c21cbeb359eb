"""Classifier-free guidance of a class-conditional density at 1 and 2, beside the truth.

    python -m experiments.examples.guidance

Three classes overlap in two dimensions, each a mixture of two Gaussians. One network is trained by
`losses.diffusion` with the label and, for a share of the rows, without. The density of each class
is known, hence so is the best classifier. The printed number is the share of samples that it takes
for their own class: of the data (the truth at scale 1), of samples of the network at scales 1 and
2, and of samples of the exact scores at scale 2.

EXPECTED: data 0.925 ± 0.003, network at scale 1 0.914 ± 0.004, at scale 2 1.000, exact scores at
scale 2 1.000. 40 s of CPU time on 2 CPU cores.
"""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import optax
from flax import nnx

from sm_jax import densities, guidance, losses, models, parameterization, processes, samplers

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUM_CLASSES = 3
LABEL_DROPOUT = 0.2
WIDTH, DEPTH = 64, 3
BATCH_SIZE = 512
NUM_STEPS = 4000
LEARNING_RATE = 2e-3
NUM_SAMPLES = 6000
SEED = 0
PROCESS = processes.VE(sigma_min=0.02, sigma_max=20.0)
PICTURE = pathlib.Path("runs/examples/guidance.png")

SPREAD = 0.15  # variance of the Gaussians
ANGLES = 2 * jnp.pi * jnp.arange(NUM_CLASSES) / NUM_CLASSES
CENTERS = jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=-1)
MEANS = jnp.stack([0.6 * CENTERS, 1.6 * CENTERS], axis=1)  # [class, Gaussian, 2]; all around zero
CLASSES = [densities.gaussian_mixture(jnp.ones(2) / 2, means, SPREAD) for means in MEANS]
ALL = densities.gaussian_mixture(jnp.ones(6) / 6, MEANS.reshape(6, 2), SPREAD)


def sample(labels, key):
    """Return a draw of the class of each label ``[B]``."""
    keys = jax.random.split(key, NUM_CLASSES)
    draws = jnp.stack([d.sample(k, len(labels)) for d, k in zip(CLASSES, keys, strict=True)])
    return draws[labels, jnp.arange(len(labels))]


def exact_score(density):
    """Return the score of a density noised to a time of each row's own."""
    return jax.vmap(lambda y, u: density.noised(PROCESS, u).score(y[None])[0])


def train(key, *, num_steps):
    """Return ``score(cond [B, NUM_CLASSES]) -> score function``; zeros mean no label."""
    network = models.MLP(2, width=WIDTH, depth=DEPTH, cond_dims=NUM_CLASSES, rngs=nnx.Rngs(SEED))
    apply, params = models.functional(network)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))

    def score(params, cond):
        network = partial(apply, params, cond=cond)
        return parameterization.precondition(network, process=PROCESS, sigma_data=1.0)

    loss_fn = partial(
        losses.diffusion,
        process=PROCESS,
        sample_times=partial(losses.log_normal_times, mean=-0.5, std=1.2),
        weight=partial(losses.edm_weight, sigma_data=1.0),
    )

    def step(carry, key):
        params, opt_state = carry
        key_data, key_label, key_drop, key_loss = jax.random.split(key, 4)
        labels = jax.random.randint(key_label, (BATCH_SIZE,), 0, NUM_CLASSES)
        x = sample(labels, key_data)
        cond = jax.nn.one_hot(labels, NUM_CLASSES)
        cond = guidance.drop_labels(cond, key_drop, rate=LABEL_DROPOUT, null=jnp.zeros(NUM_CLASSES))

        def loss(params):
            return loss_fn(score(params, cond), x, key_loss).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    params, _ = run((params, optimizer.init(params)), jax.random.split(key, num_steps))
    return partial(score, params)


def recognized(x, labels):
    """Return the share of rows that Bayes' rule takes for their own class."""
    log_probs = jnp.stack([density.log_prob(x) for density in CLASSES])
    return float((jnp.argmax(log_probs, axis=0) == labels).mean())


def main(num_steps=NUM_STEPS, num_samples=NUM_SAMPLES, picture=PICTURE):
    """Train, sample, and return the share of each kind of sample that is recognized."""
    key_train, key_data, key_prior = jax.random.split(jax.random.key(SEED), 3)
    score = train(key_train, num_steps=num_steps)
    labels = jnp.arange(num_samples) % NUM_CLASSES
    cond = jax.nn.one_hot(labels, NUM_CLASSES)
    x = {"data": sample(labels, key_data)}

    def exact_given_label(x, t):
        scores = jnp.stack([exact_score(density)(x, t) for density in CLASSES])
        return jnp.einsum("bc,cbd->bd", cond, scores)

    pairs = {"network": (score(cond), score(jnp.zeros_like(cond))),
             "exact scores": (exact_given_label, exact_score(ALL))}  # fmt: skip
    start = processes.prior_sample(PROCESS, key_prior, (num_samples, 2))
    for name, scale in [("network", 1.0), ("network", 2.0), ("exact scores", 2.0)]:
        guided = guidance.classifier_free(*pairs[name], scale=scale)
        x[f"{name}, scale {scale:g}"] = samplers.heun(guided, start, process=PROCESS)

    shares = {name: recognized(points, labels) for name, points in x.items()}
    print("share of samples recognized as their class:")
    for name, share in shares.items():
        print(f"  {name:22} {share:.3f} ± {(share * (1 - share) / num_samples) ** 0.5:.3f}")
    if picture:
        draw(picture, x, labels, shares)
    return shares


def draw(path, samples, labels, shares):
    """Draw each kind of sample, colored by class."""
    figure, axes = plt.subplots(
        1, 4, figsize=(15, 4.8), layout="constrained", sharex=True, sharey=True
    )
    for axis, (name, x) in zip(axes, samples.items(), strict=True):
        for label in range(NUM_CLASSES):
            points = x[labels == label][:700]
            axis.plot(*points.T, ".", ms=2, alpha=0.6)
        axis.set(title=f"{name}\nrecognized {shares[name]:.3f}", aspect="equal", xlabel="$x_1$")
        axis.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
    axes[0].set_ylabel("$x_2$")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
