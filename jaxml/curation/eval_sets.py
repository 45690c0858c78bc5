"""Evaluation sets from folders, npz files and tensorflow-datasets, and scores on them."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxml.curation import zeroshot
from jaxml.curation.clip_tokens import Tokenize
from jaxml.curation.pairs import prepare_image
from jaxml.curation.tasks import TASKS
from jaxml.data import tfds_source

TEMPLATES = ("a photo of a {}.", "{}")


class EvalSet(NamedTuple):
    """Labelled images and what their labels are called; or images and texts of theirs.

    Attributes:
      images: a sequence of uint8 ``[h, w, c]``, or of bytes of image files.
      labels: int ``[n]``; of a retrieval set the image of each text ``[m]``.
      classes: names of the labels; of a retrieval set its ``m`` texts.
      templates: sentences with ``{}`` for a class; none makes a retrieval set.
      groups: int ``[n]`` of a metric over groups, -1 for none; None has no groups.
    """

    images: Sequence
    labels: np.ndarray
    classes: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES
    groups: np.ndarray | None = None


class AssociationSet(NamedTuple):
    """Cues, each with candidate images of which some belong to it.

    Attributes:
      images: as of ``EvalSet``.
      cues: ``n`` texts.
      candidates: int ``[n, c]``, numbers of images; -1 where a cue has fewer.
      relevant: bool ``[n, c]``.
    """

    images: Sequence
    cues: tuple[str, ...]
    candidates: np.ndarray
    relevant: np.ndarray


def load_eval_set(folder: str | os.PathLike, name: str) -> EvalSet | AssociationSet:
    """Loads a task from a folder of the user's, or else one that tensorflow-datasets has prepared.

    Looks for a file ``<name>.npz``, then for a folder ``<name>/<class>/*.png`` (jpg, jpeg, webp).
    The file holds ``images`` ``[n, h, w, c]`` uint8 with ``labels`` and ``classes``, and if there
    are any ``templates`` and ``groups``; for retrieval ``images``, ``texts``, ``image_of_text``;
    for associations the arrays of ``AssociationSet``. A file ``<name>.json`` with ``classes`` or
    ``templates`` replaces theirs, for the words of a prompt decide much of the score.

    Args:
      folder: of the user's sets.
      name: of a task, see ``TASKS``, or any other name with such a file.

    Returns:
      The set.

    Raises:
      FileNotFoundError: none of these is there.
      ValueError: arrays that do not fit together.
    """
    folder = pathlib.Path(folder)
    if (folder / f"{name}.npz").exists():
        found = _npz(folder / f"{name}.npz")
    elif (folder / name).is_dir():
        found = _image_folder(folder / name)
    elif name in TASKS and TASKS[name].tfds:
        found = _tfds(TASKS[name].tfds)
    else:
        raise FileNotFoundError(
            f"task {name!r} is neither {folder / name}.npz nor a folder {folder / name}, and "
            "tensorflow-datasets has no set of these labels"
        )
    path = folder / f"{name}.json"
    if path.exists():
        words = json.loads(path.read_text(encoding="utf-8"))
        if unknown := sorted(set(words) - {"classes", "templates"}):
            raise ValueError(f"{path}: {unknown[0]!r} is neither classes nor templates")
        found = found._replace(**{key: tuple(value) for key, value in words.items()})
    return _checked(found, name)


def evaluate(
    encode_image: Callable[[jax.Array], jax.Array],
    encode_text: Callable[[jax.Array], jax.Array],
    tokenize: Tokenize,
    eval_set: EvalSet | AssociationSet,
    *,
    metric: str,
    image_size: int,
    channels: int = 3,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Scores a model on a set, zero-shot.

    Args:
      encode_image: images ``[b, s, s, c]``, normalised, to unit vectors ``[b, d]``; jitted.
      encode_text: tokens ``[b, t]`` likewise.
      tokenize: as of ``clip_tokens``.
      eval_set: of ``load_eval_set``.
      metric: main one of the task: "acc1", "mean_per_class_recall", "mean_recall@1",
        "jaccard_score_10-12", "F1-macro_all", "acc_worst_region", "acc_wg" or "acc_top5_wg".
      image_size: of the model.
      channels: of the model.
      batch_size: images at once.

    Returns:
      All metrics that the set allows, and ``"main_metric"``.

    Raises:
      ValueError: a metric that the set does not allow.
    """
    image = np.concatenate(
        list(_features(encode_image, eval_set, image_size, channels, batch_size))
    )

    def texts(strings):
        parts = _padded(tokenize(strings), batch_size)
        return np.concatenate([np.asarray(encode_text(part))[:size] for part, size in parts])

    if isinstance(eval_set, AssociationSet):
        found = _associations(image, texts(eval_set.cues), eval_set)
    elif not eval_set.templates:
        recalls = zeroshot.retrieval(image, texts(eval_set.classes), eval_set.labels)
        found = {"image_retrieval_recall@1": recalls.image, "text_retrieval_recall@1": recalls.text}
        found["mean_recall@1"] = (recalls.image + recalls.text) / 2
    else:
        prompts = zeroshot.prompts(eval_set.templates, eval_set.classes)
        tokens = np.stack([tokenize(of_class) for of_class in prompts])
        logits = image @ np.asarray(zeroshot.classifier(encode_text, tokens)).T
        found = _scores(logits, eval_set)
    if metric not in found:
        raise ValueError(f"metric {metric!r} needs another set; this one gives {', '.join(found)}")
    found = {name: float(value) for name, value in found.items()}
    return {**found, "main_metric": found[metric]}


def _associations(image, text, eval_set):
    candidates, relevant = eval_set.candidates, eval_set.relevant
    similarity = np.einsum("nd,ncd->nc", text, image[candidates])
    n = (candidates >= 0).sum(axis=1)
    parts = {"5-6": (n >= 5) & (n <= 6), "10-12": (n >= 10) & (n <= 12)}
    return {
        f"jaccard_score_{name}": zeroshot.jaccard(
            similarity[rows], relevant[rows], candidates[rows] >= 0
        )
        for name, rows in parts.items()
        if rows.any()
    }


def _scores(logits, eval_set):
    labels, n_classes = eval_set.labels, logits.shape[1]
    found = {
        "acc1": zeroshot.accuracy(logits, labels),
        "acc5": zeroshot.accuracy(logits, labels, k=5),
        "mean_per_class_recall": zeroshot.mean_per_class_recall(logits, labels),
        "F1-macro_all": zeroshot.macro_f1(logits.argmax(axis=1), labels, n_classes=n_classes),
    }
    if eval_set.groups is not None:
        n_groups = int(eval_set.groups.max()) + 1
        worst, worst_of_5 = (
            zeroshot.worst_group(
                zeroshot.top_k_right(logits, labels, k=k), eval_set.groups, n_groups=n_groups
            )
            for k in (1, 5)
        )
        found |= {"acc_worst_region": worst, "acc_wg": worst, "acc_top5_wg": worst_of_5}
    return found


def _features(encode, eval_set, image_size, channels, batch_size):
    for start in range(0, len(eval_set.images), batch_size):
        some = [
            eval_set.images[i] for i in range(start, min(start + batch_size, len(eval_set.images)))
        ]
        batch = np.stack(
            [prepare_image(image, image_size=image_size, channels=channels) for image in some]
        )
        # One shape for all batches, so that nothing is compiled for the last one.
        for padded, size in _padded(batch, batch_size):
            yield np.asarray(encode(padded))[:size]


def _padded(rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        rest = np.zeros((batch_size - len(some), *rows.shape[1:]), rows.dtype)
        yield np.concatenate([some, rest]), len(some)


def _npz(path):
    with np.load(path) as file:
        arrays = dict(file)
    if "texts" in arrays:
        texts = tuple(map(str, arrays["texts"]))
        return EvalSet(arrays["images"], arrays["image_of_text"], texts, ())
    if "cues" in arrays:
        cues = tuple(map(str, arrays["cues"]))
        return AssociationSet(arrays["images"], cues, arrays["candidates"], arrays["relevant"])
    if missing := {"images", "labels", "classes"} - arrays.keys():
        raise ValueError(f"{path} has no array {sorted(missing)[0]!r}")
    templates = tuple(map(str, arrays.get("templates", TEMPLATES)))
    classes = tuple(map(str, arrays["classes"]))
    return EvalSet(arrays["images"], arrays["labels"], classes, templates, arrays.get("groups"))


def _image_folder(folder):
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    kinds = {".png", ".jpg", ".jpeg", ".webp"}
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in kinds
    ]
    if not files:
        raise FileNotFoundError(f"no images in folders of {folder}")
    labels = np.array([label for _, label in files])
    return EvalSet(_Files([path for path, _ in files]), labels, tuple(map(_words, classes)))


class _Files(Sequence):
    """Bytes of files, read when they are asked for."""

    def __init__(self, paths):
        self._paths = paths

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, i):
        return self._paths[i].read_bytes()


class _Examples(Sequence):
    """Images of a data source of tensorflow-datasets."""

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def __getitem__(self, i):
        return self._source[i]["image"]


def _tfds(name):
    folder = tfds_source.prepare(name, download=False)
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    split = next(s for s in ("test", "validation", "train") if s in builder.info.splits)
    source = builder.as_data_source(split)
    names = tuple(map(_words, builder.info.features["label"].names))
    labels = np.array([example["label"] for example in source])
    return EvalSet(_Examples(source), labels, names)


def _words(name):
    return name.replace("_", " ")


def _checked(found, name):
    if isinstance(found, AssociationSet):
        shape = found.candidates.shape
        if len(shape) != 2 or shape[0] != len(found.cues) or found.relevant.shape != shape:
            raise ValueError(f"{name}: candidates and relevant must be [{len(found.cues)}, c] both")
        if shape[0] and not -1 <= found.candidates.min() <= found.candidates.max() < len(
            found.images
        ):
            raise ValueError(f"{name}: candidates must lie in -1..{len(found.images) - 1}")
        if not (found.relevant & (found.candidates >= 0)).any(axis=1).all():
            raise ValueError(f"{name}: every cue needs a relevant candidate")
        return found
    labels = np.asarray(found.labels)
    many = len(found.images) if found.templates else len(found.classes)
    below = len(found.classes) if found.templates else len(found.images)
    if labels.shape != (many,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: labels must be {many} integers, got {labels.dtype} {labels.shape}"
        )
    if many and not 0 <= labels.min() <= labels.max() < below:
        raise ValueError(f"{name}: labels must lie in 0..{below - 1}")
    if found.groups is not None and np.shape(found.groups) != labels.shape:
        raise ValueError(f"{name}: groups must be {many} integers, got {np.shape(found.groups)}")
    return found._replace(labels=labels)
