"""NTBA's outer evaluation: what keeping the clean factor saves, how it grows, what it holds.

    python -m benchmarks.ntba            # prints the tables
    python -m benchmarks.ntba --write    # and puts them into benchmarks/RESULTS.md

CPU seconds of this process, in which BLAS and XLA have one thread each; both sides of a ratio are
measured in turn.
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve

from benchmarks._results import environment, main
from jaxml import nn, ntk
from jaxml.backdoor import ntba
from jaxml.report import to_markdown

COMMAND = "python -m benchmarks.ntba --write"
N, M, Q = 2000, 10, 400
REPEATS = 5
MIN_SPEEDUP = 3
SIZES = ((500, 10), (1000, 10), (2000, 10), (2000, 3), (2000, 30))
MODEL = nn.build("mlp", width=64, n_classes=1, activation="gelu")
SHAPE = (8, 8, 1)


def in_turn(*calls) -> list[np.ndarray]:
    """Returns the CPU seconds of each call, repeated in turn after one call to compile."""
    seconds = [[] for _ in calls]
    for call in calls:
        jax.block_until_ready(call())
    for _ in range(REPEATS):
        for times, call in zip(seconds, calls, strict=True):
            start = time.process_time()
            jax.block_until_ready(call())
            times.append(time.process_time() - start)
    return [np.array(times) for times in seconds]


def spread(values, digits=3) -> str:
    """Writes the median and, in brackets, the range."""
    low, middle, high = (f"{v:.{digits}g}" for v in np.quantile(values, [0, 0.5, 1]))
    return f"{middle} ({low} to {high})"


def make_problem(n: int) -> ntba.Problem:
    """A problem on random images, with one untrained network: the cost is the same."""
    rng = np.random.default_rng(0)
    x, x_clean, x_triggered = (
        rng.uniform(size=(k, *SHAPE)).astype(np.float32) for k in (n, Q // 2, Q // 2)
    )
    y, y_clean = (np.where(np.arange(k) % 2, 1.0, -1.0) for k in (n, Q // 2))
    net = MODEL.init(jax.random.key(0), x[:1])
    nets = ntba.Nets(MODEL.apply, jax.tree.map(lambda leaf: leaf[None], net))
    return ntba.make_problem(nets, x, y, x_clean, y_clean, x_triggered, diag_reg=1e-3)


@jax.jit
def _refactorised(k_dd, k_dq, y_d, ridge, y, triggered, k_pz, k_pp):
    """Loss and gradient by factorising the whole kernel at every evaluation."""

    def loss_of(k_pz, k_pp):
        n, m = len(k_dd), len(k_pp)
        k_pd, k_pq = k_pz[:, :n], k_pz[:, n:]
        whole = jnp.block([[k_dd, k_pd.T], [k_pd, k_pp]]) + ridge * jnp.eye(n + m)
        labels = jnp.concatenate([y_d, jnp.ones(m)])
        weights = cho_solve((jnp.linalg.cholesky(whole), True), labels)
        error = jnp.concatenate([k_dq, k_pq]).T @ weights - y
        return jnp.square(jnp.where(triggered, jnp.minimum(error, 0), error)).sum()

    loss, (w_pz, w_pp) = jax.value_and_grad(loss_of, argnums=(0, 1))(k_pz, k_pp)
    return loss, jnp.concatenate([w_pz, w_pp + w_pp.T], axis=1)


def solves(n: int, m: int) -> dict:
    """Compares the linear algebra alone, and the whole evaluation, with and without the factor."""
    problem = make_problem(n)
    nets = problem.nets
    poisons = np.random.default_rng(1).uniform(size=(m, *SHAPE)).astype(np.float32)
    k_pz, k_pp = ntba.mean_kernel(nets, poisons, problem.x), ntba.mean_kernel(nets, poisons)
    k_dd = ntba.mean_kernel(nets, problem.x[:n])
    k_dq = ntba.mean_kernel(nets, problem.x[:n], problem.x[n:])
    with jax.enable_x64(True):
        k_dd, k_dq, k_pz, k_pp = (jnp.asarray(k, jnp.float64) for k in (k_dd, k_dq, k_pz, k_pp))
        y_d = jnp.where(jnp.arange(n) % 2, 1.0, -1.0)
        queries = problem.y, problem.triggered

        def kept():
            return ntba._loss_and_weights(problem.fit, problem.queries, *queries, k_pz, k_pp)

        def anew():
            return _refactorised(k_dd, k_dq, y_d, problem.fit.ridge, *queries, k_pz, k_pp)

        (loss, weights), (expected, expected_weights) = kept(), anew()
        difference = abs(float(loss / expected) - 1)
        scale = float(jnp.abs(expected_weights).max())
        slope = float(jnp.abs(weights - expected_weights).max()) / scale
        cached, refactorised = in_turn(kept, anew)
    weights = np.asarray(weights, np.float32)
    (rest,) = in_turn(lambda: _kernels_and_pull_back(problem, poisons, weights))
    whole = (np.median(rest) + np.median(refactorised)) / (np.median(rest) + np.median(cached))
    return {
        "n": n,
        "m": m,
        "kept factor, s": np.median(cached),
        "factorised anew, s": np.median(refactorised),
        "ratio": spread(refactorised / cached),
        "kernels and gradient, s": np.median(rest),
        "ratio, whole evaluation": whole,
        "loss differs by": f"{difference:.1e}",
        "gradient differs by": f"{slope:.1e}",
    }


def _kernels_and_pull_back(problem, poisons, weights):
    nets = problem.nets
    blocks = ntba.mean_kernel(nets, poisons, problem.x), ntba.mean_kernel(nets, poisons)
    gradient = ntba._pull_back(
        nets.params, problem.x, jnp.asarray(poisons), weights, apply=nets.apply,
        size=nets.batch_size, mesh=None,
    )  # fmt: skip
    return blocks, gradient


def gradients(n: int) -> dict:
    """Compares the tangent trick with differentiating through the kernel's entries."""
    rng = np.random.default_rng(0)
    z, x = (jnp.asarray(rng.uniform(size=(k, *SHAPE)), jnp.float32) for k in (n, M))
    weights = rng.normal(size=(M, n + M)).astype(np.float32)
    weights[:, n:] += weights[:, n:].T  # as `_loss_and_weights` gives them
    net = MODEL.init(jax.random.key(0), z[:1])
    params = jax.tree.map(lambda leaf: leaf[None], net)
    size = 256
    trick = functools.partial(ntba._pull_back, apply=MODEL.apply, size=size, mesh=None)

    @jax.jit
    def through(net, z, x, weights):
        # A pair of poisons stands twice in the symmetric block.
        def total(x):
            kernel = functools.partial(ntk.empirical_ntk, MODEL.apply, net, x, batch_size=size)
            half = weights[:, n:] / 2
            return (kernel(z) * weights[:, :n]).sum() + (kernel(x) * half).sum()

        return jax.grad(total)(x)

    calls = lambda: trick(params, z, x, weights), lambda: through(net, z, x, weights)
    ours, dense = (np.asarray(call()) for call in calls)
    first, second = in_turn(*calls)
    memory = [
        f.lower(*args).compile().memory_analysis().temp_size_in_bytes / 2**20
        for f, args in (
            (jax.jit(trick), (params, z, x, weights)), (through, (net, z, x, weights)),
        )
    ]  # fmt: skip
    n_params = sum(leaf.size for leaf in jax.tree.leaves(net))
    return {
        "images": n,
        "tangent trick, s": np.median(first),
        "through the entries, s": np.median(second),
        "ratio": spread(second / first),
        "temporaries, trick, MiB": memory[0],
        "temporaries, entries, MiB": memory[1],
        "all gradients would be, MiB": 4 * n * n_params / 2**20,
        "gradient differs by": f"{np.abs(ours - dense).max() / np.abs(dense).max():.1e}",
    }


