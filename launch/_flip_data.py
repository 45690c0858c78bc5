"""One data seed of the FLIP study: the images, the trigger, the networks and optimisers."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxml import data, train
from jaxml.backdoor import flip, flip_users
from jaxml.core.rng import named_key
from jaxml.data.triggers import make_trigger
from jaxml.io import MetricsWriter, checkpoint
from jaxml.nn import build

# Superclass of each class of CIFAR-100, both in alphabetical order.
COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3,
    15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0,
    17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19,
    2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip


@dataclasses.dataclass
class Audit:
    """One data seed; images are normalised, ``triggered`` are those of ``x`` with the trigger."""

    key: jax.Array
    config: Any
    seed: int
    folder: pathlib.Path | None
    writer: MetricsWriter
    mesh: Any
    n_classes: int
    x: np.ndarray
    y: np.ndarray
    triggered: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    triggered_test: np.ndarray
    poisoned: flip.Poisoned
    facts: dict[str, Any]  # which images in which order, with which trigger
    values: dict[str, Any] = dataclasses.field(default_factory=dict)  # of its stages
    manifests: dict[str, dict] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The experts' module, which the users have too."""
        return self.build(self.config.model, self.config.width)

    @property
    def expert_optimizer(self) -> optax.GradientTransformation:
        """The experts' optimiser."""
        return self.sgd(self.config.expert_learning_rate)

    def build(self, name: str, width: float) -> nn.Module:
        """Makes a module by name."""
        c = self.config
        return _build(
            name, width=width, n_classes=self.n_classes, norm=c.norm, conv=c.conv, depth=c.depth
        )

    def sgd(self, rate: float, milestones: tuple[int, ...] = ()) -> optax.GradientTransformation:
        """Makes the paper's optimiser; after each of the epochs its rate falls to a tenth."""
        c = self.config
        per_epoch = len(self.x) // c.batch_size
        steps = tuple(epoch * per_epoch for epoch in milestones)
        return _sgd(rate, c.momentum, c.nesterov, c.weight_decay, steps)

    @property
    def augment(self):
        """What ``train.fit`` takes."""
        return train.random_crop_flip if self.config.augment == "crop_flip" else None

    def rates(self, model: nn.Module, variables) -> flip_users.AttackRates:
        """Measures the networks ``[s]`` on the test images."""
        c = self.config
        found = _rates(
            variables, self.x_test, self.y_test, self.triggered_test, apply=model.apply,
            source=c.source, target=c.target, batch_size=c.eval_batch_size,
        )  # fmt: skip
        return jax.tree.map(lambda rate: np.asarray(rate, float), found)


def make_audit(key, config, seed, root, writer, mesh) -> Audit:
    """Loads and splits the data, and puts the trigger on it.

    Raises:
      ValueError: data, classes, trigger, budgets or batches that do not fit one another.
    """
    dataset = _load(config, seed)
    trigger = _trigger(config)
    key = jax.random.fold_in(key, seed)
    trigger_key = named_key(key, "trigger")
    n_classes = flip.check_labels(dataset.train_y, dataset.n_classes)
    poisoned = flip.poison(
        dataset.train_x, dataset.train_y, trigger,
        source=config.source, target=config.target, key=trigger_key,
    )  # fmt: skip
    triggered, triggered_test = (
        np.asarray(trigger(jnp.asarray(x), jax.random.fold_in(trigger_key, i)))
        for i, x in enumerate((dataset.train_x, dataset.test_x))
    )
    if max(config.budgets) > (dataset.train_y != config.target).sum():
        raise ValueError(
            f"budgets must be at most the {(dataset.train_y != config.target).sum()} labels that "
            f"are not the target, of {len(dataset.train_y)}; got {max(config.budgets)}"
        )
    if config.neighbours >= len(dataset.train_y):
        raise ValueError(f"neighbours must be below {len(dataset.train_y)}, the images")
    for name in ("batch_size", "label_batch_size"):
        if config[name] > len(dataset.train_y):
            raise ValueError(f"{name} is {config[name]}, of {len(dataset.train_y)} images")
    axes = tuple(range(dataset.train_x.ndim - 1))
    mean, std = np.zeros(1), np.ones(1)
    if config.standardize:
        mean, std = (f(dataset.train_x, axis=axes, dtype=np.float64) for f in (np.mean, np.std))

    def normalise(x):
        return ((x - mean) / std).astype(np.float32) if config.standardize else x

    facts = {
        "data_seed": int(seed),
        "dataset": config.dataset,
        "images_sha256": hashlib.sha256(dataset.train_x.tobytes()).hexdigest(),
        "true_labels_sha256": hashlib.sha256(dataset.train_y.tobytes()).hexdigest(),
        "run_key": np.asarray(jax.random.key_data(key)).tolist(),
        "normalisation": {"mean": mean.tolist(), "std": std.tolist()},
        "trigger": {"name": config.trigger, **trigger.keywords},
        "source": config.source,
        "target": config.target,
        "budgets": config.budgets,
        "soft_alpha": config.soft_alpha,
    }
    return Audit(
        key, config, int(seed), None if root is None else root / f"seed_{seed}", writer, mesh,
        n_classes, normalise(dataset.train_x), dataset.train_y, normalise(triggered),
        normalise(dataset.test_x), dataset.test_y, normalise(triggered_test),
        poisoned._replace(x=normalise(poisoned.x)), json.loads(json.dumps(facts)),
    )  # fmt: skip


