"""Pairs of small networks to merge, whose modules can be rebuilt at any widths."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxml.core.tree import from_paths, to_paths
from jaxml.merging import PermutationSpec, derive_permutation_spec, random_permutation
from jaxml.nn import MLP, ConvNet, ResNet, with_widths

from .helpers import to_numpy


class FlattenNet(nn.Module):
    """Two convolutions with batch norm, a flatten, a dense layer, a head."""

    widths: tuple[int, int, int] = (5, 6, 7)

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(self.widths[0], (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.Conv(self.widths[1], (3, 2), padding="VALID", use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.relu(nn.Dense(self.widths[2])(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


class DepthwiseNet(nn.Module):
    """A depthwise convolution (its channels are one group) with strides and dilation around it."""

    widths: tuple[int, int] = (6, 5)

    @nn.compact
    def __call__(self, x):
        c, d = self.widths
        x = nn.relu(nn.Conv(c, (3, 3), kernel_dilation=2)(x))
        x = nn.relu(nn.Conv(c, (3, 3), feature_group_count=c, strides=2, padding=1)(x))
        x = nn.relu(nn.Conv(d, (1, 1), use_bias=False)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def _at_kernels(model, *layers):
    def at(variables):
        widths = tuple(variables["params"][name]["kernel"].shape[-1] for name in layers)
        return model.clone(widths=widths).apply

    return at


MODELS = {
    "mlp": (MLP((7, 9), 3), (5,)),
    "convnet": (ConvNet(3, features=(5, 6), norm="batch"), (6, 6, 2)),
    "resnet": (ResNet(3, widths=(4, 6), blocks=(1, 1), norm="batch"), (6, 6, 2)),
    "flatten": (FlattenNet(), (9, 7, 2)),
    "depthwise": (DepthwiseNet(), (7, 7, 2)),
}


def draw(seed, shapes):
    """Every leaf at random, at the size that keeps activations near 1; variances positive."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        values = rng.normal(size=shape)
        if path.endswith("kernel"):
            values /= np.sqrt(np.prod(shape[:-1]))
        elif path.endswith(("scale", "var")):
            values = 0.5 + rng.uniform(size=shape)
        else:
            values *= 0.3
        return values.astype(np.float32)

    return from_paths(shapes, {p: leaf(p, s.shape) for p, s in to_paths(shapes).items()})


class Pair(NamedTuple):
    """Two networks of one architecture; ``at(variables)`` is its apply at other widths."""

    apply: Callable
    at: Callable
    spec: PermutationSpec
    a: dict
    b: dict
    x: np.ndarray
    perms: dict[str, np.ndarray]

    def ratios(self, r):
        return dict.fromkeys(self.spec.groups, r)


@functools.cache
def pair(name, n=6):
    """Two random networks, and a random matching of theirs."""
    model, shape = MODELS[name]
    x = np.random.default_rng(5).normal(size=(n, *shape)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    spec = derive_permutation_spec(model.apply, shapes, x)
    match name:
        case "flatten":
            at = _at_kernels(model, "Conv_0", "Conv_1", "Dense_0")
        case "depthwise":
            at = _at_kernels(model, "Conv_0", "Conv_2")
        case _:

            def at(variables):
                return with_widths(model, variables).apply

    perms = to_numpy(random_permutation(jax.random.key(1), spec))
    return Pair(model.apply, at, spec, draw(0, shapes), draw(1, shapes), x, perms)
