"""Private least squares: its time against numpy.linalg.lstsq, its growth, sharding, thresholds.

    python -m benchmarks.private_ols            # prints the tables
    python -m benchmarks.private_ols --write    # and puts them into benchmarks/RESULTS.md

CPU and wall seconds of this process, in which BLAS and XLA have one thread each.
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import json
import math
import re
import subprocess
import sys
import time

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks._results import environment, main
from jaxml import privacy
from jaxml.core.sharding import make_mesh
from jaxml.report import to_markdown

COMMAND = "python -m benchmarks.private_ols --write"
BUDGET = {"epsilon": 1.0, "delta": 1e-6}
SIZES = ((20_000, 10), (100_000, 5), (100_000, 10), (100_000, 20), (100_000, 50), (400_000, 10))
REPEATS = 7
MAX_RATIO = 8
# Outliers, and what the leverage bound is multiplied with.
DIRTY = ((0, 1.0), (3, 1.0), (30, 1.0), (0, 0.7))
NOTES = """\
CPU time of the process (`time.process_time`) and wall time, BLAS and XLA on one thread each;
  other work shared the machine, so CPU time decides"""


def draw(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws normal rows of condition number 1e6."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    X = rng.normal(size=(n, d)) @ (np.geomspace(1, 1e-6, d)[:, None] * rotation)
    return X, X @ np.linalg.solve(rotation, np.ones(d)) + rng.normal(size=n)


def constants_of(n: int, d: int) -> privacy.ISSPConstants:
    """Returns the constants at the benchmark's budget."""
    return privacy.issp_constants(n, **BUDGET, **privacy.gaussian_bounds(n, d)._asdict())


