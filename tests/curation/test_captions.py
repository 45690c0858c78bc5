"""Counts of captions, against Python's strings."""

import numpy as np
import pytest

from jaxml.curation import caption_features, count_chars, count_tokens, count_words

NASTY = [
    "", " ", "\n", "\0", "a\0b", "  two words ", "a\u00a0b", "a\u2003b", "a\u0085b", "a\u001cb",
    "\u3000", "\u200ba", "naïve façade", "汉字 漢字", "🙂 🙃", None, "a\nb",
    "\u1680x\u205f", "é\u202f",
]  # fmt: skip


def tokens(text):
    """fastText's tokenizer, letter by letter."""
    found, word = 0, False
    for letter in text or "":
        if letter in " \n\r\t\v\f\0":
            found += word + (letter == "\n")
            word = False
        else:
            word = True
    return found + word


def random_texts(n):
    rng = np.random.default_rng(0)
    letters = [
        *"ab \n\t\r\v\f\0\x1c\x1d\x1e\x1f",
        *"éß汉🙂\u00a0\u0085\u2003\u3000\u200b\u180e\u2029",
    ]
    return ["".join(rng.choice(letters, rng.integers(0, 9))) for _ in range(n)]


def as_given(kind, texts):
    if kind == "list":
        return texts
    pa = pytest.importorskip("pyarrow")
    array = pa.array(["left out", *texts], pa.large_string() if kind == "large" else pa.string())[
        1:
    ]
    if kind == "chunks":
        return pa.chunked_array([array[:3], array[3:3], array[3:]])
    return array


@pytest.mark.parametrize("kind", ["list", "arrow", "large", "chunks"])
def test_counts_are_those_of_python(kind):
    texts = NASTY + random_texts(500)
    given = as_given(kind, texts)
    assert count_words(given).tolist() == [len((s or "").split()) for s in texts]
    assert count_chars(given).tolist() == [len(s or "") for s in texts]
    assert count_tokens(given).tolist() == [tokens(s) for s in texts]
    both = caption_features(given)
    assert {name: both[name].dtype for name in both} == dict.fromkeys(both, np.int32)
    assert both["num_words"].tolist() == count_words(texts).tolist()


def test_every_character_is_a_space_where_python_says_so():
    texts = [f"a{chr(c)}b" for c in range(0x3100)]
    assert count_words(texts).tolist() == [len(s.split()) for s in texts]


@pytest.mark.parametrize("texts", [[], [None], [""], ["\ud800 x"]])
def test_nothing_and_half_a_surrogate_are_counted(texts):
    assert count_words(texts).tolist() == [len((s or "").split()) for s in texts]


def test_columns_of_nulls_are_empty_texts():
    pa = pytest.importorskip("pyarrow")
    for array in (pa.nulls(3, pa.string()), pa.nulls(3), pa.chunked_array([], pa.string())):
        assert count_words(array).tolist() == [0] * len(array)
