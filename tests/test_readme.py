"""What the README promises: its Python runs, its commands exist, its tree is the tree."""

import pathlib
import re

from launch.reproduce import PAPERS

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs_and_alignment_lowers_the_barrier(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(code, "README.md", "exec"), {})
    before, after = map(float, capsys.readouterr().out.split())
    assert after < before


def test_every_registered_paper_has_its_script_configs_and_row():
    for paper in PAPERS:
        assert (ROOT / "launch" / f"{paper}.py").is_file()
        cards = {p.stem for p in (ROOT / "configs" / paper).glob("[a-z]*.py")}
        assert "tiny" in cards and cards & {"paper", "xlarge"}  # DataComp's name their scale
        assert f"python -m launch.{paper}`" in README


def test_every_folder_of_the_library_is_in_the_tree():
    folders = {p.parent.name for p in (ROOT / "jaxml").glob("*/__init__.py")}
    assert set(re.findall(r"^    jaxml/(\w+)", README, re.M)) == folders
