import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.language import (
    build_suffix_index,
    build_window_index,
    contains,
    count_occurrences,
    find_windows,
    join_documents,
    window_index,
)


def mutated(rng, tokens, starts, width, *, n_symbols=256):
    """Windows of a text, every second one changed in one token."""
    windows = tokens[starts[:, None] + np.arange(width)].astype(np.int32)
    changed = np.arange(0, len(windows), 2)
    at = rng.integers(width, size=len(changed))
    windows[changed, at] = (windows[changed, at] + rng.integers(1, n_symbols)) % n_symbols
    return windows


def test_no_false_answer_in_20000_windows(corpus):
    rng = np.random.default_rng(0)
    text = corpus(200_000)
    index = build_window_index(join_documents([text]), 50)
    windows = mutated(rng, text, rng.integers(len(text) - 50, size=20_000), 50)
    whole = text.tobytes()
    present = {whole[i : i + 50] for i in range(len(whole) - 49)}
    wanted = [w.tobytes() in present for w in windows.astype(np.uint8)]
    assert 0.45 < np.mean(wanted) < 0.55
    np.testing.assert_array_equal(contains(index, windows), wanted)


def test_hash_of_a_window_is_its_rolling_hash_in_numpy_and_jax():
    rng = np.random.default_rng(0)
    rolling = jax.jit(functools.partial(window_index.rolling_hash, jnp), static_argnums=1)
    hashing = jax.jit(functools.partial(window_index.hash_windows, jnp))
    for width in (1, 3, 50):
        tokens = rng.integers(2**31, size=200).astype(np.int32)
        view = np.lib.stride_tricks.sliding_window_view(tokens, width)
        seed = np.uint32(3)
        rolled = window_index.rolling_hash(np, tokens, width, seed)
        for pair in (
            window_index.hash_windows(np, view, seed),
            hashing(view, seed),
            rolling(tokens, width, seed),
        ):
            np.testing.assert_array_equal(rolled, pair)


def test_hash_has_64_good_bits():
    # Texts of few symbols are where weak hashes fail; the birthday bound on each half.
    windows = (np.arange(1 << 15)[:, None] >> np.arange(15)) & 1
    n = len(windows)
    for half in window_index.hash_windows(np, windows, np.uint32(0)):
        assert n - len(np.unique(half)) <= 3 + 10 * n**2 / 2**33
        bits = (half[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
        np.testing.assert_allclose(bits.mean(0), 0.5, atol=5 * 0.5 / n**0.5)


@pytest.mark.parametrize("n_shards", [1, 4])
def test_counts_and_places_are_those_of_brute_force(n_shards):
    rng = np.random.default_rng(1)
    docs = [rng.integers(3, size=rng.integers(1, 40)).astype(np.uint8) for _ in range(60)]
    index = build_window_index(join_documents(docs), 5, n_shards=n_shards)
    windows = rng.integers(3, size=(200, 5)).astype(np.uint8)
    windows[0] = 200
    found = find_windows(index, windows)
    for i, window in enumerate(windows):
        hits = [
            (d, o)
            for d, doc in enumerate(docs)
            for o in range(len(doc))
            if doc[o:].tobytes().startswith(window.tobytes())
        ]
        assert found.count[i] == len(hits)
        assert (found.document[i], found.offset[i]) == (hits[0] if hits else (-1, -1))
    suffixes = build_suffix_index(join_documents(docs), bound=5)
    np.testing.assert_array_equal(count_occurrences(suffixes, windows), found.count)


def test_a_window_at_the_end_and_one_over_a_boundary():
    index = build_window_index(join_documents([np.arange(5), np.arange(5, 8)]), 3)
    found = find_windows(index, np.array([[5, 6, 7], [2, 3, 4], [3, 4, 5], [6, 7, 0]]))
    assert found.count.tolist() == [1, 1, 0, 0]
    assert found.document.tolist() == [1, 0, -1, -1]
    assert found.offset.tolist() == [0, 2, -1, -1]
    assert contains(index, np.zeros((0, 3), int)).shape == (0,)


def test_shards_without_a_window_are_left_out():
    docs = join_documents([np.arange(2), np.arange(2), np.arange(30)])
    index = build_window_index(docs, 10, n_shards=3)
    assert find_windows(index, np.arange(10)[None]).document.tolist() == [2]


def test_colliding_hashes_are_noticed_and_another_seed_taken(monkeypatch):
    rolling_hash = window_index.rolling_hash
    seeds = []

    def weak(xp, tokens, width, seed):
        seeds.append(int(seed))
        high, low = rolling_hash(xp, tokens, width, seed)
        return (high & 0, low & 7) if seed < 2 else (high, low)

    monkeypatch.setattr(window_index, "rolling_hash", weak)
    text = np.arange(100) % 31
    index = build_window_index(join_documents([text]), 4)
    assert seeds == [0, 1, 2]
    assert find_windows(index, text[:4][None]).count.tolist() == [4]
    monkeypatch.setattr(window_index, "rolling_hash", lambda *args: rolling_hash(*args[:3], 0))
    monkeypatch.setattr(window_index, "_repeats_are_equal", lambda *args: False)
    with pytest.raises(RuntimeError, match="no seed"):
        build_window_index(join_documents([text]), 4)


def test_compiled_and_eager_lookups_agree():
    index = build_window_index(join_documents([np.arange(50) % 7]), 4)
    windows = np.array([[1, 2, 3, 4], [6, 0, 1, 3]], np.int32)
    compiled = window_index._find(*index.shards[0][:7], windows)
    with jax.disable_jit():
        eager = window_index._find(*index.shards[0][:7], jnp.asarray(windows))
    np.testing.assert_array_equal(compiled, eager)


def test_bad_input():
    docs = join_documents([np.arange(5), np.arange(3)])
    index = build_window_index(docs, 5)
    for match, call in {
        r"window must lie in 1\.\.5, .* got 0": lambda: build_window_index(docs, 0),
        "got 6": lambda: build_window_index(docs, 6),
        "n_shards": lambda: build_window_index(docs, 2, n_shards=0),
        "5 tokens each, got 4": lambda: contains(index, np.ones((1, 4), int)),
        "ids in": lambda: find_windows(index, -np.ones((1, 5), int)),
        "got float64": lambda: find_windows(index, np.ones((1, 5))),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
