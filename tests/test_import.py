"""What an import costs: nothing heavy, and never TensorFlow."""

import subprocess
import sys

LIGHT = """
import sys
import jaxml
assert not {"jax", "numpy", "flax", "matplotlib", "sklearn", "orbax"} & set(sys.modules)
import jaxml.report, launch._app
assert not {"jax", "flax", "matplotlib", "sklearn", "orbax"} & set(sys.modules)
assert jaxml.report.Claim and "report" in dir(jaxml)
try:
    jaxml.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""

WHOLE = """
import importlib, pkgutil, sys
import jaxml
names = [m.name for m in pkgutil.walk_packages(jaxml.__path__, "jaxml.")]
assert "jaxml.core.tree" in names
for name in names:
    importlib.import_module(name)
heavy = {"tensorflow", "clu", "matplotlib", "sklearn", "orbax", "tensorflow_datasets"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""

CONFIGS = """
import importlib, pkgutil, sys
import configs
names = [m.name for m in pkgutil.walk_packages(configs.__path__, "configs.") if not m.ispkg]
names = [name for name in names if "._" not in name]  # fields that several cards share
assert "configs.git_rebasin.tiny" in names
for name in names:
    module = importlib.import_module(name)
    assert len(module.get_config())
    assert "Command:" in module.__doc__ and "expected" in module.__doc__.lower()
assert not {"jax", "flax", "tensorflow", "jaxml"} & set(sys.modules)
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_jaxml_imports_no_jax():
    run(LIGHT)


def test_importing_all_of_jaxml_imports_nothing_heavy():
    run(WHOLE)


def test_every_config_loads_without_jax_and_is_a_card():
    run(CONFIGS)
