"""Bounds that rounding cannot have made: the dual re-evaluated in float64 with outward errors.

Ascent may run in float32 on an accelerator: its result is a set of multipliers and a partition, and
any multipliers and any partition give a bound. Here boxes, zonotopes and the dual are computed anew
on the host, and every sum of ``n`` products carries the standard error ``gamma_n sum |a| |b|``, with
``gamma_n = n u / (1 - n u)`` and ``u = 2^-53`` (Higham, Accuracy and Stability, chapter 3), which
holds in any order of summation and with or without fused operations. What is certified is the
function with the given float64 weights in exact arithmetic.
"""  # noqa: E501

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from jaxml.verify.dual import Multipliers
from jaxml.verify.network import Net, matrix
from jaxml.verify.partitions import check_partition
from jaxml.verify.problem import Bounds, Box, Spec, check_problem

_U = 2.0**-53
_TINY = 1e-300  # more than what underflow can lose


class PairBounds(NamedTuple):
    """One relu of a certified dual: what tighter programs over merged groups start from.

    Attributes:
      center: ``[n]`` of its zonotope.
      generators: ``[n, m]``.
      radius: ``[n]``; the values lie within so much of the zonotope.
      box: of the values.
      pairs: ``[p, 2]``.
      c1: coefficients ``[t, n]``.
      c2: ``[t, n]``.
      lower: of each pair's program ``[t, p]``, its error subtracted.
    """

    center: np.ndarray
    generators: np.ndarray
    radius: np.ndarray
    box: Box
    pairs: np.ndarray
    c1: np.ndarray
    c2: np.ndarray
    lower: np.ndarray


class Certificate(NamedTuple):
    """What ``certify`` has proved.

    Attributes:
      lower: ``[t]`` float64, at most ``spec.weight @ z_L + spec.offset`` for all inputs in the box.
      bounds: boxes of the pre-activations, as sound.
      relus: of the ``L - 1`` relus, the first one first; none without ``pairs``.
    """

    lower: Float[Array, " t"]
    bounds: Bounds
    relus: tuple[PairBounds, ...]


def _gamma(n: int) -> float:
    # Twice the terms, for the error terms are computed in float64 themselves.
    n = 2 * n + 16
    return n * _U / (1 - n * _U)


class _Sum:
    """A sum of floats, with a bound of what it may be too high."""

    def __init__(self, value):
        self.value = np.asarray(value, np.float64).copy()
        self.error = np.zeros_like(self.value)

    def add(self, value, error) -> None:
        self.value = self.value + value
        self.error = self.error + error + 2 * _U * np.abs(self.value) + _TINY

    def lower(self):
        return np.nextafter(self.value - self.error * (1 + 1e-12), -np.inf)


class _Layer(NamedTuple):
    weight: object  # an array or a sparse array [n_out, n_in]
    size: object  # its absolute values
    bias: np.ndarray
    rows: float  # gamma of a product with it from the left, W x
    columns: float  # and from the right, y W


def _layer(layer) -> _Layer:
    weight = matrix(layer)
    size = abs(weight)
    n_out, n_in = weight.shape
    if not isinstance(weight, np.ndarray):
        nonzero = weight != 0
        n_in, n_out = int(nonzero.sum(1).max()), int(nonzero.sum(0).max())
    bias = np.asarray(layer.bias, np.float64)
    return _Layer(weight, size, bias, _gamma(n_in + 1), _gamma(n_out))


