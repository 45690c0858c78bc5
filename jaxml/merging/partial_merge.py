"""Two networks in one of any width in between: matched units merged, the others kept apart.

A group of ``d`` units with separate fraction ``r`` keeps ``k = d - round(r d)`` matched pairs as
merged units ``m`` and gives the rest to A (``sA``) and to B (``sB``): ``k + 2 (d - k)`` units, in
the order ``[m | sA | sB]``. ``r = 0`` is Git Re-Basin, ``r = 1`` the two networks side by side.

Ref: Nasery, Hayase, Koh & Oh, "PLeaS: Merging Models with Permutations and Least Squares".
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.core.tree import from_paths, to_paths
from jaxml.core.types import PyTree
from jaxml.core.validate import check_finite, check_same_structure
from jaxml.merging.activations import FeatureMoments
from jaxml.merging.permutation import (
    AxisRef,
    Permutations,
    PermutationSpec,
    apply_permutation,
    check_permutations,
)

MERGED, FROM_A, FROM_B = 0, 1, 2


class Blocks(NamedTuple):
    """How the units of one group are shared out.

    Attributes:
      merged_a: ``[k]`` units of A that are merged, ascending.
      merged_b: ``[k]`` their partners in B.
      separate_a: ``[d - k]`` units of A that stay apart.
      separate_b: ``[d - k]`` units of B that stay apart.
    """

    merged_a: np.ndarray
    merged_b: np.ndarray
    separate_a: np.ndarray
    separate_b: np.ndarray

    @property
    def width(self) -> int:
        """Units of the merged group, ``k + 2 (d - k)``."""
        return len(self.merged_a) + len(self.separate_a) + len(self.separate_b)

    @property
    def separate_fraction(self) -> float:
        """Share of each network's units that stay apart, ``(d - k) / d``: whole units only."""
        return len(self.separate_a) / (len(self.merged_a) + len(self.separate_a))

    @property
    def kinds(self) -> np.ndarray:
        """``[width]``: MERGED, FROM_A or FROM_B."""
        counts = (len(self.merged_a), len(self.separate_a), len(self.separate_b))
        return np.repeat((MERGED, FROM_A, FROM_B), counts)

    def sources(self, which: int) -> np.ndarray:
        """``[width]``: the unit of A (``which`` FROM_A) or B behind each new unit, -1 for none."""
        merged = self.merged_a if which == FROM_A else self.merged_b
        none_a, none_b = (np.full(len(s), -1) for s in (self.separate_a, self.separate_b))
        if which == FROM_A:
            return np.concatenate([merged, self.separate_a, none_b])
        return np.concatenate([merged, none_a, self.separate_b])


def matched_distances(
    spec: PermutationSpec, perms: Permutations, moments: Sequence[FeatureMoments]
) -> dict[str, np.ndarray]:
    """Sums the squared distance between the activations of each unit and of its partner.

    Args:
      spec: permutation groups.
      perms: matching of B to A, every group.
      moments: from ``feature_moments``.

    Returns:
      Group name to ``[d]`` float64: ``sum (z_a[i] - z_b[p[i]])^2`` over samples, positions and
      features.

    Raises:
      ValueError: a group without a permutation, or one that shares an axis with another: its units
        have no distance of their own.
    """
    _check_groups(spec, perms=perms)
    distances = {name: np.zeros(g.size) for name, g in spec.groups.items()}
    for m in moments:
        if len(m.groups) != 1:
            raise ValueError(f"groups {m.groups} are factors of one axis: they cannot be split")
        (name,) = m.groups
        p, rows = np.asarray(perms[name]), np.arange(m.shape[0])
        distances[name] += np.maximum(m.squares[0] + m.squares[1][p] - 2 * m.cross[rows, p], 0)
    return distances


