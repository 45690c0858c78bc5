"""Align networks with each other and merge them: Git Re-Basin and PLeaS."""

from jaxml.merging.activations import FeatureMoments, feature_moments
from jaxml.merging.assignment import linear_sum_assignment
from jaxml.merging.compute_budget import (
    LayerCost,
    layer_costs,
    merge_flops,
    solve_ratios,
    uniform_ratios,
    zip_ratios,
)
from jaxml.merging.git_rebasin import (
    MatchResult,
    MergeManyResult,
    activation_matching,
    merge_many,
    ste_matching,
    weight_matching,
)
from jaxml.merging.interpolation import (
    Barrier,
    interpolate,
    loss_barrier,
    repair,
    reset_batch_stats,
)
from jaxml.merging.label_spaces import join_heads, layer_inputs, linear_probe
from jaxml.merging.least_squares import (
    Gram,
    LeastSquaresResult,
    accumulate_gram,
    permuted_least_squares,
    regmean,
    solve_gram,
)
from jaxml.merging.partial_merge import (
    Blocks,
    matched_distances,
    partial_merge,
    select_blocks,
    weight_distances,
)
from jaxml.merging.permutation import (
    AxisRef,
    Group,
    PermutationSpec,
    apply_permutation,
    check_permutation_spec,
    check_permutations,
    compose_permutations,
    derive_permutation_spec,
    identity_permutation,
    invert_permutation,
    random_permutation,
)
from jaxml.merging.pleas import PleasResult, pleas_merge

__all__ = [
    "AxisRef",
    "Barrier",
    "Blocks",
    "FeatureMoments",
    "Gram",
    "Group",
    "LayerCost",
    "LeastSquaresResult",
    "MatchResult",
    "MergeManyResult",
    "PermutationSpec",
    "PleasResult",
    "accumulate_gram",
    "activation_matching",
    "apply_permutation",
    "check_permutation_spec",
    "check_permutations",
    "compose_permutations",
    "derive_permutation_spec",
    "feature_moments",
    "identity_permutation",
    "interpolate",
    "invert_permutation",
    "join_heads",
    "layer_costs",
    "layer_inputs",
    "linear_probe",
    "linear_sum_assignment",
    "loss_barrier",
    "matched_distances",
    "merge_flops",
    "merge_many",
    "partial_merge",
    "permuted_least_squares",
    "pleas_merge",
    "random_permutation",
    "regmean",
    "repair",
    "reset_batch_stats",
    "select_blocks",
    "solve_gram",
    "solve_ratios",
    "ste_matching",
    "uniform_ratios",
    "weight_distances",
    "weight_matching",
    "zip_ratios",
]
