"""The linear sum assignment problem, on the host or inside a compiled program."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

Backend = Literal["scipy", "hungarian"]


def linear_sum_assignment(
    cost: jax.Array | np.ndarray, *, maximize: bool, backend: Backend = "scipy"
) -> np.ndarray | jax.Array:
    """Solves ``max`` (or ``min``) over permutations ``p`` of ``sum_i cost[i, p[i]]``.

    ``scipy`` (the default) runs on the host and is the faster one on CPU, by two orders of
    magnitude when costs are tied; inside jit or vmap it becomes a callback. ``hungarian`` is
    optax's, stays on the device and works in float32 unless the cost is float64.

    | cost | concrete | traced |
    |---|---|---|
    | finite | the optimal ``p`` | the optimal ``p`` |
    | NaN or infinity anywhere | ValueError | every entry is -1 |

    Args:
      cost: ``[n, n]`` floating or integer.
      maximize: largest sum rather than smallest.
      backend: ``"scipy"`` or ``"hungarian"``.

    Returns:
      ``[n]`` int32, the column of each row; numpy for concrete input to scipy, else a jax array.

    Raises:
      ValueError: ``cost`` is not a square matrix or not finite, or an unknown backend.
    """
    if backend not in ("scipy", "hungarian"):
        raise ValueError(f"backend must be 'scipy' or 'hungarian', got {backend!r}")
    if np.ndim(cost) != 2 or np.shape(cost)[0] != np.shape(cost)[1]:
        raise ValueError(f"cost must be a square matrix, got shape {np.shape(cost)}")
    traced = isinstance(cost, jax.core.Tracer)
    if not traced and not np.isfinite(np.asarray(cost)).all():
        raise ValueError("cost holds a NaN or an infinity, so no assignment is optimal")
    if backend == "hungarian":
        return _hungarian(jnp.asarray(cost), maximize=maximize)
    if not traced:
        return _scipy(np.asarray(cost), maximize=maximize)
    return jax.pure_callback(
        functools.partial(_scipy, maximize=maximize),
        jax.ShapeDtypeStruct(cost.shape[:1], jnp.int32),
        cost,
        vmap_method="sequential",
    )


def _scipy(cost, *, maximize: bool) -> np.ndarray:
    cost = np.asarray(cost)
    if not np.isfinite(cost).all():
        return np.full(cost.shape[0], -1, np.int32)
    return scipy.optimize.linear_sum_assignment(cost, maximize=maximize)[1].astype(np.int32)


@functools.partial(jax.jit, static_argnames="maximize")
def _hungarian(cost: jax.Array, *, maximize: bool) -> jax.Array:
    if cost.dtype != jnp.float64:
        cost = cost.astype(jnp.float32)
    # A NaN would send the search round in circles: solve a harmless problem in its place.
    finite = jnp.isfinite(cost).all()
    safe = jnp.where(finite, cost, jnp.zeros_like(cost))
    rows, columns = optax.assignment.hungarian_algorithm(-safe if maximize else safe)
    by_row = jnp.zeros_like(columns).at[rows].set(columns)
    return jnp.where(finite, by_row, -jnp.ones_like(by_row)).astype(jnp.int32)
