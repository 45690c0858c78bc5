"""evaluate: against numpy in float64, for every batch size, jitted and vmapped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxml.train import evaluate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 5)).astype(np.float32)
Y = RNG.integers(0, 4, 23).astype(np.int32)
W = RNG.normal(size=(3, 5, 4)).astype(np.float32)


def _apply(w, x):
    return x @ w


def _expected(w):
    logits = X.astype(np.float64) @ w
    loss = -log_softmax(logits, -1)[np.arange(23), Y].mean()
    return loss, (logits.argmax(-1) == Y).mean()


@pytest.mark.parametrize("batch_size", [1, 7, 23, 1000])
def test_every_example_counts_once_whatever_the_batch_size(batch_size):
    metrics = jax.jit(lambda w: evaluate(_apply, w, X, Y, batch_size=batch_size))(W[0])
    np.testing.assert_allclose(metrics, _expected(W[0]), rtol=1e-5)


def test_eager_is_jitted_and_vmap_is_a_loop():
    eager = evaluate(_apply, W[0], X, Y, batch_size=7)
    np.testing.assert_allclose(eager, _expected(W[0]), rtol=1e-5)
    many = jax.jit(jax.vmap(lambda w: evaluate(_apply, w, X, Y, batch_size=7)))(W)
    np.testing.assert_allclose(np.transpose(many), [_expected(w) for w in W], rtol=1e-5)


def test_the_loss_can_be_differentiated_over_batches():
    def loss(w, batch_size):
        return evaluate(_apply, w, X, Y, batch_size=batch_size).loss

    grads = [jax.jit(jax.grad(loss), static_argnums=1)(jnp.asarray(W[0]), b) for b in (7, 23)]
    np.testing.assert_allclose(*grads, atol=1e-6)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="one common, positive length"):
        evaluate(_apply, W[0], X, Y[:-1])
