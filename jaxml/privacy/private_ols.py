"""Private least squares whose error does not depend on the condition number of the data.

A variant of insufficient statistics perturbation (Brown, Hayase, Hopkins, Kong, Liu, Oh, Perdomo &
Smith, "Insufficient Statistics Perturbation: Stable Estimators for Private Least Squares",
COLT 2024) with its own constants. Assumptions, the guarantee and its proof are in
docs/private_ols.md; "(a)" to "(h)" below are its steps.

Everything here is float64. A data set ``[n, d]`` and its neighbour differ in one row; n is public.
"""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri
from scipy.stats import chi2

from jaxml.core.types import Key
from jaxml.privacy.mechanisms import (
    check_budget,
    chi_square_bound,
    gaussian_scale,
    ptr_pass_probs,
    standard_normal,
    to_host,
)

FAIL, PASS = 0, 1

# 1/L falls by this from level to level; (b) needs 1, the rest absorbs rounding.
STEP = 1 + 1e-6
# Column-scaled condition number beyond which leverages are rounding. Data near it fail by a stable
# score, as every other test here.
MAX_CONDITION = 1e10
# Below this, relative to its column, a diagonal entry of R is taken for zero.
_NO_RANK = 1e-13
# How the budget is tried out. All of it comes from public numbers, so the search is free.
_TEST_SHARES = np.linspace(0.05, 0.9, 18)
_RAMPS = (1, 2, 4, 8)
_DELTA_SHARES = (0.2, 0.6, 0.2)  # of the test, the mean, the covariance
_BLOCK_ENTRIES = 8192


# Constants, from public numbers alone.


class ISSPConstants(NamedTuple):
    """What the mechanism needs to know; a function of public numbers only.

    Attributes:
      n: number of rows.
      epsilon: total budget.
      delta: likewise.
      leverage_bound: L0, assumed bound on the leverages of the rows ``(x_i, y_i)``.
      residual_bound: R0, assumed bound on residuals.
      residual_scale: sigma0, assumed bound on their root mean square.
      feasible: whether these numbers allow an answer; if not, every call fails.
      k: scores from here on fail for certain.
      ramp: m, number of levels over which the weight of a row falls from 1 to 0.
      pass_probs: ``[k + 1]``, from ``ptr_pass_probs``.
      epsilon_test: share of the stability test.
      epsilon_mean: share of the Gaussian noise.
      epsilon_covariance: share of the noise having a shape that depends on the data.
      delta_test: likewise.
      delta_mean: likewise.
      delta_covariance: likewise.
      leverage_limit: Lb, largest leverage of a row that counts, where the score is below k (d).
      gram_ratio: rho, by which neighbours' Gram matrices differ at most (e).
      residual_step: s, distance of the residual thresholds (e).
      residual_limit: Rv, largest residual of a row that counts (f).
      sensitivity: Delta, largest distance of neighbours' estimates (f).
      noise_scale: c; the noise is normal with covariance ``c^2 (X^T V X)^-1``. Infinite if not
        feasible.
    """

    n: int
    epsilon: float
    delta: float
    leverage_bound: float
    residual_bound: float
    residual_scale: float
    feasible: bool
    k: int
    ramp: int
    pass_probs: np.ndarray
    epsilon_test: float
    epsilon_mean: float
    epsilon_covariance: float
    delta_test: float
    delta_mean: float
    delta_covariance: float
    leverage_limit: float
    gram_ratio: float
    residual_step: float
    residual_limit: float
    sensitivity: float
    noise_scale: float


