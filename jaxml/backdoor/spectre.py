"""SPECTRE: find poisoned rows by a robust covariance, whitening and quantum entropy scores.

Every score here is a quadratic form ``||M (h - c)||^2``, so that what was fitted on some rows can
be applied to others. Nothing knows which rows are poisoned: a mask says only which rows are there.

Ref: Hayase, Kong, Somani & Oh, "SPECTRE: Defending Against Backdoor Attacks Using Robust
Statistics", 2021; the filter of Diakonikolas et al., "Being Robust (in High Dimensions) Can Be
Practical", 2017; quantum entropy scores of Dong, Hopkins & Li, 2019.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxml.core.chunk import reduce_batches

REMOVED_PER_OUTLIER = 1.5
METHODS = ("spectre", "pca", "norm", "mahalanobis")

# Relative size below which an eigenvalue of a float32 covariance is rounding.
_NULL = 1e-6
_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Scorer(NamedTuple):
    """A fitted score ``||map (h - center)||^2``; the larger, the more suspicious.

    Attributes:
      center: ``[d]``.
      map: ``[k, d]``.
    """

    center: Float[Array, " d"]
    map: Float[Array, "k d"]

    def __call__(self, h: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Scores rows, those it was fitted on or others."""
        return jnp.square(_dot(h - self.center[None], self.map.T)).sum(-1)


class Projection(NamedTuple):
    """Rows in the leading principal directions.

    Attributes:
      z: ``[n, k]``, zero where a row is masked out.
      mean: ``[d]``.
      basis: orthonormal columns ``[d, k]``, by falling variance; zero beyond the rank.
    """

    z: Float[Array, "n k"]
    mean: Float[Array, " d"]
    basis: Float[Array, "d k"]


class RobustCovariance(NamedTuple):
    """Moments of the rows that the filter has kept.

    Attributes:
      mean: ``[k]``.
      cov: ``[k, k]``.
      mask: the kept rows ``[n]``.
    """

    mean: Float[Array, " k"]
    cov: Float[Array, "k k"]
    mask: Bool[Array, " n"]


class Filtered(NamedTuple):
    """What ``spectre_filter`` found.

    Attributes:
      scores: ``[n]``; the larger, the more suspicious.
      keep: ``[n]``, all but the ``floor(1.5 m)`` highest scores.
      k: directions that were used.
      scorer: the fitted score.
    """

    scores: np.ndarray
    keep: np.ndarray
    k: int
    scorer: Scorer


def pca_project(
    h: Float[Array, "n d"], k: int, *, mask: Bool[Array, " n"] | None = None
) -> Projection:
    """Centres rows by their mean and projects them on the top ``k`` principal directions.

    Args:
      h: representations ``[n, d]``.
      k: static, in ``1..min(n - 1, d)``.
      mask: rows that are there ``[n]``; all by default.

    Raises:
      ValueError: ``k`` out of range.
    """
    n, d = h.shape
    _check_k(k, n, d)
    mask = _rows(h, mask)
    mean = _mean(h, mask)
    x = jnp.where(mask[:, None], h - mean[None], 0)
    if d <= n:
        basis = jnp.linalg.eigh(_dot(x.T, x))[1][:, ::-1][:, :k]
    else:
        values, left = jnp.linalg.eigh(_dot(x, x.T))
        values, left = values[::-1][:k], left[:, ::-1][:, :k]
        real = values > _NULL * values[0]
        scale = jnp.where(real, jax.lax.rsqrt(jnp.where(real, values, 1)), 0)
        basis = _dot(x.T, left) * scale[None]
    return Projection(_dot(x, basis), mean, basis)


