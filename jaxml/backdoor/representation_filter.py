"""A filter of clients, or of single examples, by what a network makes of their guarded label."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxml.backdoor import spectre
from jaxml.backdoor.clients import Clients
from jaxml.backdoor.spectre import Scorer

METHODS = (*spectre.METHODS, "auto")
LEVELS = ("user", "label", "sample")


class RepresentationFilter(NamedTuple):
    """A fitted score and the largest value that is accepted."""

    scorer: Scorer
    threshold: Float[Array, ""]


def label_rows(
    h: Float[Array, "c s d"], cohort: Clients, label: Int[Array, ""], *, level: str
) -> tuple[Float[Array, "n d"], Bool[Array, " n"]]:
    """Makes the rows that are filtered: what clients send about the guarded label.

    Args:
      h: representations of all examples ``[c, s, d]``.
      cohort: ``c`` clients.
      label: the guarded label.
      level: ``"user"`` and ``"label"`` filter clients by the mean over their examples of the label,
        one vector a client; ``"sample"`` filters those examples one by one.

    Returns:
      Rows ``[n, d]`` and which are there ``[n]``, with ``n = c`` or ``c s``. A client without an
      example of the label, or with one that is not finite, is not there.

    Raises:
      ValueError: an unknown ``level``.
    """
    _check_level(level)
    mask = cohort.mask & (cohort.y == label)
    if level == "sample":
        h, there = h.reshape(-1, h.shape[-1]), mask.reshape(-1)
    else:
        count = mask.sum(1)
        h = jnp.where(mask[..., None], h, 0).sum(1) / jnp.maximum(count, 1)[:, None].astype(h.dtype)
        there = count > 0
    there &= jnp.isfinite(h).all(1)
    return jnp.where(there[:, None], h, 0), there


def fit_filter(
    h: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    *,
    alpha_bar: float,
    k: int,
    method: str = "spectre",
    **options,
) -> RepresentationFilter:
    """Fits a score and the threshold that removes ``floor(1.5 alpha_bar n)`` of the rows.

    Args:
      h: rows ``[n, d]``, finite.
      mask: rows that are there ``[n]``; ``n`` in the number removed counts these.
      alpha_bar: the largest share of malicious rows to reckon with, in [0, 0.5).
      k: directions, static.
      method: a score of ``spectre``, or ``"auto"``: SPECTRE's or the spectral signature, by
        ``spectre.merit``.
      **options: of ``spectre.fit_spectre``.

    Raises:
      ValueError: ``alpha_bar`` out of range, an unknown ``method``, or ``k`` too large.
    """
    spectre.check_alpha_bar(alpha_bar, h.shape[0])
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    n_outliers = alpha_bar * mask.sum().astype(h.dtype)
    if method in ("spectre", "auto"):
        scorer = spectre.fit_spectre(h, n_outliers, k=k, mask=mask, **options)
    if method == "auto":
        projection = spectre.pca_project(h, k, mask=mask)
        simple = spectre.fit_pca(h, k=k, mask=mask)
        merits = [spectre.merit(s, h, n_outliers, projection, mask=mask) for s in (scorer, simple)]
        better = merits[1] > merits[0]
        scorer = jax.tree.map(lambda a, b: jnp.where(better, b, a), scorer, simple)
    elif method != "spectre":
        fit = {
            "pca": spectre.fit_pca,
            "norm": spectre.fit_norm,
            "mahalanobis": spectre.fit_mahalanobis,
        }[method]
        scorer = fit(h, k=k, mask=mask)
    removed = spectre.n_removed(n_outliers)
    return RepresentationFilter(scorer, spectre.threshold(scorer(h), removed, mask=mask))


def accept(
    fitted: RepresentationFilter, h: Float[Array, "n d"], mask: Bool[Array, " n"]
) -> Bool[Array, " n"]:
    """Says which of the rows that are there score at most the threshold."""
    return mask & (fitted.scorer(h) <= fitted.threshold)


def restrict(
    cohort: Clients, accepted: Bool[Array, " n"], label: Int[Array, ""], *, level: str
) -> Clients:
    """Leaves out what was not accepted.

    Args:
      cohort: ``c`` clients.
      accepted: ``[c]``, or ``[c s]`` for ``"sample"``.
      label: the guarded label.
      level: ``"user"`` drops all examples of a client, ``"label"`` its examples of the label,
        ``"sample"`` single examples of the label.

    Returns:
      The clients with a smaller mask. The last two levels trust a client to leave examples out, as
      one does whose data, and not whose software, is the attacker's.

    Raises:
      ValueError: an unknown ``level``.
    """
    _check_level(level)
    guarded = cohort.y == label
    if level == "user":
        mask = cohort.mask & accepted[:, None]
    elif level == "label":
        mask = cohort.mask & (accepted[:, None] | ~guarded)
    else:
        mask = cohort.mask & (accepted.reshape(cohort.mask.shape) | ~guarded)
    return cohort._replace(mask=mask)


def _check_level(level: str) -> None:
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}; got {level!r}")
