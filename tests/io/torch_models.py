"""Small models of other libraries: their tensors by name and shape, and their functions in numpy.

Written from what the libraries document and store, and from nothing in jaxml; images are
``[n, c, h, w]`` as there. ``benchmarks/interchange.py`` compares with the libraries themselves.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import erf


class Model(NamedTuple):
    """A model as its library stores it.

    Attributes:
      shapes: of the tensors.
      config: the configuration file, or None.
      config_name: of that file.
      inputs: what the function takes.
      function: from tensors and inputs to the output.
    """

    shapes: dict
    config: dict | None
    config_name: str
    inputs: tuple
    function: object


def tensors(model, seed=0, dtype=np.float32):
    """Draws every tensor; variances are positive."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, shape in model.shapes.items():
        x = rng.standard_normal(shape)
        if len(shape) > 1:
            x *= np.prod(shape[1:]) ** -0.5
        elif name.endswith("running_var"):
            x = 1 + rng.random(shape)
        else:
            x = 0.3 * x + (not name.endswith(("bias", "mean", "embedding")))
        drawn[name] = np.asarray(x, dtype)
    return drawn


# Layers, as PyTorch defines them.


def linear(x, t, name):
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def layer_norm(x, t, name, epsilon):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return x * t[f"{name}.weight"] + t[f"{name}.bias"]


