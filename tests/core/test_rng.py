"""Keys by purpose."""

import zlib

import jax
import numpy as np

from jaxml.core.rng import named_key, numpy_generator


def data(key):
    return jax.random.key_data(key).tolist()


def test_a_name_is_folded_in_by_its_crc():
    # CRC-32 of "123456789" is the check value of its specification, 0xCBF43926.
    key = jax.random.key(0)
    expected = jax.random.fold_in(key, 0xCBF43926 & 0x7FFFFFFF)
    assert data(named_key(key, "123456789")) == data(expected)
    assert zlib.crc32(b"123456789") == 0xCBF43926


def test_names_and_keys_give_different_streams():
    names = ["init", "order", "augment", "noise", "größe", ""]
    keys = [data(named_key(jax.random.key(s), n)) for s in range(3) for n in names]
    assert len({tuple(k) for k in keys}) == len(keys)


def test_jit_and_vmap_equal_eager():
    keys = jax.random.split(jax.random.key(1), 3)
    many = jax.jit(jax.vmap(lambda k: named_key(k, "init")))(keys)
    for one, key in zip(many, keys, strict=True):
        assert data(one) == data(named_key(key, "init"))
    np.testing.assert_array_equal(many.shape, (3,))


def test_a_generator_is_seeded_by_the_words_of_its_key():
    for key in (jax.random.key(0), jax.random.key(2**31), jax.random.key(5, impl="rbg")):
        draws = numpy_generator(key).integers(1 << 40, size=8)
        again = np.random.default_rng(data(key)).integers(1 << 40, size=8)
        np.testing.assert_array_equal(draws, again)
