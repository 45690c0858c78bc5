"""CLIP's two towers (Radford et al., "Learning Transferable Visual Models ...", 2021)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxml.nn.activation import Activation

INIT_LOG_SCALE = math.log(1 / 0.07)


def gelu_exact(x: jax.Array) -> jax.Array:
    """``x Phi(x)`` with the error function, not its tanh approximation."""
    return nn.gelu(x, approximate=False)


def gelu_quick(x: jax.Array) -> jax.Array:
    """``x sigmoid(1.702 x)``, which the first published weights were trained with."""
    return x * nn.sigmoid(1.702 * x)


class CLIPOutput(NamedTuple):
    """What both towers make of a batch.

    Attributes:
      image: unit vectors ``[n, d]``.
      text: unit vectors ``[n, d]``, row by row those of the images.
      log_scale: logarithm of the factor on their inner products ``[]``.
      bias: what a sigmoid loss adds to them ``[]``; None in a model without one.
    """

    image: Float[Array, "n d"]
    text: Float[Array, "n d"]
    log_scale: Float[Array, ""]
    bias: Float[Array, ""] | None


class CLIPBlock(nn.Module):
    """Self-attention, then two dense layers; each behind a layer norm and beside the identity.

    ``ViTBlock`` with one kernel for queries, keys and values, layer norms with epsilon 1e-5, the
    exact gelu and CLIP's initialisation, which knows how many blocks there are.

    Attributes:
      heads: of the attention; must divide the width.
      n_blocks: blocks of the tower.
      causal: a token sees those before it only.
      activation: between the two dense layers.
      dtype: of the computation; parameters are float32.
    """

    heads: int
    n_blocks: int
    causal: bool = False
    activation: Activation = gelu_exact
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        """Maps tokens to tokens."""
        n, t, width = x.shape
        last_std = width**-0.5 * (2 * self.n_blocks) ** -0.5

        def dense(name, units, std):
            init = nn.initializers.normal(std)
            return nn.Dense(units, kernel_init=init, dtype=self.dtype, name=name)

        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_1")(x)
        y = jnp.split(dense("qkv", 3 * width, width**-0.5)(y), 3, axis=-1)
        query, key, value = (part.reshape(n, t, self.heads, -1) for part in y)
        y = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + dense("out", width, last_std)(y.reshape(n, t, width))
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_2")(x)
        y = self.activation(dense("up", 4 * width, (2 * width) ** -0.5)(y))
        return x + dense("down", width, last_std)(y)


class VisionTower(nn.Module):
    """Patches and a class token with learned positions, blocks, projection of the class token.

    The positions belong to one size of image.

    Attributes:
      width: of the tokens.
      layers: number of blocks.
      heads: of each attention; must divide ``width``.
      patch: side of a patch; must divide the sides of the image.
      embed: units of the projection, which has no bias.
      activation: inside the blocks.
      remat: computes each block again in the backward pass instead of keeping what is in it.
      dtype: of the computation; parameters are float32.
    """

    width: int
    layers: int
    heads: int
    patch: int
    embed: int
    activation: Activation = gelu_exact
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n e"]:
        """Maps images to features, not normalised.

        Raises:
          ValueError: a ``patch`` or ``heads`` that does not divide.
        """
        n, height, width, channels = x.shape
        p, std = self.patch, self.width**-0.5
        if height % p or width % p:
            raise ValueError(f"patch must divide {height} and {width}, got {p}")
        _check_heads(self.heads, self.width)
        # A convolution whose stride is its size, as the product of matrices that it is.
        x = x.reshape(n, height // p, p, width // p, p, channels).swapaxes(2, 3)
        x = x.reshape(n, -1, p * p * channels)
        x = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="patches")(x)
        token = self.param("token", nn.initializers.normal(std), (self.width,))
        token = jnp.broadcast_to(token.astype(self.dtype)[None, None], (n, 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        position = self.param("position", nn.initializers.normal(std), x.shape[1:])
        x = x + position.astype(self.dtype)[None]
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_pre")(x)
        x = _blocks(self, x, causal=False)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_post")(x[:, 0])
        return _project(self, x)


class TextTower(nn.Module):
    """Token embeddings with learned positions, causal blocks, projection of the end token.

    The end token is the one with the largest number, wherever it stands; what comes after it has
    no influence.

    Attributes:
      vocabulary: number of tokens.
      context: tokens of a text, static.
      width: of the tokens.
      layers: number of blocks.
      heads: of each attention; must divide ``width``.
      embed: units of the projection, which has no bias.
      activation: inside the blocks.
      remat: as of ``VisionTower``.
      dtype: of the computation; parameters are float32.
    """

    vocabulary: int
    context: int
    width: int
    layers: int
    heads: int
    embed: int
    activation: Activation = gelu_exact
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n e"]:
        """Maps tokens to features, not normalised.

        Raises:
          ValueError: texts of another length than ``context``, or ``heads`` that do not divide.
        """
        if tokens.shape[1] != self.context:
            raise ValueError(f"tokens must be [n, {self.context}], got {tokens.shape}")
        _check_heads(self.heads, self.width)
        embed = nn.Embed(
            self.vocabulary,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="embedding",
        )
        shape = (self.context, self.width)
        position = self.param("position", nn.initializers.normal(0.01), shape)
        x = embed(tokens) + position.astype(self.dtype)[None]
        x = _blocks(self, x, causal=True)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_final")(x)
        end = jnp.argmax(tokens, axis=-1)[:, None, None]
        return _project(self, jnp.take_along_axis(x, end, axis=1)[:, 0])


class BagOfWords(nn.Module):
    """The mean of the embeddings of a text's words, and dense layers: a text tower for a laptop.

    Attributes:
      vocabulary: number of tokens; token 0 is padding.
      features: units of the embeddings, then of each hidden layer.
      embed: units of the projection, which has no bias.
    """

    vocabulary: int
    features: tuple[int, ...]
    embed: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n e"]:
        """Maps tokens to features, not normalised; a text without a word to that of no word."""
        first, *others = self.features
        x = nn.Embed(self.vocabulary, first, name="embedding")(tokens)
        words = (tokens > 0).astype(x.dtype)[..., None]
        x = nn.relu((x * words).sum(axis=1) / jnp.maximum(words.sum(axis=1), 1))
        for width in others:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.embed, use_bias=False, name="projection")(x)


class CLIP(nn.Module):
    """Two towers into one space.

    ``model.apply(variables, images, tokens)`` gives a ``CLIPOutput``; with
    ``method="encode_image"`` or ``"encode_text"`` one tower alone gives unit vectors ``[n, d]``.

    Attributes:
      image_tower: module from images ``[n, ...]`` to ``[n, d]``.
      text_tower: module from tokens ``[n, t]`` to ``[n, d]``.
      init_log_scale: where the logarithm of the scale begins, ln(1 / 0.07).
      init_bias: where the bias of a sigmoid loss begins; None has none.
    """

    image_tower: nn.Module
    text_tower: nn.Module
    init_log_scale: float = INIT_LOG_SCALE
    init_bias: float | None = None

    def setup(self):
        """Makes the scale and the bias; the towers are attributes."""
        constant = nn.initializers.constant
        self.log_scale = self.param("log_scale", constant(self.init_log_scale), ())
        if self.init_bias is not None:
            self.bias = self.param("logit_bias", constant(self.init_bias), ())

    def encode_image(self, images: Float[Array, "n ..."]) -> Float[Array, "n d"]:
        """Maps images to unit vectors, float32."""
        return _unit(self.image_tower(images))

    def encode_text(self, tokens: Int[Array, "n t"]) -> Float[Array, "n d"]:
        """Maps tokens to unit vectors, float32."""
        return _unit(self.text_tower(tokens))

    def __call__(self, images: Float[Array, "n ..."], tokens: Int[Array, "n t"]) -> CLIPOutput:
        """Maps images and the tokens of their texts to both features."""
        bias = None if self.init_bias is None else self.bias
        return CLIPOutput(self.encode_image(images), self.encode_text(tokens), self.log_scale, bias)


# Image width, layers, heads and patch, text width and heads, features.
_SIZES = {
    "ViT-B-32": (768, 12, 12, 32, 512, 8, 512),
    "ViT-B-16": (768, 12, 12, 16, 512, 8, 512),
    "ViT-L-14": (1024, 24, 16, 14, 768, 12, 768),
}
CLIP_MODELS = tuple(_SIZES)


def build_clip(
    name: str,
    *,
    vocabulary: int = 49408,
    context: int = 77,
    activation: Activation = gelu_exact,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
    init_log_scale: float = INIT_LOG_SCALE,
    init_bias: float | None = None,
) -> CLIP:
    """Makes a CLIP of a published size, for images of 224x224.

    Args:
      name: one of ``CLIP_MODELS``; ViT-B-32 has 151,277,313 parameters.
      vocabulary: number of tokens.
      context: tokens of a text.
      activation: ``gelu_exact``, or ``gelu_quick`` for weights that were trained with it.
      remat: computes each block again in the backward pass; less memory, a third more work.
      dtype: of the computation; parameters and features are float32.
      init_log_scale: as of ``CLIP``.
      init_bias: as of ``CLIP``.

    Raises:
      ValueError: an unknown name.
    """
    if name not in _SIZES:
        raise ValueError(f"name must be one of {', '.join(CLIP_MODELS)}; got {name!r}")
    width, layers, heads, patch, text_width, text_heads, embed = _SIZES[name]
    common = {"activation": activation, "remat": remat, "dtype": dtype}
    return CLIP(
        VisionTower(width, layers, heads, patch, embed, **common),
        TextTower(vocabulary, context, text_width, 12, text_heads, embed, **common),
        init_log_scale,
        init_bias,
    )


def _blocks(tower, x, *, causal):
    block = nn.remat(CLIPBlock) if tower.remat else CLIPBlock
    for i in range(tower.layers):
        x = block(
            tower.heads, tower.layers, causal, tower.activation, tower.dtype, name=f"block_{i}"
        )(x)
    return x


def _project(tower, x):
    init = nn.initializers.normal(tower.width**-0.5)
    return nn.Dense(
        tower.embed, use_bias=False, kernel_init=init, dtype=tower.dtype, name="projection"
    )(x)


def _unit(x):
    x = x.astype(jnp.float32)
    # The floor keeps the gradient of a zero vector finite.
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))


def _check_heads(heads, width):
    if width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
