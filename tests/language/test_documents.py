import numpy as np
import pytest

from jaxml.language import SEPARATOR, from_offsets, join_documents, locate, split_documents


def test_documents_are_joined_with_separators_and_found_again():
    docs = [np.array([5, 0]), np.array([], np.int64), np.array([7])]
    joined = join_documents(docs)
    assert joined.tokens.tolist() == [5, 0, SEPARATOR, SEPARATOR, 7, SEPARATOR]
    assert joined.tokens.dtype == np.int16
    assert joined.starts.tolist() == [0, 3, 4]
    number, offset = locate(joined, np.array([0, 1, 4]))
    assert (number.tolist(), offset.tolist()) == ([0, 0, 2], [0, 1, 0])
    flat = from_offsets(np.concatenate(docs), np.array([0, 2, 2, 3]))
    np.testing.assert_array_equal(flat.tokens, joined.tokens)


def test_large_ids_keep_their_value():
    assert join_documents([np.array([2**31 - 1])]).tokens.tolist() == [2**31 - 1, SEPARATOR]


@pytest.mark.parametrize("n_shards", [1, 2, 4, 100])
def test_shards_are_all_documents_in_order(n_shards):
    rng = np.random.default_rng(0)
    docs = join_documents([rng.integers(9, size=rng.integers(1, 30)) for _ in range(40)])
    shards = split_documents(docs, n_shards)
    assert len(shards) == n_shards if n_shards < 10 else len(shards) <= 40
    np.testing.assert_array_equal(np.concatenate([s.tokens for s in shards]), docs.tokens)
    before = 0
    for shard in shards:
        assert shard.tokens[-1] == SEPARATOR
        number, offset = locate(shard, np.arange(len(shard.tokens)))
        wanted = locate(docs, before + np.arange(len(shard.tokens)))
        np.testing.assert_array_equal((number, offset), wanted)
        before += len(shard.tokens)


def test_bad_input():
    huge = np.broadcast_to(np.int8(1), 2**31 - 1)
    for match, call in {
        "got none": lambda: join_documents([]),
        "at least one token": lambda: join_documents([np.array([], int)]),
        r"ids in 0\.\.2147483647, got -1": lambda: join_documents([np.array([1, SEPARATOR])]),
        "got 2147483648": lambda: join_documents([np.array([2**31])]),
        "integer token ids": lambda: join_documents([np.ones(3)]),
        "index several shards": lambda: from_offsets(huge, np.array([0, 2**31 - 1])),
        "offsets must rise": lambda: from_offsets(np.arange(3), np.array([0, 2])),
        "n_shards": lambda: split_documents(join_documents([np.arange(3)]), 0),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
