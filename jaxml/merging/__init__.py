"""Align networks with each other and merge them: Git Re-Basin."""

from jaxml.merging.assignment import linear_sum_assignment
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

__all__ = [
    "AxisRef",
    "Barrier",
    "Group",
    "MatchResult",
    "MergeManyResult",
    "PermutationSpec",
    "activation_matching",
    "apply_permutation",
    "check_permutation_spec",
    "check_permutations",
    "compose_permutations",
    "derive_permutation_spec",
    "identity_permutation",
    "interpolate",
    "invert_permutation",
    "linear_sum_assignment",
    "loss_barrier",
    "merge_many",
    "random_permutation",
    "repair",
    "reset_batch_stats",
    "ste_matching",
    "weight_matching",
]
