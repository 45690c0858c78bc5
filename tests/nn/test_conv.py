"""Conv: both implementations against each other and against Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax.extend.core import jaxprs_in_params

from jaxml.nn import Conv

CASES = [
    # kernel_size, strides, (h, w), padding
    ((3, 3), (1, 1), (6, 6), "SAME"),
    ((3, 3), (2, 2), (7, 5), "SAME"),
    ((3, 3), (2, 2), (8, 8), "SAME"),
    ((3, 3), (2, 2), (8, 8), ((1, 1), (1, 1))),
    ((3, 3), (2, 2), (1, 1), "SAME"),
    ((1, 1), (1, 1), (4, 3), "SAME"),
    ((1, 1), (2, 2), (5, 4), "SAME"),
    ((2, 5), (1, 3), (6, 7), "SAME"),
]


def _input(h, w):
    return jax.random.normal(jax.random.key(0), (2, h, w, 3))


@pytest.mark.parametrize(("kernel_size", "strides", "side", "padding"), CASES)
def test_both_implementations_are_flax_conv_in_value_and_gradient(
    kernel_size, strides, side, padding
):
    x = _input(*side)
    shape = (2, -(-side[0] // strides[0]), -(-side[1] // strides[1]), 4)
    cotangent = jax.random.normal(jax.random.key(2), shape)
    kernel = jax.random.normal(jax.random.key(1), (*kernel_size, 3, 4))
    variables = {"params": {"kernel": kernel, "bias": jnp.arange(4.0)}}

    @jax.jit
    def value_and_gradients(variables, x):
        results = []
        for conv in (
            linen.Conv(4, kernel_size, strides, padding=padding),
            Conv(4, kernel_size, strides, implementation="lax", padding=padding),
            Conv(4, kernel_size, strides, implementation="patches", padding=padding),
        ):
            y, pull = jax.vjp(conv.apply, variables, x)
            results.append((y, pull(cotangent)))
        return results

    expected, *own = value_and_gradients(variables, x)
    for result in own:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), result, expected)


def test_parameters_start_as_those_of_flax_conv():
    x = _input(4, 4)
    expected = linen.Conv(4, (3, 3)).init(jax.random.key(1), x)
    for implementation in ("lax", "patches"):
        own = Conv(4, implementation=implementation).init(jax.random.key(1), x)
        jax.tree.map(np.testing.assert_array_equal, own, expected)


def test_patches_keep_the_channels_apart_in_the_jaxpr():
    conv = Conv(4, strides=(2, 2), use_bias=False, implementation="patches")
    variables = jax.eval_shape(conv.init, jax.random.key(0), _input(6, 6))
    jaxpr = jax.make_jaxpr(conv.apply)(variables, _input(6, 6))
    assert not jaxpr.consts
    names = set()
    shapes = []
    for eqn in _equations(jaxpr.jaxpr):
        names.add(eqn.primitive.name)
        if eqn.primitive.name in ("concatenate", "reshape"):
            shapes.append(eqn.outvars[0].aval.shape)
    plain = {"pad", "slice", "broadcast_in_dim", "reshape", "concatenate", "dot_general"}
    assert names - {"pjit", "jit"} <= plain | {"convert_element_type"}
    assert all(3 in shape for shape in shapes)


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jaxprs_in_params(eqn.params):
            yield from _equations(sub)


def test_unknown_implementation_is_named():
    with pytest.raises(ValueError, match=r"conv must be one of .*'fft'"):
        Conv(4, implementation="fft").init(jax.random.key(0), _input(4, 4))
