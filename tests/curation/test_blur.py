"""Blurred boxes, against scipy's Gaussian filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxml.curation import blur_boxes

FILLING = [[0, 0, 0, 0], [0.5, 0.5, 0.5, 0.9], [np.nan] * 4, [0.8, 0.1, 0.2, 0.9]]
BOXES = {
    "inside": [[0.3, 0.2, 0.6, 0.7]],
    "at the left": [[0.0, 0.3, 0.2, 0.6]],
    "at the corner": [[0.85, 0.8, 1.0, 1.0]],
    "everything": [[0, 0, 1, 1]],
    "beyond the border": [[-0.2, 0.4, 0.2, 1.4]],
    "two": [[0.1, 0.1, 0.3, 0.3], [0.6, 0.5, 0.9, 0.9]],
}
IMAGE = np.random.default_rng(0).uniform(size=(23, 31, 3)).astype(np.float32)


@jax.jit
def blur(image, boxes):
    return blur_boxes(image, boxes)


def reference(image, boxes):
    height, width, _ = image.shape
    mask, longest = np.zeros((height, width)), 0.0
    for x0, y0, x1, y1 in np.clip(boxes, 0, 1) * [width, height, width, height]:
        longer = max(x1 - x0, y1 - y0)
        longest, margin = max(longest, longer), 0.1 * longer
        rows = slice(int(np.floor(max(y0 - margin, 0))), int(np.ceil(y1 + margin)))
        mask[rows, int(np.floor(max(x0 - margin, 0))) : int(np.ceil(x1 + margin))] = 1
    sigma = 0.1 * longest
    radius = int(np.ceil(4 * sigma))

    def smooth(x):
        return ndimage.gaussian_filter(x, sigma, mode="mirror", radius=radius)

    soft = smooth(mask)[:, :, None]
    blurred = np.stack([smooth(image[:, :, c].astype(np.float64)) for c in range(3)], axis=-1)
    return image * (1 - soft) + blurred * soft


@pytest.mark.parametrize("name", BOXES)
def test_blur_is_that_of_scipy_and_filling_does_nothing(name):
    boxes = np.array(BOXES[name], np.float32)
    filled = np.concatenate([boxes, np.array(FILLING, np.float32)])[:5]
    got = blur(IMAGE, jnp.asarray(filled))
    np.testing.assert_allclose(got, reference(IMAGE, boxes.astype(np.float64)), atol=2e-5)


@pytest.mark.parametrize("name", ["at the left", "at the corner", "beyond the border"])
def test_a_face_at_the_border_is_blurred(name):
    changed = np.abs(np.asarray(blur(IMAGE, jnp.array(BOXES[name] + FILLING[:1] * 4))) - IMAGE)
    x0, y0, x1, y1 = np.clip(BOXES[name][0], 0, 1)
    face = changed[int(y0 * 23) : int(np.ceil(y1 * 23)), int(x0 * 31) : int(np.ceil(x1 * 31))]
    assert np.median(face) > 0.05


def test_images_of_one_size_are_mapped():
    images = jnp.stack([IMAGE, IMAGE[::-1]])
    boxes = jnp.array([FILLING[:1] * 5, BOXES["inside"] + FILLING])
    got = jax.jit(jax.vmap(blur_boxes))(images, boxes)
    np.testing.assert_array_equal(got[0], IMAGE)
    np.testing.assert_allclose(got[1], blur(images[1], boxes[1]), atol=1e-6)


def test_small_images_and_no_boxes():
    tiny = np.arange(3, dtype=np.float32).reshape(1, 3, 1)
    assert np.isfinite(blur(tiny, np.array([[0, 0, 1, 1]], np.float32))).all()
    np.testing.assert_array_equal(blur(tiny, np.zeros((0, 4), np.float32)), tiny)
    tiny = jnp.asarray(tiny)
    for image, boxes in (
        (tiny[0], jnp.zeros((1, 4))),
        (tiny, jnp.zeros(4)),
        (tiny.astype(int), jnp.zeros((1, 4))),
    ):
        with pytest.raises(ValueError, match="must be"):
            blur_boxes(image, boxes)
