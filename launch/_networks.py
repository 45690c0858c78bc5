"""The networks that a merging study works on: trained here from seeds, or given as checkpoints."""

import functools
import importlib
import json
import os
import pathlib
import shutil
from typing import Any

# Both merging papers describe their networks with these config fields; jax is imported late, so
# that `check` can run before the command line is settled.


def check(config) -> None:
    """Raises ValueError or FileNotFoundError for networks that cannot be had; needs no jax."""
    from jaxml import data

    data.check(config.dataset)
    sizes = ("epochs", "batch_size", "eval_batch_size", "models_at_once", "epochs_per_checkpoint")
    for name in sizes:
        if config.get(name, 1) < 1:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    if config.augment not in ("none", "crop_flip"):
        raise ValueError(f"augment must be 'none' or 'crop_flip', got {config.augment!r}")
    if bool(config.checkpoint_a) != bool(config.checkpoint_b):
        raise ValueError("checkpoint_a and checkpoint_b go together: one of them is missing")
    for name in ("checkpoint_a", "checkpoint_b"):
        if config[name] and not os.path.exists(config[name]):
            raise FileNotFoundError(f"{name}: there is no file {config[name]}")


def given_module(config) -> Any:
    """Makes the Flax module that ``config.module`` names as ``"package.module:Class"``.

    Raises:
      ValueError: no such module, or ``config.module_kwargs`` that it does not take.
    """
    package, _, name = config.module.partition(":")
    try:
        factory = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"module: cannot find {config.module!r}: {error}") from error
    try:
        kwargs = json.loads(config.module_kwargs or "{}")
        # A module has to be hashable, as jit's static arguments are.
        return factory(**{k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()})
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"module_kwargs: {config.module_kwargs!r}: {error}") from error


def load(config, dataset) -> tuple[Any, list[dict]]:
    """Loads ``checkpoint_a`` and ``checkpoint_b``.

    Returns:
      The Flax module and the variables of both. The module is what ``config.module`` names as
      ``"package.module:Class"``, or what the file says if ``train`` has written it, or what the
      tensors of a file or folder in a layout of ``jaxml.io.load_published`` say; these are float32.

    Raises:
      ValueError: no such module, a file that does not say what it is, or parameters that do not
        fit the module and data set; names the first path that differs.
    """
    import jax
    import jax.numpy as jnp

    from jaxml.core.validate import check_same_structure
    from jaxml.io import artifacts
    from jaxml.nn import build

    paths = (config.checkpoint_a, config.checkpoint_b)
    published = None
    if config.module:
        model = given_module(config)
    elif saved := _own_description(paths[0]):
        model = build(**json.loads(saved))
    else:
        model, published = _load_published(paths, dataset.n_classes)
    example = jax.ShapeDtypeStruct((2, *dataset.input_shape), jnp.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), example)
    if published is None:
        return model, [artifacts.load_tree(path, like) for path in paths]
    for path, variables in zip(paths, published, strict=True):
        check_same_structure(like, variables, names=(f"a model of {dataset.name!r}", path))
    return model, published


def _own_description(path: str) -> str | None:
    """Returns what ``train`` has written into the file, if it was ``train``."""
    from jaxml.io import artifacts

    if os.path.isdir(path):
        return None
    try:
        return artifacts.load_metadata(path).get("model")
    except ValueError:
        return None  # `load_published` says what it is instead


def _load_published(paths, n_classes) -> tuple[Any, list[dict]]:
    import jax.numpy as jnp

    from jaxml.io import load_published
    from jaxml.nn import assemble

    try:
        a, b = (load_published(path, dtype=jnp.float32) for path in paths)
    except ValueError as error:
        raise ValueError(f"{error}; or give --module=package:Class") from error
    if a[:3] != b[:3]:
        raise ValueError(f"{paths[0]} and {paths[1]} hold different models: {a[:3]} and {b[:3]}")
    if a.module_kwargs.get("n_classes") != n_classes:
        raise ValueError(
            f"{paths[0]} holds a {a.module} with n_classes="
            f"{a.module_kwargs.get('n_classes')}, the data set has {n_classes}"
        )
    return assemble(a.module, a.module_kwargs), [a.variables, b.variables]


