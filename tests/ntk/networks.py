"""Small networks of several outputs, and their kernels from one dense Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxml import nn


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def mlp():
    """Returns apply, params (one leaf of integers) and the shape of an example."""
    params = {
        "hidden": {"w": normal(0, 5, 6), "b": normal(1, 6)},
        "head": [normal(2, 6, 3)],
        "outputs": jnp.arange(3),
    }

    def apply(params, x):
        hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
        return jnp.sin(hidden @ params["head"][0])[:, params["outputs"]]

    return apply, params, (5,)


def cnn():
    params = {"kernel": normal(3, 3, 3, 2, 4), "head": normal(4, 4, 3)}

    def apply(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.gelu(x).mean((1, 2)) @ params["head"]

    return apply, params, (5, 5, 2)


def resnet():
    """BatchNorm in evaluation mode, its statistics held fixed; one block with a projection."""
    return flax_network(nn.ResNet(3, widths=(4,), blocks=(1,), stem=3, norm="batch"), (6, 6, 2))


def deeper_resnet():
    return flax_network(nn.ResNet(3, widths=(3, 4), blocks=(1, 1), norm="batch"), (6, 6, 2))


def flax():
    return flax_network(nn.ConvNet(3, features=(3, 4), norm="layer"), (6, 6, 2))


def flax_network(model, shape):
    with jax.numpy_dtype_promotion("standard"):  # parameters are made in float32
        variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    leaves, treedef = jax.tree.flatten(variables)
    # Away from the initial zeros and ones; variances are to stay positive.
    moved = [
        jnp.asarray(leaf, jnp.float64) + 0.3 * abs(normal(i, *leaf.shape))
        for i, leaf in enumerate(leaves)
    ]
    params, rest = treedef.unflatten(moved), dict(treedef.unflatten(moved))
    del rest["params"]

    def apply(params, x):
        with jax.numpy_dtype_promotion("standard"):  # Flax's norms mix dtypes
            return model.apply({"params": params, **rest}, x)

    return apply, params["params"], shape


def dense_jacobian(apply, params, x):
    """Returns ``[n, c, P]`` over the floating-point leaves."""
    leaves, treedef = jax.tree.flatten(params)
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    flat, unravel = ravel_pytree(
        [v for v, differs in zip(leaves, floating, strict=True) if differs]
    )

    def outputs(flat):
        weights = iter(unravel(flat))
        merged = [next(weights) if f else v for v, f in zip(leaves, floating, strict=True)]
        return apply(treedef.unflatten(merged), x)

    return jax.jit(jax.jacrev(outputs))(flat)


def dense_kernel(apply, params, x1, x2):
    """Returns ``[n1, n2, c, c]``."""
    j1, j2 = (np.asarray(dense_jacobian(apply, params, x)) for x in (x1, x2))
    return np.einsum("iap,jbp->ijab", j1, j2)
