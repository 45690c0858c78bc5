"""Models of other libraries: found by their names, the same function here, the same bits back."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxml import nn
from jaxml.core.tree import to_paths
from jaxml.io import LAYOUTS, load_published, save_published
from jaxml.nn import CLIPOutput
from tests.io import torch_models

MODELS = {
    "gpt2": ("gpt2", torch_models.gpt2()),
    "hf_vit": ("hf_vit", torch_models.hf_vit()),
    "hf_clip": ("hf_clip", torch_models.hf_clip()),
    "open_clip": ("open_clip", torch_models.open_clip()),
    "resnet": ("torchvision_resnet", torch_models.resnet(bottleneck=False, large=False)),
    "large bottleneck": ("torchvision_resnet", torch_models.resnet(bottleneck=True, large=True)),
    "vgg": ("torchvision_vgg", torch_models.vgg(with_norm=False)),
    "vgg_bn": ("torchvision_vgg", torch_models.vgg(with_norm=True)),
    "vit": ("torchvision_vit", torch_models.vit()),
}
HEADS = {"torchvision_vit": 2}


def store(folder, model, tensors):
    """Writes the files as their library has them."""
    name = "open_clip_model" if model.config_name.startswith("open") else "model"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    if model.config:
        (folder / model.config_name).write_text(json.dumps(model.config))
    return folder / f"{name}.safetensors"


def test_every_layout_is_tested():
    assert {layout for layout, _ in MODELS.values()} == set(LAYOUTS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_same_function_here_and_the_same_bits_back(name, tmp_path):
    layout, model = MODELS[name]
    tensors = torch_models.tensors(model)
    file = store(tmp_path / "theirs", model, tensors)
    published = load_published(tmp_path / "theirs", heads=HEADS.get(layout))
    assert published.layout == layout
    module = nn.assemble(published.module, published.module_kwargs)

    inputs = [x if x.ndim < 4 else x.transpose(0, 2, 3, 1) for x in model.inputs]
    like = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    assert jax.tree.structure(published.variables) == jax.tree.structure(like)
    shapes = {path: x.shape for path, x in to_paths(published.variables).items()}
    assert shapes == {path: x.shape for path, x in to_paths(like).items()}

    ours = jax.jit(module.apply)(published.variables, *inputs)
    if isinstance(ours, CLIPOutput):
        ours = np.exp(ours.log_scale) * ours.image @ ours.text.T
    wide = {n: x.astype(np.float64) for n, x in tensors.items()}
    np.testing.assert_allclose(ours, model.function(wide, *model.inputs), atol=2e-5)

    save_published(tmp_path / "back", layout, published.module_kwargs, published.variables)
    back = load_file(tmp_path / "back" / file.name)
    assert back.keys() == tensors.keys()
    for key, x in tensors.items():
        assert (back[key].dtype, back[key].shape) == (x.dtype, x.shape)
        assert back[key].tobytes() == x.tobytes()
    again = load_published(tmp_path / "back")  # heads are in the file now
    assert again[:3] == published[:3]


@pytest.mark.parametrize("name", MODELS)
def test_what_a_module_draws_comes_back_from_the_layout(name, tmp_path):
    layout, model = MODELS[name]
    folder = tmp_path / "theirs"
    store(folder, model, torch_models.tensors(model, dtype=np.float16))
    kwargs = load_published(folder, heads=HEADS.get(layout)).module_kwargs
    drawn = load_published(folder, heads=2, dtype="bfloat16").variables
    # A file named by its user, and kwargs that have been through JSON.
    save_published(tmp_path / "a.safetensors", layout, json.loads(json.dumps(kwargs)), drawn)
    back = load_published(tmp_path / "a.safetensors", layout=layout).variables
    assert jax.tree.structure(back) == jax.tree.structure(drawn)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(drawn), strict=True):
        assert a.dtype == b.dtype == jax.numpy.bfloat16
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_needed_and_no_other_taken(name, tmp_path):
    layout, model = MODELS[name]
    tensors = torch_models.tensors(model)

    def load(changed, message):
        store(tmp_path, model, changed)
        with pytest.raises(ValueError, match=message):
            load_published(tmp_path, layout=layout, heads=HEADS.get(layout))

    for key, x in tensors.items():
        bare = key.removeprefix("transformer.") if layout == "gpt2" else key
        message = f"'{re.escape(bare)}' is missing"
        if key.startswith("features.") and x.ndim == 4:  # by which blocks and sizes are known
            message = "features have convolutions at|must make a square"
        if key != "logit_bias":  # which a model may do without
            load({n: x for n, x in tensors.items() if n != key}, message)
    load(tensors | {"stranger": np.ones(2, np.float32)}, "tensor 'stranger' has no place")
    key = max(tensors, key=lambda n: "bias" in n and len(n))
    wrong = tensors | {key: np.ones(1, np.float32)}
    load(wrong, rf"tensor '.*' has shape \(1,\), expected \({tensors[key].size},\)")
