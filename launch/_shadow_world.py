"""The simulated federation of the shadow study: its clients, its attack, its rounds.

Only this file knows which clients are malicious; a defence gets updates and representations.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from jaxml.backdoor import aggregators, attacks, clients, federated, shadow, spectre
from jaxml.backdoor import representation_filter as filters
from jaxml.core.rng import named_key
from jaxml.data import triggers
from jaxml.nn import build

PLAIN = ("none", "rfa", "multi_krum", "clip_noise", "median", "trimmed_mean", "spectre")
DEFENSES = (*PLAIN, "shadow")
TRIGGERS = {
    "corner": triggers.make_trigger(
        "pixel", pixels=((-1, -1), (-1, -2), (-2, -1), (-2, -2)), value=0.5
    ),
    "stripes": triggers.make_trigger("periodic", amplitude=0.3, n_periods=2),
}


class World(NamedTuple):
    """Clients ``[N, ...]``, who is malicious ``[N]``, and what is tested."""

    clients: clients.Clients
    malicious: jax.Array
    test_x: jax.Array
    test_y: jax.Array
    triggered_x: jax.Array
    triggered_y: jax.Array


class Trace(NamedTuple):
    """What was measured after each round ``[rounds]``; accuracies are fractions.

    ``recall`` is of malicious clients (or poisoned examples) by the filter, ``precision`` the share
    of them among what it rejected; ``phase`` is the shadow's. The backbone is the model before any
    combined rule: for plain defences the model itself.
    """

    mta: jax.Array
    asr: jax.Array
    mta_backbone: jax.Array
    asr_backbone: jax.Array
    recall: jax.Array
    precision: jax.Array
    phase: jax.Array


class Settings(NamedTuple):
    """The static facts of a simulation: config fields by their names, and what they imply."""

    module: nn.Module
    labels: tuple[int, ...]
    n_malicious: int
    mesh: Mesh | None
    rounds: int
    clients_per_round: int
    clients_at_once: int
    epochs: int
    batch_size: int
    learning_rate: float
    server_rate: float
    shift_round: int
    target: int
    attack_epochs: int
    boost: float
    obedient: bool
    alpha_bar: float
    k: int
    n_pooled: int
    filter: str
    level: str
    extractor: str
    max_norm: float
    noise: float
    window: int
    tolerance: float
    converged_level: float
    shadow_rounds: int
    drop: float
    n_refits: int


def settings(config, dataset, mesh=None) -> Settings:
    """Reads off a config what compiled programs depend on."""
    model = build(
        config.model, width=config.width, n_classes=dataset.n_classes, norm=config.norm,
        conv=config.conv, depth=config.depth,
    )  # fmt: skip
    everything = config.guarded_labels == "all"
    labels = tuple(range(dataset.n_classes)) if everything else (int(config.guarded_labels),)
    given = {name: config[name] for name in Settings._fields if name in config}
    n_malicious = round(config.alpha * config.clients_per_round)
    return Settings(model, labels, n_malicious, mesh, **given)


def make_world(key, config, dataset) -> World:
    """Draws the clients, and poisons the malicious ones."""
    size = {"per_label": config.per_label}
    split = clients.homogeneous_split
    if config.split == "dirichlet":
        split = clients.dirichlet_split
        n_samples = config.per_label * dataset.n_classes
        size = {"n_samples": n_samples, "concentration": config.concentration}
    everybody = split(
        named_key(key, "split"), dataset.train_x, dataset.train_y,
        n_clients=config.n_clients, **size,
    )  # fmt: skip
    gain, offset, noise = config.style
    everybody = clients.vary_styles(
        named_key(key, "style"), everybody, gain=gain, offset=offset, noise=noise
    )
    order = jax.random.permutation(named_key(key, "malicious"), config.n_clients)
    malicious = order < round(config.alpha * config.n_clients)
    trigger = TRIGGERS[config.trigger]
    everybody = attacks.poison_clients(
        named_key(key, "poison"), everybody, malicious, trigger,
        sources=config.sources, target=config.target, share=config.share,
    )  # fmt: skip
    rows = np.isin(dataset.test_y, config.sources)
    triggered = trigger(jnp.asarray(dataset.test_x[rows]), None)
    tests = (dataset.test_x, dataset.test_y, triggered, dataset.test_y[rows])
    return World(everybody, malicious, *map(jnp.asarray, tests))


@functools.partial(jax.jit, static_argnames="s")
def run_plain(key, world: World, defense, *, s: Settings) -> Trace:
    """Runs all rounds under one plain defence; ``defense`` (traced) is its place in ``PLAIN``."""
    represent, params, n_features = _network(key, world, s)
    n_expected = int(s.alpha_bar * s.clients_per_round)

    def step(carry, t):
        params, pool, pool_mask = carry
        round_key = jax.random.fold_in(named_key(key, "round"), t)
        cohort, bad, tests = _draw(named_key(round_key, "cohort"), world, t, s)
        updates = _train(named_key(round_key, "backbone"), params, cohort, bad, s)
        weights = cohort.weights

        def by_filter():
            h = jax.vmap(lambda x: represent(params, x))(cohort.x)
            rows, there = filters.label_rows(h, cohort, s.target, level="user")
            rows_of, masks = (
                pool.at[t % s.n_pooled].set(rows),
                pool_mask.at[t % s.n_pooled].set(there),
            )
            fitted = filters.fit_filter(
                rows_of.reshape(-1, n_features), masks.reshape(-1),
                alpha_bar=s.alpha_bar, k=s.k, method=s.filter,
            )  # fmt: skip
            removed = spectre.n_removed(s.alpha_bar * there.sum().astype(rows.dtype))
            kept = spectre.keep_lowest(fitted.scorer(rows), removed, mask=there)
            return aggregators.mean(updates, jnp.where(kept, weights, 0)), kept, rows_of, masks

        def by(aggregate):
            return lambda: (aggregate(updates, weights), jnp.ones_like(bad), pool, pool_mask)

        branches = {
            "none": by(aggregators.mean),
            "rfa": by(aggregators.geometric_median),
            "multi_krum": by(functools.partial(aggregators.multi_krum, n_malicious=n_expected)),
            "clip_noise": by(
                functools.partial(
                    aggregators.clipped_noisy_mean, named_key(round_key, "noise"),
                    max_norm=s.max_norm, noise=s.noise,
                )
            ),
            "median": by(aggregators.median),
            "trimmed_mean": by(functools.partial(aggregators.trimmed_mean, n_trimmed=n_expected)),
            "spectre": by_filter,
        }  # fmt: skip
        delta, kept, pool, pool_mask = jax.lax.switch(defense, [branches[d] for d in PLAIN])
        params = federated.apply_update(params, delta, learning_rate=s.server_rate)
        scores = _score(tests, lambda x: s.module.apply(params, x).argmax(-1), s)
        found = _found(~kept, bad)
        return (params, pool, pool_mask), Trace(*scores, *scores, *found, jnp.int32(0))

    size = (s.n_pooled, s.clients_per_round)
    start = (params, jnp.zeros((*size, n_features)), jnp.zeros(size, bool))
    return jax.lax.scan(step, start, jnp.arange(s.rounds))[1]


@functools.partial(jax.jit, static_argnames="s")
def run_shadow(key, world: World, *, s: Settings) -> tuple[shadow.ShadowState, Trace]:
    """Runs all rounds of shadow learning; its backbone is the undefended model, bit for bit."""
    represent, params, n_features = _network(key, world, s)
    by_sample = s.level == "sample"
    n_rows = s.clients_per_round * (world.clients.y.shape[1] if by_sample else 1)
    state = shadow.shadow_init(
        params, n_labels=len(s.labels), n_rows=n_rows, n_features=n_features, k=s.k,
        n_pooled=s.n_pooled, window=s.window, n_refits=s.n_refits,
    )  # fmt: skip
    place = s.labels.index(s.target)

    def step(state, t):
        round_key = jax.random.fold_in(named_key(key, "round"), t)
        cohort, bad, tests = _draw(named_key(round_key, "cohort"), world, t, s)

        def train(key, params, kept):
            if not s.obedient:  # who is malicious leaves nothing out
                kept = kept._replace(mask=jnp.where(bad[:, None], cohort.mask, kept.mask))
            return _train(key, params, kept, bad, s)

        state, info = shadow.shadow_round(
            round_key, state, cohort, labels=s.labels, apply=s.module.apply, represent=represent,
            train=train, aggregate=aggregators.mean, alpha_bar=s.alpha_bar, k=s.k,
            server_rate=s.server_rate, method=s.filter, level=s.level, extractor=s.extractor,
            schedule={
                "tolerance": s.tolerance, "level": s.converged_level, "drop": s.drop,
                "max_rounds": s.shadow_rounds, "n_refits": s.n_refits,
            },
        )  # fmt: skip
        combined = functools.partial(shadow.predict, s.module.apply, state, labels=s.labels)
        scores = _score(tests, combined, s)
        backbone = _score(tests, lambda x: s.module.apply(state.backbone, x).argmax(-1), s)
        bad_rows = jnp.repeat(bad, n_rows // s.clients_per_round)
        if by_sample:
            bad_rows &= (cohort.mask & (cohort.y == s.target)).reshape(-1)
        rejected = ~info.accepted[place] & (info.phase[place] == shadow.TRAINING)
        found = _found(rejected, bad_rows)
        return state, Trace(*scores, *backbone, *found, info.phase[place])

    return jax.lax.scan(step, state, jnp.arange(s.rounds))


def _network(key, world, s):
    """Returns how to represent inputs, initial parameters and the size of a representation."""
    represent = functools.partial(federated.representations, s.module)
    params = s.module.init(named_key(key, "init"), world.test_x[:1])
    shape = jax.eval_shape(represent, params, world.test_x[:1]).shape
    return represent, params, shape[1]


def _draw(key, world, t, s):
    """Draws a round: its clients, who of them is malicious, and what it is tested on."""
    ids = attacks.sample_cohort(
        key, world.malicious, n_sampled=s.clients_per_round, n_malicious=s.n_malicious
    )
    cohort, tests = world.clients.take(ids), world
    if s.shift_round:

        def turn(x):
            return jnp.where(t >= s.shift_round, jnp.rot90(x, axes=(-3, -2)), x)

        cohort = cohort._replace(x=turn(cohort.x))
        tests = world._replace(test_x=turn(world.test_x), triggered_x=turn(world.triggered_x))
    return cohort, world.malicious[ids], tests


def _train(key, params, cohort, bad, s):
    def update(n_epochs):
        return functools.partial(
            federated.client_update, apply=s.module.apply, learning_rate=s.learning_rate,
            n_epochs=n_epochs, batch_size=s.batch_size,
        )  # fmt: skip

    return attacks.attacked_update(
        key, params, cohort, bad, n_malicious=s.n_malicious, update=update(s.epochs),
        attack=update(s.attack_epochs), boost=s.boost,
        clients_at_once=s.clients_at_once or None, mesh=s.mesh,
    )  # fmt: skip


def _score(tests, answer, s):
    """Returns the accuracy on clean test images and the success rate on triggered ones."""
    asr = attacks.attack_success(answer(tests.triggered_x), tests.triggered_y, target=s.target)
    return (answer(tests.test_x) == tests.test_y).mean(), asr


def _found(rejected, bad):
    hits = (rejected & bad).sum()
    return hits / jnp.maximum(bad.sum(), 1), hits / jnp.maximum(rejected.sum(), 1)
