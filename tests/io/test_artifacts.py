"""Artifacts: what is read is what was written, whole or not at all, or an error naming the leaf."""

import json
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.io import artifacts, load_json, load_metadata, load_tree, save_json, save_tree

TREE = {
    "params": {
        "Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)},
    },
    "perm": jnp.array([2, 0, 1], jnp.int32),
    "mask": jnp.array([True, False]),
    "scalar": jnp.float32(3.5),
}


def _assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_tree_comes_back_with_its_dtypes_and_metadata(tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    save_tree(path, TREE, metadata={"paper": "git_rebasin"})
    _assert_same(load_tree(path), TREE)
    _assert_same(load_tree(path, like=TREE), TREE)
    _assert_same(load_tree(path, like=jax.eval_shape(lambda: TREE)), TREE)
    assert load_metadata(path) == {"paper": "git_rebasin"}
    assert os.listdir(path.parent) == [path.name]


def test_like_gives_other_containers_back(tmp_path):
    class Pair(NamedTuple):
        a: jax.Array
        b: list

    pair = Pair(jnp.ones(2), [jnp.zeros((1, 2)), jnp.arange(3)])
    save_tree(tmp_path / "pair", pair)
    _assert_same(load_tree(tmp_path / "pair", like=pair), pair)
    assert set(load_tree(tmp_path / "pair")["b"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scalar": jnp.ones(2)}, r"'scalar': shape \(2,\) in like, \(\) in .*model"),
        ({"perm": jnp.arange(3.0)}, r"'perm' has dtype float32 in like and int32 in .*model"),
        ({"extra": jnp.ones(2)}, r"'extra' is in like and not in .*model"),
    ],
)
def test_a_file_that_does_not_fit_names_the_leaf(tmp_path, change, message):
    save_tree(tmp_path / "model", TREE)
    with pytest.raises(ValueError, match=message):
        load_tree(tmp_path / "model", like={**TREE, **change})


def test_a_leaf_that_like_lacks_is_named(tmp_path):
    save_tree(tmp_path / "model", TREE)
    with pytest.raises(ValueError, match=r"'perm' is in .*model and not in like"):
        load_tree(tmp_path / "model", like={k: v for k, v in TREE.items() if k != "perm"})


def test_names_that_clash_are_refused(tmp_path):
    with pytest.raises(ValueError, match="share a name"):
        save_tree(tmp_path / "model", {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tree(tmp_path / "none.safetensors")


def test_a_file_that_is_no_safetensors_file_is_named(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"something else")
    for load in (load_tree, load_metadata):
        with pytest.raises(ValueError, match=r"model is not a safetensors file: "):
            load(path)


def test_json_keeps_values_and_turns_arrays_to_lists(tmp_path):
    save_json(tmp_path / "a.json", {"x": np.float32(0.5), "y": jnp.arange(2), "z": [None, "t"]})
    assert load_json(tmp_path / "a.json") == {"x": 0.5, "y": [0, 1], "z": [None, "t"]}
    with pytest.raises(TypeError, match="object has no JSON form"):
        save_json(tmp_path / "a.json", object())
    assert json.loads((tmp_path / "a.json").read_text())["x"] == 0.5


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_tree(path, TREE)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(artifacts.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_tree(path, {"other": jnp.ones(1)})
    assert os.listdir(tmp_path) == [path.name]
    _assert_same(load_tree(path), TREE)
