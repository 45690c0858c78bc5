"""Relu programs over pairs of coordinates, against linear programs by quadrant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.verify import outward, polygons
from jaxml.verify.problem import Box
from jaxml.verify.zonotope import Zonotope
from tests.verify.helpers import quadrant_minimum

M = 6


def cases(n):
    """Draws polygons and boxes, degenerate ones among them; each box meets its polygon."""
    rng = np.random.default_rng(0)
    for i in range(n):
        generators = rng.normal(size=(2, M)) * rng.choice([0.1, 1, 1, 3])
        center = rng.normal(size=2) * rng.choice([0, 0.3, 1, 3])
        kind = i % 10
        if kind == 1:
            generators[:] = 0
        elif kind == 2:
            generators[:, 1:] = 0
        elif kind == 3:  # a segment
            generators = rng.normal(size=2)[:, None] * rng.normal(size=M)[None]
        elif kind == 4:  # duplicate and opposite directions
            generators[:, 1], generators[:, 2] = generators[:, 0], -2 * generators[:, 0]
        elif kind == 5:  # a vertical and a horizontal one, and the rest zero
            generators = np.zeros((2, M))
            generators[1, 0], generators[0, 1] = rng.normal(size=2)
        elif kind == 6:  # thin along a diagonal
            generators = generators.mean(0)[None] + 1e-3 * generators
        radius = np.abs(generators).sum(1)
        lower, upper = center - radius, center + radius
        inside = center + generators @ rng.uniform(-1, 1, size=M)
        if i % 3:  # cut off corners, but not a point that is inside
            lower = inside - rng.uniform(size=2) * (inside - lower)
            upper = inside + rng.uniform(size=2) * (upper - inside)
        if kind == 7 and (lower < 0).all():  # an end at exactly 0
            upper = np.where(inside < 0, np.minimum(upper, 0.0), upper)
        if kind == 8 and (upper > 0).all():
            lower = np.where(inside > 0, np.maximum(lower, 0.0), lower)
        yield center, generators, lower, upper, *rng.normal(size=(2, 2))


@jax.jit
def solve(center, generators, lower, upper, c1, c2):
    def one(center, generators, lower, upper, c1, c2):
        domain = polygons.pair_domain(
            Zonotope(center, generators), Box(lower, upper), jnp.array([[0, 1]])
        )
        return polygons.relu_program_2d(domain, c1[None], c2[None])[0]

    return jax.vmap(one)(center, generators, lower, upper, c1, c2)


@pytest.fixture(scope="module")
def solved():
    drawn = list(cases(510))
    arrays = [np.stack(a) for a in zip(*drawn, strict=True)]
    with jax.enable_x64(True):
        values = np.asarray(solve(*arrays))
    return drawn, values, np.array([quadrant_minimum(*case) for case in drawn])


def test_pairs_are_solved_exactly(solved):
    _, values, exact = solved
    np.testing.assert_allclose(values, exact, atol=1e-7, rtol=0)
    # HiGHS itself stops within 1e-7; where it is exact, no bound may be above it.
    assert (values - exact).max() <= 1e-9


def test_the_outward_program_is_below_and_close(solved):
    drawn, values, exact = solved
    for (center, generators, lower, upper, c1, c2), value, best in zip(
        drawn, values, exact, strict=True
    ):
        domain = outward._Domain(
            center, generators, np.zeros(2), Box(lower, upper), np.array([[0, 1]])
        )
        (found,) = outward._pair_lower(domain, domain.pairs, c1, c2)
        assert found <= min(value, best) + 1e-9
        assert found >= value - 1e-9 * (1 + np.abs([*c1, *c2]).max() * 10)


def test_float32_agrees(solved):
    drawn, values, _ = solved
    arrays = [np.stack(a).astype(np.float32) for a in zip(*drawn, strict=True)]
    found = np.asarray(solve(*arrays))
    scale = 1 + np.abs(arrays[1]).sum((1, 2)) + np.abs(arrays[0]).sum(1)
    assert found.dtype == np.float32
    assert (np.abs(found - values) / scale).max() < 2e-5


def test_the_number_of_candidates_is_that_of_the_formula_and_all_lie_inside():
    rng = np.random.default_rng(1)
    z = Zonotope(rng.normal(size=5), rng.normal(size=(5, M)))
    radius = np.abs(z.generators).sum(1)
    box = Box(z.center - 0.6 * radius, z.center + radius)
    pairs = np.array([[0, 3], [4, 1], [2, 5]])
    with jax.enable_x64(True):
        domain = jax.jit(polygons.pair_domain)(z, box, pairs)
    candidates = np.asarray(domain.candidates)
    assert candidates.shape == (3, 4, 2 * M + 21)
    np.testing.assert_array_equal(candidates[:, 2:], np.maximum(candidates[:, :2], 0))
    padded = [np.append(end, 0.0) for end in box]
    for pair, points in zip(pairs, candidates[:, :2], strict=True):
        assert (points >= padded[0][pair][:, None] - 1e-9).all()
        assert (points <= padded[1][pair][:, None] + 1e-9).all()
    assert not candidates[2, 1].any()  # no partner
    # A polygon is where no direction separates.
    angles = np.linspace(0, 2 * np.pi, 100)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    reach = np.abs(directions @ z.generators[[0, 3]]).sum(1) + directions @ z.center[[0, 3]]
    assert (directions @ candidates[0, :2] <= reach[:, None] + 1e-9).all()
