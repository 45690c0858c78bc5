"""The tensorflow-datasets path, on sets that the tests write: images as PNG bytes need no TF."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxml import data
from jaxml.data import tfds_source

RNG = np.random.default_rng(0)
LABELS = ("cat", "dog", "eel")
# What each split holds, and the oracle of what is read back.
PIXELS = {
    ("colour", "train"): RNG.integers(0, 256, (7, 4, 5, 3), np.uint8),
    ("colour", "test"): RNG.integers(0, 256, (3, 4, 5, 3), np.uint8),
    ("grey", "train"): RNG.integers(0, 256, (4, 6, 6, 1), np.uint8),
    ("grey", "validation"): RNG.integers(0, 256, (2, 6, 6, 1), np.uint8),
    ("ragged", "train"): [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)],
    ("ragged", "test"): [np.zeros((4, 4, 3), np.uint8)],
    ("two_sizes", "train"): [np.zeros((4, 4, 3), np.uint8)],
    ("two_sizes", "test"): [np.zeros((8, 8, 3), np.uint8)],
    ("train_only", "train"): np.zeros((2, 4, 4, 3), np.uint8),
    ("unlabelled", "train"): np.zeros((2, 4, 4, 3), np.uint8),
    ("unlabelled", "test"): np.zeros((2, 4, 4, 3), np.uint8),
    ("regression", "train"): np.zeros((2, 4, 4, 3), np.uint8),
    ("deep", "train"): np.zeros((2, 4, 4, 1), np.uint8),
    ("arrays", "train"): np.zeros((2, 4, 4, 3), np.uint8),
}
CONFIGS = list(dict.fromkeys(config for config, _ in PIXELS))


class JaxmlMade(tfds.core.GeneratorBasedBuilder):
    """Tiny image sets, one for each thing that can be right or wrong."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name) for name in [*CONFIGS, "offline"]
    ]

    def _info(self):
        config = self.builder_config.name
        label = tfds.features.ClassLabel(names=LABELS)
        channels = 1 if config in ("grey", "deep") else 3
        dtype = np.uint16 if config == "deep" else np.uint8
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, channels), dtype=dtype),
            "label": tfds.features.Scalar(np.float32) if config == "regression" else label,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        config = self.builder_config.name
        if config == "offline":
            raise ConnectionError("no route to host\nand a page of hints")
        splits = [split for name, split in PIXELS if name == config]
        return {split: self._generate_examples(config, split) for split in splits}

    def _generate_examples(self, config, split):
        for i, pixels in enumerate(PIXELS[config, split]):
            label = -1 if config == "unlabelled" else i % len(LABELS)
            image = pixels if config == "arrays" else png(pixels)
            yield i, {"id": f"{split}{i}", "image": image, "label": label}


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    for config in CONFIGS:
        if config != "arrays":
            tfds_source.prepare(f"jaxml_made/{config}", data_dir=root, download=True)
    return root


def as_set(x, y):
    return sorted((bytes(np.ascontiguousarray(a)), int(b)) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("config", "test_split"), [("colour", "test"), ("grey", "validation")])
def test_pixels_come_back_exactly(data_dir, config, test_split):
    dataset = data.load(f"jaxml_made/{config}", data_dir=data_dir)
    for split, x, y in (
        ("train", dataset.train_x, dataset.train_y),
        (test_split, dataset.test_x, dataset.test_y),
    ):
        written = PIXELS[config, split]
        # tfds shuffles once while it writes.
        expected = written.astype(np.float32) / np.float32(255)
        assert as_set(x, y) == as_set(expected, np.arange(len(written)) % 3)
        assert x.dtype == np.float32
        assert y.dtype == np.int32
    assert dataset.class_names == LABELS
    assert dataset.input_shape == written.shape[1:]


def test_no_tensorflow_is_loaded(data_dir):
    data.load("jaxml_made/colour", data_dir=data_dir)
    assert "tensorflow" not in sys.modules


def test_a_family_name_means_its_default_config(data_dir):
    dataset = data.load("jaxml_made", data_dir=data_dir)
    assert dataset.input_shape == (4, 5, 3)


