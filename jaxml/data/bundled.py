"""Four real data sets that come inside scikit-learn: no download, no preparation."""

import numpy as np

from jaxml.data.dataset import Dataset, UnknownDatasetError

NAMES = ("breast_cancer", "diabetes", "digits", "wine")


def load(name: str) -> Dataset:
    """Loads a bundled set, split 80/20 once and for all.

    | name          | inputs                          | n_train | n_test | target           |
    |---------------|---------------------------------|---------|--------|------------------|
    | digits        | images ``[n, 8, 8, 1]`` in [0, 1] | 1437  | 360    | 10 classes       |
    | breast_cancer | raw features ``[n, 30]``        | 455     | 114    | 2 classes        |
    | wine          | raw features ``[n, 13]``        | 142     | 36     | 3 classes        |
    | diabetes      | raw features ``[n, 10]``        | 353     | 89     | float32 ``[n]``  |

    The split of a classification set is stratified; ``standardize`` scales raw features.

    Args:
      name: one of ``NAMES``.

    Returns:
      The data set; labels are int32.

    Raises:
      UnknownDatasetError: another name.
    """
    if name not in NAMES:
        raise UnknownDatasetError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    from sklearn import datasets, model_selection

    # scikit-learn ships diabetes already standardized unless it is asked not to.
    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(**options)
    class_names = tuple(str(label) for label in bunch.get("target_names", ()))
    x = bunch.images[..., None] / 16 if name == "digits" else bunch.data
    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        x.astype(np.float32),
        bunch.target.astype(np.int32 if class_names else np.float32),
        test_size=0.2,
        random_state=0,
        stratify=bunch.target if class_names else None,
    )
    return Dataset(name, train_x, train_y, test_x, test_y, class_names)
