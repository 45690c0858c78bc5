"""Answers for properties: ``unsat`` with a certificate, ``sat`` with a point, or neither."""

import functools
import heapq
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxml.core.types import Key
from jaxml.verify.attack import pgd
from jaxml.verify.network import Net, apply_on_host, matrix
from jaxml.verify.problem import Box, Spec, check_problem
from jaxml.verify.vnnlib import Case
from jaxml.verify.zonodual import zonodual_bound

_SPLIT_UP_TO = 64  # inputs


class Answer(NamedTuple):
    """What is known about a property.

    Attributes:
      result: ``"unsat"`` (no counter-example: the property holds, proved), ``"sat"`` (here is one)
        or ``"unknown"``.
      x: the counter-example, or None.
      y: the network's output there, as ``replay`` gave it.
      lower: the smallest over the cases of the certified bound of the case's best row; for
        ``"unsat"`` at least 0, which stands for a case that was refuted in pieces.
      n_boxes: boxes that were bounded.
      seconds: in all.
    """

    result: str
    x: np.ndarray | None
    y: np.ndarray | None
    lower: float
    n_boxes: int
    seconds: float


def decide(
    key: Key,
    net: Net,
    cases: Sequence[Case],
    *,
    timeout: float = 60.0,
    replay: Callable[[np.ndarray], np.ndarray] | None = None,
    n_steps: int = 200,
) -> Answer:
    """Looks for a counter-example, then for a proof that there is none, until time runs out.

    A case is refuted when one of its rows is certified positive on its box, in float64 with outward
    rounding; nothing else counts as a proof. Points are found by PGD and on the way. Networks of up
    to 64 inputs are cut along the input that matters most for as long as there is time; larger ones
    get one more attempt with boxes that the dual itself has tightened.

    Args:
      key: typed key of the attack.
      net: ``L`` layers.
      cases: from ``parse_vnnlib``.
      timeout: seconds; looked at between steps, so compilation can run over it.
      replay: the function that a counter-example has to convince, besides ``net``: the file's own
        evaluator, say.
      n_steps: of the first ascent.

    Returns:
      Answer.

    Raises:
      ValueError: ``timeout`` is not positive, no case, or one that does not fit the network.
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be positive, got {timeout}")
    if not cases:
        raise ValueError("cases must hold at least one conjunction, got none")
    clock = time.perf_counter()
    search = _Search(net, replay or functools.partial(apply_on_host, net), clock + timeout)
    boxes = _merge(cases)
    lower = []
    for box, spec, groups in boxes:
        check_problem(net, box, spec)
        attack = _attack(key, net, box, spec, groups)
        for x in attack:
            if search.try_point(x, box, spec, groups):
                return search.answer("sat", lower, clock)
    for box, spec, groups in boxes:
        refuted, value = search.refute(box, spec, groups, n_steps)
        lower.append(value)
        if search.found is not None:
            return search.answer("sat", lower, clock)
        if not refuted:
            return search.answer("unknown", lower, clock)
    return search.answer("unsat", lower, clock)


def _merge(cases: Sequence[Case]) -> list[tuple[Box, Spec, np.ndarray]]:
    """Puts the cases of one box together: its rows, and which rows belong to which case."""
    by_box: dict[bytes, list[Case]] = {}
    for case in cases:
        if not len(case.spec.offset):  # no condition on the output: every input is one
            zero = Spec(np.zeros((1, case.spec.weight.shape[1])), np.zeros(1))
            case = case._replace(spec=zero)
        by_box.setdefault(np.stack(case.box).tobytes(), []).append(case)
    merged = []
    for of_box in by_box.values():
        spec = Spec(*(np.concatenate(parts) for parts in
                      zip(*(case.spec for case in of_box), strict=True)))  # fmt: skip
        sizes = [len(case.spec.offset) for case in of_box]
        owner = np.repeat(np.arange(len(of_box)), sizes)
        merged.append((of_box[0].box, spec, owner[None] == np.arange(len(of_box))[:, None]))
    return merged


@functools.partial(jax.jit, static_argnames=("n_steps", "n_restarts"))
def _pgd(key, net, box, spec, groups, *, n_steps, n_restarts):
    return pgd(key, net, box, spec, groups=groups, n_steps=n_steps, n_restarts=n_restarts).x


def _attack(key, net, box, spec, groups) -> np.ndarray:
    arrays = jax.tree.map(np.asarray, (net, box, spec, groups))
    return np.asarray(_pgd(key, *arrays, n_steps=50, n_restarts=8), np.float64)


class _Search:
    def __init__(self, net: Net, replay, deadline: float):
        self.net, self.replay, self.deadline = net, replay, deadline
        self.found: tuple[np.ndarray, np.ndarray] | None = None
        self.n_boxes = 0

    def answer(self, result, lower, clock) -> Answer:
        x, y = self.found if self.found is not None else (None, None)
        seconds = time.perf_counter() - clock
        return Answer(result, x, y, float(min(lower, default=-np.inf)), self.n_boxes, seconds)

    def try_point(self, x, box, spec, groups) -> bool:
        """Keeps a point that both the network and the replay call a counter-example."""
        x = _inside(x, box)
        y = self.replay(x)
        for output in (apply_on_host(self.net, x), y):
            rows = spec.weight @ output + spec.offset
            if not any((rows[group] <= 0).all() for group in groups):
                return False
        self.found = (x, y)
        return True

    def refute(self, box, spec, groups, n_steps) -> tuple[bool, float]:
        """Refutes every case on a box, cutting it if need be."""
        value, result = self._bound(box, spec, groups, n_steps, 0)
        if value > 0 or self.found is not None:
            return value > 0, value
        if len(box.lower) > _SPLIT_UP_TO:
            if len(self.net) > 2 and time.perf_counter() < self.deadline:
                value = max(value, self._bound(box, spec, groups, n_steps, n_steps)[0])
            return value > 0, value
        heap = [(value, 0, box, result)]
        for count in range(1, 10**9):
            if not heap:
                return True, 0.0
            if time.perf_counter() > self.deadline:
                return False, heap[0][0]
            _, _, box, result = heapq.heappop(heap)
            for half in _halves(box, result):
                value, of_half = self._bound(half, spec, groups, 20, 0)
                if self.found is not None:
                    return False, value
                if value <= 0:
                    heapq.heappush(heap, (value, 2 * count + len(heap), half, of_half))
        return False, heap[0][0]

    def _bound(self, box, spec, groups, n_steps, layer_steps):
        """Returns the smallest over the cases of the best row's bound, and input sensitivities."""
        self.n_boxes += 1
        result = zonodual_bound(self.net, box, spec, n_steps=n_steps, layer_steps=layer_steps)
        lower = np.where(np.isnan(result.lower), -np.inf, result.lower)  # NaN proves nothing
        best = np.array([lower[group].max() for group in groups])
        worst = groups[int(best.argmin())]
        row = np.flatnonzero(worst)[int(lower[worst].argmax())]
        relus = result.certificate.relus
        rho = -relus[0].c1[row] if relus else spec.weight[row]
        slope = np.asarray(rho @ matrix(self.net[0]))
        if best.min() <= 0:
            self.try_point(np.where(slope > 0, *box), box, spec, groups)
        return float(best.min()), np.abs(slope)


def _halves(box: Box, sensitivity: np.ndarray) -> list[Box]:
    width = box.upper - box.lower
    i = int(np.argmax(np.where(width > 0, sensitivity * width + 1e-12 * width, -1)))
    middle = box.lower[i] + width[i] / 2
    lower, upper = box.lower.copy(), box.upper.copy()
    lower[i], upper[i] = middle, middle
    return [Box(box.lower, upper), Box(lower, box.upper)]


def _inside(x, box: Box) -> np.ndarray:
    """Rounds a point to float32 values, which files take, without leaving the box."""
    x = np.clip(np.asarray(x, np.float64), *box)
    near = x.astype(np.float32)
    near = np.where(near < box.lower, np.nextafter(near, np.float32(np.inf)), near)
    near = np.where(near > box.upper, np.nextafter(near, np.float32(-np.inf)), near)
    inside = (near >= box.lower) & (near <= box.upper)
    return np.where(inside, near.astype(np.float64), x)
