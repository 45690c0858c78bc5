"""Gram matrices, their solution, and layers solved in merged networks, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.merging import (
    accumulate_gram,
    partial_merge,
    permuted_least_squares,
    regmean,
    select_blocks,
    solve_gram,
)
from jaxml.merging.layers import read_layers
from jaxml.merging.least_squares import _device_moments, _host_moments, residual
from jaxml.merging.partial_merge import FROM_A, FROM_B, MERGED, kernel_axes
from jaxml.nn import MLP

from .helpers import assert_trees_equal, flat, plant, to_numpy
from .merges import MODELS, draw, pair


def merge(p, r=0.5):
    """(blocks, assembled network) for a random choice of merged units."""
    rng = np.random.default_rng(3)
    distances = {name: rng.uniform(size=g.size) for name, g in p.spec.groups.items()}
    blocks = select_blocks(p.spec, p.perms, distances, p.ratios(r))
    return blocks, partial_merge(p.spec, p.a, p.b, blocks)


def solve(p, blocks, merged, batches, **options):
    return permuted_least_squares(
        p.spec, p.apply, p.a, p.b, blocks, merged, batches,
        merged_apply=p.at(merged), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def regression():
    """Full-rank data with a bias column, and the kinds of its inputs and outputs."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(60, 9)), np.ones((60, 1))], axis=1).astype(np.float32)
    y = rng.normal(size=(60, 8)).astype(np.float32)
    input_kinds = np.array([MERGED] * 3 + [FROM_A] * 3 + [FROM_B] * 3 + [MERGED])
    output_kinds = np.array([MERGED] * 2 + [FROM_A] * 3 + [FROM_B] * 3)
    w = rng.normal(size=(10, 8))
    w[forbidden(input_kinds, output_kinds)] = 0
    return z, y, w, input_kinds, output_kinds


def forbidden(input_kinds, output_kinds):
    rows, columns = input_kinds[:, None], output_kinds[None]
    return (rows != MERGED) & (columns != MERGED) & (rows != columns)


def test_grams_equal_numpy_in_float64(regression):
    z, y, *_ = regression
    found = accumulate_gram(None, z, y)
    z, y = z.astype(np.float64), y.astype(np.float64)
    assert found.n == 60
    for value, expected in zip(found[1:], (z.T @ z, z.T @ y, (y**2).sum(0)), strict=True):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cuts", [[1], [20, 40], [7, 8, 59]])
def test_grams_do_not_depend_on_the_split_and_use_every_batch(regression, cuts):
    z, y, *_ = regression
    whole, total = accumulate_gram(None, z, y), None
    for rows in zip(np.split(z, cuts), np.split(y, cuts), strict=True):
        total = accumulate_gram(total, *rows)
    for value, expected in zip(total, whole, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
    last = accumulate_gram(None, *rows)
    assert np.abs(last.gram - total.gram).max() > 0.1


def test_grams_of_separate_regressions():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(4, 11, 3)), rng.normal(size=(4, 11, 1))
    found = accumulate_gram(None, z.astype(np.float32), y.astype(np.float32))
    assert found.n == 11
    np.testing.assert_allclose(found.gram, np.einsum("cni,cnj->cij", z, z), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.cross, np.einsum("cni,cnj->cij", z, y), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.targets, (y**2).sum((1, 2)), rtol=1e-4)


def test_wide_inputs_are_not_narrowed():
    # 1 + 2^-30 is 1 in float32.
    with jax.enable_x64(True):
        z = jax.numpy.full((1, 1), 1 + 2.0**-30)
    assert accumulate_gram(None, z, z).gram[0, 0] > 1


