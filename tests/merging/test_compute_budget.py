"""The cost model against counted weights, and the budget solver against a grid."""

import jax
import numpy as np
import pytest

from jaxml.merging import (
    LayerCost,
    layer_costs,
    merge_flops,
    partial_merge,
    select_blocks,
    solve_ratios,
    uniform_ratios,
    zip_ratios,
)

from .helpers import flat
from .merges import MODELS, pair


def merged_at(p, ratios):
    """(merged leaves of random weights, the ratios that came out)."""
    distances = {name: np.arange(g.size) * 1.0 for name, g in p.spec.groups.items()}
    blocks = select_blocks(p.spec, p.perms, distances, ratios)
    real = {n: b.separate_fraction for n, b in blocks.items()}
    return flat(partial_merge(p.spec, p.a, p.b, blocks)), real


def counted(p, costs, leaves, count):
    """``sum over layers (output positions) * count(kernel)``."""
    total = 0.0
    for cost in costs:
        path = f"params/{cost.layer}/kernel"
        total += cost.macs / flat(p.a)[path].size * count(leaves[path])
    return total


@pytest.mark.parametrize("name", MODELS)
def test_flops_equal_the_blocks_of_an_assembled_network(name):
    p = pair(name)
    costs = layer_costs(p.spec, p.apply, p.a, p.x)
    one = counted(p, costs, flat(p.a), np.size)
    assert one == pytest.approx(sum(c.macs for c in costs))
    rng = np.random.default_rng(0)
    some = {n: float(r) for n, r in zip(p.spec.groups, rng.uniform(0.2, 0.8, 9), strict=False)}
    for ratios in (p.ratios(0.0), some, p.ratios(1.0)):
        leaves, real = merged_at(p, ratios)
        # Gaussian weights: what is zero is a block that is left out.
        non_zero = counted(p, costs, leaves, np.count_nonzero) / one
        assert merge_flops(costs, real) == pytest.approx(non_zero, rel=1e-9)
        dense = counted(p, costs, leaves, np.size) / one
        assert merge_flops(costs, real, dense=True) == pytest.approx(dense, rel=1e-9)
    assert merge_flops(costs, p.ratios(0.0)) == 1
    assert merge_flops(costs, p.ratios(1.0)) == pytest.approx(2, rel=1e-12)


def test_costs_of_a_network_by_hand():
    p = pair("flatten")
    costs = layer_costs(p.spec, p.apply, p.a, jax.ShapeDtypeStruct((3, 9, 7, 2), np.float32))
    assert costs == [
        LayerCost("Conv_0", 9 * 7 * 9 * 2 * 5, None, "Conv_0"),
        LayerCost("Conv_1", 2 * 2 * 6 * 5 * 6, "Conv_0", "Conv_1"),
        LayerCost("Dense_0", 24 * 7, "Conv_1", "Dense_0"),
        LayerCost("Dense_1", 7 * 3, "Dense_0", None),
    ]
    (depthwise,) = [
        c for c in layer_costs(pair("depthwise").spec, pair("depthwise").apply,
                               pair("depthwise").a, pair("depthwise").x) if c.layer == "Conv_1"
    ]  # fmt: skip
    assert depthwise == ("Conv_1", 4 * 4 * 9 * 6, None, "Conv_0")


def random_costs(rng, n_groups):
    """A chain of layers, with a skip connection and a square layer now and then."""
    names = [f"g{i}" for i in range(n_groups)]
    costs = [LayerCost("first", rng.uniform(0.1, 1), None, "g0")]
    costs += [
        LayerCost(f"layer{i}", rng.uniform(0.1, 3) ** 2, f"g{i}", f"g{i + 1}")
        for i in range(n_groups - 1)
    ]
    if n_groups > 2:
        costs.append(LayerCost("skip", rng.uniform(0.1, 1), "g0", "g2"))
    if rng.uniform() < 0.5:
        costs.append(LayerCost("square", rng.uniform(0.1, 3), names[-1], names[-1]))
    costs.append(LayerCost("head", rng.uniform(0.05, 0.5), names[-1], None))
    return costs, names


