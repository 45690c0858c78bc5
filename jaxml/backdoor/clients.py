"""The data of federated clients as one pytree, and ways to split a data set into it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxml.core.rng import named_key
from jaxml.core.types import Key


class Clients(NamedTuple):
    """The examples of ``c`` clients.

    Attributes:
      x: inputs ``[c, s, ...]``.
      y: labels ``[c, s]``.
      mask: examples that are there ``[c, s]``; the others pad.
    """

    x: Float[Array, "c s ..."]
    y: Int[Array, "c s"]
    mask: Bool[Array, "c s"]

    def take(self, ids: Int[Array, " m"]) -> "Clients":
        """Returns the clients of some numbers, in their order."""
        return jax.tree.map(lambda leaf: leaf[ids], self)

    @property
    def weights(self) -> Float[Array, " c"]:
        """The number of examples of each client, which weighs its update."""
        return self.mask.sum(1).astype(jnp.float32)


def homogeneous_split(
    key: Key, x: Float[Array, "n ..."], y: Int[Array, " n"], *, n_clients: int, per_label: int
) -> Clients:
    """Gives every client ``per_label`` examples of each label, drawn with replacement.

    Args:
      key: a typed key.
      x: inputs ``[n, ...]``.
      y: concrete labels ``[n]``.
      n_clients: clients.
      per_label: examples of each label.

    Raises:
      ValueError: a label below the largest has no example.
    """
    labels = jnp.tile(jnp.repeat(jnp.arange(int(np.max(y)) + 1), per_label), (n_clients, 1))
    return _draw(key, x, y, labels)


def dirichlet_split(
    key: Key,
    x: Float[Array, "n ..."],
    y: Int[Array, " n"],
    *,
    n_clients: int,
    n_samples: int,
    concentration: float,
) -> Clients:
    """Gives every client labels by shares of its own, from a symmetric Dirichlet distribution.

    Ref: Hsu, Qi & Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019.

    Args:
      key: a typed key.
      x: inputs ``[n, ...]``.
      y: concrete labels ``[n]``.
      n_clients: clients.
      n_samples: examples of a client; some labels will be missing.
      concentration: positive; the smaller, the fewer labels a client has.

    Raises:
      ValueError: ``concentration`` is not positive, or a label below the largest has no example.
    """
    if not concentration > 0:
        raise ValueError(f"concentration must be positive, got {concentration}")
    n_classes = int(np.max(y)) + 1
    share_key, label_key, key = jax.random.split(key, 3)
    log_shares = jnp.log(
        jax.random.dirichlet(share_key, jnp.full(n_classes, concentration), (n_clients,)) + 1e-30
    )
    labels = jax.random.categorical(label_key, log_shares[:, None], shape=(n_clients, n_samples))
    return _draw(key, x, y, labels)


def vary_styles(
    key: Key, clients: Clients, *, gain: float = 0.1, offset: float = 0.05, noise: float = 0.05
) -> Clients:
    """Gives every client a gain, an offset and noise of its own; images stay in [0, 1].

    Args:
      key: a typed key.
      clients: images in [0, 1].
      gain: standard deviation of the factor around 1.
      offset: standard deviation of what is added to an image.
      noise: standard deviation of what is added to a pixel.
    """
    shape = (clients.x.shape[0], *[1] * (clients.x.ndim - 1))

    def normal(name, shape):
        return jax.random.normal(named_key(key, name), shape, clients.x.dtype)

    x = clients.x * (1 + gain * normal("gain", shape)) + offset * normal("offset", shape)
    return clients._replace(x=jnp.clip(x + noise * normal("noise", x.shape), 0, 1))


def _draw(key: Key, x, y, labels) -> Clients:
    """Draws an example of each wanted label."""
    y = np.asarray(y)
    rows = [np.flatnonzero(y == label) for label in range(int(y.max()) + 1)]
    if empty := [label for label, found in enumerate(rows) if not len(found)]:
        raise ValueError(f"y must hold every label up to its largest, and has no {empty[0]}")
    counts = jnp.array([len(found) for found in rows])
    table = jnp.asarray(np.stack([np.resize(found, max(map(len, rows))) for found in rows]))
    labels = labels.astype(jnp.int32)
    index = jax.random.randint(key, labels.shape, 0, counts[labels])
    return Clients(jnp.asarray(x)[table[labels, index]], labels, jnp.ones(labels.shape, bool))
