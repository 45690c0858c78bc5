"""Image classification sets that tensorflow-datasets has prepared on this disk.

Reading goes through array_record, with random access and without TensorFlow. Nothing but
``prepare(..., download=True)`` opens a connection, and only ``load`` and ``prepare`` import
tensorflow-datasets: where a set lies and whether it fits is read off its JSON files.
"""

import difflib
import importlib.util
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np

from jaxml.data import bundled
from jaxml.data.dataset import Dataset, NotPreparedError, UnknownDatasetError

# "family" or "family/config"; it also keeps "../elsewhere" from being a name.
_NAME = re.compile(r"\w+(/\w[\w.+-]*)?")


def load(name: str, *, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads a prepared set into memory; never downloads.

    Args:
      name: the name in tensorflow-datasets, ``"cifar10"`` or ``"family/config"`` such as
        ``"domainnet/real"``; the latest prepared version is read.
      data_dir: where sets are prepared (None: ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``).

    Returns:
      Images float32 ``[n, height, width, channels]`` in [0, 1] (pixel / 255), labels int32
      ``[n]``; the split "validation" stands in for a missing "test".

    Raises:
      UnknownDatasetError, NotPreparedError: as ``check``.
      ValueError: as ``check``; images of more than one shape; an example without a label.
    """
    folder, test_split = _checked(name, data_dir)
    import tensorflow_datasets as tfds

    # The folder, not the name: this needs no builder code, so it reads any set in any version.
    builder = tfds.builder_from_directory(folder)
    train = _read(name, builder.as_data_source("train"))
    test = _read(name, builder.as_data_source(test_split), shape=train[0].shape[1:])
    return Dataset(name, *train, *test, tuple(builder.info.features["label"].names))


def check(name: str, *, data_dir: str | os.PathLike | None = None) -> None:
    """Raises what ``load`` would raise, in milliseconds, short of looking at the images.

    Args:
      name: as for ``load``.
      data_dir: as for ``load``.

    Raises:
      UnknownDatasetError: no set has this name; the nearest three are named.
      NotPreparedError: the set is not in ``data_dir``, or in another format than array_record.
      ValueError: it has no uint8 image with a class label, or no train and test splits.
    """
    _checked(name, data_dir)


def prepare(name: str, *, data_dir: str | os.PathLike | None = None, download: bool) -> Path:
    """Prepares a set in array_record format, unless it is prepared already.

    tensorflow-datasets reports its progress on the terminal. It uses raw files that are already in
    ``data_dir/downloads`` and fetches the others, retrying for minutes when there is no network.

    Args:
      name: as for ``load``.
      data_dir: where to prepare it, as for ``load``.
      download: the permission to fetch; without it a set that is not prepared is an error.

    Returns:
      The folder of the prepared set.

    Raises:
      UnknownDatasetError: tensorflow-datasets has no such set, or the set no such config.
      NotPreparedError: ``download`` is False, the raw files cannot be had, or a package that the
        preparation needs is missing.
      ValueError: the set is bundled.
    """
    if name in bundled.NAMES:
        raise ValueError(f"name {name!r} is bundled with scikit-learn: there is nothing to prepare")
    root = _root(data_dir)
    if _find(name, root):
        return _locate(name, data_dir)
    if not _NAME.fullmatch(name):
        raise _unknown(name, root)
    import tensorflow_datasets as tfds

    family, _, config = name.partition("/")
    # Builders are code from many hands: whatever they raise has to become one sentence.
    try:
        configs = tfds.builder_cls(family).builder_configs
        if config and config not in configs:
            among = ", ".join(sorted(configs)) or "none"
            raise UnknownDatasetError(f"{family!r} has no config {config!r}, it has {among}")
        if not download:
            raise NotPreparedError(
                f"{name!r} is not prepared in {root}, and preparing it may fetch its raw files: "
                "allow that with download=True (--download)"
            )
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    except (UnknownDatasetError, NotPreparedError):
        raise
    except tfds.core.DatasetNotFoundError as error:  # its message lists every name there is
        raise _unknown(name, root) from error
    except Exception as error:
        cause = error
        while cause.__cause__:  # tfds wraps an error in pages of context
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}"
        if isinstance(cause, ImportError):
            reason += " (only preparing this set needs that package, reading it does not)"
        raise NotPreparedError(f"{name!r} could not be prepared in {root}: {reason}") from error
    return Path(builder.data_path)


def _root(data_dir: str | os.PathLike | None) -> Path:
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(root).expanduser()


def _find(name: str, root: Path) -> Path | None:
    """Finds the folder of the latest prepared version of a set."""
    if not _NAME.fullmatch(name):
        return None
    folder = root / name
    default = folder / ".config" / "metadata.json"  # written where a family has configs
    if default.exists():
        folder /= _read_json(default)["default_config_name"]
    versions = [
        path.parent
        for path in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    return max(versions, key=lambda v: tuple(map(int, v.name.split("."))), default=None)


def _locate(name: str, data_dir: str | os.PathLike | None) -> Path:
    """As ``_find``, with the errors, and only in a format that reads without TensorFlow."""
    root = _root(data_dir)
    folder = _find(name, root)
    if folder is None:
        if name.partition("/")[0] not in _known_names(root):
            raise _unknown(name, root)
        raise NotPreparedError(
            f"{name!r} is not prepared: {root / name} holds no version of it; prepare it with "
            f"`{_command(name, root)}`, or use the bundled 'digits'"
        )
    file_format = _read_json(folder / "dataset_info.json").get("fileFormat", "tfrecord")
    if file_format != "array_record":
        # tensorflow-datasets keeps what it finds, so the same data_dir would not do.
        raise NotPreparedError(
            f"{name!r} is in {folder} as {file_format}, but is read from array_record; prepare "
            f"it as array_record in another folder with `{_command(name, root / 'array_record')}`"
        )
    return folder


def _checked(name: str, data_dir: str | os.PathLike | None) -> tuple[Path, str]:
    """Returns the folder of an image classification set and the name of its test split."""
    folder = _locate(name, data_dir)
    features = _read_json(folder / "features.json").get("featuresDict", {}).get("features", {})
    kinds = {key: f["pythonClassName"].rpartition(".")[2] for key, f in features.items()}
    if (kinds.get("image"), kinds.get("label")) != ("Image", "ClassLabel"):
        found = ", ".join(f"{key}: {kind}" for key, kind in sorted(kinds.items())) or "no features"
        raise ValueError(
            f"{name!r} is no image classification set: it needs image: Image and "
            f"label: ClassLabel, got {found}"
        )
    dtype = features["image"]["image"].get("dtype", "uint8")
    if dtype != "uint8":
        raise ValueError(f"the images of {name!r} must be uint8, got {dtype}")
    splits = [split["name"] for split in _read_json(folder / "dataset_info.json")["splits"]]
    test_split = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or test_split is None:
        raise ValueError(
            f"{name!r} needs the split train, and test or validation, got {', '.join(splits)}"
        )
    return folder, test_split


def _read(name: str, source, shape: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split to float32 ``[n, *shape]`` and int32 ``[n]``; None: the first image's shape."""
    shape = shape or source[0]["image"].shape
    x = np.empty((len(source), *shape), np.float32)
    y = np.empty(len(source), np.int32)
    for i, example in enumerate(source):
        if example["image"].shape != shape:
            raise ValueError(
                f"the images of {name!r} must have one shape, got {shape} and "
                f"{example['image'].shape}"
            )
        x[i] = example["image"]
        y[i] = example["label"]
    if (y < 0).any():
        raise ValueError(f"{name!r} must be labelled, got {(y < 0).sum()} of {len(y)} without")
    x /= 255
    return x, y


def _known_names(root: Path) -> set[str]:
    """Lists the sets that can be asked for, without the cost of importing tfds."""
    names = set(bundled.NAMES)
    for info in [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]:
        names.add(info.relative_to(root).parts[0])
    spec = importlib.util.find_spec("tensorflow_datasets")
    if spec is not None:
        package = Path(spec.origin).parent
        # The package has a folder for each of its newer sets, and checksums for the older ones.
        names.update(path.stem for path in package.glob("url_checksums/*.txt"))
        for builders in ("datasets", "image_classification"):
            names.update(path.parent.name for path in package.glob(f"{builders}/*/__init__.py"))
    return names


def _unknown(name: str, root: Path) -> UnknownDatasetError:
    family = name.partition("/")[0]
    others = sorted(_known_names(root) - {family})
    nearest = difflib.get_close_matches(family.lower(), others, n=3, cutoff=0)
    return UnknownDatasetError(
        f"unknown data set {name!r}: the nearest names are {', '.join(nearest)}"
    )


def _command(name: str, root: Path) -> str:
    return f"python -m launch.prepare_data --name={name} --data_dir={shlex.quote(str(root))}"


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text())
