"""Which axes of a traced program have to be permuted together.

Every array axis is an ordered product of *atoms*, the factors a reshape can tear it into
(``H*W*C`` rows of a dense kernel, ``C -> (groups, C/groups)``, ``d -> (heads, head_dim)``). Atoms
that must move together are joined in a union-find while the jaxpr is read once, front to back; an
atom that may not move at all is *fixed*. Joining or fixing too much only loses symmetries, so an
unknown primitive fixes everything it touches: the result can be too small and is never wrong.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxml.compat.jaxprs import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Site,
    Var,
    called_jaxpr,
    scan_counts,
)
from jaxml.core.tree import path_str
from jaxml.core.types import ApplyFn, PyTree

Axis = tuple[int, ...]
"""Atoms of one array axis, major first; an axis of size 1 has none."""

Axes = list[Axis]
"""One entry per array axis."""


class AtomSets:
    """Union-find over atoms, with factoring: splitting an atom splits all it is joined with."""

    def __init__(self):
        self._parent: list[int] = []
        self._parts: dict[int, tuple[int, int]] = {}
        self.size: list[int] = []
        self.fixed: list[bool] = []

    def new_axis(self, size: int, *, fixed: bool = False) -> Axis:
        """Makes an axis of one fresh atom."""
        if size == 1:
            return ()
        self._parent.append(len(self._parent))
        self.size.append(size)
        self.fixed.append(fixed)
        return (len(self._parent) - 1,)

    def new_axes(self, shape: Sequence[int], *, fixed: bool = False) -> Axes:
        """Makes one fresh axis per entry of ``shape``."""
        return [self.new_axis(size, fixed=fixed) for size in shape]

    def _find(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = atom = self._parent[self._parent[atom]]
        return atom

    def atoms(self, axis: Axis) -> Axis:
        """Resolves an axis to the representatives of its unsplit atoms."""
        resolved = []
        for atom in axis:
            root = self._find(atom)
            resolved += self.atoms(self._parts[root]) if root in self._parts else (root,)
        return tuple(resolved)

    def fix(self, *axes: Axis) -> None:
        """Forbids any permutation of these axes."""
        for axis in axes:
            for atom in self.atoms(axis):
                self.fixed[atom] = True

    def _split(self, root: int, major: int) -> None:
        minor = self.size[root] // major
        fixed = self.fixed[root]
        self._parts[root] = (
            *self.new_axis(major, fixed=fixed),
            *self.new_axis(minor, fixed=fixed),
        )

    def link(self, *axes: Axis) -> Axis:
        """Joins axes of equal size, factor by factor; fixes them where the factors do not fit."""
        first = axes[0]
        for other in axes[1:]:
            while (left := self.atoms(first)) != (right := self.atoms(other)):
                x, y = next((x, y) for x, y in zip(left, right, strict=False) if x != y)
                if self.size[x] == self.size[y]:
                    self._parent[y] = x
                    self.fixed[x] = self.fixed[x] or self.fixed[y]
                    continue
                large, small = (x, y) if self.size[x] > self.size[y] else (y, x)
                if self.size[large] % self.size[small]:
                    self.fix(first, other)
                    break
                self._split(large, self.size[small])
        return first

    def regroup(self, axes: Axes, shape: Sequence[int]) -> Axes:
        """Views C-ordered axes in another shape; fixes all of them when the factors do not fit."""
        if 0 in shape:  # an empty array has no factors
            self.fix(*axes)
            return self.new_axes(shape, fixed=True)
        queue = [atom for axis in axes for atom in self.atoms(axis)]
        grouped: Axes = []
        for size in shape:
            taken: list[int] = []
            while size > 1:
                root = queue[0]
                if size % self.size[root] == 0:
                    taken.append(queue.pop(0))
                    size //= self.size[root]
                elif self.size[root] % size == 0:
                    self._split(root, size)
                    queue = list(self.atoms(tuple(queue)))
                else:
                    self.fix(*axes)
                    return self.new_axes(shape, fixed=True)
            grouped.append(tuple(taken))
        return grouped


class ProgramAxes(NamedTuple):
    """What ``trace_axes`` found out about ``apply(variables, *inputs)``.

    Attributes:
      atoms: the union-find; ``atoms.atoms(axis)`` resolves an axis.
      leaves: path of each leaf of the variables to its axes, in tree order.
      features: values computed from the inputs that a later dense or convolution layer contracts,
        in program order, with their axes: what "the activations of a unit" means here.
      jaxpr: the traced program (flat arguments: variables, then inputs).
      unknown_primitives: primitives without a rule; all that they touched is fixed.
    """

    atoms: AtomSets
    leaves: dict[str, Axes]
    features: dict[Site, Axes]
    jaxpr: ClosedJaxpr
    unknown_primitives: tuple[str, ...]


def trace_axes(apply: ApplyFn, variables: PyTree, *inputs: PyTree) -> ProgramAxes:
    """Traces ``apply`` once and reads off how the axes of its variables hang together.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode (running statistics in use).
      variables: pytree of arrays or ``jax.ShapeDtypeStruct``.
      *inputs: example inputs, arrays or ``ShapeDtypeStruct``; use a batch of at least 2.

    Returns:
      ProgramAxes. Inputs, outputs, array constants and position-dependent axes are fixed.
    """
    closed = jax.make_jaxpr(apply)(variables, *inputs)
    reader = _Reader()
    paths = [path_str(kp) for kp, _ in jax.tree_util.tree_leaves_with_path(variables)]
    args = [reader.atoms.new_axes(v.aval.shape) for v in closed.jaxpr.invars]
    reader.atoms.fix(*(axis for axes in args[len(paths) :] for axis in axes))
    from_data = [False] * len(paths) + [True] * (len(args) - len(paths))
    outputs, _ = reader.read(closed.jaxpr, args, from_data, ())
    reader.atoms.fix(*(axis for axes in outputs for axis in axes))
    return ProgramAxes(
        reader.atoms,
        dict(zip(paths, args, strict=False)),
        reader.features,
        closed,
        tuple(sorted(reader.unknown)),
    )


class _Reader:
    """Walks a jaxpr and its inner jaxprs, applying one rule per primitive."""

    def __init__(self):
        self.atoms = AtomSets()
        self.features: dict[Site, Axes] = {}
        self.unknown: set[str] = set()

    def read(
        self, jaxpr: Jaxpr, args: list[Axes], from_data: list[bool], path: tuple[int, ...]
    ) -> tuple[list[Axes], list[bool]]:
        """Gives axes to every value of ``jaxpr``; returns those of its outputs."""
        env: dict[Var, Axes] = {}
        data: dict[Var, bool] = {}
        for var in jaxpr.constvars:
            env[var], data[var] = self.atoms.new_axes(var.aval.shape, fixed=True), False
        for var, axes, flag in zip(jaxpr.invars, args, from_data, strict=True):
            env[var], data[var] = axes, flag

        def axes_of(v) -> Axes:
            if isinstance(v, Literal):
                return self.atoms.new_axes(np.shape(v.val), fixed=True)
            return env[v]

        for number, eqn in enumerate(jaxpr.eqns):
            operands = [axes_of(v) for v in eqn.invars]
            flags = [not isinstance(v, Literal) and data[v] for v in eqn.invars]
            inner = (*path, number)
            if (body := called_jaxpr(eqn)) is not None:
                outputs, out_flags = self.read(body.jaxpr, operands, flags, inner)
            elif eqn.primitive.name in _INNER:
                outputs, out_flags = _INNER[eqn.primitive.name](self, eqn, operands, flags, inner)
            else:
                rule = _RULES.get(eqn.primitive.name)
                if rule is None:
                    self.unknown.add(eqn.primitive.name)
                    rule = _fix_everything
                outputs, out_flags = rule(self.atoms, eqn, operands), [any(flags)]
                for index in _CONTRACTED.get(eqn.primitive.name, ()):
                    if flags[index]:
                        self.features.setdefault((path, eqn.invars[index]), operands[index])
            out_flags = out_flags * len(eqn.outvars) if len(out_flags) == 1 else out_flags
            for var, axes, flag in zip(eqn.outvars, outputs, out_flags, strict=True):
                env[var], data[var] = axes, flag
        return (
            [axes_of(v) for v in jaxpr.outvars],
            [not isinstance(v, Literal) and data[v] for v in jaxpr.outvars],
        )

    def link_all(self, *values: Axes) -> None:
        """Joins values of equal shape axis by axis."""
        for axes in zip(*values, strict=True):
            self.atoms.link(*axes)

    def scan(self, eqn: JaxprEqn, operands, flags, path):
        """Reads a scan body once: a carry has the same axes before and after, time is fixed."""
        n_consts, n_carry = scan_counts(eqn)
        n_before = n_consts + n_carry
        self.atoms.fix(*(axes[0] for axes in operands[n_before:]))
        args = [*operands[:n_before], *(axes[1:] for axes in operands[n_before:])]
        carried = any(flags)
        body_flags = [*flags[:n_consts], *[carried] * n_carry, *flags[n_before:]]
        body = eqn.params["jaxpr"]
        outputs, out_flags = self.read(body.jaxpr, args, body_flags, path)
        for before, after in zip(args[n_consts:n_before], outputs[:n_carry], strict=True):
            self.link_all(before, after)
        time = eqn.params["length"]
        stacked = [[self.atoms.new_axis(time, fixed=True), *y] for y in outputs[n_carry:]]
        return [*outputs[:n_carry], *stacked], [*[carried] * n_carry, *out_flags[n_carry:]]

    def while_loop(self, eqn: JaxprEqn, operands, flags, path):
        """Reads condition and body once; a carry has the same axes before and after."""
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
        carry = operands[n_cond + n_body :]
        flag = [any(flags)]
        cond, body = eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr
        args = [*cond_consts, *carry]
        self.read(cond, args, flag * len(args), (*path, 0))
        args = [*body_consts, *carry]
        outputs, _ = self.read(body, args, flag * len(args), (*path, 1))
        for before, after in zip(carry, outputs, strict=True):
            self.link_all(before, after)
        self._forget_features(path)
        return outputs, flag

    def cond(self, eqn: JaxprEqn, operands, flags, path):
        """Joins the outputs of all branches."""
        results = [
            self.read(branch.jaxpr, operands[1:], flags[1:], (*path, i))[0]
            for i, branch in enumerate(eqn.params["branches"])
        ]
        for others in results[1:]:
            for left, right in zip(results[0], others, strict=True):
                self.link_all(left, right)
        self._forget_features(path)
        return results[0], [any(flags)]

    def _forget_features(self, path) -> None:
        # Values under `while` and `cond` cannot be read out again by compat.jaxprs.replay.
        self.features = {s: a for s, a in self.features.items() if s[0][: len(path)] != path}


_INNER = {"scan": _Reader.scan, "while": _Reader.while_loop, "cond": _Reader.cond}

# Operands of a layer whose axes a kernel contracts; the kernel itself is no function of the data.
_CONTRACTED = {"dot_general": (0, 1), "conv_general_dilated": (0,)}

_Rule = Callable[[AtomSets, JaxprEqn, list[Axes]], list[Axes]]


def _shapes(variables) -> list[tuple[int, ...]]:
    return [tuple(v.aval.shape) for v in variables]


def _fix_everything(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    atoms.fix(*(axis for axes in operands for axis in axes))
    return [atoms.new_axes(shape, fixed=True) for shape in _shapes(eqn.outvars)]


def _elementwise(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    # Operands are scalars or have the rank of the output, with sizes equal to it or 1.
    (shape,) = set(_shapes(eqn.outvars))
    shapes = _shapes(eqn.invars)
    out: Axes = []
    for d, size in enumerate(shape):
        full = [axes[d] for axes, s in zip(operands, shapes, strict=True) if s and s[d] == size]
        out.append(atoms.link(*full) if full else atoms.new_axis(size))
    return [out for _ in eqn.outvars]


def _pairwise(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    return operands


def _broadcast_in_dim(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    (shape,), in_shape = _shapes(eqn.outvars), _shapes(eqn.invars)[0]
    source = {d: i for i, d in enumerate(eqn.params["broadcast_dimensions"])}
    return [
        [
            operands[0][source[d]]
            if d in source and in_shape[source[d]] == size
            else atoms.new_axis(size)
            for d, size in enumerate(shape)
        ]
    ]


def _reshape(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    if eqn.params.get("dimensions") is not None:
        return _fix_everything(atoms, eqn, operands)
    return [atoms.regroup(operands[0], _shapes(eqn.outvars)[0])]


def _transpose(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    return [[operands[0][d] for d in eqn.params["permutation"]]]


def _drop(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    # Sums, maxima, ... over an axis do not see the order of its entries.
    dims = eqn.params["dimensions" if "dimensions" in eqn.params else "axes"]
    return [[axis for d, axis in enumerate(operands[0]) if d not in dims]]


def _arg_reduce(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    atoms.fix(*(operands[0][d] for d in eqn.params["axes"]))
    return _drop(atoms, eqn, operands)


def _cumulative(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    atoms.fix(operands[0][eqn.params["axis"]])
    return operands


def _rev(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    atoms.fix(*(operands[0][d] for d in eqn.params["dimensions"]))
    return operands


def _sort(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    atoms.fix(*(axes[eqn.params["dimension"]] for axes in operands))
    linked = [atoms.link(*axes) for axes in zip(*operands, strict=True)]
    return [linked for _ in eqn.outvars]


def _dot_general(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    left, right = operands
    for i, j in zip((*contract_l, *batch_l), (*contract_r, *batch_r), strict=True):
        atoms.link(left[i], right[j])
    return [
        [
            *(left[i] for i in batch_l),
            *(x for i, x in enumerate(left) if i not in (*contract_l, *batch_l)),
            *(x for j, x in enumerate(right) if j not in (*contract_r, *batch_r)),
        ]
    ]


def _convolution(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    if eqn.params["batch_group_count"] != 1:
        return _fix_everything(atoms, eqn, operands)
    (batch, feature, *space), (out, kernel_in, *kernel_space), out_spec = (
        tuple(spec) for spec in eqn.params["dimension_numbers"]
    )
    x, kernel = operands
    atoms.fix(*(x[d] for d in space), *(kernel[d] for d in kernel_space))
    # Channels are (groups, channels per group), on both sides and group-major.
    groups = eqn.params["feature_group_count"]
    x_shape, kernel_shape = _shapes(eqn.invars)
    x_group, x_in = atoms.regroup([x[feature]], (groups, x_shape[feature] // groups))
    k_group, k_out = atoms.regroup([kernel[out]], (groups, kernel_shape[out] // groups))
    atoms.link(x_group, k_group)
    atoms.link(x_in, kernel[kernel_in])
    (shape,) = _shapes(eqn.outvars)
    result = atoms.new_axes(shape, fixed=True)
    result[out_spec[0]] = x[batch]
    result[out_spec[1]] = (*k_group, *k_out)
    return [result]


def _reduce_window(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    p = eqn.params
    ones = (1,) * len(operands[0])
    settings = zip(
        p["window_dimensions"],
        p["window_strides"],
        p["padding"],
        p.get("base_dilation") or ones,
        p.get("window_dilation") or ones,
        strict=True,
    )
    untouched = [(w, s, tuple(pad), b) == (1, 1, (0, 0), 1) for w, s, pad, b, _ in settings]
    return [_keep(atoms, operands[0], untouched, _shapes(eqn.outvars)[0])]


def _keep(atoms: AtomSets, axes: Axes, keep: Sequence[bool], shape: Sequence[int]) -> Axes:
    """Passes the axes marked in ``keep`` on and fixes the others, before and after."""
    out = []
    for axis, passes, size in zip(axes, keep, shape, strict=True):
        if not passes:
            atoms.fix(axis)
        out.append(axis if passes else atoms.new_axis(size, fixed=True))
    return out


def _equal_parts(atoms: AtomSets, axis: Axis, size: int, part: int) -> Axis:
    """Cuts an axis into equal parts: which part is fixed, the order inside is shared by all."""
    which, inside = atoms.regroup([axis], (size // part, part))
    atoms.fix(which)
    return inside


def _slice(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    shape, (out_shape,) = _shapes(eqn.invars)[0], _shapes(eqn.outvars)
    strides = eqn.params["strides"] or (1,) * len(shape)
    starts = eqn.params["start_indices"]
    out: Axes = []
    for axis, size, part, start, stride in zip(
        operands[0], shape, out_shape, starts, strides, strict=True
    ):
        if part == size:
            out.append(axis)
        elif stride == 1 and part and size % part == 0 and start % part == 0:
            out.append(_equal_parts(atoms, axis, size, part))
        else:
            out += _keep(atoms, [axis], [False], [part])
    return [out]


def _split(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    axis = eqn.params["axis"]
    sizes = [int(s) for s in eqn.params["sizes"]]
    (axes,) = operands
    if len(set(sizes)) == 1:
        pieces = [_equal_parts(atoms, axes[axis], sum(sizes), sizes[0])] * len(sizes)
    else:
        atoms.fix(axes[axis])
        pieces = [atoms.new_axis(size, fixed=True) for size in sizes]
    return [[*axes[:axis], piece, *axes[axis + 1 :]] for piece in pieces]


def _concatenate(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    d = eqn.params["dimension"]
    sizes = [shape[d] for shape in _shapes(eqn.invars)]
    out = [
        atoms.link(*axes) if i != d else None for i, axes in enumerate(zip(*operands, strict=True))
    ]
    if len(set(sizes)) == 1:
        inside = atoms.link(*(axes[d] for axes in operands))
        out[d] = (*atoms.new_axis(len(sizes), fixed=True), *inside)
    else:
        atoms.fix(*(axes[d] for axes in operands))
        out[d] = atoms.new_axis(sum(sizes), fixed=True)
    return [out]


def _stack(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    out = [atoms.link(*axes) for axes in zip(*operands, strict=True)]
    out.insert(eqn.params["axis"], atoms.new_axis(len(operands), fixed=True))
    return [out]


def _unstack(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    (axes,) = operands
    axis = eqn.params["axis"]
    atoms.fix(axes[axis])
    return [[*axes[:axis], *axes[axis + 1 :]] for _ in eqn.outvars]


def _pad(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    keep = [tuple(c) == (0, 0, 0) for c in eqn.params["padding_config"]]
    return [_keep(atoms, operands[0], keep, _shapes(eqn.outvars)[0])]


def _tile(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    pairs = zip(eqn.params["reps"], operands[0], strict=True)
    return [[(*atoms.new_axis(rep), *axis) for rep, axis in pairs]]


def _dynamic_slice(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    shape, (out_shape,) = _shapes(eqn.invars)[0], _shapes(eqn.outvars)
    keep = [a == b for a, b in zip(shape, out_shape, strict=True)]
    return [_keep(atoms, operands[0], keep, out_shape)]


def _dynamic_update_slice(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    shape, update_shape = _shapes(eqn.invars)[:2]
    for axis, update, a, b in zip(operands[0], operands[1], shape, update_shape, strict=True):
        if a == b:
            atoms.link(axis, update)
        else:
            atoms.fix(axis, update)
    return [operands[0]]


def _gather(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    numbers, slice_sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if numbers.operand_batching_dims or numbers.start_indices_batching_dims:
        return _fix_everything(atoms, eqn, operands)
    operand, indices = operands
    shape, (out_shape,) = _shapes(eqn.invars)[0], _shapes(eqn.outvars)
    whole = [
        slice_sizes[d] == size and d not in numbers.start_index_map for d, size in enumerate(shape)
    ]
    sliced = [d for d in range(len(shape)) if d not in numbers.collapsed_slice_dims]
    passed = _keep(atoms, operand, whole, slice_sizes)
    atoms.fix(indices[-1])
    out = atoms.new_axes(out_shape, fixed=True)
    for position, d in zip(numbers.offset_dims, sliced, strict=True):
        out[position] = passed[d]
    rest = [d for d in range(len(out_shape)) if d not in numbers.offset_dims]
    for position, axis in zip(rest, indices[:-1], strict=True):
        out[position] = axis
    return [out]


def _iota(atoms: AtomSets, eqn: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    (shape,) = _shapes(eqn.outvars)
    return [[atoms.new_axis(s, fixed=d == eqn.params["dimension"]) for d, s in enumerate(shape)]]


_ELEMENTWISE = (
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "clz", "complex", "conj",
    "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "eq_to",
    "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
    "igamma_grad_a", "igammac", "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma",
    "log", "log1p", "log2", "logistic", "lt", "lt_to", "max", "min", "mul", "mulhi", "name",
    "ne", "neg", "nextafter", "not", "one_minus_square", "or", "polygamma", "polynomial",
    "population_count", "pow", "real", "reduce_precision", "regularized_incomplete_beta", "rem",
    "round", "rsqrt", "select_n", "sharding_constraint", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub",
    "tan", "tanh", "xor", "zeta",
)  # fmt: skip

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("optimization_barrier", "device_put"), _pairwise),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or",
         "reduce_xor", "squeeze"),
        _drop,
    ),
    **dict.fromkeys(("argmax", "argmin"), _arg_reduce),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
    **dict.fromkeys(
        ("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _reduce_window
    ),
    # Random bits depend on the position, so they cannot move; nor can what is made of them.
    **dict.fromkeys(
        ("bitcast_convert_type", "random_bits", "random_seed", "random_wrap", "random_unwrap",
         "random_fold_in", "random_split", "threefry2x32"),
        _fix_everything,
    ),
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "transpose": _transpose,
    "rev": _rev,
    "sort": _sort,
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "platform_index": _fix_everything,  # a scalar, which chooses the branch of a cond
    "pad": _pad,
    "tile": _tile,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _iota,
}  # fmt: skip
