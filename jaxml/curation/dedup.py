"""Exact and near duplicates, and images that an evaluation would see again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxml.curation.uids import order_uids


def dedup_mask(hashes: np.ndarray, *, uids: np.ndarray | None = None) -> np.ndarray:
    """Keeps one row of each content.

    Args:
      hashes: ``[n]`` of any sortable dtype, or a sequence of str: equal where contents are.
      uids: ``UID_DTYPE [n]``: the row with the smallest is kept; without them the first one, which
        depends on the order of the rows.

    Returns:
      bool ``[n]``.

    Raises:
      ValueError: not one axis, or lengths that differ.
    """
    hashes = np.asarray(hashes.to_pylist() if hasattr(hashes, "to_pylist") else hashes)
    if hashes.ndim != 1 or (uids is not None and len(uids) != hashes.size):
        raise ValueError(f"hashes must be [n], a row a uid, got {hashes.shape}")
    order = np.arange(hashes.size) if uids is None else order_uids(uids)
    _, first = np.unique(hashes[order], return_index=True)
    mask = np.zeros(hashes.size, bool)
    mask[order[first]] = True
    return mask


def decontamination_mask(
    embeddings: Float[Array | np.ndarray, "n d"],
    reference: Float[Array | np.ndarray, "m d"],
    *,
    threshold: float = 0.604169,
    block: int = 1024,
) -> Bool[np.ndarray, " n"]:
    """Keeps rows that no row of a reference set resembles: ``max cosine <= threshold``.

    Args:
      embeddings: floating ``[n, d]`` of the pool, of any length but 0; a row of zeros resembles
        nothing, one with NaN is dropped.
      reference: floating ``[m, d]``, such as the images of the evaluation sets.
      threshold: upstream's, for its copy-detection network; other embeddings need their own.
      block: rows of each that are compared at a time.

    Returns:
      bool ``[n]``.

    Raises:
      ValueError: shapes that do not fit, a threshold outside [-1, 1], or ``block < 1``.
    """
    embeddings, reference = jnp.asarray(embeddings), jnp.asarray(reference)
    _check(embeddings, threshold, block)
    if reference.ndim != 2 or reference.shape[1] != embeddings.shape[1]:
        raise ValueError(f"reference must be [m, {embeddings.shape[1]}], got {reference.shape}")
    if not len(reference) or not len(embeddings):
        return np.ones(len(embeddings), bool)
    return np.asarray(_resembles_none(embeddings, reference, threshold, block=block))


def near_duplicate_mask(
    embeddings: Float[Array | np.ndarray, "n d"],
    *,
    threshold: float,
    uids: np.ndarray | None = None,
    block: int = 1024,
) -> Bool[np.ndarray, " n"]:
    """Keeps rows of which none resembles another: greedily, in the order of their uids.

    A row is dropped if its cosine with a row that was kept before it is above the threshold, so
    every dropped row resembles one that stays. All pairs are compared, ``n^2 d`` operations: a
    large pool is taken cluster by cluster.

    Args:
      embeddings: floating ``[n, d]``, of any length but 0; a row of zeros resembles nothing, one
        with NaN is dropped.
      threshold: in [-1, 1].
      uids: ``UID_DTYPE [n]``; without them the order of the rows decides.
      block: rows that are compared at a time.

    Returns:
      bool ``[n]``.

    Raises:
      ValueError: shapes that do not fit, a threshold outside [-1, 1], or ``block < 1``.
    """
    embeddings = jnp.asarray(embeddings)
    _check(embeddings, threshold, block)
    n = len(embeddings)
    if uids is not None and len(uids) != n:
        raise ValueError(f"uids must be one a row, got {len(uids)} for {n} rows")
    if not n:
        return np.ones(0, bool)
    order = np.arange(n) if uids is None else order_uids(uids)
    mask = np.zeros(n, bool)
    mask[order] = np.asarray(_greedy(embeddings, order, threshold, block=block))
    return mask


def _check(embeddings, threshold, block):
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must be [n, d], got {embeddings.shape}")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine in [-1, 1], got {threshold}")
    if block < 1:
        raise ValueError(f"block must be positive, got {block}")


def _directions(x: jax.Array, block: int, **pad) -> jax.Array:
    """Scales rows to unit length and fills up to whole blocks, ``[n_blocks, size, d]``."""
    x = x.astype(jnp.float32)
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)
    x = x / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)
    size = min(block, len(x))
    return jnp.pad(x, ((0, -len(x) % size), (0, 0)), **pad).reshape(-1, size, x.shape[1])


def _cosines(a, b):
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="block")
def _resembles_none(x, reference, threshold, *, block):
    # Another copy of the last row changes no maximum.
    others = _directions(reference, block, mode="edge")

    def largest(rows):
        def update(best, other):
            return jnp.maximum(best, _cosines(rows, other).max(1)), None

        return jax.lax.scan(update, jnp.full(len(rows), -jnp.inf), others)[0]

    best = jax.lax.map(largest, _directions(x, block))
    return best.ravel()[: len(x)] <= threshold


@functools.partial(jax.jit, static_argnames="block")
def _greedy(x, order, threshold, *, block):
    rows = _directions(x[order], block)
    n_blocks, size, _ = rows.shape
    index = jnp.arange(size)

    def keep_block(i, kept):
        here = rows[i]

        def compare(j, hit):
            return hit | ((_cosines(here, rows[j]) > threshold) & kept[j][None]).any(1)

        hit = jax.lax.fori_loop(0, i, compare, jnp.zeros(size, bool))
        close = _cosines(here, here) > threshold

        def keep_row(r, alive):
            return alive.at[r].set(alive[r] & ~(close[r] & alive & (index < r)).any())

        alive = ~hit & jnp.isfinite(here).all(1)
        return kept.at[i].set(jax.lax.fori_loop(0, size, keep_row, alive))

    kept = jax.lax.fori_loop(0, n_blocks, keep_block, jnp.zeros((n_blocks, size), bool))
    return kept.ravel()[: len(x)]
