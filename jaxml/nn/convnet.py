"""A small convolutional network for small images."""

from flax import linen as nn
from jaxtyping import Array, Float

from jaxml.nn.activation import Activation
from jaxml.nn.conv import Conv
from jaxml.nn.norm import make_norm


class ConvNet(nn.Module):
    """3x3 convolutions (stride 1, then 2 each), norm, activation; global average pool; linear head.

    Attributes:
      n_classes: units of the head.
      features: output channels of each convolution.
      norm: a name of ``make_norm``; convolutions have a bias only with ``"none"``.
      groups: of ``norm="group"``.
      conv: ``implementation`` of every ``Conv``.
      activation: after each norm.
    """

    n_classes: int
    features: tuple[int, ...] = (16, 32, 64)
    norm: str = "layer"
    groups: int = 8
    conv: str = "lax"
    activation: Activation = nn.relu

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n n_classes"]:
        """Maps images to logits; ``train`` makes batch normalisation use the batch."""
        for i, width in enumerate(self.features):
            strides = (1, 1) if i == 0 else (2, 2)
            x = Conv(
                width,
                strides=strides,
                use_bias=self.norm == "none",
                implementation=self.conv,
            )(x)
            x = self.activation(make_norm(self.norm, train=train, groups=self.groups)(x))
        return nn.Dense(self.n_classes)(x.mean(axis=(1, 2)))