def test_solution_equals_numpy_lstsq(regression):
    z, y, w0, input_kinds, output_kinds = regression
    moments = accumulate_gram(None, z, y)
    w = solve_gram(moments, w0, input_kinds=input_kinds, output_kinds=output_kinds, ridge=1e-12)
    allowed = ~forbidden(input_kinds, output_kinds)
    for column in range(8):
        rows = allowed[:, column]
        expected, *_ = np.linalg.lstsq(z[:, rows].astype(float), y[:, column].astype(float))
        np.testing.assert_allclose(w[rows, column], expected, atol=1e-6)
    assert (w[~allowed] == 0).all()


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_masked_ridged_normal_equations_hold(regression, ridge):
    z, y, w0, input_kinds, output_kinds = regression
    moments = accumulate_gram(None, z, y)
    w = solve_gram(moments, w0, input_kinds=input_kinds, output_kinds=output_kinds, ridge=ridge)
    for column in range(8):
        rows = ~forbidden(input_kinds, output_kinds)[:, column]
        gram, right = moments.gram[np.ix_(rows, rows)], moments.cross[rows, column]
        lam = ridge * np.diag(gram).mean()
        left = gram @ w[rows, column] + lam * (w[rows, column] - w0[rows, column])
        assert np.linalg.norm(left - right) <= 1e-8 * np.linalg.norm(right)


def test_a_strong_ridge_and_zero_data_give_back_the_anchor(regression):
    z, y, w0, *kinds = regression
    kinds = dict(zip(("input_kinds", "output_kinds"), kinds, strict=True))
    moments = accumulate_gram(None, z, y)
    np.testing.assert_allclose(solve_gram(moments, w0, ridge=1e12, **kinds), w0, atol=1e-9)
    nothing = accumulate_gram(None, 0 * z, 0 * y)
    np.testing.assert_array_equal(solve_gram(nothing, w0, ridge=1e-2, **kinds), w0)


def test_dead_inputs_keep_their_weights(regression):
    z, y, w0, input_kinds, output_kinds = regression
    z = z.copy()
    z[:, [1, 4, 8]] = 0
    w = solve_gram(
        accumulate_gram(None, z, y), w0,
        input_kinds=input_kinds, output_kinds=output_kinds, ridge=1e-6,
    )  # fmt: skip
    np.testing.assert_array_equal(w[[1, 4, 8]], w0[[1, 4, 8]])
    assert np.abs(w - w0)[[0, 3, 7]].max() > 0.1


def test_separate_regressions_are_solved_one_by_one():
    rng = np.random.default_rng(0)
    z, y = (rng.normal(size=(3, 20, q)).astype(np.float32) for q in (4, 1))
    w0 = rng.normal(size=(3, 4, 1))
    kinds = {"input_kinds": np.array([]), "output_kinds": np.array([MERGED, FROM_A, FROM_B])}
    w = solve_gram(accumulate_gram(None, z, y), w0, ridge=1e-12, **kinds)
    for c in range(3):
        expected, *_ = np.linalg.lstsq(z[c].astype(float), y[c].astype(float))
        np.testing.assert_allclose(w[c], expected, atol=1e-6)


def test_residual_equals_a_direct_computation(regression):
    z, y, w, *_ = regression
    moments = accumulate_gram(None, z, y)
    direct = ((z.astype(float) @ w - y) ** 2).sum() / 60
    assert residual(moments, w) == pytest.approx(direct, rel=1e-10)
    exact = accumulate_gram(None, z, (z @ w.astype(np.float32)))
    assert 0 <= residual(exact, w.astype(np.float32)) <= 1e-8
    z, y, w = z.T[:, :, None], y[:, :1].T.repeat(10, 0)[..., None], w[:, :1, None]
    direct = ((z.astype(float) @ w - y) ** 2).sum() / 60
    assert residual(accumulate_gram(None, z, y), w) == pytest.approx(direct, rel=1e-10)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["paper", "sequential"])
def test_every_layer_fits_its_targets_no_worse_than_before(name, mode):
    p = pair(name)
    blocks, merged = merge(p)
    before = jax.tree.map(np.copy, (p.a, p.b, to_numpy(merged)))
    found = solve(p, blocks, merged, [p.x[:4], p.x[4:]], mode=mode)
    assert found.skipped == ()
    assert set(found.before) == set(kernel_axes(p.spec, p.a)) == set(found.after)
    for path, error in found.after.items():
        assert error <= found.before[path] * (1 + 1e-9) + 1e-12, path
    assert sum(found.after.values()) < 0.8 * sum(found.before.values())
    # Sources and start stay, and so does all that is no kernel or bias of a linear layer.
    assert_trees_equal((p.a, p.b, to_numpy(merged)), before)
    leaves, solved = flat(merged), flat(found.variables)
    for path, leaf in solved.items():
        assert leaf.dtype == leaves[path].dtype and leaf.shape == leaves[path].shape
        layer = path.removeprefix("params/").rsplit("/", 1)[0]
        if layer not in found.after:
            np.testing.assert_array_equal(leaf, leaves[path])
        elif path.endswith("kernel"):
            np.testing.assert_array_equal(leaf == 0, leaves[path] == 0)


