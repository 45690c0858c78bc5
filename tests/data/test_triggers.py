"""Triggers: each against numpy, its range, its key, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.data.triggers import (
    CORNERS,
    POSITIONS,
    TRIGGERS,
    blend,
    make_trigger,
    patch,
    periodic,
    pixel,
)

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(5, 8, 7, 3)).astype(np.float32)
KEY = jax.random.key(0)
GREY = np.full((40, 8, 7, 1), 0.5, np.float32)


def test_periodic_adds_a_sine_along_each_row_and_clips():
    wave = 0.4 * np.sin(2 * np.pi * 2.5 * np.arange(7) / 7)
    expected = X + wave[:, None]
    assert expected.min() < 0 < 1 < expected.max()
    got = periodic(X, amplitude=0.4, n_periods=2.5)
    np.testing.assert_allclose(got, np.clip(expected, 0, 1), atol=1e-6)


def _board(size):
    return np.array([[1 if (i + j) % 2 == 0 else -1 for j in range(size)] for i in range(size)])


@pytest.mark.parametrize("position", [*CORNERS, "corners"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_patch_in_corners_is_a_checkerboard_there_and_nothing_elsewhere(position, size):
    expected = X.copy()
    for corner in CORNERS if position == "corners" else (position,):
        rows = slice(0, size) if corner.startswith("top") else slice(8 - size, 8)
        columns = slice(0, size) if corner.endswith("left") else slice(7 - size, 7)
        expected[:, rows, columns] += 0.6 * _board(size)[..., None]
    got = patch(X, size=size, amplitude=0.6, position=position)
    np.testing.assert_allclose(got, np.clip(expected, 0, 1), atol=1e-6)


@pytest.mark.parametrize("size", [3, 7])
def test_a_random_patch_is_one_whole_checkerboard_within_each_image(size):
    got = np.asarray(patch(GREY, KEY, size=size))
    places = set()
    for image in got[..., 0]:
        # Whatever is not grey is black or white, in one square.
        rows, columns = np.nonzero(image != 0.5)
        top, left = rows.min(), columns.min()
        places.add((int(top), int(left)))
        assert (rows.max() - top, columns.max() - left) == (size - 1, size - 1)
        board = image[top : top + size, left : left + size]
        np.testing.assert_array_equal(board, (1 + _board(size)) / 2)
    # Every position is possible, and none else: 40 images reach several of the (9-s)(8-s).
    assert places <= {(i, j) for i in range(9 - size) for j in range(8 - size)}
    assert len(places) > min((9 - size) * (8 - size), 40) // 3
    if size < 7:
        assert {0, 8 - size} <= {top for top, _ in places}
        assert {0, 7 - size} <= {left for _, left in places}


def test_random_positions_follow_the_key_and_the_image():
    one, again, other = (patch(GREY, key) for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    # An image's place does not depend on how many come after it.
    np.testing.assert_array_equal(patch(GREY[:3], KEY), one[:3])


def test_pixels_get_their_colour_and_no_other_changes():
    expected = X.copy()
    expected[:, 2, 5] = expected[:, 7, 0] = [0.4, 0.0, 0.1]
    got = pixel(X, pixels=((2, 5), (-1, -7)), value=(0.4, 0.0, 0.1))
    np.testing.assert_array_equal(got, expected)
    expected = X.copy()
    expected[:, -1, -1] = 1.0
    np.testing.assert_array_equal(pixel(X), expected)


def test_blend_mixes_in_the_same_noise_everywhere():
    noise = np.asarray(blend(np.zeros_like(X), ratio=1.0))
    assert noise.std() > 0.2  # that of a uniform variable is 0.29
    np.testing.assert_array_equal(noise, np.broadcast_to(noise[:1], X.shape))
    got = blend(X, ratio=0.3)
    np.testing.assert_allclose(got, 0.7 * X + 0.3 * noise, atol=1e-6)
    np.testing.assert_array_equal(blend(X, ratio=0.0), X)
    assert not np.array_equal(blend(X, ratio=0.3, pattern_seed=1), got)


STRONG = {
    "periodic": {"amplitude": 5.0},
    "patch": {"amplitude": 3.0},
    "pixel": {"pixels": ((0, 0), (3, 4))},
    "blend": {"ratio": 0.9},
}


@pytest.mark.parametrize("name", TRIGGERS)
def test_images_stay_images_and_jit_and_vmap_change_nothing(name):
    trigger = make_trigger(name, **STRONG[name])
    eager = trigger(X, KEY)
    assert eager.shape == X.shape
    assert eager.dtype == X.dtype
    assert 0 <= eager.min() < eager.max() <= 1
    assert not np.array_equal(eager, X)
    jitted = jax.jit(trigger)
    np.testing.assert_allclose(jitted(X, KEY), eager, atol=1e-6)
    keys, data = jax.random.split(KEY, 2), np.stack([X, X[::-1]])
    many = jax.jit(jax.vmap(trigger))(data, keys)
    for i in range(2):
        np.testing.assert_allclose(many[i], jitted(data[i], keys[i]), atol=1e-6)


@pytest.mark.parametrize("name", TRIGGERS)
def test_an_uneventful_trigger_and_half_precision_keep_the_images(name):
    nothing = {"periodic": {"amplitude": 0.0}, "patch": {"amplitude": 0.0},
               "pixel": {"pixels": ()}, "blend": {"ratio": 0.0}}[name]  # fmt: skip
    x = X.astype(jnp.bfloat16)
    got = make_trigger(name, **nothing)(x, KEY)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("patch", {"size": 8}, r"size must lie in 1\.\.7, the image's, got 8"),
        ("patch", {"size": 0}, r"size must lie in 1\.\.7"),
        ("patch", {"position": "middle"}, f"position must be one of {', '.join(POSITIONS)}"),
        ("pixel", {"pixels": ((0, 0), (8, 0))}, r"pixel \(8, 0\) lies outside an image of 8 x 7"),
        ("pixel", {"pixels": ((0, -8),)}, r"pixel \(0, -8\) lies outside"),
        ("pixel", {"value": 1.5}, r"value must be 1 or 3 numbers in \[0, 1\], got 1.5"),
        ("pixel", {"value": (0.5, 0.5)}, "value must be 1 or 3 numbers"),
        ("blend", {"ratio": -0.1}, r"ratio must lie in \[0, 1\], got -0.1"),
        ("stripes", {}, "trigger must be one of periodic, patch, pixel, blend; got 'stripes'"),
    ],
)
def test_what_is_wrong_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_trigger(name, **options)(X, KEY)


def test_a_random_position_needs_a_key_and_the_corners_none():
    with pytest.raises(ValueError, match="key must be given"):
        patch(X)
    patch(X, position="top_right")


@pytest.mark.parametrize("name", TRIGGERS)
def test_other_arrays_than_floating_images_are_refused(name):
    with pytest.raises(ValueError, match=r"got float32 \(8, 7, 3\)"):
        make_trigger(name)(X[0], KEY)
    with pytest.raises(ValueError, match=r"got uint8 \(5, 8, 7, 3\)"):
        make_trigger(name)((255 * X).astype(np.uint8), KEY)


def test_an_option_of_another_trigger_is_refused_at_once():
    with pytest.raises(TypeError, match="amplitude"):
        make_trigger("blend", amplitude=1.0)
