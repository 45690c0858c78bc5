"""The choice of normalisation layer, by name."""

from collections.abc import Callable

import jax
from flax import linen as nn

NORMS = ("layer", "batch", "group", "none")


def make_norm(
    norm: str, *, train: bool, groups: int = 8, name: str | None = None
) -> Callable[[jax.Array], jax.Array]:
    """Makes a normalisation over the last (channel) axis of its input, inside a compact module.

    Args:
      norm: ``"layer"`` (each position over its channels), ``"batch"`` (running averages with
        momentum 0.9), ``"group"`` (each example over positions and channels of a group) or
        ``"none"`` (the identity). All but the last have a scale and a bias.
      train: whether ``"batch"`` uses, and updates from, the statistics of the batch.
      groups: number of groups of ``"group"``; must divide the channels.
      name: of the submodule; Flax counts by default.

    Raises:
      ValueError: unknown ``norm``.
    """
    if norm == "layer":
        return nn.LayerNorm(name=name)
    if norm == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)
    if norm == "group":
        return nn.GroupNorm(num_groups=groups, name=name)
    if norm == "none":
        return lambda x: x
    raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
