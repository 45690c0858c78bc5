"""Published layouts: the same logits as the library that each comes from, and the same bits back.

    pip install torch torchvision transformers open_clip_torch    # the peers, for CPU
    python -m benchmarks.interchange            # prints the tables
    python -m benchmarks.interchange --write    # and puts them into benchmarks/RESULTS.md

Every model is made by its own library with random weights, stored by that library, and read here.
"""

import os

os.environ.update(JAX_PLATFORMS="cpu")

import copy
import pathlib
import tempfile
import time

import jax
import numpy as np
import open_clip
import torch
import torchvision
import transformers
from safetensors.numpy import load_file
from safetensors.torch import load_model, save_file

from benchmarks._results import environment, main
from jaxml import io, nn
from jaxml.report import to_markdown

COMMAND = "python -m benchmarks.interchange --write"
TOLERANCE = 1e-4
N = 2

# Scores of a real vocabulary's size are compared on a small model; the layout is the same.
GPT2 = {"vocab_size": 96, "n_positions": 24, "n_embd": 48, "n_layer": 3, "n_head": 4}
VIT = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "image_size": 32, "patch_size": 8, "num_labels": 7,
}  # fmt: skip
TOWERS = {
    "text_config": {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 16, "bos_token_id": 58,
        "eos_token_id": 59, "pad_token_id": 1,
    },
    "vision_config": {
        "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
    },
    "projection_dim": 24,
}  # fmt: skip
OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 60, "width": 32, "heads": 4, "layers": 2},
}


def randomised(model, seed):
    """Moves every parameter and running average, so that none is at an idle value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in model.state_dict().items():
            if not x.is_floating_point() or name.endswith("logit_scale"):
                continue
            noise = torch.randn(x.shape, generator=generator)
            if name.endswith("running_var"):
                x.copy_(1 + 0.5 * torch.rand(x.shape, generator=generator))
            elif x.ndim < 2:
                x.add_(0.1 * noise)
            else:
                # As large as the features it meets; in a deep convnet more would make them explode.
                drawn = (x.numel() / x.shape[0]) ** -0.5
                x.add_(noise * (0.1 * x.std() if x.ndim == 4 else drawn))
    return model.eval()


def stored(model, folder):
    """Writes a model of plain PyTorch, as its users do."""
    save_file(model.state_dict(), folder / "model.safetensors")


def images(side):
    """Draws images as PyTorch has them."""
    x = np.random.default_rng(0).standard_normal((N, 3, side, side))
    return torch.tensor(x, dtype=torch.float32)


def ours_of(x):
    """Turns images into what jaxml takes."""
    return x.permute(0, 2, 3, 1).numpy()


def tokens(vocabulary, length):
    """Draws texts that end in the last token, and padding of zeros behind it."""
    x = np.random.default_rng(1).integers(2, vocabulary - 2, (N, length))
    for i in range(N):
        end = length - 1 - 3 * i
        x[i, end], x[i, end + 1 :] = vocabulary - 1, 1
    return x


def gpt2(folder):
    """Logits of every position."""
    model = randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)), 0)
    model.save_pretrained(folder)
    x = tokens(96, 24)
    return model(torch.tensor(x)).logits, lambda apply: apply(x)


def gpt2_parts(folder):
    """The same in several files and an index."""
    model = randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)), 1)
    model.save_pretrained(folder, max_shard_size="100KB")
    if len(list(folder.glob("*.safetensors"))) < 2:
        raise RuntimeError("the checkpoint has one part")
    x = tokens(96, 24)
    return model(torch.tensor(x)).logits, lambda apply: apply(x)


def hf_vit(folder):
    """Logits of a classifier."""
    model = randomised(transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)), 2)
    model.save_pretrained(folder)
    x = images(32)
    return model(x).logits, lambda apply: apply(ours_of(x))


def hf_clip(folder):
    """Inner products of features, times their scale."""
    model = randomised(transformers.CLIPModel(transformers.CLIPConfig(**copy.deepcopy(TOWERS))), 3)
    model.save_pretrained(folder)
    x, t = images(32), tokens(60, 16)
    theirs = model(input_ids=torch.tensor(t), pixel_values=x).logits_per_image
    return theirs, lambda apply: scores(apply(ours_of(x), t))


def scores(out):
    """Inner products of features, times their scale."""
    return np.exp(out.log_scale) * out.image @ out.text.T


def openclip(folder):
    """The same of open_clip."""
    model = randomised(open_clip.model.CLIP(**copy.deepcopy(OPEN_CLIP)), 4)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    io.save_json(folder / "open_clip_config.json", {"model_cfg": OPEN_CLIP, "preprocess_cfg": {}})
    x, t = images(32), tokens(60, 16)
    image, text, scale = model(x, torch.tensor(t))[:3]
    return scale * image @ text.T, lambda apply: scores(apply(ours_of(x), t))


def of_torchvision(make, side, seed, **options):
    """Makes the function for one model of torchvision."""

    def logits(folder):
        model = randomised(make(num_classes=10, **options), seed)
        stored(model, folder)
        x = images(side)
        return model(x), lambda apply: apply(ours_of(x))

    return logits


def small_vit(num_classes):
    """A small ViT of torchvision."""
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96,
        num_classes=num_classes,
    )  # fmt: skip


def cifar_resnet20(num_classes):
    """ResNet-20 for CIFAR with torchvision's names and projections where the shape changes."""
    block = torchvision.models.resnet.BasicBlock
    model = torchvision.models.ResNet(block, [3, 3, 3, 1], num_classes=num_classes)
    model.inplanes = 16
    model.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
    model.bn1 = torch.nn.BatchNorm2d(16)
    model.maxpool = torch.nn.Identity()
    for i, width in enumerate((16, 32, 64)):
        stage = model._make_layer(block, width, 3, stride=1 if i == 0 else 2)
        setattr(model, f"layer{i + 1}", stage)
    model.layer4, model.fc = torch.nn.Identity(), torch.nn.Linear(64, num_classes)
    return model


