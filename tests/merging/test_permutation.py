"""Permutation specs: derived groups, function preservation, the algebra of permutations."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxml.core.tree import to_paths
from jaxml.merging import permutation as perm
from jaxml.nn import build

from . import reference
from .networks import ZOO, make

# Group sizes by hand, from the definition of each network.
SIZES = {
    "mlp": [8, 10, 12],
    "cnn_batchnorm": [16, 24, 40],
    "cnn_layernorm": [16, 24, 40],
    "cnn_rmsnorm": [16, 24, 40],
    "cnn_instancenorm": [16, 24, 40],
    "cnn_groupnorm1": [16, 24, 40],
    "cnn_groupnorm4": [4, 4, 4, 6, 40],
    "depthwise": [8, 16],
    "grouped": [4, 8, 16],
    "square_residual": [24],
    "bottleneck_residual": [30, 50, 50],
    "vit": [4, 4, 8, 8, 8, 8, 32, 128, 128],
    "tied_lm": [2, 2, 8, 8, 8, 8, 16, 32, 32],
    "lstm": [20],
    "gated": [16],
}


@functools.cache
def derive(name, **kwargs):
    module, variables, x = make(name, **kwargs)
    return module, variables, x, perm.derive_permutation_spec(module.apply, variables, x)


def as_sets(spec):
    return {frozenset((ref.path, ref.axis) for ref in g.axes) for g in spec.groups.values()}


@pytest.mark.parametrize("name", ZOO)
def test_groups_have_the_sizes_of_the_definition(name):
    *_, spec = derive(name)
    assert sorted(g.size for g in spec.groups.values()) == SIZES[name]
    assert not spec.unknown_primitives


@pytest.mark.parametrize("name", ZOO)
def test_every_group_moves_leaves_and_keeps_the_function(name):
    module, variables, x, spec = derive(name, randomise=False)

    @jax.jit
    def run(perms):
        moved = perm.apply_permutation(spec, perms, variables)
        return moved, module.apply(moved, x)

    same = perm.identity_permutation(spec)
    _, expected = run(same)
    for group in spec.groups:
        moved, out = run(same | {group: jnp.roll(same[group], 1)})
        places = {ref.path for ref in spec.groups[group].axes}
        # Zero biases and unit scales look the same in any order.
        kernels = [p for p in places if to_paths(variables)[p].std() > 0]
        assert kernels
        for path in kernels:
            assert not np.array_equal(to_paths(moved)[path], to_paths(variables)[path]), path
        assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max(), group


@pytest.mark.parametrize("name", ZOO)
def test_function_is_kept_to_rounding_in_float64(name):
    # Flax's normalisation mixes float32 constants in, which strict promotion forbids.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        module, variables, x = make(name, dtype=jnp.float64)
        variables = jax.tree.map(lambda leaf: 3 * leaf, variables)
        spec = perm.derive_permutation_spec(module.apply, variables, x)
        perm.check_permutation_spec(jax.random.key(0), spec, module.apply, variables, x, rtol=1e-9)


def test_groups_of_package_mlp_equal_a_hand_written_table():
    model = build("mlp", width=16, n_classes=10, depth=3)
    x = jnp.zeros((2, 8, 8, 1))
    spec = perm.derive_permutation_spec(model.apply, model.init(jax.random.key(0), x), x)
    assert as_sets(spec) == {frozenset(g) for g in reference.mlp_groups(3)}


def test_square_residual_has_one_group_on_two_axes_of_one_kernel():
    *_, spec = derive("square_residual")
    (group,) = spec.groups.values()
    assert {0, 1} == {ref.axis for ref in group.axes if ref.path == "params/Dense_1/kernel"}


def test_equal_widths_that_are_not_linked_stay_apart():
    model = build("mlp", width=16, n_classes=16, depth=2)
    x = jnp.zeros((2, 16))
    spec = perm.derive_permutation_spec(model.apply, model.init(jax.random.key(0), x), x)
    assert len(spec.groups) == 2


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: jnp.cumsum(x @ p["u"], axis=-1) @ p["v"],
        lambda p, x: jnp.sort(x @ p["u"], axis=-1) @ p["v"],
        lambda p, x: jnp.flip(x @ p["u"], axis=-1) @ p["v"],
        lambda p, x: (x @ p["u"])[:, 1:] @ p["v"][1:],
        lambda p, x: (x @ p["u"] + jnp.arange(6.0)[None]) @ p["v"],
        lambda p, x: jax.nn.one_hot(jnp.argmax(x @ p["u"], axis=-1), 6) @ p["v"],
        lambda p, x: jax.lax.dynamic_slice_in_dim(x @ p["u"], 0, 4, 1) @ p["v"][:4],
        lambda p, x: jnp.roll(x @ p["u"], 1, axis=-1) @ p["v"],
        lambda p, x: x @ p["u"],
    ],
    ids=["cumsum", "sort", "flip", "slice", "constant", "argmax", "dynamic_slice", "roll",
         "output"],
)  # fmt: skip
def test_position_dependent_axes_never_move(fn):
    params = {"u": jnp.ones((5, 6)), "v": jnp.ones((6, 3))}
    spec = perm.derive_permutation_spec(fn, params, jnp.ones((2, 5)))
    assert not spec.groups


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: jax.checkpoint(lambda h: jax.nn.relu(h @ p["u"]) @ p["v"])(x),
        lambda p, x: jax.jit(lambda h: jax.nn.gelu(h @ p["u"]))(x) @ p["v"],
        lambda p, x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x @ p["u"]) @ p["v"],
        lambda p, x: (
            jax.lax.fori_loop(0, jnp.argmax(x[0]) + 1, lambda _, h: 2 * h, x @ p["u"]) @ p["v"]
        ),
        lambda p, x: jax.lax.associative_scan(jnp.add, (x @ p["u"])[None])[0] @ p["v"],
        lambda p, x: jax.lax.map(lambda row: row @ p["u"], x) @ p["v"],
        lambda p, x: jnp.stack([x @ p["u"], x @ p["u"]]).sum(0) @ p["v"],
        lambda p, x: jnp.concatenate([x @ p["u"]] * 2, -1) @ jnp.concatenate([p["v"]] * 2, 0),
        lambda p, x: jnp.tile(x @ p["u"], (1, 2)) @ jnp.tile(p["v"], (2, 1)),
        lambda p, x: jax.nn.softmax(x @ p["u"]) @ p["v"],
        lambda p, x: jax.vmap(lambda row: (row @ p["u"]) @ p["v"])(x),
    ],
    ids=["remat", "jit", "cond", "while", "associative_scan", "map",
         "stack", "concat", "tile", "softmax", "vmap"],
)  # fmt: skip
def test_control_flow_and_calls_keep_the_symmetry(fn):
    params = {
        "u": jax.random.normal(jax.random.key(0), (5, 6)),
        "v": jax.random.normal(jax.random.key(1), (6, 3)),
    }
    x = jax.random.normal(jax.random.key(2), (2, 5))
    spec = perm.derive_permutation_spec(fn, params, x)
    assert [g.size for g in spec.groups.values()] == [6]
    perm.check_permutation_spec(jax.random.key(3), spec, fn, params, x)


def test_abstract_variables_are_enough():
    module, variables, x, spec = derive("cnn_batchnorm")
    shapes = jax.eval_shape(lambda: variables)
    assert perm.derive_permutation_spec(module.apply, shapes, x) == spec


def test_unknown_primitive_is_named_and_shrinks_the_spec():
    def fn(p, x):
        h = jnp.linalg.inv(x @ p["u"])
        return jax.nn.relu(h @ p["v"]) @ p["w"]

    params = {"u": jnp.eye(5), "v": jnp.ones((5, 6)), "w": jnp.ones((6, 3))}
    with pytest.warns(UserWarning, match="'lu'"):
        spec = perm.derive_permutation_spec(fn, params, jnp.eye(5))
    assert "lu" in spec.unknown_primitives
    assert [g.size for g in spec.groups.values()] == [6]


@pytest.mark.parametrize("name", ["cnn_groupnorm4", "vit", "square_residual"])
def test_inverse_restores_every_bit_and_composition_holds(name):
    _, variables, _, spec = derive(name)
    p = perm.random_permutation(jax.random.key(0), spec)
    q = perm.random_permutation(jax.random.key(1), spec)
    there = perm.apply_permutation(spec, p, variables)
    back = perm.apply_permutation(spec, perm.invert_permutation(p), there)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    both = perm.apply_permutation(spec, perm.compose_permutations(p, q), variables)
    jax.tree.map(np.testing.assert_array_equal, both, perm.apply_permutation(spec, q, there))
    same = perm.apply_permutation(spec, perm.identity_permutation(spec), variables)
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_apply_under_jit_equals_eager():
    _, variables, _, spec = derive("cnn_groupnorm4")
    p = perm.random_permutation(jax.random.key(0), spec)
    jitted = jax.jit(perm.apply_permutation, static_argnums=0)(spec, p, variables)
    jax.tree.map(np.testing.assert_array_equal, jitted, perm.apply_permutation(spec, p, variables))


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=25, deadline=None)
def test_permuting_an_mlp_equals_numpy_indexing(seed):
    _, variables, _, spec = derive("mlp")
    p = perm.random_permutation(jax.random.key(seed), spec)
    new = to_paths(perm.apply_permutation(spec, p, variables))
    old = {k: np.asarray(v) for k, v in to_paths(variables).items()}
    first, second = np.asarray(p["Dense_0"]), np.asarray(p["Dense_1"])
    np.testing.assert_array_equal(
        new["params/Dense_1/kernel"], old["params/Dense_1/kernel"][first][:, second]
    )
    np.testing.assert_array_equal(new["params/Dense_0/bias"], old["params/Dense_0/bias"][first])


@pytest.mark.parametrize("name", ["vit", "lstm"])
def test_json_round_trip(name):
    *_, spec = derive(name)
    assert perm.PermutationSpec.from_json(spec.to_json()) == spec


def test_check_permutation_spec_names_the_wrong_group():
    module, variables, x, spec = derive("mlp")
    wrong = dict(spec.groups)
    wrong["Dense_1"] = wrong["Dense_1"]._replace(axes=wrong["Dense_1"].axes[:-1])
    with pytest.raises(ValueError, match="'Dense_1'"):
        perm.check_permutation_spec(
            jax.random.key(0), perm.PermutationSpec(wrong), module.apply, variables, x
        )


def test_bad_permutations_are_named():
    _, variables, _, spec = derive("mlp")
    twice = {"Dense_0": jnp.zeros(8, jnp.int32)}
    with pytest.raises(ValueError, match=re.escape("'Dense_0' is no bijection of 0..7")):
        perm.check_permutations(spec, twice)
    with pytest.raises(ValueError, match="unknown group 'Dense_9'"):
        perm.apply_permutation(spec, {"Dense_9": jnp.arange(8)}, variables)
    with pytest.raises(ValueError, match="groups differ"):
        perm.compose_permutations(twice, perm.identity_permutation(spec))


def test_spec_of_another_network_is_refused_by_path():
    *_, spec = derive("mlp")
    with pytest.raises(ValueError, match="params/Dense_0/bias"):
        perm.apply_permutation(spec, {}, {"params": {}})
    other = nn.Dense(3).init(jax.random.key(0), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="do not have"):
        perm.apply_permutation(spec, {}, other)
