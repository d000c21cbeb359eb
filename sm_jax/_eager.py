"""Compiled once, found again: what makes the second eager call of a sampler or likelihood free.

JAX finds compiled code by the identity of the function, and a loop within a sampler is a new one at
every call. Here a function is the same *if it traces to the same program*: the same operations on
the same shapes and dtypes, with the same Python and NumPy scalars, whatever lambda, ``partial`` or
module it came from. The arrays that it closes over, such as the parameters of a network, are
arguments of the program, not part of it. So new parameters reuse it, and nothing can be stale, for
the function is traced anew at each call, which takes milliseconds where compiling takes seconds.

Programs are compared by content, exactly, not by what they print. In doubt they differ, which costs
a compilation. They are kept by JAX's own cache of `_run`, one for each distinct content, and
``jax.clear_caches`` drops them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.core.primitives import custom_jvp_call_p, custom_vjp_call_p


def compiled(function: Callable, *args: Any) -> Any:
    """Return ``function(*args)``, compiled unless a call with the same program was before.

    Within a trace (the user's ``jit``, ``grad``, ``vmap``, or a loop) the function is just called,
    and so is one with effects, which may not be cached.
    """
    here = jax.lax.full((), 0.0)  # traced under jit, even if the arguments are not
    if jax.config.jax_disable_jit or _any_traced((here, args)):
        return function(*args)
    return found(function, *args)(*args)


def found(function: Callable, *args: Any) -> Callable:
    """Return ``function`` as a compiled one, for arguments of the shapes and dtypes of ``args``."""
    # A new function at each call: JAX would remember the trace of an old one.
    traced, results = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
    if traced.effects or _any_traced(traced.consts):
        return function
    program, consts, tree = _Program(traced), traced.consts, jax.tree.structure(results)
    return lambda *args: jax.tree.unflatten(tree, _run(program, consts, jax.tree.leaves(args)))


def _any_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


class _Program:
    """A traced program without its constants, equal to those of the same content."""

    def __init__(self, traced: ClosedJaxpr):
        self.jaxpr = getattr(traced, "jaxpr", traced)  # one class as of jax 0.11
        self.content = _content(self.jaxpr)
        self.hash = hash(self.content)

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        return self.hash == other.hash and self.content == other.content


@partial(jax.jit, static_argnums=0)
def _run(program: _Program, consts: list, args: list) -> list:
    jaxpr, program.jaxpr = program.jaxpr, None  # the cache keeps the content alone
    return jax.core.eval_jaxpr(jaxpr, consts, *args)


def _content(jaxpr: Jaxpr) -> tuple:
    """Return all that a program computes, its variables numbered in the order of appearance."""
    numbers = {}

    def bind(variables):
        return tuple((numbers.setdefault(v, len(numbers)), v.aval) for v in variables)

    def read(atoms):
        return tuple(
            (_value(a.val), a.aval) if isinstance(a, Literal) else numbers[a] for a in atoms
        )

    inputs = bind(jaxpr.constvars), bind(jaxpr.invars)
    equations = tuple(
        (eqn.primitive, eqn.ctx, read(eqn.invars), _params(eqn), bind(eqn.outvars))
        for eqn in jaxpr.eqns
    )
    return inputs, equations, read(jaxpr.outvars)


def _params(eqn) -> tuple:
    """Return the parameters of an equation, without rules of derivatives: it is only run."""
    params = eqn.params
    if eqn.primitive in (custom_jvp_call_p, custom_vjp_call_p):
        params = {"call_jaxpr": params["call_jaxpr"]}
    return _value(params)


def _value(value: Any) -> tuple:
    """Return what is equal for another value only if they mean the same: 1, 1.0 and -0.0 differ."""
    kind = type(value)
    if isinstance(value, ClosedJaxpr | Jaxpr):
        program = getattr(value, "jaxpr", value)
        return kind, _content(program), _value(tuple(getattr(value, "consts", ())))
    if isinstance(value, tuple | list):
        return kind, tuple(map(_value, value))
    if isinstance(value, dict):
        return kind, tuple((key, _value(entry)) for key, entry in value.items())
    if isinstance(value, float | complex):
        return kind, repr(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return kind, value.dtype, value.shape, np.asarray(jax.random.key_data(value)).tobytes()
        return kind, value.dtype, value.shape, np.asarray(value).tobytes()
    try:
        hash(value)
    except TypeError:
        return kind, _Itself(value)
    return kind, value


class _Itself:
    """What has no content to compare: equal to itself alone."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self):
        return id(self.value)
