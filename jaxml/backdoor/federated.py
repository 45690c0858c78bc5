"""Federated learning with clients as an array axis: what each sends, and what the server applies.

Ref: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
2017.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxml.backdoor.clients import Clients
from jaxml.core.sharding import shard_batch
from jaxml.core.types import ApplyFn, Key, PyTree
from jaxml.data.batching import epoch_indices

Update = Callable[..., PyTree]
"""``update(key, params, x, y, mask) -> delta`` of one client."""


def sample_clients(key: Key, n_clients: int, n_sampled: int) -> Int[Array, " m"]:
    """Draws the clients of one round without replacement.

    Raises:
      ValueError: ``n_sampled`` outside ``1..n_clients``.
    """
    if not 1 <= n_sampled <= n_clients:
        raise ValueError(f"n_sampled must lie in 1..{n_clients}, got {n_sampled}")
    return jax.random.choice(key, n_clients, (n_sampled,), replace=False)


def client_update(
    key: Key,
    params: PyTree,
    x: Float[Array, "s ..."],
    y: Int[Array, " s"],
    mask: Array,
    *,
    apply: ApplyFn,
    learning_rate: float,
    n_epochs: int,
    batch_size: int,
) -> PyTree:
    """Trains one client by SGD on the cross-entropy of its examples.

    Args:
      key: a typed key, for the order of the examples.
      params: what the server sent; any pytree that ``apply`` takes.
      x: inputs ``[s, ...]``.
      y: labels ``[s]``.
      mask: examples that count ``[s]``; without any the update is 0.
      apply: ``apply(params, x) -> logits``; static. A network with BatchNorm has state besides its
        parameters, which nothing here averages: use another norm.
      learning_rate: of the client.
      n_epochs: static; each walks ``s // batch_size`` whole batches in an order of its own.
      batch_size: static, in ``1..s``.

    Returns:
      The new parameters minus ``params``.
    """

    def loss(params, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, x[batch]), y[batch])
        weights = mask[batch].astype(losses.dtype)
        return (weights * losses).sum() / jnp.maximum(weights.sum(), 1)

    def step(params, batch):
        gradient = jax.grad(loss)(params, batch)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), None

    def epoch(params, key):
        return jax.lax.scan(step, params, epoch_indices(key, x.shape[0], batch_size))

    trained, _ = jax.lax.scan(epoch, params, jax.random.split(key, n_epochs))
    return jax.tree.map(jnp.subtract, trained, params)


def cohort_update(
    key: Key,
    params: PyTree,
    cohort: Clients,
    *,
    update: Update,
    clients_at_once: int | None = None,
    first: int = 0,
    mesh: Mesh | None = None,
) -> PyTree:
    """Trains all clients of a cohort from the same parameters.

    Args:
      key: a typed key; client ``i`` gets ``fold_in(key, first + i)``.
      params: what the server sent.
      cohort: ``c`` clients.
      update: ``client_update`` with its keywords filled in; static.
      clients_at_once: None trains all in one vmap, 1 one after the other, another number so many at
        a time. Convolutions with weights of their own are slow under vmap on a CPU, and memory
        grows with the number at once.
      first: number of the first client, where this is a part of a larger cohort.
      mesh: splits the clients over its axis ``"data"``.

    Returns:
      Updates with leaves ``[c, ...]``.

    Raises:
      ValueError: ``clients_at_once`` is not positive.
    """
    if clients_at_once is not None and clients_at_once < 1:
        raise ValueError(f"clients_at_once must be positive or None, got {clients_at_once}")

    def one(args):
        index, client = args
        return update(jax.random.fold_in(key, index), params, *client)

    n = cohort.y.shape[0]
    cohort = jax.tree.map(lambda leaf: shard_batch(leaf, mesh), cohort)
    args = (first + jnp.arange(n), cohort)
    if clients_at_once is None or clients_at_once >= n:
        return jax.vmap(one)(args)
    batch_size = None if clients_at_once == 1 else clients_at_once
    return jax.lax.map(one, args, batch_size=batch_size)


def apply_update(params: PyTree, delta: PyTree, *, learning_rate: float = 1.0) -> PyTree:
    """Moves the server's parameters along an aggregated update."""
    return jax.tree.map(lambda p, d: p + learning_rate * d, params, delta)


def representations(
    model: nn.Module, params: PyTree, x: Float[Array, "n ..."]
) -> Float[Array, "n d"]:
    """Reads softmax outputs and hidden features, side by side.

    Hidden features are what the dense layers take in, except for one that takes the inputs
    themselves: all hidden layers of an MLP, the pooled features of a convolutional network.

    Args:
      model: a Flax module of which ``params`` are the variables.
      params: ``{"params": ...}``.
      x: inputs ``[n, ...]``.
    """
    features, n_layers = [], 0

    def watch(next_fn, args, kwargs, context):
        nonlocal n_layers
        if context.method_name == "__call__" and "kernel" in context.module.variables.get(
            "params", {}
        ):
            if n_layers and isinstance(context.module, nn.Dense):
                features.append(args[0].reshape(x.shape[0], -1))
            n_layers += 1
        return next_fn(*args, **kwargs)

    with nn.intercept_methods(watch):
        logits = model.apply(params, x)
    return jnp.concatenate([jax.nn.softmax(logits), *features], axis=-1)
