"""Tables that say under which name, and in which axes, two libraries hold the same numbers."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """One line of a table: tensors of theirs that hold what leaves of ours hold.

    The tensors of a side, if several, are stacked. Theirs are reshaped to ``view``, their axes
    ordered by ``order``, and the result reshaped to ours; read backwards, the same line leads from
    ours to theirs. No number is computed, so both ways together return the very bits.

    Attributes:
      theirs: names, all of ``their_shape``.
      their_shape: of each.
      ours: paths, all of ``our_shape``.
      our_shape: of each.
      view: axes of theirs, split as far as ``order`` needs.
      order: of the axes of ``view``.
    """

    theirs: tuple[str, ...]
    their_shape: tuple[int, ...]
    ours: tuple[str, ...]
    our_shape: tuple[int, ...]
    view: tuple[int, ...]
    order: tuple[int, ...]


def row(
    theirs: str | Sequence[str],
    shape: Sequence[int],
    ours: str | Sequence[str],
    *,
    view: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
    to: Sequence[int] | None = None,
) -> Row:
    """Makes a ``Row``; what is not given changes nothing.

    Args:
      theirs: one name, or several of equal shape.
      shape: of each tensor of theirs.
      ours: one path, or several of equal shape.
      view: None is the shape of the tensor, or of the stack of tensors.
      order: None keeps the axes in order.
      to: shape of each leaf of ours; None is what ``view`` and ``order`` give.
    """
    theirs, ours = ((x,) if isinstance(x, str) else tuple(x) for x in (theirs, ours))
    stack = (len(theirs),) if len(theirs) > 1 else ()
    view = tuple(view or (*stack, *shape))
    order = tuple(order or range(len(view)))
    turned = tuple(view[axis] for axis in order)
    to = tuple(turned[len(ours) > 1 :] if to is None else to)
    return Row(theirs, tuple(shape), ours, to, view, order)


def dense(theirs: str, ours: str, n_in: int, n_out: int) -> list[Row]:
    """Weight ``[out, in]`` and bias of a linear layer, ours ``kernel`` ``[in, out]``."""
    return [
        row(f"{theirs}.weight", (n_out, n_in), f"{ours}/kernel", order=(1, 0)),
        row(f"{theirs}.bias", (n_out,), f"{ours}/bias"),
    ]


def conv(theirs: str, ours: str, n_in: int, n_out: int, side: int) -> Row:
    """Weight ``[out, in, h, w]`` of a convolution, ours ``kernel`` ``[h, w, in, out]``."""
    shape = (n_out, n_in, side, side)
    return row(f"{theirs}.weight", shape, f"{ours}/kernel", order=(2, 3, 1, 0))


def norm(theirs: str, ours: str, width: int) -> list[Row]:
    """Weight and bias of a normalisation, ours ``scale`` and ``bias``."""
    names = (("weight", "scale"), ("bias", "bias"))
    return [row(f"{theirs}.{a}", (width,), f"{ours}/{b}") for a, b in names]


def batch_norm(theirs: str, ours: str, width: int) -> list[Row]:
    """``norm`` under ``params``, and the running averages under ``batch_stats``."""
    names = (("running_mean", "mean"), ("running_var", "var"))
    return norm(theirs, f"params/{ours}", width) + [
        row(f"{theirs}.{a}", (width,), f"batch_stats/{ours}/{b}") for a, b in names
    ]


def to_ours(rows: Iterable[Row], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turns ``{their name: tensor}`` into ``{our path: leaf}``.

    Raises:
      ValueError: a tensor is missing, has no place in the table, or another shape or dtype than it
        should; names it.
    """
    rows = list(rows)
    _check(
        tensors, {name: r.their_shape for r in rows for name in r.theirs}, "tensor", "the layout"
    )
    leaves = {}
    for r in rows:
        x = _join(r.theirs, tensors).reshape(r.view).transpose(r.order)
        leaves |= _split(x, r.ours, r.our_shape)
    return leaves


