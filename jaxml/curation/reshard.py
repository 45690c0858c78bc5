"""Writes the pairs of a subset into new tars, by copying the blocks of the old ones.

Nothing is decoded and nothing but names and checksums is rewritten. Several processes share the
work by taking the inputs of their own into folders of their own.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxml.curation.tar_index import BLOCK, TarSample, index_tar, map_file, renamed_header
from jaxml.curation.uids import (
    check_uids,
    find_uids,
    format_uids,
    is_sorted,
    load_subset,
    parse_uids,
    save_subset,
)
from jaxml.io.artifacts import load_json, save_json

_UID = re.compile(r"[0-9a-fA-F]{32}")
_COPY = re.compile(r"([0-9a-f]{32})-\d+")
_OURS = re.compile(
    r"\d{8}\.tar(\.part)?|\d{8}_stats\.json|meta\.json|reshard\.json|(sample_ids|missing)\.npy"
)
SKIPPED = (
    "broken_tars",
    "cut_samples",
    "without_json",
    "bad_json",
    "without_uid",
    "repeated",
    "other_members",
)
"""Why members and samples of the inputs were left out."""


class Resharded(NamedTuple):
    """What ``reshard`` has written.

    Attributes:
      n_written: samples in the new tars, copies included.
      n_samples: distinct uids among them.
      missing: ``UID_DTYPE [m]``, uids of the subset that no input holds.
      skipped: how many of each of ``SKIPPED`` there were. "repeated" are samples whose uid an
        earlier one had: weights come from the subset, not from the pool.
      shards: names of the new tars.
    """

    n_written: int
    n_samples: int
    missing: np.ndarray
    skipped: dict[str, int]
    shards: list[str]


def list_tars(source: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """Lists tars: those of a folder by name, gaps in their numbers or not, or a list as it is.

    Raises:
      FileNotFoundError: a folder without any, or a file that is not there.
    """
    if isinstance(source, str | os.PathLike):
        folder = Path(source)
        paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder]
    else:
        paths = [Path(p) for p in source]
    if not paths:
        raise FileNotFoundError(f"there is no .tar file in {source}")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no tar {path}")
    return paths


def reshard(
    inputs: str | os.PathLike | Iterable[str | os.PathLike],
    subset: np.ndarray | str | os.PathLike,
    out_dir: str | os.PathLike,
    *,
    shard_size: int = 10_000,
    resume: bool = False,
    overwrite: bool = False,
    callback: Callable[[int, int], None] | None = None,
) -> Resharded:
    """Copies the samples whose uid is in a subset, each as often as it stands there.

    The ``j``-th copy of a uid is called ``<uid>-<j>``. ``out_dir`` gets ``00000000.tar`` and so on,
    each with ``00000000_stats.json``; ``meta.json`` about the job, the subset as
    ``sample_ids.npy``, and at the end ``missing.npy`` and ``reshard.json``. A tar appears when it
    is whole, so a killed run goes on after the last one with ``resume`` and ends with the same
    bytes as a run that nobody killed.

    Args:
      inputs: webdataset tars, as for ``list_tars``; each sample has a json member with its
        ``uid``. Damaged tars and samples are skipped and counted.
      subset: sorted uids or the path of a subset file.
      out_dir: new, empty, or the folder of a run of this function.
      shard_size: samples a new tar, the last one fewer.
      resume: go on with the run in ``out_dir``, or start one.
      overwrite: remove the run in ``out_dir`` first.
      callback: called with the number of inputs done and of samples written, after each input.

    Returns:
      Resharded.

    Raises:
      FileNotFoundError: no input.
      FileExistsError: ``out_dir`` holds a run and neither flag is given, or holds something else.
      ValueError: a subset of another dtype or not sorted, ``shard_size < 1``, both flags, inputs
        inside ``out_dir``, or ``resume`` of a run with other inputs, subset or shard size or with
        a tar that has changed.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be positive, got {shard_size}")
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    inputs, folder = list_tars(inputs), Path(out_dir)
    subset = subset if isinstance(subset, np.ndarray) else load_subset(subset, mmap=True)
    if not is_sorted(check_uids(subset, name="subset")):
        raise ValueError("subset is not sorted: sort_uids sorts")
    if any(path.resolve().parent == folder.resolve() for path in inputs):
        raise ValueError(f"out_dir must not hold the inputs, got {folder}")
    meta = {
        "inputs": [[path.name, path.stat().st_size] for path in inputs],
        "subset_sha256": hashlib.sha256(np.ascontiguousarray(subset)).hexdigest(),
        "shard_size": shard_size,
    }
    _open_folder(folder, meta, resume=resume, overwrite=overwrite)
    if not (folder / "sample_ids.npy").exists():
        save_subset(folder / "sample_ids.npy", subset)
    seen, state = _done(folder, subset)
    skipped = Counter(state["skipped"])
    with _Writer(folder, shard_size, state["shards"], state["written"]) as writer:
        for i in range(state["input"], len(inputs)):
            before = dict(skipped)
            with map_file(inputs[i]) as data:
                plan, why = _plan(data, subset, seen)
                skipped.update(why)
                # Those that finished tars already hold.
                done = state["done"] if i == state["input"] else 0
                for n, (name, sample) in enumerate(plan, 1):
                    if n > done:
                        writer.add(data, name, sample)
                        writer.close_if_full({"input": i, "done": n, "skipped": before})
            if callback is not None:
                callback(i + 1, writer.n_total)
        writer.close({"input": len(inputs), "done": 0, "skipped": dict(skipped)})
    first = np.append(True, subset[1:] != subset[:-1])[: len(subset)]
    result = Resharded(
        n_written=writer.n_total,
        n_samples=int(seen.sum()),
        missing=np.asarray(subset[first & ~seen]),
        skipped={name: skipped[name] for name in SKIPPED},
        shards=[_tar_name(k) for k in range(writer.n_shards)],
    )
    save_subset(folder / "missing.npy", result.missing)
    summary = {**result._asdict(), "missing": len(result.missing)}
    save_json(folder / "reshard.json", summary)
    return result


