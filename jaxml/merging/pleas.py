"""PLeaS: merge two networks into one of a chosen size, by permutations and least squares.

Ref: Nasery, Hayase, Koh & Oh, "PLeaS: Merging Models with Permutations and Least Squares".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from jaxml.core.types import ApplyFn, Key, PyTree
from jaxml.core.validate import check_finite, check_same_structure
from jaxml.merging.activations import FeatureMoments, feature_moments
from jaxml.merging.compute_budget import (
    check_budget,
    layer_costs,
    merge_flops,
    solve_ratios,
    uniform_ratios,
    zip_ratios,
)
from jaxml.merging.git_rebasin import activation_matching, weight_matching
from jaxml.merging.least_squares import permuted_least_squares
from jaxml.merging.partial_merge import (
    Blocks,
    matched_distances,
    partial_merge,
    select_blocks,
    weight_distances,
)
from jaxml.merging.permutation import Permutations, PermutationSpec, check_permutations

Matching = Literal["activation", "weight"]
Ratios = Literal["qp", "uniform", "zip"]
Solver = Literal["none", "paper", "sequential"]


class PleasResult(NamedTuple):
    """A merged network and how it came about.

    Attributes:
      variables: of the merged network, at its own widths.
      perms: the full matching of B to A.
      ratios: separate fraction asked for in each group.
      blocks: units of each group, shared out.
      flops: multiply-adds relative to one source network, at the widths that came out.
      flops_dense: the same when zero blocks are multiplied too, as dense kernels do.
      before: module path to the mean squared error of the assembled layer (empty without solver).
      after: module path to that of the solved layer.
    """

    variables: PyTree
    perms: dict[str, np.ndarray]
    ratios: dict[str, float]
    blocks: dict[str, Blocks]
    flops: float
    flops_dense: float
    before: dict[str, float]
    after: dict[str, float]


def group_weights(
    distances: Mapping[str, np.ndarray], moments: Sequence[FeatureMoments] | None
) -> dict[str, float]:
    """Says what a separate unit of each group is worth, without an evaluation of accuracy.

    The mean squared distance of matched units over the mean energy of the group's activations: the
    part of a group's signal that merging it would lose. Without moments, the plain mean distance.

    Args:
      distances: from ``matched_distances`` or ``weight_distances``.
      moments: from ``feature_moments``, or None.

    Returns:
      Group name to weight.
    """
    weights = {}
    for name, d in distances.items():
        energy = 1.0
        if moments is not None:
            energy = sum(float(m.squares.mean()) for m in moments if name in m.groups)
        weights[name] = float(d.mean() / energy) if energy > 0 else 0.0
    return weights


def pleas_merge(
    key: Key,
    spec: PermutationSpec,
    apply: ApplyFn,
    a: PyTree,
    b: PyTree,
    batches: Sequence[jax.Array],
    *,
    budget: float = 1.0,
    ratios: Ratios | Mapping[str, float] = "qp",
    matching: Matching | Permutations = "activation",
    solver: Solver = "paper",
    apply_at: Callable[[PyTree], ApplyFn] | None = None,
    ridge: float = 1e-2,
) -> PleasResult:
    """Merges two networks: match, choose what stays apart, assemble, solve layer by layer.

    Args:
      key: order of visits of weight matching.
      spec: permutation groups.
      apply: ``apply(variables, x)`` in evaluation mode.
      a: variables of A.
      b: variables of B, same structure and shapes, any initialisation.
      batches: calibration inputs ``[n, ...]``, without labels. Any inputs will do for a data-free
        merge, another data set or noise among them.
      budget: multiply-adds of the merged network relative to one source, in ``[1, 2]`` (more is
        2), kept up to the rounding of ratios to whole units.
      ratios: ``"qp"`` (the optimum for ``group_weights``), ``"uniform"``, ``"zip"`` (a merged
        prefix), or the separate fraction of each group, in which case ``budget`` has no say.
      matching: ``"activation"``, ``"weight"``, or a matching of B to A.
      solver: ``"none"`` keeps the assembled weights; ``"paper"`` and ``"sequential"`` as in
        ``permuted_least_squares``.
      apply_at: ``variables -> apply`` at the widths of the variables, for example
        ``lambda v: nn.with_widths(model, v).apply``; needed by ``"sequential"``.
      ridge: of ``permuted_least_squares``.

    Returns:
      PleasResult. For networks with BatchNorm, ``reset_batch_stats`` on it is worth a try.

    Raises:
      ValueError: models that differ, NaN in weights or activations, no calibration input, a budget
        below 1, ratios outside ``[0, 1]``, a matching that is no bijection, an unknown option; the
        message names path or group.
    """
    for name, value, legal in (("ratios", ratios, Ratios), ("matching", matching, Matching)):
        if isinstance(value, str) and value not in get_args(legal):
            raise ValueError(f"{name} must be one of {get_args(legal)}, got {value!r}")
    if solver not in get_args(Solver):
        raise ValueError(f"solver must be one of {get_args(Solver)}, got {solver!r}")
    check_budget(budget)
    if solver == "sequential" and apply_at is None:
        raise ValueError("solver 'sequential' needs apply_at, the network at its merged widths")
    check_same_structure(a, b)
    check_finite(a, name="a")
    check_finite(b, name="b")
    batches = list(batches)
    if not batches or any(len(x) == 0 for x in batches):
        raise ValueError("batches is empty: merging needs calibration inputs")
    if matching == "activation":
        perms = activation_matching(spec, apply, a, b, batches).perms
    elif matching == "weight":
        perms = weight_matching(key, spec, a, b).perms
    else:
        check_permutations(spec, matching)
        perms = {name: np.asarray(p) for name, p in matching.items()}
    if matching == "weight":
        moments, distances = None, weight_distances(spec, perms, a, b)
    else:
        moments = feature_moments(spec, apply, a, b, batches)
        distances = matched_distances(spec, perms, moments)
    costs = layer_costs(spec, apply, a, batches[0])
    if ratios == "qp":
        ratios = solve_ratios(costs, group_weights(distances, moments), budget)
    elif isinstance(ratios, str):
        ratios = {"uniform": uniform_ratios, "zip": zip_ratios}[ratios](costs, budget)
    blocks = select_blocks(spec, perms, distances, ratios)
    variables = partial_merge(spec, a, b, blocks)
    before, after = {}, {}
    if solver != "none":
        solved = permuted_least_squares(
            spec, apply, a, b, blocks, variables, batches, mode=solver, ridge=ridge,
            merged_apply=None if apply_at is None else apply_at(variables),
        )  # fmt: skip
        variables, before, after = solved.variables, solved.before, solved.after
    real = {name: block.separate_fraction for name, block in blocks.items()}
    return PleasResult(
        variables,
        perms,
        dict(ratios),
        blocks,
        merge_flops(costs, real),
        merge_flops(costs, real, dense=True),
        before,
        after,
    )
