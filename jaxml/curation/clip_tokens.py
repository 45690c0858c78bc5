"""Texts as the tokens of a CLIP: ``[n, context]`` int32, padded with 0.

Three vocabularies: words by their hash for the smallest models, bytes, and CLIP's own byte pairs
from a merges file that the user has. In the latter two the end token has the largest number, which
is how ``jaxml.nn.TextTower`` finds it.
"""

import gzip
import html
import os
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence

import numpy as np

Tokenize = Callable[[Sequence[str]], np.ndarray]

BYTE_VOCABULARY = 259
CLIP_VOCABULARY = 49408
CLIP_CONTEXT = 77

_WORD = re.compile(r"\w+")
# Quotes that curl, ligatures and letters of double width, as the common ones that they stand for.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
    }
    | {
        c: unicodedata.normalize("NFKC", c)
        for c in map(chr, [*range(0xFB00, 0xFB07), *range(0xFF01, 0xFF5F)])
    }
)


def hash_words(texts: Sequence[str], *, vocabulary: int = 256, context: int = 16) -> np.ndarray:
    """Tokenizes words, in lower case and without punctuation, by their CRC-32.

    Two words may share a number; nothing has to be learned or loaded.

    Args:
      texts: ``n`` of them.
      vocabulary: numbers are ``1..vocabulary - 1``.
      context: words after that many are dropped.

    Returns:
      int32 ``[n, context]``.
    """
    if vocabulary < 2 or context < 1:
        raise ValueError(f"need vocabulary >= 2 and context >= 1, got {vocabulary} and {context}")
    tokens = np.zeros((len(texts), context), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        words = _WORD.findall(text.lower())[:context]
        row[: len(words)] = [zlib.crc32(w.encode()) % (vocabulary - 1) + 1 for w in words]
    return tokens


def byte_tokens(texts: Sequence[str], *, context: int = CLIP_CONTEXT) -> np.ndarray:
    """Tokenizes the bytes of UTF-8: 1 + byte, between a start (257) and an end (258) token.

    Args:
      texts: ``n`` of them.
      context: length of a text with both; longer ones are cut.

    Returns:
      int32 ``[n, context]``, for a vocabulary of ``BYTE_VOCABULARY``.
    """
    rows = [[byte + 1 for byte in text.encode()] for text in texts]
    return frame(rows, start=BYTE_VOCABULARY - 2, end=BYTE_VOCABULARY - 1, context=context)


def frame(rows: Sequence[Sequence[int]], *, start: int, end: int, context: int) -> np.ndarray:
    """Puts a start and an end token around each row, cuts it to ``context`` and pads it with 0.

    Raises:
      ValueError: a context that has no room for both.
    """
    if context < 2:
        raise ValueError(f"context must have room for a start and an end, got {context}")
    tokens = np.zeros((len(rows), context), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        row = row[: context - 2]
        line[: len(row) + 2] = [start, *row, end]
    return tokens


def clip_tokenizer(merges: str | os.PathLike, *, context: int = CLIP_CONTEXT) -> Tokenize:
    """Makes CLIP's tokenizer from its list of merges.

    The vocabulary is 256 bytes, the same at the end of a word, one token a merge, start and end;
    with the published list 49,408. Of a text HTML entities are resolved, curled quotes made plain,
    ligatures and wide letters taken apart; then it is normalised (NFC), with single spaces and in
    lower case. What CLIP's own cleaning does beyond that is left, such as mending what has been
    decoded wrongly.

    Args:
      merges: a text file, plain or gzipped, with a merge ``"a b"`` a line after a first line of
        its own (the published file is ``bpe_simple_vocab_16e6.txt.gz``; of a longer list the first
        48,894 count).
      context: length of a text with start and end.

    Returns:
      A function from texts to int32 ``[n, context]``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line that is no merge, or one of parts that do not come before it.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pairs = _read_merges(pathlib.Path(merges))
    letters = _byte_letters()
    names = [*letters, *(letter + "</w>" for letter in letters)]
    numbers = {name: number for number, name in enumerate(names)}
    for line, (a, b) in enumerate(pairs, start=2):
        if a not in numbers or b not in numbers:
            raise ValueError(f"{merges}, line {line}: {a!r} {b!r} merges what is not there yet")
        numbers.setdefault(a + b, len(numbers))
    start = len(numbers)
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=pairs, end_of_word_suffix="</w>"))
    words = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )

    def tokenize(texts: Sequence[str]) -> np.ndarray:
        rows = [encoded.ids for encoded in tokenizer.encode_batch(list(map(_clean, texts)))]
        return frame(rows, start=start, end=start + 1, context=context)

    return tokenize


def _clean(text: str) -> str:
    text = html.unescape(html.unescape(text)).translate(_PLAIN)
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def _read_merges(path: pathlib.Path) -> list[tuple[str, str]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    lines = text.splitlines()[1 : 1 + CLIP_VOCABULARY - 2 - 512]
    pairs = []
    for number, line in enumerate(lines, start=2):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2:
            raise ValueError(f"{path}, line {number}: a merge is two tokens, got {line!r}")
        pairs.append((parts[0], parts[1]))
    return pairs


def _byte_letters() -> list[str]:
    """Returns a printable letter for each byte, in the order in which CLIP numbers them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
