"""Aggregation rules against numpy, and what weights and outliers do to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.backdoor import aggregators as A


@pytest.fixture(scope="module")
def updates():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(7, 3, 2)), "b": rng.normal(size=(7, 4))}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def rows(updates):
    return np.concatenate([np.asarray(u).reshape(len(u), -1) for u in updates.values()], axis=1)


def flat(update):
    return np.concatenate([np.asarray(u).ravel() for u in update.values()])


RULES = {
    "mean": A.mean,
    "clipped_noisy_mean": lambda u, w: A.clipped_noisy_mean(
        jax.random.key(0), u, w, max_norm=100.0, noise=0.0
    ),
    "geometric_median": A.geometric_median,
    "krum": lambda u, w: A.krum(u, w, n_malicious=2),
    "multi_krum": lambda u, w: A.multi_krum(u, w, n_malicious=2),
    "median": A.median,
    "trimmed_mean": lambda u, w: A.trimmed_mean(u, w, n_trimmed=2),
}


@pytest.mark.parametrize("rule", RULES)
def test_weightless_clients_and_order_do_not_matter(updates, rule):
    fn = jax.jit(RULES[rule])
    weights = jnp.ones(7)
    order = jnp.array([3, 1, 0, 6, 2, 5, 4])
    expected = flat(fn(updates, weights))
    mixed = jax.tree.map(lambda u: u[order], updates)
    np.testing.assert_allclose(flat(fn(mixed, weights)), expected, atol=1e-5)
    for value in (100.0, jnp.nan):
        padding = jax.tree.map(lambda u, v=value: jnp.full_like(u[:2], v), updates)
        padded = jax.tree.map(lambda u, p: jnp.concatenate([u, p]), updates, padding)
        found = fn(padded, jnp.array([1.0] * 7 + [0.0] * 2))
        np.testing.assert_allclose(flat(found), expected, atol=1e-5)
    assert not flat(fn(updates, jnp.zeros(7))).any()
    same = jax.tree.map(lambda u: jnp.broadcast_to(u[:1], u.shape), updates)
    np.testing.assert_allclose(flat(fn(same, weights)), rows(updates)[0], atol=1e-6)


def test_rules_equal_numpy(updates):
    u, ones = rows(updates), jnp.ones(7)
    weights = np.arange(1.0, 8.0, dtype=np.float32)
    np.testing.assert_allclose(
        flat(A.mean(updates, weights)), np.average(u, axis=0, weights=weights), atol=1e-6
    )
    np.testing.assert_allclose(flat(A.median(updates, ones)), np.median(u, 0), atol=1e-6)
    trimmed = np.sort(u, axis=0)[2:-2].mean(0)
    np.testing.assert_allclose(flat(RULES["trimmed_mean"](updates, ones)), trimmed, atol=1e-6)
    distances = np.square(u[:, None] - u[None]).sum(-1)
    scores = np.sort(distances, axis=1)[:, 1 : 1 + 7 - 2 - 2].sum(1)
    np.testing.assert_allclose(A.krum_scores(updates, ones, n_malicious=2), scores, rtol=1e-5)
    np.testing.assert_allclose(flat(RULES["krum"](updates, ones)), u[scores.argmin()], atol=1e-6)
    best = u[np.argsort(scores)[:5]].mean(0)
    np.testing.assert_allclose(flat(RULES["multi_krum"](updates, ones)), best, atol=1e-6)
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), updates)
    np.testing.assert_allclose(flat(A.krum(same, ones, n_malicious=0)), rows(updates)[0], atol=1e-6)


def test_weiszfeld_descends_to_the_geometric_median(updates):
    dirty = jax.tree.map(lambda u: u.at[0].add(50.0), updates)
    u = rows(dirty)

    def objective(v):
        return np.linalg.norm(u - v, axis=1).sum()

    steps = jax.jit(lambda updates, n: A.geometric_median(updates, jnp.ones(7), n_steps=n))
    values = [objective(flat(steps(dirty, n))) for n in range(0, 12)]
    assert (np.diff(values) <= 1e-3).all() and values[-1] < 0.9 * values[0]
    v = flat(steps(dirty, 60))
    pull = ((u - v) / np.linalg.norm(u - v, axis=1)[:, None]).sum(0)
    assert np.linalg.norm(pull) < 1e-2  # unit vectors balance at the optimum


def test_clipping_bounds_a_client_and_noise_has_its_spread(updates):
    dirty = jax.tree.map(lambda u: u.at[0].multiply(1e4), updates)
    key = jax.random.key(0)
    found = A.clipped_noisy_mean(key, dirty, jnp.ones(7), max_norm=0.5, noise=0.0)
    u = rows(dirty)
    clipped = u * np.minimum(1, 0.5 / np.linalg.norm(u, axis=1))[:, None]
    np.testing.assert_allclose(flat(found), clipped.mean(0), atol=1e-6)
    many = {"a": jnp.zeros((2, 40000))}
    noisy = A.clipped_noisy_mean(key, many, jnp.ones(2), max_norm=1.0, noise=0.3)["a"]
    assert abs(float(noisy.std()) - 0.3) < 0.01 and abs(float(noisy.mean())) < 0.01


def test_bad_counts_are_one_sentence(updates):
    with pytest.raises(ValueError, match="n_trimmed must leave some of 7, got 4"):
        A.trimmed_mean(updates, jnp.ones(7), n_trimmed=4)
    with pytest.raises(ValueError, match=r"n_selected must lie in 1\.\.7, got 0"):
        A.multi_krum(updates, jnp.ones(7), n_malicious=7)
