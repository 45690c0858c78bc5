"""The metrics file: one JSON line a step, readable after any kill."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.io.writer import MetricsWriter


def test_steps_are_lines_and_events(tmp_path):
    seen = []
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, seen.append)
    writer.step(1, loss=2)
    writer.stage("train", 3)
    writer.step(1, loss=jnp.float32(0.5), n=np.int64(7), name="a")
    writer.step(3, loss=float("nan"), gap=np.float32("inf"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"stage": "run", "step": 1, "n_steps": None, "loss": 2},
        {"stage": "train", "step": 1, "n_steps": 3, "loss": 0.5, "n": 7, "name": "a"},
        {"stage": "train", "step": 3, "n_steps": 3, "loss": None, "gap": None},
    ]
    assert seen[1] == {"stage": "train", "step": None, "n_steps": 3}
    assert seen[2] == lines[1] and np.isnan(seen[3]["loss"])


def test_it_is_silent_without_path_and_watcher(capsys):
    writer = MetricsWriter()
    writer.stage("train", 3)
    writer.step(1, loss=0.5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("torn", [b"", b'{"stage": "tr', b"\xff"])
def test_a_torn_line_is_dropped_and_the_rest_goes_on(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    MetricsWriter(path).step(1, loss=1.0)
    with path.open("ab") as file:
        file.write(torn)
    MetricsWriter(path).step(2, loss=0.5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_file_that_is_torn_from_the_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage"')
    MetricsWriter(path).step(1)
    assert len(path.read_text().splitlines()) == 1


def test_bad_input(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"loss must be a scalar, got an array of shape \(2,\)"):
        writer.step(1, loss=jnp.zeros(2))
    with pytest.raises(ValueError, match="may not be called 'stage'"):
        writer.step(1, stage=3)
    with pytest.raises(ValueError, match="n_steps must be positive, got 0"):
        writer.stage("train", 0)
    assert not (tmp_path / "metrics.jsonl").exists()