def test_the_environment_variable_gives_the_folder(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert data.load("jaxml_made/grey").input_shape == (6, 6, 1)


def test_the_latest_version_is_read(data_dir, tmp_path):
    for version in ("2.0.0", "10.0.0"):
        folder = tmp_path / "copied" / version
        shutil.copytree(data_dir / "jaxml_made" / "colour" / "1.0.0", folder)
        for file in folder.glob("jaxml_made-*"):
            file.rename(folder / file.name.replace("jaxml_made", "copied"))
        info = json.loads((folder / "dataset_info.json").read_text())
        info = {**info, "name": "copied", "version": version}
        if version == "2.0.0":
            info["splits"] = []
        (folder / "dataset_info.json").write_text(json.dumps(info))
    # A set that tfds has no code for is known because it lies there.
    assert data.load("copied", data_dir=tmp_path).input_shape == (4, 5, 3)
    with pytest.raises(data.UnknownDatasetError, match="nearest names are copied,"):
        data.check("copied_", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("regression", "no image classification set: .*got id: Text, image: Image, label: Scalar"),
        ("deep", "must be uint8, got uint16"),
        ("train_only", "needs the split train, and test or validation, got train"),
    ],
)
def test_a_set_of_another_kind_is_refused_before_loading(data_dir, config, message):
    for refuse in (data.check, data.load):
        with pytest.raises(ValueError, match=message):
            refuse(f"jaxml_made/{config}", data_dir=data_dir)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("ragged", r"one shape, got \(4, [45], 3\) and \(4, [45], 3\)"),
        ("two_sizes", r"one shape, got \(4, 4, 3\) and \(8, 8, 3\)"),
        ("unlabelled", "must be labelled, got 2 of 2 without"),
    ],
)
def test_what_only_the_images_show_is_refused_by_load(data_dir, config, message):
    data.check(f"jaxml_made/{config}", data_dir=data_dir)
    with pytest.raises(ValueError, match=message):
        data.load(f"jaxml_made/{config}", data_dir=data_dir)


def test_a_set_in_another_format_says_how_to_get_array_record(data_dir, tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    shutil.copytree(data_dir / "jaxml_made" / "colour" / "1.0.0", folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    message = "as tfrecord.*prepare it as array_record in another folder.*--name=mnist --data_dir="
    for refuse in (data.check, data.load, lambda *a, **k: tfds_source.prepare(*a, **k, download=1)):
        with pytest.raises(data.NotPreparedError, match=message):
            refuse("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("refuse", [data.check, data.load])
def test_an_unprepared_set_says_where_how_and_what_instead(tmp_path, refuse):
    with pytest.raises(data.NotPreparedError) as error:
        refuse("cifar10", data_dir=tmp_path)
    message = str(error.value)
    assert str(tmp_path / "cifar10") in message
    assert f"python -m launch.prepare_data --name=cifar10 --data_dir={tmp_path}`" in message
    assert "'digits'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cifar01", "cifar10"),
        ("CIFAR10", "cifar10"),
        ("digit", "digits"),
        ("domainet/real", "domainnet"),
        ("fashion-mnist", "fashion_mnist"),
        ("", ""),
        ("../cifar10", ""),
    ],
)
def test_an_unknown_name_gets_the_nearest_three(tmp_path, name, nearest):
    with pytest.raises(data.UnknownDatasetError) as error:
        data.check(name, data_dir=tmp_path)
    said, _, names = str(error.value).partition(": the nearest names are ")
    assert repr(name) in said
    assert len(names.split(", ")) == 3
    assert nearest in names


def test_the_names_that_tfds_has_are_known(tmp_path):
    tfds_names = tfds.list_builders(with_community_datasets=False)
    for name in (
        "mnist",
        "emnist/balanced",
        "svhn_cropped",
        "stl10",
        "cifar10_n",
        "domainnet/real",
    ):
        assert name.partition("/")[0] in tfds_names
        with pytest.raises(data.NotPreparedError):
            data.check(name, data_dir=tmp_path)


def test_check_imports_nothing_heavy(tmp_path):
    code = f"""
import sys
from jaxml import data
data.check("digits")
for name in ("cifar10", "cifar01"):
    try:
        data.load(name, data_dir={str(tmp_path)!r})
    except (data.NotPreparedError, data.UnknownDatasetError):
        continue
    raise SystemExit("no error")
heavy = {{"jax", "scipy", "sklearn", "tensorflow_datasets", "tensorflow"}} & set(sys.modules)
assert not heavy, heavy
assert data.batching.__name__ == "jaxml.data.batching"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prepare_writes_array_record_once(tmp_path):
    name = "jaxml_made/colour"
    with pytest.raises(data.NotPreparedError, match="--download"):
        tfds_source.prepare(name, data_dir=tmp_path, download=False)
    folder = tfds_source.prepare(name, data_dir=tmp_path, download=True)
    assert folder == tmp_path / "jaxml_made" / "colour" / "1.0.0"
    assert json.loads((folder / "dataset_info.json").read_text())["fileFormat"] == "array_record"
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert tfds_source.prepare(name, data_dir=tmp_path, download=False) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("jaxml_mad", data.UnknownDatasetError, "'jaxml_mad': the nearest names are"),
        ("../cifar10", data.UnknownDatasetError, "'../cifar10': the nearest names are"),
        ("jaxml_made/color", data.UnknownDatasetError, "no config 'color'.* colour, .*ragged"),
        ("jaxml_made/offline", data.NotPreparedError, "ConnectionError: .*no route to host"),
        ("digits", ValueError, "'digits' is bundled"),
    ],
)
def test_prepare_fails_in_one_sentence(tmp_path, name, error, message):
    with pytest.raises(error, match=message) as caught:
        tfds_source.prepare(name, data_dir=tmp_path, download=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_prepare_says_when_a_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        data.NotPreparedError, match=r"import of tensorflow.*only preparing this set needs"
    ) as caught:
        tfds_source.prepare("jaxml_made/arrays", data_dir=tmp_path, download=True)
    assert "\n" not in str(caught.value)