# Strides, padding and dilation of the convolutions, as written in ``merges`` and ``ConvNet``.
CONVS = {
    ("convnet", "Conv_0"): ((1, 1), "SAME", (1, 1)),
    ("convnet", "Conv_1"): ((2, 2), "SAME", (1, 1)),
    ("flatten", "Conv_0"): ((1, 1), "SAME", (1, 1)),
    ("flatten", "Conv_1"): ((1, 1), "VALID", (1, 1)),
    ("depthwise", "Conv_0"): ((1, 1), "SAME", (2, 2)),
    ("depthwise", "Conv_1"): ((2, 2), ((1, 1), (1, 1)), (1, 1)),
    ("depthwise", "Conv_2"): ((1, 1), "SAME", (1, 1)),
}


def share(blocks, name, za, zb, factors=None):
    """The blocks ``[m | sA | sB]`` of the last axis, channels last inside a flatten."""
    if name is None:
        return (za + zb) / 2
    if factors is not None and len(factors) > 1:
        za, zb = (z.reshape(*z.shape[:-1], *factors) for z in (za, zb))
    b = blocks[name]
    out = np.concatenate(
        [(za[..., b.merged_a] + zb[..., b.merged_b]) / 2, za[..., b.separate_a],
         zb[..., b.separate_b]], axis=-1,
    )  # fmt: skip
    return out.reshape(len(out), -1) if factors is not None and len(factors) > 1 else out


