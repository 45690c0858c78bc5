"""Floor 1: checkpoints of a running job, artifacts of a finished one, others' models, metrics."""

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
from jaxml.io.interchange import (
    LAYOUTS,
    Published,
    load_gpt2,
    load_published,
    save_gpt2,
    save_published,
)
from jaxml.io.writer import MetricsWriter

__all__ = [
    "LAYOUTS",
    "MetricsWriter",
    "Published",
    "artifacts",
    "checkpoint",
    "load_gpt2",
    "load_json",
    "load_metadata",
    "load_npz",
    "load_published",
    "load_tree",
    "save_gpt2",
    "save_json",
    "save_npz",
    "save_published",
    "save_tree",
]
