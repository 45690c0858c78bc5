"""Noise scales and the table of passing probabilities, against their definitions."""

import jax
import numpy as np
import pytest
import scipy.integrate
from scipy.stats import chi2, norm

from jaxml import privacy
from jaxml.privacy.mechanisms import standard_normal


@pytest.mark.parametrize("epsilon", [0.1, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("fail_rate", [0.0, 1e-3])
def test_no_score_tells_too_much_about_its_neighbours(epsilon, delta, fail_rate):
    p = privacy.ptr_pass_probs(epsilon, delta, fail_rate)
    assert privacy.pass_table_excess(p, epsilon=epsilon, delta=delta) <= 1e-12
    assert p[-1] == 0 and p[0] >= 1 - fail_rate and (np.diff(p) <= 0).all()
    # One entry less, and the first one could not be reached: every step is as long as it may be.
    gain = np.exp(epsilon)
    longest = np.minimum(gain * p[1:] + delta, 1 - (1 - p[1:] - delta) / gain)
    np.testing.assert_allclose(p[:-1], np.minimum(longest, 1), rtol=1e-12)


def test_the_table_has_its_known_lengths():
    lengths = [len(privacy.ptr_pass_probs(e, 2e-7)) - 1 for e in (0.25, 0.5, 1.0)]
    assert lengths == [108, 58, 31]
    assert len(privacy.ptr_pass_probs(0.5, 2e-7, 1e-3)) - 1 == 41


@pytest.mark.parametrize(("epsilon", "delta"), [(1 / 3, 1e-6 / 6), (1.0, 1e-6)])
def test_a_failure_rate_that_grows_exponentially_all_the_way_is_found_out(epsilon, delta):
    # Published code fails with probability delta exp(epsilon (z - 2) / 2) and scores that
    # neighbours may have 2 apart. From one score to the next but one, PASS goes from .24 or .56 to
    # 0, and no delta near the one claimed allows that.
    z = np.arange(2, 400, 2)
    p = 1 - np.minimum(1, delta * np.exp(epsilon * (z - 2) / 2))
    assert privacy.pass_table_excess(p, epsilon=epsilon, delta=delta) > 0.2
    # Read as a rule for a score of sensitivity 1 it is no better.
    p = 1 - np.minimum(1, delta * np.exp(epsilon * np.arange(400)))
    assert privacy.pass_table_excess(p, epsilon=epsilon, delta=delta) > 0.2


def test_a_table_for_steps_of_one_does_not_serve_steps_of_two():
    p = privacy.ptr_pass_probs(1.0, 1e-6)
    for every_other in (p[::2], p[1::2]):
        assert privacy.pass_table_excess(every_other, epsilon=1.0, delta=1e-6) > 0.1


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-6), (1.0, 1e-6), (5.0, 1e-3), (1.0, 0.4)])
def test_the_gaussian_scale_spends_exactly_delta(epsilon, delta):
    scale = privacy.gaussian_scale(epsilon, delta)

    def excess(x):
        return max(0.0, norm.pdf(x, 1, scale) - np.exp(epsilon) * norm.pdf(x, 0, scale))

    start = 0.5 + epsilon * scale**2  # where the densities cross
    spent, _ = scipy.integrate.quad(
        excess, start, start + 40 * scale, limit=500, epsabs=0, epsrel=1e-10
    )
    assert spent == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("delta", [1e-2, 1e-7, 1e-12])
def test_weighted_sums_of_squares_stay_below_their_bound(delta):
    x = privacy.chi_square_bound(delta)
    assert 0.5 * np.log(x) - 0.5 * (x - 1) == pytest.approx(np.log(delta), rel=1e-9)
    for n_equal in (1, 2, 5, 50):
        assert chi2.sf(x * n_equal, n_equal) <= delta


def test_normals_are_standard_and_keys_are_new():
    with jax.enable_x64(True):
        draws = np.asarray(standard_normal(jax.random.key(0), (200_000,)))
    assert draws.dtype == np.float64
    assert scipy.stats.kstest(draws, "norm").pvalue > 1e-4
    keys = [privacy.entropy_key() for _ in range(2)]
    assert (jax.random.key_data(keys[0]) != jax.random.key_data(keys[1])).any()


@pytest.mark.parametrize(
    ("epsilon", "delta", "fail_rate", "message"),
    [
        (0.0, 1e-6, 0.0, "epsilon must be positive"),
        (np.inf, 1e-6, 0.0, "epsilon must be positive and finite, got inf"),
        (1.0, 0.0, 0.0, r"delta must lie in \(0, 1\), got 0.0"),
        (1.0, 1.0, 0.0, "delta must lie"),
        (1.0, 1e-6, 1.0, "fail_rate must lie"),
    ],
)
def test_bad_budgets_are_one_sentence(epsilon, delta, fail_rate, message):
    with pytest.raises(ValueError, match=message):
        privacy.ptr_pass_probs(epsilon, delta, fail_rate)
