"""Evaluation sets of every kind, scored by encoders whose answer is known."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxml.curation import TASKS, Task, evaluate, load_eval_set
from jaxml.curation.pairs import MEAN, STD

CLASSES = ("dark", "light")


def tokenize(texts):
    """One token, the number in a text or that of its class."""
    numbers = [int("light" in t) if not t[-1].isdigit() else int(t.split()[-1]) for t in texts]
    return np.array(numbers, np.int32)[:, None]


def encode_text(tokens):
    return jnp.eye(4)[tokens[:, 0]]


def encode_image(images):
    """An image of brightness 0, 1/3, 2/3, 1 is class 0, 1, 2, 3."""
    shade = images.mean(axis=(1, 2)) * STD[1] + MEAN[1]
    return jnp.eye(4)[jnp.rint(3 * shade[:, 0]).astype(jnp.int32)]


def shades(*numbers):
    return np.stack([np.full((2, 2, 1), 85 * n, np.uint8) for n in numbers])


def score(folder, name, metric, batch_size=3):
    return evaluate(
        encode_image, encode_text, tokenize, load_eval_set(folder, name), metric=metric,
        image_size=2, channels=1, batch_size=batch_size,
    )  # fmt: skip


def test_classification_from_an_npz(tmp_path):
    labels, groups = np.array([0, 1, 1, 0, 1]), np.array([0, 0, 1, 1, -1])
    arrays = {"images": shades(0, 1, 0, 0, 1), "labels": labels, "classes": np.array(CLASSES)}
    np.savez(tmp_path / "toy.npz", **arrays, templates=np.array(["a {}"]), groups=groups)
    found = score(tmp_path, "toy", "acc1")
    assert found["main_metric"] == pytest.approx(0.8)
    assert found["mean_per_class_recall"] == pytest.approx((1 + 2 / 3) / 2)
    assert score(tmp_path, "toy", "acc_wg")["main_metric"] == 0.5
    assert found["acc5"] == 1
    (tmp_path / "toy.json").write_text(json.dumps({"classes": ["light", "dark"]}))
    assert score(tmp_path, "toy", "acc1")["main_metric"] == pytest.approx(0.2)
    (tmp_path / "toy.json").write_text(json.dumps({"classnames": []}))
    with pytest.raises(ValueError, match="'classnames' is neither classes nor templates"):
        load_eval_set(tmp_path, "toy")


def test_folders_of_images(tmp_path):
    for name, numbers in {"dark": (0, 0, 0), "light": (1, 0)}.items():
        (tmp_path / "toy" / name).mkdir(parents=True)
        for i, n in enumerate(numbers):
            Image.fromarray(shades(n)[0, ..., 0]).save(tmp_path / "toy" / name / f"{i}.png")
    assert score(tmp_path, "toy", "acc1")["main_metric"] == pytest.approx(0.8)


def test_a_prepared_set_of_tensorflow_datasets(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    from jaxml.data import tfds_source

    class JaxmlShades(tfds.core.GeneratorBasedBuilder):
        """Five shades of two classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 1))
            label = tfds.features.ClassLabel(names=["dark_one", "light_one"])
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(1), "test": self._generate_examples(5)}

        def _generate_examples(self, n):
            for i in range(n):
                buffer = io.BytesIO()
                Image.fromarray(shades(i % 2)[0, ..., 0]).save(buffer, "PNG")
                yield i, {"image": buffer.getvalue(), "label": int(i == 1)}

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    tfds_source.prepare("jaxml_shades", download=True)
    task = Task("toy", "toy", 5, 2, 0.5, "acc1", "", "jaxml_shades")
    monkeypatch.setitem(TASKS, "toy", task)
    found = load_eval_set(tmp_path / "none", "toy")
    assert found.classes == ("dark one", "light one") and len(found.images) == 5
    (tmp_path / "toy.json").write_text(json.dumps({"classes": CLASSES}))
    assert score(tmp_path, "toy", "acc1")["main_metric"] == pytest.approx(0.8)


def test_retrieval_from_an_npz(tmp_path):
    texts = np.array(["shade 0", "shade 1", "shade 1", "shade 3"])
    arrays = {"images": shades(0, 1, 2), "texts": texts, "image_of_text": np.array([0, 1, 2, 1])}
    np.savez(tmp_path / "toy.npz", **arrays)
    found = score(tmp_path, "toy", "mean_recall@1")
    # Texts 0 and 1 find their image. Images 0 and 1 find a text of theirs; to image 2 all are 0.
    assert found["image_retrieval_recall@1"] == pytest.approx(2 / 4)
    assert found["text_retrieval_recall@1"] == pytest.approx(2 / 3)
    assert found["main_metric"] == pytest.approx((2 / 4 + 2 / 3) / 2)


def test_associations_from_an_npz(tmp_path):
    candidates = np.full((2, 12), -1)
    candidates[0, :10] = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    candidates[1, :5] = [0, 1, 2, 3, 3]
    relevant = np.zeros((2, 12), bool)
    relevant[0, [1, 3]] = relevant[1, 0] = True
    np.savez(
        tmp_path / "toy.npz", images=shades(0, 1, 2, 3), cues=np.array(["cue 1", "cue 0"]),
        candidates=candidates, relevant=relevant,
    )  # fmt: skip
    found = score(tmp_path, "toy", "jaccard_score_10-12")
    assert found["main_metric"] == pytest.approx(1 / 3)  # chosen: 1 and 2, relevant: 1 and 3
    assert found["jaccard_score_5-6"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 1])}, "labels must be 3 integers"),
        ({"labels": np.array([0, 1, 2])}, r"labels must lie in 0..1"),
        ({"labels": np.array([0, 1, 1.0])}, "labels must be 3 integers, got float64"),
        ({"groups": np.array([0])}, "groups must be 3 integers"),
        ({"classes": None}, "has no array 'classes'"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    arrays = {
        "images": shades(0, 1, 0),
        "labels": np.array([0, 1, 0]),
        "classes": np.array(CLASSES),
    }
    arrays = {name: a for name, a in (arrays | change).items() if a is not None}
    np.savez(tmp_path / "toy.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_eval_set(tmp_path, "toy")


def test_what_is_not_there_or_not_measurable_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"task 'toy' is neither .*toy.npz nor a folder"):
        load_eval_set(tmp_path, "toy")
    np.savez(
        tmp_path / "toy.npz", images=shades(0), labels=np.array([0]), classes=np.array(CLASSES)
    )
    with pytest.raises(ValueError, match="metric 'acc_wg' needs another set; this one gives acc1"):
        score(tmp_path, "toy", "acc_wg")
