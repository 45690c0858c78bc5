"""Backdoor audits of training pipelines, and defences.

NTBA: ``ntba``, ``kernel_fit``, ``victims``, ``forgetting``. FLIP: ``flip``, ``trajectories``,
``matchers``, ``flip_selection``, ``ntk_flips``, ``flip_users``. A defender: ``detection``,
``label_cleaning``, ``spectre``, ``representation_filter``. Federated rounds and shadow learning:
``clients``, ``federated``, ``aggregators``, ``attacks``, ``shadow``; ``flower``, which needs the
extra of that name, is not imported here.
"""

from jaxml.backdoor import (
    aggregators,
    attacks,
    clients,
    detection,
    federated,
    flip,
    flip_selection,
    flip_users,
    forgetting,
    kernel_fit,
    label_cleaning,
    matchers,
    ntba,
    ntk_flips,
    representation_filter,
    shadow,
    spectre,
    trajectories,
    victims,
)

__all__ = [
    "aggregators",
    "attacks",
    "clients",
    "detection",
    "federated",
    "flip",
    "flip_selection",
    "flip_users",
    "forgetting",
    "kernel_fit",
    "label_cleaning",
    "matchers",
    "ntba",
    "ntk_flips",
    "representation_filter",
    "shadow",
    "spectre",
    "trajectories",
    "victims",
]
