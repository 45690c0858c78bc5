"""The import floors: who may import whom, read off the syntax trees."""

import ast
import pathlib
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

SHARED = {"core", "compat", "data", "nn", "io", "train", "ntk"}
DOMAINS = {"merging", "backdoor", "language", "curation", "verify", "privacy"}
# What each subpackage of jaxml may import besides itself.
FLOORS = {
    "core": set(),
    "compat": set(),
    "report": set(),
    **{name: {"core"} for name in ("data", "nn", "io")},
    **{name: {"core", "compat", "data", "nn", "io"} for name in ("train", "ntk")},
    **{name: SHARED for name in DOMAINS},
}
# What comes from outside, where that is limited; the standard library is free.
OUTSIDE = {
    "core": {"jax", "jaxtyping", "numpy", "scipy"},
    "compat": {"jax", "jaxtyping", "numpy", "scipy", "neural_tangents"},
    "report": {"numpy", "matplotlib"},
    "configs": {"ml_collections"},
}
HEAVY = {"matplotlib", "sklearn", "orbax", "tensorflow_datasets"}
BANNED = ("tensorflow", "clu", "jax._src")


def imports(source: str, module: str):
    """Yields (imported name, is at module level) of a module's source; relative ones resolved."""

    def walk(node, top):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parents = module.split(".")[: -child.level]
                    base = ".".join([*parents, base]).strip(".")
                # "from jaxml import data" imports jaxml.data as much as "import jaxml.data" does.
                yield from ((f"{base}.{alias.name}", top) for alias in child.names)
            functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
            yield from walk(child, top and not isinstance(child, functions))

    return walk(ast.parse(source), True)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def breaches(source: str, module: str) -> list[str]:
    """Names what a module imports against the rules."""
    package, _, rest = module.partition(".")
    floor = rest.partition(".")[0] if package == "jaxml" else package
    found = []
    for name, top in imports(source, module):
        head, second = (*name.split("."), "")[:2]
        local = head in ("jaxml", "launch", "configs", "tests", "benchmarks")
        if any(within(name, banned) for banned in BANNED):
            found.append(f"{name} is banned")
        elif package == "jaxml" and top and head in HEAVY:
            found.append(f"{name} at module level")
        elif package == "jaxml" and head == "jaxml":
            # The package's own __init__, and its version, stand below all floors.
            if floor and second not in {floor, "__version__"} | FLOORS[floor]:
                found.append(f"{name} is on no floor below {floor}")
        elif package == "configs" and (
            within(name, ".".join(module.split(".")[:2])) or name.startswith("configs._")
        ):
            continue  # a paper's configs may start from one another, or from shared fields
        elif package in ("jaxml", "configs") and local:
            found.append(f"{name} from {package}")
        elif floor in OUTSIDE and head not in {*OUTSIDE[floor], *sys.stdlib_module_names}:
            found.append(f"{name} is not for {floor}")
    return found


def modules():
    for package in ("jaxml", "launch", "configs", "tests", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield pytest.param(path, name, id=name)


@pytest.mark.parametrize(("path", "module"), list(modules()))
def test_every_module_keeps_its_floor(path, module):
    if module.startswith("jaxml.") and module != "jaxml.__init__":
        assert module.split(".")[1] in FLOORS, "a new subpackage needs its place in FLOORS"
    assert breaches(path.read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source", "n_breaches"),
    [
        ("jaxml.core.a", "import jax, numpy\nfrom jaxml.core import tree\nfrom . import rng", 0),
        ("jaxml.core.a", "import flax", 1),
        ("jaxml.core.a", "import jaxml.nn\nfrom jaxml import nn\nfrom ..nn import mlp", 3),
        ("jaxml.core.a", "from .. import nn", 1),
        ("jaxml.data.a", "from jaxml.core import tree\nimport sklearn", 1),
        ("jaxml.data.a", "def f():\n    import sklearn.datasets\n    from jaxml import train", 1),
        ("jaxml.data.a", "if True:\n    import orbax.checkpoint as ocp", 1),
        ("jaxml.train.a", "from jaxml.data import batching\nimport jaxml.ntk", 1),
        ("jaxml.merging.a", "from jaxml import ntk, train\nfrom jaxml.backdoor import ntba", 1),
        ("jaxml.merging.a", "from jaxml import report", 1),
        ("jaxml.merging.a", "import launch._app\nfrom configs import git_rebasin", 2),
        ("jaxml.report.a", "from jaxml.core import tree\nimport jax\nimport html, numpy", 2),
        ("jaxml.report.a", "def f():\n    import matplotlib", 0),
        ("jaxml.__init__", "import importlib", 0),
        (
            "configs.p.a",
            "import ml_collections\nfrom ml_collections import ConfigDict\nimport math",
            0,
        ),
        ("configs.p.a", "from configs.p import b\nfrom configs.q import c", 1),
        ("configs.p.a", "import jax\nfrom jaxml import data\nfrom launch import _app", 3),
        ("launch.a", "import jax, matplotlib, rich\nfrom jaxml import merging, backdoor", 0),
        ("launch.a", "def f():\n    import tensorflow as tf\n    from clu import metrics", 2),
        ("launch.a", "import tensorflow_datasets, clustering", 0),
        ("jaxml.nn.a", "import jax._src.core\nfrom jax._src import core\nfrom jax import _src", 3),
    ],
)
def test_the_rules_find_what_breaks_them(module, source, n_breaches):
    assert len(breaches(textwrap.dedent(source), module)) == n_breaches
