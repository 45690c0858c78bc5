"""What a private algorithm is put together from: a noise scale, a stability test, a key."""

import functools
import math
import secrets

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr

from jaxml.core.types import Key, PyTree


def check_budget(epsilon: float, delta: float) -> None:
    """Raises ValueError unless ``epsilon > 0`` is finite and ``0 < delta < 1``."""
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")


@functools.lru_cache(maxsize=4096)
def gaussian_scale(epsilon: float, delta: float) -> float:
    """Returns the least standard deviation that hides a shift of length 1 within (epsilon, delta).

    It solves ``Phi(1/(2 s) - epsilon s) - exp(epsilon) Phi(-1/(2 s) - epsilon s) = delta``, the
    exact privacy curve of the Gaussian mechanism (Balle & Wang, "Improving the Gaussian Mechanism
    for Differential Privacy", ICML 2018).

    Raises:
      ValueError: ``epsilon <= 0`` or ``delta`` outside (0, 1).
    """
    check_budget(epsilon, delta)

    def excess(log_scale: float) -> float:
        scale = math.exp(log_scale)
        a, b = 1 / (2 * scale) - epsilon * scale, -1 / (2 * scale) - epsilon * scale
        log_a, log_b = log_ndtr(a), epsilon + log_ndtr(b)
        # log of the curve, a difference of two nearby numbers when the scale is large
        return log_a + math.log(-math.expm1(min(log_b - log_a, -1e-300))) - math.log(delta)

    low, high = -3.0, 3.0
    while excess(low) < 0:
        low -= 3
    while excess(high) > 0:
        high += 3
    # Rounded up by more than the root may be off: too much noise is the safe side.
    return math.exp(brentq(excess, low, high, xtol=1e-13)) * (1 + 1e-12)


@functools.lru_cache(maxsize=4096)
def _pass_probs(epsilon: float, delta: float, fail_rate: float) -> tuple[float, ...]:
    probs = [0.0]
    grow, shrink = math.exp(epsilon), math.exp(-epsilon)
    while probs[-1] < 1 - fail_rate:
        p = probs[-1]
        # A hair below the bounds, so that rounding does not cross them.
        p = min(grow * p + delta, 1 - shrink * (1 - p - delta), 1.0) * (1 - 1e-15)
        probs.append(1.0 if 1 - p < 1e-14 else p)
    return tuple(reversed(probs))


def ptr_pass_probs(epsilon: float, delta: float, fail_rate: float = 0.0) -> np.ndarray:
    """Returns the probability of passing a propose-test-release check, by score.

    ``p[k] = 0``, and from there on downwards each ``p[z]`` is the largest number that keeps the
    two coins ``p[z]`` and ``p[z + 1]`` (epsilon, delta)-indistinguishable::

        p[z] = min(e^epsilon p[z + 1] + delta, 1 - e^-epsilon (1 - p[z + 1] - delta), 1)

    until ``p[0] >= 1 - fail_rate``. No rule passes more often. For a score that changes by at most
    one between neighbouring data sets, tossing the coin ``p[min(score, k)]`` is
    (epsilon, delta)-differentially private.

    Args:
      epsilon: budget of the test.
      delta: likewise.
      fail_rate: how often data of score 0 may fail; a small one makes the table shorter.

    Returns:
      Probabilities ``[k + 1]`` float64, non-increasing.

    Raises:
      ValueError: a budget out of range, or ``fail_rate`` outside [0, 1).
    """
    check_budget(epsilon, delta)
    if not 0 <= fail_rate < 1:
        raise ValueError(f"fail_rate must lie in [0, 1), got {fail_rate}")
    return np.array(_pass_probs(float(epsilon), float(delta), float(fail_rate)))


@functools.lru_cache(maxsize=4096)
def chi_square_bound(delta: float) -> float:
    """Returns ``x > 1`` with ``sqrt(x) exp(-(x - 1) / 2) = delta``.

    The Chernoff bound of a weighted sum ``Q = sum_i m_i g_i^2`` of squared standard normals with
    weights ``m_i >= 0``: ``P[Q > x sum_i m_i] <= delta``, whatever the weights.
    """
    check_budget(1.0, delta)
    log_delta = math.log(delta)

    def excess(x: float) -> float:
        return 0.5 * math.log(x) - 0.5 * (x - 1) - log_delta

    return brentq(excess, 1.0, 10 - 4 * log_delta, xtol=1e-12) * (1 + 1e-12)


def standard_normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draws standard normals in float64, each from two independent draws.

    One draw of a floating-point normal takes few values far out, so that its low bits can tell
    which number it was added to (Mironov, CCS 2012). A sum of two hides that better; it does not
    prove anything (see docs/private_ols.md).
    """
    pair = jax.random.normal(key, (2, *shape), dtype=jnp.float64)
    return (pair[0] + pair[1]) / math.sqrt(2)


def entropy_key() -> Key:
    """Makes a key from the operating system's entropy: the one to release private results with."""
    words = [secrets.randbits(32) for _ in range(2)]
    return jax.random.wrap_key_data(jnp.array(words, jnp.uint32), impl="threefry2x32")


def to_host(tree: PyTree) -> PyTree:
    """Turns arrays into numpy's, for float64 jax arrays are trouble outside ``enable_x64``.

    Traced values stay as they are.
    """
    leaves = jax.tree.leaves(tree)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    return tree if traced else jax.tree.map(np.asarray, tree)