def timed(fn) -> tuple[float, float]:
    """Returns CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    fn()
    return time.process_time() - cpu, time.perf_counter() - wall


def time_row(n: int, d: int, n_outliers: int = 0, tighter: float = 1.0) -> dict:
    """Times both in turns on the same arrays."""
    X, y = draw(n, d)
    rng = np.random.default_rng(1)
    X[:n_outliers] *= rng.uniform(5, 1e3, (n_outliers, 1))
    bounds = privacy.gaussian_bounds(n, d)
    bounds = bounds._replace(leverage_bound=tighter * bounds.leverage_bound)
    constants, key = privacy.issp_constants(n, **BUDGET, **bounds._asdict()), jax.random.key(0)
    compiling, _ = timed(lambda: privacy.private_ols(key, X, y, constants))
    ours, theirs = [], []
    for _ in range(REPEATS):
        ours.append(timed(lambda: privacy.private_ols(key, X, y, constants)))
        theirs.append(timed(lambda: np.linalg.lstsq(X, y, rcond=None)))
    _, found = privacy.private_ols(key, X, y, constants, unsafe_diagnostics=True)
    (cpu, wall), (np_cpu, np_wall) = np.median(ours, axis=0), np.median(theirs, axis=0)
    ratios = [a[0] / b[0] for a, b in zip(ours, theirs, strict=True)]
    return {
        "n": n,
        "d": d,
        "outliers": n_outliers,
        "bound times": tighter,
        "passes": int(found.n_passes),
        "score": int(found.score),
        "private, CPU ms (wall)": f"{1e3 * cpu:.1f} ({1e3 * wall:.1f})",
        "lstsq, CPU ms (wall)": f"{1e3 * np_cpu:.1f} ({1e3 * np_wall:.1f})",
        "CPU ratio": float(np.median(ratios)),
        "from": min(ratios),
        "to": max(ratios),
        "first call, CPU s": compiling,
    }


def shard_row(n: int = 100_000, d: int = 10) -> dict:
    """Compares a fit of rows on four devices with that on one."""
    jax.config.update("jax_num_cpu_devices", 4)
    X, y = draw(n, d)
    constants, key = constants_of(n, d), jax.random.key(0)
    rows = NamedSharding(make_mesh(4), PartitionSpec("data"))
    with jax.enable_x64(True):
        sharded = [jax.device_put(a, rows) for a in (X, y)]
        lines = jax.jit(lambda X, y: privacy.private_ols(key, X, y, constants))
        text = lines.lower(*sharded).compile().as_text()
    results = [privacy.private_ols(key, *data, constants) for data in ((X, y), sharded)]
    one, four = (r.coef for r in results)
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    largest = max((math.prod(map(int, s.split(","))) for s in shapes if s), default=0)
    return {
        "n": n,
        "d": d,
        "devices": 4,
        "largest difference over the noise": float(
            np.linalg.norm(X @ (one - four)) / constants.noise_scale
        ),
        "numbers in the largest gather": largest,
    }


def shard_apart() -> dict:
    """Runs ``shard_row`` in a process of its own: devices that wait for each other need threads."""
    code = "import json; from benchmarks import private_ols as b; print(json.dumps(b.shard_row()))"
    environ = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the sharded fit failed: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def plain_noise(n: int, d: int) -> float:
    """The noise that the plain inequalities give: no product bound, a ramp of k."""
    level_0, r0, sigma0 = privacy.gaussian_bounds(n, d)
    best = math.inf
    for share in np.linspace(0.1, 0.9, 17):
        k = len(privacy.ptr_pass_probs(float(share), 2e-7, 1e-3)) - 1
        if 3 * k * level_0 >= 1 or (limit := level_0 / (1 - 3 * k * level_0)) >= 0.25:
            continue
        reference = math.sqrt(limit * n * (1 - 2 * limit) ** -k) * sigma0
        residual = r0 + (6 * k * limit / (1 - 2 * limit) + k * limit) * reference
        x = privacy.chi_square_bound(0.2e-6 / math.e)
        covariance = 0.5 * (limit / (1 - limit) + 2 * limit * x / (1 - 2 * limit))
        if (mean := 1 - share - covariance) > 0:
            shift = 3 * math.sqrt(limit) * residual / (1 - 2 * limit)
            best = min(best, shift * privacy.gaussian_scale(float(mean), 6e-7))
    return best * math.sqrt(d / n)


def threshold_rows() -> list[dict]:
    """Finds by bisection where an answer of some quality starts, before and after."""

    def first(fn, d, limit):
        low, high = d, 10**7
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fn(middle, d) <= limit(middle) else (middle, high)
        return high

    def ours(n, d):
        return privacy.predicted_error(constants_of(n, d), d)

    rows = []
    for d in (5, 10, 20, 50):
        for who, fn in (("this library", ours), ("plain inequalities", plain_noise)):
            rows.append({
                "d": d,
                "constants": who,
                "answers": first(fn, d, lambda n: 1e300),
                "noise at most 1": first(fn, d, lambda n: 1),
                "at most 0.1": first(fn, d, lambda n: 0.1),
                "at most that of least squares": first(fn, d, lambda n, d=d: math.sqrt(d / n)),
            })  # fmt: skip
    return rows


def report() -> str:
    """Measures everything and returns the section."""
    start = time.perf_counter()
    times = [time_row(n, d) for n, d in SIZES]
    dirty = [time_row(100_000, 10, *case) for case in DIRTY]
    shards, thresholds = [shard_apart()], threshold_rows()
    main_row = next(row for row in times if (row["n"], row["d"]) == (100_000, 10))
    bounds = [
        {
            "bound": f"n = 100000, d = 10: CPU time at most {MAX_RATIO} times lstsq",
            "measured": f"{main_row['CPU ratio']:.2f}",
            "holds": main_row["CPU ratio"] <= MAX_RATIO,
        },
        {
            "bound": "four devices as one: difference at most 1e-6 of the noise",
            "measured": f"{shards[0]['largest difference over the noise']:.1e}",
            "holds": shards[0]["largest difference over the noise"] <= 1e-6,
        },
    ]
    minutes = (time.perf_counter() - start) / 60
    head = environment(COMMAND, packages=("jax", "numpy", "scipy"), notes=NOTES)
    return f"""\
## Private least squares

{head}- whole run: {minutes:.1f} minutes

### Time

`jaxml.privacy.private_ols` (levels, both fits, release) against `numpy.linalg.lstsq`, which does no
more than solve, in turns on the same arrays in one process: medians of {REPEATS}, condition number
1e6, epsilon = 1, delta = 1e-6. Ratios are of CPU time, with their range. The first call includes
the compilation for a shape.

{to_markdown(times)}
Rows that are outliers take passes of their own: factorisations for those near the thresholds, none
for those that their share of a column gives away. With a leverage bound of 0.7 of the one
that suits these data, ordinary rows are near the thresholds.

{to_markdown(dirty)}
### Four devices

Rows sharded over four simulated devices, against one.

{to_markdown(shards)}
### Where it starts to answer

Least n by bisection, epsilon = 1, delta = 1e-6, bounds by `gaussian_bounds`, errors of standard
deviation 1; all from public numbers. "Plain inequalities" bound leverage and residual apart, and
let weights fall over k levels: the proof in docs/private_ols.md does better in (d) to (f).

{to_markdown(thresholds)}
### Bounds

{to_markdown(bounds)}"""


if __name__ == "__main__":
    main("private_ols", __doc__, report)