def robust_covariance(
    z: Float[Array, "n k"],
    n_outliers: Float[Array, ""],
    *,
    mask: Bool[Array, " n"] | None = None,
    n_passes: int = 16,
    n_power: int = 16,
) -> RobustCovariance:
    """Estimates mean and covariance where up to ``n_outliers`` rows are not of the distribution.

    Each pass whitens the rows still kept, finds the matrix ``V`` along which their fourth moment
    ``T(V) = mean_i (y_i' V y_i) y_i y_i' - tr(V) I`` is largest, and drops an equal share of the
    budget: the rows whose ``y_i' V y_i`` is farthest from the median. The budget is ``2 m``, or
    ``min(1.2 m, n - k - 8)`` when that would leave fewer than ``10 k`` rows.

    The published stopping test and tail bound are left out: with their constants nothing is dropped
    at the sizes that occur. Shapes are fixed, so it can be jitted and vmapped; cost
    ``O(n_passes n_power n k^2)``.

    Args:
      z: rows ``[n, k]``.
      n_outliers: ``m``, an upper bound; may be traced.
      mask: rows that are there ``[n]``; all by default.
      n_passes: static.
      n_power: power iterations a pass, static.
    """
    mask = _rows(z, mask)
    n, k = mask.sum().astype(z.dtype), z.shape[1]
    m = jnp.asarray(n_outliers, z.dtype)
    generous = n - 2 * m >= 10 * k
    small = jnp.minimum(1.2 * m, n - k - 8)
    budget = jnp.maximum(jnp.where(generous, 2 * m, small), 0)

    def one_pass(i, kept):
        mean, cov = _moments(z, kept)
        y = jnp.where(kept[:, None], _dot(z - mean[None], _inverse_root(cov)), 0)
        count = jnp.maximum(kept.sum(), 1).astype(z.dtype)

        def apply(v):
            weights = (_dot(y, v) * y).sum(-1)
            moved = _dot((y * weights[:, None]).T, y) / count
            return moved - jnp.trace(v) * jnp.eye(k, dtype=z.dtype)

        def power(_, v):
            v = apply(v)
            return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(z.dtype).tiny)

        # From the rows themselves, so that neither their order nor a basis can matter.
        v = jax.lax.fori_loop(0, n_power, power, jnp.eye(k, dtype=z.dtype))
        along = (_dot(y, v) * y).sum(-1)
        distance = jnp.abs(along - _median(along, kept))
        done, due = (jnp.floor(budget * (i + j) / n_passes) for j in (0, 1))
        return keep_lowest(distance, due - done, mask=kept)

    kept = jax.lax.fori_loop(0, n_passes, one_pass, mask)
    return RobustCovariance(*_moments(z, kept), kept)


def que_scores(
    h: Float[Array, "n k"], *, alpha: float = 4.0, mask: Bool[Array, " n"] | None = None
) -> Float[Array, " n"]:
    """Quantum entropy scores ``h_i' Q h_i / tr Q`` of centred, whitened rows.

    ``Q = exp(alpha (S - I) / (||S||_2 - 1))`` with the second moment ``S`` of the rows: 0 gives
    ``||h_i||^2 / k``, infinity the square along the top direction. Where no direction has a second
    moment above 1, nothing stands out and ``Q`` is the identity.

    Args:
      h: rows ``[n, k]``, whitened by what the good rows should have.
      alpha: not negative.
      mask: rows that are there ``[n]``; all by default.
    """
    root, _ = _que_root(h, _rows(h, mask), alpha)
    return jnp.square(_dot(h, root.T)).sum(-1)


def fit_spectre(
    h: Float[Array, "n d"],
    n_outliers: Float[Array, ""],
    *,
    k: int,
    alpha: float = 4.0,
    mask: Bool[Array, " n"] | None = None,
    n_passes: int = 16,
    n_power: int = 16,
) -> Scorer:
    """Fits SPECTRE's score: PCA, robust covariance, whitening, quantum entropy.

    Args:
      h: representations ``[n, d]`` of one label.
      n_outliers: ``m``, an upper bound; may be traced.
      k: directions, static, in ``1..min(n - 1, d)``.
      alpha: of ``que_scores``.
      mask: rows that are there ``[n]``; all by default.
      n_passes: of ``robust_covariance``, static.
      n_power: likewise.
    """
    projection = pca_project(h, k, mask=mask)
    return _fit_projected(
        projection, n_outliers, k, _rows(h, mask), alpha=alpha, n_passes=n_passes, n_power=n_power
    )


def fit_pca(h: Float[Array, "n d"], *, k: int = 1, mask: Bool[Array, " n"] | None = None) -> Scorer:
    """Fits the spectral signature: the square along the top direction.

    Args:
      h: representations ``[n, d]``.
      k: rows of the map, all but the first zero; static.
      mask: rows that are there ``[n]``; all by default.
    """
    projection = pca_project(h, 1, mask=mask)
    return Scorer(projection.mean, jnp.pad(projection.basis.T, ((0, k - 1), (0, 0))))


