r"""Kernel regression on clean data plus a few added points, with the clean part solved once.

A model trained on data ``D`` and ``m`` added points ``P`` is predicted to answer, at a query ``q``,

    f(q) = K_{q,DP} (K_{DP,DP} + ridge I)^{-1} [y_D; y_P].

With the Cholesky factor ``L L' = K_DD + ridge I`` kept, ``E = L^{-1} K_DP`` and the Schur
complement ``S = K_PP + ridge I - E' E``, this is the clean prediction plus

    (K_{P,q} - E' L^{-1} K_{D,q})' S^{-1} (y_P - E' L^{-1} y_D),

``n^2 m`` operations in place of ``n^3 / 3``.

A query may leave one clean point out (its own clean image, say). The same factor gives that too:
with ``K^{-1}`` over ``DP`` and ``alpha = K^{-1} y``, leaving out ``i`` takes
``(K_{q,DP} K^{-1})_i alpha_i / (K^{-1})_ii`` off the prediction.

Call everything here inside ``jax.enable_x64(True)``: kernels are ill-conditioned, and the solves
are in float64 whatever the dtype of the kernel.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, Int


class CleanFit(NamedTuple):
    """What of the regression depends on the clean points only; float64.

    Attributes:
      factor: lower Cholesky factor ``L`` of ``K_DD + ridge I`` ``[n, n]``.
      whitened_y: ``L^{-1} y`` ``[n]``.
      ridge: added to the diagonal ``[]``.
    """

    factor: Float[Array, "n n"]
    whitened_y: Float[Array, " n"]
    ridge: Float[Array, ""]


class Queries(NamedTuple):
    """Query points as the fit sees them; float64.

    The last four are scalars 0, 0, 0, 1 when no query leaves a point out.

    Attributes:
      whitened: ``L^{-1} K_{D,q}`` ``[n, q]``.
      prediction: of the fit, nothing left out ``[q]``.
      column: ``L^{-1} e_i`` for the point that ``q`` leaves out ``[n, q]``.
      hat: ``(K_{q,D} K^{-1})_i`` ``[q]``.
      alpha: ``alpha_i`` ``[q]``.
      inverse: ``(K^{-1})_ii`` ``[q]``.
    """

    whitened: Float[Array, "n q"]
    prediction: Float[Array, " q"]
    column: Float[Array, "..."]
    hat: Float[Array, "..."]
    alpha: Float[Array, "..."]
    inverse: Float[Array, "..."]


class Added(NamedTuple):
    """Points that may be added, seen past the clean fit and those added so far; float64.

    Attributes:
      schur: ``K_PP + ridge I - E' E`` ``[m, m]``.
      residual: what the fit misses of their labels, ``y_P - E' L^{-1} y`` ``[m]``.
      cross: ``K_{P,q} - E' L^{-1} K_{D,q}`` ``[m, q]``.
      column: ``E' L^{-1} e_i`` ``[m, q]``, or a scalar 0.
      least_pivot: what rounding alone can leave of a pivot of ``schur`` ``[]``.
    """

    schur: Float[Array, "m m"]
    residual: Float[Array, " m"]
    cross: Float[Array, "m q"]
    column: Float[Array, "..."]
    least_pivot: Float[Array, ""]


def fit_clean(k_dd: Float[Array, "n n"], y: Float[Array, " n"], *, diag_reg: float) -> CleanFit:
    """Factorises the clean kernel.

    Args:
      k_dd: kernel of the clean points ``[n, n]``.
      y: labels ``[n]``.
      diag_reg: the ridge, as a multiple of the mean of the diagonal.

    Raises:
      ValueError: the kernel is not finite, or not positive definite at this ridge; names its
        condition number.
    """
    k_dd, y = jnp.asarray(k_dd, jnp.float64), jnp.asarray(y, jnp.float64)
    ridge = diag_reg * jnp.trace(k_dd) / len(k_dd)
    factor = jnp.linalg.cholesky(k_dd + ridge * jnp.eye(len(k_dd)))
    least_pivot = _rounding(len(k_dd)) * jnp.diagonal(k_dd).max()
    if not bool((jnp.square(jnp.diagonal(factor)) > least_pivot).all()):
        raise ValueError(f"the clean kernel {describe(k_dd, float(ridge))}; raise diag_reg")
    return CleanFit(factor, solve_triangular(factor, y, lower=True), ridge)


def see_queries(
    fit: CleanFit, k_dq: Float[Array, "n q"], *, left_out: Int[np.ndarray, " q"] | None = None
) -> Queries:
    """Predicts queries without added points; pure.

    Args:
      fit: of the clean points.
      k_dq: kernel of clean points and queries ``[n, q]``.
      left_out: clean point that each query leaves out, -1 for none ``[q]``; None: none does.
    """
    whitened = solve_triangular(fit.factor, jnp.asarray(k_dq, jnp.float64), lower=True)
    nothing, one = jnp.zeros((), jnp.float64), jnp.ones((), jnp.float64)
    prediction = whitened.T @ fit.whitened_y
    if left_out is None:
        return Queries(whitened, prediction, nothing, nothing, nothing, one)
    chosen = np.asarray(left_out) >= 0
    basis = jnp.eye(len(fit.factor))[:, np.where(chosen, left_out, 0)]
    column = jnp.where(chosen[None], solve_triangular(fit.factor, basis, lower=True), 0.0)
    return Queries(
        whitened,
        prediction,
        column,
        hat=(whitened * column).sum(0),
        alpha=column.T @ fit.whitened_y,
        inverse=jnp.where(chosen, jnp.square(column).sum(0), 1.0),
    )


def add_points(
    fit: CleanFit,
    queries: Queries,
    k_dp: Float[Array, "n m"],
    k_pp: Float[Array, "m m"],
    k_pq: Float[Array, "m q"],
    y_p: Float[Array, " m"],
) -> Added:
    """Brings points past the clean fit; pure and differentiable.

    Args:
      fit: of the clean points.
      queries: of ``see_queries``.
      k_dp: kernel of clean and added points ``[n, m]``.
      k_pp: kernel of the added points ``[m, m]``.
      k_pq: kernel of added points and queries ``[m, q]``.
      y_p: labels of the added points ``[m]``.
    """
    k_dp, k_pp, k_pq, y_p = (jnp.asarray(a, jnp.float64) for a in (k_dp, k_pp, k_pq, y_p))
    whitened = solve_triangular(fit.factor, k_dp, lower=True)
    return Added(
        k_pp + fit.ridge * jnp.eye(len(k_pp)) - whitened.T @ whitened,
        y_p - whitened.T @ fit.whitened_y,
        k_pq - whitened.T @ queries.whitened,
        whitened.T @ queries.column if queries.column.ndim else queries.column,
        _rounding(len(k_dp) + len(k_pp)) * jnp.diagonal(k_pp).max(),
    )


def predict(queries: Queries, added: Added) -> Float[Array, " q"]:
    """Predicts the queries with all the points added; pure and differentiable.

    Returns:
      Predictions ``[q]``, NaN where the added points make the kernel singular; ``predict_one`` is
      the cheap way to add a single one.
    """
    factor = jnp.linalg.cholesky(added.schur)
    solvable = (jnp.square(jnp.diagonal(factor)) > added.least_pivot).all()
    factor = (jnp.where(solvable, factor, jnp.nan), True)
    weights = cho_solve(factor, added.residual)
    prediction = queries.prediction + added.cross.T @ weights
    if not added.column.ndim:
        return prediction
    solved = cho_solve(factor, added.column)
    alpha = queries.alpha - added.column.T @ weights
    inverse = queries.inverse + (added.column * solved).sum(0)
    return prediction - (queries.hat - (added.cross * solved).sum(0)) * alpha / inverse


def predict_one(queries: Queries, added: Added) -> Float[Array, "m q"]:
    """Predicts the queries with each point added alone; pure.

    Returns:
      Predictions ``[m, q]``, NaN where a point makes the kernel singular.
    """
    pivots = jnp.diagonal(added.schur)[:, None]
    share = 1 / jnp.where(pivots > added.least_pivot, pivots, jnp.nan)
    step = added.residual[:, None] * share
    prediction = queries.prediction[None] + added.cross * step
    if not added.column.ndim:
        return prediction
    alpha = queries.alpha[None] - added.column * step
    inverse = queries.inverse[None] + jnp.square(added.column) * share
    hat = queries.hat[None] - added.cross * added.column * share
    return prediction - hat * alpha / inverse


def take_one(queries: Queries, added: Added, index: Int[Array, ""]) -> tuple[Queries, Added]:
    """Adds one point for good: the others, and the queries, are then seen past it as well; pure."""
    pivot = added.schur[index, index]
    share = added.schur[:, index] / pivot
    step = added.residual[index] / pivot
    cross = added.cross[index]
    queries = queries._replace(prediction=queries.prediction + cross * step)
    others = added._replace(
        schur=added.schur - jnp.outer(share, added.schur[index]),
        residual=added.residual - share * added.residual[index],
        cross=added.cross - jnp.outer(share, cross),
    )
    if not added.column.ndim:
        return queries, others
    column = added.column[index]
    queries = queries._replace(
        hat=queries.hat - cross * column / pivot,
        alpha=queries.alpha - column * step,
        inverse=queries.inverse + jnp.square(column) / pivot,
    )
    return queries, others._replace(column=added.column - jnp.outer(share, column))


def _rounding(n: int) -> float:
    return n * float(np.finfo(np.float64).eps)


def describe(kernel: Float[Array, "n n"], ridge: float) -> str:
    """Says in words how far a kernel is from being solvable."""
    kernel = np.asarray(kernel, np.float64)
    if not np.isfinite(kernel).all():
        return f"has {int((~np.isfinite(kernel)).sum())} values that are not finite"
    values = np.linalg.eigvalsh(kernel) + ridge
    if values[0] <= 0:
        return (
            f"is singular: eigenvalues from {values[0]:.1e} to {values[-1]:.1e}, ridge {ridge:.1e}"
        )
    return f"has condition number {values[-1] / values[0]:.1e} at ridge {ridge:.1e}"
