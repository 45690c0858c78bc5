"""The few type names that every floor shares."""

from collections.abc import Callable
from typing import Any

import jax

PyTree = Any
"""Any nested container of arrays; Flax variables are ``{"params": ..., "batch_stats": ...}``."""

Key = jax.Array
"""A typed key from ``jax.random.key``."""

ApplyFn = Callable[..., jax.Array]
"""``apply(variables, x) -> outputs``, for example ``model.apply`` of a Flax module."""