def fit_norm(h: Float[Array, "n d"], *, k: int, mask: Bool[Array, " n"] | None = None) -> Scorer:
    """Fits the squared distance from the mean in the top ``k`` directions."""
    projection = pca_project(h, k, mask=mask)
    return Scorer(projection.mean, projection.basis.T)


def fit_mahalanobis(
    h: Float[Array, "n d"], *, k: int, mask: Bool[Array, " n"] | None = None
) -> Scorer:
    """Fits the distance by the plain covariance, which the outliers themselves have shaped."""
    projection = pca_project(h, k, mask=mask)
    _, cov = _moments(projection.z, _rows(h, mask))
    return Scorer(projection.mean, _dot(_inverse_root(cov), projection.basis.T))


def choose_k(
    h: Float[Array, "n d"],
    n_outliers: Float[Array, ""],
    ks: Sequence[int],
    *,
    alpha: float = 4.0,
    mask: Bool[Array, " n"] | None = None,
    n_passes: int = 16,
    n_power: int = 16,
) -> tuple[Int[Array, ""], Float[Array, " c"], Scorer]:
    """Chooses the number of directions whose filter leaves rows that the others stand out from.

    For each ``k`` the rows that its filter keeps give a covariance in ``max(ks)`` directions; the
    mean quantum entropy score of all rows, whitened by it, is the merit. One program serves all
    ``k``, since directions beyond ``k`` are masked.

    Args:
      h: representations ``[n, d]``.
      n_outliers: ``m``; may be traced.
      ks: candidates, static.
      alpha: of ``que_scores``.
      mask: rows that are there ``[n]``; all by default.
      n_passes: of ``robust_covariance``, static.
      n_power: likewise.

    Returns:
      The index of the best in ``ks``, the merits ``[len(ks)]``, and the scorer of the best, with a
      map ``[max(ks), d]``.
    """
    projection, mask = pca_project(h, max(ks), mask=mask), _rows(h, mask)

    def judge(k):
        scorer = _fit_projected(
            projection, n_outliers, k, mask, alpha=alpha, n_passes=n_passes, n_power=n_power
        )
        return merit(scorer, h, n_outliers, projection, alpha=alpha, mask=mask), scorer

    merits, scorers = jax.lax.map(judge, jnp.asarray(ks, jnp.int32))
    best = jnp.argmax(merits)
    return best, merits, jax.tree.map(lambda leaf: leaf[best], scorers)


