"""K-means, against Lloyd's iterations in numpy; blocks and devices change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.core.sharding import make_mesh
from jaxml.curation import assign, kmeans


def blobs(n=101, k=5, d=3, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, d)) * 8
    return (centers[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


def scores(x, centroids, metric):
    x, centroids = x.astype(np.float64), np.asarray(centroids, np.float64)
    if metric == "cosine":
        return x @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T
    if metric == "ip_reference":
        return x @ centroids.T
    return -np.square(x[:, None] - centroids[None]).sum(-1)


def lloyd(x, centroids, n_iters, metric):
    x = x.astype(np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    objective = []
    for _ in range(n_iters):
        nearest = scores(x, centroids, "cosine" if metric == "cosine" else "l2").argmax(1)
        objective.append(np.square(x - centroids[nearest]).sum(1).mean())
        centroids = np.stack([x[nearest == i].mean(0) for i in range(len(centroids))])
        if metric == "cosine":
            centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    return centroids, objective


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_iterations_are_those_of_lloyd(metric):
    x, key = blobs(), jax.random.key(0)
    start = kmeans(key, jnp.asarray(x), 4, n_iters=0, metric=metric).centroids
    rows = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    distance = np.abs(np.asarray(start)[:, None] - rows[None]).sum(-1)
    assert (distance.min(1) < 1e-6).all() and len(set(distance.argmin(1))) == 4  # distinct rows
    found = kmeans(key, jnp.asarray(x), 4, n_iters=4, metric=metric, block=32)
    centroids, objective = lloyd(x, np.asarray(start, np.float64), 4, metric)
    np.testing.assert_allclose(found.centroids, centroids, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.objective, objective, rtol=1e-4)
    assert (np.diff(found.objective) <= 1e-5).all() and not found.n_reseeded.any()


def test_devices_and_blocks_change_nothing():
    x, key = jnp.asarray(blobs()), jax.random.key(1)
    whole = kmeans(key, x, 4, n_iters=4, block=32)
    for split in (
        kmeans(key, x, 4, n_iters=4, block=8, mesh=make_mesh(4)),
        kmeans(key, x, 4, n_iters=4, block=1000),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), split, whole
        )


@pytest.mark.parametrize("n_devices", [None, 4])
def test_empty_clusters_move_to_the_farthest_rows(n_devices):
    # All start in one place, but for a choice of distinct rows that are equal.
    x = np.zeros((40, 2), np.float32)
    x[7], x[30], x[31] = [9, 0], [0, 8], [-7, 0]
    mesh = None if n_devices is None else make_mesh(n_devices)
    found = kmeans(jax.random.key(0), jnp.asarray(x), 4, n_iters=3, mesh=mesh)
    centroids = {tuple(np.round(c, 4).tolist()) for c in np.asarray(found.centroids)}
    assert centroids == {(9, 0), (0, 8), (-7, 0), (0, 0)}
    assert found.n_reseeded[0] > 0 and found.n_reseeded[-1] == 0 and found.objective[-1] == 0


def test_fewer_distinct_rows_than_clusters_give_no_nan():
    x = jnp.asarray(np.repeat([[1.0, 2], [3, 4]], 5, axis=0), jnp.float32)
    for metric in ("l2", "cosine"):
        found = kmeans(jax.random.key(0), x, 10, n_iters=3, metric=metric)
        assert np.isfinite(found.centroids).all() and found.objective[-1] < 1e-6
    zero = kmeans(jax.random.key(0), jnp.zeros((3, 2)), 2, n_iters=2, metric="cosine")
    assert np.isfinite(zero.centroids).all()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip_reference"])
def test_assignment_is_that_of_all_pairs(metric):
    x, centroids = blobs(50), blobs(6, seed=1)
    for block in (16, 1000):
        found = assign(x, centroids, metric=metric, block=block)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, scores(x, centroids, metric).argmax(1))


def test_the_metrics_differ_where_lengths_do():
    x, centroids = jnp.array([[1.0, 0.5]]), jnp.array([[1.0, 0.4], [5.0, 5.0], [0.1, 0.05]])
    found = {m: int(assign(x, centroids, metric=m)[0]) for m in ("l2", "ip_reference", "cosine")}
    assert found == {"l2": 0, "ip_reference": 1, "cosine": 2}


def test_arguments_are_checked():
    x, key = jnp.ones((3, 2)), jax.random.key(0)
    for n_clusters in (0, 4):
        with pytest.raises(ValueError, match=rf"n_clusters must lie in 1..3, got {n_clusters}"):
            kmeans(key, x, n_clusters)
    with pytest.raises(ValueError, match="metric must be one of l2, cosine, ip_reference"):
        kmeans(key, x, 1, metric="ip")
    with pytest.raises(ValueError, match="metric must be one of"):
        assign(x, x, metric="ip")
    with pytest.raises(ValueError, match="block must be positive"):
        kmeans(key, x, 1, block=0)
    with pytest.raises(ValueError, match=r"x must be \[n, d\]"):
        kmeans(key, x[0], 1)
    with pytest.raises(ValueError, match=r"x and centroids must be"):
        assign(x, x[:, :1])
