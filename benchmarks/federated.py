"""Federated rounds and the SPECTRE filter: against a Python loop and Flower's engine.

    python -m benchmarks.federated            # prints the tables
    python -m benchmarks.federated --write    # and puts them into benchmarks/RESULTS.md

Flower's rows need flwr and its simulation engine (``pip install 'flwr[simulation]'``).
"""

import os

os.environ.update(JAX_PLATFORMS="cpu", FLWR_TELEMETRY_ENABLED="0")

import functools
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._results import environment, main
from jaxml import data
from jaxml.backdoor import aggregators, clients, federated, flower, spectre
from jaxml.nn import MLP
from jaxml.report import to_markdown

COMMAND = "python -m benchmarks.federated --write"
N_CLIENTS = 30
ROUNDS = 20
REPEATS = 3
FLOWER_SECONDS = 120
MODULE = MLP((32, 32), 10)
LOCAL = {"learning_rate": 0.1, "n_epochs": 2, "batch_size": 20}
SIZES = ((50, 12), (180, 12), (1000, 16), (5000, 16), (5000, 64), (5000, 100))
NOTES = """\
wall seconds (`time.perf_counter`) and CPU seconds of the process (`time.process_time`); other
  work shared the machine, so CPU seconds and ratios in one process decide"""


def timed(fn: Callable, *args) -> tuple[float, float, Any]:
    """Returns the CPU and wall seconds of a call and its result, computed to the end."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    return time.process_time() - cpu, time.perf_counter() - wall, result


def repeated(fn: Callable, *args) -> tuple[float, float, float, float]:
    """Returns CPU and wall seconds of the first call, and the medians of those after it."""
    first = timed(fn, *args)[:2]
    later = np.median([timed(fn, *args)[:2] for _ in range(REPEATS)], axis=0)
    return (*first, *later)


@functools.cache
def cohort() -> clients.Clients:
    """Draws clients of 60 digits."""
    digits = data.load("digits")
    return clients.homogeneous_split(
        jax.random.key(0), digits.train_x, digits.train_y, n_clients=N_CLIENTS, per_label=6
    )


def load(partition: int, n_partitions: int) -> flower.Part:
    """Gives a Flower node its part of the clients."""
    size = N_CLIENTS // n_partitions
    first = partition * size
    return first, cohort().take(jnp.arange(first, first + size))


UPDATE = functools.partial(federated.client_update, apply=MODULE.apply, **LOCAL)


def one_round(key, params, everybody, *, at_once=None):
    """Runs a round of federated averaging."""
    updates = federated.cohort_update(
        key, params, everybody, update=UPDATE, clients_at_once=at_once
    )
    delta = aggregators.mean(updates, everybody.weights)
    return federated.apply_update(params, delta, learning_rate=0.5)


@functools.partial(jax.jit, static_argnames=("at_once",))
def scanned(key, params, everybody, *, at_once=None):
    """Runs all rounds in one compiled program."""

    def step(params, t):
        round_key = jax.random.fold_in(key, t)
        return one_round(round_key, params, everybody, at_once=at_once), None

    return jax.lax.scan(step, params, jnp.arange(ROUNDS))[0]


_client = jax.jit(UPDATE)


def looped(key, params, everybody):
    """Calls a jitted client over and over, as most frameworks do."""
    parts = [everybody.take(i) for i in range(N_CLIENTS)]
    for t in range(ROUNDS):
        round_key = jax.random.fold_in(key, t)
        updates = [
            _client(jax.random.fold_in(round_key, i), params, *part) for i, part in enumerate(parts)
        ]
        stacked = jax.tree.map(lambda *u: jnp.stack(u), *updates)
        delta = aggregators.mean(stacked, everybody.weights)
        params = federated.apply_update(params, delta, learning_rate=0.5)
    return params


def flower_rows(n_nodes: int, n_rounds: int) -> list[float]:
    """Returns wall seconds of the rounds that Flower's engine finishes in ``FLOWER_SECONDS``.

    In a process of its own, since the engine may wait for a worker for ever.
    """
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    process = spawn.Process(target=flower_job, args=(queue, n_nodes, n_rounds))
    process.start()
    process.join(FLOWER_SECONDS)
    process.terminate()
    process.join()
    seconds = []
    while not queue.empty():
        seconds.append(queue.get())
    return seconds


def flower_job(queue, n_nodes: int, n_rounds: int) -> None:
    """Runs rounds through Flower's simulation engine and puts the wall seconds of each."""
    from flwr.simulation import run_simulation

    from benchmarks.federated import load  # workers look functions up by module, not in __main__

    params = MODULE.init(jax.random.key(0), cohort().x[0, :1])
    app = flower.client_app(load, module=MODULE, **LOCAL)
    clock = [time.perf_counter()]

    def on_round(t, params):
        clock.append(time.perf_counter())
        queue.put(clock[-1] - clock[-2])

    server = flower.server_app(
        params, jax.random.key(1), n_rounds=n_rounds, aggregate=aggregators.mean,
        learning_rate=0.5, on_round=on_round,
    )  # fmt: skip
    run_simulation(
        server, app, num_supernodes=n_nodes,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )  # fmt: skip


