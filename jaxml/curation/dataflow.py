"""Filters over a pool of files, on threads here or on a Dask cluster.

A partition is one metadata file with the masks to apply to it, which are the same functions on one
machine and on many. The engine is Dask: it is pure Python, asks for no version of pyarrow, needs no
running service, and sums partial results in a tree. Ray Data brings binaries and a runtime of its
own; Beam pins pyarrow below the version that the tests run with.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from jaxml.curation.metadata import read_metadata
from jaxml.curation.select import Cut, Rule, check_fraction, digit_counts, find_cut
from jaxml.curation.uids import order_uids, parse_uids, sort_uids

Engine = Literal["local", "dask"]
Mask = Callable[[Mapping[str, Any]], np.ndarray]
Map = Callable[[Callable, Sequence], list]


class Partition(NamedTuple):
    """One file of a pool.

    Attributes:
      path: of the parquet file.
      rules: masks by name; a row must pass all of them. Their columns are those of ``scan``, but
        for ``uid``, a pyarrow array of digits.
      last: a rule ``(columns, where) -> mask`` that costs so much that it only sees the rows that
        pass the others, such as a language model; None for none.
    """

    path: Path
    rules: Mapping[str, Mask]
    last: tuple[str, Callable[[Mapping[str, Any], np.ndarray], np.ndarray]] | None = None


class Selected(NamedTuple):
    """What passes the rules.

    Attributes:
      uids: ``UID_DTYPE [m]``, sorted.
      n_rows: of the pool.
      names: of the rules, ``r`` of them.
      overlap: int64 ``[r, r]``, rows that pass both; the diagonal counts what each rule keeps.
    """

    uids: np.ndarray
    n_rows: int
    names: tuple[str, ...]
    overlap: np.ndarray


def engine_map(engine: Engine = "local", *, n_workers: int | None = None) -> Map:
    """Returns a ``map`` over partitions that keeps their order.

    Args:
      engine: "local" uses threads, which numpy and pyarrow let run side by side. "dask" uses the
        ``distributed.Client`` that is open in this process, which may be that of a cluster whose
        workers see the same files; without one, processes of this machine, for which functions
        must be picklable.
      n_workers: threads or processes, all cores by default; a client has its own.

    Returns:
      ``map(function, items) -> list``.

    Raises:
      ValueError: an unknown engine, or ``n_workers < 1``.
      ImportError: "dask" where it is not installed.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be one of {', '.join(get_args(Engine))}; got {engine!r}")
    if n_workers is not None and n_workers < 1:
        raise ValueError(f"n_workers must be positive or None, got {n_workers}")
    if engine == "local":
        return functools.partial(_thread_map, n_workers)
    try:
        import dask.bag
    except ImportError as error:
        raise ImportError("the dask engine needs it: pip install 'dask[distributed]'") from error
    return functools.partial(_dask_map, dask.bag, n_workers)


def _thread_map(n_workers: int | None, function: Callable, items: Sequence) -> list:
    with ThreadPoolExecutor(n_workers) as pool:
        return list(pool.map(function, items))


def _dask_map(bag, n_workers: int | None, function: Callable, items: Sequence) -> list:
    partitions = bag.from_sequence(items, npartitions=len(items))
    return partitions.map(function).compute(num_workers=n_workers)


def filter_partitions(
    partitions: Sequence[Partition],
    *,
    columns: Sequence[str],
    embeddings: Sequence[str] = (),
    run: Map | None = None,
) -> Selected:
    """Applies the rules of each partition and gathers the uids that pass.

    Args:
      partitions: all with the same names of rules.
      columns: to read besides ``uid``.
      embeddings: to read, as for ``scan``.
      run: from ``engine_map``; threads by default.

    Returns:
      Selected; it does not depend on how rows are spread over files, or on the number of workers.

    Raises:
      ValueError: as ``scan`` and the rules, or partitions with other rules than the first.
    """
    names = [tuple(p.rules) + ((p.last[0],) if p.last else ()) for p in partitions]
    if len(set(names)) != 1:
        raise ValueError(f"partitions must have the same rules, got {sorted(set(names))}")
    columns = list(dict.fromkeys(["uid", *columns]))
    work = functools.partial(_filter_partition, columns=columns, embeddings=tuple(embeddings))
    uids, n_rows, overlaps = zip(*(run or engine_map())(work, partitions), strict=True)
    return Selected(sort_uids(np.concatenate(uids)), sum(n_rows), names[0], sum(overlaps))


