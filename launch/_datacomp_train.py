"""Training on tars by a recipe, and zero-shot evaluation of what comes out."""

import concurrent.futures
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxml import curation, io, nn
from jaxml.core.rng import named_key
from jaxml.io import artifacts, checkpoint
from launch import _datacomp_study as study


class Setup(NamedTuple):
    """A model as a config describes it, and how inputs are made for it.

    Attributes:
      model: the two towers.
      recipe: of the scale, with what the config changes.
      tokenize: texts to int32 ``[n, context]``.
      channels: of the images, 1 for the study's own towers.
    """

    model: nn.CLIP
    recipe: curation.Recipe
    tokenize: Callable
    channels: int


def make_setup(config) -> Setup:
    """Makes model, recipe and tokenizer."""
    recipe = study.recipe_of(config)
    if recipe.model == "mlp":
        model = study.make_model(config)
        return Setup(_with_bias(config, model), recipe, study.tokenizer(config), 1)
    if config.tokenizer == "bytes":
        tokenize, vocabulary = curation.byte_tokens, curation.BYTE_VOCABULARY
    else:
        tokenize, vocabulary = curation.clip_tokenizer(config.tokenizer), curation.CLIP_VOCABULARY
    precision = config.precision or recipe.precision
    model = nn.build_clip(
        recipe.model, vocabulary=vocabulary, remat=config.remat,
        activation=nn.gelu_quick if config.quick_gelu else nn.gelu_exact,
        # bfloat16 has the range of float32, so that no loss has to be scaled.
        dtype=jnp.float32 if precision == "float32" else jnp.bfloat16,
    )  # fmt: skip
    return Setup(_with_bias(config, model), recipe, tokenize, 3)


def _with_bias(config, model):
    if config.loss == "softmax":
        return model
    return model.clone(init_log_scale=float(np.log(10)), init_bias=-10.0)


