"""What a network trained by gradient descent on squared error predicts, from its tangent kernel.

Ref: Jacot, Gabriel & Hongler, "Neural Tangent Kernel: Convergence and Generalization in Neural
Networks"; Lee et al., "Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient
Descent".
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve

SOLVED, ILL_CONDITIONED, SINGULAR, NOT_FINITE = range(4)
"""Statuses of a ``Prediction``."""

_POWER_STEPS = 16
_SERIES_TERMS = 20  # 20 / 21! is below the rounding of float64
_NEGATIVE = 1e-4  # relative to the largest eigenvalue: beyond rounding in float32


class Prediction(NamedTuple):
    """A prediction and how far to trust it.

    Attributes:
      value: ``[m]``, ``[m, c]`` or, of ``propagator``, ``[m, n]``; with a leading axis for vector
        ``t``. 0, with derivative 0, where ``status`` is ``SINGULAR`` or ``NOT_FINITE``.
      condition: ``[]``, ``||K|| ||g_t(K)||`` in the spectral norm, ``K`` with its ridge, at the
        latest ``t``: the condition number of ``K`` for ``t=None``, less for a finite time.
      status: ``[]`` int32:

        | status | meaning |
        |---|---|
        | ``SOLVED`` | |
        | ``ILL_CONDITIONED`` | ``n eps condition >= 1``: there may be no right digit in ``value`` |
        | ``SINGULAR`` | no Cholesky factor in this dtype; at finite ``t``, not semi-definite |
        | ``NOT_FINITE`` | an argument holds NaN or infinity |
    """

    value: jax.Array
    condition: jax.Array
    status: jax.Array


def mse(
    k_train_train: jax.Array,
    k_test_train: jax.Array,
    y_train: jax.Array,
    *,
    t: jax.Array | float | None = None,
    diag_reg: jax.Array | float = 0.0,
    learning_rate: jax.Array | float = 1.0,
) -> Prediction:
    """Predicts test outputs after training for time ``t`` from outputs 0.

    ``k_test_train g_t(K) y`` with ``K = k_train_train + diag_reg tr(k_train_train) / n I`` and
    ``g_t(K) = K^-1 (I - exp(-K learning_rate t / y_train.size))``: gradient descent in continuous
    time on the mean over all outputs of half the squared error. The convention of
    ``neural_tangents.predict.gradient_descent_mse``. ``t=None`` is infinite time, by Cholesky;
    finite times go through one eigendecomposition.

    Pure: jit, vmap and grad pass through, derivatives by all arrays. At finite ``t`` they are right
    for repeated eigenvalues too; those of second order are not defined there. Compute in float64
    (``with jax.enable_x64(True)``) unless the condition number is well below 1e6.

    | case | result |
    |---|---|
    | repeated training points, ``diag_reg=0``, ``t=None`` | a status, never NaN |
    | the same at finite ``t`` | right: ``g_t(0) = learning_rate t / y_train.size`` |
    | ``t=0`` | 0 |
    | eigenvalues below 0 by rounding, finite ``t`` | taken as 0 |

    Args:
      k_train_train: ``[n, n]``; only its symmetric part counts. A kernel ``[n, n, c, c]`` between
        all outputs goes in as ``[n c, n c]`` with ``y`` as ``[n c]``.
      k_test_train: ``[m, n]``.
      y_train: ``[n]``, or ``[n, c]`` for ``c`` outputs that share the kernel.
      t: time, None, a scalar ``[]`` or a vector ``[s]``.
      diag_reg: ridge, relative to the mean of the diagonal.
      learning_rate: scales ``t``.

    Returns:
      Prediction: ``value`` ``[m]`` or ``[m, c]``, with a leading axis ``s`` for vector ``t``.

    Raises:
      ValueError: shapes that do not fit, a negative ``diag_reg`` or ``t`` (where it is concrete).
    """
    n = _check_kernels(k_train_train, k_test_train)
    if y_train.ndim not in (1, 2) or y_train.shape[0] != n or not y_train.size:
        raise ValueError(
            f"y_train must be [n] or [n, c] for n = {n} training points, got {y_train.shape}"
        )
    y = y_train.astype(k_train_train.dtype)
    weights, condition, status = _solve(
        k_train_train, y.reshape(n, -1), t, diag_reg, learning_rate, y_train.size, k_test_train
    )
    value = _matmul(_usable(k_test_train, status), weights)
    value = value.reshape(*value.shape[:-1], *y_train.shape[1:])
    return Prediction(value, condition, status)


def propagator(
    k_train_train: jax.Array,
    k_test_train: jax.Array,
    *,
    t: jax.Array | float | None = None,
    n_outputs: int = 1,
    diag_reg: jax.Array | float = 0.0,
    learning_rate: jax.Array | float = 1.0,
) -> Prediction:
    """Forms the matrix that maps training labels to the prediction of ``mse``.

    ``A(t) = k_test_train g_t(K)``: ``mse(...).value == A(t) @ y_train`` for all ``y_train`` with
    ``n_outputs`` columns (they set the unit of time; see ``mse`` for the other arguments).

    Returns:
      Prediction: ``value`` ``[m, n]``, with a leading axis for vector ``t``.

    Raises:
      ValueError: as ``mse``, or ``n_outputs < 1``.
    """
    n = _check_kernels(k_train_train, k_test_train)
    if n_outputs < 1:
        raise ValueError(f"n_outputs must be positive, got {n_outputs}")
    rows, condition, status = _solve(
        k_train_train, k_test_train.T, t, diag_reg, learning_rate, n * n_outputs, k_test_train
    )
    return Prediction(jnp.swapaxes(rows, -1, -2), condition, status)


def check_solved(prediction: Prediction) -> None:
    """Raises unless every status is ``SOLVED``; outside jit, batches of predictions included.

    Raises:
      ValueError: names the status, the condition number and the dtype.
    """
    status = int(np.max(prediction.status))
    if status == SOLVED:
        return
    if status == NOT_FINITE:
        raise ValueError("a kernel, y_train, t or diag_reg holds NaN or infinity")
    dtype = prediction.value.dtype
    why = "ill-conditioned" if status == ILL_CONDITIONED else "not positive definite"
    raise ValueError(
        f"k_train_train is {why}: condition number about {float(np.max(prediction.condition)):.1e} "
        f"in {dtype}, whose precision is {float(jnp.finfo(dtype).eps):.1e}; raise diag_reg, drop "
        "repeated points or use float64"
    )


def _check_kernels(k_train_train: jax.Array, k_test_train: jax.Array) -> int:
    shape = k_train_train.shape
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise ValueError(f"k_train_train must be [n, n] with n >= 1, got {shape}")
    if k_test_train.ndim != 2 or k_test_train.shape[1] != shape[0]:
        raise ValueError(
            f"k_test_train must be [m, n] with n = {shape[0]}, got {k_test_train.shape}"
        )
    return shape[0]


def _check_not_negative(value, name: str) -> None:
    if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) >= 0):
        raise ValueError(f"{name} must not be negative or NaN, got {value}")


def _usable(x: jax.Array, status: jax.Array) -> jax.Array:
    """Puts zeros in place of arguments that are not finite, for derivatives too."""
    return jnp.where(status == NOT_FINITE, jnp.zeros_like(x), x)


def _solve(k, rhs, t, diag_reg, learning_rate, size: int, k_test_train):
    """Returns ``g_t(K) rhs`` ``[..., n, c]``, the condition and the status."""
    _check_not_negative(diag_reg, "diag_reg")
    n, dtype = len(k), k.dtype
    diag_reg = jnp.asarray(diag_reg, dtype)
    arguments = [k, rhs, k_test_train, diag_reg]
    if t is not None:
        _check_not_negative(t, "t")
        time = jnp.asarray(t, dtype) * jnp.asarray(learning_rate, dtype) / size
        if time.ndim > 1:
            raise ValueError(f"t must be None, a scalar or a vector, got shape {time.shape}")
        arguments.append(time)
    finite = jnp.stack([jnp.isfinite(a).all() for a in arguments]).all()
    # The identity in place of a kernel of NaN: nothing below can fail.
    k, rhs, diag_reg = (jnp.where(finite, a, jnp.zeros_like(a)) for a in (k, rhs, diag_reg))
    ridge = jnp.where(finite, diag_reg * jnp.trace(k) / n, jnp.ones((), dtype))
    k = (k + k.T) / 2 + ridge * jnp.eye(n, dtype=dtype)
    if t is None:
        value, condition, factored = _inverse(k, rhs)
    else:
        time = jnp.where(finite, time, jnp.zeros_like(time))
        decayed = jax.vmap(_decayed, (None, None, 0), (0, None)) if time.ndim else _decayed
        value, eigenvalues = decayed(k, rhs, time)
        size = jnp.abs(eigenvalues).max()
        condition = size * _decay(eigenvalues[0], time.max())
        factored = eigenvalues[0] >= -_NEGATIVE * size
    limit = 1 / (n * jnp.finfo(dtype).eps)
    status = jnp.where(condition < limit, SOLVED, ILL_CONDITIONED)
    status = jnp.where(factored, status, SINGULAR)
    status = jnp.where(finite, status, NOT_FINITE).astype(jnp.int32)
    condition = jnp.where(finite, condition, jnp.nan)
    value = jnp.where(finite & factored, value, jnp.zeros_like(value))
    return value, jax.lax.stop_gradient(condition), status


def _inverse(k: jax.Array, rhs: jax.Array):
    """Returns ``K^-1 rhs`` by Cholesky, the condition number, and whether there is a factor."""
    n, fixed = len(k), jax.lax.stop_gradient(k)
    factor = jnp.linalg.cholesky(fixed, symmetrize_input=False)
    factored = jnp.isfinite(factor).all()
    factor = jnp.where(factored, factor, jnp.eye(n, dtype=k.dtype))

    def solve(_, b):
        return cho_solve((factor, True), b)

    # Differentiated as a solve, so one factor serves the value and every derivative.
    value = jax.lax.custom_linear_solve(lambda v: _matmul(k, v), rhs, solve, symmetric=True)

    def largest(apply):
        def step(_, v):
            return apply(v) / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(k.dtype).tiny)

        start = jnp.asarray(np.random.default_rng(0).normal(size=n), k.dtype)
        return jnp.linalg.norm(jax.lax.fori_loop(0, _POWER_STEPS, step, start))

    condition = jnp.where(
        factored, largest(lambda v: fixed @ v) * largest(lambda v: solve(None, v)), jnp.inf
    )
    return value, condition, factored


def _decay(eigenvalues: jax.Array, time: jax.Array) -> jax.Array:
    """``g_t(x) = (1 - exp(-x t)) / x``, ``t`` at 0."""
    positive = eigenvalues > 0
    divisor = jnp.where(positive, eigenvalues, jnp.ones_like(eigenvalues))
    return jnp.where(positive, -jnp.expm1(-eigenvalues * time) / divisor, time)


def _decay_difference(a: jax.Array, b: jax.Array, time: jax.Array) -> jax.Array:
    """``(g_t(a) - g_t(b)) / (a - b)``, and ``g_t'(a)`` for ``a = b``, to rounding."""
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    # No difference of close numbers once high * time is not small: no a - b is divided by.
    divisor = jnp.where(high > 0, high, jnp.ones_like(high))
    exact = (jnp.exp(-low * time) * _decay(high - low, time) - _decay(low, time)) / divisor
    # Else the Taylor series of g_t, where x^k becomes the sum of all x^i y^(k - 1 - i).
    small = high * time < 1
    x, y = (jnp.where(small, v * time, jnp.zeros_like(v * time)) for v in (low, high))
    power, symmetric = jnp.ones_like(x), jnp.ones_like(x)
    series = jnp.zeros_like(x)
    for k in range(1, _SERIES_TERMS):
        series += (-1) ** k / math.factorial(k + 1) * symmetric
        power = power * y
        symmetric = x * symmetric + power
    return jnp.where(small, series * time**2, exact)


