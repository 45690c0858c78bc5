"""A hash index of all windows of one width, in which every answer is exact.

The hash has 64 bits, as two of 32. Windows of the corpus that share one without being equal are
found while building, and make it start again with another seed; so one stored position answers for
every window with that hash, and comparing the tokens there leaves no false answer of either kind.
"""

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.core.chunk import pad_to_power_of_two
from jaxml.language.documents import SEPARATOR, Documents, locate, split_documents
from jaxml.language.suffix_array import check_windows

_MULTIPLIERS = (
    (np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)),
    (np.uint32(0xC2B2AE3D), np.uint32(0x27D4EB2F)),
)
_CHUNK = 1 << 16
_MIN_QUERIES = 256
_MAX_SEEDS = 16


class Windows(NamedTuple):
    """The distinct windows of some documents, in the order of their hashes.

    Attributes:
      key: uint64 ``[u]``, rising.
      position: int32 ``[u]``, of the first occurrence among the tokens.
      count: int32 ``[u]``, of occurrences, overlapping ones included.
      entry: int32 ``[n]``, which of them starts at each token; -1 where none does.
      seed: uint32 of the hash.
    """

    key: np.ndarray
    position: np.ndarray
    count: np.ndarray
    entry: np.ndarray
    seed: np.uint32


class WindowShard(NamedTuple):
    """Some of the documents, on the device: the columns of ``Windows``, the key in two halves.

    ``bucket[i]`` is the first entry whose hash starts with at least the bits of ``i``.
    """

    bucket: jax.Array
    high: jax.Array
    low: jax.Array
    position: jax.Array
    count: jax.Array
    tokens: jax.Array
    seed: np.uint32
    documents: Documents


class WindowIndex(NamedTuple):
    """An index of a corpus.

    Attributes:
      shards: one or more; no document spans two.
      window: the width.
    """

    shards: tuple[WindowShard, ...]
    window: int


class Found(NamedTuple):
    """Where windows occur.

    Attributes:
      count: int64 ``[q]``, occurrences in the corpus, overlapping ones included.
      document: int64 ``[q]``, the first document with one; -1 where there is none.
      offset: int64 ``[q]``, of the first one in that document; -1.
    """

    count: np.ndarray
    document: np.ndarray
    offset: np.ndarray


def build_window_index(documents: Documents, window: int, *, n_shards: int = 1) -> WindowIndex:
    """Indexes all windows of ``window`` tokens that lie within a document.

    Takes 17 bytes for a distinct window, and 2 or 4 for a token; while a shard is built about 40
    for each of its tokens besides.

    Args:
      documents: from ``join_documents`` or ``from_offsets``.
      window: the width.
      n_shards: parts, cut between documents, that are built one at a time.

    Returns:
      WindowIndex.

    Raises:
      ValueError: a window below 1 or longer than every document, or fewer than one shard.
    """
    check_width(documents, window)
    shards = []
    for part in split_documents(documents, n_shards):
        found = distinct_windows(part.tokens, window, entries=False)
        if not found.key.size:
            continue
        shards.append(
            WindowShard(
                jnp.asarray(_buckets(found.key)),
                jnp.asarray((found.key >> np.uint64(32)).astype(np.uint32)),
                jnp.asarray(found.key.astype(np.uint32)),
                jnp.asarray(found.position),
                jnp.asarray(found.count),
                jnp.asarray(part.tokens),
                found.seed,
                part,
            )
        )
    return WindowIndex(tuple(shards), window)


def find_windows(index: WindowIndex, windows: np.ndarray) -> Found:
    """Counts and locates windows.

    Args:
      index: of the corpus.
      windows: token ids ``[q, w]``, of the width of the index.

    Returns:
      Found.

    Raises:
      ValueError: ids that are no tokens, or another width.
    """
    windows = _check_width_of_queries(index, windows)
    found = Found(*(np.full(len(windows), start, np.int64) for start in (0, -1, -1)))
    for shard in index.shards:
        count, position = _find_all(shard, windows)
        (first,) = np.nonzero((count > 0) & (found.count == 0))
        found.document[first], found.offset[first] = locate(shard.documents, position[first])
        found.count[:] += count
    return found


