"""Contrastive losses on plain arrays: which text goes with which image.

Each is a function of all pairs of a batch. Under ``jit`` with features that are split over the
devices, the compiler keeps the logits split by rows too, so the memory of a device falls with
their number and the value stays what it is on one device. ``ring_sigmoid_loss`` goes further.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

_HIGHEST = jax.lax.Precision.HIGHEST


def clip_loss(
    image: Float[Array, "n d"],
    text: Float[Array, "n d"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
    *,
    ids: Int[Array, "n w"] | None = None,
) -> Float[Array, ""]:
    """Symmetric softmax cross-entropy: each image finds its text, and each text its image.

    With ``z = exp(log_scale) image text'`` it is the mean over rows of
    ``(logsumexp(z_i) - z_ii + logsumexp(z'_i) - z_ii) / 2``, in nats. Pure.

    Ref: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
    2021.

    Args:
      image: unit vectors ``[n, d]``.
      text: unit vectors ``[n, d]``, row by row those of the images.
      log_scale: ``[]``.
      bias: ignored, a softmax does not see it.
      ids: rows with equal ``ids`` show the same pair; none of them is a wrong answer to another.
        None: all rows differ.

    Raises:
      ValueError: features of different shapes, or ``ids`` that are not ``[n, w]``.
    """
    _check(image, text, ids)
    logits = jnp.exp(log_scale) * _products(image, text)
    if ids is not None:
        logits = jnp.where(_twins(ids, ids) & ~jnp.eye(len(image), dtype=bool), -jnp.inf, logits)
    labels = jnp.arange(len(image))
    by_row, by_column = (
        optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()
        for z in (logits, logits.T)
    )
    return (by_row + by_column) / 2


def sigmoid_loss(
    image: Float[Array, "n d"],
    text: Float[Array, "n d"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    ids: Int[Array, "n w"] | None = None,
) -> Float[Array, ""]:
    """Tells for each pair of an image and a text, on its own, whether they belong together.

    ``-(1/n) sum_ij log sigmoid(y_ij (exp(log_scale) <image_i, text_j> + bias))`` with ``y`` 1 on
    the diagonal and -1 off it. Pure.

    Ref: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023.

    Args:
      image: as for ``clip_loss``.
      text: as for ``clip_loss``.
      log_scale: ``[]``.
      bias: ``[]``, begins at -10 there.
      ids: as for ``clip_loss``; off the diagonal, twins count for nothing.

    Raises:
      ValueError: as ``clip_loss``; a missing bias.
    """
    _check(image, text, ids)
    if bias is None:
        raise ValueError("bias must be given: a model with init_bias has one")
    same = jnp.eye(len(image), dtype=bool)
    ignored = None if ids is None else _twins(ids, ids) & ~same
    return _sigmoid_sum(image, text, log_scale, bias, same, ignored) / len(image)


def ring_sigmoid_loss(
    image: Float[Array, "n d"],
    text: Float[Array, "n d"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    mesh: Mesh,
    ids: Int[Array, "n w"] | None = None,
) -> Float[Array, ""]:
    """Is ``sigmoid_loss`` with the texts going round the devices, ``n / k`` of them at a time.

    A device holds ``[n / k, n / k]`` logits and sends its texts on ``k - 1`` times; the gradient
    goes round the other way. The value is that of ``sigmoid_loss`` up to the order of the sums.

    Args:
      image: as for ``clip_loss``, split over ``"data"`` or to be so.
      text: likewise.
      log_scale: ``[]``.
      bias: ``[]``.
      mesh: with an axis ``"data"`` of size ``k``, which must divide ``n``.
      ids: as for ``clip_loss``.

    Raises:
      ValueError: as ``sigmoid_loss``; an ``n`` that does not divide.
    """
    _check(image, text, ids)
    size = mesh.shape["data"]
    if len(image) % size:
        raise ValueError(f"n must be a multiple of the {size} devices, got {len(image)}")
    ids = jnp.arange(len(image), dtype=jnp.int32)[:, None] if ids is None else ids
    rows, whole = PartitionSpec("data"), PartitionSpec()

    @partial(jax.shard_map, mesh=mesh, in_specs=(rows, rows, rows, whole, whole), out_specs=whole)
    def run(image, text, ids, log_scale, bias):
        own = jnp.eye(len(image), dtype=bool)

        # Without the checkpoint the backward pass would keep the logits of every turn.
        @jax.checkpoint
        def block(text, other, first):
            same = own & first
            ignored = _twins(ids, other) & ~same
            return _sigmoid_sum(image, text, log_scale, bias, same, ignored)

        def turn(carry, _):
            text, other, total = carry
            text, other = (
                jax.lax.ppermute(a, "data", [(i, (i + 1) % size) for i in range(size)])
                for a in (text, other)
            )
            return (text, other, total + block(text, other, False)), None

        carry = (text, ids, block(text, ids, True))
        (_, _, total), _ = jax.lax.scan(turn, carry, length=size - 1)
        return jax.lax.psum(total, "data")

    return run(image, text, ids, log_scale, bias) / len(image)


def _sigmoid_sum(image, text, log_scale, bias, same, ignored):
    logits = jnp.exp(log_scale) * _products(image, text) + bias
    terms = jax.nn.softplus(jnp.where(same, -logits, logits))
    return (terms if ignored is None else jnp.where(ignored, 0, terms)).sum()


def _products(image, text):
    return jnp.matmul(image, text.T, precision=_HIGHEST)


def _twins(a, b):
    return (a[:, None] == b[None]).all(axis=-1)


def _check(image, text, ids):
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must be [n, d] both, got {image.shape} and {text.shape}")
    if ids is not None and (ids.ndim != 2 or len(ids) != len(image)):
        raise ValueError(f"ids must be [{len(image)}, w], got {ids.shape}")
