"""128-bit identifiers of image-text pairs, and subset files: sorted multisets of them.

A uid is 32 hexadecimal digits, kept as two 64-bit words of a numpy structured array. It never goes
through a float, a signed integer or a jax array, which without x64 would cut it to 32 bits in
silence; ``uid_words`` makes a form that jit can carry. A uid that stands ``k`` times in a subset
has weight ``k``.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

UID_DTYPE = np.dtype("u8,u8")
"""Fields ``f0``, the leading 16 digits, and ``f1``, the trailing ones."""

_PART = 1 << 22
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


def parse_uids(strings: Sequence[str]) -> np.ndarray:
    """Reads uids written as 32 hexadecimal digits.

    Args:
      strings: ``n`` of them: a list, a numpy array, or a pyarrow string array.

    Returns:
      ``UID_DTYPE [n]``.

    Raises:
      ValueError: something else than 32 digits stands among them; names the first.
    """
    digits = _digit_bytes(strings)
    if digits is None or not _are_digits(digits).all():
        listed = strings.to_pylist() if hasattr(strings, "to_pylist") else list(strings)
        i, bad = next((i, s) for i, s in enumerate(listed) if not _is_uid(s))
        raise ValueError(f"uids must be 32 hexadecimal digits, got {bad!r} at {i}")
    # The letters of either case are 9 more than their last four bits.
    nibbles = (digits & 15) + 9 * (digits >> 6)
    packed = (nibbles[:, ::2] << 4) | nibbles[:, 1::2]
    return packed.view(">u8").astype(np.uint64).view(UID_DTYPE)[:, 0]


def _are_digits(codes: np.ndarray) -> np.ndarray:
    # Differences wrap around, so one comparison says whether a code lies in a range.
    return (codes - np.uint8(ord("0")) <= 9) | ((codes | 32) - np.uint8(ord("a")) <= 5)


def _digit_bytes(strings) -> np.ndarray | None:
    """Returns the characters as bytes ``[n, 32]``, or None where some have another length."""
    if hasattr(strings, "to_pylist"):
        from jaxml.curation.captions import text_buffer

        text, offsets = text_buffer(strings)
        even = offsets[-1] == 32 * (len(offsets) - 1) and (np.diff(offsets) == 32).all()
        return text.reshape(-1, 32) if even else None
    try:
        array = np.asarray(strings, dtype=np.str_) if len(strings) else np.zeros(0, "U32")
    except ValueError:
        return None
    if array.dtype.itemsize != 4 * 32 or array.ndim != 1:
        return None
    points = np.ascontiguousarray(array).view(np.uint32).reshape(-1, 32)
    return np.where(points < 128, points, 0).astype(np.uint8)


def _is_uid(value) -> bool:
    return (
        isinstance(value, str)
        and len(value) == 32
        and value.isascii()
        and bool(_are_digits(np.frombuffer(value.encode(), np.uint8)).all())
    )


def format_uids(uids: np.ndarray) -> np.ndarray:
    """Writes uids as 32 lower-case hexadecimal digits.

    Args:
      uids: ``UID_DTYPE [n]``.

    Returns:
      ``str_ [n]``.

    Raises:
      ValueError: another dtype or rank.
    """
    packed = _words(check_uids(uids), ">u8").view(np.uint8).reshape(-1, 16)
    digits = np.empty((packed.shape[0], 32), np.uint32)
    digits[:, ::2] = _DIGITS[packed >> 4]
    digits[:, 1::2] = _DIGITS[packed & 15]
    return digits.view("U32")[:, 0]


def uid_words(uids: np.ndarray) -> np.ndarray:
    """Splits uids into uint32 ``[n, 4]``, the leading word first: a form for jax arrays.

    Raises:
      ValueError: another dtype or rank.
    """
    return _words(check_uids(uids), ">u8").view(">u4").astype(np.uint32)


def uids_of_words(words: np.ndarray) -> np.ndarray:
    """Puts together what ``uid_words`` has split.

    Raises:
      ValueError: not uint32 ``[n, 4]``.
    """
    words = np.asarray(words)
    if words.dtype != np.uint32 or words.ndim != 2 or words.shape[1] != 4:
        raise ValueError(f"words must be uint32 [n, 4], got {words.dtype} {words.shape}")
    return words.astype(">u4").view(">u8").astype(np.uint64).view(UID_DTYPE)[:, 0]


def check_uids(uids: np.ndarray, *, name: str = "uids") -> np.ndarray:
    """Returns uids as they are, or raises ValueError for another dtype or rank than theirs."""
    dtype, shape = getattr(uids, "dtype", type(uids).__name__), getattr(uids, "shape", ())
    if dtype != UID_DTYPE or len(shape) != 1:
        raise ValueError(f"{name} must be one axis of dtype 'u8,u8', got {dtype} of shape {shape}")
    return uids


def _words(uids: np.ndarray, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(uids).view(np.uint64).reshape(-1, 2).astype(dtype)


def order_uids(uids: np.ndarray) -> np.ndarray:
    """Returns int64 ``[n]``, the positions of the uids in their order; equal ones keep theirs."""
    high, low = np.ascontiguousarray(check_uids(uids)["f0"]), uids["f1"]
    # Numpy compares structures one by one; leading words alone sort ten times as fast.
    order = np.argsort(high)
    high = high[order]
    ties = np.zeros(high.size + 1, bool)
    ties[1:-1] = high[1:] == high[:-1]
    tied = ties[1:] | ties[:-1]
    if tied.any():
        rows = order[tied]
        order[tied] = rows[np.lexsort((rows, low[rows], high[tied]))]
    return order


def sort_uids(uids: np.ndarray) -> np.ndarray:
    """Sorts uids by their digits, repeats included.

    Raises:
      ValueError: another dtype or rank.
    """
    return uids[order_uids(uids)]


def is_sorted(uids: np.ndarray) -> bool:
    """Says whether no uid is smaller than the one before it."""
    check_uids(uids)
    for start in range(0, len(uids), _PART):  # a memory map may not fit into memory
        part = uids[start : start + _PART + 1]
        high, low = part["f0"], part["f1"]
        falls = (high[1:] < high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] < low[:-1]))
        if falls.any():
            return False
    return True


def find_uids(subset: np.ndarray, uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Looks uids up in a sorted subset, all of them at once by bisection.

    Args:
      subset: ``UID_DTYPE [s]``, sorted; may be a memory map, of which little is then read.
      uids: ``UID_DTYPE [n]``, in any order.

    Returns:
      int64 ``[n]`` twice: where each uid stands first, or would stand, and how often it is there.

    Raises:
      ValueError: another dtype or rank.
    """
    check_uids(subset, name="subset")
    high, low = np.ascontiguousarray(check_uids(uids)["f0"]), np.ascontiguousarray(uids["f1"])
    first = _bisect(subset, high, low, right=False)
    return first, _bisect(subset, high, low, right=True) - first


