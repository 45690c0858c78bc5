"""Residual networks (He et al. 2016), for CIFAR-sized images and for those of ImageNet."""

from flax import linen as nn
from jaxtyping import Array, Float

from jaxml.nn.activation import Activation
from jaxml.nn.conv import Conv
from jaxml.nn.norm import make_norm

PADDINGS = ("same", "symmetric")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, or a 1x1 projection where the shape changes.

    Attributes:
      inner: channels between the two convolutions.
      features: output channels.
      strides: of the first convolution and of the projection.
      norm, groups, conv, activation, padding: as in ``ResNet``.
    """

    inner: int
    features: int
    strides: tuple[int, int] = (1, 1)
    norm: str = "layer"
    groups: int = 8
    conv: str = "lax"
    activation: Activation = nn.relu
    padding: str = "same"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n oh ow features"]:
        """Maps features to features."""
        options = {"use_bias": self.norm == "none", "implementation": self.conv}
        norm_options = {"train": train, "groups": self.groups}
        y = Conv(self.inner, strides=self.strides, padding=_pads(self, 3), **options)(x)
        y = self.activation(make_norm(self.norm, **norm_options)(y))
        y = Conv(self.features, **options)(y)
        y = make_norm(self.norm, **norm_options)(y)
        return self.activation(_shortcut(self, x, y, train) + y)


class BottleneckBlock(nn.Module):
    """A 3x3 convolution between two of 1x1, beside the identity or a 1x1 projection.

    Attributes:
      inner: channels after the first and after the second convolution.
      features: output channels.
      strides: of the 3x3 convolution and of the projection.
      norm, groups, conv, activation, padding: as in ``ResNet``.
    """

    inner: tuple[int, int]
    features: int
    strides: tuple[int, int] = (1, 1)
    norm: str = "layer"
    groups: int = 8
    conv: str = "lax"
    activation: Activation = nn.relu
    padding: str = "same"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n oh ow features"]:
        """Maps features to features."""
        options = {"use_bias": self.norm == "none", "implementation": self.conv}
        norm_options = {"train": train, "groups": self.groups}
        y = Conv(self.inner[0], kernel_size=(1, 1), **options)(x)
        y = self.activation(make_norm(self.norm, **norm_options)(y))
        y = Conv(self.inner[1], strides=self.strides, padding=_pads(self, 3), **options)(y)
        y = self.activation(make_norm(self.norm, **norm_options)(y))
        y = Conv(self.features, kernel_size=(1, 1), **options)(y)
        y = make_norm(self.norm, **norm_options)(y)
        return self.activation(_shortcut(self, x, y, train) + y)


def _pads(module: nn.Module, size: int) -> str | tuple[tuple[int, int], ...]:
    """Says how a window of ``size`` is padded in a block or network with ``padding``."""
    if module.padding not in PADDINGS:
        raise ValueError(f"padding must be one of {PADDINGS}, got {module.padding!r}")
    return "SAME" if module.padding == "same" else ((size // 2, size // 2),) * 2


def _shortcut(block: nn.Module, x, y, train):
    """Brings ``x`` to the shape of ``y``, in a compact method of ``block``."""
    # A merge can make the two widths coincide; what was trained with a shortcut keeps it.
    if y.shape == x.shape and not block.has_variable("params", "shortcut"):
        return x
    options = {"use_bias": block.norm == "none", "implementation": block.conv}
    x = Conv(y.shape[-1], kernel_size=(1, 1), strides=block.strides, name="shortcut", **options)(x)
    return make_norm(block.norm, train=train, groups=block.groups, name="shortcut_norm")(x)


class ResNet(nn.Module):
    """Stem, stages of residual blocks (stride 2 from the second on), mean pool, linear head.

    Attributes:
      n_classes: units of the head.
      widths: channels of the residual stream, one a stage.
      blocks: residual blocks, one number a stage.
      inner: channels inside each block, over all stages in order: one number a block, two a
        bottleneck. None means those of the block's stage, a quarter of them in a bottleneck.
      bottleneck: ``BottleneckBlock`` in place of ``ResidualBlock``.
      stem: channels of the stem; None means those of the first stage.
      large_images: 7x7 stem and 3x3 max-pool, stride 2 each, in place of a 3x3 stem.
      norm: a name of ``make_norm``; convolutions have a bias only with ``"none"``.
      groups: of ``norm="group"``.
      conv: ``implementation`` of every ``Conv``.
      activation: after each norm, in the blocks after the sum.
      padding: of windows with stride 2: ``"same"``, where an even image has the odd row and column
        behind its last, or ``"symmetric"``, as many in front as behind, which is PyTorch's.
    """

    n_classes: int
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (3, 3, 3)
    inner: tuple[int, ...] | None = None
    bottleneck: bool = False
    stem: int | None = None
    large_images: bool = False
    norm: str = "layer"
    groups: int = 8
    conv: str = "lax"
    activation: Activation = nn.relu
    padding: str = "same"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n n_classes"]:
        """Maps images to logits; ``train`` makes batch normalisation use the batch.

        Raises:
          ValueError: ``widths``, ``blocks`` and ``inner`` have lengths that do not agree, or an
            unknown ``padding``.
        """
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths {self.widths} and blocks {self.blocks} differ in length")
        stage_of_block = [s for s, count in enumerate(self.blocks) for _ in range(count)]
        per_block = 2 if self.bottleneck else 1
        inner = self.inner or tuple(
            self.widths[s] // (4 if self.bottleneck else 1)
            for s in stage_of_block
            for _ in range(per_block)
        )
        if len(inner) != per_block * len(stage_of_block):
            raise ValueError(
                f"inner needs {per_block * len(stage_of_block)} widths, got {len(inner)}"
            )
        options = {
            "norm": self.norm,
            "groups": self.groups,
            "conv": self.conv,
            "activation": self.activation,
            "padding": self.padding,
        }
        size, stride = ((7, 7), (2, 2)) if self.large_images else ((3, 3), (1, 1))
        x = Conv(
            self.stem or self.widths[0],
            kernel_size=size,
            strides=stride,
            padding=_pads(self, size[0]),
            use_bias=self.norm == "none",
            implementation=self.conv,
        )(x)
        x = self.activation(make_norm(self.norm, train=train, groups=self.groups)(x))
        if self.large_images:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=_pads(self, 3))
        for i, stage in enumerate(stage_of_block):
            downsamples = stage > 0 and stage != stage_of_block[i - 1]
            strides = (2, 2) if downsamples else (1, 1)
            if self.bottleneck:
                block = BottleneckBlock(
                    tuple(inner[2 * i : 2 * i + 2]), self.widths[stage], strides, **options
                )
            else:
                block = ResidualBlock(inner[i], self.widths[stage], strides, **options)
            x = block(x, train)
        return nn.Dense(self.n_classes)(x.mean(axis=(1, 2)))


def resnet20(
    *,
    n_classes: int,
    width_multiplier: float = 1,
    norm: str = "layer",
    groups: int = 8,
    conv: str = "lax",
    activation: Activation = nn.relu,
) -> ResNet:
    """Makes the 20-layer net: three stages of three blocks, 16, 32, 64 channels times a factor."""
    widths = tuple(round(w * width_multiplier) for w in (16, 32, 64))
    return ResNet(n_classes, widths, norm=norm, groups=groups, conv=conv, activation=activation)


def resnet18_cifar(
    *,
    n_classes: int,
    width_multiplier: float = 1,
    norm: str = "batch",
    groups: int = 8,
    conv: str = "lax",
    activation: Activation = nn.relu,
) -> ResNet:
    """Makes the net of ``"resnet18"`` with a 3x3 stem and no pooling, for images of 32x32."""
    return ResNet(
        n_classes,
        tuple(round(w * width_multiplier) for w in (64, 128, 256, 512)),
        (2, 2, 2, 2),
        norm=norm,
        groups=groups,
        conv=conv,
        activation=activation,
    )


LARGE = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


def large_resnet(
    name: str,
    *,
    n_classes: int,
    width_multiplier: float = 1,
    norm: str = "batch",
    groups: int = 8,
    conv: str = "lax",
    activation: Activation = nn.relu,
) -> ResNet:
    """Makes ``"resnet18"``, ``"resnet50"`` or ``"resnet101"`` for large images.

    The layers and sizes of torchvision's, whose weights give its features with
    ``padding="symmetric"``: ``jaxml.io.load_published`` describes such a net.
    """
    blocks, bottleneck = LARGE[name]
    stem, *rest = (round(w * width_multiplier) for w in (64, 128, 256, 512))
    widths = tuple(4 * w if bottleneck else w for w in (stem, *rest))
    return ResNet(
        n_classes,
        widths,
        blocks,
        bottleneck=bottleneck,
        stem=stem,
        large_images=True,
        norm=norm,
        groups=groups,
        conv=conv,
        activation=activation,
    )
