"""Checkpoints of other libraries as files: folders, parts, types; and what is refused, and how."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxml import nn
from jaxml.io import load_gpt2, load_published, save_gpt2, save_published
from tests.io import torch_models

GPT2 = torch_models.gpt2()
TENSORS = torch_models.tensors(GPT2)


def store(folder, tensors=TENSORS, config=GPT2.config, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_gpt2_goes_to_a_folder_and_back(tmp_path):
    kwargs, variables = load_gpt2(store(tmp_path / "a"))
    assert kwargs == {"vocab_size": 11, "context": 5, "width": 6, "hidden": (10, 10), "heads": 2}
    assert nn.assemble("GPT", kwargs) == nn.GPT(**kwargs)
    save_gpt2(tmp_path / "b", {**kwargs, "positions": "learned"}, variables)
    assert sorted(os.listdir(tmp_path / "b")) == ["config.json", "model.safetensors"]
    again, same = load_gpt2(tmp_path / "b")
    assert again == kwargs
    assert_equal(same, variables)
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    drop = ("attn_pdrop", "transformers_version")
    assert {k: v for k, v in GPT2.config.items() if k not in drop}.items() <= written.items()
    with safe_open(tmp_path / "b" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_older_and_wrapped_files_hold_the_same_model(tmp_path):
    _, variables = load_gpt2(store(tmp_path / "a"))
    bare = {name.removeprefix("transformer."): x for name, x in TENSORS.items()}
    buffers = {
        "h.0.attn.bias": np.ones((1, 1, 5, 5), np.uint8),
        "h.1.attn.masked_bias": np.float32(-1e4)[None],
    }
    for i, tensors in enumerate(
        [
            bare | buffers,
            TENSORS | {"lm_head.weight": TENSORS["transformer.wte.weight"]},
            {f"module.{name}": x for name, x in TENSORS.items()},
        ]
    ):
        assert_equal(load_gpt2(store(tmp_path / str(i), tensors))[1], variables)


def test_parts_are_read_by_their_index(tmp_path):
    _, variables = load_gpt2(store(tmp_path / "whole"))
    folder = tmp_path / "parts"
    names = sorted(TENSORS)
    store(folder, {n: TENSORS[n] for n in names[:9]}, name="model-00001-of-00002.safetensors")
    store(folder, {n: TENSORS[n] for n in names[9:]}, name="model-00002-of-00002.safetensors")
    parts = {n: f"model-0000{1 + (i > 8)}-of-00002.safetensors" for i, n in enumerate(names)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    assert_equal(load_gpt2(folder)[1], variables)
    os.remove(folder / "model-00002-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match=r"names 'model-00002-of-00002.safetensors', which"):
        load_gpt2(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../whole/model.safetensors"}}))
    with pytest.raises(ValueError, match="names a file in another folder"):
        load_gpt2(folder)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_the_dtype_of_the_file_is_kept_unless_one_is_asked_for(tmp_path, name):
    dtype = jnp.dtype(name)
    tensors = torch_models.tensors(GPT2, dtype=dtype)
    kept = load_gpt2(store(tmp_path, tensors))[1]
    assert {x.dtype for x in jax.tree.leaves(kept)} == {dtype}
    wide = load_gpt2(tmp_path, dtype=jnp.float32)[1]
    assert_equal(wide, jax.tree.map(lambda x: x.astype(jnp.float32), kept))
    save_gpt2(tmp_path / "b", load_gpt2(tmp_path)[0], kept)
    back = load_file(tmp_path / "b" / "model.safetensors")
    assert all(back[n].tobytes() == x.tobytes() for n, x in tensors.items())
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == name


def test_float64_needs_a_word(tmp_path):
    store(tmp_path, torch_models.tensors(GPT2, dtype=np.float64))
    with pytest.raises(ValueError, match="has dtype float64, which jax holds"):
        load_gpt2(tmp_path)
    assert load_gpt2(tmp_path, dtype="float32")[1]["params"]["position"].dtype == jnp.float32


def test_counters_and_buffers_of_pytorch_are_passed_over(tmp_path):
    model = torch_models.resnet(bottleneck=False, large=False)
    tensors = torch_models.tensors(model)
    counted = tensors | {"bn1.num_batches_tracked": np.array(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(counted, tmp_path / "b.safetensors")
    a, b = (load_published(tmp_path / f"{name}.safetensors") for name in "ab")
    assert_equal(a.variables, b.variables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function .* must be 'gelu_new', got 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon .* must be 1e-05, got 1e-06"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "gpt_neo"}, "model_type .* must be 'gpt2', got 'gpt_neo'"),
        ({"n_head": 4}, "heads must divide the width 6, got 4"),
        ({"n_head": None}, "n_head of the configuration must be a positive integer, got None"),
        ({"n_inner": None}, r"'h.0.mlp.c_fc.weight' has shape \(6, 10\), expected \(6, 24\)"),
        ({"n_layer": 3}, r"'h.2.ln_1.weight' is missing \(12 of 40 are\)"),
        ({"n_layer": 1}, "'h.1.attn.c_attn.bias' has no place in the layout"),
        ({"vocab_size": 12}, r"'wte.weight' has shape \(11, 6\), expected \(12, 6\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(tmp_path, change, message):
    store(tmp_path, config=GPT2.config | change)
    with pytest.raises(ValueError, match=f"as gpt2: .*{message}"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize(
    ("make", "part", "change", "message"),
    [
        ("hf_vit", None, {"hidden_act": "swish"}, "hidden_act must be one of gelu, .*'swish'"),
        ("hf_vit", None, {"qkv_bias": False}, "qkv_bias"),
        ("hf_vit", None, {"image_size": 6}, r"position_embeddings' has shape .* \(1, 10, 6\)"),
        ("hf_clip", None, {"model_type": "siglip"}, "model_type"),
        ("hf_clip", "text_config", {"eos_token_id": 5}, "eos_token_id .* last token, 8, got 5"),
        ("hf_clip", "text_config", {"intermediate_size": 8}, "intermediate_size .* 16, got 8"),
        ("hf_clip", "vision_config", {"num_attention_heads": 4}, "heads must divide the width 6"),
        ("open_clip", "vision_cfg", {"timm_model_name": "vit"}, "no timm_model_name='vit'"),
        ("open_clip", "text_cfg", {"heads": 3}, "heads must divide the widths"),
    ],
)
def test_other_configurations_too(tmp_path, make, part, change, message):
    model = getattr(torch_models, make)()
    config = json.loads(json.dumps(model.config))
    inner = config.get("model_cfg", config)
    (inner if part is None else inner[part]).update(change)
    name = "open_clip_model" if make == "open_clip" else "model"
    save_file(torch_models.tensors(model), tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=f"needs its {model.config_name}"):
        load_published(tmp_path)
    (tmp_path / model.config_name).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_published(tmp_path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_gpt2(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors or"):
        load_gpt2(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    for path in (tmp_path, tmp_path / "pytorch_model.bin", tmp_path / "none.pth"):
        with pytest.raises(ValueError, match=r"is a pickle, .*safetensors\.torch\.save_file"):
            load_gpt2(path)
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_gpt2(tmp_path)
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds a, \.\.\.: none of the layouts gpt2, hf_vit"):
        load_published(tmp_path)
    with pytest.raises(ValueError, match=r"layout must be one of gpt2, .*; got 'bert'"):
        load_published(tmp_path, layout="bert")
    head = {"lm_head.weight": TENSORS["transformer.wte.weight"] + 1}
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from wte\.weight"):
        load_gpt2(store(tmp_path, TENSORS | head))
    integer = {"transformer.wpe.weight": np.ones((5, 6), np.int8)}
    with pytest.raises(ValueError, match="'params/position' has dtype int8"):
        load_gpt2(store(tmp_path, TENSORS | integer))


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("gpt2", {"positions": "rotary"}, "needs positions='learned', got 'rotary'"),
        ("gpt2", {"token_shift": True}, "needs token_shift=False, got True"),
        ("gpt2", {"activation": "relu"}, "knows nothing of 'activation'"),
        ("gpt2", {"heads": None}, "heads"),
        ("gpt2", {"hidden": (10, 12)}, r"leaf 'params/blocks_1/up/kernel' has shape \(6, 10\)"),
        ("torchvision_resnet", {"padding": "same"}, "needs padding='symmetric', got 'same'"),
        ("torchvision_resnet", {"norm": "layer"}, "needs norm='batch', got 'layer'"),
        ("torchvision_resnet", {"widths": (8, 9)}, r"has shape .*, expected .*9"),
        ("torchvision_vgg", {"norm": "group"}, "needs norm='batch' or 'none', got 'group'"),
        ("torchvision_vgg", {"conv_bias": None}, "needs conv_bias=True"),
        ("torchvision_vit", {"activation": "gelu"}, "needs activation='gelu_exact', got 'gelu'"),
        ("torchvision_vit", {"pool": "mean"}, "needs pool='token', got 'mean'"),
        ("torchvision_vit", {"epsilon": 1e-12}, "needs epsilon=1e-06"),
        ("bert", {}, "layout must be one of gpt2"),
    ],
)
def test_a_module_that_a_layout_has_no_place_for_writes_nothing(tmp_path, layout, change, message):
    make = {
        "torchvision_resnet": lambda: torch_models.resnet(bottleneck=False, large=False),
        "torchvision_vgg": lambda: torch_models.vgg(with_norm=True),
        "torchvision_vit": torch_models.vit,
    }.get(layout, torch_models.gpt2)
    model = make()
    folder = tmp_path / "theirs"
    store(folder, torch_models.tensors(model), model.config)
    published = load_published(folder, heads=2)
    kwargs = {k: v for k, v in (published.module_kwargs | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        save_published(tmp_path / "new", layout, kwargs, published.variables)
    assert not (tmp_path / "new").exists()


def test_leaves_are_named_too(tmp_path):
    kwargs, variables = load_gpt2(store(tmp_path / "theirs"))
    params = dict(variables["params"])
    norm = params.pop("norm")
    with pytest.raises(ValueError, match="leaf 'params/norm/scale' is missing"):
        save_gpt2(tmp_path / "new", kwargs, {"params": params})
    params |= {"norm": norm, "shift": {"kernel": jnp.ones((6, 6))}}
    with pytest.raises(ValueError, match="leaf 'params/shift/kernel' has no place in the module"):
        save_gpt2(tmp_path / "new", kwargs, {"params": params})
    mixed = jax.tree.map(lambda x: x, variables)
    block = mixed["params"]["blocks_0"]
    block["query"] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), block["query"])
    with pytest.raises(ValueError, match="must be of one dtype"):
        save_gpt2(tmp_path / "new", kwargs, mixed)
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    kwargs, variables = load_gpt2(store(tmp_path))
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_gpt2(tmp_path, kwargs, jax.tree.map(lambda x: 2 * x, variables))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_heads_of_torchvision_are_asked_for(tmp_path):
    save_file(torch_models.tensors(torch_models.vit()), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="how many heads share a width of 6"):
        load_published(tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="heads must divide the width 6, got 4"):
        load_published(tmp_path / "vit.safetensors", heads=4)
    saved = load_published(tmp_path / "vit.safetensors", heads=3)
    assert saved.module_kwargs["heads"] == 3


@pytest.mark.parametrize(
    ("module", "kwargs", "message"),
    [
        ("Net", {}, "module must be one of CLIP, GPT, ResNet, VGG, ViT; got 'Net'"),
        ("ViT", {"n_classes": 2, "activation": "swish"}, "activation must be one of relu, gelu"),
        ("GPT", {"depth": 2}, "module_kwargs of GPT: .*'depth'"),
        ("CLIP", {"image_tower": {"side": 2}}, "module_kwargs of VisionTower: .*'side'"),
    ],
)
def test_a_module_that_cannot_be_assembled_is_named(module, kwargs, message):
    with pytest.raises(ValueError, match=message):
        nn.assemble(module, kwargs)
