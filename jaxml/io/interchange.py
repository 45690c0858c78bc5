"""Published checkpoints, from safetensors in the layouts of other libraries and back."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save

from jaxml.core.tree import to_paths
from jaxml.core.types import PyTree
from jaxml.io import huggingface, open_clip, torchvision
from jaxml.io.artifacts import reading, save_json, write_atomically
from jaxml.io.name_map import Layout, to_ours, to_theirs

_LAYOUTS: dict[str, Layout] = {
    "gpt2": huggingface.GPT2,
    "hf_vit": huggingface.VIT,
    "hf_clip": huggingface.CLIP,
    "open_clip": open_clip.LAYOUT,
    "torchvision_resnet": torchvision.RESNET,
    "torchvision_vgg": torchvision.VGG,
    "torchvision_vit": torchvision.VIT,
}
LAYOUTS = tuple(_LAYOUTS)

# Without a name, these are looked for in a folder.
_STEMS = ("model.safetensors", "open_clip_model.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar")


class Published(NamedTuple):
    """A model of another library in the terms of this one.

    Attributes:
      layout: one of ``LAYOUTS``.
      module: name of the class in ``jaxml.nn``.
      module_kwargs: plain values, activations by name; ``jaxml.nn.assemble(module, module_kwargs)``
        makes the module.
      variables: for its ``apply``.
    """

    layout: str
    module: str
    module_kwargs: dict[str, Any]
    variables: PyTree


def load_published(
    path: str | os.PathLike,
    *,
    layout: str | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    heads: int | None = None,
) -> Published:
    """Reads a checkpoint in the layout of transformers, open_clip or torchvision.

    ``"gpt2"``, ``"hf_vit"`` and ``"hf_clip"`` are those of transformers' ``GPT2LMHeadModel``,
    ``ViTForImageClassification`` and ``CLIPModel``; ``"open_clip"`` is that of its ViT models;
    these have a configuration file. ``"torchvision_resnet"`` has the widths, depths and inner
    widths of its tensors, with a stem of 7x7 for large images or of 3x3, as is usual on CIFAR.
    ``"torchvision_vgg"`` is with or without batch norm; it is the same function for images whose
    last features are as large as the dense layers were made for, 224x224 in torchvision's. Images
    are ``[n, h, w, c]`` here.

    Args:
      path: a folder with ``model.safetensors``, or with its parts and their index; or the file.
      layout: one of ``LAYOUTS``; None tells by the names of the tensors.
      dtype: of all parameters; None keeps what the file has.
      heads: of ``"torchvision_vit"``, whose tensors do not say it, unless the width is published.

    Returns:
      The layout, the module's name and arguments, and its variables as jax arrays.

    Raises:
      FileNotFoundError: there is no such file; names what was looked for.
      ValueError: a pickle, or no safetensors file; unknown ``layout``; a tensor that is missing,
        has no place, or another shape than the configuration says; a configuration of a model
        that ``jaxml.nn`` does not have.
    """
    files, folder = _find(Path(path))
    tensors, metadata = _read(files)
    tensors = _strip(tensors, "module.")  # of a model that was saved in its parallel wrapper
    layout = layout or _detect(tensors, path)
    if layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    table = _LAYOUTS[layout]
    config_file = folder / table.config_name
    config = None
    if table.config and config_file.is_file():
        config = json.loads(config_file.read_text(encoding="utf-8"))
    try:
        tensors = _untie(_strip(tensors, table.prefix), layout)
        tensors = {n: x for n, x in tensors.items() if not re.fullmatch(table.ignored, n)}
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        kwargs, sizes = table.describe(config, shapes, heads or _heads(metadata))
        leaves = to_ours(table.rows(kwargs, **sizes), tensors)
        leaves = {name: _converted(name, x, dtype) for name, x in leaves.items()}
    except ValueError as error:
        raise ValueError(f"{path} as {layout}: {error}") from error
    return Published(layout, table.module, kwargs, unflatten_dict(leaves, sep="/"))


def save_published(
    path: str | os.PathLike, layout: str, module_kwargs: Mapping[str, Any], variables: PyTree
) -> None:
    """Writes variables in the layout of another library; the inverse of ``load_published``.

    What was loaded and is saved again has the same bits in every tensor. Left out are masks, a head
    that is tied to the embedding and ``num_batches_tracked``, which their libraries fill in.

    Args:
      path: a folder, made if missing, for ``model.safetensors``; or a name with that ending. The
        configuration file, if the layout has one, is written beside it.
      layout: one of ``LAYOUTS``.
      module_kwargs: of the module, activations by name.
      variables: of the module.

    Raises:
      ValueError: unknown ``layout``; ``module_kwargs`` of a model that the layout does not have; a
        leaf that is missing, has no place or another shape.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    table, path = _LAYOUTS[layout], Path(path)
    leaves = {name: np.asarray(x) for name, x in to_paths(variables).items()}
    sizes = table.measure(module_kwargs, {name: x.shape for name, x in leaves.items()})
    tensors = to_theirs(table.rows(module_kwargs, **sizes), leaves)
    config = table.config and table.config(module_kwargs, **sizes)
    # safetensors writes the memory as it lies.
    tensors = {table.prefix + n: np.asarray(x, order="C") for n, x in tensors.items()}
    metadata = {"format": "pt"}
    if table is torchvision.VIT:
        metadata["heads"] = str(module_kwargs["heads"])
    if path.suffix != ".safetensors":
        path = path / (_STEMS[1] if layout == "open_clip" else _STEMS[0])
    write_atomically(path, save(tensors, metadata=metadata))
    if config:
        if layout != "open_clip":
            config["torch_dtype"] = str(next(iter(tensors.values())).dtype)
        save_json(path.with_name(table.config_name), config)


