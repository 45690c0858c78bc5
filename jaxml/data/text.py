"""Text that ships with Python, and what is planted in it to measure memorisation.

A corpus is bytes with document boundaries. Everything drawn here is a pure function of a seed
through SHAKE-256, so it is the same on every machine and with every version of numpy.
"""

import hashlib
import importlib
import itertools
import pathlib
import sysconfig
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxml.data.dataset import NotPreparedError, UnknownDatasetError

NAMES = ("stdlib", "topics")
LEVELS = (1, 2, 4, 8, 16, 32, 64)
"""How often documents are planted."""

# Left out of "stdlib": what distributions strip or add, and what is not part of the library.
_SKIPPED = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "idle_test",
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Corpus(NamedTuple):
    """Documents as bytes, one after another.

    Attributes:
      text: uint8 ``[n]``.
      offsets: int64 ``[d + 1]``; document ``i`` is ``text[offsets[i]:offsets[i + 1]]``.
      names: of the ``d`` documents.
    """

    text: np.ndarray
    offsets: np.ndarray
    names: tuple[str, ...]


class Planted(NamedTuple):
    """Documents to be planted.

    Attributes:
      documents: ``p`` of them.
      copies: int64 ``[p]``, how often each is planted.
      names: ``"<kind>/<copies>/<number>"``, so that a match can be traced to its level.
    """

    documents: tuple[bytes, ...]
    copies: np.ndarray
    names: tuple[str, ...]


def load(name: str, *, max_bytes: int | None = None) -> Corpus:
    """Loads text that every Python installation has; its content is that of this Python's version.

    | name   | documents                                                  | size, Python 3.11 |
    |--------|------------------------------------------------------------|-------------------|
    | stdlib | the source files of the standard library, without its tests | 11 MB             |
    | topics | the topics of ``help()``: chapters of the language reference | 0.5 MB            |

    Args:
      name: one of ``NAMES``.
      max_bytes: leaves out each document that would make the corpus larger (None: no limit).

    Returns:
      The documents that are not empty, in the order of their names.

    Raises:
      UnknownDatasetError: another name.
      NotPreparedError: this Python comes without it.
      ValueError: a limit that leaves no document.
    """
    if name not in NAMES:
        raise UnknownDatasetError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes must be positive, got {max_bytes}")
    names, documents, size = [], [], 0
    for label, document in (_stdlib if name == "stdlib" else _topics)():
        if max_bytes is not None and size + len(document) > max_bytes:
            continue
        if document:
            names.append(label)
            documents.append(document)
            size += len(document)
    if not documents:
        raise ValueError(f"max_bytes={max_bytes} is less than any document of {name!r}")
    return join(documents, names)


def _stdlib():
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    paths = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*.py")
        if not _SKIPPED & set(path.relative_to(root).parts[:-1])
    }
    if not paths:
        raise NotPreparedError(f"the standard library has no source files in {root}")
    for label in sorted(paths):
        yield label, paths[label].read_bytes()


def _topics():
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise NotPreparedError(
            "this Python comes without pydoc_data, the text of help()"
        ) from error
    for label in sorted(topics):
        yield label, topics[label].encode()


def join(documents: Sequence[bytes], names: Sequence[str] | None = None) -> Corpus:
    """Joins documents into a corpus; their names are their numbers unless given.

    Raises:
      ValueError: no document, an empty one, or not one name each.
    """
    if not documents or not all(documents):
        raise ValueError(f"documents must be one or more, none empty; got {len(documents)}")
    names = tuple(map(str, range(len(documents)))) if names is None else tuple(names)
    if len(names) != len(documents):
        raise ValueError(f"names must be {len(documents)}, one for each document, got {len(names)}")
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return Corpus(np.frombuffer(b"".join(documents), np.uint8), offsets, names)


def split(corpus: Corpus) -> list[bytes]:
    """Returns the documents of a corpus, as ``join`` took them."""
    return [corpus.text[a:b].tobytes() for a, b in itertools.pairwise(corpus.offsets)]


def pieces(seed: int, corpus: Corpus, *, n_bytes: int) -> Corpus:
    """Takes one random piece of each document, so that a small corpus has many kinds of text.

    Args:
      seed: of the pieces and of their order.
      corpus: left unchanged.
      n_bytes: of a piece, cut off at ends of lines; shorter documents are left out.

    Returns:
      Pieces in random order, with the names of their documents.

    Raises:
      ValueError: every document is too short.
    """
    if n_bytes < 1:
        raise ValueError(f"n_bytes must be positive, got {n_bytes}")
    long = [
        (name, int(start), int(end))
        for name, (start, end) in zip(corpus.names, itertools.pairwise(corpus.offsets), strict=True)
        if end - start >= n_bytes
    ]
    if not long:
        raise ValueError(f"n_bytes={n_bytes} is more than any document has")
    names, documents = [], []
    draws = _words(f"pieces/{seed}", 2 * len(long)).reshape(-1, 2)
    for i in np.argsort(draws[:, 0], kind="stable"):
        name, start, end = long[i]
        first = start + int(draws[i, 1] % np.uint64(end - start - n_bytes + 1))
        piece = corpus.text[first : first + n_bytes].tobytes()
        if first > start:  # it begins inside a line
            piece = piece[piece.find(b"\n") + 1 :]
        piece = piece[: piece.rfind(b"\n") + 1] or piece
        if piece:
            names.append(name)
            documents.append(piece)
    return join(documents, names)


