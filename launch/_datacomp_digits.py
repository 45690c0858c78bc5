"""A pool of real digits with captions, its planted noise, and how each filter sees it."""

import hashlib
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxml import curation
from jaxml.core.rng import named_key, numpy_generator

KINDS = ("right", "wrong", "junk", "foreign", "small", "elsewhere")
SIDE = 8
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}",
    "the number {}",
    "a handwritten {}",
    "{} written by hand",
    "an image of {}",
)
_SPANISH = ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve")
_GERMAN = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
_FOREIGN = (("es", "una foto del número {}", _SPANISH), ("de", "ein Bild der Zahl {}", _GERMAN))
_PHOTOS = (("china.jpg", "a photo of a temple"), ("flower.jpg", "a picture of a flower"))
_N_TEST, _N_REFERENCE = 500, 300


class Pool(NamedTuple):
    """Pairs of a pool, and what it is judged on; no digit is in two of its three parts.

    Attributes:
      columns: metadata ``[n]`` each, as the benchmark's: uid, url, text, original_width,
        original_height, sha256, language.
      images: uint8 ``[n, 8, 8]``.
      kind: int ``[n]``, which of ``KINDS`` was planted.
      reference: images ``[m, 8, 8]`` and captions that are right, for the scorer.
      targets: images ``[300, 8, 8]`` of the task, for the filter by clusters.
      tests: images ``[500, 8, 8]`` by name.
      labels: int ``[500]`` of each test.
    """

    columns: dict[str, Any]
    images: np.ndarray
    kind: np.ndarray
    reference: tuple[np.ndarray, list[str]]
    targets: np.ndarray
    tests: dict[str, np.ndarray]
    labels: np.ndarray


def make_pool(
    seed: int,
    *,
    size: int,
    shares: Sequence[float],
    elsewhere: float,
    repeated: float,
    repeats: int,
) -> Pool:
    """Draws a pool.

    Args:
      seed: decides which digits are test, reference and pool, and every draw.
      size: pairs in all.
      shares: of the digits, how many have the right caption, that of another class, a file name,
        a right one in another language, a right one and a resolution of 2x2.
      elsewhere: share of crops from two photographs, with captions that are right.
      repeated: share of the draws that are there ``repeats`` times.
      repeats: copies of those.

    Returns:
      The pool, in random order.
    """
    from sklearn import datasets

    rng = np.random.default_rng((seed, 0))
    digits = datasets.load_digits()
    order = rng.permutation(len(digits.target))
    test, reference, base = np.split(order, [_N_TEST, _N_TEST + _N_REFERENCE])
    images, labels = digits.images / 16, digits.target
    photos = [_gray(datasets.load_sample_image(name)) for name, _ in _PHOTOS]

    n_repeated = int(size / (1 + repeated * (repeats - 1)) * repeated)
    n = size - n_repeated * (repeats - 1)
    kind = np.where(
        rng.random(n) < elsewhere,
        KINDS.index("elsewhere"),
        rng.choice(len(shares), n, p=np.array(shares) / sum(shares)),
    )
    source = rng.choice(base, n)
    x, captions, languages = [], [], []
    for which, row in zip(kind, source, strict=True):
        image, caption, language = _pair(rng, KINDS[which], images[row], labels[row], photos)
        x.append(image)
        captions.append(caption)
        languages.append(language)
    # Noise that no eye sees makes two shots of a digit two files, as on the web.
    x = np.clip(np.stack(x) + rng.normal(0, 0.02, (n, SIDE, SIDE)), 0, 1)
    sides = rng.integers(200, 1025, (n, 2))
    small = kind == KINDS.index("small")
    sides[small] = rng.integers(30, 150, (small.sum(), 2))
    rows = rng.permutation(
        np.concatenate([np.arange(n), np.repeat(rng.choice(n, n_repeated, False), repeats - 1)])
    )
    x = np.rint(255 * x[rows]).astype(np.uint8)
    uids = np.empty(size, curation.UID_DTYPE)
    uids["f0"], uids["f1"] = rng.integers(0, 2**64, (2, size), np.uint64)
    columns = {
        "uid": uids,
        "url": [f"https://example.org/{i}.png" for i in rows],
        "text": [captions[i] for i in rows],
        "original_width": sides[rows, 0],
        "original_height": sides[rows, 1],
        "sha256": np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in x]),
        "language": np.array([languages[i] for i in rows]),
    }
    return Pool(
        columns, x, kind[rows], _reference(rng, images[reference], labels[reference], photos),
        np.rint(255 * images[reference]).astype(np.uint8), _tests(rng, images[test]), labels[test],
    )  # fmt: skip


