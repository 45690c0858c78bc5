"""What a model is trained on: each loss maps outputs and targets of a batch to ``Metrics``."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class Metrics(NamedTuple):
    """Means over examples.

    Attributes:
      loss: what training minimises, float32 ``[]``; cross-entropies are in nats.
      accuracy: fraction of right answers, float32 ``[]``.
    """

    loss: Float[Array, "*s"]
    accuracy: Float[Array, "*s"]


def cross_entropy(logits: Float[Array, "n c"], y: Int[Array, " n"]) -> Metrics:
    """Cross-entropy with integer labels; an answer is right when its largest logit is the label."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return Metrics(loss.mean(), (logits.argmax(-1) == y).astype(loss.dtype).mean())


def soft_cross_entropy(logits: Float[Array, "n c"], y: Float[Array, "n c"]) -> Metrics:
    """Cross-entropy with label distributions; right is the largest logit at the largest label."""
    loss = optax.softmax_cross_entropy(logits, y)
    right = logits.argmax(-1) == y.argmax(-1)
    return Metrics(loss.mean(), right.astype(loss.dtype).mean())


def squared_error(outputs: Float[Array, "n 1"], y: Float[Array, " n"]) -> Metrics:
    """Squared error of one output, with labels -1 and +1; an answer is right by its sign."""
    outputs = outputs.squeeze(-1)
    right = (outputs > 0) == (y > 0)
    return Metrics(jnp.square(outputs - y).mean(), right.astype(outputs.dtype).mean())
