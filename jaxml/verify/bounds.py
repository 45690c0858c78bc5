"""Bounds by intervals and by linear relaxations: IBP, KW (Fast-Lin), CROWN and alpha-CROWN.

Every method is ``method(net, box, spec, bounds=None) -> [t]``: lower bounds of
``spec.weight @ z_L + spec.offset``, in the arithmetic of its arguments; ``certify`` gives those that
rounding cannot have made. ``*_bounds(net, box)`` give boxes of all pre-activations.
"""  # noqa: E501

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxml.verify.dual import (
    Ascent,
    Multipliers,
    ascent,
    crown_slopes,
    dual_value,
    kw_slopes,
    multipliers,
    relu_program_box,
)
from jaxml.verify.network import Net, absolute, affine, linear, transpose
from jaxml.verify.problem import Bounds, Box, Spec, intersect

_ROWS_AT_ONCE = 2048


def interval_bounds(net: Net, box: Box) -> Bounds:
    """Propagates a box by interval arithmetic (IBP)."""
    found: list[Box] = []
    for layer in net[:-1]:
        box = Box(*map(jax.nn.relu, box)) if found else box
        center, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
        center, radius = affine(layer, center), linear(absolute(layer), radius)
        box = Box(center - radius, center + radius)
        found.append(box)
    return tuple(found)


def kw_bounds(net: Net, box: Box) -> Bounds:
    """Bounds each pre-activation by the relaxation of Wong & Kolter, and by intervals."""
    return _backward_bounds(net, box, kw_slopes)


def crown_bounds(net: Net, box: Box) -> Bounds:
    """Bounds each pre-activation by CROWN (Zhang et al. 2018), and by intervals."""
    return _backward_bounds(net, box, crown_slopes)


def _backward_bounds(net: Net, box: Box, slopes: Callable) -> Bounds:
    def layer_bounds(bounds: Bounds, k: int) -> Box:
        def lower(spec):
            rhos = multipliers(net[: k + 1], spec, bounds, slopes(bounds))
            return box_dual_value(net[: k + 1], box, spec, bounds, rhos)

        return two_sided(lower, net[k].n_out, box.lower.dtype)

    intervals = interval_bounds(net, box)
    found = intervals[:1]  # intervals are exact in the first layer
    for k in range(1, len(net) - 1):
        found = (*found, intersect(intervals[k], layer_bounds(found, k)))
    return found


