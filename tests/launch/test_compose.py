"""The recipes across domains on tiny networks: what they count, and a run that goes on."""

import itertools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.compose import filter_train_extract, merge_verify, poison_detect_retrain, tiny
from jaxml import curation
from jaxml.data import text
from jaxml.io import MetricsWriter
from launch import _filter_train_extract, _merge_verify, _poison_detect_retrain, compose

CARDS = (poison_detect_retrain, merge_verify, filter_train_extract)


def small(*recipes):
    config = tiny.get_config()
    config.poison_detect_retrain.update(
        n_seeds=2, n_poisons=10, assumed_poisons=4, width=8, depth=1, epochs=1, directions=(1, 4)
    )
    config.merge_verify.update(
        n_pairs=2, width=8, depth=1, epochs=4, n_images=3, eps=(1e-6, 0.3), steps=2
    )
    config.filter_train_extract.update(
        n_seeds=2, body_bytes=4000, held_out_bytes=2000, levels=(1, 3), excerpts_per_level=1,
        vocab_size=300, context=32, width=8, depth=1, heads=2, steps=4, batch_size=4,
        prompt_tokens=4, window=6, n_samples=5,
    )  # fmt: skip
    return ConfigDict({recipe: config[recipe] for recipe in recipes or compose.RECIPES}).lock()


def run(config, **kwargs):
    return compose.run(jax.random.key(5), config, **kwargs)


def rows_of(result, recipe):
    return result.tables[f"{recipe}: every seed"]


def check_report(result, recipes):
    assert len(result.claims) == len(result.notes) == len(recipes)
    assert all(isinstance(claim.holds, bool) and claim.value for claim in result.claims)
    assert set(result.figures) == set(recipes)
    for recipe in recipes:
        rows, means = rows_of(result, recipe), result.tables[f"{recipe}: means"]
        assert [row["seed"] for row in rows] == sorted(len(means) * [0, 1])
        for mean in means:
            mine = [row for row in rows if row["network"] == mean["network"]]
            assert mean["seeds"] == len(mine) == 2
            for name in list(mine[0])[2:]:
                assert mean[name] == pytest.approx((mine[0][name] + mine[1][name]) / 2)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compose")
    return workdir, run(small("merge_verify"), workdir=workdir)


def test_merge_verify_reports_a_claim_two_tables_and_a_figure(merged):
    check_report(merged[1], ["merge_verify"])


@pytest.mark.heavy
def test_a_defence_leaves_out_as_many_examples_as_it_says():
    result = run(small("poison_detect_retrain"))
    check_report(result, ["poison_detect_retrain"])
    rows = rows_of(result, "poison_detect_retrain")
    n, removed = 1437 + 10, 6  # floor(1.5 * 4) of each of the ten labels
    for row in rows:
        left_out = {"poisoned": 0, "SPECTRE, the label known": removed}
        assert n - row["examples"] == left_out.get(row["network"], 10 * removed)
        assert max(0, 10 - n + row["examples"]) <= row["poisons left"] <= 10
        assert 0 <= row["attack success"] <= 1 and 0 <= row["clean accuracy"] <= 1
    known, every = (
        [row["poisons left"] for row in rows if row["network"] == f"SPECTRE, {name}"]
        for name in ("the label known", "every label")
    )
    assert known == every  # all poisons bear one label


def test_poisons_are_triggered_images_of_other_classes():
    from jaxml import data
    from jaxml.data import triggers

    dataset = data.load("digits")
    trigger = triggers.make_trigger("pixel", pixels=((0, 0),), value=0.5)
    x, y, poisoned = _poison_detect_retrain._poison(jax.random.key(0), dataset, trigger, 7, 5)
    assert poisoned.sum() == 5 and (y[poisoned] == 7).all()
    np.testing.assert_array_equal(x[~poisoned], dataset.train_x)
    for image in x[poisoned]:
        same = (dataset.train_x[:, 1:] == image[1:]).all((1, 2, 3))
        assert image[0, 0] == 0.5 and same.sum() == 1 and dataset.train_y[same] != 7


