"""VNN-LIB text, and answers for properties: proofs, counter-examples and neither."""

import gzip
from fractions import Fraction

import jax
import numpy as np
import pytest

from jaxml import verify
from jaxml.verify import search, vnnlib

TEXT = """; a property
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (>= X_0 -0.1)) (assert (<= X_0 0.3))
(assert (or (and (<= X_1 1) (>= X_1 0.5) (<= Y_0 Y_1))
            (and (<= X_1 2) (>= X_1 1.5) (>= Y_0 2.5) (<= (+ Y_0 (* 2.0 Y_1)) (- 1.0 Y_1)))))
"""


def test_a_property_is_a_list_of_conjunctions():
    first, second = verify.parse_vnnlib(TEXT)
    np.testing.assert_array_equal(first.spec.weight, [[1, -1]])
    np.testing.assert_array_equal(second.spec.weight, [[-1, 0], [1, 3]])
    np.testing.assert_array_equal(second.spec.offset, [2.5, -1])
    np.testing.assert_array_equal(first.box.upper[1:], [1])
    np.testing.assert_array_equal(second.box.lower[1:], [1.5])
    # Decimals that float64 does not hold are rounded outward.
    assert Fraction(first.box.lower[0]) <= Fraction("-0.1")
    assert Fraction(first.box.upper[0]) >= Fraction("0.3")


