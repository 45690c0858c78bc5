"""Other estimators of a linear regression, private and not, to compare with.

All are float64 (numpy arrays, outside of transformations), and (epsilon, delta)-private for
replacement of one row in real arithmetic. Bounds on the data are arguments; rows beyond them are
clipped, and none is ever read off the data. ``adassp`` and ``dp_gd`` take rows that are not finite
as 0: a result of NaN would tell that there is one.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxml.core.types import Key
from jaxml.privacy.mechanisms import check_budget, gaussian_scale, standard_normal, to_host
from jaxml.privacy.private_ols import FAIL, PASS, weighted_ols


class BaselineResult(NamedTuple):
    """An estimate.

    Attributes:
      status: int32, PASS (1) or FAIL (0).
      coef: ``[d]`` float64, NaN if the status is FAIL.
    """

    status: jax.Array
    coef: jax.Array


def _answer(coef: jax.Array, passed: jax.Array | bool = True) -> BaselineResult:
    status = jnp.where(passed, PASS, FAIL).astype(jnp.int32)
    return BaselineResult(status, jnp.where(passed, coef, jnp.nan))


def _check(X, y) -> None:
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(f"X and y must be [n, d] and [n], got {X.shape} and {y.shape}")
    if X.dtype != jnp.float64 or y.dtype != jnp.float64:
        raise ValueError(f"X and y must be float64, got {X.dtype} and {y.dtype}")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _finite_rows(X: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    # A rule for each row by itself, as clipping is: it does not change the sensitivity. A row whose
    # length overflows is none that float64 can clip.
    finite = jnp.isfinite(jnp.linalg.norm(X, axis=1)) & jnp.isfinite(y)
    return jnp.where(finite[:, None], X, 0.0), jnp.where(finite, y, 0.0)


def _clip_rows(X: jax.Array, bound: jax.Array) -> jax.Array:
    norms = jnp.linalg.norm(X, axis=1, keepdims=True)
    return X * jnp.minimum(1.0, bound / jnp.maximum(norms, 1e-300))


def ols(X: jax.Array, y: jax.Array) -> BaselineResult:
    """Least squares without privacy, by QR.

    Args:
      X: ``[n, d]`` float64 of full column rank.
      y: ``[n]`` float64.

    Returns:
      BaselineResult; it never fails.

    Raises:
      ValueError: shapes or dtypes.
    """
    _check(X, y)
    with jax.enable_x64(True):
        return to_host(_ols(X, y))


@jax.jit
def _ols(X, y):
    Z = jnp.concatenate([X, y[:, None]], axis=1)
    return _answer(weighted_ols(Z, jnp.ones_like(y)).coef)


def adassp(
    key: Key,
    X: jax.Array,
    y: jax.Array,
    *,
    epsilon: float,
    delta: float,
    x_bound: float,
    y_bound: float,
    failure: float = 0.05,
) -> BaselineResult:
    """AdaSSP: noise on ``X^T X`` and ``X^T y``, a ridge from a private least eigenvalue.

    Wang, "Revisiting differentially private linear regression", UAI 2018, Algorithm 2, with exact
    Gaussian noise and the sensitivities of replacement: ``B_x^2`` (eigenvalue),
    ``sqrt(2) B_x^2`` (Frobenius) and ``2 B_x B_y``, a third of the budget each.

    Args:
      key: typed key, used once.
      X: ``[n, d]`` float64; rows longer than ``x_bound`` are shortened to it.
      y: ``[n]`` float64; clipped to ``y_bound``.
      epsilon: privacy budget.
      delta: likewise.
      x_bound: B_x, from outside the data.
      y_bound: B_y, likewise.
      failure: probability with which the ridge may be too small for the noise, in (0, 1).

    Returns:
      BaselineResult; it never fails.

    Raises:
      ValueError: an argument out of range, shapes or dtypes.
    """
    check_budget(epsilon, delta)
    _check(X, y)
    _check_positive(x_bound=x_bound, y_bound=y_bound)
    if not 0 < failure < 1:
        raise ValueError(f"failure must lie in (0, 1), got {failure}")
    scale = gaussian_scale(epsilon / 3, delta / 3)
    with jax.enable_x64(True):
        return to_host(_adassp(key, X, y, scale, x_bound, y_bound, delta, failure))


@jax.jit
def _adassp(key, X, y, scale, x_bound, y_bound, delta, failure):
    d = X.shape[1]
    keys = jax.random.split(key, 3)
    X, y = _finite_rows(X, y)
    X, y = _clip_rows(X, x_bound), jnp.clip(y, -y_bound, y_bound)
    gram, cross = X.T @ X, X.T @ y
    deviation = scale * x_bound**2
    # A lower bound on the eigenvalue that holds with probability 1 - delta / 3.
    noisy = jnp.linalg.eigvalsh(gram)[0] + deviation * standard_normal(keys[0], ())
    least = jnp.maximum(noisy - deviation * jnp.sqrt(2 * jnp.log(6 / delta)), 0.0)
    noise = jnp.triu(standard_normal(keys[1], (d, d)))
    noise = noise + jnp.triu(noise, 1).T
    # A bound on the norm of the noise on X^T X.
    wanted = math.sqrt(2) * deviation * jnp.sqrt(d * jnp.log(2 * d**2 / failure))
    ridge = jnp.maximum(wanted - least, 0.0)
    gram = gram + math.sqrt(2) * deviation * noise + ridge * jnp.eye(d, dtype=X.dtype)
    cross = cross + 2 * scale * x_bound * y_bound * standard_normal(keys[2], (d,))
    return _answer(jnp.linalg.solve(gram, cross))


def tukey_em(
    key: Key,
    X: jax.Array,
    y: jax.Array,
    *,
    epsilon: float,
    delta: float,
    n_models: int = 1000,
) -> BaselineResult:
    """TukeyEM: a random point among many least-squares fits, likely a deep one.

    Amin, Joseph, Ribero & Vassilvitskii, "Easy Differentially Private Linear Regression", ICLR
    2023. The rows are dealt out to ``n_models`` fits. A point of R^d has depth i if in every
    coordinate at least i fits lie on either side. The density is proportional to
    ``exp(epsilon depth / 4)`` where the depth is at least ``n_models / 4``, after a test that this
    set is not too small. Half of epsilon and of delta goes to each part.

    Sampling is exact and needs no shells: the density is a mixture of uniform densities on the
    boxes of depth at least i.

    Args:
      key: typed key, used once.
      X: ``[n, d]`` float64.
      y: ``[n]`` float64.
      epsilon: privacy budget.
      delta: likewise.
      n_models: number m of fits, of ``n // m >= d`` rows each; what is left over is not used.

    Returns:
      BaselineResult.

    Raises:
      ValueError: an argument out of range, too many models, shapes or dtypes.
    """
    check_budget(epsilon, delta)
    _check(X, y)
    n, d = X.shape
    if n_models < 8 or n // n_models < d:
        raise ValueError(f"n_models must lie in 8..n / d = {n // d}, got {n_models}")
    with jax.enable_x64(True):
        return to_host(_tukey_em(key, X, y, epsilon / 2, delta / 2, n_models=n_models))


@functools.partial(jax.jit, static_argnames="n_models")
def _tukey_em(key, X, y, epsilon, delta, *, n_models):
    n, d = X.shape
    keys = jax.random.split(key, 2)
    rows = jnp.concatenate([X, y[:, None]], axis=1)
    size = n // n_models
    rows = jax.random.permutation(keys[0], rows)[: size * n_models]
    r = jnp.linalg.qr(rows.reshape(n_models, size, d + 1), mode="r")
    models = jax.vmap(jax.scipy.linalg.solve_triangular)(r[:, :d, :d], r[:, :d, d])
    return _answer(*_deep_point(keys[1], models, epsilon, delta))


def _deep_point(key, models, epsilon, delta):
    """Draws a point among ``[m, d]`` models, and whether it may be released."""
    n_models, d = models.shape
    keys = jax.random.split(key, 3)
    sorted_models = jnp.sort(models, axis=0)
    most, least = n_models // 2, n_models // 4
    low, high = sorted_models[:most], sorted_models[::-1][:most]  # box of depth >= i + 1
    log_volume = jnp.log(high - low).sum(1)
    distance = tukey_distance(log_volume, epsilon, delta, least)
    threshold = jnp.log(1 / (2 * delta)) / epsilon
    passed = distance + jax.random.laplace(keys[0], dtype=jnp.float64) / epsilon >= threshold
    # exp(epsilon depth / 2) is the sum of these weights over the boxes that a point lies in.
    depth = jnp.arange(least, most + 1, dtype=jnp.float64)
    log_weight = epsilon * depth / 2 + jnp.where(
        depth > least, jnp.log(-jnp.expm1(-epsilon / 2)), 0.0
    )
    box = least - 1 + jax.random.categorical(keys[1], log_weight + log_volume[least - 1 :])
    share = jax.random.uniform(keys[2], (d,), dtype=jnp.float64)
    return low[box] + share * (high[box] - low[box]), passed


def tukey_distance(log_volume: jax.Array, epsilon: float, delta: float, depth: int) -> jax.Array:
    """Bounds from below how many fits must change until the test of TukeyEM may be unsafe.

    The largest ``k < depth`` for which there is a ``g >= 1`` with
    ``V(depth - k - 1) / V(depth + k + g + 1) exp(-epsilon g / 2) <= delta / (4 e^epsilon)``;
    -1 if there is none. V(i) is the volume of the box of depth at least i.

    Args:
      log_volume: ``[most]``, logarithm of V(1), V(2), ...
      epsilon: budget of the test.
      delta: likewise.
      depth: least depth of a point that may be returned.

    Returns:
      An integer as float64.
    """
    most = log_volume.shape[0]
    k = jnp.arange(depth - 1)[:, None]  # V(0) is infinite: k stops at depth - 2
    g = jnp.arange(1, most)[None, :]
    inner = depth + k + g + 1
    ratio = log_volume[depth - k - 2] - log_volume[jnp.minimum(inner, most) - 1]
    log_ratio = ratio - epsilon * g.astype(jnp.float64) / 2
    safe = (log_ratio <= jnp.log(delta / 4) - epsilon) & (inner <= most)
    k = jnp.where(safe.any(1), k[:, 0], -1)
    return k.max().astype(jnp.float64)


def dp_gd(
    key: Key,
    X: jax.Array,
    y: jax.Array,
    *,
    epsilon: float,
    delta: float,
    clip: float,
    learning_rate: float,
    n_steps: int,
) -> BaselineResult:
    """Gradient descent from 0 with clipped gradients of the rows and Gaussian noise.

    ``b <- b - learning_rate / n (sum_i clip(g_i) + 2 clip sqrt(n_steps) s noise)`` with s the
    exact Gaussian scale of the whole budget: so many releases of one sensitivity are one Gaussian
    release whose sensitivity is ``sqrt(n_steps)`` times as large.

    Args:
      key: typed key, used once.
      X: ``[n, d]`` float64.
      y: ``[n]`` float64.
      epsilon: privacy budget.
      delta: likewise.
      clip: longest gradient of a row, from outside the data.
      learning_rate: step size, likewise.
      n_steps: number of steps over all data.

    Returns:
      BaselineResult; it never fails.

    Raises:
      ValueError: an argument out of range, shapes or dtypes.
    """
    check_budget(epsilon, delta)
    _check(X, y)
    _check_positive(clip=clip, learning_rate=learning_rate, n_steps=n_steps)
    deviation = 2 * clip * math.sqrt(n_steps) * gaussian_scale(epsilon, delta)
    with jax.enable_x64(True):
        return to_host(_dp_gd(key, X, y, clip, learning_rate, deviation, n_steps=n_steps))


@functools.partial(jax.jit, static_argnames="n_steps")
def _dp_gd(key, X, y, clip, learning_rate, deviation, *, n_steps):
    X, y = _finite_rows(X, y)
    length = jnp.linalg.norm(X, axis=1)

    def step(coef, key):
        residuals = X @ coef - y
        size = jnp.abs(residuals) * length  # of the gradient residual_i x_i
        residuals = residuals * jnp.minimum(1.0, clip / jnp.maximum(size, 1e-300))
        gradient = X.T @ residuals + deviation * standard_normal(key, coef.shape)
        return coef - learning_rate / X.shape[0] * gradient, None

    coef, _ = jax.lax.scan(step, jnp.zeros(X.shape[1]), jax.random.split(key, n_steps))
    return _answer(coef)