def test_certificates_fall_with_the_radius(merged):
    _, result = merged
    rows = rows_of(result, "merge_verify")
    assert [row["network"] for row in rows] == ["A", "B", "weight matching", "PLeaS"] * 2
    for row in rows:
        assert 1 >= row["certified at 1e-06"] >= row["certified at 0.3"] >= 0
    # At a radius of rounding size nearly every right answer is certified.
    shares = [row["certified at 1e-06"] for row in rows]
    assert abs(np.mean(shares) - np.mean([row["accuracy"] for row in rows])) < 0.4


def test_the_pool_holds_every_copy_and_deduplication_leaves_one():
    c = small().filter_train_extract
    source = text.load("stdlib", max_bytes=1_000_000)
    pool, excerpts, held_out = _filter_train_extract.make_pool(c, source, 3)
    documents = text.split(pool)
    for document, copies in zip(excerpts.documents, excerpts.copies, strict=True):
        assert documents.count(document) == copies
    kept = list(itertools.compress(documents, curation.dedup_mask(documents)))
    assert sorted(kept) == sorted(set(documents))
    assert not set(held_out) & set(documents)
    with pytest.raises(ValueError, match="too small"):
        _filter_train_extract.make_pool(c, text.join([b"x\n" * 600]), 3)


def test_a_model_that_knows_one_excerpt_gives_away_that_one():
    c = small().filter_train_extract
    known = np.arange(1, 1 + c.prompt_tokens + c.window)
    other = known.copy()
    other[-1] += 1

    def apply(variables, tokens):  # position t of the rows says what stands at t + 1
        following = np.append(known, 0)[: tokens.shape[1]]
        logits = jax.nn.one_hot(following, 300)
        return jax.numpy.broadcast_to(logits[None], (*tokens.shape, 300))

    found = _filter_train_extract._extracted(
        c, apply, {}, [known, other, np.append(known, 5)], bos=0
    )
    np.testing.assert_array_equal(found, [True, False, True])
    with pytest.raises(ValueError, match="must give 10 tokens"):
        _filter_train_extract._extracted(c, apply, {}, [known[:9]], bos=0)


@pytest.mark.heavy
def test_both_models_take_as_many_steps():
    result = run(small("filter_train_extract"))
    check_report(result, ["filter_train_extract"])
    rows = rows_of(result, "filter_train_extract")
    for everything, deduplicated in zip(rows[::2], rows[1::2], strict=True):
        assert everything["documents"] - deduplicated["documents"] == 2
        assert everything["passes"] < deduplicated["passes"]
        assert everything["loss held out"] > 0


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(merged, tmp_path):
    workdir, result = merged
    path = tmp_path / "artifacts" / "merge_verify" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_bytes((workdir / "artifacts" / "merge_verify" / "0.json").read_bytes())
    seen = []
    again = run(small("merge_verify"), workdir=tmp_path, writer=MetricsWriter(None, seen.append))
    assert [e["step"] for e in seen] == [None, 2]
    assert rows_of(again, "merge_verify") == rows_of(result, "merge_verify")
    assert json.loads(path.read_text()) == rows_of(result, "merge_verify")[:4]


@pytest.mark.parametrize(
    ("recipe", "field", "value", "message"),
    [
        ("poison_detect_retrain", "n_poisons", 0, "poison_detect_retrain.n_poisons must be pos"),
        ("merge_verify", "eps", (0.1, -0.1), "merge_verify.eps must be positive"),
        ("merge_verify", "eps", (), "merge_verify.eps must be positive"),
        ("merge_verify", "dataset", "digts", "unknown data set 'digts'.*digits"),
        ("filter_train_extract", "learning_rate", 0.0, "learning_rate must be positive"),
    ],
)
def test_bad_configs_are_one_sentence(recipe, field, value, message):
    config = small()
    with config[recipe].unlocked():
        config[recipe][field] = value
    with pytest.raises(ValueError, match=message):
        compose.check(config)


def test_every_card_passes_its_own_check():
    for card in (tiny, *CARDS):
        compose.check(card.get_config())
    assert set(tiny.get_config()) == set(compose.RECIPES)
    config = tiny.get_config()
    config.bake = {"n": 1}
    with pytest.raises(ValueError, match=r"recipes are .*; got 'bake'"):
        compose.check(config)


def test_the_middle_radius_is_claimed():
    c = merge_verify.get_config().merge_verify
    assert _merge_verify._middle(c) == 0.08
