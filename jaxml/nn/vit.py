"""The vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxml.nn.activation import Activation

POOLS = ("token", "mean")

_KERNEL_INIT = nn.initializers.xavier_uniform()


class ViTBlock(nn.Module):
    """Self-attention, then two dense layers; each behind a layer norm and beside the identity.

    Attributes:
      heads: of the attention; must divide the width.
      hidden: units between the two dense layers.
      activation: between the two dense layers.
      epsilon: of the layer norms.
    """

    heads: int
    hidden: int
    activation: Activation = nn.gelu
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        """Maps tokens to tokens."""
        y = nn.LayerNorm(self.epsilon)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, kernel_init=_KERNEL_INIT)(y)
        y = nn.LayerNorm(self.epsilon)(x)
        y = self.activation(nn.Dense(self.hidden, kernel_init=_KERNEL_INIT)(y))
        return x + nn.Dense(x.shape[-1], kernel_init=_KERNEL_INIT)(y)


class ViT(nn.Module):
    """Patches as tokens with learned positions, ``ViTBlock`` s, layer norm, pool, linear head.

    The positions belong to one size of image; the default at 224x224 is ViT-B/16.

    Attributes:
      n_classes: units of the head.
      width: of the tokens.
      hidden: units inside each block, one number a block.
      heads: of each attention; must divide ``width``.
      patch: side of a patch; must divide the sides of the image.
      pool: ``"token"``, a learned token in front whose output is read, or ``"mean"`` of all.
      activation: inside the blocks.
      epsilon: of the layer norms.
    """

    n_classes: int
    width: int = 768
    hidden: tuple[int, ...] = (3072,) * 12
    heads: int = 12
    patch: int = 16
    pool: str = "token"
    activation: Activation = nn.gelu
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n n_classes"]:
        """Maps images to logits; ``train`` changes nothing.

        Raises:
          ValueError: an unknown ``pool``, or a ``patch`` or ``heads`` that does not divide.
        """
        n, height, width, _ = x.shape
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {POOLS}, got {self.pool!r}")
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch must divide {height} and {width}, got {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width {self.width}, got {self.heads}")
        side = (self.patch, self.patch)
        x = nn.Conv(self.width, side, strides=side)(x).reshape(n, -1, self.width)
        if self.pool == "token":
            token = self.param("token", nn.initializers.zeros_init(), (1, 1, self.width))
            x = jnp.concatenate([jnp.broadcast_to(token, (n, 1, self.width)), x], axis=1)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for hidden in self.hidden:
            x = ViTBlock(self.heads, hidden, self.activation, self.epsilon)(x)
        x = nn.LayerNorm(self.epsilon)(x)
        return nn.Dense(self.n_classes)(x[:, 0] if self.pool == "token" else x.mean(axis=1))


def vit_base(
    *,
    n_classes: int,
    width_multiplier: float = 1,
    depth: int = 12,
    patch: int = 16,
    pool: str = "token",
    activation: Activation = nn.gelu,
) -> ViT:
    """Makes ViT-B: ``depth`` blocks of width 768 times a factor, in heads of about 64."""
    heads = max(1, round(12 * width_multiplier))
    width = heads * round(768 * width_multiplier / heads)
    return ViT(n_classes, width, (4 * width,) * depth, heads, patch, pool, activation)
