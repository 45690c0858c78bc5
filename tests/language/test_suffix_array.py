import numpy as np
import pytest

from jaxml.language import (
    build_suffix_array,
    build_suffix_index,
    count_occurrences,
    join_documents,
    longest_match,
)


def naive(tokens, bound=None):
    """Sorts the suffixes themselves, as lists, equal ones by position."""
    tokens = tokens.tolist()
    return sorted(range(len(tokens)), key=lambda i: (tokens[i:][:bound], i))


def overlapping(text: bytes, part: bytes) -> int:
    return sum(text.startswith(part, i) for i in range(len(text)))


def texts():
    rng = np.random.default_rng(0)
    yield from (rng.integers(rng.integers(1, 5), size=rng.integers(1, 301)) for _ in range(200))
    yield from (np.zeros(n, np.int32) for n in (0, 1, 2, 3, 300))
    yield np.array([7, 2**31 - 1, 7, 0])
    yield np.array([3, -1, 3, -1, 3])


def test_numpy_sorts_suffixes_as_brute_force_does():
    for i, tokens in enumerate(texts()):
        bound = (None, 1, 5, 50)[i % 4]
        array = build_suffix_array(tokens, bound=bound, builder="numpy")
        assert array.dtype == np.int32
        assert array.tolist() == naive(tokens, bound)


@pytest.mark.parametrize("n_symbols", [1, 2, 4, 300])
def test_jax_gives_the_same_array(n_symbols):
    rng = np.random.default_rng(n_symbols)
    # One of each symbol, so that the number of bits, which is static, stays the same.
    tokens = np.concatenate([np.arange(n_symbols), rng.integers(n_symbols, size=400 - n_symbols)])
    for bound in (None, 1, 3, 50):
        array = build_suffix_array(tokens, bound=bound, builder="jax")
        assert array.tolist() == naive(tokens, bound)


def test_very_short_texts_in_jax():
    for tokens in ([], [5], [5, 5], [6, 5], [5, 5, 5]):
        tokens = np.array(tokens, np.int32)
        assert build_suffix_array(tokens, builder="jax").tolist() == naive(tokens)


def test_divsufsort_agrees_on_text(corpus):
    pytest.importorskip("pydivsufsort")
    text = corpus(1_000_000)
    for tokens in (text, text.astype(np.int32) * 7 - 1):
        oracle = build_suffix_array(tokens, builder="divsufsort")
        np.testing.assert_array_equal(build_suffix_array(tokens, builder="numpy"), oracle)


def test_auto_needs_no_optional_package(monkeypatch):
    tokens = np.array([2, 1, 2, 1])
    assert build_suffix_array(tokens).tolist() == naive(tokens)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert build_suffix_array(tokens).tolist() == naive(tokens)


def test_counts_include_overlaps():
    index = build_suffix_index(join_documents([np.frombuffer(b"aaaa", np.uint8)]))
    windows = np.frombuffer(b"aaab", np.uint8).reshape(2, 2)
    assert count_occurrences(index, windows).tolist() == [3, 0]


def documents(rng, n, *, symbols=3):
    return [rng.integers(symbols, size=rng.integers(0, 40)).astype(np.uint8) for _ in range(n)]


@pytest.mark.parametrize(("bound", "n_shards"), [(None, 1), (6, 4)])
def test_counts_and_longest_matches_are_those_of_brute_force(bound, n_shards):
    rng = np.random.default_rng(1)
    docs = documents(rng, 60)
    index = build_suffix_index(join_documents(docs), bound=bound, n_shards=n_shards)
    assert len(index.shards) == n_shards
    texts = [doc.tobytes() for doc in docs]
    for width in (1, 2, 6):
        windows = rng.integers(4, size=(40, width)).astype(np.uint8)
        wanted = [sum(overlapping(t, w.tobytes()) for t in texts) for w in windows]
        assert count_occurrences(index, windows).tolist() == wanted

    # Part of a document, symbols above and below all others, and the tail of another document.
    text = np.concatenate([docs[5][3:], [9, 9], docs[7][2:20], [0] * 9, docs[11][-8:]])
    text = text.astype(np.uint8)
    whole = text.tobytes()

    def longest(i):
        hits = (n for n in range(len(whole) - i + 1) if any(whole[i : i + n] in t for t in texts))
        return min(max(hits), bound or len(whole))

    assert longest_match(index, text).tolist() == [longest(i) for i in range(len(text))]


def test_builders_agree_on_counts_of_bounded_windows(corpus):
    docs = join_documents([corpus(3000)[:900], corpus(3000)[900:]])
    rng = np.random.default_rng(0)
    starts = rng.integers(800, size=50)
    windows = docs.tokens[starts[:, None] + np.arange(20)].copy()
    windows[::2, 7] += 1
    counts = [
        count_occurrences(build_suffix_index(docs, bound=20, builder=builder), windows).tolist()
        for builder in ("numpy", "jax")
    ]
    assert counts[0] == counts[1]
    assert min(counts[0][1::2]) >= 1


def test_two_thousand_positions_of_longest_match(corpus):
    text = corpus(60_000)
    known, query = text[:50_000], text[49_000:51_000]
    matches = longest_match(build_suffix_index(join_documents([known])), query)
    whole, sought = known.tobytes(), query.tobytes()
    for i, n in enumerate(matches.tolist()):
        assert sought[i : i + n] in whole
        assert i + n == len(sought) or sought[i : i + n + 1] not in whole
    # The whole tail occurs.
    tail = longest_match(build_suffix_index(join_documents([known])), known[-300:])
    np.testing.assert_array_equal(tail, np.arange(300, 0, -1))


def test_bad_input():
    docs = join_documents([np.arange(5)])
    index = build_suffix_index(docs, bound=3)
    for match, call in {
        "bound must be positive": lambda: build_suffix_array(np.arange(3), bound=0),
        "builder must be one of": lambda: build_suffix_array(np.arange(3), builder="c"),
        "tokens must be integers": lambda: build_suffix_array(np.ones(3)),
        "use shards": lambda: build_suffix_array(np.broadcast_to(np.int8(1), 2**31)),
        "at most 3 tokens, got 4": lambda: count_occurrences(index, np.ones((1, 4), int)),
        "w > 0": lambda: count_occurrences(index, np.ones((1, 0), int)),
        "windows must be ids in": lambda: longest_match(index, np.array([1, -1])),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
