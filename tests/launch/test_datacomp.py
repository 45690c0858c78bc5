"""The DataComp study end to end on a small pool: comparison, stages on files, resume."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from configs.datacomp import digits, large, medium, tiny, xlarge
from configs.datacomp import small as small_scale
from jaxml import curation, io, nn
from jaxml.core.sharding import make_mesh
from jaxml.io import MetricsWriter, artifacts
from launch import _datacomp_digits, _datacomp_study, datacomp
from launch._datacomp_flags import FILTERS

STAGES = ("pool", "filter", "reshard", "train", "eval", "aggregate")
ROWS = len(_datacomp_digits.NAMES)


def small(**changes):
    config = tiny.get_config()
    config.update(
        pool_seeds=(0, 1), train_seeds=2, pool_size=600, repeated=0.02, repeats=5, samples_seen=192,
        batch_size=32, warmup_steps=1, width=8, text_width=8, embed=4, points=2, n_clusters=5,
        shard_size=250,
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return datacomp.run(jax.random.key(3), config, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("datacomp")
    return workdir, run(small(), workdir=workdir)


def test_the_result_has_every_filter(finished):
    _, result = finished
    rows = {row["filter"]: row for row in result.tables["filters"]}
    assert list(rows) == list(_datacomp_digits.NAMES.values())
    assert rows["no filter"]["kept"] == 600 and rows["CLIP score"]["kept"] == 180
    assert rows["random, as many as CLIP"]["kept"] == 180
    assert rows["oracle: the planted right ones"]["right"] == "100%"
    kinds = result.tables["what each filter keeps"]
    basic = next(row for row in kinds if row["filter"] == "basic")
    assert basic["file name"] == basic["other language"] == basic["2x2 pixels"] == 0
    assert all(len(rows) == ROWS for name, rows in result.tables.items() if "published" not in name)
    assert set(result.figures) == {"accuracy_against_samples_seen", "overlap_of_filters"}
    assert len(result.claims) == 5 and all(isinstance(c.holds, bool) for c in result.claims)


def test_samples_seen_are_equal_and_the_pools_differ(finished):
    workdir, _ = finished
    a, b = (
        _datacomp_study.Outcome(**artifacts.load_npz(workdir / "artifacts" / f"pool_{s}.npz"))
        for s in (0, 1)
    )
    assert a.points.tolist() == [96, 192] and a.accuracy.shape == (ROWS, 2, 2, 3)
    assert (a.kinds[0] != b.kinds[0]).any() and a.kinds[0].sum() == 600
    np.testing.assert_allclose(a.overlap[0] * 600, a.kept)


def test_a_run_goes_on_after_the_pools_that_are_done(finished, tmp_path):
    workdir, result = finished
    (tmp_path / "artifacts").mkdir()
    shutil.copy(workdir / "artifacts" / "pool_0.npz", tmp_path / "artifacts")
    stages = []
    writer = MetricsWriter(None, lambda event: stages.append(event["stage"]))
    again = run(small(), workdir=tmp_path, writer=writer)
    assert all(stage.startswith("pool 1") for stage in stages)
    assert again.claims == result.claims and again.tables == result.tables


def test_a_pool_is_what_it_is_planted_to_be():
    pool = _datacomp_study.pool_of(small(), 5)
    kinds = dict(zip(_datacomp_digits.KINDS, np.bincount(pool.kind, minlength=6), strict=True))
    assert sum(kinds.values()) == len(np.unique(pool.columns["uid"])) == 600
    assert kinds["elsewhere"] == pytest.approx(120, abs=50)
    words = [set(text.split()) & set(_datacomp_digits.WORDS) for text in pool.columns["text"]]
    named = np.isin(pool.kind, [0, 1, 4])
    assert all((len(w) == 1) == yes for w, yes in zip(words, named, strict=True))
    n_unique = len(np.unique(pool.columns["sha256"]))
    assert 600 - n_unique == 4 * int(600 / (1 + 0.02 * 4) * 0.02)
    right = pool.kind == 0
    assert (np.array(pool.columns["language"])[right] == "en").all()
    assert (np.array(pool.columns["original_width"])[pool.kind == 4] < 200).all()


@pytest.fixture(scope="module")
def piped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stages")
    flags = {"filter": "clip_score", "arch": "l14", "fraction": 0.3}
    results = [run(small(stage=stage, **flags), workdir=workdir) for stage in STAGES]
    return workdir, flags, results[-1]


def test_through_files_the_subset_and_the_images_are_those_in_memory(piped):
    workdir, _, result = piped
    config = small()
    trainer = _datacomp_study.Trainer(config)
    pool = _datacomp_study.pool_of(config, 0)
    key = jax.random.fold_in(_datacomp_study.named_key(jax.random.key(3), "pool"), 0)
    scores, _ = _datacomp_study.score_pool(key, config, pool, trainer)
    mask = _datacomp_study.filters_of(key, config, pool, scores)["clip"]
    kept = curation.sort_uids(pool.columns["uid"][mask])
    np.testing.assert_array_equal(
        curation.load_subset(workdir / "subsets" / "clip_score.npy"), kept
    )
    pairs = curation.open_pairs([workdir / "shards"])
    assert pairs.n_pairs == 180
    x, texts = curation.read_pairs(pairs, np.arange(180), image_size=8, channels=1)
    inside = sorted(map(tuple, _datacomp_digits.inputs(pool.images[mask]).reshape(180, -1)))
    np.testing.assert_allclose(sorted(map(tuple, x.reshape(180, -1))), inside, atol=1e-6)
    assert sorted(texts) == sorted(np.array(pool.columns["text"])[mask].tolist())
    assert result.tables["tars"][0]["samples written"] == 180


def test_training_and_scores_through_files(piped):
    workdir, _, result = piped
    row = result.tables["training"][0]
    assert row["samples seen"] == 192 and row["samples dropped"] == 0 and row["pairs"] == 180
    scores = curation.scores(curation.read_results(workdir / "results.jsonl"))
    assert list(scores) == ["digits_clean", "digits_shifted", "digits_noisy"]
    assert result.tables["aggregate"][0]["average"] == pytest.approx(np.mean(list(scores.values())))
    assert "loss_by_samples_seen" in result.figures


def test_a_killed_training_ends_with_the_same_bits(piped, tmp_path):
    workdir, flags, _ = piped
    config = small(stage="train", train_dirs=str(workdir / "shards"), **flags)
    steps = itertools.count()

    def kill(event):
        if event["step"] and next(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, workdir=tmp_path, writer=MetricsWriter(None, kill))
    run(config, workdir=tmp_path)
    one, other = (
        artifacts.load_tree(folder / "train" / "model.safetensors")
        for folder in (workdir, tmp_path)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
    one, other = (folder / "artifacts" / "train.json" for folder in (workdir, tmp_path))
    assert one.read_bytes() == other.read_bytes()


def test_aggregate_names_what_is_missing(piped, tmp_path):
    (tmp_path / "results.jsonl").write_text(
        json.dumps({"dataset": "MNIST", "key": "mnist", "metrics": {"main_metric": 0.5}})
    )
    with pytest.raises(ValueError, match="37 of 38 tasks are missing: 'Caltech-101'"):
        run(small(stage="aggregate", tasks=("all",)), workdir=tmp_path)
    with pytest.raises(ValueError, match="has no score of 'digits_clean': run --stage=eval first"):
        run(small(stage="aggregate"), workdir=tmp_path)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("reshard", "needs .*no_filter.npy: run --stage=filter first"),
        ("train", "needs .*shards: run --stage=reshard first"),
        ("eval", r"needs .*model.safetensors: run --stage=train first"),
    ],
)
def test_a_stage_says_which_one_comes_first(tmp_path, stage, message):
    with pytest.raises(ValueError, match=message):
        run(small(stage=stage), workdir=tmp_path)
    with pytest.raises(ValueError, match="needs a workdir"):
        run(small(stage=stage))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "sample"}, "stage must be one of all, pool"),
        ({"scale": "huge"}, "scale must be one of tiny"),
        ({"scale": "small"}, "the pool of digits is for scale tiny, got 'small'"),
        ({"pool_size": 0}, "pool_size must be positive, got 0"),
        ({"batch_size": -1}, "batch_size must be 0, for the recipe's own, or more; got -1"),
        ({"score_fraction": 1.0}, r"score_fraction must lie in \(0, 1\), got 1.0"),
        ({"pool_seeds": ()}, "pool_seeds must name at least one seed"),
        ({"shares": (1.0,) * 4}, "shares must be five"),
        ({"stage": "train", "train_dirs": "a::b", "train_weights": "1"}, "one for each of 2"),
        ({"stage": "train", "train_dirs": "a", "train_weights": "x"}, "must be numbers joined"),
        (
            {"stage": "filter", "filter": "clip_score", "arch": "l14"},
            "clip_score needs one of fraction and threshold, got neither",
        ),
        (
            {"stage": "filter", "filter": "clip_score", "arch": "l14", "fraction": 0.3,
             "threshold": 0.2},
            "clip_score needs one of fraction and threshold, got both",
        ),
        ({"stage": "filter", "filter": "best"}, "filter must be one of no_filter"),
        ({"pool": "files", "stage": "pool"}, "a pool of files is there already"),
        ({"pool": "files", "stage": "filter"}, "stage 'filter' needs --metadata_dir"),
    ],
)  # fmt: skip
def test_bad_configs_are_refused_before_anything_is_done(changes, message):
    with pytest.raises(ValueError, match=message):
        run(small(**changes))


def test_a_pool_of_files_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="metadata_dir: there is no folder"):
        run(small(pool="files", stage="filter", metadata_dir=str(tmp_path / "none")))


def test_every_card_is_sound():
    datacomp.check(digits.get_config())
    for card in (small_scale, medium, large, xlarge):
        config = card.get_config()
        with config.unlocked():
            config.stage, config.tokenizer = "train", "bytes"
        datacomp.check(config)
        assert curation.RECIPES[config.scale].n_steps > 3000
        assert config.filter in FILTERS


@pytest.mark.heavy
@pytest.mark.parametrize("split", [False, True])
def test_training_on_devices_and_in_parts_is_training(piped, tmp_path, split):
    workdir, flags, _ = piped
    loss = "ring_sigmoid" if split else "softmax"
    changes = {
        "train_dirs": f"{workdir / 'shards'}::{workdir / 'shards'}", "train_weights": "1::2",
        "sampling": "shard" if split else "pair", "crop": True, "mask_twins": True,
    }  # fmt: skip
    trees = []
    for mesh, parts in ((None, 1), (make_mesh(4), 2)):
        folder = tmp_path / str(parts)
        options = {"grad_parts": parts, "split_state": split, "loss": loss}
        if mesh is None and split:
            options["loss"] = "sigmoid"
        run(small(stage="train", **changes, **options, **flags), workdir=folder, mesh=mesh)
        trees.append(artifacts.load_tree(folder / "train" / "model.safetensors"))
    # Adam makes a step of what is rounding in a gradient that is nearly 0.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), *trees)


@pytest.mark.heavy
def test_a_published_model_is_scored(piped, tmp_path):
    workdir, *_ = piped
    common = {"width": 8, "layers": 1, "heads": 1, "embed": 4, "activation": "gelu_exact"}
    kwargs = {
        "image_tower": {**common, "patch": 4},
        "text_tower": {**common, "vocabulary": 300, "context": 8},
    }
    model = nn.assemble("CLIP", kwargs)
    tokens = np.zeros((1, 8), np.int32)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32), tokens)
    io.save_published(tmp_path / "theirs", "open_clip", kwargs, variables)
    config = small(
        stage="eval", weights=str(tmp_path / "theirs"), eval_dir=str(workdir / "pool" / "eval")
    )
    rows = run(config, workdir=tmp_path / "run").tables["tasks"]
    eval_set = curation.load_eval_set(workdir / "pool" / "eval", "digits_clean")
    x = _datacomp_digits.inputs(eval_set.images[..., 0])
    out = model.apply(variables, x, method="encode_image")
    prompts = curation.prompts(_datacomp_digits.TEMPLATES, _datacomp_digits.WORDS)
    tokens = np.stack([_datacomp_study.tokenizer(config)(some) for some in prompts])
    head = curation.classifier(lambda t: model.apply(variables, t, method="encode_text"), tokens)
    score = curation.accuracy(out @ head.T, eval_set.labels)
    assert rows[0]["score"] == pytest.approx(float(score), abs=0.005)


@pytest.mark.heavy
def test_transformers_compare_too():
    result = run(small(tower="vit", width=32, pool_seeds=(0,), train_seeds=1))
    assert len(result.tables["filters"]) == ROWS
