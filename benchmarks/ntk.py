"""Tangent kernels: the three implementations, their memory, and one row for a large network.

    python -m benchmarks.ntk            # prints the tables
    python -m benchmarks.ntk --write    # and puts them into benchmarks/RESULTS.md

On a CPU in CPU seconds of this process, in which XLA has one thread; on a GPU in wall seconds.
"""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import functools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._results import environment, main
from jaxml import nn, ntk
from jaxml.compat import neural_tangents
from jaxml.report import to_markdown

COMMAND = "python -m benchmarks.ntk --write"
REPEATS = 5
N_EXAMPLES, N_CLASSES, BLOCK = 16, 10, 8
IMPLEMENTATIONS = get_args(ntk.Implementation)
PEERS = {"neural-tangents 1": 1, "neural-tangents 2": 2, "neural-tangents 3": 3}

MEMORY_SIZES = (64, 128, 256, 512)
MEMORY_BLOCK = 8
MAX_GB = 8
COLUMNS = 32

# Peak of float32 without tensor cores, as the maker states it: what Precision.HIGHEST may use.
PEAK_FLOPS = {"NVIDIA A100": 19.5e12, "NVIDIA H100": 66.9e12, "NVIDIA H200": 66.9e12}

NOTES = """\
CPU time of the process (`time.process_time`), XLA on one thread; other work shared the machine"""


def on_gpu() -> bool:
    """Tells whether jax computes on a GPU."""
    return jax.default_backend() == "gpu"


def seconds(fn: Callable, *args) -> float:
    """Returns what a call takes: CPU time on a CPU, wall time on a GPU."""
    clock = time.perf_counter if on_gpu() else time.process_time
    start = clock()
    jax.block_until_ready(fn(*args))
    return clock() - start


def spread(values) -> str:
    """Writes the median and, in brackets, the range."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


class Network(NamedTuple):
    """A model, its variables and the shape of an example."""

    model: Any
    variables: Any
    shape: tuple[int, ...]

    @property
    def n_params(self) -> int:
        """Counts the parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables))


def make(model, shape) -> Network:
    """Initialises a model."""
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    return Network(model, variables, shape)


def networks() -> dict[str, Network]:
    """Makes the networks of the comparison, one of them with both kinds of convolution."""
    convnet = functools.partial(nn.ConvNet, N_CLASSES, features=(16, 32, 64), norm="none")
    images = (16, 16, 3)
    return {
        "MLP 64-256-256-10": make(nn.MLP((256, 256), N_CLASSES), (64,)),
        "ConvNet 16-32-64": make(convnet(), images),
        "ConvNet 16-32-64, patches": make(convnet(conv="patches"), images),
        "ResNet 16-32, 2 blocks": make(
            nn.ResNet(N_CLASSES, widths=(16, 32), blocks=(1, 1)), images
        ),
    }


def inputs(network: Network, n: int, seed: int) -> jax.Array:
    """Draws Gaussian inputs."""
    return jax.random.normal(jax.random.key(seed), (n, *network.shape))


def contestants(network: Network) -> dict[str, Callable]:
    """Returns functions of variables and two sets of inputs."""
    apply = network.model.apply
    found: dict[str, Callable] = {}
    for size, label in ((None, ""), (BLOCK, f", blocks of {BLOCK}")):
        for name in IMPLEMENTATIONS:
            found[name + label] = functools.partial(
                ntk.empirical_ntk, apply, implementation=name, batch_size=size
            )
    nt = neural_tangents.load()
    for name, number in PEERS.items():
        peer = nt.empirical_ntk_fn(
            lambda p, x: apply(p, x), trace_axes=(-1,), vmap_axes=0, implementation=number
        )
        found[name] = lambda p, x1, x2, peer=peer: peer(x1, x2, p)
    return found


def implementation_rows() -> list[dict]:
    """Times all implementations on all networks, one call of each in turn."""
    rows = []
    for title, network in networks().items():
        arguments = (
            network.variables,
            inputs(network, N_EXAMPLES, 1),
            inputs(network, N_EXAMPLES, 2),
        )
        compiled = {
            name: jax.jit(fn).lower(*arguments).compile()
            for name, fn in contestants(network).items()
        }
        kernels = {name: np.asarray(fn(*arguments)) for name, fn in compiled.items()}
        taken = {name: [] for name in compiled}
        for _ in range(REPEATS):
            for name, fn in compiled.items():
                taken[name].append(seconds(fn, *arguments))
        want = kernels["jacobian"]
        for name, fn in compiled.items():
            ratio = np.divide(taken[name], taken["jacobian"])
            rows.append({
                "network": title,
                "implementation": name,
                "ms": 1e3 * float(np.median(taken[name])),
                "entries per second": float(N_EXAMPLES**2 / np.median(taken[name])),
                "time / jacobian's": spread(ratio),
                "temporary memory, MB": temporary(fn) / 1e6,
                "largest difference": float(np.abs(kernels[name] - want).max() / want.max()),
            })  # fmt: skip
    return rows


