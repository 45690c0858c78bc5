"""Checks of static facts and concrete arrays; each failure is one sentence that names the leaf."""

import jax
import numpy as np

from jaxml.core.tree import to_paths
from jaxml.core.types import PyTree


def check_same_structure(a: PyTree, b: PyTree, *, names: tuple[str, str] = ("a", "b")) -> None:
    """Raises ValueError unless both trees have the same paths and leaf shapes."""
    leaves_a, leaves_b = to_paths(a), to_paths(b)
    for path in sorted(leaves_a.keys() ^ leaves_b.keys()):
        there, absent = names if path in leaves_a else names[::-1]
        raise ValueError(f"the models differ: {path!r} is in {there} and not in {absent}")
    for path, leaf in leaves_a.items():
        if leaf.shape != leaves_b[path].shape:
            raise ValueError(
                f"the models differ at {path!r}: shape {tuple(leaf.shape)} in {names[0]}, "
                f"{tuple(leaves_b[path].shape)} in {names[1]}"
            )


def check_finite(tree: PyTree, *, name: str) -> None:
    """Raises ValueError when a concrete floating leaf holds a NaN or an infinity."""
    for path, leaf in to_paths(tree).items():
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
            bad = leaf.size - int(np.isfinite(np.asarray(leaf)).sum())
            if bad:
                raise ValueError(f"{name} has {bad} non-finite values at {path!r}")
