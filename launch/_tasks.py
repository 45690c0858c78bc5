"""What each network of a pair learns, and what their merge is judged on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml import data


class Task(NamedTuple):
    """Something that a merged network should be able to do."""

    name: str
    data: data.Dataset
    columns: tuple[int, int]  # its classes among the logits


def load_sources(config) -> list[data.Dataset]:
    """Loads what A and B are trained on: one set for both, which a split divides, or one each."""
    sets = [data.load(name) for name in (config.dataset, config.dataset_b) if name]
    for dataset in sets:
        if not dataset.n_classes:
            raise ValueError(f"dataset {dataset.name!r} has no classes: it is for regression")
    sets = [data.standardize(d) if config.standardize else d for d in sets]
    if len(sets) == 1:
        return sets if config.labels == "shared" else _halves(sets[0])
    _check_shapes(sets[0], sets[1], "dataset_b")
    if config.labels == "shared" and sets[0].n_classes != sets[1].n_classes:
        raise ValueError(
            f"labels 'shared' need as many classes in both data sets, got {sets[0].n_classes} in "
            f"{sets[0].name!r} and {sets[1].n_classes} in {sets[1].name!r}"
        )
    return sets


def _check_shapes(dataset, other, name) -> None:
    if dataset.input_shape != other.input_shape:
        raise ValueError(
            f"{name} needs inputs {dataset.input_shape} as {dataset.name!r} has, got "
            f"{other.input_shape} in {other.name!r}"
        )


def _halves(dataset) -> list[data.Dataset]:
    """Divides a data set into that of the first half of the classes and that of the others."""
    middle, end = dataset.n_classes // 2, dataset.n_classes
    parts = []
    for first, last in ((0, middle), (middle, end)):
        here = [(y >= first) & (y < last) for y in (dataset.train_y, dataset.test_y)]
        parts.append(
            data.Dataset(
                f"{dataset.name} {first}-{last - 1}",
                dataset.train_x[here[0]], dataset.train_y[here[0]] - first,
                dataset.test_x[here[1]], dataset.test_y[here[1]] - first,
                dataset.class_names[first:last],
            )
        )  # fmt: skip
    return parts


def split(key, dataset, fraction) -> list[data.Dataset]:
    """Gives A ``fraction`` of the examples of the first half of the classes and B that of the rest.

    What the one does not get, the other does. The sizes do not depend on the key.
    """
    order = np.asarray(jax.random.permutation(key, len(dataset.train_y)))
    low = dataset.train_y[order] < dataset.n_classes // 2
    cuts = [round(share * n) for share, n in ((fraction, low.sum()), (1 - fraction, (~low).sum()))]
    indices = [np.split(order[which], [cut]) for which, cut in zip((low, ~low), cuts, strict=True)]
    parts = []
    for of_side in zip(*indices, strict=True):
        chosen = np.sort(np.concatenate(of_side))
        parts.append(
            dataset._replace(train_x=dataset.train_x[chosen], train_y=dataset.train_y[chosen])
        )
    return parts


def list_tasks(config, sources: list[data.Dataset]) -> list[Task]:
    """Lists what a merged network is judged on, and which logits belong to what."""
    tasks, first = [], 0
    for dataset in sources:
        name = dataset.name + " again" * any(task.name == dataset.name for task in tasks)
        tasks.append(Task(name, dataset, (first, first + dataset.n_classes)))
        first += dataset.n_classes if config.labels == "disjoint" else 0
    return tasks


def calibration(key, config, sources) -> jax.Array:
    """Draws the inputs that merging looks at; it never sees a label."""
    target = np.concatenate([dataset.train_x for dataset in sources])
    if config.calibration == "noise":
        axes = tuple(range(target.ndim - 1))
        mean, std = (f(target, axis=axes, dtype=np.float64) for f in (np.mean, np.std))
        noise = jax.random.normal(key, (config.calibration_size, *target.shape[1:]))
        return jnp.asarray(mean + std * np.asarray(noise), jnp.float32)
    if config.calibration == "public":
        public = data.load(config.calibration_dataset)
        _check_shapes(sources[0], public, "calibration_dataset")
        target = (data.standardize(public) if config.standardize else public).train_x
    order = np.asarray(jax.random.permutation(key, len(target)))
    return jnp.asarray(target[order[: config.calibration_size]])
