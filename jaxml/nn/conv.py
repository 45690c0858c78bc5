"""A 2-D convolution that can run as a convolution or as one matrix product over patches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

CONVS = ("lax", "patches")


class Conv(nn.Module):
    """Padded convolution over ``[n, h, w, c]`` with the parameters of ``flax.linen.Conv``.

    Both implementations compute the same function from the same parameters, ``kernel``
    ``[kh, kw, c, features]`` and ``bias`` ``[features]``, so checkpoints fit either. ``"lax"`` is
    XLA's convolution. ``"patches"`` stacks the ``kh * kw`` shifted views of the padded input and
    contracts them with the kernel in one product. On a CPU that is several times faster under a
    ``vmap`` over the weights, which makes a grouped convolution, and inside ``lax.scan``, where XLA
    has no fast convolution; ``jaxml.train.fit`` is such a loop.

    Attributes:
      features: output channels.
      kernel_size: ``(kh, kw)``.
      strides: ``(sh, sw)``.
      use_bias: whether a bias is added.
      implementation: ``"lax"`` or ``"patches"``.
      padding: ``"SAME"``, or pairs of rows and columns ``((top, bottom), (left, right))``.
      kernel_init: a Flax initializer.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    use_bias: bool = True
    implementation: str = "lax"
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow features"]:
        """Convolves; ``oh = ceil(h / sh)``, ``ow = ceil(w / sw)`` with ``"SAME"``."""
        if self.implementation not in CONVS:
            raise ValueError(f"conv must be one of {CONVS}, got {self.implementation!r}")
        kernel = self.param(
            "kernel",
            self.kernel_init,
            (*self.kernel_size, x.shape[-1], self.features),
        )
        if self.implementation == "lax":
            y = lax.conv_general_dilated(
                x, kernel, self.strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            y = _patches_conv(x, kernel, self.strides, self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + bias.reshape(1, 1, 1, -1)
        return y


def _patches_conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads) -> jax.Array:
    # Only pad, slice, concatenate and dot_general, with the channels as an axis of their own, so
    # that what permutes channels stays visible in the jaxpr.
    (kh, kw, c, features), (sh, sw) = kernel.shape, strides
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(x.shape[1:3], (kh, kw), strides, pads)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    n, h, w, _ = x.shape
    views = [
        lax.slice(x, (0, i, j, 0), (n, h - kh + i + 1, w - kw + j + 1, c), (1, sh, sw, 1))
        for i in range(kh)
        for j in range(kw)
    ]
    patches = jnp.concatenate([jnp.expand_dims(view, 3) for view in views], axis=3)
    kernel = kernel.reshape(kh * kw, c, features)
    return lax.dot_general(patches, kernel, (((3, 4), (0, 1)), ((), ())))
