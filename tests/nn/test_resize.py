"""Models rebuilt at the widths of a set of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import nn
from jaxml.core.tree import to_paths

PAIRS = [
    (nn.MLP((4, 4), 3), nn.MLP((6, 5), 3)),
    (nn.ConvNet(3, features=(4, 4), norm="batch"), nn.ConvNet(3, features=(5, 7), norm="batch")),
    (
        nn.ResNet(3, widths=(4, 6), blocks=(1, 2), norm="batch", conv="patches"),
        nn.ResNet(3, (5, 7), (1, 2), inner=(6, 8, 9), norm="batch", conv="patches"),
    ),
    (
        nn.ResNet(3, widths=(4, 4), blocks=(2, 1), inner=(2, 3, 4)),
        nn.ResNet(3, widths=(5, 5), blocks=(2, 1), inner=(6, 8, 9)),
    ),
    (
        nn.ResNet(3, (4, 6), (1, 2), bottleneck=True, inner=(1,) * 6, stem=2),
        nn.ResNet(3, (5, 7), (1, 2), bottleneck=True, inner=(1, 2, 3, 4, 5, 6), stem=3),
    ),
    (
        nn.VGG(3, (4, 4, 6), blocks=(1, 2), dense=(8, 8)),
        nn.VGG(3, (5, 6, 7), blocks=(1, 2), dense=(9, 10)),
    ),
    (nn.VGG(3, (4,), blocks=(1,), dense=()), nn.VGG(3, (5,), blocks=(1,), dense=())),
]


@pytest.mark.parametrize(("model", "other"), PAIRS)
def test_the_rebuilt_model_is_the_one_that_made_the_variables(model, other):
    x = np.ones((2, 4, 4, 1), np.float32)
    shapes = jax.eval_shape(other.init, jax.random.key(0), x)
    resized = nn.with_widths(model, shapes)
    assert resized == other
    again = jax.eval_shape(resized.init, jax.random.key(0), x)
    assert {p: v.shape for p, v in to_paths(again).items()} == {
        p: v.shape for p, v in to_paths(shapes).items()
    }
    assert jax.eval_shape(resized.apply, shapes, x).shape == (2, 3)


def test_its_own_variables_change_nothing():
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    for _, model in PAIRS:
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        assert nn.with_widths(model, shapes) == model
    # Widths inside the blocks become explicit, the function stays.
    model = nn.ResNet(3, widths=(4,), blocks=(2,))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    resized = nn.with_widths(model, variables)
    assert resized.inner == (4, 4)
    np.testing.assert_array_equal(
        jax.jit(resized.apply)(variables, x), jax.jit(model.apply)(variables, x)
    )


def test_other_modules_are_refused():
    with pytest.raises(
        ValueError, match="with_widths knows MLP, ConvNet, ResNet and VGG, got Conv"
    ):
        nn.with_widths(nn.Conv(3), {"params": {}})


def test_a_shortcut_stays_where_merged_widths_coincide():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 1))
    narrow = nn.ResNet(3, widths=(8,), blocks=(1,), stem=4, norm="none")
    variables = narrow.init(jax.random.key(1), x)
    params = variables["params"]
    # Twice the stem, each unit with half of the weight onwards: the same function, width 8 = 8.
    double = {"kernel": jnp.tile(params["Conv_0"]["kernel"], (1, 1, 1, 2)),
              "bias": jnp.tile(params["Conv_0"]["bias"], 2)}  # fmt: skip
    block = dict(params["ResidualBlock_0"])
    for name in ("Conv_0", "shortcut"):
        kernel = jnp.tile(block[name]["kernel"], (1, 1, 2, 1)) / 2
        block[name] = {**block[name], "kernel": kernel}
    wide = {"params": {**params, "Conv_0": double, "ResidualBlock_0": block}}
    out = nn.with_widths(narrow, wide).apply(wide, x)
    np.testing.assert_allclose(out, narrow.apply(variables, x), rtol=1e-5, atol=1e-6)