def _filter_partition(partition: Partition, *, columns, embeddings):
    # Uids stay digits until it is known which of them are kept.
    batch = read_metadata(partition.path, columns, embeddings=embeddings, raw_uids=True)
    masks = [np.asarray(rule(batch), bool) for rule in partition.rules.values()]
    n_rows = len(batch["uid"])
    if partition.last is not None:
        where = np.logical_and.reduce(masks) if masks else np.ones(n_rows, bool)
        masks.append(np.asarray(partition.last[1](batch, where), bool))
    if not masks:
        return parse_uids(batch["uid"]), n_rows, np.zeros((0, 0), np.int64)
    kept = parse_uids(batch["uid"].filter(np.logical_and.reduce(masks)))
    overlap = [[np.count_nonzero(a & b) for b in masks] for a in masks]
    return kept, n_rows, np.array(overlap)


def score_cuts(
    paths: Sequence[Path],
    column: str,
    fraction: float,
    *,
    rule: Rule = "exact",
    run: Map | None = None,
) -> tuple[Cut, list[np.ndarray]]:
    """Finds the top share of a column over all files, without gathering the column.

    Files are read once for their sizes, once for each digit of the threshold, and once for the rows
    that tie with it, of which those with the smallest uids are kept.

    Args:
      paths: of parquet files.
      column: of scores.
      fraction: of all rows, as for ``top_fraction``.
      rule: likewise.
      run: from ``engine_map``.

    Returns:
      The cut, and for each file the positions of the tied rows to keep; for ``cut_mask``.

    Raises:
      ValueError: as ``top_fraction``, or columns of several types.
    """
    check_fraction(fraction, rule)
    run = run or engine_map()
    sizes, dtypes = zip(*run(functools.partial(_size, column=column), paths), strict=True)
    if len(set(dtypes)) != 1:
        raise ValueError(f"{column} must have one type in all files, got {sorted(set(dtypes))}")

    def count(prefix, n_digits):
        work = functools.partial(_digits, column=column, prefix=prefix, n_digits=n_digits)
        return sum(run(work, paths))

    cut = find_cut(count, sum(sizes), fraction, rule=rule, dtype=dtypes[0])
    if cut.n_ties is None:
        return cut, [np.zeros(0, np.int64)] * len(paths)
    ties = run(functools.partial(_ties, column=column, threshold=cut.threshold), paths)
    file = np.repeat(np.arange(len(paths)), [len(rows) for rows, _ in ties])
    rows = np.concatenate([rows for rows, _ in ties])
    keep = order_uids(np.concatenate([uids for _, uids in ties]))[: cut.n_ties]
    return cut, [rows[keep[file[keep] == i]] for i in range(len(paths))]


def cut_mask(columns: Mapping[str, Any], *, column: str, cut: Cut, ties: np.ndarray) -> np.ndarray:
    """Keeps the rows above a cut, and the given ones of those at it; bool ``[n]``."""
    if cut.n_ties is None:
        return columns[column] >= cut.threshold
    mask = columns[column] > cut.threshold
    mask[ties] = True
    return mask


def _scores(path, column) -> np.ndarray:
    return read_metadata(path, [column])[column]


def _size(path, *, column):
    scores = _scores(path, column)
    return scores.size, scores.dtype.str


def _digits(path, *, column, prefix, n_digits):
    return digit_counts(_scores(path, column), prefix, n_digits)


def _ties(path, *, column, threshold):
    batch = read_metadata(path, ["uid", column])
    rows = np.flatnonzero(batch[column] == threshold)
    return rows, batch["uid"][rows]


def first_copies(
    paths: Sequence[Path], column: str, *, run: Map | None = None
) -> Iterator[np.ndarray]:
    """Finds the rows to keep so that each content stays once, with its smallest uid.

    The hashes of the whole pool are in the memory of one machine meanwhile.

    Args:
      paths: of parquet files.
      column: of strings or numbers, equal where contents are.
      run: from ``engine_map``.

    Yields:
      Positions of the rows to keep, file by file.
    """
    from jaxml.curation.dedup import dedup_mask

    parts = (run or engine_map())(functools.partial(_hashes, column=column), paths)
    uids = np.concatenate([uids for _, uids in parts])
    mask = dedup_mask(np.concatenate([hashes for hashes, _ in parts]), uids=uids)
    for part in np.split(mask, np.cumsum([len(u) for _, u in parts])[:-1]):
        yield np.flatnonzero(part)


def _hashes(path, *, column):
    batch = read_metadata(path, ["uid", column])
    values = batch[column]
    return np.asarray(values.to_pylist() if hasattr(values, "to_pylist") else values), batch["uid"]


def rows_mask(columns: Mapping[str, Any], *, rows: np.ndarray) -> np.ndarray:
    """Keeps the given rows; bool ``[n]``."""
    mask = np.zeros(len(columns["uid"]), bool)
    mask[rows] = True
    return mask
