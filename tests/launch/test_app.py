"""The launcher, by its command line where a process matters and by its functions elsewhere."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict, config_dict

from launch import _app, _devices, _flags

from .conftest import in_two_processes

DOC = "Counts steps.\n\n  python -m toy"


def started(monkeypatch, *arguments, check=None):
    """Runs ``start`` here; the environment that it would set for jax is left alone."""
    monkeypatch.setattr(sys, "argv", ["toy", *arguments])
    monkeypatch.setattr(_devices, "set_environment", lambda values: None)
    monkeypatch.setattr(_app, "_started", None)
    _app.start(DOC, paper="toy", check=check)
    return _app._started


def refusal(monkeypatch, capsys, *arguments, check=None):
    """Returns the one sentence that ``start`` leaves with."""
    before = sorted(pathlib.Path().rglob("*"))
    with pytest.raises(SystemExit) as left:
        started(monkeypatch, *arguments, check=check)
    assert left.value.code == 2
    assert sorted(p for p in pathlib.Path().rglob("*") if "__pycache__" not in p.parts) == [
        p for p in before if "__pycache__" not in p.parts
    ]
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("toy: error: ")
    return err.removeprefix("toy: error: ").strip()


# The command line.


def test_help_lists_configs_fields_and_flags_without_jax(environment):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['toy', '--help']\n"
        "try:\n    runpy.run_module('toy', run_name='__main__')\n"
        "except SystemExit as left:\n    assert not left.code\n"
        "heavy = {'jax', 'flax', 'tensorflow', 'matplotlib', 'sklearn', 'orbax', 'rich'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded []"
    for part in ("Counts steps.", "python -m toy", "Ten steps of one.", "--optimizer.lr=0.1"):
        assert part in done.stdout
    for name in _flags.common_flags("out"):
        assert name == "h" or f"--{name}=" in done.stdout or f"--[no]{name} " in done.stdout


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        (["--n_steps=7"], "n_steps", 7),
        (["--n_steps", "7"], "n_steps", 7),
        (["--config.n_steps=7"], "n_steps", 7),
        (["--increment=2"], "increment", 2.0),
        (["--increment", "-2.5"], "increment", -2.5),
        (["--width=64"], "width", (64,)),
        (["--width=32,64,32"], "width", (32, 64, 32)),
        (["--config.width=(3,)"], "width", (3,)),
        (["--width=3,"], "width", (3,)),
        (["--noshuffle"], "shuffle", False),
        (["--shuffle=false"], "shuffle", False),
        (["--noshuffle", "--shuffle"], "shuffle", True),
        (["--optimizer.lr=1e-3"], "optimizer.lr", 1e-3),
        (["--optimizer.name=adam w"], "optimizer.name", "adam w"),
    ],
)
def test_every_field_is_a_flag(toy, monkeypatch, argument, field, value):
    _, study = started(monkeypatch, *argument)
    got = _flags.fields(study.config)[field]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n_stps=3"], "there is no flag --n_stps; did you mean n_steps?"),
        (["--config.optimizer.lrr=3"], "did you mean optimizer.lr"),
        (["--lr=3"], "did you mean optimizer.lr?"),
        (["--optimizer=3"], "did you mean optimizer.lr or optimizer.name?"),
        (["--workdri=x"], "did you mean workdir?"),
        (["--qqqqqq"], "there is no flag --qqqqqq; --help lists them"),
        (["tiny"], "'tiny' is no flag"),
        (["noshuffle"], "'noshuffle' is no flag"),
        (["--n_steps=abc"], "--n_steps must be int, got 'abc'"),
        (["--n_steps=2.5"], "--n_steps must be int, got '2.5'"),
        (["--optimizer.lr=fast"], "--optimizer.lr must be float, got 'fast'"),
        (["--width=wide"], "--width must be a tuple of int, got 'wide'"),
        (["--shuffle=maybe"], "--shuffle must be bool"),
        (["--n_steps"], "--n_steps needs a value, as in --n_steps=5"),
        (["--seed=x"], "--seed=x"),
        (["--seed=-1"], "non-negative"),
        (["--num_devices=0"], "--num_devices=0"),
        (["--platform=quantum"], "auto|cpu|gpu|tpu"),
        (["--config=tony"], "toy has no config 'tony'; did you mean tiny?"),
        (["--config=paper"], "toy has no config 'paper'; there are tiny"),
        (["--config=no/such.py"], "there is no file no/such.py"),
        (["--config=tiny:x"], "takes no argument"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--n_steps=0"], "n_steps must be positive, got 0"),
    ],
)
def test_a_bad_command_line_is_one_sentence(toy, monkeypatch, capsys, arguments, words):
    def check(config):
        if config.n_steps < 1:
            raise ValueError(f"n_steps must be positive,\ngot {config.n_steps}")

    assert words in refusal(monkeypatch, capsys, *arguments, check=check)


def test_a_bad_command_line_leaves_no_traceback(command, tmp_path):
    done = command("--config.n_stps=3", "--workdir=out")
    assert done.returncode == 2 and not done.stdout and not (tmp_path / "out").exists()
    assert done.stderr == "toy: error: there is no flag --config.n_stps; did you mean n_steps?\n"


def test_configs_are_found_by_name_file_and_argument(toy, monkeypatch, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(scale='1'):\n    return ConfigDict({'scale': int(scale)})\n"
    )
    assert started(monkeypatch, "--config=mine.py")[1].config.scale == 1
    _, study = started(monkeypatch, f"--config={path}:3", "--seed=4", "--x64")
    assert study.config.scale == 3
    assert study.command == f"python -m launch.toy --config={path}:3 --seed=4 --x64"
    inside = toy / "configs" / "toy" / "tiny.py"
    _, study = started(monkeypatch, f"--config={inside}", "--width=3", "--workdir=elsewhere")
    assert study.command == "python -m launch.toy --config=tiny --width=3"
    assert study.workdir == pathlib.Path("elsewhere")
    path.write_text("def get_config(): return {}")
    with pytest.raises(_flags.UserError, match="must return a ConfigDict, not a dict"):
        _flags.load_config("toy", str(path))
    path.write_text("x = 1")
    with pytest.raises(_flags.UserError, match="defines no get_config"):
        _flags.load_config("toy", str(path))
    path.write_text("def get_config(scale): return {}")
    with pytest.raises(_flags.UserError, match="takes an argument, as in"):
        _flags.load_config("toy", str(path))


def test_a_field_without_a_value_takes_its_declared_type():
    config = ConfigDict({"n": config_dict.placeholder(int)}).lock()
    with pytest.raises(_flags.UserError, match="--n must be another type, got 'x'"):
        _flags.override(config, ["--n=x"], [])
    assert _flags.override(config, ["--n", "3"], []) == ["--n=3"] and config.n == 3


def test_print_config_prints_what_the_run_would_get(toy, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        started(monkeypatch, "--print_config", "--width=3,4", "--optimizer.name=adam")
    assert not left.value.code
    config = json.loads(capsys.readouterr().out)
    assert config["width"] == [3, 4] and config["optimizer"] == {"lr": 0.1, "name": "adam"}


def test_download_prepares_a_missing_data_set(toy, monkeypatch, capsys):
    from jaxml.data import NotPreparedError, tfds_source

    there = []

    def check(config):
        if config.dataset not in there:
            raise NotPreparedError(f"{config.dataset} is not prepared")

    def prepare(name, *, data_dir=None, download):
        assert download
        there.append(name)

    monkeypatch.setattr(tfds_source, "prepare", prepare)
    arguments = ("--dataset=cifar10",)
    assert refusal(monkeypatch, capsys, *arguments, check=check) == "cifar10 is not prepared"
    started(monkeypatch, *arguments, "--download", check=check)
    assert there == ["cifar10"]


# Devices.


def test_a_missing_accelerator_names_the_extra():
    for platform, extra in (("gpu", "cuda12"), ("tpu", "tpu")):
        values = _flags.common_flags("out")
        _flags.parse(values, ["toy", f"--platform={platform}"])
        with pytest.raises(_flags.UserError, match=rf"--platform={platform}.*\[{extra}\]"):
            _devices.make_mesh(values)


def test_more_devices_than_there_are():
    values = _flags.common_flags("out")
    _flags.parse(values, ["toy", "--num_devices=99"])
    with pytest.raises(_flags.UserError, match=r"--num_devices must lie in 1\.\.4, got 99"):
        _devices.make_mesh(values)
    values.num_devices = 2
    assert _devices.make_mesh(values).size == 2


def test_the_environment_that_jax_will_read(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"JAX_COMPILATION_CACHE_DIR": "old", "HOME": str(tmp_path)})
    values = _flags.common_flags("out")
    arguments = ["--platform=gpu", "--num_devices=3", "--x64", "--cache_dir=~/c", "--data_dir=d"]
    assert _flags.parse(values, ["toy", *arguments]) == []
    _devices.set_environment(values)
    assert os.environ["JAX_PLATFORMS"].startswith("cuda")
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "3" and os.environ["JAX_ENABLE_X64"] == "1"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "c")
    assert os.environ["TFDS_DATA_DIR"] == os.path.abspath("d")
    _flags.parse(values, ["toy", "--cache_dir="])
    _devices.set_environment(values)
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


# A whole run.


def test_a_run_writes_its_workdir(command, tmp_path):
    flags = ("--seed=3", "--x64", "--num_devices=2", "--profile_steps=2", "--platform=cpu")
    done = command("--workdir=out/a", "--n_steps=4", "--noshuffle", *flags)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / "a"
    lines = done.stdout.splitlines()
    assert lines[0] == "toy  config=tiny  devices=2 x cpu  dtype=float64  workdir=out/a"
    assert lines[-1] == "out/a/report.html" and "[Table 1]" in done.stdout
    assert "count: compiling" in done.stderr and "count: 4/4" in done.stderr
    assert json.loads((out / "config.json").read_text())["n_steps"] == 4
    env = json.loads((out / "env.json").read_text())
    assert env["seed"] == 3 and env["x64"] and env["devices"] == ["cpu", "cpu"]
    assert env["versions"]["jax"] == jax.__version__ and "--n_steps=4" in env["command"]
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [s["total"] for s in steps] == [1.0, 2.0, 3.0, 4.0]
    (claim,) = json.loads((out / "claims.json").read_text())
    assert claim["holds"] is True
    repeat = "python -m launch.toy --config=tiny --n_steps=4 --shuffle=false --seed=3 --x64"
    assert claim["command"] == repeat
    assert (out / "tables" / "the_counts.csv").read_text() == "devices,total,dtype\n2,4.0,float64\n"
    assert "| 2 | 4 | float64 |" in (out / "tables" / "the_counts.md").read_text()
    assert (out / "plots" / "count_by_step.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "<title>Counts steps</title>" in page and repeat in page
    assert "the count is &lt;b&gt;right&lt;/b&gt;" in page and "A note &amp; more." in page
    assert list((out / "profile").rglob("*.xplane.pb"))
    assert not list(out.glob(".*")) and not (out / "error.log").exists()


def test_a_killed_run_resumes_to_the_same_result(command, tmp_path, monkeypatch, capsys):
    whole = command("--workdir=whole")
    assert whole.returncode == 0, whole.stderr
    assert command("--workdir=killed", TOY_KILLED_AT="3").returncode == -9
    killed = tmp_path / "killed"
    assert not (killed / "claims.json").exists()
    # What a kill in the middle of a write leaves behind.
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "cou')
    words = refusal(monkeypatch, capsys, "--workdir=killed")
    assert re.search("killed is not empty; --resume .* --overwrite", words)
    words = refusal(monkeypatch, capsys, "--workdir=killed", "--resume", "--width=9", "--seed=1")
    assert words.endswith(
        "holds another run: width was [8, 8] and now is [9], seed was 0 and now is 1"
    )
    resumed = command("--workdir=killed", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("claims.json", "checkpoints/state.json", "tables/the_counts.csv", "metrics.jsonl"):
        assert (killed / name).read_text() == (tmp_path / "whole" / name).read_text(), name


def test_overwrite_empties_only_a_run(command, toy, tmp_path, monkeypatch, capsys):
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    (foreign / "thesis.tex").write_text("years of work")
    for flag in ("--overwrite", "--resume"):
        words = refusal(monkeypatch, capsys, "--workdir=thesis", flag)
        assert "thesis is not empty and holds no run" in words
    assert "is a file" in refusal(monkeypatch, capsys, "--workdir=thesis/thesis.tex")
    # A run that fails by a bug keeps its traceback; one by a bad value has a sentence and a log.
    done = command("--workdir=out", "--fail=bug")
    assert done.returncode == 1 and "KeyError: 'bug'" in done.stderr and "Traceback" in done.stderr
    (tmp_path / "out" / "kept").symlink_to(foreign)
    done = command("--workdir=out", "--fail=value", "--overwrite")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    log = pathlib.Path("out", "error.log")
    sentence = f"toy: error: the count must be odd (traceback in {log})"
    assert done.stderr.splitlines()[-1] == sentence
    assert "Traceback" in (tmp_path / log).read_text()
    assert sorted(p.name for p in foreign.iterdir()) == ["config.json", "thesis.tex"]
    assert not (tmp_path / "out" / "kept").exists()


def test_two_processes_write_one_workdir(environment, tmp_path):
    first, second = in_two_processes(
        ["-m", "toy", "--fail=", "--workdir=out"], env=environment, cwd=tmp_path
    )
    assert [first.returncode, second.returncode] == [0, 0], first.stderr
    assert "devices=4 x cpu" in first.stdout
    # Gloo prints too, and its threads tear each other's lines.
    assert "toy" not in second.stdout and "out" not in second.stdout
    steps = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(steps) == 5
    assert "4,5.0" in (tmp_path / "out" / "tables" / "the_counts.csv").read_text()


# Errors of a run.


def test_out_of_memory_names_the_knob(toy, monkeypatch, tmp_path):
    _, study = started(monkeypatch, "--workdir=out")
    study.workdir.mkdir()
    for error in (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), MemoryError()):
        sentence = _app.explain(error, study)
        assert sentence.startswith("out of memory: try a smaller --batch_size (now 64)")
    assert _app.explain(jax.errors.JaxRuntimeError("INTERNAL"), study) is None
    assert _app.explain(KeyError("x"), study) is None
    assert "KeyError" in (tmp_path / "out" / "error.log").read_text()


def test_an_interrupted_run_says_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as left, _app.interruptible("toy"):
        raise KeyboardInterrupt
    assert left.value.code == 130
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 2 and "--resume" in err


def test_an_unwritable_workdir_is_one_sentence(toy, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    values, study = started(monkeypatch, "--workdir=file/below")
    with pytest.raises(_flags.UserError, match=r"cannot write to file/below"):
        _app.run_study(None, study, values, _devices.make_mesh(values))