def to_theirs(rows: Iterable[Row], leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turns ``{our path: leaf}`` into ``{their name: tensor}``; the inverse of ``to_ours``.

    Raises:
      ValueError: as ``to_ours``.
    """
    rows = list(rows)
    _check(leaves, {path: r.our_shape for r in rows for path in r.ours}, "leaf", "the module")
    tensors = {}
    for r in rows:
        turned = [r.view[axis] for axis in r.order]
        x = _join(r.ours, leaves).reshape(turned).transpose(np.argsort(r.order))
        tensors |= _split(x, r.theirs, r.their_shape)
    return tensors


def _join(names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if len(names) == 1:
        return arrays[names[0]]
    dtypes = {name: arrays[name].dtype for name in names}
    if len(set(dtypes.values())) > 1:
        raise ValueError(f"these must be of one dtype, got {dtypes}")
    return np.stack([arrays[name] for name in names])


def _split(x: np.ndarray, names: Sequence[str], shape: Sequence[int]) -> dict[str, np.ndarray]:
    parts = x if len(names) > 1 else [x]
    return {name: part.reshape(shape) for name, part in zip(names, parts, strict=True)}


def _check(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    kind: str,
    where: str,
) -> None:
    if missing := [name for name in shapes if name not in arrays]:
        raise ValueError(f"{kind} {missing[0]!r} is missing ({len(missing)} of {len(shapes)} are)")
    if unknown := [name for name in arrays if name not in shapes]:
        raise ValueError(
            f"{kind} {unknown[0]!r} has no place in {where} ({len(unknown)} have none)"
        )
    for name, shape in shapes.items():
        if tuple(arrays[name].shape) != shape:
            raise ValueError(
                f"{kind} {name!r} has shape {tuple(arrays[name].shape)}, expected {shape}"
            )


class Layout(NamedTuple):
    """How one kind of published model is stored.

    Attributes:
      module: class of ``jaxml.nn`` that computes it.
      sign: a name that the tensors of no other layout have.
      describe: makes ``(module_kwargs, sizes)`` of ``(config, shapes, heads)``: the content of the
        configuration file or None, ``{their name: shape}``, and heads that were given or None.
      measure: makes ``sizes`` of ``(module_kwargs, shapes)``, where ``shapes`` are of our leaves;
        checks that the layout has what ``module_kwargs`` ask for.
      rows: makes the table of ``module_kwargs`` and ``**sizes``: what the widths alone do not say.
      config: makes the configuration file of ``module_kwargs`` and ``**sizes``; None has none.
      config_name: of the configuration file.
      prefix: in front of all names, or of none but those of the heads.
      ignored: pattern of names that hold nothing a module needs.
    """

    module: str
    sign: str
    describe: Callable[[Mapping | None, Mapping, int | None], tuple[dict, dict]]
    measure: Callable[[Mapping, Mapping], dict]
    rows: Callable[..., list[Row]]
    config: Callable[..., dict] | None = None
    config_name: str = "config.json"
    prefix: str = ""
    ignored: str = "$^"


def shape_of(shapes: Mapping[str, Sequence[int]], name: str, rank: int) -> tuple[int, ...]:
    """Looks up a shape from which sizes are read.

    Raises:
      ValueError: there is no such name, or it has another rank.
    """
    if name not in shapes:
        raise ValueError(f"{name!r} is missing")
    if len(shapes[name]) != rank:
        raise ValueError(f"{name!r} has shape {tuple(shapes[name])}, expected {rank} axes")
    return tuple(shapes[name])


def count(names: Iterable[str], pattern: str) -> int:
    """Returns one more than the largest number that the group of a pattern finds in names."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def side_of(n: float, what: str) -> int:
    """Returns the side of a square of ``n``, or raises ValueError."""
    side = round(n**0.5)
    if n < 1 or side * side != n:
        raise ValueError(f"{what} must make a square, got {n:g}")
    return side


def check_kwargs(
    module_kwargs: Mapping, needed: Sequence[str], fixed: Mapping[str, Any] | None = None
) -> None:
    """Checks that a layout has a place for what ``module_kwargs`` ask for.

    Args:
      module_kwargs: of the module.
      needed: names that must be there.
      fixed: values that the layout implies.

    Raises:
      ValueError: a name is missing or unknown, or a value differs from a fixed one.
    """
    fixed = fixed or {}
    if missing := [name for name in needed if name not in module_kwargs]:
        raise ValueError(f"module_kwargs must say {missing[0]!r}")
    for name, value in module_kwargs.items():
        if name in fixed and value != fixed[name]:
            raise ValueError(f"the layout needs {name}={fixed[name]!r}, got {value!r}")
        if name not in (*needed, *fixed, *_NOT_STORED):
            raise ValueError(f"the layout knows nothing of {name!r} in module_kwargs")


# What changes how a module computes and not what.
_NOT_STORED = ("conv", "groups", "remat", "dtype", "init_log_scale")