def certify(
    net: Net,
    box: Box,
    spec: Spec,
    rhos: Multipliers,
    pairs: Sequence | None = None,
    *,
    layer_rhos: Mapping[int, Multipliers] | None = None,
) -> Certificate:
    """Re-evaluates the dual over zonotopes and boxes with outward rounding, on the host.

    Args:
      net: ``L`` layers.
      box: of the inputs.
      spec: ``t`` rows.
      rhos: multipliers ``[t, n]`` of the ``L - 1`` relus, of any precision.
      pairs: a partition of each pre-activation into pairs, as ``partition`` gives it; None takes
        boxes as the domains, as CROWN and all linear relaxations do.
      layer_rhos: ``{k: rhos}`` tightens the box of pre-activation ``k`` (from 0) by the dual with
        these, which have a row for each of ``z_k`` and then one for each of ``-z_k``.

    Returns:
      Certificate.

    Raises:
      ValueError: a network, box, spec or partition that ``check_problem`` or ``check_partition``
        refuses, or multipliers of another shape or not finite.
    """
    check_problem(net, box, spec)
    box = Box(*(np.asarray(end, np.float64) for end in box))
    rhos = tuple(np.asarray(rho, np.float64) for rho in rhos)
    _check_rhos(net, rhos, len(spec.weight))
    layers = [_layer(layer) for layer in net]
    weight, offset = (np.asarray(part, np.float64) for part in spec)
    bounds, domains = [], []
    if pairs is None:
        for k in range(len(net) - 1):
            bounds.append(_bounds(layers[: k + 1], box, bounds))
        lower, _ = _dual(layers, box, weight, _fixed(rhos), _box_program(bounds), offset)
        return Certificate(lower, tuple(bounds), ())
    pairs = [np.asarray(p) for p in pairs]
    if len(pairs) != len(net) - 1:
        raise ValueError(f"pairs must hold {len(net) - 1} partitions, got {len(pairs)}")
    for layer, of_layer in zip(net[:-1], pairs, strict=True):
        check_partition(of_layer, layer.n_out)
    for k, rows in enumerate(net[:-1]):
        found = _bounds(layers[: k + 1], box, bounds)
        if layer_rhos and k in layer_rhos:
            tighter = tuple(np.asarray(rho, np.float64) for rho in layer_rhos[k])
            identity = np.eye(rows.n_out)
            both = np.concatenate([identity, -identity])
            sides, _ = _dual(layers[: k + 1], box, both, _fixed(tighter), _pair_program(domains))
            lower, upper = np.split(sides, 2)
            found = Box(np.maximum(found.lower, lower), np.minimum(found.upper, -upper))
        bounds.append(found)
        domains.append(_domain(layers[k], box, domains, found, pairs[k]))
    lower, relus = _dual(layers, box, weight, _fixed(rhos), _pair_program(domains), offset)
    return Certificate(lower, tuple(domain.box for domain in domains), tuple(relus[::-1]))


def certify_ibp(net: Net, box: Box, spec: Spec) -> Float[Array, " t"]:
    """Bounds a spec by intervals with outward rounding, on the host."""
    check_problem(net, box, spec)
    box = Box(*(np.asarray(end, np.float64) for end in box))
    for i, layer in enumerate(net[:-1]):
        box = _interval(_layer(layer), _relu_box(box) if i else box)
    box = _relu_box(box) if len(net) > 1 else box
    weight, offset = (np.asarray(part, np.float64) for part in spec)
    return _dual([_layer(net[-1])], box, weight, None, None, offset)[0]


def certify_deepz(net: Net, box: Box, spec: Spec) -> Float[Array, " t"]:
    """Bounds a spec by plain DeepZ with outward rounding, on the host."""
    check_problem(net, box, spec)
    box = Box(*(np.asarray(end, np.float64) for end in box))
    weight, offset = (np.asarray(part, np.float64) for part in spec)
    domains: list[_Domain] = []
    for layer in net:
        anything = Box(*(np.full(layer.n_out, end) for end in (-np.inf, np.inf)))
        domains.append(_domain(_layer(layer), box, domains, anything, None))
    center, generators, radius = domains[-1][:3]
    size = np.abs(center) + np.abs(generators).sum(1) + radius
    total = _Sum(np.broadcast_to(offset, len(weight)))
    error = _gamma(generators.shape[1] + len(center) + 2) * (np.abs(weight) @ size)
    spread = np.abs(weight @ generators).sum(1) + np.abs(weight) @ radius
    total.add(weight @ center - spread, error)
    return total.lower()


def _check_rhos(net, rhos, n_rows):
    shapes = [(n_rows, layer.n_out) for layer in net[:-1]]
    if [rho.shape for rho in rhos] != shapes:
        raise ValueError(f"rhos must have shapes {shapes}, got {[rho.shape for rho in rhos]}")
    if not all(np.isfinite(rho).all() for rho in rhos):
        raise ValueError("rhos has values that are not finite")


