"""Suffix arrays of token corpora: counts with overlaps, and longest matches at every position.

Ref: Manber & Myers, "Suffix Arrays: A New Method for On-Line String Searches", 1993.
"""

import functools
import importlib.util
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.core.chunk import pad_to_power_of_two
from jaxml.language.documents import MAX_TOKENS, Documents, check_ids, split_documents

Builder = Literal["auto", "numpy", "jax", "divsufsort"]

_MIN_QUERIES, _MAX_QUERIES = 256, 1 << 16


def build_suffix_array(
    tokens: np.ndarray, *, bound: int | None = None, builder: Builder = "auto"
) -> np.ndarray:
    """Sorts the suffixes of a text, by their first ``bound`` tokens only if a bound is given.

    "numpy" and "jax" double prefixes: from the order by ``h`` tokens follows that by ``2 h``. A
    bound stops them after ``log2(bound / h_0)`` rounds whatever the text repeats; suffixes that
    agree up to it stay in the order of their positions, so that both give the same array. "jax"
    sorts with XLA, which pays on an accelerator and is slow on a CPU. "divsufsort" is the C library
    of the optional package pydivsufsort and sorts whole suffixes whatever the bound. A suffix that
    is a prefix of another comes first.

    Args:
      tokens: integers ``[n]``; only their order matters.
      bound: positive, None for whole suffixes.
      builder: one of the above; "auto" is "jax" on an accelerator, else "divsufsort" where it is
        installed, else "numpy".

    Returns:
      int32 ``[n]``, the positions in the order of their suffixes.

    Raises:
      ValueError: a bound below 1, an unknown builder, tokens that are not ``[n]`` integers, or more
        than ``2^31 - 1`` of them.
      ImportError: "divsufsort" without pydivsufsort.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise ValueError(f"tokens must be integers [n], got {tokens.dtype} {tokens.shape}")
    if tokens.size > MAX_TOKENS:
        raise ValueError(f"tokens must be at most {MAX_TOKENS}, got {tokens.size}: use shards")
    if bound is not None and bound < 1:
        raise ValueError(f"bound must be positive or None, got {bound}")
    if builder not in get_args(Builder):
        raise ValueError(f"builder must be one of {', '.join(get_args(Builder))}; got {builder!r}")
    if tokens.size < 2:
        return np.arange(tokens.size, dtype=np.int32)
    if builder == "auto":
        installed = importlib.util.find_spec("pydivsufsort") is not None
        on_cpu = jax.default_backend() == "cpu"
        builder = ("divsufsort" if installed else "numpy") if on_cpu else "jax"
    symbols, n_symbols = _dense(tokens)
    bound = tokens.size if bound is None else min(bound, tokens.size)
    if builder == "divsufsort":
        return _divsufsort(symbols, n_symbols)
    if builder == "jax":
        return np.asarray(_double_jax(jnp.asarray(symbols), bound, bits=n_symbols.bit_length()))
    return _double_numpy(symbols, bound, bits=n_symbols.bit_length())


def _dense(tokens: np.ndarray) -> tuple[np.ndarray, int]:
    """Replaces tokens by their ranks 1, 2, ... among those that occur; 0 stays free."""
    low, high = int(tokens.min()), int(tokens.max())
    if high - low < 1 << 22:
        shifted = tokens.astype(np.int64) - low if low else tokens
        present = np.zeros(high - low + 1, bool)
        present[shifted] = True
        ranks = np.cumsum(present, dtype=np.int32)
        return ranks[shifted], int(ranks[-1])
    values, inverse = np.unique(tokens, return_inverse=True)
    return (inverse + 1).astype(np.int32), values.size


def _divsufsort(symbols: np.ndarray, n_symbols: int) -> np.ndarray:
    import pydivsufsort

    text = (symbols - 1).astype(np.uint8 if n_symbols <= 256 else np.int32)
    return pydivsufsort.divsufsort(text).astype(np.int32)


def _double_numpy(symbols: np.ndarray, bound: int, *, bits: int) -> np.ndarray:
    n = symbols.size
    h = min(63 // bits, bound)
    key = np.zeros(n, np.int64)
    for i in range(h):
        key <<= bits
        key[: n - i] |= symbols[i:]
    order, ranks = _rank(key)
    while h < bound and ranks[order[-1]] < n - 1:
        # Two overlapping windows of h tokens are as good as one of h + step.
        step = min(h, bound - h)
        key = ranks.astype(np.int64) * (n + 1)
        key[: n - step] += ranks[step:] + 1
        order, ranks = _rank(key)
        h += step
    if ranks[order[-1]] < n - 1:
        order = np.argsort(ranks, kind="stable")
    return order.astype(np.int32)


def _rank(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Not the stable sort: the default one is several times faster on 64-bit keys.
    order = np.argsort(key)
    key = key[order]
    ranks = np.empty(key.size, np.int32)
    ranks[order] = np.cumsum(np.concatenate([[False], key[1:] != key[:-1]]), dtype=np.int32)
    return order, ranks


@functools.partial(jax.jit, static_argnames="bits")
def _double_jax(symbols: jax.Array, bound: int, *, bits: int) -> jax.Array:
    n = symbols.shape[0]
    position = jnp.arange(n, dtype=jnp.int32)
    per_key = 31 // bits

    def pack(first):
        key = jnp.zeros(n, jnp.int32)
        for i in range(first, first + per_key):
            # Beyond the end, and beyond the bound, stands the symbol 0.
            ahead = jnp.pad(symbols[i:], (0, min(i, n)))
            key = (key << bits) | jnp.where(i < bound, ahead, 0)
        return key

    def rank(major, minor):
        major, minor, order = jax.lax.sort((major, minor, position), num_keys=2, is_stable=True)
        rises = (major[1:] != major[:-1]) | (minor[1:] != minor[:-1])
        ranks = jnp.pad(jnp.cumsum(rises, dtype=jnp.int32), (1, 0))
        return order, jnp.zeros(n, jnp.int32).at[order].set(ranks, unique_indices=True), ranks[-1]

    def unfinished(state):
        h, _, _, largest = state
        return (h < bound) & (largest < n - 1)

    def double(state):
        h, _, ranks, _ = state
        step = jnp.minimum(h, bound - h)
        ahead = ranks.at[position + step].get(mode="fill", fill_value=-1)
        return (h + step, *rank(ranks, ahead))

    start = (jnp.minimum(2 * per_key, bound), *rank(pack(0), pack(per_key)))
    return jax.lax.while_loop(unfinished, double, start)[1]


class SuffixShard(NamedTuple):
    """Some of the documents, on the device.

    Attributes:
      tokens: int16 or int32 ``[n]``, separators included.
      order: int32 ``[n]``, their suffix array.
    """

    tokens: jax.Array
    order: jax.Array


class SuffixIndex(NamedTuple):
    """Suffix arrays of a corpus.

    Attributes:
      shards: one or more; no document spans two.
      bound: of the sort, None where suffixes are sorted whole.
    """

    shards: tuple[SuffixShard, ...]
    bound: int | None


def build_suffix_index(
    documents: Documents,
    *,
    bound: int | None = None,
    builder: Builder = "auto",
    n_shards: int = 1,
) -> SuffixIndex:
    """Builds the suffix arrays that ``count_occurrences`` and ``longest_match`` search.

    Args:
      documents: from ``join_documents`` or ``from_offsets``.
      bound: as for ``build_suffix_array``; limits what can be asked.
      builder: as for ``build_suffix_array``.
      n_shards: parts, cut between documents, that are sorted one at a time.

    Returns:
      SuffixIndex.

    Raises:
      ValueError: as ``build_suffix_array``, or fewer than one shard.
    """
    shards = []
    for part in split_documents(documents, n_shards):
        order = build_suffix_array(part.tokens, bound=bound, builder=builder)
        shards.append(SuffixShard(jnp.asarray(part.tokens), jnp.asarray(order)))
    return SuffixIndex(tuple(shards), bound)


def count_occurrences(index: SuffixIndex, windows: np.ndarray) -> np.ndarray:
    """Counts where each window occurs, overlapping occurrences included.

    ``aaaa`` contains ``aa`` three times. No occurrence runs over the end of a document.

    Args:
      index: of the corpus.
      windows: token ids ``[q, w]``.

    Returns:
      int64 ``[q]``.

    Raises:
      ValueError: ids that are no tokens, or windows that are empty or longer than the bound.
    """
    windows = check_windows(windows)
    n_queries, width = windows.shape
    if index.bound is not None and width > index.bound:
        raise ValueError(f"windows must have at most {index.bound} tokens, got {width}")
    starts = np.arange(n_queries) * width
    total = np.zeros(n_queries, np.int64)
    for shard in index.shards:
        low, high = (
            _search_all(shard, windows.ravel(), starts, starts + width, upper=upper)[0]
            for upper in (False, True)
        )
        total += high - low
    return total


def longest_match(index: SuffixIndex, text: np.ndarray) -> np.ndarray:
    """Finds how far the corpus contains the text from each of its positions on.

    The longest common prefix with any suffix of the corpus is that with one of the two between
    which ``text[i:]`` sorts. A window of any width ``w`` at ``i`` occurs if and only if the answer
    is at least ``w``.

    Args:
      index: of the corpus.
      text: token ids ``[m]``.

    Returns:
      int32 ``[m]``; the length of the longest match, at most the bound of the index.

    Raises:
      ValueError: ids that are no tokens.
    """
    text = check_windows(np.asarray(text)[None])[0]
    starts = np.arange(text.size)
    reach = text.size if index.bound is None else index.bound
    ends = np.minimum(starts + reach, text.size)
    return np.max(
        [_search_all(shard, text, starts, ends, upper=False)[1] for shard in index.shards], axis=0
    )


def check_windows(windows: np.ndarray) -> np.ndarray:
    """Returns ``[q, w]`` token ids as int32, or raises ValueError."""
    windows = np.asarray(windows)
    if windows.ndim != 2 or windows.shape[1] == 0:
        raise ValueError(f"windows must be token ids [q, w] with w > 0, got {windows.shape}")
    check_ids("windows", windows)
    return windows.astype(np.int32, copy=False)


def _search_all(shard, text, starts, ends, *, upper):
    """Searches all queries, many at a time; returns insertion points and longest matches."""
    text = np.pad(text, (0, pad_to_power_of_two(text.size, least=_MIN_QUERIES) - text.size))
    text = jnp.asarray(text)
    points, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for i in range(0, starts.size, _MAX_QUERIES):
        chunk = np.stack([starts[i : i + _MAX_QUERIES], ends[i : i + _MAX_QUERIES]])
        n = chunk.shape[1]
        padding = pad_to_power_of_two(n, least=_MIN_QUERIES) - n
        chunk = np.pad(chunk, ((0, 0), (0, padding))).astype(np.int32)
        point, length = _search(shard.order, shard.tokens, text, *chunk, upper)
        points.append(np.asarray(point)[:n])
        lengths.append(np.asarray(length)[:n])
    return np.concatenate(points), np.concatenate(lengths)


@jax.jit
def _search(order, tokens, text, starts, ends, upper):
    """Binary search for ``text[start:end]``, for all queries at once.

    Between the bounds ``low`` and ``high`` the common prefix with the query is never shorter than
    the shorter of theirs, so no comparison begins anew. With ``upper`` a suffix that starts with
    the whole query sorts below it, without above it.
    """
    n, n_text = tokens.shape[0], text.shape[0]

    def compare(middle, known, active):
        suffix = order[jnp.clip(middle, 0, n - 1)]

        def symbols(length):
            here = tokens.at[suffix + length].get(mode="fill", fill_value=-2).astype(jnp.int32)
            return here, text[jnp.minimum(starts + length, n_text - 1)]

        def going(length):
            here, query = symbols(length)
            return active & (starts + length < ends) & (here == query)

        def extend(state):
            length, go = state
            length = length + go.astype(jnp.int32)
            return length, going(length)

        length, _ = jax.lax.while_loop(lambda state: state[1].any(), extend, (known, going(known)))
        here, query = symbols(length)
        whole = starts + length >= ends
        return length, jnp.where(whole, upper, here < query)

    def halve(state):
        low, high, at_low, at_high = state
        active = high - low > 1
        middle = (low + high) >> 1
        length, below = compare(middle, jnp.minimum(at_low, at_high), active)
        up, down = active & below, active & ~below
        return (
            jnp.where(up, middle, low),
            jnp.where(down, middle, high),
            jnp.where(up, length, at_low),
            jnp.where(down, length, at_high),
        )

    zero = jnp.zeros_like(starts)
    state = jax.lax.while_loop(
        lambda state: (state[1] - state[0] > 1).any(), halve, (zero - 1, zero + n, zero, zero)
    )
    _, high, at_low, at_high = state
    return high, jnp.maximum(at_low, at_high)
