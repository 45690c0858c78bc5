"""Block selection and assembly, against the block table written out unit by unit."""

import jax
import numpy as np
import pytest

from jaxml.merging import (
    PermutationSpec,
    apply_permutation,
    derive_permutation_spec,
    feature_moments,
    identity_permutation,
    matched_distances,
    partial_merge,
    select_blocks,
    weight_distances,
)
from jaxml.merging.partial_merge import FROM_A, FROM_B, MERGED, kernel_axes
from jaxml.merging.permutation import AxisRef, Group

from .helpers import assert_trees_equal, flat, plant, to_numpy
from .merges import MODELS, draw, pair
from .networks import ZOO, make


def outputs(apply, variables, x):
    return np.asarray(jax.jit(apply)(variables, x), np.float64)


def some_blocks(p, ratio, seed=3):
    """Blocks for random distances."""
    rng = np.random.default_rng(seed)
    distances = {name: rng.uniform(size=g.size) for name, g in p.spec.groups.items()}
    ratios = ratio if isinstance(ratio, dict) else p.ratios(ratio)
    return select_blocks(p.spec, p.perms, distances, ratios)


@pytest.mark.parametrize("name", MODELS)
def test_all_separate_gives_the_mean_of_the_outputs(name):
    p = pair(name)
    merged = partial_merge(p.spec, p.a, p.b, some_blocks(p, 1.0))
    mean = (outputs(p.apply, p.a, p.x) + outputs(p.apply, p.b, p.x)) / 2
    assert np.ptp(mean) > 0.1
    np.testing.assert_allclose(outputs(p.at(merged), merged, p.x), mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_all_merged_gives_a_back_from_a_permuted_copy(name):
    p = pair(name)
    copy, undo = plant(2, p.spec, p.a)
    distances = weight_distances(p.spec, undo, p.a, copy)
    blocks = select_blocks(p.spec, undo, distances, p.ratios(0.0))
    merged = partial_merge(p.spec, p.a, copy, blocks)
    assert_trees_equal(to_numpy(merged), p.a)
    np.testing.assert_allclose(
        outputs(p.at(merged), merged, p.x), outputs(p.apply, p.a, p.x), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", MODELS)
def test_all_merged_is_the_mean_of_a_and_the_permuted_b(name):
    p = pair(name)
    merged = partial_merge(p.spec, p.a, p.b, some_blocks(p, 0.0))
    aligned = apply_permutation(p.spec, p.perms, p.b)
    expected = jax.tree.map(lambda u, v: (u + np.asarray(v)) / 2, p.a, aligned)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=1e-6), merged, expected)


