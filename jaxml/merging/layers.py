"""What goes into and comes out of the dense and convolution layers of a Flax network."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxml.core.types import ApplyFn, PyTree
from jaxml.nn import Conv


class LinearLayer(NamedTuple):
    """A layer that is linear in patches of its input.

    Attributes:
      path: module path, such as ``"ResidualBlock_0/Conv_1"``.
      kernel_size: ``()`` for a dense layer.
      strides: one a spatial axis.
      padding: ``"SAME"``, ``"VALID"`` or (low, high) pairs.
      dilation: one a spatial axis.
      groups: 1, or the number of channels of a depthwise convolution.
    """

    path: str
    kernel_size: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def patches(self, z: jax.Array) -> jax.Array:
        """Cuts inputs ``[n, *space, c]`` into ``[n, *out_space, K, c]``, kernel-major.

        A kernel ``[*kernel_size, c, out]`` reshaped to ``[K, c, out]`` contracts the last two axes.
        """
        if not self.kernel_size:
            return z[..., None, :]
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        pads = self.padding
        if isinstance(pads, str):
            pads = jax.lax.padtype_to_pads(z.shape[1:-1], reach, self.strides, pads)
        z = jnp.pad(z, ((0, 0), *pads, (0, 0)))
        views = []
        for offset in np.ndindex(*self.kernel_size):
            starts = [o * d for o, d in zip(offset, self.dilation, strict=True)]
            ends = [
                size - r + start + 1
                for size, r, start in zip(z.shape[1:-1], reach, starts, strict=True)
            ]
            views.append(
                jax.lax.slice(
                    z, (0, *starts, 0), (z.shape[0], *ends, z.shape[-1]), (1, *self.strides, 1)
                )
            )
        return jnp.stack(views, axis=-2)


def watch_layers(
    apply: ApplyFn,
    variables: PyTree,
    x: jax.Array,
    see: Callable[[LinearLayer, jax.Array, jax.Array], None],
) -> jax.Array:
    """Evaluates ``apply`` and calls ``see(layer, input, output)`` at every layer it knows.

    Known are ``flax.linen.Dense`` and ``Conv`` and ``jaxml.nn.Conv``; grouped convolutions only if
    depthwise. Works under jit; the arrays are then traced.

    Returns:
      What ``apply`` returns.
    """

    def watch(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and args:
            layer = _describe(context.module, args[0])
            if layer is not None:
                see(layer, args[0], y)
        return y

    with nn.intercept_methods(watch):
        return apply(variables, x)


@functools.partial(jax.jit, static_argnames=("apply", "paths"))
def read_layers(
    variables: PyTree, x: jax.Array, *, apply: ApplyFn, paths: tuple[str, ...]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns the input and the output of some layers on one batch, by path.

    Compiled once for equal shapes and the same ``apply``. The calls of a layer that is called
    several times are concatenated.

    Raises:
      ValueError: the network has no such dense or convolution layer.
    """
    calls: dict[str, list[tuple[jax.Array, jax.Array]]] = {path: [] for path in paths}

    def see(layer, z, y):
        if layer.path in calls:
            calls[layer.path].append((z, y))

    watch_layers(apply, variables, x, see)
    for path, pairs in calls.items():
        if not pairs:
            raise ValueError(f"the network has no dense or convolution layer {path!r}")
    return {
        path: (jnp.concatenate([z for z, _ in pairs]), jnp.concatenate([y for _, y in pairs]))
        for path, pairs in calls.items()
    }


def _describe(module: nn.Module, z: jax.Array) -> LinearLayer | None:
    path = "/".join(module.path)
    if isinstance(module, nn.Dense):
        return LinearLayer(path)
    if isinstance(module, Conv):
        return LinearLayer(path, module.kernel_size, module.strides, module.padding, (1, 1))
    if not isinstance(module, nn.Conv):
        return None
    rank = len(module.kernel_size)

    def per_axis(value):
        return (value,) * rank if isinstance(value, int) else tuple(value or (1,) * rank)

    groups = module.feature_group_count
    padding = module.padding
    if isinstance(padding, int):
        padding = ((padding, padding),) * rank
    elif not isinstance(padding, str):
        padding = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
    known = (
        z.ndim == rank + 2
        and (groups == 1 or groups == z.shape[-1] == module.features)
        and set(per_axis(module.input_dilation)) == {1}
        and (not isinstance(padding, str) or padding in ("SAME", "VALID"))
    )
    if not known:
        return None
    return LinearLayer(
        path,
        tuple(module.kernel_size),
        per_axis(module.strides),
        padding,
        per_axis(module.kernel_dilation),
        groups,
    )