def train(
    key, config, width, seeds: list[int], dataset, folder: pathlib.Path | None, writer, mesh
) -> tuple[Any, list[dict]]:
    """Trains one network a seed, ``config.models_at_once`` at a time (all, if it says nothing).

    With a folder, finished networks are kept in ``folder/models/<seed>.safetensors`` and unfinished
    ones in checkpoints, so that a run which was killed goes on and ends with the same bits.

    Returns:
      The Flax module and the variables of each network, in the order of ``seeds``.
    """
    from jaxml.nn import build

    options = {
        "name": config.model, "width": width, "n_classes": dataset.n_classes,
        "norm": config.norm, "conv": config.conv, "depth": config.depth,
    }  # fmt: skip
    trained: dict[int, dict] = {}
    at_once = config.get("models_at_once", len(seeds))
    for start in range(0, len(seeds), at_once):
        some = seeds[start : start + at_once]
        trained |= _train_together(key, config, options, some, dataset, folder, writer, mesh)
    return build(**options), [trained[seed] for seed in seeds]


def _train_together(key, config, options, seeds, dataset, folder, writer, mesh) -> dict[int, dict]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxml import train
    from jaxml.core.rng import named_key
    from jaxml.io import artifacts, checkpoint
    from jaxml.nn import build

    files = {} if folder is None else {s: folder / "models" / f"{s}.safetensors" for s in seeds}
    if files and all(path.exists() for path in files.values()):
        return {seed: artifacts.load_tree(path) for seed, path in files.items()}
    model = build(**options)
    x, y = dataset.train_x, dataset.train_y
    if config.batch_size > len(x):
        raise ValueError(f"batch_size is {config.batch_size}, of {len(x)} training examples")
    steps_per_epoch = len(x) // config.batch_size
    n_steps = config.epochs * steps_per_epoch
    optimizer = _optimizer(
        config.optimizer,
        learning_rate=config.learning_rate,
        n_steps=n_steps,
        schedule=config.schedule,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    keys = jnp.stack([jax.random.fold_in(named_key(key, "train"), seed) for seed in seeds])
    saves = None if folder is None else folder / f"checkpoints_{seeds[0]}"
    state = None
    if saves is not None and (step := checkpoint.latest_step(saves)) is not None:
        like = jax.eval_shape(lambda k: train.init(k, model, optimizer, x[:1]), keys)
        state = checkpoint.restore(saves, step, like)
    which = f"{len(seeds)} networks" if len(seeds) > 1 else f"network {seeds[0]}"
    writer.stage(f"width {options['width']:g}: train {which}", n_steps)

    def after_epochs(state, metrics):
        step = int(np.ravel(state.step)[0])
        if saves is not None:
            checkpoint.save(saves, step, state)
        writer.step(step, loss=np.mean(metrics.loss), accuracy=np.mean(metrics.accuracy))

    state = train.fit(
        keys,
        model,
        optimizer,
        x,
        y,
        n_epochs=config.epochs,
        batch_size=config.batch_size,
        state=state,
        augment=train.random_crop_flip if config.augment == "crop_flip" else None,
        mesh=mesh,
        epochs_per_call=config.epochs_per_checkpoint,
        callback=after_epochs,
    )
    # From here on each process has them on a device of its own, as those that are read.
    models, trained = {}, jax.device_get(state.variables)
    for i, seed in enumerate(seeds):
        models[seed] = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), trained)
        if files and jax.process_index() == 0:
            artifacts.save_tree(files[seed], models[seed], metadata={"model": json.dumps(options)})
    if saves is not None and jax.process_index() == 0:
        shutil.rmtree(saves)  # the finished networks replace their checkpoints
    return models


@functools.cache
def _optimizer(name, **options):
    # `fit` compiles anew for every optimizer object, so networks that are trained alike share one.
    from jaxml import train

    return train.make_optimizer(name, **options)
