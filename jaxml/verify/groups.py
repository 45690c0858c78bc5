"""Relu programs over larger groups of coordinates, as mixed-integer programs: ZD-MIP."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse

from jaxml.verify.outward import Certificate, PairBounds
from jaxml.verify.partitions import merge_groups
from jaxml.verify.problem import Box
from jaxml.verify.zonotope import Zonotope

# HiGHS works with feasibility tolerances of 1e-7 for rows and reduced costs, and takes for integral
# what is within 1e-6 of an integer.
_TOLERANCE = 1e-6


class MipBound(NamedTuple):
    """What a solver has found about a minimum.

    Attributes:
      lower: its dual bound, less what its tolerances may have made; -inf if it has none.
      upper: its incumbent, inf if it has none.
    """

    lower: float
    upper: float


def relu_program_mip(z: Zonotope, box: Box, c1, c2, *, time_limit: float = 10.0) -> MipBound:
    """Minimises ``c1^T z + c2^T relu(z)`` over zonotope and box with scipy's HiGHS.

    A binary variable says on which side of 0 a coordinate is, where the box leaves that open and
    ``c2 < 0``; where ``c2 >= 0`` the minimum makes ``relu`` tight by itself. The lower bound is the
    solver's dual bound and never its incumbent, so it holds when time runs out.

    Args:
      z: ``[n, m]``; columns that are zero cost nothing.
      box: of the same coordinates.
      c1: ``[n]``.
      c2: ``[n]``.
      time_limit: seconds.

    Returns:
      MipBound; ``lower`` has 1e-6 times the sum of all variables' ranges subtracted, times the
      largest coefficient if that is above 1.
    """
    center, generators = (np.asarray(a, np.float64) for a in z)
    low, high, c1, c2 = (np.asarray(a, np.float64) for a in (*box, c1, c2))
    generators = generators[:, np.abs(generators).max(0) > 0]
    m = generators.shape[1]
    open_ = np.flatnonzero((low < 0) & (high > 0))
    binary = open_[c2[open_] < 0]
    linear = c1 + np.where(low >= 0, c2, 0.0)  # z's coefficients where relu is z or 0
    n_x, n_d = len(open_), len(binary)
    cost = np.r_[linear @ generators, c2[open_], np.zeros(n_d)]
    upper = np.r_[np.ones(m), high[open_], np.ones(n_d)]
    lower = np.r_[-np.ones(m), np.zeros(n_x + n_d)]

    def rows(index, of_x, of_d):
        return scipy.sparse.hstack([scipy.sparse.csr_array(generators[index]), of_x, of_d])

    def blank(shape):
        return scipy.sparse.csr_array(shape)

    picks = scipy.sparse.eye_array(n_x).tocsr()
    of_binary = picks[np.isin(open_, binary)]
    constraints = [
        # The box, and x >= z.
        (rows(slice(None), blank((len(low), n_x)), blank((len(low), n_d))), low - center,
         high - center),
        (rows(open_, -picks, blank((n_x, n_d))), np.full(n_x, -np.inf), -center[open_]),
    ]  # fmt: skip
    if n_d:
        # x <= z - l (1 - d) and x <= u d.
        below = scipy.sparse.diags_array(low[binary])
        above = scipy.sparse.diags_array(high[binary])
        no_z = scipy.sparse.csr_array((n_d, m))
        constraints += [
            (rows(binary, -of_binary, below), low[binary] - center[binary], np.full(n_d, np.inf)),
            (scipy.sparse.hstack([no_z, of_binary, -above]), np.full(n_d, -np.inf), np.zeros(n_d)),
        ]  # fmt: skip
    solution = scipy.optimize.milp(
        cost,
        integrality=np.r_[np.zeros(m + n_x), np.ones(n_d)],
        bounds=scipy.optimize.Bounds(lower, upper),
        constraints=[scipy.optimize.LinearConstraint(*c) for c in constraints if c[0].shape[0]],
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )
    constant = float(linear @ center)
    bound = getattr(solution, "mip_dual_bound", None)
    if bound is None:
        bound = solution.fun if solution.status == 0 else -np.inf
    scale = np.abs(np.r_[1.0, cost, c1, c2]).max()
    slack = _TOLERANCE * float(scale * ((upper - lower).sum() + 1))
    incumbent = np.inf if solution.fun is None else float(solution.fun) + constant
    return MipBound(float(bound) + constant - slack, incumbent)


def merged_bound(
    certificate: Certificate, *, sizes: Sequence[int], time_limit: float = 10.0, rows=None
) -> np.ndarray:
    """Raises a certified dual by solving merged groups of pairs at the same multipliers.

    A group's program replaces the sum over its pairs where it is larger. The rest of the bound is
    outward; the solver's part is as sound as its tolerances, which are subtracted.

    Args:
      certificate: from ``certify``.
      sizes: most coordinates of a group for each relu, the first one first; 0 leaves its pairs.
      time_limit: seconds for each group.
      rows: which rows of the spec to raise; None is all.

    Returns:
      Lower bounds ``[t]``; the certificate's own where ``rows`` leaves them out.

    Raises:
      ValueError: as many sizes as relus are needed, each 0 or at least 2.
    """
    if len(sizes) != len(certificate.relus):
        raise ValueError(f"sizes must hold {len(certificate.relus)} numbers, got {len(sizes)}")
    lower = certificate.lower.copy()
    for size, relu in zip(sizes, certificate.relus, strict=True):
        if size:
            z = Zonotope(relu.center, relu.generators)
            for group in merge_groups(z, relu.pairs, size):
                for t in range(len(lower)) if rows is None else rows:
                    lower[t] += _gain(relu, group, t, time_limit)
    return lower


def _gain(relu: PairBounds, group: np.ndarray, t: int, time_limit: float) -> float:
    members = relu.pairs[group].ravel()
    members = members[members < len(relu.center)]
    radius = relu.radius[members]
    box = Box(
        np.nextafter(relu.box.lower[members] - radius, -np.inf),
        np.nextafter(relu.box.upper[members] + radius, np.inf),
    )
    z = Zonotope(relu.center[members], relu.generators[members])
    found = relu_program_mip(
        z, box, relu.c1[t, members], relu.c2[t, members], time_limit=time_limit
    )
    pairs = relu.lower[t, group].sum()
    return max(0.0, found.lower - pairs - 1e-12 * (1 + abs(pairs)))
