"""Private least squares from the command line: a file in, a model out; and the study, small."""

import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs.private_ols import paper, synthetic, tiny
from jaxml import privacy
from jaxml.io import MetricsWriter
from launch import private_ols
from tests.launch.conftest import ROOT

N = 3000
PUBLIC = {"target": "price", "leverage_bound": 0.01, "residual_bound": 5.0, "epsilon": 6.0}


def small(**changes):
    config = tiny.get_config()
    config.update(
        n=(2000, 4000), d=(2,), condition_number=(1.0, 1e3), epsilon=8.0, trials=2, n_models=200,
        gd_steps=5, audit_n=2000, audit_draws=2000,
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return private_ols.run(jax.random.key(3), config, **kwargs)


def write_csv(path, rows, header="size,price,rooms"):
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    rng = np.random.default_rng(0)
    size, rooms = rng.normal(100, 20, N), rng.integers(1, 6, N)
    price = 3 * size - 7 * rooms + 50 + rng.normal(size=N)
    path = tmp_path_factory.mktemp("data") / "houses.csv"
    write_csv(path, zip(size, price, rooms, strict=True))
    return path


# A file.


def test_a_file_gives_a_model_and_its_ledger_by_the_command_line(houses, tmp_path):
    arguments = [f"--{name}={value}" for name, value in PUBLIC.items()]
    command = [
        sys.executable, "-m", "launch.private_ols", f"--data={houses}", *arguments, "--delta=1e-6",
        f"--workdir={tmp_path / 'out'}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    artifacts = tmp_path / "out" / "artifacts"
    model, ledger = (json.loads((artifacts / f).read_text()) for f in ("model.json", "budget.json"))
    assert model["answered"] and list(model["coef"]) == ["size", "rooms", "(intercept)"]
    np.testing.assert_allclose(list(model["coef"].values())[:2], [3, -7], atol=0.5)
    assert ledger["total"]["epsilon"] == pytest.approx(6) and ledger["total"]["delta"] <= 1e-6
    assert ledger["assumed"]["n"] == N
    # What is left on disk is public: nothing but these depends on the file.
    assert {p.name for p in artifacts.iterdir()} == {"model.json", "budget.json"}
    assert set(model) == {"target", "answered", "coef", "predicted_error", "needs_epsilon"}


def test_noise_is_fresh_and_a_model_that_is_there_is_not_drawn_again(houses, tmp_path):
    config = small(data=str(houses), **PUBLIC)
    results = [run(config, workdir=tmp_path / name) for name in ("a", "b", "b")]
    coefs = [[r["coefficient"] for r in res.tables["coefficients"]] for res in results]
    assert coefs[0] != coefs[1] == coefs[2]
    assert all(res.claims == [] and not res.figures for res in results)
    assert run(config).tables["budget"][-1]["part"] == "total"


def test_columns_can_be_chosen_and_the_intercept_left_out(houses):
    result = run(small(data=str(houses), features=("size",), intercept=False, **PUBLIC))
    rows = result.tables.get("coefficients", [])
    assert [r["column"] for r in rows] in (["size"], [])
    with_text = run(small(data=str(houses), fail_rate=0.0, **PUBLIC))
    assert [r["column"] for r in with_text.tables["coefficients"]][-1] == "(intercept)"


def test_lines_that_are_no_numbers_are_outliers_each_by_itself(houses, tmp_path):
    lines = houses.read_text().splitlines()
    bad = ['"100,open quote', "", "1,2", "a,b,c", "1,2,nan", "1e999,1,1", "\u2028x"]
    for i, line in enumerate(bad):
        lines[100 + 7 * i] = line
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = small(data=str(path), **PUBLIC)
    _, X, y = private_ols._read(config)
    assert len(y) == N
    rows = [99 + 7 * i for i in range(len(bad))]
    # Of "1,2,nan" and "1e999,1,1" the row has one such entry.
    assert set(np.flatnonzero(~np.isfinite(np.column_stack([X, y])).all(1))) == set(rows)
    # All of them bad: FAIL, and no exception.
    write_csv(path, [["x", "y", "z"]] * N)
    result = run(config)
    assert "coefficients" not in result.tables and result.notes[0].startswith("FAIL: ")
    (path).write_bytes(b"size,price,rooms\n" + b"\xff\xfe,\x00,1\n" * 20)
    assert run(config).notes[0].startswith("FAIL")


def test_bounds_that_leave_no_room_say_what_would(houses):
    result = run(small(data=str(houses), **PUBLIC | {"epsilon": 0.01}))
    assert "FAIL for certain" in result.notes[0] and "would do" in result.notes[0]
    result = run(small(data=str(houses), **PUBLIC | {"leverage_bound": 0.9}))
    assert "no epsilon helps" in result.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": ""}, "target must name a column of .*: size, price, rooms"),
        ({"target": "prize"}, "has no column 'prize'; did you mean price?"),
        ({"features": ("size", "x")}, "has no column 'x'; it has size, price, rooms"),
        ({"features": ("price",)}, "features must not hold the target"),
        ({"leverage_bound": 0.0}, r"leverage_bound must lie in \(0, 1\), got 0.0: a public bound"),
        ({"leverage_bound": 2.0}, "leverage_bound must lie"),
        ({"residual_bound": 0.0}, "residual_bound must be positive and finite, got 0.0"),
        ({"residual_scale": 6.0}, r"residual_scale must lie in \[0, residual_bound\], got 6.0"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"epsilon": math.inf}, "epsilon must be positive and finite"),
        ({"delta": 1.0}, r"delta must lie in \(0, 1\)"),
        ({"data": "nowhere.csv"}, "cannot read nowhere.csv: no such file"),
        ({"data": "."}, "cannot read .: is a directory"),
    ],
)
def test_bad_public_arguments_are_one_sentence(houses, tmp_path, changes, message):
    config = small(**{"data": str(houses)} | PUBLIC | changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(config, workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_files_without_a_table_are_one_sentence(tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text("")
    with pytest.raises(ValueError, match="must begin with a line of column names"):
        run(small(data=str(path), **PUBLIC))
    path.write_text("size,price\n")
    with pytest.raises(ValueError, match="has no rows below its header"):
        run(small(data=str(path), **PUBLIC))
    path.write_text("price,price\n1,2\n")
    with pytest.raises(ValueError, match="more than one column 'price'"):
        run(small(data=str(path), **PUBLIC))


# The study.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("private_ols")
    return workdir, run(small(), workdir=workdir)


def test_the_study_measures_every_method_at_every_size(finished):
    workdir, result = finished
    trials = result.tables["trials"]
    assert len(trials) == 2 * 2 * 2 * 5
    assert list(trials[0]) == [
        "method", "n", "d", "kappa", "eps", "trial", "error", "failed", "predicted_error",
        "runtime_ratio",
    ]  # fmt: skip
    assert all(row["failed"] == (row["error"] is None) for row in trials)
    own = {(r["n"], r["trial"], r["kappa"]): r for r in trials if r["method"] == "private_ols"}
    for n, trial in ((n, trial) for n in (2000, 4000) for trial in range(2)):
        assert own[n, trial, 1.0]["error"] == pytest.approx(own[n, trial, 1e3]["error"], rel=1e-5)
    assert set(result.figures) == {"error_against_n_d2"}
    assert [row["d"] for row in result.tables["n_from_which_it_answers"]] == [5, 10, 20, 50]
    ledgers = json.loads((workdir / "artifacts" / "budget.json").read_text())
    assert set(ledgers) == {"d=2, n=2000", "d=2, n=4000"}
    assert all(ledger["total"]["epsilon"] == pytest.approx(8) for ledger in ledgers.values())
    assert len(result.claims) == 5 and all(isinstance(c.holds, bool) for c in result.claims)
    assert any("not protected" in note for note in result.notes)


class KilledError(Exception):
    pass


def test_a_killed_study_goes_on_and_a_finished_one_is_read(finished, tmp_path):
    _, result = finished

    def kill(event):
        if event["stage"] == "d=2, n=4000" and event["step"] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run(small(), workdir=tmp_path, writer=MetricsWriter(None, kill))
    events = []
    resumed = run(small(), workdir=tmp_path, writer=MetricsWriter(None, events.append))
    assert {e["stage"] for e in events} == {"d=2, n=4000", "audit"}

    def timeless(rows):
        times = ("runtime_ratio", "time over lstsq")
        return [{k: v for k, v in row.items() if k not in times} for row in rows]

    for name, rows in result.tables.items():
        assert timeless(rows) == timeless(resumed.tables[name])
    events.clear()
    run(small(), workdir=tmp_path, writer=MetricsWriter(None, events.append))
    assert events == []


def test_sizes_without_an_answer_are_shown_as_such():
    result = run(small(epsilon=0.5, n=(500,), trials=1, methods=("ols", "private_ols"),
                       audit_noise=(1.0,)))  # fmt: skip
    assert result.claims == []
    row = next(r for r in result.tables["error_by_condition_number"] if "private" in r["method"])
    assert row is not None
    cells = [r for r in result.tables["error_by_condition_number"]]
    assert cells[1]["condition 1"] == "FAIL 1 of 1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "price"}, "target goes with a file"),
        ({"leverage_bound": 0.1}, "leverage_bound goes with a file"),
        ({"methods": ("magic",)}, "methods must be among ols.*; got 'magic'"),
        ({"methods": ()}, "methods must hold at least one"),
        ({"n": (10,)}, r"n must be at least 10 d .* got n \(10,\) and d \(2,\)"),
        ({"trials": 0}, "trials must be positive"),
        ({"condition_number": (0.5,)}, "condition_number must be at least 1"),
        ({"noise": 0.0}, "noise must be positive"),
        ({"audit_n": 2001}, "audit_n must be a multiple of 4"),
        ({"audit_noise": (0.0,)}, "audit_noise must be positive"),
        ({"audit_confidence": 1.0}, "audit_confidence must lie"),
        ({"fail_rate": 1.0}, "fail_rate must lie"),
    ],
)
def test_bad_configs_are_one_sentence_and_write_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(small(**changes), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_card_passes_its_own_check():
    for config in (tiny.get_config(), synthetic.get_config(), paper.get_config("0.5")):
        private_ols.check(config)
    with pytest.raises(ValueError, match="must be a number, epsilon; got 'x'"):
        paper.get_config("x")


# The proof.


def test_the_constants_of_the_proof_are_those_of_the_code():
    text = (ROOT / "docs" / "private_ols.md").read_text(encoding="utf-8")
    code = (ROOT / "jaxml" / "privacy" / "private_ols.py").read_text(encoding="utf-8")
    table = text.partition("## Constants")[2].partition("## The proof")[0]
    rows = [line.split("|")[3] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    for row in rows:
        assert row.strip().strip("`") in code, row
    for name in privacy.__all__:
        assert hasattr(privacy, name)
