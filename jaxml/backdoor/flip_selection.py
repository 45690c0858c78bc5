"""From learnt labels to wrong labels: which are flipped at each budget, and what else would be.

Every method ranks all candidates once and a budget takes the first of them, so budgets are nested.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import scipy.special
from jaxtyping import Float, Int

from jaxml.backdoor.flip import check_labels
from jaxml.core.types import Key


class Ranking(NamedTuple):
    """Candidates for a flip, the best first.

    Attributes:
      index: which labels ``[k]``.
      label: what each becomes ``[k]``.
    """

    index: Int[np.ndarray, " k"]
    label: Int[np.ndarray, " k"]


def flip_margins(
    logits: Float[np.ndarray, "r n c"], y: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Measures how far each learnt label lies from the true one.

    ``margin_i = min over runs of max_{c != y_i} l_ic - l_iy``; the new label is the largest
    ``l_ic``, ``c != y_i``, of the mean over runs. A positive margin means that every run has learnt
    another label.

    Returns:
      Margins and new labels.

    Raises:
      ValueError: shapes that do not fit, labels out of range, or logits that are not finite.
    """
    logits, y = np.asarray(logits), np.asarray(y)
    if logits.ndim != 3 or logits.shape[1] != len(y) or logits.shape[2] < 2:
        raise ValueError(f"logits must be [r, {len(y)}, c] with c >= 2, got {logits.shape}")
    check_labels(y, logits.shape[2])
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite: lower the learning rate of the labels")
    true = np.arange(logits.shape[2]) == y[:, None]
    own = logits[:, np.arange(len(y)), y]
    margins = (np.where(true, -np.inf, logits).max(-1) - own).min(0)
    return margins, np.where(true, -np.inf, logits.mean(0)).argmax(-1)


def rank_margins(logits: Float[np.ndarray, "r n c"], y: Int[np.ndarray, " n"]) -> Ranking:
    """Ranks all labels by their margin, ties by index: FLIP's own choice."""
    margins, labels = flip_margins(logits, y)
    order = np.argsort(-margins, kind="stable")
    return Ranking(order, labels[order])


def rank_random(
    key: Key, y: Int[np.ndarray, " n"], *, target: int, source: int | None = None
) -> Ranking:
    """Ranks labels at random: all but the target's, or those of one source class."""
    candidates = _candidates(y, target, source)
    order = candidates[np.asarray(jax.random.permutation(key, len(candidates)))]
    return Ranking(order, np.full(len(order), target))


def rank_inner_product(
    x: Float[np.ndarray, "n ..."],
    triggered: Float[np.ndarray, "n ..."],
    y: Int[np.ndarray, " n"],
    *,
    target: int,
) -> Ranking:
    """Ranks images by their inner product with the mean change that the trigger makes.

    Args:
      x: clean images.
      triggered: the same with the trigger.
      y: labels.
      target: what they become.
    """
    x = np.asarray(x).reshape(len(x), -1)
    change = np.asarray(triggered).reshape(len(x), -1) - x
    candidates = _candidates(y, target, None)
    order = np.argsort(-(x[candidates] @ change.mean(0)), kind="stable")
    return Ranking(candidates[order], np.full(len(order), target))


def select_flips(
    ranking: Ranking, y: Int[np.ndarray, " n"], budgets: Sequence[int]
) -> Int[np.ndarray, "m n"]:
    """Flips the first labels of a ranking, as many as each budget says.

    Args:
      ranking: of ``rank_margins`` or another.
      y: true labels.
      budgets: numbers of flips; 0 gives the true labels.

    Returns:
      int32 labels ``[m, n]``, each row with exactly its budget of wrong ones, nested.

    Raises:
      ValueError: a budget outside ``0..k``, or labels out of range.
    """
    check_labels(y)
    labels = np.tile(np.asarray(y, np.int32), (len(budgets), 1))
    for row, budget in zip(labels, budgets, strict=True):
        if not 0 <= budget <= len(ranking.index):
            raise ValueError(
                f"budgets must lie in 0..{len(ranking.index)}, the number of candidates among "
                f"{len(y)} labels, got {budget}"
            )
        row[ranking.index[:budget]] = ranking.label[:budget]
    return labels


def soft_labels(
    logits: Float[np.ndarray, "r n c"], y: Int[np.ndarray, " n"], alpha: float
) -> Float[np.ndarray, "n c"]:
    """Mixes learnt and true labels: softFLIP, for pipelines that train on soft labels.

    ``alpha onehot(y) + (1 - alpha) mean over runs of softmax(l)``. Rows sum to 1, and ``alpha = 1``
    gives the true labels to the bit. (The paper's code takes a softmax of logits and one-hot labels
    mixed, which depends on their scale.)

    Raises:
      ValueError: ``alpha`` outside [0, 1], or as ``flip_margins``.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    flip_margins(logits, y)  # for its checks
    logits = np.asarray(logits, np.float32)
    learnt = scipy.special.softmax(logits, axis=-1).mean(0)
    true = np.eye(logits.shape[2], dtype=np.float32)[np.asarray(y)]
    return np.float32(alpha) * true + np.float32(1 - alpha) * learnt


def _candidates(y, target, source) -> np.ndarray:
    y = np.asarray(y)
    n_classes = check_labels(y)
    if not 0 <= target < n_classes or (source is not None and not 0 <= source < n_classes):
        raise ValueError(
            f"target and source must be classes 0..{n_classes - 1}, got {target} and {source}"
        )
    return np.flatnonzero(y != target if source is None else y == source)
