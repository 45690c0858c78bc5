"""How much of each group to keep apart, so that a merged network fits a compute budget.

Ref: Stoica et al., "ZipIt! Merging Models from Different Tasks without Training", ICLR 2024: the
partial merge of ``zip_ratios``.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import scipy.optimize

from jaxml.core.types import ApplyFn, PyTree
from jaxml.merging.layers import watch_layers
from jaxml.merging.partial_merge import kernel_axes
from jaxml.merging.permutation import PermutationSpec


class LayerCost(NamedTuple):
    """Multiply-adds of one layer for one example, and the groups at its two ends."""

    layer: str
    macs: float
    input: str | None
    output: str | None


def layer_costs(
    spec: PermutationSpec, apply: ApplyFn, variables: PyTree, x: jax.Array
) -> list[LayerCost]:
    """Counts the multiply-adds of every dense and convolution layer, in order of their calls.

    Args:
      spec: permutation groups.
      apply: ``apply(variables, x)``.
      variables: of one of the two networks.
      x: inputs ``[n, ...]``, or their ``jax.ShapeDtypeStruct``.

    Returns:
      One LayerCost a layer. A depthwise convolution has no input group: each unit feeds itself.

    Raises:
      ValueError: a group in no simple place of a kernel; see ``kernel_axes``.
    """
    ends = kernel_axes(spec, variables)
    costs = []

    def count(variables, x):
        def see(layer, z, y):
            kernel = variables["params"]
            for key in layer.path.split("/"):
                kernel = kernel[key]
            macs = kernel["kernel"].size * y[..., 0].size / y.shape[0]
            end = ends[layer.path]
            costs.append(LayerCost(layer.path, float(macs), end.input, end.output))

        return watch_layers(apply, variables, x, see)

    jax.eval_shape(count, variables, x)
    return costs


def merge_flops(
    costs: Sequence[LayerCost], ratios: Mapping[str, float], *, dense: bool = False
) -> float:
    """Returns the multiply-adds of the merged network, as a multiple of one network's.

    With separate fractions ``r_i`` and ``r_o`` at its ends a layer grows by
    ``(1 + r_i)(1 + r_o) - 2 r_i r_o``, since units of A never feed units of B; by ``1 + r`` with
    one group. Between 1 (all merged) and 2 (all separate).

    Args:
      costs: from ``layer_costs``.
      ratios: separate fraction of each group.
      dense: count those zero blocks as well, which is what one dense kernel really multiplies.
    """
    total = 0.0
    for cost in costs:
        r_i = ratios[cost.input] if cost.input else 0.0
        r_o = ratios[cost.output] if cost.output else 0.0
        zeros = 0.0 if dense else 2 * r_i * r_o
        total += cost.macs * ((1 + r_i) * (1 + r_o) - zeros)
    return total / sum(cost.macs for cost in costs)


def uniform_ratios(costs: Sequence[LayerCost], budget: float) -> dict[str, float]:
    """Gives every group the one fraction that uses up the budget.

    Args:
      costs: from ``layer_costs``.
      budget: multiple of one network's multiply-adds, at least 1; from 2 on everything is separate.

    Returns:
      Group name to ratio.

    Raises:
      ValueError: ``budget < 1``.
    """
    names = _groups(costs)
    return dict.fromkeys(names, _largest(lambda t: dict.fromkeys(names, t), costs, budget))


def zip_ratios(costs: Sequence[LayerCost], budget: float) -> dict[str, float]:
    """Merges a prefix of the network and keeps the rest apart, as far as the budget goes.

    The partial merge of ZipIt!: the later a group is made, the earlier it is kept apart.

    Args:
      costs: from ``layer_costs``.
      budget: as in ``uniform_ratios``.

    Returns:
      Group name to 0 or 1.

    Raises:
      ValueError: ``budget < 1``.
    """
    ratios = dict.fromkeys(_groups(costs), 0.0)
    check_budget(budget)
    for name in reversed(list(ratios)):
        if merge_flops(costs, ratios | {name: 1.0}) > budget * (1 + 1e-9):
            break
        ratios[name] = 1.0
    return ratios


def solve_ratios(
    costs: Sequence[LayerCost],
    weights: Mapping[str, float],
    budget: float,
    *,
    n_starts: int = 12,
    seed: int = 0,
) -> dict[str, float]:
    """Maximises ``sum_g weights[g] r_g`` for ``merge_flops(costs, r) <= budget``, ``0 <= r <= 1``.

    The constraint is bilinear, so SLSQP runs from several starts (corners, the uniform ratios,
    random points) and the best feasible end is kept.

    Args:
      costs: from ``layer_costs``.
      weights: group name to what a separate unit fraction is worth, not negative; for example the
        mean of ``matched_distances`` over the energy of the group.
      budget: multiple of one network's multiply-adds, at least 1; from 2 on everything is separate.
      n_starts: SLSQP starts.
      seed: of the random starts.

    Returns:
      Group name to ratio.

    Raises:
      ValueError: ``budget < 1``, a group without a weight, or a weight that is negative or NaN.
    """
    check_budget(budget)
    names = _groups(costs)
    for name in names:
        if name not in weights:
            raise ValueError(f"weights lack group {name!r}")
        if not (np.isfinite(weights[name]) and weights[name] >= 0):
            raise ValueError(f"weight of group {name!r} must not be negative: {weights[name]}")
    if budget >= 2 or not names:
        return dict.fromkeys(names, 1.0)
    if budget == 1:
        return dict.fromkeys(names, 0.0)
    worth = np.array([weights[name] for name in names], float)
    worth = worth / worth.max() if worth.max() > 0 else np.ones_like(worth)

    def named(r):
        return dict(zip(names, map(float, r), strict=True))

    rng = np.random.default_rng(seed)
    even = np.array([uniform_ratios(costs, budget)[name] for name in names])
    starts = [even, np.zeros(len(names))]
    starts += [np.eye(len(names))[i] for i in np.argsort(-worth)[: n_starts // 3]]
    starts += list(rng.uniform(size=(max(n_starts - len(starts), 0), len(names))))
    best, best_worth = even, float(worth @ even)
    for start in starts:
        found = scipy.optimize.minimize(
            lambda r: -float(worth @ r),
            start,
            jac=lambda r: -worth,
            bounds=[(0, 1)] * len(names),
            constraints=[{"type": "ineq", "fun": lambda r: budget - merge_flops(costs, named(r))}],
            method="SLSQP",
            options={"maxiter": 300, "ftol": 1e-10},
        )
        # Back to the feasible side of the constraint, along the ray to the fully merged network.
        r = np.clip(found.x, 0, 1)
        r = r * _largest(lambda t, r=r: named(t * r), costs, budget)
        if worth @ r > best_worth:
            best, best_worth = r, float(worth @ r)
    return named(best)


def _groups(costs: Sequence[LayerCost]) -> list[str]:
    """Lists the groups in the order in which layers produce them."""
    return list(dict.fromkeys(g for c in costs for g in (c.input, c.output) if g))


def check_budget(budget: float) -> None:
    """Raises ValueError for less than the cost of one network."""
    if not budget >= 1:
        raise ValueError(f"budget must be at least 1, the cost of one network, got {budget}")


def _largest(ray, costs, budget) -> float:
    """Finds the largest ``t`` in ``[0, 1]`` with ``merge_flops(ray(t))`` within the budget."""
    check_budget(budget)
    if merge_flops(costs, ray(1.0)) <= budget:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if merge_flops(costs, ray(middle)) <= budget:
            low = middle
        else:
            high = middle
    return low
