import numpy as np
import pytest

from jaxml.language import copy_documents, pack_rows

DOCS = [np.arange(10 * i + 1, 10 * i + 2 + i) for i in range(7)]


def test_rows_hold_every_document_once_behind_a_bos():
    n_tokens = sum(len(d) + 1 for d in DOCS) + 1
    for seed in range(5):
        rows = pack_rows(seed, DOCS, row_length=4, bos=0)
        assert rows.dtype == np.int32 and rows.shape == (n_tokens // 4, 4)
        assert np.array_equal(rows, pack_rows(seed, DOCS, row_length=4, bos=0))
    # In a row as long as everything the documents stand whole, up to where it was turned.
    (row,) = pack_rows(3, DOCS, row_length=n_tokens, bos=0)
    text = "," + ",".join(map(str, np.tile(row, 2))) + ","
    assert all(",0," + ",".join(map(str, d)) + "," in text for d in DOCS)
    assert sorted(row) == sorted(np.concatenate([*DOCS, [0] * (len(DOCS) + 1)]))


def test_seeds_cut_and_order_anew():
    rows = {pack_rows(seed, DOCS, row_length=5, bos=0).tobytes() for seed in range(6)}
    assert len(rows) == 6


def test_documents_too_short_for_a_row_are_refused():
    with pytest.raises(ValueError, match="must fill a row of 99, got 36 tokens"):
        pack_rows(0, DOCS, row_length=99, bos=0)


def test_copies_repeat_a_piece_of_the_text_or_random_tokens():
    source = np.concatenate(DOCS)
    copies = copy_documents(
        0, DOCS, n_tokens=2000, vocab_size=50, lengths=(3, 5), repeats=(2, 4)
    )  # fmt: skip
    assert 2000 <= sum(map(len, copies)) < 2000 + 20
    assert all(c.dtype == np.int32 and c.min() >= 1 for c in copies)
    periods = []
    for i, copy in enumerate(copies):
        whole = [
            p
            for p in (3, 4, 5)
            if len(copy) % p == 0 and np.array_equal(copy, np.resize(copy[:p], len(copy)))
        ]
        periods.append(whole)
        assert whole and len(copy) // min(whole) >= 2
        if i % 2 == 0:
            text = np.lib.stride_tricks.sliding_window_view(source, whole[0])
            assert (text == copy[: whole[0]]).all(1).any()
        else:
            assert copy.max() < 50
    assert {p for whole in periods for p in whole} == {3, 4, 5}
