import numpy as np
import pytest

from jaxml.data import Dataset, standardize


def make(shape, seed=0, **changes):
    rng = np.random.default_rng(seed)
    x = (5 + 3 * rng.standard_normal((20, *shape))).astype(np.float32)
    y = np.arange(20, dtype=np.int32) % 2
    return Dataset("made", x[:14], y[:14], x[14:], y[14:], ("a", "b"))._replace(**changes)


@pytest.mark.parametrize("shape", [(3,), (4, 5, 3)])
def test_standardize_equals_numpy_feature_by_feature(shape):
    dataset = make(shape)
    scaled = standardize(dataset)
    for i in range(3):
        train = dataset.train_x[..., i].astype(np.float64)
        for x, want in ((dataset.train_x, scaled.train_x), (dataset.test_x, scaled.test_x)):
            expected = (x[..., i].astype(np.float64) - train.mean()) / train.std()
            np.testing.assert_allclose(want[..., i], expected, atol=1e-5)
    assert scaled.train_x.dtype == scaled.test_x.dtype == np.float32
    assert scaled.train_y is dataset.train_y


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_standardize_only_shifts_a_constant_feature(constant):
    dataset = make((3,))
    dataset.train_x[:, 1] = constant
    dataset.test_x[:, 1] = constant + 1
    scaled = standardize(dataset)
    np.testing.assert_array_equal(scaled.train_x[:, 1], 0)
    np.testing.assert_allclose(scaled.test_x[:, 1], 1, rtol=1e-6)


def test_standardize_does_not_change_its_input():
    dataset, same = make((3,)), make((3,))
    standardize(dataset)
    np.testing.assert_array_equal(dataset.train_x, same.train_x)


def test_properties():
    assert make((4, 5, 3)).input_shape == (4, 5, 3)
    assert make((3,)).n_classes == 2
    assert make((3,), class_names=()).n_classes == 0
