"""Tables: what is read has four digits, what is computed with has all."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import report

ROWS = [
    {"method": "naive | sum", "barrier": 1 / 3, "seeds": 3, "holds": True},
    {"method": "match\ned", "barrier": np.float32(1e-7), "note": None},
]


def test_markdown_has_four_digits_and_one_line_a_row():
    assert report.to_markdown(ROWS).splitlines() == [
        "| method | barrier | seeds | holds | note |",
        "| --- | --: | --: | --- | --: |",
        "| naive \\| sum | 0.3333 | 3 | yes |  |",
        "| match ed | 1e-07 |  |  |  |",
    ]
    assert report.to_markdown([]) == ""


def test_csv_keeps_every_digit(tmp_path):
    path = tmp_path / "t.csv"
    rows = [*ROWS, {"barrier": jnp.float32(0.5), "seeds": float("nan")}]
    report.write_csv(path, rows)
    with path.open(newline="") as file:
        back = list(csv.DictReader(file))
    assert [float(row["barrier"]) for row in back] == [1 / 3, float(np.float32(1e-7)), 0.5]
    assert back[0]["method"] == "naive | sum" and back[1]["method"] == "match\ned"
    assert back[1]["seeds"] == "" and back[2]["seeds"] == "nan"


def test_an_array_is_no_cell():
    with pytest.raises(ValueError):
        report.to_markdown([{"a": np.zeros(2)}])
