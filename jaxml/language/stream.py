"""Matching against a corpus larger than memory: the generations are indexed, the corpus streams.

Memory is set by the generations and by the size of a block, whatever the size of the corpus.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing

from jaxml.core.chunk import pad_to_power_of_two
from jaxml.language.documents import MAX_TOKENS, SEPARATOR, Documents
from jaxml.language.window_index import (
    Windows,
    check_width,
    distinct_windows,
    join_key,
    rolling_hash,
)

BLOCK = 1 << 17
"""Tokens that are read and matched at a time."""

_MIN_FILTER_BITS, _MAX_FILTER_BITS = 16, 30


class StreamMatch(NamedTuple):
    """Where the window that starts at each token of the generations occurs in the corpus.

    Attributes:
      count: int64 ``[n]``, occurrences, overlapping ones included; 0 where no window starts.
      document: int64 ``[n]``, the first document with one; -1 where there is none.
      offset: int64 ``[n]``, of the first one in that document; -1.
      n_tokens: of the corpus, without separators.
    """

    count: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    n_tokens: int


def match_stream(
    generations: Documents,
    window: int,
    blocks: Iterable[np.ndarray],
    *,
    block_size: int = BLOCK,
) -> StreamMatch:
    """Matches every window of the generations against a corpus that is seen once.

    The answers are those of ``build_window_index`` of the corpus: a compiled rolling hash and a
    table of bits choose the positions of a block that may match, and their tokens are compared.

    Args:
      generations: one document each, without what was not generated, such as the prompt.
      window: the width.
      blocks: integers ``[any]``, ``SEPARATOR`` after each document; read end to end, so documents
        may span blocks. ``document_blocks`` and ``file_blocks`` make them.
      block_size: tokens that are matched at a time.

    Returns:
      StreamMatch, ``n`` being ``len(generations.tokens)``.

    Raises:
      ValueError: a window below 1 or longer than every generation, a block size below 1, or a block
        that is no vector of integers of at least ``SEPARATOR``.
    """
    check_width(generations, window)
    if block_size < 1:
        raise ValueError(f"block_size must be positive, got {block_size}")
    probes = distinct_windows(generations.tokens, window, entries=True)
    n_probes = len(probes.key)
    bits = pad_to_power_of_two(8 * n_probes, least=1 << _MIN_FILTER_BITS).bit_length() - 1
    bits = min(bits, _MAX_FILTER_BITS)
    table = np.zeros(1 << bits, bool)
    table[(probes.key >> np.uint64(64 - bits)).astype(np.int64)] = True
    table = jnp.asarray(table)

    count, document, offset = (np.full(n_probes, start, np.int64) for start in (0, -1, -1))
    within = np.arange(window, dtype=np.int32)[None]
    # What the first windows of a piece have from the piece before; before the first is nothing.
    carried = np.full(window - 1, SEPARATOR, np.int32)
    # The document at the start of a piece: its number, and where it began, counted from there.
    number, began = 0, 0
    n_tokens = 0
    for piece in _pieces(blocks, block_size):
        text = np.full(block_size + window - 1, SEPARATOR, np.int32)
        text[: window - 1], text[window - 1 :][: len(piece)] = carried, piece
        high, low, may_match = map(np.asarray, _filter(text, probes.seed, table, window=window))
        (at,) = np.nonzero(may_match)
        key = join_key(high[at], low[at])
        entry = np.minimum(np.searchsorted(probes.key, key), n_probes - 1)
        same = probes.key[entry] == key
        at, entry = at[same], entry[same]
        wanted = generations.tokens[probes.position[entry][:, None] + within]
        same = (text[at[:, None] + within] == wanted).all(1)
        at, entry = at[same], entry[same]

        np.add.at(count, entry, 1)
        (separators,) = np.nonzero(piece == SEPARATOR)
        starts = np.concatenate([[began], separators + 1])
        # Backwards, so that of several occurrences the first is written last.
        new = np.flatnonzero(document[entry] < 0)[::-1]
        # The window that starts at text[i] ends at piece[i].
        passed = np.searchsorted(separators, at[new])
        document[entry[new]] = number + passed
        offset[entry[new]] = at[new] - (window - 1) - starts[passed]

        number += len(separators)
        began = int(starts[-1]) - len(piece)
        n_tokens += len(piece) - len(separators)
        carried = text[len(piece) : len(piece) + window - 1]
    return StreamMatch(*at_tokens(probes, count, document, offset), n_tokens)


def at_tokens(probes: Windows, count, document, offset) -> Iterator[np.ndarray]:
    """Takes what was found of each distinct window to the tokens at which it starts."""
    # Entry -1, no window, takes what is put at the end.
    for column, none in ((count, 0), (document, -1), (offset, -1)):
        yield np.append(column, none)[probes.entry]


@functools.partial(jax.jit, static_argnames="window")
def _filter(text, seed, table, *, window):
    """Hashes every window of a piece, and tells which the table of the first bits lets through."""
    high, low = rolling_hash(jnp, text, window, seed)
    bits = table.shape[0].bit_length() - 1
    return high, low, table[(high >> np.uint32(32 - bits)).astype(jnp.int32)]


def _pieces(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cuts and joins blocks to ``size`` tokens; a piece is valid until the next one."""
    piece, filled = np.empty(size, np.int32), 0
    for block in blocks:
        block = np.asarray(block)
        if block.ndim != 1 or block.dtype.kind not in "iu":
            raise ValueError(f"blocks must be vectors of integers, got {block.dtype} {block.shape}")
        if block.size and (block.min() < SEPARATOR or block.max() > MAX_TOKENS):
            raise ValueError(f"blocks must be ids in 0..{MAX_TOKENS} or {SEPARATOR}")
        done = 0
        while done < block.size:
            n = min(size - filled, block.size - done)
            piece[filled : filled + n] = block[done : done + n]
            done, filled = done + n, filled + n
            if filled == size:
                yield piece
                filled = 0
    if filled:
        yield piece[:filled]


def document_blocks(
    tokens: np.ndarray, offsets: np.ndarray, *, block_size: int = BLOCK
) -> Iterator[np.ndarray]:
    """Reads documents from a flat array, which may be a ``np.memmap``.

    Args:
      tokens: integers ``[n]``; document ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
      offsets: ``[d + 1]``.
      block_size: the most tokens to hold.

    Yields:
      int32 blocks for ``match_stream``.
    """
    for a, b in itertools.pairwise(offsets):
        for i in range(int(a), int(b), block_size):
            yield np.asarray(tokens[i : min(i + block_size, int(b))]).astype(np.int32)
        yield np.array([SEPARATOR], np.int32)


def file_blocks(
    paths: Sequence[str | os.PathLike],
    *,
    dtype: np.typing.DTypeLike = np.uint8,
    block_size: int = BLOCK,
) -> Iterator[np.ndarray]:
    """Reads files, a document each, of bytes or of token ids of a ``dtype``.

    Args:
      paths: of the files.
      dtype: of a token in a file.
      block_size: the most tokens to hold.

    Yields:
      int32 blocks for ``match_stream``.
    """
    dtype = np.dtype(dtype)
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(block_size * dtype.itemsize):
                yield np.frombuffer(block, dtype).astype(np.int32)
        yield np.array([SEPARATOR], np.int32)
