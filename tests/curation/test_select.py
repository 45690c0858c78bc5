"""Cuts, against sorting."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.core.sharding import make_mesh
from jaxml.curation import (
    fraction_cut,
    kth_largest,
    kth_largest_sharded,
    parse_uids,
    top_fraction,
)
from jaxml.curation.select import digit_counts, find_cut
from tests.curation.pools import random_columns


def scores_with_everything(n, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=n), 1).astype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    edge = np.array([np.nan, -0.0, 0.0, tiny, -tiny, np.inf, -np.inf, -np.nan], dtype)
    where = rng.random(n) < 0.2
    scores[where] = rng.choice(edge, where.sum())
    return scores


def ranked(scores):
    """The scores from the top, which numpy sorts."""
    return np.sort(scores[~np.isnan(scores)])[::-1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("cuts", [(), (1, 1, 40), tuple(range(0, 200, 7))])
def test_the_kth_largest_is_that_of_sorting(dtype, cuts):
    scores = scores_with_everything(203, dtype)
    shards = np.split(scores, cuts)
    expected = ranked(scores)
    for k in (1, 2, 17, 100, expected.size - 1, expected.size):
        found = kth_largest(shards, k, dtype=dtype)
        assert found.dtype == dtype and found == expected[k - 1]
        assert kth_largest(lambda: iter(shards), k, dtype=dtype) == found
    for k in (0, expected.size + 1):
        with pytest.raises(ValueError, match=f"k must lie in 1..{expected.size}"):
            kth_largest(shards, k, dtype=dtype)


@pytest.mark.parametrize("n_devices", [None, 1, 4])
def test_devices_find_the_same(n_devices):
    mesh = None if n_devices is None else make_mesh(n_devices)
    scores = scores_with_everything(204, seed=1)
    expected = ranked(scores)
    for k in (1, 60, 61, 120, expected.size):
        assert kth_largest_sharded(jnp.asarray(scores), k, mesh=mesh) == expected[k - 1]
    if n_devices == 4:
        with pytest.raises(ValueError, match="divide over 4 devices, got 203"):
            kth_largest_sharded(jnp.asarray(scores[1:]), 1, mesh=mesh)


@pytest.mark.parametrize("fraction", [0, 0.1, 0.3, 0.5, 1])
def test_a_fraction_keeps_exactly_so_many(fraction):
    columns = random_columns(500)
    scores = np.nan_to_num(columns["clip_l14_similarity_score"])
    kept = top_fraction(scores, fraction, uids=columns["uid"])
    assert kept.sum() == int(500 * fraction)
    order = sorted(range(500), key=lambda i: (-scores[i], *columns["uid"].tolist()[i]))
    best = columns["uid"][order[: kept.sum()]].tolist()
    assert sorted(columns["uid"][kept].tolist()) == sorted(best)
    # Repeated uids with one score are interchangeable, so compare uids.
    turn = np.random.default_rng(0).permutation(500)
    again = columns["uid"][turn][top_fraction(scores[turn], fraction, uids=columns["uid"][turn])]
    assert sorted(again.tolist()) == sorted(best)


def test_ties_go_to_the_first_rows_or_the_smallest_uids():
    scores = np.array([1, 2, 2, 2, 3], np.float32)
    assert np.flatnonzero(top_fraction(scores, 0.4)).tolist() == [1, 4]
    uids = parse_uids([f"{i:032x}" for i in (0, 9, 5, 7, 1)])
    assert np.flatnonzero(top_fraction(scores, 0.4, uids=uids)).tolist() == [2, 4]


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.3, 0.9])
def test_the_reference_keeps_from_the_nth_place_on(fraction):
    scores = np.round(np.random.default_rng(0).normal(size=400), 1).astype(np.float32)
    threshold = -np.sort(-scores)[int(400 * fraction)]
    kept = top_fraction(scores, fraction, rule="reference")
    np.testing.assert_array_equal(kept, scores >= threshold)
    assert top_fraction(np.array([4.0, 3, 2, 1]), 0.25, rule="reference").sum() == 2


@pytest.mark.parametrize("rule", ["exact", "reference"])
def test_rows_without_a_score_count_and_are_dropped(rule):
    scores = np.array([np.nan, 1, np.nan, 2, 3, np.nan], np.float32)
    assert top_fraction(scores, 1, rule=rule).tolist() == [False, True, False, True, True, False]
    assert not top_fraction(scores[:0], 1, rule=rule).any()
    half = {"exact": [False] * 4 + [True, False], "reference": [False] * 3 + [True, True, False]}
    assert top_fraction(scores, 0.2, rule=rule).tolist() == half[rule]
    assert not top_fraction(np.full(3, np.nan), 0.5, rule=rule).any()


@pytest.mark.parametrize("rule", ["exact", "reference"])
def test_shards_give_the_cut_of_the_whole(rule):
    scores = scores_with_everything(300, seed=3)
    for fraction in (0, 0.01, 0.3, 0.6, 0.99, 1):
        whole = fraction_cut([scores], fraction, rule=rule)
        assert fraction_cut(np.array_split(scores, 7), fraction, rule=rule) == whole
        n = int((scores > whole.threshold).sum())
        ties = int((scores == whole.threshold).sum())
        assert (
            n + (ties if whole.n_ties is None else whole.n_ties)
            == top_fraction(scores, fraction, rule=rule).sum()
        )


@pytest.mark.parametrize("rule", ["exact", "reference"])
def test_each_digit_is_counted_once(rule):
    scores, asked = scores_with_everything(300, seed=4), []

    def count(prefix, n_digits):
        asked.append(n_digits)
        return digit_counts(scores, prefix, n_digits)

    assert find_cut(count, 300, 0.3, rule=rule) == fraction_cut([scores], 0.3, rule=rule)
    assert asked == [0, 1]


def test_what_cannot_be_cut_is_refused():
    scores = np.arange(4, dtype=np.float32)
    for fraction in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\]"):
            top_fraction(scores, fraction)
    with pytest.raises(ValueError, match="rule must be one of exact, reference"):
        top_fraction(scores, 0.5, rule="published")
    with pytest.raises(ValueError, match="scores must be floats, got int64"):
        top_fraction(np.arange(4), 0.5)
    with pytest.raises(ValueError, match="shards must be arrays of one dtype"):
        fraction_cut([scores, scores.astype(np.float64)], 0.5)
    with pytest.raises(ValueError, match="shards must be arrays of one dtype"):
        fraction_cut([], 0.5)
    with pytest.raises(ValueError, match="scores must be float32"):
        kth_largest_sharded(jnp.arange(4), 1)
    assert find_cut(lambda p, n: digit_counts(scores, p, n), 4, 0.5).threshold == 2
