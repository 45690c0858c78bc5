"""A small network with BatchNorm, random data, and matching problems for the FLIP tests."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxml.backdoor.matchers import Batches, Point


class Net(nn.Module):
    """One hidden layer, with BatchNorm or without."""

    norm: bool = True
    n_classes: int = 3

    @nn.compact
    @jax.numpy_dtype_promotion("standard")  # the running statistics are float32 in float64 too
    def __call__(self, x, train=False):
        x = nn.Dense(5)(x.reshape(len(x), -1))
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.n_classes)(nn.tanh(x))


def problem(model, optimizer, *, steps=1, batch=6, dtype=np.float32, seed=0):
    """Returns a point with a used optimiser, batches and student labels."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = model.init(jax.random.key(seed), np.zeros((2, 4), np.float32))["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    state = optimizer.init(params)
    for _ in range(2):  # momentum is not 0 then
        noise = jax.tree.map(lambda leaf: 0.3 * draw(*leaf.shape), params)
        with jax.numpy_dtype_promotion("standard"):
            _, state = optimizer.update(noise, state, params)
    x, expert_x = draw(steps, batch, 4), draw(steps, batch, 4)
    expert_y = jax.nn.one_hot(rng.integers(0, 3, (steps, batch)), 3, dtype=dtype)
    labels = jax.nn.softmax(draw(steps, batch, 3))
    return Point(params, state), Batches(x, expert_x, expert_y), labels


def steps_loss(model, optimizer, point, batches, labels):
    """The matching loss, written as training is: oracle for values and, by autodiff, gradients."""

    def train(x, y):
        params, state = point
        for xb, yb in zip(x, y, strict=True):

            def loss(p, xb=xb, yb=yb):
                logits, _ = model.apply({"params": p}, xb, train=True, mutable=["batch_stats"])
                return optax.softmax_cross_entropy(logits, yb).mean()

            gradient = jax.grad(loss)(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    def distance(a, b):
        leaves = jax.tree.leaves(jax.tree.map(lambda u, v: ((u - v) ** 2).sum(), a, b))
        return sum(leaves[1:], leaves[0])

    expert = train(batches.expert_x, batches.expert_y)
    return distance(train(batches.x, labels), expert) / distance(point.params, expert)
