"""Indexes of a training corpus against tokengrams and a symbol-wise search; generation.

    pip install tokengrams pydivsufsort          # optional: rows without them are left out
    python -m benchmarks.extraction              # prints the tables
    python -m benchmarks.extraction --write      # and puts them into benchmarks/RESULTS.md

All times are CPU seconds, in which XLA has one thread; tokengrams builds on as many as it likes.
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)

import functools
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._results import environment, main
from configs._language import language_model
from jaxml.data import text
from jaxml.language import (
    Documents,
    build_suffix_array,
    build_suffix_index,
    build_window_index,
    contains,
    count_occurrences,
    file_blocks,
    find_windows,
    from_offsets,
    generate,
    join_documents,
    match_stream,
)
from jaxml.report import to_markdown
from launch._language_model import make_model

COMMAND = "python -m benchmarks.extraction --write"
WINDOW = 50
SIZE = 5_000_000
N_QUERIES = 16_384
REPEATS = 5
BUILD_REPEATS = 2
LARGE = (10_000_000, 100_000_000)
STREAMED, STREAM_LIMIT = 600_000_000, 500_000_000
ROWS, N_TOKENS, GENERATION_REPEATS = 64, 122, 3

HASH = "jaxml window index (verified)"
SUFFIX = "jaxml suffix array, counts"
SYMBOLS = "symbol-wise search, jitted"
PEER = "tokengrams contains"

NOTES = """\
CPU time of the process (`time.process_time`), XLA on one thread, compilation excluded; all
  contestants of a table in one process, taking turns on the same windows"""


def timed(fn: Callable, *args, **kwargs) -> tuple[float, Any]:
    """Returns the CPU time of a call and its result."""
    start = time.process_time()
    result = fn(*args, **kwargs)
    return time.process_time() - start, result


def spread(values) -> str:
    """Writes the median and, in brackets, the range."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def source(n: int) -> np.ndarray:
    """Returns ``n`` bytes: the standard library, beyond its size lines of it drawn at random."""
    library = text.load("stdlib").text
    if n <= library.size:
        return library[:n]
    lines = library.tobytes().splitlines(keepends=True)
    rng = np.random.default_rng(0)
    picks = rng.integers(len(lines), size=int(1.05 * n / (library.size / len(lines))))
    return np.frombuffer(b"".join([lines[i] for i in picks]), np.uint8)[:n]


def as_documents(data: np.ndarray, *, size: int = 1_000_000) -> Documents:
    """Cuts bytes into documents, for shards to be cut between."""
    return from_offsets(data, np.append(np.arange(0, data.size, size), data.size))


def queries(data: np.ndarray, n: int) -> np.ndarray:
    """Draws windows, and changes one byte of every second one."""
    rng = np.random.default_rng(0)
    starts = rng.integers(data.size - WINDOW, size=n)
    windows = data[starts[:, None] + np.arange(WINDOW)].astype(np.int32)
    odd = np.arange(0, n, 2)
    at = rng.integers(WINDOW, size=odd.size)
    windows[odd, at] = (windows[odd, at] + rng.integers(1, 256, size=odd.size)) % 256
    return windows


@jax.jit
def symbolwise(order, tokens, windows):
    """Membership by binary search that compares whole windows at every step."""
    n, within = tokens.shape[0], jnp.arange(windows.shape[1])[None]

    def sign(middle):
        at = order[middle][:, None] + within
        difference = tokens.at[at].get(mode="fill", fill_value=-2).astype(jnp.int32) - windows
        first = jnp.argmax(difference != 0, axis=1)
        return jnp.take_along_axis(difference, first[:, None], axis=1)[:, 0]

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) >> 1
        below = (sign(jnp.minimum(middle, n - 1)) < 0) & (low < high)
        return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

    zero = jnp.zeros(windows.shape[0], jnp.int32)
    low, _ = jax.lax.fori_loop(0, n.bit_length(), halve, (zero, zero + n))
    return (low < n) & (sign(jnp.minimum(low, n - 1)) == 0)


def tokengrams_index() -> Callable | None:
    """The peer's class, if it is installed."""
    if importlib.util.find_spec("tokengrams") is None:
        return None
    from tokengrams import InMemoryIndex

    return InMemoryIndex