def apply_layer(name, path, z, kernel, depthwise):
    if kernel.ndim == 2:
        return z @ kernel
    strides, padding, dilation = CONVS[name, path]
    return np.asarray(
        jax.lax.conv_general_dilated(
            z.astype(np.float32), kernel.astype(np.float32), strides, padding,
            rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=z.shape[-1] if depthwise else 1,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mlp", "convnet", "flatten", "depthwise"])
def test_reported_errors_are_those_of_the_layers(name):
    p = pair(name)
    blocks, merged = merge(p)
    found = solve(p, blocks, merged, [p.x])
    leaves, all_ends = flat(found.variables), kernel_axes(p.spec, p.a)
    of_a, of_b = (
        to_numpy(read_layers(v, p.x, apply=p.apply, paths=tuple(all_ends))) for v in (p.a, p.b)
    )
    for path, ends in all_ends.items():
        (za, ya), (zb, yb) = of_a[path], of_b[path]
        kernel = leaves[f"params/{path}/kernel"].astype(np.float64)
        depthwise = kernel.ndim == 4 and kernel.shape[-2] == 1 and za.shape[-1] > 1
        y = share(blocks, ends.output, ya, yb)
        z = share(blocks, ends.output if depthwise else ends.input, za, zb, ends.input_factors)
        again = apply_layer(name, path, z, kernel, depthwise)
        again = again + leaves.get(f"params/{path}/bias", np.zeros(1))
        rows = np.prod(y.shape[:-1])
        assert found.after[path] == pytest.approx(((again - y) ** 2).sum() / rows, rel=1e-3), path


def test_solved_layers_equal_numpy_lstsq_on_a_full_rank_case():
    p = pair("mlp", n=80)
    blocks, merged = merge(p, 0.0)
    found = flat(solve(p, blocks, merged, [p.x], ridge=1e-13).variables)
    # Every unit merged: the regressions have no zero blocks.
    of_a, of_b = (
        to_numpy(read_layers(v, p.x, apply=p.apply, paths=("Dense_0", "Dense_2")))
        for v in (p.a, p.b)
    )
    for path, read, made in (("Dense_0", None, "Dense_0"), ("Dense_2", "Dense_1", None)):
        z = share(blocks, read, of_a[path][0], of_b[path][0]).astype(float)
        y = share(blocks, made, of_a[path][1], of_b[path][1]).astype(float)
        expected, *_ = np.linalg.lstsq(np.c_[z, np.ones(80)], y)
        np.testing.assert_allclose(found[f"params/{path}/kernel"], expected[:-1], atol=1e-5)
        np.testing.assert_allclose(found[f"params/{path}/bias"], expected[-1], atol=1e-5)


@pytest.mark.parametrize("name", ["flatten", "depthwise"])
def test_sequential_error_of_the_head_is_that_of_the_network(name):
    p = pair(name)
    blocks, merged = merge(p)
    found = solve(p, blocks, merged, [p.x], mode="sequential")
    head = list(found.after)[-1]
    out, of_a, of_b = (
        np.asarray(jax.jit(apply)(v, p.x), float)
        for apply, v in (
            (p.at(merged), found.variables), (p.apply, p.a), (p.apply, p.b)
        )
    )  # fmt: skip
    error = ((out - (of_a + of_b) / 2) ** 2).sum(1).mean()
    assert found.after[head] == pytest.approx(error, rel=1e-3, abs=1e-7)


def test_modes_agree_on_the_first_layer_only():
    p = pair("convnet")
    blocks, merged = merge(p)
    paper, sequential = (
        flat(solve(p, blocks, merged, [p.x], mode=mode).variables)
        for mode in ("paper", "sequential")
    )
    first, last = "params/Conv_0/kernel", "params/Dense_0/kernel"
    np.testing.assert_allclose(paper[first], sequential[first], atol=1e-6)
    assert np.abs(paper[last] - sequential[last]).max() > 1e-2


@pytest.mark.parametrize("mode", ["paper", "sequential"])
def test_networks_that_are_already_merged_stay(mode):
    p = pair("resnet")
    copy, undo = plant(2, p.spec, p.a)
    for b, perms, r in ((copy, undo, 0.0), (p.b, p.perms, 1.0)):
        other = p._replace(b=b, perms=perms)
        blocks, merged = merge(other, r)
        found = solve(other, blocks, merged, [p.x], mode=mode)
        assert max(found.before.values()) < 1e-9
        jax.tree.map(
            lambda u, v: np.testing.assert_allclose(u, v, atol=1e-5), found.variables, merged
        )


@pytest.mark.parametrize("mode", ["paper", "sequential"])
def test_one_calibration_image_gives_finite_weights(mode):
    p = pair("convnet")
    blocks, merged = merge(p)
    for x in (p.x[:1], 0 * p.x[:1]):
        found = solve(p, blocks, merged, [x], mode=mode)
        assert all(np.isfinite(leaf).all() for leaf in flat(found.variables).values())
        assert all(found.after[path] <= found.before[path] * (1 + 1e-9) for path in found.after)


def test_little_memory_takes_more_passes_and_changes_nothing():
    p = pair("convnet")
    blocks, merged = merge(p)
    # One layer a pass, and two: the largest Gram matrix takes 8 (9 * 7)^2 bytes.
    whole = solve(p, blocks, merged, [p.x[:2], p.x[2:]])
    for max_bytes in (1, 40e3):
        pieces = solve(p, blocks, merged, [p.x[:2], p.x[2:]], max_bytes=max_bytes)
        assert pieces.before == pytest.approx(whole.before)
        assert pieces.after == pytest.approx(whole.after)
        jax.tree.map(
            lambda u, v: np.testing.assert_allclose(u, v, atol=1e-6),
            pieces.variables, whole.variables,
        )  # fmt: skip


def test_the_split_into_batches_does_not_matter():
    p = pair("depthwise")
    blocks, merged = merge(p)
    whole = solve(p, blocks, merged, [p.x])
    split = solve(p, blocks, merged, [p.x[:1], p.x[1:]])
    assert split.after == pytest.approx(whole.after, rel=1e-5)
    jax.tree.map(
        lambda u, v: np.testing.assert_allclose(u, v, atol=1e-5), split.variables, whole.variables
    )


def test_bad_input_is_named():
    p = pair("mlp")
    blocks, merged = merge(p)
    for options, message in (
        ({"mode": "greedy"}, "mode must be one of .*got 'greedy'"),
        ({"ridge": 0.0}, "ridge must be positive, got 0.0"),
        ({"ridge": float("nan")}, "ridge must be positive, got nan"),
        ({"batches": []}, "batches is empty"),
        ({"batches": [p.x, p.x[:0]]}, "batches is empty"),
        ({"batches": [p.x, p.x * np.nan]}, "activations at layer 'Dense_0' are not finite"),
    ):
        options = {"batches": [p.x]} | options
        with pytest.raises(ValueError, match=message):
            solve(p, blocks, merged, **options)
    with pytest.raises(ValueError, match="'sequential' needs merged_apply"):
        permuted_least_squares(p.spec, p.apply, p.a, p.b, blocks, merged, [p.x], mode="sequential")
    broken = to_numpy(merged)
    broken["params"]["Dense_1"]["bias"] = broken["params"]["Dense_1"]["bias"] * np.nan
    with pytest.raises(ValueError, match="non-finite values at 'params/Dense_1/bias'"):
        solve(p, blocks, broken, [p.x])


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_regmean_of_one_layer_equals_its_formula(alpha):
    model = MLP((), 3)
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    a, b = draw(0, shapes), draw(1, shapes)
    found = regmean(model.apply, a, b, [x[:10], x[10:]], alpha=alpha)
    # Both networks read the same inputs here, so the formula is the plain mean.
    jax.tree.map(lambda u, v, w: np.testing.assert_allclose(u, (v + w) / 2, atol=1e-5), found, a, b)


@pytest.mark.parametrize(
    ("name", "alpha"), [("mlp", 0.9), ("convnet", 0.0), ("depthwise", 0.9), ("mlp", 1.0)]
)
def test_regmean_weighs_each_network_by_its_own_inputs(name, alpha):
    p = pair(name, n=40)
    found = flat(regmean(p.apply, p.a, p.b, [p.x[:30], p.x[30:]], alpha=alpha))
    path = {"mlp": "Dense_2", "convnet": "Dense_0", "depthwise": "Dense_0"}[name]
    grams, weights = [], []
    for v in (p.a, p.b):
        z, _ = read_layers(v, p.x, apply=p.apply, paths=(path,))[path]
        z = np.c_[z, np.ones(len(z))].astype(float)
        gram = z.T @ z
        grams.append(alpha * gram + (1 - alpha) * np.diag(np.diag(gram)))
        leaves = flat(v)
        weights.append(np.r_[leaves[f"params/{path}/kernel"], leaves[f"params/{path}/bias"][None]])
    expected = np.linalg.solve(grams[0] + grams[1], grams[0] @ weights[0] + grams[1] @ weights[1])
    found_w = np.r_[found[f"params/{path}/kernel"], found[f"params/{path}/bias"][None]]
    # Where the data says little the solution may differ: compare what it computes.
    change = found_w - expected
    assert (change * ((grams[0] + grams[1]) @ change)).sum() <= 1e-9 * len(p.x)
    assert {q: v.shape for q, v in found.items()} == {q: v.shape for q, v in flat(p.a).items()}


def test_regmean_of_a_network_with_itself_is_that_network():
    p = pair("convnet")
    found = regmean(p.apply, p.a, p.a, [p.x])
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=1e-6), found, p.a)


def test_regmean_names_what_is_wrong():
    p = pair("mlp")
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
            regmean(p.apply, p.a, p.b, [p.x], alpha=alpha)
    for batches in ([], [p.x[:0]]):
        with pytest.raises(ValueError, match="batches is empty"):
            regmean(p.apply, p.a, p.b, batches)
    with pytest.raises(ValueError, match="the models differ"):
        regmean(p.apply, p.a, pair("convnet").a, [p.x])
    with pytest.raises(ValueError, match="activations at layer 'Dense_0' are not finite"):
        regmean(p.apply, p.a, p.b, [p.x * np.nan])


@pytest.mark.parametrize("shape", [(40, 5), (3, 40, 4)])
def test_moments_of_an_accelerator_equal_those_of_the_host(shape):
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=shape), jnp.float32)
    y = jnp.asarray(rng.normal(size=(*shape[:-1], 1)), jnp.float32)
    for device, host in zip(_device_moments(z, y), _host_moments(z, y), strict=True):
        assert host.dtype == np.float64
        np.testing.assert_allclose(device, host, rtol=1e-5, atol=1e-4)
