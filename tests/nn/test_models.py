"""The models: sizes, widths, modes, and build by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import nn
from jaxml.core.tree import to_paths

# Of the blocks of another, and several times as deep.
SLOW = ("resnet101", "wide_resnet28", "wide_resnet34")


def _shapes(model, *shape):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    return {path: leaf.shape for path, leaf in to_paths(variables).items()}


def _count(model, *shape):
    return sum(int(np.prod(s)) for s in _shapes(model, *shape).values())


def test_resnet20_has_the_parameters_of_the_closed_form():
    n, c = 9 * 3 * 16 + 2 * 16, 16
    for width in (16, 32, 64):
        n += c * width + 2 * width if width != c else 0  # projection and its norm
        n += 9 * c * width + 5 * 9 * width * width + 6 * 2 * width
        c = width
    n += 64 * 10 + 10
    assert _count(nn.resnet20(n_classes=10), 1, 32, 32, 3) == n
    assert n == 272_474  # the size usually quoted for ResNet20 with projections


def test_vgg16_has_the_parameters_of_the_closed_form():
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    n = sum(9 * a * b + 2 * b for a, b in zip([3, *widths], widths, strict=False))
    n += 2 * (512 * 512 + 512) + 512 * 10 + 10
    assert _count(nn.vgg16(n_classes=10), 1, 32, 32, 3) == n


def test_vgg19_with_the_wide_classifier_has_the_parameters_of_torchvisions():
    model = nn.vgg19(n_classes=1000, norm="none").clone(dense=(4096, 4096))
    assert _count(model, 1, 224, 224, 3) == 143_667_240


def test_resnet18_for_small_images_has_the_parameters_usually_quoted():
    model = nn.build("resnet18_cifar", width=1, n_classes=10)
    assert _count(model, 1, 32, 32, 3) == 11_173_962


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnet101", 44_549_160)],
)
def test_large_resnets_have_the_parameters_of_torchvisions(name, size):
    model = nn.build(name, width=1, n_classes=1000)
    assert _count(model, 1, 224, 224, 3) == size


def test_the_large_stem_quarters_the_image():
    model = nn.ResNet(
        3, widths=(4, 4), blocks=(1, 1), bottleneck=True, stem=4, large_images=True, norm="none"
    )
    x = jnp.zeros((1, 32, 32, 1))
    _, seen = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), x, capture_intermediates=True)
    )
    outputs = {path: leaf.shape for path, leaf in to_paths(seen["intermediates"]).items()}
    sizes = [outputs[f"BottleneckBlock_{i}/__call__/0"][1] for i in range(2)]
    assert sizes == [8, 4]


@pytest.mark.parametrize(("side", "left"), [(8, 1), (28, 1), (32, 1), (64, 2)])
def test_vgg_pools_until_one_pixel_is_left(side, left):
    model = nn.vgg16(n_classes=10, width_multiplier=0.25)
    shapes = _shapes(model, 1, side, side, 1)
    assert shapes["params/Dense_0/kernel"] == (left * left * 128, 128)


def test_widths_are_free_in_every_layer():
    shapes = _shapes(nn.MLP((7, 5), 3), 2, 4, 4, 1)
    assert [shapes[f"params/Dense_{i}/kernel"] for i in range(3)] == [(16, 7), (7, 5), (5, 3)]

    shapes = _shapes(nn.ConvNet(3, features=(5, 7)), 2, 8, 8, 1)
    assert shapes["params/Conv_1/kernel"] == (3, 3, 5, 7)

    model = nn.ResNet(3, widths=(4, 6), blocks=(1, 2), inner=(5, 7, 9))
    shapes = _shapes(model, 2, 8, 8, 1)
    assert shapes["params/Conv_0/kernel"] == (3, 3, 1, 4)
    for i, (cin, inner, cout) in enumerate([(4, 5, 4), (4, 7, 6), (6, 9, 6)]):
        assert shapes[f"params/ResidualBlock_{i}/Conv_0/kernel"] == (3, 3, cin, inner)
        assert shapes[f"params/ResidualBlock_{i}/Conv_1/kernel"] == (3, 3, inner, cout)
    projections = {path for path in shapes if path.endswith("shortcut/kernel")}
    assert projections == {"params/ResidualBlock_1/shortcut/kernel"}

    model = nn.ResNet(3, (6, 9), (1, 1), inner=(2, 3, 4, 5), bottleneck=True, stem=7)
    shapes = _shapes(model, 2, 8, 8, 1)
    assert shapes["params/Conv_0/kernel"] == (3, 3, 1, 7)
    for i, (cin, first, second, cout) in enumerate([(7, 2, 3, 6), (6, 4, 5, 9)]):
        kernels = [shapes[f"params/BottleneckBlock_{i}/Conv_{j}/kernel"] for j in range(3)]
        assert kernels == [(1, 1, cin, first), (3, 3, first, second), (1, 1, second, cout)]

    model = nn.VGG(3, features=(2, 3, 4), blocks=(1, 2), dense=(6, 5))
    shapes = _shapes(model, 2, 4, 4, 1)
    assert shapes["params/Conv_2/kernel"] == (3, 3, 3, 4)
    assert shapes["params/Dense_1/kernel"] == (6, 5)


@pytest.mark.parametrize("name", ["convnet", "resnet20", "vgg16", "resnet32_preact"])
@pytest.mark.parametrize("norm", nn.NORMS)
def test_a_norm_with_a_bias_replaces_that_of_the_convolution(name, norm):
    model = nn.build(name, width=0.25, n_classes=10, norm=norm, groups=2)
    shapes = _shapes(model, 2, 8, 8, 1)
    biased = {path for path in shapes if "Conv" in path and path.endswith("Conv_0/bias")}
    assert bool(biased) == (norm == "none")
    assert any(path.startswith("batch_stats") for path in shapes) == (norm == "batch")


# Deep nets take long to compile: one of each kind of block that has both convolutions.
@pytest.mark.parametrize(
    "name", ["mlp", "convnet", "resnet20", "vgg16", "wide_resnet16", "resnet18", "resnet50"]
)
def test_apply_gives_float32_logits_and_patches_fit_the_same_checkpoint(name):
    width = 8 if name == "mlp" else 0.125
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    model = nn.build(name, width=width, n_classes=10, norm="batch")
    variables = jax.tree.map(
        lambda leaf: rng.uniform(-0.3, 0.7, leaf.shape).astype(np.float32) ** 2,
        jax.eval_shape(model.init, jax.random.key(0), x),
    )
    logits = jax.jit(model.apply)(variables, x)
    assert logits.shape == (2, 10)
    assert logits.dtype == jnp.float32
    assert np.std(logits) > 0
    other = nn.build(name, width=width, n_classes=10, norm="batch", conv="patches")
    np.testing.assert_allclose(jax.jit(other.apply)(variables, x), logits, rtol=1e-4)


@pytest.mark.parametrize("name", [m for m in nn.MODELS if m not in SLOW])
def test_every_model_has_one_output_in_both_modes(name):
    width = 8 if name == "mlp" else 0.125
    model = nn.build(name, width=width, n_classes=1, norm="batch", patch=2, depth=2)
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def train(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, mutated = jax.eval_shape(train, variables, x)
    assert logits == jax.eval_shape(model.apply, variables, x)
    assert logits.shape == (2, 1)
    assert mutated == {key: value for key, value in variables.items() if key != "params"}
    assert bool(mutated) == (name not in ("mlp", "convnext", "vit"))


def test_the_activation_asked_for_is_the_only_one():
    x = jnp.ones((1, 4, 4, 1))
    for name in nn.MODELS:
        for activation, function in nn.ACTIVATIONS.items():
            model = nn.build(name, width=1, n_classes=1, activation=activation)
            assert model.activation is function
    for model in (
        nn.ResNet(1, (4, 8), (1, 1), activation=jnp.sin),
        nn.ResNet(1, (4, 8), (1, 1), bottleneck=True, activation=jnp.sin),
        nn.VGG(1, (4,), (1,), (4,), activation=jnp.sin),
        nn.PreactResNet(1, (4, 8), (1, 1), activation=jnp.sin),
    ):
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        jaxpr = str(jax.make_jaxpr(model.apply)(variables, x))
        assert " sin " in jaxpr
        assert "relu" not in jaxpr


def test_only_training_mode_touches_batch_statistics():
    model = nn.ConvNet(10, features=(4,), norm="batch")
    x = 1.0 + jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
    variables = model.init(jax.random.key(1), x)
    trained, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
    assert not np.allclose(trained, model.apply(variables, x))
    before, after = to_paths(variables["batch_stats"]), to_paths(updates["batch_stats"])
    assert all(not np.array_equal(before[path], after[path]) for path in before)
    one = model.apply(variables, x[:1])
    np.testing.assert_allclose(one, model.apply(variables, x)[:1], atol=1e-6)


def test_build_scales_widths():
    assert nn.build("mlp", width=5, n_classes=3, depth=2) == nn.MLP((5, 5), 3)
    assert nn.build("convnet", width=2, n_classes=3).features == (32, 64, 128)
    assert nn.build("resnet20", width=0.5, n_classes=3).widths == (8, 16, 32)
    assert nn.build("vgg16", width=0.5, n_classes=3).dense == (256, 256)
    assert nn.build("wide_resnet28", width=5, n_classes=3).widths == (80, 160, 320)
    assert nn.build("convnext", width=0.5, n_classes=3).dims == (48, 96, 192, 384)
    assert nn.build("vit", width=0.5, n_classes=3).hidden == (1536,) * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet"}, "name must be one of mlp, .*, resnet101; got 'resnet'"),
        ({"norm": "bn"}, "norm must be one of .*'bn'"),
        ({"conv": "fft"}, "conv must be one of .*'fft'"),
        ({"activation": "tanh"}, "activation must be one of None, relu, .*'tanh'"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"patch": 0}, "patch must be positive, got 0"),
        ({"depth": 0}, "depth must be positive, got 0"),
    ],
)
def test_build_names_what_is_wrong(options, message):
    options = {"name": "convnet", "width": 1, "n_classes": 10, **options}
    with pytest.raises(ValueError, match=message):
        nn.build(options.pop("name"), **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ResNet(3, widths=(4, 4), blocks=(1,)), "differ in length"),
        (nn.ResNet(3, widths=(4,), blocks=(2,), inner=(4,)), "inner needs 2 widths, got 1"),
        (nn.ResNet(3, widths=(4,), blocks=(2,), inner=(4,), bottleneck=True), "inner needs 4"),
        (nn.ResNet(3, widths=(4,), blocks=(1,), padding="SAME"), "padding must be one of .*'SAME'"),
        (nn.VGG(3, features=(4,), blocks=(2,)), "features needs 2 widths, got 1"),
    ],
)
def test_widths_that_do_not_fit_the_blocks_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        _shapes(model, 1, 8, 8, 1)
