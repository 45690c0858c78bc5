"""Certificates against exact rational arithmetic, float64 and float32."""

import functools
from fractions import Fraction

import jax
import numpy as np
import pytest

from jaxml import verify
from tests.verify.helpers import random_problem

SIZES = (4, 7, 8, 3)
solve = functools.partial(verify.zonodual_bound, n_steps=60)


def exact_box_dual(net, box, spec, bounds, rhos):
    """Evaluates the dual over boxes in rational arithmetic."""

    def exact(a):
        return [[Fraction(v) for v in row] for row in np.atleast_2d(np.asarray(a, np.float64))]

    def dot(a, b):
        return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))

    values = []
    for t in range(len(spec.weight)):
        rows = [*(exact(rho[t])[0] for rho in rhos), exact(spec.weight[t])[0]]
        total = Fraction(spec.offset[t])
        for i, layer in enumerate(net):
            total += dot(rows[i], exact(layer.bias)[0])
            new = [dot(rows[i], column) for column in exact(np.asarray(layer.weight).T)]
            low, high = (exact(end)[0] for end in (box if i == 0 else bounds[i - 1]))
            for j, c2 in enumerate(new):
                if i == 0:
                    total += min(c2 * low[j], c2 * high[j])
                    continue
                ends = {low[j], high[j], min(max(Fraction(0), low[j]), high[j])}
                total += min(-rows[i - 1][j] * z + c2 * max(z, 0) for z in ends)
        values.append(total)
    return values


def test_a_certificate_is_below_the_exact_dual_and_by_rounding_only():
    rng = np.random.default_rng(0)
    for eps in (0.0, 0.1, 0.4):
        net, box, spec = random_problem(rng, SIZES, eps=eps)
        rhos = [rng.normal(size=(2, n)) * 10.0 ** rng.integers(-2, 3) for n in SIZES[1:3]]
        found = verify.certify(net, box, spec, rhos)
        exact = exact_box_dual(net, box, spec, found.bounds, rhos)
        for value, best in zip(found.lower, exact, strict=True):
            assert Fraction(value) <= best
            assert best - Fraction(value) < 1e-11 * (1 + abs(best))


def test_certified_boxes_hold_every_value_in_rational_arithmetic():
    rng = np.random.default_rng(1)
    net, box, spec = random_problem(rng, SIZES, eps=0.3)
    bounds = verify.certify(net, box, spec, [np.zeros((2, n)) for n in SIZES[1:3]]).bounds
    for _ in range(20):
        corner = np.where(rng.random(4) < 0.5, *box)
        x = [Fraction(v) for v in corner]
        for layer, bound in zip(net, bounds, strict=False):
            weight, bias = np.asarray(layer.weight), np.asarray(layer.bias)
            z = [sum(Fraction(w) * v for w, v in zip(row, x, strict=True)) + Fraction(b)
                 for row, b in zip(weight, bias, strict=True)]  # fmt: skip
            for value, low, high in zip(z, *bound, strict=True):
                assert Fraction(low) <= value <= Fraction(high)
            x = [max(v, Fraction(0)) for v in z]


def test_float32_ascent_is_certified_in_float64():
    rng = np.random.default_rng(2)
    above = 0
    for i in range(12):
        net, box, spec = random_problem(rng, SIZES, eps=(0.1, 0.3)[i % 2])
        result = solve(net, box, spec)
        assert result.plain.dtype == np.float32 and result.lower.dtype == np.float64
        with jax.enable_x64(True):
            plain = solve(net, box, spec)
        exact = np.array([r.lower for r in verify.mip_bound(net, box, spec)])
        assert (result.lower <= exact + 1e-6).all()
        np.testing.assert_allclose(result.lower, result.plain, atol=1e-4)
        # In float64 the ascent itself is within rounding of what is certified, and above it.
        assert (plain.lower >= plain.plain - 1e-6 * (1 + np.abs(plain.plain))).all()
        assert (plain.lower <= plain.plain + 1e-12).all()
        above += (result.plain > result.lower).sum()
    assert above  # which is why float32 proves nothing by itself


def test_all_layers_first_is_tighter_and_sound():
    rng = np.random.default_rng(3)
    gains = []
    for _ in range(4):
        net, box, spec = random_problem(rng, SIZES, eps=0.3)
        once, twice = solve(net, box, spec), solve(net, box, spec, layer_steps=60)
        exact = np.array([r.lower for r in verify.mip_bound(net, box, spec)])
        assert (twice.lower <= exact + 1e-6).all()
        for tight, wide in zip(*(r.certificate.bounds for r in (twice, once)), strict=True):
            assert (tight.lower >= wide.lower - 1e-6).all()
            assert (tight.upper <= wide.upper + 1e-6).all()
        gains.append(twice.lower - once.lower)
    assert np.mean(gains) > 0


