"""Properties in VNN-LIB 1.0: what a counter-example would have to satisfy.

    (declare-const X_0 Real) (declare-const Y_0 Real) (declare-const Y_1 Real)
    (assert (>= X_0 -0.5)) (assert (<= X_0 0.5))
    (assert (or (and (<= Y_0 Y_1)) (and (>= Y_1 2.5))))

Numbers are read exactly and rounded so that the set of counter-examples only grows.
"""

import functools
import gzip
import itertools
import os
import pathlib
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from jaxml.verify.problem import Box, Spec, check_box

_MOST = 20000  # conjunctions


class Case(NamedTuple):
    """One conjunction: a counter-example lies in ``box`` and has every row of ``spec`` at most 0.

    Attributes:
      box: of the inputs.
      spec: rows ``weight @ y + offset``.
    """

    box: Box
    spec: Spec


def load_vnnlib(path: str | os.PathLike) -> list[Case]:
    """Reads a property from a file, ``.gz`` or plain; see ``parse_vnnlib``.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    data = pathlib.Path(path).read_bytes()
    text = (gzip.decompress(data) if str(path).endswith(".gz") else data).decode()
    return parse_vnnlib(text)


def parse_vnnlib(text: str) -> list[Case]:
    """Reads a property: the conjunctions of which one has to hold for a counter-example.

    Inputs need bounds from both sides; atoms are linear in the outputs, or bound one input.

    Args:
      text: VNN-LIB 1.0.

    Returns:
      At least one case. The property holds when none has a solution.

    Raises:
      ValueError: text that is no VNN-LIB 1.0, an input without a bound, an empty input box.
      NotImplementedError: an atom over several inputs or over inputs and outputs, a coefficient
        that float64 does not hold, or too many disjunctions.
    """
    counts, asserts = {"X": 0, "Y": 0}, []
    for form in _forms(text):
        match form:
            case ["declare-const", str(name), "Real"] if re.fullmatch(r"[XY]_\d+", name):
                kind, index = name.split("_")
                counts[kind] = max(counts[kind], int(index) + 1)
            case ["assert", expression]:
                asserts.append(expression)
            case _:
                raise ValueError(f"this is no VNN-LIB 1.0: {_text(form)}")
    if not counts["X"] or not counts["Y"]:
        raise ValueError("VNN-LIB text must declare inputs X_0, ... and outputs Y_0, ...")
    choices = [_disjuncts(expression) for expression in asserts]
    if functools.reduce(lambda n, c: n * len(c), choices, 1) > _MOST:
        raise NotImplementedError(f"a property of more than {_MOST} conjunctions")
    cases = [
        _case(list(itertools.chain(*chosen)), counts) for chosen in itertools.product(*choices)
    ]
    return cases


def _forms(text: str) -> list:
    """Parses s-expressions into nested lists of words."""
    stack: list[list] = [[]]
    for word in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text)):
        if word == "(":
            stack.append([])
        elif word == ")":
            if len(stack) == 1:
                raise ValueError("this is no VNN-LIB: a closing parenthesis too many")
            form = stack.pop()
            stack[-1].append(form)
        else:
            stack[-1].append(word)
    if len(stack) != 1:
        raise ValueError("this is no VNN-LIB: a closing parenthesis is missing")
    return stack[0]


def _text(form) -> str:
    return form if isinstance(form, str) else f"({' '.join(map(_text, form))})"


def _disjuncts(expression) -> list[list]:
    """Writes an expression as a disjunction of conjunctions of atoms."""
    match expression:
        case ["or", *parts]:
            return [conjunction for part in parts for conjunction in _disjuncts(part)]
        case ["and", *parts]:
            products = itertools.product(*map(_disjuncts, parts))
            # One more than are taken, so that the caller sees that there are too many.
            some = itertools.islice(products, _MOST + 1)
            return [list(itertools.chain(*chosen)) for chosen in some]
        case ["<=" | "<", left, right]:
            return [[_difference(left, right)]]
        case [">=" | ">", left, right]:
            return [[_difference(right, left)]]
    raise ValueError(f"this is no VNN-LIB 1.0 assertion: {_text(expression)}")


Linear = dict[str, Fraction]  # coefficients by name, the constant under ""


def _difference(left, right) -> Linear:
    return _add(_linear(left), _linear(right), -1)


def _add(a: Linear, b: Linear, factor: int = 1) -> Linear:
    return {name: a.get(name, 0) + factor * b.get(name, 0) for name in {**a, **b}}


def _linear(term) -> Linear:
    match term:
        case str():
            if re.fullmatch(r"[XY]_\d+", term):
                return {term: Fraction(1)}
            try:
                return {"": Fraction(term)}
            except ValueError:
                raise ValueError(f"this is neither a number nor X_i or Y_i: {term}") from None
        case ["+", *parts]:
            return functools.reduce(_add, map(_linear, parts))
        case ["-", part]:
            return _add({}, _linear(part), -1)
        case ["-", first, *parts]:
            return functools.reduce(lambda a, b: _add(a, b, -1), map(_linear, parts),
                                    _linear(first))  # fmt: skip
        case ["*", a, b]:
            a, b = _linear(a), _linear(b)
            a, b = (b, a) if set(a) == {""} else (a, b)
            if set(b) == {""}:
                return {name: value * b[""] for name, value in a.items()}
    raise ValueError(f"this is no linear term: {_text(term)}")


def _case(atoms: Iterable[Linear], counts) -> Case:
    lower, upper = (np.full(counts["X"], end) for end in (-np.inf, np.inf))
    rows, offsets = [], []
    for atom in atoms:
        names = {name for name, value in atom.items() if name and value}
        constant = atom.get("", Fraction(0))
        for name in names:
            kind, index = name.split("_")
            if int(index) >= counts[kind]:
                raise ValueError(f"{name} is not declared")
        if len(names) == 1 and (name := next(iter(names))).startswith("X"):
            i, bound = int(name[2:]), -constant / atom[name]
            if atom[name] > 0:
                upper[i] = min(upper[i], _round(bound, up=True))
            else:
                lower[i] = max(lower[i], _round(bound, up=False))
        elif all(name.startswith("Y") for name in names):
            row = np.zeros(counts["Y"])
            for name in names:
                row[int(name[2:])] = float(atom[name])
                if Fraction(row[int(name[2:])]) != atom[name]:
                    raise NotImplementedError(f"the coefficient {atom[name]} of {name} is inexact")
            rows.append(row)
            offsets.append(_round(constant, up=False))
        else:
            raise NotImplementedError(
                f"an assertion over {', '.join(sorted(names))}: only single inputs, or outputs"
            )
    if (bad := np.flatnonzero(~np.isfinite(upper - lower))).size:
        raise ValueError(f"X_{bad[0]} needs a lower and an upper bound")
    check_box(Box(lower, upper), name="the input box")
    weight = np.array(rows).reshape(len(rows), counts["Y"])
    return Case(Box(lower, upper), Spec(weight, np.array(offsets, float)))


def _round(value: Fraction, *, up: bool) -> float:
    nearest = float(value)
    if up and Fraction(nearest) < value:
        return float(np.nextafter(nearest, np.inf))
    if not up and Fraction(nearest) > value:
        return float(np.nextafter(nearest, -np.inf))
    return nearest


def counter_example_text(x: np.ndarray, y: np.ndarray) -> str:
    """Writes a counter-example the way VNN-COMP takes it: ``((X_0 v) ... (Y_0 v) ...)``."""
    lines = [f"({name}_{i} {float(v)!r})" for name, vs in (("X", x), ("Y", y))
             for i, v in enumerate(vs)]  # fmt: skip
    return "(" + "\n".join(lines) + ")\n"
