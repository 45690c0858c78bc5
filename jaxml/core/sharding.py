"""One mesh, made by the launcher; arrays are placed on it by name."""

import jax
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
    """Places a copy of every leaf on each device of the mesh (None: leaves it where it is)."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Splits the leading axis over ``data``, inside jit or out; odd sizes stay unconstrained."""
    if mesh is None or x.shape[0] % mesh.shape["data"]:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data")))