def weight_distances(
    spec: PermutationSpec, perms: Permutations, a: PyTree, b: PyTree
) -> dict[str, np.ndarray]:
    """Sums the squared distance between the parameters of each unit and of its partner.

    The data-free counterpart of ``matched_distances``; ``batch_stats`` do not count.

    Returns:
      Group name to ``[d]`` float64.

    Raises:
      ValueError: a group without a permutation.
    """
    _check_groups(spec, perms=perms)
    leaves_a = to_paths(a)
    leaves_b = to_paths(apply_permutation(spec, perms, b))
    distances = {name: np.zeros(g.size) for name, g in spec.groups.items()}
    for path, view in spec.leaf_views(a).items():
        if path.startswith("batch_stats/"):
            continue
        change = np.asarray(leaves_a[path], np.float64) - np.asarray(leaves_b[path], np.float64)
        squared = np.square(change).reshape(view.shape)
        for dim, name in view.slots:
            others = tuple(d for d in range(squared.ndim) if d != dim)
            distances[name] += squared.sum(others)
    return distances


def select_blocks(
    spec: PermutationSpec,
    perms: Permutations,
    distances: Mapping[str, np.ndarray],
    ratios: Mapping[str, float],
) -> dict[str, Blocks]:
    """Merges the ``k = d - round(r d)`` closest pairs of every group, exactly ``k`` under ties too.

    Args:
      spec: permutation groups.
      perms: matching of B to A, every group.
      distances: group name to ``[d]``, the distance of unit ``i`` of A to its partner.
      ratios: group name to the separate fraction ``r`` in ``[0, 1]``.

    Returns:
      Group name to Blocks.

    Raises:
      ValueError: a group is missing, a ratio is outside ``[0, 1]`` or a distance is NaN; the
        message names the group.
    """
    check_permutations(spec, perms)
    _check_groups(spec, perms=perms, distances=distances, ratios=ratios)
    blocks = {}
    for name, group in spec.groups.items():
        r, d = float(ratios[name]), group.size
        if not 0 <= r <= 1:
            raise ValueError(f"ratio of group {name!r} must lie in [0, 1], got {r}")
        if np.shape(distances[name]) != (d,) or np.isnan(distances[name]).any():
            raise ValueError(f"distances of group {name!r} must be {d} numbers, none of them NaN")
        order = np.argsort(distances[name], kind="stable")
        k = d - round(r * d)
        merged, separate = np.sort(order[:k]), np.sort(order[k:])
        p = np.asarray(perms[name])
        blocks[name] = Blocks(merged, p[merged], separate, np.sort(p[separate]))
    return blocks


class KernelAxes(NamedTuple):
    """The two ends of a dense or convolution kernel ``[..., inputs, outputs]``.

    Attributes:
      input: the group on the input axis, or None.
      output: the group on the output axis, or None.
      input_factors: factored shape of the input axis (a flatten leaves positions in front).
      input_index: the factor that ``input`` permutes.
    """

    input: str | None
    output: str | None
    input_factors: tuple[int, ...]
    input_index: int


def kernel_axes(spec: PermutationSpec, variables: PyTree) -> dict[str, KernelAxes]:
    """Finds the groups at both ends of every Flax kernel, by module path.

    Raises:
      ValueError: a group that sits anywhere else in a kernel, or two groups on one axis.
    """
    refs: dict[str, list[tuple[AxisRef, str]]] = {}
    for name, group in spec.groups.items():
        for ref in group.axes:
            refs.setdefault(ref.path, []).append((ref, name))
    found = {}
    for path, leaf in to_paths(variables).items():
        if not path.endswith("/kernel"):
            continue
        ends: dict[int, tuple[AxisRef, str]] = {}
        for ref, name in refs.get(path, ()):
            end = ref.axis - leaf.ndim
            if end not in (-1, -2) or end in ends or (end == -1 and len(ref.factor_shape) > 1):
                raise ValueError(f"group {name!r} has no simple place in {path!r}: cannot merge it")
            ends[end] = ref, name
        source, target = ends.get(-2), ends.get(-1)
        found[_layer(path)] = KernelAxes(
            source[1] if source else None,
            target[1] if target else None,
            source[0].factor_shape if source else (leaf.shape[-2],),
            source[0].factor_index if source else 0,
        )
    return found


