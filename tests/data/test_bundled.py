import collections

import numpy as np
import pytest
from sklearn import datasets

from jaxml import data

SHAPES = {
    "breast_cancer": ((30,), 2),
    "diabetes": ((10,), 0),
    "digits": ((8, 8, 1), 10),
    "wine": ((13,), 3),
}


def oracle(name):
    if name == "diabetes":
        return datasets.load_diabetes(scaled=False, return_X_y=True)
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return x / 16 if name == "digits" else x, y


def rows(x, y):
    """The multiset of examples, as bytes."""
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    return collections.Counter(map(bytes, np.c_[x, np.asarray(y, np.float32)]))


def test_names():
    assert set(data.names()) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_train_and_test_together_are_sklearns_examples(name):
    dataset = data.load(name)
    # As multisets: no example is lost, doubled, or on both sides of the split.
    both = rows(dataset.train_x, dataset.train_y) + rows(dataset.test_x, dataset.test_y)
    assert both == rows(*oracle(name))


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_types(name):
    dataset = data.load(name)
    shape, n_classes = SHAPES[name]
    assert dataset.name == name
    assert dataset.input_shape == dataset.test_x.shape[1:] == shape
    assert dataset.n_classes == n_classes
    assert dataset.train_x.dtype == dataset.test_x.dtype == np.float32
    wanted = np.int32 if n_classes else np.float32
    assert dataset.train_y.dtype == dataset.test_y.dtype == wanted
    assert all(type(label) is str for label in dataset.class_names)
    n = len(dataset.train_x) + len(dataset.test_x)
    assert len(dataset.test_x) == -(-n // 5)


@pytest.mark.parametrize("name", [name for name, (_, k) in SHAPES.items() if k])
def test_split_is_stratified(name):
    dataset = data.load(name)
    train, test = np.bincount(dataset.train_y), np.bincount(dataset.test_y)
    share = len(dataset.test_y) / (len(dataset.train_y) + len(dataset.test_y))
    assert np.abs(test - share * (train + test)).max() <= 1


def test_split_is_the_same_every_time():
    for a, b in zip(data.load("digits")[1:5], data.load("digits")[1:5], strict=True):
        np.testing.assert_array_equal(a, b)


def test_digits_are_images_between_0_and_1():
    digits = data.load("digits")
    assert (len(digits.train_x), len(digits.test_x)) == (1437, 360)
    assert digits.train_x.min() == 0
    assert digits.train_x.max() == 1
    assert digits.class_names == tuple("0123456789")


def test_another_name_is_refused():
    with pytest.raises(data.UnknownDatasetError, match=r"name must be one of .*digits.*'iris'"):
        data.bundled.load("iris")
