"""Kernels of infinite width against their recursions, written out anew."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import ntk
from tests.ntk.networks import normal


def relu_recursion(x1, x2, *, depth, weight_std, bias_std):
    """Returns covariance and tangent kernel of a ReLU network (arc-cosine kernels)."""
    w, b = weight_std**2, bias_std**2

    def of(a, c):
        return w * np.sum(a * c, -1) / a.shape[-1] + b

    k12 = of(x1[:, None], x2[None])
    k11, k22 = of(x1, x1)[:, None], of(x2, x2)[None]
    tangent = k12
    for _ in range(depth):
        scale = np.sqrt(k11 * k22)
        angle = np.arccos(np.clip(k12 / scale, -1, 1))
        slope = (np.pi - angle) / (2 * np.pi)
        value = scale * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
        k12, tangent = w * value + b, w * slope * tangent + w * value + b
        k11, k22 = w * k11 / 2 + b, w * k22 / 2 + b
    return k12, tangent


@pytest.mark.parametrize("bias_std", [0.0, 0.3])
def test_relu_networks_follow_the_recursion(bias_std):
    options = {"depth": 2, "weight_std": 1.3, "bias_std": bias_std}
    with jax.enable_x64(True):
        x1, x2 = normal(0, 4, 5), normal(1, 3, 5)
        covariance, tangent = relu_recursion(np.asarray(x1), np.asarray(x2), **options)
        kernel_fn = ntk.analytic_kernel_fn(**options)
        found = jax.jit(lambda *x: (kernel_fn(*x), kernel_fn(*x, "nngp")))(x1, x2)
        np.testing.assert_allclose(found[0], tangent, rtol=1e-10)
        np.testing.assert_allclose(found[1], covariance, rtol=1e-10)
        if bias_std:
            np.testing.assert_allclose(kernel_fn(x1, x2), tangent, rtol=1e-10)


def test_convolutions_on_one_pixel_are_dense():
    """With SAME padding only one of nine taps meets the pixel."""
    with jax.enable_x64(True):
        x = normal(0, 4, 1, 1, 5)
        kernel = jax.jit(ntk.analytic_kernel_fn("cnn", depth=1, weight_std=1.5))(x)
        _, want = relu_recursion(
            np.asarray(x[:, 0, 0]) / 3,
            np.asarray(x[:, 0, 0]) / 3,
            depth=1,
            weight_std=1.5,
            bias_std=0,
        )
        np.testing.assert_allclose(kernel, want, rtol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "erf"])
def test_wide_networks_come_near(activation):
    width = 4096
    act = {"gelu": functools.partial(jax.nn.gelu, approximate=False), "erf": jax.lax.erf}[
        activation
    ]
    x = jax.random.normal(jax.random.key(0), (4, 5))
    keys = jax.random.split(jax.random.key(1))
    params = [jax.random.normal(k, s) for k, s in zip(keys, ((5, width), (width, 1)), strict=True)]

    def apply(params, x):
        hidden = act(x @ params[0] * math.sqrt(2 / 5))
        return hidden @ params[1] * math.sqrt(2 / width)

    empirical = jax.jit(functools.partial(ntk.empirical_ntk, apply))(params, x)
    analytic = jax.jit(ntk.analytic_kernel_fn(depth=1, activation=activation))(x)
    np.testing.assert_allclose(empirical, analytic, rtol=0, atol=0.1 * np.abs(analytic).max())


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("vit", {}, "architecture must be one of mlp, cnn; got 'vit'"),
        ("mlp", {"activation": "selu"}, "activation must be one of relu, gelu, erf; got 'selu'"),
        ("mlp", {"depth": 0}, "depth must be positive, got 0"),
    ],
)
def test_bad_arguments_are_named(architecture, options, message):
    with pytest.raises(ValueError, match=message):
        ntk.analytic_kernel_fn(architecture, **options)


def test_gradients_by_inputs_are_finite():
    x = jax.random.normal(jax.random.key(0), (3, 5))
    kernel_fn = ntk.analytic_kernel_fn(depth=1)
    slope = jax.jit(jax.grad(lambda x: kernel_fn(x, x + 1).sum()))(x)
    assert jnp.isfinite(slope).all() and jnp.abs(slope).max() > 0