def contains(index: WindowIndex, windows: np.ndarray) -> np.ndarray:
    """Tells which windows ``[q, w]`` occur, bool ``[q]``.

    Raises:
      ValueError: as ``find_windows``.
    """
    windows = _check_width_of_queries(index, windows)
    return np.any([_find_all(shard, windows)[0] > 0 for shard in index.shards], axis=0)


def check_width(documents: Documents, window: int) -> None:
    """Raises ValueError unless a document has a window."""
    ends = np.append(documents.starts[1:], len(documents.tokens)) - 1
    longest = int((ends - documents.starts).max())
    if not 1 <= window <= longest:
        raise ValueError(
            f"window must lie in 1..{longest}, the length of the longest document, got {window}"
        )


def _check_width_of_queries(index: WindowIndex, windows: np.ndarray) -> np.ndarray:
    windows = check_windows(windows)
    if windows.shape[1] != index.window:
        raise ValueError(f"windows must have {index.window} tokens each, got {windows.shape[1]}")
    return windows


def _find_all(shard: WindowShard, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts, positions = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for i in range(0, len(windows), _CHUNK):
        chunk = windows[i : i + _CHUNK]
        n = len(chunk)
        padding = pad_to_power_of_two(n, least=_MIN_QUERIES) - n
        if padding:
            chunk = np.pad(chunk, ((0, padding), (0, 0)))
        count, position = _find(*shard[:7], chunk)
        counts.append(np.asarray(count)[:n])
        positions.append(np.asarray(position)[:n])
    return np.concatenate(counts), np.concatenate(positions)


@jax.jit
def _find(bucket, high, low, position, count, tokens, seed, windows):
    """Returns count and position of windows ``[q, w]``; 0 and -1 where there is none."""
    wanted_high, wanted_low = hash_windows(jnp, windows, seed)
    n = high.shape[0]

    def halve(bounds):
        left, right = bounds
        middle = left + ((right - left) >> 1)
        here = high[middle]
        below = (here < wanted_high) | ((here == wanted_high) & (low[middle] < wanted_low))
        open_ = left < right
        return jnp.where(open_ & below, middle + 1, left), jnp.where(open_ & ~below, middle, right)

    bits = bucket.shape[0].bit_length() - 1
    first = (wanted_high >> np.uint32(32 - bits)).astype(jnp.int32)
    entry, _ = jax.lax.while_loop(
        lambda bounds: (bounds[0] < bounds[1]).any(), halve, (bucket[first], bucket[first + 1])
    )
    entry = jnp.minimum(entry, n - 1)
    start = position[entry]
    width = windows.shape[1]
    # A window ends before its separator, so no slice is moved to fit in.
    stored = jax.vmap(lambda at: jax.lax.dynamic_slice(tokens, (at,), (width,)))(start)
    equal = (stored.astype(jnp.int32) == windows).all(1)
    return jnp.where(equal, count[entry], 0), jnp.where(equal, start, -1)


def _buckets(key: np.ndarray) -> np.ndarray:
    """Tells where hashes with the same first bits start, about four to eight of them together."""
    bits = max(key.size.bit_length() - 3, 1)
    sizes = np.bincount((key >> np.uint64(64 - bits)).astype(np.int64), minlength=1 << bits)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


def distinct_windows(tokens: np.ndarray, window: int, *, entries: bool) -> Windows:
    """Finds the distinct windows of tokens with separators; none may be there.

    Args:
      tokens: ``[n]``.
      window: the width.
      entries: whether ``entry`` is wanted; else it is empty.

    Returns:
      Windows.
    """
    ends = np.cumsum(tokens == SEPARATOR, dtype=np.int32)
    n = max(tokens.size - window + 1, 0)
    before = np.concatenate([[0], ends[: n - 1]]) if n else ends[:0]
    positions = np.flatnonzero(ends[window - 1 : window - 1 + n] == before).astype(np.int32)
    del ends, before
    if not positions.size:
        none = np.zeros(0, np.int32)
        entry = np.full(tokens.size if entries else 0, -1, np.int32)
        return Windows(none.astype(np.uint64), none, none, entry, np.uint32(0))
    for seed in map(np.uint32, range(_MAX_SEEDS)):
        high, low = rolling_hash(np, tokens, window, seed)
        key = join_key(high, low)[positions]
        del high, low
        order = np.argsort(key)
        key = key[order]
        starts = positions[order]
        is_head = np.concatenate([[True], key[1:] != key[:-1]])
        if _repeats_are_equal(tokens, starts, is_head, window):
            break
    else:
        raise RuntimeError(f"no seed below {_MAX_SEEDS} separates the windows: the hash is broken")
    (heads,) = np.nonzero(is_head)
    entry = np.zeros(0, np.int32)
    if entries:
        entry = np.full(tokens.size, -1, np.int32)
        entry[starts] = np.cumsum(is_head, dtype=np.int32) - 1
    return Windows(
        key[heads],
        np.minimum.reduceat(starts, heads),
        np.diff(np.append(heads, len(starts))).astype(np.int32),
        entry,
        seed,
    )


def _repeats_are_equal(tokens, starts, is_head, window) -> bool:
    """Whether all windows with one hash are one window."""
    (repeats,) = np.nonzero(~is_head)
    view = np.lib.stride_tricks.sliding_window_view(tokens, window)
    return all(
        np.array_equal(view[starts[part]], view[starts[part - 1]])
        for part in np.split(repeats, range(_CHUNK, len(repeats), _CHUNK))
    )


def join_key(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Returns uint64 from two uint32."""
    return (high.astype(np.uint64) << np.uint64(32)) | low


def rolling_hash(xp: ModuleType, tokens, window: int, seed) -> tuple:
    """Hashes the window at every position.

    ``h_2k(i) = mix(c h_k(i) + h_k(i + k))``; a width that is no power of two ends with two windows
    that overlap.

    Args:
      xp: numpy or jax.numpy, with the same result.
      tokens: integers ``[n]``.
      window: the width, at most ``n``.
      seed: uint32.

    Returns:
      Two hashes, uint32 ``[n - window + 1]``.
    """

    def one(lane):
        h, k = _leaf(xp, tokens, seed, lane), 1
        while k < window:
            step = min(k, window - k)
            h = _combine(h[:-step], h[step:], lane)
            k += step
        return h

    return one(0), one(1)


def hash_windows(xp: ModuleType, windows, seed) -> tuple:
    """Hashes windows ``[q, w]`` as ``rolling_hash`` does, in ``2 w`` steps each."""
    width = windows.shape[1]
    half = 1 << (width.bit_length() - 1)

    def one(lane):
        h = _leaf(xp, windows, seed, lane)
        if half < width:
            h = xp.stack([h[:, :half], h[:, width - half :]])
        while h.shape[-1] > 1:
            h = _combine(h[..., 0::2], h[..., 1::2], lane)
        h = h[..., 0]
        return _combine(h[0], h[1], lane) if half < width else h

    return one(0), one(1)


def _leaf(xp, tokens, seed, lane):
    multiplier = _MULTIPLIERS[lane][0]
    return _mix((tokens.astype(xp.uint32) + seed) * multiplier + multiplier, lane)


def _combine(left, right, lane):
    return _mix(left * _MULTIPLIERS[lane][0] + right, lane)


def _mix(x, lane):
    # A product moves bits up only; the shifts bring them down again.
    x = (x ^ (x >> np.uint32(15))) * _MULTIPLIERS[lane][1]
    return x ^ (x >> np.uint32(13))
