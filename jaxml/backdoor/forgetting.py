"""Choosing poisons by how often training forgets them: a baseline that needs no kernel.

Ref: Xia et al., "Data-Efficient Backdoor Attacks", IJCAI 2022; forgetting events: Toneva et al.,
"An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxml import train
from jaxml.core.rng import numpy_generator
from jaxml.core.types import Key


def forgetting_events(right: Bool[Array, "e ... c"]) -> Int[Array, "... c"]:
    """Counts how often an example is answered right after one epoch and wrong after the next.

    Args:
      right: whether each example is answered as labelled, after each of ``e`` epochs.
    """
    return (right[:-1] & ~right[1:]).sum(0)


def most_forgotten(
    key: Key,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    x: Float[Array, "n ..."],
    y: Float[Array, " n"],
    candidates: Float[Array, "c ..."],
    n_poisons: int,
    *,
    n_epochs: int,
    batch_size: int,
    n_rounds: int = 5,
    keep: float = 0.5,
) -> Int[np.ndarray, " m"]:
    """Filters and refills a pool of poisons: the most forgotten stay, the others are drawn anew.

    Each round trains a network from scratch on clean data and the pool, labelled +1, and counts the
    forgetting events of the pool.

    Args:
      key: typed key ``[]``.
      model: a Flax module with one output.
      optimizer: an optax optimiser.
      x: clean images ``[n, ...]``.
      y: labels -1 and +1 ``[n]``.
      candidates: triggered images ``[c, ...]``.
      n_poisons: ``m``, the size of the pool, in ``1..c``.
      n_epochs: of each round.
      batch_size: as in ``train.fit``.
      n_rounds: trainings.
      keep: share of the pool that stays after a round; the rest is drawn among the others.

    Returns:
      Indices of the pool after the last round, int32 ``[m]``, the most forgotten first.

    Raises:
      ValueError: ``n_poisons`` out of range, or ``n_rounds`` below 1.
    """
    n = len(candidates)
    if not 1 <= n_poisons <= n:
        raise ValueError(f"n_poisons must lie in 1..{n}, the number of candidates, got {n_poisons}")
    if n_rounds < 1:
        raise ValueError(f"n_rounds must be positive, got {n_rounds}")
    answers = jax.jit(lambda variables, images: model.apply(variables, images)[:, 0] > 0)
    labels = jnp.concatenate([jnp.asarray(y, jnp.float32), jnp.ones(n_poisons, jnp.float32)])
    rng = numpy_generator(key)
    pool = rng.permutation(n)[:n_poisons]
    for i in range(n_rounds):
        images = np.asarray(candidates)[pool]
        right = []

        def after_epoch(state, _, right=right, images=images):
            right.append(answers(state.variables, images))

        train.fit(
            jax.random.fold_in(key, i),
            model,
            optimizer,
            np.concatenate([x, images]).astype(np.float32),
            labels,
            loss=train.squared_error,
            n_epochs=n_epochs,
            batch_size=batch_size,
            callback=after_epoch,
        )
        events = np.asarray(forgetting_events(jnp.stack(right)))
        pool = pool[np.argsort(-events, kind="stable")]
        if i < n_rounds - 1:
            stay = pool[: int(np.ceil(keep * n_poisons))] if n_poisons < n else pool
            others = rng.permutation(np.setdiff1d(np.arange(n), stay))
            pool = np.concatenate([stay, others[: n_poisons - len(stay)]])
    return pool.astype(np.int32)
