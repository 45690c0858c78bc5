"""The state of a training run and how it begins."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int32

from jaxml.core.rng import named_key
from jaxml.core.types import Key, PyTree


class TrainState(NamedTuple):
    """What a run carries from step to step; with ``s`` models every leaf leads with ``[s]``.

    Attributes:
      step: optimiser steps taken, int32 ``[]``.
      variables: Flax variables, ``{"params": ...}`` and ``"batch_stats"`` where there are any.
      opt_state: state of the optimiser over ``variables["params"]``.
    """

    step: Int32[Array, "*s"]
    variables: PyTree
    opt_state: optax.OptState


@partial(jax.jit, static_argnums=(1, 2))
def init(
    key: Key,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    x_example: Float[Array, "n ..."],
) -> TrainState:
    """Draws a fresh state at step 0.

    Pure, so ``jax.eval_shape(lambda key: init(key, model, optimizer, x), key)`` gives the shapes
    to restore a checkpoint into.

    Args:
      key: a typed key ``[]``, or ``[s]`` for ``s`` models at once.
      model: a Flax module with ``__call__(x, train)``.
      optimizer: an optax optimiser.
      x_example: inputs ``[n, ...]``; only the shape and dtype matter.

    Returns:
      The state; the same for one key alone and for that key among ``s``.
    """

    def init_one(key: Key) -> TrainState:
        variables = model.init(named_key(key, "init"), x_example)
        return TrainState(jnp.int32(0), variables, optimizer.init(variables["params"]))

    # One after the other: vmap would double the compile time of the random draws.
    return jax.lax.map(init_one, key) if key.ndim else init_one(key)
