"""Label matching for FLIP: what one gradient by the labels costs, in time and in memory.

    python -m benchmarks.flip            # prints the tables
    python -m benchmarks.flip --write    # and puts them into benchmarks/RESULTS.md

CPU seconds of this process, in which XLA has one thread, and the temporary memory that XLA plans at
compile time.
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    OMP_NUM_THREADS="1",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

from benchmarks._results import environment, main
from jaxml import nn
from jaxml.backdoor import matchers
from jaxml.report import to_markdown

COMMAND = "python -m benchmarks.flip --write"
STEPS = (1, 8, 32)
REPEATS = 7
BATCH = 128
LONGEST = 32
MIN_SAVING = 5

NOTES = """\
CPU time of the process (`time.process_time`, median of repeats that take turns), one thread; other
  work shared the machine, so ratios within a table count. Memory: `temp_size_in_bytes` of the
  compiled program"""


class BatchNormMLP(linen.Module):
    """64-256-10 with BatchNorm."""

    @linen.compact
    def __call__(self, x, train=False):
        """Maps images to logits."""
        x = linen.Dense(256)(x.reshape(len(x), -1))
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
        return linen.Dense(10)(x)


MODELS = {
    "MLP 64-256-10, BatchNorm": BatchNormMLP(),
    "conv net 4-8-16, BatchNorm": nn.build("convnet", width=0.25, n_classes=10, norm="batch"),
}
# XLA's convolutions are slow inside the loop over steps on a CPU.
UNROLLED = "MLP 64-256-10, BatchNorm"
OPTIMIZERS = {
    "SGD": optax.sgd(0.1),
    "Nesterov, weight decay": optax.chain(
        optax.add_decayed_weights(2e-4), optax.sgd(0.1, momentum=0.9, nesterov=True)
    ),
}


class Program(NamedTuple):
    """A compiled matcher, its arguments, and the memory that it needs besides them."""

    call: object
    args: tuple
    bytes: int


def problem(model, optimizer, n_steps: int):
    """Returns a point, batches and labels of random images."""
    rng = np.random.default_rng(0)
    x, expert_x = rng.uniform(size=(2, n_steps, BATCH, 8, 8, 1)).astype(np.float32)
    labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, (2, n_steps, BATCH))]
    params = model.init(jax.random.key(0), x[0])["params"]
    point = matchers.Point(params, optimizer.init(params))
    batches = matchers.Batches(*map(jnp.asarray, (x, expert_x, labels[0])))
    return point, batches, jnp.asarray(0.9 * labels[1] + 0.01)


def compiled(match, model, optimizer, n_steps: int, **options) -> Program:
    """Compiles a matcher for so many steps."""
    args = problem(model, optimizer, n_steps)
    fn = functools.partial(match, model, optimizer, **options)
    call = jax.jit(fn).lower(*args).compile()
    return Program(call, args, call.memory_analysis().temp_size_in_bytes)


def seconds(programs: dict[str, Program], repeats: int = REPEATS) -> dict[str, float]:
    """Times the programs in turn, so that what else the machine does hits all of them."""
    taken = {name: [] for name in programs}
    for _ in range(repeats + 1):
        for name, (call, args, _) in programs.items():
            start = time.process_time()
            jax.block_until_ready(call(*args))
            taken[name].append(time.process_time() - start)
    return {name: float(np.median(values[1:])) for name, values in taken.items()}


def one_step_rows() -> list[dict]:
    """Compares the two ways to differentiate one step."""
    rows = []
    for model_name, model in MODELS.items():
        for optimizer_name, optimizer in OPTIMIZERS.items():
            programs = {
                "jvp": compiled(matchers.match_jvp, model, optimizer, 1),
                "autodiff": compiled(matchers.match_unroll, model, optimizer, 1, checkpoint=False),
            }
            taken = seconds(programs)
            jvp, autodiff = (p.call(*p.args).gradient for p in programs.values())
            rows.append({
                "network": model_name,
                "optimiser": optimizer_name,
                "jvp, ms": 1e3 * taken["jvp"],
                "autodiff through the step, ms": 1e3 * taken["autodiff"],
                "time, autodiff / jvp": taken["autodiff"] / taken["jvp"],
                "jvp, MB": programs["jvp"].bytes / 1e6,
                "autodiff, MB": programs["autodiff"].bytes / 1e6,
                "memory, autodiff / jvp": programs["autodiff"].bytes / programs["jvp"].bytes,
                "largest difference": float(
                    jnp.abs(jvp - autodiff).max() / jnp.abs(autodiff).max()
                ),
            })  # fmt: skip
    return rows


def unroll_rows() -> list[dict]:
    """Measures the unrolled matcher against the number of its steps."""
    model, optimizer = MODELS[UNROLLED], OPTIMIZERS["Nesterov, weight decay"]
    one = compiled(matchers.match_jvp, model, optimizer, 1)
    rows = []
    for n_steps in STEPS:
        programs = {
            name: compiled(matchers.match_unroll, model, optimizer, n_steps, checkpoint=checkpoint)
            for name, checkpoint in (("plain", False), ("checkpoint", True))
        }
        taken = seconds({**programs, "jvp": one})
        plain, again = (program.call(*program.args).gradient for program in programs.values())
        rows.append({
            "network": UNROLLED,
            "steps": n_steps,
            **{f"{name}, MB": program.bytes / 1e6 for name, program in programs.items()},
            "memory, plain / checkpoint": programs["plain"].bytes / programs["checkpoint"].bytes,
            **{f"{name}, ms a step": 1e3 * taken[name] / n_steps for name in programs},
            "jvp, ms a step": 1e3 * taken["jvp"],
            "largest difference": float(jnp.abs(plain - again).max() / jnp.abs(plain).max()),
        })  # fmt: skip
    return rows


def bound_rows(unrolled: list[dict]) -> list[dict]:
    """Holds the bound that was asked for against what was measured."""
    return [
        {
            "bound": f"{row['network']}: {LONGEST} steps with checkpoints need at most "
            f"1/{MIN_SAVING} of the memory",
            "measured": f"1/{row['memory, plain / checkpoint']:.1f}",
            "holds": row["memory, plain / checkpoint"] >= MIN_SAVING,
        }
        for row in unrolled
        if row["steps"] == LONGEST
    ]


def report() -> str:
    """Writes the section."""
    one, unrolled = one_step_rows(), unroll_rows()
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return "\n".join([
        "## FLIP: the gradient of label matching\n",
        environment(COMMAND, packages=packages, notes=NOTES),
        f"\nOne step, batches of {BATCH}: the jvp identity against autodiff through the optimiser "
        "step.\n",
        to_markdown(one),
        "\nMany steps, by autodiff: with and without `jax.checkpoint` on the step.\n",
        to_markdown(unrolled),
        "\nBounds.\n",
        to_markdown(bound_rows(unrolled)),
        "\nWhat the identity gives is exactness and structure (its Hessian is the tangent kernel): "
        "one step costs about what autodiff costs.\n",
    ])  # fmt: skip


if __name__ == "__main__":
    main("flip", __doc__, report)
