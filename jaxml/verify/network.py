"""The networks that are verified: affine layers with a relu between each two.

Values are flat vectors, in the C order of the tensors they stand for. A network is a tuple of
``Dense`` and ``Conv``, a pytree whose arrays are arguments of every compiled function; weights are
float64 numpy arrays, which jax takes as float32 outside ``jax.enable_x64``.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax
from jaxtyping import Array, Float


class Dense(NamedTuple):
    """``z = W x + b``.

    Attributes:
      weight: ``[n_out, n_in]``.
      bias: ``[n_out]``.
    """

    weight: Float[Array, "n_out n_in"]
    bias: Float[Array, " n_out"]

    @property
    def n_in(self) -> int:
        """Length of the input."""
        return self.weight.shape[1]

    @property
    def n_out(self) -> int:
        """Length of the output."""
        return self.weight.shape[0]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel", "bias"],
    meta_fields=["shape", "channels_last", "strides", "padding", "dilation", "groups"],
)
@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution of one image, flat in and flat out.

    Attributes:
      kernel: ``[kh, kw, c / groups, features]``.
      bias: ``[n_out]``, one for each output and not only for each channel.
      shape: of the input, ``(h, w, c)`` whatever the layout.
      channels_last: whether vectors are in the order ``(h, w, c)`` or ``(c, h, w)``.
      strides: ``(sh, sw)``.
      padding: ``((top, bottom), (left, right))``.
      dilation: of the kernel, ``(dh, dw)``.
      groups: the channels are convolved in so many groups.
    """

    kernel: Float[Array, "kh kw i o"]
    bias: Float[Array, " n_out"]
    shape: tuple[int, int, int]
    channels_last: bool = True
    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def n_in(self) -> int:
        """Length of the input."""
        return math.prod(self.shape)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Shape of the output, ``(h, w, features)``."""
        sizes = [
            (n + sum(pad) - d * (k - 1) - 1) // s + 1
            for n, pad, d, k, s in zip(
                self.shape[:2], self.padding, self.dilation, self.kernel.shape[:2], self.strides,
                strict=True,
            )
        ]  # fmt: skip
        return (*sizes, self.kernel.shape[3])

    @property
    def n_out(self) -> int:
        """Length of the output."""
        return math.prod(self.out_shape)


Layer = Dense | Conv
Net = tuple[Layer, ...]
"""``z_1 = L_1(x)``, ``z_{i+1} = L_{i+1}(relu(z_i))``; the last ``z`` is the output."""


def linear(layer: Layer, x: Float[Array, "*b n_in"]) -> Float[Array, "*b n_out"]:
    """Applies a layer without its bias, at the highest precision that the device has."""
    if isinstance(layer, Dense):
        return jnp.matmul(x, jnp.asarray(layer.weight, x.dtype).T, precision=lax.Precision.HIGHEST)
    layout = "NHWC" if layer.channels_last else "NCHW"
    h, w, c = layer.shape
    images = x.reshape(-1, *((h, w, c) if layer.channels_last else (c, h, w)))
    y = lax.conv_general_dilated(
        images,
        jnp.asarray(layer.kernel, x.dtype),
        layer.strides,
        layer.padding,
        rhs_dilation=layer.dilation,
        dimension_numbers=(layout, "HWIO", layout),
        feature_group_count=layer.groups,
        precision=lax.Precision.HIGHEST,
    )
    return y.reshape(*x.shape[:-1], layer.n_out)


def affine(layer: Layer, x: Float[Array, "*b n_in"]) -> Float[Array, "*b n_out"]:
    """Applies a layer."""
    z = linear(layer, x)
    bias = jnp.asarray(layer.bias, z.dtype)
    return z + bias.reshape((1,) * (z.ndim - 1) + bias.shape)


def transpose(layer: Layer, y: Float[Array, "*b n_out"]) -> Float[Array, "*b n_in"]:
    """Applies the transpose of a layer's matrix: ``W^T y``."""
    x = jax.ShapeDtypeStruct((*y.shape[:-1], layer.n_in), y.dtype)
    (out,) = jax.linear_transpose(functools.partial(linear, layer), x)(y)
    return out


