"""Which labels are flipped: margins, budgets, baselines, soft labels."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxml.backdoor import flip_selection as selection

Y = np.array([0, 1, 2, 0, 1, 2], np.int32)


def logits(runs=2, seed=0):
    return np.random.default_rng(seed).normal(size=(runs, len(Y), 3)).astype(np.float32)


def test_margins_by_hand():
    learnt = np.array([[[5.0, 1, 0], [1, 4, 6]], [[2.0, 3, 0], [9, 4, 3]]])
    margins, labels = selection.flip_margins(learnt, np.array([0, 1]))
    # Run by run: 1 - 5 and 3 - 2, so -4; 6 - 4 and 9 - 4, so 2. Means: (2, 0) and (5, 4.5).
    np.testing.assert_allclose(margins, [-4, 2])
    np.testing.assert_array_equal(labels, [1, 0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.lists(st.integers(0, 6), min_size=1))
def test_a_budget_is_met_exactly_by_wrong_labels_and_budgets_nest(seed, runs, budgets):
    ranking = selection.rank_margins(logits(runs, seed), Y)
    labels = selection.select_flips(ranking, Y, budgets)
    wrong = labels != Y
    np.testing.assert_array_equal(wrong.sum(1), budgets)
    for i, j in zip(np.argsort(budgets)[:-1], np.argsort(budgets)[1:], strict=True):
        assert (wrong[i] <= wrong[j]).all() and (labels[j][wrong[i]] == labels[i][wrong[i]]).all()
    assert labels.dtype == np.int32


def test_ties_go_to_the_smaller_index_and_budget_0_gives_the_true_labels():
    ranking = selection.rank_margins(np.zeros((1, 6, 3)), Y)
    np.testing.assert_array_equal(ranking.index, np.arange(6))
    np.testing.assert_array_equal(selection.select_flips(ranking, Y, (0,))[0], Y)


def test_random_flips_are_of_other_classes_or_of_the_source():
    key = jax.random.key(0)
    ranking = selection.rank_random(key, Y, target=2)
    assert sorted(ranking.index) == [0, 1, 3, 4] and (ranking.label == 2).all()
    assert sorted(selection.rank_random(key, Y, target=2, source=1).index) == [1, 4]


def test_inner_products_by_hand():
    x = np.array([[1.0, 0], [0, 1], [3, 3], [2, 0], [0, 3], [0, 0]])
    ranking = selection.rank_inner_product(x, x + np.array([1.0, 0.5]), Y, target=2)
    # Products 1, 0.5, 2 and 1.5; images 2 and 5 have the target's label.
    np.testing.assert_array_equal(ranking.index, [3, 4, 0, 1])


def test_soft_labels_are_distributions_and_alpha_1_gives_the_true_ones_to_the_bit():
    true = np.eye(3, dtype=np.float32)[Y]
    learnt = np.asarray(jax.nn.softmax(logits())).mean(0)
    np.testing.assert_array_equal(selection.soft_labels(logits(), Y, 1.0), true)
    np.testing.assert_allclose(selection.soft_labels(logits(), Y, 0.0), learnt, rtol=1e-5)
    half = selection.soft_labels(logits(), Y, 0.5)
    np.testing.assert_allclose(half, (true + learnt) / 2, rtol=1e-5)
    np.testing.assert_allclose(half.sum(1), 1, rtol=1e-6)
    assert half.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selection.select_flips(selection.rank_margins(logits(), Y), Y, (7,)),
         r"budgets must lie in 0..6, the number of candidates among 6 labels, got 7"),
        (lambda: selection.select_flips(selection.rank_random(jax.random.key(0), Y, target=2), Y,
                                        (5,)), r"budgets must lie in 0..4.*got 5"),
        (lambda: selection.rank_margins(logits(), Y + 1), r"labels must lie in 0..2, got 1..3"),
        (lambda: selection.rank_margins(logits()[0], Y), r"logits must be \[r, 6, c\]"),
        (lambda: selection.rank_margins(logits() * np.nan, Y), "logits must be finite"),
        (lambda: selection.soft_labels(logits(), Y, 1.5), r"alpha must lie in \[0, 1\], got 1.5"),
        (lambda: selection.rank_random(jax.random.key(0), Y, target=3), "must be classes 0..2"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
