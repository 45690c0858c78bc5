"""ConvNeXt: a block against numpy, the published size, and images of any side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import nn

RNG = np.random.default_rng(0)


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _layer_norm(x, scale, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def _random(model, x):
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda s: RNG.normal(size=s.shape).astype(np.float32), shapes)


def test_the_tiny_one_has_the_published_size():
    model = nn.build("convnext", width=1, n_classes=1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 28_589_128


def test_a_block_is_its_formula_in_numpy():
    block = nn.ConvNeXtBlock(hidden=5)
    x = RNG.normal(size=(2, 4, 5, 3)).astype(np.float32)
    variables = _random(block, x)
    p = jax.tree.map(np.float64, variables["params"])

    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0))), (7, 7), axis=(1, 2)
    )
    y = np.einsum("nhwcij,ijc->nhwc", windows, p["Conv_0"]["kernel"][:, :, 0])
    y = _layer_norm(y + p["Conv_0"]["bias"], **p["LayerNorm_0"])
    y = _gelu(y @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    y = y @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    for apply in (block.apply, jax.jit(block.apply)):
        out = apply(variables, x)
        np.testing.assert_allclose(out, x + p["scale"] * y, rtol=1e-4, atol=1e-4)


def test_a_block_starts_almost_as_the_identity():
    block = nn.ConvNeXtBlock(hidden=5)
    x = RNG.normal(size=(2, 4, 4, 3)).astype(np.float32)
    out, variables = jax.jit(block.init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["scale"], np.full(3, 1e-6, np.float32))
    np.testing.assert_allclose(out, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("side", "patch", "sides"), [(32, 2, [16, 8]), (8, 4, [2, 1]), (5, 2, [3, 2])]
)
def test_stages_halve_what_the_patches_leave(side, patch, sides):
    model = nn.ConvNeXt(1, dims=(4, 6), depths=(1, 2), patch=patch)
    x = jnp.zeros((2, side, side, 3))
    logits, seen = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), x, capture_intermediates=True)
    )
    assert logits.shape == (2, 1)
    outputs = [seen["intermediates"][f"ConvNeXtBlock_{i}"]["__call__"][0].shape for i in (0, 1, 2)]
    assert outputs == [(2, sides[0], sides[0], 4), *[(2, sides[1], sides[1], 6)] * 2]


def test_one_output_depends_on_every_parameter_in_both_modes():
    model = nn.ConvNeXt(1, dims=(3, 4), depths=(1, 1), patch=2)
    x = RNG.normal(size=(2, 8, 8, 2)).astype(np.float32)
    variables = _random(model, x)

    @jax.jit
    def run(variables):
        def output(v, **mode):
            return model.apply(v, x, mutable=["batch_stats"], **mode)[0].sum()

        return jax.value_and_grad(output)(variables), output(variables, train=True)

    (evaluated, grads), trained = run(variables)
    np.testing.assert_allclose(evaluated, trained, rtol=1e-5)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_dims_and_depths_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"dims \(4, 6\) and depths \(1,\) differ in length"):
        nn.ConvNeXt(3, dims=(4, 6), depths=(1,)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
