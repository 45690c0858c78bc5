"""What the README promises: its Python runs, its commands parse, its tree is the tree."""

import pathlib
import re
import shlex

import pytest
from absl import flags

from launch import _flags
from launch.reproduce import PAPERS

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = dict.fromkeys(re.findall(r"python -m launch\.([^`#\n]*)", README))


def parse(command):
    """Returns the config of a README command as the launcher would read it, and its flags."""
    paper, *arguments = shlex.split(command)
    values = _flags.common_flags("out")
    flags.DEFINE_string("config", "tiny", "", flag_values=values)
    rest = _flags.parse(values, [paper, *arguments])
    config, _ = _flags.load_config(paper, values.config)
    _flags.override(config, rest, values)
    return config, values


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_a_script_a_config_and_flags_that_exist(command):
    script, *arguments = shlex.split(command)
    source = (ROOT / "launch" / f"{script}.py").read_text(encoding="utf-8")
    if (ROOT / "configs" / script).is_dir():
        parse(command)
    elif script != "reproduce":  # whose one flag is the workdir
        names = [argument[2:].partition("=")[0] for argument in arguments]
        assert all(f'"{name}"' in source for name in names)


def test_a_command_that_resumes_is_of_the_run_that_the_line_above_it_started():
    lines = [line for line in README.splitlines() if line.startswith("    python -m launch.")]
    resuming = [i for i, line in enumerate(lines) if "--resume" in line]
    assert resuming
    for i in resuming:
        (before, first), (now, then) = (
            parse(lines[j].partition("python -m launch.")[2]) for j in (i - 1, i)
        )
        assert before.to_dict() == now.to_dict() and first.workdir == then.workdir


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
