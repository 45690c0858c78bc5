"""The notebooks are stripped, use only names that exist, and run."""

import ast
import importlib
import inspect
import os
import pathlib
import re
import types

import jax
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
OURS = ("jaxml", "launch", "configs")


def code_of(path):
    """Returns the code of a notebook, with what only a notebook understands left out."""
    cells = nbformat.read(path, as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    return re.sub(r"^( *)[!%].*$", r"\1pass", "\n".join(sources), flags=re.M)


def import_name(module, name):
    """Imports a name of a module, which may be a module itself."""
    owner = importlib.import_module(module)
    return (
        getattr(owner, name)
        if hasattr(owner, name)
        else importlib.import_module(f"{module}.{name}")
    )


def resolve(node, bound):
    """Returns what a dotted name stands for, as far as it is ours, or None.

    Raises:
      AttributeError: a module of ours has no such name.
    """
    if isinstance(node, ast.Name):
        return bound.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, bound)
        return getattr(owner, node.attr) if isinstance(owner, types.ModuleType) else None
    return None


def mistakes(source):
    """Lists names of ours that do not exist, and arguments that a function does not take."""
    tree, bound, found = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in OURS:
            for alias in node.names:
                try:
                    bound[alias.asname or alias.name] = import_name(node.module, alias.name)
                except ImportError:
                    found.append(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        try:
            if isinstance(node, ast.Attribute):
                resolve(node, bound)
            function = resolve(node.func, bound) if isinstance(node, ast.Call) else None
        except AttributeError as error:
            found.append(str(error))
            continue
        if callable(function):
            parameters = inspect.signature(function).parameters.values()
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                names = {p.name for p in parameters}
                found += [k.arg for k in node.keywords if k.arg and k.arg not in names]
    return list(dict.fromkeys(found))


def test_there_is_a_notebook_for_each_domain():
    domains = {"merging", "backdoor", "language", "curation", "verify", "privacy"}
    assert {"quickstart", "recipes", *domains} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stripped_and_uses_names_that_exist(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert notebook.cells[0].cell_type == "markdown"
    # A notebook in Colab keeps the jax that is there.
    guard = notebook.cells[1].source
    assert guard == nbformat.read(NOTEBOOKS["quickstart"], as_version=4).cells[1].source
    assert "except ImportError" in guard and "--constraint jax.txt" in guard
    assert mistakes(code_of(NOTEBOOKS[name])) == []


@pytest.mark.parametrize(
    ("source", "n_mistakes"),
    [
        ("from jaxml import data\ndata.load('digits')", 0),
        ("from jaxml import data\ndata.lode('digits')", 1),
        ("from jaxml import nothing", 1),
        ("from jaxml.data import triggers as t\nt.make_trigger('pixel', value=1)", 0),
        ("from jaxml import nn\nnn.build('mlp', widht=4)", 1),
        ("from jaxml import backdoor\nbackdoor.spectre.spectre_filter(h, n_outliers=3)", 0),
        ("from jaxml import backdoor\nbackdoor.spectre.spectre_filtre(h)", 1),
        ("from launch import compose\ncompose.run(1, 2)\nx.anything.at_all()", 0),
    ],
)
def test_the_check_finds_what_does_not_exist(source, n_mistakes):
    assert len(mistakes(source)) == n_mistakes


def run(path, monkeypatch):
    """Runs a notebook with this Python and returns it; no cell may warn."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    return outputs


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "quickstart" else pytest.mark.heavy) for n in NOTEBOOKS],
)
def test_a_notebook_runs_and_shows_a_picture(name, monkeypatch):
    outputs = run(NOTEBOOKS[name], monkeypatch)
    assert any("image/png" in output.get("data", {}) for output in outputs)
