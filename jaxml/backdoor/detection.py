"""The defender's view: scores that should single out the poisons among the images of one label.

Spectral signatures: Tran, Li & Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018.
"""

import jax.numpy as jnp
import numpy as np
import scipy.stats
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxml.core.types import PyTree


def features(model: nn.Module, variables: PyTree, x: Float[Array, "n ..."]) -> Float[Array, "n d"]:
    """Returns what the last Dense layer of a model is given; pure.

    Raises:
      ValueError: the model has no ``nn.Dense``.
    """
    inputs = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            inputs.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        model.apply(variables, x)
    if not inputs:
        raise ValueError(f"{type(model).__name__} has no nn.Dense layer")
    return inputs[-1]


def spectral_scores(features: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Squares each centred row's part along the top right singular vector; pure.

    Args:
      features: of the images with one label ``[n, d]``.

    Returns:
      Scores ``[n]``; poisons are expected among the largest.
    """
    centred = features - features.mean(0, keepdims=True)
    top = jnp.linalg.svd(centred, full_matrices=False)[2][0]
    return jnp.square(centred @ top)


def detection_rates(
    scores: Float[np.ndarray, " n"], poisoned: Bool[np.ndarray, " n"], *, removed: float = 1.5
) -> tuple[float, float]:
    """Judges scores by what is known to be poisoned.

    Args:
      scores: large where an image is suspected ``[n]``.
      poisoned: the truth ``[n]``.
      removed: images to remove, as a multiple of the number of poisons.

    Returns:
      The area under the ROC curve; and the share of the poisons that is removed.

    Raises:
      ValueError: all images or none are poisoned, or scores are not finite.
    """
    scores, poisoned = np.asarray(scores, float), np.asarray(poisoned, bool)
    n_poisons = int(poisoned.sum())
    if not 0 < n_poisons < len(poisoned):
        raise ValueError(f"poisoned must hold both kinds, got {n_poisons} of {len(poisoned)}")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, got {(~np.isfinite(scores)).sum()} that are not")
    rank_sum = scipy.stats.rankdata(scores)[poisoned].sum()
    pairs = n_poisons * (len(scores) - n_poisons)
    area = (rank_sum - n_poisons * (n_poisons + 1) / 2) / pairs
    suspects = np.argsort(-scores, kind="stable")[: int(np.ceil(removed * n_poisons))]
    return float(area), float(poisoned[suspects].sum() / n_poisons)
