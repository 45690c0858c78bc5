"""Pre-activation networks: a block against numpy, published sizes, and the start without a norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import nn
from jaxml.core.tree import to_paths

RNG = np.random.default_rng(0)
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
}


def _count(model, *shape):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def _random(shapes):
    return jax.tree.map(lambda s: RNG.normal(size=s.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(("depth", "widening"), [(16, 4), (28, 10), (34, 5)])
def test_wide_resnets_have_the_parameters_of_the_closed_form(depth, widening):
    n = (depth - 4) // 6
    count, c = 9 * 3 * 16, 16
    for width in (16 * widening, 32 * widening, 64 * widening):
        count += c * width  # the projection
        count += 9 * c * width + (2 * n - 1) * 9 * width * width
        count += 2 * c + (2 * n - 1) * 2 * width  # norms stand before convolutions
        c = width
    count += 2 * c + c * 10 + 10
    model = nn.build(f"wide_resnet{depth}", width=widening, n_classes=10, norm="batch")
    assert _count(model, 1, 32, 32, 3) == count
    if (depth, widening) == (28, 10):
        assert count == 36_479_194  # published as 36.5M


def test_resnet32_preact_has_the_parameters_of_a_resnet32_without_projections():
    model = nn.build("resnet32_preact", width=1, n_classes=10, norm="batch")
    assert _count(model, 1, 32, 32, 3) == 464_154  # published as 0.46M


def _conv(x, kernel, bias, stride):
    # SAME: of the padding an even kernel or stride leaves uneven, the larger half comes last.
    side = kernel.shape[0]
    out = -(-x.shape[1] // stride)
    total = max(0, (out - 1) * stride + side - x.shape[1])
    pad = (total // 2, total - total // 2)
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel) + bias


@pytest.mark.parametrize(
    ("shortcut", "activation", "stride", "features"),
    [
        ("projection", "relu", 2, 6),
        ("projection", "leaky_relu", 1, 3),
        ("pad", "leaky_relu", 2, 6),
        ("pad", "relu", 1, 4),
    ],
)
def test_a_block_is_its_formula_in_numpy(shortcut, activation, stride, features):
    block = nn.PreactBlock(
        features, (stride, stride), shortcut, norm="none", activation=nn.ACTIVATIONS[activation]
    )
    x = RNG.normal(size=(2, 4, 4, 3)).astype(np.float32)
    variables = _random(jax.eval_shape(block.init, jax.random.key(0), x))
    p, act = variables["params"], ACTIVATIONS[activation]

    y = act(x.astype(np.float64))
    if (stride, features) == (1, 3):
        beside = x
        assert set(p) == {"Conv_0", "Conv_1"}
    elif shortcut == "projection":
        beside = _conv(y, **p["shortcut"], stride=stride)
    else:
        beside = x.reshape(2, 4 // stride, stride, 4 // stride, stride, 3).mean((2, 4))
        left = (features - 3) // 2
        beside = np.pad(beside, ((0, 0),) * 3 + ((left, features - 3 - left),))
    y = act(_conv(y, **p["Conv_0"], stride=stride))
    expected = beside + _conv(y, **p["Conv_1"], stride=1)
    for apply in (block.apply, jax.jit(block.apply)):
        np.testing.assert_allclose(apply(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_a_padded_shortcut_takes_odd_sides():
    block = nn.PreactBlock(2, (2, 2), "pad", norm="none")
    x = np.ones((1, 5, 3, 1), np.float32)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
    expected = np.concatenate([np.ones((1, 3, 2, 1)), np.zeros((1, 3, 2, 1))], axis=-1)
    np.testing.assert_array_equal(jax.jit(block.apply)(zeros, x), expected)


def test_without_a_norm_the_signal_neither_dies_nor_explodes():
    n_blocks = 32
    block = nn.PreactBlock(32, norm="none", gain=1 / n_blocks)
    run = jax.jit(block.init_with_output)
    x = start = RNG.normal(size=(2, 8, 8, 32)).astype(np.float32)
    for key in jax.random.split(jax.random.key(0), n_blocks):
        x, _ = run(key, x)
    # (1 + 1/n)^n < e, where blocks of gain 1 make it 2^n; the zeros around an image cost a little.
    assert 1.3 < np.mean(np.square(x)) / np.mean(np.square(start)) < 3.5


@pytest.mark.parametrize(("norm", "factor"), [("none", 1 / 2), ("layer", 1.0)])
def test_only_without_a_norm_do_the_blocks_start_smaller(norm, factor):
    model = nn.PreactResNet(1, (32,), (2,), norm=norm)
    variables = jax.jit(model.init)(jax.random.key(0), np.ones((1, 4, 4, 1), np.float32))
    for block in ("PreactBlock_0", "PreactBlock_1"):
        first, last = (
            np.var(variables["params"][block][name]["kernel"]) for name in ("Conv_0", "Conv_1")
        )
        np.testing.assert_allclose(first, 2 / (9 * 32), rtol=0.1)
        np.testing.assert_allclose(last / first, factor, rtol=0.1)


def test_one_output_depends_on_every_parameter():
    model = nn.PreactResNet(1, (4, 6), (1, 1), stem=3, norm="none")
    x = RNG.normal(size=(3, 4, 4, 2)).astype(np.float32)
    variables = _random(jax.eval_shape(model.init, jax.random.key(0), x))
    grads = jax.jit(jax.grad(lambda variables: model.apply(variables, x).sum()))(variables)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_only_training_mode_touches_batch_statistics():
    model = nn.PreactResNet(3, (4,), (1,), shortcut="pad", norm="batch")
    x = 1.0 + RNG.normal(size=(4, 4, 4, 2)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    apply = jax.jit(lambda train: model.apply(variables, x, train=train, mutable=["batch_stats"]),
                    static_argnums=0)  # fmt: skip
    (trained, updated), (evaluated, kept) = apply(True), apply(False)
    assert not np.allclose(trained, evaluated)
    before, after = to_paths(variables["batch_stats"]), to_paths(updated["batch_stats"])
    assert all(not np.array_equal(before[path], after[path]) for path in before)
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.PreactResNet(3, (4, 4), (1,)), "differ in length"),
        (nn.PreactResNet(3, (4,), (1,), shortcut="A"), "shortcut must be one of .*'A'"),
        (nn.PreactResNet(3, (4, 2), (1, 1), shortcut="pad"), "go from 4 to 2 channels"),
    ],
)
def test_bad_widths_and_shortcuts_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        _count(model, 1, 8, 8, 1)


@pytest.mark.parametrize("depth", [4, 32, 0])
def test_a_depth_that_is_not_6n_plus_4_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6 n \+ 4, .*got {depth}"):
        nn.wide_resnet(depth, n_classes=10)
