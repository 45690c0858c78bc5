"""The whole of PLeaS: every combination of options, against its own pieces."""

import itertools

import jax
import numpy as np
import pytest

from jaxml.data import load
from jaxml.merging import (
    activation_matching,
    derive_permutation_spec,
    feature_moments,
    layer_costs,
    matched_distances,
    merge_flops,
    partial_merge,
    permuted_least_squares,
    pleas_merge,
    reset_batch_stats,
    select_blocks,
    solve_ratios,
    weight_distances,
    weight_matching,
)
from jaxml.merging.pleas import group_weights
from jaxml.nn import ConvNet, with_widths
from jaxml.train import evaluate, fit, make_optimizer

from .helpers import assert_trees_equal, assert_valid, flat, plant, to_numpy
from .merges import pair


def merge(p, **options):
    return pleas_merge(
        jax.random.key(0), p.spec, p.apply, p.a, p.b, [p.x[:4], p.x[4:]], apply_at=p.at, **options
    )


OPTIONS = list(
    itertools.product(
        ("qp", "uniform", "zip", "given"),
        ("activation", "weight", "given"),
        ("none", "paper", "sequential"),
    )
)


@pytest.mark.parametrize(("ratios", "matching", "solver"), OPTIONS)
def test_every_combination_of_options(ratios, matching, solver):
    p = pair("mlp")
    asked = {"Dense_0": 0.4, "Dense_1": 0.5} if ratios == "given" else ratios
    found = merge(
        p, budget=1.5, ratios=asked, solver=solver,
        matching=p.perms if matching == "given" else matching,
    )  # fmt: skip
    assert set(found.perms) == set(p.spec.groups)
    match matching:
        case "given":
            assert_trees_equal(found.perms, p.perms)
        case "weight":
            expected = weight_matching(jax.random.key(0), p.spec, p.a, p.b)
            assert_trees_equal(found.perms, expected.perms)
        case "activation":
            assert_valid(p.spec, found.perms)
    costs = layer_costs(p.spec, p.apply, p.a, p.x)
    if ratios == "given":
        assert found.ratios == asked
    else:
        assert merge_flops(costs, found.ratios) <= 1.5 * (1 + 1e-6)
    widths = {n: b.width for n, b in found.blocks.items()}
    real = {n: w / p.spec.groups[n].size - 1 for n, w in widths.items()}
    assert found.flops == pytest.approx(merge_flops(costs, real))
    assert found.flops_dense == pytest.approx(merge_flops(costs, real, dense=True))
    assert 1 <= found.flops <= found.flops_dense
    out = p.at(found.variables)(found.variables, p.x)
    assert out.shape == (6, 3) and np.isfinite(out).all()
    assembled = partial_merge(p.spec, p.a, p.b, found.blocks)
    if solver == "none":
        assert_trees_equal(found.variables, assembled)
        assert found.before == found.after == {}
    else:
        solved = permuted_least_squares(
            p.spec, p.apply, p.a, p.b, found.blocks, assembled, [p.x[:4], p.x[4:]], mode=solver,
            merged_apply=p.at(assembled),
        )  # fmt: skip
        assert_trees_equal(found.variables, solved.variables)
        assert (found.before, found.after) == (solved.before, solved.after)
        assert sum(found.after.values()) < sum(found.before.values())


@pytest.mark.parametrize("matching", ["activation", "weight"])
def test_blocks_are_those_of_the_pieces(matching):
    p = pair("resnet")
    found = merge(p, budget=1.4, matching=matching, solver="none")
    if matching == "activation":
        perms = activation_matching(p.spec, p.apply, p.a, p.b, [p.x]).perms
        moments = feature_moments(p.spec, p.apply, p.a, p.b, [p.x])
        distances = matched_distances(p.spec, perms, moments)
    else:
        perms, moments = weight_matching(jax.random.key(0), p.spec, p.a, p.b).perms, None
        distances = weight_distances(p.spec, perms, p.a, p.b)
    costs = layer_costs(p.spec, p.apply, p.a, p.x)
    ratios = solve_ratios(costs, group_weights(distances, moments), 1.4)
    assert_trees_equal(found.perms, perms)
    assert found.ratios == pytest.approx(ratios, abs=1e-3)
    blocks = select_blocks(p.spec, perms, distances, ratios)
    assert_trees_equal(found.blocks, blocks)


def test_group_weights_are_the_lost_share_of_the_signal():
    p = pair("mlp")
    moments = feature_moments(p.spec, p.apply, p.a, p.b, [p.x])
    distances = matched_distances(p.spec, p.perms, moments)
    weights = group_weights(distances, moments)
    for m in moments:
        (name,) = m.groups
        expected = distances[name].sum() / m.squares.sum() * 2
        assert weights[name] == pytest.approx(expected)
    # A dead group is worth nothing.
    dead = [m._replace(squares=0 * m.squares) for m in moments]
    assert set(group_weights(distances, dead).values()) == {0.0}


@pytest.mark.parametrize("solver", ["none", "paper", "sequential"])
def test_the_ends_of_the_budget(solver):
    p = pair("convnet")
    x = np.asarray(p.x)
    merged = merge(p, budget=2.0, solver=solver)
    assert merged.flops == pytest.approx(2)
    of_a, of_b = (np.asarray(jax.jit(p.apply)(v, x)) for v in (p.a, p.b))
    out = jax.jit(p.at(merged.variables))(merged.variables, x)
    np.testing.assert_allclose(out, (of_a + of_b) / 2, atol=1e-5, rtol=0)

    copy, _ = plant(2, p.spec, p.a)
    merged = merge(p._replace(b=copy), budget=1.0, solver=solver, matching="weight")
    assert merged.flops == 1
    out = jax.jit(p.apply)(merged.variables, x)
    np.testing.assert_allclose(out, of_a, atol=1e-5, rtol=0)


