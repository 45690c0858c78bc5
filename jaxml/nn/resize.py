"""The same architecture with the widths that a set of parameters has."""

from collections.abc import Mapping

import numpy as np
from flax import linen as nn

from jaxml.core.types import PyTree
from jaxml.nn.convnet import ConvNet
from jaxml.nn.mlp import MLP
from jaxml.nn.resnet import ResNet
from jaxml.nn.vgg import VGG


def with_widths(model: nn.Module, variables: PyTree) -> nn.Module:
    """Rebuilds a model of this package with the widths of ``variables``.

    Args:
      model: ``MLP``, ``ConvNet``, ``ResNet`` or ``VGG``.
      variables: parameters of that architecture with other widths, for example merged ones.

    Returns:
      A module whose ``apply`` takes ``variables``.

    Raises:
      ValueError: another kind of module.
    """
    params = variables["params"]

    def width(layer: Mapping) -> int:
        return layer["kernel"].shape[-1]

    match model:
        case MLP():
            return model.clone(features=_widths(params, "Dense", len(model.features)))
        case ConvNet():
            return model.clone(features=_widths(params, "Conv", len(model.features)))
        case VGG():
            n_convs, n_dense = sum(model.blocks), len(model.dense)
            return model.clone(
                features=_widths(params, "Conv", n_convs),
                dense=_widths(params, "Dense", n_dense),
            )
        case ResNet():
            kind, last = ("Bottleneck", 2) if model.bottleneck else ("Residual", 1)
            blocks = [params[f"{kind}Block_{i}"] for i in range(sum(model.blocks))]
            ends = np.cumsum(model.blocks) - 1
            return model.clone(
                stem=model.stem and width(params["Conv_0"]),
                widths=tuple(width(blocks[end][f"Conv_{last}"]) for end in ends),
                inner=tuple(width(block[f"Conv_{i}"]) for block in blocks for i in range(last)),
            )
    raise ValueError(f"with_widths knows MLP, ConvNet, ResNet and VGG, got {type(model).__name__}")


def _widths(params: Mapping, kind: str, count: int) -> tuple[int, ...]:
    return tuple(params[f"{kind}_{i}"]["kernel"].shape[-1] for i in range(count))
