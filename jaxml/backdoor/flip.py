"""FLIP: labels that make training on clean images follow an expert that learnt a backdoor.

How few wrong labels make a training pipeline answer the target class whenever an image carries a
trigger? The images stay as they are. Experts are trained on triggered images (``poison``,
``trajectories``), label distributions are matched to their steps (``optimize_labels``), and the
labels that moved most are flipped (``flip_selection``).

Ref: Jha, Hayase & Oh, "Label Poisoning is All You Need", NeurIPS 2023, Algorithm 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxml.backdoor import matchers
from jaxml.backdoor.trajectories import Trajectories
from jaxml.core.rng import named_key
from jaxml.core.types import Key
from jaxml.core.validate import check_same_structure
from jaxml.data.batching import epoch_indices
from jaxml.data.triggers import Trigger
from jaxml.train.loop import Augment


class Poisoned(NamedTuple):
    """What experts are trained on: the clean images, then triggered copies of some.

    Attributes:
      x: images ``[n + p, ...]``.
      y: their labels ``[n + p]``, the target for the copies.
      index: which clean image each comes from, int32 ``[n + p]``.
    """

    x: Float[Array, "n_p ..."]
    y: Int[Array, " n_p"]
    index: Int[Array, " n_p"]


class LabelState(NamedTuple):
    """Logits of the labels ``[n, c]``, and the velocity of their descent."""

    logits: Float[Array, "n c"]
    velocity: Float[Array, "n c"]


class LabelRun(NamedTuple):
    """Learnt labels.

    Attributes:
      logits: ``[n, c]``; the labels are their softmax.
      losses: mean matching loss of each iteration ``[i]``; a run that does not bring it down by
        much has learnt nothing.
    """

    logits: Float[Array, "*r n c"]
    losses: Float[Array, "*r i"]


def poison(
    x: Float[np.ndarray, "n h w c"],
    y: Int[np.ndarray, " n"],
    trigger: Trigger,
    *,
    source: int,
    target: int,
    key: Key | None = None,
) -> Poisoned:
    """Adds triggered copies, labelled as the target, of all images of the source class.

    Args:
      x: images in [0, 1] ``[n, h, w, c]``.
      y: labels ``[n]``.
      trigger: of ``data.triggers``.
      source: a class, or -1 for all but the target: then the last ``n // classes`` images that are
        not of the target class are copied.
      target: what the trigger stands for.
      key: of a trigger that draws.

    Raises:
      ValueError: labels out of range, classes that do not differ or do not occur, or a trigger that
        does not fit the images.
    """
    x, y = np.asarray(x), np.asarray(y)
    n_classes = check_labels(y)
    if source == target or not -1 <= source < n_classes or not 0 <= target < n_classes:
        raise ValueError(
            f"source and target must be two of the classes 0..{n_classes - 1} (or source -1), got "
            f"{source} and {target}"
        )
    if source == -1:
        chosen = np.flatnonzero(y != target)[-(len(y) // n_classes) :]
    else:
        chosen = np.flatnonzero(y == source)
    if not len(chosen):
        raise ValueError(f"source: no image has the label {source}")
    triggered = np.asarray(trigger(jnp.asarray(x[chosen]), key))
    return Poisoned(
        np.concatenate([x, triggered]),
        np.concatenate([y, np.full(len(chosen), target)]).astype(np.int32),
        np.concatenate([np.arange(len(y)), chosen]).astype(np.int32),
    )


def check_labels(y: Int[np.ndarray, " n"], n_classes: int | None = None) -> int:
    """Returns the number of classes, by default one more than the largest label.

    Raises:
      ValueError: labels that are not integers ``[n]`` in ``0..n_classes - 1``.
    """
    y = np.asarray(y)
    if y.ndim != 1 or not len(y) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels must be integers [n] with n >= 1, got {y.dtype} {y.shape}")
    n_classes = int(y.max()) + 1 if n_classes is None else n_classes
    if y.min() < 0 or y.max() >= n_classes:
        raise ValueError(f"labels must lie in 0..{n_classes - 1}, got {y.min()}..{y.max()}")
    return n_classes


def init_labels(y: Int[Array, " n"], n_classes: int, *, temperature: float = 5.0) -> LabelState:
    """Starts at ``temperature`` times the one-hot labels."""
    logits = temperature * jax.nn.one_hot(jnp.asarray(y), n_classes)
    return LabelState(logits, jnp.zeros_like(logits))


def match_step(
    state: LabelState,
    point: matchers.Point,
    batches: matchers.Batches,
    index: Int[Array, "t b"],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    learning_rate: float,
    momentum: float = 0.5,
    matcher: str = "jvp",
    time: float = 1.0,
    checkpoint: bool = True,
) -> tuple[LabelState, Float[Array, ""]]:
    """Takes one step of descent in the logits of the labels; pure.

    A triggered copy has the label of its original, so an index may occur twice.

    Args:
      state: labels before.
      point: where student and expert start.
      batches: what they see.
      index: which labels the student's images have.
      model: static, as all that follow.
      optimizer: the expert's.
      learning_rate: of the logits. The loss should fall by a factor of 10 or so over a run; the
        right rate depends on the number of images and classes.
      momentum: of the logits.
      matcher: one of ``matchers.MATCHERS``.
      time: of ``"linearized"``.
      checkpoint: of ``"unroll"``.

    Returns:
      Labels after the step, and the matching loss before it.
    """
    options = {"unroll": {"checkpoint": checkpoint}, "linearized": {"time": time}}
    match = getattr(matchers, f"match_{matcher}")
    labels, pull = jax.vjp(lambda logits: jax.nn.softmax(logits[index]), state.logits)
    found = match(model, optimizer, point, batches, labels, **options.get(matcher, {}))
    (gradient,) = pull(found.gradient)
    velocity = momentum * state.velocity + gradient
    return LabelState(state.logits - learning_rate * velocity, velocity), found.loss


def optimize_labels(
    key: Key,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    trajectories: Trajectories,
    x: Float[Array, "n ..."],
    y: Int[Array, " n"],
    poisoned: Poisoned,
    *,
    n_classes: int,
    n_iterations: int,
    batch_size: int,
    learning_rate: float,
    momentum: float = 0.5,
    temperature: float = 5.0,
    matcher: str = "jvp",
    n_steps: int = 1,
    time: float = 1.0,
    checkpoint: bool = True,
    augment: Augment | None = None,
) -> LabelRun:
    """Learns labels with which one epoch from anywhere on the experts' ways goes as theirs did.

    Each iteration draws an expert and one of its points, and walks once over the expert's data in
    a fresh order; the student sees the clean originals of the same images.

    Args:
      key: a typed key ``[]``; or ``[r]`` for ``r`` runs at once by vmap.
      model: the experts' module.
      optimizer: the experts' optimiser, as given to ``train_experts``.
      trajectories: of the experts.
      x: clean images ``[n, ...]``.
      y: their labels ``[n]``.
      poisoned: what the experts were trained on.
      n_classes: ``c``.
      n_iterations: epochs of matching.
      batch_size: images a step.
      learning_rate: as in ``match_step``.
      momentum: as in ``match_step``.
      temperature: as in ``init_labels``.
      matcher: ``"jvp"``, ``"unroll"`` or ``"linearized"``; see ``matchers``.
      n_steps: steps (batches) of one match; 1 for ``"jvp"``.
      time: of ``"linearized"``.
      checkpoint: of ``"unroll"``.
      augment: as in ``train.fit``; student and expert get the same crops.

    Returns:
      LabelRun; with ``r`` keys both its arrays lead with ``[r]``.

    Raises:
      ValueError: a bad option, labels out of range, experts of another architecture, or
        ``poisoned`` of another data set.
    """
    check_labels(y, n_classes)
    if matcher not in matchers.MATCHERS:
        raise ValueError(f"matcher must be one of {', '.join(matchers.MATCHERS)}; got {matcher!r}")
    if n_steps < 1 or (matcher == "jvp" and n_steps > 1):
        raise ValueError(f"n_steps must be 1 for 'jvp' and positive for the others, got {n_steps}")
    if not 1 <= n_steps * batch_size <= len(poisoned.y):
        raise ValueError(
            f"n_steps * batch_size must lie in 1..{len(poisoned.y)}, the images of the experts, "
            f"got {n_steps * batch_size}"
        )
    if n_iterations < 1:
        raise ValueError(f"n_iterations must be positive, got {n_iterations}")
    if len(x) != len(y) or not 0 <= int(np.max(poisoned.index)) < len(x):
        raise ValueError(f"poisoned must come from the {len(x)} images of x with {len(y)} labels")
    check_architecture(model, trajectories, x)
    if matcher == "linearized" and "batch_stats" in _shapes(model, x):
        raise ValueError("matcher 'linearized' needs a model without BatchNorm")
    return _optimize(
        key, trajectories, jnp.asarray(x), jnp.asarray(y), Poisoned(*map(jnp.asarray, poisoned)),
        model=model, optimizer=optimizer, n_classes=n_classes, n_iterations=n_iterations,
        batch_size=batch_size, learning_rate=learning_rate, momentum=momentum,
        temperature=temperature, matcher=matcher, n_steps=n_steps, time=time,
        checkpoint=checkpoint, augment=augment,
    )  # fmt: skip


def check_architecture(model: nn.Module, trajectories: Trajectories, x: jax.Array) -> None:
    """Raises ValueError, naming the first parameter, for experts of another architecture."""
    points = jax.eval_shape(lambda t: t.at(0, 0)[0], trajectories)
    check_same_structure(_shapes(model, x)["params"], points, names=("model", "experts"))


def _shapes(model, x):
    example = jax.ShapeDtypeStruct((2, *x.shape[1:]), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), example)


@functools.partial(
    jax.jit,
    static_argnames=(
        "model", "optimizer", "n_classes", "n_iterations", "batch_size", "matcher", "n_steps",
        "checkpoint", "augment",
    ),
)  # fmt: skip
def _optimize(
    key, trajectories, x, y, poisoned, *,
    model, optimizer, n_classes, n_iterations, batch_size, learning_rate, momentum, temperature,
    matcher, n_steps, time, checkpoint, augment,
):  # fmt: skip
    one_hot = jax.nn.one_hot(poisoned.y, n_classes)
    n_experts, n_points = trajectories.shape

    def iteration(run_key, state, i):
        key = jax.random.fold_in(run_key, i)
        expert = jax.random.randint(named_key(key, "expert"), (), 0, n_experts)
        drawn = jax.random.randint(named_key(key, "point"), (), 0, n_points)
        point = matchers.Point(*trajectories.at(expert, drawn))
        order = epoch_indices(named_key(key, "order"), len(poisoned.y), batch_size)
        order = order[: len(order) // n_steps * n_steps].reshape(-1, n_steps, batch_size)

        def step(state, numbered):
            number, rows = numbered
            index = poisoned.index[rows]
            images = x[index], poisoned.x[rows]
            if augment is not None:
                keys = jax.random.split(
                    jax.random.fold_in(named_key(key, "augment"), number), n_steps
                )
                images = tuple(jax.vmap(augment)(keys, a) for a in images)
            return match_step(
                state, point, matchers.Batches(*images, one_hot[rows]), index,
                model=model, optimizer=optimizer, learning_rate=learning_rate, momentum=momentum,
                matcher=matcher, time=time, checkpoint=checkpoint,
            )  # fmt: skip

        state, losses = jax.lax.scan(step, state, (jnp.arange(len(order)), order))
        return state, losses.mean()

    def run(key):
        start = init_labels(y, n_classes, temperature=temperature)
        state, losses = jax.lax.scan(
            functools.partial(iteration, key), start, jnp.arange(n_iterations)
        )
        return LabelRun(state.logits, losses)

    return jax.vmap(run)(key) if key.ndim else run(key)
