"""Users trained on given labels, how they are measured, and how a defender looks at the labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from sklearn.neighbors import NearestNeighbors

from jaxml.backdoor import flip_users, label_cleaning

from .flip_cases import Net

SGD = optax.sgd(0.1, momentum=0.9)


def data(n=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)).astype(np.float32), np.arange(n, dtype=np.int32) % 3


def train_users(x, labels):
    keys = jnp.stack([jax.random.key(5)] * len(labels))
    options = {"n_epochs": 3, "batch_size": 8}
    return flip_users.train_users(keys, Net(norm=False), SGD, x, jnp.asarray(labels), **options)


def test_equal_labels_give_equal_bits_and_removed_images_take_no_part():
    x, y = data()
    wrong = np.where(np.arange(24) == 7, (y + 1) % 3, y)
    removed = np.zeros((3, 24), bool)
    removed[2, 7] = True
    labels = flip_users.one_hot_labels(np.stack([y, y, wrong]), 3, removed=removed)
    first = train_users(x, labels).variables
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[1]), first)
    x[7] = 100.0  # does not matter to the third, does to the others
    again = train_users(x, labels).variables
    for leaf, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(leaf[2], other[2])
        assert (np.asarray(leaf[0]) != np.asarray(other[0])).any()


def test_rates_by_hand():
    # The "network" answers with the column that the image says.
    def apply(variables, x):
        return jax.nn.one_hot(x[:, 0].astype(int) + variables, 4)

    x, y = np.array([[0.0], [1], [1], [2], [2]]), np.array([0, 1, 2, 1, 1])
    triggered = np.array([[2.0], [2], [2], [0], [2]])
    of_source, shifted, all_to_one = (
        flip_users.attack_rates(
            apply, jnp.int32(shift), x, y, triggered, source=source, target=2, batch_size=2
        )
        for shift, source in ((0, 1), (1, 1), (0, -1))
    )
    np.testing.assert_allclose(of_source, (2 / 5, 2 / 3, 2 / 3))
    np.testing.assert_allclose(shifted, (1 / 5, 0, 1 / 3))
    np.testing.assert_allclose(all_to_one, (2 / 5, 3 / 4, 1 / 2))


def test_neighbours_are_those_of_scikit_learn():
    x, y = data(40)
    found = label_cleaning.knn_disagreement(jnp.asarray(x), jnp.asarray(y), k=5, batch_size=7)
    nearest = NearestNeighbors(n_neighbors=6).fit(x).kneighbors(x, return_distance=False)[:, 1:]
    np.testing.assert_allclose(found, (y[nearest] != y[:, None]).mean(1), atol=1e-6)


def test_losses_suspects_and_what_removing_them_comes_to():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    losses = label_cleaning.label_losses(jnp.asarray(logits), jnp.asarray(y))
    expected = -scipy.special.log_softmax(logits, axis=1)[np.arange(6), y]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    marked = label_cleaning.suspects(np.array([1.0, 3, 3, 0, 3, 2]), 2)
    np.testing.assert_array_equal(np.flatnonzero(marked), [1, 2])
    found = label_cleaning.removal(marked, np.arange(6) >= 2)
    assert found == (0.25, 0.5)
    assert np.isnan(label_cleaning.removal(marked, np.zeros(6, bool)).flips)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: flip_users.one_hot_labels(y[None], 2), r"labels must lie in 0..1, got 0..2"),
        (lambda x, y: train_users(x, np.ones((1, 24, 3), np.float32)), "must be distributions"),
        (lambda x, y: train_users(x, np.zeros((1, 23, 3), np.float32)), r"labels must be \(1, 24"),
        (lambda x, y: label_cleaning.knn_disagreement(x, y, k=24), r"k must lie in 1..23, got 24"),
        (lambda x, y: label_cleaning.suspects(x[:, 0], 25), r"n_removed must lie in 0..24"),
        (lambda x, y: label_cleaning.suspects(x[:, 0] * np.nan, 2), "scores must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*data())
