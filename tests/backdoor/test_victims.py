"""Retraining, forgetting events and detection, against one network at a time and by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jaxml import nn, ntk, train
from jaxml.backdoor import detection, forgetting, victims

MODEL = nn.MLP((6,), 1)
SGD = optax.sgd(0.05, momentum=0.9)
N, M, SHAPE = 20, 2, (2, 2, 1)
RNG = np.random.default_rng(0)
Y = np.where(np.arange(N) % 2, 1.0, -1.0).astype(np.float32)
X = (RNG.normal(size=(N, *SHAPE)) + Y[:, None, None, None]).astype(np.float32)
POISONS = RNG.normal(size=(2, 3, M, *SHAPE)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 3)
OPTIONS = {"n_epochs": 4, "batch_size": 8}


def test_every_victim_is_what_it_would_be_alone_however_many_train_together():
    done = []
    together, few = (
        victims.retrain(KEYS, MODEL, SGD, X, Y, POISONS, models_at_once=k, callback=c, **OPTIONS)
        for k, c in ((64, None), (4, done.append))
    )
    assert done == [4, 6]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, few)
    labels = np.concatenate([Y, np.ones(M, np.float32)])
    for k, s in ((0, 2), (1, 0)):
        x = np.concatenate([X, POISONS[k, s]])
        alone = train.fit(KEYS[s], MODEL, SGD, x, labels, loss=train.squared_error, **OPTIONS)
        jax.tree.map(
            lambda a, b, k=k, s=s: np.testing.assert_allclose(a[k, s], b, atol=1e-5),
            together, alone.variables,
        )  # fmt: skip


def test_outcomes_are_fractions_of_signs():
    trained = victims.retrain(KEYS, MODEL, SGD, X, Y, POISONS, **OPTIONS)
    found = victims.measure(MODEL.apply, trained, X, Y, X[Y < 0], POISONS)
    for k, s in itertools.product(range(2), range(3)):
        one = jax.tree.map(lambda leaf, k=k, s=s: leaf[k, s], trained)
        f, a, p = (np.asarray(MODEL.apply(one, x))[:, 0] for x in (X, X[Y < 0], POISONS[k, s]))
        expected = (
            np.mean((f > 0) == (Y > 0)), np.mean(a > 0), np.mean(p > 0),
            np.mean(np.minimum(a - 1, 0) ** 2),
        )  # fmt: skip
        np.testing.assert_allclose([field[k, s] for field in found], expected, rtol=1e-5)


def test_without_poisons_training_is_clean_training():
    nothing = np.zeros((1, 3, 0, *SHAPE), np.float32)
    trained = victims.retrain(KEYS, MODEL, SGD, X, Y, nothing, **OPTIONS)
    clean = train.fit(KEYS, MODEL, SGD, X, Y, loss=train.squared_error, **OPTIONS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-5), trained, clean.variables
    )
    assert victims.measure(MODEL.apply, trained, X, Y, X, nothing).poisons_fitted.min() == 1
    with pytest.raises(ValueError, match="keys must be 3 typed keys"):
        victims.retrain(KEYS[:2], MODEL, SGD, X, Y, nothing, **OPTIONS)


def test_forgetting_events_are_counted_by_hand():
    right = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]], bool)
    np.testing.assert_array_equal(forgetting.forgetting_events(right), [2, 1, 0])


def test_the_pool_holds_different_candidates_and_repeats():
    options = {"n_epochs": 3, "batch_size": 8, "n_rounds": 3}
    pools = [
        forgetting.most_forgotten(jax.random.key(i), MODEL, SGD, X, Y, X, 5, **options)
        for i in (0, 0, 1)
    ]
    assert all(len(set(pool.tolist())) == 5 and pool.dtype == np.int32 for pool in pools)
    np.testing.assert_array_equal(pools[0], pools[1])
    assert set(pools[0].tolist()) != set(pools[2].tolist())
    everything = forgetting.most_forgotten(jax.random.key(0), MODEL, SGD, X, Y, X, N, **options)
    assert sorted(everything) == list(range(N))
    with pytest.raises(ValueError, match=r"n_poisons must lie in 1\.\.20.*got 21"):
        forgetting.most_forgotten(jax.random.key(0), MODEL, SGD, X, Y, X, 21, **options)
    with pytest.raises(ValueError, match="n_rounds must be positive"):
        bad = options | {"n_rounds": 0}
        forgetting.most_forgotten(jax.random.key(0), MODEL, SGD, X, Y, X, 2, **bad)


# Detection.


def test_features_are_what_the_head_is_given():
    for model in (MODEL, nn.ConvNet(1, features=(3, 4), norm="none")):
        variables = model.init(jax.random.key(0), X)
        head = list(variables["params"].values())[-1]
        assert set(head) == {"kernel", "bias"}
        seen = jax.jit(lambda v, x, model=model: detection.features(model, v, x))(variables, X)
        assert seen.shape == (N, head["kernel"].shape[0])
        outputs = np.asarray(seen) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        np.testing.assert_allclose(outputs, model.apply(variables, X), atol=1e-5)
    with pytest.raises(ValueError, match=r"Conv has no nn\.Dense layer"):
        conv = linen.Conv(1, (1, 1))
        detection.features(conv, conv.init(jax.random.key(0), X), X)


def test_scores_are_those_of_numpy():
    features = RNG.normal(size=(15, 4))
    _, vectors = np.linalg.eigh(np.cov(features.T))
    expected = ((features - features.mean(0)) @ vectors[:, -1]) ** 2
    scores = jax.jit(detection.spectral_scores)(jnp.asarray(features, jnp.float32))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    params = MODEL.init(jax.random.key(0), X)
    norms = ntk.ntk_diagonal(MODEL.apply, params, X, batch_size=6)
    gradients = jax.vmap(lambda x: jax.grad(lambda p: MODEL.apply(p, x[None])[0, 0])(params))(X)
    squares = sum(np.square(g).reshape(N, -1).sum(1) for g in jax.tree.leaves(gradients))
    np.testing.assert_allclose(norms, squares, rtol=1e-5)


def test_rates_are_counted_over_pairs():
    scores = np.array([5.0, 4.0, 3.0, 3.0, 1.0, 0.0])
    poisoned = np.array([1, 0, 1, 0, 0, 0], bool)
    above = [float(p > c) + 0.5 * (p == c) for p in scores[poisoned] for c in scores[~poisoned]]
    area, recall = detection.detection_rates(scores, poisoned)
    assert area == pytest.approx(np.mean(above))
    assert recall == 1.0  # three are removed: both poisons are among them
    assert detection.detection_rates(scores, poisoned, removed=0.5)[1] == 0.5
    with pytest.raises(ValueError, match="both kinds, got 0 of 6"):
        detection.detection_rates(scores, np.zeros(6, bool))
    with pytest.raises(ValueError, match="scores must be finite, got 1"):
        detection.detection_rates(np.where(scores == 5, np.nan, scores), poisoned)