def report() -> str:
    """Measures everything and returns the section for RESULTS.md."""
    rows = [solves(n, m) for n, m in SIZES]
    judged = next(row for row in rows if (row["n"], row["m"]) == (N, M))
    ratio = float(judged["ratio"].split()[0])
    growth = [gradients(n) for n in (512, 1024, 2048)]
    head = environment(
        COMMAND, packages=("jax", "jaxlib", "numpy"),
        notes="CPU time of the process (`time.process_time`), BLAS and XLA on one thread each",
    )  # fmt: skip
    bounds = [
        {
            "bound": f"n = {N}, m = {M}: factorising anew takes at least {MIN_SPEEDUP} times",
            "measured": judged["ratio"],
            "holds": "yes" if ratio >= MIN_SPEEDUP else "no",
        },
        {
            "bound": "the same with kernels and pixel gradient counted on both sides",
            "measured": f"{judged['ratio, whole evaluation']:.3g}",
            "holds": "yes" if judged["ratio, whole evaluation"] >= MIN_SPEEDUP else "no",
        },
    ]
    return f"""\
## NTBA: an outer evaluation

{head}
### The clean factor, kept or not

Loss and its derivative in the kernel's entries, {Q} queries, float64; then the kernels of one
network (3 x 64 units, 8 x 8 pixels) and the pull-back to pixels, which both need.

{to_markdown(rows)}

### From kernel entries to pixels

One vector a poison against differentiating the kernel's entries, {M} poisons, batches of 256,
float32; temporaries by compile-time analysis.

{to_markdown(growth)}

### Bounds

{to_markdown(bounds)}
"""


if __name__ == "__main__":
    main("ntba", __doc__, report)
