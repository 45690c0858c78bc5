"""What the units of two networks compute on the same inputs, summed up group by group."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.compat.jaxprs import Site, replay
from jaxml.core.types import ApplyFn, PyTree
from jaxml.merging.permutation import PermutationSpec
from jaxml.merging.symmetry import ProgramAxes, trace_axes


class FeatureMoments(NamedTuple):
    """Second moments of one feature tensor, seen as ``[samples, d]``, in two models A and B.

    A *feature* is a value that a later dense or convolution layer contracts, so the output of the
    last non-linearity or normalisation; batch, position and time all count as samples.

    Attributes:
      shape: the factors of ``d`` that groups permute, C-ordered; usually one.
      groups: the group of each factor.
      n: number of samples.
      cross: ``[d, d]`` float64, sum of A's unit ``i`` times B's unit ``j``.
      sums: ``[2, d]`` float64, of A and of B.
      squares: ``[2, d]`` float64, of A and of B.
    """

    shape: tuple[int, ...]
    groups: tuple[str, ...]
    n: float
    cross: np.ndarray
    sums: np.ndarray
    squares: np.ndarray


class _View(NamedTuple):
    shape: tuple[int, ...]  # the whole tensor, in factors
    slots: tuple[int, ...]  # which factors groups permute
    groups: tuple[str, ...]

    @property
    def moved(self) -> tuple[int, ...]:
        return tuple(self.shape[slot] for slot in self.slots)

    def flatten(self, value: jax.Array, rank: int) -> jax.Array:
        """Brings a value, with scanned axes in front, to ``[samples, d]``."""
        lead = value.shape[: value.ndim - rank]
        value = value.reshape(*lead, *self.shape)
        ends = range(-len(self.slots), 0)
        value = jnp.moveaxis(value, [len(lead) + s for s in self.slots], list(ends))
        return value.reshape(-1, int(np.prod(self.moved)))


def _views(spec: PermutationSpec, program: ProgramAxes) -> dict[Site, _View]:
    atoms = program.atoms
    owner: dict[int, str] = {}
    for name, group in spec.groups.items():
        for ref in group.axes:
            factors = atoms.atoms(program.leaves[ref.path][ref.axis])
            if tuple(atoms.size[x] for x in factors) != ref.factor_shape:
                raise ValueError(f"group {name!r} does not fit axis {ref.axis} of {ref.path!r}")
            owner[factors[ref.factor_index]] = name
    views = {}
    for site, axes in program.features.items():
        factors = [atom for axis in axes for atom in atoms.atoms(axis)]
        slots = tuple(i for i, atom in enumerate(factors) if atom in owner)
        if slots:
            shape = tuple(atoms.size[atom] for atom in factors)
            views[site] = _View(shape, slots, tuple(owner[factors[i]] for i in slots))
    missing = set(spec.groups) - {g for view in views.values() for g in view.groups}
    if missing:
        raise ValueError(f"no layer reads the units of group {min(missing)!r}: no activations")
    return views


@functools.partial(jax.jit, static_argnames=("spec", "apply"))
def _of_batch(a, b, *inputs, spec, apply):
    program = trace_axes(apply, a, *inputs)
    views = _views(spec, program)
    read = replay(program.jaxpr, views)
    _, found_a = read(*jax.tree.leaves((a, inputs)))
    _, found_b = read(*jax.tree.leaves((b, inputs)))
    sums = []
    for (_, var), view, za, zb in zip(views, views.values(), found_a, found_b, strict=True):
        rank = len(var.aval.shape)
        dtype = jnp.promote_types(var.aval.dtype, jnp.float32)
        za, zb = (view.flatten(z, rank).astype(dtype) for z in (za, zb))
        pair = jnp.stack([za, zb])
        cross = jnp.matmul(za.T, zb, precision=jax.lax.Precision.HIGHEST)
        sums.append((jnp.float32(za.shape[0]), cross, pair.sum(1), jnp.square(pair).sum(1)))
    return sums


def feature_moments(
    spec: PermutationSpec, apply: ApplyFn, a: PyTree, b: PyTree, batches: Iterable
) -> list[FeatureMoments]:
    """Sums the second moments of every feature that a group of the spec permutes.

    One pass over the data; products are formed in the features' dtype, float32 at least, at the
    highest precision on the device and added up in float64 on the host, so the split into batches
    does not matter. Neither model changes: ``apply`` is evaluated as given, in evaluation mode.

    Args:
      spec: permutation groups, derived from the same ``apply``.
      apply: ``apply(variables, *inputs)``.
      a: variables of model A.
      b: variables of model B.
      batches: calibration inputs, each an array ``[n, ...]`` or a tuple of such arrays.

    Returns:
      One FeatureMoments a feature, in program order. A residual stream has several.

    Raises:
      ValueError: no batch, a spec of another program, or activations that are not finite.
    """
    total, layout = None, None
    for batch in batches:
        inputs = batch if isinstance(batch, tuple) else (batch,)
        if layout is None:
            layout = _views(spec, trace_axes(apply, a, *inputs)).values()
        sums = jax.tree.map(
            lambda x: np.asarray(x, np.float64), _of_batch(a, b, *inputs, spec=spec, apply=apply)
        )
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None:
        raise ValueError("batches is empty: matching activations needs calibration inputs")
    moments = []
    for view, (n, *tables) in zip(layout, total, strict=True):
        if not all(np.isfinite(table).all() for table in tables):
            raise ValueError(f"activations of group {view.groups[0]!r} are not finite")
        moments.append(FeatureMoments(view.moved, view.groups, float(n), *tables))
    return moments
