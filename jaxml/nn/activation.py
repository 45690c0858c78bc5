"""The choice of activation, by name."""

from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn

Activation = Callable[[jax.Array], jax.Array]

# "gelu" is the usual approximation by tanh. The models compare equal because each value here is one
# object.
ACTIVATIONS: dict[str, Activation] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "leaky_relu": partial(nn.leaky_relu, negative_slope=0.1),
}
