"""DataComp's stages on a pool of the user's own: choose a subset, write its tars."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxml.curation.captions import count_chars, count_tokens, count_words
from jaxml.curation.dataflow import (
    Engine,
    Map,
    Partition,
    cut_mask,
    engine_map,
    filter_partitions,
    first_copies,
    rows_mask,
    score_cuts,
)
from jaxml.curation.filters import Language, Lexicon, entity_mask, language_mask, size_mask
from jaxml.curation.metadata import list_metadata, read_metadata
from jaxml.curation.reshard import Resharded, list_tars, reshard
from jaxml.curation.uids import order_uids, save_subset
from jaxml.io import MetricsWriter
from jaxml.io.artifacts import save_json, save_npz
from launch._datacomp_flags import SCALES, check_filter_flags

LAION_SCORE = 0.28


class Filtered(NamedTuple):
    """What ``filter_pool`` has chosen.

    Attributes:
      uids: ``UID_DTYPE [m]``, sorted, as in the subset file.
      card: as in the JSON file beside it.
    """

    uids: np.ndarray
    card: dict[str, Any]


def filter_pool(
    metadata: str | os.PathLike | Iterable[str | os.PathLike],
    out: str | os.PathLike,
    *,
    name: str,
    arch: str | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    rule: str = "exact",
    language: Language = "language",
    lexicon: str | os.PathLike | Lexicon | None = None,
    scale: str | None = None,
    centroids: str | os.PathLike | None = None,
    target_embeddings: str | os.PathLike | None = None,
    n_clusters: int = 100_000,
    n_iters: int = 20,
    metric: str = "ip_reference",
    embedding: str = "l14_img",
    seed: int = 0,
    engine: Engine = "local",
    n_workers: int | None = None,
    overwrite: bool = False,
    writer: MetricsWriter | None = None,
    mesh=None,
) -> Filtered:
    """Applies one filter to a pool and writes the subset file with a card beside it.

    Args:
      metadata: folder of parquet files, npz files beside them, as for ``scan``.
      out: the subset file, ``.npy``; the card has the same name and ``.json``.
      name: one of ``FILTERS`` of ``launch._datacomp_flags``.
      arch: whose scores, "b32" or "l14"; for the two filters by score.
      fraction: of the pool to keep by score.
      threshold: or the score to keep from.
      rule: of the fraction, "exact" or "reference"; see ``top_fraction``.
      language: name of the column with languages, or a callable from captions to languages.
      lexicon: a file with a word a line, words, or a callable; for "text_based".
      scale: whose share of the pool trains the clusters; for the image-based filters.
      centroids: or an npz with ``centroids`` ``[k, d]`` and ``targets`` ``[t]``.
      target_embeddings: with ``scale``, an npy ``[m, d]`` of the images to resemble. The clusters
        then are written beside the subset, ``<name>_clusters.npz``.
      n_clusters: to train.
      n_iters: of k-means.
      metric: of the assignment; see ``assign``.
      embedding: name of the images' array in the npz files.
      seed: of k-means.
      engine: as for ``engine_map``.
      n_workers: likewise.
      overwrite: replace files that are there.
      writer: told of the stages.
      mesh: for k-means.

    Returns:
      Filtered.

    Raises:
      ValueError: as ``check_filter_flags``, before any file is read; later, columns that are
        missing.
      FileExistsError: the subset or its card is there.
      FileNotFoundError: no metadata, embeddings, lexicon or centroids.
    """
    flags = {
        "arch": arch, "fraction": fraction, "threshold": threshold, "rule": rule,
        "lexicon": lexicon, "scale": scale, "centroids": centroids,
        "target_embeddings": target_embeddings,
    }  # fmt: skip
    check_filter_flags(name, **flags)
    out = Path(out)
    card_path = out.with_suffix(".json")
    if out.suffix != ".npy":
        raise ValueError(f"out must end in .npy, got {out}")
    for path in (out, card_path):
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} is there already, and is left")
    writer = writer or MetricsWriter()
    run = engine_map(engine, n_workers=n_workers)
    paths = list_metadata(metadata)
    rules, columns, embeddings = _rules(name, lexicon)
    if name.startswith("image_based"):
        embeddings = [embedding]
        if scale is not None:
            centroids = out.with_name(f"{out.stem}_clusters.npz")
            if centroids.exists() and not overwrite:
                raise FileExistsError(f"{centroids} is there already, and is left")
            writer.stage(f"{name}: clusters")
            _train_clusters(
                paths, centroids, language=language, share=SCALES[scale], embedding=embedding,
                targets=np.load(target_embeddings, allow_pickle=False), n_clusters=n_clusters,
                n_iters=n_iters, metric=metric, seed=seed, run=run, mesh=mesh,
            )  # fmt: skip
        rules["clusters"] = functools.partial(
            _cluster_rule, path=Path(centroids), embedding=embedding, metric=metric
        )
    own: list[dict] = [{} for _ in paths]
    if "clip_score" in name:
        column = f"clip_{arch}_similarity_score"
        columns.append(column)
        if threshold is not None:
            rules["clip_score"] = functools.partial(_score_rule, column=column, at=threshold)
        else:
            writer.stage(f"{name}: threshold")
            cut, ties = score_cuts(paths, column, fraction, rule=rule, run=run)
            flags["threshold"] = None if not np.isfinite(cut.threshold) else float(cut.threshold)
            own = [
                {"clip_score": functools.partial(cut_mask, column=column, cut=cut, ties=rows)}
                for rows in ties
            ]
    if name == "exact_dedup":
        writer.stage(f"{name}: hashes")
        own = [
            {"first_copy": functools.partial(rows_mask, rows=rows)}
            for rows in first_copies(paths, "sha256", run=run)
        ]
    last = None
    if name not in ("no_filter", "clip_score", "exact_dedup"):
        if callable(language):
            last = ("language", functools.partial(_language_last, language=language))
            columns.append("text")
        else:
            rules["language"] = functools.partial(language_mask, language=language)
            columns.append(language)
    writer.stage(f"{name}: filter", 1)
    selected = filter_partitions(
        [Partition(path, {**rules, **more}, last) for path, more in zip(paths, own, strict=True)],
        columns=columns,
        embeddings=embeddings,
        run=run,
    )
    writer.step(1, n_rows=selected.n_rows, n_kept=len(selected.uids))
    save_subset(out, selected.uids)
    config = {
        **flags, "language": language, "metric": metric, "embedding": embedding,
        "n_clusters": n_clusters, "n_iters": n_iters, "seed": seed,
    }  # fmt: skip
    card = {
        "filter": name,
        "config": {flag: _plain(value) for flag, value in config.items()},
        "n_rows": selected.n_rows,
        "n_kept": len(selected.uids),
        "rules": dict(zip(selected.names, selected.overlap.diagonal().tolist(), strict=True)),
        "overlap": {"names": list(selected.names), "counts": selected.overlap.tolist()},
        "sha256": _sha256(out),
        "subset": out.name,
        "files": [path.name for path in paths],
    }
    save_json(card_path, card)
    return Filtered(selected.uids, card)


def reshard_pool(
    tars: str | os.PathLike | Iterable[str | os.PathLike],
    subset: str | os.PathLike,
    out: str | os.PathLike,
    *,
    shard_size: int = 10_000,
    resume: bool = False,
    overwrite: bool = False,
    writer: MetricsWriter | None = None,
) -> Resharded:
    """Writes the tars of a subset; ``jaxml.curation.reshard`` that tells a writer how far it is."""
    paths = list_tars(tars)
    writer = writer or MetricsWriter()
    writer.stage("reshard", len(paths))
    return reshard(
        paths,
        subset,
        out,
        shard_size=shard_size,
        resume=resume,
        overwrite=overwrite,
        callback=lambda n_inputs, n_written: writer.step(n_inputs, n_written=n_written),
    )


# Rules: functions of columns that another process can unpickle.


def _rules(name: str, lexicon) -> tuple[dict[str, Callable], list[str], list[str]]:
    """Returns the rules that need no pass over the pool, and the columns that they read."""
    if name == "basic_filter":
        rules = {"image_size": _size_rule, "words": _words_rule, "characters": _chars_rule}
        return rules, ["text", "original_width", "original_height"], []
    if name == "laion2b":
        column = "clip_b32_similarity_score"
        rule = functools.partial(_score_rule, column=column, at=LAION_SCORE)
        return {"clip_score": rule}, [column], []
    if name == "text_based":
        if isinstance(lexicon, str | os.PathLike):
            lexicon = frozenset(Path(lexicon).read_text(encoding="utf-8").split())
        return {"entity": functools.partial(_entity_rule, lexicon=lexicon)}, ["text"], []
    if name.startswith("image_based"):
        return {"tokens": _tokens_rule, "characters": _chars_rule}, ["text"], []
    return {}, [], []


def _size_rule(columns):
    return size_mask(columns["original_width"], columns["original_height"])


def _words_rule(columns):
    return count_words(columns["text"]) >= 3


def _tokens_rule(columns):
    return count_tokens(columns["text"]) >= 2


def _chars_rule(columns):
    return count_chars(columns["text"]) >= 6


def _entity_rule(columns, *, lexicon):
    return entity_mask(columns["text"], lexicon)


def _score_rule(columns, *, column, at):
    return columns[column] >= at


def _language_last(columns, where, *, language):
    return language_mask(columns, language, where=where)


def _cluster_rule(columns, *, path, embedding, metric):
    from jaxml.curation.filters import image_cluster_mask

    centroids, targets = _load_clusters(path, path.stat().st_mtime_ns)
    return image_cluster_mask(columns[embedding], centroids, targets, metric=metric)


@functools.lru_cache(maxsize=1)
def _load_clusters(path: Path, _changed: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        for array in ("centroids", "targets"):
            if array not in file:
                raise ValueError(f"{path} has no array {array!r}: {', '.join(file)}")
        return file["centroids"], file["targets"]


# Clusters.


def _train_clusters(
    paths: Sequence[Path],
    out: Path,
    *,
    language: Language,
    share: float,
    embedding: str,
    targets: np.ndarray,
    n_clusters: int,
    n_iters: int,
    metric: str,
    seed: int,
    run: Map,
    mesh,
) -> None:
    """Clusters a share of the pool's captioned images; writes centroids and those to keep."""
    import jax
    import jax.numpy as jnp

    from jaxml.curation.cluster import assign, kmeans

    work = functools.partial(_sample, language=language, share=share, embedding=embedding)
    uids, x = zip(*run(work, paths), strict=True)
    # In the order of the uids, so that files and workers play no role.
    x = np.concatenate(x)[order_uids(np.concatenate(uids))]
    if len(x) < n_clusters:
        raise ValueError(f"n_clusters must be at most {len(x)}, the images there; got {n_clusters}")
    clusters = kmeans(
        jax.random.key(seed), jnp.asarray(x), n_clusters, n_iters=n_iters,
        metric="cosine" if metric == "cosine" else "l2", mesh=mesh,
    )  # fmt: skip
    wanted = np.unique(np.asarray(assign(targets, clusters.centroids, metric=metric)))
    save_npz(out, {"centroids": clusters.centroids, "targets": wanted})


def _sample(path, *, language, share, embedding):
    from jaxml.curation.filters import caption_mask

    columns = ["uid", "text", *([] if callable(language) else [language])]
    batch = read_metadata(path, columns, embeddings=[embedding])
    # A uid is a hash already: its trailing word draws the sample.
    mask = batch["uid"]["f1"] <= np.uint64(min(int(share * 2**64), 2**64 - 1))
    rows = np.flatnonzero(mask & caption_mask(batch, language=language))
    return batch["uid"][rows], batch[embedding][rows]


# Cards.


def _plain(value) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return str(value) if isinstance(value, str | os.PathLike) else f"{len(value)} words"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
