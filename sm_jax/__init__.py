"""Score matching in JAX: losses, samplers, likelihoods, and the training around them.

The core needs JAX, NumPy and SciPy, and is imported with the package:

    losses            score-matching losses, un-reduced [B], for any callable score
    divergence        tr(grad s): exact, Hutchinson, Hutch++
    processes         Gaussian noising processes: VE, VP, sub-VP, cosine, EDM
    parameterization  score, noise, clean data, v, velocity; EDM preconditioning; energies
    noise_levels      ladders of noise levels, and levels computed from data
    samplers          Langevin family, reverse SDEs, probability-flow ODEs, NUTS, MCLMC and SMC
    guidance          labels, classifiers, inpainting, linear inverse problems
    composition       products, powers, quotients and mixtures of energies and scores
    exponential_family  score matching in closed form, also of data with boundaries
    likelihood        log-densities by the probability flow, bounds, normalizers of energies
    quantized         denoising of quantized data, such as pixels
    densities         analytic densities, before and after noising
    metrics           distances between samples, convergence of chains, curl of a score
    data              sources, scaling with its log-determinant, batches by (key, step)

`sm_jax.models` (Flax) and `sm_jax.training` (Flax, Optax, Orbax) are imported by name and need
``pip install ".[train]"`` from a checkout.
"""

import warnings

import jaxlib

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

__version__ = "0.1.0"

if jaxlib.__version__ == "0.10.2":
    warnings.warn(
        "jaxlib 0.10.2 computes wrong numbers on CPU where a product under jax.vmap and jax.jit is "
        "summed (https://github.com/jax-ml/jax/issues/39103), as in likelihoods of several hundred "
        "rows: install another version, pip install 'jax!=0.10.2'.",
        stacklevel=2,
    )

__all__ = [
    "composition",
    "data",
    "densities",
    "divergence",
    "exponential_family",
    "guidance",
    "likelihood",
    "losses",
    "metrics",
    "noise_levels",
    "parameterization",
    "processes",
    "quantized",
    "samplers",
]