# The dual: rows are bounded from below, for multipliers that are given or chosen on the way back.


def _dual(layers, box, rows, choose: Callable, program: Callable, offset=0.0):
    """Evaluates the dual downward; returns it and each relu's details, the last one first."""
    total, details = _Sum(np.broadcast_to(offset, len(rows))), []
    for i in range(len(layers) - 1, -1, -1):
        layer = layers[i]
        total.add(rows @ layer.bias, _gamma(len(layer.bias)) * (np.abs(rows) @ np.abs(layer.bias)))
        # From here on `new` is exact, and what it misses of rows @ W is charged in `error`, which
        # meets values of at most `most`.
        new = rows @ layer.weight
        error = layer.columns * (np.abs(rows) @ layer.size) + _TINY
        if i == 0:
            most = np.maximum(np.abs(box.lower), np.abs(box.upper))
            lowest = np.where(new > 0, new * box.lower, new * box.upper)
            size = np.abs(lowest) + error * most
            total.add(lowest.sum(1), _gamma(len(most)) * np.abs(lowest).sum(1))
            total.add(0.0, error @ most + _gamma(len(most)) * size.sum(1))
            break
        rows = choose(i - 1, new)
        value, wrong, most, detail = program(i - 1, -rows, new)
        details.append(detail)
        total.add(value, wrong + (error @ most) * (1 + _gamma(len(most))))
    return total.lower(), details


def _fixed(rhos) -> Callable:
    return lambda i, new: rhos[i]


def _bounds(layers, box, bounds) -> Box:
    """Bounds a layer's values by intervals and CROWN on the boxes before it."""
    layer = layers[-1]
    if not bounds:
        return _interval(layer, box)
    lower, upper = _interval(layer, _relu_box(bounds[-1]))

    def choose(i, new):
        below, above = _slopes(bounds[i])
        return new * np.where(new > 0, below, above)

    n = len(layer.bias)
    for start in range(0, n, 1024):
        part = slice(start, min(start + 1024, n))
        rows = np.eye(n)[part]
        both = np.concatenate([rows, -rows])
        low, high = np.split(_dual(layers, box, both, choose, _box_program(bounds))[0], 2)
        lower[part], upper[part] = np.maximum(lower[part], low), np.minimum(upper[part], -high)
    return Box(lower, upper)


def _relu_box(box: Box) -> Box:
    return Box(*(np.maximum(end, 0) for end in box))


def _interval(layer: _Layer, inputs: Box) -> Box:
    most = np.maximum(np.abs(inputs.lower), np.abs(inputs.upper))
    positive, negative = (layer.size + layer.weight) / 2, (layer.size - layer.weight) / 2
    error = layer.rows * (layer.size @ most + np.abs(layer.bias)) + _TINY
    # |W| + W is 2 W or 0: exact.
    lower = positive @ inputs.lower - negative @ inputs.upper + layer.bias - error
    upper = positive @ inputs.upper - negative @ inputs.lower + layer.bias + error
    return Box(np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf))


def _slopes(box):
    lower, upper = box
    unstable = (lower < 0) & (upper > 0)
    above = np.where(unstable, upper / np.where(unstable, upper - lower, 1.0), lower >= 0)
    return np.where(unstable, upper >= -lower, lower >= 0).astype(float), above


def _box_program(bounds: Sequence[Box]) -> Callable:
    """Minimises by coordinate; gives value, error, the largest relu of each, and no details."""

    def program(i, c1, c2):
        box = bounds[i]
        low, high = np.minimum(box.lower, 0), np.maximum(box.upper, 0)
        ends = np.stack([box.lower, np.clip(0.0, *box), box.upper])
        value = np.min([c1 * z + c2 * np.maximum(z, 0) for z in ends], axis=0).sum(1)
        size = np.abs(c1) @ np.maximum(-low, high) + np.abs(c2) @ high
        return value, _gamma(c1.shape[1] + 3) * size, high, None

    return program


