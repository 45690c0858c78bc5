"""Residual networks with pre-activation, for CIFAR-sized images: the wide ones and ResNet-32."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxml.nn.activation import ACTIVATIONS, Activation
from jaxml.nn.conv import Conv
from jaxml.nn.norm import make_norm

SHORTCUTS = ("projection", "pad")


class PreactBlock(nn.Module):
    """Norm, activation and 3x3 convolution, twice, beside a shortcut that nothing follows.

    Ref: He et al., "Identity Mappings in Deep Residual Networks", 2016.

    Attributes:
      features: output channels.
      strides: of the first convolution and of the shortcut.
      shortcut, norm, groups, conv, activation: as in ``PreactResNet``.
      gain: variance of the last convolution's output for that of its input, at initialisation.
    """

    features: int
    strides: tuple[int, int] = (1, 1)
    shortcut: str = "projection"
    norm: str = "batch"
    groups: int = 8
    conv: str = "lax"
    activation: Activation = nn.relu
    gain: float = 1.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n oh ow features"]:
        """Maps features to features.

        Raises:
          ValueError: an unknown ``shortcut``, or fewer channels than the input has with ``"pad"``.
        """
        if self.shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be one of {SHORTCUTS}, got {self.shortcut!r}")
        options = {"use_bias": self.norm == "none", "implementation": self.conv}
        norm_options = {"train": train, "groups": self.groups}
        # He et al. 2015: an activation like relu halves the second moment.
        he, last = (
            nn.initializers.variance_scaling(2 * gain, "fan_in", "truncated_normal")
            for gain in (1.0, self.gain)
        )
        y = self.activation(make_norm(self.norm, **norm_options)(x))
        if self.strides != (1, 1) or x.shape[-1] != self.features:
            if self.shortcut == "pad":
                x = _pool_and_pad(x, self.strides, self.features)
            else:
                x = Conv(
                    self.features, (1, 1), self.strides, kernel_init=he, name="shortcut", **options
                )(y)
        y = Conv(self.features, strides=self.strides, kernel_init=he, **options)(y)
        y = self.activation(make_norm(self.norm, **norm_options)(y))
        return x + Conv(self.features, kernel_init=last, **options)(y)


def _pool_and_pad(x: jax.Array, strides: tuple[int, int], features: int) -> jax.Array:
    extra = features - x.shape[-1]
    if extra < 0:
        raise ValueError(f"a padded shortcut cannot go from {x.shape[-1]} to {features} channels")
    x = nn.avg_pool(x, strides, strides, padding="SAME", count_include_pad=False)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


class PreactResNet(nn.Module):
    """Stem, stages of ``PreactBlock`` (stride 2 from the second on), norm, mean pool, linear head.

    Without a norm the last convolution of each block starts with its variance divided by the number
    of blocks: so the variance of the signal grows by a factor of e at most over the whole depth,
    where it would double in each block.

    Attributes:
      n_classes: units of the head.
      widths: channels, one number a stage.
      blocks: residual blocks, one number a stage.
      stem: channels of the first convolution; None means those of the first stage.
      shortcut: what stands beside a block that changes the shape: ``"projection"``, a 1x1
        convolution of the activated input, or ``"pad"``, the input averaged over the stride's
        windows, with channels of zeros on both sides and no parameters.
      norm: a name of ``make_norm``; convolutions have a bias only with ``"none"``.
      groups: of ``norm="group"``.
      conv: ``implementation`` of every ``Conv``.
      activation: after each norm.
    """

    n_classes: int
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (5, 5, 5)
    stem: int | None = None
    shortcut: str = "projection"
    norm: str = "batch"
    groups: int = 8
    conv: str = "lax"
    activation: Activation = nn.relu

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n n_classes"]:
        """Maps images to logits; ``train`` makes batch normalisation use the batch.

        Raises:
          ValueError: ``widths`` and ``blocks`` differ in length, or as in ``PreactBlock``.
        """
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths {self.widths} and blocks {self.blocks} differ in length")
        x = Conv(
            self.stem or self.widths[0],
            use_bias=self.norm == "none",
            implementation=self.conv,
        )(x)
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for i in range(count):
                x = PreactBlock(
                    width,
                    (2, 2) if stage > 0 and i == 0 else (1, 1),
                    self.shortcut,
                    self.norm,
                    self.groups,
                    self.conv,
                    self.activation,
                    gain=1 / sum(self.blocks) if self.norm == "none" else 1.0,
                )(x, train)
        x = self.activation(make_norm(self.norm, train=train, groups=self.groups)(x))
        return nn.Dense(self.n_classes)(x.mean(axis=(1, 2)))


def wide_resnet(
    depth: int,
    *,
    n_classes: int,
    widening: float = 1,
    norm: str = "batch",
    groups: int = 8,
    conv: str = "lax",
    activation: Activation = nn.relu,
) -> PreactResNet:
    """Makes WRN-``depth``-``widening``: a stem of 16 channels, then 16, 32, 64 times a factor.

    Ref: Zagoruyko & Komodakis, "Wide Residual Networks", 2016.

    Args:
      depth: ``6 n + 4`` for ``n`` blocks a stage; it counts the three projections too.
      n_classes: units of the head.
      widening: the factor.
      norm: a name of ``make_norm``.
      groups: of ``norm="group"``.
      conv: ``implementation`` of every ``Conv``.
      activation: after each norm.

    Raises:
      ValueError: a ``depth`` that is not ``6 n + 4``.
    """
    n, rest = divmod(depth - 4, 6)
    if n < 1 or rest:
        raise ValueError(f"depth must be 6 n + 4, such as 16, 22, 28 or 34; got {depth}")
    return PreactResNet(
        n_classes,
        tuple(round(w * widening) for w in (16, 32, 64)),
        (n, n, n),
        stem=16,
        norm=norm,
        groups=groups,
        conv=conv,
        activation=activation,
    )


def resnet32_preact(
    *,
    n_classes: int,
    width_multiplier: float = 1,
    norm: str = "batch",
    groups: int = 8,
    conv: str = "lax",
    activation: Activation = ACTIVATIONS["leaky_relu"],
) -> PreactResNet:
    """Makes the 32-layer net with padded shortcuts: three stages of five blocks, 16, 32, 64."""
    return PreactResNet(
        n_classes,
        tuple(round(w * width_multiplier) for w in (16, 32, 64)),
        (5, 5, 5),
        shortcut="pad",
        norm=norm,
        groups=groups,
        conv=conv,
        activation=activation,
    )
