"""The ZonoDual study end to end on tiny networks, and its answers for files."""

import csv
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs.zonodual import digits, paper, tiny
from jaxml.core.sharding import make_mesh
from jaxml.io import MetricsWriter
from launch import _zonodual_report, zonodual

METHODS = ["ibp", "deepz", "crown", "alpha", "box", "lp", "zd2d", "zdmip", "mip"]


def small(**changes):
    config = tiny.get_config()
    config.update(
        width=8, epochs=4, epochs_per_checkpoint=2, n_images=2, steps=20, sweep_images=3,
        sweep_eps=(0.01, 0.1), sweep_steps=20, images_at_once=2, group_size=4, eps=0.05,
        methods=tuple(METHODS), attack_steps=10, mip_seconds=20.0,
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return zonodual.run(jax.random.key(3), config, **kwargs)


def without_seconds(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("zonodual")
    return workdir, run(small(), workdir=workdir)


def test_the_result_has_a_line_for_each_margin_and_method(finished):
    _, result = finished
    rows = result.tables["results"]
    assert [r["method"] for r in rows] == METHODS * 2
    for row in rows:
        assert row["lower"] <= row["upper"] + 1e-5
        assert row["target"] == (row["label"] + 1) % 10 and row["seconds"] > 0
    by_method = {m: np.array([r["lower"] for r in rows if r["method"] == m]) for m in METHODS}
    assert (by_method["crown"] <= by_method["zd2d"] + 1e-6).all()
    assert (by_method["zd2d"] <= by_method["zdmip"]).all()
    assert (by_method["zdmip"] <= by_method["mip"] + 1e-5).all()
    assert set(result.figures) == {
        "distribution_of_bounds", "bound_against_step_and_time", "certified_accuracy",
    }  # fmt: skip
    assert len(result.claims) == 6
    assert all(c.holds in (True, False, None) and c.value for c in result.claims)
    assert result.claims[-1].holds  # no bound above an attack


def test_certified_accuracy_is_below_the_attack_and_ordered(finished):
    _, result = finished
    rows = result.tables["certified"]
    assert [row["eps"] for row in rows] == [0.01, 0.1]
    for row in rows:
        order = [row[f"margins, {name}"] for name in ("IBP", "DeepZ", "CROWN", "ZD-2D")]
        assert order[2] <= order[3] <= row["margins, not attacked"] <= row["margins"]
        assert row["accuracy, ZD-2D"] <= row["PGD accuracy"]
    assert len(result.tables["sweep"]) == 6


class KilledError(Exception):
    pass


def test_a_run_that_was_killed_goes_on_to_the_same_numbers(finished, tmp_path):
    _, result = finished
    folder = tmp_path / "artifacts" / "network_0"
    for stage, name in (("bound margins", "images"), ("certified accuracy", "sweep_0.01.json")):

        def kill(event, stage=stage):
            if event["stage"].endswith(stage) and event["step"] == 1:
                raise KilledError

        with pytest.raises(KilledError):
            run(small(), workdir=tmp_path, writer=MetricsWriter(None, kill))
        assert (folder / name).exists()
    # What is left runs on four devices.
    again = run(small(images_at_once=4), workdir=tmp_path, mesh=make_mesh(4))
    rows = again.tables["results"]
    assert without_seconds(rows) == without_seconds(result.tables["results"])
    # An image that was done was not done again: its seconds are those of the run that was killed.
    first = json.loads((folder / "images" / f"{rows[0]['image']}.json").read_text())
    assert rows[: len(METHODS)] == first["rows"]
    for row, other in zip(again.tables["sweep"], result.tables["sweep"], strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_one_method_alone_has_its_figures(finished):
    _, result = finished
    rows = [row for row in result.tables["results"] if row["method"] == "zd2d"]
    curves = [{"zd2d": {"steps": [0, 10, 20], "values": [-1.0, 0.5, 0.7], "seconds": 0.1}}]
    figures = _zonodual_report.figures(rows, curves, result.tables["sweep"])
    assert set(figures) == set(result.figures)


def test_a_checkpoint_is_bounded_without_claims(finished):
    workdir, result = finished
    given = str(workdir / "artifacts" / "models" / "0.safetensors")
    short = {"methods": ("crown",), "sweep_eps": (0.01,), "checkpoint": given}
    own = run(small(**short))
    kwargs = json.dumps({"features": [8, 8], "n_classes": 10})
    named = run(small(**short, module="jaxml.nn:MLP", module_kwargs=kwargs))
    rows = [r for r in result.tables["results"] if r["method"] == "crown"]
    for found in (own, named):
        assert found.claims == []
        assert [r["lower"] for r in found.tables["results"]] == [r["lower"] for r in rows]
    with pytest.raises(ValueError, match=r"module: cannot find 'jaxml\.nn:Nothing'"):
        run(small(**short, module="jaxml.nn:Nothing"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vgg"}, "model must be one of mlp, ffnet, deep, wide; got 'vgg'"),
        ({"methods": ("crown", "magic")}, "methods must be among .*; got 'magic'"),
        ({"methods": ("crown", "zdmip")}, "zdmip goes on from zd2d"),
        ({"targets": "some"}, "targets must be one of next, all"),
        ({"partition": "best"}, "partition must be one of"),
        ({"start": "warm"}, "start must be one of zero, kw, crown, alpha"),
        ({"eps": -0.1}, "eps must not be negative, got -0.1"),
        ({"sweep_eps": (0.1, -0.1)}, "sweep_eps must be radii"),
        ({"n_images": 0}, "n_images must be positive, got 0"),
        ({"steps": -1}, "steps must not be negative, got -1"),
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        ({"timeout": 0.0}, "timeout must be positive"),
        ({"dataset": "digts"}, "unknown data set 'digts'.*digits"),
        ({"dataset": "wine"}, "dataset 'wine' must have classes and inputs in"),
        ({"onnx": "f.onnx"}, "onnx and vnnlib go together"),
        ({"onnx": "f.onnx", "vnnlib": "p.vnnlib"}, "onnx: there is no file f.onnx"),
        ({"checkpoint": "a.safetensors"}, "checkpoint: there is no file"),
        ({"batch_size": 5000}, "batch_size is 5000, of 1437 training examples"),
    ],
)
def test_bad_configs_are_one_sentence(changes, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(small(**changes))


def test_every_card_passes_its_own_check():
    for config in (tiny.get_config(), digits.get_config()):
        zonodual.check(config)
    for card in paper.CARDS:
        config = paper.get_config(card)
        config.dataset = "digits"  # the paper's sets need not be prepared here
        zonodual.check(config)
        assert set(config.keys()) == set(tiny.get_config().keys())
    with pytest.raises(ValueError, match="must be one of ffnet"):
        paper.get_config("resnet")


@pytest.fixture
def files(tmp_path):
    """Writes the network ``y = relu(x) - 1`` and two properties: one holds."""
    onnx = pytest.importorskip("onnx")
    weights = {"w": np.eye(1, dtype=np.float32), "b": np.zeros(1, np.float32),
               "c": np.full(1, -1, np.float32)}  # fmt: skip
    nodes = [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
             onnx.helper.make_node("Relu", ["z"], ["r"]),
             onnx.helper.make_node("Gemm", ["r", "w", "c"], ["y"])]  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", onnx.TensorProto.FLOAT, [1, 1])],
        [value("y", onnx.TensorProto.FLOAT, [1, 1])],
        [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()],
    )  # fmt: skip
    path = tmp_path / "f.onnx"
    opset = [onnx.helper.make_opsetid("", 15)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    for name, bound in (("holds", 0.5), ("fails", -0.5)):
        (tmp_path / f"{name}.vnnlib").write_text(
            "(declare-const X_0 Real)(declare-const Y_0 Real)"
            f"(assert (>= X_0 -1))(assert (<= X_0 1))(assert (>= Y_0 {bound}))"
        )
    return tmp_path


def test_files_are_answered_with_a_line_each(files):
    (files / "instances.csv").write_text("f.onnx,holds.vnnlib,30\nf.onnx,fails.vnnlib,30\n")
    config = small(instances=str(files / "instances.csv"))

    def kill(event):
        if event["step"] == 1:
            raise KilledError

    with pytest.raises(KilledError):
        run(config, workdir=files / "out", writer=MetricsWriter(None, kill))
    kept = json.loads((files / "out" / "artifacts" / "answer_0_holds.json").read_text())
    result = run(config, workdir=files / "out")
    rows = result.tables["results"]
    assert rows[0] == kept["row"] and result.notes[:1] == kept["notes"]
    assert [row["result"] for row in rows] == ["unsat", "sat"]
    assert list(rows[0]) == ["category", "onnx", "vnnlib", "prepare_time", "result", "run_time"]
    text = (files / "out" / "artifacts" / "counter_example_1_fails.txt").read_text()
    x, y = (float(line.strip("()\n").split()[1]) for line in text.splitlines())
    assert -1 <= x <= 1 and y == max(x, 0) - 1 >= -0.5
    assert any("replayed" in note for note in result.notes)


def test_the_command_of_a_newcomer(files):
    command = [sys.executable, "-m", "launch.zonodual", "--onnx", str(files / "f.onnx"),
               "--vnnlib", str(files / "holds.vnnlib"), "--timeout", "60",
               "--workdir", str(files / "typed"), "--platform=cpu"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "result unsat" in done.stderr
    with open(files / "typed" / "tables" / "results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["result"] == "unsat"
    wrong = [*command[:-5], "--timeout=0", "--workdir", str(files / "other")]
    refused = subprocess.run(wrong, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "timeout must be positive, got 0" in refused.stderr
