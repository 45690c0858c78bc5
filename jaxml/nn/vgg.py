"""VGG networks (Simonyan and Zisserman 2015) with a thin classifier for small images."""

from flax import linen as nn
from jaxtyping import Array, Float

from jaxml.nn.activation import Activation
from jaxml.nn.conv import Conv
from jaxml.nn.norm import make_norm


class VGG(nn.Module):
    """Blocks of 3x3 convolutions, each with norm and activation; dense layers; linear head.

    A 2x2 max-pool ends each block while the image has more than one row and column: 32x32 inputs
    reach 1x1 after the fifth block, 8x8 inputs after the third.

    Attributes:
      n_classes: units of the head.
      features: output channels of each convolution, over all blocks in order.
      blocks: convolutions in each block.
      dense: units of the dense layers.
      norm: a name of ``make_norm``.
      groups: of ``norm="group"``.
      conv: ``implementation`` of every ``Conv``.
      activation: after each norm and each dense layer.
      conv_bias: whether convolutions have a bias; None means only with ``norm="none"``.
    """

    n_classes: int
    features: tuple[int, ...]
    blocks: tuple[int, ...] = (2, 2, 3, 3, 3)
    dense: tuple[int, ...] = (512, 512)
    norm: str = "layer"
    groups: int = 8
    conv: str = "lax"
    activation: Activation = nn.relu
    conv_bias: bool | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n n_classes"]:
        """Maps images to logits; ``train`` makes batch normalisation use the batch.

        Raises:
          ValueError: ``features`` has not one width for each convolution of ``blocks``.
        """
        if len(self.features) != sum(self.blocks):
            raise ValueError(f"features needs {sum(self.blocks)} widths, got {len(self.features)}")
        widths = iter(self.features)
        bias = self.norm == "none" if self.conv_bias is None else self.conv_bias
        for count in self.blocks:
            for _ in range(count):
                x = Conv(next(widths), use_bias=bias, implementation=self.conv)(x)
                x = self.activation(make_norm(self.norm, train=train, groups=self.groups)(x))
            if min(x.shape[1:3]) > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in self.dense:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.n_classes)(x)


def vgg16(
    *,
    n_classes: int,
    width_multiplier: float = 1,
    norm: str = "layer",
    groups: int = 8,
    conv: str = "lax",
    activation: Activation = nn.relu,
    blocks: tuple[int, int, int, int, int] = (2, 2, 3, 3, 3),
) -> VGG:
    """Makes the 13-convolution net, 64 to 512 channels and two dense layers of 512, scaled."""
    features = [
        w for w, count in zip((64, 128, 256, 512, 512), blocks, strict=True) for _ in range(count)
    ]
    return VGG(
        n_classes,
        tuple(round(w * width_multiplier) for w in features),
        blocks,
        dense=(round(512 * width_multiplier),) * 2,
        norm=norm,
        groups=groups,
        conv=conv,
        activation=activation,
    )


def vgg19(**options) -> VGG:
    """Makes the 16-convolution net, with the options of ``vgg16``."""
    return vgg16(blocks=(2, 2, 4, 4, 4), **options)
