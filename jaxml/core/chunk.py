"""Batches of a data set that does not fit through the model at once."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxml.core.types import PyTree


def reduce_batches(
    fn: Callable[..., PyTree],
    arrays: tuple[jax.Array, ...],
    *,
    batch_size: int,
    combine: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> PyTree:
    """Combines ``fn(*batch)`` over consecutive batches of ``arrays``.

    Whole batches go through one ``lax.scan``, what is left over through one more call, so every
    example counts exactly once and nothing is padded. Pure: jit, vmap and grad pass through.

    Args:
      fn: maps arrays ``[b, ...]`` to a pytree.
      arrays: arrays ``[n, ...]`` with equal ``n >= 1``.
      batch_size: ``b``, static; larger than ``n`` means one batch.
      combine: associative; leaf-wise addition by default.

    Returns:
      The combined pytree.

    Raises:
      ValueError: no array, no example, unequal ``n``, or ``batch_size < 1``.
    """
    sizes = {a.shape[0] for a in arrays}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"arrays need one common, positive length, got {sorted(sizes)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    combine = combine or (lambda x, y: jax.tree.map(jnp.add, x, y))
    n = sizes.pop()
    batch_size = min(batch_size, n)
    n_whole = n // batch_size
    total = fn(*(a[:batch_size] for a in arrays))
    if n_whole > 1:
        end = n_whole * batch_size
        rest = tuple(a[batch_size:end].reshape(-1, batch_size, *a.shape[1:]) for a in arrays)
        total, _ = jax.lax.scan(lambda acc, xs: (combine(acc, fn(*xs)), None), total, rest)
    if n_whole * batch_size < n:
        total = combine(total, fn(*(a[n_whole * batch_size :] for a in arrays)))
    return total


def row_blocks(
    n: int, batch_size: int, *, least: int = 8
) -> Iterator[tuple[Int[np.ndarray, " b"], int]]:
    """Cuts rows into blocks of few shapes, so that little is compiled.

    The last block is filled up by more of its last row, to a power of two or to ``batch_size``.

    Args:
      n: rows.
      batch_size: of a block.
      least: rows of the last block at least; ``batch_size`` makes all blocks alike.

    Yields:
      Indices of rows, and how many of them count: what the others give is to be cut off.
    """
    for start in range(0, n, batch_size):
        count = min(batch_size, n - start)
        size = min(batch_size, pad_to_power_of_two(count, least=least))
        yield np.minimum(np.arange(start, start + size), n - 1), count


def pad_to_power_of_two(n: int, *, least: int) -> int:
    """Rounds up, so that few shapes are compiled."""
    return max(least, 1 << (n - 1).bit_length())
