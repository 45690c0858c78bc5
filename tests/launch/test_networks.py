"""Checkpoints that launchers are given: of other libraries, told apart by what they hold."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from jaxml import merging
from launch import _networks
from tests.io import torch_models

MODEL = torch_models.resnet(bottleneck=False, large=False)
DATASET = types.SimpleNamespace(name="three", input_shape=(8, 8, 3), n_classes=3)


def given(a, b, module=""):
    return ConfigDict({
        "checkpoint_a": str(a), "checkpoint_b": str(b), "module": module, "module_kwargs": "",
    })  # fmt: skip


def files(folder, *tensors):
    paths = [folder / f"{i}.safetensors" for i in range(len(tensors))]
    for path, some in zip(paths, tensors, strict=True):
        save_file(some, path)
    return paths


def test_checkpoints_of_torchvision_can_be_matched(tmp_path):
    tensors = [torch_models.tensors(MODEL, seed) for seed in (0, 1)]
    model, (a, b) = _networks.load(given(*files(tmp_path, *tensors)), DATASET)
    assert model.padding == "symmetric"
    x = MODEL.inputs[0].transpose(0, 2, 3, 1)
    spec = merging.derive_permutation_spec(model.apply, a, jax.ShapeDtypeStruct(x.shape, x.dtype))

    @jax.jit
    def before_and_after(variables):
        perms = {n: jnp.roll(p, 1) for n, p in merging.identity_permutation(spec).items()}
        permuted = merging.apply_permutation(spec, perms, variables)
        return [(v["params"]["Conv_0"], model.apply(v, x)) for v in (variables, permuted)]

    (kernel, ours), (rolled, again) = before_and_after(b)
    assert np.abs(kernel["kernel"] - rolled["kernel"]).max() > 0.1
    theirs = MODEL.function(tensors[1], *MODEL.inputs)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(again, theirs, atol=1e-4)


def test_what_does_not_fit_is_named(tmp_path):
    tensors = torch_models.tensors(MODEL)
    narrow = tensors | {f"fc.{n}": tensors[f"fc.{n}"][:2] for n in ("weight", "bias")}
    a, b = files(tmp_path, tensors, narrow)
    with pytest.raises(ValueError, match="hold different models"):
        _networks.load(given(a, b), DATASET)
    with pytest.raises(ValueError, match="holds a ResNet with n_classes=2, the data set has 3"):
        _networks.load(given(b, b), DATASET)
    grey = types.SimpleNamespace(name="grey", input_shape=(8, 8, 1), n_classes=3)
    with pytest.raises(ValueError, match=r"differ at 'params/Conv_0/kernel': .* a model of 'grey'"):
        _networks.load(given(a, a), grey)
    (tmp_path / "net.pth").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"is a pickle, .*; or give --module=package:Class"):
        _networks.load(given(tmp_path / "net.pth", a), DATASET)
    (strange,) = files(tmp_path, {"w": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match=r"none of the layouts .* or give --module"):
        _networks.load(given(strange, strange), DATASET)
