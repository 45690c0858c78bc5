"""K-means over embeddings: blocked, so that memory is rows of a block times clusters, and sharded.

Ref: Lloyd, "Least squares quantization in PCM", 1982; Dhillon & Modha, "Concept decompositions for
large sparse text data using clustering", 2001, for cosines.
"""

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32

from jaxml.core.types import Key

Metric = Literal["l2", "cosine", "ip_reference"]
_AXIS = "data"


class Clusters(NamedTuple):
    """What ``kmeans`` has found.

    Attributes:
      centroids: float32 ``[k, d]``.
      objective: float32 ``[n_iters]``, the mean squared distance to the nearest centroid before
        each update; for "cosine" of unit vectors, which is ``2 - 2 cos``.
      n_reseeded: int32 ``[n_iters]``, the empty clusters that were given a new place.
    """

    centroids: Float[Array, "k d"]
    objective: Float[Array, " n_iters"]
    n_reseeded: Int32[Array, " n_iters"]


def kmeans(
    key: Key,
    x: Float[Array, "n d"],
    n_clusters: int,
    *,
    n_iters: int = 20,
    metric: Metric = "l2",
    block: int = 1024,
    mesh: Mesh | None = None,
) -> Clusters:
    """Clusters the rows of ``x`` by Lloyd's iterations from ``n_clusters`` of them.

    A cluster without rows moves to the row farthest from its centroid, the second empty one to the
    second farthest, and so on. Where there are fewer distinct rows than clusters, some stay empty.

    Args:
      key: draws the rows to start from, without repeats.
      x: floating ``[n, d]``.
      n_clusters: ``k``, at most ``n``; static.
      n_iters: updates; static.
      metric: "l2"; "cosine" clusters directions, with centroids of unit length; "ip_reference"
        trains as "l2" does and differs in ``assign``. Static.
      block: rows that are compared with the centroids at a time on each device; static.
      mesh: splits the rows over ``data``; sums and counts are what travels. Static.

    Returns:
      Clusters.

    Raises:
      ValueError: ``x`` not ``[n, d]``, clusters not in ``1..n``, an unknown metric, ``block < 1``.
    """
    check_metric(metric)
    if x.ndim != 2:
        raise ValueError(f"x must be [n, d], got {x.shape}")
    if not 1 <= n_clusters <= x.shape[0]:
        raise ValueError(f"n_clusters must lie in 1..{x.shape[0]}, got {n_clusters}")
    if block < 1:
        raise ValueError(f"block must be positive, got {block}")
    return _kmeans(
        key, x, n_clusters=n_clusters, n_iters=n_iters, metric=metric, block=block, mesh=mesh
    )


