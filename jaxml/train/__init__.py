"""Floor 2: one training loop, its state, metrics, optimisers and augmentation."""

from jaxml.train.augment import random_crop_flip
from jaxml.train.loop import fit
from jaxml.train.metrics import Metrics, batch_metrics, evaluate
from jaxml.train.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer
from jaxml.train.state import TrainState, init

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Metrics",
    "TrainState",
    "batch_metrics",
    "evaluate",
    "fit",
    "init",
    "make_optimizer",
    "random_crop_flip",
]
