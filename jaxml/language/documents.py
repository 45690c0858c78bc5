"""Documents of tokens as one array, so that no match can run over a boundary."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SEPARATOR = -1
"""Stands after every document; no token id is negative, so no window of tokens contains it."""

MAX_TOKENS = 2**31 - 1
"""Positions are int32."""


class Documents(NamedTuple):
    """Documents, each followed by ``SEPARATOR``.

    Attributes:
      tokens: int16 ``[n]`` where all ids fit, else int32; separators included.
      starts: int64 ``[d]``, where each document starts.
      first: number of the first document, which is not 0 in a shard.
    """

    tokens: np.ndarray
    starts: np.ndarray
    first: int = 0


def join_documents(documents: Sequence[np.ndarray]) -> Documents:
    """Joins documents of token ids ``[n_i]``.

    Raises:
      ValueError: as ``from_offsets``.
    """
    arrays = [np.asarray(document) for document in documents]
    if not arrays:
        raise ValueError("documents must be one or more, got none")
    offsets = np.cumsum([0, *(len(a) for a in arrays)], dtype=np.int64)
    _check_size(int(offsets[-1]) + len(arrays))
    return from_offsets(np.concatenate(arrays), offsets)


def from_offsets(tokens: np.ndarray, offsets: np.ndarray) -> Documents:
    """Sets separators into a flat array; document ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.

    Args:
      tokens: integer ids ``[n]``, not negative.
      offsets: ``[d + 1]``, from 0 to ``n``, not decreasing.

    Returns:
      The documents, ``n + d`` tokens.

    Raises:
      ValueError: no token, ids that are not integers in ``0..2^31 - 1`` (a negative id is reserved
        for the separator), offsets that do not cover them, or more than ``2^31 - 1`` positions.
    """
    tokens, offsets = np.asarray(tokens), np.asarray(offsets, np.int64)
    if tokens.ndim != 1 or tokens.size == 0:
        raise ValueError(f"tokens must be [n] with at least one token, got shape {tokens.shape}")
    n_documents = offsets.size - 1
    _check_size(tokens.size + max(n_documents, 0))
    if (
        n_documents < 1
        or offsets[0] != 0
        or offsets[-1] != tokens.size
        or (np.diff(offsets) < 0).any()
    ):
        raise ValueError(f"offsets must rise from 0 to {tokens.size}, the number of tokens")
    largest = check_ids("tokens", tokens)
    dtype = np.int16 if largest < 2**15 else np.int32
    joined = np.full(tokens.size + n_documents, SEPARATOR, dtype)
    is_token = np.ones(joined.size, bool)
    is_token[offsets[1:] + np.arange(n_documents)] = False
    joined[is_token] = tokens
    return Documents(joined, offsets[:-1] + np.arange(n_documents))


def split_documents(documents: Documents, n_shards: int) -> tuple[Documents, ...]:
    """Cuts between documents into at most ``n_shards`` parts of about equal length (views).

    Raises:
      ValueError: fewer than one shard.
    """
    if n_shards < 1:
        raise ValueError(f"n_shards must be positive, got {n_shards}")
    n = len(documents.tokens)
    targets = n * np.arange(1, n_shards) // n_shards
    inner = np.searchsorted(documents.starts, targets)
    cuts = np.unique([0, *inner[inner < len(documents.starts)]])
    ends = [*documents.starts[cuts[1:]], n]
    return tuple(
        Documents(
            documents.tokens[documents.starts[a] : end],
            documents.starts[a:b] - documents.starts[a],
            documents.first + int(a),
        )
        for a, b, end in zip(cuts, [*cuts[1:], len(documents.starts)], ends, strict=True)
    )


def locate(documents: Documents, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the document number and the offset in it, int64, of positions in ``tokens``."""
    positions = np.asarray(positions, np.int64)
    number = np.searchsorted(documents.starts, positions, side="right") - 1
    return documents.first + number, positions - documents.starts[number]


def check_ids(name: str, ids: np.ndarray) -> int:
    """Returns the largest id; raises ValueError unless all are integers in ``0..2^31 - 1``."""
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integer token ids, got {ids.dtype}")
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if low < 0 or high > MAX_TOKENS:
        raise ValueError(f"{name} must be ids in 0..{MAX_TOKENS}, got {low if low < 0 else high}")
    return high


def _check_size(n: int) -> None:
    if n > MAX_TOKENS:
        raise ValueError(
            f"tokens must be at most {MAX_TOKENS} with separators, got {n}: index several shards"
        )
