"""ZonoDual: zonotopes inside a Lagrangian decomposition (Jordan, Hayase, Dimakis & Oh 2022).

Tighter than the linear-programming relaxation, which looks at one neuron at a time: each layer's
relu program is solved over the intersection of a zonotope and a box, cut into pairs of coordinates
(ZD-2D), or into larger groups at the end (ZD-MIP).
"""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxml.core.types import Key
from jaxml.verify import bounds as bounds_lib
from jaxml.verify.dual import Ascent, Multipliers, ascent, dual_value
from jaxml.verify.groups import merged_bound
from jaxml.verify.network import Net
from jaxml.verify.outward import Certificate, certify
from jaxml.verify.partitions import partition
from jaxml.verify.polygons import PairDomain, pair_domain, relu_program_2d
from jaxml.verify.problem import Bounds, Box, Spec, check_problem, intersect
from jaxml.verify.zonotope import Layers, propagate


def pair_domains(
    net: Net, layers: Layers, *, rule: str = "similarity", key: Key | None = None
) -> tuple[PairDomain, ...]:
    """Cuts every layer's domain into pairs and computes their candidates."""
    keys = [None] * len(net) if key is None else jax.random.split(key, len(net))
    return tuple(
        pair_domain(z, box, partition(z, rule, key=k, layer=layer))
        for z, box, layer, k in zip(*layers, net[:-1], keys[:-1], strict=True)
    )


def pair_dual_value(
    net: Net, box: Box, spec: Spec, domains: tuple[PairDomain, ...], rhos: Multipliers
) -> Float[Array, " t"]:
    """Evaluates the dual over zonotopes and boxes, with exact programs over pairs."""
    programs = [functools.partial(relu_program_2d, domain) for domain in domains]
    return dual_value(net, box, spec, programs, rhos)


def dual_ascent(
    net: Net,
    box: Box,
    spec: Spec,
    domains: tuple[PairDomain, ...],
    rhos: Multipliers,
    *,
    n_steps: int,
    **options,
) -> Ascent:
    """Raises the dual over pairs from given multipliers; ``options`` are those of ``ascent``."""

    def value(rhos):
        return pair_dual_value(net, box, spec, domains, rhos)

    return ascent(value, rhos, n_steps=n_steps, **options)


def box_ascent(
    net: Net, box: Box, spec: Spec, bounds: Bounds, rhos: Multipliers, *, n_steps: int, **options
) -> Ascent:
    """Raises the dual over boxes (Bunel et al. 2020), whose optimum is the triangle LP's."""

    def value(rhos):
        return bounds_lib.box_dual_value(net, box, spec, bounds, rhos)

    return ascent(value, rhos, n_steps=n_steps, **options)


class Solution(NamedTuple):
    """What an ascent has found, in its own precision.

    Attributes:
      lower: ``[t]``.
      trace: best value so far before each step and at the end ``[n_steps + 1, t]``.
      rhos: multipliers with ``lower``.
      pairs: partition of each pre-activation.
      bounds: boxes of the pre-activations, within the zonotopes' hulls.
      layer_rhos: with ``layer_steps``, ``{k: multipliers}`` that tightened box ``k``.
    """

    lower: Float[Array, " t"]
    trace: Float[Array, "s t"]
    rhos: Multipliers
    pairs: tuple[Int32[Array, "p 2"], ...]
    bounds: Bounds
    layer_rhos: dict[int, Multipliers]


def zonodual_ascent(
    net: Net,
    box: Box,
    spec: Spec,
    bounds: Bounds | None = None,
    *,
    rule: str = "similarity",
    start: str = "crown",
    n_steps: int = 500,
    layer_steps: int = 0,
    key: Key | None = None,
    max_order: int | None = None,
    **options,
) -> Solution:
    """Bounds a spec by ZD-2D: boxes, box-informed zonotopes, pairs, start, ascent.

    Pure, for one input; jit with the names below static, vmap over boxes (and specs). The result
    is as good as its arithmetic: ``zonodual_bound`` certifies it.

    Args:
      net: ``L`` layers.
      box: of the inputs.
      spec: ``t`` rows.
      bounds: sound boxes of the pre-activations; None takes CROWN's.
      rule: of ``partition``; static.
      start: ``"zero"``, ``"kw"``, ``"crown"`` or ``"alpha"``; static.
      n_steps: of the ascent; static.
      layer_steps: steps of the same ascent for every hidden neuron, which tightens the boxes layer
        by layer; 0 goes without. Static.
      key: of rule ``"random"``.
      max_order: of ``propagate``; static.
      **options: of ``ascent``; ``decay_every`` is static.

    Returns:
      Solution.
    """
    bounds = bounds_lib.crown_bounds(net, box) if bounds is None else bounds
    layer_rhos: dict[int, Multipliers] = {}
    if layer_steps:
        for k in range(1, len(net) - 1):
            layers = propagate(net[: k + 1], box, bounds[:k], max_order=max_order)
            domains = pair_domains(net[: k + 1], layers, rule=rule, key=key)
            identity = jnp.eye(net[k].n_out, dtype=box.lower.dtype)
            both = jnp.concatenate([identity, -identity])
            rows = Spec(both, jnp.zeros(len(both), both.dtype))
            rhos = bounds_lib.start(net[: k + 1], rows, bounds[:k], start, box=box)
            found = dual_ascent(
                net[: k + 1], box, rows, domains, rhos, n_steps=layer_steps, **options
            )
            lower, upper = jnp.split(found.lower, 2)
            tight = intersect(bounds[k], Box(lower, -upper))
            bounds = (*bounds[:k], tight, *bounds[k + 1 :])
            layer_rhos[k] = found.params
    layers = propagate(net, box, bounds, max_order=max_order)
    domains = pair_domains(net, layers, rule=rule, key=key)
    # The slopes of these boxes, and not of their tighter intersections: so no start is below CROWN.
    rhos = bounds_lib.start(net, spec, bounds, start, box=box)
    found = dual_ascent(net, box, spec, domains, rhos, n_steps=n_steps, **options)
    pairs = tuple(domain.pairs for domain in domains)
    return Solution(found.lower, found.trace, found.params, pairs, layers.bounds, layer_rhos)


