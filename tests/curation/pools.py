"""A small pool with every oddity that metadata can have."""

import numpy as np

from jaxml.curation import UID_DTYPE

CAPTIONS = [
    "a photo of a dog", "a dog, running", "dog", "", " ", "a\u00a0b\u2003c", "un perro muy grande",
    "a\u0085b\u001cc d", "IMG_0123.jpg", "a b c", "one two\nthree", "x y", "🙂🙃 a b", None,
    "a cat and a dog", "\0a \0b \0c", "line\n\nbreaks\n",
]  # fmt: skip
LANGUAGES = ["en", "en", "en", "es", "de", None, ""]


def random_columns(n, *, seed=0):
    """Columns as lists and arrays: odd captions, sizes with nulls, scores with ties and NaN."""
    rng = np.random.default_rng(seed)
    uids = np.empty(n, UID_DTYPE)
    uids["f0"], uids["f1"] = rng.integers(0, 2**64, (2, n), dtype=np.uint64)
    uids[: n // 10] = uids[n // 10 : 2 * (n // 10)]  # some twice
    sides = np.array([0, 1, 199, 200, 201, 400, 600, 601, 603, 1000, np.nan])
    columns = {
        "uid": uids,
        "text": [CAPTIONS[i] for i in rng.integers(len(CAPTIONS), size=n)],
        "language": [LANGUAGES[i] for i in rng.integers(len(LANGUAGES), size=n)],
        "original_width": rng.choice(sides, n),
        "original_height": rng.choice(sides, n),
        "sha256": [f"{i:064x}" for i in rng.integers(0, n, size=n)],
    }
    for name in ("b32", "l14"):
        scores = np.round(rng.normal(0.25, 0.1, n), 2).astype(np.float32)
        scores[rng.random(n) < 0.05] = np.nan
        columns[f"clip_{name}_similarity_score"] = scores
    return columns


def take(columns, rows):
    return {
        name: [values[i] for i in rows] if isinstance(values, list) else values[rows]
        for name, values in columns.items()
    }


def write_pool(folder, columns, n_files, *, embeddings=None):
    """Writes the rows, in their order, to so many parquet files; integers with nulls for sizes."""
    import pyarrow as pa

    from jaxml.curation import write_metadata

    n = len(columns["uid"])
    for i, rows in enumerate(np.array_split(np.arange(n), n_files)):
        part = take(columns, rows)
        for side in ("original_width", "original_height"):
            values = [None if np.isnan(v) else int(v) for v in part[side]]
            part[side] = pa.array(values, pa.int64())
        for name in ("text", "language"):
            part[name] = pa.array(part[name], pa.string())
        own = {name: values[rows] for name, values in (embeddings or {}).items()}
        write_metadata(folder / f"{i:04d}.parquet", part, embeddings=own or None)
