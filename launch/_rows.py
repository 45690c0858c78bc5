"""Rows of a study, one NamedTuple a measurement, picked and put together by their fields."""

from collections.abc import Iterator, Sequence
from typing import Any


def select(rows: Sequence[Any], **wanted: Any) -> list[Any]:
    """Picks the rows whose fields have these values."""
    return [row for row in rows if all(getattr(row, name) == v for name, v in wanted.items())]


def grouped(rows: Sequence[Any], *fields: str) -> Iterator[tuple[tuple, list[Any]]]:
    """Yields the values of the fields and the rows that have them, in the order of the rows."""
    for key in dict.fromkeys(tuple(getattr(row, field) for field in fields) for row in rows):
        yield key, select(rows, **dict(zip(fields, key, strict=True)))
