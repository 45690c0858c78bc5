"""All papers in one process: what fails is reported and does not stop the others."""

import json
import pathlib
import sys
import types

import pytest

from jaxml import report
from launch import _app, _devices, prepare_data, reproduce


@pytest.fixture
def papers(toy, monkeypatch):
    """Three stand-in papers: one good, one whose claim fails, one that raises."""
    calls = []

    def study(name, holds, error=None, reason=""):
        def run(key, config, *, workdir, writer, mesh):
            calls.append(name)
            writer.stage("all", 1)
            writer.step(1, loss=0.5)
            if error is not None:
                raise error
            claim = report.Claim(f"{name} is good", "Fig. 1", "1", "2", "3", "1", "", holds)
            claim = claim._replace(reason=reason)
            figure = report.lines({"a": ([0, 1], [0, 1])}, xlabel="x", ylabel="y")
            return _app.Result([claim], {"t": [{"a": 1}]}, {"curve": figure}, [])

        module = types.ModuleType(f"launch.{name}")
        module.run = run
        monkeypatch.setitem(sys.modules, f"launch.{name}", module)
        folder = toy / "configs" / name
        folder.mkdir()
        (folder / "tiny.py").write_text((toy / "configs" / "toy" / "tiny.py").read_text())

    study("good", True)
    study("failing", False)
    study("raising", None, RuntimeError("a <bug>"))
    study("known", False, reason="It is <too> small here.")
    titles = {"good": "Good & proper", "failing": "Failing", "raising": "Raising"}
    monkeypatch.setattr(reproduce, "PAPERS", titles)
    monkeypatch.setattr(_devices, "set_environment", lambda values: None)
    return calls


def test_a_good_paper_is_reported_and_exits_with_zero(papers, capsys, tmp_path):
    assert reproduce.main(["reproduce", "--only=good", "--seed=2"]) == 0
    assert papers == ["good"]
    out = capsys.readouterr().out
    assert "good  config=tiny" in out and out.endswith("out/report.html\n")
    (claim,) = json.loads(pathlib.Path("out/papers/good/claims.json").read_text())
    assert claim["command"] == "python -m launch.good --config=tiny --seed=2"
    page = pathlib.Path("out/report.html").read_text()
    assert "Good &amp; proper" in page and "data:image/png" in page
    assert 'href="papers/good/report.html"' in page
    assert pathlib.Path("out/papers/good/report.html").exists()


def test_what_fails_gives_exit_code_one_and_stops_nobody(papers, capsys):
    assert reproduce.main(["reproduce", "--only=raising,failing,good"]) == 1
    assert papers == ["raising", "failing", "good"]
    assert "raising: failed: RuntimeError: a <bug>" in capsys.readouterr().err
    assert "a <bug>" in pathlib.Path("out/papers/raising/error.log").read_text()
    page = pathlib.Path("out/report.html").read_text()
    assert "a &lt;bug&gt;" in page and "2 claims: 1 holds, 1 does not hold" in page
    # Finished papers are not run again; the failed one is, and the exit code stays what it was.
    papers.clear()
    assert reproduce.main(["reproduce", "--resume"]) == 1
    assert papers == ["raising"]
    assert pathlib.Path("out/report.html").read_text().count("does not hold") == 1


@pytest.mark.parametrize("only", ["failing", "raising"])
def test_either_failure_is_enough(papers, only):
    assert reproduce.main(["reproduce", f"--only={only}"]) == 1


def test_a_claim_that_is_known_not_to_hold_is_shown_with_its_reason(papers, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "PAPERS", {"good": "Good", "known": "Known"})
    assert reproduce.main(["reproduce"]) == 0
    out, err = capsys.readouterr()
    assert "[1/2] after 0:0" in out and "[2/2] all: 1/1" in err and "no, which is known" in out
    page = pathlib.Path("out/report.html").read_text()
    assert "1 holds, 1 does not hold (1 of them for a known reason)" in page
    assert "It is &lt;too&gt; small here." in page


def test_list_and_help(papers, capsys):
    assert reproduce.main(["reproduce", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split(maxsplit=1) == ["good", "Good & proper"]
    assert reproduce.main(["reproduce", "--help"]) == 0
    assert "<tiny|digits>" in capsys.readouterr().out
    assert papers == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only=goood"], "there is no paper 'goood'; did you mean good?"),
        (["--only=x"], "there are good, failing, raising"),
        (["--scale=digits"], "good has no config 'digits'; there are tiny"),
        (["--scale=huge"], "tiny|digits"),
        (["--sed=3"], "did you mean seed?"),
        (["--width=3"], "there is no flag --width"),
    ],
)
def test_bad_input_is_one_sentence_and_runs_nothing(papers, capsys, arguments, words):
    with pytest.raises(SystemExit) as left:
        reproduce.main(["reproduce", *arguments])
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert err.startswith("reproduce: error: ") and words in err and err.count("\n") == 1
    assert not out and not papers and not pathlib.Path("out").exists()


def test_a_report_is_replaced_only_when_asked(papers, capsys):
    pathlib.Path("out").mkdir()
    pathlib.Path("out/report.html").write_text("mine")
    with pytest.raises(SystemExit):
        reproduce.main(["reproduce", "--only=good"])
    assert "is there already; --resume or --overwrite replaces it" in capsys.readouterr().err
    assert pathlib.Path("out/report.html").read_text() == "mine" and not papers
    assert reproduce.main(["reproduce", "--only=good", "--overwrite"]) == 0


def test_prepare_data(monkeypatch, capsys):
    from jaxml.data import tfds_source

    asked = []

    def prepare(name, *, data_dir=None, download):
        asked.append((name, data_dir, download))
        if name == "nope":
            raise ValueError("unknown data set 'nope'")
        return pathlib.Path("data", name)

    monkeypatch.setattr(tfds_source, "prepare", prepare)
    assert prepare_data.main(["prepare_data", "--name=cifar10", "--data_dir=d"]) == 0
    assert asked == [("cifar10", "d", True)] and "cifar10" in capsys.readouterr().out
    assert prepare_data.main(["prepare_data", "--help"]) == 0
    assert "--name=..." in capsys.readouterr().out
    for arguments, words in (
        (["--name=nope"], "unknown data set 'nope'"),
        ([], "--name is missing"),
        (["--nam=x"], "did you mean name?"),
    ):
        with pytest.raises(SystemExit) as left:
            prepare_data.main(["prepare_data", *arguments])
        err = capsys.readouterr().err
        assert left.value.code == 2 and words in err and err.count("\n") == 1
