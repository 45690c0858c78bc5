"""Small networks, one a structural feature, on which permutation specs are tested."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (8, 12, 10):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(3)(x)


class FlattenCNN(nn.Module):
    """Two convolutions, a flatten into a dense layer, and a choice of normalisation."""

    norm: str

    def normalise(self, x):
        match self.norm:
            case "batch":
                return nn.BatchNorm(use_running_average=True)(x)
            case "layer":
                return nn.LayerNorm()(x)
            case "rms":
                return nn.RMSNorm()(x)
            case "instance":
                return nn.InstanceNorm()(x)
            case _:
                return nn.GroupNorm(int(self.norm))(x)

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.normalise(nn.Conv(16, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(self.normalise(nn.Conv(24, (3, 3), padding="VALID")(x)))
        x = nn.relu(nn.Dense(40)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


class Depthwise(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=16)(x))
        x = nn.relu(nn.Conv(8, (1, 1))(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Grouped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(64, (3, 3), feature_group_count=4, strides=2)(x))
        return nn.Dense(3)(x.mean((1, 2)))


class SquareResidual(nn.Module):
    """A residual stream whose update kernel carries one group on both of its axes."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(24)(x)
        x = x + nn.relu(nn.Dense(24)(x))
        return nn.Dense(3)(x)


class BottleneckResidual(nn.Module):
    """Two residual blocks; ``anchored`` fixes the stream by making it the input and output."""

    anchored: bool = True
    stream: int = 30
    inner: int = 50

    @nn.compact
    def __call__(self, x):
        if not self.anchored:
            x = nn.Dense(self.stream, use_bias=False)(x)
        for _ in range(2):
            h = nn.relu(nn.Dense(self.inner, use_bias=False)(x))
            x = x + nn.Dense(self.stream, use_bias=False)(h)
        return x if self.anchored else nn.Dense(4, use_bias=False)(x)


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (4, 4), strides=4)(x)
        x = x.reshape(x.shape[0], -1, 32)
        cls = self.param("cls", nn.initializers.normal(1.0), (1, 1, 32))
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, 32)), x], axis=1)
        x = x + self.param("position", nn.initializers.normal(1.0), (1, x.shape[1], 32))
        for _ in range(2):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, y)
            y = nn.LayerNorm()(x)
            x = x + nn.Dense(32)(nn.gelu(nn.Dense(128)(y)))
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


class TiedLM(nn.Module):
    """A causal language model whose embedding is also its output layer."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 16)
        x = embed(tokens) + nn.Embed(tokens.shape[1], 16)(jnp.arange(tokens.shape[1])[None])
        mask = nn.make_causal_mask(tokens)
        for _ in range(2):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y, mask=mask)
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return embed.attend(nn.LayerNorm()(x))


class LSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.LSTMCell(20, param_dtype=x.dtype))(x)
        return nn.Dense(3)(x[:, -1])


class GatedMLP(nn.Module):
    """A gated unit by an equal split: both halves share their order."""

    @nn.compact
    def __call__(self, x):
        value, gate = jnp.split(nn.Dense(32)(x), 2, axis=-1)
        return nn.Dense(3)(value * nn.sigmoid(gate))


IMAGE = (2, 10, 10, 2)
ZOO = {
    "mlp": (MLP(), (2, 5)),
    "cnn_batchnorm": (FlattenCNN("batch"), IMAGE),
    "cnn_layernorm": (FlattenCNN("layer"), IMAGE),
    "cnn_rmsnorm": (FlattenCNN("rms"), IMAGE),
    "cnn_instancenorm": (FlattenCNN("instance"), IMAGE),
    "cnn_groupnorm1": (FlattenCNN("1"), IMAGE),
    "cnn_groupnorm4": (FlattenCNN("4"), IMAGE),
    "depthwise": (Depthwise(), IMAGE),
    "grouped": (Grouped(), IMAGE),
    "square_residual": (SquareResidual(), (2, 5)),
    "bottleneck_residual": (BottleneckResidual(anchored=False), (2, 5)),
    "vit": (ViT(), (2, 8, 8, 2)),
    "tied_lm": (TiedLM(), (2, 7)),
    "lstm": (LSTM(), (2, 6, 5)),
    "gated": (GatedMLP(), (2, 5)),
}


@functools.cache
def make(name, *, dtype=jnp.float32, randomise=True):
    """Returns (module, variables, inputs); every leaf random, so that no symmetry is accidental."""
    module, shape = ZOO[name]
    if name == "tied_lm":
        x = jax.random.randint(jax.random.key(1), shape, 0, 11)
    else:
        x = jax.random.normal(jax.random.key(1), shape, jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(2), x)
    if randomise:
        rng = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda leaf: leaf + 0.1 * jnp.abs(rng.normal(size=leaf.shape)).astype(jnp.float32),
            variables,
        )
    x = x if name == "tied_lm" else x.astype(dtype)
    return module, jax.tree.map(lambda leaf: leaf.astype(dtype), variables), x
