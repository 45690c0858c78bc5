"""Merging, auditing, verifying and curating neural networks as pure JAX functions.

Subpackages load on first use, so ``import jaxml`` itself imports nothing heavy.
"""

import importlib

__version__ = "0.1.0"
_SUBPACKAGES = (
    "core", "compat", "data", "io", "nn", "train", "ntk",
    "merging", "backdoor", "language", "curation", "verify", "privacy", "report",
)  # fmt: skip
__all__ = [*_SUBPACKAGES]


def __getattr__(name: str):
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_SUBPACKAGES])