def load_gpt2(
    directory: str | os.PathLike, *, dtype: jax.typing.DTypeLike | None = None
) -> tuple[dict[str, Any], PyTree]:
    """Reads a GPT-2 of Hugging Face's transformers.

    Args:
      directory: with ``config.json`` and ``model.safetensors``, or its parts and their index.
      dtype: of all parameters; None keeps what the file has.

    Returns:
      Keyword arguments of ``jaxml.nn.GPT``, and its variables.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: as ``load_published``.
    """
    published = load_published(directory, layout="gpt2", dtype=dtype)
    return published.module_kwargs, published.variables


def save_gpt2(
    directory: str | os.PathLike, module_kwargs: Mapping[str, Any], variables: PyTree
) -> None:
    """Writes a ``jaxml.nn.GPT`` as a folder that transformers reads; see ``save_published``."""
    save_published(directory, "gpt2", module_kwargs, variables)


def _find(path: Path) -> tuple[list[Path], Path]:
    """Returns the safetensors files of a checkpoint, and the folder of its configuration."""
    if path.suffix in _PICKLES:
        raise ValueError(_pickle(path))
    if path.is_file():
        return [path], path.parent
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    for stem in _STEMS:
        if (path / stem).is_file():
            return [path / stem], path
        index = path / f"{stem}.index.json"
        if index.is_file():
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
            if outside := [name for name in names if Path(name).name != name]:
                raise ValueError(f"{index} names a file in another folder: {outside[0]!r}")
            if missing := [name for name in names if not (path / name).is_file()]:
                raise FileNotFoundError(f"{index} names {missing[0]!r}, which is not there")
            return [path / name for name in names], path
    if pickles := sorted(p for p in path.iterdir() if p.suffix in _PICKLES):
        raise ValueError(_pickle(pickles[0]))
    looked = " or ".join(_STEMS)
    raise FileNotFoundError(f"{path} has neither {looked} nor the index of its parts")


def _pickle(path: Path) -> str:
    return (
        f"{path} is a pickle, which runs code when it is read. Where PyTorch is, convert it by "
        f"safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), "
        f"{path.with_suffix('.safetensors').name!r})"
    )


def _read(files: list[Path]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    tensors, metadata = {}, {}
    for path in files:
        with reading(path), safe_open(path, framework="numpy") as file:
            names = file.keys()
            tensors |= {name: file.get_tensor(name) for name in names}
            metadata |= file.metadata() or {}
    return tensors, metadata


def _strip(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): x for name, x in tensors.items()}


def _detect(names: Mapping[str, Any], path: str | os.PathLike) -> str:
    for layout, table in _LAYOUTS.items():
        if table.sign in names or table.prefix + table.sign in names:
            return layout
    some = ", ".join(sorted(names)[:3]) or "nothing"
    raise ValueError(f"{path} holds {some}, ...: none of the layouts {', '.join(LAYOUTS)}")


def _untie(tensors: dict[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    """Drops a head of GPT-2 that is the embedding once more."""
    head = tensors.pop("lm_head.weight", None) if layout == "gpt2" else None
    embedding = tensors.get("wte.weight")
    if head is not None and not (embedding is not None and np.array_equal(head, embedding)):
        raise ValueError("lm_head.weight differs from wte.weight: jaxml.nn.GPT has no own head")
    return tensors


def _heads(metadata: Mapping[str, str]) -> int | None:
    return int(metadata["heads"]) if metadata.get("heads", "").isdigit() else None


def _converted(name: str, x: np.ndarray, dtype) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name!r} has dtype {x.dtype}, parameters must be floating")
    x = x if dtype is None else x.astype(dtype)
    array = jnp.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    if array.dtype != x.dtype:
        raise ValueError(
            f"{name!r} has dtype {x.dtype}, which jax holds with jax_enable_x64: dtype"
        )
    return array