def merit(
    scorer: Scorer,
    h: Float[Array, "n d"],
    n_outliers: Float[Array, ""],
    projection: Projection,
    *,
    alpha: float = 4.0,
    mask: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Says how far the rows stand out from those that a score keeps.

    Args:
      scorer: the score to be judged.
      h: representations ``[n, d]``.
      n_outliers: ``m``; ``floor(1.5 m)`` rows are removed.
      projection: of ``h``; the directions that are looked at.
      alpha: of ``que_scores``.
      mask: rows that are there ``[n]``; all by default.

    Returns:
      The mean quantum entropy score of all rows, whitened by the covariance of the kept ones.
    """
    mask = _rows(h, mask)
    kept = keep_lowest(scorer(h), n_removed(n_outliers), mask=mask)
    mean, cov = _moments(projection.z, kept)
    return _que_root(_dot(projection.z - mean[None], _inverse_root(cov)), mask, alpha)[1]


def identify_target_label(
    h: Float[Array, "l n d"],
    mask: Bool[Array, "l n"],
    n_outliers: Float[Array, ""],
    ks: Sequence[int],
    **options,
) -> tuple[Int[Array, ""], Float[Array, " l"]]:
    """Finds the label whose rows hold outliers: the one of the largest merit of ``choose_k``.

    Args:
      h: representations by label ``[l, n, d]``, padded to a common ``n``.
      mask: rows that are there ``[l, n]``.
      n_outliers: ``m``, of each label.
      ks: candidates, static.
      **options: of ``choose_k``.

    Returns:
      The label and the merits ``[l]``.
    """
    merits = jax.vmap(lambda h, mask: choose_k(h, n_outliers, ks, mask=mask, **options)[1].max())(
        h, mask
    )
    return jnp.argmax(merits), merits


def keep_lowest(
    scores: Float[Array, " n"], n_removed: Float[Array, ""], *, mask: Bool[Array, " n"]
) -> Bool[Array, " n"]:
    """Drops the ``n_removed`` highest of the masked scores; of equal ones the first go first.

    A score that is not finite counts as the highest.
    """
    scores = jnp.where(jnp.isfinite(scores), scores, jnp.inf)
    order = jnp.argsort(jnp.where(mask, -scores, jnp.inf), stable=True)
    # Rows that are there come first, unless their score is minus infinity, which none is.
    rank = jnp.zeros(scores.shape, jnp.int32).at[order].set(jnp.arange(scores.shape[0]))
    return mask & (rank >= jnp.asarray(n_removed).astype(jnp.int32))


def threshold(
    scores: Float[Array, " n"], n_removed: Float[Array, ""], *, mask: Bool[Array, " n"]
) -> Float[Array, ""]:
    """Returns the largest score that ``keep_lowest`` keeps; minus infinity when it keeps none."""
    kept = keep_lowest(scores, n_removed, mask=mask)
    return jnp.where(kept, scores, -jnp.inf).max()


def spectre_filter(
    h: Float[Array, "n d"],
    *,
    n_outliers: int,
    k: int | None = None,
    method: str = "spectre",
    alpha: float = 4.0,
    n_passes: int = 16,
    n_power: int = 16,
) -> Filtered:
    """Filters the rows of one label; the host's entrance to this module, with its checks.

    Args:
      h: representations ``[n, d]``.
      n_outliers: ``m``, an upper bound on the poisoned rows; ``floor(1.5 m)`` are removed.
      k: directions; None lets ``choose_k`` choose among ``candidates(n, d)``.
      method: ``"spectre"``, or a baseline: ``"pca"``, ``"norm"``, ``"mahalanobis"``.
      alpha: of ``que_scores``.
      n_passes: of ``robust_covariance``.
      n_power: likewise.

    Raises:
      ValueError: ``h`` is no finite matrix, ``k`` is out of range, an unknown ``method``, or
        ``1.5 m >= n``.
    """
    h = jnp.asarray(h)
    if h.ndim != 2 or not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(f"h must be floats [n, d], got {h.dtype} {tuple(h.shape)}")
    n, d = h.shape
    if not np.isfinite(np.asarray(h)).all():
        raise ValueError(f"h has {int((~np.isfinite(np.asarray(h))).any(1).sum())} rows with NaN")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if n_outliers < 0 or REMOVED_PER_OUTLIER * n_outliers >= n:
        raise ValueError(
            f"n_outliers (alpha_bar n) must lie in 0..{int(np.ceil(n / REMOVED_PER_OUTLIER)) - 1}, "
            f"for 1.5 times as many are removed of n = {n}; got {n_outliers}"
        )
    ks = candidates(n, d) if k is None else (k,)
    _check_k(max(ks), n, d)
    options = {"alpha": alpha, "n_passes": n_passes, "n_power": n_power}
    if method == "spectre":
        best, _, scorer = _choose_k(h, jnp.asarray(n_outliers, h.dtype), ks=ks, **options)
        k = ks[int(best)]
    else:
        k = 1 if method == "pca" else k or max(ks)
        scorer = {"pca": fit_pca, "norm": fit_norm, "mahalanobis": fit_mahalanobis}[method](h, k=k)
    scores = scorer(h)
    keep = keep_lowest(scores, n_removed(n_outliers), mask=jnp.ones(n, bool))
    return Filtered(np.asarray(scores), np.asarray(keep), k, scorer)


def candidates(n: int, d: int) -> tuple[int, ...]:
    """Returns the squares 1, 4, 9, ... up to 100 that ``n`` rows of ``d`` numbers allow for ``k``.

    A covariance of ``k`` directions wants about ``10 k`` rows.
    """
    largest = max(1, min(n // 10, n - 1, d, 100))
    return tuple(i * i for i in range(1, 11) if i * i <= largest)


def n_removed(n_outliers: Float[Array, ""]) -> Float[Array, ""]:
    """Returns ``floor(1.5 m)``, the number of rows to remove for ``m`` outliers."""
    # 1.5 * 0.24 * 50 must be 18 in float32 too.
    return jnp.floor(REMOVED_PER_OUTLIER * jnp.asarray(n_outliers, jnp.float32) + 1e-3)


def check_alpha_bar(alpha_bar: float, n: int) -> None:
    """Raises ValueError unless ``alpha_bar`` lies in [0, 0.5); ``n`` is named with it."""
    if not 0 <= alpha_bar < 0.5:
        raise ValueError(f"alpha_bar must lie in [0, 0.5), got {alpha_bar} (n = {n})")


_choose_k = jax.jit(choose_k, static_argnames=("ks", "alpha", "n_passes", "n_power"))


def _check_k(k: int, n: int, d: int) -> None:
    if not 1 <= k <= min(n - 1, d):
        raise ValueError(f"k must lie in 1..{min(n - 1, d)} for {n} rows of {d} numbers, got {k}")


def _rows(h: jax.Array, mask: jax.Array | None) -> jax.Array:
    return jnp.ones(h.shape[0], bool) if mask is None else mask


def _mean(h, mask) -> jax.Array:
    total = jnp.where(mask[:, None], h, 0).sum(0)
    return total / jnp.maximum(mask.sum(), 1).astype(h.dtype)


def _moments(z, mask) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance of the masked rows."""
    mean = _mean(z, mask)
    x = jnp.where(mask[:, None], z - mean[None], 0)
    return mean, _dot(x.T, x) / jnp.maximum(mask.sum(), 1).astype(z.dtype)


def _inverse_root(cov) -> jax.Array:
    """``cov^(-1/2)``, zero along directions without variance."""
    values, vectors = jnp.linalg.eigh(cov)
    real = values > jnp.maximum(_NULL * values[-1], jnp.finfo(cov.dtype).tiny)
    scale = jnp.where(real, jax.lax.rsqrt(jnp.where(real, values, 1)), 0)
    return _dot(vectors * scale[None], vectors.T)


def _median(x, mask) -> jax.Array:
    order = jnp.sort(jnp.where(mask, x, jnp.inf))
    n = jnp.maximum(mask.sum(), 1)
    return (order[(n - 1) // 2] + order[n // 2]) / 2


def _que_root(h, mask, alpha) -> tuple[jax.Array, jax.Array]:
    """Returns ``R`` with ``R'R = Q / tr Q`` and the mean score ``<S, Q> / tr Q``."""
    x = jnp.where(mask[:, None], h, 0)
    identity = jnp.eye(h.shape[1], dtype=h.dtype)

    def excess(x, mask):
        return _dot(x.T, x) - mask.sum().astype(h.dtype) * identity

    # S - I in blocks: a long float32 sum of S would lose the digits by which it differs from I.
    total = reduce_batches(excess, (x, mask), batch_size=8)
    values, vectors = jnp.linalg.eigh(total / jnp.maximum(mask.sum(), 1).astype(h.dtype))
    outstanding = values[-1] > _NULL
    # Minus alpha: the largest weight is 1, whatever alpha.
    exponent = alpha * values / jnp.where(outstanding, values[-1], 1) - alpha
    weights = jnp.where(outstanding, jnp.exp(exponent), 1)
    weights /= weights.sum()
    return jnp.sqrt(weights)[:, None] * vectors.T, 1 + (weights * values).sum()


def _fit_projected(projection, n_outliers, k, mask, *, alpha, n_passes, n_power) -> Scorer:
    """Fits SPECTRE's score in the first ``k`` (traced or not) directions of a projection."""
    used = (jnp.arange(projection.basis.shape[1]) < k)[None].astype(projection.z.dtype)
    basis, z = projection.basis * used, projection.z * used
    robust = robust_covariance(z, n_outliers, mask=mask, n_passes=n_passes, n_power=n_power)
    whitener = _inverse_root(robust.cov)
    root, _ = _que_root(_dot(z - robust.mean[None], whitener), mask, alpha)
    center = projection.mean + _dot(basis, robust.mean)
    return Scorer(center, _dot(_dot(root, whitener), basis.T))