@functools.partial(
    jax.jit,
    static_argnames=("rule", "start", "n_steps", "layer_steps", "max_order", "decay_every"),
)
def _solve(net, box, spec, bounds, key, options, **static):
    return zonodual_ascent(net, box, spec, bounds, key=key, **options, **static)


class Result(NamedTuple):
    """Bounds of one spec.

    Attributes:
      lower: certified in float64 with outward rounding ``[t]``; the spec holds where positive.
      mip_lower: raised by ZD-MIP, with the solver's tolerances subtracted; None without groups.
      plain: what the ascent itself found, in its precision ``[t]``.
      trace: ``[n_steps + 1, t]``, of the ascent.
      certificate: how ``lower`` came about.
      seconds: of boxes to ascent (compilation included the first time), certificate and MIP.
    """

    lower: np.ndarray
    mip_lower: np.ndarray | None
    plain: np.ndarray
    trace: np.ndarray
    certificate: Certificate
    seconds: dict[str, float]


def zonodual_bound(
    net: Net,
    box: Box,
    spec: Spec,
    bounds: Bounds | None = None,
    *,
    rule: str = "similarity",
    start: str = "crown",
    n_steps: int = 500,
    layer_steps: int = 0,
    learning_rate: float = 1e-2,
    decay: float = 0.75,
    decay_every: int = 100,
    group_size: int = 0,
    time_limit: float = 10.0,
    key: Key | None = None,
    max_order: int | None = None,
) -> Result:
    """Bounds a spec by ZonoDual and certifies the bound; the one call for users.

    Compiled once for each network architecture, number of rows and set of the static options, not
    for weights, inputs or radii. Runs in float32, or in float64 inside ``jax.enable_x64``.

    Args:
      net: ``L`` layers.
      box: of the inputs.
      spec: ``t`` rows.
      bounds: sound boxes of the pre-activations that steer the ascent; the certificate computes
        CROWN's own. None takes CROWN's.
      rule: how coordinates are paired, see ``partition``.
      start: ``"zero"``, ``"kw"``, ``"crown"`` or ``"alpha"``.
      n_steps: of the ascent.
      layer_steps: see ``zonodual_ascent``.
      learning_rate: of Adam.
      decay: of the learning rate.
      decay_every: steps.
      group_size: of ZD-MIP in the last relu layer; 0 goes without.
      time_limit: seconds for each group.
      key: of rule ``"random"``.
      max_order: generators kept for each value while ascending.

    Returns:
      Result.

    Raises:
      ValueError: what ``check_problem`` refuses, an unknown rule or start, a bad group size.
    """
    check_problem(net, box, spec)
    if group_size and group_size < 2:
        raise ValueError(f"group_size must be 0 or at least 2, got {group_size}")
    if n_steps < 0 or layer_steps < 0:
        raise ValueError(f"n_steps must not be negative, got {n_steps} and {layer_steps}")
    clock = time.perf_counter()
    options = {"learning_rate": learning_rate, "decay": decay}
    arrays = jax.tree.map(np.asarray, (net, box, spec, bounds))
    solution = jax.device_get(
        _solve(
            *arrays, key, options, rule=rule, start=start, n_steps=n_steps,
            layer_steps=layer_steps, max_order=max_order, decay_every=decay_every,
        )
    )  # fmt: skip
    seconds = {"ascent": time.perf_counter() - clock}
    clock = time.perf_counter()
    certificate = certify(
        net, box, spec, solution.rhos, solution.pairs, layer_rhos=solution.layer_rhos
    )
    seconds["certify"] = time.perf_counter() - clock
    merged = None
    if group_size:
        clock = time.perf_counter()
        sizes = [0] * (len(net) - 2) + [group_size] * (len(net) > 1)
        merged = merged_bound(certificate, sizes=sizes, time_limit=time_limit)
        seconds["mip"] = time.perf_counter() - clock
    return Result(certificate.lower, merged, solution.lower, solution.trace, certificate, seconds)
