"""ResNet, VGG and ViT as torchvision names their parameters, and what follows it on CIFAR."""

import re
from collections.abc import Mapping

from jaxml.io.huggingface import attention_out, measure_vit, patches
from jaxml.io.name_map import (
    Layout,
    Row,
    batch_norm,
    check_kwargs,
    conv,
    count,
    dense,
    norm,
    row,
    shape_of,
    side_of,
)

# Batches seen; nothing reads it, and PyTorch loads a file without it.
_COUNTERS = r".*\.num_batches_tracked"


# ResNet.


def _block_names(blocks):
    """Yields (stage, name of theirs) of each block in order."""
    for stage, n in enumerate(blocks):
        for i in range(n):
            yield stage, f"layer{stage + 1}.{i}"


def _describe_resnet(config, shapes, heads):
    blocks = []
    while n := count(shapes, rf"layer{len(blocks) + 1}\.(\d+)\."):
        blocks.append(n)
    names = [name for _, name in _block_names(blocks)]
    bottleneck = any(name.startswith(("layer1.0.conv3", "layer1.0.bn3")) for name in shapes)
    last = 3 if bottleneck else 2

    def width(name):
        return shape_of(shapes, f"{name}.weight", 4)[0]

    stem, channels, size, _ = shape_of(shapes, "conv1.weight", 4)
    if size not in (3, 7):
        raise ValueError(f"'conv1.weight' must be of windows of 3 or 7, got {size}")
    kwargs = {
        "n_classes": shape_of(shapes, "fc.weight", 2)[0],
        "widths": tuple(width(f"layer{s + 1}.{n - 1}.conv{last}") for s, n in enumerate(blocks)),
        "blocks": tuple(blocks),
        "inner": tuple(width(f"{name}.conv{i}") for name in names for i in range(1, last)),
        "bottleneck": bottleneck,
        "stem": stem,
        "large_images": size == 7,
        "norm": "batch",
        "padding": "symmetric",
    }
    shortcuts = tuple(i for i, name in enumerate(names) if f"{name}.downsample.0.weight" in shapes)
    return kwargs, {"channels": channels, "shortcuts": shortcuts}


def _measure_resnet(kwargs, shapes):
    needed = ("n_classes", "widths", "blocks", "norm", "padding")
    defaults = {"inner": None, "bottleneck": False, "stem": None, "large_images": False}
    check_kwargs(
        {**defaults, **kwargs}, (*needed, *defaults), {"norm": "batch", "padding": "symmetric"}
    )
    kind = "Bottleneck" if kwargs.get("bottleneck") else "Residual"
    with_shortcut = [
        i
        for i in range(sum(kwargs["blocks"]))
        if f"params/{kind}Block_{i}/shortcut/kernel" in shapes
    ]
    channels = shape_of(shapes, "params/Conv_0/kernel", 4)[2]
    return {"channels": channels, "shortcuts": tuple(with_shortcut)}


def _rows_resnet(kwargs, channels, shortcuts) -> list[Row]:
    widths, blocks, bottleneck = kwargs["widths"], kwargs["blocks"], kwargs.get("bottleneck", False)
    stem = kwargs.get("stem") or widths[0]
    sides, kind = ((1, 3, 1), "Bottleneck") if bottleneck else ((3, 3), "Residual")
    names = list(_block_names(blocks))
    inner = kwargs.get("inner") or tuple(
        widths[stage] // (4 if bottleneck else 1) for stage, _ in names for _ in sides[1:]
    )
    large = kwargs.get("large_images", False)
    rows = [
        conv("conv1", "params/Conv_0", channels, stem, 7 if large else 3),
        *batch_norm("bn1", "BatchNorm_0", stem),
    ]
    width, before = stem, 0
    for i, (stage, theirs) in enumerate(names):
        ours = f"{kind}Block_{i}"
        per_block = len(sides) - 1
        outs = (*inner[per_block * i : per_block * (i + 1)], widths[stage])
        n_in = width
        for j, (side, n_out) in enumerate(zip(sides, outs, strict=True)):
            rows += [
                conv(f"{theirs}.conv{j + 1}", f"params/{ours}/Conv_{j}", n_in, n_out, side),
                *batch_norm(f"{theirs}.bn{j + 1}", f"{ours}/BatchNorm_{j}", n_out),
            ]
            n_in = n_out
        # The module makes one where the shape changes, and keeps one that the parameters have.
        if stage != before or width != n_in or i in shortcuts:
            rows += [
                conv(f"{theirs}.downsample.0", f"params/{ours}/shortcut", width, n_in, 1),
                *batch_norm(f"{theirs}.downsample.1", f"{ours}/shortcut_norm", n_in),
            ]
        width, before = n_in, stage
    return rows + dense("fc", "params/Dense_0", width, kwargs["n_classes"])


