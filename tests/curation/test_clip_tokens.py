"""Tokenizers of CLIP: shapes, frames, and CLIP's byte pairs on merges written here."""

import gzip

import numpy as np
import pytest

from jaxml.curation import BYTE_VOCABULARY, byte_tokens, clip_tokenizer, hash_words

MERGES = ["#version: 0.2", "t h", "th e</w>", "c a", "ca t</w>"]


def test_words_are_the_same_in_any_case_and_place():
    a, b = hash_words(["The cat, a CAT", "cat"], vocabulary=99, context=3)
    assert a[1] == b[0] and a[2] != 0 and b[1:].tolist() == [0, 0]
    assert a.min() > 0 and a.max() < 99 and a.dtype == np.int32
    with pytest.raises(ValueError, match="need vocabulary >= 2"):
        hash_words([], vocabulary=1)


def test_bytes_stand_between_start_and_end():
    tokens = byte_tokens(["hé", "", "x" * 99], context=6)
    assert tokens[0].tolist() == [257, *(b + 1 for b in "hé".encode()), 258, 0]
    assert tokens[1].tolist() == [257, 258, 0, 0, 0, 0]
    assert tokens[2].tolist() == [257, *[121] * 4, 258]
    assert (tokens.argmax(axis=1) == [4, 1, 5]).all() and tokens.max() < BYTE_VOCABULARY
    with pytest.raises(ValueError, match="room for a start and an end"):
        byte_tokens(["a"], context=1)


@pytest.mark.parametrize("zipped", [False, True])
def test_byte_pairs_are_merged_and_numbered_as_clip_does(tmp_path, zipped):
    pytest.importorskip("tokenizers")
    text = "\n".join(MERGES).encode()
    path = tmp_path / "merges.txt"
    path.write_bytes(gzip.compress(text) if zipped else text)
    tokenize = clip_tokenizer(path, context=9)
    end = 512 + 4 + 1
    # Merges follow the 256 bytes and the 256 bytes at the end of a word.
    the, cat = 513, 515
    tokens = tokenize(["The  cat", "cats th", "the cat 12 cat's the cat"])
    assert tokens[0].tolist() == [end - 1, the, cat, end, 0, 0, 0, 0, 0]
    letter = {c: "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz".index(c) for c in "tsh12"}  # fmt: skip  # noqa: E501
    assert tokens[1, 1:6].tolist() == [514, letter["t"], 256 + letter["s"], letter["t"], 256 + letter["h"]]  # fmt: skip  # noqa: E501
    again = tokenize(["<The>  cat", "\u201cthe\u2019", "\uff54he \ufb01"])
    plain = tokenize(["&lt;the&amp;gt; CAT", "\"the'", "the fi"])
    np.testing.assert_array_equal(again, plain)
    # Digits stand alone, and the text is cut so that the end token stays.
    assert tokens[2, 3:5].tolist() == [256 + letter["1"], 256 + letter["2"]]
    assert tokens[2, -1] == end and (tokens.argmax(axis=1) == [3, 6, 8]).all()


def test_bad_merges_are_refused(tmp_path):
    pytest.importorskip("tokenizers")
    path = tmp_path / "merges.txt"
    path.write_text("head\na b c\n")
    with pytest.raises(ValueError, match="line 2: a merge is two tokens"):
        clip_tokenizer(path)
    path.write_text("head\nth e</w>\n")
    with pytest.raises(ValueError, match="line 2: 'th' 'e</w>' merges what is not there yet"):
        clip_tokenizer(path)
    with pytest.raises(FileNotFoundError):
        clip_tokenizer(tmp_path / "none.txt")
