"""Zonotopes and partitions against sampling, linear programs and plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import verify
from jaxml.verify import zonotope
from jaxml.verify.zonotope import Zonotope
from tests.verify.helpers import random_problem

SIZES = (4, 7, 8, 3)


def test_zonotopes_hold_what_the_network_can_reach():
    rng = np.random.default_rng(0)
    net, box, _ = random_problem(rng, SIZES, eps=0.3)
    with jax.enable_x64(True):
        plain, informed, reduced = jax.device_get(jax.jit(lambda: (
            verify.propagate(net, box),
            verify.propagate(net, box, verify.crown_bounds(net, box)),
            verify.propagate(net, box, max_order=1),
        ))())  # fmt: skip
    assert plain.zonotopes[1].generators.shape == (8, 4 + 7)
    assert reduced.zonotopes[1].generators.shape == (8, 8)
    for x in rng.uniform(*box, size=(40, 4)):
        z = x
        for i, layer in enumerate(net[:-1]):
            z = layer.weight @ (np.maximum(z, 0) if i else z) + layer.bias
            for layers in (plain, informed, reduced):
                bounds = layers.bounds[i]
                assert (bounds.lower <= z + 1e-9).all() and (z <= bounds.upper + 1e-9).all()
            if i:
                assert zonotope.contains(informed.zonotopes[i], z)
    outside = plain.bounds[1].upper + 1e-3
    assert not zonotope.contains(plain.zonotopes[1], outside)


def test_concretize_support_and_order_reduction():
    rng = np.random.default_rng(1)
    z = Zonotope(rng.normal(size=3), rng.normal(size=(3, 9)))
    directions = rng.normal(size=(4, 3))

    @jax.jit
    def look(z, directions):
        smaller = zonotope.reduce_order(z, 5)
        return [(zonotope.concretize(s), zonotope.support(s, directions)) for s in (z, smaller)]

    with jax.enable_x64(True):
        (box, lowest), (wider, lower) = jax.device_get(look(z, directions))
        assert zonotope.reduce_order(z, 9) is z
        with pytest.raises(ValueError, match="n_generators must be at least 3, got 2"):
            zonotope.reduce_order(z, 2)
    y = np.array(list(itertools.product((-1.0, 1.0), repeat=9)))
    points = z.center + y @ z.generators.T
    np.testing.assert_allclose((points.min(0), points.max(0)), box)
    np.testing.assert_allclose((points @ directions.T).min(0), lowest)
    assert (lower <= lowest + 1e-12).all()
    np.testing.assert_allclose(box, wider)


def test_stable_and_zero_neurons():
    lower, upper = jnp.array([1.0, -3.0, 0.0, -2.0, 0.0]), jnp.array([2.0, -1.0, 0.0, 0.0, 1.0])
    z = zonotope.from_box(verify.Box(lower, upper))
    after = jax.jit(lambda z: zonotope.concretize(zonotope.relu(z)))(z)
    np.testing.assert_allclose(after.lower, np.maximum(lower, 0), atol=1e-6)
    np.testing.assert_allclose(after.upper, np.maximum(upper, 0), atol=1e-6)

    def total(lower):  # no NaN, in the gradient either
        return zonotope.concretize(zonotope.relu(z, verify.Box(lower, upper))).upper.sum()

    assert np.isfinite(jax.jit(jax.grad(total))(lower)).all()


def greedy(scores):
    """Pairs rows in the order of their best score with the best that is free."""
    n = len(scores)
    scores = np.where(np.eye(n, dtype=bool), -np.inf, scores)
    used, pairs = set(), []
    for row in np.argsort(-scores.max(1), kind="stable"):
        if row in used:
            continue
        free = [j for j in range(n) if j not in used and j != row]
        partner = max(free, key=lambda j: scores[row, j]) if free else n
        used |= {int(row), int(partner)}
        pairs.append((int(row), int(partner)))
    return pairs


@pytest.mark.parametrize("n", [6, 7])
def test_every_rule_partitions(n):
    rng = np.random.default_rng(n)
    z = Zonotope(rng.normal(size=n), rng.normal(size=(n, 5)))
    key = jax.random.key(0)
    with jax.enable_x64(True):
        similar, aligned, random, single = jax.device_get(
            jax.jit(lambda z: [verify.partition(z, rule, key=key) for rule in
                               ("similarity", "axalign", "random", "single")])(z)
        )  # fmt: skip
    for groups in (similar, aligned, random, single):
        verify.check_partition(groups, n)
    assert similar.shape == (-(-n // 2), 2) and single.shape == (n, 2)
    size = np.abs(z.generators)
    assert similar.tolist() == [list(pair) for pair in greedy(size @ size.T)]
    larger = np.maximum(size[:, None], size[None])
    ratio = ((size[:, None] + size[None]) / larger).mean(-1)
    assert aligned.tolist() == [list(pair) for pair in greedy(ratio)]
    groups = verify.merge_groups(z, similar, 4)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(similar)))
    assert max(map(len, groups)) == 2


def test_bad_partitions_are_named():
    z = Zonotope(np.zeros(4), np.zeros((4, 2)))
    for call, message in (
        (lambda: verify.partition(z, "best"), "rule must be one of similarity, random"),
        (lambda: verify.partition(z, "random"), "rule 'random' needs key"),
        (lambda: verify.partition(z, "spatial"), "rule 'spatial' needs layer"),
        (lambda: verify.check_partition([[0, 1], []], 2), "a group of size 0"),
        (lambda: verify.check_partition([[0, 5]], 2), "coordinate 5, of 2"),
        (lambda: verify.check_partition([[0, 1], [1, 2]], 3), "coordinate 1 twice"),
        (lambda: verify.check_partition([[0, 1]], 3), "lacks coordinate 2"),
        (lambda: verify.merge_groups(z, [[0, 1], [2, 3]], 1), "at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