def partial_merge(
    spec: PermutationSpec, a: PyTree, b: PyTree, blocks: Mapping[str, Blocks]
) -> PyTree:
    """Assembles the merged network from blocks of A and B.

    For a kernel entry from input unit ``i`` to output unit ``o``, with ``A`` absent where ``i`` is
    ``sB`` and ``B`` absent where ``i`` is ``sA``:

    | output | value |
    |---|---|
    | ``m``, or no group | ``(A + B) / 2``, an absent one counting 0 |
    | ``sA`` | ``A``, 0 where absent |
    | ``sB`` | ``B``, 0 where absent |

    So units of A never feed units of B, and with ``r = 1`` everywhere the merged network computes
    the mean of the outputs of both (unless a LayerNorm, RMSNorm or GroupNorm mixes their units).
    Biases, norm parameters and running statistics follow the rule of outputs.

    Args:
      spec: permutation groups.
      a: variables of A.
      b: variables of B, not permuted.
      blocks: from ``select_blocks``.

    Returns:
      Variables of the merged network; unequal widths, so rebuild the module (``nn.with_widths``).

    Raises:
      ValueError: models that differ, a NaN, a missing group, a group in no simple place.
    """
    check_same_structure(a, b)
    check_finite(a, name="a")
    check_finite(b, name="b")
    _check_groups(spec, blocks=blocks)
    ends = kernel_axes(spec, a)
    # In numpy: every new width would cost jax a handful of small compilations a leaf.
    leaves_a, leaves_b = (to_paths(jax.tree.map(np.asarray, v)) for v in (a, b))
    merged = {path: (leaf + leaves_b[path]) / 2 for path, leaf in leaves_a.items()}
    for path, view in spec.leaf_views(a).items():
        is_kernel = path.endswith("/kernel")
        has_input = is_kernel and ends[_layer(path)].input is not None
        if len(view.slots) > 1 + is_kernel:
            raise ValueError(f"{path!r} has groups on several axes: cannot merge it")
        # Slots are ordered, so the input comes first; also where both are of one group.
        outputs = view.slots[1:] if has_input else view.slots
        total = 0
        for which, leaf in ((FROM_A, leaves_a[path]), (FROM_B, leaves_b[path])):
            piece = leaf.reshape(view.shape)
            for dim, name in view.slots:
                piece = _take(piece, blocks[name].sources(which), dim)
            if not outputs:
                piece = piece / 2
            for dim, name in outputs:
                share = np.where(blocks[name].kinds == MERGED, 0.5, 1.0)
                piece = piece * _along(share, dim, piece.ndim).astype(piece.dtype)
            total = total + piece
        shape = list(leaves_a[path].shape)
        for name in {name for _, name in view.slots}:
            group = spec.groups[name]
            for ref in group.axes:
                if ref.path == path:
                    shape[ref.axis] = shape[ref.axis] // group.size * blocks[name].width
        merged[path] = total.reshape(shape)
    return jax.tree.map(jnp.asarray, from_paths(a, merged))


def _check_groups(spec: PermutationSpec, **given: Mapping[str, object]) -> None:
    for what, by_group in given.items():
        if missing := sorted(set(spec.groups) - set(by_group)):
            raise ValueError(f"{what} lack group {missing[0]!r}")


def _layer(path: str) -> str:
    return path.removeprefix("params/").removesuffix("/kernel")


def _take(x: np.ndarray, index: np.ndarray, dim: int) -> np.ndarray:
    """Takes entries along ``dim``; 0 where the index is -1."""
    return np.take(x, np.maximum(index, 0), dim) * _along(index >= 0, dim, x.ndim).astype(x.dtype)


def _along(values: np.ndarray, dim: int, ndim: int) -> np.ndarray:
    return values.reshape([-1 if d == dim else 1 for d in range(ndim)])
