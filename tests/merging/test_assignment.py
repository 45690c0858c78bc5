"""Linear assignment: both backends against brute force and each other, concrete and traced."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxml.merging import linear_sum_assignment

BACKENDS = ("scipy", "hungarian")


def value(cost, p):
    return np.asarray(cost, np.float64)[np.arange(len(p)), np.asarray(p)].sum()


def brute_force(cost, maximize):
    best = max if maximize else min
    return best(value(cost, p) for p in itertools.permutations(range(len(cost))))


def costs(kind, n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "gaussian": rng.normal(size=(n, n)).astype(np.float32),
        "aligned": (np.eye(n) + 0.1 * rng.normal(size=(n, n))).astype(np.float32),
        "ties": rng.integers(0, 3, (n, n)).astype(np.float32),
        "integers": rng.integers(-9, 10, (n, n)).astype(np.int32),
        "constant": np.ones((n, n), np.float32),
        "rank_one": np.outer(rng.normal(size=n), rng.normal(size=n)).astype(np.float32),
        "dead_units": (rng.normal(size=(n, n)) * (np.arange(n) % 3 > 0)).astype(np.float32),
    }[kind]


KINDS = ("gaussian", "aligned", "ties", "integers", "constant", "rank_one", "dead_units")


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_brute_force(backend, kind, maximize):
    cost = costs(kind, 5)
    p = linear_sum_assignment(cost, maximize=maximize, backend=backend)
    assert p.dtype == np.int32
    np.testing.assert_array_equal(np.sort(p), np.arange(5))
    np.testing.assert_allclose(value(cost, p), brute_force(cost, maximize), rtol=1e-5, atol=1e-5)


@given(hnp.arrays(np.int32, (4, 4), elements=st.integers(-5, 5)), st.booleans())
@settings(max_examples=30, deadline=None)
def test_small_integers_with_ties_are_exact(cost, maximize):
    for backend in BACKENDS:
        p = linear_sum_assignment(cost, maximize=maximize, backend=backend)
        assert value(cost, p) == brute_force(cost, maximize)


@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_in_objective_and_jit_equals_eager(kind):
    cost = costs(kind, 30)
    values = []
    for backend in BACKENDS:
        eager = linear_sum_assignment(cost, maximize=True, backend=backend)
        jitted = jax.jit(lambda c, b=backend: linear_sum_assignment(c, maximize=True, backend=b))
        np.testing.assert_array_equal(jitted(cost), eager)
        values.append(value(cost, eager))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_equals_a_loop(backend):
    stack = np.stack([costs(kind, 12) for kind in KINDS if kind != "integers"])
    many = jax.jit(jax.vmap(lambda c: linear_sum_assignment(c, maximize=False, backend=backend)))(
        stack
    )
    for p, cost in zip(many, stack, strict=True):
        one = linear_sum_assignment(cost, maximize=False, backend=backend)
        np.testing.assert_allclose(value(cost, p), value(cost, one), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adding_to_rows_or_columns_does_not_change_the_solution(backend):
    cost = costs("gaussian", 20)
    shift = np.random.default_rng(1).normal(size=(2, 20)).astype(np.float32)
    moved = cost + shift[0][:, None] + shift[1]
    one = linear_sum_assignment(cost, maximize=True, backend=backend)
    np.testing.assert_array_equal(linear_sum_assignment(moved, maximize=True, backend=backend), one)
    np.testing.assert_array_equal(
        linear_sum_assignment(-cost, maximize=False, backend=backend), one
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint8, jnp.bool_])
@pytest.mark.parametrize("backend", BACKENDS)
def test_narrow_types(backend, dtype):
    cost = jnp.asarray(costs("integers", 6) > 0, dtype)
    for maximize in (True, False):
        p = linear_sum_assignment(cost, maximize=maximize, backend=backend)
        assert value(cost, p) == brute_force(np.asarray(cost, np.float64), maximize)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [0, 1])
def test_smallest_sizes(backend, n):
    p = linear_sum_assignment(np.ones((n, n), np.float32), maximize=True, backend=backend)
    np.testing.assert_array_equal(p, np.arange(n))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_values_raise_when_concrete_and_give_minus_one_when_traced(backend, bad):
    cost = costs("gaussian", 4)
    cost[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or an infinity"):
        linear_sum_assignment(cost, maximize=True, backend=backend)

    def solve(c):
        return linear_sum_assignment(c, maximize=True, backend=backend)

    np.testing.assert_array_equal(jax.jit(solve)(cost), np.full(4, -1))
    good, flagged = jax.jit(jax.vmap(solve))(np.stack([costs("gaussian", 4), cost]))
    np.testing.assert_array_equal(good, solve(costs("gaussian", 4)))
    np.testing.assert_array_equal(flagged, np.full(4, -1))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"square matrix, got shape \(2, 3\)"):
        linear_sum_assignment(np.zeros((2, 3)), maximize=True)
    with pytest.raises(ValueError, match=r"square matrix, got shape \(4,\)"):
        jax.jit(lambda c: linear_sum_assignment(c, maximize=True))(np.zeros(4))
    with pytest.raises(ValueError, match="'scipy' or 'hungarian', got 'auction'"):
        linear_sum_assignment(np.zeros((2, 2)), maximize=True, backend="auction")
