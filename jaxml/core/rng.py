"""Keys by purpose: one run key, folded with a name, never split by counting."""

import zlib

import jax

from jaxml.core.types import Key


def named_key(key: Key, name: str) -> Key:
    """Folds a purpose such as ``"init"`` into a key; the same in every process (CRC-32)."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
