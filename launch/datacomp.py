r"""DataComp: filter the pool, train the fixed recipe, score zero-shot.

Without flags it makes pools of real digits with planted noise and compares filters: every subset
trains the same recipe for the same number of samples.

  python -m launch.datacomp --workdir=out/datacomp

Through files, one filter at a time, on digits or on a pool of your own (see --config=small); give
each stage the same flags:

  F="--filter=clip_score --arch=l14 --fraction=0.3 --workdir=out/datacomp_files"
  python -m launch.datacomp $F --stage=pool
  python -m launch.datacomp $F --stage=filter --resume    # then reshard, train, eval, aggregate

  python -m launch.datacomp --config=small --stage=eval --weights=FOLDER
      --eval_dir=E --tokenizer=bpe_simple_vocab_16e6.txt.gz

--stage=all is the comparison for --pool=digits, and filter to aggregate for --pool=files.
"""

import pathlib

from launch import _app
from launch._datacomp_flags import SCALES, check_filter_flags

STAGES = ("pool", "filter", "reshard", "train", "eval", "aggregate")
CHOICES = {
    "stage": ("all", *STAGES),
    "pool": ("digits", "files"),
    "tower": ("mlp", "vit"),
    "loss": ("softmax", "sigmoid", "ring_sigmoid"),
    "sampling": ("pair", "shard"),
    "precision": ("", "float32", "bfloat16"),
    "engine": ("local", "dask"),
}
POSITIVE = (
    "train_seeds", "pool_size", "repeats", "width", "text_width", "embed", "points", "n_clusters",
    "grad_parts", "decode_threads", "eval_batch_size", "shard_size",
)  # fmt: skip


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    for name, legal in CHOICES.items():
        if config[name] not in legal:
            raise ValueError(f"{name} must be one of {', '.join(legal)}; got {config[name]!r}")
    if config.scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}; got {config.scale!r}")
    for name in POSITIVE:
        if config[name] < 1:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    for name in ("samples_seen", "batch_size", "warmup_steps", "learning_rate"):
        if config[name] < 0:
            raise ValueError(f"{name} must be 0, for the recipe's own, or more; got {config[name]}")
    for name in ("score_fraction", "laion_fraction", "elsewhere"):
        if not 0 < config[name] < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {config[name]}")
    if not config.pool_seeds:
        raise ValueError("pool_seeds must name at least one seed, got ()")
    if len(config.shares) != 5 or min(config.shares) < 0 or not sum(config.shares):
        raise ValueError(f"shares must be five, none negative, not all 0; got {config.shares}")
    if config.pool == "digits" and config.scale != "tiny":
        raise ValueError(f"the pool of digits is for scale tiny, got {config.scale!r}")
    if config.stage == "all" and config.pool == "digits":
        return
    if "filter" in _stages(config) and not config.subset:
        check_filter_flags(config.filter, **_filter_flags(config))
    weights_of(config)
    if config.pool == "files":
        _check_files(config)


def folders_of(config) -> list[str]:
    """Lists the user's own folders of tars."""
    return config.train_dirs.split("::") if config.train_dirs else []


def weights_of(config) -> list[float] | None:
    """Reads the weights of these folders; None are none.

    Raises:
      ValueError: they are not numbers, one for each folder.
    """
    if not config.train_weights:
        return None
    n = len(folders_of(config))
    try:
        weights = [float(text) for text in config.train_weights.split("::")]
    except ValueError:
        weights = []
    if len(weights) != n:
        raise ValueError(
            f"train_weights must be numbers joined by '::', one for each of {n} train_dirs; got "
            f"{config.train_weights!r}"
        )
    return weights


def _check_files(config):
    stages = _stages(config)
    # What the user has already needs nothing to make it from.
    needed = {
        "filter": "" if config.subset else "metadata_dir",
        "reshard": "" if config.train_dirs else "tars_dir",
        "eval": "eval_dir",
    }
    if "pool" in stages:
        raise ValueError("stage 'pool' makes the pool of digits; a pool of files is there already")
    for stage, name in needed.items():
        if stage not in stages or not name:
            continue
        if not config[name]:
            raise ValueError(f"stage {stage!r} needs --{name}")
        if not pathlib.Path(config[name]).is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {config[name]}")
    merges = config.scale != "tiny" and config.tokenizer != "bytes"
    if config.weights and not pathlib.Path(config.weights).exists():
        raise FileNotFoundError(f"weights: there is no {config.weights}")
    if {"train", "eval"} & set(stages) and merges and not pathlib.Path(config.tokenizer).is_file():
        raise FileNotFoundError(f"tokenizer: there is no file of merges {config.tokenizer!r}")


def _stages(config) -> tuple[str, ...]:
    return STAGES[1:] if config.stage == "all" else (config.stage,)


