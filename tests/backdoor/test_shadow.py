"""The state machine on scripted traces, the filter's pieces, and rounds of shadow learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.backdoor import aggregators, federated, shadow, spectre
from jaxml.backdoor import representation_filter as filters
from jaxml.backdoor.clients import Clients
from jaxml.backdoor.shadow import COLLECTING, FROZEN, TRAINING, WAITING
from jaxml.nn import MLP

MODULE = MLP((6,), 3)
WINDOW = 5
SCHEDULE = {"tolerance": 0.02, "level": 0.9, "max_rounds": 12, "drop": 0.1}


@functools.partial(jax.jit, static_argnames=("n_pooled", "n_refits"))
def follow(backbone, of_shadow, *, n_pooled=3, n_refits=0, **schedule):
    """Phases in which each round begins."""

    def step(progress, values):
        moved = shadow.advance(progress, *values, n_pooled=n_pooled, n_refits=n_refits, **schedule)
        return moved, progress.phase

    start = shadow.start_progress(window=WINDOW, n_refits=n_refits)
    return jax.lax.scan(step, start, (backbone, of_shadow))


def transitions(phases):
    phases = np.asarray(phases)
    return [(int(t), int(phases[t])) for t in np.flatnonzero(np.diff(phases)) + 1]


def test_a_scripted_trace_goes_through_every_phase_at_its_round():
    # Rises for 10 rounds, is steady, drops at round 60 and recovers at 70.
    backbone = np.full(120, 0.95, np.float32)
    backbone[:10] = np.linspace(0.2, 0.9, 10)
    backbone[60:70] = 0.5
    shadow_accuracy = np.full(120, 0.3, np.float32)  # never settles: stops by its bound
    _, phases = follow(backbone, shadow_accuracy, **SCHEDULE)
    # 10 values of 0.95 fill both windows in round 19; the tests reads it after the round.
    assert transitions(phases) == [
        (19, COLLECTING), (22, TRAINING), (34, FROZEN), (65, WAITING),
        (80, COLLECTING), (83, TRAINING), (95, FROZEN),
    ]  # fmt: skip
    _, phases = follow(backbone, shadow_accuracy + 0.65, n_refits=1, **SCHEDULE)
    assert transitions(phases)[:5] == [
        (19, COLLECTING), (22, TRAINING), (32, COLLECTING), (35, TRAINING), (45, FROZEN),
    ]  # fmt: skip


def test_noise_neither_converges_early_nor_thaws():
    rng = np.random.default_rng(0)
    samples = rng.binomial(300, 0.95, size=(40, 400)) / 300
    samples[:, :10] = 0.4
    found = jax.vmap(lambda a: follow(a, jnp.full(400, 0.3), **SCHEDULE))(
        jnp.asarray(samples, jnp.float32)
    )
    phases = np.asarray(found[1])
    assert (phases[:, -1] == FROZEN).all()
    assert all(
        [phase for _, phase in transitions(row)] == [COLLECTING, TRAINING, FROZEN] for row in phases
    )
    low = jnp.full(60, 0.8)  # steady, but not good enough
    assert not follow(low, low, **SCHEDULE)[1].any()
    # A round in which nobody has the label is no value.
    gaps = jnp.where(jnp.arange(60) % 2 == 0, 0.95, jnp.nan)
    assert transitions(follow(gaps, gaps, **SCHEDULE)[1])[0] == (19, COLLECTING)
    rising = jnp.linspace(0.9, 1.0, 200)  # learning on is no shift
    assert WAITING not in np.asarray(follow(rising, rising, **SCHEDULE)[1])[30:]


def cohort_of(n=8, s=6, seed=0):
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(s) % 3, (n, 1)).astype(np.int32)
    x = rng.normal(size=(n, s, 4)) * 0.3 + 2 * np.eye(3, 4)[y]
    return Clients(jnp.asarray(x, jnp.float32), jnp.asarray(y), jnp.ones((n, s), bool))


def test_rows_are_means_of_the_label_and_mask_who_cannot_tell():
    cohort = cohort_of()
    cohort = cohort._replace(mask=cohort.mask.at[2].set(cohort.y[2] != 1))
    h = cohort.x.at[3, 1].set(jnp.nan)
    rows, there = filters.label_rows(h, cohort, 1, level="user")
    np.testing.assert_array_equal(there, [1, 1, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(rows[0], h[0, 1::3].mean(0), rtol=1e-6)
    assert np.isfinite(rows).all()
    fitted = filters.fit_filter(rows, there, alpha_bar=0.1, k=2, method="norm")
    accepted = filters.accept(fitted, rows, there)
    assert not accepted[2] and not accepted[3] and accepted.sum() == 6 - 0
    single, single_there = filters.label_rows(h, cohort, 1, level="sample")
    assert single.shape == (48, 4) and single_there.sum() == 16 - 2 - 1
    for level, size in (("user", 8), ("label", 8), ("sample", 48)):
        kept = filters.restrict(cohort, jnp.zeros(size, bool), 1, level=level)
        assert not (kept.mask & (kept.y == 1)).any()
        assert kept.mask.any() == (level != "user")
        assert (
            filters.restrict(cohort, jnp.ones(size, bool), 1, level=level).mask == cohort.mask
        ).all()
    message = "level must be one of user, label, sample; got 'client'"
    with pytest.raises(ValueError, match=message):
        filters.label_rows(h, cohort, 1, level="client")
    with pytest.raises(ValueError, match=message):
        filters.restrict(cohort, accepted, 1, level="client")


def test_the_better_score_is_chosen_by_data():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(300, 8)).astype(np.float32) * np.linspace(5, 0.5, 8, dtype=np.float32)
    low = h.copy()
    low[:20, 7] += 8.0
    everybody = jnp.ones(300, bool)
    fit = jax.jit(
        functools.partial(filters.fit_filter, alpha_bar=0.07, k=8),
        static_argnames="method",
    )
    for method, recall in (("auto", 1.0), ("spectre", 1.0), ("pca", 0.2)):
        accepted = filters.accept(fit(low, everybody, method=method), low, everybody)
        found = float((~accepted[:20]).mean())
        assert found == 1.0 if recall == 1.0 else found <= recall
        assert int((~accepted).sum()) == int(spectre.n_removed(0.07 * 300))
    with pytest.raises(ValueError, match="method must be one of"):
        filters.fit_filter(h, everybody, alpha_bar=0.1, k=2, method="magic")
    with pytest.raises(ValueError, match=r"alpha_bar must lie in \[0, 0.5\), got 0.5"):
        filters.fit_filter(h, everybody, alpha_bar=0.5, k=2)


def make_run(labels=(1,), level="user", **options):
    update = functools.partial(
        federated.client_update, apply=MODULE.apply, learning_rate=0.5, n_epochs=2, batch_size=6
    )
    params = MODULE.init(jax.random.key(0), jnp.zeros((1, 4)))
    state = shadow.shadow_init(
        params, n_labels=len(labels), n_rows=48 if level == "sample" else 8, n_features=9, k=2,
        n_pooled=2, window=4,
    )  # fmt: skip
    traces = []

    @jax.jit
    def run(state, t, cohort):
        traces.append(1)
        return shadow.shadow_round(
            jax.random.fold_in(jax.random.key(1), t), state, cohort, labels=labels,
            apply=MODULE.apply,
            represent=functools.partial(federated.representations, MODULE),
            train=lambda key, params, c: federated.cohort_update(key, params, c, update=update),
            aggregate=aggregators.mean, alpha_bar=0.2, k=2, server_rate=1.0, level=level,
            method="norm", schedule={"max_rounds": 5, "tolerance": 0.05}, **options,
        )  # fmt: skip

    return run, state, traces


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda u, v: bool((u == v).all()), a, b)))


def test_rounds_serve_the_frozen_shadow_and_never_touch_it_again():
    run, state, traces = make_run()
    x = cohort_of(seed=9).x[0]
    frozen, phases = None, []
    for t in range(24):
        before = state
        state, info = run(state, jnp.int32(t), cohort_of(seed=t))
        phases.append(int(info.phase[0]))
        answers = shadow.predict(MODULE.apply, state, x, labels=(1,))
        backbone = MODULE.apply(state.backbone, x).argmax(-1)
        assert info.accepted.any() == (info.phase[0] == TRAINING)
        if not state.guards.is_served[0]:
            np.testing.assert_array_equal(answers, backbone)
        elif frozen is None:
            frozen = state.guards.served
            assert equal(frozen, state.guards.shadow) and not equal(frozen, before.guards.served)
        else:
            assert equal(state.guards.served, frozen)
    assert sorted(set(phases)) == [WAITING, COLLECTING, TRAINING, FROZEN] and len(traces) == 1
    assert phases == sorted(phases)
    # Where the backbone says 1 the shadow answers, be it what it may.
    other = jax.tree.map(lambda leaf: leaf * 0, state.guards.served)
    other["params"]["Dense_1"]["bias"] = jnp.array([[0.0, 0.0, 9.0]])
    changed = state._replace(guards=state.guards._replace(served=other))
    answers = shadow.predict(MODULE.apply, changed, x, labels=(1,))
    np.testing.assert_array_equal(answers, np.where(backbone == 1, 2, backbone))


def test_all_labels_in_one_vmap_equal_labels_in_turn():
    labels = (0, 1)
    states = []
    for at_once in (1, None):
        run, state, _ = make_run(labels, labels_at_once=at_once)
        for t in range(14):
            state, _ = run(state, jnp.int32(t), cohort_of(seed=t))
        states.append(state)
    assert (states[0].guards.progress.phase >= TRAINING).all()
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"level": "sample"}, {"level": "label", "extractor": "blind"}], ids=str
)
def test_other_levels_and_extractors_reach_the_end(options):
    run, state, _ = make_run(**options)
    start = state
    for t in range(20):
        state, _ = run(state, jnp.int32(t), cohort_of(seed=t))
        if options.get("extractor") == "blind" and t == 3:
            assert not equal(state.guards.extractor, start.guards.extractor)
    assert int(state.guards.progress.phase[0]) == FROZEN
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.guards.served))
    with pytest.raises(ValueError, match="extractor must be one of backbone, blind"):
        make_run(extractor="magic")[0](start, jnp.int32(0), cohort_of())