def round_table() -> list[dict]:
    """Tabulates rounds per second of every way to run them."""
    everybody, key = cohort(), jax.random.key(1)
    params = MODULE.init(jax.random.key(0), everybody.x[0, :1])
    ways = {
        "one scan, vmap over clients": scanned,
        "one scan, 8 clients at once": functools.partial(scanned, at_once=8),
        "one scan, clients in turn": functools.partial(scanned, at_once=1),
        "Python loop over a jitted client": looped,
    }
    rows, ends = [], {}
    for name, fn in ways.items():
        cpu_1, _, cpu, wall = repeated(fn, key, params, everybody)
        ends[name] = fn(key, params, everybody)
        rows.append(
            {
                "how": name,
                "rounds per second": ROUNDS / wall,
                "CPU ms a round": 1000 * cpu / ROUNDS,
                "compiling, CPU s": max(cpu_1 - cpu, 0.0),
            }
        )
    base = rows[0]["CPU ms a round"]
    for row in rows:
        row["CPU, of the first row"] = row["CPU ms a round"] / base
    same = list(ends.values())
    gap = max(
        float(jnp.abs(a - b).max())
        for other in same[1:]
        for a, b in zip(jax.tree.leaves(same[0]), jax.tree.leaves(other), strict=True)
    )
    rows.append({"how": f"largest difference of the results: {gap:.1e}"})
    if importlib.util.find_spec("flwr") and importlib.util.find_spec("ray"):
        for n_nodes, n_rounds in ((2, 6), (N_CLIENTS, 3)):
            name = f"Flower's engine, {n_nodes} nodes of {N_CLIENTS // n_nodes} clients"
            seconds = flower_rows(n_nodes, n_rounds)
            if len(seconds) < 2:
                rows.append({"how": f"{name}: {len(seconds)} rounds in {FLOWER_SECONDS} s"})
                continue
            rows.append(
                {
                    "how": name,
                    "rounds per second": 1 / np.median(seconds[1:]),
                    "first round, wall s": seconds[0],
                }
            )
    else:
        rows.append({"how": "Flower's engine: not installed here"})
    return rows


def filter_table() -> list[dict]:
    """Tabulates the filter's time and compile time."""
    rows = []
    for n, k in SIZES:
        d = max(74, k)
        h = jax.random.normal(jax.random.key(0), (n, d)) * jnp.linspace(3, 0.1, d)
        fit = jax.jit(functools.partial(spectre.fit_spectre, k=k))
        first, _, cpu, wall = repeated(fit, h, 0.1 * n)
        rows.append(
            {
                "rows n": n,
                "directions k": k,
                "SPECTRE, CPU ms": 1000 * cpu,
                "wall ms": 1000 * wall,
                "compiling, CPU s": max(first - cpu, 0.0),
            }
        )
    return rows


def report() -> str:
    """Writes the section."""
    jax.config.update("jax_enable_compilation_cache", False)
    rounds, filters = round_table(), filter_table()
    packages = ("jax", "numpy", "flax") + ("flwr", "ray") * bool(importlib.util.find_spec("ray"))
    head = environment(COMMAND, packages=packages, notes=NOTES)
    return f"""## Federated rounds and the SPECTRE filter

{head}
### Rounds

{N_CLIENTS} clients of 60 digits, an MLP 64-32-32-10, 2 local epochs of batches of 20, mean;
{ROUNDS} rounds a call, median of {REPEATS} calls after the first.

{to_markdown(rounds)}
### The filter

`fit_spectre`, 16 passes of 16 power iterations, on Gaussian rows of falling variance, a tenth of
them reckoned outliers.

{to_markdown(filters)}"""


if __name__ == "__main__":
    main("federated", __doc__, report)
