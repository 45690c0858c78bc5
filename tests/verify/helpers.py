"""Small random problems, and independent ways to solve them."""

import itertools

import jax
import numpy as np
import scipy.optimize

from jaxml import verify


def random_net(rng, sizes):
    return tuple(
        verify.Dense(rng.normal(size=(b, a)) * 1.2 / np.sqrt(a), 0.2 * rng.normal(size=b))
        for a, b in itertools.pairwise(sizes)
    )


def random_problem(rng, sizes, *, eps):
    net = random_net(rng, sizes)
    box = verify.linf_box(rng.uniform(size=sizes[0]), eps)
    label = int(rng.integers(sizes[-1]))
    return net, box, verify.margin_spec(label, sizes[-1])


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def sample_minimum(rng, net, box, spec, n):
    x = rng.uniform(size=(n, len(box.lower))) * (box.upper - box.lower) + box.lower
    corners = rng.random(size=x.shape) < 0.5
    x = np.concatenate([x, np.where(corners, box.lower, box.upper)])
    for i, layer in enumerate(net):
        x = (np.maximum(x, 0) if i else x) @ np.asarray(verify.unroll((layer,))[0].weight).T
        x = x + layer.bias
    return (x @ spec.weight.T + spec.offset).min(0)


def quadrant_minimum(center, generators, lower, upper, c1, c2):
    """Minimises ``c1^T z + c2^T relu(z)`` over two coordinates, by a linear program a quadrant."""
    best = np.inf
    m = generators.shape[1]
    for signs in itertools.product((False, True), repeat=2):
        right = np.array(signs)
        low, high = (
            np.where(right, np.maximum(lower, 0), lower),
            np.where(right, upper, np.minimum(upper, 0)),
        )
        if (low > high).any():
            continue
        k = c1 + right * c2
        found = scipy.optimize.linprog(
            k @ generators, A_ub=np.concatenate([generators, -generators]),
            b_ub=np.concatenate([high - center, center - low]), bounds=[(-1, 1)] * m,
        )  # fmt: skip
        if found.status == 0:
            best = min(best, found.fun + k @ center)
    return best
