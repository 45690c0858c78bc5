"""The buffer of best prompts, against sorting in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.language.buffer import Buffer, empty_buffer, insert, take

insert_jit = jax.jit(insert)


def test_insertions_keep_the_best_in_order():
    rng = np.random.default_rng(0)
    buffer = empty_buffer(7, suffix_len=3, n_parts=2)
    everything, worst, best = [], np.inf, np.inf
    for _ in range(200):
        prompts = rng.integers(0, 9, (4, 3)).astype(np.int32)
        # Coarse numbers, so that there are ties.
        parts = rng.integers(0, 40, (4, 2)).astype(np.float32)
        loss = parts.sum(1)
        before = buffer
        buffer = insert_jit(buffer, prompts, parts, loss)
        everything += zip(loss.tolist(), map(tuple, prompts.tolist()), strict=True)
        kept = sorted(value for value, _ in everything)[:7]
        assert np.asarray(buffer.loss)[: len(kept)].tolist() == kept
        assert buffer.loss[-1] <= worst and buffer.loss[0] <= best
        worst, best = buffer.loss[-1], buffer.loss[0]
        finite = np.isfinite(buffer.loss)
        np.testing.assert_array_equal(buffer.parts.sum(1)[finite], buffer.loss[finite])
        entries = zip(buffer.loss.tolist(), map(tuple, buffer.prompts.tolist()), strict=True)
        entries = {entry for entry in entries if np.isfinite(entry[0])}
        assert entries <= set(everything)
    eager = insert(before, jnp.asarray(prompts), jnp.asarray(parts), jnp.asarray(loss))
    jax.tree.map(np.testing.assert_array_equal, eager, buffer)


def test_of_equal_losses_the_new_prompt_replaces_the_old():
    buffer = empty_buffer(1, suffix_len=1, n_parts=1)
    for token in (3, 4):
        buffer = insert(buffer, jnp.int32([[token]]), jnp.float32([[1.0]]), jnp.float32([1.0]))
    assert buffer.prompts.tolist() == [[4]]


def test_best_first_search_walks_down_the_buffer():
    buffer = Buffer(
        jnp.int32([[1], [2], [3], [0]]), jnp.zeros((4, 1)), jnp.float32([1, 2, 3, jnp.inf]),
        jnp.zeros(4, bool),
    )  # fmt: skip
    walked = []
    for _ in range(4):
        buffer, prompt, _ = take(buffer, expand="best_unexplored")
        walked.append(int(prompt[0]))
    assert walked == [1, 2, 3, 1]  # an empty place is never expanded
    for _ in range(2):
        buffer, prompt, _ = take(buffer, expand="best")
        assert prompt.tolist() == [1]
    assert buffer.expanded.tolist() == [True, True, True, False]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="buffer_size must be positive, got 0"):
        empty_buffer(0, suffix_len=3, n_parts=2)
    with pytest.raises(ValueError, match="expand must be one of best, best_unexplored; got 'all'"):
        take(empty_buffer(1, suffix_len=1, n_parts=1), expand="all")
