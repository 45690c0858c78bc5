"""Patches against XLA's own, and layer descriptions against what the layers compute."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.core.tree import to_paths
from jaxml.merging.layers import LinearLayer, read_layers, watch_layers
from jaxml.nn import Conv

from .merges import MODELS, pair

PADDINGS = {1: ("SAME", "VALID", ((2, 1),)), 2: ("SAME", "VALID", ((0, 2), (1, 1)))}


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "dilation"),
    [
        ((9,), (3,), (1,), (1,)),
        ((10,), (4,), (3,), (2,)),
        ((7, 8), (3, 3), (1, 1), (1, 1)),
        ((7, 8), (3, 2), (2, 3), (1, 1)),
        ((9, 11), (2, 3), (1, 2), (3, 2)),
        ((5, 5), (1, 1), (2, 2), (1, 1)),
    ],
)
@pytest.mark.parametrize("which", range(3))
def test_patches_equal_those_of_xla(size, kernel, strides, dilation, which):
    padding = PADDINGS[len(size)][which]
    z = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    layer = LinearLayer("", kernel, strides, padding, dilation)
    found = jax.jit(layer.patches)(z)
    spec = ("NWC", "WIO", "NWC") if len(size) == 1 else ("NHWC", "HWIO", "NHWC")
    expected = jax.jit(
        lambda z: jax.lax.conv_general_dilated_patches(
            z, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=spec
        )
    )(z)
    # XLA puts channels in front of the taps.
    expected = expected.reshape(*expected.shape[:-1], 3, -1).swapaxes(-1, -2)
    np.testing.assert_array_equal(found, expected)


def test_patches_of_a_dense_layer_are_its_input():
    z = jnp.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(LinearLayer("").patches(z), z[:, :, None])


class Everything(nn.Module):
    """Every spelling of a layer that is known, and some that are not."""

    @nn.compact
    def __call__(self, x):
        x = Conv(4, (3, 3), strides=(2, 1), padding=((2, 0), (0, 2)))(x)
        x = nn.Conv(5, (3, 2), strides=2, padding=1)(x)
        x = nn.Conv(5, (2, 2), padding="VALID", feature_group_count=5)(x)
        x = nn.Conv(6, (2, 2), padding=[(1, 0), 2], kernel_dilation=(2, 1), use_bias=False)(x)
        x = nn.Conv(6, (3, 3), padding="CIRCULAR", name="circular")(x)
        x = nn.Conv(6, (3, 3), feature_group_count=2, name="grouped")(x)
        x = nn.Conv(12, (3, 3), feature_group_count=6, name="multiplied")(x)
        x = nn.Conv(4, (3, 3), input_dilation=2, padding=1, name="fractional")(x)
        x = nn.ConvTranspose(4, (3, 3), name="transposed")(x)
        return nn.Dense(3, name="head")(nn.Dense(4)(x).mean((1, 2)))


def test_descriptions_reproduce_the_outputs():
    module = Everything()
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    layers = {}

    @jax.jit
    def both(variables, x):
        pairs = {}

        def see(layer, z, y):
            layers[layer.path] = layer
            params = variables["params"][layer.path]
            patches = layer.patches(z)
            if layer.groups > 1:
                kernel = params["kernel"].reshape(-1, layer.groups)
                again = jnp.einsum("...kc,kc->...c", patches, kernel)
            else:
                kernel = params["kernel"].reshape(*patches.shape[-2:], -1)
                again = jnp.tensordot(patches, kernel, axes=2)
            if "bias" in params:
                again += jnp.expand_dims(params["bias"], range(y.ndim - 1))
            pairs[layer.path] = again, y

        return pairs, watch_layers(module.apply, variables, x, see), module.apply(variables, x)

    pairs, watched, plain = both(variables, x)
    np.testing.assert_array_equal(watched, plain)
    for path, (again, y) in pairs.items():
        np.testing.assert_allclose(again, y, atol=1e-5, err_msg=path)
    assert list(layers) == ["Conv_0", "Conv_1", "Conv_2", "Conv_3", "Dense_0", "head"]
    assert layers["Conv_1"] == ("Conv_1", (3, 2), (2, 2), ((1, 1), (1, 1)), (1, 1), 1)
    assert layers["Conv_2"].groups == 5
    assert layers["Conv_3"].dilation == (2, 1)


@pytest.mark.parametrize("name", MODELS)
def test_read_layers_reads_what_flax_captures(name):
    p = pair(name)
    paths = tuple(
        path.removeprefix("params/").removesuffix("/kernel")
        for path in to_paths(p.a)
        if path.endswith("kernel")
    )
    found = read_layers(p.a, p.x, apply=p.apply, paths=paths)
    captured = jax.jit(lambda v, x: p.apply(v, x, capture_intermediates=True)[1])(p.a, p.x)
    captured = to_paths(captured["intermediates"])
    assert set(found) == set(paths)
    for path, (_, y) in found.items():
        np.testing.assert_allclose(y, captured[f"{path}/__call__/0"], atol=1e-5)


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4)
        return nn.Dense(2)(layer(nn.relu(layer(x))))


def test_the_calls_of_a_shared_layer_are_concatenated():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    apply = Shared().apply
    variables = Shared().init(jax.random.key(0), x)
    z, y = read_layers(variables, x, apply=apply, paths=("Dense_0",))["Dense_0"]
    assert z.shape == y.shape == (6, 4)
    np.testing.assert_array_equal(z[:3], x)
    np.testing.assert_allclose(z[3:], nn.relu(y[:3]), atol=1e-6)


def test_an_absent_layer_is_named():
    p = pair("mlp")
    with pytest.raises(ValueError, match="no dense or convolution layer 'Dense_9'"):
        read_layers(p.a, p.x, apply=p.apply, paths=("Dense_0", "Dense_9"))
