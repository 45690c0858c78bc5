"""Attacks on federated learning, to measure defences with: poisoned data and boosted updates.

Only a simulation knows who is malicious; nothing of a defence takes such a mask.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxml.backdoor.clients import Clients
from jaxml.backdoor.federated import Update, cohort_update
from jaxml.core.types import Key, PyTree
from jaxml.data.triggers import Trigger


def poison_clients(
    key: Key,
    clients: Clients,
    malicious: Bool[Array, " c"],
    trigger: Trigger,
    *,
    sources: Sequence[int],
    target: int,
    share: float,
) -> Clients:
    """Replaces examples of the target label by triggered images of other classes, so labelled.

    A malicious client puts the trigger on images of its own, drawn with replacement among those of
    the ``sources``; one without any stays as it is. A ``share`` below 1 is diluted poisoning: the
    mean representation of the label then lies closer to that of the other clients.

    Args:
      key: a typed key.
      clients: images ``[c, s, h, w, ch]`` in [0, 1].
      malicious: ``[c]``.
      trigger: ``trigger(images [n, h, w, ch], key) -> images``.
      sources: labels to draw from.
      target: label to be answered.
      share: of the target's examples that are replaced, rounded to a whole number.
    """

    def poison(key, x, y, mask):
        order_key, draw_key, trigger_key = jax.random.split(key, 3)
        usable = mask & jnp.isin(y, jnp.array(list(sources)))
        targets = mask & (y == target)
        # The targets in a random order, to replace the first ones of it.
        draws = jax.random.uniform(order_key, y.shape)
        rank = jnp.argsort(jnp.argsort(jnp.where(targets, draws, 2.0)))
        chosen = (
            targets
            & (rank < jnp.round(share * targets.sum().astype(jnp.float32)).astype(jnp.int32))
            & usable.any()
        )
        logits = jnp.where(usable, 0.0, -jnp.inf)
        logits = jnp.where(usable.any(), logits, 0.0)
        from_rows = jax.random.categorical(draw_key, logits, shape=y.shape)
        poisoned = trigger(x[from_rows], trigger_key)
        return jnp.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), poisoned, x)

    keys = jax.random.split(key, malicious.shape[0])
    x = jax.vmap(poison)(keys, *clients)
    chosen = malicious.reshape(-1, *[1] * (x.ndim - 1))
    return clients._replace(x=jnp.where(chosen, x, clients.x))


def sample_cohort(
    key: Key, malicious: Bool[Array, " n"], *, n_sampled: int, n_malicious: int
) -> Int[Array, " m"]:
    """Draws a round with an exact number of malicious clients, in random order.

    Args:
      key: a typed key.
      malicious: ``[n]``, with at least ``n_malicious`` of them and as many others as are needed.
      n_sampled: clients of the round, static.
      n_malicious: malicious ones among them, static.
    """
    draw_key, order_key = jax.random.split(key)
    draws = jax.random.uniform(draw_key, malicious.shape)
    bad = jax.lax.top_k(jnp.where(malicious, draws, -1.0), n_malicious)[1]
    good = jax.lax.top_k(jnp.where(malicious, -1.0, draws), n_sampled - n_malicious)[1]
    return jax.random.permutation(order_key, jnp.concatenate([bad, good]))


def attacked_update(
    key: Key,
    params: PyTree,
    cohort: Clients,
    malicious: Bool[Array, " c"],
    *,
    n_malicious: int,
    update: Update,
    attack: Update,
    boost: float = 1.0,
    **options,
) -> PyTree:
    """Trains a cohort whose malicious members train in a way of their own and scale what they send.

    Honest and malicious clients are trained as two cohorts, since the latter may take more steps;
    the updates come back in the order of ``cohort``.

    Args:
      key: a typed key.
      params: what the server sent.
      cohort: ``c`` clients.
      malicious: ``[c]``, exactly ``n_malicious`` of them.
      n_malicious: static.
      update: of an honest client.
      attack: of a malicious one.
      boost: factor on its update; ``model_replacement_boost`` makes the model the attacker's.
      **options: of ``cohort_update``.
    """
    order = jnp.argsort(malicious, stable=True)
    n_honest = malicious.shape[0] - n_malicious
    groups = []
    for name, ids, fn in (
        (0, order[:n_honest], update),
        (1, order[n_honest:], attack),
    ):
        if ids.size:
            group_key = jax.random.fold_in(key, name)
            groups.append(cohort_update(group_key, params, cohort.take(ids), update=fn, **options))
    updates = jax.tree.map(lambda *parts: jnp.concatenate(parts)[jnp.argsort(order)], *groups)
    scale = jnp.where(malicious, boost, 1.0)
    return jax.tree.map(lambda u: u * scale.reshape(-1, *[1] * (u.ndim - 1)), updates)


def model_replacement_boost(n_sampled: int, n_malicious: int, learning_rate: float) -> float:
    """Returns the boost with which the mean moves the server to the attackers' own model.

    Ref: Bagdasaryan et al., "How To Backdoor Federated Learning", 2020.
    """
    return n_sampled / (n_malicious * learning_rate)


def attack_success(
    answers: Int[Array, " n"], true: Int[Array, " n"], *, target: int
) -> Float[Array, ""]:
    """Returns the share of images of other classes than the target that are called the target."""
    others = true != target
    return ((answers == target) & others).sum() / jnp.maximum(others.sum(), 1)
