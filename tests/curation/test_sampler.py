"""The sampler: a pure function of seed and step, uniform, the same on any number of hosts."""

import numpy as np
import pytest

from jaxml.curation import pair_indices, shard_indices

SIZES = (40, 7, 100)


def draw(kind, step, **options):
    sizes = {"sizes": SIZES} | options
    fn = pair_indices if kind == "pair" else shard_indices
    extra = {"buffer": 50} if kind == "shard" else {}
    return fn(3, step, batch_size=24, **extra, **sizes)


@pytest.mark.parametrize("kind", ["pair", "shard"])
def test_a_step_depends_on_seed_and_step_alone(kind):
    later = draw(kind, 7)
    for t in range(7):
        draw(kind, t)
    np.testing.assert_array_equal(draw(kind, 7), later)
    assert (draw(kind, 8) != later).any()
    assert later.dtype == np.int64 and later.min() >= 0 and later.max() < sum(SIZES)
    for n_hosts in (1, 2, 8):
        parts = [draw(kind, 7, host=i, n_hosts=n_hosts) for i in range(n_hosts)]
        np.testing.assert_array_equal(np.concatenate(parts), later)


def test_pairs_are_uniform():
    n, steps = 50, 400
    rows = np.concatenate([pair_indices(0, t, sizes=n, batch_size=100) for t in range(steps)])
    counts = np.bincount(rows, minlength=n)
    chi2 = ((counts - 800) ** 2 / 800).sum()
    assert chi2 < 90  # 49 degrees of freedom: 90 is exceeded once in 3000
    assert len(rows) == 40_000


def test_weights_are_of_sources_and_not_of_pairs():
    rows = pair_indices(1, 0, sizes=SIZES, batch_size=30_000, weights=(1, 2, 0))
    first, second = (rows < 40).mean(), ((rows >= 40) & (rows < 47)).mean()
    assert first == pytest.approx(1 / 3, abs=0.02) and second == pytest.approx(2 / 3, abs=0.02)
    inside = np.bincount(rows[(rows >= 40) & (rows < 47)] - 40, minlength=7)
    assert inside.min() > 0.8 * inside.mean()


def test_a_pool_larger_than_int32_is_reached():
    rows = pair_indices(0, 0, sizes=12_800_000_000, batch_size=4096)
    assert rows.max() > 2**33 and rows.mean() == pytest.approx(6.4e9, rel=0.05)


def test_shards_are_drawn_whole_and_with_replacement():
    buffer, batch = 60, 20
    starts = np.cumsum(SIZES) - SIZES
    rows = np.concatenate([
        shard_indices(5, t, sizes=SIZES, batch_size=batch, buffer=buffer) for t in range(30)
    ])  # fmt: skip
    # The buffers are stretches of a stream of whole shards, so all pairs of a shard are seen as
    # often, but for the one shard that is cut off at the end.
    counts = np.bincount(rows, minlength=sum(SIZES))
    per_shard = [counts[a : a + n] for a, n in zip(starts, SIZES, strict=True)]
    assert sum(np.ptp(c) for c in per_shard) <= 1 and min(c.max() for c in per_shard) > 1
    assert len(rows) == 30 * batch and len(set(map(tuple, rows.reshape(-1, buffer)))) == 10


def test_pairs_of_a_short_shard_are_seen_more_often():
    rows = np.concatenate([
        shard_indices(0, t, sizes=(10, 1000), batch_size=1000, buffer=100) for t in range(60)
    ])  # fmt: skip
    short, long = (rows < 10).sum() / 10, (rows >= 10).sum() / 1000
    assert short == pytest.approx(long, rel=0.4)  # shards, not pairs, are alike
    many = np.concatenate([pair_indices(0, t, sizes=1010, batch_size=1000) for t in range(60)])
    assert (many < 10).mean() == pytest.approx(10 / 1010, rel=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, "sizes must be numbers of pairs"),
        ({"sizes": (0, 0)}, "at least one in all"),
        ({"weights": (1.0,)}, "weights must be 3"),
        ({"weights": (0.0, 0.0, 0.0)}, "not all 0"),
        ({"weights": (1.0, 1.0, -1.0)}, "none negative"),
        ({"sizes": (3, 0), "weights": (1.0, 1.0)}, "0 for a source without pairs"),
        ({"host": 2, "n_hosts": 2}, r"host must lie in 0..1"),
        ({"n_hosts": 5}, "n_hosts divide the batch of 24"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw("pair", 0, **options)


def test_bad_shards_are_refused():
    with pytest.raises(ValueError, match="sizes must be positive"):
        draw("shard", 0, sizes=(3, 0))
    with pytest.raises(ValueError, match="buffer must be positive, got 0"):
        shard_indices(0, 0, sizes=(3,), batch_size=2, buffer=0)
    with pytest.raises(ValueError, match="step must be 0 or more"):
        draw("shard", -1)