def _pair(rng, kind, image, label, photos):
    if kind == "elsewhere":
        which = rng.integers(len(photos))
        return _crop(rng, photos[which]), _PHOTOS[which][1], "en"
    image, caption, language = _shift(rng, image), _caption(rng, label), "en"
    if kind == "wrong":
        caption = _caption(rng, (label + rng.integers(1, 10)) % 10)
    elif kind == "junk":
        caption, language = f"IMG_{rng.integers(10_000):04}.jpg", "unknown"
    elif kind == "foreign":
        language, template, words = _FOREIGN[rng.integers(len(_FOREIGN))]
        caption = template.format(words[label])
    elif kind == "small":
        image = np.kron(image.reshape(2, 4, 2, 4).mean((1, 3)), np.ones((4, 4)))
    return image, caption, language


def _caption(rng, label):
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(WORDS[label])


def _shift(rng, image):
    down, right = rng.integers(0, 3, 2)
    return np.pad(image, 1)[down : down + SIDE, right : right + SIDE]


def _crop(rng, photo):
    side = rng.integers(40, 200)
    top, left = (rng.integers(0, n - side) for n in photo.shape)
    crop = photo[top : top + side, left : left + side]
    cuts = np.linspace(0, side, SIDE + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(crop, cuts, axis=0), cuts, axis=1)
    counts = np.diff(np.append(cuts, side))
    return sums / np.outer(counts, counts)


def _gray(photo):
    return photo.mean(axis=-1) / 255


def _reference(rng, images, labels, photos):
    x = [_shift(rng, image) for image in np.repeat(images, 4, axis=0)]
    captions = [_caption(rng, label) for label in np.repeat(labels, 4)]
    for _ in range(_N_REFERENCE):
        which = rng.integers(len(photos))
        x.append(_crop(rng, photos[which]))
        captions.append(_PHOTOS[which][1])
    return np.rint(255 * np.stack(x)).astype(np.uint8), captions


def _tests(rng, images):
    noisy = np.clip(images + rng.normal(0, 0.25, images.shape), 0, 1)
    shifted = np.stack([_shift(rng, image) for image in images])
    tests = {"clean": images, "shifted": shifted, "noisy": noisy}
    return {name: np.rint(255 * x).astype(np.uint8) for name, x in tests.items()}


def inputs(images: np.ndarray) -> np.ndarray:
    """Normalises images ``[n, 8, 8]`` as ``prepare_image`` does, to ``[n, 8, 8, 1]``."""
    mean, std = np.float32(curation.pairs.MEAN[1]), np.float32(curation.pairs.STD[1])
    return (images[..., None] / np.float32(255) - mean) / std


# Filters.


class Scores(NamedTuple):
    """What the scorers say of a pool.

    Attributes:
      l14: similarity of image and caption ``[n]``, by the scorer that saw the reference.
      own: likewise, by a model that was trained on the pool itself.
      embeddings: of the images ``[n, d]``, by the first.
      targets: of the task's images ``[300, d]``, by the first.
    """

    l14: np.ndarray
    own: np.ndarray
    embeddings: np.ndarray
    targets: np.ndarray


NAMES = {
    "none": "no filter",
    "random": "random, as many as CLIP",
    "dedup": "exact duplicates removed",
    "basic": "basic",
    "text": "text-based",
    "image": "image-based",
    "laion": "LAION-like",
    "clip": "CLIP score",
    "clip_dedup": "CLIP score, deduplicated",
    "image_clip": "image-based AND CLIP score",
    "basic_clip_dedup": "basic AND CLIP score, deduplicated",
    "self": "CLIP score by a scorer trained on the pool",
    "oracle": "oracle: the planted right ones",
    "oracle_small": "oracle, as few as image-based AND CLIP",
}


