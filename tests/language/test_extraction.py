"""Matching against brute force over bytes of tokens; nothing of a prompt is ever counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.language import (
    build_suffix_index,
    build_window_index,
    corpus_windows,
    discoverable,
    divergence_prompt,
    document_blocks,
    find_hits,
    find_spans,
    generate,
    join_documents,
    longest_match,
    match_index,
    match_stream,
    memorised_mask,
    memorised_tokens,
    random_prompts,
    split_after_repeats,
    unique_curve,
)
from jaxml.nn import GPT

WIDTH = 4


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    docs = [rng.integers(3, size=rng.integers(0, 40)) for _ in range(30)]
    generations = rng.integers(3, size=(25, 14))
    generations[3, :9] = next(d for d in docs if len(d) > 20)[5:14]
    generations[7] = 9  # nothing of it occurs
    return docs, generations


@pytest.fixture(scope="module")
def matched(world):
    docs, generations = world
    joined = join_documents(list(generations))
    return joined, match_index(build_window_index(join_documents(docs), WIDTH), joined)


def brute_force(docs, row, width):
    """Where each window of a row occurs: ``[(document, offset), ...]``."""
    found = []
    for start in range(len(row) - width + 1):
        piece = row[start : start + width]
        found.append([
            (i, j)
            for i, d in enumerate(docs)
            for j in range(len(d) - width + 1)
            if np.array_equal(d[j : j + width], piece)
        ])  # fmt: skip
    return found


def test_hits_tokens_and_curve_equal_brute_force(world, matched):
    docs, generations = world
    joined, match = matched
    hits = find_hits(joined, match)
    expected, marks = [], np.zeros(generations.shape, bool)
    for i, row in enumerate(generations):
        for start, places in enumerate(brute_force(docs, row, WIDTH)):
            if places:
                expected.append((i, start, len(places), *places[0]))
                marks[i, start : start + WIDTH] = True
    got = zip(hits.generation, hits.start, hits.count, hits.document, hits.offset, strict=True)
    assert [tuple(map(int, row)) for row in got] == expected
    pieces = [
        generations[i, s : s + WIDTH].tobytes()
        for i, s in zip(hits.generation, hits.start, strict=True)
    ]
    same = {}
    for piece, thing in zip(pieces, hits.thing.tolist(), strict=True):
        assert same.setdefault(piece, thing) == thing
    assert sorted(same.values()) == list(range(len(same)))
    np.testing.assert_array_equal(memorised_tokens(joined, match, WIDTH), marks.sum(1))
    curve = unique_curve(hits, len(generations))
    assert curve[0] == 0 and curve[-1] == len(same) and (np.diff(curve) >= 0).all()
    for n in (1, 9, 25):
        first = hits.generation < n
        assert curve[n] == len({p for p, here in zip(pieces, first, strict=True) if here})


def test_the_stream_gives_the_same(world, matched):
    docs, _ = world
    joined, match = matched
    text, offsets = np.concatenate(docs), np.cumsum([0, *map(len, docs)])
    for one, other in zip(
        match, match_stream(joined, WIDTH, document_blocks(text, offsets)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    shards = build_window_index(join_documents(docs), WIDTH, n_shards=4)
    for one, other in zip(match, match_index(shards, joined), strict=True):
        np.testing.assert_array_equal(one, other)


def test_prompts_are_never_counted(world):
    docs, _ = world
    document = next(d for d in docs if len(d) > 20)
    index = build_window_index(join_documents(docs), WIDTH)
    # The prompt stands in the corpus; what follows it does there, a token further, or not at all.
    for continuation, count in (
        ([9, 9, 9, 9, 9, 9], 0),
        ([*document[8 : 8 + WIDTH - 1], 9, 9, 9], 0),
        ([*document[8 : 8 + WIDTH], 9, 9], WIDTH),
    ):
        joined = join_documents([np.array(continuation)])
        match = match_index(index, joined)
        assert memorised_tokens(joined, match, WIDTH).tolist() == [count]
        with_prompt = join_documents([np.concatenate([document[:8], continuation])])
        counted = memorised_tokens(with_prompt, match_index(index, with_prompt), WIDTH)
        assert counted[0] >= 8  # it would be, if it were handed over


def test_a_wider_window_never_finds_more(world):
    docs, generations = world
    joined = join_documents(list(generations))
    widths = (1, 2, 3, 5, 8)
    counts = []
    suffixes = build_suffix_index(join_documents(docs))
    longest = longest_match(suffixes, generations.ravel()).reshape(generations.shape)
    longest = np.minimum(longest, np.arange(generations.shape[1], 0, -1)[None])
    for width in widths:
        match = match_index(build_window_index(join_documents(docs), width), joined)
        counts.append(memorised_tokens(joined, match, width))
        # The suffix array answers for every width at once.
        np.testing.assert_array_equal(counts[-1], memorised_mask(longest >= width, width).sum(1))
    assert (np.diff(counts, axis=0) <= 0).all() and counts[-1].sum() < counts[0].sum()


def test_mask():
    starts = np.array([[1, 0, 0, 0, 0, 1, 1, 0, 0], [0] * 9], bool)
    mask = memorised_mask(starts, 3)
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0, 1, 1, 1, 1], [0] * 9])
    np.testing.assert_array_equal(memorised_mask(starts, 1), starts)
    assert memorised_mask(starts, 20)[0].all()
    with pytest.raises(ValueError, match="window must be positive"):
        memorised_mask(starts, 0)


def test_spans_stand_in_the_corpus_whole(world, matched):
    docs, generations = world
    joined, match = matched
    spans = find_spans(joined, match, WIDTH)
    hits = find_hits(joined, match)
    assert sum(span.length - WIDTH + 1 for span in spans) == len(hits.thing)
    for g, start, length, document, offset in spans:
        np.testing.assert_array_equal(
            generations[g, start : start + length], docs[document][offset : offset + length]
        )
    assert max(span.length for span in spans) >= 8
    nothing = join_documents([np.full(9, 7)])
    match = match_index(build_window_index(join_documents(docs), WIDTH), nothing)
    assert find_spans(nothing, match, WIDTH) == []
    assert unique_curve(find_hits(nothing, match), 1).tolist() == [0, 0]


def test_windows_of_the_corpus(world):
    docs, _ = world
    count, first = {}, {}
    for i, d in enumerate(docs):
        for j in range(len(d) - WIDTH + 1):
            piece = d[j : j + WIDTH].tobytes()
            count[piece] = count.get(piece, 0) + 1
            first.setdefault(piece, i)
    found = corpus_windows(join_documents(docs), WIDTH)
    pairs = sorted(zip(found.document.tolist(), found.count.tolist(), strict=True))
    assert pairs == sorted((first[piece], n) for piece, n in count.items())
    with pytest.raises(ValueError, match="window must lie in 1"):
        corpus_windows(join_documents(docs), 1000)


def test_prompts_are_uniform_over_the_places_within_documents():
    docs = [np.arange(3), np.arange(10, 12), np.arange(20, 25)]
    prompts = random_prompts(jax.random.key(0), docs, n_prompts=4000, length=3)
    assert prompts.dtype == np.int32 and prompts.shape == (4000, 3)
    assert (np.diff(prompts, axis=1) == 1).all()
    places, counts = np.unique(prompts[:, 0], return_counts=True)
    assert places.tolist() == [0, 20, 21, 22]
    assert (abs(counts - 1000) < 5 * np.sqrt(750)).all()
    for options, message in (
        ({"n_prompts": 0, "length": 3}, "n_prompts must be positive"),
        ({"n_prompts": 3, "length": 0}, "length must be positive"),
        ({"n_prompts": 3, "length": 6}, "must have one of at least length=6"),
    ):
        with pytest.raises(ValueError, match=message):
            random_prompts(jax.random.key(0), docs, **options)


def test_discoverable_is_greedy_decoding(world):
    model = GPT(7, context=9, width=8, hidden=(16,), heads=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    prompts = np.random.default_rng(0).integers(7, size=(5, 4))
    keys = jax.random.split(jax.random.key(1), 5)
    greedy = generate(keys, model, variables, prompts, n_tokens=5, temperature=0.0)
    changed = greedy.copy()
    changed[[0, 3], [4, 0]] = (changed[[0, 3], [4, 0]] + 1) % 7
    found = discoverable(model, variables, prompts, changed)
    assert found.tolist() == [False, True, True, False, True]
    with pytest.raises(ValueError, match=r"continuations must be \[5, t\]"):
        discoverable(model, variables, prompts, changed[:3])


def test_repeats():
    np.testing.assert_array_equal(divergence_prompt([4, 5], 3), [4, 5, 4, 5, 4, 5])
    rows = [[4, 5, 4, 5, 4], [4, 5, 5, 4, 5], [1, 4, 5, 4, 5], [4, 5, 4, 1, 4]]
    assert split_after_repeats(np.array(rows), [4, 5]).tolist() == [5, 2, 0, 3]
    for word, repeats in (([], 3), ([1], 0)):
        with pytest.raises(ValueError, match="must not be empty"):
            divergence_prompt(word, repeats)
    with pytest.raises(ValueError, match="at least one id"):
        split_after_repeats(np.array(rows), [])


def test_bad_input_is_refused(world):
    docs, generations = world
    index = build_window_index(join_documents(docs), 15)
    with pytest.raises(ValueError, match=r"window must lie in 1..14"):
        match_index(index, join_documents(list(generations)))
    for bad, message in (
        ([], "documents must be one or more"),
        ([np.array([1, -1])], "ids in 0"),
        ([np.array([1.5])], "integer token ids"),
    ):
        with pytest.raises(ValueError, match=message):
            join_documents(bad)
