"""The pool: metadata filters against row-at-a-time loops, resharding against webdataset.

The loops restate what DataComp's published functions do to a file of metadata: pandas reads it,
numbers are compared in whole columns, strings and uids one row after the other. Language is a
column for both sides.
"""

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxml.curation import (
    basic_mask,
    clip_score_mask,
    entity_mask,
    find_uids,
    format_uids,
    parse_uids,
    read_metadata,
    reshard,
    sort_uids,
    synset_lexicon,
    write_metadata,
    write_shard,
)

TITLE = "the pool"
PACKAGES = (
    "numpy",
    "pandas",
    "pyarrow",
    *(("webdataset",) if importlib.util.find_spec("webdataset") else ()),
)
NOTES = """\
CPU time of the process (`time.process_time`), pyarrow on one thread; both sides of a row take
  turns in one process on the same files and must give the same uids; the first turn is not counted;
  "median (smallest to largest)"
- the loops read only the uids that they keep: the smaller the share, the smaller the ratio"""

ROWS, REPEATS = 250_000, 5
LOOKUPS, ENTITY_ROWS, ENTITIES = 10_000, 500, 21_841
SAMPLES, SAMPLE_BYTES, PER_TAR = 4_000, 20_000, 1_000
SCORE = "clip_l14_similarity_score"
THRESHOLD = 0.2515  # keeps 30 % of the scores drawn below, the share that the paper settles on
CAPTION = ["text", "language", "original_width", "original_height"]
WORDS = tuple(
    "a photo of the dog cat house mountain river old new red blue car with and in on café niño "  # noqa: SIM905
    "写真 product 12 pack vintage style wallpaper free download".split()
)


def timed(fn: Callable, *args) -> tuple[float, Any]:
    """Returns the CPU time of a call and its result."""
    start = time.process_time()
    result = fn(*args)
    return time.process_time() - start, result


