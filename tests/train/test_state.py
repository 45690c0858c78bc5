"""init: one key, several keys, shapes without work."""

import jax
import numpy as np
import optax

from jaxml import nn, train

MODEL = nn.ConvNet(3, features=(4,), norm="batch")
ADAM = optax.adam(0.01)
X = np.zeros((2, 4, 4, 1), np.float32)


def test_each_of_several_keys_gives_the_state_of_that_key_alone():
    keys = jax.random.split(jax.random.key(0), 2)
    together = train.init(keys, MODEL, ADAM, X)
    alone = train.init(keys[1], MODEL, ADAM, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-6), together, alone)
    kernels = together.variables["params"]["Conv_0"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])


def test_a_state_starts_at_step_0_with_the_optimiser_over_the_parameters_only():
    state = train.init(jax.random.key(0), MODEL, ADAM, X)
    assert state.step == 0
    assert set(state.variables) == {"params", "batch_stats"}
    moments = state.opt_state[0].mu
    assert jax.tree.structure(moments) == jax.tree.structure(state.variables["params"])


def test_shapes_without_work_are_those_of_the_state():
    state = train.init(jax.random.key(0), MODEL, ADAM, X)
    shapes = jax.eval_shape(lambda key: train.init(key, MODEL, ADAM, X), jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    assert all(
        a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True)
    )