# Zonotopes with a radius: {c + G y + e : |y| <= 1, |e| <= r}.


class _Domain(NamedTuple):
    center: np.ndarray
    generators: np.ndarray
    radius: np.ndarray
    box: Box
    pairs: np.ndarray


def _domain(layer: _Layer, box: Box, before: list[_Domain], bounds: Box, pairs) -> _Domain:
    """Maps the domain before a layer through relu and layer."""
    if before:
        center, generators, radius = _relu(before[-1])
    else:
        center, half = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
        generators = np.diag(half)
        radius = 4 * _U * (np.abs(center) + half) + _TINY
    size = np.abs(center) + np.abs(generators).sum(1)
    width = generators.shape[1]
    radius = (layer.size @ radius) * (1 + layer.rows) + layer.rows * (1 + _gamma(width)) * (
        layer.size @ size + np.abs(layer.bias)
    )
    center, generators = layer.weight @ center + layer.bias, layer.weight @ generators
    reach = (np.abs(generators).sum(1) + radius + np.abs(center) * 4 * _U) * (1 + _gamma(width))
    lower = np.maximum(bounds.lower, np.nextafter(center - reach, -np.inf))
    upper = np.minimum(bounds.upper, np.nextafter(center + reach, np.inf))
    return _Domain(center, generators, radius + _TINY, Box(lower, upper), pairs)


def _relu(domain: _Domain):
    lower, upper = domain.box
    _, slope = _slopes(domain.box)
    unstable = (lower < 0) & (upper > 0)
    # relu(z) - slope z lies in [0, highest], whatever the slope in [0, 1].
    highest = np.maximum(-slope * lower, (1 - slope) * upper) * (1 + 8 * _U) + _TINY
    half = np.where(unstable, highest, 0.0) / 2
    generators = slope[:, None] * domain.generators
    size = np.abs(domain.center) + np.abs(domain.generators).sum(1)
    radius = slope * domain.radius + _gamma(generators.shape[1]) * (slope * size + half) + _TINY
    radius = np.where(unstable, radius * (1 + 8 * _U), np.where(lower >= 0, domain.radius, 0.0))
    return (
        slope * domain.center + half,
        np.concatenate([generators, np.diag(half)], axis=1),
        radius,
    )


# Programs over pairs. On the rectangle R that a quadrant leaves of the box, the function is k^T z,
# and for every l   min over Z and R of k^T z  >=  min over Z of (k - l)^T z + min over R of l^T z.
# Both sides agree for some l that is 0, k, or on a line through k - l parallel to an axis, so it
# takes no polygon, whose corners would have to be rounded: l is found in floating point, and the
# right side is bounded with its errors.