def spread(values) -> str:
    """Writes the median and, in brackets, the range."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def random_uids(rng, n: int) -> np.ndarray:
    """Draws uids."""
    return rng.integers(0, 2**64, (n, 2), dtype=np.uint64).view("u8,u8")[:, 0]


def write_pool(path: Path) -> None:
    """Writes one file of metadata: about 45 bytes a caption, one in ten not in English."""
    rng = np.random.default_rng(0)
    words = rng.integers(len(WORDS), size=(ROWS, 16))
    lengths = rng.integers(1, 16, ROWS)
    sides = rng.integers(50, 1500, (ROWS, 2))
    columns = {
        "uid": random_uids(rng, ROWS),
        "text": [" ".join([WORDS[i] for i in w[:n]]) for w, n in zip(words, lengths, strict=True)],
        "language": np.where(rng.random(ROWS) < 0.9, "en", "es"),
        "original_width": sides[:, 0],
        "original_height": sides[:, 1],
        SCORE: rng.normal(0.22, 0.06, ROWS).astype(np.float32),
    }
    write_metadata(path, columns)


# The loops.


def rowwise_uids(strings) -> np.ndarray:
    """Reads uids one by one."""
    return np.array([(int(s[:16], 16), int(s[16:32], 16)) for s in strings], "u8,u8")


def rowwise_load(path: Path) -> np.ndarray:
    """All uids of a file."""
    import pandas

    return rowwise_uids(pandas.read_parquet(path, columns=["uid"])["uid"].values)


def rowwise_threshold(path: Path) -> np.ndarray:
    """The uids from a score on."""
    import pandas

    frame = pandas.read_parquet(path, columns=["uid", SCORE])
    return rowwise_uids(frame[frame[SCORE] >= THRESHOLD]["uid"].values)


def rowwise_basic(path: Path) -> np.ndarray:
    """The uids of the basic filter."""
    import pandas

    frame = pandas.read_parquet(path, columns=["uid", *CAPTION])
    english = frame["language"].apply(lambda label: label == "en")
    words = frame["text"].apply(lambda text: len(text.split()))
    characters = frame["text"].apply(len)
    whole = frame["uid"].apply(lambda uid: int(uid, 16))
    high, low = (part.astype("uint64") for part in (whole // 2**64, whole % 2**64))
    uids = np.array(list(zip(high, low, strict=True)), "u8,u8")
    short = np.minimum(frame["original_width"], frame["original_height"])
    long = np.maximum(frame["original_width"], frame["original_height"])
    return uids[english & (words > 2) & (characters > 5) & (short >= 200) & (long / short <= 3.0)]


def rowwise_find(subset: np.ndarray, uids: np.ndarray) -> np.ndarray:
    """Multiplicities, two searches a uid."""
    found = [
        np.searchsorted(subset, uid, "right") - np.searchsorted(subset, uid, "left") for uid in uids
    ]
    return np.array(found)


def rowwise_entities(texts, first_synset, ids) -> np.ndarray:
    """Captions with a word whose first synset is listed."""
    return np.array([any(first_synset(word) in ids for word in text.split()) for text in texts])


# The library.


def load(path: Path) -> np.ndarray:
    """All uids of a file."""
    return read_metadata(path, ["uid"])["uid"]


def threshold(path: Path) -> np.ndarray:
    """The uids from a score on."""
    batch = read_metadata(path, ["uid", SCORE], raw_uids=True)
    return parse_uids(batch["uid"].filter(clip_score_mask(batch[SCORE], THRESHOLD)))


def basic(path: Path) -> np.ndarray:
    """The uids of the basic filter."""
    batch = read_metadata(path, ["uid", *CAPTION], raw_uids=True)
    return parse_uids(batch["uid"].filter(basic_mask(batch, language="language")))


def compare(pairs: dict[str, tuple[Callable, Callable, int, int]]) -> list[dict]:
    """Runs both sides of each pair in turns; their results must be equal.

    Args:
      pairs: by name, the loop, the library's call, and how many rows each of them sees.

    Returns:
      A row for each, with the list of ratios under "ratios".
    """
    rows = []
    for name, (slow, fast, n_slow, n_fast) in pairs.items():
        seconds: dict[str, list[float]] = {"slow": [], "fast": []}
        for repeat in range(REPEATS + 1):
            for who, fn in (("slow", slow), ("fast", fast)):
                elapsed, result = timed(fn)
                if repeat:  # the first one imports
                    seconds[who].append(elapsed)
                if who == "slow":
                    wanted = result
            if not np.array_equal(result[: len(wanted)], wanted):
                raise AssertionError(f"{name}: the results differ")
        slow_rate = n_slow / np.array(seconds["slow"]) / 1e6
        fast_rate = n_fast / np.array(seconds["fast"]) / 1e6
        rows.append({
            "step": name,
            "row at a time, million/s": spread(slow_rate),
            "jaxml, million/s": spread(fast_rate),
            "ratio": spread(fast_rate / slow_rate),
            "ratios": fast_rate / slow_rate,
        })  # fmt: skip
    return rows


def metadata_rows(folder: Path) -> list[dict]:
    """Measures the metadata path."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    path = folder / "pool.parquet"
    write_pool(path)
    uids = load(path)
    subset = sort_uids(np.repeat(uids[::3], 2))
    asked = uids[:LOOKUPS]
    texts = read_metadata(path, ["text"])["text"]
    some = texts.slice(0, ENTITY_ROWS).to_pylist()
    synsets = {word: 10_000_000 + i for i, word in enumerate(WORDS[4:])}
    listed = [*range(ENTITIES - 2), *list(synsets.values())[:2]]
    ids = frozenset(listed)

    def lookup(given):
        return entity_mask(given, synset_lexicon(synsets.get, ids))

    return compare({
        "load uids": (lambda: rowwise_load(path), lambda: load(path), ROWS, ROWS),
        "clip_score by threshold, 30 % kept":
            (lambda: rowwise_threshold(path), lambda: threshold(path), ROWS, ROWS),
        "basic_filter, language given":
            (lambda: rowwise_basic(path), lambda: basic(path), ROWS, ROWS),
        "sort uids": (lambda: np.sort(uids), lambda: sort_uids(uids), ROWS, ROWS),
        "look up uids in a subset": (
            lambda: rowwise_find(subset, asked[:1000]), lambda: find_uids(subset, asked)[1],
            1000, LOOKUPS,
        ),
        "entities, ids in a list as published": (
            lambda: rowwise_entities(some, synsets.get, listed), lambda: lookup(texts),
            ENTITY_ROWS, ROWS,
        ),
        "entities, ids in a set": (
            lambda: rowwise_entities(some * 40, synsets.get, ids), lambda: lookup(some * 40),
            ENTITY_ROWS * 40, ENTITY_ROWS * 40,
        ),
    })  # fmt: skip


