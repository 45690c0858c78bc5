"""The straight line between two networks, and what has to be mended on it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxml.core.chunk import reduce_batches
from jaxml.core.sharding import on_each_device, replicate
from jaxml.core.tree import from_paths, to_paths
from jaxml.core.types import ApplyFn, PyTree
from jaxml.core.validate import check_same_structure


def interpolate(lam: float | jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """Returns ``(1 - lam) a + lam b``, leaf by leaf, in each leaf's dtype; ``lam`` is a scalar."""

    def mix(x, y):
        t = jnp.asarray(lam, x.dtype)
        return (1 - t) * x + t * y

    return jax.tree.map(mix, a, b)


class Barrier(NamedTuple):
    """Metrics on the line from A (``lam = 0``) to B (``lam = 1``).

    Attributes:
      lams: ``[n]``, evenly spaced.
      loss: ``[n]``.
      accuracy: ``[n]``.
      barrier: ``max_lam loss(lam) - ((1 - lam) loss(0) + lam loss(1))``. Never negative: the ends
        count, where it is 0.
      barrier_mean: ``max_lam loss(lam) - (loss(0) + loss(1)) / 2``, the paper's definition.
      accuracy_barrier: ``max_lam ((1 - lam) acc(0) + lam acc(1)) - acc(lam)``, never negative.
    """

    lams: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    barrier: float
    barrier_mean: float
    accuracy_barrier: float


