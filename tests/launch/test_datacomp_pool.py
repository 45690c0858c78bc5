"""DataComp's stages on a pool of files: flags, subsets, cards, tars."""

import hashlib
import json

import numpy as np
import pytest

from jaxml.curation import (
    assign,
    basic_mask,
    caption_mask,
    dedup_mask,
    entity_mask,
    format_uids,
    image_cluster_mask,
    laion_mask,
    language_mask,
    load_subset,
    read_shard,
    sort_uids,
    top_fraction,
    write_shard,
)
from jaxml.io import MetricsWriter
from launch import _datacomp_flags as flags
from launch import _datacomp_pool as pool
from tests.curation.pools import random_columns, write_pool

pytest.importorskip("pyarrow")

N = 300
L14, B32 = "clip_l14_similarity_score", "clip_b32_similarity_score"


@pytest.fixture
def columns(tmp_path):
    columns = random_columns(N)
    embedding = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    write_pool(tmp_path / "pool", columns, 3, embeddings={"l14_img": embedding})
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "clusters.npz", centroids=rng.normal(size=(5, 3)), targets=[1, 3])
    np.save(tmp_path / "targets.npy", rng.normal(size=(4, 3)).astype(np.float32))
    (tmp_path / "words.txt").write_text("dog\ncat\n")
    return {**columns, "l14_img": embedding}


def images(columns, folder):
    file = np.load(folder / "clusters.npz")
    near = image_cluster_mask(columns["l14_img"], file["centroids"], file["targets"])
    return near & caption_mask(columns, language="language")


def score(columns, fraction):
    return top_fraction(columns[L14], fraction, uids=columns["uid"])


CASES = {
    "no_filter": ({}, lambda c, _: np.ones(N, bool)),
    "basic_filter": ({}, lambda c, _: basic_mask(c, language="language")),
    "clip_score": ({"arch": "l14", "fraction": 0.3}, lambda c, _: score(c, 0.3)),
    "clip_score by threshold": (
        {"arch": "b32", "threshold": 0.3},
        lambda c, _: c[B32] >= np.float32(0.3),
    ),
    "clip_score as published": (
        {"arch": "l14", "fraction": 0.3, "rule": "reference"},
        lambda c, _: top_fraction(c[L14], 0.3, rule="reference"),
    ),
    "laion2b": ({}, lambda c, _: laion_mask(c, language="language")),
    "text_based": (
        {"lexicon": "words.txt"},
        lambda c, _: entity_mask(c["text"], ["dog", "cat"]) & language_mask(c, "language"),
    ),
    "image_based": ({"centroids": "clusters.npz"}, images),
    "image_based_intersect_clip_score": (
        {"centroids": "clusters.npz", "arch": "l14", "fraction": 0.5},
        lambda c, folder: images(c, folder) & score(c, 0.5),
    ),
    "exact_dedup": ({}, lambda c, _: dedup_mask(c["sha256"], uids=c["uid"])),
}