def test_merged_groups_are_tighter_than_pairs_and_sound():
    rng = np.random.default_rng(4)
    gains = []
    for _ in range(6):
        net, box, spec = random_problem(rng, SIZES, eps=0.3)
        result = solve(net, box, spec, group_size=8)
        exact = np.array([r.lower for r in verify.mip_bound(net, box, spec)])
        assert (result.mip_lower <= exact + 1e-6).all()
        assert (result.mip_lower >= result.lower).all()
        both = verify.merged_bound(result.certificate, sizes=[8, 8])
        assert (both >= result.mip_lower - 1e-9).all() and (both <= exact + 1e-6).all()
        gains.append(result.mip_lower - result.lower)
    assert np.mean(gains) > 1e-3
    with pytest.raises(ValueError, match="sizes must hold 2 numbers, got 1"):
        verify.merged_bound(result.certificate, sizes=[8])
    with pytest.raises(ValueError, match="size of a group must be at least 2, got 1"):
        verify.merged_bound(result.certificate, sizes=[0, 1])


def test_a_group_that_runs_out_of_time_still_has_a_bound():
    rng = np.random.default_rng(5)
    z = verify.Zonotope(rng.normal(size=12) * 0.1, rng.normal(size=(12, 40)))
    box = verify.Box(*(z.center + s * np.abs(z.generators).sum(1) / 2 for s in (-1, 1)))
    c1, c2 = rng.normal(size=(2, 12))
    hurried = verify.relu_program_mip(z, box, c1, c2, time_limit=1e-3)
    done = verify.relu_program_mip(z, box, c1, c2, time_limit=20)
    assert hurried.lower <= done.lower + 1e-3 and np.isfinite(done.lower)
    assert done.upper >= done.lower
    # Points of the domain are above the bound.
    y = np.random.default_rng(6).uniform(-1, 1, size=(4000, 40))
    points = z.center + y @ z.generators.T
    inside = points[((points >= box.lower) & (points <= box.upper)).all(1)]
    assert ((inside @ c1 + np.maximum(inside, 0) @ c2) >= done.lower).all()


def test_the_bound_of_a_group_scales_with_its_objective():
    rng = np.random.default_rng(10)
    z = verify.Zonotope(0.1 * rng.normal(size=6), rng.normal(size=(6, 10)))
    box = verify.Box(*(z.center + s * np.abs(z.generators).sum(1) / 2 for s in (-1, 1)))
    c1, c2 = rng.normal(size=(2, 6))
    plain, large = (verify.relu_program_mip(z, box, s * c1, s * c2) for s in (1, 1e4))
    slack = plain.upper - plain.lower
    assert 1e-6 < slack < 1e-2
    assert large.upper - large.lower == pytest.approx(1e4 * slack, rel=0.1)


def test_ibp_and_deepz_are_those_of_float64():
    rng = np.random.default_rng(7)
    net, box, spec = random_problem(rng, SIZES, eps=0.2)
    with jax.enable_x64(True):
        plain = jax.device_get(
            jax.jit(lambda *a: (verify.ibp(*a), verify.deepz(*a)))(net, box, spec)
        )
    for found, value in zip(
        (verify.certify_ibp(net, box, spec), verify.certify_deepz(net, box, spec)),
        plain, strict=True,
    ):  # fmt: skip
        assert (found <= value).all() and (found >= value - 1e-12).all()


def test_one_compilation_serves_all_weights_inputs_radii_and_targets():
    from jaxml.verify import zonodual

    rng = np.random.default_rng(8)
    net, box, spec = random_problem(rng, SIZES, eps=0.2)
    solve(net, box, spec)
    before = zonodual._solve._cache_size()
    for eps in (0.0, 0.3):
        solve(*random_problem(rng, SIZES, eps=eps), learning_rate=0.02, decay=0.5)
    assert zonodual._solve._cache_size() == before


def test_bad_input_is_named():
    rng = np.random.default_rng(9)
    net, box, spec = random_problem(rng, SIZES, eps=0.2)
    rhos = [np.zeros((2, n)) for n in SIZES[1:3]]
    pairs = [np.arange(8).reshape(4, 2), np.arange(8).reshape(4, 2)]
    assert verify.certify(net, box, spec, rhos, pairs).lower.shape == (2,)
    broken = (net[0], net[1]._replace(weight=net[1].weight * np.nan), net[2])
    for args, message in (
        ((broken, box, spec, rhos), "layer 1 has 56 weights that are not finite"),
        ((net, verify.Box(box.upper + 1, box.lower), spec, rhos), "box is empty: lower"),
        ((net, verify.Box(*(e[:3] for e in box)), spec, rhos), r"box must be two vectors \[4\]"),
        ((net, box, verify.Spec(spec.weight[:, :2], spec.offset), rhos), r"weight \[t, 3\]"),
        ((net, box, spec, rhos[:1]), "rhos must have shapes"),
        ((net, box, spec, [rhos[0], rhos[1] + np.nan]), "rhos has values that are not"),
        ((net, box, spec, rhos, pairs[:1]), "pairs must hold 2 partitions, got 1"),
        ((net, box, spec, rhos, [pairs[0][:3], pairs[1]]), "partition lacks coordinate 6"),
        ((net, box, spec, rhos, [pairs[0], [[0, 1], [2, 1]]]), "partition has coordinate 1 twice"),
    ):
        with pytest.raises(ValueError, match=message):
            verify.certify(*args)
    with pytest.raises(ValueError, match="group_size must be 0 or at least 2, got 1"):
        verify.zonodual_bound(net, box, spec, group_size=1)
    with pytest.raises(ValueError, match="n_steps must not be negative"):
        verify.zonodual_bound(net, box, spec, n_steps=-1)
