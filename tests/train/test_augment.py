"""random_crop_flip: every result is one of the shifts and mirrors, listed by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.train import random_crop_flip

RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 1.0, (64, 5, 4, 2)).astype(np.float32)
AUGMENT = jax.jit(random_crop_flip, static_argnames="pad")


def test_each_image_is_one_of_the_shifted_and_mirrored_images():
    out = np.asarray(AUGMENT(jax.random.key(0), X, pad=1))
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)))
    candidates = []
    for top in range(3):
        for left in range(3):
            crop = padded[:, top : top + 5, left : left + 4]
            candidates += [crop, crop[:, :, ::-1]]
    hits = np.array([(out == c).all((1, 2, 3)) for c in candidates])
    np.testing.assert_array_equal(hits.sum(0), 1)
    assert hits.any(1).sum() > 9  # 64 draws reach most of the 18


def test_without_padding_only_mirrors_are_left_and_eager_is_jitted():
    key = jax.random.key(1)
    out = AUGMENT(key, X, pad=0)
    mirrored = (np.asarray(out) == X[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(out[~mirrored], X[~mirrored])
    assert 0 < mirrored.sum() < 64
    np.testing.assert_array_equal(random_crop_flip(key, X, pad=0), out)


def test_under_x64_it_draws_the_same():
    key = jax.random.key(2)
    expected = AUGMENT(key, X, pad=1)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(AUGMENT(key, jnp.asarray(X), pad=1), expected)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"need images \[n, h, w, c\]"):
        random_crop_flip(jax.random.key(0), X[0])
    with pytest.raises(ValueError, match="pad=-1"):
        random_crop_flip(jax.random.key(0), X, pad=-1)