def _bisect(subset, high, low, *, right: bool) -> np.ndarray:
    start, stop = np.zeros(high.size, np.int64), np.full(high.size, len(subset), np.int64)
    for _ in range(len(subset).bit_length()):
        middle = (start + stop) >> 1
        there = subset[np.minimum(middle, len(subset) - 1)]
        tail = there["f1"] <= low if right else there["f1"] < low
        below = (there["f0"] < high) | ((there["f0"] == high) & tail)
        below &= start < stop
        start = np.where(below, middle + 1, start)
        stop = np.where(below, stop, middle)
    return start


def intersect_uids(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersects multisets: each uid as often as in the one that has it less often; sorted."""
    values, (times_a, times_b) = _count(a, b)
    return np.repeat(values, np.minimum(times_a, times_b))


def union_uids(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Unites multisets: each uid as often as in the one that has it more often; sorted."""
    values, (times_a, times_b) = _count(a, b)
    return np.repeat(values, np.maximum(times_a, times_b))


def _count(*multisets: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the distinct uids, sorted, and how often each multiset has them."""
    parts = [sort_uids(m) for m in multisets]
    values = sort_uids(np.concatenate(parts))
    values = values[np.append(True, values[1:] != values[:-1])] if values.size else values
    return values, [find_uids(part, values)[1] for part in parts]


def repeat_uids(uids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gives uids weights, by repeating them.

    Args:
      uids: ``UID_DTYPE [n]``.
      weights: integers ``[n]``, none negative; 0 drops a uid.

    Returns:
      ``UID_DTYPE [sum(weights)]``, sorted.

    Raises:
      ValueError: another dtype or shape, or a negative weight.
    """
    weights = np.asarray(weights)
    if weights.shape != check_uids(uids).shape or weights.dtype.kind not in "iu":
        raise ValueError(
            f"weights must be integers {uids.shape}, got {weights.dtype} {weights.shape}"
        )
    if (weights < 0).any():
        raise ValueError(f"weights must not be negative, got {weights.min()}")
    return np.repeat(uids[(order := order_uids(uids))], weights[order])


def save_subset(path: str | os.PathLike, uids: np.ndarray) -> None:
    """Sorts uids and writes them as a subset file, an ``.npy`` of dtype ``u8,u8``.

    The file appears whole or not at all, and replaces one of the same name.

    Raises:
      ValueError: another dtype or rank.
    """
    uids, path = sort_uids(uids), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, uids)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_subset(path: str | os.PathLike, *, mmap: bool = False) -> np.ndarray:
    """Reads a subset file.

    Args:
      path: of the ``.npy`` file.
      mmap: maps it read-only instead of reading it into memory.

    Returns:
      ``UID_DTYPE [n]``, sorted.

    Raises:
      ValueError: no ``.npy`` file, another dtype or rank, or uids that are not sorted.
    """
    try:
        uids = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is no subset file: {error}") from error
    check_uids(uids, name=f"the subset {path}")
    if not is_sorted(uids):
        raise ValueError(f"the subset {path} is not sorted: save_subset sorts")
    return uids