@jax.custom_jvp
def _decayed(k: jax.Array, rhs: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns ``g_t(K) rhs`` ``[n, c]``, negative eigenvalues as 0, and the eigenvalues."""
    return _in_eigenbasis(k, rhs, time)[:2]


def _in_eigenbasis(k, rhs, time):
    eigenvalues, vectors = jnp.linalg.eigh(k, symmetrize_input=False)
    coordinates = _matmul(vectors.T, rhs)
    value = _matmul(vectors, _decay(jnp.maximum(eigenvalues, 0), time)[:, None] * coordinates)
    return value, eigenvalues, vectors, coordinates


@_decayed.defjvp
def _decayed_jvp(primals, tangents):
    """Differentiates a function of a matrix in its eigenbasis (Daleckii and Krein).

    ``d g(K) = V (G * (V^T dK V)) V^T`` with the divided differences ``G`` of ``g``; they stay
    finite where eigenvalues are equal, unlike the derivatives of the eigenvectors.
    """
    (k, rhs, time), (dk, drhs, dtime) = primals, tangents
    value, signed, vectors, coordinates = _in_eigenbasis(k, rhs, time)
    eigenvalues = jnp.maximum(signed, 0)
    differences = _decay_difference(eigenvalues[:, None], eigenvalues[None], time)
    turned = _matmul(vectors.T, _matmul(dk, vectors))
    change = _matmul(differences * turned, coordinates)
    change += _decay(eigenvalues, time)[:, None] * _matmul(vectors.T, drhs)
    change += dtime * jnp.exp(-eigenvalues * time)[:, None] * coordinates
    return (value, signed), (_matmul(vectors, change), jnp.zeros_like(signed))


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