def spec_of(name):
    """(spec, shapes) of a network of the zoo."""
    module, shape = ZOO[name]
    x = jax.ShapeDtypeStruct(shape, np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return derive_permutation_spec(module.apply, shapes, x), shapes


def one_group(size):
    refs = (AxisRef("params/u/kernel", 1, (size,), 0), AxisRef("params/v/kernel", 0, (size,), 0))
    return PermutationSpec({"u": Group(size, refs)})


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("ties", ["none", "some", "all"])
@pytest.mark.parametrize("r", [0, 0.01, 0.5, 0.99, 1])
def test_widths_are_exact_and_the_closest_pairs_are_merged(size, ties, r):
    rng = np.random.default_rng(size)
    values = {"none": rng.uniform(size=size), "some": rng.integers(3, size=size) * 1.0}
    distances = values.get(ties, np.zeros(size))
    perm = rng.permutation(size)
    (block,) = select_blocks(one_group(size), {"u": perm}, {"u": distances}, {"u": r}).values()
    k = size - round(r * size)
    assert len(block.merged_a) == k
    assert block.width == 2 * size - k == len(block.kinds)
    for merged, separate in (
        (block.merged_a, block.separate_a),
        (block.merged_b, block.separate_b),
    ):
        np.testing.assert_array_equal(np.sort([*merged, *separate]), np.arange(size))
        assert (np.diff(separate) > 0).all()
    np.testing.assert_array_equal(block.merged_b, perm[block.merged_a])
    if 0 < k < size:
        assert distances[block.merged_a].max() <= distances[block.separate_a].min()


def test_sources_and_kinds_of_a_block_by_hand():
    perm, distances = np.array([2, 0, 3, 1]), np.array([1.0, 9.0, 0.0, 5.0])
    (block,) = select_blocks(one_group(4), {"u": perm}, {"u": distances}, {"u": 0.5}).values()
    np.testing.assert_array_equal(block.kinds, [MERGED] * 2 + [FROM_A] * 2 + [FROM_B] * 2)
    np.testing.assert_array_equal(block.sources(FROM_A), [0, 2, 1, 3, -1, -1])
    np.testing.assert_array_equal(block.sources(FROM_B), [2, 3, -1, -1, 0, 1])


def units(block):
    """(unit of A or None, unit of B or None), one a new unit."""
    merged = list(zip(block.merged_a, block.merged_b, strict=True))
    return merged + [(i, None) for i in block.separate_a] + [(None, j) for j in block.separate_b]


def mixed(inputs, output, value_a, value_b):
    """One entry of the block table: units are (in A, in B), values are functions of units."""
    (ia, ib), (oa, ob) = inputs, output
    from_a = value_a(ia, oa) if ia is not None and oa is not None else 0.0
    from_b = value_b(ib, ob) if ib is not None and ob is not None else 0.0
    both = oa is not None and ob is not None
    return (from_a + from_b) / 2 if both else from_a + from_b


def assembled(p, blocks):
    """The merged leaves, entry by entry in float64."""
    owner = {(ref.path, ref.axis): n for n, g in p.spec.groups.items() for ref in g.axes}
    found = {}
    for path, a in flat(p.a).items():
        b = flat(p.b)[path]
        kernel = path.endswith("kernel")
        ends = []
        for axis in (a.ndim - 2, a.ndim - 1) if kernel else (a.ndim - 1,):
            plain = [(i, i) for i in range(a.shape[axis])]
            if (path, axis) in owner:
                name = owner[path, axis]
                # A flatten leaves positions in front of the channels.
                plain = [
                    tuple(
                        None if u is None else position * p.spec.groups[name].size + u for u in pair
                    )
                    for position in range(a.shape[axis] // p.spec.groups[name].size)
                    for pair in units(blocks[name])
                ]
            ends.append(plain)
        rows = ends[0] if kernel else [(0, 0)]
        flat_a, flat_b = (
            v.astype(np.float64).reshape(-1, a.shape[-2] if kernel else 1, a.shape[-1])
            for v in (a, b)
        )
        out = np.zeros((len(flat_a), len(rows), len(ends[-1])))
        for r, inputs in enumerate(rows):
            for c, output in enumerate(ends[-1]):
                out[:, r, c] = mixed(
                    inputs,
                    output,
                    lambda i, o, v=flat_a: v[:, i, o],
                    lambda i, o, v=flat_b: v[:, i, o],
                )
        shape = (*a.shape[:-2], len(rows)) if kernel else a.shape[:-1]
        found[path] = out.reshape(*shape, len(ends[-1]))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_follows_the_block_table(name):
    p = pair(name)
    ratios = dict(zip(p.spec.groups, (0.4, 0.7, 0.2, 0.5, 0.6), strict=False))
    blocks = some_blocks(p, ratios)
    merged = flat(partial_merge(p.spec, p.a, p.b, blocks))
    for path, expected in assembled(p, blocks).items():
        np.testing.assert_allclose(merged[path], expected, atol=1e-6, err_msg=path)
        assert merged[path].dtype == np.float32


@pytest.mark.parametrize("name", MODELS)
def test_units_of_one_network_never_feed_those_of_the_other(name):
    p = pair(name)
    blocks = some_blocks(p, 0.5)
    merged, n_zeros = flat(partial_merge(p.spec, p.a, p.b, blocks)), 0
    for layer, ends in kernel_axes(p.spec, p.a).items():
        if ends.input is None or ends.output is None:
            continue
        kernel = merged[f"params/{layer}/kernel"]
        positions = kernel.shape[-2] // blocks[ends.input].width
        rows = np.tile(blocks[ends.input].kinds, positions)[:, None]
        columns = blocks[ends.output].kinds[None]
        crossing = (rows != columns) & (rows != MERGED) & (columns != MERGED)
        assert (kernel[..., crossing] == 0).all()
        assert (kernel[..., ~crossing] != 0).all()
        n_zeros += crossing.sum()
    assert n_zeros > 0


def test_a_group_on_both_axes_of_one_kernel():
    # x = Dense(24)(x); x + relu(Dense(24)(x)): a separate stream must stay apart.
    spec, shapes = spec_of("square_residual")
    a, b = (draw(s, shapes) for s in (0, 1))
    perms = to_numpy(identity_permutation(spec))
    distances = {name: np.arange(24.0) for name in spec.groups}
    blocks = select_blocks(spec, perms, distances, dict.fromkeys(spec.groups, 1.0))
    merged = flat(partial_merge(spec, a, b, blocks))["params/Dense_1/kernel"]
    assert merged.shape == (48, 48)
    assert (merged[:24, 24:] == 0).all() and (merged[24:, :24] == 0).all()
    np.testing.assert_array_equal(merged[:24, :24], a["params"]["Dense_1"]["kernel"])
    np.testing.assert_array_equal(merged[24:, 24:], b["params"]["Dense_1"]["kernel"])


def test_distances_of_activations_equal_numpy():
    p = pair("mlp")
    moments = feature_moments(p.spec, p.apply, p.a, p.b, [p.x[:2], p.x[2:]])
    found = matched_distances(p.spec, p.perms, moments)
    za, zb = p.x.astype(np.float64), p.x.astype(np.float64)
    for i in range(2):
        name = f"Dense_{i}"
        la, lb = (v["params"][name] for v in (p.a, p.b))
        za = np.maximum(za @ la["kernel"] + la["bias"], 0)
        zb = np.maximum(zb @ lb["kernel"] + lb["bias"], 0)
        expected = ((za - zb[:, p.perms[name]]) ** 2).sum(0)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)


def test_distances_of_weights_equal_numpy():
    p = pair("convnet")
    found = weight_distances(p.spec, p.perms, p.a, p.b)
    aligned = flat(apply_permutation(p.spec, p.perms, p.b))
    expected = {name: np.zeros(g.size) for name, g in p.spec.groups.items()}
    for name, group in p.spec.groups.items():
        for ref in group.axes:
            if not ref.path.startswith("batch_stats"):
                change = flat(p.a)[ref.path] - aligned[ref.path]
                expected[name] += np.square(np.moveaxis(change, ref.axis, 0)).reshape(
                    group.size, -1
                ).sum(1)  # fmt: skip
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("name", ["convnet", "depthwise"])
def test_a_permuted_copy_is_at_distance_zero(name):
    p = pair(name)
    copy, undo = plant(2, p.spec, p.a)
    moments = feature_moments(p.spec, p.apply, p.a, copy, [p.x])
    for distances in (
        matched_distances(p.spec, undo, moments),
        weight_distances(p.spec, undo, p.a, copy),
    ):
        energy = sum(m.squares.sum() for m in moments)
        assert all(d.max() <= 1e-5 * energy for d in distances.values())


def test_sources_are_left_alone():
    p = pair("convnet")
    before = jax.tree.map(np.copy, (p.a, p.b))
    partial_merge(p.spec, p.a, p.b, some_blocks(p, 0.5))
    weight_distances(p.spec, p.perms, p.a, p.b)
    assert_trees_equal((p.a, p.b), before)


@pytest.mark.parametrize("r", [-0.1, 1.01, float("nan")])
def test_ratios_outside_the_unit_interval_are_refused(r):
    p = pair("mlp")
    with pytest.raises(ValueError, match=r"ratio of group 'Dense_1' must lie in \[0, 1\], got"):
        some_blocks(p, {"Dense_0": 0.5, "Dense_1": r})


def test_bad_input_names_the_group_or_the_leaf():
    p = pair("mlp")
    distances = {name: np.zeros(g.size) for name, g in p.spec.groups.items()}
    ratios = p.ratios(0.5)

    def without(mapping):
        return {name: value for name, value in mapping.items() if name != "Dense_1"}

    for given, what in (
        ((without(p.perms), distances, ratios), "perms"),
        ((p.perms, without(distances), ratios), "distances"),
        ((p.perms, distances, without(ratios)), "ratios"),
    ):
        with pytest.raises(ValueError, match=f"{what} lack group 'Dense_1'"):
            select_blocks(p.spec, *given)
    with pytest.raises(ValueError, match="distances of group 'Dense_0' must be 7 numbers"):
        select_blocks(p.spec, p.perms, distances | {"Dense_0": np.full(7, np.nan)}, ratios)
    with pytest.raises(ValueError, match="distances of group 'Dense_0' must be 7 numbers"):
        select_blocks(p.spec, p.perms, distances | {"Dense_0": np.zeros(6)}, ratios)
    with pytest.raises(ValueError, match="'Dense_0' is no bijection"):
        select_blocks(p.spec, {**p.perms, "Dense_0": np.zeros(7, int)}, distances, ratios)
    moments = feature_moments(p.spec, p.apply, p.a, p.b, [p.x])
    with pytest.raises(ValueError, match="perms lack group 'Dense_1'"):
        matched_distances(p.spec, without(p.perms), moments)
    with pytest.raises(ValueError, match="perms lack group 'Dense_1'"):
        weight_distances(p.spec, without(p.perms), p.a, p.b)

    blocks = some_blocks(p, 0.5)
    with pytest.raises(ValueError, match="blocks lack group 'Dense_1'"):
        partial_merge(p.spec, p.a, p.b, without(blocks))
    broken = jax.tree.map(np.copy, p.b)
    broken["params"]["Dense_1"]["kernel"][0, 0] = np.nan
    with pytest.raises(ValueError, match="b has 1 non-finite values at 'params/Dense_1/kernel'"):
        partial_merge(p.spec, p.a, broken, blocks)
    with pytest.raises(ValueError, match="the models differ"):
        partial_merge(p.spec, p.a, pair("convnet").b, blocks)


@pytest.mark.parametrize("name", ["cnn_groupnorm4", "vit", "grouped"])
def test_groups_without_a_simple_place_in_a_kernel_are_named(name):
    spec, shapes = spec_of(name)
    with pytest.raises(ValueError, match=r"group '.+' has no simple place in 'params/.+/kernel'"):
        kernel_axes(spec, shapes)


def test_moments_of_factors_of_one_axis_are_refused():
    module, variables, x = make("cnn_groupnorm4")
    spec = derive_permutation_spec(module.apply, variables, x)
    moments = feature_moments(spec, module.apply, variables, variables, [x])
    with pytest.raises(ValueError, match="are factors of one axis"):
        matched_distances(spec, identity_permutation(spec), moments)


def test_kernel_axes_of_a_flatten():
    p = pair("flatten")
    ends = kernel_axes(p.spec, p.a)
    assert ends["Dense_0"] == ("Conv_1", "Dense_0", (2, 2, 6), 2)
    assert ends["Conv_0"] == (None, "Conv_0", (2,), 0)
    assert ends["Dense_1"] == ("Dense_0", None, (7,), 0)
