"""Finished results as files: arrays in safetensors or npz, everything else in JSON."""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.flax import load_file, save

from jaxml.core.tree import from_paths, to_paths
from jaxml.core.types import PyTree
from jaxml.core.validate import check_same_structure


def save_tree(
    path: str | os.PathLike, tree: PyTree, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the arrays of a pytree to one safetensors file, named as ``"params/Dense_0/kernel"``.

    The file appears whole or not at all; missing folders are made. bfloat16 and integers are kept.

    Args:
      path: the file, replaced if it exists.
      tree: nested dicts (or tuples, NamedTuples) of arrays.
      metadata: text kept in the file's header; see ``load_metadata``.

    Raises:
      ValueError: two leaves have one name, because a dict key holds a ``"/"``.
    """
    leaves = to_paths(tree)
    if len(leaves) != len(jax.tree.leaves(tree)):
        raise ValueError('tree has leaves that share a name: no dict key may hold a "/"')
    write_atomically(path, save(leaves, metadata=dict(metadata or {})))


def load_tree(path: str | os.PathLike, like: PyTree | None = None) -> PyTree:
    """Reads what ``save_tree`` wrote, as jax arrays.

    Args:
      path: the file.
      like: arrays or ``jax.ShapeDtypeStruct`` in the structure to return; None returns dicts
        nested along the names.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: no safetensors file; a leaf of ``like`` is missing from the file or the other way
        round, or a shape or dtype differs; names the leaf.
    """
    with reading(path):
        leaves = load_file(path)
    if like is None:
        return unflatten_dict(leaves, sep="/")
    check_same_structure(to_paths(like), leaves, names=("like", str(path)))
    for name, leaf in to_paths(like).items():
        if leaf.dtype != leaves[name].dtype:
            raise ValueError(
                f"{name!r} has dtype {leaf.dtype} in like and {leaves[name].dtype} in {path}"
            )
    return from_paths(like, leaves)


def load_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Reads the ``metadata`` of ``save_tree`` without the arrays.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no safetensors file.
    """
    with reading(path), safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turns what safetensors says of a file that it cannot read into a ValueError that names it."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def save_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as one ``.npz`` file, whole or not at all; names may hold a ``"/"``."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(array) for name, array in arrays.items()})
    write_atomically(path, buffer.getvalue())


def load_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads what ``save_npz`` wrote."""
    with np.load(path) as file:
        return dict(file)


def save_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as JSON, whole or not at all; numpy and jax arrays become lists."""
    write_atomically(path, (json.dumps(value, indent=2, default=_plain) + "\n").encode())


def load_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file."""
    return json.loads(Path(path).read_text())


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all, replacing an old one; missing folders are made."""
    # A rename within one folder is atomic: a reader sees the old file or the new one.
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
