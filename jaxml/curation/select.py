"""The top share of a pool by score, exactly, and without sorting or gathering the scores.

A float maps to an unsigned integer of the same order, so the k-th largest score is found digit by
digit of 16 bits: two passes over float32, each of which sums one histogram a shard.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxml.core.sharding import shard_batch
from jaxml.curation.uids import order_uids

Rule = Literal["exact", "reference"]
_DIGIT = 16
_BINS = 1 << _DIGIT


class Cut(NamedTuple):
    """Where a share of the pool ends.

    Attributes:
      threshold: the lowest score kept, of the dtype of the scores; rows above it are kept.
      n_ties: how many of the rows at the threshold are kept; None keeps all of them.
    """

    threshold: np.floating
    n_ties: int | None


def check_fraction(fraction: float, rule: str = "exact") -> None:
    """Raises ValueError unless ``0 <= fraction <= 1`` and the rule is known."""
    if not 0 <= fraction <= 1:  # false for NaN too
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}; got {rule!r}")


def top_fraction(
    scores: np.ndarray, fraction: float, *, uids: np.ndarray | None = None, rule: Rule = "exact"
) -> np.ndarray:
    """Keeps the rows of the highest scores.

    Args:
      scores: floating ``[n]``; rows with NaN count in ``n`` and are never kept.
      fraction: in [0, 1]; ``int(n * fraction)`` is how many to keep.
      uids: ``UID_DTYPE [n]``: of rows with equal scores those with the smallest uids are kept;
        without them, the first ones, which depends on the order of the rows.
      rule: "exact" keeps that many, or all that have a score if those are fewer. "reference" keeps
        every row at or above the score at that 0-based place from the top, one more at least, as
        the published filter does; where there is no such place it keeps all that have a score (the
        published code stops, or keeps nothing).

    Returns:
      bool ``[n]``.

    Raises:
      ValueError: a fraction outside [0, 1], an unknown rule, or scores that are not floats.
    """
    scores = np.asarray(scores)
    cut = fraction_cut([scores], fraction, rule=rule)
    if cut.n_ties is None:
        return scores >= cut.threshold
    mask = scores > cut.threshold
    ties = np.flatnonzero(scores == cut.threshold)
    if uids is not None:
        ties = ties[order_uids(uids[ties])]
    mask[ties[: cut.n_ties]] = True
    return mask


def fraction_cut(
    shards: Sequence[np.ndarray] | Callable[[], Iterable[np.ndarray]],
    fraction: float,
    *,
    rule: Rule = "exact",
) -> Cut:
    """Finds the cut of ``top_fraction`` over shards, of which one at a time is in memory.

    Args:
      shards: floating arrays ``[n_i]`` of one dtype, or a callable that iterates over them anew,
        once for their sizes and once for each digit.
      fraction: of all rows.
      rule: as for ``top_fraction``.

    Returns:
      Cut.

    Raises:
      ValueError: as ``top_fraction``, or no shard.
    """
    check_fraction(fraction, rule)
    iterate = shards if callable(shards) else lambda: shards

    def count(prefix, n_digits):
        return sum(digit_counts(shard, prefix, n_digits) for shard in iterate())

    shapes = [(np.asarray(s).size, np.asarray(s).dtype) for s in iterate()]
    if not shapes or len({dtype for _, dtype in shapes}) > 1:
        raise ValueError(f"shards must be arrays of one dtype, got {[str(d) for _, d in shapes]}")
    return find_cut(count, sum(n for n, _ in shapes), fraction, rule=rule, dtype=shapes[0][1])


def find_cut(
    count: Callable[[int, int], np.ndarray],
    n_rows: int,
    fraction: float,
    *,
    rule: Rule = "exact",
    dtype=np.float32,
) -> Cut:
    """Finds a cut from histograms, wherever the scores are.

    Args:
      count: sums ``digit_counts(scores, prefix, n_digits)`` over all shards; called once for each
        digit at most.
      n_rows: of all shards, NaN included.
      fraction: of them.
      rule: as for ``top_fraction``.
      dtype: of the scores.

    Returns:
      Cut.

    Raises:
      ValueError: as ``top_fraction``.
    """
    check_fraction(fraction, rule)
    dtype = np.dtype(dtype)
    first = count(0, 0)
    n_keep, n_scored = int(n_rows * fraction), int(first.sum())
    place = n_keep + 1 if rule == "reference" else n_keep
    if place > n_scored:
        return Cut(dtype.type(-math.inf), None)
    if place == 0:
        return Cut(dtype.type(math.inf), 0)
    threshold, above = _kth(count, first, place, dtype)
    return Cut(threshold, None if rule == "reference" else n_keep - above)


def kth_largest(
    shards: Sequence[np.ndarray] | Callable[[], Iterable[np.ndarray]], k: int, *, dtype=np.float32
) -> np.floating:
    """Finds the k-th largest of the numbers in all shards, NaN left out.

    Args:
      shards: as for ``fraction_cut``.
      k: counted from 1.
      dtype: of the shards.

    Returns:
      A scalar of that dtype, the very value that sorting would find.

    Raises:
      ValueError: fewer than ``k`` numbers, or ``k < 1``.
    """
    iterate = shards if callable(shards) else lambda: shards

    def count(prefix, n_digits):
        return sum((digit_counts(s, prefix, n_digits) for s in iterate()), np.zeros(_BINS, int))

    return _kth(count, count(0, 0), k, np.dtype(dtype))[0]


def kth_largest_sharded(scores: jax.Array, k: int, *, mesh: Mesh | None = None) -> np.floating:
    """Finds the k-th largest score of an array on devices, which stays where it is.

    Args:
      scores: float32 ``[n]``.
      k: counted from 1; NaN is left out.
      mesh: each device counts its own rows, and only histograms travel; ``n`` must be a multiple of
        its size (fill up with NaN).

    Returns:
      float32 scalar.

    Raises:
      ValueError: another dtype, an ``n`` that the mesh does not divide, or fewer than ``k`` scores.
    """
    if scores.dtype != jnp.float32:
        raise ValueError(f"scores must be float32, got {scores.dtype}")
    if mesh is not None and scores.shape[0] % mesh.size:
        raise ValueError(f"scores must divide over {mesh.size} devices, got {scores.shape[0]}")
    scores = shard_batch(scores, mesh)

    def count(prefix, n_digits):
        counts = _device_counts(scores, jnp.uint32(prefix), n_digits=n_digits, mesh=mesh)
        return np.asarray(counts, np.int64).sum(0)

    return _kth(count, count(0, 0), k, np.dtype(np.float32))[0]


@functools.partial(jax.jit, static_argnames=("n_digits", "mesh"))
def _device_counts(scores, prefix, *, n_digits, mesh):
    def count(scores):
        # On integers only: a device may flush small floats to zero.
        bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
        sign, magnitude = bits >> 31, bits & jnp.uint32(0x7FFFFFFF)
        bits = jnp.where(magnitude == 0, 0, bits)
        negative = (sign == 1) & (magnitude != 0)
        keys = jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))
        counted = magnitude <= jnp.uint32(0x7F800000)
        digit = keys >> _DIGIT
        if n_digits:
            counted &= digit == prefix
            digit = keys & jnp.uint32(_BINS - 1)
        return jnp.zeros((1, _BINS), jnp.int32).at[0, digit].add(counted.astype(jnp.int32))

    if mesh is None:
        return count(scores)
    spec = PartitionSpec("data")
    return jax.shard_map(count, mesh=mesh, in_specs=spec, out_specs=spec)(scores)


def digit_counts(scores: np.ndarray, prefix: int, n_digits: int) -> np.ndarray:
    """Counts scores by the digit that follows the first ``n_digits`` of their keys.

    Args:
      scores: floating ``[n]``; NaN is left out.
      prefix: the first digits; only scores that begin with them are counted.
      n_digits: how many those are, from 0; a digit has 16 bits.

    Returns:
      int64 ``[65536]``.

    Raises:
      ValueError: not floats.
    """
    scores = np.asarray(scores)
    if scores.dtype.kind != "f":
        raise ValueError(f"scores must be floats, got {scores.dtype}")
    bits = 8 * scores.dtype.itemsize
    scores = scores[~np.isnan(scores)] + scores.dtype.type(0)  # -0 becomes 0
    raw = scores.view(f"u{scores.dtype.itemsize}")
    sign = raw.dtype.type(1 << (bits - 1))
    keys = np.where(raw & sign, ~raw, raw | sign)
    shift = bits - _DIGIT * (n_digits + 1)
    if n_digits:
        keys = keys[(keys >> raw.dtype.type(shift + _DIGIT)) == raw.dtype.type(prefix)]
    digits = (keys >> raw.dtype.type(shift)) & raw.dtype.type(_BINS - 1)
    return np.bincount(digits.astype(np.intp), minlength=_BINS)


def _kth(count, first: np.ndarray, k: int, dtype: np.dtype) -> tuple[np.floating, int]:
    """Returns the k-th largest and how many are larger; ``first`` is ``count(0, 0)``."""
    if not 1 <= k <= first.sum():
        raise ValueError(f"k must lie in 1..{first.sum()}, the numbers there are; got {k}")
    prefix, above, bits = 0, 0, 8 * dtype.itemsize
    for n_digits in range(bits // _DIGIT):
        counts = count(prefix, n_digits) if n_digits else first
        down = np.cumsum(counts[::-1])
        i = int(np.searchsorted(down, k - above))
        above += int(down[i] - counts[_BINS - 1 - i])
        prefix = prefix << _DIGIT | (_BINS - 1 - i)
    sign = 1 << (bits - 1)
    raw = prefix ^ sign if prefix & sign else ~prefix & (2 * sign - 1)
    return np.array(raw, f"u{dtype.itemsize}").view(dtype)[()], above
