"""Coordinate ascent on sums of bilinear assignment problems, the search behind all matchings.

The objective is a sum of terms, each linear in the permutation of any one group while the others
are held. Git Re-Basin's weight matching (its Algorithm 1) has one term a parameter; activation
matching has one term a feature tensor.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from jaxml.merging.assignment import linear_sum_assignment

HostPermutations = dict[str, np.ndarray]


class Term(Protocol):
    """One summand.

    Attributes:
      groups: the group of each slot; a group may hold two slots of one term.
    """

    groups: tuple[str, ...]

    def linear(self, slot: int, perms: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the table ``M`` ``[n, n]``: ``M[i, j]`` for B's unit ``j`` in place ``i``.

        The other slots are permuted by ``perms``. The caller must not change the array.
        """

    def value(self, perms: Mapping[str, np.ndarray]) -> float:
        """Returns the term at ``perms``, in float64."""


@dataclasses.dataclass
class Ascent:
    """Outcome of one ascent.

    Attributes:
      perms: group name to permutation, the best found.
      objective: sum of the terms there, float64.
      history: objective at the start and after each pass.
      n_assignments: assignment problems solved.
    """

    perms: HostPermutations
    objective: float
    history: list[float]
    n_assignments: int


class _Neighbourhood:
    """Everything about one group: its terms, what depends on nothing, and what it disturbs."""

    def __init__(self, name: str, size: int, terms: Sequence[Term]):
        self.name, self.size = name, size
        mine = [t for t in terms if name in t.groups]
        slots = [(t, s) for t in mine for s, g in enumerate(t.groups) if g == name]
        self.constant = np.zeros((size, size), np.float64)
        for term, slot in slots:
            if len(term.groups) == 1:
                self.constant += term.linear(slot, {})
        self.varying = [(t, s) for t, s in slots if len(t.groups) > 1]
        # A group on two axes of one term makes the linear model inexact.
        self.quadratic = [t for t in mine if t.groups.count(name) > 1]
        self.disturbs = {g for t in mine for g in t.groups if g != name}
        if self.quadratic:
            self.disturbs.add(name)

    def linear(self, perms) -> np.ndarray:
        total = self.constant.copy()
        for term, slot in self.varying:
            total += term.linear(slot, perms)
        return total

    def gain(self, matrix, old, new, perms) -> tuple[float, float]:
        """Returns the rise of the true objective when ``old`` becomes ``new``, and its scale."""
        rows = np.arange(self.size)
        before = matrix[rows, old]
        rise = float((matrix[rows, new] - before).sum())
        if self.quadratic:
            moved = {**perms, self.name: new}
            for term in self.quadratic:
                for slot, group in enumerate(term.groups):
                    if group == self.name:
                        model = term.linear(slot, perms)
                        rise -= float((model[rows, new] - model[rows, old]).sum())
                rise += term.value(moved) - term.value(perms)
        return rise, float(np.abs(before).sum())


def coordinate_ascent(
    rng: np.random.Generator,
    terms: Sequence[Term],
    sizes: Mapping[str, int],
    *,
    max_iter: int,
    rtol: float,
    inits: Sequence[Mapping[str, np.ndarray]],
    callback: Callable[[int, HostPermutations, float], None] | None = None,
) -> Ascent:
    """Maximises the sum of ``terms`` from each start in ``inits`` and keeps the best.

    Each pass visits the groups in a fresh random order and re-assigns one at a time. A group is
    skipped while nothing that it depends on has changed, and a step counts only when the true
    objective rises by more than ``rtol`` of the group's own share of it, so rounding cannot keep
    the search alive and a layer of small weights is not lost beside one of large weights.

    Args:
      rng: visiting order.
      terms: summands; every group must appear in at least one, or keeps its start.
      sizes: group name to number of units.
      max_iter: passes per start.
      rtol: smallest rise that counts, relative to ``sum_i |M[i, p[i]]|`` of the group.
      inits: starts, each with a permutation for every group.
      callback: ``callback(n_pass, perms, objective)`` after each pass.

    Returns:
      Ascent.
    """
    groups = {name: _Neighbourhood(name, size, terms) for name, size in sizes.items()}
    best: Ascent | None = None
    n_assignments = 0
    for init in inits:
        perms = {name: np.asarray(init[name], np.int32) for name in sizes}
        objective = float(sum(term.value(perms) for term in terms))
        history, waiting = [objective], set(sizes)
        for n_pass in range(max_iter):
            for name in rng.permutation(sorted(sizes)):
                if name not in waiting:
                    continue
                waiting.discard(name)
                group = groups[name]
                matrix = group.linear(perms)
                proposal = linear_sum_assignment(matrix, maximize=True)
                n_assignments += 1
                rise, scale = group.gain(matrix, perms[name], proposal, perms)
                if rise > rtol * scale:
                    perms = {**perms, name: proposal}
                    objective += rise
                    waiting |= group.disturbs
            history.append(objective)
            if callback is not None:
                callback(n_pass, perms, objective)
            if not waiting:
                break
        # Rises are summed from single-precision tables: state the objective itself once more.
        objective = float(sum(term.value(perms) for term in terms))
        if best is None or objective > best.objective:
            best = Ascent(perms, objective, history, 0)
    best.n_assignments = n_assignments
    return best
