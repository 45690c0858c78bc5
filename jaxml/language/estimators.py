"""How many distinct things there are to see, from how often each was seen.

What was seen comes as its frequencies ``f``: ``f[k - 1]`` distinct things were seen ``k`` times, so
``S = sum_k f_k`` are distinct among ``n = sum_k k f_k``. Nothing seen gives None or 0, never a NaN.
The estimators assume independent draws; windows of one generation are not, so an interval comes
from drawing whole generations anew, by ``bootstrap_unique``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats

from jaxml.core.rng import numpy_generator
from jaxml.core.types import Key


def frequencies(counts: np.ndarray) -> np.ndarray:
    """Returns ``f``, int64 ``[max]``, of how often each thing was seen, ``[s]``; zeros drop out.

    Raises:
      ValueError: counts that are not integers, or negative.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or (counts.size and (counts.dtype.kind not in "iu" or counts.min() < 0)):
        raise ValueError(f"counts must be integers [s], none negative; got {counts.dtype}")
    return np.bincount(counts.astype(np.int64), minlength=1)[1:]


def good_turing_missing_mass(f: np.ndarray) -> float | None:
    """Estimates the probability that the next draw is new: ``f_1 / n``; None without draws.

    Ref: Good, "The Population Frequencies of Species and the Estimation of Population Parameters",
    1953.
    """
    f = _check(f)
    n = _size(f)
    return float(_first(f, 1) / n) if n else None


def good_toulmin(f: np.ndarray, t: float, *, smooth: bool | None = None) -> float:
    """Estimates how many new things ``t n`` further draws show: ``-sum_k (-t)^k f_k``.

    Its terms grow without bound for ``t > 1``. Smoothed, term ``k`` is weighted by
    ``P(L >= k)``, ``L`` binomial with ``floor(log3(n t^2 / (t - 1)) / 2)`` trials of probability
    ``2 / (2 + t)``.

    Ref: Good & Toulmin, 1956; Orlitsky, Suresh & Wu, "Optimal prediction of the number of unseen
    species", 2016.

    Args:
      f: frequencies.
      t: further draws over draws so far, not negative.
      smooth: whether to smooth, which needs ``t > 1``; None: for ``t > 1``.

    Returns:
      The number, at least 0 and at most ``t n``, which no outcome leaves.

    Raises:
      ValueError: a negative ``t``, or smoothing for ``t <= 1``.
    """
    f = _check(f)
    n = _size(f)
    if not (t >= 0 and math.isfinite(t)):
        raise ValueError(f"t must be a number of at least 0, got {t}")
    smooth = t > 1 if smooth is None else smooth
    if smooth and t <= 1:
        raise ValueError(f"smooth=True needs t > 1, got {t}")
    if not n or not t:
        return 0.0
    k = np.arange(1, f.size + 1)
    k, f = k[f > 0], f[f > 0].astype(np.float64)
    if smooth:
        trials = max(math.floor(0.5 * math.log(n * t * t / (t - 1), 3)), 1)
        weight = scipy.stats.binom.sf(k - 1, trials, 2 / (2 + t))
        k, f, weight = (a[weight > 0] for a in (k, f, weight))
    else:
        weight = np.ones(k.size)
    with np.errstate(over="ignore", invalid="ignore"):
        total = -(weight * np.power(-float(t), k) * f).sum()
    # Terms that overflow cancel to anything.
    return float(np.clip(total, 0, t * n)) if np.isfinite(total) else float(t * n)


class Chao(NamedTuple):
    """A lower bound on the number of things, and its standard error."""

    total: float
    standard_error: float


def chao1(f: np.ndarray) -> Chao:
    """Bounds the number of things from below: ``S + f_1 (f_1 - 1) / (2 (f_2 + 1))``.

    The bias-corrected form, which is finite without anything seen twice. The standard error takes
    ``f_1``, ``f_2`` and the unseen as Poisson: with ``D`` the second term, that of
    ``D + f_1 (dD/df_1)^2 + f_2 (dD/df_2)^2``.

    Ref: Chao, "Nonparametric estimation of the number of classes in a population", 1984.
    """
    f = _check(f)
    f1, f2 = _first(f, 1), _first(f, 2)
    unseen = f1 * (f1 - 1) / (2 * (f2 + 1))
    by_f1 = (2 * f1 - 1) / (2 * (f2 + 1))
    by_f2 = unseen / (f2 + 1)
    variance = unseen + f1 * by_f1**2 + f2 * by_f2**2 if unseen else 0.0
    return Chao(float(f.sum() + unseen), math.sqrt(variance))


def mark_recapture(n_first: int, n_second: int, n_both: int) -> float | None:
    """Estimates the number of things from two samples: ``n_first n_second / n_both``.

    A lower bound where things are not equally likely (Lincoln and Petersen).

    Args:
      n_first: distinct in the first sample.
      n_second: distinct in the second sample.
      n_both: distinct in both.

    Returns:
      The number; None where nothing was seen twice.

    Raises:
      ValueError: a negative number, or more in both than in one.
    """
    if not 0 <= n_both <= min(n_first, n_second):
        raise ValueError(
            f"n_both must lie in 0..{min(n_first, n_second)}, the smaller sample, got {n_both}"
        )
    return n_first * n_second / n_both if n_both else None


