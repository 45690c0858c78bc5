"""How a server combines the updates of its clients: the mean, and rules that bound what one can do.

Updates are a pytree whose leaves lead with the clients ``[c, ...]``. A client of weight 0 has no
part in anything, finite or not, so a filter and padding are the same thing; without any weight the
result is 0.
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxml.core.types import Key, PyTree

_HIGH = jax.lax.Precision.HIGHEST


def mean(updates: PyTree, weights: Float[Array, " c"]) -> PyTree:
    """Averages updates by weight: federated averaging (McMahan et al., 2017)."""
    share = weights / _positive(weights.sum())

    def average(u):
        return jnp.einsum("c,c...->...", share, _present(u, weights), precision=_HIGH)

    return jax.tree.map(average, updates)


def clipped_noisy_mean(
    key: Key,
    updates: PyTree,
    weights: Float[Array, " c"],
    *,
    max_norm: float,
    noise: float,
) -> PyTree:
    """Averages updates clipped to an L2 norm and adds Gaussian noise.

    Ref: Sun, Kairouz, Suresh & McMahan, "Can You Really Backdoor Federated Learning?", 2019.

    Args:
      key: a typed key.
      updates: leaves ``[c, ...]``.
      weights: ``[c]``.
      max_norm: of an update, over all leaves.
      noise: standard deviation of what is added to each number of the mean.
    """
    norms = jnp.sqrt(_square_norms(_matrix(updates)[0]))
    scale = max_norm / jnp.maximum(norms, max_norm)
    clipped = jax.tree.map(lambda u: u * scale.reshape(-1, *[1] * (u.ndim - 1)), updates)
    flat, unflatten = ravel_pytree(mean(clipped, weights))
    return unflatten(flat + noise * jax.random.normal(key, flat.shape, flat.dtype))


def geometric_median(
    updates: PyTree, weights: Float[Array, " c"], *, n_steps: int = 8, smoothing: float = 1e-6
) -> PyTree:
    """Minimises ``sum_i w_i ||v - u_i||`` by smoothed Weiszfeld steps, from the mean (RFA).

    Ref: Pillutla, Kakade & Harchaoui, "Robust Aggregation for Federated Learning", 2022.

    Args:
      updates: leaves ``[c, ...]``.
      weights: ``[c]``.
      n_steps: static; the objective falls with each.
      smoothing: smallest distance that is divided by.
    """
    flat, unflatten = _matrix(updates)
    flat = _present(flat, weights)

    def step(_, v):
        distance = jnp.sqrt(_square_norms(flat - v[None]))
        w = weights / jnp.maximum(distance, smoothing)
        return jnp.matmul(w / _positive(w.sum()), flat, precision=_HIGH)

    start = jnp.matmul(weights / _positive(weights.sum()), flat, precision=_HIGH)
    return unflatten(jax.lax.fori_loop(0, n_steps, step, start))


def krum_scores(
    updates: PyTree, weights: Float[Array, " c"], *, n_malicious: int
) -> Float[Array, " c"]:
    """Sums, for each update, its squared distances to the ``c - f - 2`` nearest others.

    Ref: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", 2017.

    Args:
      updates: leaves ``[c, ...]``.
      weights: ``[c]``; the count ``c`` is of those that are not 0.
      n_malicious: ``f``.

    Returns:
      Scores ``[c]``, infinite where the weight is 0.
    """
    flat, _ = _matrix(updates)
    there = weights > 0
    n = flat.shape[0]
    # Distances from differences, not from a Gram matrix: equal updates are at 0 exactly.
    distances = jax.lax.map(lambda u: _square_norms(flat - u[None]), flat)
    others = there[None] & ~jnp.eye(n, dtype=bool)
    ordered = jnp.sort(jnp.where(others, distances, jnp.inf), axis=1)
    n_nearest = jnp.maximum(there.sum() - n_malicious - 2, 1)
    near = (jnp.arange(n) < n_nearest)[None] & jnp.isfinite(ordered)
    return jnp.where(there, jnp.where(near, ordered, 0).sum(1), jnp.inf)


def krum(updates: PyTree, weights: Float[Array, " c"], *, n_malicious: int) -> PyTree:
    """Returns the update of the smallest Krum score."""
    return multi_krum(updates, weights, n_malicious=n_malicious, n_selected=1)


def multi_krum(
    updates: PyTree, weights: Float[Array, " c"], *, n_malicious: int, n_selected: int | None = None
) -> PyTree:
    """Averages, by weight, the updates of the ``n_selected`` smallest Krum scores.

    Args:
      updates: leaves ``[c, ...]``.
      weights: ``[c]``.
      n_malicious: ``f``.
      n_selected: static; ``c - f`` by default, at least 1, with ``c`` as in ``krum_scores``.

    Raises:
      ValueError: ``n_selected`` outside ``1..c``.
    """
    n = weights.shape[0]
    most = n - n_malicious if n_selected is None else n_selected
    if not 1 <= most <= n:
        raise ValueError(f"n_selected must lie in 1..{n}, got {most}")
    if n_selected is None:
        n_selected = jnp.maximum((weights > 0).sum() - n_malicious, 1)
    scores = krum_scores(updates, weights, n_malicious=n_malicious)
    rank = jnp.argsort(jnp.argsort(scores, stable=True))
    return mean(updates, jnp.where(rank < n_selected, weights, 0))


def median(updates: PyTree, weights: Float[Array, " c"]) -> PyTree:
    """Takes the median of each coordinate over the clients of positive weight."""
    return jax.tree.map(lambda u: _middle(u, weights, lambda n: (n - 1) // 2), updates)


def trimmed_mean(updates: PyTree, weights: Float[Array, " c"], *, n_trimmed: int) -> PyTree:
    """Averages each coordinate without its ``n_trimmed`` smallest and largest values, unweighted.

    Ref: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    2018.

    Raises:
      ValueError: nothing would be left.
    """
    if not 0 <= 2 * n_trimmed < weights.shape[0]:
        raise ValueError(f"n_trimmed must leave some of {weights.shape[0]}, got {n_trimmed}")
    return jax.tree.map(lambda u: _middle(u, weights, lambda n: n_trimmed), updates)


def _middle(u, weights, n_cut) -> jax.Array:
    """Averages, of each coordinate, the values of rank ``n_cut`` from either end and between."""
    there = _there(u, weights)
    n = (weights > 0).sum()
    cut = jnp.maximum(jnp.minimum(n_cut(n), (n - 1) // 2), 0)
    rank = jnp.arange(u.shape[0]).reshape(there.shape)
    used = (rank >= cut) & (rank < n - cut)
    ordered = jnp.sort(jnp.where(there, u, jnp.inf), axis=0)
    return jnp.where(used, ordered, 0).sum(0) / _positive(n - 2 * cut).astype(u.dtype)


def _there(u, weights) -> jax.Array:
    return (weights > 0).reshape(-1, *[1] * (u.ndim - 1))


def _present(u, weights) -> jax.Array:
    """Puts 0 for the clients of weight 0: 0 times what is not finite would be NaN."""
    return jnp.where(_there(u, weights), u, 0)


def _matrix(updates: PyTree):
    """Returns the updates as rows ``[c, p]`` and the way back from one row."""
    _, unflatten = ravel_pytree(jax.tree.map(lambda u: u[0], updates))
    return jax.vmap(lambda u: ravel_pytree(u)[0])(updates), unflatten


def _square_norms(rows) -> jax.Array:
    return jnp.square(rows).sum(-1)


def _positive(total) -> jax.Array:
    return jnp.where(total > 0, total, 1)