def test_files_may_be_compressed(tmp_path):
    plain, packed = tmp_path / "p.vnnlib", tmp_path / "p.vnnlib.gz"
    plain.write_text(TEXT)
    packed.write_bytes(gzip.compress(TEXT.encode()))
    for a, b in zip(verify.load_vnnlib(plain), verify.load_vnnlib(packed), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        verify.load_vnnlib(tmp_path / "q.vnnlib")


DECLARED = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"
BOXED = DECLARED + "".join(f"(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(2))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("(assert (<= X_0 1)", ValueError, "a closing parenthesis is missing"),
        ("(assert (<= X_0 1)))", ValueError, "a closing parenthesis too many"),
        ("(declare-network f)", ValueError, "no VNN-LIB 1.0: .declare-network f."),
        ("", ValueError, "must declare inputs X_0"),
        (DECLARED + "(assert (<= X_0 1))", ValueError, "X_0 needs a lower and an upper bound"),
        (BOXED + "(assert (<= Y_1 1))", ValueError, "Y_1 is not declared"),
        (BOXED + "(assert (= Y_0 1))", ValueError, "no VNN-LIB 1.0 assertion: .= Y_0 1."),
        (BOXED + "(assert (<= Y_0 Z_1))", ValueError, "neither a number nor X_i or Y_i: Z_1"),
        (BOXED + "(assert (<= Y_0 (* Y_0 Y_0)))", ValueError, "no linear term"),
        (BOXED + "(assert (>= X_0 2))", ValueError, "the input box is empty"),
        (BOXED + "(assert (<= X_0 X_1))", NotImplementedError, "an assertion over X_0, X_1"),
        (BOXED + "(assert (<= X_0 Y_0))", NotImplementedError, "an assertion over X_0, Y_0"),
        (BOXED + "(assert (<= 1 (* 0.1 Y_0)))", NotImplementedError, "coefficient -1/10 of Y_0"),
        (BOXED + f"(assert (and {'(or (<= Y_0 1) (>= Y_0 2))' * 15}))", NotImplementedError,
         "more than 20000 conjunctions"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(text, error, message):
    with pytest.raises(error, match=message):
        verify.parse_vnnlib(text)


def hat(height):
    """A network of one input with a spike of this height in the middle: sampling misses it."""
    return (
        verify.Dense(np.array([[1.0], [1.0], [1.0], [0.0], [0.0]]) * 1000,
                     np.array([-499.0, -500.0, -501.0, 0, 0])),
        verify.Dense(np.array([[height, -2 * height, height, 0, 0]]), np.array([-1.0])),
    )  # fmt: skip


def case(net, lower, upper):
    """Asks for an input at which the output is at least 0."""
    box = verify.Box(np.array(lower), np.array(upper))
    n = net[-1].n_out
    return verify.Case(box, verify.Spec(-np.eye(1, n), np.zeros(1)))


def test_answers_with_proof_and_with_point():
    key = jax.random.key(0)
    low, high = hat(0.5), hat(1.5)
    proved = verify.decide(key, low, [case(low, [0.0], [1.0])], timeout=60, n_steps=20)
    assert proved.result == "unsat" and proved.x is None and proved.lower >= 0
    found = verify.decide(key, high, [case(high, [0.49], [0.51])], timeout=60, n_steps=20)
    assert found.result == "sat" and found.y[0] >= 0
    assert verify.network.apply_on_host(high, found.x)[0] >= 0
    text = vnnlib.counter_example_text(found.x, found.y)
    assert text.startswith("((X_0 0.") and "(Y_0 " in text


@pytest.mark.parametrize("timeout", [1e-6, 20.0])
def test_a_planted_counter_example_is_never_proved_away(timeout):
    # The spike is two thousandths wide, and barely reaches over 0.
    net = hat(1 + 1e-6)
    answer = verify.decide(
        jax.random.key(1), net, [case(net, [0.0], [1.0])], timeout=timeout, n_steps=20
    )
    assert answer.result in ("sat", "unknown")


def test_a_margin_that_only_rounding_separates_is_unknown():
    # The output is 0 everywhere, and every bound of it rounds.
    net = (
        verify.Dense(np.array([[0.1], [0.1], [0.3]]), np.array([0.1, 0.1, 0.3])),
        verify.Dense(np.array([[1.5, 1.5, -1.0]]), np.zeros(1)),
    )
    strict = verify.Case(
        verify.Box(np.zeros(1), np.ones(1)), verify.Spec(np.ones((1, 1)), np.array([1e-17]))
    )
    answer = verify.decide(jax.random.key(0), net, [strict], timeout=2, n_steps=5)
    assert answer.result != "unsat"


def test_a_bound_that_is_not_a_number_proves_nothing(monkeypatch):
    bound = search.zonodual_bound

    def overflowed(*args, **kwargs):
        return bound(*args, **kwargs)._replace(lower=np.full(1, np.nan))

    monkeypatch.setattr(search, "zonodual_bound", overflowed)
    net = hat(0.5)
    answer = verify.decide(
        jax.random.key(0), net, [case(net, [0.0], [1.0])], timeout=0.5, n_steps=2
    )
    assert answer.result == "unknown" and answer.lower == -np.inf


def test_a_case_needs_all_rows_and_every_case_is_refuted():
    rng = np.random.default_rng(0)
    net = (verify.Dense(rng.normal(size=(6, 2)), rng.normal(size=6)),
           verify.Dense(rng.normal(size=(2, 6)), np.zeros(2)))  # fmt: skip
    box = verify.Box(np.full(2, 0.2), np.full(2, 0.3))
    y = verify.network.apply_on_host(net, np.full(2, 0.25))
    far = verify.Spec(np.array([[1.0, 0.0], [0.0, 1.0]]), -y + np.array([10.0, 0.0]))
    near = verify.Spec(np.array([[1.0, 0.0], [0.0, 1.0]]), -y - 1.0)
    key = jax.random.key(0)
    refuted = verify.decide(key, net, [verify.Case(box, far)], timeout=30, n_steps=20)
    assert refuted.result == "unsat"  # the first row alone cannot be met
    met = verify.decide(key, net, [verify.Case(box, far), verify.Case(box, near)], timeout=30,
                        n_steps=20)  # fmt: skip
    assert met.result == "sat"
    # A replay that disagrees is no counter-example.
    refused = verify.decide(key, net, [verify.Case(box, near)], timeout=1e-6, n_steps=20,
                            replay=lambda x: np.full(2, 100.0))  # fmt: skip
    assert refused.result == "unknown"
    for arguments, message in (
        ({"timeout": 0.0}, "timeout must be positive, got 0.0"),
        ({"cases": []}, "cases must hold at least one conjunction"),
    ):
        with pytest.raises(ValueError, match=message):
            verify.decide(key, net, **{"cases": [verify.Case(box, far)], **arguments})
