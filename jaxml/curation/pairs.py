"""Images and texts out of resharded tars, by the number of a pair, as batches for training.

Any host can read any pair by its place in a file, so which pairs a step sees is the sampler's
business alone, and a worker more or less changes nothing.
"""

import hashlib
import io
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

from jaxml.curation.tar_index import index_tar

# Of the ImageNet statistics in common use, those that CLIP was trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGES = ("jpg", "jpeg", "png", "webp")


class Pairs(NamedTuple):
    """Where each pair lies.

    Attributes:
      shards: paths of the tars.
      sizes: int64 ``[shards]``, pairs of each.
      image_spans: int64 ``[n, 2]``, offset and length of each image in its shard.
      text_spans: likewise.
      folders: of each shard, the number of the folder that it came from.
      ids: int32 ``[n, 2]``, a hash of the name of each pair up to a dash, which copies share.
    """

    shards: tuple[str, ...]
    sizes: np.ndarray
    image_spans: np.ndarray
    text_spans: np.ndarray
    folders: np.ndarray
    ids: np.ndarray

    @property
    def n_pairs(self) -> int:
        """Pairs of all shards."""
        return int(self.sizes.sum())

    @property
    def folder_sizes(self) -> np.ndarray:
        """Pairs of each folder, int64."""
        return np.bincount(self.folders, weights=self.sizes).astype(np.int64)


def open_pairs(folders: Sequence[str | os.PathLike]) -> Pairs:
    """Walks the headers of all tars in some folders.

    Args:
      folders: each with ``*.tar`` whose samples have an image (jpg, jpeg, png, webp) and a txt.

    Returns:
      The pairs in the order of the folders, their files by name, and the samples in them.

    Raises:
      FileNotFoundError: a folder without a tar.
      ValueError: a folder without a pair, or a tar that breaks off.
    """
    shards, sizes, images, texts, sources, names = [], [], [], [], [], []
    for number, folder in enumerate(folders):
        paths = sorted(pathlib.Path(folder).glob("*.tar"))
        if not paths:
            raise FileNotFoundError(f"no *.tar in {folder}")
        for path in paths:
            index = index_tar(path)
            if index.error is not None:
                raise ValueError(f"{path} cannot be read to its end: {index.error}")
            before = len(images)
            for sample in index.samples:
                kinds = [kind for kind in _IMAGES if kind in sample.members]
                if kinds and "txt" in sample.members:
                    images.append(sample.members[kinds[0]][1:])
                    texts.append(sample.members["txt"][1:])
                    names.append(pathlib.PurePath(sample.key).name.partition("-")[0])
            if len(images) > before:
                shards.append(str(path))
                sizes.append(len(images) - before)
                sources.append(number)
        if number not in sources:
            raise ValueError(f"no image with a text in {folder}")
    return Pairs(
        tuple(shards),
        np.array(sizes, np.int64),
        np.array(images, np.int64),
        np.array(texts, np.int64),
        np.array(sources, np.int64),
        np.array([_hash(name) for name in names], np.int32),
    )


def read_pairs(
    pairs: Pairs,
    rows: np.ndarray,
    *,
    image_size: int,
    channels: int = 3,
    seed: int | None = None,
    step: int = 0,
    pool: Executor | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Reads some pairs.

    Args:
      pairs: of ``open_pairs``.
      rows: numbers of pairs ``[b]``, repeats allowed.
      image_size: side of the images that come out.
      channels: 3, or 1 for grey.
      seed: crops each image at random, as in training; None as in evaluation.
      step: with the seed and the place in the batch it decides the crop.
      pool: threads to decode in; None decodes one after another.

    Returns:
      Images float32 ``[b, image_size, image_size, channels]``, normalised, and ``b`` texts.
    """
    ends = np.cumsum(pairs.sizes)

    def one(slot_row):
        slot, row = slot_row
        path = pairs.shards[int(np.searchsorted(ends, row, side="right"))]
        (start, size), (text_start, text_size) = pairs.image_spans[row], pairs.text_spans[row]
        with open(path, "rb") as file:
            file.seek(start)
            image = file.read(size)
            file.seek(text_start)
            text = file.read(text_size).decode("utf-8", "replace")
        rng = None if seed is None else np.random.default_rng((seed, step, slot))
        return prepare_image(image, image_size=image_size, channels=channels, rng=rng), text

    jobs = list(enumerate(np.asarray(rows).tolist()))
    done = list(map(one, jobs) if pool is None else pool.map(one, jobs))
    return np.stack([image for image, _ in done]), [text for _, text in done]


def prepare_image(
    image,
    *,
    image_size: int,
    channels: int = 3,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Decodes, crops, resizes (bicubic) and normalises an image.

    Args:
      image: bytes of a file, a Pillow image, or uint8 ``[h, w, c]``.
      image_size: side of the result.
      channels: 3, or 1 for grey, normalised by the mean and standard deviation of green.
      rng: crops 90 to 100 % of the area at random, with sides in a ratio of 3/4 to 4/3; None
        takes the square in the middle.

    Returns:
      float32 ``[image_size, image_size, channels]``.
    """
    from PIL import Image

    if isinstance(image, bytes | bytearray | memoryview):
        image = Image.open(io.BytesIO(image))
    elif isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    image = image.convert("RGB" if channels == 3 else "L")
    box = _middle(*image.size) if rng is None else _random_box(*image.size, rng)
    side = (image_size, image_size)
    if image.size != side or box != (0, 0, *side):
        image = image.resize(side, Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(image, np.float32).reshape(*side, channels) / 255
    mean, std = (MEAN, STD) if channels == 3 else (MEAN[1:2], STD[1:2])
    return (pixels - np.float32(mean)) / np.float32(std)


def _hash(name):
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<i4")


def _middle(width, height):
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width, height, rng, *, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)):
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            return int(left), int(top), int(left + w), int(top + h)
    # No such box fits: the largest one of a ratio that is allowed, in the middle.
    aspect = np.clip(width / height, *ratio)
    w, h = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h
