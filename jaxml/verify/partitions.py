"""Which coordinates of a layer are looked at together.

A partition into pairs is int32 ``[ceil(n / 2), 2]``; the index ``n`` stands for no partner.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxml.core.types import Key
from jaxml.verify.network import Conv, Layer
from jaxml.verify.zonotope import Zonotope

RULES = ("similarity", "random", "spatial", "depthwise", "axalign", "single")


def partition(
    z: Zonotope, rule: str = "similarity", *, key: Key | None = None, layer: Layer | None = None
) -> Int32[Array, "p 2"]:
    """Pairs the coordinates of a zonotope.

    | rule | pairs |
    |---|---|
    | ``similarity`` | greedily, the largest ``abs(G) abs(G)^T`` first: long shared generators |
    | ``axalign`` | greedily by the mean over generators of ``(abs(g) + abs(h)) / max(abs(g), abs(h))`` |
    | ``random`` | a random order, two and two; needs ``key`` |
    | ``spatial`` | neighbours within a channel, along the last axis of the image; needs a ``Conv`` |
    | ``depthwise`` | neighbouring channels of one position; needs a ``Conv`` |
    | ``single`` | none: every coordinate alone |

    Pure: jit and vmap pass through, with ``rule`` static.

    Args:
      z: ``[n, m]``.
      rule: see the table.
      key: of ``"random"``.
      layer: whose output ``z`` is.

    Raises:
      ValueError: another rule, or what it needs is missing.
    """  # noqa: E501
    n = len(z.center)
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    if rule == "single":
        return jnp.stack([jnp.arange(n), jnp.full(n, n)], 1).astype(jnp.int32)
    if rule in ("similarity", "axalign"):
        size = jnp.abs(z.generators)
        return _greedy(size @ size.T if rule == "similarity" else _alignment(size))
    if rule == "random":
        if key is None:
            raise ValueError("rule 'random' needs key")
        return _consecutive(jax.random.permutation(key, jnp.arange(n)), n)
    if not isinstance(layer, Conv):
        raise ValueError(f"rule {rule!r} needs layer, the convolution whose output is paired")
    h, w, c = layer.out_shape
    index = np.arange(n).reshape((h, w, c) if layer.channels_last else (c, h, w))
    index = index if layer.channels_last else index.transpose(1, 2, 0)
    if rule == "spatial":
        index = index.transpose(2, 0, 1)
    return _consecutive(jnp.asarray(index.ravel()), n)


def _consecutive(order: jax.Array, n: int) -> Int32[Array, "p 2"]:
    padded = jnp.full(n + n % 2, n, jnp.int32).at[:n].set(order.astype(jnp.int32))
    return padded.reshape(-1, 2)


def _greedy(scores: Float[Array, "n n"]) -> Int32[Array, "p 2"]:
    """Visits rows by their best score, the highest first, and pairs each with its best free one."""
    n = len(scores)
    lowest = jnp.asarray(-jnp.inf, scores.dtype)
    scores = jnp.where(jnp.eye(n, dtype=bool), lowest, scores)
    order = jnp.argsort(-scores.max(1))

    def visit(i, carry):
        pairs, count, used = carry
        row = order[i]
        free = ~used & (jnp.arange(n) != row)
        partner = jnp.where(free.any(), jnp.argmax(jnp.where(free, scores[row], lowest)), n)
        pair = jnp.stack([row, partner]).astype(jnp.int32)
        new = ~used[row]
        pairs = jnp.where(new, pairs.at[count].set(pair), pairs)
        # An index out of range, which n is, sets nothing.
        taken = used.at[pair].set(True, mode="drop")
        return pairs, count + new.astype(jnp.int32), jnp.where(new, taken, used)

    # A row whose best score ties at -inf still finds a partner: argmax over the free ones.
    pairs = jnp.full((-(-n // 2), 2), n, jnp.int32)
    return jax.lax.fori_loop(0, n, visit, (pairs, jnp.int32(0), jnp.zeros(n, bool)))[0]


def _alignment(size: Float[Array, "n m"]) -> Float[Array, "n n"]:
    def row(g):
        larger = jnp.maximum(g[None], size)
        used = larger > 0
        ratio = (g[None] + size) / jnp.where(used, larger, jnp.ones_like(larger))
        return jnp.where(used, ratio, jnp.zeros_like(ratio)).mean(1)

    return jax.lax.map(row, size)


def check_partition(groups: Sequence[Sequence[int]], n: int) -> None:
    """Checks that every coordinate is in exactly one group; the index ``n`` counts as none.

    Raises:
      ValueError: an empty group, an index out of range, one that is missing or there twice.
    """
    groups = [[int(i) for i in group if int(i) != n] for group in groups]
    if any(not group for group in groups):
        raise ValueError("partition has a group of size 0")
    members = [i for group in groups for i in group]
    if bad := [i for i in members if not 0 <= i < n]:
        raise ValueError(f"partition has coordinate {bad[0]}, of {n}")
    if len(set(members)) != len(members):
        twice = next(i for i in members if members.count(i) > 1)
        raise ValueError(f"partition has coordinate {twice} twice")
    if missing := set(range(n)) - set(members):
        raise ValueError(f"partition lacks coordinate {min(missing)}")


def merge_groups(z: Zonotope, pairs, size: int) -> list[np.ndarray]:
    """Merges pairs into groups of about ``size`` coordinates that share generators, on the host.

    Each group begins with the first pair that is left and takes the pairs with the largest
    ``abs(G) abs(G)^T`` against it.

    Args:
      z: ``[n, m]``.
      pairs: ``[p, 2]``.
      size: most coordinates of a group.

    Returns:
      For each group the rows of ``pairs`` in it.

    Raises:
      ValueError: ``size`` below 2.
    """
    if size < 2:
        raise ValueError(f"size of a group must be at least 2, got {size}")
    generators = np.abs(np.asarray(z.generators, np.float64))
    padded = np.concatenate([generators, np.zeros_like(generators[:1])])
    of_pair = padded[np.asarray(pairs)].sum(1)
    scores = of_pair @ of_pair.T
    left = np.arange(len(scores))
    groups = []
    while left.size:
        best = left[np.argsort(-scores[left[0], left], kind="stable")]
        group = np.r_[left[0], best[best != left[0]]][: size // 2]
        groups.append(group)
        left = left[~np.isin(left, group)]
    return groups
