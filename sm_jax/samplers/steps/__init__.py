"""Steps of the diffusion samplers, for a loop of your own or for `sm_jax.samplers.solve`.

A step takes points ``x`` at time ``t`` to the earlier time ``t_next``. It is a pure function

    (score_fn, x, t, t_next, key, *, process) -> x,                                    (1)

and draws from ``key``, if it draws, so that a loop gives each step a key of its own. Times may be
traced. ``x`` keeps its dtype, in which a small step of bfloat16 is lost: keep the state of a loop
in float32, as `solve` does. `langevin`, which stays at one noise level, is
``(score_fn, x, key, *, step_size) -> x``.

In the docstrings ``s = score_fn(x, t)`` is the score, ``z ~ N(0, I)``, and ``alpha``, ``sigma``
and ``r = sigma / alpha`` belong to the process at ``t``, ``alpha'``, ``sigma'`` and ``r'`` at
``t_next = t'``. From ``t'`` to ``t`` the process has the exact transition

    x_t = a x_t' + b z,    a = alpha / alpha',    b^2 = sigma^2 (1 - q^2),    q = r' / r,    (2)

and the law of ``x_t'`` given ``x_t`` and the data ``x_0`` is Gaussian, with

    mean  alpha' (x_0 + q^2 (x_t / alpha - x_0)),    variance  sigma'^2 (1 - q^2).     (3)

With the denoiser ``D = (x_t + sigma^2 s) / alpha`` in the place of ``x_0``, the mean becomes
``(x_t + b^2 s) / a``.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from sm_jax import processes
    >>> process = processes.VE(sigma_max=10.0)
    >>> key, x = jax.random.key(0), processes.prior_sample(process, jax.random.key(1), (4, 2))
    >>> score_fn = lambda x, t: -x / (1.0 + t[:, None] ** 2)
    >>> times = processes.time_grid(process, 20)
    >>> for i in range(20):
    ...     key_step = jax.random.fold_in(key, i)
    ...     x = ancestral(score_fn, x, times[i], times[i + 1], key_step, process=process)
    >>> x.shape
    (4, 2)
"""

from sm_jax.samplers.steps._flow import heun
from sm_jax.samplers.steps._langevin import corrector, langevin, predictor_corrector
from sm_jax.samplers.steps._reverse import ancestral, ddim, euler_maruyama, reverse_diffusion

__all__ = [
    "ancestral",
    "corrector",
    "ddim",
    "euler_maruyama",
    "heun",
    "langevin",
    "predictor_corrector",
    "reverse_diffusion",
]
