"""Permutation specs: which units of a network may be renamed without changing its function.

A *group* is a set of (parameter path, axis) pairs that one permutation has to move together. A
permutation ``p`` of a group means "new unit ``i`` is old unit ``p[i]``" everywhere in this package
(scipy's column indices follow the same convention).
"""

import dataclasses
import itertools
import json
import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.core.rng import named_key
from jaxml.core.tree import from_paths, to_paths
from jaxml.core.types import ApplyFn, Key, PyTree
from jaxml.merging.symmetry import ProgramAxes, trace_axes

Permutations = Mapping[str, jax.Array]
"""Group name to a permutation ``[size]`` of int32; a group that is absent stays as it is."""


class AxisRef(NamedTuple):
    """One factor of one axis of one parameter.

    Attributes:
      path: leaf of the variables, for example ``"params/Dense_0/kernel"``.
      axis: array axis of that leaf.
      factor_shape: C-ordered factors whose product is the size of the axis; ``(size,)`` when the
        axis moves as a whole.
      factor_index: the factor that the group permutes.
    """

    path: str
    axis: int
    factor_shape: tuple[int, ...]
    factor_index: int


class Group(NamedTuple):
    """Axes that move together: ``size`` units and the places where they appear."""

    size: int
    axes: tuple[AxisRef, ...]


class LeafView(NamedTuple):
    """A leaf in factored shape, with the (dimension, group) pairs that move."""

    shape: tuple[int, ...]
    slots: tuple[tuple[int, str], ...]


