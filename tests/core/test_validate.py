"""Checks of models: one sentence that names the leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.core.validate import check_finite, check_same_structure

A = {"params": {"Dense_0": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3)}}}


def test_equal_trees_pass_whatever_holds_the_leaves():
    check_same_structure(A, jax.tree.map(jnp.asarray, A))
    check_same_structure(A, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, A)))
    check_finite(A, name="a")


def test_a_leaf_on_one_side_only_is_named_with_its_side():
    b = {"params": {"Dense_0": {"kernel": np.ones((2, 3))}}}
    with pytest.raises(ValueError, match="'params/Dense_0/bias' is in a and not in b"):
        check_same_structure(A, b)
    with pytest.raises(ValueError, match="'params/Dense_0/bias' is in new and not in old"):
        check_same_structure(b, A, names=("old", "new"))


def test_unequal_shapes_are_both_stated():
    b = {"params": {"Dense_0": {"kernel": np.ones((2, 4)), "bias": np.zeros(3)}}}
    with pytest.raises(
        ValueError, match=r"'params/Dense_0/kernel': shape \(2, 3\) in a, \(2, 4\) in b"
    ):
        check_same_structure(A, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_that_are_not_finite_are_counted_and_named(bad, dtype):
    tree = {"w": jnp.ones(3, dtype), "v": jnp.asarray([1.0, bad, bad], dtype)}
    with pytest.raises(ValueError, match="model 3 has 2 non-finite values at 'v'"):
        check_finite(tree, name="model 3")


def test_integers_and_keys_have_nothing_to_check():
    check_finite({"n": jnp.arange(3), "key": jax.random.key(0)}, name="a")