def loss_barrier(
    metrics_fn: Callable[..., tuple[jax.Array, jax.Array]],
    a: PyTree,
    b: PyTree,
    *data: PyTree,
    n: int = 25,
    transform: Callable[..., PyTree] | None = None,
    chunk: int = 5,
    mesh: Mesh | None = None,
) -> Barrier:
    """Evaluates a network along the line between two others.

    Compiled once for equal shapes and the same ``metrics_fn`` and ``transform`` objects, so keep
    those and pass what changes from call to call as ``data``.

    Args:
      metrics_fn: ``(variables, *data) -> (loss [], accuracy [])`` over a whole data set, pure.
      a: variables at ``lam = 0``.
      b: variables at ``lam = 1``, aligned with ``a`` or not.
      *data: arrays for ``metrics_fn`` and ``transform``.
      n: number of points, at least 2; the paper uses 25.
      transform: ``(variables, lam, *data) -> variables``, applied to every interpolated network
        before it is evaluated: ``reset_batch_stats`` or ``repair``.
      chunk: points evaluated at once by ``vmap``; memory grows with it.
      mesh: shares the points out over its axis ``"data"``, ``chunk`` at once on each device.

    Returns:
      Barrier, on the host.

    Raises:
      ValueError: ``n < 2``, ``chunk < 1`` or models that differ.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, the two ends, got {n}")
    if chunk < 1:
        raise ValueError(f"chunk must be positive, got {chunk}")
    check_same_structure(a, b)
    a, b, data = replicate((a, b, data), mesh)
    found = _curve(
        a, b, data, metrics_fn=metrics_fn, n=n, transform=transform, chunk=min(chunk, n), mesh=mesh
    )
    lams, loss, accuracy = (np.asarray(v, np.float64)[:n] for v in found)

    def chord(v):
        return (1 - lams) * v[0] + lams * v[-1]

    return Barrier(
        lams,
        loss,
        accuracy,
        float((loss - chord(loss)).max()),
        float(loss.max() - (loss[0] + loss[-1]) / 2),
        float((chord(accuracy) - accuracy).max()),
    )


@functools.partial(jax.jit, static_argnames=("metrics_fn", "n", "transform", "chunk", "mesh"))
def _curve(a, b, data, *, metrics_fn, n, transform, chunk, mesh):
    def at(lam):
        variables = interpolate(lam, a, b)
        if transform is not None:
            variables = transform(variables, lam, *data)
        return (lam, *metrics_fn(variables, *data))

    lams = jnp.linspace(0.0, 1.0, n)
    if mesh is None:
        return jax.lax.map(at, lams, batch_size=chunk)
    # The last point again, until the devices divide them.
    lams = jnp.pad(lams, (0, -n % mesh.size), mode="edge")
    return on_each_device(
        lambda lams: jax.lax.map(at, lams, batch_size=min(chunk, len(lams))), mesh, split=[True]
    )(lams)


class _Moments(NamedTuple):
    """Mean and spread of each channel over ``n`` values; merged without cancellation."""

    n: jax.Array  # []
    mean: jax.Array  # [c]
    m2: jax.Array  # [c], sum of squared deviations

    @classmethod
    def of(cls, x: jax.Array) -> "_Moments":
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = rows.mean(0)
        m2 = jnp.square(rows - mean[None]).sum(0)
        return cls(jnp.full((), rows.shape[0], rows.dtype), mean, m2)

    def merge(self, other: "_Moments") -> "_Moments":
        # Chan, Golub & LeVeque (1979).
        n = self.n + other.n
        delta = other.mean - self.mean
        return _Moments(
            n,
            self.mean + delta * (other.n / n),
            self.m2 + other.m2 + jnp.square(delta) * (self.n * other.n / n),
        )

    @property
    def variance(self) -> jax.Array:
        return self.m2 / self.n


def _watch_layers(apply: ApplyFn, variables: PyTree, x: jax.Array, see: Callable) -> None:
    """Calls ``see(module_path, input, output)`` at every Flax module call of one evaluation."""

    def watch(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            see("/".join(context.module.path), args[0] if args else None, result)
        return result

    with nn.intercept_methods(watch):
        apply(variables, x)


def _layers(apply: ApplyFn, variables: PyTree, x: jax.Array, marker: str) -> list[str]:
    """Lists the layers that own a leaf ``marker.format(path)``, in order of their first call."""
    leaves, called = to_paths(variables), []
    jax.eval_shape(
        lambda v, x: _watch_layers(apply, v, x, lambda path, _, out: called.append(path)),
        variables,
        x[:1],
    )
    return [p for p in dict.fromkeys(called) if marker.format(p) in leaves]


def _layer_moments(
    apply: ApplyFn, variables: PyTree, x: jax.Array, layers: list[str], *, side: int,
    batch_size: int,
) -> dict[str, _Moments]:  # fmt: skip
    """Collects channel moments of the inputs (``side`` 0) or outputs (1) of ``layers``."""

    def of_batch(batch):
        found: dict[str, _Moments] = {}

        def see(path, *values):
            if path in layers:
                moments = _Moments.of(values[side])
                found[path] = found[path].merge(moments) if path in found else moments

        _watch_layers(apply, variables, batch, see)
        return found

    return reduce_batches(
        of_batch,
        (x,),
        batch_size=batch_size,
        combine=lambda left, right: {path: left[path].merge(right[path]) for path in left},
    )


def reset_batch_stats(
    apply: ApplyFn, variables: PyTree, x: jax.Array, *, batch_size: int = 500
) -> PyTree:
    """Recomputes the running statistics of every Flax BatchNorm layer exactly.

    Afterwards each running mean and (biased) variance is that of the layer's input over all of
    ``x``, with all earlier layers already reset: no momentum, and independent of ``batch_size``.
    The layers before the ``l``-th are right after ``l`` sweeps over ``x``, so ``L`` sweeps do it.
    Channels come last. Layers inside ``nn.remat`` or ``nn.scan`` cannot be watched: jax raises
    UnexpectedTracerError, and the plain module has to stand in. Pure; jit and vmap pass through.

    Args:
      apply: ``apply(variables, x)`` in evaluation mode.
      variables: ``{"params": ..., "batch_stats": ...}``.
      x: calibration inputs ``[n, ...]``; no labels are needed.
      batch_size: examples evaluated at once.

    Returns:
      Variables with new ``batch_stats``.

    Raises:
      ValueError: no BatchNorm layer, or an empty calibration set.
    """
    _check_calibration(x)
    layers = _layers(apply, variables, x, "batch_stats/{}/mean")
    if not layers:
        raise ValueError("the network has no BatchNorm layer whose statistics could be reset")

    def sweep(_, variables):
        leaves = to_paths(variables)
        moments = _layer_moments(apply, variables, x, layers, side=0, batch_size=batch_size)
        for path, m in moments.items():
            for name, value in (("mean", m.mean), ("var", m.variance)):
                leaf = f"batch_stats/{path}/{name}"
                leaves[leaf] = value.astype(leaves[leaf].dtype)
        return from_paths(variables, leaves)

    return jax.lax.fori_loop(0, len(layers), sweep, variables)


def repair(
    apply: ApplyFn,
    variables: PyTree,
    a: PyTree,
    b: PyTree,
    x: jax.Array,
    *,
    lam: float | jax.Array = 0.5,
    batch_size: int = 500,
) -> PyTree:
    """Restores the spread of the hidden units that averaging has shrunk (REPAIR [1]).

    Rescales each hidden dense or convolution layer so that every unit's pre-activation has mean
    ``(1 - lam) mean_A + lam mean_B`` and standard deviation ``(1 - lam) std_A + lam std_B`` over
    ``x``, with all earlier layers already repaired. The layer called last is the output and stays.
    A layer without a bias can only be given the standard deviation. Units are the last axis of a
    layer's output; ``nn.remat`` and ``nn.scan`` as in ``reset_batch_stats``. Pure; jit and vmap
    pass through.

    Args:
      apply: ``apply(variables, x)``.
      variables: the merged network, ``interpolate(lam, a, b)``.
      a: variables at ``lam = 0``.
      b: variables at ``lam = 1``, aligned with ``a``.
      x: calibration inputs ``[n, ...]``; no labels are needed.
      lam: position of ``variables`` between ``a`` and ``b``.
      batch_size: examples evaluated at once.

    Returns:
      Variables with new kernels and biases.

    Raises:
      ValueError: models that differ, a network with BatchNorm (use ``reset_batch_stats``, which is
        REPAIR for such networks), no hidden layer, or an empty calibration set.

    [1] Jordan et al., REPAIR: REnormalizing Permuted Activations for Interpolation Repair, 2023.
    """
    _check_calibration(x)
    check_same_structure(a, b)
    check_same_structure(a, variables, names=("a", "variables"))
    if "batch_stats" in variables:
        raise ValueError("the network has BatchNorm layers: use reset_batch_stats")
    layers = _layers(apply, variables, x, "params/{}/kernel")[:-1]
    if not layers:
        raise ValueError("the network has no hidden dense or convolution layer to repair")

    def moments(v):
        return _layer_moments(apply, v, x, layers, side=1, batch_size=batch_size)

    ends = moments(a), moments(b)

    def sweep(_, variables):
        leaves = to_paths(variables)
        for path, now in moments(variables).items():
            at_a, at_b = ends[0][path], ends[1][path]
            t = jnp.asarray(lam, now.mean.dtype)
            mean = (1 - t) * at_a.mean + t * at_b.mean
            std = (1 - t) * jnp.sqrt(at_a.variance) + t * jnp.sqrt(at_b.variance)
            # A unit that does not vary cannot be stretched; it keeps its scale.
            varies = now.variance > 1e-12 * (jnp.square(now.mean) + now.variance)
            ratio = jnp.where(varies, std / jnp.sqrt(jnp.where(varies, now.variance, 1)), 1)
            kernel, bias = f"params/{path}/kernel", f"params/{path}/bias"
            scale = jnp.expand_dims(ratio, range(leaves[kernel].ndim - 1))
            leaves[kernel] = (leaves[kernel] * scale).astype(leaves[kernel].dtype)
            if bias in leaves:
                shifted = (leaves[bias] - now.mean) * ratio + mean
                leaves[bias] = shifted.astype(leaves[bias].dtype)
        return from_paths(variables, leaves)

    return jax.lax.fori_loop(0, len(layers), sweep, variables)


def _check_calibration(x: jax.Array) -> None:
    if x.shape[0] == 0:
        raise ValueError("the calibration set is empty")
