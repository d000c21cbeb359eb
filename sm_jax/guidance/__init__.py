"""Steering a trained score towards a label, a classifier, an observation or a known region.

Labels and classifiers, `classifier_free`, `classifier`, and inverse problems, `dps`,
`pigdm`, `mmps`, are transforms of score functions: what they return is again a
``(x_t, t) -> [B, ...]``, for `sm_jax.samplers.heun`, `euler_maruyama` and the rest. `inpaint` is a
sampler of its own. `conjugate_residuals` and `gmres` solve the linear systems of inverse problems.
`drop_labels` prepares the training of conditional networks.
"""

from sm_jax.guidance._inpaint import inpaint
from sm_jax.guidance._inverse import dps, mmps, pigdm
from sm_jax.guidance._labels import classifier, classifier_free, drop_labels
from sm_jax.guidance._solvers import conjugate_residuals, gmres

__all__ = [
    "classifier",
    "classifier_free",
    "conjugate_residuals",
    "dps",
    "drop_labels",
    "gmres",
    "inpaint",
    "mmps",
    "pigdm",
]
