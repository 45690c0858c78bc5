"""Metadata files: what is written is read, and what is broken is named."""

import numpy as np
import pytest

from jaxml.curation import UID_DTYPE, basic_mask, list_metadata, scan, write_metadata
from tests.curation.pools import random_columns, take, write_pool

pytest.importorskip("pyarrow")


@pytest.mark.parametrize("n_files", [1, 3, 8])
def test_rows_come_back_in_order(tmp_path, n_files):
    columns = random_columns(100)
    embeddings = {"l14_img": np.random.default_rng(0).normal(size=(100, 4)).astype(np.float16)}
    write_pool(tmp_path, columns, n_files, embeddings=embeddings)
    batches = list(scan(tmp_path, embeddings=["l14_img"]))
    assert len(batches) == n_files
    for name, values in {**columns, **embeddings}.items():
        parts = [batch[name] for batch in batches]
        if isinstance(values, list):
            assert [s for part in parts for s in part.to_pylist()] == values
        else:
            assert all(part.dtype == values.dtype for part in parts) or "original" in name
            np.testing.assert_array_equal(np.concatenate(parts), values)
    assert batches[0]["uid"].dtype == UID_DTYPE
    kept = np.concatenate([basic_mask(batch, language="language") for batch in batches])
    np.testing.assert_array_equal(kept, basic_mask(columns, language="language"))
    few = next(iter(scan(list_metadata(tmp_path), ["uid"])))
    assert list(few) == ["uid"]


def test_other_types_are_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    boxes = [[[0.1, 0.2, 0.3, 0.4]], [], None]
    columns = {
        "uid": random_columns(3)["uid"],
        "face_bboxes": pa.array(boxes, pa.list_(pa.list_(pa.float32()))),
        "text": pa.array(["a", "b", "a"]).dictionary_encode(),
        "nothing": pa.nulls(3),
    }
    write_metadata(tmp_path / "a.parquet", columns)
    (batch,) = scan(tmp_path / "a.parquet")
    assert batch["face_bboxes"].dtype == object and len(batch["face_bboxes"][1]) == 0
    assert batch["text"].to_pylist() == ["a", "b", "a"]


def test_a_file_without_rows_is_read(tmp_path):
    write_pool(tmp_path, take(random_columns(5), []), 1)
    (batch,) = scan(tmp_path)
    assert {len(values) for values in batch.values()} == {0}
    assert basic_mask(batch, language="language").shape == (0,)


def test_what_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.parquet file in"):
        list_metadata(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no metadata file .*nowhere"):
        list_metadata(tmp_path / "nowhere.parquet")
    with pytest.raises(ValueError, match="columns must have one length"):
        write_metadata(tmp_path / "a.parquet", {"uid": ["0" * 32], "text": []})
    write_metadata(tmp_path / "a.parquet", {"uid": ["0" * 32, "1" * 32], "text": ["x", None]})
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'sha256': uid, text"):
        list(scan(tmp_path, ["sha256"]))
    with pytest.raises(FileNotFoundError):
        list(scan(tmp_path, embeddings=["l14_img"]))
    np.savez(tmp_path / "a.npz", l14_img=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"l14_img must have a row for each of 2, got \(3, 2\)"):
        list(scan(tmp_path, embeddings=["l14_img"]))
    with pytest.raises(ValueError, match="has no array 'b32_img': l14_img"):
        list(scan(tmp_path, embeddings=["b32_img"]))
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(ValueError, match="is no npz file"):
        list(scan(tmp_path, embeddings=["b32_img"]))
    np.savez(tmp_path / "a.npz", l14_img=np.zeros((2, 500)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[400:420] = b"\xff" * 20
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        list(scan(tmp_path, embeddings=["l14_img"]))
    np.save(tmp_path / "a.npz", np.zeros((2, 2)))
    (tmp_path / "a.npz.npy").replace(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz is no npz file"):
        list(scan(tmp_path, embeddings=["l14_img"]))
    write_metadata(tmp_path / "a.parquet", {"uid": ["0" * 32, "1" * 31]})
    with pytest.raises(ValueError, match=r"a\.parquet: uids must be 32 .* at 1"):
        list(scan(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="is no parquet file"):
        list(scan(tmp_path))
