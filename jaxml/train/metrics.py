"""Loss and accuracy over a whole data set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxml.core.chunk import reduce_batches
from jaxml.core.types import ApplyFn, PyTree
from jaxml.train.losses import Metrics, cross_entropy


def evaluate(
    apply: ApplyFn,
    variables: PyTree,
    x: Float[Array, "n ..."],
    y: Shaped[Array, "n ..."],
    *,
    loss: Callable[[jax.Array, jax.Array], Metrics] = cross_entropy,
    batch_size: int = 1000,
) -> Metrics:
    """Measures a model over a whole data set, ``batch_size`` examples at a time.

    Pure and not jitted inside: jit it to use it more than once, vmap it over ``variables``.

    Args:
      apply: ``apply(variables, x)`` -> outputs ``[b, ...]``; static.
      variables: what ``apply`` takes.
      x: inputs ``[n, ...]``.
      y: integer labels ``[n]``, or whatever targets ``[n, ...]`` ``loss`` takes.
      loss: as in ``fit``; static.
      batch_size: static; memory for speed only, each example counts once whatever it is.

    Returns:
      The means over all ``n`` examples.

    Raises:
      ValueError: no example, unequal lengths, or ``batch_size < 1``.
    """

    def sums(x: jax.Array, y: jax.Array) -> Metrics:
        return jax.tree.map(lambda m: m * x.shape[0], loss(apply(variables, x), y))

    arrays = (jnp.asarray(x), jnp.asarray(y))
    totals = reduce_batches(sums, arrays, batch_size=batch_size)
    return jax.tree.map(lambda total: total / x.shape[0], totals)
