"""How much better a model knows a planted secret than secrets it has never seen."""

import numpy as np
import scipy.stats
from jaxtyping import Float


def exposure(
    nll: Float[np.ndarray, " c"], references: Float[np.ndarray, " r"]
) -> Float[np.ndarray, " c"]:
    """Ranks each canary among references: ``log2 (r + 1) - log2 rank``, in bits.

    The rank is the number of references that are at most as surprising, plus one; so exposure is 0
    for the least likely of all and ``log2 (r + 1)`` for the likeliest. A canary that the model has
    not seen has a uniform rank, and so ``1 / ln 2 = 1.44`` bits on average.

    Ref: Carlini, Liu, Erlingsson, Kos & Song, "The Secret Sharer", 2019.

    Args:
      nll: total negative log-likelihood of each canary.
      references: that of random secrets of the same form.

    Returns:
      float64 ``[c]``.

    Raises:
      ValueError: no reference, or a number that is not finite.
    """
    nll, references = np.asarray(nll, np.float64), np.asarray(references, np.float64)
    if references.ndim != 1 or not references.size or nll.ndim != 1:
        raise ValueError(
            f"nll and references must be [c] and [r], r > 0, got {nll.shape} and {references.shape}"
        )
    if not (np.isfinite(nll).all() and np.isfinite(references).all()):
        raise ValueError("nll and references must be finite")
    rank = np.searchsorted(np.sort(references), nll, side="right") + 1
    return np.log2(references.size + 1) - np.log2(rank)


def exposure_skew_normal(
    nll: Float[np.ndarray, " c"], references: Float[np.ndarray, " r"]
) -> Float[np.ndarray, " c"]:
    """Extrapolates exposure beyond the rank of 1: ``-log2 P(reference <= nll)``, in bits.

    The references' distribution is fitted as a skew-normal one, as in the paper; so far beyond them
    the number says "much", and its digits depend on the fit.

    Args:
      nll: as for ``exposure``.
      references: as for ``exposure``; at least 8 that are not all equal.

    Returns:
      float64 ``[c]``; infinite where the fit has nothing left.

    Raises:
      ValueError: too few references or no spread among them, or a number that is not finite.
    """
    nll, references = np.asarray(nll, np.float64), np.asarray(references, np.float64)
    if not (np.isfinite(nll).all() and np.isfinite(references).all()):
        raise ValueError("nll and references must be finite")
    if references.size < 8 or not np.ptp(references):
        raise ValueError(
            f"references must be at least 8 with some spread, got {references.size} of them"
        )
    fit = scipy.stats.skewnorm.fit(references)
    return -scipy.stats.skewnorm.logcdf(nll, *fit) / np.log(2)
