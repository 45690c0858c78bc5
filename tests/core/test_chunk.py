"""Reductions over batches: every example once, whatever the batch size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.core.chunk import reduce_batches, row_blocks

X = np.random.default_rng(0).normal(size=(13, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=13).astype(np.float32)


def sums(x, y):
    return {"gram": x.T @ x, "xy": x.T @ y, "n": jnp.float32(x.shape[0])}


@pytest.mark.parametrize("batch_size", [1, 4, 5, 6, 12, 13, 14, 1000])
def test_sums_equal_numpy_for_every_split(batch_size):
    total = jax.jit(functools.partial(reduce_batches, sums, batch_size=batch_size))((X, Y))
    np.testing.assert_allclose(total["gram"], X.T @ X, rtol=1e-5)
    np.testing.assert_allclose(total["xy"], X.T @ Y, rtol=1e-5, atol=1e-5)
    assert total["n"] == 13


def test_batches_are_consecutive_and_in_order():
    # Products of matrices are associative and do not commute.
    turns = np.random.default_rng(2).normal(size=(7, 2, 2)).astype(np.float32)

    def product(m):
        return functools.reduce(jnp.matmul, list(m))

    expected = functools.reduce(np.matmul, turns)
    for batch_size in (1, 2, 3, 7):
        got = reduce_batches(product, (turns,), batch_size=batch_size, combine=jnp.matmul)
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_eager_equals_jit_and_any_combine_works():
    def largest(x):
        return x.max(0)

    run = functools.partial(reduce_batches, largest, batch_size=4, combine=jnp.maximum)
    np.testing.assert_array_equal(run((X,)), X.max(0))
    np.testing.assert_array_equal(jax.jit(run)((X,)), X.max(0))


def test_gradient_and_vmap_pass_through():
    def loss(w, batch_size=5):
        return reduce_batches(
            lambda x, y: jnp.square(x @ w - y).sum(), (X, Y), batch_size=batch_size
        )

    w = jnp.asarray([0.3, -1.0, 2.0])
    np.testing.assert_allclose(jax.grad(loss)(w), 2 * X.T @ (X @ w - Y), rtol=1e-4)
    many = jax.vmap(loss)(jnp.stack([w, 2 * w]))
    np.testing.assert_allclose(many, [loss(w), loss(2 * w)], rtol=1e-5)


@pytest.mark.parametrize(("n", "least", "last"), [
    (13, 2, 2), (13, 4, 4), (13, 6, 6), (12, 2, 6), (3, 2, 4), (5, 2, 6),
])  # fmt: skip
def test_blocks_of_rows_hold_each_row_once_and_are_filled_up(n, least, last):
    blocks = list(row_blocks(n, 6, least=least))
    kept = [rows[:count] for rows, count in blocks]
    np.testing.assert_array_equal(np.concatenate(kept), np.arange(n))
    assert [len(rows) for rows, _ in blocks] == [6] * (len(blocks) - 1) + [last]
    assert all((rows[count:] == n - 1).all() for rows, count in blocks)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"common, positive length, got \[12, 13\]"):
        reduce_batches(sums, (X, Y[1:]), batch_size=2)
    with pytest.raises(ValueError, match=r"common, positive length, got \[0\]"):
        reduce_batches(sums, (X[:0], Y[:0]), batch_size=2)
    with pytest.raises(ValueError, match=r"common, positive length, got \[\]"):
        reduce_batches(sums, (), batch_size=2)
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        reduce_batches(sums, (X, Y), batch_size=0)
