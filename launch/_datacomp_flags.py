"""Which flags the filters of DataComp take: checked before a file is read or jax is imported."""

import math
from typing import Any

FILTERS = (
    "no_filter",
    "basic_filter",
    "clip_score",
    "laion2b",
    "text_based",
    "image_based",
    "image_based_intersect_clip_score",
    "exact_dedup",
)
"""The published baselines, and one row for each hash of an image."""
SCALES = {"tiny": 1.0, "debug": 1.0, "small": 1.0, "medium": 1.0, "large": 0.3, "xlarge": 0.03}
"""The share of a pool that trains the clusters of the image-based filter."""
ARCHITECTURES = ("b32", "l14")
RULES = ("exact", "reference")


def check_filter_flags(
    name: str,
    *,
    arch: str | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    rule: str = "exact",
    lexicon: Any = None,
    scale: str | None = None,
    centroids: Any = None,
    target_embeddings: Any = None,
) -> None:
    """Checks which flags a filter needs and which do not belong to it; reads no file.

    Raises:
      ValueError: one is missing, does not belong, or has a value that it cannot take.
    """
    if name not in FILTERS:
        raise ValueError(f"filter must be one of {', '.join(FILTERS)}; got {name!r}")
    scored, images = "clip_score" in name, name.startswith("image_based")
    if scored and (fraction is None) == (threshold is None):
        both = "neither" if fraction is None else "both"
        raise ValueError(f"{name} needs one of fraction and threshold, got {both}")
    if scored and arch is None:
        raise ValueError(f"{name} needs arch: one of {', '.join(ARCHITECTURES)}")
    if arch is not None and arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}; got {arch!r}")
    if fraction is not None and not 0 <= fraction <= 1:  # false for NaN too
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"threshold must be a number, got {threshold}")
    if images and (scale is None) == (centroids is None):
        both = "neither" if scale is None else "both"
        raise ValueError(f"{name} needs one of scale and centroids, got {both}")
    if scale is not None and scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}; got {scale!r}")
    if images and (scale is None) != (target_embeddings is None):
        raise ValueError(f"{name} needs target_embeddings with scale, and only with it")
    if name == "text_based" and lexicon is None:
        raise ValueError("text_based needs lexicon: the words that a caption must have one of")
    strangers = {
        "arch": arch is not None and not scored,
        "fraction": fraction is not None and not scored,
        "threshold": threshold is not None and not scored,
        "lexicon": lexicon is not None and name != "text_based",
        "scale": scale is not None and not images,
        "centroids": centroids is not None and not images,
        "target_embeddings": target_embeddings is not None and not images,
    }
    for flag, given in strangers.items():
        if given:
            raise ValueError(f"{name} takes no {flag}")
