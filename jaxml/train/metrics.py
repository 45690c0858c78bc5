"""Loss and accuracy of a classifier."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxml.core.chunk import reduce_batches
from jaxml.core.types import ApplyFn, PyTree


class Metrics(NamedTuple):
    """Means over examples.

    Attributes:
      loss: cross-entropy in nats, float32 ``[]``.
      accuracy: fraction whose largest logit is the label's, float32 ``[]``.
    """

    loss: Float[Array, "*s"]
    accuracy: Float[Array, "*s"]


def batch_metrics(logits: Float[Array, "n c"], y: Int[Array, " n"]) -> Metrics:
    """Means of the cross-entropy and of the correct answers over one batch."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return Metrics(loss.mean(), (logits.argmax(-1) == y).astype(loss.dtype).mean())


def evaluate(
    apply: ApplyFn,
    variables: PyTree,
    x: Float[Array, "n ..."],
    y: Int[Array, " n"],
    *,
    batch_size: int = 1000,
) -> Metrics:
    """Measures a classifier over a whole data set, ``batch_size`` examples at a time.

    Pure and not jitted inside: jit it to use it more than once, vmap it over ``variables``.

    Args:
      apply: ``apply(variables, x)`` -> logits ``[b, c]``; static.
      variables: what ``apply`` takes.
      x: inputs ``[n, ...]``.
      y: integer labels ``[n]``.
      batch_size: static; memory for speed only, each example counts once whatever it is.

    Returns:
      The means over all ``n`` examples.

    Raises:
      ValueError: no example, unequal lengths, or ``batch_size < 1``.
    """

    def sums(x: jax.Array, y: jax.Array) -> Metrics:
        return jax.tree.map(lambda m: m * x.shape[0], batch_metrics(apply(variables, x), y))

    arrays = (jnp.asarray(x), jnp.asarray(y))
    totals = reduce_batches(sums, arrays, batch_size=batch_size)
    return jax.tree.map(lambda total: total / x.shape[0], totals)
