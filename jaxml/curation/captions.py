"""Lengths of captions: words, tokens and characters, counted on their bytes and all at once."""

from collections.abc import Sequence

import numpy as np

# The wide spaces of str.split, in UTF-8: those of two bytes, and those of three.
_WIDE = [chr(c).encode() for c in (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
                                   0x202F, 0x205F, 0x3000)]  # fmt: skip
_CODES = {n: np.array([int.from_bytes(f) for f in _WIDE if len(f) == n], np.uint32) for n in (2, 3)}


def text_buffer(texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Joins texts in UTF-8.

    Args:
      texts: a sequence of str, or a pyarrow string array, which is not copied where it is in one
        piece; None and null are empty texts.

    Returns:
      uint8 ``[bytes]`` and int64 ``[n + 1]``, where each text starts and the last one ends.
    """
    if hasattr(texts, "to_pylist"):
        return _arrow_buffer(texts)
    encoded = [b"" if s is None else s.encode("utf-8", "surrogatepass") for s in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(s) for s in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def _arrow_buffer(texts) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa

    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if not pa.types.is_large_string(texts.type):
        texts = texts.cast(pa.string())
    if texts.null_count:
        texts = texts.fill_null("")
    wide = pa.types.is_large_string(texts.type)
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(offsets, np.int64 if wide else np.int32)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    data = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]


def count_words(texts: Sequence[str | None]) -> np.ndarray:
    """Counts words as ``len(text.split())`` does, at every space that Unicode knows.

    Args:
      texts: ``n`` of them, as for ``text_buffer``.

    Returns:
      int32 ``[n]``; 0 for None.
    """
    data, offsets = text_buffer(texts)
    # Differences wrap around: 9 to 13, and 28 to 32.
    space = (data - np.uint8(9) <= 4) | (data - np.uint8(28) <= 4)
    # The first bytes that a wide space can have.
    leads = np.flatnonzero((data == 0xC2) | (data - np.uint8(0xE1) <= 2))
    if leads.size:
        last = data.size - 1
        one, two, three = (data[np.minimum(leads + i, last)].astype(np.uint32) for i in range(3))
        short = np.isin(one << 8 | two, _CODES[2])
        long = np.isin(one << 16 | two << 8 | three, _CODES[3])
        for i, found in enumerate((short | long, short | long, long)):
            space[leads[found] + i] = True
    return _count(_run_starts(space, offsets), offsets)


def count_tokens(texts: Sequence[str | None]) -> np.ndarray:
    """Counts tokens as fastText does: it splits at ASCII spaces and NUL, and a line end is a token.

    Args:
      texts: ``n`` of them, as for ``text_buffer``.

    Returns:
      int32 ``[n]``; 0 for None.
    """
    data, offsets = text_buffer(texts)
    space = (data - np.uint8(9) <= 4) | (data == ord(" ")) | (data == 0)
    return _count(_run_starts(space, offsets) | (data == ord("\n")), offsets)


def count_chars(texts: Sequence[str | None]) -> np.ndarray:
    """Counts code points as ``len(text)`` does.

    Args:
      texts: ``n`` of them, as for ``text_buffer``.

    Returns:
      int32 ``[n]``; 0 for None.
    """
    data, offsets = text_buffer(texts)
    # All bytes of a character but its first are 10xxxxxx.
    return _count(data.view(np.int8) >= -64, offsets)


def _run_starts(space: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Marks the bytes that are no space and follow one, or begin a text."""
    starts = ~space
    starts[1:] &= space[:-1]
    first = offsets[:-1][offsets[:-1] < space.size]
    starts[first] = ~space[first]
    return starts


def _count(marks: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Counts marks in each text, 64 of them at a time."""
    bits = np.zeros(8 * (marks.size // 64 + 1), np.uint8)
    packed = np.packbits(marks, bitorder="little")
    bits[: packed.size] = packed
    words = bits.view("<u8").astype(np.uint64)
    before = np.zeros(words.size, np.int64)
    np.cumsum(np.bitwise_count(words[:-1]), out=before[1:])
    word, bit = offsets >> 6, (offsets & 63).astype(np.uint64)
    inside = words[word] & ((np.uint64(1) << bit) - np.uint64(1))
    return np.diff(before[word] + np.bitwise_count(inside)).astype(np.int32)


def caption_features(texts: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Counts all of it: columns ``num_words``, ``num_tokens`` and ``num_chars``, int32 ``[n]``."""
    return {
        "num_words": count_words(texts),
        "num_tokens": count_tokens(texts),
        "num_chars": count_chars(texts),
    }