def issp_constants(
    n: int,
    *,
    epsilon: float,
    delta: float,
    leverage_bound: float,
    residual_bound: float,
    residual_scale: float,
    fail_rate: float = 1e-3,
) -> ISSPConstants:
    """Derives the constants of ``private_ols``, without looking at any data.

    The split of the budget is the one, of a fixed grid, with the least noise. The bounds must come
    from outside the data: from the field, from public data, or from ``gaussian_bounds``. The
    guarantee holds whether or not the data meet them; where they do not, the answer is FAIL.

    Args:
      n: number of rows.
      epsilon: privacy budget.
      delta: likewise.
      leverage_bound: bound in (0, 1) on ``z_i^T (Z^T Z)^-1 z_i`` of the rows ``z_i = (x_i, y_i)``.
      residual_bound: bound on ``|y_i - x_i^T beta|``.
      residual_scale: bound on the root mean square of the residuals.
      fail_rate: how often data that meet the bounds fail all the same.

    Returns:
      ISSPConstants; ``feasible`` is False where n is too small for the bounds and the budget.

    Raises:
      ValueError: an argument is out of range; names it.
    """
    check_budget(epsilon, delta)
    if not (isinstance(n, int | np.integer) and n > 0):
        raise ValueError(f"n must be a positive integer, got {n!r}")
    if not 0 < leverage_bound < 1:
        raise ValueError(f"leverage_bound must lie in (0, 1), got {leverage_bound}")
    if not 0 < residual_scale < math.inf:
        raise ValueError(f"residual_scale must be positive and finite, got {residual_scale}")
    if not residual_scale <= residual_bound < math.inf:
        raise ValueError(
            "residual_bound must be finite and at least residual_scale "
            f"({residual_scale}), got {residual_bound}"
        )
    if not 0 <= fail_rate < 1:
        raise ValueError(f"fail_rate must lie in [0, 1), got {fail_rate}")
    public = dict(
        n=int(n),
        epsilon=float(epsilon),
        delta=float(delta),
        leverage_bound=float(leverage_bound),
        residual_bound=float(residual_bound),
        residual_scale=float(residual_scale),
    )
    best = ISSPConstants(
        **public, feasible=False, k=1, ramp=1, pass_probs=np.zeros(2), epsilon_test=0.0,
        epsilon_mean=0.0, epsilon_covariance=0.0, delta_test=0.0, delta_mean=0.0,
        delta_covariance=0.0, leverage_limit=1.0, gram_ratio=2.0, residual_step=1.0,
        residual_limit=0.0, sensitivity=math.inf, noise_scale=math.inf,
    )  # fmt: skip
    for share in _TEST_SHARES:
        for ramp in _RAMPS:
            found = _constants(public, float(share), ramp, fail_rate)
            if found is not None and found.noise_scale < best.noise_scale:
                best = found
    return best


def _constants(public, share, ramp_over_k, fail_rate) -> ISSPConstants | None:
    """Returns the constants of one split of the budget, None where it allows no answer."""
    n, epsilon, delta = (public[name] for name in ("n", "epsilon", "delta"))
    level_0, r0, sigma0 = (
        public[name] for name in ("leverage_bound", "residual_bound", "residual_scale")
    )
    epsilon_test = share * epsilon
    delta_test, delta_mean, delta_covariance = (part * delta for part in _DELTA_SHARES)
    delta_covariance *= math.exp(-epsilon)
    probs = ptr_pass_probs(epsilon_test, delta_test, fail_rate)
    k = len(probs) - 1
    ramp = ramp_over_k * k
    # (d): 1/leverage of a row in the largest good set, and against the weighted Gram matrix.
    inverse_top = 1 / level_0 - (k + ramp) * STEP
    inverse_limit = inverse_top - (k - 1)
    if inverse_limit <= 4:
        return None
    limit = 1 / inverse_limit
    # (e): weight that neighbours do not share, on one side and on both.
    one_side = 1 + (k - 1) / ramp
    both_sides = 2 + (k - 1) / ramp
    shrink = 1 - one_side * limit
    rho = 1 / shrink
    reference = math.sqrt(limit * n * rho ** (k - 1)) * sigma0
    step = both_sides * (limit / 2) * reference / shrink
    # (f)
    moved = (k - 1) * math.sqrt(limit * inverse_top) * (limit / 2) * reference
    residual_limit = min(r0 + (k + ramp) * step + moved, reference)
    product = (
        reference / 2
        if residual_limit >= reference / math.sqrt(2)
        else residual_limit * math.sqrt(1 - (residual_limit / reference) ** 2)
    )
    sensitivity = both_sides * math.sqrt(limit) * product / shrink
    # (g)
    x = chi_square_bound(delta_covariance)
    epsilon_covariance = 0.5 * (limit / (1 - limit) + x * one_side * limit / shrink)
    epsilon_mean = epsilon - epsilon_test - epsilon_covariance
    if epsilon_mean <= 0:
        return None
    return ISSPConstants(
        **public,
        feasible=True,
        k=k,
        ramp=ramp,
        pass_probs=probs,
        epsilon_test=epsilon_test,
        epsilon_mean=epsilon_mean,
        epsilon_covariance=epsilon_covariance,
        delta_test=delta_test,
        delta_mean=delta_mean,
        delta_covariance=delta_covariance,
        leverage_limit=limit,
        gram_ratio=rho,
        residual_step=step,
        residual_limit=residual_limit,
        sensitivity=sensitivity,
        noise_scale=sensitivity * gaussian_scale(epsilon_mean, delta_mean),
    )


