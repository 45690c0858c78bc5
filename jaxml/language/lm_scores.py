"""Log-probabilities that a language model of one's own gives: what its oracles and searches use."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxml.core.chunk import row_blocks
from jaxml.core.sharding import replicate, shard_batch
from jaxml.core.types import PyTree
from jaxml.language.generate import Model, apply_fn
from jaxml.language.oracles import PAD, LogProbs
from jaxml.language.tokenwise import NextLogProbs


def last_logits(model: Model, variables: PyTree, tokens, n: int) -> Float[Array, "n t v"]:
    """Returns the float logits of the ``n`` last positions; a ``GPT`` computes no others."""
    if isinstance(model, nn.Module) and hasattr(model, "decode"):
        logits = model.apply(variables, tokens, last=n)
    else:
        logits = apply_fn(model)(variables, tokens)[:, tokens.shape[1] - n :]
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)


def target_log_probs(
    model: Model,
    variables: PyTree,
    contexts: Int[Array, "n l"],
    targets: Int[Array, "n t"],
) -> tuple[Float[Array, "n t"], Bool[Array, "n t"]]:
    """Returns ``log p(targets[:, i] | contexts, targets[:, :i])`` and whether each is the argmax.

    One pass for all; no softmax over the vocabulary is kept.

    Args:
      model: see ``Model``.
      variables: of the model.
      contexts: ids, ``l >= 1``.
      targets: ids; what a ``PAD`` gives has no meaning.
    """
    targets = jnp.maximum(targets, 0)
    tokens = jnp.concatenate([contexts, targets[:, :-1]], axis=1)
    logits = last_logits(model, variables, tokens, targets.shape[1])
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1), logits.argmax(-1) == targets


def lm_log_probs(
    model: Model, variables: PyTree, *, batch_size: int = 256, mesh: Mesh | None = None
) -> LogProbs:
    """Makes the function that ``LogprobOracle`` asks.

    Args:
      model: see ``Model``; hashable.
      variables: of the model.
      batch_size: largest number of rows in one pass; fewer are padded to a power of two, so that
        few shapes are compiled.
      mesh: devices over which the rows of a pass are split.

    Returns:
      ``LogProbs``, which raises ValueError for an id outside the vocabulary, and for sequences
      longer than the model's context.
    """
    vocab_size = vocabulary(model, variables)
    variables = replicate(variables, mesh)

    def log_probs(contexts, targets):
        check_vocabulary(vocab_size, contexts, targets)
        blocks = [
            [
                np.asarray(array)[:n]
                for array in _target_log_probs(
                    variables, contexts[rows], targets[rows], model=model, mesh=mesh
                )
            ]
            for rows, n in row_blocks(len(contexts), batch_size)
        ]
        return tuple(np.concatenate(arrays) for arrays in zip(*blocks, strict=True))

    return log_probs


def lm_next_token(
    model: Model, variables: PyTree, *, length: int, batch_size: int = 256
) -> NextLogProbs:
    """Makes the function that a token-by-token oracle asks.

    Args:
      model: see ``Model``; hashable.
      variables: of the model.
      length: of the longest context; shorter ones are padded to it, behind what is read.
      batch_size: as in ``lm_log_probs``.

    Returns:
      ``fn(contexts [n, l]) -> log-probabilities [n, v]`` of the next token; raises ValueError for a
      context longer than ``length``, or an id outside the vocabulary.
    """
    vocab_size = vocabulary(model, variables)

    def next_log_probs(contexts):
        n, used = contexts.shape
        if used > length:
            raise ValueError(f"contexts must be at most length={length} long, got {used}")
        check_vocabulary(vocab_size, contexts)
        tokens = np.zeros((n, length), np.int32)
        tokens[:, :used] = contexts
        blocks = [
            np.asarray(_next_log_probs(variables, tokens[rows], np.int32(used - 1), model=model))[
                :count
            ]
            for rows, count in row_blocks(n, batch_size)
        ]
        return np.concatenate(blocks)

    return next_log_probs


def vocabulary(model: Model, variables: PyTree) -> int:
    """Returns the size of a model's vocabulary."""
    like = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(apply_fn(model), variables, like).shape[-1]


def check_vocabulary(vocab_size: int, *arrays: np.ndarray) -> None:
    """Raises ValueError for an id that is not in the vocabulary; ``PAD`` passes."""
    low, high = min(int(a.min()) for a in arrays), max(int(a.max()) for a in arrays)
    if low < PAD or high >= vocab_size:
        raise ValueError(f"token ids must lie in 0..{vocab_size - 1}, got {low} to {high}")


@partial(jax.jit, static_argnames=("model", "mesh"))
def _target_log_probs(variables, contexts, targets, *, model, mesh):
    contexts, targets = shard_batch(contexts, mesh), shard_batch(targets, mesh)
    return target_log_probs(model, variables, contexts, targets)


@partial(jax.jit, static_argnames="model")
def _next_log_probs(variables, tokens, position, *, model):
    logits = apply_fn(model)(variables, tokens)
    # Causal: what stands behind the position does not matter.
    logits = jax.lax.dynamic_index_in_dim(logits, position, axis=1, keepdims=False)
    return jax.nn.log_softmax(logits.astype(jnp.float32))
