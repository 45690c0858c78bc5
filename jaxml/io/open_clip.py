"""CLIP as open_clip stores it, with a ViT and a transformer of its own."""

from collections.abc import Mapping

from jaxml.io.huggingface import clip_patches, measure_clip
from jaxml.io.name_map import Layout, Row, check_kwargs, dense, norm, row, side_of


def _read(part: Mapping, where: str, needed: dict, fixed: dict) -> dict:
    """Reads what a part of the configuration says, under the names of ours."""
    for name, value in part.items():
        if name not in needed and (name not in fixed or value != fixed[name]):
            raise ValueError(f"{where} of the configuration: jaxml has no {name}={value!r}")
    if missing := [name for name in needed if name not in part]:
        raise ValueError(f"{where} of the configuration has no {missing[0]!r}")
    return {ours: part[name] for name, ours in needed.items() if ours}


def _describe(config, shapes, heads):
    if config is None:
        raise ValueError("this layout needs its open_clip_config.json beside the tensors")
    model = dict(config.get("model_cfg") or config)
    activation = "gelu_quick" if model.pop("quick_gelu", False) else "gelu_exact"
    bias = model.pop("init_logit_bias", None)
    model.pop("init_logit_scale", None)
    vision, text = dict(model.pop("vision_cfg", {})), dict(model.pop("text_cfg", {}))
    common = _read(model, "model_cfg", {"embed_dim": "embed"}, {"custom_text": False})
    common["activation"] = activation
    fixed, names = {"mlp_ratio": 4.0}, {"width": "width", "layers": "layers"}
    head_width = vision.pop("head_width", 64)
    image = _read(vision, "vision_cfg", {**names, "patch_size": "patch", "image_size": None}, fixed)
    words = {"heads": "heads", "vocab_size": "vocabulary", "context_length": "context"}
    text = _read(text, "text_cfg", {**names, **words}, fixed)
    if image["width"] % head_width or text["width"] % text["heads"]:
        raise ValueError("heads must divide the widths of both towers")
    kwargs = {
        "image_tower": {**image, "heads": image["width"] // head_width, **common},
        "text_tower": {**text, **common},
    }
    if "logit_bias" in shapes:
        kwargs["init_bias"] = 0.0 if bias is None else bias
    tokens = (vision["image_size"] // image["patch"]) ** 2 + 1
    channels = len(shapes) and shapes.get("visual.conv1.weight", (0, 3))[1]
    return kwargs, {"channels": channels, "tokens": tokens}


def _measure(kwargs, shapes):
    check_kwargs({"init_bias": None, **kwargs}, ("image_tower", "text_tower", "init_bias"))
    sizes = measure_clip(kwargs, shapes)
    used = {kwargs[tower]["activation"] for tower in ("image_tower", "text_tower")}
    if used not in ({"gelu_exact"}, {"gelu_quick"}):
        raise ValueError(f"the layout needs one activation, gelu_exact or gelu_quick, got {used}")
    return sizes


def _rows(kwargs, channels, tokens) -> list[Row]:
    image, text = kwargs["image_tower"], kwargs["text_tower"]
    width, text_width = image["width"], text["width"]
    rows = [
        row("logit_scale", (), "params/log_scale"),
        row("visual.class_embedding", (width,), "params/image_tower/token"),
        clip_patches("visual.conv1.weight", image, channels),
        row("visual.positional_embedding", (tokens, width), "params/image_tower/position"),
        *norm("visual.ln_pre", "params/image_tower/ln_pre", width),
        *norm("visual.ln_post", "params/image_tower/ln_post", width),
        row("visual.proj", (width, image["embed"]), "params/image_tower/projection/kernel"),
        row(
            "token_embedding.weight",
            (text["vocabulary"], text_width),
            "params/text_tower/embedding/embedding",
        ),
        row("positional_embedding", (text["context"], text_width), "params/text_tower/position"),
        *norm("ln_final", "params/text_tower/ln_final", text_width),
        row("text_projection", (text_width, text["embed"]), "params/text_tower/projection/kernel"),
    ]
    if kwargs.get("init_bias") is not None:
        rows.append(row("logit_bias", (), "params/logit_bias"))
    for prefix, tower in (("visual.", "image_tower"), ("", "text_tower")):
        width = kwargs[tower]["width"]
        for i in range(kwargs[tower]["layers"]):
            theirs, ours = f"{prefix}transformer.resblocks.{i}", f"params/{tower}/block_{i}"
            rows += [
                *norm(f"{theirs}.ln_1", f"{ours}/ln_1", width),
                row(
                    f"{theirs}.attn.in_proj_weight",
                    (3 * width, width),
                    f"{ours}/qkv/kernel",
                    order=(1, 0),
                ),
                row(f"{theirs}.attn.in_proj_bias", (3 * width,), f"{ours}/qkv/bias"),
                *dense(f"{theirs}.attn.out_proj", f"{ours}/out", width, width),
                *norm(f"{theirs}.ln_2", f"{ours}/ln_2", width),
                *dense(f"{theirs}.mlp.c_fc", f"{ours}/up", width, 4 * width),
                *dense(f"{theirs}.mlp.c_proj", f"{ours}/down", 4 * width, width),
            ]
    return rows


def _config(kwargs, channels, tokens) -> dict:
    image, text = kwargs["image_tower"], kwargs["text_tower"]
    model = {
        "embed_dim": image["embed"],
        "vision_cfg": {
            "image_size": image["patch"] * side_of(tokens - 1, "tokens beside the first"),
            "layers": image["layers"],
            "width": image["width"],
            "head_width": image["width"] // image["heads"],
            "patch_size": image["patch"],
        },
        "text_cfg": {
            "context_length": text["context"],
            "vocab_size": text["vocabulary"],
            "width": text["width"],
            "heads": text["heads"],
            "layers": text["layers"],
        },
    }
    if image["activation"] == "gelu_quick":
        model["quick_gelu"] = True
    if kwargs.get("init_bias") is not None:
        model["init_logit_bias"] = kwargs["init_bias"]
    return {"model_cfg": model, "preprocess_cfg": {}}


LAYOUT = Layout(
    "CLIP",
    "visual.class_embedding",
    _describe,
    _measure,
    _rows,
    _config,
    config_name="open_clip_config.json",
    # The causal mask.
    ignored="attn_mask",
)