def predicted_error(constants: ISSPConstants, d: int) -> float:
    """Returns the root mean square of the noise in ``||Sigma^(1/2) (coef - OLS)||``.

    ``Sigma = X^T X / n``: the noise alone makes predictions err by so much. It is known before any
    budget is spent. Infinite where no answer is possible; above the spread of y, an answer says
    less than the answer 0 does.
    """
    return constants.noise_scale * math.sqrt(d / constants.n)


def budget_ledger(constants: ISSPConstants) -> dict[str, Any]:
    """Lists where the budget goes; the totals are those of docs/private_ols.md (h)."""
    c = constants
    return {
        "neighbouring": "replace_one",
        "guarantee": "(epsilon, delta) in real arithmetic",
        "epsilon": c.epsilon,
        "delta": c.delta,
        "feasible": c.feasible,
        "spent": {
            "stability test": {"epsilon": c.epsilon_test, "delta": c.delta_test},
            "noise on the mean": {"epsilon": c.epsilon_mean, "delta": c.delta_mean},
            "shape of the noise": {
                "epsilon": c.epsilon_covariance,
                "delta": c.delta_covariance,
                "delta as composed": math.exp(c.epsilon_mean) * c.delta_covariance,
            },
        },
        "total": {
            "epsilon": c.epsilon_test + c.epsilon_mean + c.epsilon_covariance,
            "delta": c.delta_test + c.delta_mean + math.exp(c.epsilon_mean) * c.delta_covariance,
        },
        "assumed": {
            "n": c.n,
            "leverage_bound": c.leverage_bound,
            "residual_bound": c.residual_bound,
            "residual_scale": c.residual_scale,
        },
        "derived": {
            "k": c.k,
            "ramp": c.ramp,
            "leverage_limit": c.leverage_limit,
            "gram_ratio": c.gram_ratio,
            "residual_step": c.residual_step,
            "residual_limit": c.residual_limit,
            "sensitivity": c.sensitivity,
            "noise_scale": c.noise_scale,
        },
    }


class Bounds(NamedTuple):
    """What ``issp_constants`` wants to be told about the data."""

    leverage_bound: float
    residual_bound: float
    residual_scale: float


def gaussian_bounds(n: int, d: int, *, noise_std: float = 1.0) -> Bounds:
    """Returns bounds that Gaussian-like data meet with high probability, from public numbers.

    Rows drawn from any normal distribution in d dimensions, y linear with normal errors: leverages
    are then about chi-square over n, whatever the covariance. With probability about 0.98 no row
    exceeds them.

    Args:
      n: number of rows.
      d: number of columns of X, one of ones included.
      noise_std: standard deviation of the errors in y.
    """
    quantile = chi2.isf(0.01 / n, d + 1)
    leverage = 1.05 * quantile * (1 + 0.5 * math.sqrt(d / n)) / n
    scale = noise_std * (1 + 3 / math.sqrt(n))
    residual = 1.03 * noise_std * -float(ndtri(0.005 / n))
    return Bounds(min(float(leverage), 0.999), max(residual, scale), scale)


