"""Activation moments against numpy, and the matchings that are made from them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxml.merging import (
    activation_matching,
    apply_permutation,
    derive_permutation_spec,
    identity_permutation,
)
from jaxml.merging.activations import feature_moments

from .helpers import assert_trees_equal, assert_valid, gaussian_like, plant, recovered, to_numpy
from .networks import MLP, BottleneckResidual, make

METRICS = ("inner", "corr", "sqdist")


class Problem:
    """A network with weights, inputs, a spec and a copy with a hidden permutation."""

    def __init__(self, name, n=24, noise=0.05):
        module, variables, x = make(name)
        self.apply = module.apply
        self.a = to_numpy(variables)
        self.spec = derive_permutation_spec(module.apply, variables, x)
        self.b, self.undo = plant(3, self.spec, self.a, noise=noise)
        self.x = np.random.default_rng(4).normal(size=(n, *x.shape[1:])).astype(np.float32)

    def match(self, batches=None, **kwargs):
        batches = [self.x] if batches is None else batches
        return activation_matching(self.spec, self.apply, self.a, self.b, batches, **kwargs)


@pytest.fixture(scope="module")
def mlp():
    return Problem("mlp", n=60)


def mlp_hidden(variables, x):
    """What each hidden layer of the MLP emits, by numpy in float64."""
    h, out = x.astype(np.float64), []
    for i in range(3):
        layer = variables["params"][f"Dense_{i}"]
        h = np.maximum(h @ layer["kernel"].astype(np.float64) + layer["bias"], 0)
        out.append(h)
    return out


def test_moments_of_an_mlp_equal_numpy(mlp):
    moments = feature_moments(mlp.spec, mlp.apply, mlp.a, mlp.b, [mlp.x[:25], mlp.x[25:]])
    assert [m.groups for m in moments] == [("Dense_0",), ("Dense_1",), ("Dense_2",)]
    for m, za, zb in zip(moments, mlp_hidden(mlp.a, mlp.x), mlp_hidden(mlp.b, mlp.x), strict=True):
        assert m.n == 60 and m.shape == (za.shape[1],)
        np.testing.assert_allclose(m.cross, za.T @ zb, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(m.sums, [za.sum(0), zb.sum(0)], rtol=1e-5)
        np.testing.assert_allclose(m.squares, [(za**2).sum(0), (zb**2).sum(0)], rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_objective_equals_numpy_for_every_metric(mlp, metric):
    result = mlp.match(metric=metric)
    total = 0.0
    for i, (za, zb) in enumerate(
        zip(mlp_hidden(mlp.a, mlp.x), mlp_hidden(mlp.b, mlp.x), strict=True)
    ):
        zb = zb[:, result.perms[f"Dense_{i}"]]
        if metric == "inner":
            total += (za * zb).sum()
        elif metric == "sqdist":
            total -= ((za - zb) ** 2).sum()
        else:
            alive = (za.std(0) > 0) & (zb.std(0) > 0)
            corr = np.corrcoef(za[:, alive].T, zb[:, alive].T)
            total += np.trace(corr, offset=alive.sum())
    np.testing.assert_allclose(result.objective, total, rtol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_planted_permutation_of_an_mlp_is_recovered(metric):
    # Every unit alive, so that the planted permutation is the only answer.
    module = MLP()
    x = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    variables = to_numpy(jax.jit(module.init)(jax.random.key(0), x))
    for layer in variables["params"].values():
        layer["bias"] = layer["bias"] + np.float32(0.5)
    spec = derive_permutation_spec(module.apply, variables, x)
    b, undo = plant(1, spec, variables)
    result = activation_matching(spec, module.apply, variables, b, [x], metric=metric)
    assert recovered(result.perms, undo)
    assert_valid(spec, result.perms)
    np.testing.assert_allclose(
        module.apply(apply_permutation(spec, result.perms, b), x),
        module.apply(variables, x), rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_split_into_batches_does_not_matter(mlp):
    whole = mlp.match()
    for cuts in ([7, 20], [1, 2, 3], [59]):
        split = mlp.match(np.split(mlp.x, cuts))
        assert_trees_equal(split.perms, whole.perms)
        np.testing.assert_allclose(split.objective, whole.objective, rtol=1e-6)
    assert mlp.match(iter([mlp.x, mlp.x])).objective == pytest.approx(2 * whole.objective, rel=1e-6)


def test_models_are_left_alone(mlp):
    before = jax.tree.map(np.copy, (mlp.a, mlp.b))
    mlp.match()
    assert_trees_equal((mlp.a, mlp.b), before)


def test_layers_of_very_different_scale_are_all_matched(mlp):
    # Relu nets may be rescaled between layers without a change of function.
    def rescaled(variables):
        layers = jax.tree.map(np.copy, variables)["params"]
        for name in ("kernel", "bias"):
            layers["Dense_0"][name] *= np.float32(1e-5)
        layers["Dense_1"]["kernel"] *= np.float32(1e5)
        return {"params": layers}

    plain = mlp.match()
    a, b = rescaled(mlp.a), rescaled(mlp.b)
    result = activation_matching(mlp.spec, mlp.apply, a, b, [mlp.x])
    assert_trees_equal(result.perms, plain.perms)


def test_dead_and_constant_units_correlate_with_nothing(mlp):
    def broken(variables):
        variables = jax.tree.map(np.copy, variables)
        first = variables["params"]["Dense_0"]
        first["kernel"][:, :3] = 0
        first["bias"][:3] = [-1, 0, 100]
        return variables

    result = activation_matching(
        mlp.spec, mlp.apply, broken(mlp.a), broken(mlp.b), [mlp.x], metric="corr"
    )
    assert np.isfinite(result.objective)
    assert_valid(mlp.spec, result.perms)
    assert result.objective <= 5 + 12 + 10 + 1e-4


def test_pearson_correlation_of_a_unit_with_a_large_mean(mlp):
    # Mean 30, spread about 1: the uncentred moments are dominated by the mean.
    def lifted(variables):
        variables = jax.tree.map(np.copy, variables)
        variables["params"]["Dense_0"]["bias"] += np.float32(30)
        return variables

    a = lifted(mlp.a)
    b = lifted(mlp.b)
    result = activation_matching(mlp.spec, mlp.apply, a, b, [mlp.x], metric="corr")
    za, zb = (mlp_hidden(v, mlp.x)[0] for v in (a, b))
    corr = np.corrcoef(za.T, zb.T)[:8, 8:]
    _, expected = scipy.optimize.linear_sum_assignment(corr, maximize=True)
    np.testing.assert_array_equal(result.perms["Dense_0"], expected)


@pytest.mark.parametrize("name", ["cnn_groupnorm4", "vit"])
@pytest.mark.parametrize("metric", ["inner", "corr"])
def test_coupled_factors_give_valid_permutations_and_a_rising_objective(name, metric):
    problem = Problem(name, n=6)
    result = problem.match(metric=metric)
    assert_valid(problem.spec, result.perms)
    assert (np.diff(result.history) >= 0).all()
    assert result.objective >= result.history[0]
    np.testing.assert_allclose(result.objective, result.history[-1], rtol=1e-6)


def test_moments_of_grouped_channels_are_laid_out_group_by_group():
    problem = Problem("cnn_groupnorm4", n=5)
    moments = feature_moments(problem.spec, problem.apply, problem.a, problem.b, [problem.x])
    first = moments[0]
    assert first.shape == (4, 4) and len(set(first.groups)) == 2
    assert first.n == 5 * 5 * 5  # images times positions after pooling

    module, *_ = make("cnn_groupnorm4")
    _, state = module.apply(
        problem.a, problem.x, capture_intermediates=lambda m, _: isinstance(m, nn.GroupNorm)
    )
    normed = state["intermediates"]["GroupNorm_0"]["__call__"][0]
    z = np.asarray(nn.max_pool(nn.relu(normed), (2, 2), strides=(2, 2)), np.float64)
    np.testing.assert_allclose(first.sums[0], z.reshape(-1, 16).sum(0), rtol=1e-4)
    np.testing.assert_allclose(first.squares[0], (z**2).reshape(-1, 16).sum(0), rtol=1e-4)


def test_a_residual_stream_is_read_wherever_a_layer_reads_it():
    module = BottleneckResidual(anchored=False, stream=12, inner=9)
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    spec = derive_permutation_spec(module.apply, shapes, x)
    a = gaussian_like(0, shapes, scale=0.3)
    b, undo = plant(1, spec, a, noise=0.1)
    moments = feature_moments(spec, module.apply, a, b, [x])
    counts = [sum(name in m.groups for m in moments) for name in spec.groups]
    assert sorted(counts) == [1, 1, 3]
    result = activation_matching(spec, module.apply, a, b, [x])
    assert recovered(result.perms, undo)


class StackedLSTM(nn.Module):
    """Two recurrent cells in one scan."""

    @nn.compact
    def __call__(self, x):
        class Both(nn.Module):
            @nn.compact
            def __call__(self, carry, x):
                first, y = nn.LSTMCell(7)(carry[0], x)
                second, y = nn.LSTMCell(9)(carry[1], y)
                return (first, second), y

        scan = nn.scan(Both, variable_broadcast="params", split_rngs={"params": False}, in_axes=1)
        zeros = [jnp.zeros((x.shape[0], n)) for n in (7, 7, 9, 9)]
        (_, (_, h)), _ = scan()(((zeros[0], zeros[1]), (zeros[2], zeros[3])), x)
        return nn.Dense(3)(h)


def test_features_inside_a_scan_are_matched():
    problem = Problem("lstm", n=16, noise=0.0)
    moments = feature_moments(problem.spec, problem.apply, problem.a, problem.b, [problem.x])
    # The state before each of the 6 steps, and the last one, which the head reads.
    assert [m.n for m in moments] == [16 * 6, 16]
    cell = nn.LSTMCell(20)
    weights = {"params": problem.a["params"]["LSTMCell_0"]}
    carry, before = (jnp.zeros((16, 20)), jnp.zeros((16, 20))), []
    step = jax.jit(cell.apply)
    for t in range(6):
        before.append(np.asarray(carry[1], np.float64))
        carry, _ = step(weights, carry, problem.x[:, t])
    np.testing.assert_allclose(moments[0].sums[0], np.sum(before, (0, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments[1].sums[0], carry[1].sum(0), rtol=1e-4, atol=1e-4)
    assert recovered(problem.match().perms, problem.undo)


def test_several_features_of_one_scan():
    module = StackedLSTM()
    x = np.random.default_rng(0).normal(size=(12, 4, 3)).astype(np.float32)
    a = to_numpy(jax.jit(module.init)(jax.random.key(0), x))
    spec = derive_permutation_spec(module.apply, a, x)
    assert sorted(g.size for g in spec.groups.values()) == [7, 9]
    b, undo = plant(1, spec, a)
    result = activation_matching(spec, module.apply, a, b, [x], metric="corr")
    assert recovered(result.perms, undo)


def test_last_batch_of_a_single_example_and_several_inputs():
    def apply(variables, x, shift):
        return jax.nn.relu(x @ variables["u"] + shift) @ variables["v"]

    a = gaussian_like(0, {"u": np.zeros((4, 6)), "v": np.zeros((6, 2))})
    x, shift = (np.random.default_rng(s).normal(size=(9, d)) for s, d in ((1, 4), (2, 1)))
    x, shift = x.astype(np.float32), shift.astype(np.float32)
    spec = derive_permutation_spec(apply, a, x, shift)
    b, undo = plant(1, spec, a)
    result = activation_matching(spec, apply, a, b, [(x[:8], shift[:8]), (x[8:], shift[8:])])
    assert recovered(result.perms, undo)


def test_matching_with_itself_is_the_identity(mlp):
    result = activation_matching(mlp.spec, mlp.apply, mlp.a, mlp.a, [mlp.x])
    assert_trees_equal(result.perms, identity_permutation(mlp.spec))


def test_bad_input_is_named(mlp):
    with pytest.raises(ValueError, match="batches is empty"):
        mlp.match([])
    with pytest.raises(ValueError, match="got 'cosine'"):
        mlp.match(metric="cosine")
    with pytest.raises(ValueError, match="activations of group 'Dense_0' are not finite"):
        mlp.match([np.full((2, 5), 3e38, np.float32)])
    with pytest.raises(ValueError, match="rtol must not be negative"):
        mlp.match(rtol=-1.0)
    with pytest.raises(ValueError, match="a has 1 non-finite values at 'params/Dense_1/bias'"):
        broken = jax.tree.map(np.copy, mlp.a)
        broken["params"]["Dense_1"]["bias"][0] = np.nan
        activation_matching(mlp.spec, mlp.apply, broken, mlp.b, [mlp.x])
    other = Problem("square_residual")
    with pytest.raises(ValueError, match="params/Dense_"):
        activation_matching(other.spec, mlp.apply, mlp.a, mlp.b, [mlp.x])


def test_a_group_whose_units_no_layer_reads_is_named():
    def apply(variables, x):
        return x * (variables["u"] * variables["t"]).sum()

    variables = {"u": np.ones(3, np.float32), "t": np.ones(3, np.float32)}
    x = np.ones((2, 4), np.float32)
    spec = derive_permutation_spec(apply, variables, x)
    with pytest.raises(ValueError, match="no layer reads the units of group 't'"):
        activation_matching(spec, apply, variables, variables, [x])
