"""Random changes of images that keep their label."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxml.core.types import Key


def random_crop_flip(
    key: Key, x: Float[Array, "n h w c"], *, pad: int = 4
) -> Float[Array, "n h w c"]:
    """Shifts each image by up to ``pad`` pixels a side over zeros, and mirrors half of them.

    Pure; every image draws its own shift and flip. Give it to ``fit`` as ``augment``.

    Args:
      key: a typed key.
      x: images ``[n, h, w, c]``.
      pad: largest shift in pixels, static.

    Raises:
      ValueError: ``x`` is not ``[n, h, w, c]`` or ``pad`` is negative.
    """
    if x.ndim != 4 or pad < 0:
        raise ValueError(f"need images [n, h, w, c] and pad >= 0, got {x.shape} and pad={pad}")

    def one(key: Key, image: jax.Array) -> jax.Array:
        shift_key, flip_key = jax.random.split(key)
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        top, left = jax.random.randint(shift_key, (2,), 0, 2 * pad + 1, jnp.int32)
        crop = jax.lax.dynamic_slice(padded, (top, left, jnp.int32(0)), image.shape)
        return jnp.where(jax.random.bernoulli(flip_key, jnp.float32(0.5)), crop[:, ::-1], crop)

    return jax.vmap(one)(jax.random.split(key, x.shape[0]), x)
