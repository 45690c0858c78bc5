"""Shadow learning: a guarded label is answered by a model trained on filtered clients, for a while.

The backbone learns from everybody, for ever. Once it has converged on a guarded label, a filter is
fitted to the clients' representations of that label, and a shadow model trains on those it accepts,
until it has converged too. What the filter overlooks has only so long to be learnt.

Ref: Wang, Hayase, Fanti & Oh, "Towards a Defense Against Federated Backdoor Attacks Under
Continuous Training", 2023.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxml.backdoor.clients import Clients
from jaxml.backdoor.federated import apply_update
from jaxml.backdoor.representation_filter import (
    RepresentationFilter,
    accept,
    fit_filter,
    label_rows,
    restrict,
)
from jaxml.backdoor.spectre import Scorer
from jaxml.core.rng import named_key
from jaxml.core.types import ApplyFn, Key, PyTree

WAITING, COLLECTING, TRAINING, FROZEN = range(4)
PHASES = ("waiting", "collecting", "training", "frozen")
EXTRACTORS = ("backbone", "blind")


# When: the state machine.


class Monitor(NamedTuple):
    """The last ``2 w`` values of an accuracy, oldest first, and how many have come."""

    values: Float[Array, " 2w"]
    count: Int[Array, ""]


def start_monitor(window: int) -> Monitor:
    """Returns a monitor that compares windows of ``window`` values."""
    return Monitor(jnp.zeros(2 * window, jnp.float32), jnp.int32(0))


def push(monitor: Monitor, value: Float[Array, ""]) -> Monitor:
    """Appends a value; one that is not finite (no client could tell) is passed over."""
    moved = Monitor(jnp.roll(monitor.values, -1).at[-1].set(value), monitor.count + 1)
    told = jnp.isfinite(value)
    return jax.tree.map(lambda new, old: jnp.where(told, new, old), moved, monitor)


def recent(monitor: Monitor) -> Float[Array, ""]:
    """Returns the mean of the newer window."""
    return monitor.values[monitor.values.shape[0] // 2 :].mean()


def settled(monitor: Monitor, *, tolerance: float, level: float) -> Bool[Array, ""]:
    """Says whether both windows are full, of like mean, and high enough.

    The difference of two windows of ``w`` values has a standard error of ``sqrt(2 / w)`` of one
    value's: a difference of single rounds, as first published, would mostly measure noise.
    """
    window = monitor.values.shape[0] // 2
    older = monitor.values[:window].mean()
    full = monitor.count >= 2 * window
    return full & (jnp.abs(recent(monitor) - older) < tolerance) & (recent(monitor) >= level)


def fell(
    monitor: Monitor, reference: Float[Array, ""], *, drop: float, n_errors: float
) -> Bool[Array, ""]:
    """Says whether the newer window lies below a reference by ``drop`` and ``n_errors`` errors."""
    newer = monitor.values[monitor.values.shape[0] // 2 :]
    error = newer.std(ddof=1) / jnp.sqrt(newer.shape[0])
    return reference - newer.mean() > jnp.maximum(drop, n_errors * error)


class Progress(NamedTuple):
    """Where the defence of one label stands.

    Attributes:
      phase: WAITING for the backbone, COLLECTING representations, TRAINING the shadow, FROZEN.
      age: rounds in this phase.
      backbone: accuracy of the backbone on the label, as the clients report it.
      shadow: that of the shadow.
      reference: best windowed accuracy of the backbone since it had converged.
      n_refits: refits still to come in this generation.
    """

    phase: Int[Array, ""]
    age: Int[Array, ""]
    backbone: Monitor
    shadow: Monitor
    reference: Float[Array, ""]
    n_refits: Int[Array, ""]


def start_progress(*, window: int, n_refits: int = 0) -> Progress:
    """Returns the state machine before the first round; arguments are those of ``advance``."""
    zero = jnp.int32(WAITING)
    monitor = start_monitor(window)
    return Progress(zero, jnp.int32(0), monitor, monitor, jnp.float32(0), jnp.int32(n_refits))


def advance(
    progress: Progress,
    backbone_accuracy: Float[Array, ""],
    shadow_accuracy: Float[Array, ""],
    *,
    n_pooled: int,
    tolerance: float = 0.01,
    level: float = 0.9,
    max_rounds: int = 60,
    drop: float = 0.05,
    n_errors: float = 4.0,
    n_refits: int = 0,
) -> Progress:
    """Moves the state machine by one round.

    | from | to | when |
    |---|---|---|
    | waiting | collecting | the backbone's accuracy has settled |
    | collecting | training | representations of ``n_pooled`` rounds are there |
    | training | frozen | the shadow's accuracy has settled, or ``max_rounds`` have passed |
    | training | collecting | likewise, while refits are left |
    | any but waiting | waiting | the backbone's accuracy has fallen: the distribution has shifted |

    A rise of the backbone's accuracy is no shift: it goes on learning.

    Args:
      progress: before the round.
      backbone_accuracy: on the label in this round; NaN when no client has the label.
      shadow_accuracy: likewise; read while training.
      n_pooled: rounds to collect, static.
      tolerance: largest difference of two windows that have settled.
      level: smallest accuracy that has settled.
      max_rounds: bound on the exposure of a shadow.
      drop: smallest fall that is a shift.
      n_errors: and how many standard errors it must be.
      n_refits: refits after a shift.

    Returns:
      After the round, with ``age`` 0 where a phase has begun.
    """
    phase, age = progress.phase, progress.age + 1
    backbone = push(progress.backbone, backbone_accuracy)
    training = phase == TRAINING
    shadow = jax.tree.map(
        lambda new, old: jnp.where(training, new, old),
        push(progress.shadow, shadow_accuracy),
        progress.shadow,
    )
    converged = settled(backbone, tolerance=tolerance, level=level)
    stopped = settled(shadow, tolerance=tolerance, level=level) | (age >= max_rounds)
    again = progress.n_refits > 0
    following = jnp.select(
        [
            (phase == WAITING) & converged,
            (phase == COLLECTING) & (age >= n_pooled),
            training & stopped & again,
            training & stopped,
        ],
        [COLLECTING, TRAINING, COLLECTING, FROZEN],
        phase,
    ).astype(jnp.int32)
    reference = jnp.where(
        phase == WAITING, recent(backbone), jnp.maximum(progress.reference, recent(backbone))
    )
    shifted = (phase != WAITING) & fell(backbone, reference, drop=drop, n_errors=n_errors)
    following = jnp.where(shifted, WAITING, following)
    begun = following != phase
    left = progress.n_refits - (training & (following == COLLECTING)).astype(jnp.int32)
    # After a shift the monitors must fill anew; a shadow's does so whenever its training begins.
    return Progress(
        following,
        jnp.where(begun, 0, age),
        backbone._replace(count=jnp.where(shifted, 0, backbone.count)),
        shadow._replace(count=jnp.where(begun, 0, shadow.count)),
        reference,
        jnp.where(shifted, n_refits, left).astype(jnp.int32),
    )


# What: models, filter and the combined answer.


class Guard(NamedTuple):
    """The defence of one label; in a ``ShadowState`` every leaf leads with the labels ``[g]``.

    Attributes:
      progress: the state machine.
      extractor: parameters of the network whose representations are filtered.
      fitted: the filter.
      pool: collected rows ``[w, n, d]``.
      pool_mask: which of them are there ``[w, n]``.
      shadow: parameters in training.
      served: parameters that answer: those of the last frozen shadow.
      is_served: whether there is one.
    """

    progress: Progress
    extractor: PyTree
    fitted: RepresentationFilter
    pool: Float[Array, "w n d"]
    pool_mask: Bool[Array, "w n"]
    shadow: PyTree
    served: PyTree
    is_served: Bool[Array, ""]


class ShadowState(NamedTuple):
    """What the server carries from round to round.

    Attributes:
      initial: parameters that every model starts from.
      backbone: parameters of the undefended model.
      guards: one for each guarded label, leaves ``[g, ...]``.
    """

    initial: PyTree
    backbone: PyTree
    guards: Guard


class RoundInfo(NamedTuple):
    """What a round did, by guarded label.

    Attributes:
      phase: in which the round began ``[g]``.
      accepted: rows that the shadow trained on ``[g, n]``; all false outside TRAINING.
      backbone_accuracy: on the label, before the round ``[g]``.
      shadow_accuracy: likewise ``[g]``; NaN outside TRAINING.
    """

    phase: Int[Array, " g"]
    accepted: Bool[Array, "g n"]
    backbone_accuracy: Float[Array, " g"]
    shadow_accuracy: Float[Array, " g"]


def shadow_init(
    params: PyTree,
    *,
    n_labels: int,
    n_rows: int,
    n_features: int,
    k: int,
    n_pooled: int = 1,
    window: int = 20,
    n_refits: int = 0,
) -> ShadowState:
    """Makes the state before the first round.

    Args:
      params: initial parameters.
      n_labels: guarded labels.
      n_rows: rows of a round: its clients, or their examples at level ``"sample"``.
      n_features: numbers of a representation.
      k: directions of the filter.
      n_pooled: rounds whose representations are pooled to fit the filter; ``n_pooled n_rows``
        should be 20 times ``k`` or more.
      window: of the monitors, in rounds.
      n_refits: how often a trained shadow becomes the extractor of a new filter.
    """
    guard = Guard(
        start_progress(window=window, n_refits=n_refits),
        params,
        RepresentationFilter(
            Scorer(jnp.zeros(n_features), jnp.zeros((k, n_features))), jnp.float32(-jnp.inf)
        ),
        jnp.zeros((n_pooled, n_rows, n_features)),
        jnp.zeros((n_pooled, n_rows), bool),
        params,
        params,
        jnp.array(False),
    )
    guards = jax.tree.map(lambda leaf: jnp.stack([leaf] * n_labels), guard)
    return ShadowState(params, params, guards)


def shadow_round(
    key: Key,
    state: ShadowState,
    cohort: Clients,
    *,
    labels: tuple[int, ...],
    apply: ApplyFn,
    represent: Callable[[PyTree, jax.Array], jax.Array],
    train: Callable[[Key, PyTree, Clients], PyTree],
    aggregate: Callable[[PyTree, jax.Array], PyTree],
    alpha_bar: float,
    k: int,
    server_rate: float,
    method: str = "spectre",
    level: str = "user",
    extractor: str = "backbone",
    labels_at_once: int | None = 1,
    schedule: Mapping[str, float] | None = None,
) -> tuple[ShadowState, RoundInfo]:
    """Runs one round: the backbone learns from all clients, each shadow from those accepted.

    The extractor is the backbone of the round in which it had converged, and stays so while its
    filter is in use. ``"blind"`` is a network of its own, trained from the start on the clients'
    examples of all other labels: a backdoor to the guarded label has nothing to enter it by.

    Args:
      key: a typed key.
      state: before the round.
      cohort: the clients of the round. The server's part of this function sees of them only their
        updates, their accuracies and the rows of ``label_rows``.
      labels: guarded labels, static.
      apply: ``apply(params, x) -> logits``; static, as all functions here.
      represent: ``represent(params, x [n, ...]) -> [n, d]``.
      train: ``train(key, params, cohort) -> updates [c, ...]``.
      aggregate: ``aggregate(updates, weights [c]) -> update``, for all models.
      alpha_bar: the largest share of malicious clients to reckon with.
      k: directions of the filter, as in ``shadow_init``.
      server_rate: factor on the aggregated update.
      method: of ``fit_filter``.
      level: of ``label_rows``.
      extractor: ``"backbone"`` or ``"blind"``.
      labels_at_once: labels in one vmap; 1 takes them in turn, and then only those that train cost
        anything; None takes all at once.
      schedule: keywords of ``advance``, ``n_pooled`` apart.

    Returns:
      The state after the round, and what happened.

    Raises:
      ValueError: an unknown ``extractor``, ``method`` or ``level``, or ``alpha_bar`` or ``k`` out
        of range.
    """
    if extractor not in EXTRACTORS:
        raise ValueError(f"extractor must be one of {', '.join(EXTRACTORS)}; got {extractor!r}")
    n_pooled = state.guards.pool.shape[1]

    def learn(name, params, cohort):
        updates = train(named_key(key, name), params, cohort)
        return apply_update(params, aggregate(updates, cohort.weights), learning_rate=server_rate)

    def hits(params):
        return jax.vmap(lambda x, y: apply(params, x).argmax(-1) == y)(cohort.x, cohort.y)

    backbone_hits = hits(state.backbone)

    def guard_label(args):
        label, guard = args
        phase, age = guard.progress.phase, guard.progress.age
        guarded = cohort.mask & (cohort.y == label)

        def read(guard):
            h = jax.vmap(lambda x: represent(guard.extractor, x))(cohort.x)
            return label_rows(h, cohort, label, level=level)

        def skip(guard):
            return jnp.zeros_like(guard.pool[0]), jnp.zeros_like(guard.pool_mask[0])

        reading = (phase == COLLECTING) | (phase == TRAINING)
        rows, there = jax.lax.cond(reading, read, skip, guard)
        place = jnp.where(phase == COLLECTING, jnp.minimum(age, n_pooled - 1), n_pooled)
        pool = guard.pool.at[place].set(rows, mode="drop")
        pool_mask = guard.pool_mask.at[place].set(there, mode="drop")

        def fit(_):
            flat, mask = pool.reshape(-1, pool.shape[-1]), pool_mask.reshape(-1)
            return fit_filter(flat, mask, alpha_bar=alpha_bar, k=k, method=method)

        full = (phase == COLLECTING) & (age + 1 >= n_pooled)
        fitted = jax.lax.cond(full, fit, lambda _: guard.fitted, None)

        training = phase == TRAINING
        accepted = accept(fitted, rows, there) & training
        kept = restrict(cohort, accepted, label, level=level)

        def train_shadow(shadow):
            accuracy = _share(hits(shadow), kept.mask & guarded)
            return learn("shadow", shadow, kept), accuracy

        shadow, shadow_accuracy = jax.lax.cond(
            training, train_shadow, lambda shadow: (shadow, jnp.float32(jnp.nan)), guard.shadow
        )
        backbone_accuracy = _share(backbone_hits, guarded)
        progress = advance(
            guard.progress,
            backbone_accuracy,
            shadow_accuracy,
            n_pooled=n_pooled,
            **(schedule or {}),
        )
        begun = progress.age == 0
        frozen = begun & (progress.phase == FROZEN)
        collecting = begun & (progress.phase == COLLECTING)

        def choose(which, new, old):
            return jax.tree.map(lambda a, b: jnp.where(which, a, b), new, old)

        reader = guard.extractor
        if extractor == "blind":
            others = cohort._replace(mask=cohort.mask & ~guarded)
            reader = jax.lax.cond(
                phase == WAITING, lambda p: learn("blind", p, others), lambda p: p, reader
            )
            reader = choose(begun & (progress.phase == WAITING), state.initial, reader)
        else:
            reader = choose(collecting & (phase == WAITING), state.backbone, reader)
        guard = Guard(
            progress,
            choose(collecting & training, shadow, reader),  # a refit
            fitted,
            pool,
            pool_mask,
            choose(begun & (progress.phase == TRAINING), state.initial, shadow),
            choose(frozen, shadow, guard.served),
            guard.is_served | frozen,
        )
        return guard, RoundInfo(phase, accepted, backbone_accuracy, shadow_accuracy)

    args = (jnp.asarray(labels), state.guards)
    if labels_at_once is None or labels_at_once >= len(labels) > 1:
        guards, info = jax.vmap(guard_label)(args)
    else:
        batch_size = None if labels_at_once == 1 else labels_at_once
        guards, info = jax.lax.map(guard_label, args, batch_size=batch_size)
    backbone = learn("backbone", state.backbone, cohort)
    return ShadowState(state.initial, backbone, guards), info


def predict(
    apply: ApplyFn, state: ShadowState, x: Float[Array, "n ..."], *, labels: tuple[int, ...]
) -> Int[Array, " n"]:
    """Answers with the backbone, except where it says a guarded label: there its shadow answers.

    Before the first freeze of a label, the backbone's answer stands; while a later shadow trains,
    the last frozen one answers.

    Args:
      apply: ``apply(params, x) -> logits``; static.
      state: of any round.
      x: inputs ``[n, ...]``.
      labels: guarded labels, as in ``shadow_round``.
    """
    answers = apply(state.backbone, x).argmax(-1)
    said = jax.vmap(lambda params: apply(params, x).argmax(-1))(state.guards.served)
    found = answers
    for i, label in enumerate(labels):
        found = jnp.where((answers == label) & state.guards.is_served[i], said[i], found)
    return found


def _share(hits, mask) -> jax.Array:
    """The share of hits among the masked; NaN without any."""
    return (hits & mask).sum() / mask.sum()
