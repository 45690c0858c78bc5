"""A toy study that counts: enough to drive the launcher by its real command line."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

import configs

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONFIG = '''"""Ten steps of one."""
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "n_steps": 5, "increment": 1.0, "width": (8, 8), "batch_size": 64, "shuffle": True,
        "dataset": "digits", "fail": "", "optimizer": {"lr": 0.1, "name": "sgd"},
    })
'''

SCRIPT = '''"""Counts steps.

  python -m toy --config=tiny
"""

from launch import _app


def check(config):
    if config.n_steps < 1:
        raise ValueError(f"n_steps must be positive, got {config.n_steps}")


if __name__ == "__main__":
    _app.start(__doc__, paper="toy", check=check)

import json, os, signal

import jax
import jax.numpy as jnp
from jaxml import report
from jaxml.core.sharding import replicate


def run(key, config, *, workdir=None, writer=None, mesh=None):
    state = workdir / "checkpoints" / "state.json"
    leader = jax.process_index() == 0
    step, total = json.loads(state.read_text()) if leader and state.exists() else (0, 0.0)
    state.parent.mkdir(exist_ok=True)
    jax.block_until_ready(replicate(key, mesh))
    writer.stage("count", config.n_steps)
    while step < config.n_steps:
        if str(step) == os.environ.get("TOY_KILLED_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        # As what a checkpoint gives: bound to one device of this process.
        total = jax.device_put(jnp.float32(total), jax.local_devices()[-1])
        total = float(replicate(total, mesh) + config.increment)
        step += 1
        writer.step(step, total=total)
        if leader:
            partial = state.with_suffix(".partial")
            partial.write_text(json.dumps([step, total]))
            partial.replace(state)
    if config.fail == "value":
        raise ValueError("the count must be odd.")
    if config.fail == "bug":
        raise KeyError("bug")
    claim = report.Claim("the count is <b>right</b>", "[Table 1]", "5", str(total), "0",
                         "1 seed", "", total == config.n_steps * config.increment)
    figure = report.lines({"count": ([1, 2], [1, 2])}, xlabel="step", ylabel="count")
    rows = [{"devices": mesh.size, "total": total, "dtype": str(jnp.zeros(()).dtype)}]
    return _app.Result([claim], {"the counts": rows}, {"count_by_step": figure}, ["A note & more."])


if __name__ == "__main__":
    _app.main(run)
'''


def in_two_processes(arguments, *, env, cwd, timeout=120):
    """Runs ``python <arguments>`` as two processes of two devices that work together."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    command = [sys.executable, *arguments, "--distributed", "--platform=cpu", "--num_devices=2"]
    processes = [
        subprocess.Popen(
            command,
            env={
                **env,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:  # one that has lost the other may wait for it
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Puts the toy on disk, makes it this process's configs, and returns its folder."""
    folder = tmp_path / "toy_repo"
    (folder / "configs" / "toy").mkdir(parents=True)
    (folder / "configs" / "__init__.py").write_text("")
    (folder / "configs" / "toy" / "__init__.py").write_text("")
    (folder / "configs" / "toy" / "tiny.py").write_text(CONFIG)
    (folder / "toy.py").write_text(SCRIPT)
    monkeypatch.setattr(configs, "__file__", str(folder / "configs" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def environment(toy):
    """The environment in which a process finds the toy, its configs before the repository's."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(toy), str(ROOT)]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }


@pytest.fixture
def command(environment, tmp_path):
    """Runs ``python -m toy <arguments>`` in a process of its own."""

    def run(*arguments, **env):
        return subprocess.run(
            [sys.executable, "-m", "toy", *arguments],
            env={**environment, **env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
