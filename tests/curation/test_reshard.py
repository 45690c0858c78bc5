"""Resharding, against tarfile; nothing is overwritten and nothing is lost, killed or not."""

import hashlib
import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest

from jaxml.curation import (
    find_uids,
    format_uids,
    index_tar,
    parse_uids,
    read_shard,
    repeat_uids,
    reshard,
    save_subset,
    sort_uids,
    write_shard,
)
from jaxml.curation.reshard import SKIPPED

NONE = dict.fromkeys(SKIPPED, 0)


def uid_of(i):
    return hashlib.md5(str(i).encode()).hexdigest()


def sample(i, *, key=None, **more):
    rng = np.random.default_rng(i)
    members = {
        "jpg": rng.bytes(int(rng.integers(0, 1500))),
        "txt": f"caption {i} é",
        "json": {"uid": uid_of(i), "width": i},
    }
    return key or f"{i:05d}", {**members, **more}


def pool(folder, sizes=(7, 1, 12, 5)):
    """Writes tars with samples 0, 1, ... and a gap in their numbers."""
    first = 0
    for k, n in enumerate(sizes):
        write_shard(folder / f"{2 * k:08d}.tar", (sample(i) for i in range(first, first + n)))
        first += n
    return first


def subset_of(weights):
    """A subset file's uids from ``{sample: weight}``."""
    uids = parse_uids([uid_of(i) for i in weights])
    return repeat_uids(uids, np.array([*weights.values()]))


def members_of(path):
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar]


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_subset_comes_out_with_its_weights_and_bytes(tmp_path):
    n = pool(tmp_path / "in")
    rng = np.random.default_rng(0)
    weights = {i: int(rng.integers(0, 4)) for i in range(0, n + 5)}  # five are in no tar
    subset = subset_of(weights)
    result = reshard(tmp_path / "in", subset, tmp_path / "out", shard_size=6)
    written = [m for shard in result.shards for m in members_of(tmp_path / "out" / shard)]
    expected = []
    for i in range(n):
        for j in range(weights[i]):
            for extension, value in sample(i)[1].items():
                value = json.dumps(value).encode() if isinstance(value, dict) else value
                value = value.encode() if isinstance(value, str) else value
                expected.append((f"{uid_of(i)}-{j}.{extension}", value))
    assert written == expected
    missing = [uid_of(i) for i in range(n, n + 5) if weights[i]]
    assert format_uids(result.missing).tolist() == sorted(missing)
    assert result.n_written == len(expected) / 3
    assert result.n_samples == sum(weights[i] > 0 for i in range(n))
    assert result.skipped == NONE
    counts = [json.loads((tmp_path / "out" / f"{k:08d}_stats.json").read_text())["successes"]
              for k in range(len(result.shards))]  # fmt: skip
    assert counts[:-1] == [6] * (len(counts) - 1) and sum(counts) == result.n_written
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "sample_ids.npy"), subset)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "missing.npy"), result.missing)
    # A subset file and a list of tars give the same bytes, and so does resharding the result.
    save_subset(tmp_path / "subset.npy", subset)
    tars = sorted((tmp_path / "in").glob("*.tar"))
    reshard(tars, tmp_path / "subset.npy", tmp_path / "again", shard_size=6)
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_a_uid_that_the_pool_has_twice_is_written_once(tmp_path):
    samples = [sample(0), sample(1, key="a"), sample(0, key="b"), sample(1, key="c")]
    write_shard(tmp_path / "in" / "0.tar", samples)
    write_shard(tmp_path / "in" / "1.tar", [sample(1), sample(2)])
    result = reshard(tmp_path / "in", subset_of({0: 1, 1: 2, 2: 1}), tmp_path / "out")
    names = [key for key, _ in read_shard(tmp_path / "out" / "00000000.tar")]
    assert Counter(name[:32] for name in names) == {uid_of(0): 1, uid_of(1): 2, uid_of(2): 1}
    assert result.skipped == NONE | {"repeated": 3}


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3, 4])
@pytest.mark.parametrize("shard_size", [3, 7, 100])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, after, shard_size):
    n = pool(tmp_path / "in")
    write_shard(tmp_path / "in" / "00000003.tar", [sample(2), sample(50, json=b"{")])
    subset = subset_of({i: 1 + i % 3 for i in range(n)} | {99: 1})
    arguments = (tmp_path / "in", subset)
    whole = reshard(*arguments, tmp_path / "whole", shard_size=shard_size)
    assert whole.skipped == NONE | {"repeated": 1, "bad_json": 1}

    def kill(n_inputs, n_written):
        if n_inputs == after:
            raise Killed

    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(Killed):
            reshard(*arguments, out, shard_size=shard_size, callback=kill, resume=True)
    finished = {name: data for name, data in tree(out).items() if name.endswith(".tar")}
    again = reshard(*arguments, out, shard_size=shard_size, resume=True)
    assert tree(out) == tree(tmp_path / "whole")
    assert finished.items() <= tree(out).items()
    # A finished run that is resumed stays as it is.
    once_more = reshard(*arguments, out, shard_size=shard_size, resume=True)
    for result in (again, once_more):
        assert (result.n_written, result.n_samples) == (whole.n_written, whole.n_samples)
        assert result.skipped == whole.skipped and result.shards == whole.shards
    assert tree(out) == tree(tmp_path / "whole")


