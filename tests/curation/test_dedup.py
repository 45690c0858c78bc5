"""Duplicates, against comparisons of all pairs."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.curation import decontamination_mask, dedup_mask, near_duplicate_mask
from tests.curation.pools import random_columns


def cosines(a, b):
    def unit(x):
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(norm == 0, 1, norm)

    return unit(a.astype(np.float64)) @ unit(b.astype(np.float64)).T


def test_one_row_of_each_content_stays():
    columns = random_columns(400)
    hashes, uids = columns["sha256"], columns["uid"]
    kept = dedup_mask(hashes, uids=uids)
    best = {}
    for h, uid in zip(hashes, uids.tolist(), strict=True):
        best[h] = min(uid, best.get(h, uid))
    assert sorted(uids[kept].tolist()) == sorted(best.values())
    turn = np.random.default_rng(0).permutation(400)
    again = dedup_mask(np.array(hashes)[turn], uids=uids[turn])
    assert sorted(uids[turn][again].tolist()) == sorted(best.values())
    assert dedup_mask([3, 1, 3, 1, 2]).tolist() == [True, True, False, False, True]
    assert dedup_mask(uids).sum() == len(np.unique(uids))
    assert dedup_mask([]).shape == (0,)
    with pytest.raises(ValueError, match=r"hashes must be \[n\]"):
        dedup_mask(hashes[1:], uids=uids)


@pytest.mark.parametrize(("n", "block"), [(90, 32), (90, 1000), (7, 3)])
def test_every_dropped_row_resembles_one_that_stays(n, block):
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    close = cosines(x, x) > 0.9
    uids = random_columns(n)["uid"]
    for order, given in (
        (range(n), None),
        (sorted(range(n), key=lambda i: (*uids.tolist()[i], i)), uids),
    ):
        stay = []
        for i in order:
            if not close[i, stay].any():
                stay.append(i)
        kept = near_duplicate_mask(x, threshold=0.9, uids=given, block=block)
        assert np.flatnonzero(kept).tolist() == sorted(stay)


@pytest.mark.parametrize("block", [16, 1000])
def test_rows_near_a_reference_are_dropped(block):
    rng = np.random.default_rng(1)
    x, reference = rng.normal(size=(90, 4)), rng.normal(size=(21, 4))
    x[3], x[4] = 0, 5 * reference[20]
    kept = decontamination_mask(x, reference, threshold=0.9, block=block)
    np.testing.assert_array_equal(kept, cosines(x, reference).max(1) <= 0.9)
    assert kept[3] and not kept[4]
    half = decontamination_mask(x.astype(np.float16), jnp.asarray(reference), threshold=0.9)
    assert (half == kept).mean() > 0.97


def test_nothing_and_nan():
    x = np.array([[1.0, 0], [np.nan, 1], [1, 0], [0, 0], [0, 0]])
    assert near_duplicate_mask(x, threshold=0.5).tolist() == [True, False, False, True, True]
    assert decontamination_mask(x, x[:1], threshold=0.5).tolist() == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert decontamination_mask(x, x[:0]).all() and len(decontamination_mask(x[:0], x)) == 0
    assert near_duplicate_mask(x[:0], threshold=0.5).shape == (0,)


def test_shapes_and_thresholds_are_checked():
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"embeddings must be \[n, d\], got \(2,\)"):
        near_duplicate_mask(x[0], threshold=0.5)
    with pytest.raises(ValueError, match="threshold must be a cosine"):
        decontamination_mask(x, x, threshold=1.5)
    with pytest.raises(ValueError, match="block must be positive, got 0"):
        near_duplicate_mask(x, threshold=0.5, block=0)
    with pytest.raises(ValueError, match=r"reference must be \[m, 2\]"):
        decontamination_mask(x, x[:, :1])
    with pytest.raises(ValueError, match="uids must be one a row, got 1 for 3"):
        near_duplicate_mask(x, threshold=0.5, uids=random_columns(10)["uid"][:1])
