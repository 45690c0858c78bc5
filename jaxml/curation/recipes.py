"""The training recipes of the benchmark's scales, as a table, and the optimiser that they fix."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxml.core.tree import path_str
from jaxml.core.types import PyTree

MAX_LOG_SCALE = math.log(100)


class Recipe(NamedTuple):
    """What a scale fixes. Participants choose the data and nothing else.

    Attributes:
      model: name of a size, see ``jaxml.nn.CLIP_MODELS``; "mlp" of two small towers.
      pool_size: pairs of the pool, as many as are seen.
      samples_seen: pairs that training sees, repeats included.
      batch_size: of all devices and hosts together.
      learning_rate: at the peak.
      warmup_steps: over which the rate rises linearly.
      b2: of Adam.
      precision: dtype of the computation.
      image_size: side of the images.
      weight_decay: decoupled.
      b1: of Adam.
      eps: of Adam.
    """

    model: str
    pool_size: int
    samples_seen: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    b2: float = 0.98
    precision: str = "float16"
    image_size: int = 224
    weight_decay: float = 0.2
    b1: float = 0.9
    eps: float = 1e-6

    @property
    def n_steps(self) -> int:
        """Whole batches in ``samples_seen``; the rest, if there is one, is dropped."""
        return self.samples_seen // self.batch_size


RECIPES: dict[str, Recipe] = {
    # Not of the benchmark: towers and images for a laptop.
    "tiny": Recipe("mlp", 10_000, 51_200, 128, 2e-3, 20, precision="float32", image_size=8),
    # Its warm-up is longer than its training, so the rate never comes down.
    "debug": Recipe("ViT-B-32", 128_000, 128_000, 1024, 1e-4, 500),
    "small": Recipe("ViT-B-32", 12_800_000, 12_800_000, 4096, 5e-4, 500),
    "medium": Recipe("ViT-B-32", 128_000_000, 128_000_000, 4096, 5e-4, 500),
    "large": Recipe("ViT-B-16", 1_280_000_000, 1_280_000_000, 8192, 5e-4, 500),
    "xlarge": Recipe(
        "ViT-L-14", 12_800_000_000, 12_800_000_000, 90_112, 1e-3, 10_000, 0.95, "bfloat16"
    ),
}
"""The published scales, and "tiny". The reference trains in float16 with a scaled loss where this
says so; here that precision is bfloat16, which needs no scaling."""


def learning_rate(recipe: Recipe, *, n_steps: int | None = None) -> optax.Schedule:
    """Makes the schedule: a linear warm-up, then half a cosine down to 0.

    ``rate (t + 1) / w`` for ``t < w``, else ``rate (1 + cos(pi (t - w) / (n - w))) / 2``.

    Args:
      recipe: with the peak ``rate`` and the warm-up ``w``.
      n_steps: ``n``; None is the recipe's.

    Returns:
      A function of the step, of python numbers or traced.
    """
    n, w = recipe.n_steps if n_steps is None else n_steps, recipe.warmup_steps

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        warm = (step + 1) / max(w, 1)
        fraction = jnp.clip((step - w) / max(n - w, 1), 0, 1)
        return recipe.learning_rate * jnp.where(
            step < w, warm, (1 + jnp.cos(jnp.pi * fraction)) / 2
        )

    return rate


def decay_mask(params: PyTree) -> PyTree:
    """Says of each parameter whether weight decay applies.

    Not to those of rank 0 or 1, the scale among them, nor to a bias or a norm, by name.
    """

    def decays(path, leaf):
        words = re.split("[/_]", path_str(path).lower())
        return leaf.ndim > 1 and not {"bn", "ln", "bias"} & set(words)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(recipe: Recipe, *, n_steps: int | None = None) -> optax.GradientTransformation:
    """Makes AdamW as the recipe has it, with its schedule and its decay mask.

    Args:
      recipe: of a scale.
      n_steps: of the run; None is the recipe's.
    """
    return optax.adamw(
        learning_rate(recipe, n_steps=n_steps),
        b1=recipe.b1,
        b2=recipe.b2,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        mask=decay_mask,
    )


def clamp_scale(params: PyTree) -> PyTree:
    """Clips the model's ``log_scale`` to [0, ln 100], as after every step."""
    return {**params, "log_scale": jnp.clip(params["log_scale"], 0, MAX_LOG_SCALE)}
