"""Prompts to begin a search with."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

INITS = ("repeat_target", "random", "given")


def init_prompts(
    seed: int,
    how: str,
    *,
    targets: Sequence[np.ndarray] = (),
    n: int | None = None,
    suffix_len: int,
    allowed: Bool[np.ndarray, " v"] | None = None,
    given: Int[np.ndarray, "n m"] | None = None,
) -> Int[np.ndarray, "n m"]:
    """Makes the first prompt of every problem.

    Args:
      seed: of the random ones.
      how: ``"repeat_target"``, each target as often as fits, cut off on the left, so that the last
        copy is whole: what a model that copies from its context continues with the target;
        ``"random"``, uniform allowed tokens; ``"given"``, the prompts ``given``.
      targets: ids ``[t_i]``, to be repeated.
      n: how many random ones; None means one for each target.
      suffix_len: ``m``, their length.
      allowed: tokens to draw from.
      given: ids.

    Raises:
      ValueError: another ``how``, ``suffix_len < 1``, an empty target, no allowed token, or
        ``given`` of another shape.
    """
    if suffix_len < 1:
        raise ValueError(f"suffix_len must be positive, got {suffix_len}")
    if how not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}; got {how!r}")
    if how == "random":
        rows = check_allowed(allowed)
        (ids,) = np.nonzero(rows)
        shape = (len(targets) if n is None else n, suffix_len)
        return np.random.default_rng(seed).choice(ids, shape).astype(np.int32)
    if how == "given":
        given = np.asarray(given, np.int32)
        if given.ndim != 2 or given.shape[1] != suffix_len:
            raise ValueError(f"given must be prompts of {suffix_len} ids, got {given.shape}")
        return given
    if not len(targets) or not all(map(len, targets)):
        raise ValueError(f"targets must be one or more, none empty; got {len(targets)}")
    # np.resize repeats from the front, so it is handed the reverse.
    rows = [np.resize(np.asarray(target)[::-1], suffix_len)[::-1] for target in targets]
    return np.stack(rows).astype(np.int32)


def check_allowed(allowed: Bool[np.ndarray, "..."]) -> np.ndarray:
    """Returns the mask as an array.

    Raises:
      ValueError: it is no mask, or forbids all tokens.
    """
    allowed = np.asarray(allowed)
    if allowed.dtype != bool or not allowed.any():
        raise ValueError(f"allowed must be a mask with a token left, got {allowed.sum()} of them")
    return allowed
