"""ConvNeXt (Liu et al., "A ConvNet for the 2020s", 2022)."""

from flax import linen as nn
from jaxtyping import Array, Float

from jaxml.nn.activation import Activation

_KERNEL_INIT = nn.initializers.truncated_normal(0.02)


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution, layer norm, two dense layers over the channels; all scaled, added.

    Attributes:
      hidden: units between the two dense layers.
      layer_scale: where the learned factor of each channel starts.
      activation: between the two dense layers.
    """

    hidden: int
    layer_scale: float = 1e-6
    activation: Activation = nn.gelu

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Maps features to features."""
        channels = x.shape[-1]
        y = nn.Conv(channels, (7, 7), feature_group_count=channels, kernel_init=_KERNEL_INIT)(x)
        y = nn.LayerNorm()(y)
        y = self.activation(nn.Dense(self.hidden, kernel_init=_KERNEL_INIT)(y))
        y = nn.Dense(channels, kernel_init=_KERNEL_INIT)(y)
        scale = self.param("scale", nn.initializers.constant(self.layer_scale), (channels,))
        return x + scale.reshape(1, 1, 1, -1) * y


class ConvNeXt(nn.Module):
    """Patches, stages of ``ConvNeXtBlock`` with halving in between, mean pool, norm, linear head.

    Attributes:
      n_classes: units of the head.
      dims: channels, one number a stage.
      depths: blocks, one number a stage.
      patch: side of the patches that become the first pixels; 4 for large images, 1 or 2 for those
        of 32x32. Sides that it, or a halving, does not divide are padded with zeros.
      layer_scale: as in ``ConvNeXtBlock``.
      activation: inside the blocks, which are four times as wide there.
    """

    n_classes: int
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    patch: int = 4
    layer_scale: float = 1e-6
    activation: Activation = nn.gelu

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n n_classes"]:
        """Maps images to logits; ``train`` changes nothing.

        Raises:
          ValueError: ``dims`` and ``depths`` differ in length.
        """
        if len(self.dims) != len(self.depths):
            raise ValueError(f"dims {self.dims} and depths {self.depths} differ in length")
        for stage, (dim, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            if stage > 0:
                x = nn.LayerNorm()(x)
            side = (2, 2) if stage > 0 else (self.patch, self.patch)
            x = nn.Conv(dim, side, strides=side, kernel_init=_KERNEL_INIT)(x)
            if stage == 0:
                x = nn.LayerNorm()(x)
            for _ in range(depth):
                x = ConvNeXtBlock(4 * dim, self.layer_scale, self.activation)(x)
        x = nn.LayerNorm()(x.mean(axis=(1, 2)))
        return nn.Dense(self.n_classes)(x)


def convnext_tiny(
    *,
    n_classes: int,
    width_multiplier: float = 1,
    patch: int = 4,
    activation: Activation = nn.gelu,
) -> ConvNeXt:
    """Makes ConvNeXt-T, 18 blocks of 96 to 768 channels times a factor."""
    dims = tuple(round(w * width_multiplier) for w in (96, 192, 384, 768))
    return ConvNeXt(n_classes, dims, patch=patch, activation=activation)
