"""Which text that a model has written stands in its training data, and how much of that there is.

A generation is memorised where a window of its tokens, 50 say, occurs in the corpus verbatim.
Generations come without their prompts, so that no prompt is ever counted.

Ref: Nasr et al., "Scalable Extraction of Training Data from (Production) Language Models", 2023.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxml.core.types import Key, PyTree
from jaxml.language.documents import Documents, locate
from jaxml.language.generate import Model, generate
from jaxml.language.stream import StreamMatch, at_tokens
from jaxml.language.window_index import (
    WindowIndex,
    check_width,
    distinct_windows,
    find_windows,
)


class Hits(NamedTuple):
    """Windows of generations that occur in the corpus, in the order of the generations.

    Attributes:
      generation: int64 ``[h]``.
      start: int64 ``[h]``, of the window in its generation.
      thing: int64 ``[h]``, the number of the distinct window, from 0.
      count: int64 ``[h]``, how often it occurs in the corpus.
      document: int64 ``[h]``, the first document with it.
      offset: int64 ``[h]``, of its first occurrence there.
    """

    generation: np.ndarray
    start: np.ndarray
    thing: np.ndarray
    count: np.ndarray
    document: np.ndarray
    offset: np.ndarray


class Span(NamedTuple):
    """A longest piece of a generation that was found at one place of the corpus."""

    generation: int
    start: int
    length: int
    document: int
    offset: int


class CorpusWindows(NamedTuple):
    """The distinct windows of a corpus.

    Attributes:
      document: int64 ``[u]``, the first document with each.
      count: int64 ``[u]``, occurrences in the corpus.
    """

    document: np.ndarray
    count: np.ndarray


def random_prompts(
    key: Key, documents: Sequence[np.ndarray], *, n_prompts: int, length: int
) -> Int[np.ndarray, "n length"]:
    """Draws contiguous blocks of tokens, uniformly and with replacement, each within a document.

    Args:
      key: typed key.
      documents: ids ``[n_i]`` that the model has not read; short ones are passed over.
      n_prompts: to be drawn.
      length: of a block; the paper has 5.

    Returns:
      int32 ``[n_prompts, length]``.

    Raises:
      ValueError: a size below 1, or no document of ``length`` tokens.
    """
    for name, value in (("n_prompts", n_prompts), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    places = np.cumsum([max(len(document) - length + 1, 0) for document in documents])
    if not places.size or not places[-1]:
        raise ValueError(f"documents must have one of at least length={length} tokens")
    picks = np.asarray(jax.random.randint(key, (n_prompts,), 0, int(places[-1])))
    which = np.searchsorted(places, picks, side="right")
    before = np.concatenate([[0], places])[which]
    return np.stack(
        [documents[i][a : a + length] for i, a in zip(which, picks - before, strict=True)]
    ).astype(np.int32)


def match_index(index: WindowIndex, generations: Documents) -> StreamMatch:
    """Matches every window of the generations against an index; ``match_stream`` for one in memory.

    Args:
      index: of the corpus.
      generations: one document each, without their prompts.

    Returns:
      StreamMatch.

    Raises:
      ValueError: a window longer than every generation.
    """
    check_width(generations, index.window)
    probes = distinct_windows(generations.tokens, index.window, entries=True)
    within = np.arange(index.window)[None]
    found = find_windows(index, generations.tokens[probes.position[:, None] + within])
    n_tokens = sum(len(s.documents.tokens) - len(s.documents.starts) for s in index.shards)
    return StreamMatch(*at_tokens(probes, *found), n_tokens)


def find_hits(generations: Documents, match: StreamMatch) -> Hits:
    """Lists the windows that occur in the corpus.

    A distinct window has one first place in the corpus, and no other window is there.

    Args:
      generations: as they were matched.
      match: from ``match_index`` or ``match_stream``.

    Returns:
      Hits.
    """
    (at,) = np.nonzero(match.count > 0)
    place = np.stack([match.document[at], match.offset[at]])
    thing = np.unique(place, axis=1, return_inverse=True)[1].reshape(-1)
    return Hits(*locate(generations, at), thing.astype(np.int64), match.count[at], *place)


def memorised_mask(starts: np.ndarray, window: int) -> np.ndarray:
    """Tells which tokens lie in a matching window.

    Args:
      starts: bool ``[..., t]``, whether a matching window starts at a token.
      window: its width.

    Returns:
      bool ``[..., t]``.

    Raises:
      ValueError: a window below 1.
    """
    if window < 1:
        raise ValueError(f"window must be positive, got {window}")
    until = np.cumsum(starts, axis=-1)
    before = np.zeros_like(until)
    before[..., window:] = until[..., :-window]
    return until > before


def memorised_tokens(generations: Documents, match: StreamMatch, window: int) -> np.ndarray:
    """Counts the tokens of each generation that lie in a matching window, int64 ``[d]``."""
    mask = memorised_mask(match.count > 0, window)
    return np.add.reduceat(mask, generations.starts, dtype=np.int64)


def unique_curve(hits: Hits, n_generations: int) -> np.ndarray:
    """Returns how many distinct windows the first ``i`` generations show, int64 ``[n + 1]``."""
    first = np.unique(hits.thing, return_index=True)[1]
    new = np.bincount(hits.generation[first], minlength=n_generations)
    return np.concatenate([[0], np.cumsum(new)]).astype(np.int64)


def find_spans(generations: Documents, match: StreamMatch, window: int) -> list[Span]:
    """Joins windows that follow one another in a generation and at their first places alike.

    Args:
      generations: as they were matched.
      match: from ``match_index`` or ``match_stream``.
      window: the width.

    Returns:
      Spans of at least ``window`` tokens, each of which stands in the corpus as a whole.
    """
    (at,) = np.nonzero(match.count > 0)
    follows = (
        (np.diff(at) == 1)
        & (np.diff(match.document[at]) == 0)
        & (np.diff(match.offset[at]) == 1)
    )  # fmt: skip
    heads = np.flatnonzero(np.concatenate([[True], ~follows])) if at.size else at
    lengths = np.diff(np.append(heads, at.size)) + window - 1
    at = at[heads]
    columns = (*locate(generations, at), lengths, match.document[at], match.offset[at])
    return [Span(*map(int, row)) for row in zip(*columns, strict=True)]


def corpus_windows(documents: Documents, window: int) -> CorpusWindows:
    """Counts the distinct windows of a corpus: what there is to extract.

    Raises:
      ValueError: a window below 1 or longer than every document.
    """
    check_width(documents, window)
    found = distinct_windows(documents.tokens, window, entries=False)
    document, _ = locate(documents, found.position)
    return CorpusWindows(document, found.count.astype(np.int64))


def discoverable(
    model: Model,
    variables: PyTree,
    prompts: Int[np.ndarray, "n p"],
    continuations: Int[np.ndarray, "n t"],
    *,
    banned: tuple[int, ...] = (),
    batch_size: int = 128,
) -> np.ndarray:
    """Tells whether greedy decoding after a training prefix gives what follows it, bool ``[n]``.

    Ref: Carlini et al., "Quantifying Memorization Across Neural Language Models", 2022.

    Args:
      model: as for ``generate``.
      variables: of the model.
      prompts: the prefixes, begun as the model's documents are.
      continuations: what follows each in the corpus.
      banned: ids that are never drawn.
      batch_size: rows at a time.

    Raises:
      ValueError: as ``generate``, or not one continuation a prompt.
    """
    continuations = np.asarray(continuations)
    if continuations.ndim != 2 or len(continuations) != len(prompts):
        raise ValueError(
            f"continuations must be [{len(prompts)}, t], one a prompt, got {continuations.shape}"
        )
    greedy = generate(
        jax.random.split(jax.random.key(0), len(prompts)),
        model,
        variables,
        prompts,
        n_tokens=continuations.shape[1],
        temperature=0.0,
        banned=banned,
        batch_size=batch_size,
    )
    return (greedy == continuations).all(axis=1)


def divergence_prompt(word: Sequence[int], repeats: int) -> np.ndarray:
    """Repeats the ids of a word, int32 ``[repeats * len(word)]``.

    Raises:
      ValueError: no id, or fewer than one repeat.
    """
    if not len(word) or repeats < 1:
        raise ValueError(f"word and repeats must not be empty, got {list(word)} and {repeats}")
    return np.tile(np.asarray(word, np.int32), repeats)


def split_after_repeats(generations: np.ndarray, word: Sequence[int]) -> np.ndarray:
    """Returns how many tokens of each generation go on repeating the word, int64 ``[n]``.

    What comes after them is the text to match: a model asked to repeat a word for ever leaves the
    pattern at some time, and may then recite.

    Args:
      generations: ids ``[n, t]`` after whole repeats of the word.
      word: its ids.

    Raises:
      ValueError: no id.
    """
    generations = np.asarray(generations)
    if not len(word):
        raise ValueError("word must have at least one id, got none")
    differs = generations != np.resize(np.asarray(word), generations.shape[1])[None]
    return np.where(differs.any(axis=1), differs.argmax(axis=1), generations.shape[1])
