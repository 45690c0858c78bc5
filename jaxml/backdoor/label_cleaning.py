"""The defender's view of wrong labels: scores that should be large where a label is wrong."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int


class Removal(NamedTuple):
    """What removing suspects comes to; fractions.

    Attributes:
      flips: of the wrong labels that are removed; NaN where there are none.
      clean: of the right labels that are removed with them.
    """

    flips: float
    clean: float


def knn_disagreement(
    features: Float[Array, "n d"], y: Int[Array, " n"], *, k: int = 10, batch_size: int = 1000
) -> Float[Array, " n"]:
    """Returns the share of the ``k`` nearest other images that have another label; pure.

    Ref: Peri et al., "Deep k-NN Defense against Clean-label Data Poisoning Attacks", 2020; on
    pixels it is the classical edited nearest-neighbour rule.

    Args:
      features: of the images, or their pixels ``[n, d]``.
      y: the labels that are given ``[n]``.
      k: neighbours, in ``1..n - 1``.
      batch_size: rows of distances held at once.

    Raises:
      ValueError: ``k`` out of range.
    """
    n = len(features)
    if not 1 <= k < n:
        raise ValueError(f"k must lie in 1..{n - 1}, got {k}")
    norms = jnp.square(features).sum(-1)

    def one(i):
        product = jnp.matmul(features, features[i], precision=jax.lax.Precision.HIGHEST)
        distance = (norms - 2 * product).at[i].set(jnp.inf)
        _, nearest = jax.lax.top_k(-distance, k)
        return (y[nearest] != y[i]).astype(features.dtype).mean()

    return jax.lax.map(one, jnp.arange(n), batch_size=min(batch_size, n))


def label_losses(logits: Float[Array, "n c"], y: Int[Array, " n"]) -> Float[Array, " n"]:
    """Returns the cross-entropy of each label under a network that was trained a little; pure.

    Early in training a network fits what the images agree on and not yet single wrong labels, so
    their loss is large ("small-loss" filtering: Han et al., "Co-teaching", NeurIPS 2018).
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def suspects(scores: Float[np.ndarray, " n"], n_removed: int) -> Bool[np.ndarray, " n"]:
    """Marks the ``n_removed`` largest scores, ties by index.

    Raises:
      ValueError: ``n_removed`` outside ``0..n``, or scores that are not finite.
    """
    scores = np.asarray(scores)
    if not 0 <= n_removed <= len(scores):
        raise ValueError(f"n_removed must lie in 0..{len(scores)}, got {n_removed}")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, got {(~np.isfinite(scores)).sum()} that are not")
    marked = np.zeros(len(scores), bool)
    marked[np.argsort(-scores, kind="stable")[:n_removed]] = True
    return marked


def removal(removed: Bool[np.ndarray, " n"], flipped: Bool[np.ndarray, " n"]) -> Removal:
    """Says which share of the wrong and of the right labels is removed."""
    removed, flipped = np.asarray(removed, bool), np.asarray(flipped, bool)
    hit = float(removed[flipped].mean()) if flipped.any() else float("nan")
    return Removal(hit, float(removed[~flipped].mean()))
