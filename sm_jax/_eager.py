"""Compiled once, found again: what makes the second eager call of a sampler or likelihood free.

JAX finds compiled code by the identity of the function, and a loop within a sampler is a new one at
every call. Here a function is the same *if it traces to the same program*: the same operations on
the same shapes and dtypes, with the same Python and NumPy scalars, whatever lambda, ``partial`` or
module it came from. The arrays that it closes over, such as the parameters of a network, are
arguments of the program, not part of it. So new parameters reuse it, and nothing can be stale, for
the function is traced anew at each call, which takes milliseconds where compiling takes seconds.

JAX makes inputs of the arrays in closures of loops and branches, but constants of those of a
``jit`` within the function, which diffrax, blackjax and users have. To compile a program with such
constants, it is evaluated equation by equation, and each ``jit`` in it as its body, with arguments
in the place of its arrays. Where that is not possible (a ``jit`` with shardings or compiler options
of its own, or one in ``jax.checkpoint``, ``shard_map``, a linear solve, ...) they are part of the
program, and new ones compile anew.

Programs are compared by content, exactly, not by what they print. In doubt they differ, which costs
a compilation. They are kept by JAX's own cache of `_run`, one for each distinct content, and
``jax.clear_caches`` drops them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.core.primitives import (
    cond_p,
    custom_jvp_call_p,
    custom_vjp_call_p,
    jit_p,
    scan_p,
    while_p,
)


def compiled(function: Callable, *args: Any) -> Any:
    """Return ``function(*args)``, compiled unless a call with the same program was before.

    Within a trace (the user's ``jit``, ``grad``, ``vmap``, or a loop) the function is just called,
    and so is one with effects, which may not be cached.
    """
    here = jax.lax.full((), 0.0)  # traced under jit, even if the arguments are not
    disabled = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if disabled or _any_traced((here, args)):
        return function(*args)
    return found(function, *args)(*args)


def found(function: Callable, *args: Any) -> Callable:
    """Return ``function`` as a compiled one, for arguments of the shapes and dtypes of ``args``."""
    # A new function at each call: JAX would remember the trace of an old one.
    traced, results = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
    if traced.effects:
        return function
    program, tree = _Program(traced), jax.tree.structure(results)
    arrays = traced.consts, [array for _, array in program.inner.values()]
    if _any_traced(arrays):
        return function
    return lambda *args: jax.tree.unflatten(tree, _run(program, arrays, jax.tree.leaves(args)))


def _any_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


class _Program:
    """A traced program without its arrays, equal to those of the same content."""

    def __init__(self, traced: ClosedJaxpr):
        self.jaxpr: Any = _open(traced)
        self.inner: Any = {}  # arrays of programs within, numbered, by identity
        self.content = _content(self.jaxpr, self.inner)
        self.hash = hash(self.content)

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        return self.hash == other.hash and self.content == other.content


@partial(jax.jit, static_argnums=0)
def _run(program: _Program, arrays: tuple[list, list], args: list) -> list:
    jaxpr, inner = program.jaxpr, program.inner
    program.jaxpr = program.inner = None  # the cache keeps the content alone
    consts, values = arrays
    if not inner:
        return jax.core.eval_jaxpr(jaxpr, consts, *args)
    return _evaluate(jaxpr, [*consts, *args], dict(zip(inner, values, strict=True)))


def _open(program: Any) -> Jaxpr:
    return getattr(program, "jaxpr", program)  # one class as of jax 0.11


def _arrays(program: ClosedJaxpr | Jaxpr) -> list:
    return list(getattr(program, "consts", ()))


def _programs(eqn: JaxprEqn) -> list[ClosedJaxpr | Jaxpr]:
    leaves = jax.tree.leaves(_params(eqn), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr))
    return [leaf for leaf in leaves if isinstance(leaf, ClosedJaxpr | Jaxpr)]


# To compile a program with arrays in programs within: the rules by which these become arguments.


def _evaluate(jaxpr: Jaxpr, inputs: list, inner: dict[int, Any]) -> list:
    """Return the results of a program, with the values of ``inner`` for the arrays within."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else known[atom]

    def body(program):
        arrays = [inner[id(array)] for array in _arrays(program)]
        return lambda *args: _evaluate(_open(program), [*arrays, *args], inner)

    for eqn in jaxpr.eqns:
        values = list(map(read, eqn.invars))
        if _holds_arrays(eqn):
            results = _RULES[eqn.primitive](eqn, body, values)
        else:
            with eqn.ctx.manager:
                params = eqn.primitive.get_bind_params(eqn.params)
                results = eqn.primitive.bind(*values, **params)
        results = results if eqn.primitive.multiple_results else [results]
        known.update(zip(eqn.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _holds_arrays(eqn: JaxprEqn) -> bool:
    return _has_rule(eqn) and any(
        _arrays(program) or any(map(_holds_arrays, _open(program).eqns))
        for program in _programs(eqn)
    )


def _has_rule(eqn: JaxprEqn) -> bool:
    """Return whether arrays within are arguments: in what is evaluated the same without a jit."""
    if eqn.primitive is not jit_p:
        return eqn.primitive in _RULES
    shardings = *eqn.params["in_shardings"], *eqn.params["out_shardings"]
    layouts = *eqn.params["in_layouts"], *eqn.params["out_layouts"]
    return (
        not any(isinstance(sharding, jax.sharding.Sharding) for sharding in shardings)
        and all(layout is None for layout in layouts)
        and not eqn.params["compiler_options_kvs"]
    )


def _call(eqn: JaxprEqn, body: Callable, values: list) -> list:
    (program,) = _programs(eqn)
    return body(program)(*values)


def _cond(eqn: JaxprEqn, body: Callable, values: list) -> list:
    index, *operands = values
    return jax.lax.switch(index, list(map(body, eqn.params["branches"])), *operands)


def _while(eqn: JaxprEqn, body: Callable, values: list) -> list:
    middle = eqn.params["cond_nconsts"]
    start = middle + eqn.params["body_nconsts"]
    test, step = body(eqn.params["cond_jaxpr"]), body(eqn.params["body_jaxpr"])

    def unfinished(state):
        return test(*values[:middle], *state)[0]

    def advance(state):
        going, new = unfinished(state), step(*values[middle:start], *state)
        if not going.ndim:
            return new
        # Under vmap a loop runs until the last of the batch has ended; those that have ended stay.
        return [
            jnp.where(going.reshape(going.shape + (1,) * (to.ndim - going.ndim)), to, at)
            for at, to in zip(state, new, strict=True)
        ]

    return jax.lax.while_loop(lambda state: jnp.any(unfinished(state)), advance, values[start:])


def _scan(eqn: JaxprEqn, body: Callable, values: list) -> list:
    def rank(variable) -> int:
        return variable.aval.ndim

    program = eqn.params["jaxpr"]
    num_inputs, num_outputs = (  # those that have an axis more than within: the rest is carried
        sum(rank(a) > rank(b) for a, b in zip(outside, inside, strict=True))
        for outside, inside in (
            (eqn.invars, _open(program).invars),
            (eqn.outvars, _open(program).outvars),
        )
    )
    num_carried = len(eqn.outvars) - num_outputs
    stop = len(values) - num_inputs
    start = stop - num_carried
    step = body(program)

    def advance(state, inputs):
        results = step(*values[:start], *state, *inputs)
        return results[:num_carried], results[num_carried:]

    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    state, outputs = jax.lax.scan(advance, values[start:stop], values[stop:], **options)
    return [*state, *outputs]


_RULES = {
    jit_p: _call,
    custom_jvp_call_p: _call,
    custom_vjp_call_p: _call,
    cond_p: _cond,
    while_p: _while,
    scan_p: _scan,
}


# What a program computes.


def _content(jaxpr: Jaxpr, inner: dict[int, tuple[int, Any]] | None) -> tuple:
    """Return all that a program computes, its variables numbered in the order of appearance.

    The arrays of programs within are numbered too, and added to ``inner``; if it is None, they are
    content.
    """
    numbers: dict[Any, int] = {}

    def bind(variables):
        return tuple((numbers.setdefault(v, len(numbers)), v.aval) for v in variables)

    def read(atoms):
        return tuple(
            (_value(a.val), a.aval) if isinstance(a, Literal) else numbers[a] for a in atoms
        )

    def params(eqn):
        return _value(_params(eqn), inner if _has_rule(eqn) else None)

    inputs = bind(jaxpr.constvars), bind(jaxpr.invars)
    equations = tuple(
        (eqn.primitive, eqn.ctx, read(eqn.invars), params(eqn), bind(eqn.outvars))
        for eqn in jaxpr.eqns
    )
    return inputs, equations, read(jaxpr.outvars)


def _params(eqn: JaxprEqn) -> dict[str, Any]:
    """Return the parameters of an equation, without rules of derivatives: it is only run."""
    if eqn.primitive in (custom_jvp_call_p, custom_vjp_call_p):
        return {"call_jaxpr": eqn.params["call_jaxpr"]}
    return eqn.params


def _value(value: Any, inner: dict[int, tuple[int, Any]] | None = None) -> tuple:
    """Return what is equal for another value only if they mean the same: 1, 1.0 and -0.0 differ."""
    kind = type(value)
    if isinstance(value, ClosedJaxpr | Jaxpr):
        arrays, content = _arrays(value), _content(_open(value), inner)
        if inner is None:
            return kind, content, _value(tuple(arrays))
        # An array that appears twice is one argument, so which ones are the same is content.
        return kind, content, tuple(inner.setdefault(id(a), (len(inner), a))[0] for a in arrays)
    if isinstance(value, tuple | list):
        return kind, tuple(_value(entry, inner) for entry in value)
    if isinstance(value, dict):
        return kind, tuple((key, _value(entry, inner)) for key, entry in value.items())
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
