"""Replaying a jaxpr computes what the function does, and reads out the right values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxml.compat.jaxprs import called_jaxpr, replay, scan_counts

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
U = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
V = np.random.default_rng(2).normal(size=(5, 5)).astype(np.float32)


@jax.custom_jvp
def cube(x):
    return x**3


@cube.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return cube(x), 3 * x**2 * t


@jax.custom_vjp
def double(x):
    return 2 * x


double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def find(closed, name, *, path=()):
    """Yields (site path, equation) of every equation of primitive ``name``, calls and scans in."""
    for number, eqn in enumerate(closed.jaxpr.eqns):
        inner = (*path, number)
        body = called_jaxpr(eqn)
        if body is None and eqn.primitive.name == "scan":
            body = eqn.params["jaxpr"]
        if body is not None:
            yield from find(body, name, path=inner)
        if eqn.primitive.name == name:
            yield path, eqn


def sites_of(closed, name, *, operand=0):
    return [(path, eqn.invars[operand]) for path, eqn in find(closed, name)]


@pytest.mark.parametrize(
    "call",
    [jax.jit, jax.checkpoint, cube, double, lambda x: jax.jit(jnp.sin)(x)],
    ids=["jit", "remat", "custom_jvp", "custom_vjp", "inner_jit"],
)
def test_calls_have_a_body_that_computes_the_same(call):
    fn = call if call in (cube, double) or call.__name__ == "<lambda>" else call(jnp.sin)
    closed = jax.make_jaxpr(fn)(X)
    (body,) = [b for b in map(called_jaxpr, closed.jaxpr.eqns) if b is not None]
    (out,) = jax.core.eval_jaxpr(body.jaxpr, body.consts, X)
    np.testing.assert_allclose(out, fn(X), rtol=1e-6)


def test_other_equations_have_no_body():
    closed = jax.make_jaxpr(lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x + 1))(X)
    assert [called_jaxpr(eqn) for eqn in closed.jaxpr.eqns] == [None] * len(closed.jaxpr.eqns)


@pytest.mark.parametrize("n_consts", [0, 2])
@pytest.mark.parametrize("n_carry", [0, 1, 3])
@pytest.mark.parametrize("n_xs", [0, 1, 2])
def test_scan_counts(n_consts, n_carry, n_xs):
    def fn(consts, carry, xs):
        def step(carry, xs):
            total = sum([*consts, *carry, *(jnp.sum(x) for x in xs)], jnp.float32(0))
            return tuple(c + total for c in carry), total

        return lax.scan(step, carry, xs, length=4)

    consts, carry = (jnp.float32(1),) * n_consts, (jnp.float32(2),) * n_carry
    closed = jax.make_jaxpr(fn)(consts, carry, (X,) * n_xs)
    ((_, eqn),) = find(closed, "scan")
    assert scan_counts(eqn) == (n_consts, n_carry)


def two_layers(x, u, v):
    h = jax.nn.relu(x @ u)
    return jnp.tanh(h @ v).sum(-1)


def recurrent(x, u, v, *, reverse=False):
    def step(h, row):
        h = jnp.tanh(row @ u + h @ v)
        return h, h.sum()

    h, sums = lax.scan(step, jnp.zeros(5, x.dtype), x, reverse=reverse)
    return h.sum() + sums


PROGRAMS = {
    "plain": two_layers,
    "jit": jax.jit(two_layers),
    "remat": jax.checkpoint(two_layers),
    "custom": lambda x, u, v: cube(double(x @ u) @ v),
    "scan": recurrent,
    "reverse_scan": functools.partial(recurrent, reverse=True),
    "scan_in_jit_in_scan": lambda x, u, v: lax.scan(
        lambda c, row: (c + jax.jit(recurrent)(row[None] * x, u, v).sum(), c), jnp.float32(0), x
    ),
    "cond": lambda x, u, v: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x @ u) @ v,
    "while": lambda x, u, v: lax.fori_loop(0, jnp.argmax(x[0]) + 2, lambda _, h: h @ v, x @ u),
    "constants": lambda x, u, v: x @ U + jnp.arange(5.0)[None],
    "random": lambda x, u, v: x @ u + jax.random.normal(jax.random.key(0), (4, 5)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_replay_returns_the_outputs_of_the_function(name):
    fn = PROGRAMS[name]
    closed = jax.make_jaxpr(fn)(X, U, V)
    sites = sites_of(closed, "dot_general")
    assert sites
    outputs, values = jax.jit(replay(closed, sites))(X, U, V)
    for out, expected in zip(outputs, jax.tree.leaves(jax.jit(fn)(X, U, V)), strict=True):
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    assert len(values) == len(sites)


@pytest.mark.parametrize("name", ["plain", "jit", "remat"])
def test_values_read_out_equal_those_recomputed(name):
    closed = jax.make_jaxpr(PROGRAMS[name])(X, U, V)
    first, second = sites_of(closed, "dot_general")
    _, (x, hidden) = replay(closed, [first, second])(X, U, V)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_allclose(hidden, np.maximum(X @ U, 0), rtol=1e-5, atol=1e-6)
    _, (again, _) = replay(closed, [second, first])(X, U, V)
    np.testing.assert_array_equal(again, hidden)


@pytest.mark.parametrize("reverse", [False, True])
def test_values_inside_a_scan_come_back_stacked_in_the_order_of_time(reverse):
    fn = functools.partial(recurrent, reverse=reverse)
    closed = jax.make_jaxpr(fn)(X, U, V)
    row_site, state_site = sites_of(closed, "dot_general")
    _, (rows, got) = replay(closed, [row_site, state_site])(X, U, V)
    np.testing.assert_array_equal(rows, X)
    h, states = np.zeros(5, np.float32), [None] * 4
    for t in reversed(range(4)) if reverse else range(4):
        states[t] = h
        h = np.tanh(X[t] @ U + h @ V)
    np.testing.assert_allclose(got, states, rtol=1e-4, atol=1e-5)


def test_nested_scans_stack_the_outer_axis_first():
    closed = jax.make_jaxpr(PROGRAMS["scan_in_jit_in_scan"])(X, U, V)
    row_site, _ = sites_of(closed, "dot_general")
    _, (rows,) = replay(closed, [row_site])(X, U, V)
    np.testing.assert_allclose(rows, X[:, None] * X[None], rtol=1e-6)


def test_two_calls_of_one_function_are_told_apart():
    layer = jax.jit(lambda h, w: jax.nn.relu(h @ w))
    closed = jax.make_jaxpr(lambda x, u, v: layer(layer(layer(x, u), v), v))(X, U, V)
    sites = sites_of(closed, "dot_general")
    # jax shares the inner jaxpr of the last two calls, variables included.
    assert len({path for path, _ in sites}) == 3
    _, values = replay(closed, sites)(X, U, V)
    h = X
    for value, w in zip(values, (U, V, V), strict=True):
        np.testing.assert_allclose(value, h, rtol=1e-5, atol=1e-5)
        h = np.maximum(h @ w, 0)


@pytest.mark.parametrize("name", ["remat", "custom", "scan", "cond"])
def test_gradients_through_replay_are_those_of_the_function(name):
    fn = PROGRAMS[name]
    closed = jax.make_jaxpr(fn)(X, U, V)
    read = replay(closed, sites_of(closed, "dot_general"))

    def through(x, u, v):
        return read(x, u, v)[0][0].sum()

    got = jax.jit(jax.grad(through, argnums=(0, 1, 2)))(X, U, V)
    expected = jax.jit(jax.grad(lambda *args: fn(*args).sum(), argnums=(0, 1, 2)))(X, U, V)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4)


def test_gradient_of_a_value_that_was_read_out():
    closed = jax.make_jaxpr(two_layers)(X, U, V)
    _, hidden = sites_of(closed, "dot_general")
    read = replay(closed, [hidden])
    got = jax.grad(lambda u: read(X, u, V)[1][0].sum())(U)
    np.testing.assert_allclose(got, X.T @ (X @ U > 0).astype(np.float32), rtol=1e-5, atol=1e-5)


def test_replay_under_vmap_equals_a_loop():
    closed = jax.make_jaxpr(recurrent)(X, U, V)
    sites = sites_of(closed, "dot_general")
    read = replay(closed, sites)
    many_u = jnp.stack([U, 2 * U])
    outputs, values = jax.vmap(lambda u: read(X, u, V))(many_u)
    for i in range(2):
        one, seen = read(X, many_u[i], V)
        np.testing.assert_allclose(outputs[0][i], one[0], rtol=1e-5, atol=1e-6)
        for value, expected in zip(values, seen, strict=True):
            np.testing.assert_allclose(value[i], expected, rtol=1e-5, atol=1e-6)
