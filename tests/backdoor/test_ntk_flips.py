"""Greedy flips against an exhaustive search over explicit Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxml.backdoor import flip, ntk_flips
from jaxml.data.triggers import make_trigger

from .flip_cases import Net

MODEL = Net(norm=False)


def setup(n=14):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(n, 2, 2, 1)).astype(np.float32)
    y = np.arange(n, dtype=np.int32) % 3
    poisoned = flip.poison(x, y, make_trigger("pixel"), source=1, target=2)
    points = jax.vmap(lambda key: MODEL.init(key, x))(jax.random.split(jax.random.key(0), 3))
    return points, x, y, poisoned


def by_search(points, x, y, poisoned, target, budget):
    """Tries every label at every pick, and measures the gradients themselves."""

    @jax.jit
    def gradients(params, x, y):
        flat, unravel = ravel_pytree(params)

        def losses(flat):
            logits = MODEL.apply({"params": unravel(flat)}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y)

        return jax.jacrev(losses)(flat)

    def each(x, y):
        some = [jax.tree.map(lambda leaf, k=k: leaf[k], points["params"]) for k in range(3)]
        return np.stack([np.asarray(gradients(p, x, jnp.asarray(y)), float) for p in some])

    expert = each(poisoned.x, poisoned.y).mean(1)
    true, flipped = each(x, y), each(x, np.full_like(y, target))
    chosen = np.zeros(len(y), bool)
    order, history = [], []

    def mismatch(chosen):
        student = np.where(chosen[:, None], flipped, true).mean(1)
        return (((expert - student) ** 2).sum(1) / (expert**2).sum(1)).mean()

    for _ in range(budget):
        history.append(mismatch(chosen))
        tried = {i: mismatch(chosen | (np.arange(len(y)) == i))
                 for i in np.flatnonzero((y != target) & ~chosen)}  # fmt: skip
        order.append(min(tried, key=tried.get))
        chosen[order[-1]] = True
    return order, [*history, mismatch(chosen)]


def test_picks_and_mismatch_are_those_of_an_exhaustive_search():
    points, x, y, poisoned = setup()
    order, history = by_search(points, x, y, poisoned, 2, 6)
    found = ntk_flips.ntk_greedy_flips(
        MODEL.apply, points, x, y, poisoned, target=2, budget=6, batch_size=5
    )
    np.testing.assert_array_equal(found.ranking.index, order)
    np.testing.assert_allclose(found.mismatch, history, rtol=1e-4)
    assert (found.ranking.label == 2).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 11}, r"budget must lie in 1..10, the labels of other classes, got 11"),
        ({"budget": 0}, r"budget must lie in 1..10"),
        ({"target": 3}, "target must be a class 0..2"),
        ({"batch_size": 0}, "batch_size must be positive"),
    ],
)
def test_bad_input_is_named(changes, message):
    options = {"target": 2, "budget": 2, **changes}
    with pytest.raises(ValueError, match=message):
        ntk_flips.ntk_greedy_flips(MODEL.apply, *setup(), **options)
