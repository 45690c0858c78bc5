"""Permutation specs of the package's own models: against tables by hand, and by moving units."""

import functools

import jax
import numpy as np
import pytest

from jaxml.core.tree import to_paths
from jaxml.merging import check_permutation_spec, derive_permutation_spec, weight_matching
from jaxml.nn import CONVS, build

from . import reference


@functools.cache
def derive(name, norm="layer", conv="lax"):
    """Returns (model, variables, inputs, spec) at a quarter of the usual width."""
    width = 8 if name == "mlp" else 0.25
    model = build(name, width=width, n_classes=3, norm=norm, groups=2, conv=conv)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(1), x)
    return model, variables, x, derive_permutation_spec(model.apply, variables, x)


def randomised(shapes, seed=0):
    """Draws every leaf, so that no bias, scale or running statistic looks the same when moved."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = max(1, leaf.size // leaf.shape[-1]) if len(leaf.shape) > 1 else 4
        values = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        # Vectors are scales, biases and variances: all may be positive.
        return (values if len(leaf.shape) > 1 else np.abs(values) + 0.5).astype(np.float32)

    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("mlp", reference.mlp_groups(3)),
        ("resnet20", reference.resnet20_groups()),
        ("vgg16", reference.vgg16_groups()),
    ],
    ids=["mlp", "resnet20", "vgg16"],
)
def test_groups_equal_a_table_by_hand(name, groups):
    *_, spec = derive(name)
    derived = {frozenset((r.path, r.axis) for r in g.axes) for g in spec.groups.values()}
    assert derived == {frozenset(g) for g in groups}
    # Every axis moves as a whole.
    assert all(len(r.factor_shape) == 1 for g in spec.groups.values() for r in g.axes)


MODELS = [
    ("resnet20", "layer"),
    ("resnet20", "batch"),
    ("resnet20", "group"),
    ("vgg16", "layer"),
    ("convnet", "layer"),
]


# Deep networks take long to compile: the other combinations are heavy.
USUAL = {
    ("resnet20", "layer", "patches"),
    ("resnet20", "batch", "lax"),
    ("resnet20", "group", "lax"),
    ("vgg16", "layer", "lax"),
}


@pytest.mark.parametrize(
    ("name", "norm", "conv"),
    [
        pytest.param(
            *model, conv, id="-".join((*model, conv)),
            marks=[] if model[0] == "convnet" or (*model, conv) in USUAL else pytest.mark.heavy,
        )
        for model in MODELS
        for conv in CONVS
    ],
)  # fmt: skip
def test_moving_any_group_keeps_the_function(name, norm, conv):
    model, shapes, x, spec = derive(name, norm, conv)
    assert spec.groups and not spec.unknown_primitives
    check_permutation_spec(jax.random.key(2), spec, model.apply, randomised(shapes), x)


@pytest.mark.parametrize(("name", "norm"), MODELS)
def test_both_convolutions_have_the_same_spec(name, norm):
    specs = [derive(name, norm, conv)[-1] for conv in CONVS]
    assert specs[0] == specs[1]


def test_group_norm_splits_channels_into_groups_and_members():
    *_, spec = derive("resnet20", "group")
    shapes = {r.factor_shape for g in spec.groups.values() for r in g.axes}
    assert shapes == {(2, 2), (2, 4), (2, 8)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["mlp", "resnet20"])
def test_weight_matching_is_as_good_as_the_published_algorithm_on_fewer_assignments(name, seed):
    _, shapes, _, spec = derive(name)
    a, b = randomised(shapes, 2 * seed), randomised(shapes, 2 * seed + 1)
    groups = {n: [(r.path, r.axis) for r in g.axes] for n, g in spec.groups.items()}
    sizes = {n: g.size for n, g in spec.groups.items()}
    # The same visiting orders: both draw one permutation of the sorted names a pass.
    perms, solved = reference.weight_matching(groups, to_paths(a), to_paths(b), sizes, seed=[0, 7])
    match = weight_matching(jax.random.key(7), spec, a, b)
    expected = reference.objective(groups, perms, to_paths(a), to_paths(b))
    assert match.objective == pytest.approx(
        reference.objective(groups, match.perms, to_paths(a), to_paths(b)), rel=1e-9
    )
    assert match.objective == pytest.approx(expected, rel=0.01)
    assert match.n_assignments < solved
