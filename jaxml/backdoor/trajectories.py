"""Trajectories of expert networks: where they stood at chosen steps, kept compactly.

An expert learns the backdoor that labels alone shall plant: it is trained on clean images together
with triggered ones that carry the target's label. What it did step by step is what labels are then
matched to (``jaxml.backdoor.flip``). ``recording`` wraps an optimiser so that the training loop of
all papers keeps the trajectory on the device; no batch statistics are kept, because matching steps
through networks in training mode.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxml import train
from jaxml.core.types import Key, PyTree


class Trajectories(NamedTuple):
    """Points of ``e`` experts at ``k`` steps, each the state before the step was taken.

    Attributes:
      params: every leaf ``[e, k, ...]``, floating ones in the storage dtype.
      opt_state: state of the optimiser, momentum for example, likewise.
    """

    params: PyTree
    opt_state: PyTree

    @property
    def shape(self) -> tuple[int, int]:
        """Experts and points of each."""
        return jax.tree.leaves(self.params)[0].shape[:2]

    def at(self, expert, point) -> tuple[PyTree, PyTree]:
        """Returns parameters and optimiser state of one point, floating leaves in float32."""
        return jax.tree.map(lambda leaf: _as_float(leaf[expert, point], jnp.float32), tuple(self))


class Experts(NamedTuple):
    """Trained experts.

    Attributes:
      trajectories: their points.
      variables: Flax variables at the end of training, leaves ``[e, ...]``.
    """

    trajectories: Trajectories
    variables: PyTree


class _Recorded(NamedTuple):
    step: Int[Array, ""]
    state: optax.OptState
    points: tuple[PyTree, optax.OptState]  # every leaf [k, ...]


# Cached, because `fit` compiles anew for every optimiser object.
@functools.cache
def recording(
    optimizer: optax.GradientTransformation,
    *,
    n_points: int,
    every: int = 1,
    first: int = 0,
    dtype: str = "float32",
) -> optax.GradientTransformation:
    """Wraps an optimiser so that its state keeps the parameters and states it has seen.

    Point ``j`` is taken before step ``first + j * every``. The updates are the optimiser's own.

    Args:
      optimizer: any optax optimiser.
      n_points: points to keep, ``k``.
      every: steps between two points.
      first: step of the first point, counted from 0.
      dtype: of the floating leaves kept; ``"bfloat16"`` halves the memory.

    Raises:
      ValueError: ``n_points`` or ``every`` below 1, or ``first`` below 0.
    """
    if n_points < 1 or every < 1 or first < 0:
        raise ValueError(
            f"need n_points >= 1, every >= 1 and first >= 0, got {n_points}, {every} and {first}"
        )

    def init(params):
        state = optimizer.init(params)
        points = jax.tree.map(
            lambda leaf: jnp.zeros((n_points, *leaf.shape), _as_float(leaf, dtype).dtype),
            (params, state),
        )
        return _Recorded(jnp.int32(0), state, points)

    def update(updates, recorded, params=None):
        slot, rest = jnp.divmod(recorded.step - first, every)
        # Out of range, and so dropped, at steps that are no point.
        slot = jnp.where((rest == 0) & (slot >= 0), slot, n_points)
        points = jax.tree.map(
            lambda kept, leaf: kept.at[slot].set(leaf.astype(kept.dtype), mode="drop"),
            recorded.points,
            (params, recorded.state),
        )
        updates, state = optimizer.update(updates, recorded.state, params)
        return updates, _Recorded(recorded.step + 1, state, points)

    return optax.GradientTransformation(init, update)


def train_experts(
    key: Key,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    x: Float[Array, "n ..."],
    y: Int[Array, " n"],
    *,
    n_points: int,
    every: int = 1,
    first: int = 0,
    batch_size: int,
    n_epochs: int | None = None,
    dtype: str = "float32",
    **options: Any,
) -> Experts:
    """Trains ``e`` experts at once, each with its own initialisation and order.

    Args:
      key: typed keys ``[e]``.
      model: a Flax module with ``__call__(x, train)`` -> logits.
      optimizer: an optax optimiser.
      x: clean and triggered images ``[n, ...]``; see ``flip.poison``.
      y: their labels ``[n]``.
      n_points: points of each expert.
      every: steps between two points. Points have to lie where training still moves: once the
        experts fit their data, what is left of a step is the smoothing of the labels.
      first: step of the first point.
      batch_size: examples a step.
      n_epochs: epochs in all; None trains to the last point.
      dtype: of the points kept.
      **options: of ``train.fit``, such as ``augment``, ``state`` and ``callback``.

    Returns:
      Experts.

    Raises:
      ValueError: keys that are not ``[e]``, training that ends before the last point, or as
        ``train.fit`` and ``recording``.
    """
    if key.ndim != 1:
        raise ValueError(f"key must be typed keys [e], got shape {key.shape}")
    if not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size must lie in 1..{len(x)}, got {batch_size}")
    recorder = recording(optimizer, n_points=n_points, every=every, first=first, dtype=dtype)
    n_steps = first + (n_points - 1) * every + 1
    needed = math.ceil(n_steps / (len(x) // batch_size))
    if n_epochs is None:
        n_epochs = needed
    if n_epochs < needed:
        raise ValueError(f"n_epochs must be at least {needed} for {n_steps} steps, got {n_epochs}")
    state = train.fit(
        key, model, recorder, x, y, n_epochs=n_epochs, batch_size=batch_size, **options
    )
    return Experts(Trajectories(*state.opt_state.points), state.variables)


def _as_float(leaf: jax.Array, dtype) -> jax.Array:
    """Casts floating leaves only: a count stays an integer."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
