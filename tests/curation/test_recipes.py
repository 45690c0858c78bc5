"""The recipes' numbers, their schedule in closed form, their optimiser by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import nn
from jaxml.curation import RECIPES, clamp_scale, decay_mask, learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("scale", "steps", "left"),
    [
        ("debug", 125, 0), ("small", 3125, 0), ("medium", 31_250, 0), ("large", 156_250, 0),
        ("xlarge", 142_045, 40_960), ("tiny", 400, 0),
    ],
)  # fmt: skip
def test_steps_times_batch_is_what_is_seen(scale, steps, left):
    recipe = RECIPES[scale]
    assert recipe.n_steps == steps
    assert recipe.n_steps * recipe.batch_size + left == recipe.samples_seen
    assert left < recipe.batch_size
    assert scale == "tiny" or recipe.samples_seen == recipe.pool_size


@pytest.mark.parametrize("scale", RECIPES)
def test_the_rate_rises_then_falls_to_nothing(scale):
    recipe = RECIPES[scale]
    rate = jax.jit(learning_rate(recipe))
    n, w, peak = recipe.n_steps, recipe.warmup_steps, recipe.learning_rate
    assert float(rate(0)) == pytest.approx(peak / w)
    if w >= n:  # the flaw of "debug"
        assert float(rate(n - 1)) == pytest.approx(peak * n / w)
        return
    assert float(rate(w - 1)) == pytest.approx(peak) == float(rate(w))
    for t in (w + 1, (w + n) // 2, n - 1):
        wanted = peak * (1 + math.cos(math.pi * (t - w) / (n - w))) / 2
        assert float(rate(t)) == pytest.approx(wanted, rel=1e-3, abs=1e-4 * peak)
    assert float(rate(n)) == pytest.approx(0, abs=1e-9)
    assert float(rate(n + 5)) == pytest.approx(0, abs=1e-9)


def test_decay_leaves_vectors_and_the_scale_alone():
    model = nn.CLIP(nn.VisionTower(64, 1, 1, 8, 64), nn.TextTower(99, 16, 64, 1, 1, 64))
    params = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 16), int)
    )["params"]
    mask = decay_mask(params)
    paired = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    assert all(decays == (leaf.ndim > 1) for leaf, decays in paired)
    assert not mask["log_scale"] and mask["image_tower"]["position"]
    # By name as well, where a bias has heads of its own or a norm more than one axis.
    odd = {"attention": {"bias": np.zeros((2, 3))}, "ln_1": {"scale": np.zeros((2, 2))}}
    assert jax.tree.leaves(decay_mask(odd)) == [False, False]


def test_the_first_step_is_that_of_adamw():
    recipe = RECIPES["small"]._replace(warmup_steps=1)
    optimizer = make_optimizer(recipe, n_steps=10)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}
    grads = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.0]]), "bias": jnp.array([1.0, -1.0])}

    @jax.jit
    def first(grads, params):
        return optimizer.update(grads, optimizer.init(params), params)[0]

    with jax.numpy_dtype_promotion("standard"):
        updates = first(grads, params)
    rate = recipe.learning_rate
    # The bias-corrected moments of one gradient g are g and g^2.
    adam = jax.tree.map(lambda g: -rate * g / (jnp.abs(g) + recipe.eps), grads)
    np.testing.assert_allclose(updates["bias"], adam["bias"], rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], adam["kernel"] - rate * 0.2 * 3.0, rtol=1e-5)


def test_the_scale_stays_between_1_and_100():
    for value, wanted in ((-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100))):
        clamped = clamp_scale({"log_scale": jnp.float32(value), "other": 1})
        assert float(clamped["log_scale"]) == pytest.approx(wanted) and clamped["other"] == 1
