"""Solvers and attacks against enumeration."""

import itertools

import jax
import numpy as np
import pytest
import scipy.optimize

from jaxml import verify
from tests.verify.helpers import random_problem


def enumerate_patterns(net, box, row, offset):
    """Minimises over every on-off pattern of the one hidden layer by a linear program each."""
    hidden, last = net
    best = np.inf
    for pattern in itertools.product((0.0, 1.0), repeat=hidden.n_out):
        on = np.array(pattern)
        sign = 1 - 2 * on  # on: -z <= 0, off: z <= 0
        k = row @ last.weight * on
        found = scipy.optimize.linprog(
            k @ hidden.weight, A_ub=sign[:, None] * hidden.weight, b_ub=-sign * hidden.bias,
            bounds=np.stack(box, 1),
        )  # fmt: skip
        if found.status == 0:
            best = min(best, found.fun + k @ hidden.bias + row @ last.bias + offset)
    return best


def test_the_exact_program_is_the_best_of_all_patterns():
    rng = np.random.default_rng(0)
    for _ in range(4):
        net, box, spec = random_problem(rng, (3, 5, 3), eps=0.4)
        found = verify.mip_bound(net, box, spec)
        relaxed = verify.lp_bound(net, box, spec)
        for result, lp, row, offset in zip(found, relaxed, *spec, strict=True):
            best = enumerate_patterns(net, box, row, offset)
            assert result.lower == pytest.approx(best, abs=1e-6)
            assert result.upper == pytest.approx(best, abs=1e-5)
            assert result.status == lp.status == "optimal" and result.gap < 1e-4
            assert lp.lower <= best + 1e-6 and np.isinf(lp.upper)


def test_better_boxes_make_a_better_program():
    rng = np.random.default_rng(1)
    net, box, spec = random_problem(rng, (4, 7, 8, 3), eps=0.4)
    with jax.enable_x64(True):
        intervals = jax.device_get(jax.jit(verify.interval_bounds)(net, box))
        alpha = jax.device_get(jax.jit(lambda: verify.alpha_bounds(net, box, n_steps=10))())
    layers = verify.lp_all_layers(net, box)
    with jax.enable_x64(True):
        crown = jax.device_get(jax.jit(verify.crown_bounds)(net, box))
    values = [
        np.array([r.lower for r in verify.lp_bound(net, box, spec, b)])
        for b in (intervals, crown, alpha, layers)
    ]
    for loose, tight in itertools.pairwise(values):
        assert (tight >= loose - 1e-6).all()
    assert (values[-1] <= [r.lower + 1e-6 for r in verify.mip_bound(net, box, spec)]).all()


def test_an_attack_attains_what_it_reports_within_the_box():
    rng = np.random.default_rng(2)
    net, box, spec = random_problem(rng, (4, 7, 8, 3), eps=0.3)
    attack = jax.jit(verify.pgd)
    with jax.enable_x64(True):
        found = jax.device_get(attack(jax.random.key(0), net, box, spec))
        both = jax.device_get(
            attack(jax.random.key(0), net, box, spec, groups=np.ones((1, 2), bool))
        )
    assert (found.x >= box.lower).all() and (found.x <= box.upper).all()
    exact = verify.mip_bound(net, box, spec)
    for x, value, row, offset, best in zip(found.x, found.upper, *spec, exact, strict=True):
        assert value == pytest.approx(row @ verify.network.apply_on_host(net, x) + offset)
        assert best.lower - 1e-6 <= value <= best.lower + 0.2
    rows = spec.weight @ verify.network.apply_on_host(net, both.x[0]) + spec.offset
    assert both.upper[0] == pytest.approx(rows.max())


def test_a_network_without_relus_is_solved_by_everyone():
    rng = np.random.default_rng(3)
    net = (verify.Dense(rng.normal(size=(3, 4)), rng.normal(size=3)),)
    box, spec = verify.linf_box(rng.uniform(size=4), 0.2), verify.margin_spec(1, 3)
    row = spec.weight @ net[0].weight
    best = np.minimum(row * box.lower, row * box.upper).sum(1) + spec.weight @ net[0].bias
    found = [verify.zonodual_bound(net, box, spec, n_steps=2, group_size=4).mip_lower,
             verify.certify_ibp(net, box, spec), verify.certify_deepz(net, box, spec),
             [r.lower for r in verify.mip_bound(net, box, spec)]]  # fmt: skip
    for lower in found:
        np.testing.assert_allclose(lower, best, atol=1e-6)
