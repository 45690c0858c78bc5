"""Claims: the ratio claim against arithmetic, and the way through JSON."""

import json

import numpy as np
import pytest

from jaxml.report import Claim, ratio_claim


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