def copy_by_webdataset(inputs: list[Path], subset: np.ndarray, out: Path) -> int:
    """Writes the samples of a subset as the published resharder does; returns how many."""
    import webdataset

    written = 0
    with webdataset.TarWriter(str(out)) as writer:
        for sample in webdataset.WebDataset([str(p) for p in inputs], shardshuffle=False):
            uid = rowwise_uids([json.loads(sample["json"])["uid"]])[0]
            first = np.searchsorted(subset, uid, "left")
            for j in range(np.searchsorted(subset, uid, "right") - first):
                key = f"{int(uid[0]):016x}{int(uid[1]):016x}-{j}"
                writer.write({**{k: v for k, v in sample.items() if k[0] != "_"}, "__key__": key})
                written += 1
    return written


def reshard_rows(folder: Path) -> list[dict]:
    """Measures resharding one sample in three; the new tars must hold the same."""
    rng = np.random.default_rng(0)
    uids = random_uids(rng, SAMPLES)
    digits = format_uids(uids)
    tars = folder / "tars"
    for k in range(SAMPLES // PER_TAR):
        write_shard(tars / f"{k:08d}.tar", (
            (f"{i:09d}", {"jpg": rng.bytes(SAMPLE_BYTES), "txt": "a photo of a dog",
                          "json": {"uid": digits[i], "url": f"https://example.org/{i}.jpg"}})
            for i in range(k * PER_TAR, (k + 1) * PER_TAR)
        ))  # fmt: skip
    subset, inputs = sort_uids(uids[::3]), sorted(tars.glob("*.tar"))
    peer = importlib.util.find_spec("webdataset") is not None
    seconds: dict[str, list[float]] = {"jaxml": [], "webdataset": []}
    for repeat in range(REPEATS + 1):
        out = folder / f"new{repeat}"
        elapsed, result = timed(reshard, inputs, subset, out)
        if repeat:  # the first one imports
            seconds["jaxml"].append(elapsed)
        if peer:
            copy = folder / f"copy{repeat}.tar"
            elapsed, written = timed(copy_by_webdataset, inputs, subset, copy)
            if repeat:
                seconds["webdataset"].append(elapsed)
            if written != result.n_written or contents([copy]) != contents(
                out / shard for shard in result.shards
            ):
                raise AssertionError("webdataset has written something else")
            os.remove(copy)
    rows = []
    for name, values in seconds.items():
        if values:
            ratios = np.array(values) / seconds["jaxml"]
            rows.append({
                "reader and writer": name,
                "samples read/s": spread(SAMPLES / np.array(values)),
                "time, of jaxml's": spread(ratios),
                "ratios": ratios,
            })  # fmt: skip
    return rows


def contents(tars) -> dict:
    """Everything in some tars, by key."""
    from jaxml.curation import read_shard

    return {key: members for path in tars for key, members in read_shard(path)}


def bound_rows(metadata: list[dict], copies: list[dict]) -> list[dict]:
    """Holds the bounds that were asked for against what was measured."""
    bounds = dict(zip([row["step"] for row in metadata], (4, 4, 4, 5), strict=False))
    rows = [
        (f"{row['step']}: at least {bounds[row['step']]} times as fast", bounds[row["step"]], row)
        for row in metadata
        if row["step"] in bounds
    ]
    rows += [
        ("reshard: at least 5 times as fast as webdataset", 5, row)
        for row in copies
        if row["reader and writer"] == "webdataset"
    ]
    return [
        {
            "bound": text,
            "measured": spread(row["ratios"]),
            "holds": bool(np.median(row["ratios"]) >= bound),
        }
        for text, bound, row in rows
    ]


def run() -> dict[str, list[dict] | str]:
    """Measures everything; returns tables by caption."""
    with tempfile.TemporaryDirectory() as folder:
        metadata = metadata_rows(Path(folder))
        copies = reshard_rows(Path(folder))
    bounds = bound_rows(metadata, copies)
    for row in (*metadata, *copies):
        del row["ratios"]
    return {
        f"Metadata, {ROWS // 1000} thousand rows, reading the file included": metadata,
        f"Resharding {SAMPLES} samples of {SAMPLE_BYTES // 1000} kB, one in three kept": copies,
        "Bounds of the pool": bounds,
    }