@pytest.mark.parametrize("n_groups", [1, 2, 3, 4])
def test_solver_is_feasible_and_as_good_as_a_grid(n_groups):
    rng = np.random.default_rng(n_groups)
    axis = np.linspace(0, 1, {1: 10001, 2: 201, 3: 51, 4: 26}[n_groups])
    points = np.meshgrid(*[axis] * n_groups, indexing="ij")
    for _ in range(8):
        costs, names = random_costs(rng, n_groups)
        worth = map(float, rng.uniform(size=n_groups) ** 2)
        weights = dict(zip(names, worth, strict=True))
        budget = rng.uniform(1.02, 1.95)
        ratios = solve_ratios(costs, weights, budget)
        assert list(ratios) == names
        assert all(0 <= r <= 1 for r in ratios.values())
        assert merge_flops(costs, ratios) <= budget * (1 + 1e-6)
        grid = dict(zip(names, points, strict=True))
        worth = sum(weights[name] * grid[name] for name in names)
        best = worth[merge_flops(costs, grid) <= budget].max()
        assert sum(weights[name] * ratios[name] for name in names) >= 0.99 * best


def test_solver_at_the_ends_of_the_budget():
    costs, names = random_costs(np.random.default_rng(0), 3)
    weights = dict.fromkeys(names, 0.5)
    assert solve_ratios(costs, weights, 1) == dict.fromkeys(names, 0)
    for budget in (2, 2.5, float("inf")):
        assert solve_ratios(costs, weights, budget) == dict.fromkeys(names, 1)
    for solve in (uniform_ratios, zip_ratios):
        assert solve(costs, 1) == pytest.approx(dict.fromkeys(names, 0), abs=1e-9)
        assert solve(costs, 2.5) == dict.fromkeys(names, 1)


def test_solver_without_a_preference_still_fits_and_uses_the_budget():
    costs, names = random_costs(np.random.default_rng(1), 4)
    ratios = solve_ratios(costs, dict.fromkeys(names, 0.0), 1.5)
    assert merge_flops(costs, ratios) == pytest.approx(1.5, abs=1e-4)


def test_solver_is_repeatable_and_scale_free():
    costs, names = random_costs(np.random.default_rng(2), 4)
    weights = dict(zip(names, (0.1, 0.5, 0.2, 0.9), strict=True))
    ratios = solve_ratios(costs, weights, 1.3)
    assert solve_ratios(costs, weights, 1.3) == ratios
    scaled = solve_ratios(costs, {n: 2.0**40 * w for n, w in weights.items()}, 1.3)
    assert scaled == pytest.approx(ratios)


@pytest.mark.parametrize("budget", [1.0, 1.1, 1.5, 1.9, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_uniform_and_zip_stay_within_the_budget(budget, seed):
    costs, names = random_costs(np.random.default_rng(seed), 4)
    even = uniform_ratios(costs, budget)
    assert len(set(even.values())) == 1
    assert merge_flops(costs, even) == pytest.approx(budget, rel=1e-6)
    assert merge_flops(costs, even) <= budget * (1 + 1e-6)
    zipped = list(zip_ratios(costs, budget).values())
    assert merge_flops(costs, dict(zip(names, zipped, strict=True))) <= budget * (1 + 1e-6)
    # Merged first, separate from some group on; one more group would not fit.
    assert zipped == sorted(zipped) and set(zipped) <= {0.0, 1.0}
    if 0.0 in zipped:
        last = len(zipped) - 1 - zipped[::-1].index(0.0)
        more = dict(zip(names, zipped[:last] + [1.0] * (4 - last), strict=True))
        assert merge_flops(costs, more) > budget


def test_bad_input_is_named():
    costs, names = random_costs(np.random.default_rng(0), 2)
    weights = dict.fromkeys(names, 1.0)
    for solve in (uniform_ratios, zip_ratios, lambda c, b: solve_ratios(c, weights, b)):
        for budget in (0.99, float("nan")):
            with pytest.raises(ValueError, match="budget must be at least 1"):
                solve(costs, budget)
    with pytest.raises(ValueError, match="weights lack group 'g1'"):
        solve_ratios(costs, {"g0": 1.0}, 1.5)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight of group 'g1' must"):
            solve_ratios(costs, weights | {"g1": weight}, 1.5)