def placed(arguments, folder):
    files = ("lexicon", "centroids")
    return {k: folder / v if k in files else v for k, v in arguments.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_filter_writes_its_subset_and_card(tmp_path, columns, case):
    arguments, mask = CASES[case]
    arguments = placed(arguments, tmp_path)
    name, out = case.split()[0], tmp_path / "out" / "subset.npy"
    found = pool.filter_pool(tmp_path / "pool", out, name=name, **arguments)
    kept = mask(columns, tmp_path)
    np.testing.assert_array_equal(load_subset(out), sort_uids(columns["uid"][kept]))
    np.testing.assert_array_equal(found.uids, load_subset(out))
    card = json.loads(out.with_suffix(".json").read_text())
    assert card == json.loads(json.dumps(found.card))
    assert (card["filter"], card["n_rows"], card["n_kept"]) == (name, N, kept.sum())
    assert card["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    names = card["overlap"]["names"]
    counts = np.array(card["overlap"]["counts"]).reshape(len(names), len(names))
    assert names == list(card["rules"]) and (counts == counts.T).all()
    assert counts.diagonal().tolist() == list(card["rules"].values())
    assert not names or counts.diagonal().min() >= card["n_kept"]
    if len(names) == 2:
        assert counts[0, 1] == card["n_kept"]


def test_a_callable_language_gives_the_same_subset(tmp_path, columns):
    known = {}
    for text, label in zip(columns["text"], columns["language"], strict=True):
        known.setdefault((text or "").replace("\n", " "), label)
    labels = np.array([known[(t or "").replace("\n", " ")] for t in columns["text"]], object)
    for name, mask in (("basic_filter", basic_mask), ("laion2b", laion_mask)):
        found = pool.filter_pool(
            tmp_path / "pool", tmp_path / f"{name}.npy", name=name,
            language=lambda texts: [known[t] for t in texts],
        )  # fmt: skip
        kept = mask(columns, language=labels)
        np.testing.assert_array_equal(found.uids, sort_uids(columns["uid"][kept]))
        assert list(found.card["rules"])[-1] == "language"


def test_clusters_are_trained_on_the_share_of_the_scale(tmp_path, columns):
    arguments = {
        "name": "image_based", "scale": "large", "n_clusters": 6, "n_iters": 3,
        "target_embeddings": tmp_path / "targets.npy",
    }  # fmt: skip
    found = pool.filter_pool(tmp_path / "pool", tmp_path / "a.npy", **arguments)
    clusters = np.load(tmp_path / "a_clusters.npz")
    targets = assign(
        np.load(tmp_path / "targets.npy"), clusters["centroids"], metric="ip_reference"
    )
    assert clusters["targets"].tolist() == np.unique(targets).tolist()
    near = np.isin(
        assign(columns["l14_img"], clusters["centroids"], metric="ip_reference"), targets
    )
    kept = near & caption_mask(columns, language="language")
    np.testing.assert_array_equal(found.uids, sort_uids(columns["uid"][kept]))
    sample = [pool._sample(p, language="language", share=0.3, embedding="l14_img")
              for p in sorted((tmp_path / "pool").glob("*.parquet"))]  # fmt: skip
    captions = caption_mask(columns, language="language")
    assert 0.1 < sum(len(uids) for uids, _ in sample) / captions.sum() < 0.5
    # Another way to cut the pool into files draws the same images.
    columns.pop("l14_img")
    embedding = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    write_pool(tmp_path / "other", columns, 8, embeddings={"l14_img": embedding})
    again = pool.filter_pool(tmp_path / "other", tmp_path / "b.npy", **arguments)
    np.testing.assert_array_equal(again.uids, found.uids)
    with pytest.raises(FileExistsError, match=r"a_clusters\.npz is there already"):
        (tmp_path / "a.npy").unlink()
        (tmp_path / "a.json").unlink()
        pool.filter_pool(tmp_path / "pool", tmp_path / "a.npy", **arguments)
    with pytest.raises(ValueError, match="n_clusters must be at most"):
        pool.filter_pool(tmp_path / "pool", tmp_path / "c.npy", **{**arguments, "n_clusters": 299})


CLIP = {"arch": "l14", "fraction": 0.3}
NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("clip", {}, "filter must be one of no_filter, basic_filter"),
        ("clip_score", {"arch": "l14"}, "one of fraction and threshold, got neither"),
        ("clip_score", CLIP | {"threshold": 0.2}, "fraction and threshold, got both"),
        ("clip_score", {"fraction": 0.3}, "clip_score needs arch"),
        ("clip_score", {"fraction": 0.3, "arch": "h14"}, "arch must be one of b32, l14; got 'h14'"),
        ("clip_score", {"fraction": 1.2, "arch": "l14"}, r"fraction must lie in \[0, 1\], got 1.2"),
        ("clip_score", CLIP | {"fraction": NAN}, r"fraction must lie in \[0, 1\]"),
        ("clip_score", CLIP | {"rule": "old"}, "rule must be one of"),
        ("clip_score", {"threshold": NAN, "arch": "l14"}, "threshold must be a number"),
        ("clip_score", CLIP | {"scale": "small"}, "clip_score takes no scale"),
        ("basic_filter", {"arch": "l14"}, "basic_filter takes no arch"),
        ("laion2b", {"threshold": 0.3}, "laion2b takes no threshold"),
        ("no_filter", {"fraction": 0.3}, "no_filter takes no fraction"),
        ("no_filter", {"lexicon": "x"}, "no_filter takes no lexicon"),
        ("no_filter", {"centroids": "x"}, "no_filter takes no centroids"),
        ("no_filter", {"target_embeddings": "x"}, "no_filter takes no target_embeddings"),
        ("text_based", {}, "text_based needs lexicon"),
        ("image_based", {}, "one of scale and centroids, got neither"),
        ("image_based", {"scale": "small"}, "needs target_embeddings with scale"),
        ("image_based", {"centroids": "x", "target_embeddings": "x"}, "needs target_emb"),
        ("image_based", {"scale": "huge", "target_embeddings": "x"}, "scale must be one of tiny"),
        ("image_based", {"scale": "small", "centroids": "x"}, "scale and centroids, got both"),
    ],
)  # fmt: skip
def test_wrong_flags_are_refused_before_anything_is_read(tmp_path, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        flags.check_filter_flags(name, **arguments)
    with pytest.raises(ValueError, match=message):
        pool.filter_pool(tmp_path / "nowhere", tmp_path / "a.npy", name=name, **arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", flags.FILTERS)
def test_what_a_filter_needs_is_enough(name):
    needed = {"arch": "l14", "fraction": 0.3} if "clip_score" in name else {}
    needed |= {"centroids": "x"} if "image" in name else {}
    needed |= {"lexicon": "x"} if name == "text_based" else {}
    flags.check_filter_flags(name, **needed)


def test_files_are_left_alone_unless_told(tmp_path, columns):
    out = tmp_path / "a.npy"
    with pytest.raises(ValueError, match=r"out must end in \.npy"):
        pool.filter_pool(tmp_path / "pool", tmp_path / "a", name="no_filter")
    with pytest.raises(FileNotFoundError, match=r"no \.parquet file"):
        pool.filter_pool(tmp_path, out, name="no_filter")
    out.with_suffix(".json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"a\.json is there already, and is left"):
        pool.filter_pool(tmp_path / "pool", out, name="no_filter")
    assert out.with_suffix(".json").read_text() == "mine" and not out.exists()
    pool.filter_pool(tmp_path / "pool", out, name="no_filter", overwrite=True)
    assert json.loads(out.with_suffix(".json").read_text())["n_kept"] == N


def test_a_subset_becomes_tars_and_the_writer_hears_of_it(tmp_path, columns):
    events = []
    writer = MetricsWriter(on_event=events.append)
    uids = np.unique(columns["uid"])
    digits = format_uids(uids)
    for k, part in enumerate(np.array_split(digits, 2)):
        samples = ((f"{i:04d}", {"txt": uid, "json": {"uid": uid}}) for i, uid in enumerate(part))
        write_shard(tmp_path / "tars" / f"{k:08d}.tar", samples)
    out = tmp_path / "a.npy"
    found = pool.filter_pool(
        tmp_path / "pool", out, name="clip_score", arch="l14", fraction=0.3, writer=writer
    )
    done = pool.reshard_pool(tmp_path / "tars", out, tmp_path / "new", shard_size=40, writer=writer)
    written = [(key, m["txt"].decode()) for shard in done.shards
               for key, m in read_shard(tmp_path / "new" / shard)]  # fmt: skip
    assert sorted(text for _, text in written) == format_uids(found.uids).tolist()
    assert all(key.startswith(text) for key, text in written) and done.missing.size == 0
    assert [e["stage"] for e in events if e["step"] is None] == [
        "clip_score: threshold", "clip_score: filter", "reshard",
    ]  # fmt: skip
    assert events[-1]["step"] == 2 and events[-1]["n_written"] == len(written) == 90
    with pytest.raises(FileExistsError):
        pool.reshard_pool(tmp_path / "tars", out, tmp_path / "new")


@pytest.mark.heavy
def test_every_filter_is_the_same_on_dask(tmp_path, columns):
    dask = pytest.importorskip("dask")
    with dask.config.set(scheduler="threads"):
        for case, (arguments, mask) in CASES.items():
            given = placed(arguments, tmp_path)
            out = tmp_path / f"{case}.npy"
            found = pool.filter_pool(
                tmp_path / "pool", out, name=case.split()[0], engine="dask", **given
            )
            kept = columns["uid"][mask(columns, tmp_path)]
            np.testing.assert_array_equal(found.uids, sort_uids(kept))