def excerpts(
    seed: int,
    corpus: Corpus,
    *,
    n_per_level: int = 8,
    levels: Sequence[int] = LEVELS,
    n_bytes: int = 256,
) -> Planted:
    """Takes pieces that occur once in a corpus, to be planted as its duplicated documents.

    They read like the rest of it, so a model comes upon them by itself. No 64 bytes of an excerpt,
    counted from its start, stand anywhere else in the corpus.

    Args:
      seed: as of ``pieces``.
      corpus: left unchanged; the excerpts' documents should not be trained on.
      n_per_level: excerpts of each level.
      levels: numbers of copies.
      n_bytes: length of an excerpt, before it is cut to whole lines.

    Raises:
      ValueError: no level, a level or a size below 1, or a corpus with too few documents.
    """
    _check_levels(levels, n_per_level=n_per_level, n_bytes=n_bytes)
    found, whole = [], corpus.text.tobytes()
    for piece in split(pieces(seed, corpus, n_bytes=n_bytes)):
        parts = [piece[i : i + 64] for i in range(0, len(piece), 64)]
        if 2 * len(piece) >= n_bytes and all(whole.count(part) == 1 for part in parts):
            found.append(piece)
        if len(found) == len(levels) * n_per_level:
            return _at_levels("excerpt", levels, n_per_level, found.__getitem__)
    raise ValueError(
        f"corpus must have {len(levels) * n_per_level} pieces of {n_bytes} bytes that occur once, "
        f"it has {len(found)}"
    )


def canaries(
    seed: int,
    *,
    n_per_level: int = 4,
    levels: Sequence[int] = LEVELS,
    prefix: str = "The combination of the archive is ",
    n_letters: int = 16,
) -> Planted:
    """Writes canaries: a fixed prefix and uniformly random lower-case letters.

    Another seed gives the references that the exposure of a canary is ranked among.

    Ref: Carlini, Liu, Erlingsson, Kos & Song, "The Secret Sharer", 2019.

    Args:
      seed: of the letters.
      n_per_level: canaries of each level.
      levels: numbers of copies.
      prefix: ahead of the letters.
      n_letters: of the secret.

    Returns:
      ``len(levels) * n_per_level`` canaries.

    Raises:
      ValueError: no level, a level or a size below 1.
    """
    _check_levels(levels, n_per_level=n_per_level, n_letters=n_letters)

    def write(number: int) -> bytes:
        letters = _digits(f"canary/{seed}/{number}", n_letters, len(_LETTERS))
        return (prefix + "".join(_LETTERS[i] for i in letters)).encode()

    return _at_levels("canary", levels, n_per_level, write)


def plant(seed: int, corpus: Corpus, *planted: Planted) -> Corpus:
    """Puts every copy of planted documents between the documents of a corpus, in random order.

    Args:
      seed: of the order, which is that of all documents.
      corpus: left unchanged.
      *planted: what to add.

    Returns:
      The larger corpus. A name tells a planted document, and every copy bears it.
    """
    documents, names = split(corpus), list(corpus.names)
    for group in planted:
        for document, copies, name in zip(*group, strict=True):
            documents += [document] * int(copies)
            names += [name] * int(copies)
    order = np.argsort(_words(f"order/{seed}", len(documents)), kind="stable")
    return join([documents[i] for i in order], [names[i] for i in order])


def _check_levels(levels: Sequence[int], **sizes: int) -> None:
    if not levels or min(levels) < 1:
        raise ValueError(f"levels must be positive numbers of copies, got {tuple(levels)}")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}")


def _at_levels(kind: str, levels: Sequence[int], n_per_level: int, write) -> Planted:
    copies = np.repeat(np.asarray(levels, np.int64), n_per_level)
    names = (f"{kind}/{c}/{i % n_per_level}" for i, c in enumerate(copies))
    return Planted(tuple(write(i) for i in range(len(copies))), copies, tuple(names))


def _words(purpose: str, n: int) -> np.ndarray:
    """Returns ``n`` uniform uint64."""
    return np.frombuffer(hashlib.shake_256(purpose.encode()).digest(8 * n), "<u8")


def _digits(purpose: str, n: int, base: int) -> np.ndarray:
    """Returns ``n`` uniform numbers below ``base``, to within ``base / 2^64``."""
    return (_words(purpose, n) % np.uint64(base)).astype(np.int64)