def train(key, config, folders, weights, out: pathlib.Path, writer, mesh) -> dict[str, Any]:
    """Trains on the tars of some folders; a second call goes on from the last checkpoint.

    Args:
      key: of the initial parameters; the pairs come from the config's ``train_seed``.
      config: see ``configs/datacomp``.
      folders: of tars.
      weights: of the folders, or None.
      out: gets ``model.safetensors``, and ``checkpoints/`` and ``losses.json`` on the way.
      writer: told of each step.
      mesh: over which batches are split, and states with ``split_state``.

    Returns:
      What was seen, and the curve of the loss.
    """
    setup = make_setup(config)
    recipe, n_hosts = setup.recipe, jax.process_count()
    pairs = curation.open_pairs(folders)
    optimizer = curation.make_optimizer(recipe)
    loss = curation.clip_loss if config.loss == "softmax" else curation.sigmoid_loss
    if config.loss == "ring_sigmoid" and mesh is not None:  # a ring of one is the plain loss
        loss = functools.partial(curation.ring_sigmoid_loss, mesh=mesh)
    shape = (1, recipe.image_size, recipe.image_size, setup.channels)
    example = np.zeros(shape, np.float32), setup.tokenize([""])
    init = functools.partial(
        curation.init_state, model=setup.model, optimizer=optimizer, images=example[0],
        tokens=example[1], mesh=mesh, split=config.split_state,
    )  # fmt: skip
    state = init(named_key(key, "train"))
    saves = out / "checkpoints"
    first, losses = checkpoint.latest_step(saves) or 0, []
    curve = out / "losses.json"
    if first:
        state = checkpoint.restore(saves, first, state)
        if curve.exists():
            # It is written ahead of the checkpoint, so it may go on beyond it.
            seen = first * recipe.batch_size
            losses = [row for row in artifacts.load_json(curve) if row["samples seen"] <= seen]
    step = curation.make_train_step(
        setup.model, optimizer, loss=loss, n_parts=config.grad_parts, mesh=mesh,
        split=config.split_state,
    )  # fmt: skip
    every = config.steps_per_checkpoint or -(-recipe.n_steps // 5)
    if config.sampling == "shard":
        draw = functools.partial(curation.shard_indices, sizes=pairs.sizes)
    else:
        draw = functools.partial(curation.pair_indices, sizes=pairs.folder_sizes, weights=weights)

    def batch(t, pool):
        rows = draw(
            config.train_seed, t, batch_size=recipe.batch_size,
            host=jax.process_index(), n_hosts=n_hosts,
        )  # fmt: skip
        images, texts = curation.read_pairs(
            pairs, rows, image_size=recipe.image_size, channels=setup.channels,
            seed=config.train_seed if config.crop else None, step=t, pool=pool,
        )  # fmt: skip
        ids = pairs.ids[rows] if config.mask_twins else None
        return jax.tree.map(
            lambda a: _split(a, mesh, n_hosts), (images, setup.tokenize(texts), ids)
        )

    writer.stage("train", recipe.n_steps)
    threads = concurrent.futures.ThreadPoolExecutor
    with threads(config.decode_threads) as pool, threads(1) as ahead:
        # One batch is read while the device computes on the one before it.
        coming = ahead.submit(batch, first, pool) if first < recipe.n_steps else None
        for t in range(first, recipe.n_steps):
            images, tokens, ids = coming.result()
            coming = ahead.submit(batch, t + 1, pool) if t + 1 < recipe.n_steps else None
            state, info = step(state, images, tokens, ids)
            done = t + 1
            if done % max(1, recipe.n_steps // 50) == 0 or done == recipe.n_steps:
                value = float(info.loss)
                if not np.isfinite(value):
                    raise ValueError(f"loss became {value} at step {done}; lower the learning_rate")
                losses.append({"samples seen": done * recipe.batch_size, "loss": value})
                writer.step(done, loss=value, scale=float(jnp.exp(info.log_scale)))
            if done % every == 0 and done < recipe.n_steps:
                if jax.process_index() == 0:
                    artifacts.save_json(curve, losses)
                checkpoint.save(saves, done, state)
    variables = state.variables
    if mesh is not None:  # whole on each device, for no process sees the parts of all
        whole = NamedSharding(mesh, PartitionSpec())
        variables = jax.jit(lambda tree: tree, out_shardings=whole)(variables)
    if jax.process_index() == 0:
        artifacts.save_tree(out / "model.safetensors", variables)
    return {
        "pairs": pairs.n_pairs,
        "steps": recipe.n_steps,
        "samples seen": recipe.n_steps * recipe.batch_size,
        "samples dropped": recipe.samples_seen - recipe.n_steps * recipe.batch_size,
        "curve": losses,
    }


def _split(array, mesh, n_hosts):
    n = array.shape[0] * n_hosts
    if mesh is None or n % mesh.shape["data"]:
        if n_hosts > 1:  # their parts differ, so a copy of one is no batch
            raise ValueError(f"batch_size must divide over {mesh.shape['data']} devices, got {n}")
        return array
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.make_array_from_process_local_data(sharding, array)


def evaluate(config, model_file, eval_dir, results_file, writer) -> list[dict[str, Any]]:
    """Scores a model on the config's tasks; those that the results file has are skipped.

    Args:
      config: see ``configs/datacomp``.
      model_file: of ``train``; not looked at where the config has ``weights``.
      eval_dir: with the sets, as for ``load_eval_set``.
      results_file: in the published format, one line a task.
      writer: told of each task.

    Returns:
      Rows of task, metric, score and chance; a set that is not there has why in place of a score.
    """
    setup = make_setup(config)
    if config.weights:
        published = io.load_published(config.weights, dtype=jnp.float32)
        if published.module != "CLIP":
            raise ValueError(f"weights must be those of a CLIP, got a {published.module}")
        variables = published.variables
        setup = setup._replace(model=nn.assemble("CLIP", published.module_kwargs))
    else:
        variables = artifacts.load_tree(model_file)
    image, text = (
        jax.jit(functools.partial(setup.model.apply, method=method))
        for method in ("encode_image", "encode_text")
    )
    names = curation.AVERAGED if _all(config) else config.tasks
    done = curation.read_results(results_file)
    writer.stage("evaluate", len(names))
    rows = []
    for number, name in enumerate(names, start=1):
        task = curation.TASKS.get(name)
        metric = "acc1" if task is None else task.metric
        why = ""
        if name not in done:
            try:
                eval_set = curation.load_eval_set(eval_dir, name)
            except FileNotFoundError as error:
                why = str(error)
            else:
                metrics = curation.evaluate(
                    functools.partial(image, variables), functools.partial(text, variables),
                    setup.tokenize, eval_set, metric=metric, image_size=setup.recipe.image_size,
                    channels=setup.channels, batch_size=config.eval_batch_size,
                )  # fmt: skip
                key = name if task is None else task.key
                curation.append_result(results_file, key, name, metrics)
                done[name] = {"metrics": metrics}
        score = done[name]["metrics"]["main_metric"] if name in done else None
        chance = None if task is None else task.chance
        rows.append({"task": name, "metric": metric, "score": score, "chance": chance, "note": why})
        writer.step(number)
    return rows


def average(config, results_file) -> dict[str, float]:
    """Reads the five numbers of the benchmark off a results file, or the mean of other tasks."""
    scores = curation.scores(curation.read_results(results_file))
    if _all(config):
        return curation.aggregate(scores)._asdict()
    if missing := [name for name in config.tasks if scores.get(name) is None]:
        raise ValueError(f"{results_file} has no score of {missing[0]!r}: run --stage=eval first")
    values = {name: scores[name] for name in config.tasks}
    return {**values, "average": float(np.mean(list(values.values())))}


def _all(config) -> bool:
    return tuple(config.tasks) == ("all",)
