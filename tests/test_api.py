"""The public names of every subpackage: they exist, and each says what it is."""

import importlib
import inspect

import pytest

import jaxml

SUBPACKAGES = [name for name in jaxml.__all__ if name not in ("core", "compat")]


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_every_public_name_exists_and_is_documented(name):
    package = importlib.import_module(f"jaxml.{name}")
    assert package.__doc__
    assert len(set(package.__all__)) == len(package.__all__)
    for public in package.__all__:
        value = getattr(package, public)
        if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
            assert (value.__doc__ or "").strip(), f"jaxml.{name}.{public} has no docstring"
        if inspect.isfunction(value) and value.__module__.startswith("jaxml"):
            assert not public.startswith("_")
