import functools

import pytest

from jaxml.data import text


@pytest.fixture(scope="session")
def corpus():
    """Returns the first bytes of the standard library, as one array."""

    @functools.cache
    def first(n):
        return text.load("stdlib", max_bytes=n + 100_000).text[:n]

    return first
