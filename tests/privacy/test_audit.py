"""The audit: never above the truth, near to it for simple mechanisms, honest on its power."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import privacy

DELTA = 1e-5


def laplace(key, x):
    """A sum of rows in [0, 1] with Laplace noise of scale 1: exactly (1, 0)-private."""
    return x.sum() + jax.random.laplace(key, (1,))


def forgetful(key, x):
    """Fails for certain if the first row is 1."""
    return jnp.where(x[0] == 1, jnp.nan, jax.random.normal(key, (2,)))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


PAIR = (jnp.zeros(3),), (jnp.zeros(3).at[0].set(1.0),)


def test_the_bound_is_below_the_truth_and_not_far():
    found = [
        privacy.audit_epsilon(laplace, *PAIR, keys(40_000, i), delta=DELTA, confidence=0.95)
        for i in range(5)
    ]
    bounds = np.array([f.epsilon_lower for f in found])
    assert (bounds <= 1.0).all() and bounds.mean() > 0.75
    assert found[0].failed == (0, 0) and found[0].n_draws == 10_000


def test_nothing_is_found_where_there_is_nothing():
    found = privacy.audit_epsilon(laplace, PAIR[0], PAIR[0], keys(4000), delta=DELTA)
    assert found.epsilon_lower == 0


def test_failures_give_a_mechanism_away_up_to_the_power_of_the_audit():
    for pair in (PAIR, PAIR[::-1]):
        found = privacy.audit_epsilon(forgetful, *pair, keys(4000), delta=DELTA)
        assert found.epsilon_lower == found.epsilon_power > 4
        assert sorted(found.failed) == [0, 1]
    # With n draws none of which hits, a probability of about log(400) / n cannot be ruled out.
    assert found.epsilon_power == pytest.approx(np.log(1000 / np.log(400)), rel=0.05)
    assert privacy.audit_epsilon(forgetful, *PAIR, keys(40), delta=DELTA).epsilon_power < 1


def test_a_table_of_certainties_is_no_private_rule():
    coin = np.array([1.0, 0.5, 0.0])
    assert privacy.pass_table_excess(coin, epsilon=1.0, delta=1e-6) == pytest.approx(0.5 - 1e-6)
    assert privacy.pass_table_excess(coin, epsilon=1.0, delta=0.5) <= 0
    # A table has to end in 0: scores beyond it fail.
    assert privacy.pass_table_excess(np.ones(3), epsilon=1.0, delta=1e-6) > 0.9


def test_the_pair_differs_in_one_row_and_has_its_leverages():
    own, other = privacy.reflected_pair(4000, 0.01)
    assert np.flatnonzero((own != other).any(1)).tolist() == [0]
    leverage = np.einsum("ij,jk,ik->i", own, np.linalg.inv(own.T @ own), own)
    np.testing.assert_allclose(leverage[:2], 0.01, rtol=0.05)
    assert leverage[2:].max() < 0.001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 0.0}, "delta must lie"),
        ({"confidence": 1.0}, "confidence must lie"),
        ({"keys": 4}, "keys must be at least 8, got 4"),
    ],
)
def test_bad_arguments_are_one_sentence(changes, message):
    kwargs = {"delta": DELTA, "keys": 100} | changes
    with pytest.raises(ValueError, match=message):
        privacy.audit_epsilon(laplace, *PAIR, keys(kwargs.pop("keys")), **kwargs)
    with pytest.raises(ValueError, match="n must be a multiple of 4"):
        privacy.reflected_pair(10, 0.1)
