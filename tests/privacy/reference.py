"""Levels by their definition in numpy, and data sets that press on one inequality each."""

import itertools

import numpy as np

from jaxml.privacy import issp_constants


def inverse_threshold(level, leverage_bound):
    return 1 / leverage_bound - level * (1 + 1e-6)


def largest_good_set(Z, threshold):
    """Drops the worst row until all that are left are good."""
    left = [i for i, row in enumerate(Z) if np.isfinite(row).all()]
    while left:
        rows = Z[left]
        if np.linalg.matrix_rank(rows) < Z.shape[1]:
            return set()
        leverage = np.einsum("ij,jk,ik->i", rows, np.linalg.inv(rows.T @ rows), rows)
        worst = leverage.argmax()
        if leverage[worst] <= threshold:
            return set(left)
        del left[worst]
    return set()


def union_of_good_sets(Z, threshold):
    """Looks at every subset of the rows."""
    found = set()
    for size in range(Z.shape[1], len(Z) + 1):
        for rows in itertools.combinations(range(len(Z)), size):
            if largest_good_set(Z[list(rows)], threshold) == set(range(size)):
                found |= set(rows)
    return found


def levels(Z, leverage_bound, k, ramp, good=largest_good_set):
    found = np.full(len(Z), k + ramp + 1)
    for level in range(k + ramp, -1, -1):
        threshold = 1 / inverse_threshold(level, leverage_bound)
        found[list(good(Z, threshold))] = level
    return found


def score(levels, k):
    return next(z for z in range(k + 1) if z == k or (levels > z).sum() <= z)


def sum_score(levels, k):
    """The published score: rows left out, plus the level."""
    return min(k, *((levels > z).sum() + z for z in range(k + 1)))


def make_data(rng, n, d, condition=1.0, noise=1.0):
    """Draws rows of a rotated normal, and y of error ``noise``; returns X, y, Sigma^1/2, coef."""
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    half = np.geomspace(1, 1 / condition, d)[:, None] * rotation
    coef = np.linalg.solve(half, np.full(d, d**-0.5))
    X = rng.normal(size=(n, d)) @ half
    return X, X @ coef + noise * rng.normal(size=n), half, coef


def signs(n):
    """Lists the rows ``(x, y)`` of the four signs, n a multiple of 4: leverages are all 2/n."""
    return np.tile([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], (n // 4, 1))


def wide_constants(n, **changes):
    """Returns constants with a small k, for data sets of a few hundred rows."""
    public = dict(
        epsilon=12.0, delta=1e-3, leverage_bound=0.022, residual_bound=1.85, residual_scale=1.1
    )
    return issp_constants(n, **public | changes)
