"""Merging networks that tell apart different classes: joined heads, and linear probes."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from jaxml.core.tree import from_paths, to_paths
from jaxml.core.types import ApplyFn, Key, PyTree
from jaxml.merging.layers import read_layers
from jaxml.nn import MLP
from jaxml.train import TrainState, fit


def join_heads(a: PyTree, b: PyTree, head: str) -> tuple[PyTree, PyTree]:
    """Widens the heads of two networks to the classes of both, A's first.

    The logits of the other network's classes are 0, so a merged network keeps each one's logits in
    its own columns (halved, which changes no arg max).

    Args:
      a: variables with a head of ``n_a`` classes.
      b: variables with a head of ``n_b`` classes, otherwise of the same shapes.
      head: module path of the dense head, such as ``"Dense_0"``.

    Returns:
      Both variables with heads of ``n_a + n_b`` classes.

    Raises:
      ValueError: a network has no such layer.
    """
    leaves = [to_paths(a), to_paths(b)]
    kernel, bias = f"params/{head}/kernel", f"params/{head}/bias"
    for name, found in zip("ab", leaves, strict=True):
        if kernel not in found:
            raise ValueError(f"head {head!r}: {name} has no {kernel!r}")
    n_a, n_b = (found[kernel].shape[-1] for found in leaves)
    wide = []
    for tree, found, pad in zip((a, b), leaves, ((0, n_b), (n_a, 0)), strict=True):
        for path in (kernel, bias):
            if path in found:
                leaf = found[path]
                found[path] = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [pad])
        wide.append(from_paths(tree, found))
    return wide[0], wide[1]


def layer_inputs(
    apply: ApplyFn, variables: PyTree, batches: Sequence[jax.Array], layer: str
) -> jax.Array:
    """Returns what a layer reads, ``[n, ...]``: the last features, if it is the head.

    Args:
      apply: ``apply(variables, x)``.
      variables: of the network.
      batches: inputs ``[n, ...]``.
      layer: module path of a dense or convolution layer that is called once.

    Raises:
      ValueError: no batch, or the network has no such layer.
    """
    batches = list(batches)
    if not batches:
        raise ValueError(f"batches is empty: layer {layer!r} has no inputs")
    read = [read_layers(variables, x, apply=apply, paths=(layer,))[layer] for x in batches]
    return jnp.concatenate([z for z, _ in read])


def linear_probe(
    key: Key,
    features: jax.Array,
    y: jax.Array,
    *,
    n_classes: int,
    n_epochs: int = 50,
    batch_size: int = 64,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """Trains a linear classifier on frozen features.

    Args:
      key: initialisation and order.
      features: ``[n, d]``.
      y: labels ``[n]`` in ``0..n_classes - 1``.
      n_classes: units of the classifier.
      n_epochs: passes over the features.
      batch_size: examples a step.
      optimizer: Adam by default, from 1e-3 down to 1e-4 along a cosine, the paper's.

    Returns:
      TrainState; evaluate it with ``MLP((), n_classes).apply``.
    """
    if optimizer is None:
        optimizer = _probe_optimizer(n_epochs * (len(features) // batch_size))
    return fit(
        key, MLP((), n_classes), optimizer, features, y, n_epochs=n_epochs, batch_size=batch_size,
        epochs_per_call=n_epochs,
    )  # fmt: skip


@functools.cache  # One object a schedule, so that ``fit`` compiles once for many probes.
def _probe_optimizer(n_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(1e-3, max(n_steps, 1), alpha=0.1))
