"""Relu programs over two coordinates at a time, exactly: the work-horse of ZonoDual.

The projection of a zonotope to two coordinates is a polygon. On each quadrant the function
``c1^T z + c2^T relu(z)`` is linear, so its minimum over polygon and box lies at one of ``2 m + 21``
points, which do not depend on ``c1`` and ``c2``: they are computed once and looked up every step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxml.verify.problem import Box
from jaxml.verify.zonotope import Zonotope


class PairDomain(NamedTuple):
    """A layer's domain, cut into pairs.

    Attributes:
      pairs: coordinates ``[p, 2]``; ``n`` is no partner.
      candidates: ``[p, 4, k]``: ``z_a, z_b, relu(z_a), relu(z_b)`` of each candidate.
    """

    pairs: Int32[Array, "p 2"]
    candidates: Float[Array, "p 4 k"]


def pair_domain(
    z: Zonotope, box: Box, pairs: Int32[Array, "p 2"], *, pairs_at_once: int = 256
) -> PairDomain:
    """Computes the candidates of every pair of a partition.

    Args:
      z: ``[n, m]``.
      box: of the same coordinates.
      pairs: from ``partition``.
      pairs_at_once: bounds the memory of the work, not of the result.

    Returns:
      PairDomain with ``k = 2 m + 21``.
    """
    center, generators, lower, upper = (
        jnp.concatenate([a, jnp.zeros_like(a[:1])])[pairs]
        for a in (z.center, z.generators, box.lower, box.upper)
    )

    def one(args):
        points = polygon_candidates(*args)
        return jnp.concatenate([points, jax.nn.relu(points)])

    args = (center, generators, lower, upper)
    return PairDomain(pairs, jax.lax.map(one, args, batch_size=min(pairs_at_once, len(pairs))))


def polygon_candidates(
    center: Float[Array, " 2"],
    generators: Float[Array, "2 m"],
    lower: Float[Array, " 2"],
    upper: Float[Array, " 2"],
) -> Float[Array, "2 k"]:
    """Lists points among which a function that is linear on each quadrant has its minimum.

    Those are the polygon's corners, its edges' crossings with the axes and the sides of the box,
    and corners of the box cut by the axes; all that lie in polygon and box. A place that holds no
    such point repeats one that does. Tests err to including a point that rounding has moved out.

    Args:
      center: of the polygon.
      generators: of the polygon; any may be zero.
      lower: of the box.
      upper: of the box.

    Returns:
      ``k = 2 m + 21`` points.
    """
    m = generators.shape[1]
    radius = jnp.abs(generators).sum(1)
    scale = jnp.max(jnp.abs(center) + radius) + jnp.max(jnp.maximum(jnp.abs(lower), jnp.abs(upper)))
    tolerance = 8 * jnp.finfo(center.dtype).eps * scale
    # Everything once with the coordinates as they are and once swapped, [2, 2, ...]: a chain that
    # runs along either axis.
    centers = jnp.stack([center, center[::-1]])
    chains, edges = _lower_chains(centers, jnp.stack([generators, generators[::-1]]))
    chain, edge = chains[0], edges[0]
    twice = 2 * center[:, None]
    corners = jnp.concatenate([chain[:, :m], twice - chain[:, :m]], axis=1)
    corners_valid = _within(corners, lower[:, None], upper[:, None], tolerance).all(0)

    # Crossings with the three lines of each axis: both ends of the box, and 0 if it is inside.
    lines = jnp.stack([lower, jnp.clip(jnp.zeros_like(lower), lower, upper), upper], 1)  # [2, 3]
    at = jnp.concatenate([lines, twice - lines], axis=1)
    low, mirrored = jnp.split(_heights(chains, edges, at), 2, axis=1)
    across = jnp.stack([low, 2 * centers[:, 1:] - mirrored], 1)  # [axis, side, line]
    lines_twice = jnp.broadcast_to(lines[:, None], across.shape)
    there = jnp.abs(lines - center[:, None]) <= (radius + tolerance)[:, None]
    ends = jnp.stack([lower, upper])[:, ::-1, None, None]  # of the other axis
    crossings_valid = (there[:, None] & _within(across, ends[0], ends[1], tolerance)).ravel()
    crossings = jnp.concatenate(
        [
            jnp.stack([lines_twice[0], across[0]]).reshape(2, 6),
            jnp.stack([across[1], lines_twice[1]]).reshape(2, 6),
        ],
        axis=1,
    )

    grid = jnp.stack([jnp.repeat(lines[0], 3), jnp.tile(lines[1], 3)])  # [2, 9]
    # Inside the polygon: left of every edge of the lower chain, and so is the mirror image.
    both = jnp.concatenate([grid, twice - grid], axis=1)[..., None] - chain[:, None, :m]
    left = edge[0][None] * both[1] - edge[1][None] * both[0]
    inside = (left >= -tolerance * jnp.abs(edge).sum(0)[None]).all(1)
    hull = jnp.abs(grid - center[:, None]) <= (radius + tolerance)[:, None]
    grid_valid = inside[:9] & inside[9:] & hull.all(0)

    points = jnp.concatenate([corners, crossings, grid], axis=1)
    valid = jnp.concatenate([corners_valid, crossings_valid, grid_valid])
    # Polygon and box that only rounding keeps apart: the box alone is a sound domain.
    valid = valid | (~valid.any() & (jnp.arange(len(valid)) >= len(valid) - 9))
    return jnp.where(valid[None], points, points[:, jnp.argmax(valid)][:, None])


def _lower_chains(centers, generators):
    """Returns the corners ``[b, 2, m + 1]`` along each lower side, from the left, and the edges."""
    x, y = generators[:, 0], generators[:, 1]
    left = (x < 0) | ((x == 0) & (y < 0))
    right = jnp.where(left[:, None], -generators, generators)
    # By angle and not by slope, which is infinite for vertical generators and NaN for zero.
    order = jnp.argsort(jnp.arctan2(right[:, 1], right[:, 0]), axis=1)
    edges = 2 * jnp.take_along_axis(right, order[:, None], axis=2)
    start = (centers - right.sum(2))[..., None]
    steps = jnp.concatenate([jnp.zeros_like(start), jnp.cumsum(edges, axis=2)], axis=2)
    return start + steps, edges


def _heights(chains, edges, at):
    """Interpolates the second coordinate of each chain at values ``[b, k]`` of the first."""
    m = edges.shape[2]
    passed = (chains[:, 0, None, :] <= at[..., None]).sum(2)
    index = jnp.clip(passed - 1, 0, m - 1)[:, None]
    corner, edge = (jnp.take_along_axis(a, index, axis=2) for a in (chains, edges))
    run = jnp.where(edge[:, 0] > 0, edge[:, 0], jnp.ones_like(edge[:, 0]))
    return corner[:, 1] + jnp.clip((at - corner[:, 0]) / run, 0, 1) * edge[:, 1]


def _within(values, lower, upper, tolerance):
    return (values >= lower - tolerance) & (values <= upper + tolerance)


def pair_programs(
    domain: PairDomain, c1: Float[Array, "t n"], c2: Float[Array, "t n"]
) -> Float[Array, "t p"]:
    """Minimises ``c1^T z + c2^T relu(z)`` over each pair of coordinates, exactly.

    Differentiable in ``c1`` and ``c2``: by Danskin's theorem through the minimiser alone.
    """
    c1, c2 = (jnp.pad(c, ((0, 0), (0, 1))) for c in (c1, c2))
    coefficients = jnp.concatenate([c[:, domain.pairs] for c in (c1, c2)], axis=-1)  # [t, p, 4]
    # Written out, so that the products are never stored and no matrix unit rounds them; and without
    # argmin, for which XLA has no fast loop on a CPU.
    fixed = jax.lax.stop_gradient(coefficients)[..., None]
    values = sum(fixed[:, :, i] * domain.candidates[None, :, i] for i in range(4))
    lowest = values.min(-1)
    close = values <= (lowest + 8 * jnp.finfo(values.dtype).eps * jnp.abs(lowest))[..., None]
    last = values.shape[-1] - 1
    index = jnp.where(close, jnp.arange(last + 1)[None, None], last).min(-1)
    best = domain.candidates[jnp.arange(len(domain.pairs))[None], :, index]
    gradient = (best * coefficients).sum(-1)
    return lowest + gradient - jax.lax.stop_gradient(gradient)


def relu_program_2d(
    domain: PairDomain, c1: Float[Array, "t n"], c2: Float[Array, "t n"]
) -> Float[Array, " t"]:
    """Bounds ``min c1^T z + c2^T relu(z)`` over a layer's domain by the sum over its pairs."""
    return pair_programs(domain, c1, c2).sum(-1)