def cifar_vgg(num_classes):
    """VGG-16 for CIFAR: the features of torchvision and dense layers of 512."""
    model = torchvision.models.vgg16_bn(num_classes=num_classes)
    model.avgpool = torch.nn.Identity()
    linear, relu, drop = torch.nn.Linear, torch.nn.ReLU, torch.nn.Dropout
    model.classifier = torch.nn.Sequential(
        linear(512, 512), relu(), drop(), linear(512, 512), relu(), drop(), linear(512, num_classes)
    )
    return model


# The model, the layout that has to be found, what makes it, and how its library loads it again.
MODELS = {
    "GPT-2, transformers": ("gpt2", gpt2, transformers.GPT2LMHeadModel),
    "GPT-2 in parts, transformers": ("gpt2", gpt2_parts, transformers.GPT2LMHeadModel),
    "ViT, transformers": ("hf_vit", hf_vit, transformers.ViTForImageClassification),
    "CLIP, transformers": ("hf_clip", hf_clip, transformers.CLIPModel),
    "CLIP, open_clip": ("open_clip", openclip, lambda: open_clip.model.CLIP(**OPEN_CLIP)),
    **{
        name: (layout, of_torchvision(make, side, seed), lambda make=make: make(num_classes=10))
        for seed, (name, layout, make, side) in enumerate(
            [
                ("resnet18, torchvision", "torchvision_resnet", torchvision.models.resnet18, 96),
                ("resnet50, torchvision", "torchvision_resnet", torchvision.models.resnet50, 96),
                ("ResNet-20 for CIFAR", "torchvision_resnet", cifar_resnet20, 32),
                ("vgg11, torchvision", "torchvision_vgg", torchvision.models.vgg11, 224),
                ("vgg16_bn for CIFAR", "torchvision_vgg", cifar_vgg, 32),
                ("ViT, torchvision", "torchvision_vit", small_vit, 32),
            ]
        )
    },
}


