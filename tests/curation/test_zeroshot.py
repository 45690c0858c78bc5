"""Zero-shot heads and metrics against scikit-learn and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from jaxml import curation

N, C = 200, 6


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 4, 5], N, p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.int32)
    logits = rng.normal(size=(N, C)).astype(np.float32)
    logits[np.arange(N), labels] += 1
    return logits, labels


def test_classification_metrics_are_those_of_scikit_learn(case):
    logits, labels = case
    predicted = logits.argmax(axis=1).astype(np.int32)
    present = np.unique(labels)
    wanted = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "top 3": metrics.top_k_accuracy_score(labels, logits, k=3, labels=range(C)),
        "recall": metrics.recall_score(labels, predicted, labels=present, average="macro"),
        "f1": metrics.f1_score(labels, predicted, labels=present, average="macro"),
    }

    def measure(logits, labels):
        return {
            "accuracy": curation.accuracy(logits, labels),
            "top 3": curation.accuracy(logits, labels, k=3),
            "recall": curation.mean_per_class_recall(logits, labels),
            "f1": curation.macro_f1(logits.argmax(axis=1), labels, n_classes=C),
        }

    for found in (measure(logits, labels), jax.jit(measure)(*case)):
        for name, value in wanted.items():
            assert float(found[name]) == pytest.approx(value, rel=1e-5), name
    assert float(curation.accuracy(logits, labels, k=99)) == 1


def test_the_worst_group_leaves_out_empty_groups_and_strangers(case):
    right = np.array([1, 0, 1, 1, 0, 0], np.float32)
    groups = np.array([0, 0, 2, 2, -1, -1])
    assert float(curation.worst_group(right, groups, n_groups=4)) == 0.5
    assert np.isnan(curation.worst_group(right, np.full(6, -1), n_groups=4))


def test_retrieval_counts_both_ways():
    rng = np.random.default_rng(1)
    image, text = rng.normal(size=(9, 4)), rng.normal(size=(18, 4))
    of = np.repeat(np.arange(9), 2)
    for k in (1, 3):
        found = curation.retrieval(image, text, of, k=k)
        z = image @ text.T
        by_text = [of[j] in np.argsort(-z[:, j])[:k] for j in range(18)]
        by_image = [i in of[np.argsort(-z[i])[:k]] for i in range(9)]
        assert float(found.image) == pytest.approx(np.mean(by_text))
        assert float(found.text) == pytest.approx(np.mean(by_image))


def test_jaccard_takes_as_many_as_belong():
    similarity = np.array([[0.9, 0.1, 0.8, 0.2], [0.1, 0.2, 0.3, 9.0]])
    relevant = np.array([[True, True, False, False], [False, True, True, False]])
    valid = np.array([[True] * 4, [True, True, True, False]])
    # {0, 2} against {0, 1}: 1/3; {2, 1} against {1, 2}: 1.
    assert float(curation.jaccard(similarity, relevant, valid)) == pytest.approx((1 / 3 + 1) / 2)


def test_a_head_is_the_mean_of_unit_vectors():
    table = np.random.default_rng(2).normal(size=(12, 5)).astype(np.float32)
    tokens = np.arange(12).reshape(3, 4, 1)

    def encode(t):
        return jnp.asarray(table)[t[:, 0]]

    head = curation.classifier(encode, tokens)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    mean = unit.reshape(3, 4, 5).mean(axis=1)
    np.testing.assert_allclose(head, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-5)
    again = jax.jit(lambda t: curation.classifier(encode, t))(tokens)
    np.testing.assert_allclose(head, again, rtol=1e-6)


def test_prompts_put_the_class_into_every_template():
    assert curation.prompts(["a {}.", "{}"], ["cat", "dog"]) == [
        ["a cat.", "cat"],
        ["a dog.", "dog"],
    ]
    with pytest.raises(ValueError, match="at least one entry"):
        curation.prompts([], ["cat"])
    with pytest.raises(ValueError, match=r"must have a \{\} for the class, got 'a'"):
        curation.prompts(["a"], ["cat"])
