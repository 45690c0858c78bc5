"""Residual networks for CIFAR-sized images (He et al. 2016, section 4.2)."""

from flax import linen as nn
from jaxtyping import Array, Float

from jaxml.nn.conv import Conv
from jaxml.nn.norm import make_norm


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, or a 1x1 projection where the shape changes.

    Attributes:
      inner: channels between the two convolutions.
      features: output channels.
      strides: of the first convolution and of the projection.
      norm, groups, conv: as in ``ResNet``.
    """

    inner: int
    features: int
    strides: tuple[int, int] = (1, 1)
    norm: str = "layer"
    groups: int = 8
    conv: str = "lax"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n oh ow features"]:
        """Maps features to features."""
        options = {"use_bias": self.norm == "none", "implementation": self.conv}
        norm_options = {"train": train, "groups": self.groups}
        y = Conv(self.inner, strides=self.strides, **options)(x)
        y = nn.relu(make_norm(self.norm, **norm_options)(y))
        y = Conv(self.features, **options)(y)
        y = make_norm(self.norm, **norm_options)(y)
        if y.shape != x.shape:
            x = Conv(
                self.features,
                kernel_size=(1, 1),
                strides=self.strides,
                name="shortcut",
                **options,
            )(x)
            x = make_norm(self.norm, name="shortcut_norm", **norm_options)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """3x3 stem, stages of residual blocks (stride 2 from the second on), mean pool, linear head.

    Attributes:
      n_classes: units of the head.
      widths: channels of the residual stream, one a stage; the stem has those of the first.
      blocks: residual blocks, one number a stage.
      inner: channels inside each block, over all stages in order (``sum(blocks)`` numbers);
        None means those of the block's stage.
      norm: a name of ``make_norm``; convolutions have a bias only with ``"none"``.
      groups: of ``norm="group"``.
      conv: ``implementation`` of every ``Conv``.
    """

    n_classes: int
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (3, 3, 3)
    inner: tuple[int, ...] | None = None
    norm: str = "layer"
    groups: int = 8
    conv: str = "lax"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n n_classes"]:
        """Maps images to logits; ``train`` makes batch normalisation use the batch.

        Raises:
          ValueError: ``widths``, ``blocks`` and ``inner`` have lengths that do not agree.
        """
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths {self.widths} and blocks {self.blocks} differ in length")
        stage_of_block = [s for s, count in enumerate(self.blocks) for _ in range(count)]
        inner = self.inner or tuple(self.widths[s] for s in stage_of_block)
        if len(inner) != len(stage_of_block):
            raise ValueError(f"inner needs {len(stage_of_block)} widths, got {len(inner)}")
        options = {"norm": self.norm, "groups": self.groups, "conv": self.conv}
        x = Conv(self.widths[0], use_bias=self.norm == "none", implementation=self.conv)(x)
        x = nn.relu(make_norm(self.norm, train=train, groups=self.groups)(x))
        for i, (stage, width) in enumerate(zip(stage_of_block, inner, strict=True)):
            downsamples = stage > 0 and stage != stage_of_block[i - 1]
            strides = (2, 2) if downsamples else (1, 1)
            x = ResidualBlock(width, self.widths[stage], strides, **options)(x, train)
        return nn.Dense(self.n_classes)(x.mean(axis=(1, 2)))


def resnet20(
    *,
    n_classes: int,
    width_multiplier: float = 1,
    norm: str = "layer",
    groups: int = 8,
    conv: str = "lax",
) -> ResNet:
    """Makes the 20-layer net: three stages of three blocks, 16, 32, 64 channels times a factor."""
    widths = tuple(round(w * width_multiplier) for w in (16, 32, 64))
    return ResNet(n_classes, widths, norm=norm, groups=groups, conv=conv)
