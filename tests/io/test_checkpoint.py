"""Checkpoints: the newest complete one comes back bit by bit, sharding included."""

import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.core.sharding import make_mesh, replicate
from jaxml.io import checkpoint


class State(NamedTuple):
    step: jax.Array
    params: Any
    opt_state: Any


def _state(step=0):
    params = {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3) + step, "bias": jnp.ones(3)}}
    params["half"] = jnp.full(2, 0.1, jnp.bfloat16)
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.adam(0.1))
    return State(jnp.int32(step), params, optimizer.init(params))


def _assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_state_comes_back_into_its_shapes_or_into_another_state(tmp_path):
    state = _state(7)
    checkpoint.save(tmp_path, 7, state)
    _assert_same(checkpoint.restore(tmp_path, 7, jax.eval_shape(_state)), state)
    _assert_same(checkpoint.restore(tmp_path, 7, _state(0)), state)


def test_only_the_newest_two_are_kept(tmp_path):
    directory = tmp_path / "checkpoints"
    assert checkpoint.latest_step(directory) is None
    assert not directory.exists()
    for step in (5, 10, 15):
        checkpoint.save(directory, step, _state(step))
    assert checkpoint.latest_step(directory) == 15
    assert checkpoint.restore(directory, 10, _state()).step == 10
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 5 in .*\[10, 15\]"):
        checkpoint.restore(directory, 5, _state())
    with pytest.raises(ValueError, match="larger than the newest, 15, got 15"):
        checkpoint.save(directory, 15, _state())


def test_a_save_that_was_cut_off_is_not_returned(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, _state(1))
    rename = os.rename

    def killed(source, target, *args, **kwargs):
        if os.path.basename(target) == "2":
            raise KeyboardInterrupt
        return rename(source, target, *args, **kwargs)

    monkeypatch.setattr(os, "rename", killed)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, _state(2))
    monkeypatch.undo()
    assert len(os.listdir(tmp_path)) == 2  # what was half written is there
    assert checkpoint.latest_step(tmp_path) == 1
    checkpoint.save(tmp_path, 2, _state(2))
    assert checkpoint.restore(tmp_path, checkpoint.latest_step(tmp_path), _state()).step == 2


def test_sharding_is_that_of_like(tmp_path):
    checkpoint.save(tmp_path, 0, _state())
    like = replicate(_state(), make_mesh())
    restored = checkpoint.restore(tmp_path, 0, like)
    assert all(len(leaf.devices()) == 4 for leaf in jax.tree.leaves(restored))


def test_another_structure_or_shape_names_the_leaf(tmp_path):
    state = _state()
    checkpoint.save(tmp_path, 3, state)
    wider = state._replace(params={**state.params, "half": jnp.ones(5, jnp.bfloat16)})
    with pytest.raises(ValueError, match=r"'params/half': shape \(5,\) in like, \(2,\) in check"):
        checkpoint.restore(tmp_path, 3, wider)
    less = state._replace(params={"half": state.params["half"]})
    with pytest.raises(ValueError, match=r"'params/Dense_0/bias' is in checkpoint 3 and not in"):
        checkpoint.restore(tmp_path, 3, less)
    with pytest.raises(FileNotFoundError, match="no checkpoints in"):
        checkpoint.restore(tmp_path / "none", 3, state)


def test_orbax_loads_on_first_use_only():
    code = "import sys, jaxml.io; print(any(m.startswith('orbax') for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
