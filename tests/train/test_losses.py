"""The losses: against scipy and numpy in float64, their extremes and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxml.train import cross_entropy, evaluate, soft_cross_entropy, squared_error

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(23, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 23).astype(np.int32)
SOFT = RNG.dirichlet(np.ones(4), 23).astype(np.float32)
OUTPUTS = RNG.normal(size=(23, 1)).astype(np.float32)
SIGNS = RNG.choice([-1.0, 1.0], 23).astype(np.float32)

CASES = {
    "cross_entropy": (cross_entropy, LOGITS, LABELS),
    "soft_cross_entropy": (soft_cross_entropy, LOGITS, SOFT),
    "squared_error": (squared_error, OUTPUTS, SIGNS),
}


def _expected(name):
    """Returns the loss, the accuracy, and the gradient of the loss in the outputs."""
    logits = LOGITS.astype(np.float64)
    if name == "squared_error":
        residual = OUTPUTS.astype(np.float64)[:, 0] - SIGNS
        right = np.sign(OUTPUTS[:, 0]) == SIGNS
        return np.mean(residual**2), right.mean(), 2 * residual[:, None] / 23
    targets = SOFT if name == "soft_cross_entropy" else np.eye(4)[LABELS]
    loss = -(targets * log_softmax(logits, -1)).sum(-1).mean()
    right = logits.argmax(-1) == targets.argmax(-1)
    return loss, right.mean(), (softmax(logits, -1) - targets) / 23


@pytest.mark.parametrize("name", CASES)
def test_means_and_gradients_are_those_of_numpy(name):
    loss, outputs, targets = CASES[name]
    *expected, expected_gradient = _expected(name)
    eager = loss(outputs, targets)
    np.testing.assert_allclose(eager, expected, rtol=1e-5)
    assert all(value.dtype == jnp.float32 and value.shape == () for value in eager)

    @jax.jit
    def run(outputs, targets):
        gradient = jax.grad(lambda outputs: loss(outputs, targets).loss)(outputs)
        return loss(outputs, targets), gradient

    jitted, gradient = run(outputs, targets)
    np.testing.assert_allclose(jitted, eager, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_evaluate_takes_each(name):
    loss, outputs, targets = CASES[name]

    @jax.jit
    def run(x, y):
        return evaluate(lambda scale, x: scale * x, jnp.float32(1), x, y, loss=loss, batch_size=7)

    np.testing.assert_allclose(run(outputs, targets), _expected(name)[:2], rtol=1e-5)


def test_huge_logits_give_finite_losses():
    logits = np.array([[1e4, -1e4], [1e4, -1e4]], np.float32)
    labels = np.array([0, 1], np.int32)
    one_hot = np.eye(2, dtype=np.float32)
    for metrics in (cross_entropy(logits, labels), soft_cross_entropy(logits, one_hot)):
        np.testing.assert_allclose(metrics, (1e4, 0.5), rtol=1e-6)


def test_the_right_sign_without_the_right_size_is_right_and_zero_is_not_plus():
    outputs = np.array([[5.0], [-0.1], [0.0], [0.0]], np.float32)
    metrics = squared_error(outputs, np.array([1, -1, -1, 1], np.float32))
    np.testing.assert_allclose(metrics, ((16 + 0.81 + 1 + 1) / 4, 0.75), rtol=1e-6)


def test_several_outputs_have_no_squared_error():
    with pytest.raises(ValueError, match="squeeze"):
        squared_error(LOGITS, SIGNS)
