"""The decoder-only transformer of GPT-2 (Radford et al., 2019); positions learned or rotary."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxml.nn.activation import Activation

POSITIONS = ("learned", "rotary")


def _normal(width: int, scale: float = 1.0):
    """Returns GPT-2's initialiser: a standard deviation of 0.02 at its width of 768."""
    return nn.initializers.normal(scale * 0.02 * (768 / width) ** 0.5)


class KVCache(NamedTuple):
    """Keys and values of the tokens that a ``GPT`` has read.

    Attributes:
      keys: of each layer, ``[n, heads, length, head_dim]``; rotated, where positions are.
      values: likewise.
      last: embedding of the last token, zeros before the first.
      used: tokens read so far, the same for all rows, int32 ``[]``.
    """

    keys: tuple[Float[Array, "n heads length head_dim"], ...]
    values: tuple[Float[Array, "n heads length head_dim"], ...]
    last: Float[Array, "n width"]
    used: Int[Array, ""]


def rotate(
    x: Float[Array, "n t heads head_dim"], positions: Int[Array, " t"]
) -> Float[Array, "n t heads head_dim"]:
    """Turns each pair ``(x_i, x_(i + d/2))`` of a head by ``position / 10000^(2 i / d)``.

    The inner product of two rotated vectors depends on the distance of their positions only.

    Ref: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-jnp.arange(half, dtype=x.dtype) / half)
    angles = positions.astype(x.dtype)[:, None] * rates[None]
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class GPTBlock(nn.Module):
    """Causal self-attention, then two dense layers; each behind a layer norm, beside the identity.

    Attributes:
      heads: of the attention; must divide the width.
      hidden: units between the two dense layers.
      depth: blocks of the whole model; the initial outputs shrink by ``sqrt(2 depth)``.
      rotary: whether queries and keys are rotated by their positions.
      activation: between the two dense layers.
    """

    heads: int
    hidden: int
    depth: int
    rotary: bool
    activation: Activation

    @nn.compact
    def __call__(self, x, positions, past=None):
        """Maps ``x [n, t, d]`` at ``positions [t]`` to its output and its keys and values.

        ``past`` is ``(keys, values)``, ``[n, heads, length, head_dim]``, into which those of ``x``
        are written at ``positions``; None means that ``x`` is all there is.
        """
        width = x.shape[-1]
        init, out_init = _normal(width), _normal(width, (2 * self.depth) ** -0.5)
        y = nn.LayerNorm(epsilon=1e-5, name="norm_1")(x)
        shape = (self.heads, width // self.heads)
        query, key, value = (
            nn.DenseGeneral(shape, kernel_init=init, name=name)(y)
            for name in ("query", "key", "value")
        )
        if self.rotary:
            query, key = rotate(query, positions), rotate(key, positions)
        if past is None:
            y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        else:
            start = (0, 0, positions[0], 0)
            key, value = (
                jax.lax.dynamic_update_slice(whole, new.swapaxes(1, 2).astype(whole.dtype), start)
                for whole, new in zip(past, (key, value), strict=True)
            )
            # With heads ahead of the length a step is one batch of matrix products, which on a CPU
            # takes a tenth of the time of `dot_product_attention`.
            scores = jnp.einsum("nthd,nhld->nhtl", query, key) * shape[1] ** -0.5
            seen = jnp.arange(key.shape[2])[None] <= positions[:, None]
            scores = jnp.where(seen[None, None], scores, -jnp.inf)
            y = jnp.einsum("nhtl,nhld->nthd", jax.nn.softmax(scores), value)
        y = nn.DenseGeneral(width, axis=(-2, -1), kernel_init=out_init, name="out")(y)
        x = x + y
        y = nn.LayerNorm(epsilon=1e-5, name="norm_2")(x)
        y = self.activation(nn.Dense(self.hidden, kernel_init=init, name="up")(y))
        x = x + nn.Dense(width, kernel_init=out_init, name="down")(y)
        return x, (key, value)


class GPT(nn.Module):
    """Token embedding, ``GPTBlock`` s, layer norm, and the embedding again as the head.

    With ``positions="learned"`` and the default activation it is GPT-2, parameter for parameter.

    Attributes:
      vocab_size: of the embedding and of the logits.
      context: longest sequence, prompt included.
      width: of the tokens.
      hidden: units inside each block, one number a block.
      heads: of each attention; must divide ``width``.
      positions: ``"learned"``, added to the embedding, or ``"rotary"``, which need an even
        ``width / heads``.
      token_shift: adds a linear map of the previous token's embedding to that of each token. Small
        models learn to copy from their context within some hundred steps with it (two blocks of
        width 128 had not after 1000 without): half of the circuit (Olsson et al., "In-context
        Learning and Induction Heads", 2022) is there from the start.
      activation: inside the blocks; GPT-2's is the tanh form of gelu.
    """

    vocab_size: int
    context: int = 1024
    width: int = 768
    hidden: tuple[int, ...] = (3072,) * 12
    heads: int = 12
    positions: str = "learned"
    token_shift: bool = False
    activation: Activation = nn.gelu

    def setup(self):
        """Checks the sizes and makes the layers."""
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {POSITIONS}, got {self.positions!r}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width {self.width}, got {self.heads}")
        rotary = self.positions == "rotary"
        if rotary and self.width // self.heads % 2:
            raise ValueError(f"rotary positions need width / heads even, got {self.heads} heads")
        init = _normal(self.width)
        self.embed = nn.Embed(self.vocab_size, self.width, embedding_init=init)
        if not rotary:
            self.position = self.param("position", init, (self.context, self.width))
        if self.token_shift:
            self.shift = nn.Dense(self.width, use_bias=False)
        depth = len(self.hidden)
        self.blocks = [
            GPTBlock(self.heads, hidden, depth, rotary, self.activation) for hidden in self.hidden
        ]
        self.norm = nn.LayerNorm(epsilon=1e-5)

    def __call__(
        self,
        tokens: Int[Array, "n t"] | Float[Array, "n t v"],
        train: bool = False,
        *,
        last: int | None = None,
    ) -> Float[Array, "n t v"]:
        """Maps tokens to the logits of the token that follows each.

        Args:
          tokens: ids ``[n, t]``, ``t`` at most ``context``; or rows ``[n, t, v]`` of weights over
            the vocabulary, through which a gradient can flow to them.
          train: changes nothing.
          last: logits of so many last positions only; None means of all.

        Raises:
          ValueError: sequences longer than ``context``, or ``last`` not in ``[0, t]``.
        """
        t = tokens.shape[1]
        if t > self.context:
            raise ValueError(f"tokens must be at most context={self.context} a row, got {t}")
        if last is not None and not 0 <= last <= t:
            raise ValueError(f"last must lie in [0, {t}], the positions of a row, got {last}")
        positions = jnp.arange(t)
        before = jnp.zeros((tokens.shape[0], self.width), self.embed.embedding.dtype)
        x, _ = self._embedded(tokens, positions, before)
        for block in self.blocks:
            x, _ = block(x, positions)
        return self._logits(x if last is None else x[:, t - last :])

    def decode(
        self, tokens: Int[Array, "n t"], cache: KVCache
    ) -> tuple[Float[Array, "n t v"], KVCache]:
        """Reads the next ``t`` tokens of each row; the logits of each and the longer cache.

        There is no room check: ``cache.used + t`` must not exceed the length of the cache.
        """
        positions = cache.used + jnp.arange(tokens.shape[1])
        x, last = self._embedded(tokens, positions, cache.last)
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            x, (key, value) = block(x, positions, (cache.keys[i], cache.values[i]))
            keys.append(key)
            values.append(value)
        used = cache.used + jnp.int32(tokens.shape[1])
        return self._logits(x), KVCache(tuple(keys), tuple(values), last, used)

    def init_cache(self, n: int, length: int, dtype=jnp.float32) -> KVCache:
        """Returns an empty cache for ``n`` rows of at most ``length`` tokens.

        Raises:
          ValueError: a ``length`` beyond ``context``.
        """
        if length > self.context:
            raise ValueError(f"length must be at most context={self.context}, got {length}")
        shape = (n, self.heads, length, self.width // self.heads)
        empty = (jnp.zeros(shape, dtype),) * len(self.hidden)
        return KVCache(empty, empty, jnp.zeros((n, self.width), dtype), jnp.int32(0))

    def _embedded(self, tokens, positions, before):
        """Embeds tokens that follow one of embedding ``before``; also the last one's embedding."""
        if jnp.issubdtype(tokens.dtype, jnp.integer):
            x = self.embed(tokens)
        else:
            x = tokens @ self.embed.embedding
        last = x[:, -1]
        if self.token_shift:
            x = x + self.shift(jnp.concatenate([before[:, None], x[:, :-1]], axis=1))
        if self.positions == "learned":
            x = x + jnp.take(self.position, positions, axis=0)[None]
        return x, last

    def _logits(self, x):
        return self.embed.attend(self.norm(x))