def test_sources_are_left_alone_by_merging_and_by_the_reset():
    p = pair("resnet")
    before = jax.tree.map(np.copy, (p.a, p.b, p.x))
    merged = merge(p, budget=1.3, solver="sequential")
    solved = to_numpy(merged.variables)
    reset = reset_batch_stats(p.at(merged.variables), merged.variables, p.x)
    assert_trees_equal((p.a, p.b, p.x), before)
    assert_trees_equal(to_numpy(merged.variables), solved)
    changed = [q for q, v in flat(reset).items() if not np.array_equal(v, flat(solved)[q])]
    assert changed and all(q.startswith("batch_stats/") for q in changed)


@pytest.mark.parametrize("matching", ["activation", "weight"])
@pytest.mark.parametrize("solver", ["paper", "sequential"])
def test_one_calibration_image(matching, solver):
    p = pair("convnet")
    found = pleas_merge(
        jax.random.key(0), p.spec, p.apply, p.a, p.b, [p.x[:1]], budget=1.4, solver=solver,
        matching=matching, apply_at=p.at,
    )  # fmt: skip
    assert all(np.isfinite(v).all() for v in flat(found.variables).values())


def test_bad_input_is_named():
    p = pair("mlp")

    def merging(batches=None, b=None, **options):
        pleas_merge(
            jax.random.key(0), p.spec, p.apply, p.a, p.b if b is None else b,
            [p.x] if batches is None else batches, **options,
        )  # fmt: skip

    for options, message in (
        ({"ratios": "gurobi"}, "ratios must be one of .*got 'gurobi'"),
        ({"matching": "ste"}, "matching must be one of .*got 'ste'"),
        ({"solver": "adam"}, "solver must be one of .*got 'adam'"),
        ({"budget": 0.5}, "budget must be at least 1"),
        ({"budget": float("nan")}, "budget must be at least 1"),
        ({"batches": []}, "batches is empty"),
        ({"batches": [p.x[:0]]}, "batches is empty"),
        ({"solver": "sequential"}, "'sequential' needs apply_at"),
        ({"ratios": {"Dense_0": 0.5, "Dense_1": 1.5}}, "ratio of group 'Dense_1' must lie in"),
        ({"ratios": {"Dense_0": 0.5}}, "ratios lack group 'Dense_1'"),
        ({"matching": {"Dense_0": p.perms["Dense_0"]}}, "perms lack group 'Dense_1'"),
        ({"matching": p.perms | {"Dense_0": np.zeros(7, int)}}, "'Dense_0' is no bijection"),
        ({"matching": p.perms | {"Dense_0": np.full(7, 99)}}, "'Dense_0' is no bijection"),
        ({"batches": [p.x * np.nan]}, "activations of group 'Dense_0' are not finite"),
        (
            {"batches": [p.x * np.nan], "matching": "weight"},
            "activations at layer 'Dense_0' are not finite",
        ),
        ({"b": pair("convnet").b}, "the models differ"),
    ):
        with pytest.raises(ValueError, match=message):
            merging(**options)
    broken = jax.tree.map(np.copy, p.b)
    broken["params"]["Dense_1"]["bias"][0] = np.inf
    for matching in ("activation", "weight", p.perms):
        with pytest.raises(ValueError, match="b has 1 non-finite values at 'params/Dense_1/bias'"):
            merging(b=broken, matching=matching)


@pytest.fixture(scope="module")
def digits():
    """Two small networks, each trained on one half of the digits and 2% of the other."""
    data = load("digits")
    model = ConvNet(10, features=(8, 16, 32), norm="batch", conv="patches")
    n_epochs, n, sources = 12, 650, []
    optimizer = make_optimizer("adam", learning_rate=1e-2, n_steps=10 * n_epochs)
    for seed, low in enumerate((0, 5)):
        rng = np.random.default_rng(seed)
        share = np.where((data.train_y // 5) * 5 == low, 0.98, 0.02)
        keep = rng.permutation(np.flatnonzero(rng.uniform(size=len(share)) < share))[:n]
        state = fit(
            jax.random.key(seed), model, optimizer, data.train_x[keep], data.train_y[keep],
            n_epochs=n_epochs, batch_size=64, epochs_per_call=n_epochs,
        )  # fmt: skip
        sources.append(to_numpy(state.variables))
    spec = derive_permutation_spec(model.apply, sources[0], data.train_x[:2])
    return data, model, spec, *sources


def test_order_of_the_methods_on_digits(digits):
    data, model, spec, a, b = digits
    x = data.train_x[:800]
    in_place = {name: np.arange(group.size) for name, group in spec.groups.items()}

    def accuracy(variables, reset=False):
        apply = with_widths(model, variables).apply

        @jax.jit
        def measure(variables, x, test_x, test_y):
            if reset:
                variables = reset_batch_stats(apply, variables, x)
            return evaluate(apply, variables, test_x, test_y).accuracy

        return float(measure(variables, x, data.test_x, data.test_y))

    def pleas(budget=1.0, solver="paper", matching="activation"):
        return pleas_merge(
            jax.random.key(0), spec, model.apply, a, b, [x], budget=budget, solver=solver,
            matching=matching, apply_at=lambda v: with_widths(model, v).apply,
        ).variables  # fmt: skip

    ends = max(accuracy(a), accuracy(b))
    ensemble = accuracy(pleas(2.0, "none"))
    permuted = accuracy(pleas(solver="none"), reset=True)
    in_place = accuracy(pleas(matching=in_place))
    solved = accuracy(pleas())
    sequential = accuracy(pleas(solver="sequential"))
    assert ensemble >= solved > max(ends, permuted, in_place) + 0.05
    assert sequential >= ensemble - 0.04