def masks(
    key, pool: Pool, scores: Scores, *, fraction: float, laion_fraction: float, n_clusters: int
) -> dict[str, np.ndarray]:
    """Applies every filter.

    Args:
      key: of the clusters and the two random controls.
      pool: of ``make_pool``.
      scores: of its pairs.
      fraction: that the filters by score keep.
      laion_fraction: share that the threshold of the LAION-like filter lets through, before its
        language test; the benchmark's own threshold belongs to another scorer.
      n_clusters: of the image-based filter.

    Returns:
      ``{name: bool [n]}``, in the order of ``NAMES``.
    """
    columns, uids = pool.columns, pool.columns["uid"]
    n = len(uids)
    columns = {**columns, "clip_l14_similarity_score": scores.l14}
    right = pool.kind == KINDS.index("right")
    clip = curation.top_fraction(scores.l14, fraction, uids=uids)
    dedup = curation.dedup_mask(columns["sha256"], uids=uids)
    basic = curation.basic_mask(columns, language="language")
    caption = curation.caption_mask(columns, language="language")
    clusters = curation.kmeans(
        named_key(key, "clusters"), scores.embeddings[caption], n_clusters, metric="l2"
    )
    near = curation.assign(scores.targets, clusters.centroids, metric="l2")
    image = caption & curation.image_cluster_mask(
        scores.embeddings, clusters.centroids, near, metric="l2"
    )
    text = curation.language_mask(columns, "language") & curation.entity_mask(
        columns["text"], frozenset(WORDS)
    )
    place = max(int(n * laion_fraction), 1)
    threshold = curation.kth_largest([scores.l14], place, dtype=scores.l14.dtype)
    laion = curation.laion_mask(
        columns, language="language", scores="clip_l14_similarity_score", threshold=threshold
    )
    rng = numpy_generator(named_key(key, "controls"))
    found = {
        "none": np.ones(n, bool),
        "random": _some(rng, np.ones(n, bool), clip.sum()),
        "dedup": dedup,
        "basic": basic,
        "text": text,
        "image": image,
        "laion": laion,
        "clip": clip,
        "clip_dedup": clip & dedup,
        "image_clip": image & clip,
        "basic_clip_dedup": basic & clip & dedup,
        "self": curation.top_fraction(scores.own, fraction, uids=uids),
        "oracle": right,
        "oracle_small": _some(rng, right, min((image & clip).sum(), right.sum())),
    }
    return {name: np.asarray(found[name]) for name in NAMES}


def _some(rng, mask, size):
    chosen = np.zeros(len(mask), bool)
    chosen[rng.choice(np.flatnonzero(mask), size, replace=False)] = True
    return chosen


# The pool as files.


def write_pool(
    folder: pathlib.Path, pool: Pool, scores: Scores, *, shard_size: int, part_size: int
) -> None:
    """Writes a pool as the benchmark has it: parquet and npz, and tars of images with captions.

    Args:
      folder: gets ``metadata/`` and ``shards/``.
      pool: of ``make_pool``.
      scores: its pairs' scores and embeddings.
      shard_size: pairs of a tar.
      part_size: rows of a parquet file.
    """
    from PIL import Image

    columns = {
        **pool.columns,
        "clip_l14_similarity_score": scores.l14.astype(np.float32),
        "clip_b32_similarity_score": scores.own.astype(np.float32),
    }
    n = len(pool.images)
    for number, start in enumerate(range(0, n, part_size)):
        rows = slice(start, start + part_size)
        curation.write_metadata(
            folder / "metadata" / f"{number:08d}.parquet",
            {name: column[rows] for name, column in columns.items()},
            embeddings={"l14_img": scores.embeddings[rows].astype(np.float16)},
        )
    uids = curation.format_uids(columns["uid"])

    def sample(i):
        buffer = io.BytesIO()
        Image.fromarray(pool.images[i]).save(buffer, "PNG")
        return f"{i:08d}", {
            "png": buffer.getvalue(),
            "txt": columns["text"][i],
            "json": {"uid": str(uids[i]), "caption": columns["text"][i]},
        }

    for number, start in enumerate(range(0, n, shard_size)):
        path = folder / "shards" / f"{number:08d}.tar"
        curation.write_shard(path, map(sample, range(start, min(start + shard_size, n))))


def write_tests(folder: pathlib.Path, pool: Pool) -> None:
    """Writes the three tests as evaluation sets ``digits_<name>.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in pool.tests.items():
        arrays: Mapping[str, Any] = {
            "images": images[..., None],
            "labels": pool.labels,
            "classes": np.array(WORDS),
            "templates": np.array(TEMPLATES),
        }
        np.savez(folder / f"digits_{name}.npz", **arrays)
