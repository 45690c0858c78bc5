"""Partitions, against the same masks over the whole pool; files and engines change nothing."""

import functools

import numpy as np
import pytest

from jaxml.curation import (
    Partition,
    basic_mask,
    cut_mask,
    dedup_mask,
    engine_map,
    entity_mask,
    filter_partitions,
    first_copies,
    language_mask,
    list_metadata,
    score_cuts,
    size_mask,
    sort_uids,
    top_fraction,
)
from jaxml.curation.dataflow import rows_mask
from tests.curation.pools import random_columns, write_pool

pytest.importorskip("pyarrow")

N = 400
SCORES = "clip_l14_similarity_score"
COLUMNS = ["text", "language", "original_width", "original_height", SCORES]


def size(columns):
    return size_mask(columns["original_width"], columns["original_height"])


def entity(columns):
    return entity_mask(columns["text"], {"dog", "cat"})


RULES = {
    "size": size,
    "entity": entity,
    "language": functools.partial(language_mask, language="language"),
}


def pool(folder, n_files):
    columns = random_columns(N)
    columns["uid"][1] = columns["uid"][0]
    write_pool(folder, columns, n_files)
    return columns, list_metadata(folder)


def select(paths, run, fraction):
    cut, ties = score_cuts(paths, SCORES, fraction, run=run)
    copies = first_copies(paths, "sha256", run=run)
    partitions = [
        Partition(path, {
            **RULES,
            "score": functools.partial(cut_mask, column=SCORES, cut=cut, ties=rows),
            "copies": functools.partial(rows_mask, rows=first),
        })
        for path, rows, first in zip(paths, ties, copies, strict=True)
    ]  # fmt: skip
    return filter_partitions(partitions, columns=COLUMNS, run=run)


def expected(columns, fraction):
    masks = {name: rule(columns) for name, rule in RULES.items()}
    masks["score"] = top_fraction(columns[SCORES], fraction, uids=columns["uid"])
    masks["copies"] = dedup_mask(columns["sha256"], uids=columns["uid"])
    return masks


def check(selected, columns, fraction):
    masks = expected(columns, fraction)
    kept = np.logical_and.reduce(list(masks.values()))
    np.testing.assert_array_equal(selected.uids, sort_uids(columns["uid"][kept]))
    assert selected.n_rows == N and selected.names == tuple(masks)
    table = np.stack(list(masks.values())).astype(int)
    np.testing.assert_array_equal(selected.overlap, table @ table.T)


@pytest.mark.parametrize(("n_files", "n_workers"), [(1, 1), (3, 1), (8, 2), (8, None)])
def test_files_and_workers_change_nothing(tmp_path, n_files, n_workers):
    columns, paths = pool(tmp_path, n_files)
    run = engine_map(n_workers=n_workers)
    for fraction in (0, 0.3, 1):
        check(select(paths, run, fraction), columns, fraction)
    reference, _ = score_cuts(paths, SCORES, 0.3, rule="reference", run=run)
    np.testing.assert_array_equal(
        cut_mask(columns, column=SCORES, cut=reference, ties=None),
        top_fraction(columns[SCORES], 0.3, rule="reference"),
    )


def test_the_last_rule_sees_what_passes_the_others(tmp_path):
    columns, paths = pool(tmp_path, 3)
    seen = []

    def language(texts):
        seen.extend(texts)
        return ["en" if "a" in text else "es" for text in texts]

    last = ("language", lambda c, where: language_mask(c, language, where=where))
    rules = {"size": size}
    selected = filter_partitions([Partition(p, rules, last) for p in paths], columns=COLUMNS)
    where = size(columns)
    kept = where & np.array(["a" in (t or "") for t in columns["text"]])
    np.testing.assert_array_equal(selected.uids, sort_uids(columns["uid"][kept]))
    assert len(seen) == where.sum() and selected.overlap.diagonal()[1] == kept.sum()
    everything = filter_partitions([Partition(p, {}) for p in paths], columns=())
    np.testing.assert_array_equal(everything.uids, sort_uids(columns["uid"]))
    with pytest.raises(ValueError, match="partitions must have the same rules"):
        filter_partitions([Partition(paths[0], {}), Partition(paths[1], rules)], columns=COLUMNS)


def test_dask_gives_the_same_uids(tmp_path):
    """On Dask's own threads: the graph is that of a cluster, and nothing has to start."""
    dask = pytest.importorskip("dask")
    columns, paths = pool(tmp_path, 3)
    with dask.config.set(scheduler="threads"):
        check(select(paths, engine_map("dask", n_workers=2), 0.3), columns, 0.3)


@pytest.mark.heavy
def test_a_local_cluster_gives_the_same_uids(tmp_path):
    """Scheduler and workers in processes of their own: everything is pickled and sent."""
    distributed = pytest.importorskip("distributed")
    columns, paths = pool(tmp_path, 8)
    rules = {"basic": functools.partial(basic_mask, language="language")}
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        run = engine_map("dask")
        check(select(paths, run, 0.3), columns, 0.3)
        selected = filter_partitions([Partition(p, rules) for p in paths], columns=COLUMNS, run=run)
    kept = basic_mask(columns, language="language")
    np.testing.assert_array_equal(selected.uids, sort_uids(columns["uid"][kept]))


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="engine must be one of local, dask; got 'ray'"):
        engine_map("ray")
    with pytest.raises(ValueError, match="n_workers must be positive or None, got 0"):
        engine_map(n_workers=0)
    _, paths = pool(tmp_path, 2)
    with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\]"):
        score_cuts(paths, SCORES, 2)
    with pytest.raises(ValueError, match="has no column 'b16'"):
        score_cuts(paths, "b16", 0.5)