def absolute(layer: Layer) -> Layer:
    """Returns the layer with ``|W|`` and no bias."""
    zero = jnp.zeros_like(layer.bias)
    if isinstance(layer, Dense):
        return Dense(jnp.abs(layer.weight), zero)
    return dataclasses.replace(layer, kernel=jnp.abs(layer.kernel), bias=zero)


def apply(net: Net, x: Float[Array, "*b n_in"]) -> Float[Array, "*b n_out"]:
    """Evaluates a network on flat inputs."""
    z = affine(net[0], x)
    for layer in net[1:]:
        z = affine(layer, jax.nn.relu(z))
    return z


def apply_on_host(net: Net, x: np.ndarray) -> np.ndarray:
    """Evaluates a network on one flat input ``[n_in]`` in numpy and float64."""
    for i, layer in enumerate(net):
        x = matrix(layer) @ (np.maximum(x, 0) if i else x) + np.asarray(layer.bias, np.float64)
    return x


def check_net(net: Net) -> None:
    """Checks a network with concrete arrays.

    Raises:
      ValueError: no layer, something that is no layer, widths that do not fit, weights that are
        not finite; names the layer by its number from 0.
    """
    if not isinstance(net, tuple) or not net:
        raise ValueError(f"net must be a tuple of Dense and Conv, got {type(net).__name__}")
    for i, layer in enumerate(net):
        if not isinstance(layer, Layer):
            kind = type(layer).__name__
            raise ValueError(f"layer {i} must be Dense or Conv, got {kind}; relus are implied")
        if layer.bias.shape != (layer.n_out,):
            raise ValueError(
                f"layer {i} has {layer.n_out} outputs and a bias of shape {layer.bias.shape}"
            )
        if i and net[i - 1].n_out != layer.n_in:
            raise ValueError(
                f"layer {i} takes {layer.n_in} inputs, layer {i - 1} has {net[i - 1].n_out} outputs"
            )
        weight = layer.weight if isinstance(layer, Dense) else layer.kernel
        for name, array in (("weights", weight), ("biases", layer.bias)):
            bad = array.size - int(np.isfinite(np.asarray(array)).sum())
            if bad:
                raise ValueError(f"layer {i} has {bad} {name} that are not finite")


def matrix(layer: Layer) -> np.ndarray | scipy.sparse.csr_array:
    """Returns a layer's matrix ``[n_out, n_in]`` on the host in float64; sparse for a ``Conv``."""
    if isinstance(layer, Dense):
        return np.asarray(layer.weight, np.float64)
    (h, w, c), (oh, ow, features) = layer.shape, layer.out_shape
    kernel = np.asarray(layer.kernel, np.float64)
    per_group, out_per_group = c // layer.groups, features // layer.groups
    parts = []
    for (i, j), of_tap in zip(np.ndindex(kernel.shape[:2]), kernel.reshape(-1, *kernel.shape[2:])):  # noqa: B905
        rows = np.arange(oh) * layer.strides[0] + i * layer.dilation[0] - layer.padding[0][0]
        cols = np.arange(ow) * layer.strides[1] + j * layer.dilation[1] - layer.padding[1][0]
        y, x = np.meshgrid(*(np.flatnonzero((v >= 0) & (v < n)) for v, n in ((rows, h), (cols, w))),
                           indexing="ij")  # fmt: skip
        y, x = y.ravel()[:, None, None], x.ravel()[:, None, None]
        out = np.arange(features)[None, None, :]
        source = np.arange(per_group)[None, :, None] + out // out_per_group * per_group
        values = np.broadcast_to(of_tap[None], (len(y), per_group, features))
        to = _flat(layer.channels_last, y, x, out, (oh, ow, features))
        of = _flat(layer.channels_last, rows[y], cols[x], source, layer.shape)
        parts.append([np.broadcast_to(a, values.shape).ravel() for a in (values, to, of)])
    values, to, of = (np.concatenate(a) for a in zip(*parts, strict=True))
    return scipy.sparse.csr_array((values, (to, of)), shape=(layer.n_out, layer.n_in))


def _flat(channels_last, y, x, channel, shape):
    h, w, c = shape
    return (y * w + x) * c + channel if channels_last else (channel * h + y) * w + x


def unroll(net: Net) -> Net:
    """Returns the same function with every convolution written out as a dense matrix."""
    return tuple(
        layer if isinstance(layer, Dense) else Dense(matrix(layer).toarray(), layer.bias)
        for layer in net
    )