def temporary(compiled) -> int:
    """Returns the bytes a compiled program needs besides arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def memory_rows() -> list[dict]:
    """Compiles the kernel of more and more examples, and of its gradient by the inputs."""
    network = make(nn.MLP((512, 512), 1), (64,))
    rows = []
    for n in MEMORY_SIZES:
        x = jax.ShapeDtypeStruct((n, *network.shape), jnp.float32)
        row = {"n": n, "n P floats, MB": 4 * n * network.n_params / 1e6}
        for name in IMPLEMENTATIONS:
            kernel = functools.partial(
                ntk.empirical_ntk, network.model.apply, implementation=name, batch_size=MEMORY_BLOCK
            )
            row[f"{name}, MB"] = (
                temporary(jax.jit(kernel).lower(network.variables, x, x).compile()) / 1e6
            )

            def total(x1, variables, x2, kernel=kernel):
                return kernel(variables, x1, x2).sum()

            if name == "jacobian":
                compiled = jax.jit(jax.grad(total)).lower(x, network.variables, x).compile()
                row["its gradient, MB"] = temporary(compiled) / 1e6
        rows.append(row)
    return rows


class Row(NamedTuple):
    """One row of a kernel: what it took, and the memory of the process at most."""

    n_params: int
    compiling: float
    seconds: float
    flops: float
    temporary_bytes: int
    peak_bytes: int


def wide_resnet_row(implementation: str) -> Row:
    """Computes one row of the kernel of a WideResNet-34-5 with one output, on 32x32 images.

    On a CPU in blocks; on a GPU at once, since XLA counts the operations of a loop's body once.
    """
    # Inside a loop, XLA's own convolution is several times slower on a CPU.
    conv = "lax" if on_gpu() else "patches"
    model = nn.ResNet(1, widths=(80, 160, 320), blocks=(5, 5, 5), stem=16, conv=conv)
    network = make(model, (32, 32, 3))
    arguments = network.variables, inputs(network, 1, 1), inputs(network, COLUMNS, 2)
    kernel = functools.partial(
        ntk.empirical_ntk,
        model.apply,
        implementation=implementation,
        batch_size=None if on_gpu() else BLOCK,
    )
    start = time.process_time()
    lowered = jax.jit(kernel).lower(*arguments)
    compiled = lowered.compile()
    compiling = time.process_time() - start
    taken = seconds(compiled, *arguments)
    return Row(
        network.n_params,
        compiling,
        min(taken, seconds(compiled, *arguments)) if on_gpu() else taken,
        lowered.cost_analysis().get("flops", float("nan")),
        temporary(compiled),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def wide_resnet_rows() -> list[dict]:
    """Runs each implementation in a process of its own."""
    rows = []
    for name in ("jacobian", "structured"):
        program = (
            "import json; from benchmarks.ntk import wide_resnet_row; "
            f"print(json.dumps(wide_resnet_row({name!r})))"
        )
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
        row = Row(*json.loads(done.stdout))
        rows.append({
            "implementation": name,
            "parameters": row.n_params,
            "compiling, CPU s": row.compiling,
            "row, s": row.seconds,
            "entries per second": COLUMNS / row.seconds,
            "temporary memory, GB": row.temporary_bytes / 1e9,
            "peak resident memory, GB": row.peak_bytes / 1e9,
            f"within {MAX_GB} GB": row.peak_bytes < MAX_GB * 1e9,
        })  # fmt: skip
    return rows


def gpu_text() -> str:
    """Times kernel entries of a WideResNet-34-5 on a GPU and relates them to its peak."""
    if not on_gpu():
        return "No GPU here.\n"
    kind = jax.devices()[0].device_kind
    peak = next((v for name, v in PEAK_FLOPS.items() if kind.startswith(name)), None)
    rows = []
    for name in ("jacobian", "structured"):
        row = wide_resnet_row(name)
        rows.append({
            "implementation": name,
            "ms per entry": 1e3 * row.seconds / COLUMNS,
            "Tflop/s": row.flops / row.seconds / 1e12,
            "fraction of float32 peak": row.flops / row.seconds / peak if peak else "unknown",
        })  # fmt: skip
    return f"{kind}, wall time; operations as XLA counts them.\n\n{to_markdown(rows)}"


def report() -> str:
    """Measures everything and returns the section."""
    start = time.perf_counter()
    # First, since a child process starts from its parent's peak.
    wide = wide_resnet_rows()
    memory = memory_rows()
    implementations = implementation_rows()
    gpu = gpu_text()
    minutes = (time.perf_counter() - start) / 60
    head = environment(COMMAND, packages=("jax", "flax", "neural-tangents", "numpy"), notes=NOTES)
    return f"""\
## Tangent kernels

{head}- whole run: {minutes:.1f} minutes; figures are "median (smallest to largest)"

### Implementations

`empirical_ntk` of {N_EXAMPLES} x {N_EXAMPLES} examples, averaged over {N_CLASSES} outputs, float32,
compiled; all at once and in blocks of {BLOCK}. {REPEATS} rounds, one call of each in turn; the
ratio is taken within a round. Beside them neural-tangents' own three functions through the door of
`jaxml.compat`: Jacobian contraction (1), NTK-vector products (2), structured derivatives (3, which
is what `"structured"` calls).

{to_markdown(implementations)}
XLA's own convolutions are slow inside a loop on a CPU, and most of what blocks cost the
convolutional networks is that; compare `conv="patches"` of `jaxml.nn`.

### Memory

Temporary memory of the compiled kernel of n x n examples in blocks of {MEMORY_BLOCK}, by XLA's
account, for an MLP 64-512-512-1; the kernel and its unfinished blocks (a few times 4 n^2 bytes) are
part of it.

{to_markdown(memory)}
### A row of a WideResNet

One row of {COLUMNS} entries for a WideResNet-34-5 (widths 80, 160, 320, five blocks each, one
output, LayerNorm) on 32x32 images, in blocks of {BLOCK}, each in a process of its own whose peak
includes python and jax. CPU seconds; one run.

{to_markdown(wide)}
### On a GPU

{gpu}"""


if __name__ == "__main__":
    main("ntk", __doc__, report)