def bounds_nonprivate(X: np.ndarray, y: np.ndarray) -> Bounds:
    """Reads the bounds off a data set, and warns: a release that uses them is not private.

    For public data of the same kind, from which to learn bounds for the private ones.

    Args:
      X: ``[n, d]`` of full column rank.
      y: ``[n]``.
    """
    warnings.warn(
        "bounds_nonprivate reads the data: with these bounds on the same data, a release is not "
        "differentially private",
        UserWarning,
        stacklevel=2,
    )
    X, y = np.asarray(X, np.float64), np.asarray(y, np.float64)
    Z = np.column_stack([X, y])
    q, _ = np.linalg.qr(Z / np.abs(Z).max(0))
    residuals = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    return Bounds(
        float(np.square(q).sum(1).max()),
        float(np.abs(residuals).max()),
        float(np.sqrt(np.square(residuals).mean())),
    )


# Levels: how far a row is from being a good one.


class LeverageLevels(NamedTuple):
    """Levels ``[n]`` int32 of the rows, and how many passes over the data (QR) it took."""

    levels: jax.Array
    n_passes: jax.Array


def leverage_levels(Z: jax.Array, *, leverage_bound: float, k: int, ramp: int) -> LeverageLevels:
    """Finds the first of a row of rising thresholds at which each row is good.

    A set S of rows is good at L if ``Z_S`` has full rank and all leverages within S are at most L;
    the empty set is good. There is a largest good set S_l for each of the thresholds
    ``1/L_l = 1/L0 - STEP l``, l = 0..k + ramp (a). The level of a row is the smallest l with the
    row in S_l, and k + ramp + 1 if there is none. Replacing one row of Z changes the level of every
    other row by at most one (b).

    Rows are dropped, from the largest threshold down, until all that are left are good. A row with
    an entry that is not finite is in no good set. Clean data take one pass.

    | data | levels |
    |---|---|
    | all leverages at most L0 | 0 |
    | one gross outlier | k + ramp + 1 for that row |
    | fewer rows than columns, or rank deficient | k + ramp + 1 for all rows |

    Args:
      Z: ``[n, p]`` float64; any affine change of the columns gives the same levels.
      leverage_bound: L0.
      k: as in ISSPConstants; so many rows dropped early end the search, the score being k.
      ramp: likewise.

    Returns:
      LeverageLevels.
    """
    finite = jnp.isfinite(Z).all(1)
    top = jnp.asarray(k + ramp, jnp.int32)

    def level_of(leverage):
        return _count(jnp.ceil((1 / leverage_bound - 1 / leverage) / STEP), top + 1)

    def by_coordinates(rows):
        # A row's share of a column is below its leverage. Taking out first the rows that this
        # shows to be outliers keeps their size out of the factorisation.
        square = jnp.square(rows)
        total = square.sum(0, keepdims=True)
        return (square / jnp.where(total > 0, total, 1.0)).max(1)

    def by_factorisation(rows):
        r = _triangle(rows)
        size = jnp.sqrt(jnp.square(r).sum(0))
        no_rank = (jnp.abs(jnp.diagonal(r)) <= _NO_RANK * size).any()
        r = jnp.where(no_rank, jnp.eye(len(r), dtype=r.dtype), r)
        return jnp.square(rows @ _inverse(r)).sum(1), no_rank

    def search(state):
        level, active, levels, n_passes, _ = state
        rows = _scaled(Z, active)[0]
        share = by_coordinates(rows)
        obvious = (active & (level_of(share) > level)).any()
        leverage, no_rank = jax.lax.cond(
            obvious, lambda rows: (share, jnp.bool(False)), by_factorisation, rows
        )
        needed = jnp.where(active, level_of(leverage), 0)
        over = needed > level
        clean = ~over.any() & ~no_rank
        lowest = jnp.where(clean, needed.max(), level + 1)
        # Without full rank no subset is good, here or at a lower threshold.
        levels = jnp.where(active & (clean | no_rank | over), lowest, levels)
        active = active & ~over
        gone = (~active).sum(dtype=jnp.int32)
        done = no_rank | (clean & (lowest == 0)) | ((level >= k) & (gone >= k))
        level = jnp.where(clean, lowest - 1, level)
        return level, active, levels, n_passes + jnp.where(obvious, 0, 1), done

    levels = jnp.full(len(Z), top + 1)
    start = top, finite, levels, jnp.int32(0), jnp.bool(False)
    _, _, levels, n_passes, _ = jax.lax.while_loop(lambda state: ~state[-1], search, start)
    return LeverageLevels(levels, n_passes)


