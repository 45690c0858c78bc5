"""The user of the labels: trains from scratch on whatever labels it is given, and is measured."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxml import train
from jaxml.backdoor.flip import check_labels
from jaxml.core.chunk import reduce_batches
from jaxml.core.types import ApplyFn, Key, PyTree
from jaxml.train import TrainState


class AttackRates(NamedTuple):
    """What a trained network does on test images; fractions ``[s]``.

    Attributes:
      cta: clean test accuracy.
      pta: poison test accuracy: triggered images of the source answered as the target.
      clean_rate: the same images without the trigger answered as the target. What ``pta`` has
        above it is due to the trigger; a network that confuses the two classes has both.
    """

    cta: Float[Array, "*s"]
    pta: Float[Array, "*s"]
    clean_rate: Float[Array, "*s"]


def one_hot_labels(
    y: Int[np.ndarray, "s n"], n_classes: int, *, removed: Bool[np.ndarray, "s n"] | None = None
) -> Float[np.ndarray, "s n c"]:
    """Writes labels as distributions; one that is removed becomes 0, which trains nothing.

    Raises:
      ValueError: labels out of range.
    """
    y = np.asarray(y)
    check_labels(y.ravel(), n_classes)
    labels = np.eye(n_classes, dtype=np.float32)[y]
    return labels if removed is None else labels * ~np.asarray(removed)[..., None]


def train_users(
    key: Key,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    x: Float[Array, "n ..."],
    labels: Float[Array, "s n c"],
    **options: Any,
) -> TrainState:
    """Trains ``s`` networks from scratch at once, each on labels of its own.

    Equal keys give equal initialisations and orders, so that labels can be compared.

    Args:
      key: typed keys ``[s]``.
      model: a Flax module.
      optimizer: an optax optimiser.
      x: clean images ``[n, ...]``.
      labels: label distributions; rows of 0 take no part, but count in the mean of their batch.
      **options: of ``train.fit``: ``n_epochs``, ``batch_size``, and so on.

    Raises:
      ValueError: labels of another shape, negative or with a sum above 1; or as ``train.fit``.
    """
    shape = (*key.shape, len(x))
    if labels.ndim != 3 or labels.shape[:2] != shape:
        raise ValueError(f"labels must be {(*shape, 'c')} for {key.shape} keys, got {labels.shape}")
    sums = np.asarray(labels.sum(-1))
    if np.min(labels) < 0 or not (np.isclose(sums, 1, atol=1e-4) | (sums == 0)).all():
        raise ValueError("labels must be distributions, or 0 where an image is removed")
    return train.fit(
        key, model, optimizer, x, labels, own_y=True, loss=train.soft_cross_entropy, **options
    )


def attack_rates(
    apply: ApplyFn,
    variables: PyTree,
    x: Float[Array, "t ..."],
    y: Int[Array, " t"],
    triggered: Float[Array, "t ..."],
    *,
    source: int,
    target: int,
    batch_size: int = 1000,
) -> AttackRates:
    """Measures one network; pure: vmap it over ``variables``.

    Args:
      apply: ``apply(variables, x)`` -> logits; static.
      variables: what ``apply`` takes.
      x: clean test images ``[t, ...]``.
      y: their labels ``[t]``.
      triggered: the same images with the trigger.
      source: class that the trigger is put on, or -1 for all but the target.
      target: class that it stands for.
      batch_size: static.
    """

    def counts(x, triggered, y):
        clean, poisoned = (apply(variables, images).argmax(-1) for images in (x, triggered))
        of_source = (y != target) if source == -1 else (y == source)
        hits = (clean == y, (poisoned == target) & of_source, (clean == target) & of_source)
        return jnp.stack([h.sum() for h in (*hits, of_source)])

    arrays = tuple(jnp.asarray(a) for a in (x, triggered, y))
    right, poisoned, clean, n_source = reduce_batches(counts, arrays, batch_size=batch_size)
    n_source = jnp.maximum(n_source, 1)
    return AttackRates(right / len(x), poisoned / n_source, clean / n_source)