def _filter_flags(config) -> dict:
    names = ("arch", "lexicon", "centroids", "target_embeddings")
    flags = {name: config[name] or None for name in names}
    flags |= {name: config[name] for name in ("fraction", "threshold", "rule")}
    images = config.filter.startswith("image_based")
    if images and not config.centroids:
        flags["scale"] = config.scale
        if config.pool == "digits" and not config.target_embeddings:
            flags["target_embeddings"] = "targets.npy"  # that stage pool has written
    return flags


if __name__ == "__main__":
    _app.start(__doc__, paper="datacomp", check=check)

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxml import report
from jaxml.core.rng import named_key
from jaxml.io import MetricsWriter, artifacts
from launch import _datacomp_digits, _datacomp_pool, _datacomp_report, _datacomp_study
from launch import _datacomp_train as files
from launch._flags import UserError


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Compares filters on digits, or runs stages on files.

    Args:
      key: typed key; with the config it determines every number.
      config: see ``configs/datacomp``.
      workdir: folder for artifacts, from which a second call goes on; None writes nothing and is
        for the comparison alone.
      writer: MetricsWriter; None is silent.
      mesh: devices over which models (comparison) or batches (stages) are split.

    Returns:
      Result; claims for the comparison, tables of what the stages have found otherwise.
    """
    check(config)
    writer = writer or MetricsWriter()
    if mesh is not None and mesh.size == 1:
        mesh = None
    workdir = None if workdir is None else pathlib.Path(workdir)
    if config.stage == "all" and config.pool == "digits":
        return _compare(key, config, workdir, writer, mesh)
    if workdir is None:
        raise ValueError(f"stage {config.stage!r} needs a workdir")
    tables, figures, notes = {}, {}, []
    for stage in _stages(config):
        try:
            _RUN[stage](key, config, workdir, writer, mesh)
        except FileExistsError as error:
            raise UserError(str(error)) from error
        if jax.process_count() > 1:  # what one process writes the next stage of all reads
            multihost_utils.sync_global_devices(stage)
    for stage in STAGES:
        path = workdir / "artifacts" / f"{stage}.json"
        if path.exists():
            _SHOW[stage](artifacts.load_json(path), tables, figures, notes)
    return _app.Result([], tables, figures, notes)


# The comparison.


def _compare(key, config, workdir, writer, mesh):
    trainer = _trainer(config, mesh)
    outcomes = []
    for seed in config.pool_seeds:
        path = None if workdir is None else workdir / "artifacts" / f"pool_{seed}.npz"
        if path is not None and path.exists():
            outcome = _datacomp_study.Outcome(**artifacts.load_npz(path))
        else:
            outcome = _datacomp_study.compare(key, config, seed, trainer, writer)
            if path is not None and jax.process_index() == 0:
                artifacts.save_npz(path, outcome._asdict())
        outcomes.append(outcome)
    study = _datacomp_report.Study(outcomes)
    return _app.Result(
        _datacomp_report.claims(config, study),
        _datacomp_report.tables(config, study),
        _datacomp_report.figures(study),
        _datacomp_report.notes(config, study),
    )


def _trainer(config, mesh):
    # The models are small: several processes each train all of them.
    return _datacomp_study.Trainer(config, mesh if jax.process_count() == 1 else None)


# Stages on files: each leaves what it has to say in artifacts/STAGE.json.


def _place(config, workdir, name: str) -> pathlib.Path:
    """Returns where something is: where the config says, else where an earlier stage has put it."""
    own = {
        "metadata_dir": "pool/metadata",
        "tars_dir": "pool/shards",
        "target_embeddings": "pool/targets.npy",
        "subset": f"subsets/{config.filter}.npy",
        "eval_dir": "pool/eval",
    }
    return pathlib.Path(config[name]) if config[name] else workdir / own[name]


def _say(workdir, stage: str, value) -> None:
    if jax.process_index() == 0:
        artifacts.save_json(workdir / "artifacts" / f"{stage}.json", value)


def _pool(key, config, workdir, writer, mesh):
    folder, seed = workdir / "pool", config.pool_seeds[0]
    if (workdir / "artifacts" / "pool.json").exists():
        return
    trainer = _trainer(config, mesh)
    pool_key = jax.random.fold_in(named_key(key, "pool"), seed)
    pool = _datacomp_study.pool_of(config, seed)
    writer.stage(f"pool {seed}: scorers")
    scores, _ = _datacomp_study.score_pool(pool_key, config, pool, trainer)
    if jax.process_index() == 0:
        writer.stage(f"pool {seed}: files")
        _datacomp_digits.write_pool(
            folder, pool, scores, shard_size=config.shard_size, part_size=config.shard_size
        )
        np.save(folder / "targets.npy", scores.targets)
        _datacomp_digits.write_tests(folder / "eval", pool)
    names, counts = _datacomp_digits.KINDS, np.bincount(pool.kind, minlength=6)
    _say(workdir, "pool", {"planted": dict(zip(names, counts.tolist(), strict=True))})


def _filter(key, config, workdir, writer, mesh):
    out = _place(config, workdir, "subset")
    if config.subset or (workdir / "artifacts" / "filter.json").exists():
        return  # the user's own subset, or this run's
    flags = _filter_flags(config)
    if flags["target_embeddings"]:
        flags["target_embeddings"] = _place(config, workdir, "target_embeddings")
    if jax.process_index() == 0:
        out.unlink(missing_ok=True)  # of a run that was killed before it could say so
        out.with_suffix(".json").unlink(missing_ok=True)
        filtered = _datacomp_pool.filter_pool(
            _place(config, workdir, "metadata_dir"), out, name=config.filter,
            language=config.language, n_clusters=config.n_clusters, metric=config.metric,
            seed=config.pool_seeds[0], engine=config.engine, n_workers=config.n_workers or None,
            overwrite=True, writer=writer, mesh=mesh if jax.process_count() == 1 else None,
            **flags,
        )  # fmt: skip
        _say(workdir, "filter", filtered.card)


def _reshard(key, config, workdir, writer, mesh):
    done = workdir / "artifacts" / "reshard.json"
    if config.train_dirs or done.exists():
        return
    subset, out = _place(config, workdir, "subset"), workdir / "shards"
    if not subset.exists():
        raise ValueError(f"stage 'reshard' needs {subset}: run --stage=filter first")
    if jax.process_index() == 0:
        result = _datacomp_pool.reshard_pool(
            _place(config, workdir, "tars_dir"), subset, out, shard_size=config.shard_size,
            resume=out.exists(), writer=writer,
        )  # fmt: skip
        _say(
            workdir,
            "reshard",
            {
                "samples written": result.n_written,
                "distinct": result.n_samples,
                "missing": len(result.missing),
                "tars": len(result.shards),
                **{f"skipped: {name}": n for name, n in result.skipped.items()},
            },
        )


def _train(key, config, workdir, writer, mesh):
    if (workdir / "artifacts" / "train.json").exists():
        return
    folders = folders_of(config) or [workdir / "shards"]
    for folder in folders:
        if not pathlib.Path(folder).is_dir():
            raise ValueError(f"stage 'train' needs {folder}: run --stage=reshard first")
    found = files.train(key, config, folders, weights_of(config), workdir / "train", writer, mesh)
    _say(workdir, "train", found)


def _eval(key, config, workdir, writer, mesh):
    model = workdir / "train" / "model.safetensors"
    if not config.weights and not model.exists():
        raise ValueError(f"stage 'eval' needs {model}: run --stage=train first")
    if jax.process_index() == 0:
        rows = files.evaluate(
            config, model, _place(config, workdir, "eval_dir"), workdir / "results.jsonl", writer
        )
        _say(workdir, "eval", rows)


def _aggregate(key, config, workdir, writer, mesh):
    _say(workdir, "aggregate", files.average(config, workdir / "results.jsonl"))


_RUN = {
    "pool": _pool,
    "filter": _filter,
    "reshard": _reshard,
    "train": _train,
    "eval": _eval,
    "aggregate": _aggregate,
}


def _show_pool(found, tables, figures, notes):
    tables["pool"] = [found["planted"]]


def _show_filter(card, tables, figures, notes):
    tables["subset"] = [
        {"filter": card["filter"], "pool": card["n_rows"], "kept": card["n_kept"]}
        | {f"rule {name}": n for name, n in card["rules"].items()}
    ]
    names, counts = card["overlap"]["names"], np.array(card["overlap"]["counts"], float)
    if len(names) > 1:
        share = counts / np.maximum(counts.diagonal()[:, None], 1)
        figures["overlap_of_rules"] = _datacomp_report.heat_map(share, names)


def _show_reshard(found, tables, figures, notes):
    tables["tars"] = [found]


def _show_train(found, tables, figures, notes):
    curve = found.pop("curve")
    tables["training"] = [found]
    if curve:
        series = [row["samples seen"] for row in curve], [row["loss"] for row in curve]
        figures["loss_by_samples_seen"] = report.lines(
            {"": series}, xlabel="samples seen", ylabel="loss of a batch"
        )
    if found["samples dropped"]:
        notes.append(
            f"The last {found['samples dropped']} samples would not fill a batch and are dropped."
        )


def _show_eval(rows, tables, figures, notes):
    tables["tasks"] = rows


def _show_aggregate(found, tables, figures, notes):
    tables["aggregate"] = [found]


_SHOW = {
    "pool": _show_pool,
    "filter": _show_filter,
    "reshard": _show_reshard,
    "train": _show_train,
    "eval": _show_eval,
    "aggregate": _show_aggregate,
}


if __name__ == "__main__":
    _app.main(run)
