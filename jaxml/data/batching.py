"""Which examples form which batch: shuffled indices on the device, plain slices on the host."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from jaxml.core.types import Key


def epoch_indices(key: Key, n: int, batch_size: int) -> Int32[Array, "n_batches batch_size"]:
    """Draws one epoch: a random permutation of ``0..n-1`` cut into whole batches.

    The ``n % batch_size`` examples that do not fill a batch are left out of this epoch; they are
    others in each epoch. Pure; jit with ``n`` and ``batch_size`` static, vmap over keys.

    Args:
      key: a typed key.
      n: number of examples, static.
      batch_size: static, in ``1..n``.

    Returns:
      int32 indices ``[n // batch_size, batch_size]``.

    Raises:
      ValueError: ``batch_size`` outside ``1..n``.
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must lie in 1..{n}, the number of examples, got {batch_size}")
    n_batches = n // batch_size
    order = jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))
    return order[: n_batches * batch_size].reshape(n_batches, batch_size)


def batches(*arrays: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Walks over consecutive slices, in order, the shorter last one included.

    Args:
      *arrays: arrays ``[n, ...]`` with equal ``n``.
      batch_size: rows of a slice, except of the last.

    Returns:
      An iterator over tuples of slices ``[b, ...]``, one for each array.

    Raises:
      ValueError: no array, unequal ``n``, or ``batch_size < 1``; at the call, not at the first
        slice.
    """
    sizes = {len(a) for a in arrays}
    if len(sizes) != 1:
        raise ValueError(f"arrays need one common length, got {sorted(sizes)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    return (
        tuple(a[start : start + batch_size] for a in arrays)
        for start in range(0, sizes.pop(), batch_size)
    )