def build_all(data: np.ndarray) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Builds every index in turns; returns CPU seconds and the last of each."""
    documents = as_documents(data)
    tokens = documents.tokens
    builders = {
        "window index": lambda: build_window_index(documents, WINDOW),
        "numpy, bound 50": lambda: build_suffix_array(tokens, bound=WINDOW, builder="numpy"),
        "numpy, whole suffixes": lambda: build_suffix_array(tokens, builder="numpy"),
    }
    if importlib.util.find_spec("pydivsufsort") is not None:
        builders["divsufsort"] = lambda: build_suffix_array(tokens, builder="divsufsort")
    peer = tokengrams_index()
    if peer is not None:
        # The list is what it takes; making it is not counted. Its separator is a byte of no text.
        as_list = np.where(tokens < 0, 256, tokens).tolist()
        builders["tokengrams"] = lambda: peer(as_list)
    seconds, built = {name: [] for name in builders}, {}
    for repeat in range(BUILD_REPEATS):
        for name, build in builders.items():
            if name in ("tokengrams", "numpy, whole suffixes") and repeat:
                continue
            elapsed, built[name] = timed(build)
            seconds[name].append(elapsed)
    return seconds, built


def look_up_all(data: np.ndarray, built: dict[str, Any]) -> dict[str, list[float]]:
    """Asks every index the same questions in turns; returns CPU seconds; answers must agree."""
    windows = queries(data, N_QUERIES)
    tokens = jnp.asarray(as_documents(data).tokens)
    order = jnp.asarray(built["numpy, bound 50"])
    suffixes = build_suffix_index(as_documents(data), bound=WINDOW)
    runs = {
        HASH: lambda: contains(built["window index"], windows),
        SUFFIX: lambda: count_occurrences(suffixes, windows) > 0,
        SYMBOLS: lambda: np.concatenate(
            [np.asarray(symbolwise(order, tokens, part)) for part in np.split(windows, 4)]
        ),
    }
    if "tokengrams" in built:
        lists = windows.tolist()
        runs[PEER] = lambda: np.array([built["tokengrams"].contains(w) for w in lists])
    wanted = runs[HASH]()
    seconds = {name: [] for name in runs}
    for repeat in range(REPEATS + 1):
        for name, run in runs.items():
            elapsed, answer = timed(run)
            if not np.array_equal(answer, wanted):
                raise AssertionError(f"{name} gives other answers")
            if repeat:  # the first one compiles
                seconds[name].append(elapsed)
    return seconds


def generate_both() -> dict[str, list[float]]:
    """Generates with and without the cache of keys and values in turns; returns CPU seconds.

    The model is that of ``configs/_language.py`` without training; the draws must agree.
    """
    lm = language_model()
    model = make_model(lm, lm.vocab_size)
    prompts = np.tile(np.arange(6, dtype=np.int32), (ROWS, 1))
    variables = jax.jit(model.init)(jax.random.key(0), prompts[:1])
    keys = jax.random.split(jax.random.key(1), ROWS)
    seconds, drawn = {"cache of keys and values": [], "a whole pass a token": []}, []
    for repeat in range(GENERATION_REPEATS + 1):
        for name, which in zip(seconds, (model, model.apply), strict=True):
            elapsed, tokens = timed(
                generate, keys, which, variables, prompts, n_tokens=N_TOKENS, batch_size=ROWS
            )  # fmt: skip
            drawn.append(tokens)
            if repeat:  # the first one compiles
                seconds[name].append(elapsed)
    # A logit that is rounded otherwise may change a draw, and with it the rest of its row.
    if np.mean(drawn[0] == drawn[1]) < 0.95:
        raise AssertionError("the two ways draw other tokens")
    return seconds


def peak() -> int:
    """The most memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def large(n: int, kind: str) -> dict:
    """Builds an index of ``n`` bytes in shards and asks it; for a process of its own."""
    data = source(n)
    documents = as_documents(data)
    windows = queries(data, N_QUERIES)
    shards = max(1, n // 12_500_000)
    if kind == "window index":
        build = functools.partial(build_window_index, documents, WINDOW, n_shards=shards)
        ask = find_windows
    else:
        build = functools.partial(build_suffix_index, documents, bound=WINDOW, n_shards=shards)
        ask = count_occurrences
    before = peak()
    build_seconds, index = timed(build)
    ask(index, windows)  # compiles
    look_up = [timed(ask, index, windows)[0] for _ in range(3)]
    return {
        "index": kind,
        "MB": n // 10**6,
        "shards": shards,
        "build, CPU s": build_seconds,
        "build, MB/s": n / 1e6 / build_seconds,
        "thousand windows/s": N_QUERIES / float(np.median(look_up)) / 1e3,
        "peak resident memory, GB": peak() / 1e9,
        "of it before, GB": before / 1e9,
    }


def streamed(path: str) -> dict:
    """Matches generations against a file block by block; for a process of its own."""
    with open(path, "rb") as file:
        head = np.frombuffer(file.read(2_000_000), np.uint8)
    windows = queries(head, 4096)
    generations = join_documents(list(windows))
    match_stream(generations, WINDOW, [])  # compiles
    before = peak()
    elapsed, match = timed(match_stream, generations, WINDOW, file_blocks([path]))
    return {
        "corpus, MB": match.n_tokens // 10**6,
        "generated windows": len(windows),
        "that occur": int((match.count > 0).sum()),
        "CPU s": elapsed,
        "MB/s": match.n_tokens / 1e6 / elapsed,
        "peak resident memory, GB": peak() / 1e9,
        "of it before, GB": before / 1e9,
    }


def in_child(call: str) -> dict:
    """Evaluates one of the above in a new process, whose memory is its own."""
    program = f"import json; from benchmarks import extraction as e; print(json.dumps(e.{call}))"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def write_corpus(path: str, n: int) -> None:
    """Writes ``n`` bytes of lines of the standard library, each part in another order."""
    lines = np.array(text.load("stdlib").text.tobytes().splitlines(keepends=True), object)
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        while file.tell() < n:
            file.write(b"".join(lines[rng.permutation(len(lines))].tolist())[: n - file.tell()])


def bound_rows(build: dict, look_up: dict, stream: dict) -> list[dict]:
    """Holds the bounds that were asked for against what was measured."""
    rows = []
    for who, bound in ((PEER, 2), (SYMBOLS, 8)):
        if who in look_up:
            ratios = np.array(look_up[who]) / look_up[HASH]
            rows.append({
                "bound": f"membership at least {bound} times as fast as {who}",
                "measured": spread(ratios),
                "holds": bool(np.median(ratios) >= bound),
            })  # fmt: skip
    if "tokengrams" in build:
        fastest = min(build.keys() - {"tokengrams"}, key=lambda who: np.median(build[who]))
        ratio = np.median(build["tokengrams"]) / np.median(build[fastest])
        rows.append({
            "bound": f"the fastest build ({fastest}) at least 10 times as fast as tokengrams",
            "measured": f"{ratio:.3g}",
            "holds": bool(ratio >= 10),
        })  # fmt: skip
    rows.append({
        "bound": f"{stream['corpus, MB']} MB streamed within {STREAM_LIMIT // 10**6} MB",
        "measured": f"{stream['peak resident memory, GB'] * 1e3:.0f} MB",
        "holds": stream["peak resident memory, GB"] * 1e9 < STREAM_LIMIT,
    })  # fmt: skip
    return rows


def generation_rows(seconds: dict) -> list[dict]:
    """Lists tokens per second, and how much faster the cache is."""
    slow = np.array(list(seconds.values())[-1])
    return [
        {
            "way": name,
            "CPU s": spread(s),
            "tokens/s": float(ROWS * N_TOKENS / np.median(s)),
            "times the slow one": spread(slow / np.array(s)),
        }
        for name, s in seconds.items()
    ]


def report() -> str:
    """Measures everything and returns the section."""
    start = time.perf_counter()
    # First, since a child process starts from its parent's peak.
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "corpus")
        in_child(f"write_corpus({path!r}, {STREAMED})")
        stream = in_child(f"streamed({path!r})")
    sizes = [
        in_child(f"large({n}, {k!r})") for n in LARGE for k in ("window index", "suffix array")
    ]
    data = source(SIZE)
    build, built = build_all(data)
    look_up = look_up_all(data, built)
    generation = generate_both()
    minutes = (time.perf_counter() - start) / 60
    optional = [p for p in ("tokengrams", "pydivsufsort") if importlib.util.find_spec(p)]
    head = environment(COMMAND, packages=("jax", "numpy", *optional), notes=NOTES)
    builds = [
        {"index": name, "CPU s": spread(s), "MB/s": float(SIZE / 1e6 / np.median(s))}
        for name, s in build.items()
    ]
    look_ups = [
        {"lookup": name, "CPU ms": spread(1e3 * np.array(s)),
         "thousand windows/s": float(N_QUERIES / np.median(s) / 1e3)}
        for name, s in look_up.items()
    ]  # fmt: skip
    return f"""\
## Extraction: the index and generation

{head}- whole run: {minutes:.1f} minutes; figures are "median (smallest to largest)"

### Build, 5 MB

The first {SIZE // 10**6} MB of the source of the standard library, as bytes, in documents of 1 MB.
{BUILD_REPEATS} builds, one of the slowest two. tokengrams gets a ready list of integers.

{to_markdown(builds)}
### Lookup, 5 MB

{N_QUERIES} windows of {WINDOW} bytes, every second one with one byte changed; {REPEATS} repeats;
all answers are equal, or the run fails. The library's times include checks and the way to the
device. The symbol-wise search compares whole windows at every step, {N_QUERIES // 4} at a time.
The suffix array answers how often, and for every width, which costs it two searches.

{to_markdown(look_ups)}
### 10 and 100 MB

Each in a process of its own, built and asked in shards of at most 12.5 MB. Beyond the 11 MB or so
of the library the text is lines of it drawn at random. The suffix array is bounded to {WINDOW}
where numpy builds it, and built by divsufsort where that is installed. "Before" is Python, jax
and the text.

{to_markdown(sizes)}
### A corpus larger than memory

A file of lines of the library, streamed in blocks of 131072 bytes against windows of the library,
half of them with one byte changed, in a process of its own that is to take less memory than the
file.

{to_markdown([stream])}
### Generation

{ROWS} rows of {N_TOKENS} tokens after 6, by the model of the tiny config (0.54 M parameters), from
the 40 likeliest; {GENERATION_REPEATS} repeats; both ways draw the same tokens. Without a cache each
token takes a pass over the whole row.

{to_markdown(generation_rows(generation))}
### Bounds

The fastest build may be that of an extra (pydivsufsort); the table of builds has the others.

{to_markdown(bound_rows(build, look_up, stream))}"""


if __name__ == "__main__":
    main("extraction", __doc__, report)
