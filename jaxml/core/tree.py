"""Pytrees seen as ``{path: leaf}``, the form in which files and error messages name a leaf."""

from collections.abc import Mapping

import jax

from jaxml.core.types import PyTree


def path_str(key_path) -> str:
    """Writes a jax key path as ``"params/Dense_0/kernel"``."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def to_paths(tree: PyTree) -> dict[str, jax.Array]:
    """Flattens a pytree to ``{path: leaf}`` in tree order."""
    return {path_str(kp): leaf for kp, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def from_paths(like: PyTree, leaves: Mapping[str, jax.Array]) -> PyTree:
    """Rebuilds a tree of the structure of ``like`` from ``{path: leaf}``.

    Raises:
      ValueError: a path of ``like`` is missing from ``leaves``, or the other way round.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [path_str(kp) for kp, _ in paths]
    if missing := sorted(set(names) - set(leaves)):
        raise ValueError(f"leaf {missing[0]!r} is missing ({len(missing)} of {len(names)} are)")
    if unknown := sorted(set(leaves) - set(names)):
        raise ValueError(f"leaf {unknown[0]!r} has no place in the tree ({len(unknown)} have none)")
    return jax.tree_util.tree_unflatten(treedef, [leaves[name] for name in names])
