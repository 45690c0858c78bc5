"""Byte-level tokenizers, made and run by the ``tokenizers`` library."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

BOS = "<|endoftext|>"
"""Begins every document, as GPT-2's does."""


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> tokenizers.Tokenizer:
    """Learns byte-pair merges; the same texts give the same tokenizer.

    Id 0 is ``BOS``, then come the 256 bytes, then the merges. Any text can be encoded, and
    decoding gives it back.

    Args:
      texts: what to learn from.
      vocab_size: at least 257, which are bytes without merges; fewer merges are found in a text
        that is too short.

    Raises:
      ValueError: a smaller ``vocab_size``.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size must be at least 257, BOS and the bytes, got {vocab_size}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Makes the tokenizer of ``BOS`` and the 256 bytes."""
    return train_bpe([], vocab_size=257)


def load(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """Reads a ``tokenizer.json``, as ``tokenizer.save`` and Hugging Face write it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no tokenizer, or has no ``BOS``.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no tokenizer {path}")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer: {error}") from error
    bos_id(tokenizer)
    return tokenizer


def bos_id(tokenizer: tokenizers.Tokenizer) -> int:
    """Returns the id of ``BOS``.

    Raises:
      ValueError: the tokenizer has none.
    """
    token = tokenizer.token_to_id(BOS)
    if token is None:
        raise ValueError(f"tokenizer must have a token {BOS!r}")
    return token


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes texts, in parallel; int32 ``[n_i]`` each, without ``BOS``."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [np.asarray(encoding.ids, np.int32) for encoding in encodings]


def decode(tokenizer: tokenizers.Tokenizer, ids: np.ndarray) -> str:
    """Decodes ids ``[n]``; ``BOS`` is left out, bytes that are no UTF-8 become U+FFFD."""
    return tokenizer.decode(np.asarray(ids).tolist())


def round_trips(tokenizer: tokenizers.Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Tells which rows ``[n, m]`` of ids come back when their text is encoded, bool ``[n]``.

    Others cannot be sent to a model as text.
    """
    rows = np.asarray(ids).tolist()
    texts = tokenizer.decode_batch(rows, skip_special_tokens=False)
    again = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.asarray([a.ids == row for a, row in zip(again, rows, strict=True)], bool)
