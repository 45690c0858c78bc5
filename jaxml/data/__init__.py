"""Data sets as numpy arrays: bundled ones, and whatever tensorflow-datasets has prepared.

Importing this imports numpy and nothing heavier, so that a launcher can call ``check`` before jax
is there; ``jaxml.data.batching``, which needs jax, loads on first use.
"""

import importlib
import os

from jaxml.data import bundled, text, tfds_source
from jaxml.data.dataset import Dataset, NotPreparedError, UnknownDatasetError, standardize

__all__ = [
    "Dataset",
    "NotPreparedError",
    "UnknownDatasetError",
    "batching",
    "check",
    "load",
    "names",
    "standardize",
    "text",
]


def names() -> tuple[str, ...]:
    """The bundled sets, which load on any machine."""
    return bundled.NAMES


def load(name: str, *, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads a bundled set, or else one that tensorflow-datasets has prepared; never downloads.

    Args:
      name: one of ``names()``, or a name in tensorflow-datasets such as ``"cifar10"`` or
        ``"domainnet/real"``.
      data_dir: where sets are prepared (None: ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``);
        bundled sets ignore it.

    Returns:
      Images float32 ``[n, height, width, channels]`` in [0, 1] or raw float32 features ``[n, d]``;
      labels int32 ``[n]`` or regression targets float32 ``[n]``.

    Raises:
      UnknownDatasetError: no set has this name; the nearest three are named.
      NotPreparedError: the set is not in ``data_dir``, or in another format than array_record.
      ValueError: the prepared set is not one of labelled uint8 images of one shape with a train
        and a test (or validation) split.
    """
    if name in bundled.NAMES:
        return bundled.load(name)
    return tfds_source.load(name, data_dir=data_dir)


def check(name: str, *, data_dir: str | os.PathLike | None = None) -> None:
    """Raises what ``load`` would raise, without loading or importing anything.

    Only what shows in the images themselves (shapes that differ, missing labels) is left to
    ``load``.

    Args:
      name: as for ``load``.
      data_dir: as for ``load``.

    Raises:
      UnknownDatasetError, NotPreparedError, ValueError: as ``load``.
    """
    if name not in bundled.NAMES:
        tfds_source.check(name, data_dir=data_dir)


def __getattr__(name: str):
    if name == "batching":
        return importlib.import_module("jaxml.data.batching")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
