"""Reads a network off a Flax module or function: its program is cut at the relus."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxml.compat.jaxprs import Literal, apply_equation, called_jaxpr
from jaxml.core.types import PyTree
from jaxml.verify.network import Conv, Dense, Layer, Net, check_net, linear

# Affine when the operands in these places carry the input and all others are constants.
_FIRST = {
    "reshape", "squeeze", "transpose", "broadcast_in_dim", "reduce_sum", "neg", "slice", "pad",
    "rev", "convert_element_type", "copy", "copy_p", "expand_dims", "reduce_window_sum", "cumsum",
    "div", "conv_general_dilated",
}  # fmt: skip
_ONE = {"mul", "dot_general"}
_ANY = {"add", "sub", "concatenate", "add_any"}
_ELEMENTWISE = {"add", "sub", "mul", "div", "neg", "copy", "copy_p", "reshape"}


class _Value(NamedTuple):
    """A value that depends on the input: the number of its piece, and of its place in it."""

    piece: int
    index: int


def from_flax(module: nn.Module, variables: PyTree, input_shape: tuple[int, ...]) -> Net:
    """Reads a relu network off a Flax module in evaluation mode.

    Dense layers, convolutions, pooling by averages, BatchNorm with its running statistics, reshapes
    and whatever else is affine are merged into one layer between two relus: a ``Conv`` when the
    piece is one convolution with a factor for each channel, a ``Dense`` otherwise. Weights are
    float64; merging rounds them, and what is verified is the function with the rounded ones.

    Args:
      module: with ``__call__(x)`` or ``__call__(x, train=False)``.
      variables: of the module.
      input_shape: of one input, without the batch.

    Returns:
      Net over flat inputs.

    Raises:
      ValueError: something that is neither affine nor a relu, a skip connection past a relu, or
        weights that are not finite; names the layer by its number from 0 and the operation.
    """
    if hasattr(module, "conv"):
        module = module.clone(conv="lax")  # the form in which a convolution can be seen
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        return from_function(lambda x: module.apply(variables, x), (1, *input_shape))


def from_function(function: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> Net:
    """Reads a relu network off a jax function of one float64 array; see ``from_flax``.

    Args:
      function: of an array of ``shape``; is traced once, with 64-bit types on.
      shape: with a leading axis of 1 if the function takes batches.

    Returns:
      Net over flat inputs.
    """
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, jnp.float64))
        return _Reader(shape).read(closed)


class _Reader:
    def __init__(self, shape):
        self.layers: list[Layer] = []
        self._begin(shape)

    def _begin(self, shape) -> _Value:
        self.shape, self.equations = shape, []
        return _Value(len(self.layers), 0)

    def read(self, closed) -> Net:
        (out,) = self._walk(closed.jaxpr, closed.consts, [_Value(0, 0)])
        if not isinstance(out, _Value):
            raise ValueError("the module's output does not depend on its input")
        self._check_piece(out, "the output")
        self.layers.append(self._layer(out))
        net = tuple(self.layers)
        check_net(net)
        return net

    def _walk(self, jaxpr, consts, args):
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))

        def value(v):
            return v.val if isinstance(v, Literal) else env[v]

        for eqn in jaxpr.eqns:
            inputs = [value(v) for v in eqn.invars]
            body = called_jaxpr(eqn)
            if not any(isinstance(v, _Value) for v in inputs):
                outputs = apply_equation(eqn, inputs)
            elif body is not None:
                outputs = self._walk(body.jaxpr, body.consts, inputs)
            else:
                outputs = [self._equation(eqn, inputs)]
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [value(v) for v in jaxpr.outvars]

    def _equation(self, eqn, inputs) -> _Value:
        name = eqn.primitive.name
        traced = [i for i, v in enumerate(inputs) if isinstance(v, _Value)]
        for i in traced:
            self._check_piece(inputs[i], name)
        if name == "max" and len(traced) == 1 and not np.any(np.asarray(inputs[1 - traced[0]])):
            self.layers.append(self._layer(inputs[traced[0]]))
            return self._begin(eqn.outvars[0].aval.shape)
        affine = (
            (name in _FIRST and traced == [0])
            or (name in _ONE and len(traced) == 1)
            or name in _ANY
        )
        # A conversion to integers or booleans rounds.
        if not affine or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
            raise ValueError(
                f"layer {len(self.layers)} has the operation {name!r}, which is neither affine nor "
                "a relu"
            )
        self.equations.append((eqn, inputs))
        return _Value(len(self.layers), len(self.equations))

    def _check_piece(self, value: _Value, name: str) -> None:
        if value.piece != len(self.layers):
            raise ValueError(
                f"layer {len(self.layers)} ({name!r}) reads what comes before relu {value.piece}: "
                "skip connections are not supported"
            )

    def _layer(self, out: _Value) -> Layer:
        equations, shape = self.equations, self.shape

        def piece(x):
            values = [x.reshape(shape)]
            for eqn, inputs in equations:
                inputs = [values[v.index] if isinstance(v, _Value) else v for v in inputs]
                values += apply_equation(eqn, inputs)
            return values[out.index].ravel()

        zero = jnp.zeros(int(np.prod(shape)))
        if (weight := self._product()) is not None:
            return Dense(weight, np.asarray(piece(zero)))
        bias, matrix = jax.linearize(piece, zero)
        bias = np.asarray(bias)
        return self._conv(bias, matrix) or Dense(
            np.asarray(jax.vmap(matrix)(jnp.eye(len(zero)))).T.copy(), bias
        )

    def _product(self) -> np.ndarray | None:
        """Returns the weights of a piece that is one product ``x W`` plus constants, else None."""
        names = [eqn.primitive.name for eqn, _ in self.equations]
        if names.count("dot_general") != 1 or set(names) - {"dot_general", "add", "reshape"}:
            return None
        eqn, inputs = self.equations[names.index("dot_general")]
        weight = inputs[1]
        plain = eqn.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
        if not plain or isinstance(weight, _Value) or eqn.invars[0].aval.shape[0] != 1:
            return None
        linear_chain = all(
            sum(isinstance(v, _Value) for v in given) == 1 for _, given in self.equations
        )
        return np.asarray(weight).T.copy() if linear_chain and len(np.shape(weight)) == 2 else None

    def _conv(self, bias, matrix) -> Conv | None:
        """Returns the piece as a convolution if it is one, with factors for the channels."""
        names = [eqn.primitive.name for eqn, _ in self.equations]
        if names.count("conv_general_dilated") != 1 or set(names) - _ELEMENTWISE != {
            "conv_general_dilated"
        }:
            return None
        eqn, inputs = self.equations[names.index("conv_general_dilated")]
        conv = _as_conv(eqn.invars[0].aval.shape, np.asarray(inputs[1]), eqn.params, bias)
        if conv is None:
            return None
        x = jnp.asarray(np.random.default_rng(0).normal(size=conv.n_in))
        got, plain = (np.asarray(y) for y in (matrix(x), linear(conv, x)))
        h, w, c = conv.out_shape
        shape, axes = ((h, w, c), (0, 1)) if conv.channels_last else ((c, h, w), (1, 2))
        got, plain = got.reshape(shape), plain.reshape(shape)
        scale = (got * plain).sum(axes) / np.maximum((plain * plain).sum(axes), 1e-300)
        scale = np.where(np.abs(scale - 1) < 1e-12, 1.0, scale)
        wide = scale if conv.channels_last else scale[:, None, None]
        if np.abs(got - wide * plain).max() > 1e-10 * (1 + np.abs(got).max()):
            return None
        return dataclasses.replace(conv, kernel=conv.kernel * scale)


def _as_conv(shape, kernel, params, bias) -> Conv | None:
    """Turns an equation's convolution of one image into a ``Conv``; None for what it cannot be."""
    lhs, rhs, out = params["dimension_numbers"]
    layouts = {(0, 3, 1, 2): True, (0, 1, 2, 3): False}
    plain = params["batch_group_count"] == 1 and set(params["lhs_dilation"]) == {1}
    if lhs not in layouts or lhs != out or not plain or shape[0] != 1:
        return None
    channel, *space = lhs[1:]
    return Conv(
        kernel.transpose(*rhs[2:], rhs[1], rhs[0]),
        bias,
        shape=(*(shape[i] for i in space), shape[channel]),
        channels_last=layouts[lhs],
        strides=tuple(params["window_strides"]),
        padding=tuple(map(tuple, params["padding"])),
        dilation=tuple(params["rhs_dilation"]),
        groups=params["feature_group_count"],
    )
