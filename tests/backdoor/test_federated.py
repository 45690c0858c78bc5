"""Federated rounds against centralised steps; clients, their splits, and attacks on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.backdoor import aggregators, attacks, clients, federated
from jaxml.backdoor.clients import Clients
from jaxml.core.sharding import make_mesh
from jaxml.data.triggers import make_trigger
from jaxml.nn import MLP, ConvNet

MODULE = MLP((6,), 3)


def make_clients(n=8, s=6, seed=0, shape=(4, 4, 1), n_classes=3):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.uniform(size=(n, s, *shape)), jnp.float32)
    y = jnp.asarray(np.stack([rng.permutation(np.arange(s) % n_classes) for _ in range(n)]))
    return Clients(x, y.astype(jnp.int32), jnp.ones((n, s), bool))


def params_of(module=MODULE, shape=(4, 4, 1)):
    return module.init(jax.random.key(0), jnp.zeros((1, *shape)))


def updater(module=MODULE, **options):
    options = {"learning_rate": 0.1, "n_epochs": 1, "batch_size": 6, **options}
    return functools.partial(federated.client_update, apply=module.apply, **options)


def close(a, b, atol=1e-5):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=atol), a, b)


def test_one_full_step_of_all_clients_is_one_central_step():
    cohort, params = make_clients(), params_of()
    updates = jax.jit(functools.partial(federated.cohort_update, update=updater()))(
        jax.random.key(1), params, cohort
    )
    delta = aggregators.mean(updates, cohort.weights)
    x, y = cohort.x.reshape(-1, 4, 4, 1), cohort.y.reshape(-1)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(MODULE.apply(params, x), y).mean()

    gradient = jax.grad(loss)(params)
    close(delta, jax.tree.map(lambda g: -0.1 * g, gradient))
    moved = federated.apply_update(params, delta, learning_rate=0.5)
    close(moved, jax.tree.map(lambda p, d: p + 0.5 * d, params, delta))


def test_clients_at_once_parts_and_mesh_change_nothing():
    cohort, params, key = make_clients(), params_of(), jax.random.key(2)
    update = updater(n_epochs=2, batch_size=3)
    run = functools.partial(federated.cohort_update, key, params, update=update)
    expected = run(cohort)
    for at_once in (1, 3):
        close(run(cohort, clients_at_once=at_once), expected)
    close(run(cohort, mesh=make_mesh(4)), expected)
    halves = [run(cohort.take(jnp.arange(i, i + 4)), first=i) for i in (0, 4)]
    close(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves), expected)
    sharded = jax.jit(functools.partial(run, mesh=make_mesh(4)))(cohort)
    close(sharded, expected)
    with pytest.raises(ValueError, match="clients_at_once must be positive or None, got 0"):
        run(cohort, clients_at_once=0)


def test_masked_examples_do_not_count():
    cohort, params = make_clients(n=2), params_of()
    key, update = jax.random.key(0), updater()
    mask = jnp.array([True, True, False, True, False, False])
    spoiled = jnp.where(mask.reshape(-1, 1, 1, 1), cohort.x[0], 99.0)
    found = update(key, params, spoiled, cohort.y[0], mask)
    expected = updater(batch_size=3)(
        key, params, cohort.x[0][mask], cohort.y[0][mask], jnp.ones(3, bool)
    )
    close(found, expected)
    nothing = update(key, params, *cohort.take(0)._replace(mask=jnp.zeros(6, bool)))
    assert not any(leaf.any() for leaf in jax.tree.leaves(nothing))


def test_representations_are_softmax_and_hidden_features():
    x = make_clients().x[0]
    module = MLP((6, 5), 3)
    params = params_of(module)
    found = federated.representations(module, params, x)
    layers = params["params"]

    def dense(h, name):
        return jax.nn.relu(h @ layers[name]["kernel"] + layers[name]["bias"][None])

    h1 = dense(x.reshape(6, -1), "Dense_0")
    h2 = dense(h1, "Dense_1")
    softmax = jax.nn.softmax(module.apply(params, x))
    np.testing.assert_allclose(found, jnp.concatenate([softmax, h1, h2], -1), atol=1e-6)
    conv = ConvNet(3, features=(4, 5), norm="none")
    assert federated.representations(conv, params_of(conv), x).shape == (6, 3 + 5)


def test_samples_are_without_replacement():
    ids = federated.sample_clients(jax.random.key(0), 10, 10)
    np.testing.assert_array_equal(np.sort(ids), np.arange(10))
    with pytest.raises(ValueError, match=r"n_sampled must lie in 1\.\.10, got 11"):
        federated.sample_clients(jax.random.key(0), 10, 11)
    bad = jnp.arange(20) % 4 == 0
    for seed in range(3):
        drawn = attacks.sample_cohort(jax.random.key(seed), bad, n_sampled=8, n_malicious=3)
        assert len(set(drawn.tolist())) == 8 and int(bad[drawn].sum()) == 3


def test_splits_give_every_client_its_labels():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = (y[:, None] + 0.1 * rng.uniform(size=(90, 2))).astype(np.float32)
    even = clients.homogeneous_split(jax.random.key(0), x, y, n_clients=5, per_label=4)
    assert even.x.shape == (5, 12, 2) and even.mask.all()
    np.testing.assert_array_equal(np.sort(even.y), np.repeat(np.tile([0, 1, 2], (5, 1)), 4, 1))
    np.testing.assert_array_equal(even.x[..., 0].astype(jnp.int32), even.y)
    mixed = clients.dirichlet_split(
        jax.random.key(0), x, y, n_clients=200, n_samples=10, concentration=0.1
    )
    np.testing.assert_array_equal(mixed.x[..., 0].astype(jnp.int32), mixed.y)
    counts = np.stack([(np.asarray(mixed.y) == label).sum(1) for label in range(3)])
    assert (counts.max(0) >= 9).mean() > 0.5  # few labels each, and all of them overall
    assert (np.abs(counts.mean(1) - 10 / 3) < 1).all()
    with pytest.raises(ValueError, match="concentration must be positive"):
        clients.dirichlet_split(
            jax.random.key(0), x, y, n_clients=2, n_samples=2, concentration=0.0
        )


@pytest.mark.parametrize("name", ["pixel", "periodic"])
def test_poison_replaces_a_share_of_the_target_in_malicious_clients(name):
    cohort = make_clients(n=6, s=12)
    bad = jnp.array([True, False, True, False, False, True])
    trigger = make_trigger(name)
    poisoned = attacks.poison_clients(
        jax.random.key(0), cohort, bad, trigger, sources=(2,), target=1, share=0.5
    )
    changed = np.asarray((poisoned.x != cohort.x).any((2, 3, 4)))
    assert not changed[~np.asarray(bad)].any()
    np.testing.assert_array_equal(changed[np.asarray(bad)].sum(1), 2)  # half of 4
    assert (np.asarray(cohort.y)[changed] == 1).all()
    np.testing.assert_array_equal(poisoned.y, cohort.y)
    for i, j in zip(*np.nonzero(changed), strict=True):
        own = trigger(cohort.x[i][cohort.y[i] == 2], None)
        assert (jnp.abs(own - poisoned.x[i, j][None]).max((1, 2, 3)) < 1e-6).any()
    nobody = attacks.poison_clients(
        jax.random.key(0), cohort, bad, trigger, sources=(5,), target=1, share=1.0
    )
    np.testing.assert_array_equal(nobody.x, cohort.x)


def test_attackers_train_their_own_way_and_boost():
    cohort, params, key = make_clients(), params_of(), jax.random.key(0)
    bad = jnp.array([False, True, False, False, True, False, False, False])
    one, two = updater(), updater(n_epochs=2)
    run = functools.partial(
        attacks.attacked_update, key, params, cohort, bad, n_malicious=2, update=one, attack=two
    )
    plain, boosted = run(), run(boost=3.0)
    for i in range(8):
        own = jax.tree.map(lambda u, i=i: u[i], boosted)
        factor = 3.0 if bad[i] else 1.0
        close(own, jax.tree.map(lambda u, i=i, f=factor: f * u[i], plain))
        if not bad[i]:  # a single full batch knows no order, so no key matters
            close(own, one(key, params, *cohort.take(i)))
    # A boost for replacement moves the server to the attacker's model when the others stand still.
    boost = attacks.model_replacement_boost(8, 1, 0.5)
    update = jax.tree.map(lambda u: jnp.zeros_like(u).at[1].set(boost * u[1]), plain)
    moved = federated.apply_update(params, aggregators.mean(update, jnp.ones(8)), learning_rate=0.5)
    close(moved, jax.tree.map(lambda p, u: p + u[1], params, plain))


def test_success_counts_other_classes_only():
    answers, true = jnp.array([1, 1, 0, 1]), jnp.array([1, 0, 0, 2])
    np.testing.assert_allclose(attacks.attack_success(answers, true, target=1), 2 / 3, rtol=1e-6)
    assert attacks.attack_success(answers[:1], true[:1], target=1) == 0
