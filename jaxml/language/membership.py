"""Which texts a model has probably been trained on, told without its training data.

Every score is lower for what was more likely in it, so that an ascending sort is a ranking.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float


class MembershipScores(NamedTuple):
    """Scores of ``n`` texts, float64 ``[n]``; None where what they need was not given.

    Attributes:
      perplexity: ``exp`` of the mean negative log-likelihood of a token (NLL).
      zlib: bits that the model needs over bits that zlib needs.
      lower: mean NLL over that of the text in lower case.
      reference: mean NLL over that under another model.
      min_window: smallest mean NLL of a window.
      min_k: mean NLL of the tokens that are least likely.
    """

    perplexity: np.ndarray
    zlib: np.ndarray | None
    lower: np.ndarray | None
    reference: np.ndarray | None
    min_window: np.ndarray
    min_k: np.ndarray


def membership_scores(
    nll: Sequence[Float[np.ndarray, " t"]],
    *,
    texts: Sequence[str] | None = None,
    lower: Sequence[Float[np.ndarray, " t"]] | None = None,
    reference: Sequence[Float[np.ndarray, " t"]] | None = None,
    window: int = 50,
    k: float = 0.2,
) -> MembershipScores:
    """Scores texts by how surprising they are to the model, and to what it is compared with.

    Ref: perplexity, zlib, lower, reference ("small model") and window are from Carlini et al.,
    "Extracting Training Data from Large Language Models", 2021; min_k from Shi et al., "Detecting
    Pretraining Data from Large Language Models", 2023.

    Args:
      nll: nats of each token of each text, ``[t_i]``, from ``document_nll``.
      texts: the ``n`` texts.
      lower: as ``nll``, of the texts in lower case.
      reference: as ``nll``, under a model that has not read the same.
      window: of ``min_window``; shorter texts are one window.
      k: share of tokens of ``min_k``, in (0, 1].

    Returns:
      MembershipScores.

    Raises:
      ValueError: an empty text, inputs that are not one for each text, or an option out of range.
    """
    if window < 1 or not 0 < k <= 1:
        raise ValueError(f"window must be positive and k lie in (0, 1], got {window} and {k}")
    for name, rows in (("texts", texts), ("lower", lower), ("reference", reference)):
        if rows is not None and len(rows) != len(nll):
            raise ValueError(f"{name} must be {len(nll)}, one for each text, got {len(rows)}")
    nll = [np.asarray(row, np.float64) for row in nll]
    mean = _means("nll", nll)
    by_zlib = None
    if texts is not None:
        bits = [8 * len(zlib.compress(text.encode(errors="replace"))) for text in texts]
        by_zlib = np.array([row.sum() for row in nll]) / np.log(2) / np.array(bits)
    return MembershipScores(
        np.exp(mean),
        by_zlib,
        None if lower is None else mean / _means("lower", lower),
        None if reference is None else mean / _means("reference", reference),
        np.array([_window_means(row, window).min() for row in nll]),
        np.array([np.sort(row)[-int(np.ceil(k * len(row))) :].mean() for row in nll]),
    )


def _means(name: str, rows) -> np.ndarray:
    if not all(len(row) for row in rows):
        raise ValueError(f"{name} must have no empty row")
    # So that a text without any surprise divides nothing by zero.
    return np.maximum([np.mean(row, dtype=np.float64) for row in rows], 1e-12)


def _window_means(row: np.ndarray, window: int) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(row)])
    window = min(window, len(row))
    return (sums[window:] - sums[:-window]) / window


def drop_near_duplicates(order: np.ndarray, generations: Sequence[np.ndarray]) -> np.ndarray:
    """Keeps of a ranking what shares at most half of its trigrams with anything kept before.

    Args:
      order: numbers of generations, best first, ``[n]``.
      generations: token ids ``[t_i]``.

    Returns:
      The numbers that are kept, in their order; fewer than three tokens are always kept.
    """
    seen: dict[tuple[int, ...], list[int]] = {}
    kept = []
    for i in np.asarray(order).tolist():
        row = np.asarray(generations[i]).tolist()
        trigrams = set(zip(row, row[1:], row[2:], strict=False))
        shared = Counter(other for t in trigrams for other in seen.get(t, ()))
        if shared and max(shared.values()) > len(trigrams) / 2:
            continue
        for t in trigrams:
            seen.setdefault(t, []).append(i)
        kept.append(i)
    return np.array(kept, np.int64)


def precision_at(ranked: np.ndarray, k: int) -> float:
    """Returns the share of the first ``k`` of a ranking, bool ``[n]``, that is right.

    Raises:
      ValueError: an empty ranking, or a ``k`` below 1; one beyond ``n`` means all.
    """
    ranked = np.asarray(ranked, bool)
    if not ranked.size or k < 1:
        raise ValueError(f"ranked and k must not be empty, got {ranked.size} and {k}")
    return float(ranked[:k].mean())


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Returns the probability that a member's score is below another's, ties counting half.

    Raises:
      ValueError: no member or no other, or a score that is not finite.
    """
    members, others = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if not (members.size and others.size and np.isfinite([*members, *others]).all()):
        raise ValueError("members and others must each be one or more finite scores")
    statistic = scipy.stats.mannwhitneyu(others, members).statistic
    return float(statistic / (members.size * others.size))
