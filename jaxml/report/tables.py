"""Tables as lists of dicts, a dict a row: Markdown to read, CSV to compute with."""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def columns(rows: Rows) -> list[str]:
    """Returns the union of the rows' keys, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def cell(value: Any) -> str:
    """Writes a value to be read: four significant digits, yes and no, nothing for None."""
    value = value.item() if hasattr(value, "item") else value  # a NumPy or jax scalar
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def numeric_columns(rows: Rows) -> set[str]:
    """Returns the columns that hold numbers alone, to be set flush right."""
    return {name for name in columns(rows) if all(_is_number(row.get(name)) for row in rows)}


def to_markdown(rows: Rows) -> str:
    """Writes rows as a Markdown table; a key that a row lacks is an empty cell.

    Args:
      rows: dicts of scalars or text; no row gives an empty string.

    Returns:
      The table, with floats in four significant digits.
    """
    if not rows:
        return ""
    names = columns(rows)
    numeric = numeric_columns(rows)
    rule = ["--:" if name in numeric else "---" for name in names]
    body = [[cell(row.get(name)) for name in names] for row in rows]
    escaped = [[c.replace("|", "\\|").replace("\n", " ") for c in line] for line in [names, *body]]
    return "".join(f"| {' | '.join(c)} |\n" for c in [escaped[0], rule, *escaped[1:]])


def write_csv(path: str | pathlib.Path, rows: Rows) -> None:
    """Writes rows as CSV with a header and every digit; a key that a row lacks stays empty.

    Args:
      path: file to write, in a folder that exists.
      rows: dicts of scalars or text.
    """
    plain = [{k: v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in rows]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(rows))
        writer.writeheader()
        writer.writerows(plain)


def _is_number(value: Any) -> bool:
    value = value.item() if hasattr(value, "item") else value
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
