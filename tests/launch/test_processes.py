"""Studies in two processes of two devices: killed, resumed, and equal to one process of four."""

import csv
import importlib
import json
import os
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

from jaxml.core.sharding import make_mesh
from jaxml.io import artifacts
from launch import _flags

from .conftest import ROOT, in_two_processes

pytestmark = pytest.mark.heavy

# Runs a study until both processes have written so many checkpoints.
KILLED = """
import os, runpy, sys

limit, module = int(sys.argv[1]), sys.argv[2]
from jaxml.io import checkpoint

save = checkpoint.save


def save_and_count(*args):
    global limit
    save(*args)
    limit -= 1
    if not limit:
        os._exit(9)


checkpoint.save = save_and_count
sys.argv = sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def config_of(name, **changes):
    config = importlib.import_module(f"configs.{name}.tiny").get_config()
    config.update(changes)
    return config.lock()


def in_one(name, config, workdir):
    study = importlib.import_module(f"launch.{name}")
    return study.run(jax.random.key(0), config, workdir=workdir, mesh=make_mesh(4))


def in_two(name, config, workdir, *, n_saves):
    """Runs the same by its command, kills it after some checkpoints and resumes."""
    before = _flags.fields(config_of(name))
    flags = shlex.split(
        " ".join(
            f"--{field}={_flags.literal(value)}"
            for field, value in _flags.fields(config).items()
            if value != before[field]
        )
    )
    cache = jax.config.jax_compilation_cache_dir
    flags += [f"--workdir={workdir}", f"--cache_dir={cache}"]
    script = workdir.parent / "killed.py"
    script.write_text(KILLED)
    # The script imports jax before the launcher has read the flags.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"}
    run = {"env": env, "cwd": workdir.parent, "timeout": 400}
    killed = in_two_processes([str(script), str(n_saves), f"launch.{name}", *flags], **run)
    # Whoever goes last may lose the other before it has gone.
    assert all(process.returncode in (9, -6) for process in killed), killed[0].stderr
    assert list(workdir.rglob("checkpoints*")) and not (workdir / "claims.json").exists()
    done = in_two_processes(["-m", f"launch.{name}", *flags, "--resume"], **run)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    # The second process neither speaks nor writes; what it prints is Gloo's.
    said = [re.findall(r"devices=\d x cpu|report\.html", process.stdout) for process in done]
    assert said == [["devices=4 x cpu", "report.html"], []]
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len({(s["stage"], s["step"]) for s in steps}) == len(steps)


def equal_tables(workdir, tables, *, places, but=()):
    """Compares numbers in the tables of a workdir, which are text, with those of a result."""
    for name, rows in tables.items():
        path = workdir / "tables" / f"{name.replace(' ', '_')}.csv"
        with path.open(encoding="utf-8") as file:
            written = list(csv.DictReader(file))
        for line, row in zip(written, rows, strict=True):
            for column, value in row.items():
                if isinstance(value, float | np.floating) and column not in but:
                    expected = pytest.approx(float(value), abs=places, nan_ok=True)
                    assert float(line[column]) == expected, (name, column)


def files(folder: pathlib.Path):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_git_rebasin(tmp_path):
    config = config_of(
        "git_rebasin",
        width=(16.0,), n_pairs=2, epochs=12, epochs_per_checkpoint=4, batch_size=100,
        method=("weight", "activation"), n_lambdas=7, merge_many=3, n_planted=1,
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    result = in_one("git_rebasin", config, one)
    in_two("git_rebasin", config, two, n_saves=2)
    assert files(one / "artifacts") == files(two / "artifacts")
    seconds = {"matching seconds", "of naive"}
    equal_tables(two, result.tables, places=1e-4, but=seconds)
    holds = [claim["holds"] for claim in artifacts.load_json(two / "claims.json")]
    assert holds == [claim.holds for claim in result.claims]


def test_flip_users(tmp_path):
    config = config_of(
        "flip",
        data_seeds=(0,), train_size=200, width=8.0, experts=2, expert_points=3, expert_every=2,
        label_iterations=2, label_batch_size=100, budgets=(4, 10), greedy_points=2,
        soft_alpha=(0.0, 1.0), user_seeds=1, user_epochs=6, models_at_once=16,
        epochs_per_checkpoint=2, other_model="", other_budgets=(), defended_budgets=(),
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    result = in_one("flip", config, one)
    # The experts save nothing before their end.
    in_two("flip", config, two, n_saves=1)
    assert files(one / "artifacts") == files(two / "artifacts")
    # Percent of 1,597 test images: three of them.
    equal_tables(two, result.tables, places=0.2)
    holds = [claim["holds"] for claim in artifacts.load_json(two / "claims.json")]
    assert holds == [claim.holds for claim in result.claims]


@pytest.mark.parametrize("split", [False, True])
def test_datacomp_training(tmp_path, split):
    small = {
        "filter": "clip_score", "arch": "l14", "fraction": 0.3, "pool_size": 600, "width": 8,
        "text_width": 8, "embed": 4, "samples_seen": 320, "batch_size": 32, "warmup_steps": 1,
        "shard_size": 250, "steps_per_checkpoint": 3,
    }  # fmt: skip
    for stage in ("pool", "filter", "reshard"):
        in_one("datacomp", config_of("datacomp", stage=stage, **small), tmp_path / "data")
    config = config_of(
        "datacomp", stage="train", train_dirs=str(tmp_path / "data" / "shards"), split_state=split,
        loss="ring_sigmoid" if split else "softmax", **small,
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    in_one("datacomp", config, one)
    in_two("datacomp", config, two, n_saves=2)
    a, b = (artifacts.load_tree(folder / "train" / "model.safetensors") for folder in (one, two))
    # Adam makes a step of what is rounding in a gradient that is nearly 0.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5e-4), a, b)
    curves = [artifacts.load_json(f / "artifacts" / "train.json")["curve"] for f in (one, two)]
    assert [row["samples seen"] for row in curves[1]] == list(range(32, 321, 32))
    for row, other in zip(*curves, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