def _count(steps: jax.Array, most: jax.Array) -> jax.Array:
    """Limits whole numbers of steps to 0..most, as int32."""
    return jnp.clip(steps, 0.0, most.astype(steps.dtype)).astype(jnp.int32)


def level_score(levels: jax.Array, k: int) -> jax.Array:
    """Returns the smallest z with at most z rows above level z, at most k.

    It changes by at most one when one row is replaced and all other levels change by at most
    one (c). Such a score exists for the sum of the two counts too, but that one changes by two.
    """

    def more(z):
        return (z < k) & ((levels > z).sum(dtype=jnp.int32) > z)

    return jax.lax.while_loop(more, lambda z: z + 1, jnp.int32(0))


def level_weights(levels: jax.Array, *, k: int, ramp: int) -> jax.Array:
    """Returns the share of the thresholds k + 1..k + ramp at which a row is good, ``[n]``."""
    good = jnp.clip(k + ramp + 1 - levels, 0, ramp)
    return good.astype(jnp.float64) / jnp.asarray(ramp, jnp.float64)


# Weighted least squares by one triangular factor of (X, y).


class WeightedOLS(NamedTuple):
    """A weighted least-squares fit.

    Attributes:
      coef: ``[d]``.
      rss: weighted sum of squared residuals.
      root: ``[d, d]`` with ``root root^T = (X^T W X)^-1``; ``X root`` is the same for ``X A``.
      smallest: least eigenvalue of the Gram matrix of (X, y), scaled to a unit diagonal.
    """

    coef: jax.Array
    rss: jax.Array
    root: jax.Array
    smallest: jax.Array


def weighted_ols(Z: jax.Array, weights: jax.Array) -> WeightedOLS:
    """Solves ``min sum_i w_i (y_i - x_i^T b)^2`` by QR.

    Args:
      Z: ``[n, d + 1]`` float64, columns of X and then y; rows of weight 0 may hold anything.
      weights: ``[n]`` in [0, 1].

    Returns:
      WeightedOLS; NaN where X is rank deficient.
    """
    rows, scale = _scaled(Z, weights > 0)
    rows = jnp.sqrt(weights)[:, None] * rows
    r = _triangle(rows)
    size = jnp.sqrt(jnp.square(r).sum(0))
    singular = jnp.linalg.svd(r / jnp.where(size > 0, size, 1.0)[None], compute_uv=False)
    smallest = jnp.where((size > 0).all(), jnp.square(singular[-1]), 0.0)
    inverse = _inverse(r[:-1, :-1])
    root = inverse / scale[:-1, None]
    return WeightedOLS(
        root @ r[:-1, -1] * scale[-1],
        jnp.square(r[-1, -1] * scale[-1]),
        root @ _turn(rows[:, :-1] @ inverse),
        smallest,
    )


def _turn(basis: jax.Array) -> jax.Array:
    """Returns the rotation ``[d, d]`` that brings an orthonormal basis ``[n, d]`` to a standard.

    Two bases of one space come to the same one: that in which the sums of every d-th row form a
    triangle. So the noise is the same function of the key whatever the units of the columns. A
    rotation leaves its distribution as it is.
    """
    n, d = basis.shape
    sums = jnp.pad(basis, ((0, -n % d), (0, 0))).reshape(-1, d, d).sum(0)
    q, r = jnp.linalg.qr(sums.T)
    return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None]


