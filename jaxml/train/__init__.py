"""Floor 2: one training loop, its losses, state, metrics, optimisers and augmentation."""

from jaxml.train.augment import random_crop_flip
from jaxml.train.loop import fit
from jaxml.train.losses import Metrics, cross_entropy, soft_cross_entropy, squared_error
from jaxml.train.metrics import evaluate
from jaxml.train.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer
from jaxml.train.state import TrainState, init

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Metrics",
    "TrainState",
    "cross_entropy",
    "evaluate",
    "fit",
    "init",
    "make_optimizer",
    "random_crop_flip",
    "soft_cross_entropy",
    "squared_error",
]
