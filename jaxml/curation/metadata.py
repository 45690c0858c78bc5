"""Metadata of a pool: parquet files, one row a pair, with embeddings in npz files beside them.

Needs pyarrow, which the extra ``datacomp`` brings.
"""

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxml.curation.uids import UID_DTYPE, format_uids, parse_uids


def list_metadata(source: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """Lists parquet files in the order of their names.

    Args:
      source: a folder, a file, or a list of files, which keeps its order.

    Raises:
      FileNotFoundError: a folder without any, or a file that is not there.
    """
    if isinstance(source, str | os.PathLike):
        folder = Path(source)
        paths = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    else:
        paths = [Path(p) for p in source]
    if not paths:
        raise FileNotFoundError(f"there is no .parquet file in {source}")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no metadata file {path}")
    return paths


def scan(
    source: str | os.PathLike | Iterable[str | os.PathLike],
    columns: Sequence[str] | None = None,
    *,
    embeddings: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Reads metadata, one file at a time.

    Args:
      source: as for ``list_metadata``.
      columns: names of those to read, all of them by default.
      embeddings: arrays to read from the ``.npz`` of the same name, such as ``"l14_img"``.

    Yields:
      A dict of columns of one length. ``uid`` is ``UID_DTYPE``; numbers are numpy arrays, NaN where
      null; strings are pyarrow arrays, which the text filters read in place; anything else is a
      numpy array of objects. Embeddings are ``[n, d]``.

    Raises:
      ImportError: the package ``pyarrow`` is missing.
      FileNotFoundError: no metadata, or no embeddings beside it.
      ValueError: a missing column or array, a file that is no parquet, a uid that is none, or
        embeddings of another length; names the file.
    """
    for path in list_metadata(source):
        yield read_metadata(path, columns, embeddings=embeddings)


def read_metadata(
    path: str | os.PathLike,
    columns: Sequence[str] | None = None,
    *,
    embeddings: Sequence[str] = (),
    raw_uids: bool = False,
) -> dict[str, Any]:
    """Reads one file as ``scan`` does; ``raw_uids`` leaves them as pyarrow strings, unread."""
    pa, pq = _pyarrow()
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            there = file.schema_arrow.names
            for name in columns or ():
                if name not in there:
                    raise ValueError(f"{path} has no column {name!r}: {', '.join(there)}")
            table = file.read(columns=None if columns is None else list(columns))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no parquet file: {error}") from error
    batch = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            batch[name] = _column(column) if name != "uid" or raw_uids else parse_uids(column)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    n_rows = table.num_rows
    if embeddings:
        batch |= _read_embeddings(Path(path).with_suffix(".npz"), embeddings, n_rows)
    return batch


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("metadata files need the package pyarrow: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet


def _column(column) -> Any:
    import pyarrow as pa

    column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column
    return column.to_numpy(zero_copy_only=False)


def _read_embeddings(path: Path, names: Sequence[str], n_rows: int) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is no npz file")
        file.seek(0)
        there = np.load(file, allow_pickle=False)
        for name in names:
            if name not in there:
                raise ValueError(f"{path} has no array {name!r}: {', '.join(there)}")
        try:
            arrays = {name: there[name] for name in names}
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    for name, array in arrays.items():
        if array.ndim != 2 or len(array) != n_rows:
            raise ValueError(
                f"{path}: {name} must have a row for each of {n_rows}, got {array.shape}"
            )
    return arrays


def write_metadata(
    path: str | os.PathLike,
    columns: Mapping[str, Any],
    *,
    embeddings: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes one parquet file, and the npz beside it, for ``scan`` to read.

    Args:
      path: ends in ``.parquet``; missing folders are made.
      columns: of one length; uids as ``UID_DTYPE`` or as digits.
      embeddings: arrays ``[n, d]`` for the npz; None writes none.

    Raises:
      ValueError: lengths that differ.
    """
    pa, pq = _pyarrow()
    sizes = {name: len(values) for name, values in {**columns, **(embeddings or {})}.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"columns must have one length, got {sizes}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {
        name: format_uids(values) if getattr(values, "dtype", None) == UID_DTYPE else values
        for name, values in columns.items()
    }
    if embeddings is not None:
        np.savez(path.with_suffix(".npz"), **embeddings)
    pq.write_table(pa.table({name: _arrow(values) for name, values in plain.items()}), path)


def _arrow(values):
    import pyarrow as pa

    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    return pa.array(values.tolist() if getattr(values, "dtype", None) == np.object_ else values)
