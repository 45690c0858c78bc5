"""CLIP's towers against their published sizes and a forward pass written in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxml import nn


def small(layers=1, **options):
    return nn.CLIP(
        nn.VisionTower(64, layers, 2, 8, 48, **options),
        nn.TextTower(1024, 16, 64, layers, 2, 48, **options),
        init_bias=-10.0,
    )


def count(model, side, context):
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)), jnp.zeros((1, context), int)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("ViT-B-32", 151_277_313),
        pytest.param("ViT-B-16", 149_620_737, marks=pytest.mark.heavy),
        pytest.param("ViT-L-14", 427_616_513, marks=pytest.mark.heavy),
    ],
)
def test_the_published_sizes_have_the_published_number_of_parameters(name, n):
    assert count(nn.build_clip(name), 224, 77) == n


@pytest.mark.parametrize(("layers", "n"), [(1, 188_545), (2, 288_513)])
def test_a_small_model_has_as_many_parameters_as_that_of_open_clip(layers, n):
    towers = nn.VisionTower(64, layers, 1, 8, 64), nn.TextTower(1024, 16, 64, layers, 1, 64)
    assert count(nn.CLIP(*towers), 32, 16) == n


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    tokens = rng.integers(1, 1000, (3, 16)).astype(np.int32)
    for row, end in zip(tokens, (15, 4, 9), strict=True):
        row[end] = 1023
        row[end + 1 :] = 0
    model = small()
    shapes = jax.eval_shape(model.init, jax.random.key(1), images, tokens)
    variables = jax.tree.map(
        lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )
    return model, variables, images, tokens


def test_both_towers_are_what_they_are_said_to_be(case):
    model, variables, images, tokens = case
    out = jax.jit(model.apply)(variables, images, tokens)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    vision, text = params["image_tower"], params["text_tower"]

    x = np.stack([
        [image[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].ravel() for i in range(4) for j in range(4)]
        for image in images.astype(np.float64)
    ])  # fmt: skip
    x = x @ vision["patches"]["kernel"]
    x = np.concatenate([np.broadcast_to(vision["token"], (3, 1, 64)), x], axis=1)
    x = _norm(x + vision["position"], vision["ln_pre"])
    x = _norm(_block(x, vision["block_0"], causal=False)[:, 0], vision["ln_post"])
    image = x @ vision["projection"]["kernel"]

    x = text["embedding"]["embedding"][tokens] + text["position"]
    x = _norm(_block(x, text["block_0"], causal=True), text["ln_final"])
    ends = x[np.arange(3), tokens.argmax(axis=1)]
    text = ends @ text["projection"]["kernel"]

    np.testing.assert_allclose(out.image, _unit(image), atol=2e-6)
    np.testing.assert_allclose(out.text, _unit(text), atol=2e-6)
    assert (out.log_scale, out.bias) == (params["log_scale"], params["logit_bias"])


def _norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def _block(x, p, *, causal):
    n, t, width = x.shape
    y = _norm(x, p["ln_1"]) @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    q, k, v = (part.reshape(n, t, 2, -1) for part in np.split(y, 3, axis=-1))
    z = np.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(q.shape[-1])
    if causal:
        z = np.where(np.tril(np.ones((t, t), bool)), z, -np.inf)
    y = np.einsum("nhqk,nkhd->nqhd", special.softmax(z, -1), v).reshape(n, t, width)
    x = x + y @ p["out"]["kernel"] + p["out"]["bias"]
    y = _norm(x, p["ln_2"]) @ p["up"]["kernel"] + p["up"]["bias"]
    return x + y * special.ndtr(y) @ p["down"]["kernel"] + p["down"]["bias"]


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_what_comes_after_the_end_token_does_not_matter(case):
    model, variables, images, tokens = case
    other = tokens.copy()
    other[1, 5:], other[2, 10:] = 7, 7
    apply = jax.jit(model.apply)
    whole = apply(variables, images, tokens)
    np.testing.assert_array_equal(whole.text, apply(variables, images, other).text)
    alone = jax.jit(lambda x: model.apply(variables, x, method="encode_image"))(images)
    np.testing.assert_allclose(alone, whole.image, atol=1e-6)


@pytest.mark.heavy
def test_remat_and_bfloat16_are_the_same_function(case):
    model, variables, images, tokens = case

    def outputs(model):
        return jax.jit(model.apply)(variables, images, tokens)

    plain, again = outputs(model), outputs(small(remat=True))
    np.testing.assert_allclose(again.text, plain.text, atol=1e-6)
    with jax.numpy_dtype_promotion("standard"):  # flax mixes types inside its layer norm
        rough = outputs(small(dtype=jnp.bfloat16))
    assert rough.image.dtype == jnp.float32
    np.testing.assert_allclose(rough.image, plain.image, atol=0.02)


def test_the_two_gelus():
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    np.testing.assert_allclose(nn.gelu_exact(x), x * special.ndtr(x), atol=1e-6)
    np.testing.assert_allclose(nn.gelu_quick(x), x * special.expit(1.702 * x), atol=1e-6)


def test_a_bag_of_words_knows_no_order_and_no_padding():
    tower = nn.BagOfWords(50, (8, 4), 3)
    tokens = np.array([[3, 9, 4, 0, 0], [0, 9, 0, 4, 3], [0, 0, 0, 0, 0]], np.int32)
    out, variables = jax.jit(tower.init_with_output)(jax.random.key(0), tokens)
    np.testing.assert_allclose(out[0], out[1], rtol=1e-5)
    params = variables["params"]
    mean = np.asarray(params["embedding"]["embedding"])[[3, 9, 4]].mean(0).clip(0)
    hidden = (mean @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]).clip(0)
    np.testing.assert_allclose(out[0], hidden @ params["projection"]["kernel"], atol=1e-5)
    assert np.isfinite(out[2]).all()


@pytest.mark.parametrize(
    ("tower", "x", "message"),
    [
        (nn.VisionTower(64, 1, 2, 7, 8), np.zeros((1, 32, 32, 3)), "patch must divide 32"),
        (nn.VisionTower(64, 1, 3, 8, 8), np.zeros((1, 32, 32, 3)), "heads must divide .* 64"),
        (nn.TextTower(9, 4, 64, 1, 1, 8), np.zeros((1, 5), np.int32), r"must be \[n, 4\]"),
        (nn.TextTower(9, 4, 64, 1, 7, 8), np.zeros((1, 4), np.int32), "heads must divide"),
    ],
)
def test_bad_sizes_are_refused(tower, x, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tower.init, jax.random.key(0), x)


def test_scale_and_bias_begin_where_they_are_said_to():
    model = nn.CLIP(nn.MLP((), 4), nn.BagOfWords(9, (4,), 4), init_bias=-10.0)
    params = model.init(jax.random.key(0), np.zeros((1, 2, 2, 1)), np.zeros((1, 3), int))["params"]
    assert float(params["log_scale"]) == pytest.approx(np.log(1 / 0.07))
    assert float(params["logit_bias"]) == -10


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="name must be one of ViT-B-32"):
        nn.build_clip("ViT-B-31")
