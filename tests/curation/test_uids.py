"""Uids and subset files, against Python's integers and multisets."""

from collections import Counter

import numpy as np
import pytest

from jaxml.curation import uids as U


def random_uids(n, *, seed=0, words=(0, 1, 2**63 - 1, 2**63, 2**64 - 1)):
    """Uids with many equal leading words and with words at the edges of their range."""
    rng = np.random.default_rng(seed)
    high, low = rng.integers(0, 2**64, size=(2, n), dtype=np.uint64)
    edge = rng.integers(0, 3, n)
    high[edge == 0] = rng.choice(np.array(words, np.uint64), (edge == 0).sum())
    low[edge < 2] = rng.choice(np.array(words, np.uint64), (edge < 2).sum())
    uids = np.empty(n, U.UID_DTYPE)
    uids["f0"], uids["f1"] = high, low
    return uids


def as_int(uids):
    return [int(h) << 64 | int(low) for h, low in uids.tolist()]


def test_digits_round_trip():
    digits = ["0" * 32, "f" * 32, "0" * 31 + "1", "8" + "0" * 31, "0123456789abcdef" * 2]
    digits += [f"{i:032x}" for i in as_int(random_uids(50))]
    uids = U.parse_uids(digits)
    assert uids.dtype == U.UID_DTYPE
    assert as_int(uids) == [int(d, 16) for d in digits]
    assert U.format_uids(uids).tolist() == digits
    np.testing.assert_array_equal(U.parse_uids(np.array(digits)), uids)
    np.testing.assert_array_equal(U.parse_uids([d.upper() for d in digits]), uids)
    assert U.parse_uids([]).shape == (0,) and U.format_uids(uids[:0]).shape == (0,)


def test_digits_of_arrow_round_trip():
    pa = pytest.importorskip("pyarrow")
    digits = U.format_uids(random_uids(20)).tolist()
    array = pa.array(["x" * 32, *digits])
    for column in (array[1:], array[1:].cast(pa.large_string()), pa.chunked_array([array[1:]])):
        assert U.format_uids(U.parse_uids(column)).tolist() == digits
    for bad in (None, digits[0][:-1], digits[0][:-1] + "é"):
        with pytest.raises(ValueError, match=r"32 hexadecimal digits, got .* at 1"):
            U.parse_uids(pa.array([digits[0], bad]))


@pytest.mark.parametrize(
    "bad",
    ["", "0" * 31, "0" * 33, "g" * 32, "0" * 31 + "\0", "0" * 31 + "٣", "0x" + "0" * 30, None, 7],
)
def test_what_is_no_uid_is_refused(bad):
    with pytest.raises(ValueError, match=r"uids must be 32 hexadecimal digits, got .* at 1"):
        U.parse_uids(["0" * 32, bad])


def test_words_round_trip_through_uint32():
    uids = random_uids(30)
    words = U.uid_words(uids)
    assert words.dtype == np.uint32 and words.shape == (30, 4)
    whole = [sum(int(w) << 32 * (3 - i) for i, w in enumerate(row)) for row in words]
    assert whole == as_int(uids)
    np.testing.assert_array_equal(U.uids_of_words(words), uids)
    with pytest.raises(ValueError, match=r"words must be uint32 \[n, 4\]"):
        U.uids_of_words(words.astype(np.int64))


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_order_is_that_of_the_integers(n):
    uids = random_uids(n)
    assert as_int(U.sort_uids(uids)) == sorted(as_int(uids))
    order = U.order_uids(uids)
    expected = sorted(range(n), key=lambda i: (as_int(uids)[i], i)) if n < 10 else None
    assert expected is None or order.tolist() == expected
    assert U.is_sorted(U.sort_uids(uids))
    assert U.is_sorted(uids) == (as_int(uids) == sorted(as_int(uids)))


def test_equal_uids_keep_their_order():
    uids = np.repeat(random_uids(3), 40)
    order = U.order_uids(uids)
    assert order.tolist() == sorted(range(120), key=lambda i: (as_int(uids)[i], i))


def test_order_is_seen_across_parts(monkeypatch):
    monkeypatch.setattr(U, "_PART", 4)
    uids = U.sort_uids(random_uids(13))
    assert U.is_sorted(uids)
    for i in range(12):
        swapped = uids.copy()
        swapped[[i, i + 1]] = swapped[[i + 1, i]]
        assert U.is_sorted(swapped) == (uids[i] == uids[i + 1])


@pytest.mark.parametrize("n", [0, 1, 300])
def test_lookup_is_that_of_bisection(n):
    import bisect

    subset = U.sort_uids(random_uids(n, seed=1))
    asked = np.concatenate([subset, random_uids(200, seed=2)])
    first, count = U.find_uids(subset, asked)
    there = as_int(subset)
    assert first.tolist() == [bisect.bisect_left(there, x) for x in as_int(asked)]
    assert count.tolist() == [there.count(x) for x in as_int(asked)]


def test_multisets_are_those_of_counters():
    a, b = random_uids(200, seed=3, words=(0, 5)), random_uids(200, seed=4, words=(0, 5))
    tally_a, tally_b = Counter(as_int(a)), Counter(as_int(b))
    for got, wanted in (
        (U.intersect_uids(a, b), tally_a & tally_b),
        (U.union_uids(a, b), tally_a | tally_b),
    ):
        assert as_int(got) == sorted(wanted.elements())
    assert U.intersect_uids(a, b[:0]).size == 0
    weights = np.random.default_rng(0).integers(0, 4, 200)
    wanted = sorted(x for x, w in zip(as_int(a), weights, strict=True) for _ in range(w))
    assert as_int(U.repeat_uids(a, weights)) == wanted
    for bad in (weights - 1, weights[1:], weights * 1.0):
        with pytest.raises(ValueError, match="weights must"):
            U.repeat_uids(a, bad)


@pytest.mark.parametrize("mmap", [False, True])
def test_subset_file_is_sorted_and_keeps_repeats(tmp_path, mmap):
    uids = np.repeat(random_uids(50), 2)
    path = tmp_path / "new" / "subset.npy"
    U.save_subset(path, uids)
    plain = np.load(path)
    assert plain.dtype == np.dtype("u8,u8") and as_int(plain) == sorted(as_int(uids))
    np.testing.assert_array_equal(U.load_subset(path, mmap=mmap), plain)
    assert [p.name for p in path.parent.iterdir()] == ["subset.npy"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (U.sort_uids(random_uids(5))[::-1], "is not sorted"),
        (np.zeros((2, 2), np.uint64), "'u8,u8', got uint64"),
        (np.zeros(3, ">u8,>u8"), "'u8,u8', got"),
        (np.zeros(3, "i8,i8"), "'u8,u8', got"),
        (np.zeros((3, 1), U.UID_DTYPE), r"shape \(3, 1\)"),
        (np.array(["a"], object), "is no subset file"),
    ],
)
def test_other_files_are_refused(tmp_path, array, message):
    np.save(tmp_path / "subset.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        U.load_subset(tmp_path / "subset.npy")


def test_integers_are_no_uids():
    for function in (U.sort_uids, U.format_uids, U.uid_words, U.is_sorted):
        with pytest.raises(ValueError, match="uids must be one axis of dtype 'u8,u8', got int64"):
            function(np.arange(4))
