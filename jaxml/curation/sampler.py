"""Which pairs a step sees: pure functions of a seed and the step.

A run that goes on at step ``t`` sees what one that never stopped sees, on any number of hosts, and
after ``t`` steps exactly ``t * batch_size`` pairs have been seen whatever the size of the data. The
numbers are those of the Philox counter in numpy, on the host: int64, for a pool may hold more pairs
than an int32 can count.

Ref: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.
"""

from collections.abc import Sequence

import numpy as np

BUFFER = 5000
_PAIRS, _SHARDS, _ORDER = range(3)


def pair_indices(
    seed: int,
    step: int,
    *,
    sizes: int | Sequence[int],
    batch_size: int,
    weights: Sequence[float] | None = None,
    host: int = 0,
    n_hosts: int = 1,
) -> np.ndarray:
    """Draws the pairs of one step, uniformly with replacement.

    Args:
      seed: of the run, in ``0..2^63``.
      step: counted from 0.
      sizes: number of pairs, or of the pairs of each source in turn.
      batch_size: of all hosts together.
      weights: of the sources, each with its pairs alike; None is by size, all pairs alike.
      host: which part of the batch to return, in ``0..n_hosts - 1``.
      n_hosts: must divide ``batch_size``.

    Returns:
      int64 ``[batch_size / n_hosts]``, numbers of pairs, the sources' one after another. The parts
      of all hosts, joined, are what one host would get.

    Raises:
      ValueError: no pair, weights that are not one positive sum for each source, or a bad host.
    """
    sizes = np.atleast_1d(np.asarray(sizes, np.int64))
    _check_sizes(sizes, batch_size, step, host, n_hosts)
    draws = _words(seed, _PAIRS, step, 2 * batch_size).reshape(batch_size, 2)
    draws = draws[_part(batch_size, host, n_hosts)]
    if weights is None:
        return (draws[:, 0] % np.uint64(sizes.sum())).astype(np.int64)
    weights = np.asarray(weights, np.float64)
    if weights.shape != sizes.shape or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"weights must be {len(sizes)}, none negative, not all 0; got {weights}")
    if (sizes[weights > 0] == 0).any():
        raise ValueError("weights must be 0 for a source without pairs")
    edges = np.cumsum(weights) / weights.sum()
    uniform = (draws[:, 1] >> np.uint64(11)) * 2.0**-53
    source = np.searchsorted(edges[:-1], uniform, side="right")
    inside = (draws[:, 0] % sizes[source].astype(np.uint64)).astype(np.int64)
    return (np.cumsum(sizes) - sizes)[source] + inside


def shard_indices(
    seed: int,
    step: int,
    *,
    sizes: Sequence[int],
    batch_size: int,
    buffer: int = BUFFER,
    host: int = 0,
    n_hosts: int = 1,
) -> np.ndarray:
    """Draws the pairs of one step the way the reference does: shards with replacement.

    Shards follow one another, each drawn uniformly whatever its size, and all of its pairs are
    seen; the pairs of a short shard are therefore seen more often. The reference then mixes them in
    a buffer that slides; here each ``buffer`` pairs of the stream are permuted, so that a step can
    be had without those before it. Time and memory grow with the number of shards drawn so far.

    Args:
      seed: as for ``pair_indices``.
      step: counted from 0.
      sizes: number of pairs of each shard, positive.
      batch_size: of all hosts together.
      buffer: pairs that are permuted together.
      host: as for ``pair_indices``.
      n_hosts: as for ``pair_indices``.

    Returns:
      int64 ``[batch_size / n_hosts]``, numbers of pairs, the shards' one after another.

    Raises:
      ValueError: an empty shard, or as ``pair_indices``.
    """
    sizes = np.asarray(sizes, np.int64)
    _check_sizes(sizes, batch_size, step, host, n_hosts)
    if sizes.ndim != 1 or (sizes < 1).any():
        raise ValueError("sizes must be positive numbers of pairs, one for each shard")
    if buffer < 1:
        raise ValueError(f"buffer must be positive, got {buffer}")
    first, last = step * batch_size // buffer, ((step + 1) * batch_size - 1) // buffer
    # Twice what is needed on average is nearly always enough; else draw more.
    n_shards = int(2 * (last + 1) * buffer / sizes.mean()) + 16
    while True:
        drawn = (_words(seed, _SHARDS, 0, n_shards) % np.uint64(len(sizes))).astype(np.int64)
        ends = np.cumsum(sizes[drawn])
        if ends[-1] >= (last + 1) * buffer:
            break
        n_shards *= 2
    order = [
        block * buffer + np.argsort(_words(seed, _ORDER, block, buffer), kind="stable")
        for block in range(first, last + 1)
    ]
    slots = np.arange(step * batch_size, (step + 1) * batch_size)[_part(batch_size, host, n_hosts)]
    places = np.concatenate(order)[slots - first * buffer]
    which = np.searchsorted(ends, places, side="right")
    inside = places - (ends - sizes[drawn])[which]
    return (np.cumsum(sizes) - sizes)[drawn[which]] + inside


def _words(seed: int, purpose: int, block: int, n: int) -> np.ndarray:
    """Returns ``n`` uniform uint64, the first of which do not depend on ``n``."""
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, block, 0, 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


def _part(batch_size: int, host: int, n_hosts: int) -> slice:
    size = batch_size // n_hosts
    return slice(host * size, (host + 1) * size)


def _check_sizes(sizes, batch_size, step, host, n_hosts):
    if not sizes.size or sizes.sum() < 1 or (sizes < 0).any():
        raise ValueError(f"sizes must be numbers of pairs, at least one in all, got {sizes}")
    if step < 0 or batch_size < 1:
        raise ValueError(
            f"step must be 0 or more and batch_size positive, got {step}, {batch_size}"
        )
    if not 0 <= host < n_hosts or batch_size % n_hosts:
        raise ValueError(
            f"host must lie in 0..{n_hosts - 1}, and n_hosts divide the batch of {batch_size}; "
            f"got host {host}"
        )