def test_a_tar_without_its_stats_is_written_anew(tmp_path):
    pool(tmp_path / "in")
    subset = subset_of(dict.fromkeys(range(20), 1))
    reshard(tmp_path / "in", subset, tmp_path / "out", shard_size=4)
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "00000002_stats.json").unlink()
    (tmp_path / "out" / "00000002.tar").write_bytes(b"torn")
    reshard(tmp_path / "in", subset, tmp_path / "out", shard_size=4, resume=True)
    assert tree(tmp_path / "out") == before
    (tmp_path / "out" / "00000002.tar").write_bytes(before["00000002.tar"][:2000])
    with pytest.raises(ValueError, match=r"00000002\.tar is not as it was written"):
        reshard(tmp_path / "in", subset, tmp_path / "out", shard_size=4, resume=True)


def test_nothing_is_overwritten_unless_told(tmp_path):
    pool(tmp_path / "in")
    one, other = subset_of({0: 1}), subset_of({1: 1})
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match="holds something else than a run"):
            reshard(tmp_path / "in", one, out, **flags)
    assert tree(out) == {"mine.txt": b"x"}
    (out / "mine.txt").unlink()
    reshard(tmp_path / "in", one, out)
    before = tree(out)
    with pytest.raises(FileExistsError, match="resume or overwrite"):
        reshard(tmp_path / "in", one, out)
    with pytest.raises(ValueError, match=r"a run with other subset_sha256$"):
        reshard(tmp_path / "in", other, out, resume=True)
    with pytest.raises(ValueError, match=r"a run with other shard_size$"):
        reshard(tmp_path / "in", one, out, resume=True, shard_size=3)
    assert tree(out) == before
    (out / "mine.txt").write_text("x")
    result = reshard(tmp_path / "in", other, out, overwrite=True)
    assert result.n_written == 1 and (out / "mine.txt").read_text() == "x"
    with pytest.raises(ValueError, match="out_dir must not hold the inputs"):
        reshard(out, other, out, overwrite=True)
    with pytest.raises(FileExistsError, match="out_dir is a file"):
        reshard(tmp_path / "in", one, out / "mine.txt")


