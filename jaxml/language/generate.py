"""Sampling from a language model, each row with a key of its own."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxml.core.chunk import row_blocks
from jaxml.core.sharding import on_each_device, replicate
from jaxml.core.types import ApplyFn, Key, PyTree

Model = nn.Module | ApplyFn
"""A Flax module with ``decode`` and ``init_cache``, as ``jaxml.nn.GPT`` has; or any function
``apply(variables, tokens [n, t]) -> logits [n, t, v]`` that is causal, at the cost of a full pass
for each token."""


def apply_fn(model: Model) -> ApplyFn:
    """Returns the function ``apply(variables, tokens) -> logits`` of a model."""
    return model.apply if isinstance(model, nn.Module) else model


def generate(
    keys: Key,
    model: Model,
    variables: PyTree,
    prompts: Int[Array, "n p"],
    *,
    n_tokens: int,
    top_k: int | None = 40,
    temperature: float = 1.0,
    banned: tuple[int, ...] = (),
    batch_size: int = 128,
    mesh: Mesh | None = None,
    callback=None,
) -> np.ndarray:
    """Samples continuations; row ``i`` depends on ``keys[i]`` and ``prompts[i]`` only.

    Token ``j`` of a row is drawn with ``fold_in(key, j)`` from the ``top_k`` largest logits over
    the temperature. Rows run in blocks of exactly ``batch_size``, the last one padded, so a row
    gives the same bits in any company; another ``batch_size`` may round logits otherwise.

    Args:
      keys: typed keys ``[n]``.
      model: see ``Model``; hashable. One compilation for each model, shape and option.
      variables: of the model.
      prompts: ids ``[n, p]``, ``p >= 1``, of equal length; begin them as the model's documents do.
      n_tokens: to be drawn for each row.
      top_k: how many tokens are drawn from; None means all; 1 is greedy decoding.
      temperature: of the softmax; 0 is greedy decoding.
      banned: ids that are never drawn.
      batch_size: rows of a block.
      mesh: devices over which the rows of a block are split, if it divides ``batch_size``.
      callback: ``callback(rows done)`` after each block.

    Returns:
      int32 ``[n, n_tokens]``, without the prompts.

    Raises:
      ValueError: no prompt, a negative id, keys that are not one for each, or an option out of
        range, such as a ban of every token.
    """
    prompts = np.asarray(prompts, np.int32)
    if prompts.ndim != 2 or not prompts.size:
        raise ValueError(f"prompts must be [n, p] with n, p >= 1, got shape {prompts.shape}")
    if prompts.min() < 0:
        raise ValueError(f"prompts must be token ids, got {prompts.min()}")
    n = len(prompts)
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != (n,):
        raise ValueError(f"keys must be {n} typed keys, got {keys.dtype} {keys.shape}")
    for name, value in (("n_tokens", n_tokens), ("batch_size", batch_size), ("top_k", top_k)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    options = {"n_tokens": n_tokens, "top_k": 1 if temperature == 0 else top_k, "banned": banned}
    variables = replicate(variables, mesh)
    out = []
    for rows, count in row_blocks(n, batch_size, least=batch_size):
        block = _generate_block(
            keys[rows], model, variables, prompts[rows], jnp.float32(temperature or 1),
            **options, mesh=mesh,
        )  # fmt: skip
        out.append(np.asarray(block)[:count])
        if callback is not None:
            callback(int(rows[0]) + count)
    return np.concatenate(out)


@partial(jax.jit, static_argnames=("model", "n_tokens", "top_k", "banned", "mesh"))
def _generate_block(keys, model, variables, prompts, temperature, *, mesh, **options):
    sample = partial(_sample, model=model, **options)
    if mesh is not None and prompts.shape[0] % mesh.size == 0:
        sample = on_each_device(sample, mesh, split=[True, False, True, False])
    return sample(keys, variables, prompts, temperature)


def _sample(keys, variables, prompts, temperature, *, model, n_tokens, top_k, banned):
    n, p = prompts.shape

    def draw(j, logits):
        logits = logits.astype(jnp.float32)
        vocab_size = logits.shape[-1]
        if banned:
            if not set(banned) < set(range(vocab_size)):
                raise ValueError(f"banned must be some ids of 0..{vocab_size - 1}, got {banned}")
            logits = logits.at[:, jnp.asarray(banned)].set(-jnp.inf)
        if top_k == 1:
            return logits.argmax(-1).astype(jnp.int32)
        tokens = None
        if top_k is not None and top_k < vocab_size:
            logits, tokens = jax.lax.top_k(logits, top_k)
        row_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, j)
        picks = jax.vmap(jax.random.categorical)(row_keys, logits / temperature)
        if tokens is not None:
            picks = jnp.take_along_axis(tokens, picks[:, None], axis=1)[:, 0]
        return picks.astype(jnp.int32)

    steps = jnp.arange(n_tokens)
    if hasattr(model, "decode"):
        cache = model.init_cache(n, p + n_tokens)
        logits, cache = model.apply(variables, prompts, cache, method="decode")
        first = draw(0, logits[:, -1])

        def step(carry, j):
            cache, token = carry
            logits, cache = model.apply(variables, token[:, None], cache, method="decode")
            token = draw(j, logits[:, 0])
            return (cache, token), token

        _, tokens = jax.lax.scan(step, (cache, first), steps[1:])
        return jnp.concatenate([first[None], tokens]).T

    def naive_step(tokens, j):
        # Causal: what stands behind the read position does not matter.
        logits = apply_fn(model)(variables, tokens)
        token = draw(j, logits[:, p + j - 1])
        return tokens.at[:, p + j].set(token), token

    tokens = jnp.concatenate([prompts, jnp.zeros((n, n_tokens), jnp.int32)], axis=1)
    return jax.lax.scan(naive_step, tokens, steps)[1].T


def token_nll(
    model: Model, variables: PyTree, tokens: Int[Array, "n t"], *, batch_size: int = 64
) -> Float[Array, "n t-1"]:
    """Returns ``-log p(tokens[:, i + 1] | tokens[:, : i + 1])`` in nats, float32 ``[n, t - 1]``.

    Raises:
      ValueError: rows of fewer than two tokens.
    """
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be [n, t] with t >= 2, got shape {tokens.shape}")
    blocks = [
        np.asarray(_nll_block(model, variables, tokens[rows]))[:count]
        for rows, count in row_blocks(len(tokens), batch_size, least=batch_size)
    ]
    return np.concatenate(blocks)


def document_nll(
    model: Model,
    variables: PyTree,
    documents: Sequence[np.ndarray],
    *,
    bos: int,
    context: int,
    batch_size: int = 64,
) -> list[np.ndarray]:
    """Returns the nats of each token of each document, float32 ``[n_i]``.

    Args:
      model: causal, as for ``generate``.
      variables: of the model.
      documents: ids ``[n_i]``.
      bos: put before each document.
      context: of the model; what lies beyond it is left out.
      batch_size: rows at a time, as long as the longest document or a little longer.

    Raises:
      ValueError: no document or an empty one, or a context below 2.
    """
    documents = [np.asarray(document)[: context - 1] for document in documents]
    if context < 2 or not documents or not all(map(len, documents)):
        raise ValueError(
            f"documents must be one or more, none empty, and context at least 2; got "
            f"{len(documents)} and {context}"
        )
    # Few lengths, so that few are compiled.
    length = min(-(-(max(map(len, documents)) + 1) // 32) * 32, context)
    rows = np.full((len(documents), length), bos, np.int32)
    for row, document in zip(rows, documents, strict=True):
        row[1 : len(document) + 1] = document
    nll = token_nll(model, variables, rows, batch_size=batch_size)
    return [row[: len(document)] for row, document in zip(nll, documents, strict=True)]


@partial(jax.jit, static_argnames="model")
def _nll_block(model, variables, tokens):
    logits = apply_fn(model)(variables, tokens[:, :-1]).astype(jnp.float32)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
