"""What several merging tests need: Gaussian weights, planted permutations, tables of a spec."""

import jax
import numpy as np

from jaxml.core.tree import to_paths
from jaxml.merging import apply_permutation, invert_permutation, random_permutation


def gaussian_like(seed, shapes, scale=1.0):
    """Independent normal weights for every leaf, as numpy float32."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (scale * rng.normal(size=s.shape)).astype(np.float32), shapes)


def to_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def flat(tree):
    """Path to numpy array."""
    return {path: np.asarray(leaf) for path, leaf in to_paths(tree).items()}


def tables(spec):
    """Groups as the reference wants them: (name to (path, axis) list, name to size)."""
    places = {n: [(ref.path, ref.axis) for ref in g.axes] for n, g in spec.groups.items()}
    return places, {n: g.size for n, g in spec.groups.items()}


def plant(seed, spec, a, *, noise=0.0):
    """Hides a random permutation in ``a`` plus noise of that many standard deviations a leaf.

    Returns (copy, the permutations that undo it).
    """
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(
        lambda v: v + np.float32(noise) * v.std() * rng.normal(size=v.shape).astype(np.float32), a
    )
    hidden = random_permutation(jax.random.key(seed), spec)
    undo = {name: np.asarray(p) for name, p in invert_permutation(hidden).items()}
    return to_numpy(apply_permutation(spec, hidden, noisy)), undo


def recovered(perms, undo):
    return all(np.array_equal(perms[name], undo[name]) for name in undo)


def assert_valid(spec, perms):
    assert set(perms) == set(spec.groups)
    for name, perm in perms.items():
        assert perm.dtype == np.int32
        np.testing.assert_array_equal(np.sort(perm), np.arange(spec.groups[name].size))


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