def test_arguments_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.tar file in"):
        reshard(tmp_path, subset_of({0: 1}), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no tar .*nowhere"):
        reshard([tmp_path / "nowhere"], subset_of({0: 1}), tmp_path / "out")
    pool(tmp_path / "in")
    uids = subset_of({0: 1, 1: 1})
    for subset, message in ((uids[::-1], "not sorted"), (uids["f0"], "'u8,u8', got uint64")):
        with pytest.raises(ValueError, match=message):
            reshard(tmp_path / "in", subset, tmp_path / "out")
    with pytest.raises(ValueError, match="shard_size must be positive"):
        reshard(tmp_path / "in", uids, tmp_path / "out", shard_size=0)
    with pytest.raises(ValueError, match="exclude each other"):
        reshard(tmp_path / "in", uids, tmp_path / "out", resume=True, overwrite=True)
    assert not (tmp_path / "out").exists()
    empty = reshard(tmp_path / "in", uids[:0], tmp_path / "out")
    assert empty.n_written == 0 and empty.shards == [] and empty.missing.size == 0


def test_bad_samples_are_skipped_and_counted(tmp_path):
    samples = [
        sample(0), sample(1, json=b"{'"), sample(2, json=b"[]"), sample(3, json={"uid": 3}),
        sample(4, json={"uid": "x" * 32}), sample(5, json=b"\xff\xfe"), sample(6, json=b"["*99999),
        ("00007", {"jpg": b"x", "txt": "no json"}), sample(8, json={"uid": uid_of(8).upper()}),
    ]  # fmt: skip
    write_shard(tmp_path / "in" / "0.tar", samples)
    with tarfile.open(tmp_path / "in" / "1.tar", "w") as tar:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("a.jpg", tarfile.SYMTYPE),
            ("noext", b"0"),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    subset = subset_of(dict.fromkeys(range(9), 1))
    result = reshard(tmp_path / "in", subset, tmp_path / "out")
    assert [k for k, _ in read_shard(tmp_path / "out" / "00000000.tar")] == [
        f"{uid_of(i)}-0" for i in (0, 8)
    ]
    assert len(result.missing) == 7
    expected = {"bad_json": 3, "without_uid": 3, "without_json": 1, "other_members": 3}
    assert result.skipped == NONE | expected


def test_a_tar_cut_anywhere_gives_whole_samples_only(tmp_path):
    path = tmp_path / "in" / "0.tar"
    write_shard(path, (sample(i) for i in range(4)))
    data = path.read_bytes()
    n_bytes = len(data.rstrip(b"\0")) + 1
    keys = [key for key, _ in map(sample, range(4))]
    whole = dict(read_shard(path))
    for cut in {0, 1, 511, 512, 513, *range(0, n_bytes + 1, 256), n_bytes}:
        path.write_bytes(data[:cut])
        index = index_tar(path)
        found = dict(read_shard(path))
        assert (index.error is not None and len(found) < 4) or cut >= n_bytes - 512
        # One sample alone may lack a member that nothing tells of.
        assert list(found) == keys[: len(found)] and all(found[k] == whole[k] for k in found)
        assert index.n_cut == 0 or len(found) < 4
    path.write_bytes(data[: n_bytes // 2])
    result = reshard(tmp_path / "in", subset_of(dict.fromkeys(range(4), 1)), tmp_path / "out")
    assert result.skipped["broken_tars"] == 1 and len(result.missing) + result.n_samples == 4


@pytest.mark.parametrize("junk", [b"", b"no tar" * 200, b"\x1f\x8b" + bytes(range(256)) * 8])
def test_a_file_that_is_no_tar_is_counted(tmp_path, junk):
    pool(tmp_path / "in", sizes=(3,))
    (tmp_path / "in" / "1.tar").write_bytes(junk)
    result = reshard(tmp_path / "in", subset_of(dict.fromkeys(range(3), 1)), tmp_path / "out")
    assert result.n_samples == 3 and result.skipped == NONE | {"broken_tars": 1}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_are_read_and_new_ones_written(tmp_path, form):
    folder = (
        "d" * 90 + "/" + ("e" * 30 if form == tarfile.USTAR_FORMAT else "é" * 90 + ".x/") + "/f"
    )
    path = tmp_path / "in" / "0.tar"
    path.parent.mkdir()
    headers = {"comment": "x" * 600} if form == tarfile.PAX_FORMAT else {}
    with tarfile.open(path, "w", format=form, pax_headers=headers) as tar:
        for i in range(3):
            for extension, value in {
                "JPG": b"x" * i,
                "json": json.dumps({"uid": uid_of(i)}).encode(),
            }.items():
                info = tarfile.TarInfo(f"{folder}{i}.{extension}")
                info.size, info.mtime = len(value), 1.5
                tar.addfile(info, io.BytesIO(value))
    keys = [f"{folder}{i}" for i in range(3)]
    assert [key for key, _ in read_shard(path)] == keys
    result = reshard(path, subset_of(dict.fromkeys(range(3), 2)), tmp_path / "out")
    assert result.n_written == 6 and result.skipped == NONE
    written = members_of(tmp_path / "out" / "00000000.tar")
    assert [name for name, _ in written][:4] == [
        f"{uid_of(0)}-{j}.{e}" for j in range(2) for e in ("jpg", "json")
    ]


def test_a_long_extension_is_written_as_a_long_name(tmp_path):
    extension = "x" * 90
    write_shard(tmp_path / "in" / "0.tar", [sample(0, **{extension: b"abc"})])
    reshard(tmp_path / "in", subset_of({0: 1}), tmp_path / "out")
    assert (f"{uid_of(0)}-0.{extension}", b"abc") in members_of(tmp_path / "out" / "00000000.tar")
    ((_, found),) = read_shard(tmp_path / "out" / "00000000.tar")
    assert found[extension] == b"abc"


def test_damaged_bytes_never_lead_outside_the_file(tmp_path):
    path = tmp_path / "0.tar"
    write_shard(path, (sample(i) for i in range(6)))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    headers = [m.header for s in index_tar(path).samples for m in s.members.values()]
    n_errors = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.choice(headers, 2) + rng.integers(0, 512, 2):
            data[at] = rng.integers(256)
        index = index_tar(memoryview(bytes(data)))
        n_errors += index.error is not None
        for member in (m for s in index.samples for m in s.members.values()):
            assert 0 <= member.header < member.offset <= member.offset + member.size <= len(data)
    assert n_errors > 200


def test_numbers_of_other_writers_are_read(tmp_path):
    path = tmp_path / "0.tar"
    write_shard(path, [sample(0)])
    (expected,) = read_shard(path)
    whole = path.read_bytes()

    def rewritten(field):
        head = bytearray(whole[:512])
        head[124:136] = field
        head[148:156] = b" " * 8
        signed = sum(b - 256 * (b > 127) for b in head)
        head[148:156] = b"%06o\0 " % signed
        return memoryview(bytes(head) + whole[512:])

    size = len(expected[1]["jpg"])
    for field in (b"\x80" + size.to_bytes(11), b" %10o " % size):
        assert index_tar(rewritten(field)) == index_tar(path)
    for field in (b"-0000000001\0", b"9" * 12, b"%011o\0" % 10**6):
        assert index_tar(rewritten(field)).error and not index_tar(rewritten(field)).samples


def test_offsets_point_at_the_bytes(tmp_path):
    path = tmp_path / "0.tar"
    write_shard(path, (sample(i) for i in range(3)))
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = {m.name: (m.offset, m.offset_data, m.size) for m in tar}
    found = {
        f"{s.key}.{extension}": tuple(member)
        for s in index_tar(path).samples
        for extension, member in s.members.items()
    }
    assert found == offsets and index_tar(memoryview(data)) == index_tar(path)


def test_a_large_pool_is_the_intersection_of_multisets(tmp_path):
    n = pool(tmp_path / "in", sizes=(400, 30, 700))
    rng = np.random.default_rng(1)
    weights = {i: int(rng.integers(0, 3)) for i in range(n + 200)}
    subset = subset_of(weights)
    result = reshard(tmp_path / "in", subset, tmp_path / "out", shard_size=97)
    names = [k for s in result.shards for k, _ in read_shard(tmp_path / "out" / s)]
    written = sort_uids(parse_uids([name[:32] for name in names]))
    there = parse_uids([uid_of(i) for i in range(n)])
    expected = subset[find_uids(sort_uids(there), subset)[1] > 0]
    np.testing.assert_array_equal(written, expected)