def two_sided(lower: Callable[[Spec], Float[Array, " t"]], n: int, dtype) -> Box:
    """Bounds each of ``n`` values from both sides by a method for lower bounds.

    Rows are walked over in chunks when there are many, to bound the memory.
    """

    def rows(index):
        identity = (index[:, None] == jnp.arange(n)[None]).astype(dtype)
        zero = jnp.zeros(len(index), dtype)
        return lower(Spec(identity, zero)), -lower(Spec(-identity, zero))

    if n <= _ROWS_AT_ONCE:
        return Box(*rows(jnp.arange(n)))
    n_chunks = -(-n // _ROWS_AT_ONCE)
    index = jnp.minimum(jnp.arange(n_chunks * _ROWS_AT_ONCE), n - 1).reshape(n_chunks, -1)
    return Box(*(side.ravel()[:n] for side in jax.lax.map(rows, index)))


def box_dual_value(
    net: Net, box: Box, spec: Spec, bounds: Bounds, rhos: Multipliers
) -> Float[Array, " t"]:
    """Evaluates the dual over boxes (Bunel et al. 2020); at most the triangle relaxation's LP."""
    programs = [functools.partial(relu_program_box, b) for b in bounds]
    return dual_value(net, box, spec, programs, rhos)


def ibp(net: Net, box: Box, spec: Spec, bounds: Bounds | None = None) -> Float[Array, " t"]:
    """Bounds a spec by intervals, the spec merged with the last layer."""
    bounds = interval_bounds(net, box) if bounds is None else bounds
    rows = transpose(net[-1], spec.weight)
    lower, upper = map(jax.nn.relu, bounds[-1]) if bounds else box
    lowest = jnp.minimum(rows * lower[None], rows * upper[None]).sum(-1)
    bias = jnp.asarray(net[-1].bias, lowest.dtype)
    constant = jnp.matmul(spec.weight, bias, precision=jax.lax.Precision.HIGHEST)
    return lowest + constant + spec.offset


def kw(net: Net, box: Box, spec: Spec, bounds: Bounds | None = None) -> Float[Array, " t"]:
    """Bounds a spec by the relaxation of Wong & Kolter (2018), one backward pass."""
    bounds = kw_bounds(net, box) if bounds is None else bounds
    return box_dual_value(net, box, spec, bounds, start(net, spec, bounds, "kw"))


def crown(net: Net, box: Box, spec: Spec, bounds: Bounds | None = None) -> Float[Array, " t"]:
    """Bounds a spec by CROWN (Zhang et al. 2018), one backward pass."""
    bounds = crown_bounds(net, box) if bounds is None else bounds
    return box_dual_value(net, box, spec, bounds, start(net, spec, bounds, "crown"))


def alpha_crown(
    net: Net, box: Box, spec: Spec, bounds: Bounds | None = None, **options
) -> Float[Array, " t"]:
    """Bounds a spec by CROWN with optimised lower slopes (Xu et al. 2021); see ``alpha_ascent``."""
    bounds = crown_bounds(net, box) if bounds is None else bounds
    return alpha_ascent(net, box, spec, bounds, **options).lower


def alpha_ascent(
    net: Net,
    box: Box,
    spec: Spec,
    bounds: Bounds,
    *,
    n_steps: int = 100,
    learning_rate: float = 0.1,
) -> Ascent:
    """Optimises CROWN's lower slopes for each row of a spec, from CROWN's own, over given boxes.

    Returns:
      Ascent, whose ``params`` are the slopes ``[t, n]`` of each relu; ``multipliers`` takes them.
    """

    def value(slopes):
        return box_dual_value(net, box, spec, bounds, multipliers(net, spec, bounds, slopes))

    n_rows = len(spec.weight)
    slopes = tuple(jnp.tile(s[None], (n_rows, 1)) for s in crown_slopes(bounds))

    def project(slopes):
        return tuple(jnp.clip(s, 0, 1) for s in slopes)

    return ascent(
        value, slopes, n_steps=n_steps, learning_rate=learning_rate, decay=0.98, decay_every=1,
        project=project,
    )  # fmt: skip


def alpha_bounds(
    net: Net, box: Box, bounds: Bounds | None = None, *, n_steps: int = 20, **options
) -> Bounds:
    """Tightens every box by alpha-CROWN, layer by layer, each on the boxes found so far."""
    bounds = crown_bounds(net, box) if bounds is None else bounds
    found = bounds[:1]
    for k in range(1, len(net) - 1):
        before = found

        def lower(spec, before=before, k=k):
            result = alpha_ascent(net[: k + 1], box, spec, before, n_steps=n_steps, **options)
            return result.lower

        sides = two_sided(lower, net[k].n_out, box.lower.dtype)
        found = (*found, intersect(bounds[k], sides))
    return found


STARTS = ("zero", "kw", "crown", "alpha")


def start(
    net: Net, spec: Spec, bounds: Bounds, name: str, *, box: Box | None = None, n_steps: int = 50
) -> Multipliers:
    """Returns multipliers to begin an ascent with.

    Args:
      net: ``L`` layers.
      spec: ``t`` rows.
      bounds: of the ``L - 1`` pre-activations.
      name: ``"zero"``, or the method whose bound the dual over boxes then has: ``"kw"``, ``"crown"``
        or ``"alpha"``.
      box: of the inputs; ``"alpha"`` needs it.
      n_steps: of ``"alpha"``.

    Raises:
      ValueError: another name, or ``"alpha"`` without ``box``.
    """  # noqa: E501
    if name not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}; got {name!r}")
    if name == "zero":
        rows, dtype = len(spec.weight), spec.offset.dtype
        return tuple(jnp.zeros((rows, len(b.lower)), dtype) for b in bounds)
    if name == "alpha":
        if box is None:
            raise ValueError("start 'alpha' needs box, the inputs")
        slopes = alpha_ascent(net, box, spec, bounds, n_steps=n_steps).params
    else:
        slopes = kw_slopes(bounds) if name == "kw" else crown_slopes(bounds)
    return multipliers(net, spec, bounds, slopes)
