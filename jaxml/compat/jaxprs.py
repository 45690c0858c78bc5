"""Reading and replaying jaxprs through ``jax.extend.core``, the surface jax keeps for tools."""

from collections.abc import Callable, Iterable

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

__all__ = [
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Site",
    "Var",
    "apply_equation",
    "called_jaxpr",
    "replay",
    "scan_counts",
]

Site = tuple[tuple[int, ...], Var]
"""A value inside a traced program: equation numbers of the nested calls around it, then its name.

The path is needed because jax shares one inner jaxpr between all calls of a jitted function."""

# Primitives that only call the jaxpr they carry, under the parameter name given here.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def called_jaxpr(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """Returns the body of a call-like equation, None for every other equation."""
    body = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
    # remat carries an open jaxpr, up to jax 0.11.
    return body if body is None or hasattr(body, "jaxpr") else ClosedJaxpr(body, ())


def apply_equation(eqn: JaxprEqn, inputs: Iterable[jax.Array]) -> list[jax.Array]:
    """Computes one equation's outputs from its inputs."""
    outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return outputs if eqn.primitive.multiple_results else [outputs]


def scan_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """Returns how many of a scan's operands are constants and how many are carried.

    Read off the ranks, since the parameters that say so differ between jax 0.10 and 0.12: scanned
    operands and results have one axis more outside the body than inside.
    """
    body = eqn.params["jaxpr"].jaxpr

    def same_rank(outside, inside):
        return sum(
            len(x.aval.shape) == len(y.aval.shape) for x, y in zip(outside, inside, strict=True)
        )

    n_carry = same_rank(eqn.outvars, body.outvars)
    return same_rank(eqn.invars, body.invars) - n_carry, n_carry


def replay(
    closed: ClosedJaxpr, sites: Iterable[Site]
) -> Callable[..., tuple[list[jax.Array], list[jax.Array]]]:
    """Turns a jaxpr into a function that also returns the values at ``sites``.

    Values inside a ``scan`` body come back stacked, with the scanned axis first. Sites inside
    ``while`` and ``cond`` cannot be read.

    Args:
      closed: the program, for example from ``jax.make_jaxpr``.
      sites: where to read.

    Returns:
      ``fn(*flat_args) -> (flat_outputs, values)``, the values in the order of ``sites``; jit, vmap
      and grad pass through.
    """
    sites = list(sites)
    wanted = frozenset(sites)
    prefixes = {path[:i] for path, _ in wanted for i in range(len(path) + 1)}

    def run(jaxpr: Jaxpr, consts, args, path):
        env: dict[Var, jax.Array] = {}
        found: dict[Site, jax.Array] = {}

        def bind(variables, values):
            for var, value in zip(variables, values, strict=True):
                env[var] = value
                if (path, var) in wanted:
                    found[path, var] = value

        bind(jaxpr.constvars, consts)
        bind(jaxpr.invars, args)
        for number, eqn in enumerate(jaxpr.eqns):
            inputs = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
            inner = (*path, number)
            if inner in prefixes and (body := called_jaxpr(eqn)) is not None:
                outputs, more = run(body.jaxpr, body.consts, inputs, inner)
                found |= more
            elif inner in prefixes and eqn.primitive.name == "scan":
                outputs, more = run_scan(eqn, inputs, inner)
                found |= more
            else:
                outputs = apply_equation(eqn, inputs)
            bind(eqn.outvars, outputs)
        return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars], found

    def run_scan(eqn, inputs, path):
        n_consts, n_carry = scan_counts(eqn)
        body = eqn.params["jaxpr"]
        order: list[Site] = []

        def step(carry, xs):
            outputs, found = run(body.jaxpr, body.consts, [*inputs[:n_consts], *carry, *xs], path)
            # Sites do not sort, so a dict of them is no pytree.
            order[:] = found
            return outputs[:n_carry], (outputs[n_carry:], list(found.values()))

        carry, (ys, values) = jax.lax.scan(
            step,
            inputs[n_consts : n_consts + n_carry],
            inputs[n_consts + n_carry :],
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        return [*carry, *ys], dict(zip(order, values, strict=True))

    def replayed(*args):
        outputs, found = run(closed.jaxpr, closed.consts, args, ())
        return outputs, [found[site] for site in sites]

    return replayed
