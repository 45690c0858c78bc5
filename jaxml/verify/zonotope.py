"""Zonotopes; DeepZ (Singh et al. 2018), and the box-informed DeepZ of ZonoDual.

A zonotope is ``{c + G y : y in [-1, 1]^m}``. Everything has a fixed shape: a relu appends a column
for each of its neurons, zero for the stable ones.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax import lax
from jaxtyping import Array, Float

from jaxml.verify import network
from jaxml.verify.dual import upper_slope
from jaxml.verify.network import Layer, Net
from jaxml.verify.problem import Bounds, Box, Spec, intersect


class Zonotope(NamedTuple):
    """All ``center + generators @ y`` with ``y`` in ``[-1, 1]^m``.

    Attributes:
      center: ``[n]``.
      generators: ``[n, m]``.
    """

    center: Float[Array, " n"]
    generators: Float[Array, "n m"]


def from_box(box: Box) -> Zonotope:
    """Returns a box as a zonotope."""
    return Zonotope((box.lower + box.upper) / 2, jnp.diag((box.upper - box.lower) / 2))


def affine(layer: Layer, z: Zonotope) -> Zonotope:
    """Maps a zonotope through a layer, exactly."""
    return Zonotope(network.affine(layer, z.center), network.linear(layer, z.generators.T).T)


def relu(z: Zonotope, box: Box | None = None) -> Zonotope:
    """Encloses ``relu(z)`` over the part of the zonotope that lies in ``box`` (None: its own hull).

    A tighter box makes a tighter zonotope: it gives the slope ``s = u / (u - l)`` and the new
    generator ``-s l / 2``, and says which neurons are stable.
    """
    box = concretize(z) if box is None else box
    slope = upper_slope(box)
    unstable = (box.lower < 0) & (box.upper > 0)
    half = jnp.where(unstable, -slope * box.lower / 2, jnp.zeros_like(slope))
    generators = jnp.concatenate([slope[:, None] * z.generators, jnp.diag(half)], axis=1)
    return Zonotope(slope * z.center + half, generators)


def concretize(z: Zonotope) -> Box:
    """Returns the smallest box around a zonotope."""
    radius = jnp.abs(z.generators).sum(1)
    return Box(z.center - radius, z.center + radius)


def support(z: Zonotope, directions: Float[Array, "t n"]) -> Float[Array, " t"]:
    """Returns the smallest value of each linear function over a zonotope."""
    center, generators = (jnp.matmul(directions, a, precision=lax.Precision.HIGHEST) for a in z)
    return center - jnp.abs(generators).sum(1)


def reduce_order(z: Zonotope, n_generators: int) -> Zonotope:
    """Keeps the longest generators and encloses the others in a box of ``n`` more.

    Args:
      z: ``[n, m]``.
      n_generators: columns of the result, static; at least ``n``. As many as there are: no change.

    Raises:
      ValueError: fewer than ``n`` columns.
    """
    n, m = z.generators.shape
    if n_generators < n:
        raise ValueError(f"n_generators must be at least {n}, got {n_generators}")
    if n_generators >= m:
        return z
    size = jnp.abs(z.generators)
    order = jnp.argsort(-(size.sum(0) - size.max(0)))
    kept, rest = jnp.split(z.generators[:, order], [n_generators - n], axis=1)
    return Zonotope(z.center, jnp.concatenate([kept, jnp.diag(jnp.abs(rest).sum(1))], axis=1))


def contains(z: Zonotope, point, *, tolerance: float = 1e-9) -> bool:
    """Says whether a point lies in a zonotope, by a linear program on the host."""
    generators = np.asarray(z.generators, np.float64)
    offset = np.asarray(point, np.float64) - np.asarray(z.center, np.float64)
    n, m = generators.shape
    # The smallest r with |G y - offset| <= r, |y| <= 1.
    ones = np.ones((n, 1))
    solution = scipy.optimize.linprog(
        np.r_[np.zeros(m), 1.0],
        A_ub=np.block([[generators, -ones], [-generators, -ones]]),
        b_ub=np.r_[offset, -offset],
        bounds=[(-1, 1)] * m + [(0, None)],
    )
    return bool(solution.status == 0 and solution.fun <= tolerance)


class Layers(NamedTuple):
    """What is known of every pre-activation: it lies in the zonotope and in the box."""

    zonotopes: tuple[Zonotope, ...]
    bounds: Bounds


def propagate(
    net: Net, box: Box, bounds: Bounds | None = None, *, max_order: int | None = None
) -> Layers:
    """Propagates a box through a network as zonotopes.

    Args:
      net: ``L`` layers.
      box: of the inputs.
      bounds: sound boxes of the pre-activations from any method; the relus then use the
        intersection with the zonotope's hull. None is plain DeepZ.
      max_order: at most so many generators for each value (see ``reduce_order``); None keeps all.

    Returns:
      ``L - 1`` zonotopes, and boxes that are the intersections.
    """
    z, zonotopes, found = from_box(box), [], []
    for i, layer in enumerate(net[:-1]):
        z = affine(layer, relu(z, found[-1]) if found else z)
        if max_order is not None:
            z = reduce_order(z, max_order * len(z.center))
        hull = concretize(z)
        zonotopes.append(z)
        found.append(hull if bounds is None else intersect(hull, bounds[i]))
    return Layers(tuple(zonotopes), tuple(found))


def deepz_bounds(net: Net, box: Box, bounds: Bounds | None = None) -> Bounds:
    """Boxes of all pre-activations by DeepZ; within ``bounds`` if they are given."""
    return propagate(net, box, bounds).bounds


def deepz(net: Net, box: Box, spec: Spec, bounds: Bounds | None = None) -> Float[Array, " t"]:
    """Bounds a spec by the last zonotope of (box-informed) DeepZ."""
    layers = propagate(net, box, bounds)
    z = relu(layers.zonotopes[-1], layers.bounds[-1]) if layers.bounds else from_box(box)
    z = affine(net[-1], z)
    return support(z, spec.weight) + spec.offset