def attention(q, k, v, heads, causal=False):
    n, length, width = q.shape
    q, k, v = (x.reshape(n, length, heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(width // heads)
    if causal:
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    y = scores / scores.sum(-1, keepdims=True) @ v
    return y.transpose(0, 2, 1, 3).reshape(n, length, width)


def windows(x, size, stride, pad, fill=0.0):
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return views[:, :, ::stride, ::stride]


def conv(x, t, name, stride=1, pad=0):
    w = t[f"{name}.weight"]
    y = np.einsum("nchwij,ocij->nohw", windows(x, w.shape[-1], stride, pad), w, optimize=True)
    return y + t[f"{name}.bias"][:, None, None] if f"{name}.bias" in t else y


def batch_norm(x, t, name):
    w, b, mean, var = (
        t[f"{name}.{part}"][:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * w + b


def relu(x):
    return np.maximum(x, 0)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def gelu_new(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def images(side, channels=3):
    return np.random.default_rng(9).standard_normal((2, channels, side, side)).astype(np.float32)


def norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear_shapes(name, n_out, n_in):
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


# transformers.GPT2LMHeadModel(n_embd=6, n_head=2, n_inner=10, n_layer=2)


def gpt2():
    shapes = {"transformer.wte.weight": (11, 6), "transformer.wpe.weight": (5, 6)}
    for i in range(2):
        h = f"transformer.h.{i}"
        shapes |= {
            **norm_shapes(f"{h}.ln_1", 6),
            f"{h}.attn.c_attn.weight": (6, 18),
            f"{h}.attn.c_attn.bias": (18,),
            f"{h}.attn.c_proj.weight": (6, 6),
            f"{h}.attn.c_proj.bias": (6,),
            **norm_shapes(f"{h}.ln_2", 6),
            f"{h}.mlp.c_fc.weight": (6, 10),
            f"{h}.mlp.c_fc.bias": (10,),
            f"{h}.mlp.c_proj.weight": (10, 6),
            f"{h}.mlp.c_proj.bias": (6,),
        }
    shapes |= norm_shapes("transformer.ln_f", 6)
    config = {
        "model_type": "gpt2", "vocab_size": 11, "n_positions": 5, "n_embd": 6, "n_layer": 2,
        "n_head": 2, "n_inner": 10, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05,
        "attn_pdrop": 0.1, "transformers_version": "4.40.0",
    }  # fmt: skip

    def function(t, ids):
        t = {name.removeprefix("transformer."): x for name, x in t.items()}

        def conv1d(x, name):  # a linear layer whose weight is [in, out]
            return x @ t[f"{name}.weight"] + t[f"{name}.bias"]

        x = t["wte.weight"][ids] + t["wpe.weight"][: ids.shape[1]]
        for i in range(2):
            y = conv1d(layer_norm(x, t, f"h.{i}.ln_1", 1e-5), f"h.{i}.attn.c_attn")
            y = attention(*np.split(y, 3, axis=-1), heads=2, causal=True)
            x = x + conv1d(y, f"h.{i}.attn.c_proj")
            y = conv1d(layer_norm(x, t, f"h.{i}.ln_2", 1e-5), f"h.{i}.mlp.c_fc")
            x = x + conv1d(gelu_new(y), f"h.{i}.mlp.c_proj")
        return layer_norm(x, t, "ln_f", 1e-5) @ t["wte.weight"].T

    ids = np.array([[1, 4, 0, 10, 3], [2, 2, 9, 7, 5]], np.int32)
    return Model(shapes, config, "config.json", (ids,), function)


# transformers.ViTForImageClassification


def hf_vit():
    v = "vit.embeddings"
    shapes = {
        f"{v}.cls_token": (1, 1, 6),
        f"{v}.position_embeddings": (1, 5, 6),
        f"{v}.patch_embeddings.projection.weight": (6, 3, 2, 2),
        f"{v}.patch_embeddings.projection.bias": (6,),
    }
    for i in range(2):
        layer = f"vit.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            shapes |= linear_shapes(f"{layer}.attention.attention.{name}", 6, 6)
        shapes |= {
            **linear_shapes(f"{layer}.attention.output.dense", 6, 6),
            **linear_shapes(f"{layer}.intermediate.dense", 8, 6),
            **linear_shapes(f"{layer}.output.dense", 6, 8),
            **norm_shapes(f"{layer}.layernorm_before", 6),
            **norm_shapes(f"{layer}.layernorm_after", 6),
        }
    shapes |= norm_shapes("vit.layernorm", 6) | linear_shapes("classifier", 3, 6)
    config = {
        "model_type": "vit", "hidden_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 8, "hidden_act": "gelu", "layer_norm_eps": 0.01, "image_size": 4,
        "patch_size": 2, "num_channels": 3, "qkv_bias": True,
    }  # fmt: skip

    def function(t, x):
        x = conv(x, t, f"{v}.patch_embeddings.projection", stride=2)
        x = x.reshape(len(x), 6, -1).transpose(0, 2, 1)
        token = np.broadcast_to(t[f"{v}.cls_token"], (len(x), 1, 6))
        x = np.concatenate([token, x], axis=1) + t[f"{v}.position_embeddings"]
        for i in range(2):
            layer = f"vit.encoder.layer.{i}"
            y = layer_norm(x, t, f"{layer}.layernorm_before", 0.01)
            names = [f"{layer}.attention.attention.{name}" for name in ("query", "key", "value")]
            y = attention(*(linear(y, t, name) for name in names), heads=2)
            x = x + linear(y, t, f"{layer}.attention.output.dense")
            y = layer_norm(x, t, f"{layer}.layernorm_after", 0.01)
            y = gelu(linear(y, t, f"{layer}.intermediate.dense"))
            x = x + linear(y, t, f"{layer}.output.dense")
        return linear(layer_norm(x, t, "vit.layernorm", 0.01)[:, 0], t, "classifier")

    return Model(shapes, config, "config.json", (images(4),), function)


# transformers.CLIPModel


def hf_clip():
    shapes = {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (9, 4),
        "text_model.embeddings.position_embedding.weight": (5, 4),
        "vision_model.embeddings.class_embedding": (6,),
        "vision_model.embeddings.patch_embedding.weight": (6, 3, 2, 2),
        "vision_model.embeddings.position_embedding.weight": (5, 6),
        "visual_projection.weight": (3, 6),
        "text_projection.weight": (3, 4),
        **norm_shapes("vision_model.pre_layrnorm", 6),
        **norm_shapes("vision_model.post_layernorm", 6),
        **norm_shapes("text_model.final_layer_norm", 4),
    }
    for tower, width in (("text_model", 4), ("vision_model", 6)):
        layer = f"{tower}.encoder.layers.0"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= linear_shapes(f"{layer}.self_attn.{name}", width, width)
        shapes |= norm_shapes(f"{layer}.layer_norm1", width)
        shapes |= norm_shapes(f"{layer}.layer_norm2", width)
        shapes |= linear_shapes(f"{layer}.mlp.fc1", 4 * width, width)
        shapes |= linear_shapes(f"{layer}.mlp.fc2", width, 4 * width)
    common = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    config = {
        "model_type": "clip", "projection_dim": 3,
        "text_config": {
            **common, "hidden_size": 4, "intermediate_size": 16, "vocab_size": 9,
            "max_position_embeddings": 5, "eos_token_id": 2, "layer_norm_eps": 1e-05,
        },
        "vision_config": {
            **common, "hidden_size": 6, "intermediate_size": 24, "image_size": 4, "patch_size": 2,
        },
    }  # fmt: skip

    def block(x, t, name, causal):
        y = layer_norm(x, t, f"{name}.layer_norm1", 1e-5)
        three = (linear(y, t, f"{name}.self_attn.{part}_proj") for part in "qkv")
        y = attention(*three, heads=2, causal=causal)
        x = x + linear(y, t, f"{name}.self_attn.out_proj")
        y = layer_norm(x, t, f"{name}.layer_norm2", 1e-5)
        return x + linear(quick_gelu(linear(y, t, f"{name}.mlp.fc1")), t, f"{name}.mlp.fc2")

    def function(t, x, ids):
        v, w = "vision_model.embeddings", "text_model.embeddings"
        x = conv(x, t, f"{v}.patch_embedding", stride=2).reshape(len(x), 6, -1).transpose(0, 2, 1)
        token = np.broadcast_to(t[f"{v}.class_embedding"], (len(x), 1, 6))
        x = np.concatenate([token, x], axis=1) + t[f"{v}.position_embedding.weight"]
        x = layer_norm(x, t, "vision_model.pre_layrnorm", 1e-5)
        x = block(x, t, "vision_model.encoder.layers.0", causal=False)
        x = layer_norm(x[:, 0], t, "vision_model.post_layernorm", 1e-5)
        image = x @ t["visual_projection.weight"].T
        x = t[f"{w}.token_embedding.weight"][ids] + t[f"{w}.position_embedding.weight"]
        x = block(x, t, "text_model.encoder.layers.0", causal=True)
        x = layer_norm(x, t, "text_model.final_layer_norm", 1e-5)
        text = x[np.arange(len(x)), ids.argmax(-1)] @ t["text_projection.weight"].T
        return scores(image, text, t["logit_scale"])

    return Model(shapes, config, "config.json", (images(4), _TEXTS), function)


_TEXTS = np.array([[7, 3, 8, 1, 1], [7, 2, 4, 5, 8]], np.int32)


def scores(image, text, log_scale):
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    return np.exp(log_scale) * image @ text.T


# open_clip.model.CLIP


def open_clip():
    shapes = {
        "logit_scale": (),
        "logit_bias": (),
        "positional_embedding": (5, 4),
        "text_projection": (4, 3),
        "visual.class_embedding": (6,),
        "visual.positional_embedding": (5, 6),
        "visual.proj": (6, 3),
        "visual.conv1.weight": (6, 3, 2, 2),
        "token_embedding.weight": (9, 4),
        **norm_shapes("visual.ln_pre", 6),
        **norm_shapes("visual.ln_post", 6),
        **norm_shapes("ln_final", 4),
    }
    for prefix, width in (("visual.", 6), ("", 4)):
        layer = f"{prefix}transformer.resblocks.0"
        shapes |= {
            **norm_shapes(f"{layer}.ln_1", width),
            f"{layer}.attn.in_proj_weight": (3 * width, width),
            f"{layer}.attn.in_proj_bias": (3 * width,),
            **linear_shapes(f"{layer}.attn.out_proj", width, width),
            **norm_shapes(f"{layer}.ln_2", width),
            **linear_shapes(f"{layer}.mlp.c_fc", 4 * width, width),
            **linear_shapes(f"{layer}.mlp.c_proj", width, 4 * width),
        }
    config = {
        "model_cfg": {
            "embed_dim": 3,
            "init_logit_bias": -10,
            "vision_cfg": {
                "image_size": 4, "layers": 1, "width": 6, "head_width": 3, "patch_size": 2,
            },
            "text_cfg": {
                "context_length": 5, "vocab_size": 9, "width": 4, "heads": 2, "layers": 1,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]},
    }  # fmt: skip

    def block(x, t, name, causal):
        y = layer_norm(x, t, f"{name}.ln_1", 1e-5)
        y = y @ t[f"{name}.attn.in_proj_weight"].T + t[f"{name}.attn.in_proj_bias"]
        y = attention(*np.split(y, 3, axis=-1), heads=2, causal=causal)
        x = x + linear(y, t, f"{name}.attn.out_proj")
        y = linear(layer_norm(x, t, f"{name}.ln_2", 1e-5), t, f"{name}.mlp.c_fc")
        return x + linear(gelu(y), t, f"{name}.mlp.c_proj")

    def function(t, x, ids):
        x = conv(x, t, "visual.conv1", stride=2).reshape(len(x), 6, -1).transpose(0, 2, 1)
        token = np.broadcast_to(t["visual.class_embedding"], (len(x), 1, 6))
        x = np.concatenate([token, x], axis=1) + t["visual.positional_embedding"]
        x = block(
            layer_norm(x, t, "visual.ln_pre", 1e-5), t, "visual.transformer.resblocks.0", False
        )
        image = layer_norm(x[:, 0], t, "visual.ln_post", 1e-5) @ t["visual.proj"]
        x = t["token_embedding.weight"][ids] + t["positional_embedding"]
        x = layer_norm(block(x, t, "transformer.resblocks.0", True), t, "ln_final", 1e-5)
        text = x[np.arange(len(x)), ids.argmax(-1)] @ t["text_projection"]
        return scores(image, text, t["logit_scale"])

    return Model(shapes, config, "open_clip_config.json", (images(4), _TEXTS), function)


# torchvision.models.ResNet


def batch_norm_shapes(name, width):
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in parts}


def resnet(bottleneck, large):
    """Two stages of one block; the inner widths are not the usual ones."""
    size = 7 if large else 3
    shapes = {"conv1.weight": (4, 3, size, size), **batch_norm_shapes("bn1", 4)}
    kernels = ((1, 5), (3, 6), (1, 8)) if bottleneck else ((3, 5), (3, 8))
    for stage, n_in in ((1, 4), (2, 8)):
        block, width = f"layer{stage}.0", n_in
        for i, (side, n_out) in enumerate(kernels, 1):
            shapes[f"{block}.conv{i}.weight"] = (n_out, width, side, side)
            shapes |= batch_norm_shapes(f"{block}.bn{i}", n_out)
            width = n_out
        shapes[f"{block}.downsample.0.weight"] = (8, n_in, 1, 1)
        shapes |= batch_norm_shapes(f"{block}.downsample.1", 8)
    shapes |= linear_shapes("fc", 3, 8)

    def function(t, x):
        x = conv(x, t, "conv1", 2, 3) if large else conv(x, t, "conv1", 1, 1)
        x = relu(batch_norm(x, t, "bn1"))
        if large:
            x = windows(x, 3, 2, 1, fill=-np.inf).max((-1, -2))
        for stage, stride in ((1, 1), (2, 2)):
            block, y = f"layer{stage}.0", x
            strided = 2 if bottleneck else 1
            for i, (side, _) in enumerate(kernels, 1):
                y = conv(y, t, f"{block}.conv{i}", stride if i == strided else 1, side // 2)
                y = batch_norm(y, t, f"{block}.bn{i}")
                y = relu(y) if i < len(kernels) else y
            x = conv(x, t, f"{block}.downsample.0", stride)
            x = relu(batch_norm(x, t, f"{block}.downsample.1") + y)
        return linear(x.mean((2, 3)), t, "fc")

    return Model(shapes, None, "", (images(16 if large else 8),), function)


# torchvision.models.VGG: the numbers count convolutions, norms, activations and pools.


def vgg(with_norm):
    """Blocks of two convolutions and one; images of 12x12 have features of 3x3."""
    places, step = ((0, 3, 7), 3) if with_norm else ((0, 2, 5), 2)
    shapes = {}
    for place, (n_in, n_out) in zip(places, ((3, 4), (4, 4), (4, 5)), strict=True):
        shapes[f"features.{place}.weight"] = (n_out, n_in, 3, 3)
        shapes[f"features.{place}.bias"] = (n_out,)
        if with_norm:
            shapes |= batch_norm_shapes(f"features.{place + 1}", n_out)
    for place, (n_in, n_out) in zip((0, 3, 6), ((45, 7), (7, 6), (6, 3)), strict=True):
        shapes |= linear_shapes(f"classifier.{place}", n_out, n_in)

    def function(t, x):
        for place, ends in zip(places, (False, True, True), strict=True):
            x = conv(x, t, f"features.{place}", 1, 1)
            x = relu(batch_norm(x, t, f"features.{place + 1}") if step == 3 else x)
            x = windows(x, 2, 2, 0).max((-1, -2)) if ends else x
        x = x.reshape(len(x), -1)
        x = relu(linear(x, t, "classifier.0"))
        return linear(relu(linear(x, t, "classifier.3")), t, "classifier.6")

    return Model(shapes, None, "", (images(12),), function)


# torchvision.models.VisionTransformer


def vit():
    shapes = {
        "class_token": (1, 1, 6),
        "conv_proj.weight": (6, 3, 2, 2),
        "conv_proj.bias": (6,),
        "encoder.pos_embedding": (1, 5, 6),
        **norm_shapes("encoder.ln", 6),
        **linear_shapes("heads.head", 3, 6),
    }
    for i in range(2):
        layer = f"encoder.layers.encoder_layer_{i}"
        shapes |= {
            **norm_shapes(f"{layer}.ln_1", 6),
            f"{layer}.self_attention.in_proj_weight": (18, 6),
            f"{layer}.self_attention.in_proj_bias": (18,),
            **linear_shapes(f"{layer}.self_attention.out_proj", 6, 6),
            **norm_shapes(f"{layer}.ln_2", 6),
            **linear_shapes(f"{layer}.mlp.0", 8, 6),
            **linear_shapes(f"{layer}.mlp.3", 6, 8),
        }

    def function(t, x):
        x = conv(x, t, "conv_proj", stride=2).reshape(len(x), 6, -1).transpose(0, 2, 1)
        token = np.broadcast_to(t["class_token"], (len(x), 1, 6))
        x = np.concatenate([token, x], axis=1) + t["encoder.pos_embedding"]
        for i in range(2):
            layer = f"encoder.layers.encoder_layer_{i}"
            attend = f"{layer}.self_attention"
            y = layer_norm(x, t, f"{layer}.ln_1", 1e-6)
            y = y @ t[f"{attend}.in_proj_weight"].T + t[f"{attend}.in_proj_bias"]
            y = attention(*np.split(y, 3, axis=-1), heads=2)
            x = x + linear(y, t, f"{attend}.out_proj")
            y = gelu(linear(layer_norm(x, t, f"{layer}.ln_2", 1e-6), t, f"{layer}.mlp.0"))
            x = x + linear(y, t, f"{layer}.mlp.3")
        return linear(layer_norm(x, t, "encoder.ln", 1e-6)[:, 0], t, "heads.head")

    return Model(shapes, None, "", (images(4),), function)