def compare(name, layout, logits, again, root):
    """Measures one model; returns its row."""
    folder, back = root / "theirs", root / "ours"
    folder.mkdir(parents=True)
    with torch.no_grad():
        theirs, call = logits(folder)
    start = time.perf_counter()
    options = {"heads": 4} if layout == "torchvision_vit" else {}
    published = io.load_published(folder, **options)
    jax.block_until_ready(published.variables)
    seconds = time.perf_counter() - start
    if published.layout != layout:
        raise RuntimeError(f"{name} was taken for {published.layout}")
    model = nn.assemble(published.module, published.module_kwargs)
    ours = call(jax.jit(lambda *args: model.apply(published.variables, *args)))
    difference = float(np.abs(np.asarray(ours) - theirs.numpy()).max())
    io.save_published(back, layout, published.module_kwargs, published.variables)
    return {
        "model": name,
        "layout": layout,
        "parameters": sum(x.size for x in jax.tree.leaves(published.variables)),
        "largest logit": f"{float(theirs.abs().max()):.2f}",
        "largest difference": f"{difference:.1e}",
        "the same bits back": same_bits(folder, back),
        "its library reads it": reads(again, back),
        "reads in, s": f"{seconds:.2f}",
        "_difference": difference,
    }


def same_bits(folder, back):
    """Compares every tensor of both folders but counters of batches."""
    first, second = ({}, {})
    for tensors, where in ((first, folder), (second, back)):
        for path in where.glob("*.safetensors"):
            tensors |= load_file(path)
    first = {n: x for n, x in first.items() if not n.endswith("num_batches_tracked")}
    return first.keys() == second.keys() and all(
        x.dtype == second[n].dtype and x.shape == second[n].shape
        and x.tobytes() == second[n].tobytes()
        for n, x in first.items()
    )  # fmt: skip


def reads(again, back):
    """Loads what was written with its library, strictly."""
    if hasattr(again, "from_pretrained"):
        _, info = again.from_pretrained(back, output_loading_info=True)
        return not any(info.values())
    missing, unexpected = load_model(again(), next(back.glob("*.safetensors")), strict=False)
    return not unexpected and all(n.endswith("num_batches_tracked") for n in missing)


def report() -> str:
    """Measures every model and returns the section."""
    start = time.perf_counter()
    torch.manual_seed(0)  # of what the libraries draw at first
    with tempfile.TemporaryDirectory() as root:
        rows = [
            compare(name, *model, pathlib.Path(root) / str(i))
            for i, (name, model) in enumerate(MODELS.items())
        ]
    worst = max(row.pop("_difference") for row in rows)
    bounds = [
        {
            "bound": f"logits within {TOLERANCE:g} of the library's, {len(rows)} models",
            "measured": f"{worst:.1e}",
            "holds": worst <= TOLERANCE,
        },
        {
            "bound": "round trip bit-identical",
            "measured": f"{sum(row['the same bits back'] for row in rows)} of {len(rows)}",
            "holds": all(row["the same bits back"] for row in rows),
        },
        {
            "bound": "its library loads what was written",
            "measured": f"{sum(row['its library reads it'] for row in rows)} of {len(rows)}",
            "holds": all(row["its library reads it"] for row in rows),
        },
    ]
    packages = (
        "jax", "flax", "numpy", "safetensors", "torch", "torchvision", "transformers",
        "open_clip_torch",
    )  # fmt: skip
    head = environment(
        COMMAND,
        packages=packages,
        notes=f"{N} inputs, random weights and running averages, one seed; "
        f"whole run {time.perf_counter() - start:.0f} s",
    )
    return "\n".join(
        [
            f"## Interchange: models of other libraries\n\n{head}",
            f"### The same model in its library and here\n\n{to_markdown(rows)}",
            f"### Bounds\n\n{to_markdown(bounds)}",
        ]
    )


if __name__ == "__main__":
    main("interchange", __doc__, report)
