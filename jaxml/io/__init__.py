"""Floor 1: checkpoints of a running job, artifacts of a finished one, the metrics file."""

from jaxml.io import artifacts, checkpoint
from jaxml.io.artifacts import (
    load_json,
    load_metadata,
    load_npz,
    load_tree,
    save_json,
    save_npz,
    save_tree,
)
from jaxml.io.writer import MetricsWriter

__all__ = [
    "MetricsWriter",
    "artifacts",
    "checkpoint",
    "load_json",
    "load_metadata",
    "load_npz",
    "load_tree",
    "save_json",
    "save_npz",
    "save_tree",
]