def _pair_program(domains: Sequence[_Domain]) -> Callable:
    def program(i, c1, c2):
        domain = domains[i]
        rows = max(1, int(2e7 // (16 * domain.generators.shape[1])))  # pairs at once, by memory
        lower = np.empty((len(c1), len(domain.pairs)))
        for t in range(len(c1)):
            for start in range(0, len(domain.pairs), rows):
                part = slice(start, start + rows)
                lower[t, part] = _pair_lower(domain, domain.pairs[part], c1[t], c2[t])
        high = np.maximum(domain.box.upper, 0)
        error = _gamma(lower.shape[1]) * np.abs(lower).sum(1)
        # z is within r of the zonotope, on which the program was bounded.
        steep = np.maximum(np.abs(c1), np.abs(c1 + c2)) * (1 + 4 * _U)
        error = error + (steep @ domain.radius) * (1 + _gamma(c1.shape[1]))
        detail = PairBounds(
            domain.center, domain.generators, domain.radius, domain.box, domain.pairs, c1, c2, lower
        )
        return lower.sum(1), error, high, detail

    return program


def _pair_lower(domain: _Domain, pairs, c1, c2) -> np.ndarray:
    """Bounds the program of each pair ``[p]`` over zonotope and box, errors subtracted."""
    center, generators, radius, low, high, c1, c2 = (
        np.concatenate([a, np.zeros_like(a[:1])])[pairs]
        for a in (domain.center, domain.generators, domain.radius, *domain.box, c1, c2)
    )
    low = np.nextafter(low - radius, -np.inf)
    high = np.nextafter(high + radius, np.inf)
    reach = np.abs(generators).sum(2) * (1 + _gamma(generators.shape[2]))  # [p, 2]
    # Four quadrants q: [p, 4, 2], the first coordinate to the left in 0 and 1.
    right = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool)
    k = c1[:, None] + right * c2[:, None]
    k_error = 2 * _U * np.abs(k) + _TINY
    low, high = (
        np.where(right, np.maximum(low[:, None], 0), low[:, None]),
        np.where(right, high[:, None], np.minimum(high[:, None], 0)),
    )
    exists = (low <= high).all(2)
    low = np.where(exists[..., None], low, 0.0)
    high = np.where(exists[..., None], high, 0.0)
    most = np.maximum(np.abs(low), np.abs(high))

    def bound(d, k, k_error):
        """Bounds ``min k^T z`` with ``k - l = d`` ``[p, 4, 2]``, where ``d`` is exact."""
        l = k - d  # noqa: E741
        l_error = 2 * _U * np.abs(l) + k_error + _TINY
        product = np.abs(np.einsum("pqa,pam->pqm", d, generators)).sum(2)
        over_zonotope = np.einsum("pqa,pa->pq", d, center) - product
        size = (np.abs(d) * (np.abs(center) + reach)[:, None]).sum(2)
        corner = np.where(l > 0, l * low, l * high)
        error = _gamma(generators.shape[2] + 4) * size + (l_error * most).sum(2) * (1 + 8 * _U)
        error = error + 16 * _U * (np.abs(corner).sum(2) + np.abs(over_zonotope)) + _TINY
        return over_zonotope + corner.sum(2) - error

    best = np.maximum(bound(np.zeros_like(k), k, k_error), bound(k, k, k_error))
    for axis in (0, 1):
        d = k.copy()
        d[..., axis] -= _best_shift(center, generators, k, low, high, axis)
        best = np.maximum(best, bound(d, k, k_error))
    # A direction in which all of Z lies beyond all of R proves that they do not meet.
    nothing = np.zeros_like(k)
    for sign in (1.0, -1.0):
        d = nothing.copy()
        d[..., 0] = sign
        d[..., 1] = -_best_shift(center, generators, d, low, high, 1)
        exists &= ~(bound(d, nothing, nothing) > 0)
    lower = np.where(exists, best, np.inf).min(1)
    # All four empty can only be rounding in the boxes themselves; the box is then the domain.
    return np.where(np.isfinite(lower), lower, best.min(1))


def _best_shift(center, generators, k, low, high, axis) -> np.ndarray:
    """Finds ``s`` ``[p, 4]`` with the largest ``min_Z (k - s e_axis)^T z + min_R s z_axis``.

    Concave and piecewise linear, with a kink where ``k - s e_axis`` is normal to a generator and
    one at 0: a weighted median of the kinks.
    """
    along, across = generators[:, axis], generators[:, 1 - axis]  # [p, m]
    flat = along == 0
    ratio = np.where(flat, 0.0, across / np.where(flat, 1.0, along))
    kinks = k[..., axis, None] + k[..., 1 - axis, None] * ratio[:, None]  # [p, 4, m]
    kinks = np.concatenate([kinks, np.zeros_like(kinks[..., :1])], axis=-1)
    weights = np.broadcast_to(2 * np.abs(along)[:, None], (*k.shape[:2], along.shape[1]))
    weights = np.concatenate([weights, (high - low)[..., axis, None]], axis=-1)
    order = np.argsort(kinks, axis=-1)
    kinks = np.take_along_axis(kinks, order, -1)
    fall = np.cumsum(np.take_along_axis(weights, order, -1), axis=-1)
    slope = high[..., axis] - (center[:, axis] - np.abs(along).sum(1))[:, None]
    first = np.minimum((fall < slope[..., None]).sum(-1), kinks.shape[-1] - 1)
    shift = np.take_along_axis(kinks, first[..., None], -1)[..., 0]
    return np.where(np.isfinite(shift), shift, 0.0)