def sequential_good_turing(key: Key, counts: np.ndarray, n_extra: int) -> np.ndarray:
    """Simulates further draws, each of which is new with probability ``f_1 / n``.

    A draw that is not new repeats a past one, in proportion to its count, and takes it out of
    ``f_1`` if that was its only one. It never asks for ``f_2`` and so has no ceiling: read it
    beside ``chao1``.

    Ref: Nasr et al., "Scalable Extraction of Training Data from (Production) Language Models",
    2023.

    Args:
      key: a typed key.
      counts: how often each thing was seen, ``[s]``.
      n_extra: further draws.

    Returns:
      int64 ``[n_extra]``, distinct things after each; all 0 if there was no draw to start from.

    Raises:
      ValueError: counts as ``frequencies``, or a negative ``n_extra``.
    """
    f = frequencies(counts)
    if n_extra < 0:
        raise ValueError(f"n_extra must not be negative, got {n_extra}")
    counts = np.asarray(counts)
    counts = counts[counts > 0]
    n = int(counts.sum())
    if not n or not n_extra:
        return np.zeros(n_extra, np.int64)
    rng = numpy_generator(key)
    draws = np.repeat(np.arange(counts.size), counts).tolist()
    seen = counts.tolist()
    singletons = int(f[0])
    distinct = np.empty(n_extra, np.int64)
    for i, (is_new, place) in enumerate(rng.random((n_extra, 2)).tolist()):
        if is_new * (n + i) < singletons:
            thing = len(seen)
            seen.append(1)
            singletons += 1
        else:
            thing = draws[int(place * (n + i))]
            singletons -= seen[thing] == 1
            seen[thing] += 1
        draws.append(thing)
        distinct[i] = len(seen)
    return distinct


class Interval(NamedTuple):
    """A prediction and its interval."""

    estimate: float
    low: float
    high: float


def bootstrap_unique(
    key: Key,
    generation: np.ndarray,
    thing: np.ndarray,
    estimator: Callable[[np.ndarray], float],
    *,
    n_generations: int,
    n_resamples: int = 200,
    level: float = 0.95,
) -> Interval:
    """Predicts how many distinct things there will be, ``S + U``, with a bootstrap interval.

    Drawing generations anew, with replacement, shows how ``S + U`` varies, hits of one generation
    staying together. A draw repeats what it holds and so shows fewer distinct things than the
    sample, which shifts all draws alike: what counts are deviations from their median. To these
    come the chances of the further draws: what is new arrives in clumps, of ``c`` things on
    average over things, with variance ``c U``, where ``c = sum_g u_g^2 / sum_g u_g`` and ``u_g``
    counts the things that only generation ``g`` has.

    Args:
      key: a typed key.
      generation: the generation of each hit, ``[h]``.
      thing: what it hit, integers ``[h]`` from 0.
      estimator: the number ``U`` of new things from frequencies ``f``, such as
        ``lambda f: good_toulmin(f, 1.0)``.
      n_generations: with and without hits; larger than every number in ``generation``.
      n_resamples: draws.
      level: of the interval, in (0, 1).

    Returns:
      Interval; its lower end is at least ``S``.

    Raises:
      ValueError: arrays of different shapes, negative or too large numbers, or an option outside
        its range.
    """
    generation, thing = np.asarray(generation, np.int64), np.asarray(thing, np.int64)
    if generation.ndim != 1 or generation.shape != thing.shape:
        raise ValueError(
            f"generation and thing must both be [h], got {generation.shape} and {thing.shape}"
        )
    if n_generations < 1 or n_resamples < 2:
        raise ValueError(
            "n_generations must be at least 1 and n_resamples at least 2, "
            f"got {n_generations} and {n_resamples}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if generation.size and not (0 <= generation.min() <= generation.max() < n_generations):
        raise ValueError(f"generation must lie in 0..{n_generations - 1}")
    if thing.size and thing.min() < 0:
        raise ValueError(f"thing must not be negative, got {thing.min()}")

    counts = np.bincount(thing, minlength=1)
    distinct = int((counts > 0).sum())
    new = estimator(frequencies(counts))
    pairs = np.unique(np.stack([thing, generation]), axis=1)
    is_only = np.bincount(pairs[0], minlength=1)[pairs[0]] == 1
    only = np.bincount(pairs[1][is_only], minlength=1)
    clump = (only**2).sum() / max(only.sum(), 1)

    rng = numpy_generator(key)
    values = np.empty(n_resamples)
    for i in range(n_resamples):
        times = np.bincount(
            rng.integers(n_generations, size=n_generations), minlength=n_generations
        )
        # The weights are small integers, which floats hold exactly.
        f = frequencies(np.bincount(thing, weights=times[generation], minlength=1).astype(np.int64))
        values[i] = f.sum() + estimator(f)
    deviations = values - np.median(values)
    deviations += math.sqrt(clump * new) * rng.normal(size=n_resamples)
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    estimate = float(distinct + new)
    return Interval(estimate, max(estimate + float(low), float(distinct)), estimate + float(high))


def _check(f: np.ndarray) -> np.ndarray:
    f = np.asarray(f)
    if f.ndim != 1 or (f.size and (f.dtype.kind not in "iu" or f.min() < 0)):
        raise ValueError(f"f must be frequencies [k], integers, none negative; got {f.dtype} {f}")
    return f.astype(np.int64)


def _size(f: np.ndarray) -> int:
    return int((np.arange(1, f.size + 1) * f).sum())


def _first(f: np.ndarray, k: int) -> int:
    return int(f[k - 1]) if f.size >= k else 0
