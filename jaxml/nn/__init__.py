"""Floor 1: Flax linen models whose widths are tuple attributes, and ``build`` by name."""

from flax import linen

from jaxml.nn.conv import CONVS, Conv
from jaxml.nn.convnet import ConvNet
from jaxml.nn.mlp import MLP
from jaxml.nn.norm import NORMS, make_norm
from jaxml.nn.resize import with_widths
from jaxml.nn.resnet import (
    LARGE,
    BottleneckBlock,
    ResidualBlock,
    ResNet,
    large_resnet,
    resnet20,
)
from jaxml.nn.vgg import VGG, vgg16

MODELS = ("mlp", "convnet", "resnet20", "vgg16", *LARGE)

__all__ = [
    "CONVS",
    "MLP",
    "MODELS",
    "NORMS",
    "VGG",
    "BottleneckBlock",
    "Conv",
    "ConvNet",
    "ResNet",
    "ResidualBlock",
    "build",
    "large_resnet",
    "make_norm",
    "resnet20",
    "vgg16",
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
    depth: int = 3,
) -> linen.Module:
    """Makes a model by name; ``model.apply(variables, x)`` maps ``[n, ...]`` to ``[n, n_classes]``.

    Args:
      name: one of ``MODELS``.
      width: units of each hidden layer of ``"mlp"``, else a factor on the usual channels.
      n_classes: units of the head.
      norm: ``"layer"``, ``"batch"``, ``"group"`` or ``"none"``; ``"mlp"`` has none.
      groups: of ``norm="group"``.
      conv: ``"lax"``, or ``"patches"``, the faster one for training on a CPU.
      depth: hidden layers of ``"mlp"``.

    Raises:
      ValueError: an unknown ``name``, ``norm`` or ``conv``, or sizes that are not positive.
    """
    for argument, value, legal in (
        ("name", name, MODELS),
        ("norm", norm, NORMS),
        ("conv", conv, CONVS),
    ):
        if value not in legal:
            raise ValueError(f"{argument} must be one of {', '.join(legal)}; got {value!r}")
    if width <= 0 or n_classes < 1:
        raise ValueError(f"width and n_classes must be positive, got {width} and {n_classes}")
    options = {"n_classes": n_classes, "norm": norm, "groups": groups, "conv": conv}
    if name == "mlp":
        return MLP((round(width),) * depth, n_classes)
    if name == "convnet":
        return ConvNet(features=tuple(round(w * width) for w in (16, 32, 64)), **options)
    if name == "resnet20":
        return resnet20(width_multiplier=width, **options)
    if name in LARGE:
        return large_resnet(name, width_multiplier=width, **options)
    return vgg16(width_multiplier=width, **options)