RESNET = Layout(
    "ResNet",
    "layer1.0.conv1.weight",
    _describe_resnet,
    _measure_resnet,
    _rows_resnet,
    ignored=_COUNTERS,
)


# VGG: numbers count convolutions, norms, activations and pools in one sequence.


def _places(blocks, step):
    """Yields the number of each convolution; ``step`` layers belong to one, a pool to a block."""
    at = 0
    for n in blocks:
        for _ in range(n):
            yield at
            at += step
        at += 1


def _describe_vgg(config, shapes, heads):
    found = (re.fullmatch(r"features\.(\d+)\.weight", name) for name in shapes)
    places = sorted(int(m[1]) for m in found if m and len(shapes[m[0]]) == 4)
    with_norm = any("running" in name for name in shapes)
    step = 3 if with_norm else 2
    blocks, before = [], None
    for place in places:
        if before is None or place != before + step:
            blocks.append(0)
        blocks[-1] += 1
        before = place
    if list(_places(blocks, step)) != places:
        raise ValueError(f"features have convolutions at {places}, which are no blocks of a VGG")
    n_dense = count(shapes, r"classifier\.(\d+)\.") // 3
    layers = [shape_of(shapes, f"{name}.weight", 2) for name in _dense_names(n_dense)]
    features = tuple(shape_of(shapes, f"features.{place}.weight", 4)[0] for place in places)
    kwargs = {
        "n_classes": layers[-1][0],
        "features": features,
        "blocks": tuple(blocks),
        "dense": tuple(n_out for n_out, _ in layers[:-1]),
        "norm": "batch" if with_norm else "none",
        "conv_bias": True,
    }
    return kwargs, {
        "channels": shape_of(shapes, f"features.{places[0]}.weight", 4)[1],
        "side": side_of(layers[0][1] / features[-1], "inputs of the first dense layer, a channel"),
    }


def _dense_names(n_dense):
    # An activation and dropout stand between; a head alone has no number.
    return [f"classifier.{3 * i}" for i in range(n_dense + 1)] if n_dense else ["classifier"]


def _measure_vgg(kwargs, shapes):
    check_kwargs(
        {"blocks": None, **kwargs}, ("n_classes", "features", "blocks", "dense", "norm"),
        {"conv_bias": True},
    )  # fmt: skip
    if kwargs["norm"] not in ("batch", "none"):
        raise ValueError(f"the layout needs norm='batch' or 'none', got {kwargs['norm']!r}")
    if kwargs["norm"] == "batch" and not kwargs.get("conv_bias"):
        raise ValueError("the layout needs conv_bias=True")
    n_in = shape_of(shapes, "params/Dense_0/kernel", 2)[0]
    return {
        "channels": shape_of(shapes, "params/Conv_0/kernel", 4)[2],
        "side": side_of(n_in / kwargs["features"][-1], "rows of Dense_0/kernel, a channel"),
    }


