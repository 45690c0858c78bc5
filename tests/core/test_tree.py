"""Pytrees as paths: names, order, the way back, and both kinds of mismatch."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxml.core.tree import from_paths, path_str, to_paths


class Pair(NamedTuple):
    left: np.ndarray
    right: list


TREE = {
    "params": {"Dense_1": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}},
    "pair": Pair(np.arange(4), [np.float32(1), np.float32(2)]),
}


def test_paths_join_keys_fields_and_indices():
    assert list(to_paths(TREE)) == [
        "pair/left",
        "pair/right/0",
        "pair/right/1",
        "params/Dense_1/bias",
        "params/Dense_1/kernel",
    ]
    assert to_paths(np.ones(2)).keys() == {""}
    assert to_paths({}) == {}


def test_order_is_that_of_the_tree():
    for value, leaf in zip(to_paths(TREE).values(), jax.tree.leaves(TREE), strict=True):
        assert value is leaf
    paths, _ = jax.tree_util.tree_flatten_with_path(TREE)
    assert [path_str(key_path) for key_path, _ in paths] == list(to_paths(TREE))


def test_round_trip_keeps_structure_and_leaves():
    back = from_paths(TREE, to_paths(TREE))
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    assert all(x is y for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(TREE), strict=True))


def test_order_of_the_mapping_does_not_matter_and_leaves_may_be_anything():
    leaves = {path: path for path in reversed(to_paths(TREE))}
    assert to_paths(from_paths(TREE, leaves)) == {path: path for path in leaves}


def test_missing_and_unknown_leaves_are_named():
    leaves = to_paths(TREE)
    short = {k: v for k, v in leaves.items() if not k.startswith("params")}
    with pytest.raises(ValueError, match=r"leaf 'params/Dense_1/bias' is missing \(2 of 5 are\)"):
        from_paths(TREE, short)
    with pytest.raises(ValueError, match=r"leaf 'extra' has no place in the tree \(1 have none\)"):
        from_paths(TREE, leaves | {"extra": 0})
