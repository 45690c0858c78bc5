"""Rows of tokens that a language model is trained on."""

from collections.abc import Sequence

import numpy as np


def pack_rows(
    seed: int, documents: Sequence[np.ndarray], *, row_length: int, bos: int
) -> np.ndarray:
    """Shuffles documents, puts ``bos`` before each, joins them and cuts the whole into rows.

    Where the cuts fall depends on the seed, so that passes with different seeds show each token
    after different contexts.

    Args:
      seed: of the order and of the cuts.
      documents: ids ``[n_i]``.
      row_length: tokens of a row: the model's context, and one more to be predicted.
      bos: id ahead of each document.

    Returns:
      int32 ``[rows, row_length]``; at most ``row_length - 1`` tokens are left out.

    Raises:
      ValueError: documents too short to fill a row.
    """
    rng = np.random.default_rng(seed)
    pieces = [np.concatenate([[bos], documents[i]]) for i in rng.permutation(len(documents))]
    stream = np.concatenate([*pieces, [bos]]).astype(np.int32)
    n_rows = len(stream) // row_length
    if not n_rows:
        raise ValueError(f"documents must fill a row of {row_length}, got {len(stream)} tokens")
    return np.roll(stream, -rng.integers(row_length))[: n_rows * row_length].reshape(n_rows, -1)


def copy_documents(
    seed: int,
    documents: Sequence[np.ndarray],
    *,
    n_tokens: int,
    vocab_size: int,
    lengths: tuple[int, int] = (4, 16),
    repeats: tuple[int, int] = (3, 12),
) -> list[np.ndarray]:
    """Draws documents that say one thing several times, from which a model learns to copy.

    Every second one repeats a piece of ``documents``, the others uniformly random tokens.

    Args:
      seed: of all draws.
      documents: ids ``[n_i]``, the pieces' source.
      n_tokens: of all copies together, about.
      vocab_size: random tokens lie in ``1 .. vocab_size - 1``.
      lengths: least and largest length of what is repeated.
      repeats: least and largest number of times.

    Returns:
      Documents, int32.
    """
    rng = np.random.default_rng(seed)
    source = np.concatenate(documents)
    copies, total = [], 0
    while total < n_tokens:
        length = min(int(rng.integers(*lengths, endpoint=True)), len(source))
        if len(copies) % 2:
            piece = rng.integers(1, vocab_size, length)
        else:
            start = rng.integers(len(source) - length + 1)
            piece = source[start : start + length]
        copies.append(np.tile(piece, rng.integers(*repeats, endpoint=True)).astype(np.int32))
        total += len(copies[-1])
    return copies