@dataclasses.dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetries of one network.

    Attributes:
      groups: group name to Group.
      unknown_primitives: operations the derivation had no rule for; what they touch is left out,
        so the spec is valid and may be smaller than it could be.
    """

    groups: Mapping[str, Group]
    unknown_primitives: tuple[str, ...] = ()

    def __hash__(self):
        return hash((tuple(self.groups.items()), self.unknown_primitives))

    def to_json(self) -> str:
        """Writes the spec as JSON; ``from_json`` reads it back."""
        groups = {
            name: {"size": group.size, "axes": [ref._asdict() for ref in group.axes]}
            for name, group in self.groups.items()
        }
        return json.dumps(
            {"groups": groups, "unknown_primitives": self.unknown_primitives}, indent=1
        )

    @classmethod
    def from_json(cls, text: str) -> "PermutationSpec":
        """Reads what ``to_json`` wrote."""
        raw = json.loads(text)
        groups = {
            name: Group(
                g["size"],
                tuple(
                    AxisRef(r["path"], r["axis"], tuple(r["factor_shape"]), r["factor_index"])
                    for r in g["axes"]
                ),
            )
            for name, g in raw["groups"].items()
        }
        return cls(groups, tuple(raw["unknown_primitives"]))

    def leaf_views(self, variables: PyTree) -> dict[str, LeafView]:
        """Lists the leaves that move, each in factored shape.

        Raises:
          ValueError: a leaf of the spec is missing or has another shape.
        """
        shapes = {path: tuple(leaf.shape) for path, leaf in to_paths(variables).items()}
        by_leaf: dict[str, list[tuple[AxisRef, str]]] = {}
        for name, group in self.groups.items():
            for ref in group.axes:
                by_leaf.setdefault(ref.path, []).append((ref, name))
        views = {}
        for path, refs in by_leaf.items():
            if path not in shapes:
                raise ValueError(f"the spec names {path!r}, which the variables do not have")
            factors = [(size,) for size in shapes[path]]
            for ref, name in refs:
                if (
                    ref.axis >= len(factors)
                    or math.prod(ref.factor_shape) != (shapes[path][ref.axis])
                ):
                    raise ValueError(
                        f"group {name!r} needs {math.prod(ref.factor_shape)} entries on axis "
                        f"{ref.axis} of {path!r}, whose shape is {shapes[path]}"
                    )
                factors[ref.axis] = ref.factor_shape
            offsets = list(itertools.accumulate(map(len, factors), initial=0))
            slots = sorted((offsets[r.axis] + r.factor_index, name) for r, name in refs)
            views[path] = LeafView(tuple(s for f in factors for s in f), tuple(slots))
        return views


def derive_permutation_spec(apply: ApplyFn, variables: PyTree, *inputs: PyTree) -> PermutationSpec:
    """Derives the permutation groups of a network from its jaxpr.

    Nothing is executed, and no architecture is known by name: the axes of every parameter are
    followed through the traced program (see ``jaxml.merging.symmetry``). Git Re-Basin [1] writes
    these tables by hand.

    Args:
      apply: ``apply(variables, *inputs)`` in evaluation mode, e.g. ``model.apply``.
      variables: pytree of arrays (or ``jax.ShapeDtypeStruct``).
      *inputs: example inputs, a batch of at least 2.

    Returns:
      PermutationSpec. Paths are ``"/"``-joined tree paths. An operation without a rule is named in
      ``unknown_primitives`` and a warning; what it touches takes part in no group.

    [1] Ainsworth, Hayase & Srinivasa, Git Re-Basin, ICLR 2023.
    """
    spec = _spec_from_axes(trace_axes(apply, variables, *inputs))
    if spec.unknown_primitives:
        warnings.warn(
            f"no permutation rule for {', '.join(map(repr, spec.unknown_primitives))}: the axes "
            "they touch are left as they are, so the spec may be smaller than it could be",
            stacklevel=2,
        )
    return spec


def _spec_from_axes(program: ProgramAxes) -> PermutationSpec:
    # A group is a free atom that at least two parameter axes share.
    atoms = program.atoms
    places: dict[int, list[AxisRef]] = {}
    for path, axes in program.leaves.items():
        for axis, factors in enumerate(map(atoms.atoms, axes)):
            shape = tuple(atoms.size[atom] for atom in factors)
            for index, atom in enumerate(factors):
                if not atoms.fixed[atom]:
                    places.setdefault(atom, []).append(AxisRef(path, axis, shape, index))
    groups: dict[str, Group] = {}
    for atom, refs in places.items():
        if len(refs) > 1:
            groups[_group_name(refs, program, groups)] = Group(atoms.size[atom], tuple(refs))
    return PermutationSpec(groups, program.unknown_primitives)


def _group_name(refs: list[AxisRef], program: ProgramAxes, taken: Mapping[str, Group]) -> str:
    # Named after the layer that produces the units: the first kernel that ends in their axis.
    def rank(ref):
        n_axes = len(program.leaves[ref.path])
        return (n_axes < 2, ref.axis < n_axes - 1, not ref.path.endswith("kernel"))

    ref = min(refs, key=rank)
    path = ref.path.split("/")
    name = "/".join(path[1:-1] if len(path) > 2 else path)
    if len(ref.factor_shape) > 1:
        name += f".{ref.factor_index}"
    if rank(ref)[1]:
        name += f"[{ref.axis}]"
    unique, n = name, 1
    while unique in taken:
        n += 1
        unique = f"{name}#{n}"
    return unique


def _check_names(spec: PermutationSpec, perms: Permutations) -> None:
    if unknown := sorted(set(perms) - set(spec.groups)):
        raise ValueError(f"unknown group {unknown[0]!r}; the spec has {sorted(spec.groups)}")


def check_permutations(spec: PermutationSpec, perms: Permutations) -> None:
    """Raises ValueError, naming the group, unless every entry is a bijection of the right size."""
    _check_names(spec, perms)
    for name, perm in perms.items():
        size, values = spec.groups[name].size, np.asarray(perm)
        if values.shape != (size,) or not np.array_equal(np.sort(values), np.arange(size)):
            raise ValueError(f"the permutation of group {name!r} is no bijection of 0..{size - 1}")


def apply_permutation(spec: PermutationSpec, perms: Permutations, variables: PyTree) -> PyTree:
    """Renames units: along every axis of a group, new index ``i`` is old index ``perm[i]``.

    Pure and jit-able (``spec`` is static); bijections are not checked, see ``check_permutations``.

    Raises:
      ValueError: an unknown group, or variables that do not fit the spec.
    """
    _check_names(spec, perms)
    leaves = to_paths(variables)
    for path, view in spec.leaf_views(variables).items():
        leaf = leaves[path].reshape(view.shape)
        for dim, name in view.slots:
            if name in perms:
                leaf = jnp.take(leaf, perms[name], axis=dim, unique_indices=True)
        leaves[path] = leaf.reshape(leaves[path].shape)
    return from_paths(variables, leaves)


def identity_permutation(spec: PermutationSpec) -> dict[str, jax.Array]:
    """Returns ``arange`` for every group."""
    return {name: jnp.arange(g.size, dtype=jnp.int32) for name, g in spec.groups.items()}


def random_permutation(key: Key, spec: PermutationSpec) -> dict[str, jax.Array]:
    """Draws a uniform permutation of every group."""
    return {
        name: jax.random.permutation(named_key(key, name), g.size).astype(jnp.int32)
        for name, g in spec.groups.items()
    }


def invert_permutation(perms: Permutations) -> dict[str, jax.Array]:
    """Inverts every group: applying ``perms`` and then the result changes nothing."""
    return {name: jnp.argsort(p).astype(jnp.int32) for name, p in perms.items()}


def compose_permutations(first: Permutations, second: Permutations) -> dict[str, jax.Array]:
    """Returns the permutation that acts like ``first`` and then ``second`` (same groups)."""
    if set(first) != set(second):
        raise ValueError(f"groups differ: {sorted(set(first) ^ set(second))}")
    return {name: first[name][second[name]] for name in first}


def check_permutation_spec(
    key: Key,
    spec: PermutationSpec,
    apply: ApplyFn,
    variables: PyTree,
    *inputs: PyTree,
    rtol: float = 1e-4,
) -> None:
    """Proves a spec on an example: permutes one group after the other and compares outputs.

    Args:
      key: draws the permutations.
      spec: derived or hand-written.
      apply: ``apply(variables, *inputs)``.
      variables: parameters; randomised biases and scales make the check sharper.
      *inputs: example inputs.
      rtol: largest output change, relative to the largest absolute output.

    Raises:
      ValueError: permuting a group changes the function; the message names the group.
    """

    @jax.jit
    def run(perms, variables, inputs):
        return apply(apply_permutation(spec, perms, variables), *inputs)

    def outputs(perms):
        return np.asarray(run(perms, variables, inputs), np.float64)

    identity = identity_permutation(spec)
    reference = outputs(identity)
    scale = np.abs(reference).max() + np.finfo(np.float32).tiny
    for name, perm in random_permutation(key, spec).items():
        change = np.abs(outputs(identity | {name: perm}) - reference)
        if not change.max() <= rtol * scale:
            raise ValueError(
                f"permuting group {name!r} changes the outputs by {change.max() / scale:.2g} of "
                f"their size (allowed {rtol:g})"
            )
