import zlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxml.language import (
    auc,
    drop_near_duplicates,
    exposure,
    exposure_skew_normal,
    membership_scores,
    precision_at,
)


def test_scores_by_hand():
    rng = np.random.default_rng(0)
    nll = [rng.gamma(1.0, size=n).astype(np.float32) for n in (9, 30, 3)]
    lower = [rng.gamma(1.0, size=n) for n in (11, 30, 5)]
    reference = [rng.gamma(1.0, size=n) for n in (9, 30, 3)]
    texts = ["a tale of two", "import os\n" * 20, "x"]
    scores = membership_scores(
        nll, texts=texts, lower=lower, reference=reference, window=4, k=0.25
    )  # fmt: skip
    for i, row in enumerate(nll):
        row = row.astype(float)
        n = len(row)
        windows = [row[j : j + 4].mean() for j in range(n - 3)] if n >= 4 else [row.mean()]
        n_bits = 8 * len(zlib.compress(texts[i].encode()))
        expected = {
            "perplexity": np.exp(row.mean()),
            "zlib": row.sum() / np.log(2) / n_bits,
            "lower": row.mean() / lower[i].mean(),
            "reference": row.mean() / reference[i].mean(),
            "min_window": min(windows),
            "min_k": np.mean(sorted(row)[-{9: 3, 30: 8, 3: 1}[n] :]),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(scores, name)[i], value, rtol=1e-6, err_msg=name)
    bare = membership_scores(nll)
    assert bare.zlib is bare.lower is bare.reference is None
    zeros = membership_scores([np.zeros(3)], lower=[np.zeros(2)], texts=["aaa"])
    assert all(np.isfinite(a).all() for a in zeros if a is not None)


def test_bad_scores_are_refused():
    row = [np.ones(3)]
    for options, message in (
        ({"window": 0}, "window must be positive"),
        ({"k": 0.0}, "k lie in"),
        ({"k": 1.1}, "k lie in"),
        ({"texts": ["a", "b"]}, "texts must be 1, one for each text, got 2"),
        ({"lower": [np.zeros(0)]}, "lower must have no empty row"),
    ):
        with pytest.raises(ValueError, match=message):
            membership_scores(row, **options)
    with pytest.raises(ValueError, match="nll must have no empty row"):
        membership_scores([np.zeros(0)])


def test_auc_and_precision():
    rng = np.random.default_rng(1)
    members, others = rng.integers(6, size=40), rng.integers(2, 9, size=70)
    labels = np.repeat([1, 0], [40, 70])
    expected = roc_auc_score(labels, -np.concatenate([members, others]))
    assert auc(members, others) == pytest.approx(expected)
    assert auc([1.0], [2.0]) == 1 and auc([1.0], [1.0]) == 0.5
    assert precision_at([True, False, True, True], 2) == 0.5
    assert precision_at([True, False], 10) == 0.5
    for members, others in (([], [1.0]), ([1.0], []), ([np.nan], [1.0])):
        with pytest.raises(ValueError, match="finite"):
            auc(members, others)
    for ranked, k in (([], 1), ([True], 0)):
        with pytest.raises(ValueError, match="must not be empty"):
            precision_at(ranked, k)


def test_near_duplicates_are_dropped_in_the_order_of_the_ranking():
    base = np.arange(20)
    near = np.concatenate([base[:14], np.arange(50, 56)])  # 12 of 18 trigrams
    far = np.concatenate([base[:10], np.arange(60, 70)])  # 8 of 18
    rows = [base, near, far, np.array([1, 2]), np.array([1, 2]), base[::-1]]
    assert drop_near_duplicates(np.arange(6), rows).tolist() == [0, 2, 3, 4, 5]
    assert drop_near_duplicates([1, 0, 2], rows).tolist() == [1, 2]
    assert drop_near_duplicates([], rows).tolist() == []


def test_exposure_is_the_rank_in_bits():
    references = np.arange(1.0, 8.0)
    bits = exposure([0.5, 1.0, 4.5, 99.0], references)
    np.testing.assert_allclose(bits, 3 - np.log2([1, 2, 5, 8]))
    rng = np.random.default_rng(0)
    unseen = exposure(rng.normal(size=4000), rng.normal(size=4095))
    assert unseen.mean() == pytest.approx(1 / np.log(2), abs=0.1)
    assert unseen.min() >= 0 and unseen.max() <= 12


def test_skew_normal_exposure_goes_on_where_ranks_end():
    rng = np.random.default_rng(0)
    references = rng.normal(100, 10, size=4000)
    # 2, 4 and 8 standard deviations below a normal mean.
    bits = exposure_skew_normal([80.0, 60.0, 20.0], references)
    np.testing.assert_allclose(bits, [5.46, 14.9, 50.5], rtol=0.12)
    ranks = exposure([80.0, 60.0, 20.0], references)
    assert ranks[0] == pytest.approx(bits[0], abs=0.5)
    assert ranks[2] == pytest.approx(np.log2(4001))
    least, most = exposure_skew_normal([1e4, -1e4], references)
    assert least == 0 and most == np.inf


def test_bad_exposure_is_refused():
    for nll, references, message in (
        ([1.0], [], "r > 0"),
        ([[1.0]], [1.0], r"\[c\]"),
        ([np.nan], [1.0], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            exposure(nll, references)
    for nll, references, message in (
        ([1.0], np.ones(20), "some spread"),
        ([1.0], np.arange(4), "at least 8"),
        ([1.0], [np.inf] * 9, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            exposure_skew_normal(nll, references)
