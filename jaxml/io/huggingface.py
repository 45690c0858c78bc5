"""GPT-2, ViT and CLIP as Hugging Face's transformers library stores them."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxml.io.name_map import (
    Layout,
    Row,
    check_kwargs,
    conv,
    dense,
    norm,
    row,
    shape_of,
    side_of,
)

# Their name of an activation: that of jaxml.nn.
ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
}


def _integer(config: Mapping, name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} of the configuration must be a positive integer, got {value!r}")
    return value


def _expect(config: Mapping, fixed: Mapping[str, Any]) -> None:
    # What a configuration leaves out has the library's default, which is what is expected.
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"{name} of the configuration must be {value!r}, got {config[name]!r}: "
                "jaxml has no such model"
            )


def _activation(config: Mapping, default: str) -> str:
    name = config.get("hidden_act", default)
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]


def _their_activation(name: str) -> str:
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    if name not in theirs:
        raise ValueError(f"activation must be one of {', '.join(theirs)}; got {name!r}")
    return theirs[name]


def _check_heads(heads: int, width: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")


def _needed(config: Mapping | None) -> Mapping:
    if config is None:
        raise ValueError("this layout needs its config.json beside the tensors")
    return config


# GPT-2. Its linear layers keep the weight as [in, out].

_GPT2_FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def _describe_gpt2(config, shapes, heads):
    config = _needed(config)
    _expect(config, _GPT2_FIXED)
    width = _integer(config, "n_embd")
    inner = 4 * width if config.get("n_inner") is None else _integer(config, "n_inner")
    kwargs = {
        "vocab_size": _integer(config, "vocab_size"),
        "context": _integer(config, "n_positions"),
        "width": width,
        "hidden": (inner,) * _integer(config, "n_layer"),
        "heads": _integer(config, "n_head"),
    }
    return kwargs, _measure_gpt2(kwargs, shapes)


def _measure_gpt2(kwargs, shapes):
    needed = ("vocab_size", "context", "width", "hidden", "heads")
    check_kwargs(kwargs, needed, {"positions": "learned", "token_shift": False})
    _check_heads(kwargs["heads"], kwargs["width"])
    return {}


def _rows_gpt2(kwargs) -> list[Row]:
    width, heads = kwargs["width"], kwargs["heads"]
    head = (heads, width // heads)

    def linear(theirs, ours, n_in, n_out):
        return [
            row(f"{theirs}.weight", (n_in, n_out), f"{ours}/kernel"),
            row(f"{theirs}.bias", (n_out,), f"{ours}/bias"),
        ]

    rows = [
        row("wte.weight", (kwargs["vocab_size"], width), "params/embed/embedding"),
        row("wpe.weight", (kwargs["context"], width), "params/position"),
        *norm("ln_f", "params/norm", width),
    ]
    for i, hidden in enumerate(kwargs["hidden"]):
        theirs, ours = f"h.{i}", f"params/blocks_{i}"
        three = [f"{ours}/{name}" for name in ("query", "key", "value")]
        rows += [
            *norm(f"{theirs}.ln_1", f"{ours}/norm_1", width),
            row(
                f"{theirs}.attn.c_attn.weight",
                (width, 3 * width),
                [f"{name}/kernel" for name in three],
                view=(width, 3, *head),
                order=(1, 0, 2, 3),
            ),
            row(
                f"{theirs}.attn.c_attn.bias",
                (3 * width,),
                [f"{name}/bias" for name in three],
                view=(3, *head),
            ),
            row(
                f"{theirs}.attn.c_proj.weight",
                (width, width),
                f"{ours}/out/kernel",
                view=(*head, width),
            ),
            row(f"{theirs}.attn.c_proj.bias", (width,), f"{ours}/out/bias"),
            *norm(f"{theirs}.ln_2", f"{ours}/norm_2", width),
            *linear(f"{theirs}.mlp.c_fc", f"{ours}/up", width, hidden),
            *linear(f"{theirs}.mlp.c_proj", f"{ours}/down", hidden, width),
        ]
    return rows


def _one_hidden(hidden: Sequence[int]) -> int:
    if len(set(hidden)) != 1:
        raise ValueError(f"hidden must be one number for all blocks in this layout, got {hidden}")
    return hidden[0]


def _config_gpt2(kwargs) -> dict:
    end = 50256 if kwargs["vocab_size"] == 50257 else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        **_GPT2_FIXED,
        "vocab_size": kwargs["vocab_size"],
        "n_positions": kwargs["context"],
        "n_embd": kwargs["width"],
        "n_layer": len(kwargs["hidden"]),
        "n_head": kwargs["heads"],
        "n_inner": _one_hidden(kwargs["hidden"]),
        "bos_token_id": end,
        "eos_token_id": end,
    }


GPT2 = Layout(
    "GPT",
    "h.0.attn.c_attn.weight",
    _describe_gpt2,
    _measure_gpt2,
    _rows_gpt2,
    _config_gpt2,
    prefix="transformer.",
    # Buffers of the causal mask, which older files keep.
    ignored=r"h\.\d+\.attn\.(masked_)?bias",
)


# ViT for classification.


def _tokens(image: int, patch: int) -> int:
    return (image // patch) ** 2 + 1


def _describe_vit(config, shapes, heads):
    config = _needed(config)
    _expect(config, {"model_type": "vit", "qkv_bias": True})
    width, patch = _integer(config, "hidden_size"), _integer(config, "patch_size")
    layers = _integer(config, "num_hidden_layers")
    kwargs = {
        "n_classes": shape_of(shapes, "classifier.weight", 2)[0],
        "width": width,
        "hidden": (_integer(config, "intermediate_size"),) * layers,
        "heads": _integer(config, "num_attention_heads"),
        "patch": patch,
        "pool": "token",
        "activation": _activation(config, "gelu"),
        "epsilon": config.get("layer_norm_eps", 1e-12),
    }
    _check_heads(kwargs["heads"], width)
    tokens = _tokens(_integer(config, "image_size"), patch)
    return kwargs, {"channels": config.get("num_channels", 3), "tokens": tokens}


def measure_vit(kwargs: Mapping, shapes: Mapping, **fixed: Any) -> dict:
    """Reads off a ``ViT`` how many channels its images and how many tokens they have."""
    needed = ("n_classes", "width", "hidden", "heads", "patch", "activation")
    # The default of `epsilon` is the value of torchvision.
    check_kwargs({"epsilon": 1e-6} | kwargs, (*needed, "epsilon"), {"pool": "token", **fixed})
    _check_heads(kwargs["heads"], kwargs["width"])
    return {
        "channels": shape_of(shapes, "params/Conv_0/kernel", 4)[2],
        "tokens": shape_of(shapes, "params/position", 3)[1],
    }


def _rows_vit(kwargs, channels, tokens) -> list[Row]:
    width, heads = kwargs["width"], kwargs["heads"]
    head = (heads, width // heads)
    rows = [
        row("vit.embeddings.cls_token", (1, 1, width), "params/token"),
        row("vit.embeddings.position_embeddings", (1, tokens, width), "params/position"),
        *patches("vit.embeddings.patch_embeddings.projection", kwargs, channels),
        *norm("vit.layernorm", "params/LayerNorm_0", width),
        *dense("classifier", "params/Dense_0", width, kwargs["n_classes"]),
    ]
    for i, hidden in enumerate(kwargs["hidden"]):
        theirs, ours = f"vit.encoder.layer.{i}", f"params/ViTBlock_{i}"
        attention = f"{ours}/MultiHeadDotProductAttention_0"
        for name in ("query", "key", "value"):
            linear = f"{theirs}.attention.attention.{name}"
            rows += [
                row(
                    f"{linear}.weight",
                    (width, width),
                    f"{attention}/{name}/kernel",
                    view=(*head, width),
                    order=(2, 0, 1),
                ),
                row(f"{linear}.bias", (width,), f"{attention}/{name}/bias", view=head),
            ]
        rows += [
            *norm(f"{theirs}.layernorm_before", f"{ours}/LayerNorm_0", width),
            *attention_out(f"{theirs}.attention.output.dense", f"{attention}/out", head),
            *norm(f"{theirs}.layernorm_after", f"{ours}/LayerNorm_1", width),
            *dense(f"{theirs}.intermediate.dense", f"{ours}/Dense_0", width, hidden),
            *dense(f"{theirs}.output.dense", f"{ours}/Dense_1", hidden, width),
        ]
    return rows


def patches(theirs: str, kwargs: Mapping, channels: int) -> list[Row]:
    """The convolution that makes tokens of patches in a ``ViT``."""
    return [
        conv(theirs, "params/Conv_0", channels, kwargs["width"], kwargs["patch"]),
        row(f"{theirs}.bias", (kwargs["width"],), "params/Conv_0/bias"),
    ]


def attention_out(theirs: str, ours: str, head: tuple[int, int]) -> list[Row]:
    """The linear layer after an attention whose heads are an axis of ours."""
    width = head[0] * head[1]
    return [
        row(
            f"{theirs}.weight",
            (width, width),
            f"{ours}/kernel",
            view=(width, *head),
            order=(1, 2, 0),
        ),
        row(f"{theirs}.bias", (width,), f"{ours}/bias"),
    ]


def _config_vit(kwargs, channels, tokens) -> dict:
    labels = {str(i): f"LABEL_{i}" for i in range(kwargs["n_classes"])}
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": kwargs["width"],
        "num_hidden_layers": len(kwargs["hidden"]),
        "num_attention_heads": kwargs["heads"],
        "intermediate_size": _one_hidden(kwargs["hidden"]),
        "hidden_act": _their_activation(kwargs["activation"]),
        "layer_norm_eps": kwargs.get("epsilon", 1e-6),
        "image_size": kwargs["patch"] * side_of(tokens - 1, "tokens beside the first"),
        "patch_size": kwargs["patch"],
        "num_channels": channels,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    }


VIT = Layout(
    "ViT",
    "vit.embeddings.cls_token",
    _describe_vit,
    measure_vit,
    _rows_vit,
    _config_vit,
)


# CLIP with two transformers.


def _describe_clip(config, shapes, heads):
    config = _needed(config)
    _expect(config, {"model_type": "clip"})
    towers = {}
    for name in ("vision_config", "text_config"):
        part = config.get(name) or {}
        _expect(part, {"layer_norm_eps": 1e-5})
        width = _integer(part, "hidden_size")
        _expect(part, {"intermediate_size": 4 * width})
        towers[name] = {
            "width": width,
            "layers": _integer(part, "num_hidden_layers"),
            "heads": _integer(part, "num_attention_heads"),
            "embed": _integer(config, "projection_dim"),
            "activation": _activation(part, "quick_gelu"),
        }
        _check_heads(towers[name]["heads"], width)
    vision, text = config["vision_config"], config["text_config"]
    patch, vocabulary = _integer(vision, "patch_size"), _integer(text, "vocab_size")
    # 2 is what OpenAI's own files say, and stands for the largest number of a text.
    if text.get("eos_token_id", vocabulary - 1) not in (2, vocabulary - 1):
        raise ValueError(
            f"eos_token_id of the configuration must be the last token, {vocabulary - 1}, "
            f"got {text['eos_token_id']}"
        )
    kwargs = {
        "image_tower": {**towers["vision_config"], "patch": patch},
        "text_tower": {
            **towers["text_config"],
            "vocabulary": vocabulary,
            "context": _integer(text, "max_position_embeddings"),
        },
    }
    tokens = _tokens(_integer(vision, "image_size"), patch)
    return kwargs, {"channels": vision.get("num_channels", 3), "tokens": tokens}


def measure_clip(kwargs: Mapping, shapes: Mapping) -> dict:
    """Reads off a ``CLIP`` how many channels its images and how many tokens they have."""
    both = ("width", "layers", "heads", "embed", "activation")
    for tower, own in (("image_tower", ("patch",)), ("text_tower", ("vocabulary", "context"))):
        if not isinstance(kwargs.get(tower), Mapping):
            raise ValueError(f"module_kwargs must have the keyword arguments of {tower!r}")
        check_kwargs(kwargs[tower], (*both, *own))
        _check_heads(kwargs[tower]["heads"], kwargs[tower]["width"])
    image = kwargs["image_tower"]
    if image["embed"] != kwargs["text_tower"]["embed"]:
        raise ValueError("both towers must have the same embed")
    rows = shape_of(shapes, "params/image_tower/patches/kernel", 2)[0]
    return {
        "channels": rows // image["patch"] ** 2,
        "tokens": shape_of(shapes, "params/image_tower/position", 2)[0],
    }


def _measure_clip(kwargs, shapes):
    check_kwargs(kwargs, ("image_tower", "text_tower"), {"init_bias": None})
    return measure_clip(kwargs, shapes)


def clip_patches(theirs: str, kwargs: Mapping, channels: int) -> Row:
    """The convolution that makes tokens of patches; ours is the product that it is."""
    width, patch = kwargs["width"], kwargs["patch"]
    return row(
        theirs,
        (width, channels, patch, patch),
        "params/image_tower/patches/kernel",
        order=(2, 3, 1, 0),
        to=(patch * patch * channels, width),
    )


def _rows_clip(kwargs, channels, tokens) -> list[Row]:
    image, text = kwargs["image_tower"], kwargs["text_tower"]
    vision, ours = "vision_model.embeddings", "params/image_tower"
    width, text_width = image["width"], text["width"]
    rows = [
        row("logit_scale", (), "params/log_scale"),
        row(f"{vision}.class_embedding", (width,), f"{ours}/token"),
        clip_patches(f"{vision}.patch_embedding.weight", image, channels),
        row(f"{vision}.position_embedding.weight", (tokens, width), f"{ours}/position"),
        # The library spells it so.
        *norm("vision_model.pre_layrnorm", f"{ours}/ln_pre", width),
        *norm("vision_model.post_layernorm", f"{ours}/ln_post", width),
        row(
            "visual_projection.weight",
            (image["embed"], width),
            f"{ours}/projection/kernel",
            order=(1, 0),
        ),
    ]
    words, ours = "text_model.embeddings", "params/text_tower"
    rows += [
        row(
            f"{words}.token_embedding.weight",
            (text["vocabulary"], text_width),
            f"{ours}/embedding/embedding",
        ),
        row(
            f"{words}.position_embedding.weight", (text["context"], text_width), f"{ours}/position"
        ),
        *norm("text_model.final_layer_norm", f"{ours}/ln_final", text_width),
        row(
            "text_projection.weight",
            (text["embed"], text_width),
            f"{ours}/projection/kernel",
            order=(1, 0),
        ),
    ]
    for theirs, tower in (("vision_model", "image_tower"), ("text_model", "text_tower")):
        width = kwargs[tower]["width"]
        for i in range(kwargs[tower]["layers"]):
            layer, ours = f"{theirs}.encoder.layers.{i}", f"params/{tower}/block_{i}"
            three = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
            rows += [
                *norm(f"{layer}.layer_norm1", f"{ours}/ln_1", width),
                row(
                    [f"{name}.weight" for name in three],
                    (width, width),
                    f"{ours}/qkv/kernel",
                    order=(2, 0, 1),
                    to=(width, 3 * width),
                ),
                row(
                    [f"{name}.bias" for name in three],
                    (width,),
                    f"{ours}/qkv/bias",
                    to=(3 * width,),
                ),
                *dense(f"{layer}.self_attn.out_proj", f"{ours}/out", width, width),
                *norm(f"{layer}.layer_norm2", f"{ours}/ln_2", width),
                *dense(f"{layer}.mlp.fc1", f"{ours}/up", width, 4 * width),
                *dense(f"{layer}.mlp.fc2", f"{ours}/down", 4 * width, width),
            ]
    return rows


def _config_clip(kwargs, channels, tokens) -> dict:
    def tower(part):
        return {
            "hidden_size": part["width"],
            "intermediate_size": 4 * part["width"],
            "num_hidden_layers": part["layers"],
            "num_attention_heads": part["heads"],
            "projection_dim": part["embed"],
            "hidden_act": _their_activation(part["activation"]),
            "layer_norm_eps": 1e-5,
        }

    image, text = kwargs["image_tower"], kwargs["text_tower"]
    end = text["vocabulary"] - 1
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": image["embed"],
        "vision_config": {
            **tower(image),
            "image_size": image["patch"] * side_of(tokens - 1, "tokens beside the first"),
            "patch_size": image["patch"],
            "num_channels": channels,
        },
        "text_config": {
            **tower(text),
            "vocab_size": text["vocabulary"],
            "max_position_embeddings": text["context"],
            "bos_token_id": max(end - 1, 0),
            "eos_token_id": end,
        },
    }


CLIP = Layout(
    "CLIP",
    "text_model.embeddings.token_embedding.weight",
    _describe_clip,
    _measure_clip,
    _rows_clip,
    _config_clip,
    ignored=r"(text|vision)_model\.embeddings\.position_ids",
)
