"""What a data set is once it is loaded: four arrays, and the names of its classes."""

from typing import NamedTuple

import numpy as np


class UnknownDatasetError(ValueError):
    """No bundled set, no tensorflow-datasets set and no prepared folder has this name."""


class NotPreparedError(FileNotFoundError):
    """The set exists, but not on this disk in a form that can be read without TensorFlow."""


class Dataset(NamedTuple):
    """One data set in memory.

    Attributes:
      name: the name it was loaded by.
      train_x: float32 inputs: images ``[n, height, width, channels]`` in [0, 1], or raw features
        ``[n, d]``.
      train_y: int32 labels ``[n]``, or float32 regression targets ``[n]``.
      test_x: as ``train_x``.
      test_y: as ``train_y``.
      class_names: the name of each label; empty for a regression.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    class_names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, such as ``(8, 8, 1)``."""
        return self.train_x.shape[1:]

    @property
    def n_classes(self) -> int:
        """The number of classes; 0 for a regression."""
        return len(self.class_names)


def standardize(dataset: Dataset) -> Dataset:
    """Shifts and scales each feature to mean 0 and standard deviation 1 on the training set.

    A feature is an index of the last axis: a column of ``[n, d]``, a channel of an image. The test
    inputs go through the map of the training inputs; a feature that is constant in training is
    only shifted. Labels and targets stay as they are.

    Args:
      dataset: inputs ``[n, ..., d]``.

    Returns:
      The data set with new float32 inputs.
    """
    x = dataset.train_x
    axes = tuple(range(x.ndim - 1))
    # float32 sums over millions of pixels lose digits.
    mean = x.mean(axes, dtype=np.float64)
    # Not std > 0: rounding gives a constant column such as 0.1 a tiny positive deviation.
    constant = x.min(axes) == x.max(axes)
    scale = np.where(constant, 1.0, x.std(axes, dtype=np.float64))

    def apply(x):
        return (x - mean.astype(np.float32)) / scale.astype(np.float32)

    return dataset._replace(train_x=apply(x), test_x=apply(dataset.test_x))
