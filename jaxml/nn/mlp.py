"""A multi-layer perceptron."""

from flax import linen as nn
from jaxtyping import Array, Float

from jaxml.nn.activation import Activation


class MLP(nn.Module):
    """Dense layers with an activation on the flattened input, then a linear head.

    Attributes:
      features: units of each hidden layer.
      n_classes: units of the head.
      activation: after each hidden layer.
    """

    features: tuple[int, ...]
    n_classes: int
    activation: Activation = nn.relu

    @nn.compact
    def __call__(
        self, x: Float[Array, "n ..."], train: bool = False
    ) -> Float[Array, "n n_classes"]:
        """Maps inputs of any rank to logits; ``train`` changes nothing."""
        x = x.reshape(x.shape[0], -1)
        for width in self.features:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.n_classes)(x)
