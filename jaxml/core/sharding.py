"""One mesh, made by the launcher; arrays are placed on it by name."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxml.core.types import PyTree


def make_mesh(num_devices: int | None = None) -> Mesh:
    """Makes the one-axis mesh ``("data",)`` over the first ``num_devices`` devices (all: None).

    Raises:
      ValueError: more devices are asked for than there are.
    """
    devices = jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ValueError(f"num_devices must lie in 1..{len(devices)}, got {count}")
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Places a copy of every leaf on each device of the mesh (None: leaves it where it is).

    With several processes each of them calls it, with the same values.
    """
    if mesh is None:
        return tree

    def is_key(leaf):
        return jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)

    def movable(leaf):
        # Neither a typed key nor what is bound to a device here can be put on another process's
        # devices; what they hold can.
        leaf = jax.random.key_data(leaf) if is_key(leaf) else leaf
        here = jax.process_count() > 1 and getattr(leaf, "is_fully_addressable", True)
        return np.asarray(leaf) if here else leaf

    def as_it_was(leaf, copy):
        return (
            jax.random.wrap_key_data(copy, impl=jax.random.key_impl(leaf)) if is_key(leaf) else copy
        )

    placed = jax.device_put(jax.tree.map(movable, tree), NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(as_it_was, tree, placed)


def shard_batch(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Splits the leading axis over ``data``, inside jit or out; odd sizes stay unconstrained."""
    if mesh is None or x.shape[0] % mesh.shape["data"]:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data")))


def on_each_device(
    fn: Callable[..., PyTree], mesh: Mesh, *, split: Sequence[bool]
) -> Callable[..., PyTree]:
    """Makes ``fn`` run on each device on its share of the work, with nothing sent in between.

    For independent work, such as models or rows. What the compiler does not know how to divide (a
    convolution under vmap, ``top_k``) it gathers; here it is not asked.

    Args:
      fn: pure; its results lead with the divided axis, as the split arguments do.
      mesh: with an axis ``"data"`` whose size divides that axis.
      split: for each argument, whether its leading axis is divided; else every device gets all.

    Returns:
      ``fn`` of the whole arguments, its results joined and on all devices; to be called inside jit.
    """
    rows, whole = PartitionSpec("data"), PartitionSpec()
    specs = tuple(rows if axis else whole for axis in split)
    each = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)

    def run(*args):
        return jax.lax.with_sharding_constraint(each(*args), NamedSharding(mesh, whole))

    return run
