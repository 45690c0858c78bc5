"""Audits: a lower bound on epsilon from outputs on neighbouring data, and a check without sampling.

An audit can show that a mechanism is not private. It cannot show that one is: what it could have
found at most is part of its result.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.stats import beta

from jaxml.privacy.mechanisms import check_budget


class AuditResult(NamedTuple):
    """What an audit has found.

    Attributes:
      epsilon_lower: with the confidence asked for, the mechanism is not (e, delta)-private for any
        e below it; 0 says nothing.
      epsilon_power: the largest bound that so many draws can give: what a mechanism gets that gives
        itself away every time. Leaks above it look like it.
      n_draws: draws per data set on which the bound rests, half of those made.
      failed: share of draws in which the mechanism failed, on both data sets.
    """

    epsilon_lower: float
    epsilon_power: float
    n_draws: int
    failed: tuple[float, float]


def audit_epsilon(
    mechanism: Callable[..., jax.Array],
    data: tuple[Any, ...],
    neighbour: tuple[Any, ...],
    keys: jax.Array,
    *,
    delta: float,
    confidence: float = 0.99,
) -> AuditResult:
    """Bounds epsilon from below, by telling apart the outputs on two neighbouring data sets.

    Half of the draws choose a test, a half-line along the direction that separates the outputs
    best (Fisher's), or one that counts failures; the other half measures it. For a rejection region
    S, ``P[M(D) in S] <= e^epsilon P[M(D') in S] + delta``; both probabilities are bounded by
    Clopper and Pearson's intervals, which share out ``1 - confidence``.

    Args:
      mechanism: ``mechanism(key, *data) -> output [d]``, NaN for FAIL; it is vmapped over keys.
      data: arguments of the mechanism.
      neighbour: arguments that differ in one row.
      keys: typed keys ``[m]``, split evenly.
      delta: the delta that the mechanism claims.
      confidence: of the bound.

    Returns:
      AuditResult.

    Raises:
      ValueError: delta or confidence outside (0, 1), or fewer than 8 keys.
    """
    check_budget(1.0, delta)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    if len(keys) < 8:
        raise ValueError(f"keys must be at least 8, got {len(keys)}")
    halves = len(keys) // 2

    def draw(keys, arguments):
        outputs = np.asarray(jax.vmap(lambda key: mechanism(key, *arguments))(keys))
        return outputs.reshape(len(keys), -1)

    # Draws on D and on D' are independent of each other, so no key serves both.
    own, other = (draw(keys[i::2], a) for i, a in enumerate((data, neighbour)))
    middle = halves // 2
    choose = own[:middle], other[:middle]
    measure = own[middle:halves], other[middle:halves]
    direction = _direction(*choose)
    candidates = _candidates(*(outputs @ direction for outputs in choose))
    test = max(
        candidates,
        key=lambda t: _bound(*(t(outputs @ direction) for outputs in choose), delta, confidence),
    )
    hits = [test(outputs @ direction) for outputs in measure]
    n = len(measure[0])
    sure = np.ones(n, bool)
    failed = tuple(float(np.isnan(outputs).any(1).mean()) for outputs in (own, other))
    return AuditResult(
        max(0.0, _bound(*hits, delta, confidence)),
        max(0.0, _bound(sure, ~sure, delta, confidence)),
        n,
        failed,
    )


def _direction(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the normal ``[d]`` of Fisher's separating plane, of the outputs that are no FAIL."""
    own, other = (outputs[~np.isnan(outputs).any(1)] for outputs in (own, other))
    d = own.shape[1]
    if min(len(own), len(other)) < d + 2:
        return np.ones(d)
    spread = np.atleast_2d(np.cov(own, rowvar=False) + np.cov(other, rowvar=False))
    return np.linalg.pinv(spread, hermitian=True) @ (own.mean(0) - other.mean(0))


def _candidates(own: np.ndarray, other: np.ndarray):
    """Lists tests of projected outputs ``[n]``: FAIL and half-lines, each with its opposite."""
    both = np.concatenate([own, other])
    both = both[~np.isnan(both)]
    cuts = np.quantile(both, np.linspace(0.005, 0.995, 199)) if len(both) else []
    tests = [np.isnan, lambda x: ~np.isnan(x)]
    for cut in cuts:
        # Comparisons with NaN are false: FAIL lies in no half-line.
        tests += [lambda x, c=cut: x > c, lambda x, c=cut: x <= c]
    return tests


def _bound(own: np.ndarray, other: np.ndarray, delta: float, confidence: float) -> float:
    """Returns the better of the bounds from ``D against D'`` and ``D' against D``."""
    # Four one-sided intervals: two for each of the two directions.
    level = (1 - confidence) / 4
    found = []
    for hits, misses in ((own, other), (other, own)):
        n, a, b = len(hits), int(hits.sum()), int(misses.sum())
        low = beta.ppf(level, a, n - a + 1) if a else 0.0
        high = beta.isf(level, b + 1, n - b) if b < n else 1.0
        found.append(math.log((low - delta) / high) if low > delta else -math.inf)
    return max(found)


def reflected_pair(n: int, leverage: float) -> tuple[np.ndarray, np.ndarray]:
    """Makes neighbours ``[n, 2]`` (columns x and y) on which private least squares is at its worst.

    One row turns its residual over. Half of its leverage is in x and half in the residual, which
    moves the coefficient by the most that docs/private_ols.md (f) allows for one row. The second
    row is a probe, with nearly all its leverage in x. All others are signs.

    Args:
      n: rows, a multiple of 4.
      leverage: of the first two rows, about.

    Returns:
      The two data sets; only row 0 differs.
    """
    if n % 4 or n < 8:
        raise ValueError(f"n must be a multiple of 4 of at least 8, got {n}")
    signs = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]
    Z = np.tile(signs, (n // 4, 1))
    size = math.sqrt(leverage * n)
    Z[:2] = [[size / math.sqrt(2), size / math.sqrt(2)], [0.95 * size, 0.3 * size]]
    other = Z.copy()
    other[0, 1] *= -1
    return Z, other


def pass_table_excess(probs: np.ndarray, *, epsilon: float, delta: float) -> float:
    """Checks a table of passing probabilities for every score, without sampling.

    Coins ``p[z]`` and ``p[z + 1]`` have to be (epsilon, delta)-indistinguishable, for all z and in
    both directions, and scores beyond the table fail: ``p[k] = 0``.

    Args:
      probs: ``[k + 1]`` by score.
      epsilon: budget of the test.
      delta: likewise.

    Returns:
      By how much the worst inequality is broken; zero or less for a private rule.
    """
    p = np.append(np.asarray(probs, np.float64), 0.0)
    gain = math.exp(epsilon)
    excess = []
    for a, b in ((p[:-1], p[1:]), (p[1:], p[:-1])):
        excess += [a - gain * b - delta, (1 - a) - gain * (1 - b) - delta]
    return float(np.max(excess))
