"""Joined heads and linear probes, for networks that tell apart different classes."""

import jax
import numpy as np
import pytest

from jaxml.data import load
from jaxml.merging import (
    derive_permutation_spec,
    join_heads,
    layer_inputs,
    linear_probe,
    pleas_merge,
)
from jaxml.nn import MLP, with_widths
from jaxml.train import evaluate, fit, make_optimizer

from .helpers import assert_trees_equal, flat, to_numpy
from .merges import draw, pair


def two_heads():
    """(model, A with 3 classes, B with 2 classes, inputs)."""
    x = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    models = [MLP((6,), n) for n in (3, 2)]
    shapes = [jax.eval_shape(m.init, jax.random.key(0), x) for m in models]
    return models, [draw(s, shape) for s, shape in enumerate(shapes)], x


def test_joined_heads_keep_each_network_in_its_own_columns():
    (model_a, model_b), (a, b), x = two_heads()
    before = jax.tree.map(np.copy, (a, b))
    wide_a, wide_b = join_heads(a, b, "Dense_1")
    wide = MLP((6,), 5).apply
    of_a, of_b = np.asarray(wide(wide_a, x)), np.asarray(wide(wide_b, x))
    np.testing.assert_array_equal(of_a[:, :3], model_a.apply(a, x))
    np.testing.assert_array_equal(of_b[:, 3:], model_b.apply(b, x))
    assert (of_a[:, 3:] == 0).all() and (of_b[:, :3] == 0).all()
    assert_trees_equal((a, b), before)


def test_all_separate_keeps_half_the_logits_of_each():
    (model_a, model_b), sources, x = two_heads()
    a, b = join_heads(*sources, "Dense_1")
    model = MLP((6,), 5)
    spec = derive_permutation_spec(model.apply, a, x)
    found = pleas_merge(jax.random.key(0), spec, model.apply, a, b, [x], budget=2.0, solver="none")
    out = np.asarray(with_widths(model, found.variables).apply(found.variables, x))
    np.testing.assert_allclose(2 * out[:, :3], model_a.apply(sources[0], x), atol=1e-5)
    np.testing.assert_allclose(2 * out[:, 3:], model_b.apply(sources[1], x), atol=1e-5)


def test_a_head_without_a_bias():
    a = {"params": {"head": {"kernel": np.ones((4, 2), np.float32)}}}
    b = {"params": {"head": {"kernel": np.ones((4, 3), np.float32)}}}
    wide_a, wide_b = join_heads(a, b, "head")
    np.testing.assert_array_equal(
        wide_a["params"]["head"]["kernel"] + wide_b["params"]["head"]["kernel"], np.ones((4, 5))
    )


def test_layer_inputs_are_the_last_features():
    p = pair("mlp")
    found = layer_inputs(p.apply, p.a, [p.x[:4], p.x[4:]], "Dense_2")
    h = p.x
    for i in range(2):
        layer = p.a["params"][f"Dense_{i}"]
        h = np.maximum(h @ layer["kernel"] + layer["bias"], 0)
    np.testing.assert_allclose(found, h, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer_inputs(p.apply, p.a, iter([p.x]), "Dense_0"), p.x)


def test_a_probe_learns_what_is_linear():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 6)).astype(np.float32)
    y = (features[:, :3]).argmax(1).astype(np.int32)
    found = linear_probe(jax.random.key(0), features, y, n_classes=3, n_epochs=100, batch_size=20)
    metrics = evaluate(MLP((), 3).apply, found.variables, features, y)
    assert metrics.accuracy > 0.9
    assert {p: v.shape for p, v in flat(found.variables).items()} == {
        "params/Dense_0/kernel": (6, 3),
        "params/Dense_0/bias": (3,),
    }


def test_bad_input_is_named():
    _, (a, b), x = two_heads()
    with pytest.raises(ValueError, match="head 'Dense_7': a has no 'params/Dense_7/kernel'"):
        join_heads(a, b, "Dense_7")
    p = pair("mlp")
    with pytest.raises(ValueError, match="no dense or convolution layer 'Conv_0'"):
        layer_inputs(p.apply, p.a, [p.x], "Conv_0")
    with pytest.raises(ValueError, match="batches is empty: layer 'Dense_0'"):
        layer_inputs(p.apply, p.a, [], "Dense_0")
    with pytest.raises(ValueError, match=r"batch_size must lie in .*, got 64"):
        linear_probe(jax.random.key(0), x, np.zeros(9, np.int32), n_classes=2)


def test_probe_on_the_merged_features_beats_each_source_on_the_other_classes():
    # A knows the digits 0-4, B 5-9; features of the merged network serve both.
    data = load("digits")
    model = MLP((24, 16), 5)
    n_epochs = 30
    optimizer = make_optimizer("adam", learning_rate=1e-2, n_steps=n_epochs * 10, schedule="cosine")
    sources = []
    for seed, low in enumerate((0, 5)):
        mine = (data.train_y // 5) * 5 == low
        state = fit(
            jax.random.key(seed), model,
            optimizer,
            data.train_x[mine][:640], data.train_y[mine][:640] - low,
            n_epochs=n_epochs, batch_size=64, epochs_per_call=n_epochs,
        )  # fmt: skip
        sources.append(to_numpy(state.variables))
    a, b = sources
    x = data.train_x[:640]
    spec = derive_permutation_spec(model.apply, a, x[:2])
    merged = pleas_merge(jax.random.key(0), spec, model.apply, a, b, [x]).variables
    accuracy = {}
    for name, variables in (("a", a), ("b", b), ("merged", merged)):
        for low in (0, 5):
            train, test = (
                (xs[(ys // 5) * 5 == low], ys[(ys // 5) * 5 == low] - low)
                for xs, ys in ((data.train_x, data.train_y), (data.test_x, data.test_y))
            )
            train, test = (
                (layer_inputs(model.apply, variables, [x], "Dense_2"), y) for x, y in (train, test)
            )
            probe = linear_probe(
                jax.random.key(3), train[0][:640], train[1][:640], n_classes=5, n_epochs=30
            )
            accuracy[name, low] = float(evaluate(MLP((), 5).apply, probe.variables, *test).accuracy)
    assert accuracy["merged", 5] > accuracy["a", 5] and accuracy["merged", 0] > accuracy["b", 0]
