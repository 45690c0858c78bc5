"""A model from plain values, such as a file can hold."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxml.nn.activation import ACTIVATIONS
from jaxml.nn.clip import CLIP, TextTower, VisionTower, gelu_exact, gelu_quick
from jaxml.nn.gpt import GPT
from jaxml.nn.resnet import ResNet
from jaxml.nn.vgg import VGG
from jaxml.nn.vit import ViT

_MODULES = {cls.__name__: cls for cls in (CLIP, GPT, ResNet, VGG, ViT)}
_TOWERS = {"image_tower": VisionTower, "text_tower": TextTower}
_FUNCTIONS = {**ACTIVATIONS, "gelu_exact": gelu_exact, "gelu_quick": gelu_quick}


def assemble(module: str, module_kwargs: Mapping[str, Any]) -> nn.Module:
    """Makes the module that ``jaxml.io.load_published`` describes.

    Args:
      module: ``"CLIP"``, ``"GPT"``, ``"ResNet"``, ``"VGG"`` or ``"ViT"``.
      module_kwargs: its keyword arguments: lists for tuples, activations by their names in
        ``ACTIVATIONS`` or ``"gelu_exact"`` and ``"gelu_quick"``, the towers of ``"CLIP"`` by their
        own keyword arguments.

    Raises:
      ValueError: an unknown ``module`` or activation, or an argument that the module does not take.
    """
    if module not in _MODULES:
        raise ValueError(f"module must be one of {', '.join(_MODULES)}; got {module!r}")
    return _make(_MODULES[module], module_kwargs)


def _make(cls, kwargs):
    try:
        return cls(**{name: _value(name, value) for name, value in kwargs.items()})
    except TypeError as error:
        raise ValueError(f"module_kwargs of {cls.__name__}: {error}") from error


def _value(name, value):
    if name in _TOWERS and isinstance(value, Mapping):
        return _make(_TOWERS[name], value)
    if name == "activation" and isinstance(value, str):
        if value not in _FUNCTIONS:
            raise ValueError(f"activation must be one of {', '.join(_FUNCTIONS)}; got {value!r}")
        return _FUNCTIONS[value]
    return tuple(value) if isinstance(value, list) else value
