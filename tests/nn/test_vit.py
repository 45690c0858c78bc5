"""The vision transformer: a block against numpy, the published size, and what order means to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxml import nn

from .test_convnext import _gelu, _layer_norm, _random

RNG = np.random.default_rng(0)
SMALL = nn.ViT(1, width=8, hidden=(6, 5), heads=2, patch=4)
X = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)


def _shapes(model, *shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))["params"]


def test_the_base_one_has_the_published_size():
    shapes = _shapes(nn.build("vit", width=1, n_classes=1000, patch=16), 1, 224, 224, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 86_567_656


def test_sizes_follow_the_image_and_the_factor():
    shapes = _shapes(nn.build("vit", width=0.25, depth=2, n_classes=10), 1, 32, 32, 3)
    assert shapes["position"].shape == (1, 65, 192)
    assert shapes["ViTBlock_1"]["Dense_0"]["kernel"].shape == (192, 768)
    assert "ViTBlock_2" not in shapes
    attention = shapes["ViTBlock_0"]["MultiHeadDotProductAttention_0"]
    assert attention["query"]["kernel"].shape == (192, 3, 64)
    assert _shapes(SMALL.clone(pool="mean"), 1, 8, 12, 3)["position"].shape == (1, 6, 8)


def test_a_block_is_its_formula_in_numpy():
    block = nn.ViTBlock(heads=2, hidden=5)
    x = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    variables = _random(block, x)
    p = jax.tree.map(np.float64, variables["params"])

    attention = p["MultiHeadDotProductAttention_0"]
    y = _layer_norm(x.astype(np.float64), **p["LayerNorm_0"])
    query, key, value = (
        np.einsum("ntd,dhe->nhte", y, attention[name]["kernel"])
        + attention[name]["bias"][None, :, None]
        for name in ("query", "key", "value")
    )
    weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(3), axis=-1)
    out = np.einsum("nhte,hed->ntd", weights @ value, attention["out"]["kernel"])
    z = x + out + attention["out"]["bias"]
    y = _layer_norm(z, **p["LayerNorm_1"])
    y = _gelu(y @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    expected = z + y @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    for apply in (block.apply, jax.jit(block.apply)):
        np.testing.assert_allclose(apply(variables, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_patches_moved_with_their_positions_change_nothing(pool):
    model = SMALL.clone(pool=pool)
    variables = _random(model, X)
    order = np.array([2, 0, 3, 1])
    patches = X.reshape(2, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(2, 4, 4, 4, 3)[:, order]
    moved = patches.reshape(2, 2, 2, 4, 4, 3).swapaxes(2, 3).reshape(X.shape)
    position = variables["params"]["position"]
    first = position[:, :-4]
    shifted = np.concatenate([first, position[:, -4:][:, order]], axis=1)
    other = {"params": {**variables["params"], "position": shifted}}
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(other, moved), apply(variables, X), rtol=1e-4, atol=1e-5)
    assert not np.allclose(apply(variables, moved), apply(variables, X), rtol=1e-2)


def test_one_output_depends_on_every_parameter_in_both_modes():
    variables = _random(SMALL, X)

    @jax.jit
    def run(variables):
        def output(v, **mode):
            return SMALL.apply(v, X, mutable=["batch_stats"], **mode)[0].sum()

        return jax.value_and_grad(output)(variables), output(variables, train=True)

    (evaluated, grads), trained = run(variables)
    np.testing.assert_allclose(evaluated, trained, rtol=1e-5)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        # One bias for all keys cancels in the softmax.
        path = jax.tree_util.keystr(path)
        assert np.abs(g).max() > 0 or ("'key'" in path and "'bias'" in path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "patch must divide 8 and 8, got 3"),
        ({"heads": 3}, "heads must divide the width 8, got 3"),
        ({"pool": "max"}, "pool must be one of .*'max'"),
    ],
)
def test_what_does_not_divide_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        _shapes(SMALL.clone(**options), 1, 8, 8, 3)
