"""What is to be proved: a box of inputs, and linear inequalities about the output."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxml.verify.network import Net, check_net


class Box(NamedTuple):
    """All vectors between two vectors.

    Attributes:
      lower: ``[n]``.
      upper: ``[n]``.
    """

    lower: Float[Array, " n"]
    upper: Float[Array, " n"]


Bounds = tuple[Box, ...]
"""A box for every hidden pre-activation ``z_1 .. z_{L-1}``."""


class Spec(NamedTuple):
    """The inequalities ``weight @ z_L + offset > 0``, one a row.

    Attributes:
      weight: ``[t, n_out]``.
      offset: ``[t]``.
    """

    weight: Float[Array, "t n_out"]
    offset: Float[Array, " t"]


def linf_box(x, eps: float, *, clip: tuple[float, float] | None = (0.0, 1.0)) -> Box:
    """Returns ``[x - eps, x + eps]``, rounded outward in float64 and then clipped, on the host.

    Args:
      x: an input of any shape; it is flattened.
      eps: radius in the units of the input.
      clip: smallest and largest legal value, or None.

    Raises:
      ValueError: a negative or non-finite ``eps``, an ``x`` that is not finite, or one so far
        outside ``clip`` that nothing is left.
    """
    x = np.asarray(x, np.float64).ravel()
    if not (np.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and not negative, got {eps}")
    if not np.isfinite(x).all():
        raise ValueError("x has values that are not finite")
    lower, upper = x, x
    if eps > 0:
        lower, upper = np.nextafter(x - eps, -np.inf), np.nextafter(x + eps, np.inf)
    if clip is not None:
        lower, upper = np.maximum(lower, clip[0]), np.minimum(upper, clip[1])
    box = Box(lower, upper)
    check_box(box, name="x +- eps within clip")
    return box


def margin_spec(label: int, n_classes: int, *, targets: list[int] | None = None) -> Spec:
    """Returns the margins ``z[label] - z[target]`` over the targets (all other classes: None).

    Raises:
      ValueError: a label or target that is no class, or a target that is the label.
    """
    if not 0 <= label < n_classes:
        raise ValueError(f"label must lie in 0..{n_classes - 1}, got {label}")
    if targets is None:
        targets = [target for target in range(n_classes) if target != label]
    for target in targets:
        if not 0 <= target < n_classes or target == label:
            raise ValueError(
                f"target must lie in 0..{n_classes - 1} and differ from the label {label}, "
                f"got {target}"
            )
    weight = np.zeros((len(targets), n_classes))
    weight[:, label] = 1
    weight[np.arange(len(targets)), targets] -= 1
    return Spec(weight, np.zeros(len(targets)))


def check_box(box: Box, *, name: str = "box", n: int | None = None) -> None:
    """Checks a concrete box.

    Raises:
      ValueError: shapes that differ, values that are not finite, or ``lower > upper``.
    """
    lower, upper = np.asarray(box.lower), np.asarray(box.upper)
    if lower.ndim != 1 or lower.shape != upper.shape or (n is not None and len(lower) != n):
        want = "[n]" if n is None else f"[{n}]"
        raise ValueError(f"{name} must be two vectors {want}, got {lower.shape}, {upper.shape}")
    if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
        raise ValueError(f"{name} has bounds that are not finite")
    if (bad := np.flatnonzero(lower > upper)).size:
        i = int(bad[0])
        raise ValueError(f"{name} is empty: lower {lower[i]} > upper {upper[i]} at index {i}")


def check_problem(net: Net, box: Box, spec: Spec) -> None:
    """Checks that a network, a box of its inputs and a spec of its outputs go together.

    Raises:
      ValueError: what ``check_net`` and ``check_box`` raise, or a spec of another width.
    """
    check_net(net)
    check_box(box, n=net[0].n_in)
    shape = np.shape(spec.weight)
    if len(shape) != 2 or shape[1] != net[-1].n_out or np.shape(spec.offset) != shape[:1]:
        raise ValueError(
            f"spec must have weight [t, {net[-1].n_out}] and offset [t], got {shape} and "
            f"{np.shape(spec.offset)}"
        )


def intersect(*boxes: Box, name: str = "intersection") -> Box:
    """Returns the box of what lies in all boxes.

    Rounding can make two boxes of one point miss each other by a hair; then the hull of the gap is
    returned. Arrays that are concrete are checked for a larger gap.

    Raises:
      ValueError: the intersection is empty by more than rounding.
    """
    lower, upper = boxes[0]
    for box in boxes[1:]:
        lower, upper = jnp.maximum(lower, box.lower), jnp.minimum(upper, box.upper)
    if not isinstance(lower, jax.core.Tracer):
        gap = np.asarray(lower - upper)
        size = 1 + np.maximum(np.abs(lower), np.abs(upper))
        if (bad := np.flatnonzero(gap > 1e3 * np.finfo(gap.dtype).eps * size)).size:
            raise ValueError(f"{name} is empty at index {int(bad[0])}")
    return Box(jnp.minimum(lower, upper), jnp.maximum(lower, upper))
