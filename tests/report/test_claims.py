"""Claims: ratios and differences against arithmetic, and the way through JSON."""

import json

import numpy as np
import pytest

from jaxml.report import Claim, difference_claim, ratio_claim


@pytest.mark.parametrize(("bound", "holds"), [(0.26, True), (0.24, False)])
def test_a_ratio_claim_compares_means(bound, holds):
    claim = ratio_claim(
        "the barrier falls", np.array([0.5, 1.5]), np.array([3.0, 5.0]), against_name="naive",
        bound=bound, paper="A paper", paper_value="0", seeds="2 pairs",
    )  # fmt: skip
    assert claim.holds is holds
    assert claim.value == "1: 25.0% of naive"
    assert claim.baseline == f"{bound:.0%} of naive, 4"
    assert claim.spread == "sd 0.5"
    assert Claim(**json.loads(json.dumps(claim.to_dict()))) == claim


@pytest.mark.parametrize(("bound", "holds"), [(9.9, True), (10.1, False), (-3, True)])
def test_a_difference_claim_compares_means_in_points(bound, holds):
    claim = difference_claim(
        "accuracy rises", np.array([0.8, 0.9]), np.array([0.75, 0.75]), against_name="average",
        bound=bound, paper="A paper", paper_value="5", seeds="2 pairs",
    )  # fmt: skip
    assert claim.holds is holds
    assert claim.value == "85.0%: +10.0 points on average"
    assert claim.baseline == f"{bound:+g} points on average, 75.0%"
    assert claim.spread == "sd 5 points"


def test_a_bound_that_is_met_exactly_holds():
    claim = difference_claim(
        "accuracy rises", np.full(3, 0.88), np.full(3, 0.8), against_name="average", bound=8,
        paper="A paper", paper_value="5", seeds="3 pairs",
    )  # fmt: skip
    assert claim.holds is True


def test_a_known_reason_is_no_failure():
    claim = Claim("c", "p", "1", "2", "3", "4", "", False)
    known = claim._replace(reason="too small")
    assert (claim.failed, claim.verdict) == (True, "no")
    assert (known.failed, known.verdict) == (False, "no, which is known")
    assert not known._replace(holds=True).failed and not known._replace(holds=None).failed
    assert known._replace(holds=True).verdict == "yes"
