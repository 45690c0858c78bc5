"""Soundness of the derivation: on random programs, no claimed symmetry changes the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxml.merging import check_permutation_spec, derive_permutation_spec
from jaxml.merging.symmetry import AtomSets

from .programs import make_program


def check(seed, n_ops):
    """Derives the spec of a random program and tries all of it; returns the number of groups."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        fn, params, x = make_program(seed, n_ops=n_ops)
        params, x = jax.tree.map(jnp.asarray, (params, x))
        spec = derive_permutation_spec(fn, params, x)
        if spec.groups:
            check_permutation_spec(jax.random.key(seed), spec, fn, params, x, rtol=1e-8)
    return len(spec.groups)


@pytest.mark.filterwarnings("ignore:no permutation rule for 'scatter-add'")
def test_claimed_groups_keep_random_programs():
    assert sum(check(seed, n_ops=7) for seed in range(15)) >= 10


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:no permutation rule for 'scatter-add'")
def test_claimed_groups_keep_many_random_programs():
    assert sum(check(seed, n_ops=3 + seed % 8) for seed in range(100, 600)) >= 300


def sizes(atoms, axis):
    return [atoms.size[atom] for atom in atoms.atoms(axis)]


def test_joined_axes_split_together():
    atoms = AtomSets()
    (left,), (right,) = atoms.new_axes([12]), atoms.new_axes([12])
    atoms.link(left, right)
    first, second = atoms.regroup([left], (3, 4))
    assert sizes(atoms, right) == [3, 4]
    assert atoms.atoms(right) == (*atoms.atoms(first), *atoms.atoms(second))


def test_axes_are_joined_factor_by_factor():
    atoms = AtomSets()
    (whole,) = atoms.new_axes([12])
    pair = tuple(atoms.new_axes([2, 6]))
    atoms.link(whole, (*pair[0], *pair[1]))
    assert sizes(atoms, whole) == [2, 6]
    triple = tuple(atoms.new_axes([2, 3, 2]))
    atoms.link(whole, sum(triple, ()))
    assert sizes(atoms, pair[1]) == [3, 2]
    assert not any(atoms.fixed[a] for a in atoms.atoms(whole))


def test_factors_that_do_not_fit_are_fixed_on_both_sides():
    atoms = AtomSets()
    left, right = sum(atoms.new_axes([2, 3]), ()), sum(atoms.new_axes([3, 2]), ())
    atoms.link(left, right)
    assert all(atoms.fixed[a] for a in (*atoms.atoms(left), *atoms.atoms(right)))
    axes = atoms.new_axes([4, 6])
    (merged, rest) = atoms.regroup(axes, (3, 8))
    for axis in (*axes, merged, rest):
        assert all(atoms.fixed[a] for a in atoms.atoms(axis))


def test_what_is_fixed_stays_fixed_through_joins_and_splits():
    atoms = AtomSets()
    (free,), (held,) = atoms.new_axes([6]), atoms.new_axes([6], fixed=True)
    atoms.link(free, held)
    parts = atoms.regroup([free], (2, 3))
    assert all(atoms.fixed[a] for part in parts for a in atoms.atoms(part))


def test_one_group_twice_on_one_axis():
    # An outer product flattened: rows are (i, j), both permuted alike.
    def fn(p, x):
        h = jnp.tanh(x @ p["u"])
        pairs = h[:, :, None] * h[:, None, :]
        return pairs.reshape(x.shape[0], -1) @ p["v"]

    rng = np.random.default_rng(0)
    p = {"u": rng.normal(size=(3, 4)), "v": rng.normal(size=(16, 2))}
    p, x = jax.tree.map(jnp.float32, (p, rng.normal(size=(5, 3))))
    spec = derive_permutation_spec(fn, p, x)
    (group,) = spec.groups.values()
    assert [(r.path, r.factor_shape, r.factor_index) for r in group.axes] == [
        ("u", (4,), 0), ("v", (4, 4), 0), ("v", (4, 4), 1),
    ]  # fmt: skip
    check_permutation_spec(jax.random.key(0), spec, fn, p, x)


def test_a_batch_of_one_gives_the_same_spec():
    def fn(p, x):
        return jax.nn.relu(x @ p["u"]) @ p["v"]

    p = {"u": jnp.ones((3, 4)), "v": jnp.ones((4, 2))}
    specs = [derive_permutation_spec(fn, p, jnp.ones((n, 3))) for n in (1, 2)]
    assert specs[0] == specs[1]


PARAMS = {
    "u": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32),
    "v": np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32),
    "b": np.random.default_rng(2).normal(size=6).astype(np.float32),
}
INPUT = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("fn", "sizes"),
    [
        (lambda p, x: jnp.concatenate([x @ p["u"], jnp.zeros((4, 0, 2)).reshape(4, 0)], 1) @ p["v"],
         []),
        (lambda p, x: jnp.tanh(x @ p["u"]) @ p["v"] + x[:0].reshape(0, 5, 1).sum(), [6]),
        (lambda p, x: jax.grad(lambda x: (jax.nn.silu(x @ p["u"]) @ p["v"]).sum())(x), [6]),
        (lambda p, x: jax.jvp(lambda x: jnp.tanh(x @ p["u"]) @ p["v"], (x,), (x,))[1], [6]),
        (lambda p, x: (x @ p["u"] + jax.random.normal(jax.random.key(0), (4, 6))) @ p["v"], []),
        (lambda p, x: x @ p["u"] @ p["v"] + jax.random.normal(jax.random.key(0), (4, 3)), [6]),
        (lambda p, x: checkpoint_name(jnp.tanh(x @ p["u"]), "hidden") @ p["v"], [6]),
        (lambda p, x: (x @ p["u"])[:, jnp.argsort(p["b"])] @ p["v"], []),
        (lambda p, x: x @ p["u"] @ (jnp.diag(p["b"]) @ p["v"]), []),
        (lambda p, x: (x @ p["u"]) / jnp.linalg.norm(p["u"], axis=0)[None] @ p["v"], [6]),
        (lambda p, x: (x @ p["u"]).reshape(4, 2, 3).swapaxes(1, 2).reshape(4, 6) @ p["v"], [2, 3]),
        (lambda p, x: jax.vmap(lambda h: jax.lax.while_loop(
            lambda h: (h**2).sum() < 50, lambda h: 1.5 * h + 0.1, h))(x @ p["u"]) @ p["v"], [6]),
    ],
    ids=["empty_part", "empty_reshape", "gradient", "jvp", "noise_inside", "noise_outside",
         "checkpoint_name", "order_of_a_parameter", "diagonal", "spectral", "shuffle",
         "vmapped_while"],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_programs_of_note(fn, sizes):
    spec = derive_permutation_spec(fn, PARAMS, INPUT)
    assert sorted(group.size for group in spec.groups.values()) == sizes
    check_permutation_spec(jax.random.key(0), spec, fn, PARAMS, INPUT)
