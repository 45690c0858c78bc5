"""make_norm: each choice against its formula in numpy."""

import jax
import numpy as np
import pytest
from flax import linen

from jaxml.nn import make_norm


class _Net(linen.Module):
    norm: str
    groups: int = 2

    @linen.compact
    def __call__(self, x, train=False):
        return make_norm(self.norm, train=train, groups=self.groups, name="it")(x)


X = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (5, 3, 3, 4))


def _standardized(x, axes):
    x = np.asarray(x, np.float64)
    return (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)


def test_layer_norm_standardizes_each_position_over_channels():
    y, _ = _Net("layer").init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(y, _standardized(X, (3,)), atol=1e-4)


def test_group_norm_standardizes_each_example_over_positions_and_the_group():
    y, _ = _Net("group").init_with_output(jax.random.key(0), X)
    expected = _standardized(X.reshape(5, 3, 3, 2, 2), (1, 2, 4)).reshape(X.shape)
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_batch_norm_uses_the_batch_in_training_and_running_averages_in_evaluation():
    net = _Net("batch")
    variables = net.init(jax.random.key(0), X)
    y, updates = net.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, _standardized(X, (0, 1, 2)), atol=1e-4)
    running = updates["batch_stats"]["it"]
    np.testing.assert_allclose(running["mean"], 0.1 * X.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * X.var((0, 1, 2)), rtol=1e-4)
    y = net.apply({**variables, **updates}, X)
    mean, var = (np.asarray(running[k])[None, None, None] for k in ("mean", "var"))
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


def test_none_is_the_identity_without_parameters():
    y, variables = _Net("none").init_with_output(jax.random.key(0), X)
    np.testing.assert_array_equal(y, X)
    assert not variables


def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match=r"norm must be one of .*'instance'"):
        _Net("instance").init(jax.random.key(0), X)
