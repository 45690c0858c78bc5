"""Floor 1: Flax linen models whose widths are tuple attributes, and ``build`` by name."""

from flax import linen

from jaxml.nn.activation import ACTIVATIONS
from jaxml.nn.assemble import assemble
from jaxml.nn.clip import (
    CLIP,
    CLIP_MODELS,
    BagOfWords,
    CLIPBlock,
    CLIPOutput,
    TextTower,
    VisionTower,
    build_clip,
    gelu_exact,
    gelu_quick,
)
from jaxml.nn.conv import CONVS, Conv
from jaxml.nn.convnet import ConvNet
from jaxml.nn.convnext import ConvNeXt, ConvNeXtBlock, convnext_tiny
from jaxml.nn.gpt import GPT, GPTBlock, KVCache
from jaxml.nn.mlp import MLP
from jaxml.nn.norm import NORMS, make_norm
from jaxml.nn.preact import PreactBlock, PreactResNet, resnet32_preact, wide_resnet
from jaxml.nn.resize import with_widths
from jaxml.nn.resnet import (
    LARGE,
    BottleneckBlock,
    ResidualBlock,
    ResNet,
    large_resnet,
    resnet18_cifar,
    resnet20,
)
from jaxml.nn.vgg import VGG, vgg16, vgg19
from jaxml.nn.vit import ViT, ViTBlock, vit_base

_WIDE = {f"wide_resnet{depth}": depth for depth in (16, 28, 34)}
MODELS = (
    "mlp",
    "convnet",
    "resnet20",
    "resnet32_preact",
    *_WIDE,
    "vgg16",
    "vgg19",
    "convnext",
    "vit",
    "resnet18_cifar",
    *LARGE,
)

__all__ = [
    "ACTIVATIONS",
    "CLIP",
    "CLIP_MODELS",
    "CONVS",
    "GPT",
    "MLP",
    "MODELS",
    "NORMS",
    "VGG",
    "BagOfWords",
    "BottleneckBlock",
    "CLIPBlock",
    "CLIPOutput",
    "Conv",
    "ConvNeXt",
    "ConvNeXtBlock",
    "ConvNet",
    "GPTBlock",
    "KVCache",
    "PreactBlock",
    "PreactResNet",
    "ResNet",
    "ResidualBlock",
    "TextTower",
    "ViT",
    "ViTBlock",
    "VisionTower",
    "assemble",
    "build",
    "build_clip",
    "convnext_tiny",
    "gelu_exact",
    "gelu_quick",
    "large_resnet",
    "make_norm",
    "resnet18_cifar",
    "resnet20",
    "resnet32_preact",
    "vgg16",
    "vgg19",
    "vit_base",
    "wide_resnet",
    "with_widths",
]


def build(
    name: str,
    *,
    width: float,
    n_classes: int,
    norm: str = "layer",
    groups: int = 8,
    conv: str = "lax",
    depth: int | None = None,
    patch: int = 4,
    activation: str | None = None,
) -> linen.Module:
    """Makes a model by name; ``model.apply(variables, x)`` maps ``[n, ...]`` to ``[n, n_classes]``.

    Args:
      name: one of ``MODELS``.
      width: units of each hidden layer of ``"mlp"``, else a factor on the usual channels.
      n_classes: units of the head.
      norm: ``"layer"``, ``"batch"``, ``"group"`` or ``"none"``; ``"mlp"`` has none, ``"convnext"``
        and ``"vit"`` have layer norms, whatever it is.
      groups: of ``norm="group"``.
      conv: ``"lax"``, or ``"patches"``, the faster one for training on a CPU; ``"convnext"`` and
        ``"vit"`` have ``"lax"``.
      depth: hidden layers of ``"mlp"`` or blocks of ``"vit"``; None means 3 and 12.
      patch: side of the patches of ``"convnext"``, whose own is 4 for large images, and of
        ``"vit"``, which is ViT-B/16 with 16 for images of 224x224.
      activation: one of ``ACTIVATIONS``; None means the model's own: gelu of ``"convnext"`` and
        ``"vit"``, leaky relu of ``"resnet32_preact"``, relu of the others.

    Raises:
      ValueError: an unknown ``name``, ``norm``, ``conv`` or ``activation``, or sizes that are not
        positive.
    """
    for argument, value, legal in (
        ("name", name, MODELS),
        ("norm", norm, NORMS),
        ("conv", conv, CONVS),
        ("activation", activation, (None, *ACTIVATIONS)),
    ):
        if value not in legal:
            raise ValueError(
                f"{argument} must be one of {', '.join(map(str, legal))}; got {value!r}"
            )
    sizes = {"width": width, "n_classes": n_classes, "depth": depth, "patch": patch}
    for argument, size in sizes.items():
        if size is not None and size <= 0:
            raise ValueError(f"{argument} must be positive, got {size}")
    own = {} if activation is None else {"activation": ACTIVATIONS[activation]}
    options = {"n_classes": n_classes, "norm": norm, "groups": groups, "conv": conv, **own}
    if name == "mlp":
        return MLP((round(width),) * (depth or 3), n_classes, **own)
    if name == "convnet":
        return ConvNet(features=tuple(round(w * width) for w in (16, 32, 64)), **options)
    if name == "convnext":
        return convnext_tiny(n_classes=n_classes, width_multiplier=width, patch=patch, **own)
    if name == "vit":
        return vit_base(
            n_classes=n_classes, width_multiplier=width, depth=depth or 12, patch=patch, **own
        )
    if name in _WIDE:
        return wide_resnet(_WIDE[name], widening=width, **options)
    if name in LARGE:
        return large_resnet(name, width_multiplier=width, **options)
    makers = {
        "resnet20": resnet20,
        "resnet32_preact": resnet32_preact,
        "resnet18_cifar": resnet18_cifar,
        "vgg16": vgg16,
        "vgg19": vgg19,
    }
    return makers[name](width_multiplier=width, **options)