def _load(config, seed) -> data.Dataset:
    """Loads the set, with the split of the seed."""
    dataset = data.load(config.dataset)
    if not dataset.n_classes or len(dataset.input_shape) != 3:
        raise ValueError(f"dataset {config.dataset!r} is not one of images with classes")
    if config.coarse:
        train_y, test_y = (
            np.asarray(COARSE, np.int32)[y] for y in (dataset.train_y, dataset.test_y)
        )
        names = tuple(f"superclass {i}" for i in range(20))
        dataset = dataset._replace(train_y=train_y, test_y=test_y, class_names=names)
    if config.train_size:
        from sklearn.model_selection import train_test_split

        x = np.concatenate([dataset.train_x, dataset.test_x])
        y = np.concatenate([dataset.train_y, dataset.test_y])
        if not dataset.n_classes <= config.train_size <= len(x) - dataset.n_classes:
            raise ValueError(
                f"train_size must leave test images of {len(x)}, got {config.train_size}"
            )
        train_x, test_x, train_y, test_y = train_test_split(
            x, y, train_size=config.train_size, random_state=int(seed), stratify=y
        )
        dataset = dataset._replace(train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    return dataset


def _trigger(config):
    pixels = tuple(zip(config.pixels[::2], config.pixels[1::2], strict=True))
    options = {
        "periodic": {"amplitude": config.amplitude, "n_periods": config.n_periods},
        "patch": {
            "size": config.patch_size, "amplitude": config.amplitude, "position": config.position,
        },
        "pixel": {"pixels": pixels},
        "blend": {"ratio": config.blend_ratio},
    }  # fmt: skip
    return make_trigger(config.trigger, **options[config.trigger])


# What is compiled is kept by the module and the optimiser as objects: the data seeds share them.
_build = functools.cache(build)


@functools.cache
def _sgd(rate, momentum, nesterov, weight_decay, milestones) -> optax.GradientTransformation:
    if milestones:
        rate = optax.piecewise_constant_schedule(rate, dict.fromkeys(milestones, 0.1))
    optimizer = optax.sgd(rate, momentum=momentum or None, nesterov=nesterov)
    if weight_decay:
        optimizer = optax.chain(optax.add_decayed_weights(weight_decay), optimizer)
    return optimizer


@functools.partial(jax.jit, static_argnames=("apply", "source", "target", "batch_size"))
def _rates(variables, x, y, triggered, *, apply, source, target, batch_size):
    # Not by vmap: the activations of all networks at once need not fit.
    return jax.lax.map(
        lambda v: flip_users.attack_rates(
            apply, v, x, y, triggered, source=source, target=target, batch_size=batch_size
        ),
        variables,
    )


# Training that goes on where it was killed.


def resumable(audit: Audit, saves, keys, model, optimizer, n_epochs) -> dict[str, Any]:
    """Returns the options of ``train.fit`` that show progress and go on from checkpoints."""
    c, state = audit.config, None
    if saves is not None and (step := checkpoint.latest_step(saves)) is not None:
        like = jax.eval_shape(lambda k: train.init(k, model, optimizer, audit.x[:1]), keys)
        state = checkpoint.restore(saves, step, like)
    epochs = 0

    def after_epochs(state, metrics):
        nonlocal epochs
        epochs += c.epochs_per_checkpoint
        step = int(np.ravel(state.step)[0])
        # The end of a training is kept as an artifact.
        if saves is not None and epochs < n_epochs:
            checkpoint.save(saves, step, state)
        audit.writer.step(step, loss=np.mean(metrics.loss), accuracy=np.mean(metrics.accuracy))

    return {
        "state": state, "augment": audit.augment, "mesh": audit.mesh,
        "epochs_per_call": c.epochs_per_checkpoint, "callback": after_epochs,
    }  # fmt: skip


def remove(folder: pathlib.Path | None) -> None:
    """Removes the checkpoints of a training that has ended."""
    if folder is not None and folder.exists() and jax.process_index() == 0:
        shutil.rmtree(folder)
