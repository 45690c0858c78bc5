"""The tables of weight matching, which are kept up to date rather than formed anew."""

import numpy as np
import pytest

from jaxml.merging.git_rebasin import _ParameterTerm

SLOTS = {
    "kernel": ((4, 5, 12, 9), ((2, "in"), (3, "out"))),
    "one group twice": ((3, 12, 12), ((1, "in"), (2, "in"))),
    "three groups": ((6, 12, 2, 9), ((0, "head"), (1, "in"), (3, "out"))),
    "alone": ((7, 12), ((1, "in"),)),
}
SIZES = {"head": 6, "in": 12, "out": 9}


def permuted(b, slots, perms, skip=None):
    for slot, (dim, name) in enumerate(slots):
        if slot != skip:
            b = np.take(b, perms[name], axis=dim)
    return b


@pytest.mark.parametrize(("shape", "slots"), SLOTS.values(), ids=SLOTS)
def test_tables_stay_equal_to_fresh_ones_while_units_move(shape, slots):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, *shape))
    term = _ParameterTerm(a, b, slots)
    perms = {name: np.arange(size) for name, size in SIZES.items()}
    for _ in range(40):
        # Two units swap, or all move, or none.
        name = rng.choice(sorted(SIZES))
        some = rng.choice(SIZES[name], size=rng.choice([2, SIZES[name]]), replace=False)
        moved = perms[name].copy()
        moved[some] = perms[name][rng.permutation(some)]
        perms = perms | {name: moved}
        for slot, (dim, _) in enumerate(slots):
            fresh = np.tensordot(
                np.moveaxis(a, dim, 0).reshape(shape[dim], -1),
                np.moveaxis(permuted(b, slots, perms, skip=slot), dim, 0).reshape(shape[dim], -1),
                (1, 1),
            )
            np.testing.assert_allclose(term.linear(slot, perms), fresh, rtol=0, atol=1e-11)
        assert term.value(perms) == pytest.approx((a * permuted(b, slots, perms)).sum(), abs=1e-9)
