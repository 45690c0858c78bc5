"""Masks, against the published rules written down row by row."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.curation import caption_features, read_metadata
from jaxml.curation import filters as F
from tests.curation.pools import random_columns, take
from tests.curation.test_captions import tokens

LEXICON = {"dog", "cat"}


def rows_of(columns):
    n = len(columns["uid"])
    return [{name: values[i] for name, values in columns.items()} for i in range(n)]


def image_size(row):
    w, h = row["original_width"], row["original_height"]
    if np.isnan(w) or np.isnan(h) or min(w, h) == 0:
        return False
    return min(w, h) >= 200 and max(w, h) / min(w, h) <= 3.0


def english(row):
    return row["language"] == "en"


def basic(row):
    text = row["text"] or ""
    return english(row) and len(text.split()) > 2 and len(text) > 5 and image_size(row)


def caption(row):
    text = row["text"] or ""
    return english(row) and tokens(text) > 1 and len(text) > 5


def laion(row):
    return english(row) and bool(row["clip_b32_similarity_score"] >= np.float32(0.28))


def entity(row):
    return any(word in LEXICON for word in (row["text"] or "").split())


RULES = {
    "basic": (basic, lambda c: F.basic_mask(c, language="language")),
    "caption": (caption, lambda c: F.caption_mask(c, language="language")),
    "laion": (laion, lambda c: F.laion_mask(c, language="language")),
    "entity": (entity, lambda c: F.entity_mask(c["text"], LEXICON)),
    "size": (image_size, lambda c: F.size_mask(c["original_width"], c["original_height"])),
    "english": (english, lambda c: F.language_mask(c, "language")),
}


@pytest.mark.parametrize("name", RULES)
def test_masks_are_the_rules_in_any_order(name):
    columns = random_columns(3000)
    by_row, mask = RULES[name]
    kept = mask(columns)
    assert kept.dtype == bool and kept.tolist() == [by_row(row) for row in rows_of(columns)]
    order = np.random.default_rng(1).permutation(3000)
    np.testing.assert_array_equal(mask(take(columns, order)), kept[order])
    assert 0 < kept.sum() < 3000
    assert mask(take(columns, [])).shape == (0,)


def test_basic_filter_keeps_the_same_uids_of_many_rows():
    columns = random_columns(120_000, seed=2)
    expected = [basic(row) for row in rows_of(columns)]
    assert F.basic_mask(columns, language="language").tolist() == expected


def test_both_caption_rules_differ():
    columns = {
        "text": ["two words", "three more words", "a\u00a0b\u00a0cdef"],
        "original_width": np.array([300, 300, 300]),
        "original_height": np.array([300, 901, 300]),
    }
    english = np.array(["en"] * 3)
    assert F.caption_mask(columns, language=english).tolist() == [True, True, False]
    assert F.basic_mask(columns, language=english).tolist() == [False, False, True]


def test_counts_may_come_as_columns():
    columns = random_columns(200)
    counted = {**columns, **caption_features(columns["text"])}
    del counted["text"]
    for mask in (F.basic_mask, F.caption_mask):
        np.testing.assert_array_equal(
            mask(counted, language="language"), mask(columns, language="language")
        )


def test_a_language_callable_sees_only_what_passes_the_rest():
    columns = random_columns(500)
    texts = sorted({*map(str, columns["text"])})
    known = {text: "en" if i % 2 else "es" for i, text in enumerate(texts)}
    seen = []

    def language(texts):
        seen.extend(texts)
        return [known.get(t, "en") for t in texts]

    kept = F.basic_mask(columns, language=language)
    assert not any("\n" in text for text in seen)
    everything = F.basic_mask(columns, language=np.array(["en"] * 500))
    assert len(seen) == everything.sum() < 500
    spaced = [(t or "").replace("\n", " ") for t in columns["text"]]
    assert kept.tolist() == [
        e and known.get(t, "en") == "en" for e, t in zip(everything, spaced, strict=True)
    ]
    none = F.language_mask(columns, language, where=np.zeros(500, bool))
    assert not none.any()
    with pytest.raises(ValueError, match="language must give 500 labels, got 3"):
        F.language_mask(columns, lambda texts: ["en"] * 3)
    with pytest.raises(ValueError, match="columns must have 'lid'"):
        F.language_mask(columns, "lid")
    with pytest.raises(ValueError, match="one length"):
        F.language_mask({"a": [1], "b": [1, 2]}, "a")


def test_columns_of_arrow_are_like_lists():
    pa = pytest.importorskip("pyarrow")
    columns = random_columns(400)
    arrow = {**columns, **{name: pa.array(columns[name]) for name in ("text", "language")}}
    for _, mask in RULES.values():
        np.testing.assert_array_equal(mask(arrow), mask(columns))
    upper = F.language_mask(arrow, lambda texts: [t[:1] for t in texts], wanted="a")
    assert upper.tolist() == [(t or "").startswith("a") for t in columns["text"]]


def test_masks_do_without_pyarrow(monkeypatch):
    columns = random_columns(50)
    wanted = F.basic_mask(columns, language="language")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    np.testing.assert_array_equal(F.basic_mask(columns, language="language"), wanted)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        read_metadata("a.parquet")


def test_numeric_masks_are_the_same_under_jit():
    columns = random_columns(300)
    width, height = columns["original_width"], columns["original_height"]
    scores = columns["clip_l14_similarity_score"]
    size = jax.jit(F.size_mask, static_argnames=("min_side", "max_aspect"))
    score = jax.jit(F.clip_score_mask)
    for kind in (jnp.int32, jnp.float32):
        w, h = (jnp.asarray(np.nan_to_num(side), kind) for side in (width, height))
        np.testing.assert_array_equal(size(w, h), F.size_mask(np.array(w), np.array(h)))
    assert not F.size_mask(np.array([0, 0]), np.array([0, 5]), min_side=0).any()
    np.testing.assert_array_equal(score(jnp.asarray(scores), 0.25), F.clip_score_mask(scores, 0.25))


def test_a_lexicon_is_asked_once_a_word():
    asked = []

    def first_synset(word):
        asked.append(word)
        return {"dog": 1, "photo": 2}.get(word)

    texts = ["a photo", "dog dog", None, "", "dog,", "a cat"]
    kept = F.entity_mask(texts, F.synset_lexicon(first_synset, [1, 7]))
    assert kept.tolist() == [False, True, False, False, False, False]
    assert len(asked) == len(set(asked))
    assert F.entity_mask(texts, ["photo"]).tolist() == [True] + [False] * 5


def test_clusters_of_the_target_are_kept():
    rng = np.random.default_rng(0)
    x, centroids = rng.normal(size=(50, 4)), rng.normal(size=(6, 4)) * 3
    nearest = np.argmax(x @ centroids.T, axis=1)
    kept = F.image_cluster_mask(x, centroids, [2, 4, 4])
    np.testing.assert_array_equal(kept, np.isin(nearest, [2, 4]))
    assert not F.image_cluster_mask(x, centroids, np.zeros(0, int)).any()
    for bad in ([6], [-1]):
        with pytest.raises(ValueError, match="targets must be clusters below 6"):
            F.image_cluster_mask(x, centroids, bad)


@pytest.mark.parametrize("missing", ["text", "original_width"])
def test_a_missing_column_is_named(missing):
    columns = random_columns(5)
    del columns[missing]
    with pytest.raises(ValueError, match=f"columns must have '{missing}'"):
        F.basic_mask(columns, language="language")
