"""Prompts that differ from one in a single token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxml.core.types import Key


def open_swaps(
    prompt: Int[Array, " m"], seen: Int[Array, "b m"], allowed: Bool[Array, "m v"]
) -> Bool[Array, "m v"]:
    """Tells which token may take which place: it is allowed, and gives a prompt that is new.

    Args:
      prompt: the parent, which no swap may give back.
      seen: other prompts that no swap may give.
      allowed: which tokens each place may hold.
    """
    differs = seen != prompt[None]
    place = jnp.argmax(differs, axis=1)
    token = jnp.take_along_axis(seen, place[:, None], axis=1)[:, 0]
    # Only what differs in one place is a neighbour; the others are dropped.
    place = jnp.where(differs.sum(1) == 1, place, prompt.shape[0])
    mask = allowed.at[jnp.arange(prompt.shape[0]), prompt].set(False)
    return mask.at[place, token].set(False, mode="drop")


def sample_neighbours(
    key: Key, prompt: Int[Array, " m"], swaps: Bool[Array, "m v"], *, n: int
) -> tuple[Int[Array, "n m"], Bool[Array, " n"]]:
    """Draws distinct one-token swaps: a uniform place, then a uniform token of those open there.

    They are drawn without replacement, in one go: the ``n`` largest of Gumbel variables, less the
    logarithm of the number of tokens open at a place.

    Args:
      key: typed key.
      prompt: the parent.
      swaps: see ``open_swaps``.
      n: how many, at most ``m v``.

    Returns:
      The prompts, in random order, and which of them count: not all do when fewer swaps are open.
    """
    m, v = swaps.shape
    count = swaps.sum(1, keepdims=True)
    scores = jax.random.gumbel(key, (m, v)) - jnp.log(jnp.maximum(count, 1).astype(jnp.float32))
    scores, flat = jax.lax.top_k(jnp.where(swaps, scores, -jnp.inf).ravel(), n)
    place, token = flat // v, (flat % v).astype(prompt.dtype)
    return swap(prompt, place, token), scores > -jnp.inf


def sample_each_place(
    key: Key, prompt: Int[Array, " m"], swaps: Bool[Array, "m v"]
) -> tuple[Int[Array, "m m"], Bool[Array, " m"]]:
    """Draws one uniform swap at every place; the second result tells where one is open."""
    scores = jnp.where(swaps, jax.random.gumbel(key, swaps.shape), -jnp.inf)
    token = scores.argmax(1).astype(prompt.dtype)
    return swap(prompt, jnp.arange(prompt.shape[0]), token), swaps.any(1)


def swap(
    prompt: Int[Array, " m"], place: Int[Array, " n"], token: Int[Array, " n"]
) -> Int[Array, "n m"]:
    """Puts ``token[i]`` at ``place[i]`` of the ``i``-th copy of a prompt."""
    here = jnp.arange(prompt.shape[0])[None] == place[:, None]
    return jnp.where(here, token[:, None], prompt[None])
