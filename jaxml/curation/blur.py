"""Blurring of faces, whose boxes the metadata hold."""

import jax
import jax.numpy as jnp
import numpy as np

_MARGIN = 0.1  # of the longer side of a box, on every side
_SIGMA = 0.1  # of the longest side of all boxes
_REACH = 4  # standard deviations


def blur_boxes(image: jax.Array, boxes: jax.Array) -> jax.Array:
    """Blurs the boxes of an image, with soft edges.

    The rule is that of img2dataset, which made DataComp's pool: each box grows by a tenth of its
    longer side; the standard deviation is a tenth of the longest side; the image and its blurred
    copy are blended by the blurred mask of the boxes, rounded outwards to whole pixels. Grown boxes
    are clamped to the image: a face at the border is blurred too, which upstream leaves as it is.

    Vmap over images of one size and boxes that are filled up to one number.

    Args:
      image: floating ``[h, w, c]``.
      boxes: floating ``[m, 4]``, ``x0, y0, x1, y1`` as fractions of width and height. A box without
        area, or with NaN, is filling.

    Returns:
      ``[h, w, c]`` of the image's dtype; the image itself where no box is left.

    Raises:
      ValueError: another rank, or images that are not floating.
    """
    if image.ndim != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image must be floating [h, w, c], got {image.dtype} {image.shape}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [m, 4], got {boxes.shape}")
    height, width, _ = image.shape
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    original, image, boxes = image, image.astype(dtype), boxes.astype(dtype)
    sides = jnp.array([[width, height]], dtype)
    boxes = jnp.clip(boxes, 0, 1)
    low, high = boxes[:, :2] * sides, boxes[:, 2:] * sides
    real = (high > low).all(1, keepdims=True)  # false for NaN
    longer = jnp.where(real, high - low, 0).max(1, keepdims=True)
    low = jnp.clip(jnp.where(real, low - _MARGIN * longer, 0), 0, sides)
    high = jnp.clip(jnp.where(real, high + _MARGIN * longer, 0), 0, sides)
    inside_x, inside_y = (
        (jnp.arange(size, dtype=dtype)[None] >= jnp.floor(low[:, i : i + 1]))
        & (jnp.arange(size, dtype=dtype)[None] < jnp.ceil(high[:, i : i + 1]))
        for i, size in enumerate((width, height))
    )
    mask = (inside_y[:, :, None] & inside_x[:, None, :]).any(0).astype(dtype)
    sigma = _SIGMA * longer.max(initial=0)
    down, across = _gaussian(height, width, sigma, dtype)
    soft = jnp.einsum("ij,jk,lk->il", down, mask, across, precision="highest")[:, :, None]
    blurred = jnp.einsum("ij,jkc,lk->ilc", down, image, across, precision="highest")
    blended = image + soft * (blurred - image)
    return jnp.where(sigma > 0, blended.astype(original.dtype), original)


def _gaussian(height: int, width: int, sigma, dtype):
    """Returns the blur along each side as a matrix; beyond its border an image is mirrored."""
    radius = int(np.ceil(_REACH * _SIGMA * max(height, width)))
    offsets = np.arange(-radius, radius + 1)
    scale = jnp.maximum(sigma, jnp.finfo(dtype).eps)
    distance = jnp.abs(jnp.asarray(offsets, dtype))
    weights = jnp.exp(-0.5 * jnp.square(distance / scale))
    weights = jnp.where(distance <= jnp.ceil(_REACH * sigma), weights, 0)
    weights = weights / weights.sum()

    def matrix(size):
        rows = np.arange(size)[:, None]
        period = max(2 * (size - 1), 1)
        folded = np.abs((rows + offsets[None] + size - 1) % period - (size - 1))
        return jnp.zeros((size, size), dtype).at[rows, folded].add(weights[None])

    return matrix(height), matrix(width)
