"""Checkpoints of a running job, by orbax; a killed run goes on from the newest."""

import os

import jax

from jaxml.core.types import PyTree
from jaxml.core.validate import check_same_structure

KEEP = 2


def save(directory: str | os.PathLike, step: int, state: PyTree) -> None:
    """Writes ``state`` under ``directory/step`` and drops all but the newest two checkpoints.

    Returns when the checkpoint is complete; one that was cut off is never seen by
    ``latest_step``. With several processes, all of them call it.

    Args:
      directory: made if missing.
      step: number of the checkpoint, larger than all before.
      state: arrays in dicts, tuples or NamedTuples; no typed keys.

    Raises:
      ValueError: ``step`` is not larger than the newest checkpoint's.
    """
    import orbax.checkpoint as ocp

    with _manager(directory) as manager:
        newest = manager.latest_step()
        if newest is not None and step <= newest:
            raise ValueError(f"step must be larger than the newest, {newest}, got {step}")
        manager.save(step, args=ocp.args.StandardSave(state))


def latest_step(directory: str | os.PathLike) -> int | None:
    """Finds the newest complete checkpoint; None without one, or without the directory."""
    if not os.path.isdir(directory):
        return None
    with _manager(directory) as manager:
        return manager.latest_step()


def restore(directory: str | os.PathLike, step: int, like: PyTree) -> PyTree:
    """Reads the checkpoint of ``step``.

    Args:
      directory: that of ``save``.
      step: for example ``latest_step(directory)``.
      like: a state of the structure and shapes to read, or its ``jax.eval_shape``; where its
        leaves have a sharding, the result has it.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: ``like`` has other leaves or shapes than the checkpoint; names the first.
    """
    import orbax.checkpoint as ocp

    if not os.path.isdir(directory):
        raise FileNotFoundError(f"no checkpoints in {directory}")
    with _manager(directory) as manager:
        if step not in manager.all_steps():
            raise FileNotFoundError(f"no checkpoint {step} in {directory}: {manager.all_steps()}")
        names = ("like", f"checkpoint {step}")
        check_same_structure(like, manager.item_metadata(step).tree, names=names)
        return manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(_target, like)))


def _manager(directory: str | os.PathLike):
    import orbax.checkpoint as ocp

    return ocp.CheckpointManager(
        os.path.abspath(directory),
        item_handlers=ocp.StandardCheckpointHandler(),
        options=ocp.CheckpointManagerOptions(max_to_keep=KEEP, enable_async_checkpointing=False),
    )


def _target(leaf) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