def _scaled(Z: jax.Array, active: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts rows that are not active to zero and divides columns by their largest entry."""
    rows = jnp.where(active[:, None], Z, 0.0)
    largest = jnp.abs(rows).max(0, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0)
    return rows / scale, scale[0]


def _triangle(rows: jax.Array) -> jax.Array:
    """Returns R ``[p, p]`` of a QR factorisation, by a tree of small ones.

    Blocks shard; and LAPACK factorises small ones on one thread, which on a busy machine is many
    times faster than on several that wait for each other.
    """
    n, p = rows.shape
    rows = jnp.pad(rows, ((0, max(0, p - n)), (0, 0)))
    size = max(4 * p, _BLOCK_ENTRIES // p)
    while len(rows) > 2 * size:
        n_blocks = 8 * -(-len(rows) // (8 * size))
        padded = jnp.pad(rows, ((0, -len(rows) % n_blocks), (0, 0)))
        rows = jnp.linalg.qr(padded.reshape(n_blocks, -1, p), mode="r").reshape(-1, p)
    return jnp.linalg.qr(rows, mode="r")


def _inverse(r: jax.Array) -> jax.Array:
    return jax.scipy.linalg.solve_triangular(r, jnp.eye(len(r), dtype=r.dtype))


# The mechanism.


class PrivateOLSResult(NamedTuple):
    """What may be published.

    Attributes:
      status: int32, PASS (1) or FAIL (0).
      coef: ``[d]`` float64, NaN if the status is FAIL.
      noise_scale: c, as in ISSPConstants.
    """

    status: jax.Array
    coef: jax.Array
    noise_scale: jax.Array


class Diagnostics(NamedTuple):
    """What must not be published: all of it depends on the data without noise.

    Attributes:
      score: int32, in 0..k.
      levels: ``[n]`` int32, of leverage and residual.
      weights: ``[n]``, of the released fit.
      leverage_levels: ``[n]`` int32.
      leverage_weights: ``[n]``.
      coef: ``[d]``, of the released fit before noise.
      leverage_coef: ``[d]``, of the fit by ``leverage_weights``.
      root: ``[d, d]`` with ``root root^T = (X^T V X)^-1``.
      rss: of the fit by ``leverage_weights``.
      n_passes: QR factorisations of the search for leverage levels.
    """

    score: jax.Array
    levels: jax.Array
    weights: jax.Array
    leverage_levels: jax.Array
    leverage_weights: jax.Array
    coef: jax.Array
    leverage_coef: jax.Array
    root: jax.Array
    rss: jax.Array
    n_passes: jax.Array


def private_ols(
    key: Key,
    X: jax.Array,
    y: jax.Array,
    constants: ISSPConstants,
    *,
    unsafe_diagnostics: bool = False,
) -> PrivateOLSResult | tuple[PrivateOLSResult, Diagnostics]:
    """Estimates a linear regression with (epsilon, delta)-differential privacy.

    1. Levels of leverage, and weights from them; weighted least squares.
    2. Levels of residuals from that fit, and weights v from both; weighted least squares again.
    3. With probability ``pass_probs[score]``: ``beta_v + c (X^T V X)^(-1/2) g``. Else FAIL.

    The guarantee holds for any data, in real arithmetic, against replacement of one row (h); the
    time the call takes is not covered. Rows with entries that are not finite count as outliers.

    | data | result |
    |---|---|
    | meet the bounds | PASS, except for about ``fail_rate`` of the keys; v = 1 |
    | few outliers, of any size | PASS as a rule; they have weight 0 |
    | k outliers or more | FAIL |
    | X or (X, y) rank deficient, fewer rows than d + 1 | FAIL |
    | ``constants`` not feasible | FAIL |

    Args:
      key: typed key from the operating system's entropy (``entropy_key``), used once.
      X: ``[n, d]`` float64; a column of ones is yours to add.
      y: ``[n]`` float64.
      constants: from ``issp_constants``.
      unsafe_diagnostics: also return Diagnostics, which are not private.

    Returns:
      PrivateOLSResult, of numpy arrays. Under a transformation, of traced ones: it can be vmapped
      over the key, and over data sets of one shape.

    Raises:
      ValueError: shapes that do not fit each other or ``constants.n``, or another dtype than
        float64. Never because of values.
    """
    _check(X, y, constants)
    with jax.enable_x64(True):
        # Without the table, whose length would have this compiled anew for every k.
        fit = _fit(X, y, constants._replace(pass_probs=None))
        result = _release(key, fit, constants)
    result, fit = to_host((result, fit))
    return (result, fit) if unsafe_diagnostics else result


def _check(X, y, constants: ISSPConstants) -> None:
    for name, array, ndim in (("X", X, 2), ("y", y, 1)):
        if array.ndim != ndim:
            raise ValueError(f"{name} must have {ndim} axes, got shape {tuple(array.shape)}")
        if array.dtype != np.float64:
            raise ValueError(
                f"{name} must be float64, got {array.dtype}: float32 leverages are off by half"
            )
    if len(X) != len(y) or len(X) != constants.n:
        raise ValueError(
            f"X and y must have the {constants.n} rows that constants are for, got {len(X)} and "
            f"{len(y)}"
        )
    if X.shape[1] == 0:
        raise ValueError("X must have at least one column, got none")


@jax.jit
def _fit(X, y, constants: ISSPConstants) -> Diagnostics:
    """Does all that depends on the data, without noise."""
    c, k, n = constants, jnp.asarray(constants.k, jnp.int32), jnp.asarray(len(y), jnp.float64)
    ramp = jnp.asarray(constants.ramp, jnp.int32)
    Z = jnp.concatenate([X, y[:, None]], axis=1)
    first, n_passes = leverage_levels(Z, leverage_bound=c.leverage_bound, k=k, ramp=ramp)
    w = level_weights(first, k=k, ramp=ramp)
    fit_w = weighted_ols(Z, w)
    # From here on, for data whose first score is k, numbers mean nothing and are not used.
    usable = level_score(first, k) < k

    def steps(ratio, base):
        """Returns max(0, ceil(log_base(ratio))), k where that is no number."""
        found = jnp.ceil(jnp.log(ratio) / jnp.log(base))
        return jnp.where(jnp.isnan(found), k, _count(found, k))

    rho = jnp.asarray(c.gram_ratio, jnp.float64)
    rss_steps = steps(fit_w.rss / n / c.residual_scale**2, rho)
    rank_steps = steps(1 / (MAX_CONDITION**2 * fit_w.smallest), rho**2)
    counted = jnp.where((w > 0)[:, None], Z, 0.0)
    residuals = jnp.abs(counted[:, -1] - counted[:, :-1] @ fit_w.coef)
    excess = jnp.ceil(jnp.maximum(residuals - c.residual_bound, 0.0) / c.residual_step)
    # Not a number only where nothing is usable.
    levels = jnp.maximum(first, _count(jnp.nan_to_num(excess), k + ramp + 1))
    score = jnp.maximum(level_score(levels, k), jnp.maximum(rss_steps, rank_steps))
    score = jnp.where(usable, jnp.minimum(score, k), k)
    v = level_weights(levels, k=k, ramp=ramp)
    fit_v = jax.lax.cond((v == w).all(), lambda: fit_w, lambda: weighted_ols(Z, v))
    return Diagnostics(
        score, levels, v, first, w, fit_v.coef, fit_w.coef, fit_v.root, fit_w.rss, n_passes
    )


def _release(key, fit: Diagnostics, constants: ISSPConstants) -> PrivateOLSResult:
    """Tosses the coin and adds the noise."""
    probs = np.pad(constants.pass_probs, (0, -len(constants.pass_probs) % 256))
    scale = constants.noise_scale if constants.feasible else 0.0
    status, coef = _draw(key, fit.score, fit.coef, fit.root, probs * constants.feasible, scale)
    return PrivateOLSResult(status, coef, jnp.asarray(constants.noise_scale, jnp.float64))


@jax.jit
def _draw(key, score, coef, root, probs, scale):
    key_test, key_noise = jax.random.split(key)
    passed = jax.random.uniform(key_test, dtype=jnp.float64) < probs[score]
    noise = scale * (root @ standard_normal(key_noise, coef.shape))
    status = jnp.where(passed, PASS, FAIL).astype(jnp.int32)
    return status, jnp.where(passed, coef + noise, jnp.nan)
