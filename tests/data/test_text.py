import abc
import collections
import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxml.data import NotPreparedError, UnknownDatasetError, text


def documents(corpus):
    return [corpus.text[a:b].tobytes() for a, b in itertools.pairwise(corpus.offsets)]


def test_the_standard_library_is_its_own_source():
    corpus = text.load("stdlib", max_bytes=300_000)
    assert corpus.text.dtype == np.uint8
    assert 290_000 < corpus.text.size <= 300_000
    assert list(corpus.names) == sorted(corpus.names)
    by_name = dict(zip(corpus.names, documents(corpus), strict=True))
    root = pathlib.Path(abc.__file__).parent
    assert all((root / name).read_bytes() == document for name, document in by_name.items())
    assert not any(n.startswith(("test/", "site-packages/")) for n in by_name)
    assert all(by_name.values())


def test_the_topics_are_those_of_help():
    pydoc_topics = pytest.importorskip("pydoc_data.topics").topics
    corpus = text.load("topics")
    by_name = dict(zip(corpus.names, documents(corpus), strict=True))
    assert by_name == {k: v.encode() for k, v in pydoc_topics.items() if v}


def test_splitting_is_the_inverse_of_joining():
    parts = [b"one", b"\n", b"three\x00"]
    corpus = text.join(parts, ["a", "b", "c"])
    assert text.split(corpus) == parts
    again = text.join(text.split(corpus), corpus.names)
    assert again.names == corpus.names
    np.testing.assert_array_equal(again.text, corpus.text)
    np.testing.assert_array_equal(again.offsets, corpus.offsets)


def test_canaries_are_pure_functions_of_the_seed():
    one = text.canaries(0)
    assert one.documents == text.canaries(0).documents
    assert not set(one.documents) & set(text.canaries(1).documents)
    assert len(set(one.documents)) == len(one.documents) == len(one.copies)
    assert collections.Counter(one.copies.tolist()) == dict.fromkeys(
        text.LEVELS, len(one.documents) // len(text.LEVELS)
    )
    # The seed, and no generator's stream, decides: the first bytes are the same everywhere.
    assert text.canaries(0, levels=(3,)).documents[0] == one.documents[0]


def test_forms_of_canaries():
    planted = text.canaries(0, n_per_level=2, levels=(1, 64))
    assert planted.names == ("canary/1/0", "canary/1/1", "canary/64/0", "canary/64/1")
    for canary in text.canaries(0, prefix="key: ", n_letters=20).documents:
        assert canary[:5] == b"key: "
        assert canary[5:].isalpha()
        assert canary[5:].islower()
        assert len(canary) == 25
    # Letters are uniform: chi-square of 10^4 of them, 25 degrees of freedom.
    letters = b"".join(text.canaries(0, prefix="", n_per_level=625, levels=(1,)).documents)
    counts = np.bincount(np.frombuffer(letters, np.uint8) - ord("a"), minlength=26)
    expected = len(letters) / 26
    assert ((counts - expected) ** 2 / expected).sum() < 60


def test_planting_adds_every_copy_and_nothing_else():
    corpus = text.join([b"one", b"two", b"three"])
    groups = text.canaries(0, n_per_level=1), text.canaries(1, n_per_level=1)
    planted = text.plant(0, corpus, *groups)
    wanted = collections.Counter(
        dict.fromkeys(zip(corpus.names, documents(corpus), strict=True), 1)
    )
    for group in groups:
        for document, copies, name in zip(*group, strict=True):
            wanted[name, document] += int(copies)
    pairs = zip(planted.names, documents(planted), strict=True)
    assert collections.Counter(pairs) == wanted
    assert text.plant(0, corpus, *groups).names == planted.names
    assert text.plant(1, corpus, *groups).names != planted.names


def test_bad_input(monkeypatch):
    for match, call in {
        "one of stdlib, topics, got 'wiki'": lambda: text.load("wiki"),
        "max_bytes must be positive": lambda: text.load("stdlib", max_bytes=0),
        "less than any document": lambda: text.load("stdlib", max_bytes=1),
        "none empty": lambda: text.join([b"a", b""]),
        "names must be 1": lambda: text.join([b"a"], ["x", "y"]),
        "levels must be": lambda: text.canaries(0, levels=(0, 1)),
        "n_letters must be positive": lambda: text.canaries(0, n_letters=0),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(UnknownDatasetError):
        text.load("wiki")
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(NotPreparedError, match="no source files"):
        text.load("stdlib")
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(NotPreparedError, match="pydoc_data"):
        text.load("topics")


def test_the_import_is_light():
    code = "import sys, jaxml.data.text; assert not {'jax', 'scipy', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def small():
    return text.load("stdlib", max_bytes=600_000)


def test_pieces_are_one_of_each_document_in_whole_lines(small):
    pieces = text.pieces(3, small, n_bytes=900)
    by_name = dict(zip(small.names, documents(small), strict=True))
    long = {name for name, document in by_name.items() if len(document) >= 900}
    assert set(pieces.names) == long and list(pieces.names) != sorted(long)
    for name, piece in zip(pieces.names, documents(pieces), strict=True):
        before, found, _ = by_name[name].partition(piece)
        assert found and len(piece) <= 900
        assert b"\n" not in piece or (piece.endswith(b"\n") and before[-1:] in (b"", b"\n"))
    again, other = text.pieces(3, small, n_bytes=900), text.pieces(4, small, n_bytes=900)
    assert again.names == pieces.names and np.array_equal(again.text, pieces.text)
    assert other.names != pieces.names


def test_excerpts_occur_once_and_go_to_their_levels(small):
    excerpts = text.excerpts(0, small, n_per_level=3, levels=(1, 5), n_bytes=320)
    assert excerpts.copies.tolist() == [1] * 3 + [5] * 3
    assert excerpts.names[0] == "excerpt/1/0" and excerpts.names[-1] == "excerpt/5/2"
    whole = small.text.tobytes()
    for document in excerpts.documents:
        assert 160 <= len(document) <= 320
        assert whole.count(document) == 1
        assert all(whole.count(document[i : i + 64]) == 1 for i in range(0, len(document), 64))
    again = text.excerpts(0, small, n_per_level=3, levels=(1, 5), n_bytes=320)
    assert again.documents == excerpts.documents


def test_bad_pieces_and_excerpts_are_refused(small):
    for options, message in (
        ({"n_bytes": 0}, "n_bytes must be positive"),
        ({"n_bytes": 10**9}, "more than any document has"),
    ):
        with pytest.raises(ValueError, match=message):
            text.pieces(0, small, **options)
    with pytest.raises(ValueError, match="must have 4000 pieces of 300 bytes"):
        text.excerpts(0, small, n_per_level=4000, levels=(1,), n_bytes=300)
    with pytest.raises(ValueError, match="levels must be positive"):
        text.excerpts(0, small, n_per_level=1, levels=(0,), n_bytes=300)
