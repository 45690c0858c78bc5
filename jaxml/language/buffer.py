"""The best prompts so far, sorted by loss."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EXPANSIONS = ("best", "best_unexplored")


class Buffer(NamedTuple):
    """Up to ``b`` prompts in the order of their losses; an empty place has an infinite loss.

    Attributes:
      prompts: ids ``[b, m]``.
      parts: terms of the losses, see ``Answers``.
      loss: ascending.
      expanded: whether neighbours of a prompt have been tried.
    """

    prompts: Int[Array, "b m"]
    parts: Float[Array, "b p"]
    loss: Float[Array, " b"]
    expanded: Bool[Array, " b"]


def empty_buffer(size: int, *, suffix_len: int, n_parts: int) -> Buffer:
    """Returns a buffer of ``size`` empty places.

    Raises:
      ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"buffer_size must be positive, got {size}")
    return Buffer(
        jnp.zeros((size, suffix_len), jnp.int32),
        jnp.full((size, n_parts), jnp.inf, jnp.float32),
        jnp.full(size, jnp.inf, jnp.float32),
        jnp.zeros(size, bool),
    )


def insert(
    buffer: Buffer,
    prompts: Int[Array, "n m"],
    parts: Float[Array, "n p"],
    loss: Float[Array, " n"],
) -> Buffer:
    """Keeps the best of the buffer and ``n`` new prompts.

    It is what replacing the worst entry by each new prompt whose loss is not above it gives: of
    equal losses, the new one stands first. Pure; size and order are kept.

    Args:
      buffer: sorted.
      prompts: new ones.
      parts: of the new ones.
      loss: infinite for what is to be left out.
    """
    new = Buffer(prompts, parts, loss, jnp.zeros(loss.shape, bool))
    both = [jnp.concatenate([a, b]) for a, b in zip(new, buffer, strict=True)]
    order = jnp.argsort(both[2], stable=True)[: buffer.loss.shape[0]]
    return Buffer(*(array[order] for array in both))


def take(buffer: Buffer, *, expand: str) -> tuple[Buffer, Int[Array, " m"], Float[Array, " p"]]:
    """Chooses the prompt whose neighbours are tried next, and marks it as expanded.

    Args:
      buffer: with one entry at least.
      expand: ``"best"``, the lowest loss, as the paper's listing has it; ``"best_unexplored"``, the
        lowest loss that has not been expanded, as its text has it: best-first search. Without one,
        the lowest loss again.

    Returns:
      The marked buffer, the prompt and its parts.

    Raises:
      ValueError: another ``expand``.
    """
    if expand not in EXPANSIONS:
        raise ValueError(f"expand must be one of {', '.join(EXPANSIONS)}; got {expand!r}")
    at = 0
    if expand == "best_unexplored":
        # The first such place; 0 where there is none.
        at = jnp.argmax(~buffer.expanded & jnp.isfinite(buffer.loss))
    marked = buffer._replace(expanded=buffer.expanded.at[at].set(True))
    return marked, buffer.prompts[at], buffer.parts[at]
