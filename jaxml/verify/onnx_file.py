"""Networks from ONNX files; needs the package ``onnx`` (the extra of that name)."""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.verify.network import Net
from jaxml.verify.reader import from_function


def from_onnx(path: str | os.PathLike) -> Net:
    """Reads a feed-forward relu network.

    Operators: Gemm, MatMul, Conv, Relu, Add, Sub, Mul, Div, Neg, BatchNormalization, AveragePool,
    GlobalAveragePool, Flatten, Reshape, Squeeze, Unsqueeze, Transpose, Concat of one piece, Cast,
    Constant, Identity and Dropout. Whatever is affine is merged into the layers between two relus.
    The batch, if it is symbolic, is 1. Residual connections are not supported.

    Args:
      path: the file.

    Returns:
      Net over the flat input and output, both in C order of their ONNX shapes.

    Raises:
      ImportError: the package ``onnx`` is missing.
      FileNotFoundError: there is no such file.
      NotImplementedError: an operator, or an attribute of one, that is not supported; names the
        operator and the node.
      ValueError: a file that is no ONNX model, one without exactly one input and output, or what
        ``from_function`` refuses.
    """
    graph = load(path).graph
    constants = {t.name: _numpy(t) for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError(
            f"{path} must have one input and one output, got {len(inputs)}, {len(graph.output)}"
        )
    shape = _shape(inputs[0], path)
    nodes = [(node, _operator(node), _attributes(node)) for node in graph.node]

    def function(x):
        values: dict[str, Any] = {**constants, inputs[0].name: x}
        for node, operator, attributes in nodes:
            given = [values[name] if name else None for name in node.input]
            try:
                values[node.output[0]] = operator(*given, **attributes)
            except (TypeError, jax.errors.JAXTypeError) as error:
                raise NotImplementedError(
                    f"{node.op_type} (node {_name(node)!r}) with attributes {attributes}: {error}"
                ) from error
        return values[graph.output[0].name]

    return from_function(function, shape)


def load(path: str | os.PathLike):
    """Loads an ONNX model by the package ``onnx``; raises as ``from_onnx``."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX files need the package onnx: pip install onnx") from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's DecodeError has no home of its own
        raise ValueError(f"{path} is no ONNX model: {error}") from error


def evaluator(path: str | os.PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the file's own function of a flat float32 input, by onnx's reference evaluator."""
    model = load(path)
    from onnx import version_converter
    from onnx.reference import ReferenceEvaluator

    if model.opset_import[0].version < 14 and any(
        node.op_type == "BatchNormalization" for node in model.graph.node
    ):
        # Up to opset 13 the reference takes BatchNormalization for training.
        model = version_converter.convert_version(model, 15)
    reference = ReferenceEvaluator(model)
    known = {t.name for t in model.graph.initializer}
    (value,) = [i for i in model.graph.input if i.name not in known]
    shape = _shape(value, path)

    def evaluate(x):
        x = np.asarray(x, np.float32).reshape(shape)
        return np.asarray(reference.run(None, {value.name: x})[0], np.float64).ravel()

    return evaluate


def _shape(value, path) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    shape = [d.dim_value for d in dims]
    if shape and shape[0] <= 0:
        shape[0] = 1
    if any(d <= 0 for d in shape):
        raise ValueError(f"{path} has an input of unknown size: {shape}")
    return tuple(shape)


def _numpy(tensor) -> np.ndarray:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _name(node) -> str:
    return node.name or (node.output[0] if node.output else "")


def _operator(node) -> Callable:
    if node.op_type not in _OPERATORS:
        raise NotImplementedError(
            f"the operator {node.op_type} (node {_name(node)!r}) is not supported"
        )
    return _OPERATORS[node.op_type]


def _attributes(node) -> Mapping[str, Any]:
    from onnx import helper

    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    for name, value in found.items():
        if isinstance(value, bytes):
            found[name] = value.decode()
        elif hasattr(value, "raw_data"):
            found[name] = _numpy(value)
    return found


# The operators: positional inputs as ONNX orders them, attributes by name.


def _constant(value=None, value_float=None, value_floats=None, value_int=None, value_ints=None):
    given = [v for v in (value, value_float, value_floats, value_int, value_ints) if v is not None]
    array = np.asarray(given[0])
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _gemm(a, b, c=0.0, alpha=1.0, beta=1.0, transA=0, transB=0):
    a, b = (v.T if flip else v for v, flip in ((a, transA), (b, transB)))
    return alpha * jnp.matmul(a, b) + _wide(beta * np.asarray(c), 2)


def _wide(array, rank):
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _elementwise(operation):
    def apply(a, b):
        rank = max(np.ndim(a), np.ndim(b))
        return operation(*(v.reshape((1,) * (rank - np.ndim(v)) + np.shape(v)) for v in (a, b)))

    return apply


def _matmul(a, b):
    return jnp.matmul(a, b)


def _pads(x, kernel, strides, pads, auto_pad, dilations):
    space = x.shape[2:]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for n, k, s, d in zip(space, kernel, strides, dilations, strict=True):
            total = max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
            half = total // 2
            both = (half, total - half)
            found.append(both if auto_pad == "SAME_UPPER" else both[::-1])
        return found
    if auto_pad not in ("NOTSET", "VALID"):
        raise TypeError(f"auto_pad {auto_pad!r}")
    return list(zip(pads[: len(space)], pads[len(space) :], strict=True))


def _conv(x, w, b=None, auto_pad="NOTSET", dilations=(1, 1), group=1, kernel_shape=None,
          pads=(0, 0, 0, 0), strides=(1, 1)):  # fmt: skip
    if w.ndim != 4:
        raise TypeError(f"a kernel of rank {w.ndim}")
    padding = _pads(x, w.shape[2:], strides, pads, auto_pad, dilations)
    y = lax.conv_general_dilated(
        x, w, tuple(strides), padding, rhs_dilation=tuple(dilations), feature_group_count=group,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )  # fmt: skip
    return y if b is None else y + np.asarray(b)[None, :, None, None]


def _average_pool(x, kernel_shape, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0,
                  pads=None, strides=None, dilations=None):  # fmt: skip
    if ceil_mode or (dilations and set(dilations) != {1}):
        raise TypeError("ceil_mode or dilations")
    n = len(kernel_shape)
    strides, pads = strides or (1,) * n, pads or (0,) * (2 * n)
    padding = ((0, 0), (0, 0), *_pads(x, kernel_shape, strides, pads, auto_pad, (1,) * n))

    def sums(x):
        return lax.reduce_window(x, 0.0, lax.add, (1, 1, *kernel_shape), (1, 1, *strides), padding)

    if count_include_pad:
        return sums(x) / float(math.prod(kernel_shape))
    return sums(x) / sums(jnp.ones(x.shape))


def _batch_norm(x, scale, b, mean, var, epsilon=1e-5, momentum=0.9, training_mode=0, spatial=1):
    if training_mode or not spatial:
        raise TypeError("training_mode")
    shape = (1, -1, *(1,) * (x.ndim - 2))
    factor = scale / np.sqrt(var + epsilon)
    return x * factor.reshape(shape) + (b - mean * factor).reshape(shape)


def _reshape(x, shape, allowzero=0):
    shape = [x.shape[i] if n == 0 and not allowzero else int(n) for i, n in enumerate(shape)]
    return x.reshape(shape)


def _axes(x, axes):
    return tuple(int(a) % x.ndim for a in np.asarray(axes).ravel())


def _squeeze(x, axes=None):
    return x.squeeze() if axes is None else x.squeeze(_axes(x, axes))


def _unsqueeze(x, axes):
    rank = x.ndim + len(axes)
    axes = sorted(int(a) % rank for a in axes)
    shape = list(x.shape)
    for a in axes:
        shape.insert(a, 1)
    return x.reshape(shape)


def _cast(x, to, saturate=1):
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(to)
    # The network is read in float64, whatever its numbers are stored in.
    return x.astype(np.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype)


_OPERATORS: dict[str, Callable] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "Relu": lambda x: jnp.maximum(x, 0),
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(lambda a, b: a / b),
    "Neg": lambda x: -x,
    "BatchNormalization": _batch_norm,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdims=True),
    "Flatten": lambda x, axis=1: x.reshape(math.prod(x.shape[: axis % (x.ndim + 1)]), -1),
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": lambda x, perm=None: x.transpose(perm),
    "Concat": lambda *xs, axis: jnp.concatenate(xs, axis),
    "Cast": _cast,
    "Constant": _constant,
    "Identity": lambda x: x,
    "Dropout": lambda x, *_, **__: x,
}