def _open_folder(folder: Path, meta: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Makes the folder, or checks that the run in it may be used or removed."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out_dir is a file: {folder}")
    there = list(folder.iterdir()) if folder.is_dir() else []
    if there and not (folder / "meta.json").is_file():
        raise FileExistsError(f"out_dir holds something else than a run, and is left: {folder}")
    if there and not (resume or overwrite):
        raise FileExistsError(f"out_dir holds a run; resume or overwrite it, or leave it: {folder}")
    if there and resume:
        old = load_json(folder / "meta.json")
        changed = [name for name in meta if old.get(name) != meta[name]]
        if changed:
            raise ValueError(f"resume: {folder} is a run with other {', '.join(changed)}")
        return
    # Last of all goes meta.json, by which the folder is known.
    for path in sorted(there, key=lambda path: path.name == "meta.json"):
        if _OURS.fullmatch(path.name):
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / "meta.json", meta)


def _done(folder: Path, subset: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Reads off the finished tars where to go on.

    Returns:
      bool ``[s]``, which uids of the subset were written from the inputs before that place (marked
      at their first entry), and the place.
    """
    seen = np.zeros(len(subset), bool)
    state: dict[str, Any] = {"input": 0, "done": 0, "skipped": {}, "shards": 0, "written": 0}
    names: list[str] = []
    while (stats := folder / _stats_name(state["shards"])).is_file():
        tar, known = folder / _tar_name(state["shards"]), load_json(stats)
        copies = [_COPY.fullmatch(sample.key) for sample in index_tar(tar).samples]
        if not all(copies) or len(copies) != known["successes"]:
            raise ValueError(f"resume: {tar} is not as it was written; remove it and its stats")
        names += [copy[1] for copy in copies]
        state |= known["state"]
        state["shards"] += 1
    state["written"] = len(names)
    before = names[: len(names) - state["done"]]
    seen[find_uids(subset, parse_uids(before))[0]] = True
    return seen, state


def _plan(
    data: memoryview, subset: np.ndarray, seen: np.ndarray
) -> tuple[Iterator[tuple[str, TarSample]], Counter]:
    """Chooses what to copy from a tar and marks it as seen; returns names with samples."""
    index = index_tar(data)
    skipped = Counter(
        broken_tars=int(index.error is not None),
        cut_samples=index.n_cut,
        other_members=index.n_others,
    )
    samples, texts = [], []
    for sample in index.samples:
        uid, why = _uid_of(data, sample)
        if why is None:
            samples.append(sample)
            texts.append(uid)
        else:
            skipped[why] += 1
    uids = parse_uids(texts)
    first, count = find_uids(subset, uids)
    hits = np.flatnonzero(count)
    _, once = np.unique(first[hits], return_index=True)
    new = np.sort(once)
    new = hits[new[~seen[first[hits[new]]]]]
    skipped["repeated"] += len(hits) - len(new)
    seen[first[new]] = True
    names = format_uids(uids[new])

    def copies():
        for name, i in zip(names, new, strict=True):
            for j in range(count[i]):
                yield f"{name}-{j}", samples[i]

    return copies(), skipped


def _uid_of(data: memoryview, sample: TarSample) -> tuple[str, str | None]:
    """Returns the uid of a sample, or why it has none."""
    member = sample.members.get("json")
    if member is None:
        return "", "without_json"
    try:
        fields = json.loads(bytes(data[member.offset : member.offset + member.size]))
    except (ValueError, RecursionError):
        return "", "bad_json"
    uid = fields.get("uid") if isinstance(fields, dict) else None
    if not isinstance(uid, str) or not _UID.fullmatch(uid):
        return "", "without_uid"
    return uid, None


class _Writer:
    """Writes tars of a given number of samples; a tar gets its name when it is whole."""

    def __init__(self, folder: Path, shard_size: int, n_shards: int, n_total: int):
        self._folder, self._shard_size = folder, shard_size
        self.n_shards, self.n_total = n_shards, n_total
        self._file, self._n = None, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file is not None:  # an error: the part stays a part
            self._file.close()

    def add(self, data: memoryview, name: str, sample: TarSample) -> None:
        if self._file is None:
            path = self._folder / f"{_tar_name(self.n_shards)}.part"
            self._file = path.open("wb", buffering=1 << 20)
        for extension, member in sample.members.items():
            self._file.write(renamed_header(data, member, f"{name}.{extension}"))
            self._file.write(data[member.offset : member.offset + member.size])
            self._file.write(bytes(-member.size % BLOCK))
        self._n += 1
        self.n_total += 1

    def close_if_full(self, state: dict[str, Any]) -> None:
        if self._n >= self._shard_size:
            self.close(state)

    def close(self, state: dict[str, Any]) -> None:
        """Finishes the tar, if there is one; ``state`` is where the next one goes on."""
        if self._file is None:
            return
        self._file.write(bytes(2 * BLOCK))
        self._file.close()
        os.replace(self._file.name, self._folder / _tar_name(self.n_shards))
        stats = {"successes": self._n, "state": state}
        save_json(self._folder / _stats_name(self.n_shards), stats)
        self._file, self._n = None, 0
        self.n_shards += 1


def _tar_name(shard: int) -> str:
    return f"{shard:08d}.tar"


def _stats_name(shard: int) -> str:
    return f"{shard:08d}_stats.json"