def _rows_vgg(kwargs, channels, side) -> list[Row]:
    features, hidden = kwargs["features"], kwargs["dense"]
    with_norm = kwargs["norm"] == "batch"
    rows, n_in = [], channels
    places = _places(kwargs.get("blocks") or (2, 2, 3, 3, 3), 3 if with_norm else 2)
    for i, (place, n_out) in enumerate(zip(places, features, strict=True)):
        rows += [
            conv(f"features.{place}", f"params/Conv_{i}", n_in, n_out, 3),
            row(f"features.{place}.bias", (n_out,), f"params/Conv_{i}/bias"),
        ]
        if with_norm:
            rows += batch_norm(f"features.{place + 1}", f"BatchNorm_{i}", n_out)
        n_in = n_out
    outs = (*hidden, kwargs["n_classes"])
    for i, (name, n_out) in enumerate(zip(_dense_names(len(hidden)), outs, strict=True)):
        if i:
            rows += dense(name, f"params/Dense_{i}", n_in, n_out)
        else:
            # Theirs flattens channels first, ours channels last.
            flat = n_in * side * side
            weight = row(
                f"{name}.weight", (n_out, flat), "params/Dense_0/kernel",
                view=(n_out, n_in, side, side), order=(2, 3, 1, 0), to=(flat, n_out),
            )  # fmt: skip
            rows += [weight, row(f"{name}.bias", (n_out,), "params/Dense_0/bias")]
        n_in = n_out
    return rows


VGG = Layout(
    "VGG",
    "features.0.weight",
    _describe_vgg,
    _measure_vgg,
    _rows_vgg,
    ignored=_COUNTERS,
)


# ViT.

_HEADS = {768: 12, 1024: 16, 1280: 16}


def _describe_vit(config, shapes, heads):
    width, channels, patch, _ = shape_of(shapes, "conv_proj.weight", 4)
    heads = heads or _HEADS.get(width)
    if heads is None:
        raise ValueError(f"the tensors do not say how many heads share a width of {width}: heads")
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    layers = count(shapes, r"encoder\.layers\.encoder_layer_(\d+)\.")
    name = "encoder.layers.encoder_layer_{}.mlp.0.weight"
    kwargs = {
        "n_classes": shape_of(shapes, "heads.head.weight", 2)[0],
        "width": width,
        "hidden": tuple(shape_of(shapes, name.format(i), 2)[0] for i in range(layers)),
        "heads": heads,
        "patch": patch,
        "pool": "token",
        "activation": "gelu_exact",
        "epsilon": 1e-6,
    }
    tokens = shape_of(shapes, "encoder.pos_embedding", 3)[1]
    return kwargs, {"channels": channels, "tokens": tokens}


def _measure_vit(kwargs: Mapping, shapes: Mapping) -> dict:
    return measure_vit(kwargs, shapes, activation="gelu_exact", epsilon=1e-6)


def _rows_vit(kwargs, channels, tokens) -> list[Row]:
    width, heads = kwargs["width"], kwargs["heads"]
    head = (heads, width // heads)
    rows = [
        row("class_token", (1, 1, width), "params/token"),
        row("encoder.pos_embedding", (1, tokens, width), "params/position"),
        *patches("conv_proj", kwargs, channels),
        *norm("encoder.ln", "params/LayerNorm_0", width),
        *dense("heads.head", "params/Dense_0", width, kwargs["n_classes"]),
    ]
    for i, hidden in enumerate(kwargs["hidden"]):
        theirs, ours = f"encoder.layers.encoder_layer_{i}", f"params/ViTBlock_{i}"
        attention = f"{ours}/MultiHeadDotProductAttention_0"
        three = [f"{attention}/{name}" for name in ("query", "key", "value")]
        rows += [
            *norm(f"{theirs}.ln_1", f"{ours}/LayerNorm_0", width),
            row(
                f"{theirs}.self_attention.in_proj_weight",
                (3 * width, width),
                [f"{name}/kernel" for name in three],
                view=(3, *head, width),
                order=(0, 3, 1, 2),
            ),
            row(
                f"{theirs}.self_attention.in_proj_bias",
                (3 * width,),
                [f"{name}/bias" for name in three],
                view=(3, *head),
            ),
            *attention_out(f"{theirs}.self_attention.out_proj", f"{attention}/out", head),
            *norm(f"{theirs}.ln_2", f"{ours}/LayerNorm_1", width),
            *dense(f"{theirs}.mlp.0", f"{ours}/Dense_0", width, hidden),
            *dense(f"{theirs}.mlp.3", f"{ours}/Dense_1", hidden, width),
        ]
    return rows


VIT = Layout("ViT", "conv_proj.weight", _describe_vit, _measure_vit, _rows_vit)
