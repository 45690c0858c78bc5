"""The filters of DataComp's baselines, as masks over columns.

Every function is pure, takes columns of one length and returns bool ``[n]`` that does not depend on
the order of the rows. What needs a model comes from the caller: languages and lexicons as columns
or callables, scores and embeddings as columns.

Ref: Gadre et al., "DataComp: In search of the next generation of multimodal datasets", 2023; the
rules are those of the published code, which a caption of the paper may put more briefly.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from jaxml.curation.captions import count_chars, count_tokens, count_words
from jaxml.curation.cluster import Metric, assign

Columns = Mapping[str, Any]
Language = str | np.ndarray | Callable[[list[str]], Sequence[str]]
Lexicon = Collection[str] | Callable[[str], bool]


def size_mask(
    width: Num[Array | np.ndarray, " n"],
    height: Num[Array | np.ndarray, " n"],
    *,
    min_side: int = 200,
    max_aspect: float = 3.0,
) -> Bool[Array | np.ndarray, " n"]:
    """Keeps images with ``min(w, h) >= min_side`` and ``max(w, h) / min(w, h) <= max_aspect``.

    Args:
      width: ``[n]``, numpy or jax (there below 2^22 pixels); NaN and 0 are dropped.
      height: ``[n]``, likewise.
      min_side: pixels.
      max_aspect: of the longer side to the shorter one.

    Returns:
      bool ``[n]``, numpy or jax as ``width`` is.
    """
    xp = np
    if isinstance(width, jax.Array):
        xp, width, height = jnp, width.astype(jnp.float32), height.astype(jnp.float32)
    short, long = xp.minimum(width, height), xp.maximum(width, height)
    # Multiplied, so that an image without a side is not divided by.
    return (short >= min_side) & (short > 0) & (long <= max_aspect * short)


def clip_score_mask(
    scores: Float[Array | np.ndarray, " n"], threshold: float
) -> Bool[Array | np.ndarray, " n"]:
    """Keeps ``scores >= threshold``; NaN is dropped.

    Args:
      scores: ``[n]``, numpy or jax: cosines of image and caption.
      threshold: a number, compared in the precision of the scores; ``fraction_cut`` and
        ``top_fraction`` choose by a share instead.

    Returns:
      bool ``[n]``.
    """
    return scores >= threshold


def language_mask(
    columns: Columns, language: Language, *, wanted: str = "en", where: np.ndarray | None = None
) -> np.ndarray:
    """Keeps captions in one language.

    Args:
      columns: with ``text`` where ``language`` is a callable.
      language: the labels: the name of a column, an array ``[n]``, or a callable from a list of
        captions, in which line ends have become spaces, to as many labels.
      wanted: the label to keep.
      where: bool ``[n]``; a callable sees only these rows, and the others are dropped. To identify
        a language costs more than all other rules together, so it comes last.

    Returns:
      bool ``[n]``.

    Raises:
      ValueError: no such column, or another number of labels.
    """
    n = _length(columns)
    rows = np.arange(n) if where is None else np.flatnonzero(where)
    if callable(language):
        texts = _texts(columns, rows)
        labels = language([(s or "").replace("\n", " ") for s in texts]) if texts else []
        expected = len(rows)
    else:
        if isinstance(language, str):
            language = _column(columns, language)
        labels, expected = language, n
    if len(labels) != expected:
        raise ValueError(f"language must give {expected} labels, got {len(labels)}")
    kept = _equal(labels, wanted)
    if callable(language):
        mask = np.zeros(n, bool)
        mask[rows] = kept
        return mask
    return kept if where is None else kept & where


def caption_size_mask(columns: Columns, *, min_words: int, min_chars: int) -> np.ndarray:
    """Keeps captions of enough words, split at Unicode's spaces, and enough code points.

    Args:
      columns: with ``num_words`` and ``num_chars``, or with ``text``.
      min_words: kept from this number on.
      min_chars: likewise.

    Returns:
      bool ``[n]``.
    """
    words = columns["num_words"] if "num_words" in columns else count_words(_text(columns))
    return (words >= min_words) & (_num_chars(columns) >= min_chars)


def basic_mask(
    columns: Columns,
    *,
    language: Language,
    min_words: int = 3,
    min_chars: int = 6,
    min_side: int = 200,
    max_aspect: float = 3.0,
) -> np.ndarray:
    """The basic filter: English, more than two words, more than five characters, image size.

    Args:
      columns: ``text`` (or ``num_words`` and ``num_chars``), ``original_width``,
        ``original_height``.
      language: as for ``language_mask``.
      min_words: as for ``caption_size_mask``.
      min_chars: as for ``caption_size_mask``.
      min_side: as for ``size_mask``.
      max_aspect: as for ``size_mask``.

    Returns:
      bool ``[n]``.

    Raises:
      ValueError: a column is missing.
    """
    width, height = _column(columns, "original_width"), _column(columns, "original_height")
    mask = size_mask(width, height, min_side=min_side, max_aspect=max_aspect)
    mask &= caption_size_mask(columns, min_words=min_words, min_chars=min_chars)
    return language_mask(columns, language, where=mask)


def caption_mask(
    columns: Columns, *, language: Language, min_tokens: int = 2, min_chars: int = 6
) -> np.ndarray:
    """The caption rule inside the image-based filter; not that of the basic filter.

    English, more than one token as fastText counts them, more than five characters; the size of
    the image plays no role.

    Args:
      columns: ``text``, or ``num_tokens`` and ``num_chars``.
      language: as for ``language_mask``.
      min_tokens: kept from this number on.
      min_chars: likewise.

    Returns:
      bool ``[n]``.

    Raises:
      ValueError: a column is missing.
    """
    tokens = columns["num_tokens"] if "num_tokens" in columns else count_tokens(_text(columns))
    mask = (tokens >= min_tokens) & (_num_chars(columns) >= min_chars)
    return language_mask(columns, language, where=mask)


def laion_mask(
    columns: Columns,
    *,
    language: Language,
    scores: str = "clip_b32_similarity_score",
    threshold: float = 0.28,
) -> np.ndarray:
    """The filter after LAION-2B: English (by another identifier, upstream) and a CLIP score.

    Args:
      columns: with ``scores``, and ``text`` for a callable.
      language: as for ``language_mask``.
      scores: name of the column.
      threshold: as for ``clip_score_mask``.

    Returns:
      bool ``[n]``.

    Raises:
      ValueError: a column is missing.
    """
    mask = clip_score_mask(_column(columns, scores), threshold)
    return language_mask(columns, language, where=mask)


def entity_mask(texts: Sequence[str | None], lexicon: Lexicon) -> np.ndarray:
    """Keeps captions with a word of a lexicon: words as they stand, case and commas included.

    Args:
      texts: ``n`` captions, a sequence or a pyarrow array; None is dropped.
      lexicon: words, best as a set, or a callable that tells whether a word counts; it is asked
        once a distinct word.

    Returns:
      bool ``[n]``.
    """
    texts = texts.to_pylist() if hasattr(texts, "to_pylist") else texts
    if callable(lexicon):
        known = _Known(lexicon)
        return np.fromiter((any(known[w] for w in (s or "").split()) for s in texts), bool)
    words = lexicon if isinstance(lexicon, set | frozenset) else frozenset(lexicon)
    return np.fromiter((not words.isdisjoint((s or "").split()) for s in texts), bool)


class _Known(dict):
    """Remembers what a lexicon has said of a word."""

    def __init__(self, lexicon: Callable[[str], bool]):
        self._lexicon = lexicon

    def __missing__(self, word: str) -> bool:
        self[word] = found = bool(self._lexicon(word))
        return found


def synset_lexicon(
    first_synset: Callable[[str], int | None], ids: Iterable[int]
) -> Callable[[str], bool]:
    """Makes the lexicon of the text-based filter: words whose first synset is one of ``ids``.

    Args:
      first_synset: from a word to the offset of its first synset, None without one; with nltk,
        ``lambda word: next((s.offset() for s in wordnet.synsets(word)), None)``.
      ids: offsets of the classes, upstream those of ImageNet-21k.

    Returns:
      A lexicon for ``entity_mask``.
    """
    ids = frozenset(ids)
    return lambda word: first_synset(word) in ids


def image_cluster_mask(
    embeddings: Float[Array | np.ndarray, "n d"],
    centroids: Float[Array | np.ndarray, "k d"],
    targets: Int[Array | np.ndarray, " t"],
    *,
    metric: Metric = "ip_reference",
    block: int = 1024,
) -> Bool[np.ndarray, " n"]:
    """Keeps images whose cluster is also that of an image of the target task.

    Args:
      embeddings: ``[n, d]`` of the images.
      centroids: ``[k, d]``, from ``kmeans`` over a pool.
      targets: integers ``[t]``, the clusters to keep: ``assign`` of the target task's images.
      metric: as for ``assign``. The published code trains with distances and assigns with inner
        products, which "ip_reference" does.
      block: as for ``assign``.

    Returns:
      bool ``[n]``.

    Raises:
      ValueError: as ``assign``, or a target that is no cluster.
    """
    targets = np.asarray(targets)
    if targets.size and not 0 <= targets.min() <= targets.max() < len(centroids):
        raise ValueError(f"targets must be clusters below {len(centroids)}, got {targets.max()}")
    wanted = np.zeros(len(centroids), bool)
    wanted[targets] = True
    return wanted[np.asarray(assign(embeddings, centroids, metric=metric, block=block))]


def _length(columns: Columns) -> int:
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"columns must have one length, got {sizes}")
    return next(iter(sizes.values()))


def _column(columns: Columns, name: str):
    if name not in columns:
        raise ValueError(f"columns must have {name!r}, got {', '.join(columns)}")
    return columns[name]


def _text(columns: Columns):
    return _column(columns, "text")


def _num_chars(columns: Columns) -> np.ndarray:
    return columns["num_chars"] if "num_chars" in columns else count_chars(_text(columns))


def _texts(columns: Columns, rows: np.ndarray) -> list[str | None]:
    texts = _text(columns)
    if hasattr(texts, "to_pylist"):
        return texts.take(rows).to_pylist()
    return [texts[i] for i in rows]


def _equal(labels, wanted: str) -> np.ndarray:
    if hasattr(labels, "to_pylist"):
        import pyarrow.compute as pc

        return pc.fill_null(pc.equal(labels, wanted), False).to_numpy(zero_copy_only=False)
    if isinstance(labels, np.ndarray):
        return np.asarray(labels == wanted, bool)
    return np.fromiter((label == wanted for label in labels), bool)
