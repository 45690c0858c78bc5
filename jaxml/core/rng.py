"""Keys by purpose: one run key, folded with a name, never split by counting."""

import zlib

import jax
import numpy as np

from jaxml.core.types import Key


def named_key(key: Key, name: str) -> Key:
    """Folds a purpose such as ``"init"`` into a key; the same in every process (CRC-32)."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def numpy_generator(key: Key) -> np.random.Generator:
    """Makes a generator of numpy's that is seeded by a key, for what is drawn on the host."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
