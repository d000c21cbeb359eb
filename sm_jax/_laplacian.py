r"""Second derivatives of an energy along vectors, forward only: cheaper than through its gradient.

An energy is a chain of operations ``h_l = f_l(h_m, ...)``. Along ``x + e v``, the first and the
second derivative by ``e`` of every intermediate result follow from those of its inputs,

    z_l = Df_l[z],                                                                     (1)
    c_l = Df_l[c] + D^2 f_l[z, z],                                                     (2)

and of the last one they are ``v' grad E`` and ``v' (grad^2 E) v``. As (2) is linear in ``c``, the
sum over several vectors needs one pass only: ``D^2 f_l[z, z]`` is summed over the vectors, each of
which costs one pass (1), and (2) is solved once for the sum. A Hessian-vector product costs two
passes for each vector, and more memory when it is differentiated.

The sum passes through (2) in the dtype of each result. Below float32 that would round the total,
where products with the Hessian round single terms, so energies in low precision are left to those.

Operations that are linear add nothing to (2), and those that act on each number alone have their
two derivatives taken once for all vectors. Any other goes through nested ``jax.jvp``.

References: Li et al. 2023 (forward Laplacian), https://arxiv.org/abs/2307.08214; Dangel et al. 2025
(collapsed Taylor mode), https://arxiv.org/abs/2505.13644
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxprs_in_params

from sm_jax import _arrays
from sm_jax._eager import compiled
from sm_jax.typing import EnergyFn

# Linear in all floating inputs together; and linear in the one that depends on x, if it is one of
# those at the given places. What is not listed counts as curved, which costs time only.
# fmt: off
_LINEAR = {
    "add", "add_any", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "cumsum",
    "dynamic_slice", "gather", "neg", "pad", "reduce_sum", "reshape", "rev", "select_n", "slice",
    "split", "squeeze", "sub", "transpose",
}
_LINEAR_IN_ONE = {
    "conv_general_dilated": (0, 1), "div": (0,), "dot_general": (0, 1), "mul": (0, 1),
}
_ELEMENTWISE = {
    "abs", "add", "and", "broadcast_in_dim", "cbrt", "convert_element_type", "copy", "cos",
    "custom_jvp_call", "div", "eq", "erf", "exp", "exp2", "expm1", "ge", "gt", "integer_pow",
    "is_finite", "jit", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg",
    "not", "or", "pjit", "pow", "rsqrt", "select_n", "sign", "sin", "sqrt", "square",
    "stop_gradient", "sub", "tanh",
}
# fmt: on
_CALLS = {"checkpoint": "jaxpr", "closed_call": "call_jaxpr", "jit": "jaxpr", "pjit": "jaxpr"}


class _Node(NamedTuple):
    """A result that depends on ``x``: its value, and its place among all such results."""

    value: jax.Array
    place: int


class _Operation(NamedTuple):
    """One operation on results that depend on ``x``.

    Attributes:
        inputs: those of its inputs that depend on ``x``.
        outputs: its floating outputs.
        first: ``z -> Df[z]``, tuples of arrays.
        second: ``z -> D^2 f[z, z]``, or None where it is zero.
    """

    inputs: tuple[_Node, ...]
    outputs: tuple[_Node, ...]
    first: Callable
    second: Callable | None


def directional_derivatives(
    energy_fn: EnergyFn,
    x: jax.Array,
    vector: Callable[[jax.Array], jax.Array],
    seeds: jax.Array,
    *,
    chunk: int | None,
    unroll: bool,
) -> tuple[jax.Array, jax.Array] | None:
    """Return ``v' grad E [K, B]`` and ``sum_v v' (grad^2 E) v [B]``, ``v = vector(seeds[k])``.

    ``seeds`` are ``K`` indices, keys or vectors; ``vector`` makes one ``v [B, ...]`` of one of
    them. The vectors are made one by one, or ``chunk`` at a time, in a loop unless ``unroll``. The
    result is None where the energy has a derivative rule (``jax.custom_vjp``) that knows no forward
    mode, or passes through complex numbers or a dtype below float32.
    """
    program = jax.make_jaxpr(energy_fn)(x)
    jaxpr = getattr(program, "jaxpr", program)  # JAX 0.11 merges Jaxpr and ClosedJaxpr
    if not _is_supported(jaxpr):
        return None
    operations: list[_Operation] = []
    (energy,) = _evaluate(jaxpr, getattr(program, "consts", ()), [_Node(x, 0)], operations)
    if not isinstance(energy, _Node):  # the energy does not depend on x
        return jnp.zeros((len(seeds), *energy.shape), energy.dtype), jnp.zeros_like(energy)

    def along(seed):
        z, curved = {0: vector(seed)}, []
        for operation in operations:
            given = tuple(z[node.place] for node in operation.inputs)
            places = (node.place for node in operation.outputs)
            z.update(zip(places, operation.first(given), strict=True))
            if operation.second:
                curved.append(operation.second(given))
        return z[energy.place], jax.tree.map(_arrays.accumulated, curved)

    slopes, curved = _map_and_sum(along, seeds, chunk, unroll)

    c: dict[int, jax.Array] = {}
    for operation in operations:
        own = curved.pop(0) if operation.second else [0.0] * len(operation.outputs)
        if any(node.place in c for node in operation.inputs):
            given = (c.get(node.place, jnp.zeros_like(node.value)) for node in operation.inputs)
            own = map(jnp.add, own, operation.first(tuple(given)))
        elif not operation.second:
            continue
        for node, value in zip(operation.outputs, own, strict=True):
            c[node.place] = value.astype(node.value.dtype)
    return slopes, c.get(energy.place, jnp.zeros_like(energy.value))


def _map_and_sum(along: Callable, seeds: jax.Array, chunk: int | None, unroll: bool):
    """Return the slopes of every vector, stacked, and the sum of their second-order terms."""
    if unroll:
        rows, terms = zip(*(along(seed) for seed in seeds), strict=True)
        return jnp.stack(rows), jax.tree.map(lambda *each: sum(each[1:], each[0]), *terms)

    size = min(chunk or 1, len(seeds))
    whole = len(seeds) // size * size

    def step(seeds):
        if size == 1:  # without an axis that convolutions would carry along
            slopes, curved = along(seeds[0])
            return slopes[None], curved
        slopes, curved = jax.vmap(along)(seeds)
        return slopes, jax.tree.map(lambda terms: terms.sum(axis=0), curved)

    step = jax.checkpoint(step, prevent_cse=False)

    def body(total, seeds):
        slopes, curved = step(seeds)
        return jax.tree.map(jnp.add, total, curved), slopes

    chunks = seeds[:whole].reshape(-1, size, *seeds.shape[1:])
    _, shapes = jax.eval_shape(step, chunks[0])
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    curved, slopes = compiled(partial(jax.lax.scan, body), start, chunks)
    slopes = slopes.reshape(whole, *slopes.shape[2:])
    if whole < len(seeds):
        curved, rest = body(curved, seeds[whole:])
        slopes = jnp.concatenate([slopes, rest])
    return slopes, curved


def _evaluate(jaxpr, consts: Sequence, arguments: Sequence, operations: list[_Operation]) -> list:
    """Run ``jaxpr``; append to ``operations`` those that depend on ``x``; return its outputs."""
    values: dict[Any, Any] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True)
    )

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        if equation.primitive.name in _CALLS:
            inner = equation.params[_CALLS[equation.primitive.name]]
            inner, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            outputs: Sequence = _evaluate(inner, consts, given, operations)
        else:
            outputs = _operate(equation, given, operations)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _operate(equation, given: Sequence, operations: list[_Operation]) -> Sequence:
    """Run one operation, and append it to ``operations`` if it depends on ``x``."""
    plain = [value.value if isinstance(value, _Node) else value for value in given]
    outputs = _bind(equation, plain)
    dependent = [i for i, value in enumerate(given) if isinstance(value, _Node)]
    floating = [i for i, out in enumerate(outputs) if jnp.issubdtype(out.dtype, jnp.floating)]
    if not dependent or not floating:
        return outputs

    def function(*inputs):
        values = list(plain)
        for i, value in zip(dependent, inputs, strict=True):
            values[i] = value
        outputs = _bind(equation, values)
        return tuple(outputs[i] for i in floating)

    inputs = tuple(given[i] for i in dependent)
    first, second = _derivatives(equation, function, dependent, [node.value for node in inputs])
    place = 1 + (operations[-1].outputs[-1].place if operations else 0)
    nodes = {i: _Node(outputs[i], place + n) for n, i in enumerate(floating)}
    operations.append(_Operation(inputs, tuple(nodes.values()), first, second))
    return [nodes.get(i, out) for i, out in enumerate(outputs)]


def _derivatives(equation, function: Callable, dependent: list[int], inputs: list[jax.Array]):
    """Return ``z -> Df[z]`` and ``z -> D^2 f[z, z]``, or None for the latter if it is zero."""
    name = equation.primitive.name
    if name not in _LINEAR and _is_elementwise(equation, inputs):
        ones = (jnp.ones_like(inputs[0]),)
        (slope,), (curvature,) = jax.jvp(
            lambda value: jax.jvp(function, (value,), ones)[1], tuple(inputs), ones
        )
        return lambda z: (slope * z[0],), lambda z: (curvature * z[0] ** 2,)

    _, push = jax.linearize(function, *inputs)
    if name in _LINEAR or (len(dependent) == 1 and dependent[0] in _LINEAR_IN_ONE.get(name, ())):
        return lambda z: push(*z), None

    def second(z):
        return jax.jvp(lambda *inputs: jax.jvp(function, inputs, z)[1], tuple(inputs), z)[1]

    return lambda z: push(*z), second


def _is_elementwise(equation, inputs: list[jax.Array]) -> bool:
    """Whether an operation acts on each number of its only input that depends on ``x`` alone."""
    shapes = [out.aval.shape for out in equation.outvars]
    return len(inputs) == 1 and shapes == [inputs[0].shape] and _only_elementwise(equation)


def _only_elementwise(equation) -> bool:
    return equation.primitive.name in _ELEMENTWISE and all(
        _only_elementwise(inner)
        for jaxpr in jaxprs_in_params(equation.params)
        for inner in jaxpr.eqns
    )


def _is_supported(jaxpr) -> bool:
    """Whether all derivatives of a program are real, precise and known in forward mode."""
    variables = [*jaxpr.constvars, *jaxpr.invars]
    for equation in jaxpr.eqns:
        variables += equation.outvars
        if "custom_vjp" in equation.primitive.name:
            return False
    inner = (part for equation in jaxpr.eqns for part in jaxprs_in_params(equation.params))
    return all(map(_is_precise, variables)) and all(map(_is_supported, inner))


def _is_precise(variable) -> bool:
    """Return whether a variable is real, and if floating, float32 at least."""
    dtype = getattr(variable.aval, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return True
    return jnp.issubdtype(dtype, jnp.floating) and _arrays.accumulator(dtype) == dtype


def _bind(equation, values: Sequence) -> Sequence:
    """Return the outputs of one operation, as a sequence."""
    params = equation.primitive.get_bind_params(equation.params)
    outputs = equation.primitive.bind(*values, **params)
    return outputs if equation.primitive.multiple_results else [outputs]
