"""Zero-shot evaluation: classifiers made of words, and the benchmark's metrics.

All pure, on numpy or jax arrays, and jit-able with the sizes static.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Recalls(NamedTuple):
    """Retrieval in both directions.

    Attributes:
      image: of the right image for a text, the share found ``[]``.
      text: of a right text for an image ``[]``.
    """

    image: Float[Array, ""]
    text: Float[Array, ""]


def prompts(templates: Sequence[str], classes: Sequence[str]) -> list[list[str]]:
    """Writes every class into every template, at its ``{}``.

    Returns:
      A list for each class.

    Raises:
      ValueError: no class, no template, or one without ``{}``.
    """
    if not templates or not classes:
        raise ValueError("templates and classes need at least one entry each")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"templates must have a {{}} for the class, got {template!r}")
    return [[template.replace("{}", name) for template in templates] for name in classes]


def classifier(
    encode: Callable[[jax.Array], jax.Array], tokens: Int[Array, "c m t"]
) -> Float[Array, "c d"]:
    """Makes a head of words: the mean of a class's prompts, each and the mean a unit vector.

    Args:
      encode: tokens ``[n, t]`` to features ``[n, d]``, for example
        ``lambda t: model.apply(variables, t, method="encode_text")``; called once a class.
      tokens: of ``m`` prompts for each of ``c`` classes.

    Returns:
      Unit vectors; ``image @ head.T`` is a class's logit.
    """
    return jax.lax.map(lambda of_class: _unit(_unit(encode(of_class)).mean(axis=0)), tokens)


def accuracy(
    logits: Float[Array, "n c"], labels: Int[Array, " n"], *, k: int = 1
) -> Float[Array, ""]:
    """Returns the share of rows whose label is among the ``k`` largest logits."""
    return top_k_right(logits, labels, k=k).mean()


def top_k_right(
    logits: Float[Array, "n c"], labels: Int[Array, " n"], *, k: int = 1
) -> Float[Array, " n"]:
    """Says of each row, by 1 or 0, whether its label is among the ``k`` largest logits.

    Of equal logits the ones of smaller classes come first. ``k`` above ``c`` finds all.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _, found = jax.lax.top_k(logits, min(k, logits.shape[1]))
    return (found == labels[:, None]).any(axis=1).astype(logits.dtype)


def mean_per_class_recall(
    logits: Float[Array, "n c"], labels: Int[Array, " n"]
) -> Float[Array, ""]:
    """Averages the accuracy over the classes that occur, each alike whatever its size."""
    right = top_k_right(logits, labels)
    of_class, present = _group_means(right, labels, logits.shape[1])
    return jnp.mean(of_class, where=present)


def macro_f1(
    predicted: Int[Array, " n"], labels: Int[Array, " n"], *, n_classes: int
) -> Float[Array, ""]:
    """Averages F1, ``2 tp / (2 tp + fp + fn)``, over the classes that occur among the labels."""
    predicted, labels = jnp.asarray(predicted), jnp.asarray(labels)
    right = (predicted == labels).astype(jnp.float32)

    def count(classes, weights):
        return jax.ops.segment_sum(weights, classes, n_classes)

    ones = jnp.ones_like(right)
    n_true, n_said = count(labels, ones), count(predicted, ones)
    present = n_true > 0
    f1 = 2 * count(labels, right) / jnp.maximum(n_true + n_said, 1)
    return jnp.mean(f1, where=present)


def worst_group(
    right: Float[Array, " n"], groups: Int[Array, " n"], *, n_groups: int
) -> Float[Array, ""]:
    """Returns the smallest mean over groups.

    Args:
      right: 1 or 0 for each row, for example of ``top_k_right``.
      groups: in ``0..n_groups - 1``; a row of another number, such as -1, is left out.
      n_groups: static; a group without rows is left out.

    Returns:
      The mean of the worst group; NaN without any row, as there is none.
    """
    means, present = _group_means(right, groups, n_groups)
    worst = jnp.where(present, means, jnp.inf).min()
    return jnp.where(present.any(), worst, jnp.nan)


def recall_at_k(
    similarity: Float[Array, "q c"], relevant: Bool[Array, "q c"], *, k: int = 1
) -> Float[Array, ""]:
    """Returns the share of queries with a relevant candidate among the ``k`` most similar."""
    similarity = jnp.asarray(similarity)
    _, found = jax.lax.top_k(similarity, min(k, similarity.shape[1]))
    return jnp.take_along_axis(jnp.asarray(relevant), found, axis=1).any(axis=1).mean()


def retrieval(
    image: Float[Array, "n d"],
    text: Float[Array, "m d"],
    image_of_text: Int[Array, " m"],
    *,
    k: int = 1,
) -> Recalls:
    """Measures recall at ``k`` from texts to images and back; their mean is the task's metric."""
    similarity = jnp.asarray(image) @ jnp.asarray(text).T
    belongs = jnp.arange(similarity.shape[0])[:, None] == jnp.asarray(image_of_text)[None]
    return Recalls(recall_at_k(similarity.T, belongs.T, k=k), recall_at_k(similarity, belongs, k=k))


def jaccard(
    similarity: Float[Array, "n c"],
    relevant: Bool[Array, "n c"],
    valid: Bool[Array, "n c"] | None = None,
) -> Float[Array, ""]:
    """Averages the Jaccard index of the relevant candidates and as many most similar ones.

    Args:
      similarity: of ``c`` candidates to each of ``n`` cues.
      relevant: which of them belong to the cue, at least one each.
      valid: which candidates there are, where cues have different numbers; None: all.

    Returns:
      The mean of ``|A and B| / |A or B|``.
    """
    relevant = jnp.asarray(relevant)
    similarity = jnp.asarray(similarity)
    if valid is not None:
        similarity = jnp.where(jnp.asarray(valid), similarity, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-similarity, axis=1), axis=1)
    chosen = rank < relevant.sum(axis=1)[:, None]
    both, either = ((chosen & relevant).sum(axis=1), (chosen | relevant).sum(axis=1))
    return (both / either).mean()


def _group_means(values, groups, n_groups):
    values, groups = jnp.asarray(values), jnp.asarray(groups)
    total = jax.ops.segment_sum(values, groups, n_groups)
    count = jax.ops.segment_sum(jnp.ones_like(values), groups, n_groups)
    return total / jnp.maximum(count, 1), count > 0


def _unit(x):
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))
