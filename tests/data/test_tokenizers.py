"""Byte-level tokenizers: nothing is lost, ids are dense, and files come back."""

import numpy as np
import pytest

from jaxml.data import tokenizers

TEXTS = ["the cat sat on the mat, the cat sat", "def f(x):\n    return x  # naïve ☃ \t\x00"] * 20


@pytest.fixture(scope="module")
def bpe():
    return tokenizers.train_bpe(TEXTS, vocab_size=300)


def test_every_text_comes_back(bpe):
    strange = ["", " ", "\n\n  a", "naïve ☃ 🜨", "".join(map(chr, range(1, 600)))]
    for tokenizer in (bpe, tokenizers.byte_tokenizer()):
        for text, ids in zip(
            [*TEXTS[:2], *strange],
            tokenizers.encode(tokenizer, [*TEXTS[:2], *strange]),
            strict=True,
        ):
            assert ids.dtype == np.int32
            assert tokenizers.decode(tokenizer, ids) == text


def test_bytes_are_bytes():
    tokenizer = tokenizers.byte_tokenizer()
    assert tokenizer.get_vocab_size() == 257
    (ids,) = tokenizers.encode(tokenizer, ["naïve ☃"])
    assert len(ids) == len("naïve ☃".encode())
    assert len(set(ids.tolist())) == len(set("naïve ☃".encode()))


def test_merges_shorten_what_was_learnt_and_training_repeats(bpe):
    (ids,) = tokenizers.encode(bpe, TEXTS[:1])
    assert len(ids) < len(TEXTS[0]) / 2
    again = tokenizers.train_bpe(TEXTS, vocab_size=300)
    assert again.to_str() == bpe.to_str()
    assert 257 < bpe.get_vocab_size() <= 300


def test_bos_is_never_in_a_text_and_never_shown(bpe):
    bos = tokenizers.bos_id(bpe)
    assert bos == 0
    assert tokenizers.decode(bpe, np.asarray([bos, *bpe.encode("cat").ids])) == "cat"


def test_round_trips_are_told_by_hand(bpe):
    (good,) = tokenizers.encode(bpe, ["the cat"])
    letters = np.asarray([bpe.token_to_id(c) for c in "the"], np.int32)
    assert tokenizers.round_trips(bpe, good[None]).tolist() == [True]
    # "the" is one token, so its letters would come back as one.
    assert tokenizers.round_trips(bpe, letters[None]).tolist() == [False]
    (snowman,) = tokenizers.encode(tokenizers.byte_tokenizer(), ["☃"])
    assert tokenizers.round_trips(tokenizers.byte_tokenizer(), snowman[None, :2]).tolist() == [
        False
    ]


def test_files(bpe, tmp_path):
    bpe.save(str(tmp_path / "tokenizer.json"))
    assert tokenizers.load(tmp_path / "tokenizer.json").to_str() == bpe.to_str()
    with pytest.raises(FileNotFoundError, match=r"there is no tokenizer .*other\.json"):
        tokenizers.load(tmp_path / "other.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json is no tokenizer"):
        tokenizers.load(tmp_path / "bad.json")


def test_too_small_a_vocabulary():
    with pytest.raises(ValueError, match="vocab_size must be at least 257"):
        tokenizers.train_bpe(TEXTS, vocab_size=256)
