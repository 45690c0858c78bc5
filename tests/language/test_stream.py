import tracemalloc

import numpy as np
import pytest

from jaxml.language import (
    build_window_index,
    document_blocks,
    file_blocks,
    find_windows,
    join_documents,
    match_stream,
)

WIDTH = 5


def by_index(docs, generations):
    """What an index of the whole corpus says of every window of the generations."""
    index = build_window_index(join_documents(docs), WIDTH)
    tokens = generations.tokens
    padded = np.append(tokens, np.full(WIDTH - 1, -1, tokens.dtype))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WIDTH)
    whole = (windows >= 0).all(1)
    found = find_windows(index, windows[whole])
    columns = []
    for values, none in zip(found, (0, -1, -1), strict=True):
        column = np.full(len(tokens), none)
        column[whole] = values
        columns.append(column)
    return columns


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    docs = [rng.integers(3, size=rng.integers(0, 60)).astype(np.uint8) for _ in range(50)]
    generations = [rng.integers(3, size=rng.integers(1, 30)).astype(np.uint8) for _ in range(20)]
    return docs, join_documents([*generations, docs[3], np.array([9] * 8)])


@pytest.mark.parametrize("block_size", [7, 64])
def test_the_stream_gives_the_answers_of_the_index(world, block_size):
    docs, generations = world
    text, offsets = np.concatenate(docs), np.cumsum([0, *map(len, docs)])
    blocks = document_blocks(text, offsets, block_size=11)
    match = match_stream(generations, WIDTH, blocks, block_size=block_size)
    assert match.n_tokens == len(text)
    np.testing.assert_array_equal(match[:3], by_index(docs, generations))


def test_files_are_documents(world, tmp_path):
    docs, generations = world
    paths = [tmp_path / str(i) for i in range(len(docs))]
    for dtype in (np.uint8, np.uint16):
        for path, doc in zip(paths, docs, strict=True):
            path.write_bytes(doc.astype(dtype).tobytes())
        blocks = file_blocks(paths, dtype=dtype, block_size=16)
        match = match_stream(generations, WIDTH, blocks, block_size=64)
        np.testing.assert_array_equal(match[:3], by_index(docs, generations))


def test_a_corpus_larger_than_the_limit_is_matched_under_it(tmp_path):
    n, limit = 12_000_000, 4_000_000
    path = tmp_path / "corpus"
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for _ in range(12):
            file.write(rng.bytes(n // 12))
    corpus = np.memmap(path, np.uint8, "r")
    generations = join_documents([corpus[i : i + 60].copy() for i in (0, 5_000_000, n - 60)])
    tracemalloc.start()
    try:
        match = match_stream(generations, 50, file_blocks([path], block_size=1 << 16),
                             block_size=1 << 16)  # fmt: skip
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit < n
    starts = generations.starts[:, None] + np.arange(11)
    np.testing.assert_array_equal(match.count[starts], 1)
    np.testing.assert_array_equal(
        match.offset[starts], np.array([0, 5_000_000, n - 60])[:, None] + np.arange(11)
    )
    assert match.count.sum() == 33
    assert match.n_tokens == n


def test_bad_input():
    docs = join_documents([np.arange(5)])
    for match, call in {
        "window must lie in": lambda: match_stream(docs, 6, []),
        "block_size must be positive": lambda: match_stream(docs, 2, [], block_size=0),
        "vectors of integers": lambda: match_stream(docs, 2, [np.ones(3)]),
        "blocks must be ids": lambda: match_stream(docs, 2, [np.array([1, -2])]),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()


def test_an_empty_corpus_has_no_match():
    match = match_stream(join_documents([np.arange(5)]), 2, [])
    assert match.count.tolist() == [0] * 6
    assert match.n_tokens == 0