@functools.partial(jax.jit, static_argnames=("n_clusters", "n_iters", "metric", "block", "mesh"))
def _kmeans(key, x, *, n_clusters, n_iters, metric, block, mesh):
    x = _directions(x.astype(jnp.float32), metric)
    n = x.shape[0]
    start = x[jax.random.choice(key, n, (n_clusters,), replace=False)]
    n_devices = 1 if mesh is None else mesh.size
    block = min(block, -(-n // n_devices))
    # Filled up to whole blocks on every device, with rows that do not count.
    padding = -n % (block * n_devices)
    weight = jnp.pad(jnp.ones(n), (0, padding))
    x = jnp.pad(x, ((0, padding), (0, 0)))
    update = functools.partial(_update, metric=metric, block=block, axis=mesh and _AXIS)
    if mesh is not None:
        rows, whole = PartitionSpec(_AXIS), PartitionSpec()
        update = jax.shard_map(
            update, mesh=mesh, in_specs=(rows, rows, whole), out_specs=whole, check_vma=False
        )

    def step(centroids, _):
        centroids, objective, n_empty = update(x, weight, centroids)
        return centroids, (objective, n_empty)

    centroids, (objective, n_empty) = jax.lax.scan(step, start, length=n_iters)
    return Clusters(centroids, objective, n_empty)


def _update(x, weight, centroids, *, metric, block, axis):
    """One iteration over the rows of one device; what it returns is the same on all of them."""
    k, d = centroids.shape

    def add(total, part):
        rows, w = part
        nearest, distance = _nearest(rows, centroids, metric)
        sums, counts = total
        sums += jax.ops.segment_sum(w[:, None] * rows, nearest, k)
        counts += jax.ops.segment_sum(w, nearest, k)
        return (sums, counts), w * distance

    blocks = (x.reshape(-1, block, d), weight.reshape(-1, block))
    (sums, counts), distance = jax.lax.scan(add, (jnp.zeros((k, d)), jnp.zeros(k)), blocks)
    distance = distance.ravel()
    # The rows that lie farthest off, at most one a cluster.
    far, where = jax.lax.top_k(distance, min(k, distance.size))
    far_rows, total, n = x[where], distance.sum(), weight.sum()
    if axis is not None:
        sums, counts, total, n = jax.lax.psum((sums, counts, total, n), axis)
        far, far_rows = jax.lax.all_gather((far, far_rows), axis, tiled=True)
    _, where = jax.lax.top_k(far, min(k, far.size))
    far_rows = far_rows[where]
    empty = counts == 0
    rank = jnp.minimum(jnp.cumsum(empty) - 1, far_rows.shape[0] - 1)
    means = sums / jnp.maximum(counts, 1)[:, None]
    means = jnp.where(empty[:, None], far_rows[rank], means)
    return _directions(means, metric), total / n, empty.sum(dtype=jnp.int32)


def _directions(x, metric):
    if metric != "cosine":
        return x
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(norm, jnp.finfo(x.dtype).tiny)


def _nearest(x, centroids, metric):
    """Returns the nearest centroid of each row, and the squared distance to it."""
    products = jnp.matmul(x, centroids.T, precision=jax.lax.Precision.HIGHEST)
    half = jnp.square(centroids).sum(1) / 2
    scores = products - half[None] if metric != "cosine" else products
    nearest = jnp.argmax(scores, axis=1)
    best = jnp.take_along_axis(products, nearest[:, None], axis=1)[:, 0]
    distance = jnp.square(x).sum(1) - 2 * best + 2 * half[nearest]
    return nearest, jnp.maximum(distance, 0)


def assign(
    x: Float[Array | np.ndarray, "n d"],
    centroids: Float[Array | np.ndarray, "k d"],
    *,
    metric: Metric = "l2",
    block: int = 1024,
) -> Int32[Array, " n"]:
    """Finds the cluster of each row.

    Args:
      x: floating ``[n, d]``.
      centroids: ``[k, d]``.
      metric: "l2", the nearest centroid; "cosine", the one of the most similar direction;
        "ip_reference", the one of the largest inner product with the centroid as it is, which is
        what the published filter does with centroids that were trained by distances. The three
        differ where centroids differ in length.
      block: rows at a time; static.

    Returns:
      int32 ``[n]``; of equally near centroids the first.

    Raises:
      ValueError: shapes that do not fit, an unknown metric, ``block < 1``.
    """
    check_metric(metric)
    x, centroids = jnp.asarray(x), jnp.asarray(centroids)
    if x.ndim != 2 or centroids.ndim != 2 or x.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"x and centroids must be [n, d], [k, d]: got {x.shape}, {centroids.shape}"
        )
    if not centroids.shape[0] or block < 1:
        raise ValueError(f"centroids and block must be positive: {centroids.shape[0]}, {block}")
    return _assign(x, centroids, metric=metric, block=block)


@functools.partial(jax.jit, static_argnames=("metric", "block"))
def _assign(x, centroids, *, metric, block):
    centroids = _directions(centroids.astype(jnp.float32), metric)
    half = jnp.square(centroids).sum(1) / 2

    def nearest(row):
        products = jnp.matmul(centroids, row, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmax(products - half if metric == "l2" else products).astype(jnp.int32)

    return jax.lax.map(lambda row: nearest(row.astype(jnp.float32)), x, batch_size=block)


def check_metric(metric: str) -> None:
    """Raises ValueError for a metric that there is not."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}; got {metric!r}")
