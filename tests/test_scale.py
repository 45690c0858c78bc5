"""Each paper's heavy axis over four devices gives the numbers of one.

Of the others the test stands beside the module: NTBA's kernel (ntk/test_empirical,
backdoor/test_ntba), a round's clients (backdoor/test_federated), GCQ's candidates
(language/test_oracles), DataComp's batches, clusters and cuts (curation/test_clip_train,
test_contrastive, test_cluster, test_select), the rows of private regression
(privacy/test_private_ols), ZonoDual's images (launch/test_zonodual).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxml import merging, train
from jaxml.backdoor import flip_users
from jaxml.core.sharding import make_mesh
from jaxml.language import generate
from jaxml.merging.least_squares import accumulate_gram
from jaxml.nn import GPT, MLP

MODEL = MLP((7, 6), 3)
X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 24).astype(np.int32)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(4)


def rows(tree, mesh):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))


def close(found, expected, **tolerances):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerances}),
        found,
        expected,
    )


@pytest.fixture(scope="module")
def pair():
    init = jax.jit(lambda key: MODEL.init(key, X))
    return [init(jax.random.key(seed)) for seed in range(2)]


# Git Re-Basin.


def metrics(variables, x, y):
    return train.evaluate(MODEL.apply, variables, x, y, batch_size=24)


def test_points_of_a_line_are_shared_out(pair, mesh):
    # Seven points on four devices: one is computed twice and dropped.
    alone = merging.loss_barrier(metrics, *pair, X, Y, n=7, chunk=3)
    close(merging.loss_barrier(metrics, *pair, X, Y, n=7, chunk=3, mesh=mesh), alone)
    assert alone.lams.shape == (7,)


def test_activations_of_split_batches_give_the_same_matching(pair, mesh):
    spec = merging.derive_permutation_spec(MODEL.apply, pair[0], X)
    halves = [X[:12], X[12:]]
    match = functools.partial(merging.activation_matching, spec, MODEL.apply, *pair)
    alone, split = match(halves), match([rows(x, mesh) for x in halves])
    close(split.objective, alone.objective)
    jax.tree.map(np.testing.assert_array_equal, split.perms, alone.perms)


# PLeaS.


def test_layers_are_solved_from_split_batches(pair, mesh, monkeypatch):
    spec = merging.derive_permutation_spec(MODEL.apply, pair[0], X)
    perms = merging.identity_permutation(spec)
    distances = {name: np.arange(g.size) for name, g in spec.groups.items()}
    blocks = merging.select_blocks(spec, perms, distances, dict.fromkeys(spec.groups, 0.0))
    merged = merging.partial_merge(spec, *pair, blocks)
    solve = functools.partial(
        merging.permuted_least_squares, spec, MODEL.apply, *pair, blocks, merged, mode="paper"
    )
    alone = solve([X[:12], X[12:]])
    # Products as an accelerator forms them, on the devices.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    split = solve([rows(x, mesh) for x in (X[:12], X[12:])])
    close(split.variables, alone.variables, rtol=1e-4, atol=1e-5)
    z = rows(X, mesh)
    moments = accumulate_gram(None, z, z[:, :2])
    close(moments.gram, X.T @ X)


# FLIP.


def test_users_are_shared_out_with_their_labels(mesh):
    keys = jax.random.split(jax.random.key(2), 4)
    labels = np.stack([np.eye(3, dtype=np.float32)[(Y + i) % 3] for i in range(4)])
    users = functools.partial(
        flip_users.train_users, keys, MODEL, optax.sgd(0.1, momentum=0.9), X, labels,
        n_epochs=2, batch_size=8,
    )  # fmt: skip
    alone, shared = users(), users(mesh=mesh)
    close(shared, alone)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(shared))
    # They continue on another number of devices.
    resumed = users(state=users(mesh=mesh, n_epochs=1))
    close(resumed, alone)


# Extraction.


def test_generated_rows_are_shared_out(mesh):
    model = GPT(vocab_size=11, context=8, width=8, hidden=(16,), heads=2)
    variables = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 2), jnp.int32))
    keys = jax.random.split(jax.random.key(4), 10)
    prompts = np.arange(20).reshape(10, 2) % 11
    sample = functools.partial(
        generate, keys, model, variables, prompts, n_tokens=5, top_k=4, batch_size=8
    )
    np.testing.assert_array_equal(sample(mesh=mesh), sample())
