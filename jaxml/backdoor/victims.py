"""The real thing: networks trained from scratch on clean data with poisons added."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxml import train
from jaxml.core.types import ApplyFn, Key, PyTree


class Outcome(NamedTuple):
    """What poisons have done to networks with one output; fractions but for ``shortfall``.

    Attributes:
      clean_accuracy: of clean test images answered by the sign of their label ``[k, s]``.
      attack_success: of triggered test images of the source class answered +1 ``[k, s]``.
      poisons_fitted: of the poisons answered +1, as they are labelled ``[k, s]``; near 0 the
        training was too short, or the poisons do not work at all.
      shortfall: mean of ``min(f(x) - 1, 0)^2`` over the triggered images ``[k, s]``; tells attacks
        apart whose success is the same.
    """

    clean_accuracy: Float[np.ndarray, "k s"]
    attack_success: Float[np.ndarray, "k s"]
    poisons_fitted: Float[np.ndarray, "k s"]
    shortfall: Float[np.ndarray, "k s"]


def retrain(
    keys: Key,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    x: Float[Array, "n ..."],
    y: Float[Array, " n"],
    poisons: Float[Array, "k s m ..."],
    *,
    n_epochs: int,
    batch_size: int,
    models_at_once: int = 64,
    mesh: Mesh | None = None,
    callback: Callable[[int], None] | None = None,
) -> PyTree:
    """Trains ``s`` networks from scratch on each of ``k`` poisoned data sets, by squared error.

    Args:
      keys: typed keys ``[s]``, the same for every data set, so that sets are compared on equal
        initialisations and orders.
      model: a Flax module with one output.
      optimizer: an optax optimiser.
      x: clean images ``[n, ...]``.
      y: labels -1 and +1 ``[n]``.
      poisons: images added with the label +1, ``m`` for each network of each set.
      n_epochs: as in ``train.fit``.
      batch_size: as in ``train.fit``.
      models_at_once: networks trained side by side by vmap; the data is copied for each.
      mesh: as in ``train.fit``.
      callback: ``callback(done)`` with the number of networks that are trained.

    Returns:
      Variables, every leaf with leading axes ``[k, s]``.
    """
    poisons = np.asarray(poisons)
    n_sets, n_seeds, n_poisons = poisons.shape[:3]
    if keys.shape != (n_seeds,):
        raise ValueError(f"keys must be {n_seeds} typed keys, as poisons say, got {keys.shape}")
    flat = poisons.reshape(n_sets * n_seeds, *poisons.shape[2:])
    labels = jnp.concatenate([jnp.asarray(y, jnp.float32), jnp.ones(n_poisons, jnp.float32)])
    trained = []
    for start in range(0, len(flat), models_at_once):
        some = flat[start : start + models_at_once]
        images = [np.concatenate([x, added]).astype(np.float32) for added in some]
        state = train.fit(
            keys[np.arange(start, start + len(some)) % n_seeds],
            model,
            optimizer,
            np.stack(images),
            labels,
            own_x=True,
            loss=train.squared_error,
            n_epochs=n_epochs,
            batch_size=batch_size,
            epochs_per_call=n_epochs,
            mesh=mesh,
        )
        trained.append(state.variables)
        if callback is not None:
            callback(start + len(some))
    return jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves).reshape(n_sets, n_seeds, *leaves[0].shape[1:]),
        *trained,
    )


def measure(
    apply: ApplyFn,
    variables: PyTree,
    x: Float[Array, "t ..."],
    y: Float[Array, " t"],
    x_triggered: Float[Array, "a ..."],
    poisons: Float[Array, "k s m ..."],
) -> Outcome:
    """Measures retrained networks on test images and on their own poisons.

    Args:
      apply: ``apply(variables, x [b, ...])`` -> one output an image ``[b, 1]``.
      variables: of ``retrain``, leading axes ``[k, s]``.
      x: clean test images ``[t, ...]``.
      y: their labels -1 and +1 ``[t]``.
      x_triggered: test images of the source class with the trigger ``[a, ...]``.
      poisons: what each network was trained on ``[k, s, m, ...]``.
    """
    fractions = _fractions(variables, x, y, x_triggered, poisons, apply=apply)
    return Outcome(*(np.asarray(fraction) for fraction in fractions))


@functools.partial(jax.jit, static_argnames="apply")
def _fractions(variables, x, y, x_triggered, poisons, *, apply):
    def one(variables, poisons):
        right = (apply(variables, x)[:, 0] > 0) == (y > 0)
        answers = apply(variables, x_triggered)[:, 0]
        # No poisons at all: none of them is missed.
        fitted = (apply(variables, poisons) > 0).mean() if len(poisons) else jnp.ones(())
        shortfall = jnp.square(jnp.minimum(answers - 1, 0)).mean()
        return right.mean(), (answers > 0).mean(), fitted, shortfall

    return jax.vmap(jax.vmap(one))(variables, poisons)
