"""A claim of a paper, re-measured: the row that every report opens with."""

from typing import NamedTuple

import numpy as np


class Claim(NamedTuple):
    """One number of a paper beside the number measured here; every field but ``holds`` is text.

    Attributes:
      claim: what is claimed, in one sentence.
      paper: where the paper says so, for example ``"Table 1"``.
      paper_value: the paper's number, with its unit and its data set where they differ from here.
      value: the number measured here.
      baseline: what it has to beat, with that number.
      seeds: how many seeds it was measured on.
      spread: the spread over the seeds, for example ``"sd 0.02"``.
      holds: True or False; None when this scale cannot measure it.
      command: the command that repeats it; the launcher fills it in when empty.
      reason: why the claim is known not to hold at this scale, or cannot be measured. It is shown
        with its reason and counted as not holding or not measured, but it is no failure of the run.
    """

    claim: str
    paper: str
    paper_value: str
    value: str
    baseline: str
    seeds: str
    spread: str
    holds: bool | None
    command: str = ""
    reason: str = ""

    @property
    def verdict(self) -> str:
        """``"yes"``, ``"no"``, ``"no, which is known"`` or ``"not measured at this scale"``."""
        no = "no, which is known" if self.reason else "no"
        return {True: "yes", False: no, None: "not measured at this scale"}[self.holds]

    @property
    def failed(self) -> bool:
        """Whether it does not hold and nobody knows why."""
        return self.holds is False and not self.reason

    def to_dict(self) -> dict[str, str | bool | None]:
        """Returns the claim as a dict that JSON can hold; ``Claim(**d)`` is the way back."""
        return self._asdict()


def ratio_claim(
    claim: str,
    values: np.ndarray,
    against: np.ndarray,
    *,
    against_name: str,
    bound: float,
    paper: str,
    paper_value: str,
    seeds: str,
) -> Claim:
    """Claims that the mean of ``values`` is at most ``bound`` times the mean of ``against``.

    Args:
      claim: what is claimed, without the numbers.
      values: one measurement a seed ``[n]``.
      against: the baseline's measurements ``[m]``, with a positive mean.
      against_name: what the baseline is called.
      bound: largest ratio with which the claim holds.
      paper: as in Claim.
      paper_value: as in Claim.
      seeds: as in Claim.

    Returns:
      The claim; its spread is the standard deviation of ``values``.
    """
    ratio = np.mean(values) / np.mean(against)
    return Claim(
        claim=claim,
        paper=paper,
        paper_value=paper_value,
        value=f"{np.mean(values):.3g}: {ratio:.1%} of {against_name}",
        baseline=f"{bound:.0%} of {against_name}, {np.mean(against):.3g}",
        seeds=seeds,
        spread=f"sd {np.std(values):.2g}",
        holds=bool(ratio <= bound),
    )


def difference_claim(
    claim: str,
    values: np.ndarray,
    against: np.ndarray,
    *,
    against_name: str,
    bound: float,
    paper: str,
    paper_value: str,
    seeds: str,
) -> Claim:
    """Claims that the mean of ``values`` is ``bound`` percentage points above that of ``against``.

    Args:
      claim: what is claimed, without the numbers.
      values: one fraction a seed ``[n]``, such as an accuracy.
      against: the baseline's fractions ``[n]``, for the same seeds.
      against_name: what the baseline is called.
      bound: smallest difference in points with which the claim holds; negative for "at most so
        much below".
      paper: as in Claim.
      paper_value: as in Claim.
      seeds: as in Claim.

    Returns:
      The claim; its spread is the standard deviation of the differences.
    """
    points = 100 * (np.asarray(values, float) - np.asarray(against, float))
    return Claim(
        claim=claim,
        paper=paper,
        paper_value=paper_value,
        value=f"{np.mean(values):.1%}: {np.mean(points):+.1f} points on {against_name}",
        baseline=f"{bound:+g} points on {against_name}, {np.mean(against):.1%}",
        seeds=seeds,
        spread=f"sd {np.std(points):.2g} points",
        holds=bool(np.mean(points) >= bound - 1e-9),  # 88 % is 8 points above 80 %
    )
